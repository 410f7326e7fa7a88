/* Reads of many cold keys at once: of the steps of `Store._load_many` (tiered/reading.py), its twin, those of the keys that
 * have nothing unusual.  One transaction for all, the keys in their order, one call of zstandard's for the frames of each
 * dictionary, and the store's lock once.  What only the twin knows is left to it. */
#include "loads.h"

#include <stdlib.h>
#include <string.h>

enum { EVICTIONS_MAX = 2000 }; /* As in tiered/tiers.py. */

typedef struct {
    ArenaObject *arena;
    PyObject *engine, *found;
    LoadItem *items; /* Those that are asked for, in the order of their stored keys. */
    Py_ssize_t count;
    Py_ssize_t hits, misses;
    PyObject *damaged; /* The stored key of one that a damaged page kept from being found, borrowed of its item. */
} Batch;

static const unsigned char *
key_of(const LoadItem *item, size_t *size)
{
    *size = (size_t)PyBytes_GET_SIZE(item->stored_key);
    return (const unsigned char *)PyBytes_AS_STRING(item->stored_key);
}

static int
by_stored_key(const void *one, const void *other)
{
    PyObject *a = ((const LoadItem *)one)->stored_key, *b = ((const LoadItem *)other)->stored_key;
    Py_ssize_t shorter = Py_MIN(PyBytes_GET_SIZE(a), PyBytes_GET_SIZE(b));
    int order = memcmp(PyBytes_AS_STRING(a), PyBytes_AS_STRING(b), (size_t)shorter);
    return order ? order : (PyBytes_GET_SIZE(a) > PyBytes_GET_SIZE(b)) - (PyBytes_GET_SIZE(a) < PyBytes_GET_SIZE(b));
}

/* The keys that are simple and clean; false with an error set. */
static bool
gather(Batch *batch, PyObject *keys)
{
    Unsaved unsaved;
    bool done = tiered_unsaved(batch->engine, &unsaved);
    for (Py_ssize_t i = 0; done && i < PyList_GET_SIZE(keys); i++) {
        TieredKey encoded;
        LoadItem *item = &batch->items[batch->count];
        *item = (LoadItem){.key = PyList_GET_ITEM(keys, i), .state = ITEM_ASKED};
        if (tiered_key(item->key, &encoded)) {
            item->stored_key = tiered_stored_key(&encoded);
            tiered_key_end(&encoded);
        }
        if (item->stored_key && tiered_is_saved(&unsaved, item->stored_key))
            batch->count++;
        else
            Py_CLEAR(item->stored_key);
        done = !PyErr_Occurred();
    }
    tiered_unsaved_end(&unsaved);
    qsort(batch->items, (size_t)batch->count, sizeof *batch->items, by_stored_key);
    return !PyErr_Occurred();
}

/* What came of a search: the record, taken apart. */
static void
found(LoadItem *item, const PageSearch *search)
{
    if (search->state == PAGES_ABSENT)
        return;
    item->there = true;
    if (search->state != PAGES_FOUND
        || tiered_record(search->key, search->key_size, search->data, search->data_size, &item->record)
        || !tiered_is_plain(&item->record))
        item->state = ITEM_LEFT;
}

/* Looks for all keys; `searches` has room for twice as many. */
static void
look_up(Batch *batch, const ColdRead *read, PageSearch *searches)
{
    size_t keys = (size_t)batch->count;
    Py_BEGIN_ALLOW_THREADS /* Pages may have to come from the disk. */
    for (size_t i = 0; i < keys; i++)
        searches[i].key = key_of(&batch->items[i], &searches[i].key_size);
    tiered_layers_find_many(read->layers, read->count, searches, keys, searches + keys);
    for (size_t i = 0; i < keys; i++)
        found(&batch->items[i], &searches[i]);
    Py_END_ALLOW_THREADS
    for (size_t i = 0; i < keys; i++) { /* Before Python runs again. */
        LoadItem *item = &batch->items[i];
        if (searches[i].state == PAGES_DAMAGED)
            batch->damaged = item->stored_key;
        if (!item->there || item->state != ITEM_ASKED)
            continue;
        item->body = PyBytes_FromStringAndSize((const char *)item->record.body, (Py_ssize_t)item->record.body_size);
        item->state = item->body ? ITEM_ASKED : ITEM_LEFT;
    }
}

/* Tells the records that are not there, or no more. */
static bool
tell_absent(Batch *batch)
{
    for (Py_ssize_t i = 0; i < batch->count; i++) {
        LoadItem *item = &batch->items[i];
        if (item->state != ITEM_ASKED)
            continue;
        bool none = !item->there || item->record.flags & RECORD_IS_MARKER;
        int over = none ? 1 : tiered_is_over(batch->engine, item->record.deadline);
        if (over < 0)
            return false;
        item->there = !over;
        item->state = over ? ITEM_ABSENT : ITEM_READ;
    }
    return true;
}

