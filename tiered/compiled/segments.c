/* See segments.h. */
#define _GNU_SOURCE
#include "segments.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif
#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

enum { COLD, WARM, CLOSED, HEAD };

size_t
tiered_page_bytes(void)
{
    static size_t bytes;
    if (bytes == 0) {
        long found = sysconf(_SC_PAGESIZE);
        bytes = found > 0 ? (size_t)found : 4096;
    }
    return bytes;
}

void *
tiered_map(size_t bytes)
{
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    /* A huge page would be the process's as a whole when one byte of it is touched, and come back after it was
     * released: the memory would not be what is accounted. */
#ifdef MADV_NOHUGEPAGE
    madvise(map, bytes, MADV_NOHUGEPAGE);
#endif
#ifdef MADV_WIPEONFORK
    madvise(map, bytes, MADV_WIPEONFORK);
#endif
    return map;
}

void
tiered_unmap(void *map, size_t bytes)
{
    munmap(map, bytes);
}

void
tiered_release(void *map, size_t bytes)
{
    madvise(map, bytes, MADV_DONTNEED);
}

static bool
make_tables(Segments *s, uint32_t count)
{
    uint32_t *live = realloc(s->live, count * sizeof *live);
    if (live != NULL)
        s->live = live;
    uint32_t *filled = realloc(s->filled, count * sizeof *filled);
    if (filled != NULL)
        s->filled = filled;
    uint8_t *state = realloc(s->state, count);
    if (state != NULL)
        s->state = state;
    if (live == NULL || filled == NULL || state == NULL)
        return false;
    for (uint32_t segment = s->count; segment < count; segment++) {
        live[segment] = filled[segment] = 0;
        state[segment] = COLD;
    }
    s->count = count;
    s->head_count = count < 32 ? 1 : count < 128 ? 2 : SEGMENT_HEADS_MAX;
    return true;
}

bool
segments_begin(Segments *s, size_t bytes, size_t segment_bytes)
{
    memset(s, 0, sizeof *s);
    s->segment_bytes = segment_bytes;
    s->bytes = bytes / segment_bytes * segment_bytes;
    s->unit_shift = 2;
    while ((s->bytes >> s->unit_shift) > UINT32_MAX)
        s->unit_shift++;
    for (int head = 0; head < SEGMENT_HEADS_MAX; head++)
        s->heads[head] = SEGMENT_NONE;
    s->map = tiered_map(s->bytes);
    if (s->map == NULL)
        return false;
    if (!make_tables(s, (uint32_t)(s->bytes / segment_bytes))) {
        segments_end(s);
        return false;
    }
    return true;
}

/* More address space, perhaps elsewhere: places stay, pointers do not. */
bool
segments_extend(Segments *s, size_t bytes)
{
    bytes = bytes / s->segment_bytes * s->segment_bytes;
    if (bytes <= s->bytes)
        return true;
    if ((bytes >> s->unit_shift) > UINT32_MAX)
        return false;
#ifdef MREMAP_MAYMOVE
    void *map = mremap(s->map, s->bytes, bytes, MREMAP_MAYMOVE);
    if (map == MAP_FAILED)
        return false;
    s->map = map;
    s->bytes = bytes;
    return make_tables(s, (uint32_t)(bytes / s->segment_bytes));
#else
    return false;
#endif
}

void
segments_end(Segments *s)
{
    if (s->map != NULL)
        munmap(s->map, s->bytes);
    free(s->live);
    free(s->filled);
    free(s->state);
    memset(s, 0, sizeof *s);
}

void
segments_clear(Segments *s)
{
    tiered_release(s->map, s->bytes);
    for (uint32_t segment = 0; segment < s->count; segment++) {
        s->live[segment] = s->filled[segment] = 0;
        s->state[segment] = COLD;
    }
    for (int head = 0; head < SEGMENT_HEADS_MAX; head++)
        s->heads[head] = SEGMENT_NONE;
    s->held = s->warm = 0;
    s->live_bytes = s->tail_bytes = 0;
}

