/* Random operations on an arena, against a plain table of what must be in it; for the sanitizers (tools/sanitize.sh).
 *
 *   cc -std=c11 -g -O1 -fsanitize=address,undefined -o fuzz tools/fuzz/arena.c tiered/compiled/arena*.c \
 *      tiered/compiled/segments.c tiered/compiled/sketch.c && ./fuzz SEED OPERATIONS
 */
#include "../../tiered/compiled/arena.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define KEYS 3000u
static uint64_t state;
static struct {
    uint32_t size, stamp; /* size + 1; 0: not there. */
    int64_t deadline;
} model[KEYS];

static uint64_t
draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void
fail(const char *why, uint64_t step)
{
    fprintf(stderr, "step %llu: %s\n", (unsigned long long)step, why);
    abort();
}

static unsigned char
byte_of(uint32_t key, uint32_t stamp, size_t at)
{
    return (unsigned char)(key * 31 + stamp * 7 + at * 13 + (at >> 8));
}

static ArenaKey
key_of(uint32_t number, unsigned char *scratch)
{
    size_t size = number % 37;
    for (size_t i = 0; i < size; i++)
        scratch[i] = (unsigned char)(number + i);
    memcpy(scratch + size, &number, 4);
    return (ArenaKey){scratch, size + 4, (unsigned char)(number % 5)};
}

static size_t
some_size(unsigned phase)
{
    switch ((draw() + phase) % 8) {
    case 0:
        return draw() % 20;
    case 1:
        return draw() % 60000;
    case 2:
        return draw() % 300000;
    default:
        return phase % 3 == 1 ? 1000 + draw() % 9000 : draw() % 600;
    }
}

static void
look(Arena *a, uint32_t number, uint64_t step)
{
    unsigned char scratch[64];
    ArenaKey key = key_of(number, scratch);
    ArenaValue found;
    if (!arena_find(a, &key, &found)) {
        model[number].size = 0; /* Evicted. */
        return;
    }
    if (model[number].size == 0)
        fail("found what was removed or never kept", step);
    if (found.size != model[number].size - 1 || found.deadline != model[number].deadline)
        fail("a value of another size or deadline", step);
    for (size_t i = 0; i < found.size; i += 1 + found.size / 64)
        if (found.data[i] != byte_of(number, model[number].stamp, i))
            fail("a value with other bytes", step);
    arena_hit(a, found.place);
}

/* What policies do. */
static void
steer(Arena *a)
{
    ArenaOldest oldest;
    unsigned queue = draw() % ARENA_QUEUES;
    a->entering = (uint8_t)(draw() % ARENA_QUEUES << 6 | draw() % 64);
    if (arena_oldest(a, queue, &oldest)) {
        sketch_fit(&a->sketch, a->count, (size_t)64 << draw() % 12);
        sketch_add(&a->sketch, oldest.fingerprint);
        arena_shift(a, queue, draw() % ARENA_QUEUES, draw() % 64);
    }
    uint32_t place = arena_pick(a, (uint32_t)draw());
    if (place)
        arena_age(a, place);
    if (draw() % 64 == 0)
        arena_drop_place(a, place);
    if (draw() % 64 == 0)
        arena_drop(a, queue);
}

int
main(int argc, char **argv)
{
    state = (argc > 1 ? strtoull(argv[1], NULL, 10) : 1) * 0x9E3779B97F4A7C15u + 1;
    uint64_t operations = argc > 2 ? strtoull(argv[2], NULL, 10) : 200000;
    static unsigned char data[300000];
    static Arena a;
    size_t budgets[] = {200 << 10, 1 << 20, 3 << 20, 8 << 20, 40u << 20};
    uint64_t seed[2] = {draw(), draw()};
    if (!arena_begin(&a, budgets[draw() % 5], seed))
        fail("no memory", 0);
    int64_t now = 1000000;
    for (uint64_t step = 0; step < operations; step++) {
        uint32_t number = (uint32_t)(draw() % KEYS);
        unsigned char scratch[64];
        ArenaKey key = key_of(number, scratch);
        unsigned what = draw() % 1000;
        if (what < 500) {
            size_t size = some_size((unsigned)(step / 4096));
            for (size_t i = 0; i < size; i++)
                data[i] = byte_of(number, (uint32_t)step, i);
            int64_t deadline = draw() % 5 == 0 ? now + (int64_t)(draw() % 3000000) - 5000 : 0;
            bool kept = arena_put(&a, &key, 1 + draw() % 5, data, size, deadline);
            model[number].size = kept ? (uint32_t)size + 1 : 0;
            model[number].stamp = (uint32_t)step;
            model[number].deadline = deadline;
            if (kept && arena_used_bytes(&a) > a.budget_bytes && what < 400 && arena_shrink(&a, SIZE_MAX) && arena_used_bytes(&a) > a.budget_bytes)
                fail("over the budget", step);
        } else if (what < 900) {
            look(&a, number, step);
        } else if (what < 970) {
            arena_discard(&a, &key);
            model[number].size = 0;
        } else if (what < 990) {
            now += (int64_t)(draw() % 60000);
            arena_expire(&a, now, draw() % 50);
        } else if (what < 996) {
            if (!arena_resize(&a, budgets[draw() % 5] - draw() % 100000))
                fail("no address space", step);
            while (draw() % 8 && !arena_shrink(&a, SIZE_MAX))
                ;
        } else if (what == 996 && draw() % 20 == 0) {
            arena_clear(&a);
            memset(model, 0, sizeof model);
        } else if (what == 997 && draw() % 50 == 0) {
            pid_t child = fork();
            if (child == 0) {
                for (uint32_t other = 0; other < KEYS; other++) {
                    ArenaValue found;
                    ArenaKey one = key_of(other, scratch);
                    if (arena_find(&a, &one, &found))
                        fail("a child found what is the parent's", step);
                    if (other % 3 == 0 && arena_put(&a, &one, 1, data, 100, 0) != arena_find(&a, &one, &found))
                        fail("a child's own arena", step);
                }
                const char *wrong = arena_check(&a);
                if (wrong)
                    fail(wrong, step);
                arena_end(&a);
                _exit(0);
            }
            int status;
            waitpid(child, &status, 0);
            if (status)
                fail("the child failed", step);
        } else {
            ArenaRules rules = {(int)(draw() % 3), draw() % 64, draw() % 2, {0}};
            for (int queue = 0; queue < ARENA_QUEUES; queue++)
                rules.hit_to[queue] = (int)(draw() % 4) - 1;
            if (rules.hit_action != ARENA_HIT_BY_RULES || draw() % 8 == 0)
                arena_rule(&a, &rules);
            else
                a.rules = rules;
            if (a.sketch.words == NULL)
                sketch_begin(&a.sketch);
        }
        if (a.rules.hit_action == ARENA_HIT_BY_RULES)
            steer(&a);
        if (step % (operations / 200 + 1) == 0) {
            const char *wrong = arena_check(&a);
            if (wrong)
                fail(wrong, step);
        }
    }
    for (uint32_t number = 0; number < KEYS; number++)
        look(&a, number, operations);
    size_t there = 0;
    for (uint32_t number = 0; number < KEYS; number++)
        there += model[number].size != 0;
    if (there != a.count)
        fail("another number of records", operations);
    while (arena_evict(&a))
        ;
    const char *wrong = arena_check(&a);
    if (wrong || a.segments.live_bytes || a.outside_bytes || a.payload_bytes || a.expiring)
        fail(wrong ? wrong : "something is left when all is gone", operations);
    arena_end(&a);
    return 0;
}
