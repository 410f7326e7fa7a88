/* How often each of very many keys was used lately, estimated: see tiered/eviction/sketch.py, which defines it. */
#ifndef TIERED_SKETCH_H
#define TIERED_SKETCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t *words; /* NULL: nothing is counted.  Four rows, one after the other, of 4 * records counters of four bits. */
    uint64_t records, uses;
    unsigned shift;
} Sketch;

bool sketch_begin(Sketch *s);
void sketch_end(Sketch *s);
/* Has counters for at least so many records, as far as they take no more than that, and there is memory for them. */
void sketch_fit(Sketch *s, uint64_t records, size_t bytes_max);
void sketch_add(Sketch *s, uint64_t fingerprint);
unsigned sketch_estimate(const Sketch *s, uint64_t fingerprint);

static inline size_t
sketch_bytes(const Sketch *s)
{
    return s->words == NULL ? 0 : (size_t)s->records * 8; /* Four rows of four half bytes for each. */
}

#endif
