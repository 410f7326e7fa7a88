/* Reads of many cold keys at once: of the steps of `Store._load_many` (tiered/store.py), its twin, those of the keys that
 * have nothing unusual.  One transaction for all, one call of LMDB's binding for each layer, with the keys in order, one of
 * zstandard's for the frames of each dictionary, and the store's lock once.  What only the twin knows is left to it. */
#include "loads.h"

#include <stdlib.h>
#include <string.h>

enum { EVICTIONS_MAX = 2000 }; /* As in tiered/tiers.py. */

typedef struct {
    PyObject *key, *stored_key; /* Borrowed of the list of keys, and owned. */
    PyObject *data;             /* The record. */
    PyObject *segment;          /* What its payload was decompressed into, as long as `view` is held. */
    Py_buffer view;
    TieredRecord record;
    enum { LEFT, ASKED, READ, DECODED } state;
} Item;

typedef struct {
    ArenaObject *arena;
    PyObject *engine, *found;
    Item *items; /* Those that are asked for, in the order of their stored keys. */
    Py_ssize_t count;
    Py_ssize_t hits, misses;
} Batch;

static const unsigned char *
payload_of(const Item *item, size_t *size)
{
    *size = item->segment ? (size_t)item->view.len : item->record.body_size;
    return item->segment ? item->view.buf : item->record.body;
}

static int
by_stored_key(const void *one, const void *other)
{
    PyObject *a = ((const Item *)one)->stored_key, *b = ((const Item *)other)->stored_key;
    Py_ssize_t shorter = Py_MIN(PyBytes_GET_SIZE(a), PyBytes_GET_SIZE(b));
    int order = memcmp(PyBytes_AS_STRING(a), PyBytes_AS_STRING(b), (size_t)shorter);
    return order ? order : (PyBytes_GET_SIZE(a) > PyBytes_GET_SIZE(b)) - (PyBytes_GET_SIZE(a) < PyBytes_GET_SIZE(b));
}

/* The keys that are simple, clean, and not asked for twice; false with an error set. */
static bool
gather(Batch *batch, PyObject *keys)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(keys); i++) {
        TieredKey encoded;
        Item *item = &batch->items[batch->count];
        *item = (Item){.key = PyList_GET_ITEM(keys, i), .state = ASKED};
        if (!tiered_key(item->key, &encoded))
            continue;
        item->stored_key = tiered_stored_key(&encoded);
        tiered_key_end(&encoded);
        if (item->stored_key && tiered_is_clean(batch->engine, item->stored_key))
            batch->count++;
        else
            Py_CLEAR(item->stored_key);
        if (PyErr_Occurred())
            return false;
    }
    qsort(batch->items, (size_t)batch->count, sizeof *batch->items, by_stored_key);
    return true;
}

/* The keys that have no record yet; `at` says which items they are of. */
static PyObject *
wanted(const Batch *batch, Py_ssize_t *at)
{
    PyObject *list = PyList_New(0);
    Py_ssize_t count = 0;
    for (Py_ssize_t i = 0; list && i < batch->count; i++)
        if (batch->items[i].data == NULL) {
            at[count++] = i;
            if (PyList_Append(list, batch->items[i].stored_key) < 0)
                Py_CLEAR(list);
        }
    return list;
}

/* Takes what a layer has of the keys: LMDB's pairs are in their order, each once. */
static bool
take(Batch *batch, PyObject *pairs, const Py_ssize_t *at, Py_ssize_t count)
{
    Py_ssize_t next = 0;
    bool whole = pairs && PyList_CheckExact(pairs);
    for (Py_ssize_t i = 0; whole && i < PyList_GET_SIZE(pairs); i++) {
        PyObject *pair = PyList_GET_ITEM(pairs, i);
        PyObject *name = PyTuple_CheckExact(pair) && PyTuple_GET_SIZE(pair) == 2 ? PyTuple_GET_ITEM(pair, 0) : NULL;
        PyObject *data = name ? PyTuple_GET_ITEM(pair, 1) : NULL;
        whole = data && PyBytes_CheckExact(name) && PyBytes_CheckExact(data);
        Item wantedlike = {.stored_key = name};
        while (whole && next < count && by_stored_key(&batch->items[at[next]], &wantedlike) < 0)
            next++;
        for (; whole && next < count && by_stored_key(&batch->items[at[next]], &wantedlike) == 0; next++)
            batch->items[at[next]].data = Py_NewRef(data);
    }
    return whole;
}

