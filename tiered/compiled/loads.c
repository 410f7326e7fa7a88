/* A read of what is cold without a frame of Python: of the steps of `Store._load` (tiered/store.py), its twin, those
 * that nearly every read takes.  At whatever is out of the ordinary, a dirty key, a follower, damage, an error of LMDB,
 * it gives up, before anything is counted or kept, and the twin begins anew.
 *
 * LMDB and zstandard are called through their Python types.  They let go of the interpreter lock, so that other threads
 * run in between; the order of the steps, and the look under the store's lock before a value is kept, are what the twin
 * relies on, too (tiered/tiers.py).  No signal handler runs from the first note among the users of the cold tier to its
 * removal. */
#include "loads.h"

#include "decoder.h"
#include "record.h"

#include <string.h>

enum { STORED_BYTES_EXACT = 480 };       /* As in tiered/keys.py. */
enum { COMPRESSION_NONE = 0, COMPRESSION_ZSTD = 1 }; /* As in tiered/compression.py. */
enum { LAYOUT_TRANSACTION, LAYOUT_LAYERS, LAYOUT_MERGED_TO, LAYOUT_BEHIND, LAYOUT_PARTS }; /* As in tiered/cold.py. */

#define NAMES(X) \
    X(_background) X(_barred) X(_env) X(_layout) X(_layout_of) X(_number) X(_pools) X(_small_bytes) X(_users) \
    X(abort) X(acquire) X(begin) X(buffers) X(cleared) X(clock) X(closed) X(cold) X(cold_hits) X(counters) X(decompress) \
    X(decompressor) X(direct) X(generation) X(get) X(id) X(lock) X(misses) X(now_ms) X(owned) X(pop) X(positions) \
    X(promote) X(promotions) X(release) X(serve)
#define AS_ENUM(name) NAME_##name,
#define AS_TEXT(name) #name,
enum { NAMES(AS_ENUM) NAME_COUNT };
static const char *const texts[] = {NAMES(AS_TEXT)};
static PyObject *names[NAME_COUNT], *zero;

#define ATTRIBUTE(object, name) PyObject_GetAttr(object, names[NAME_##name])
#define CALL(object, name) PyObject_CallMethodNoArgs(object, names[NAME_##name])

/* What was raised is the twin's to raise again, if it is an error; an interrupt is one, and stays. */
static int
given_up(void)
{
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception))
        return LOAD_FAILED;
    PyErr_Clear();
    return LOAD_PYTHON;
}

static bool
is_true(PyObject *object, int name)
{
    PyObject *value = PyObject_GetAttr(object, names[name]);
    int is = value == NULL ? -1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return is > 0;
}

