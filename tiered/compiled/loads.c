/* A read of what is cold without a frame of Python: of the steps of `Store._load` (tiered/reading.py), its twin, those
 * that nearly every read takes.  At whatever is out of the ordinary, a dirty key, a follower, damage, an error of LMDB,
 * it gives up, before anything is counted or kept, and the twin begins anew.
 *
 * LMDB's transactions and zstandard are called through their Python types; the pages of a transaction are looked at here
 * (pages.c).  All let go of the interpreter lock, so that other threads run in between; the order of the steps, and the
 * look under the store's lock before a value is kept, are what the twin relies on, too (tiered/tiers.py).
 *
 * Python runs only to make a new layout, to ask for the time, and to decode what only Python can; handlers of signals and
 * finalizers run there with it, which may close the store.  No page is looked at after that without a look whether it is open. */
#include "loads.h"

#include "decoder.h"
#include "record.h"

#include <string.h>

static PyObject *zero;

LoadError
tiered_set_aside(void)
{
    LoadError error;
    PyErr_Fetch(&error.kind, &error.value, &error.trace);
    return error;
}

void
tiered_put_back(LoadError error)
{
    PyErr_Restore(error.kind, error.value, error.trace);
}

/* The errors of the steps themselves. */
static PyObject *
own_errors(void)
{
    static PyObject *own;
    if (own == NULL) {
        PyObject *lmdb = PyImport_ImportModule("lmdb"), *of_lmdb = lmdb ? PyObject_GetAttrString(lmdb, "Error") : NULL;
        PyObject *zstd = of_lmdb ? PyImport_ImportModule("zstandard") : NULL;
        PyObject *of_zstd = zstd ? PyObject_GetAttrString(zstd, "ZstdError") : NULL;
        if (of_zstd)
            own = PyTuple_Pack(7, PyExc_ValueError, PyExc_LookupError, PyExc_AttributeError, PyExc_TypeError,
                PyExc_MemoryError, of_lmdb, of_zstd);
        Py_XDECREF(of_zstd);
        Py_XDECREF(zstd);
        Py_XDECREF(of_lmdb);
        Py_XDECREF(lmdb);
    }
    return own;
}

/* Whether Python's code raised an error, and that was a handler of signals; asked with no error set. */
static bool
by_handler(LoadError *error)
{
    if (error->trace == NULL)
        return false;
    PyErr_NormalizeException(&error->kind, &error->value, &error->trace);
    PyException_SetTraceback(error->value, error->trace);
    PyObject *process = PyImport_ImportModule("tiered.process");
    PyObject *answer = process ? PyObject_CallMethod(process, "by_handler", "O", error->value) : NULL;
    bool is = answer == Py_True;
    Py_XDECREF(answer);
    Py_XDECREF(process);
    PyErr_Clear();
    return is;
}

int
tiered_given_up(void)
{
    if (!PyErr_Occurred())
        return LOAD_PYTHON;
    LoadError error = tiered_set_aside();
    PyObject *own = own_errors();
    if (own && PyErr_GivenExceptionMatches(error.kind, own) && !by_handler(&error)) {
        tiered_put_back((LoadError){NULL, NULL, NULL});
        Py_XDECREF(error.kind);
        Py_XDECREF(error.value);
        Py_XDECREF(error.trace);
        return LOAD_PYTHON;
    }
    tiered_put_back(error);
    return LOAD_FAILED;
}

bool
tiered_count(PyObject *engine, int name, Py_ssize_t more)
{
    PyObject *counters = ATTRIBUTE(engine, counters);
    bool done = counters && tiered_add_to(counters, name, more);
    Py_XDECREF(counters);
    return done;
}

/* The store's time, -1 with an error set. */
static long long
now_ms(PyObject *engine)
{
    PyObject *clock = ATTRIBUTE(engine, clock), *now = clock ? CALL(clock, now_ms) : NULL;
    long long ms = now ? PyLong_AsLongLong(now) : -1;
    Py_XDECREF(now);
    Py_XDECREF(clock);
    return ms;
}

static PyObject *
bytes_of(const unsigned char *data, size_t size)
{
    return PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
}

