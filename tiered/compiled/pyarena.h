/* The Python type of an arena: what the files that use one share. */
#ifndef TIERED_PYARENA_H
#define TIERED_PYARENA_H

#include "arena.h"
#include "key.h"
#include "native.h"

/* Codec ids, as in tiered/codec.py. */
enum { CODEC_BYTES = 1, CODEC_STR = 2, CODEC_MSGPACK = 3, CODEC_LAST = 5 };

typedef struct {
    PyObject_HEAD
    Arena arena;
    PyObject *encode_key;               /* keys.encode */
    PyObject *decoders[CODEC_LAST + 1]; /* Of codec.DECODERS, by codec id. */
} ArenaObject;

#define TIERED_BELOW_NOW INT64_MIN

extern PyTypeObject TieredArenaType;

/* The value under a key that has not expired at `now_ms`, TIERED_BELOW_NOW: that never does; counts as a use.  NULL with
 * an error set or none: there is none, or its key is of a kind that only Python knows, where `any` is false. */
PyObject *tiered_arena_lookup(ArenaObject *self, PyObject *object, int64_t now_ms, int any);

/* The key of any object, to be let go of; -1 with an error set. */
int tiered_arena_key(ArenaObject *self, PyObject *object, TieredKey *key);
/* Keeps an encoded value: whether it is kept; -1 with an error set. */
int tiered_arena_put(ArenaObject *self, PyObject *object, PyObject *codec, PyObject *payload, long long deadline);

PyObject *tiered_arena_get_many(ArenaObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *tiered_arena_put_many(ArenaObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *tiered_arena_discard_many(ArenaObject *self, PyObject *keys);

#endif
