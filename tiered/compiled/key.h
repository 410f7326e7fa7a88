/* Keys as bytes, in the encoding of tiered/keys.py, of the kinds that are simple enough. */
#ifndef TIERED_KEY_H
#define TIERED_KEY_H

#include "arena.h"
#include "native.h"

#define TIERED_KEY_SCRATCH 256

typedef struct {
    ArenaKey key;    /* Points into the key object, into `scratch` or into `owner`. */
    PyObject *owner; /* NULL if it points into the key object or scratch. */
    unsigned char scratch[TIERED_KEY_SCRATCH];
} TieredKey;

/* 1: done, and to be let go of; 0: not a kind that is known here; -1: an error is set.
 * Known are `str`, `bytes`, `int` of 64 bits, `bool`, and tuples of them that are not long, of exactly these types, so
 * that no Python code runs. */
int tiered_key(PyObject *object, TieredKey *encoded);
/* An encoded key as it is. */
void tiered_key_of_bytes(PyObject *bytes, TieredKey *encoded);

static inline void
tiered_key_end(TieredKey *encoded)
{
    Py_XDECREF(encoded->owner);
}

#endif
