#include "sketch.h"

#include <stdlib.h>

enum { ROWS = 4, COUNT_MAX = 15, RECORDS_MIN = 64, SAMPLE_FACTOR = 10, BITS = 4, PER_WORD = 16, COUNTERS = 4 };

static const uint64_t multipliers[ROWS] = {
    0x9E3779B97F4A7C15u, 0xC2B2AE3D27D4EB4Fu, 0x165667B19E3779F9u, 0xD6E8FEB86659FD93u};

static size_t
row_words(const Sketch *s)
{
    return (size_t)s->records * COUNTERS / PER_WORD;
}

bool
sketch_begin(Sketch *s)
{
    *s = (Sketch){NULL, RECORDS_MIN, 0, 64 - 8};
    s->words = calloc(ROWS * row_words(s), sizeof *s->words);
    return s->words != NULL;
}

void
sketch_end(Sketch *s)
{
    free(s->words);
    *s = (Sketch){0};
}

static uint64_t
counter_of(uint64_t word, unsigned at)
{
    return word >> (at * BITS) & COUNT_MAX;
}

/* A counter becomes two, side by side, with its value. */
static bool
twice_as_many(Sketch *s)
{
    size_t words = ROWS * row_words(s);
    uint64_t *grown = malloc(2 * words * sizeof *grown);
    if (grown == NULL)
        return false;
    for (size_t i = 0; i < 2 * words; i++) {
        uint64_t half = s->words[i / 2] >> (i % 2 ? 32 : 0), both = 0;
        for (unsigned at = 0; at < PER_WORD / 2; at++)
            both |= counter_of(half, at) * 0x11u << (2 * at * BITS);
        grown[i] = both;
    }
    free(s->words);
    s->words = grown;
    s->records *= 2;
    s->shift--;
    return true;
}

/* Two counters, side by side, become one, the larger. */
static void
half_as_many(Sketch *s)
{
    size_t words = ROWS * row_words(s) / 2;
    for (size_t i = 0; i < words; i++) {
        uint64_t folded = 0;
        for (unsigned at = 0; at < PER_WORD; at++) {
            uint64_t word = s->words[2 * i + at / (PER_WORD / 2)];
            uint64_t one = counter_of(word, 2 * at % PER_WORD), other = counter_of(word, 2 * at % PER_WORD + 1);
            folded |= (one > other ? one : other) << (at * BITS);
        }
        s->words[i] = folded;
    }
    uint64_t *fewer = realloc(s->words, words * sizeof *fewer);
    s->words = fewer != NULL ? fewer : s->words;
    s->records /= 2;
    s->shift++;
}

void
sketch_fit(Sketch *s, uint64_t records, size_t bytes_max)
{
    while (s->words != NULL && s->records < records && 2 * sketch_bytes(s) <= bytes_max && twice_as_many(s))
        ;
    while (s->words != NULL && s->records > RECORDS_MIN && sketch_bytes(s) > bytes_max)
        half_as_many(s);
}

static inline uint64_t *
word_of(const Sketch *s, unsigned row, uint64_t fingerprint, unsigned *shift)
{
    uint64_t at = fingerprint * multipliers[row] >> s->shift;
    *shift = (unsigned)(at % PER_WORD) * BITS;
    return s->words + row * row_words(s) + at / PER_WORD;
}

void
sketch_add(Sketch *s, uint64_t fingerprint)
{
    bool counted = false;
    for (unsigned row = 0; row < ROWS; row++) {
        unsigned shift;
        uint64_t *word = word_of(s, row, fingerprint, &shift);
        if ((*word >> shift & COUNT_MAX) < COUNT_MAX) {
            *word += (uint64_t)1 << shift;
            counted = true;
        }
    }
    s->uses += counted;
    if (s->uses >= SAMPLE_FACTOR * s->records) {
        s->uses /= 2;
        for (size_t i = 0; i < ROWS * row_words(s); i++)
            s->words[i] = s->words[i] >> 1 & 0x7777777777777777u;
    }
}

unsigned
sketch_estimate(const Sketch *s, uint64_t fingerprint)
{
    unsigned least = COUNT_MAX;
    for (unsigned row = 0; s->words != NULL && row < ROWS; row++) {
        unsigned shift, count;
        const uint64_t *word = word_of(s, row, fingerprint, &shift);
        count = (unsigned)(*word >> shift & COUNT_MAX);
        least = count < least ? count : least;
    }
    return s->words == NULL ? 0 : least;
}