static bool
read_layers(Batch *batch, PyObject *cold, PyObject *txn)
{
    PyObject *layout = tiered_cold_layout(cold, txn), *layers = layout ? PyTuple_GET_ITEM(layout, LAYOUT_LAYERS) : NULL;
    Py_ssize_t *at = PyMem_Malloc(((size_t)batch->count + 1) * sizeof *at);
    bool done = layers && at;
    for (Py_ssize_t i = 0; done && i < PyList_GET_SIZE(layers); i++) {
        PyObject *names = wanted(batch, at);
        if (names && PyList_GET_SIZE(names) == 0) {
            Py_DECREF(names);
            break;
        }
        PyObject *cursor =
            names ? PyObject_CallMethodOneArg(txn, tiered_load_names[NAME_cursor], PyList_GET_ITEM(layers, i)) : NULL;
        PyObject *pairs = cursor ? PyObject_CallMethodOneArg(cursor, tiered_load_names[NAME_getmulti], names) : NULL;
        done = pairs && take(batch, pairs, at, PyList_GET_SIZE(names));
        Py_XDECREF(pairs);
        Py_XDECREF(cursor);
        Py_XDECREF(names);
    }
    PyMem_Free(at);
    Py_XDECREF(layout);
    return done;
}

static bool
read_cold(Batch *batch)
{
    ColdRead read;
    PyObject *cold = ATTRIBUTE(batch->engine, cold);
    bool done = false;
    if (cold != NULL) {
        done = tiered_cold_enter(&read, cold) && read_layers(batch, cold, read.txn);
        tiered_cold_leave(&read);
        Py_DECREF(cold);
    }
    return done;
}

/* Takes the records apart, and counts those that are not there. */
static bool
open_records(Batch *batch)
{
    for (Py_ssize_t i = 0; i < batch->count; i++) {
        Item *item = &batch->items[i];
        int over = 1;
        if (item->data != NULL) {
            const char *wrong = tiered_record(
                (unsigned char *)PyBytes_AS_STRING(item->stored_key), (size_t)PyBytes_GET_SIZE(item->stored_key),
                (unsigned char *)PyBytes_AS_STRING(item->data), (size_t)PyBytes_GET_SIZE(item->data), &item->record);
            if (wrong || !tiered_is_plain(&item->record))
                item->state = LEFT;
            else if (!(item->record.flags & RECORD_IS_MARKER) && (over = tiered_is_over(batch->engine, item->record.deadline)) < 0)
                return false;
        }
        if (item->state == ASKED && over) {
            item->state = DECODED;
            Py_CLEAR(item->data);
            batch->misses++;
        } else if (item->state == ASKED) {
            item->state = READ;
        }
    }
    return true;
}

/* Undoes the frames of one dictionary, those from the first one that is still compressed on; what fails is left. */
static void
undo(Batch *batch, const TieredRecord *like)
{
    PyObject *pool, *context = tiered_context(batch->engine, like->dictionary, &pool), *bodies = PyList_New(0), *undone = NULL;
    Py_ssize_t next = 0;
    for (Py_ssize_t i = 0; bodies && i < batch->count; i++) {
        Item *item = &batch->items[i];
        if (item->state != READ || item->segment || item->record.compression != COMPRESSION_ZSTD
            || item->record.dictionary != like->dictionary)
            continue;
        PyObject *body = tiered_is_small_frame(&item->record)
            ? PyBytes_FromStringAndSize((const char *)item->record.body, (Py_ssize_t)item->record.body_size) : NULL;
        item->state = body && PyList_Append(bodies, body) == 0 ? ASKED : LEFT;
        Py_XDECREF(body);
    }
    if (context && bodies && PyList_GET_SIZE(bodies)) /* None at all would end the process. */
        undone = PyObject_CallMethodOneArg(context, tiered_load_names[NAME_multi_decompress_to_buffer], bodies);
    if (context)
        tiered_context_back(context, pool);
    for (Py_ssize_t i = 0; i < batch->count; i++) {
        Item *item = &batch->items[i];
        if (item->state != ASKED)
            continue;
        item->segment = undone ? PySequence_GetItem(undone, next++) : NULL;
        if (item->segment && PyObject_GetBuffer(item->segment, &item->view, PyBUF_SIMPLE) < 0)
            Py_CLEAR(item->segment);
        item->state = item->segment ? READ : LEFT;
    }
    Py_XDECREF(undone);
    Py_XDECREF(bodies);
}