PyObject *
tiered_stored_key(const TieredKey *key)
{
    size_t size = key->key.size + 1;
    PyObject *bytes = size <= STORED_BYTES_EXACT ? PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size) : NULL;
    if (bytes != NULL) {
        PyBytes_AS_STRING(bytes)[0] = (char)key->key.code;
        memcpy(PyBytes_AS_STRING(bytes) + 1, key->key.data, key->key.size);
    }
    return bytes;
}

bool
tiered_unsaved(PyObject *engine, Unsaved *unsaved)
{
    PyObject *buffers = ATTRIBUTE(engine, buffers);
    bool known = buffers && PyTuple_CheckExact(buffers) && PyTuple_GET_SIZE(buffers) <= BUFFERS_MAX;
    unsaved->count = 0;
    for (Py_ssize_t i = 0; known && i < PyTuple_GET_SIZE(buffers); i++) {
        PyObject *buffer = PyTuple_GET_ITEM(buffers, i), *positions = ATTRIBUTE(buffer, positions);
        known = positions && PyDict_CheckExact(positions) && !tiered_is_true(buffer, NAME_cleared) && !PyErr_Occurred();
        if (positions)
            unsaved->positions[unsaved->count++] = positions;
    }
    Py_XDECREF(buffers);
    if (!known)
        tiered_unsaved_end(unsaved);
    return known;
}

void
tiered_unsaved_end(Unsaved *unsaved)
{
    while (unsaved->count)
        Py_DECREF(unsaved->positions[--unsaved->count]);
}

bool
tiered_is_saved(const Unsaved *unsaved, PyObject *stored_key)
{
    for (int i = 0; i < unsaved->count; i++)
        if (PyDict_Contains(unsaved->positions[i], stored_key) != 0)
            return false;
    return true;
}

/* Whether no write buffer has anything of the key: then the cold tier alone knows. */
static bool
is_clean(PyObject *engine, PyObject *stored_key)
{
    Unsaved unsaved;
    bool clean = tiered_unsaved(engine, &unsaved) && tiered_is_saved(&unsaved, stored_key);
    tiered_unsaved_end(&unsaved);
    return clean;
}

/* -- the cold tier ----------------------------------------------------------------------------- */

/* `Cold.layout_of`. */
static PyObject *
layout_of(PyObject *cold, PyObject *txn)
{
    PyObject *layout = ATTRIBUTE(cold, _layout), *id = layout ? CALL(txn, id) : NULL;
    int same = id ? PyObject_RichCompareBool(PyTuple_GET_ITEM(layout, LAYOUT_TRANSACTION), id, Py_EQ) : -1;
    Py_XDECREF(id);
    if (same <= 0)
        Py_CLEAR(layout);
    return same == 0 ? PyObject_CallMethodOneArg(cold, tiered_names[NAME_layout_of], txn) : layout;
}

bool
tiered_cold_enter(ColdRead *read, PyObject *cold, PyObject *stored_key)
{
    *read = (ColdRead){.users = ATTRIBUTE(cold, _users), .user = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type)};
    PyObject *thread = PyLong_FromUnsignedLong(PyThread_get_thread_ident()), *env = NULL;
    read->noted = read->users && read->user && thread && PyDict_SetItem(read->users, read->user, thread) == 0;
    Py_XDECREF(thread);
    if (read->noted && tiered_is_true(cold, NAME__barred))
        PyErr_SetString(PyExc_ValueError, "the twin waits");
    else if (read->noted && !PyErr_Occurred() && (env = ATTRIBUTE(cold, _env)) != NULL)
        read->txn = CALL(env, begin);
    Py_XDECREF(env);
    read->layout = read->txn ? layout_of(cold, read->txn) : NULL;
    /* That was Python, in which this very thread may have closed the store, as a handler of signals does. */
    if (read->layout && tiered_is_true(cold, NAME__barred))
        Py_CLEAR(read->layout);
    int merged = 0;
    if (read->layout && stored_key)
        merged = PyObject_RichCompareBool(stored_key, PyTuple_GET_ITEM(read->layout, LAYOUT_MERGED_TO), Py_LT);
    if (read->layout && merged >= 0)
        read->count = tiered_layers(PyTuple_GET_ITEM(read->layout, merged ? LAYOUT_BEHIND : LAYOUT_LAYERS), read->layers);
    return read->count > 0;
}

