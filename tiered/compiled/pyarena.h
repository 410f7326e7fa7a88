/* The Python type of an arena: what the files that use one share. */
#ifndef TIERED_PYARENA_H
#define TIERED_PYARENA_H

#include "arena.h"
#include "key.h"
#include "native.h"
#include "objects.h"
#include "shards.h"

/* Codec ids, as in tiered/codec.py. */
enum { CODEC_BYTES = 1, CODEC_STR = 2, CODEC_MSGPACK = 3, CODEC_LAST = 5 };

typedef struct {
    PyObject_HEAD
    Arena arena;
    Objects objects;
    TieredShards *shards; /* The advisor's, which is told of uses; NULL: there is none. */
    PyObject *policy;     /* Asked who leaves; NULL: the oldest. */
    unsigned asked;
    size_t budget_bytes; /* Of both: the arena has what the objects leave. */
    PyObject *encode_key;               /* keys.encode */
    PyObject *decoders[CODEC_LAST + 1]; /* Of codec.DECODERS, by codec id. */
} ArenaObject;

#define TIERED_BELOW_NOW INT64_MIN
#define TIERED_GHOST_SHARE 16 /* As in tiered/eviction/policy.py. */
#define CODEC_MASK 0x07
#define TIERED_DOCUMENT_BYTES_MAX 8192 /* Copied to the stack to be decoded. */

extern PyTypeObject TieredArenaType;

/* The value under a key that has not expired at `now_ms`, TIERED_BELOW_NOW: that never does; counts as a use.  NULL with
 * an error set or none: there is none, or its key is of a kind that only Python knows, where `any` is false. */
PyObject *tiered_arena_lookup(ArenaObject *self, PyObject *object, int64_t now_ms, int any);
/* The same of a key whose hash is known. */
PyObject *tiered_arena_hit(ArenaObject *self, const ArenaKey *key, uint32_t hash, int64_t now_ms);

/* The key of any object, to be let go of; -1 with an error set. */
int tiered_arena_key(ArenaObject *self, PyObject *object, TieredKey *key);
/* Keeps an encoded value: whether it is kept; -1 with an error set. */
int tiered_arena_put(
    ArenaObject *self, PyObject *object, long codec, const unsigned char *payload, size_t size, long long deadline);
int tiered_arena_put_object(ArenaObject *self, PyObject *object, PyObject *codec, PyObject *payload, long long deadline);

/* The value of a MSGPACK payload of that size at most, kept decoded or decoded now; any code may run. */
PyObject *tiered_arena_document(ArenaObject *self, const ArenaKey *key, const ArenaValue *found);
/* Has the arena leave to objects what they take, and so many bytes more. */
void tiered_arena_divide(ArenaObject *self, size_t bytes);
/* Sets what objects may take, after the budget or their share has changed. */
void tiered_arena_limit_objects(ArenaObject *self);

/* Has the policy, if there is one, make room for a record that is about to be put: any code may run.  -1 with an error set. */
int tiered_arena_ask(ArenaObject *self, const ArenaKey *key, size_t size, int64_t deadline);
/* Has the policy remember no more than its share of the budget, which may be smaller than it was; false with an error set. */
bool tiered_arena_fit_policy(ArenaObject *self);
/* Has it evict until the arena would keep to a budget smaller by so many bytes, or a bounded number has left. */
int tiered_arena_ask_to_leave(ArenaObject *self, size_t bytes, size_t outside);
PyObject *tiered_arena_steer(ArenaObject *self, PyObject *args);
PyObject *tiered_arena_queue_bytes(ArenaObject *self, PyObject *queue);
PyObject *tiered_arena_queue_hits(ArenaObject *self, PyObject *queue);
PyObject *tiered_arena_oldest(ArenaObject *self, PyObject *queue);
PyObject *tiered_arena_shift(ArenaObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *tiered_arena_drop(ArenaObject *self, PyObject *queue);
PyObject *tiered_arena_pick(ArenaObject *self, PyObject *number);
PyObject *tiered_arena_drop_picked(ArenaObject *self, PyObject *number);
PyObject *tiered_arena_age_picked(ArenaObject *self, PyObject *number);
PyObject *tiered_arena_see(ArenaObject *self, PyObject *fingerprint);
PyObject *tiered_arena_seen(ArenaObject *self, PyObject *fingerprint);

PyObject *tiered_arena_keep_objects(ArenaObject *self, PyObject *args);
PyObject *tiered_arena_get_many(ArenaObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *tiered_arena_put_many(ArenaObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *tiered_arena_discard_many(ArenaObject *self, PyObject *keys);

#endif
