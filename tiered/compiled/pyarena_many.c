/* What the arena does for lists of keys (its locking is described in pyarena.c).
 *
 * Each look-up waits for memory several times: for the bucket, for the record, for its neighbours in the order of use.
 * Of many keys those waits are had together. */
#include "pyarena.h"

enum {
    STEP = 8, /* Keys from one step of foresight to the next: their look-ups take longer than memory does. */
    AHEAD = ARENA_FORESEE_STEPS * STEP,
};

typedef struct {
    uint32_t hashes[AHEAD]; /* 0 of a key that only Python knows. */
} Foresight;

/* Before the key at a place of the list is looked up, or at AHEAD places before the first: does one step for each of
 * several that follow; nothing for keys that only Python knows. */
static inline void
foresee(const ArenaObject *self, Foresight *foresight, PyObject *keys, Py_ssize_t place)
{
    for (int step = 0; step < ARENA_FORESEE_STEPS; step++) {
        Py_ssize_t later = place + AHEAD - step * STEP;
        if (later < 0 || later >= PyList_GET_SIZE(keys))
            continue;
        TieredKey key;
        uint32_t *hash = &foresight->hashes[later % AHEAD];
        if (step == 0)
            *hash = tiered_key(PyList_GET_ITEM(keys, later), &key) ? arena_hash(&self->arena, &key.key) : 0;
        arena_foresee(&self->arena, *hash, step);
    }
}

PyObject *
tiered_arena_discard_many(ArenaObject *self, PyObject *keys)
{
    if (!PyList_CheckExact(keys))
        return PyErr_Format(PyExc_TypeError, "discard_many(keys), a list");
    Foresight foresight;
    for (Py_ssize_t i = -AHEAD; i < PyList_GET_SIZE(keys); i++) {
        foresee(self, &foresight, keys, i);
        if (i < 0)
            continue;
        PyObject *object = Py_NewRef(PyList_GET_ITEM(keys, i));
        TieredKey key;
        int wrong = tiered_arena_key(self, object, &key) < 0;
        if (!wrong) {
            arena_discard(&self->arena, &key.key);
            tiered_key_end(&key);
        }
        Py_DECREF(object);
        if (wrong)
            return NULL;
    }
    Py_RETURN_NONE;
}

PyObject *
tiered_arena_put_many(ArenaObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 5 || !PyList_CheckExact(args[0]) || !PyList_CheckExact(args[1]) || !PyList_CheckExact(args[2]))
        return PyErr_Format(PyExc_TypeError, "put_many(keys, codecs, payloads, deadline, evictions_max), three lists");
    long long deadline = PyLong_AsLongLong(args[3]), evictions_max = PyLong_AsLongLong(args[4]);
    if (PyErr_Occurred())
        return NULL;
    uint64_t before = self->arena.evictions;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(args[0]); i++) {
        if (i >= PyList_GET_SIZE(args[1]) || i >= PyList_GET_SIZE(args[2]))
            return PyErr_Format(PyExc_ValueError, "put_many() was given lists of different lengths");
        if ((int64_t)(self->arena.evictions - before) >= evictions_max)
            break;
        PyObject *key = Py_NewRef(PyList_GET_ITEM(args[0], i)), *payload = Py_NewRef(PyList_GET_ITEM(args[2], i));
        int kept = tiered_arena_put_object(self, key, PyList_GET_ITEM(args[1], i), payload, deadline);
        Py_DECREF(key);
        Py_DECREF(payload);
        if (kept < 0)
            return NULL;
    }
    Py_RETURN_NONE;
}

/* The values of those keys of a list that are there and never expire, put into a dict; returns the others, in order,
 * for each of which the dict has a place, `absent`. */
PyObject *
tiered_arena_get_many(ArenaObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 3 || !PyList_CheckExact(args[0]) || !PyDict_CheckExact(args[1]))
        return PyErr_Format(PyExc_TypeError, "get_many(keys, found, absent)");
    PyObject *missing = PyList_New(0);
    Foresight foresight;
    for (Py_ssize_t i = -AHEAD; missing != NULL && i < PyList_GET_SIZE(args[0]); i++) {
        uint32_t hash = i < 0 ? 0 : foresight.hashes[i % AHEAD]; /* Whose place goes to a later one. */
        foresee(self, &foresight, args[0], i);
        if (i < 0)
            continue;
        PyObject *key = Py_NewRef(PyList_GET_ITEM(args[0], i)), *value;
        TieredKey known;
        if (hash && tiered_key(key, &known)) {
            value = tiered_arena_hit(self, &known.key, hash, TIERED_BELOW_NOW);
            tiered_key_end(&known);
        } else {
            value = tiered_arena_lookup(self, key, TIERED_BELOW_NOW, 1);
        }
        int wrong = value == NULL && PyErr_Occurred();
        if (!wrong)
            wrong = PyDict_SetItem(args[1], key, value ? value : args[2]) < 0 || (!value && PyList_Append(missing, key) < 0);
        Py_XDECREF(value);
        Py_DECREF(key);
        if (wrong)
            Py_CLEAR(missing);
    }
    return missing;
}
