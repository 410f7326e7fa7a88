/* What keeps most of a memory full of records whose sizes change, and at what price?  Three ways, the same operations:
 *
 *   segments   tiered/compiled/arena.c: records in one piece, appended, moved when their segment is emptied
 *   fibonacci  a Fibonacci buddy system, records in up to many linked blocks: sizes F(n) = F(n-1) + F(n-2) units, split
 *              and merged as in Hirschberg 1973 (Knuth, TAOCP 1, 2.5), left/right and memory bits as in Cranston and
 *              Thomas 1975; a record's size is a sum of Fibonacci numbers (Zeckendorf)
 *   tlsf       two-level segregated fit (Masmano et al. 2004): one piece, boundary tags, merged at once, stays in place
 *
 * Every record has 20 bytes of links and sizes and a 4-byte place in an index, whose bytes count in all three; the
 * time of `segments` includes the index, the order of use and the hash, the others' only memory, and the order in arrays.
 *
 *   cc -O2 -o /tmp/allocators tools/bench/allocators.c tiered/compiled/arena*.c tiered/compiled/segments.c \
 *     tiered/compiled/sketch.c -lm && /tmp/allocators
 */
#include "../../tiered/compiled/arena.h"

#include <math.h>
#include <string.h>
#include <stdio.h>
#include <time.h>

#define KEYS 2000000u
#define HEAD 20u
static unsigned char noise[1 << 17];
static uint32_t size_of[KEYS]; /* 0: not there. */
static uint32_t place_of[KEYS], older[KEYS + 1], newer[KEYS + 1];
static uint64_t payload, state = 88172645463325252u;
static size_t resident;

static uint64_t
draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static double
seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* -- fibonacci --------------------------------------------------------------------------------- */

#define UNIT 16u
#define CLASSES 34
typedef struct {
    uint32_t next; /* Of the record; of the free list when free. */
    uint8_t class, free, right, memory;
    uint32_t before; /* Of the free list. */
} Block;
#define BLOCK_HEAD 8u

static unsigned char *memory;
static size_t memory_bytes;
static uint32_t fib[CLASSES], lists[CLASSES];
static uint64_t listed;

#define BLOCK(place) ((Block *)(void *)(memory + (size_t)(place) * UNIT))

static void
push(uint32_t place)
{
    Block *b = BLOCK(place);
    b->free = 1;
    b->before = 0;
    b->next = lists[b->class];
    if (b->next)
        BLOCK(b->next)->before = place;
    lists[b->class] = place;
    listed |= 1ull << b->class;
}

static void
unlist(uint32_t place)
{
    Block *b = BLOCK(place);
    if (b->before)
        BLOCK(b->before)->next = b->next;
    else
        lists[b->class] = b->next;
    if (b->next)
        BLOCK(b->next)->before = b->before;
    if (!lists[b->class])
        listed &= ~(1ull << b->class);
    b->free = 0;
}

static void
fibonacci_begin(size_t bytes)
{
    fib[0] = 1;
    fib[1] = 2;
    int top = 1;
    for (int n = 2; n < CLASSES; n++) {
        fib[n] = fib[n - 1] + fib[n - 2];
        if ((size_t)fib[n] * UNIT <= bytes)
            top = n;
    }
    memory_bytes = (size_t)fib[top] * UNIT;
    memory = tiered_map(memory_bytes + UNIT);
    memset(lists, 0, sizeof lists);
    listed = 0;
    Block *b = BLOCK(1);
    b->class = (uint8_t)top;
    b->right = b->memory = 2; /* The root: has no buddy. */
    push(1);
}

/* A block of that class, else the largest there is that is smaller; 0 if there is none. */
static uint32_t
fibonacci_block(int class)
{
    uint64_t larger = listed >> class << class;
    if (!larger) {
        if (!listed)
            return 0;
        class = 63 - __builtin_clzll(listed);
        larger = listed;
        uint32_t place = lists[class];
        unlist(place);
        return place;
    }
    int found = __builtin_ctzll(larger);
    uint32_t place = lists[found];
    unlist(place);
    while (found > class && found >= 2) {
        Block *b = BLOCK(place);
        uint32_t right = place + fib[found - 1];
        Block *r = BLOCK(right);
        r->class = (uint8_t)(found - 2);
        r->right = 1;
        r->memory = b->memory;
        b->class = (uint8_t)(found - 1);
        b->memory = b->right;
        b->right = 0;
        if (class == found - 2) { /* The smaller half fits better. */
            push(place);
            place = right;
            r->free = 0;
            break;
        }
        push(right);
        found--;
    }
    return place;
}

