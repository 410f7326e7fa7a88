/* Keys as bytes, for the other files of the compiled part. */
#ifndef TIERED_KEYS_H
#define TIERED_KEYS_H

#include "native.h"

enum { TIERED_KEY_ROOM = 512 };

typedef struct {
    unsigned char data[TIERED_KEY_ROOM];
    Py_ssize_t size;
} TieredKeyBytes;

/* Encodes a key; 0 if its type, its size or its depth is Python's to judge, and then nothing was raised.  No other code runs. */
int tiered_key_bytes(PyObject *key, TieredKeyBytes *out);

#endif