void
tiered_cold_leave(ColdRead *read)
{
    LoadError error = tiered_set_aside();
    if (read->txn) {
        Py_XDECREF(CALL(read->txn, abort)); /* Where that fails, it ends with its object. */
        Py_DECREF(read->txn);
    }
    if (read->noted)
        PyDict_DelItem(read->users, read->user); /* A fork may have taken it. */
    PyErr_Clear();
    Py_XDECREF(read->layout);
    Py_XDECREF(read->user);
    Py_XDECREF(read->users);
    tiered_put_back(error);
}

PyObject *
tiered_damaged_page(PyObject *engine, PyObject *stored_key)
{
    PyObject *cold = ATTRIBUTE(engine, cold);
    PyObject *none = cold ? PyObject_CallMethodOneArg(cold, tiered_names[NAME_damaged_page], stored_key) : NULL;
    Py_XDECREF(none);
    Py_XDECREF(cold);
    return NULL;
}

/* `Cold.get_at`, the record taken apart, and a copy of its body. */
static int
look_up(PyObject *engine, PyObject *stored_key, TieredRecord *record, PyObject **body)
{
    PyObject *cold = ATTRIBUTE(engine, cold);
    if (cold == NULL)
        return LOAD_PYTHON;
    ColdRead read;
    PageSearch search = {
        .key = (const unsigned char *)PyBytes_AS_STRING(stored_key), .key_size = (size_t)PyBytes_GET_SIZE(stored_key)};
    const char *wrong = NULL;
    search.state = PAGES_SEARCHING;
    if (tiered_cold_enter(&read, cold, stored_key)) {
        Py_BEGIN_ALLOW_THREADS /* A page may have to come from the disk. */
        tiered_layers_find(read.layers, read.count, &search);
        if (search.state == PAGES_FOUND)
            wrong = tiered_record(search.key, search.key_size, search.data, search.data_size, record);
        Py_END_ALLOW_THREADS
        if (search.state == PAGES_FOUND && !wrong && tiered_is_plain(record))
            *body = bytes_of(record->body, record->body_size); /* Before Python runs again. */
    }
    tiered_cold_leave(&read);
    Py_DECREF(cold);
    if (search.state == PAGES_DAMAGED) {
        tiered_damaged_page(engine, stored_key);
        return LOAD_FAILED;
    }
    return *body ? LOAD_FOUND : search.state == PAGES_ABSENT ? LOAD_ABSENT : LOAD_PYTHON;
}

PyObject *
tiered_context(PyObject *engine, unsigned dictionary, PyObject **pool)
{
    PyObject *decompressor = ATTRIBUTE(engine, decompressor), *context = NULL;
    PyObject *pools = decompressor ? ATTRIBUTE(decompressor, _pools) : NULL, *number = PyLong_FromUnsignedLong(dictionary);
    *pool = pools && PyDict_CheckExact(pools) && number ? Py_XNewRef(PyDict_GetItemWithError(pools, number)) : NULL;
    if (*pool && PyList_CheckExact(*pool) && PyList_GET_SIZE(*pool))
        context = CALL(*pool, pop);
    if (context == NULL)
        Py_CLEAR(*pool);
    Py_XDECREF(number);
    Py_XDECREF(pools);
    Py_XDECREF(decompressor);
    return context;
}

void
tiered_context_back(PyObject *context, PyObject *pool)
{
    LoadError error = tiered_set_aside();
    if (PyList_Append(pool, context) < 0)
        PyErr_Clear(); /* Another is made when it is needed. */
    Py_DECREF(context);
    Py_DECREF(pool);
    tiered_put_back(error);
}

/* `Decompressor.decompress` of a zstd frame; NULL where no context is free, or it is no such frame. */
static PyObject *
decompressed(PyObject *engine, unsigned dictionary, PyObject *body)
{
    PyObject *pool, *context = tiered_is_small_frame(body) ? tiered_context(engine, dictionary, &pool) : NULL;
    if (context == NULL)
        return NULL;
    PyObject *payload = PyObject_CallMethodObjArgs(
        context, tiered_names[NAME_decompress], body, zero, Py_False, Py_False, NULL);
    tiered_context_back(context, pool);
    return payload;
}

/* -- what is read ------------------------------------------------------------------------------ */

