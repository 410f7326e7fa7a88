/* The hot tier's memory: records in segments, an index over them, their order of use, and their deadlines.
 * See arena.c. */
#ifndef TIERED_ARENA_H
#define TIERED_ARENA_H

#include "segments.h"
#include "sketch.h"

#define ARENA_BUDGET_MIN (64u << 10)
#define ARENA_KEY_BYTES_MAX (32u << 10)
#define ARENA_WHEEL_SLOTS 1024
#define ARENA_SIZE_CLASSES 832

#define ARENA_QUEUES 3
#define ARENA_USES_MAX 63
/* What a use adds, and what a new record has, where uses are counted sparingly. */
#define ARENA_USE_WORTH 4
#define ARENA_USE_NEW 2

/* What a hit does to a record: it moves it to the front of the only queue (LRU), nothing (FIFO), or what the policy's rules
 * say. */
enum { ARENA_HIT_MOVES_TO_FRONT, ARENA_HIT_NOTHING, ARENA_HIT_BY_RULES };

/* As tiered/eviction/policy.py has them. */
typedef struct {
    int hit_action;
    unsigned uses_max;
    bool sparing;
    int hit_to[ARENA_QUEUES];
} ArenaRules;

/* The state of a new record in a queue. */
static inline uint8_t
arena_state_new(const ArenaRules *rules, unsigned queue)
{
    return (uint8_t)(queue << 6 | (rules->sparing ? ARENA_USE_NEW : 0));
}

typedef struct {
    uint32_t newest, oldest;
    uint64_t bytes;
} ArenaQueue;

/* A key: the first byte of its encoding, and the rest, so that the text of a `str` need not be copied. */
typedef struct {
    const unsigned char *data;
    size_t size;
    unsigned char code;
} ArenaKey;

/* A value as it is found: in the arena, good until the next call that may change it. */
typedef struct {
    const unsigned char *data;
    size_t size;
    unsigned kind;
    int64_t deadline; /* In milliseconds; 0 is none. */
    uint32_t place;
    bool noted; /* By `arena_note`. */
} ArenaValue;

typedef struct {
    void *map;
    size_t bytes;
} ArenaOutside;

typedef struct {
    Segments segments;
    size_t budget_bytes;
    uint64_t seed[2];
    ArenaRules rules;
    ArenaQueue queues[ARENA_QUEUES];
    uint8_t entering; /* The state of the next new record: its queue and uses. */
    uint64_t hits[ARENA_QUEUES]; /* By rules, of records in each queue. */
    size_t policy_bytes;
    Sketch sketch;

    uint32_t *index; /* The mapping: a word that says whether it is still there, then the buckets. */
    size_t index_bytes;
    uint32_t bucket_count, bucket_mask;

    uint32_t holes[ARENA_SIZE_CLASSES]; /* What was removed and can be filled again, by size. */
    size_t count;

    uint32_t wheel[ARENA_WHEEL_SLOTS], pending;
    int64_t second; /* All slots up to this one were looked through. */
    size_t expiring;

    ArenaOutside *outside;
    uint32_t outside_count, outside_free;
    size_t outside_bytes, outside_held;

    uint64_t payload_bytes; /* Of keys and values. */
    uint64_t evictions, evicted_bytes, moved_bytes;
    int64_t work; /* Left for this call. */
} Arena;

bool arena_begin(Arena *a, size_t budget_bytes, const uint64_t seed[2]);
void arena_end(Arena *a);
void arena_clear(Arena *a);

uint32_t arena_hash(const Arena *a, const ArenaKey *key);
/* Of a key that will be looked up: fetches what that waits for, in three steps of which each needs what the one before fetched. */
enum { ARENA_FORESEE_STEPS = 3 };
void arena_foresee(const Arena *a, uint32_t hash, int step);
/* The same of a put that is to follow, which may evict. */
void arena_foresee_put(const Arena *a);
bool arena_find(const Arena *a, const ArenaKey *key, ArenaValue *found);
/* The same in two: where it looks first, which is fetched from memory while the caller does something else, and the rest. */
uint32_t arena_first(const Arena *a, uint32_t hash);
bool arena_find_hashed(const Arena *a, const ArenaKey *key, uint32_t hash, ArenaValue *found);
/* Notes a use of what was found just now. */
void arena_hit(Arena *a, uint32_t place);
/* Notes that the caller keeps something by its place; that is no longer so once it is replaced, removed or moved. */
void arena_note(Arena *a, uint32_t place);
/* Keeps a value, evicting others; false if it is not kept, and then nothing is under the key. */
bool arena_put(Arena *a, const ArenaKey *key, unsigned kind, const unsigned char *data, size_t size, int64_t deadline);
bool arena_discard(Arena *a, const ArenaKey *key);
/* Forgets the oldest of the first queue that has one; false if there is nothing. */
bool arena_evict(Arena *a);

/* What a policy is told and does: with the oldest of a queue, which there may not be. */
typedef struct {
    uint32_t fingerprint;
    size_t size;
    unsigned uses;
    int64_t deadline;
} ArenaOldest;

bool arena_oldest(const Arena *a, unsigned queue, ArenaOldest *found);
/* What a random number stands for, as long as no record comes, goes or moves; 0 if there is none. */
uint32_t arena_pick(const Arena *a, uint32_t number);
void arena_describe(const Arena *a, uint32_t place, ArenaOldest *found);
bool arena_drop_place(Arena *a, uint32_t place);
void arena_age(Arena *a, uint32_t place);
/* Makes it the newest of another queue or the same. */
void arena_shift(Arena *a, unsigned queue, unsigned to, unsigned uses);
bool arena_drop(Arena *a, unsigned queue);
/* Other rules: all records are in the first queue from now on, in the order that they had. */
void arena_rule(Arena *a, const ArenaRules *rules);
/* What a record would take; 0 if it would not be kept. */
size_t arena_need(const Arena *a, const ArenaKey *key, size_t size, int64_t deadline, size_t *outside);
/* Whether others must leave before so many bytes find room, with `outside` more outside the segments. */
bool arena_crowded(const Arena *a, size_t bytes, size_t outside);
/* What all records may take. */
size_t arena_capacity(const Arena *a);

/* Evicts and moves what it takes to use `bytes`, or the budget where that is less: a bounded part of it; true when done. */
bool arena_shrink(Arena *a, size_t bytes);
/* Another budget, from now on: `arena_shrink` enforces it.  False if there is no address space for a larger one. */
bool arena_resize(Arena *a, size_t budget_bytes);
/* Forgets up to `limit` of those whose deadline's second is over; returns how many. */
size_t arena_expire(Arena *a, int64_t now_ms, size_t limit);

size_t arena_used_bytes(const Arena *a);
/* The records from the oldest of the first queue on: the first, and the one after a place; 0 at the end. */
uint32_t arena_after(const Arena *a, uint32_t place);
ArenaKey arena_record(const Arena *a, uint32_t place, ArenaValue *value);
size_t arena_record_bytes(const Arena *a, uint32_t place);
/* NULL if everything adds up, else what does not; looks at every record. */
const char *arena_check(const Arena *a);

#endif