/* The payloads of the keys that are there, all as of one transaction. */
static bool
read_cold(Batch *batch)
{
    ColdRead read;
    PyObject *cold = ATTRIBUTE(batch->engine, cold);
    PageSearch *searches = PyMem_Malloc((2 * (size_t)batch->count + 1) * sizeof *searches);
    bool done = false;
    if (cold && searches) {
        done = tiered_cold_enter(&read, cold, NULL);
        if (done)
            look_up(batch, &read, searches);
        tiered_cold_leave(&read);
    }
    PyMem_Free(searches);
    Py_XDECREF(cold);
    return done && !PyErr_Occurred() && tell_absent(batch)
        && tiered_undo_all(batch->engine, batch->items, batch->count);
}

/* Fills the places that the dict has for the values, or takes them away; false with an error set. */
static bool
decode_all(Batch *batch)
{
    for (Py_ssize_t i = 0; i < batch->count; i++) {
        LoadItem *item = &batch->items[i];
        if (item->state == ITEM_ABSENT) {
            if (PyDict_DelItem(batch->found, item->key) < 0)
                return false;
            item->state = ITEM_DECODED;
            batch->misses++;
        }
        if (item->state != ITEM_READ)
            continue;
        size_t size;
        const unsigned char *payload = tiered_payload_of(item, &size);
        PyObject *value = tiered_decoded(batch->arena, item->record.codec, payload, size);
        bool done = value && PyDict_SetItem(batch->found, item->key, value) == 0;
        Py_XDECREF(value);
        if (!done && tiered_given_up() == LOAD_FAILED)
            return false;
        item->state = done ? ITEM_DECODED : ITEM_LEFT;
        batch->hits += done;
    }
    return true;
}

/* Whether an item is kept hot by the twin, which is to be asked about it. */
static bool
is_doubtful(const LoadItem *item, bool plainly, Py_ssize_t size_max)
{
    size_t size;
    tiered_payload_of(item, &size);
    return item->there && item->state == ITEM_DECODED && (!plainly || (Py_ssize_t)size > size_max);
}

/* `Tiers.promote_many` of those. */
static bool
ask_twin(const Batch *batch, PyObject *generation, bool plainly, Py_ssize_t size_max)
{
    PyObject *located = PyList_New(0), *done = NULL;
    for (Py_ssize_t i = 0; located && i < batch->count; i++) {
        const LoadItem *item = &batch->items[i];
        if (!is_doubtful(item, plainly, size_max))
            continue;
        size_t size;
        const unsigned char *data = tiered_payload_of(item, &size);
        PyObject *payload = PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
        PyObject *found = payload ? tiered_found(&item->record, payload) : NULL;
        PyObject *one = found ? PyTuple_Pack(4, item->key, item->stored_key, Py_None, found) : NULL;
        if (one == NULL || PyList_Append(located, one) < 0)
            Py_CLEAR(located);
        Py_XDECREF(one);
        Py_XDECREF(found);
        Py_XDECREF(payload);
    }
    if (located && PyList_GET_SIZE(located))
        done = PyObject_CallMethodObjArgs(batch->engine, tiered_names[NAME_promote_many], located, generation, NULL);
    Py_XDECREF(done);
    Py_XDECREF(located);
    return !PyErr_Occurred();
}

/* Keeps what was read, if it is still the newest: as much as one call may evict for.  False with an error set. */
static bool
promote(const Batch *batch, PyObject *generation)
{
    Py_ssize_t size_max, promotions = 0;
    bool plainly = tiered_is_promoted_plainly(batch->engine, &size_max), done = !PyErr_Occurred();
    ArenaObject *arena = batch->arena;
    uint64_t most = arena->arena.evictions + EVICTIONS_MAX;
    PyObject *lock;
    if (done && plainly && tiered_lock(batch->engine, &lock)) {
        Unsaved unsaved;
        bool newest = tiered_is_newest(batch->engine, generation) && tiered_unsaved(batch->engine, &unsaved);
        for (Py_ssize_t i = 0; done && newest && i < batch->count && arena->arena.evictions < most; i++) {
            const LoadItem *item = &batch->items[i];
            size_t size;
            const unsigned char *payload = tiered_payload_of(item, &size);
            if (item->there && item->state == ITEM_DECODED && (Py_ssize_t)size <= size_max
                && tiered_is_saved(&unsaved, item->stored_key)) {
                done = tiered_arena_put(arena, item->key, item->record.codec, payload, size, item->record.deadline) >= 0;
                promotions++;
            }
        }
        if (newest)
            tiered_unsaved_end(&unsaved);
        done = done && tiered_count(batch->engine, NAME_promotions, promotions)
            && (!arena->arena.evictions || tiered_is_attended(batch->engine));
        done = tiered_unlock(lock) && done;
    }
    return done && !PyErr_Occurred() && ask_twin(batch, generation, plainly, size_max);
}