PyObject *
tiered_decoded(ArenaObject *arena, unsigned codec, const unsigned char *data, size_t size)
{
    PyObject *decoder = arena->decoders[codec], *value = NULL;
    if (codec == CODEC_MSGPACK && tiered_is_decoder(decoder))
        value = tiered_decode(decoder, data, (Py_ssize_t)size);
    if (value || PyErr_Occurred())
        return value;
    PyObject *payload = bytes_of(data, size);
    value = payload ? PyObject_CallOneArg(decoder, payload) : NULL;
    Py_XDECREF(payload);
    return value;
}

PyObject *
tiered_found(const TieredRecord *record, PyObject *payload)
{
    return Py_BuildValue("(iLy#O)", (int)record->codec, (long long)record->deadline, "", (Py_ssize_t)0, payload);
}

bool
tiered_is_attended(PyObject *engine)
{
    if (tiered_is_true(engine, NAME__number))
        return true;
    PyObject *served = PyErr_Occurred() ? NULL : CALL(engine, serve);
    Py_XDECREF(served);
    return served != NULL;
}

bool
tiered_is_promoted_plainly(PyObject *engine, Py_ssize_t *size_max)
{
    PyObject *admission = ATTRIBUTE(engine, admission), *limit = admission ? ATTRIBUTE(admission, small_bytes) : NULL;
    PyObject *aside = limit ? ATTRIBUTE(engine, _aside) : NULL;
    *size_max = limit ? PyLong_AsSsize_t(limit) : -1;
    bool plainly = aside && PyList_CheckExact(aside) && PyList_GET_SIZE(aside) == 0;
    Py_XDECREF(aside);
    Py_XDECREF(limit);
    Py_XDECREF(admission);
    return plainly;
}

bool
tiered_lock(PyObject *engine, PyObject **lock)
{
    PyObject *owned = CALL(engine, owned), *locked = NULL;
    *lock = owned == Py_False ? ATTRIBUTE(engine, lock) : NULL;
    if (*lock != NULL && (locked = CALL(*lock, acquire)) == NULL)
        Py_CLEAR(*lock);
    Py_XDECREF(locked);
    Py_XDECREF(owned);
    return *lock != NULL;
}

bool
tiered_unlock(PyObject *lock)
{
    LoadError error = tiered_set_aside();
    PyObject *released = CALL(lock, release);
    Py_DECREF(lock);
    if (released == NULL)
        return false;
    Py_DECREF(released);
    tiered_put_back(error);
    return true;
}

bool
tiered_is_newest(PyObject *engine, PyObject *generation)
{
    PyObject *now = ATTRIBUTE(engine, generation);
    Py_XDECREF(now);
    return now == generation && !tiered_is_true(engine, NAME_closed);
}

/* `Tiers.promote`; false with an error set. */
static bool
keep(ArenaObject *arena, PyObject *engine, PyObject *generation, PyObject *key, PyObject *stored_key,
    const TieredRecord *record, PyObject *payload)
{
    Py_ssize_t size_max;
    PyObject *lock;
    bool plainly = tiered_is_promoted_plainly(engine, &size_max);
    if (PyErr_Occurred())
        return false;
    if (!plainly || PyBytes_GET_SIZE(payload) > size_max) {
        PyObject *done = NULL, *found = tiered_found(record, payload);
        if (found)
            done = PyObject_CallMethodObjArgs(
                engine, tiered_names[NAME_promote], key, stored_key, Py_None, generation, found, NULL);
        Py_XDECREF(found);
        Py_XDECREF(done);
        return done != NULL;
    }
    if (!tiered_lock(engine, &lock))
        return !PyErr_Occurred();
    bool done = true;
    if (tiered_is_newest(engine, generation) && is_clean(engine, stored_key)) {
        const unsigned char *data = (unsigned char *)PyBytes_AS_STRING(payload);
        done = tiered_arena_put(arena, key, record->codec, data, (size_t)PyBytes_GET_SIZE(payload), record->deadline) >= 0
            && tiered_count(engine, NAME_promotions, 1) && (!arena->arena.evictions || tiered_is_attended(engine));
    }
    return tiered_unlock(lock) && done && !PyErr_Occurred();
}