static bool
decode_all(Batch *batch)
{
    for (Py_ssize_t i = 0; i < batch->count; i++) {
        Item *item = &batch->items[i];
        if (item->state == READ && item->record.compression == COMPRESSION_ZSTD && !item->segment) {
            undo(batch, &item->record);
            if (tiered_given_up() == LOAD_FAILED)
                return false;
        }
        if (item->state != READ)
            continue;
        size_t size;
        const unsigned char *payload = payload_of(item, &size);
        PyObject *value = tiered_decoded(batch->arena, item->record.codec, payload, size);
        bool done = value && PyDict_SetItem(batch->found, item->key, value) == 0;
        Py_XDECREF(value);
        if (!done && tiered_given_up() == LOAD_FAILED)
            return false;
        item->state = done ? DECODED : LEFT;
        batch->hits += done;
    }
    return true;
}

/* Keeps what was read, under the lock, if it is still the newest: as much as one call may evict for. */
static bool
keep_all(Batch *batch, PyObject *generation, long size_max)
{
    ArenaObject *arena = batch->arena;
    uint64_t most = arena->arena.evictions + EVICTIONS_MAX;
    Py_ssize_t promotions = 0;
    PyObject *now = ATTRIBUTE(batch->engine, generation);
    bool done = now != NULL, current = now == generation && !tiered_is_true(batch->engine, NAME_closed);
    for (Py_ssize_t i = 0; current && done && i < batch->count && arena->arena.evictions < most; i++) {
        Item *item = &batch->items[i];
        size_t size;
        const unsigned char *payload = payload_of(item, &size);
        if (item->state != DECODED || item->data == NULL || (long)size > size_max || !tiered_is_clean(batch->engine, item->stored_key))
            continue;
        PyObject *number = PyLong_FromUnsignedLong(item->record.codec);
        PyObject *view = PyMemoryView_FromMemory((char *)payload, (Py_ssize_t)size, PyBUF_READ);
        done = number && view && tiered_arena_put(arena, item->key, number, view, item->record.deadline) >= 0;
        promotions += done;
        Py_XDECREF(view);
        Py_XDECREF(number);
    }
    Py_XDECREF(now);
    return done && !PyErr_Occurred() && tiered_count(batch->engine, NAME_promotions, promotions)
        && (!arena->arena.evictions || tiered_is_attended(batch->engine));
}

static bool
promote(Batch *batch, PyObject *generation)
{
    PyObject *limit = ATTRIBUTE(batch->engine, _small_bytes), *lock = limit ? ATTRIBUTE(batch->engine, lock) : NULL;
    PyObject *owned = lock ? CALL(batch->engine, owned) : NULL, *locked = owned == Py_False ? CALL(lock, acquire) : NULL;
    bool done = locked || owned == Py_True;
    if (locked) {
        done = keep_all(batch, generation, PyLong_AsLong(limit));
        LoadError error = tiered_set_aside();
        PyObject *released = CALL(lock, release);
        done = done && released;
        Py_XDECREF(released);
        tiered_put_back(error);
        Py_DECREF(locked);
    }
    Py_XDECREF(owned);
    Py_XDECREF(lock);
    Py_XDECREF(limit);
    return done;
}