static void
fibonacci_free_block(uint32_t place)
{
    for (;;) {
        Block *b = BLOCK(place);
        if (b->right == 2)
            break;
        uint32_t left = b->right ? place - fib[b->class + 1] : place;
        uint32_t buddy = b->right ? left : place + fib[b->class];
        int class = b->right ? b->class + 1 : b->class - 1;
        if (class < 0)
            break;
        Block *other = BLOCK(buddy);
        if (!other->free || other->class != class)
            break;
        unlist(buddy);
        Block *l = BLOCK(left), *r = b->right ? b : other;
        uint8_t right = l->memory, kept = r->memory;
        l->class = (uint8_t)(l->class + 1);
        l->right = right;
        l->memory = kept;
        place = left;
    }
    push(place);
}

static void
fibonacci_free(uint32_t place)
{
    while (place) {
        uint32_t next = BLOCK(place)->next;
        fibonacci_free_block(place);
        place = next;
    }
}

static uint64_t blocks_made, records_made;

/* Copies a record in; 0 if there is no room. */
static uint32_t
fibonacci_take(const unsigned char *data, size_t size)
{
    uint32_t first = 0, last = 0;
    records_made++;
    while (size) {
        int class = 0;
        while (fib[class] * UNIT - BLOCK_HEAD < size)
            class++;
        /* The next larger one if that wastes little, else the largest that is filled. */
        size_t room = fib[class] * UNIT - BLOCK_HEAD;
        if (class > 0 && room - size > UNIT && room - size > size / 32)
            class--;
        uint32_t place = fibonacci_block(class);
        if (!place) {
            fibonacci_free(first);
            return 0;
        }
        blocks_made++;
        Block *b = BLOCK(place);
        b->next = 0;
        if (last)
            BLOCK(last)->next = place;
        else
            first = place;
        last = place;
        size_t part = fib[b->class] * UNIT - BLOCK_HEAD;
        part = part < size ? part : size;
        memcpy((unsigned char *)b + BLOCK_HEAD, data, part);
        data += part;
        size -= part;
    }
    return first;
}

/* -- tlsf -------------------------------------------------------------------------------------- */

typedef struct {
    uint32_t bytes_free; /* Its bytes, a multiple of 8, and 1 if it is free, 2 if the one before is. */
    uint32_t next, before; /* When free; its last word is its size then, for the one behind. */
} Chunk;
#define CHUNK(place) ((Chunk *)(void *)(memory + (size_t)(place) * 8))
static uint32_t bins[32][16], second[32], first_level;

static void
bin_of(uint32_t bytes, int *level, int *slot)
{
    *level = 31 - __builtin_clz(bytes);
    *slot = (int)(bytes >> (*level - 4)) & 15;
}

static void
chunk_push(uint32_t place, uint32_t bytes)
{
    int level, slot;
    bin_of(bytes, &level, &slot);
    Chunk *c = CHUNK(place);
    c->bytes_free = bytes | 1;
    c->before = 0;
    c->next = bins[level][slot];
    if (c->next)
        CHUNK(c->next)->before = place;
    bins[level][slot] = place;
    second[level] |= 1u << slot;
    first_level |= 1u << level;
    *(uint32_t *)(void *)((unsigned char *)c + bytes - 4) = bytes;
    CHUNK(place + bytes / 8)->bytes_free |= 2;
}

static void
chunk_unlist(uint32_t place)
{
    Chunk *c = CHUNK(place);
    int level, slot;
    uint32_t bytes = c->bytes_free & ~7u;
    bin_of(bytes, &level, &slot);
    if (c->before)
        CHUNK(c->before)->next = c->next;
    else
        bins[level][slot] = c->next;
    if (c->next)
        CHUNK(c->next)->before = c->before;
    if (!bins[level][slot] && !(second[level] &= ~(1u << slot)))
        first_level &= ~(1u << level);
    CHUNK(place + bytes / 8)->bytes_free &= ~2u;
}