static bool
load_all(Batch *batch, PyObject *keys)
{
    PyObject *generation = ATTRIBUTE(batch->engine, generation);
    bool done = generation && gather(batch, keys) && (batch->count == 0 || read_cold(batch)) && decode_all(batch)
        && tiered_count(batch->engine, NAME_cold_hits, batch->hits)
        && tiered_count(batch->engine, NAME_misses, batch->misses) && (batch->hits == 0 || promote(batch, generation));
    Py_XDECREF(generation);
    return done;
}

/* The keys of which there is neither a value nor the knowledge that there is none, in their order, each once. */
static PyObject *
left_of(const Batch *batch, PyObject *keys)
{
    Py_ssize_t decoded = 0;
    while (decoded < batch->count && batch->items[decoded].state == ITEM_DECODED)
        decoded++;
    if (decoded == PyList_GET_SIZE(keys))
        return PyList_New(0);
    PyObject *done = PySet_New(NULL), *left = done ? PyList_New(0) : NULL;
    for (Py_ssize_t i = 0; left && i < batch->count; i++)
        if (batch->items[i].state == ITEM_DECODED && PySet_Add(done, batch->items[i].key) < 0)
            Py_CLEAR(left);
    for (Py_ssize_t i = 0; left && i < PyList_GET_SIZE(keys); i++) {
        int known = PySet_Contains(done, PyList_GET_ITEM(keys, i));
        if (known < 0 || (!known && PyList_Append(left, PyList_GET_ITEM(keys, i)) < 0))
            Py_CLEAR(left);
    }
    Py_XDECREF(done);
    return left;
}

static void
end(Batch *batch)
{
    for (Py_ssize_t i = 0; i < batch->count; i++) {
        LoadItem *item = &batch->items[i];
        tiered_item_end(item);
        Py_XDECREF(item->stored_key);
    }
    PyMem_Free(batch->items);
}

PyObject *
tiered_load_many(ArenaObject *arena, PyObject *engine, PyObject *keys, PyObject *found)
{
    PyObject *background = NULL, *left = NULL;
    bool direct = tiered_is_true(engine, NAME_direct) && (background = ATTRIBUTE(engine, _background)) == Py_None;
    Batch batch = {.arena = arena, .engine = engine, .found = found};
    Py_XDECREF(background);
    if (direct)
        batch.items = PyMem_Calloc((size_t)PyList_GET_SIZE(keys) + 1, sizeof *batch.items);
    if ((batch.items && load_all(&batch, keys)) || tiered_given_up() == LOAD_PYTHON)
        left = batch.damaged ? tiered_damaged_page(engine, batch.damaged) : left_of(&batch, keys);
    end(&batch);
    return left;
}

/* Keeps the payloads in the order of the keys, as long as no more than so many bytes are used; how many were kept. */
static Py_ssize_t
keep_in_order(Batch *batch, PyObject *keys, size_t bytes_max)
{
    Arena *a = &batch->arena->arena;
    Py_ssize_t kept = 0;
    for (Py_ssize_t k = 0; k < PyList_GET_SIZE(keys) && !PyErr_Occurred(); k++)
        for (Py_ssize_t i = 0; i < batch->count; i++) {
            const LoadItem *item = &batch->items[i];
            if (item->key != PyList_GET_ITEM(keys, k) || item->state != ITEM_READ)
                continue;
            size_t size;
            const unsigned char *payload = tiered_payload_of(item, &size);
            if (arena_used_bytes(a) + size <= bytes_max)
                kept += tiered_arena_put(
                    batch->arena, item->key, item->record.codec, payload, size, item->record.deadline) > 0;
        }
    return kept;
}

PyObject *
tiered_read_ahead(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 4 || !PyObject_TypeCheck(args[0], &TieredArenaType) || !PyList_CheckExact(args[2]))
        return PyErr_Format(PyExc_TypeError, "read_ahead(arena, engine, keys, bytes_max)");
    size_t bytes_max = PyLong_AsSize_t(args[3]);
    if (PyErr_Occurred())
        return NULL;
    Batch batch = {.arena = (ArenaObject *)args[0], .engine = args[1]};
    batch.items = PyMem_Calloc((size_t)PyList_GET_SIZE(args[2]) + 1, sizeof *batch.items);
    if (batch.items == NULL)
        return PyErr_NoMemory();
    bool done = gather(&batch, args[2]) && (batch.count == 0 || read_cold(&batch));
    Py_ssize_t kept = done ? keep_in_order(&batch, args[2], bytes_max) : 0;
    end(&batch);
    return tiered_given_up() == LOAD_FAILED ? NULL : PyLong_FromSsize_t(kept);
}