uint32_t
segments_take(Segments *s, size_t size)
{
    for (uint32_t head = 0; head < s->head_count; head++) {
        uint32_t segment = s->heads[head];
        if (segment == SEGMENT_NONE || s->segment_bytes - s->filled[segment] < size)
            continue;
        size_t at = segment * s->segment_bytes + s->filled[segment];
        s->filled[segment] += (uint32_t)size;
        s->live[segment] += (uint32_t)size;
        s->live_bytes += size;
        return (uint32_t)(at >> s->unit_shift);
    }
    return 0;
}

void
segments_free(Segments *s, uint32_t segment)
{
    s->tail_bytes -= s->segment_bytes - s->filled[segment];
    s->state[segment] = WARM;
    s->filled[segment] = 0;
    s->held--;
    s->warm++;
}

void
segments_close(Segments *s, uint32_t segment)
{
    if (s->state[segment] == CLOSED)
        return;
    for (uint32_t head = 0; head < s->head_count; head++)
        if (s->heads[head] == segment)
            s->heads[head] = SEGMENT_NONE;
    s->state[segment] = CLOSED;
    s->tail_bytes += s->segment_bytes - s->filled[segment];
}

bool
segments_is_closed(const Segments *s, uint32_t segment)
{
    return s->state[segment] == CLOSED;
}

bool
segments_is_warm(const Segments *s, uint32_t segment)
{
    return s->state[segment] == WARM;
}

bool
segments_open(Segments *s)
{
    uint8_t *found = s->warm ? memchr(s->state, WARM, s->count) : NULL;
    if (found != NULL)
        s->warm--;
    else
        found = memchr(s->state, COLD, s->count);
    if (found == NULL)
        return false;
    uint32_t segment = (uint32_t)(found - s->state), fullest = 0;
    /* The fullest head ends; the others keep what room they have for smaller records. */
    for (uint32_t head = 0; head < s->head_count; head++) {
        if (s->heads[head] == SEGMENT_NONE) {
            fullest = head;
            break;
        }
        if (s->filled[s->heads[head]] > s->filled[s->heads[fullest]])
            fullest = head;
    }
    uint32_t ended = s->heads[fullest];
    if (ended != SEGMENT_NONE)
        segments_close(s, ended);
    s->heads[fullest] = segment;
    s->state[segment] = HEAD;
    s->filled[segment] = (uint32_t)segment_first(s, segment);
    s->held++;
    return true;
}

bool
segments_drop(Segments *s, uint32_t place, size_t size)
{
    uint32_t segment = segment_of(s, place);
    s->live[segment] -= (uint32_t)size;
    s->live_bytes -= size;
    return s->live[segment] == 0 && s->state[segment] == CLOSED;
}

void
segments_retake(Segments *s, uint32_t place, size_t size)
{
    s->live[segment_of(s, place)] += (uint32_t)size;
    s->live_bytes += size;
}

static uint32_t
dropped_bytes(const Segments *s, uint32_t segment)
{
    return s->filled[segment] - (uint32_t)segment_first(s, segment) - s->live[segment];
}

/* By what was dropped, not by what is left: the end of a segment of large records may stay as empty when they are moved. */
uint32_t
segments_emptiest(const Segments *s)
{
    uint32_t best = SEGMENT_NONE, most = 0;
    for (uint32_t segment = 0; segment < s->count; segment++)
        if (s->state[segment] == CLOSED && dropped_bytes(s, segment) > most) {
            most = dropped_bytes(s, segment);
            best = segment;
        }
    for (uint32_t head = 0; head < s->head_count && most == 0; head++)
        if (s->heads[head] != SEGMENT_NONE && dropped_bytes(s, s->heads[head]) > 0)
            return s->heads[head];
    return best;
}

void
segments_release(Segments *s, uint32_t kept)
{
    for (uint32_t segment = s->count; segment-- > 0 && s->warm > kept;)
        if (s->state[segment] == WARM) {
            tiered_release(s->map + segment * s->segment_bytes, s->segment_bytes);
            s->state[segment] = COLD;
            s->warm--;
        }
}