static void
tlsf_begin(size_t bytes)
{
    memory_bytes = bytes;
    memory = tiered_map(bytes + 64);
    memset(bins, 0, sizeof bins);
    memset(second, 0, sizeof second);
    first_level = 0;
    CHUNK(1 + bytes / 8)->bytes_free = 0;
    chunk_push(1, (uint32_t)bytes);
}

static uint32_t
tlsf_take(const unsigned char *data, size_t size)
{
    uint32_t bytes = (uint32_t)((size + 4 + 7) & ~7u);
    if (bytes < 16)
        bytes = 16;
    /* Rounded up to the next bin, whose chunks are all large enough. */
    uint32_t wanted = bytes + (1u << (31 - __builtin_clz(bytes) - 4)) - 1;
    int level, slot;
    bin_of(wanted, &level, &slot);
    uint32_t found = second[level] >> slot << slot;
    if (!found) {
        uint32_t levels = level < 31 ? first_level >> (level + 1) << (level + 1) : 0;
        if (!levels)
            return 0;
        level = __builtin_ctz(levels);
        found = second[level];
    }
    uint32_t place = bins[level][__builtin_ctz(found)];
    uint32_t whole = CHUNK(place)->bytes_free & ~7u;
    chunk_unlist(place);
    if (whole - bytes >= 16)
        chunk_push(place + bytes / 8, whole - bytes);
    else
        bytes = whole;
    CHUNK(place)->bytes_free = bytes;
    memcpy((unsigned char *)CHUNK(place) + 4, data, size);
    return place;
}

static void
tlsf_free(uint32_t place)
{
    uint32_t tagged = CHUNK(place)->bytes_free, bytes = tagged & ~7u;
    if (tagged & 2) {
        uint32_t before = *(uint32_t *)(void *)((unsigned char *)CHUNK(place) - 4);
        place -= before / 8;
        chunk_unlist(place);
        bytes += before;
    }
    Chunk *after = CHUNK(place + bytes / 8);
    if (after->bytes_free & 1) {
        uint32_t more = after->bytes_free & ~7u;
        chunk_unlist(place + bytes / 8);
        bytes += more;
    }
    chunk_push(place, bytes);
}

/* -- the operations ---------------------------------------------------------------------------- */

static Arena arena;
static int way;

static void
list_out(uint32_t key)
{
    newer[older[key]] = newer[key];
    older[newer[key]] = older[key];
}

static void
list_in(uint32_t key)
{
    older[key] = older[KEYS];
    newer[key] = KEYS;
    newer[older[KEYS]] = key;
    older[KEYS] = key;
}

static void
forget(uint32_t key)
{
    payload -= size_of[key] + 8u;
    resident--;
    size_of[key] = 0;
    list_out(key);
    (way == 1 ? fibonacci_free : tlsf_free)(place_of[key]);
}

static void
put(uint32_t key, uint32_t size)
{
    const unsigned char *data = noise + draw() % (sizeof noise - 65536 - 64);
    if (way == 0) {
        unsigned char name[8] = {0};
        memcpy(name, &key, 4);
        arena_put(&arena, &(ArenaKey){name + 1, 7, name[0]}, 1, data, size, 0);
        return;
    }
    if (size_of[key])
        forget(key);
    uint32_t place;
    /* The index takes its bytes from the same memory. */
    while ((resident + 1) * 4 + 0 > memory_bytes / 8
           || !(place = (way == 1 ? fibonacci_take : tlsf_take)(data, size + 8 + HEAD)))
        forget(newer[KEYS]);
    place_of[key] = place;
    size_of[key] = size;
    payload += size + 8u;
    resident++;
    list_in(key);
}

static bool
hit(uint32_t key)
{
    if (way == 0) {
        unsigned char name[8] = {0};
        memcpy(name, &key, 4);
        ArenaValue found;
        if (!arena_find(&arena, &(ArenaKey){name + 1, 7, name[0]}, &found))
            return false;
        arena_hit(&arena, found.place);
        return true;
    }
    if (!size_of[key])
        return false;
    list_out(key);
    list_in(key);
    return true;
}