/* Adds one to a counter; false with an error set. */
static bool
count(PyObject *engine, int name)
{
    PyObject *counters = ATTRIBUTE(engine, counters);
    PyObject *before = counters ? PyObject_GetAttr(counters, names[name]) : NULL;
    PyObject *one = PyLong_FromLong(1);
    PyObject *after = before && one ? PyNumber_Add(before, one) : NULL;
    bool done = after && PyObject_SetAttr(counters, names[name], after) == 0;
    Py_XDECREF(after);
    Py_XDECREF(one);
    Py_XDECREF(before);
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

/* An error that is kept while something is put in order. */
typedef struct {
    PyObject *kind, *value, *trace;
} Error;

static Error
set_aside(void)
{
    Error error;
    PyErr_Fetch(&error.kind, &error.value, &error.trace);
    return error;
}

static void
put_back(Error error)
{
    PyErr_Restore(error.kind, error.value, error.trace);
}

static PyObject *
bytes_of(const unsigned char *data, size_t size)
{
    return PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
}

/* Whether the cold tier alone can know of the key. */
static bool
is_clean(PyObject *engine, PyObject *stored_key)
{
    PyObject *buffers = ATTRIBUTE(engine, buffers);
    bool clean = buffers && PyTuple_CheckExact(buffers);
    for (Py_ssize_t i = 0; clean && i < PyTuple_GET_SIZE(buffers); i++) {
        PyObject *buffer = PyTuple_GET_ITEM(buffers, i), *positions = ATTRIBUTE(buffer, positions);
        clean = positions && PyDict_CheckExact(positions) && PyDict_Contains(positions, stored_key) == 0
            && !is_true(buffer, NAME_cleared) && !PyErr_Occurred();
        Py_XDECREF(positions);
    }
    Py_XDECREF(buffers);
    return clean;
}

/* -- the cold tier ----------------------------------------------------------------------------- */

/* The newest record of a transaction; NULL without an error: there is none. */
static PyObject *
newest(PyObject *cold, PyObject *txn, PyObject *stored_key)
{
    PyObject *data = NULL, *layout = ATTRIBUTE(cold, _layout), *id = layout ? CALL(txn, id) : NULL;
    int same = id ? PyObject_RichCompareBool(PyTuple_GET_ITEM(layout, LAYOUT_TRANSACTION), id, Py_EQ) : -1;
    if (same == 0)
        Py_XSETREF(layout, PyObject_CallMethodOneArg(cold, names[NAME__layout_of], txn));
    int merged = same < 0 || layout == NULL
        ? -1
        : PyObject_RichCompareBool(stored_key, PyTuple_GET_ITEM(layout, LAYOUT_MERGED_TO), Py_LT);
    if (merged >= 0) {
        PyObject *layers = PyTuple_GET_ITEM(layout, merged ? LAYOUT_BEHIND : LAYOUT_LAYERS); /* The layout keeps it. */
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(layers); i++) {
            data = PyObject_CallMethodObjArgs(txn, names[NAME_get], stored_key, Py_None, PyList_GET_ITEM(layers, i), NULL);
            if (data != Py_None)
                break; /* Found, or failed. */
            Py_CLEAR(data);
        }
    }
    Py_XDECREF(id);
    Py_XDECREF(layout);
    return data;
}

/* `Cold.get_at`: in a transaction of its own, noted among the users as long as that is there. */
static PyObject *
cold_record(PyObject *cold, PyObject *stored_key)
{
    PyObject *data = NULL, *env = NULL, *txn = NULL;
    PyObject *users = ATTRIBUTE(cold, _users), *user = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type);
    PyObject *thread = PyLong_FromUnsignedLong(PyThread_get_thread_ident());
    if (users && user && thread && PyDict_SetItem(users, user, thread) == 0) {
        if (is_true(cold, NAME__barred))
            PyErr_SetString(PyExc_ValueError, "the twin waits");
        else if ((env = ATTRIBUTE(cold, _env)) != NULL && (txn = CALL(env, begin)) != NULL)
            data = newest(cold, txn, stored_key);
        Error error = set_aside();
        if (txn) {
            Py_XDECREF(CALL(txn, abort)); /* Where that fails, it ends with its object. */
            Py_DECREF(txn);
        }
        PyErr_Clear();
        if (PyDict_DelItem(users, user) < 0)
            PyErr_Clear(); /* A fork may have taken it. */
        put_back(error);
    }
    Py_XDECREF(env);
    Py_XDECREF(thread);
    Py_XDECREF(user);
    Py_XDECREF(users);
    return data;
}

