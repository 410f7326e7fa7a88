/* What the arena does for lists of keys (its locking is described in pyarena.c).
 *
 * Each look-up waits for memory several times: for the bucket, for the record, for its neighbours in the order of use.
 * Of many keys those waits are had together. */
#include "pyarena.h"

#define AHEAD 32 /* Keys whose waits are had together: what they touch stays in the cache nearest to the processor. */

/* Fetches what the next keys of a list are about to touch; of keys that only Python knows, nothing. */
static void
foresee(ArenaObject *self, PyObject *keys, Py_ssize_t from)
{
    uint32_t hashes[AHEAD];
    size_t count = 0;
    for (Py_ssize_t i = from; i < from + AHEAD && i < PyList_GET_SIZE(keys); i++) {
        TieredKey key;
        if (tiered_key(PyList_GET_ITEM(keys, i), &key))
            hashes[count++] = arena_hash(&self->arena, &key.key);
    }
    arena_foresee(&self->arena, hashes, count);
}

PyObject *
tiered_arena_discard_many(ArenaObject *self, PyObject *keys)
{
    if (!PyList_CheckExact(keys))
        return PyErr_Format(PyExc_TypeError, "discard_many(keys), a list");
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(keys); i++) {
        if (i % AHEAD == 0)
            foresee(self, keys, i);
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
    for (Py_ssize_t i = 0; missing != NULL && i < PyList_GET_SIZE(args[0]); i++) {
        if (i % AHEAD == 0)
            foresee(self, args[0], i);
        PyObject *key = Py_NewRef(PyList_GET_ITEM(args[0], i));
        PyObject *value = tiered_arena_lookup(self, key, TIERED_BELOW_NOW, 1);
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
