/* The memory of an arena: one anonymous mapping in segments of equal size, filled from their front.
 *
 * Whoever takes bytes gets them at the end of a head, a segment that is being filled; whoever drops bytes makes
 * the segment emptier, until it is free for another turn.  Nothing here moves: `arena.c` empties the segment
 * with the least in it by taking room for what it still holds elsewhere, as the cleaner of a log-structured memory
 * does (Rumble, Kejriwal and Ousterhout, "Log-structured Memory for DRAM-based Storage", FAST 2014).
 *
 * Places are 32-bit numbers of units from the start of the mapping; 0 is no place.  Pages of a segment are the
 * process's only once it was begun; those of a free one are kept for the next ("warm") until they are released.
 */
#ifndef TIERED_SEGMENTS_H
#define TIERED_SEGMENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SEGMENT_NONE UINT32_MAX
#define SEGMENT_HEADS_MAX 3

typedef struct {
    unsigned char *map;
    size_t bytes;         /* Of address space. */
    size_t segment_bytes; /* A power of two, and of whole pages. */
    unsigned unit_shift;  /* Places count units of 1 << unit_shift bytes. */
    uint32_t count;       /* Segments that the mapping has. */
    uint32_t held;        /* Those with something in them. */
    uint32_t warm;        /* Those that are free, and whose pages are kept. */
    uint32_t *live;       /* By segment: bytes in it that were not dropped. */
    uint32_t *filled;     /* By segment: where its free part begins. */
    uint8_t *state;       /* By segment. */
    uint32_t heads[SEGMENT_HEADS_MAX];
    uint32_t head_count;
    uint64_t live_bytes;
    uint64_t tail_bytes; /* At the ends of closed segments, where the next record did not fit. */
} Segments;

/* Anonymous memory that takes none until it is touched, and that a forked child finds full of zeros; NULL if there is none. */
void *tiered_map(size_t bytes);
void tiered_unmap(void *map, size_t bytes);
void tiered_release(void *map, size_t bytes);
size_t tiered_page_bytes(void);

bool segments_begin(Segments *s, size_t bytes, size_t segment_bytes);
bool segments_extend(Segments *s, size_t bytes);
void segments_end(Segments *s);
void segments_clear(Segments *s);

/* A place for `size` bytes, a whole number of units, at the end of a head; 0 if no head has room. */
uint32_t segments_take(Segments *s, size_t size);
/* Begins a free segment as a head; false if none is free. */
bool segments_open(Segments *s);
/* What was taken at `place` is needed no more; true if nothing else is needed in a segment that is no head. */
bool segments_drop(Segments *s, uint32_t place, size_t size);
/* What was dropped at `place` is taken again. */
void segments_retake(Segments *s, uint32_t place, size_t size);
/* A closed segment with nothing in it is free from now on. */
void segments_free(Segments *s, uint32_t segment);
/* The segment of which most was dropped, a head only where there is no other; SEGMENT_NONE if nothing was dropped. */
uint32_t segments_emptiest(const Segments *s);
/* Nobody may take from it any more. */
void segments_close(Segments *s, uint32_t segment);
bool segments_is_closed(const Segments *s, uint32_t segment);
bool segments_is_warm(const Segments *s, uint32_t segment);
/* Gives pages of free segments back to the system until `kept` of them are warm. */
void segments_release(Segments *s, uint32_t kept);

static inline size_t
segments_committed(const Segments *s)
{
    return (size_t)(s->held + s->warm) * s->segment_bytes;
}

static inline uint32_t
segment_of(const Segments *s, uint32_t place)
{
    return (uint32_t)(((size_t)place << s->unit_shift) / s->segment_bytes);
}

/* Where the first record of a segment is, in bytes from its start: place 0 is nobody's. */
static inline size_t
segment_first(const Segments *s, uint32_t segment)
{
    return segment == 0 ? (size_t)1 << s->unit_shift : 0;
}

#endif