static uint32_t
log_uniform(double low, double high)
{
    return (uint32_t)(low * pow(high / low, (double)(draw() % 1000000) / 1e6));
}

static uint32_t
size_for(int sizes, double progress)
{
    switch (sizes) {
    case 0:
        return 225 + (uint32_t)(draw() % 51);
    case 1:
        return 900 + (uint32_t)(draw() % 201);
    case 2:
        return log_uniform(30, 30000);
    default: /* From small to large and back. */
        return progress < 0.4 ? log_uniform(30, 300) : progress < 0.7 ? log_uniform(2000, 60000) : log_uniform(30, 300);
    }
}

int
main(int argc, char **argv)
{
    (void)argv;
    static const char *ways[] = {"segments", "fibonacci", "tlsf"};
    static const char *sizes[] = {"~250 B", "~1,000 B", "30 B-30 KB", "shifting"};
    static const char *accesses[] = {"skewed reads", "overwrites"};
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (unsigned char)draw();
    printf("%-11s %-13s %-10s %12s %10s %10s %16s %10s\n", "sizes", "access", "way", "utilisation", "lowest", "ns/op",
        "moved per written", "blocks");
    for (int what = 0; what < 4; what++)
        for (int access = 0; access < 2; access++)
            for (way = 0; way < (argc > 1 ? 1 : 3); way++) {
                size_t bytes = 56393248; /* F(33) units of 16 bytes, for fairness. */
                memset(size_of, 0, sizeof size_of);
                payload = resident = 0;
                blocks_made = records_made = 0;
                older[KEYS] = newer[KEYS] = KEYS;
                if (way == 0)
                    arena_begin(&arena, bytes, (uint64_t[]){1, 2});
                else
                    (way == 1 ? fibonacci_begin : tlsf_begin)(bytes);
                double mean = what == 0 ? 280 : what == 1 ? 1030 : what == 2 ? 4400 : 600;
                uint32_t many = (uint32_t)(3.0 * (double)bytes / mean);
                many = many > KEYS ? KEYS : many;
                if (access == 1)
                    many = (uint32_t)((double)many / 3 * 1.05); /* Nearly all are there, and each is written again and again. */
                uint64_t operations = what < 2 ? 2000000 : 500000, written = 0;
                double lowest = 1, sum = 0;
                int samples = 0;
                double began = seconds(), paused = 0;
                for (uint64_t i = 0; i < operations; i++) {
                    double u = (double)(draw() >> 11) / 9007199254740992.0;
                    uint32_t key = (uint32_t)(access == 0 ? u * u * u * u * many : u * many);
                    key = (uint32_t)(key * 2654435761u % many); /* Scattered. */
                    double progress = (double)i / (double)operations;
                    if (access == 1 || draw() % 10 == 0 || !hit(key)) {
                        uint32_t size = size_for(what, progress);
                        written += size;
                        put(key, size);
                    }
                    if (i > operations / 4 && i % (operations / 1000) == 0) {
                        double before = seconds();
                        double share = way == 0 ? (double)(arena.payload_bytes) / (double)bytes
                                                : (double)payload / ((double)memory_bytes + 4.0 * (double)resident);
                        sum += share;
                        samples++;
                        if (share < lowest)
                            lowest = share;
                        paused += seconds() - before;
                    }
                }
                double took = seconds() - began - paused;
                printf("%-11s %-13s %-10s %12.3f %10.3f %10.0f %16.2f %10.1f\n", sizes[what], accesses[access], ways[way],
                    sum / samples, lowest, took / (double)operations * 1e9,
                    way == 0 ? (double)arena.moved_bytes / (double)written : 0.0,
                    way == 1 ? (double)blocks_made / (double)records_made : 1.0);
                if (way == 0) {
                    const char *wrong = arena_check(&arena);
                    if (wrong)
                        printf("  WRONG: %s\n", wrong);
                    arena_end(&arena);
                } else {
                    tiered_unmap(memory, memory_bytes);
                }
                fflush(stdout);
            }
    return 0;
}