/* `Decompressor.decompress` of a zstd frame, by a context that nobody has; NULL where there is none, or no such frame. */
static PyObject *
decompressed(PyObject *engine, const TieredRecord *record)
{
    PyObject *payload = NULL, *context = NULL, *body = NULL, *pool = NULL;
    PyObject *decompressor = ATTRIBUTE(engine, decompressor), *pools = decompressor ? ATTRIBUTE(decompressor, _pools) : NULL;
    PyObject *dictionary = PyLong_FromUnsignedLong(record->dictionary);
    if (pools && PyDict_CheckExact(pools) && dictionary)
        pool = Py_XNewRef(PyDict_GetItemWithError(pools, dictionary));
    /* Sizes that take more than two bytes are the twin's to judge. */
    if (pool && PyList_CheckExact(pool) && PyList_GET_SIZE(pool) && record->body_size > 4 && record->body[4] < 0x80) {
        context = CALL(pool, pop);
        body = bytes_of(record->body, record->body_size);
        if (context && body)
            payload = PyObject_CallMethodObjArgs(context, names[NAME_decompress], body, zero, Py_False, Py_False, NULL);
        Error error = set_aside();
        if (context && PyList_Append(pool, context) < 0)
            PyErr_Clear(); /* Another is made when it is needed. */
        put_back(error);
    }
    Py_XDECREF(body);
    Py_XDECREF(context);
    Py_XDECREF(pool);
    Py_XDECREF(dictionary);
    Py_XDECREF(pools);
    Py_XDECREF(decompressor);
    return payload;
}

/* -- what is read ------------------------------------------------------------------------------ */

static PyObject *
decoded(ArenaObject *arena, unsigned codec, PyObject *payload)
{
    PyObject *decoder = arena->decoders[codec], *value = NULL;
    if (codec == CODEC_MSGPACK && tiered_is_decoder(decoder))
        value = tiered_decode(decoder, (const unsigned char *)PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload));
    return value || PyErr_Occurred() ? value : PyObject_CallOneArg(decoder, payload);
}

/* Has the maintenance thread serve the store, if it does not yet; false with an error set. */
static bool
is_attended(PyObject *engine)
{
    if (is_true(engine, NAME__number))
        return true;
    PyObject *served = PyErr_Occurred() ? NULL : CALL(engine, serve);
    Py_XDECREF(served);
    return served != NULL;
}

/* `Tiers.promote`; false with an error set. */
static bool
keep(ArenaObject *arena, PyObject *engine, PyObject *generation, PyObject *key, PyObject *stored_key, unsigned codec,
    int64_t deadline, PyObject *payload)
{
    PyObject *limit = ATTRIBUTE(engine, _small_bytes);
    long most = limit ? PyLong_AsLong(limit) : -1;
    Py_XDECREF(limit);
    bool plain = PyUnicode_CheckExact(key) || PyBytes_CheckExact(key) || PyLong_CheckExact(key);
    if (PyErr_Occurred())
        return false;
    if (!plain || PyBytes_GET_SIZE(payload) > most) {
        PyObject *done = NULL, *found = Py_BuildValue("(iLy#O)", (int)codec, (long long)deadline, "", (Py_ssize_t)0, payload);
        if (found)
            done = PyObject_CallMethodObjArgs(engine, names[NAME_promote], key, stored_key, Py_None, generation, found, NULL);
        Py_XDECREF(found);
        Py_XDECREF(done);
        return done != NULL;
    }
    PyObject *lock = ATTRIBUTE(engine, lock), *owned = lock ? CALL(engine, owned) : NULL;
    PyObject *locked = owned == Py_False ? CALL(lock, acquire) : NULL;
    bool done = locked || owned == Py_True;
    if (locked) {
        PyObject *now = ATTRIBUTE(engine, generation);
        PyObject *number = PyLong_FromUnsignedLong(codec);
        if (now == generation && number && !is_true(engine, NAME_closed) && is_clean(engine, stored_key))
            done = tiered_arena_put(arena, key, number, payload, deadline) >= 0 && count(engine, NAME_promotions)
                && (!arena->arena.evictions || is_attended(engine));
        Py_XDECREF(number);
        Py_XDECREF(now);
        Error error = set_aside();
        PyObject *released = CALL(lock, release);
        done = done && released;
        Py_XDECREF(released);
        put_back(error);
        Py_DECREF(locked);
    }
    Py_XDECREF(owned);
    Py_XDECREF(lock);
    return done;
}

