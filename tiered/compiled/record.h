/* Records of the cold tier, for the other files of the compiled part; the layout is in tiered/record.py. */
#ifndef TIERED_RECORD_H
#define TIERED_RECORD_H

#include "native.h"

#include <stdint.h>

enum {
    RECORD_VERSION = 1,
    RECORD_HAS_DEADLINE = 1,
    RECORD_HAS_KEY = 2,
    RECORD_IS_MARKER = 4,
    RECORD_HEADER_BYTES = 10,
};

/* The parts of a record, which point into it. */
typedef struct {
    unsigned codec, compression, dictionary, flags;
    int64_t deadline; /* In milliseconds; 0 is none. */
    const unsigned char *full_key, *body;
    size_t full_key_size, body_size;
} TieredRecord;

/* Takes a record apart; what is wrong with it, or NULL. */
const char *tiered_record(const unsigned char *key, size_t key_size, const unsigned char *data, size_t size, TieredRecord *record);

#endif