int
tiered_is_over(PyObject *engine, int64_t deadline)
{
    if (deadline <= 0)
        return 0;
    long long now = now_ms(engine);
    return now < 0 ? -1 : deadline <= now;
}

/* The payload of a record, if that has one now. */
static int
payload_of(PyObject *engine, const TieredRecord *record, PyObject *body, PyObject **payload)
{
    int over = record->flags & RECORD_IS_MARKER ? 1 : tiered_is_over(engine, record->deadline);
    if (over)
        return over < 0 ? LOAD_PYTHON : LOAD_ABSENT;
    *payload = record->compression == COMPRESSION_ZSTD ? decompressed(engine, record->dictionary, body) : Py_NewRef(body);
    return *payload ? LOAD_FOUND : LOAD_PYTHON;
}

/* The value of a payload, which is kept hot. */
static int
value_of(ArenaObject *arena, PyObject *engine, PyObject *generation, PyObject *key, PyObject *stored_key,
    const TieredRecord *record, PyObject *payload, PyObject **value)
{
    *value = tiered_decoded(
        arena, record->codec, (unsigned char *)PyBytes_AS_STRING(payload), (size_t)PyBytes_GET_SIZE(payload));
    if (*value == NULL)
        return tiered_given_up();
    bool done = tiered_count(engine, NAME_cold_hits, 1)
        && keep(arena, engine, generation, key, stored_key, record, payload);
    if (!done)
        Py_CLEAR(*value);
    return done ? LOAD_FOUND : LOAD_FAILED;
}

static int
cold_value(ArenaObject *arena, PyObject *engine, PyObject *key, PyObject *stored_key, PyObject **value)
{
    PyObject *generation = ATTRIBUTE(engine, generation), *background = generation ? ATTRIBUTE(engine, _background) : NULL;
    PyObject *body = NULL, *payload = NULL;
    TieredRecord record;
    int came = LOAD_PYTHON;
    if (background == Py_None && is_clean(engine, stored_key))
        came = look_up(engine, stored_key, &record, &body);
    if (came == LOAD_FOUND)
        came = payload_of(engine, &record, body, &payload);
    if (came == LOAD_FOUND)
        came = value_of(arena, engine, generation, key, stored_key, &record, payload, value);
    if (came == LOAD_ABSENT && !tiered_count(engine, NAME_misses, 1))
        came = LOAD_FAILED;
    Py_XDECREF(payload);
    Py_XDECREF(body);
    Py_XDECREF(background);
    Py_XDECREF(generation);
    return came;
}

int
tiered_load(ArenaObject *arena, PyObject *engine, PyObject *key, PyObject **value, bool *hot)
{
    TieredKey encoded;
    if (!tiered_is_true(engine, NAME_direct) || !tiered_key(key, &encoded))
        return tiered_given_up();
    int came = LOAD_PYTHON;
    if (arena->arena.expiring) {
        ArenaValue found;
        long long now = now_ms(engine);
        *value = now < 0 ? NULL : tiered_arena_lookup(arena, key, now, 0);
        *hot = *value != NULL;
        /* What has expired in memory is the twin's to forget. */
        if (*value || PyErr_Occurred() || arena_find(&arena->arena, &encoded.key, &found)) {
            came = *value ? LOAD_FOUND : PyErr_Occurred() ? LOAD_FAILED : LOAD_PYTHON;
            tiered_key_end(&encoded);
            return came;
        }
    }
    arena_foresee_put(&arena->arena);
    PyObject *stored_key = tiered_stored_key(&encoded);
    if (stored_key != NULL)
        came = cold_value(arena, engine, key, stored_key, value);
    Py_XDECREF(stored_key);
    tiered_key_end(&encoded);
    return came == LOAD_PYTHON ? tiered_given_up() : came;
}

static PyMethodDef methods[] = {
    {"read_ahead", (PyCFunction)(void (*)(void))tiered_read_ahead, METH_FASTCALL,
     "read_ahead(arena, engine, keys, bytes_max): make cold records hot; returns how many (tiered.hot_keys)."},
    {NULL, NULL, 0, NULL},
};

int
tiered_add_loads(PyObject *module)
{
    zero = PyLong_FromLong(0);
    return zero ? PyModule_AddFunctions(module, methods) : -1;
}