/* Whether a deadline is over by the store's clock; -1 with an error set. */
static int
is_over(PyObject *engine, int64_t deadline)
{
    if (deadline <= 0)
        return 0;
    long long now = now_ms(engine);
    return now < 0 ? -1 : deadline <= now;
}

/* The value of a record that was found, which is kept hot. */
static int
value_of(ArenaObject *arena, PyObject *engine, PyObject *generation, PyObject *key, PyObject *stored_key, PyObject *data,
    PyObject **value)
{
    TieredRecord record;
    const char *wrong = tiered_record(
        (const unsigned char *)PyBytes_AS_STRING(stored_key), (size_t)PyBytes_GET_SIZE(stored_key),
        (const unsigned char *)PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data), &record);
    if (wrong || record.flags & ~RECORD_HAS_DEADLINE & ~RECORD_IS_MARKER || record.codec < CODEC_BYTES || record.codec > CODEC_LAST)
        return LOAD_PYTHON;
    int over = record.flags & RECORD_IS_MARKER ? 1 : is_over(engine, record.deadline);
    if (over)
        return over < 0 ? given_up() : LOAD_ABSENT;
    PyObject *payload = NULL;
    if (record.compression == COMPRESSION_ZSTD)
        payload = decompressed(engine, &record);
    else if (record.compression == COMPRESSION_NONE)
        payload = bytes_of(record.body, record.body_size);
    if (payload == NULL || (*value = decoded(arena, record.codec, payload)) == NULL) {
        Py_XDECREF(payload);
        return given_up();
    }
    bool done = count(engine, NAME_cold_hits)
        && keep(arena, engine, generation, key, stored_key, record.codec, record.deadline, payload);
    Py_DECREF(payload);
    if (!done)
        Py_CLEAR(*value);
    return done ? LOAD_FOUND : LOAD_FAILED;
}

static int
cold_value(ArenaObject *arena, PyObject *engine, PyObject *key, PyObject *stored_key, PyObject **value)
{
    PyObject *generation = ATTRIBUTE(engine, generation), *background = generation ? ATTRIBUTE(engine, _background) : NULL;
    PyObject *cold = NULL, *data = NULL;
    int came = LOAD_PYTHON;
    if (background == Py_None && is_clean(engine, stored_key) && (cold = ATTRIBUTE(engine, cold)) != NULL) {
        data = cold_record(cold, stored_key);
        if (data && PyBytes_CheckExact(data))
            came = value_of(arena, engine, generation, key, stored_key, data, value);
        else if (!PyErr_Occurred() && data == NULL)
            came = LOAD_ABSENT;
    }
    if (came == LOAD_ABSENT && !count(engine, NAME_misses))
        came = LOAD_FAILED;
    if (came == LOAD_PYTHON)
        came = given_up();
    Py_XDECREF(data);
    Py_XDECREF(cold);
    Py_XDECREF(background);
    Py_XDECREF(generation);
    return came;
}

int
tiered_load(ArenaObject *arena, PyObject *engine, PyObject *key, PyObject **value, bool *hot)
{
    TieredKey encoded;
    if (!is_true(engine, NAME_direct) || !tiered_key(key, &encoded))
        return given_up();
    size_t size = encoded.key.size + 1;
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
    if (size <= STORED_BYTES_EXACT) {
        PyObject *stored_key = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
        if (stored_key == NULL)
            came = given_up();
        else {
            PyBytes_AS_STRING(stored_key)[0] = (char)encoded.key.code;
            memcpy(PyBytes_AS_STRING(stored_key) + 1, encoded.key.data, encoded.key.size);
            came = cold_value(arena, engine, key, stored_key, value);
            Py_DECREF(stored_key);
        }
    }
    tiered_key_end(&encoded);
    return came;
}

int
tiered_add_loads(PyObject *module)
{
    zero = PyLong_FromLong(0);
    for (int name = 0; name < NAME_COUNT; name++)
        if ((names[name] = PyUnicode_InternFromString(texts[name])) == NULL)
            return -1;
    return zero ? 0 : -1;
}
