/* A record as it lies in the arena, its hash, and the way to it: what the files of the arena share. */
#ifndef TIERED_ARENA_RECORD_H
#define TIERED_ARENA_RECORD_H

#include "arena.h"

#include <string.h>

#define KIND_MASK 0x17 /* What the caller makes of the value. */
#define NOTED 0x08
#define EXPIRING 0x20
#define OUTSIDE 0x40
#define DEAD 0x80

#define QUEUE_SHIFT 6
#define USES_MASK ARENA_USES_MAX

#define INDEX_HEAD 16 /* Words before the buckets. */
#define BUCKETS_MIN 1008

typedef struct {
    uint32_t chain; /* The next record of its bucket. */
    uint32_t older, newer;
    uint32_t value_size;
    uint16_t key_size;
    uint8_t kind;
    uint8_t state; /* Its queue in two bits, and its uses. */
} Record;

typedef struct {
    uint32_t deadline_low, deadline_high;
    uint32_t sooner, later; /* In the list of its slot of the wheel, in no order. */
} Due;

_Static_assert(sizeof(Record) == 20 && sizeof(Due) == 16, "records are counted by these sizes");

/* -- records ----------------------------------------------------------------------------------- */

static inline Record *
at(const Arena *a, uint32_t place)
{
    return (Record *)(void *)(a->segments.map + ((size_t)place << a->segments.unit_shift));
}

static inline Due *
due_of(Record *r)
{
    return (Due *)(void *)(r + 1);
}

static inline int64_t
deadline_of(const Record *r)
{
    const Due *due = (const Due *)(const void *)(r + 1);
    return (int64_t)((uint64_t)due->deadline_high << 32 | due->deadline_low);
}

static inline unsigned char *
key_of(const Record *r)
{
    return (unsigned char *)(r + 1) + (r->kind & EXPIRING ? sizeof(Due) : 0);
}

static inline unsigned
queue_of(const Record *r)
{
    return r->state >> QUEUE_SHIFT;
}

/* Sizes are rounded up, to one of 64 for each power of two and to whole units, so that what one record leaves another fits. */
static inline unsigned
step_shift(const Arena *a, size_t size)
{
    unsigned shift = 63u - (unsigned)__builtin_clzll(size);
    shift = shift > 6 ? shift - 6 : 0;
    return shift > a->segments.unit_shift ? shift : a->segments.unit_shift;
}

static inline size_t
rounded(const Arena *a, size_t size)
{
    size_t step = (size_t)1 << step_shift(a, size);
    return (size + step - 1) & ~(step - 1);
}

static inline unsigned
class_of(const Arena *a, size_t size)
{
    unsigned shift = step_shift(a, size);
    return (unsigned)(size >> shift) + 64 * (shift - a->segments.unit_shift);
}

static inline size_t
record_bytes(const Arena *a, const Record *r)
{
    size_t size = sizeof(Record) + r->key_size;
    size += r->kind & EXPIRING ? sizeof(Due) : 0;
    size += r->kind & OUTSIDE ? sizeof(uint32_t) : r->value_size;
    return rounded(a, size);
}

static inline uint32_t
outside_slot(const Record *r)
{
    uint32_t slot;
    memcpy(&slot, key_of(r) + r->key_size, sizeof slot);
    return slot;
}

/* -- the hash of a key ------------------------------------------------------------------------- */

static inline uint64_t
load(const unsigned char *data, size_t size)
{
    uint64_t word = 0;
    memcpy(&word, data, size);
    return word;
}

/* Both halves of a product, folded: the step of the hash functions called "mum" and "wyhash" (V. Makarov; Wang Yi). */
static inline uint64_t
fold(uint64_t x, uint64_t y)
{
    unsigned __int128 product = (unsigned __int128)x * y;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Seeded with random numbers that nobody outside knows, so that nobody can make keys that collide. */
static inline uint32_t
hash_of(const Arena *a, unsigned char code, const unsigned char *data, size_t size)
{
    const uint64_t odd = 0x9E3779B97F4A7C15u; /* 2^64 / golden ratio */
    uint64_t state = fold(a->seed[0] ^ size, odd ^ code), first, last;
    for (; size > 16; size -= 16, data += 16)
        state = fold(load(data, 8) ^ a->seed[1], load(data + 8, 8) ^ state);
    if (size >= 8) {
        first = load(data, 8);
        last = load(data + size - 8, 8);
    } else if (size >= 4) {
        first = load(data, 4);
        last = load(data + size - 4, 4);
    } else if (size > 0) {
        first = (uint64_t)data[0] << 16 | (uint64_t)data[size / 2] << 8 | data[size - 1];
        last = 0;
    } else {
        first = last = 0;
    }
    state = fold(first ^ a->seed[1], last ^ state);
    return (uint32_t)fold(state ^ odd, a->seed[0] ^ odd);
}

static inline uint32_t
hash_of_record(const Arena *a, const Record *r)
{
    const unsigned char *key = key_of(r);
    return hash_of(a, key[0], key + 1, r->key_size - 1u);
}

/* -- the index --------------------------------------------------------------------------------- */

static inline uint32_t *
bucket_of(const Arena *a, uint32_t hash)
{
    uint32_t bucket = hash & a->bucket_mask;
    if (bucket >= a->bucket_count)
        bucket &= a->bucket_mask >> 1;
    return a->index + INDEX_HEAD + bucket;
}

/* What refers to the record under a key: a bucket or the record before it in the chain; 0 is there if there is none. */
static inline uint32_t *
link_from(const Arena *a, const ArenaKey *key, uint32_t hash)
{
    uint32_t *link = bucket_of(a, hash);
    while (*link) {
        Record *r = at(a, *link);
        __builtin_prefetch((const char *)r + 64);
        __builtin_prefetch((const char *)r + 128);
        if (r->key_size == key->size + 1) {
            const unsigned char *own = key_of(r);
            /* Where a hit moves it from: these are waited for at the same time. */
            __builtin_prefetch(at(a, r->older), 1);
            __builtin_prefetch(at(a, r->newer), 1);
            if (own[0] == key->code && memcmp(own + 1, key->data, key->size) == 0)
                break;
        }
        link = &r->chain;
    }
    return link;
}

static inline uint32_t *
link_to(const Arena *a, const ArenaKey *key)
{
    return link_from(a, key, hash_of(a, key->code, key->data, key->size));
}

/* What refers to the record at a place. */
uint32_t *arena_link_to_place(const Arena *a, uint32_t place);
/* Pages that the buckets take. */
size_t arena_index_pages(const Arena *a);
/* One bucket more, among which and the one that it splits the records there are divided. */
void arena_grow_index(Arena *a);
/* The last bucket's records go back to the one that it was split from. */
void arena_shrink_index(Arena *a);

#endif
