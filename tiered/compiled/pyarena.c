/* The arena as Python sees it (tiered/arena.py).
 *
 * Locking.  The interpreter lock is all there is: between finding a record and having made an object of it, or between
 * the first and the last change of a call, no Python code runs.  Keys are encoded before, which for unusual ones is Python
 * code; values are copied out first and decoded then, from the copy, since that may collect garbage, run finalizers, and
 * so use or change this very arena.  Objects of `str` and `bytes` are made in place: the collector does not track those.
 * Signal handlers run between bytecodes only.  So every call is atomic, for threads, handlers and finalizers alike. */
#include "pyarena.h"

#include "decoder.h"

#include <errno.h>
#include <structmember.h>
#include <string.h>

#define ASCII 0x10 /* A text that is ASCII. */
#define RECORD_BYTES 24 /* Of a record beside key and value, about. */

/* -- keys and values --------------------------------------------------------------------------- */

int
tiered_arena_key(ArenaObject *self, PyObject *object, TieredKey *key)
{
    int known = tiered_key(object, key);
    if (known)
        return known;
    PyObject *bytes = PyObject_CallOneArg(self->encode_key, object);
    if (bytes == NULL)
        return -1;
    if (!PyBytes_CheckExact(bytes)) {
        Py_DECREF(bytes);
        PyErr_SetString(PyExc_TypeError, "a key is encoded to bytes");
        return -1;
    }
    tiered_key_of_bytes(bytes, key);
    Py_DECREF(bytes);
    return 1;
}

static int
is_ascii(const unsigned char *data, size_t size)
{
    uint64_t bits = 0, word;
    for (; size >= 8; size -= 8, data += 8) {
        memcpy(&word, data, 8);
        bits |= word;
    }
    while (size--)
        bits |= *data++;
    return !(bits & 0x8080808080808080u);
}

/* What a payload stands for, decoded from a copy: other code may run, and this record move or go. */
static PyObject *
decoded(ArenaObject *self, const ArenaKey *key, const ArenaValue *found, int number)
{
    PyObject *decoder = self->decoders[number];
    if (number == CODEC_MSGPACK && found->size <= TIERED_DOCUMENT_BYTES_MAX && tiered_is_decoder(decoder))
        return tiered_arena_document(self, key, found);
    PyObject *payload = PyBytes_FromStringAndSize((const char *)found->data, (Py_ssize_t)found->size);
    if (payload == NULL)
        return NULL;
    arena_hit(&self->arena, found->place);
    PyObject *value = PyObject_CallOneArg(decoder, payload);
    Py_DECREF(payload);
    return value;
}

/* The value that was found, which counts as a use of it: from here on the record may be gone. */
static PyObject *
value_of(ArenaObject *self, const ArenaKey *key, const ArenaValue *found)
{
    PyObject *value;
    int number = found->kind & CODEC_MASK;
    if (found->kind & ASCII) {
        value = PyUnicode_New((Py_ssize_t)found->size, 127);
        if (value != NULL)
            memcpy(PyUnicode_DATA(value), found->data, found->size);
    } else if (number == CODEC_BYTES) {
        value = PyBytes_FromStringAndSize((const char *)found->data, (Py_ssize_t)found->size);
    } else {
        return decoded(self, key, found, number);
    }
    if (value != NULL)
        arena_hit(&self->arena, found->place);
    return value;
}

/* Tells the advisor of a use: what a record takes, but for rounding, is what counts. */
static void
advise(const ArenaObject *self, const ArenaKey *key, size_t size, int counted)
{
    size_t bytes = RECORD_BYTES + key->size + size;
    tiered_shards_touch(self->shards, arena_hash(&self->arena, key), bytes < UINT32_MAX ? (uint32_t)bytes : UINT32_MAX, counted);
}

PyObject *
tiered_arena_hit(ArenaObject *self, const ArenaKey *key, uint32_t hash, int64_t now_ms)
{
    ArenaValue found;
    objects_foresee(&self->objects, arena_first(&self->arena, hash));
    if (!arena_find_hashed(&self->arena, key, hash, &found)
        || (found.deadline != 0 && (now_ms == TIERED_BELOW_NOW || found.deadline <= now_ms)))
        return NULL;
    if (self->shards != NULL)
        advise(self, key, found.size, 1);
    return value_of(self, key, &found);
}

PyObject *
tiered_arena_lookup(ArenaObject *self, PyObject *object, int64_t now_ms, int any)
{
    TieredKey key;
    int known = any ? tiered_arena_key(self, object, &key) : tiered_key(object, &key);
    if (known <= 0)
        return NULL;
    PyObject *value = tiered_arena_hit(self, &key.key, arena_hash(&self->arena, &key.key), now_ms);
    tiered_key_end(&key);
    return value;
}

/* -- Arena ------------------------------------------------------------------------------------- */

/* As the system says it, and so not as a `MemoryError`, which may come from anywhere. */
static PyObject *
no_address_space(void)
{
    errno = ENOMEM;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *
arena_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    static char *names[] = {"budget_bytes", "encode_key", "decoders", "seed", NULL};
    Py_ssize_t budget, seed_size;
    PyObject *encode_key, *decoders;
    const char *seed_bytes;
    uint64_t seed[2];
    if (!PyArg_ParseTupleAndKeywords(args, named, "nOO!y#:Arena", names, &budget, &encode_key, &PyDict_Type, &decoders,
            &seed_bytes, &seed_size))
        return NULL;
    if (budget < 0 || seed_size != sizeof seed) {
        PyErr_SetString(PyExc_ValueError, "a budget is not negative, a seed has 16 bytes");
        return NULL;
    }
    memcpy(seed, seed_bytes, sizeof seed);
    ArenaObject *self = (ArenaObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    if (!arena_begin(&self->arena, (size_t)budget, seed)) {
        Py_DECREF(self);
        return no_address_space();
    }
    self->budget_bytes = (size_t)budget;
    self->encode_key = Py_NewRef(encode_key);
    for (int number = CODEC_BYTES; number <= CODEC_LAST; number++) {
        PyObject *id = PyLong_FromLong(number);
        PyObject *decoder = id ? PyDict_GetItemWithError(decoders, id) : NULL;
        Py_XDECREF(id);
        if (decoder == NULL) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_ValueError, "no decoder for codec id %d", number);
            Py_DECREF(self);
            return NULL;
        }
        self->decoders[number] = Py_NewRef(decoder);
    }
    return (PyObject *)self;
}

static int
arena_traverse(ArenaObject *self, visitproc visit, void *arg)
{
    /* Not its type: where that is a class made in Python, Python visits it, and twice would be once too often. */
    Py_VISIT(self->encode_key);
    Py_VISIT(self->policy);
    Py_VISIT(self->objects.is_immutable);
    Py_VISIT(self->objects.size_of);
    for (int number = CODEC_BYTES; number <= CODEC_LAST; number++)
        Py_VISIT(self->decoders[number]);
    return 0;
}

static int
arena_tp_clear(ArenaObject *self)
{
    return 0; /* It refers to functions of modules only, and is needed to the last. */
}

static void
arena_dealloc(ArenaObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    objects_clear(&self->objects);
    Py_CLEAR(self->shards);
    Py_CLEAR(self->objects.is_immutable);
    Py_CLEAR(self->objects.size_of);
    arena_end(&self->arena);
    Py_CLEAR(self->encode_key);
    Py_CLEAR(self->policy);
    for (int number = CODEC_BYTES; number <= CODEC_LAST; number++)
        Py_CLEAR(self->decoders[number]);
    type->tp_free((PyObject *)self);
}

static PyObject *
arena_get(ArenaObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count < 1 || count > 2)
        return PyErr_Format(PyExc_TypeError, "get(key, default=None)");
    PyObject *value = tiered_arena_lookup(self, args[0], TIERED_BELOW_NOW, 1);
    if (value != NULL || PyErr_Occurred())
        return value;
    return Py_NewRef(count == 2 ? args[1] : Py_None);
}

static PyObject *
arena_get_at(ArenaObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 3)
        return PyErr_Format(PyExc_TypeError, "get_at(key, now_ms, default)");
    long long now_ms = PyLong_AsLongLong(args[1]);
    if (now_ms == -1 && PyErr_Occurred())
        return NULL;
    PyObject *value = tiered_arena_lookup(self, args[0], now_ms, 1);
    return value != NULL || PyErr_Occurred() ? value : Py_NewRef(args[2]);
}

static PyObject *
arena_deadline(ArenaObject *self, PyObject *object)
{
    TieredKey key;
    ArenaValue found;
    if (tiered_arena_key(self, object, &key) < 0)
        return NULL;
    bool there = arena_find(&self->arena, &key.key, &found);
    tiered_key_end(&key);
    return there ? PyLong_FromLongLong(found.deadline) : Py_NewRef(Py_None);
}

static PyObject *
arena_peek(ArenaObject *self, PyObject *object)
{
    TieredKey key;
    ArenaValue found;
    if (tiered_arena_key(self, object, &key) < 0)
        return NULL;
    bool there = arena_find(&self->arena, &key.key, &found);
    tiered_key_end(&key);
    if (!there)
        return Py_NewRef(Py_None);
    int number = found.kind & CODEC_MASK;
    size_t bytes = arena_record_bytes(&self->arena, found.place);
    int64_t deadline = found.deadline;
    PyObject *payload = PyBytes_FromStringAndSize((const char *)found.data, (Py_ssize_t)found.size);
    return payload == NULL ? NULL : Py_BuildValue("iNLn", number, payload, (long long)deadline, (Py_ssize_t)bytes);
}

static PyObject *
arena_hit_method(ArenaObject *self, PyObject *object)
{
    TieredKey key;
    ArenaValue found;
    if (tiered_arena_key(self, object, &key) < 0)
        return NULL;
    bool there = arena_find(&self->arena, &key.key, &found);
    tiered_key_end(&key);
    if (!there) {
        PyErr_SetObject(PyExc_KeyError, object);
        return NULL;
    }
    arena_hit(&self->arena, found.place);
    Py_RETURN_NONE;
}

static PyObject *
arena_sample(ArenaObject *self, PyObject *shards)
{
    if (shards != Py_None && !PyObject_TypeCheck(shards, &TieredShardsType))
        return PyErr_Format(PyExc_TypeError, "sample() takes a Shards or None");
    Py_XSETREF(self->shards, shards == Py_None ? NULL : (TieredShards *)Py_NewRef(shards));
    Py_RETURN_NONE;
}

static PyObject *
arena_note_read(ArenaObject *self, PyObject *const *args, Py_ssize_t count)
{
    size_t size;
    TieredKey key;
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "note_read(key, size)");
    if (((size = PyLong_AsSize_t(args[1])) == (size_t)-1 && PyErr_Occurred()) || tiered_arena_key(self, args[0], &key) < 0)
        return NULL;
    if (self->shards != NULL)
        advise(self, &key.key, size, 1);
    tiered_key_end(&key);
    Py_RETURN_NONE;
}

static int
arena_contains(ArenaObject *self, PyObject *object)
{
    TieredKey key;
    ArenaValue found;
    if (tiered_arena_key(self, object, &key) < 0)
        return -1;
    bool there = arena_find(&self->arena, &key.key, &found);
    tiered_key_end(&key);
    return there;
}

int
tiered_arena_put(
    ArenaObject *self, PyObject *object, long codec, const unsigned char *payload, size_t size, long long deadline)
{
    TieredKey key;
    int kept = 0;
    if (tiered_arena_key(self, object, &key) < 0)
        return -1;
    if (codec < CODEC_BYTES || codec > CODEC_LAST) {
        arena_discard(&self->arena, &key.key); /* Of a later version: nothing here could read it. */
    } else {
        unsigned kind = (unsigned)codec;
        if (codec == CODEC_STR && is_ascii(payload, size))
            kind |= ASCII;
        if (self->shards != NULL)
            advise(self, &key.key, size, 0);
        kept = self->policy ? tiered_arena_ask(self, &key.key, size, deadline) : 0;
        if (kept == 0)
            kept = arena_put(&self->arena, &key.key, kind, payload, size, deadline);
    }
    tiered_key_end(&key);
    return kept;
}

int
tiered_arena_put_object(ArenaObject *self, PyObject *object, PyObject *codec, PyObject *payload, long long deadline)
{
    long number = PyLong_AsLong(codec);
    Py_buffer view;
    if ((number == -1 && PyErr_Occurred()) || PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE) < 0)
        return -1;
    int kept = tiered_arena_put(self, object, number, view.buf, (size_t)view.len, deadline);
    PyBuffer_Release(&view);
    return kept;
}

static PyObject *
arena_put_method(ArenaObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 4)
        return PyErr_Format(PyExc_TypeError, "put(key, codec, payload, deadline)");
    long long deadline = PyLong_AsLongLong(args[3]);
    if (deadline == -1 && PyErr_Occurred())
        return NULL;
    int kept = tiered_arena_put_object(self, args[0], args[1], args[2], deadline);
    return kept < 0 ? NULL : PyBool_FromLong(kept);
}

static PyObject *
arena_discard_method(ArenaObject *self, PyObject *object)
{
    TieredKey key;
    if (tiered_arena_key(self, object, &key) < 0)
        return NULL;
    bool there = arena_discard(&self->arena, &key.key);
    tiered_key_end(&key);
    return PyBool_FromLong(there);
}

static PyObject *
arena_encoded_keys(ArenaObject *self, PyObject *Py_UNUSED(ignored))
{
    Arena *a = &self->arena;
    PyObject *keys = PyList_New((Py_ssize_t)a->count); /* May collect garbage, and so change the arena. */
    if (keys == NULL)
        return NULL;
    Py_ssize_t at = 0;
    for (uint32_t place = arena_after(a, 0); place && at < PyList_GET_SIZE(keys); place = arena_after(a, place)) {
        ArenaValue value;
        ArenaKey key = arena_record(a, place, &value);
        PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)key.size + 1);
        if (bytes == NULL) {
            Py_DECREF(keys);
            return NULL;
        }
        PyBytes_AS_STRING(bytes)[0] = (char)key.code;
        memcpy(PyBytes_AS_STRING(bytes) + 1, key.data, key.size);
        PyList_SET_ITEM(keys, at++, bytes);
    }
    if (PyList_SetSlice(keys, at, PyList_GET_SIZE(keys), NULL) < 0)
        Py_CLEAR(keys);
    return keys;
}

static PyObject *
arena_keys_from(ArenaObject *self, PyObject *args)
{
    Arena *a = &self->arena;
    unsigned int place;
    Py_ssize_t most;
    if (!PyArg_ParseTuple(args, "In:keys_from", &place, &most))
        return NULL;
    PyObject *keys = PyList_New(0);
    if (keys == NULL)
        return NULL;
    /* Bytes are nothing that the collector tracks, so no other code runs, and the place stays what it is. */
    for (uint32_t next; PyList_GET_SIZE(keys) < most && (next = arena_after(a, place)) != 0; place = next) {
        ArenaValue value;
        ArenaKey key = arena_record(a, next, &value);
        PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)key.size + 1);
        if (bytes != NULL) {
            PyBytes_AS_STRING(bytes)[0] = (char)key.code;
            memcpy(PyBytes_AS_STRING(bytes) + 1, key.data, key.size);
        }
        if (bytes == NULL || PyList_Append(keys, bytes) < 0) {
            Py_XDECREF(bytes);
            Py_DECREF(keys);
            return NULL;
        }
        Py_DECREF(bytes);
    }
    uint32_t rest = arena_after(a, place) ? place : 0;
    return Py_BuildValue("NI", keys, (unsigned int)rest);
}

static PyObject *
arena_evict_method(ArenaObject *self, PyObject *Py_UNUSED(ignored))
{
    Arena *a = &self->arena;
    uint32_t place = arena_after(a, 0);
    if (place == 0)
        Py_RETURN_NONE;
    ArenaValue value;
    ArenaKey key = arena_record(a, place, &value);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)key.size + 1);
    if (bytes == NULL)
        return NULL;
    PyBytes_AS_STRING(bytes)[0] = (char)key.code;
    memcpy(PyBytes_AS_STRING(bytes) + 1, key.data, key.size);
    Py_ssize_t size = (Py_ssize_t)arena_record_bytes(a, place);
    arena_evict(a);
    return Py_BuildValue("Nn", bytes, size);
}

static PyObject *
arena_expire_method(ArenaObject *self, PyObject *args)
{
    long long now_ms;
    Py_ssize_t limit;
    if (!PyArg_ParseTuple(args, "Ln:expire", &now_ms, &limit))
        return NULL;
    return PyLong_FromSize_t(arena_expire(&self->arena, now_ms, limit < 0 ? 0 : (size_t)limit));
}

static PyObject *
arena_shrink_method(ArenaObject *self, PyObject *const *args, Py_ssize_t count)
{
    size_t bytes = SIZE_MAX;
    if (count > 1)
        return PyErr_Format(PyExc_TypeError, "shrink(bytes=None)");
    if (count && args[0] != Py_None && (bytes = PyLong_AsSize_t(args[0])) == (size_t)-1 && PyErr_Occurred())
        return NULL;
    bool objects = self->objects.used_bytes <= self->objects.bytes_max || objects_make_room(&self->objects, 0);
    tiered_arena_divide(self, 0);
    if (!tiered_arena_fit_policy(self))
        return NULL;
    size_t taken = self->objects.used_bytes, budget = self->arena.budget_bytes, wanted = bytes > taken ? bytes - taken : 0;
    if (self->policy != NULL && tiered_arena_ask_to_leave(self, 0, wanted < budget ? budget - wanted : 0) < 0)
        return NULL;
    return PyBool_FromLong(arena_shrink(&self->arena, bytes > taken ? bytes - taken : 0) && objects);
}

static PyObject *
arena_clear_method(ArenaObject *self, PyObject *Py_UNUSED(ignored))
{
    arena_clear(&self->arena);
    objects_clear(&self->objects);
    tiered_arena_divide(self, 0);
    Py_RETURN_NONE;
}

static PyObject *
arena_check_method(ArenaObject *self, PyObject *Py_UNUSED(ignored))
{
    const char *wrong = arena_check(&self->arena);
    if (wrong == NULL && !objects_add_up(&self->objects))
        wrong = "the bytes of objects do not add up";
    return PyUnicode_FromString(wrong ? wrong : "");
}

static Py_ssize_t
arena_length(ArenaObject *self)
{
    return arena_after(&self->arena, 0) ? (Py_ssize_t)self->arena.count : 0;
}

static PyObject *
get_budget(ArenaObject *self, void *closure)
{
    return PyLong_FromSize_t(self->budget_bytes);
}

static int
set_budget(ArenaObject *self, PyObject *value, void *closure)
{
    Py_ssize_t bytes = value == NULL ? -1 : PyLong_AsSsize_t(value);
    if (bytes < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a budget is not negative");
        return -1;
    }
    /* All of it first, so that the address space is there whenever objects leave their part. */
    if (!arena_resize(&self->arena, (size_t)bytes)) {
        no_address_space();
        return -1;
    }
    self->budget_bytes = (size_t)bytes;
    tiered_arena_limit_objects(self);
    return 0;
}

static PyObject *
get_used(ArenaObject *self, void *closure)
{
    return PyLong_FromSize_t(arena_used_bytes(&self->arena) + self->objects.used_bytes);
}

static PyObject *
get_entry_bytes(ArenaObject *self, void *closure)
{
    return PyLong_FromUnsignedLongLong(self->arena.segments.live_bytes + self->arena.outside_bytes);
}

static PyObject *
get_capacity(ArenaObject *self, void *closure)
{
    return PyLong_FromSize_t(arena_capacity(&self->arena));
}

static PyObject *
get_ghost_bytes(ArenaObject *self, void *closure)
{
    return PyLong_FromSize_t(self->arena.budget_bytes / TIERED_GHOST_SHARE);
}

static PyObject *
get_address(ArenaObject *self, void *closure)
{
    return PyLong_FromVoidPtr(self->arena.segments.map);
}

static PyGetSetDef arena_getset[] = {
    {"budget_bytes", (getter)get_budget, (setter)set_budget, "What it may use; shrink() enforces a smaller one.", NULL},
    {"used_bytes", (getter)get_used, NULL, "Memory that it takes: segments, index, values outside, tables.", NULL},
    {"capacity_bytes", (getter)get_capacity, NULL, "What the records may take.", NULL},
    {"ghost_bytes", (getter)get_ghost_bytes, NULL, "What the policy may take for what it remembers.", NULL},
    {"entry_bytes", (getter)get_entry_bytes, NULL, "Memory of the records in it.", NULL},
    {"address", (getter)get_address, NULL, "Where the segments are, for tests that damage them.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

#define COUNTER(name, field, type, doc) {name, type, offsetof(ArenaObject, arena.field), READONLY, doc}
static PyMemberDef arena_members[] = {
    COUNTER("payload_bytes", payload_bytes, T_ULONGLONG, "Bytes of encoded keys and values."),
    COUNTER("evictions", evictions, T_ULONGLONG, "Records that left for others."),
    COUNTER("evicted_bytes", evicted_bytes, T_ULONGLONG, "What they took."),
    COUNTER("moved_bytes", moved_bytes, T_ULONGLONG, "Bytes of records that were moved."),
    COUNTER("outside_bytes", outside_bytes, T_PYSSIZET, "Memory of values outside the segments."),
    COUNTER("expiring", expiring, T_PYSSIZET, "Records that have a deadline."),
    COUNTER("segment_bytes", segments.segment_bytes, T_PYSSIZET, "Size of a segment."),
    {"object_hits", T_PYSSIZET, offsetof(ArenaObject, objects.hits), READONLY, "Hits that were copies of objects."},
    {"object_bytes", T_PYSSIZET, offsetof(ArenaObject, objects.used_bytes), READONLY, "Memory of objects, and of their table."},
    {"objects", T_PYSSIZET, offsetof(ArenaObject, objects.count), READONLY, "How many objects are kept."},
    {NULL, 0, 0, 0, NULL},
};

#define METHOD(name, function, flags, doc) {name, (PyCFunction)(void (*)(void))(function), flags, doc}
static PyMethodDef arena_methods[] = {
    METHOD("get", arena_get, METH_FASTCALL, "get(key, default=None): the value of a key that has no deadline; counts as a use."),
    METHOD("get_at", arena_get_at, METH_FASTCALL, "get_at(key, now_ms, default): the value of a key whose deadline has not passed."),
    METHOD("get_many", tiered_arena_get_many, METH_FASTCALL, "get_many(keys, found, absent): `get` into a dict; the keys without a value."),
    METHOD("deadline", arena_deadline, METH_O, "deadline(key): in milliseconds, 0 for none; None if the key is not there."),
    METHOD("hit", arena_hit_method, METH_O, "hit(key): note a use; KeyError if the key is not there."),
    METHOD("sample", arena_sample, METH_O, "sample(shards): tell it of uses; None: nobody."),
    METHOD("note_read", arena_note_read, METH_FASTCALL, "note_read(key, size): tell it of a read that was answered elsewhere."),
    METHOD("keep_objects", tiered_arena_keep_objects, METH_VARARGS,
        "keep_objects(bytes, entries_max, value_bytes_max, is_immutable): keep decoded values within so many bytes."),
    METHOD("peek", arena_peek, METH_O, "peek(key): codec, payload, deadline and bytes taken, or None; is no use of it."),
    METHOD("put", arena_put_method, METH_FASTCALL, "put(key, codec, payload, deadline): whether it is kept."),
    METHOD("put_many", tiered_arena_put_many, METH_FASTCALL, "put_many(keys, codecs, payloads, deadline, evictions_max): `put` for each, until so many were evicted for them."),
    METHOD("discard", arena_discard_method, METH_O, "discard(key): forget it; whether it was there."),
    METHOD("discard_many", tiered_arena_discard_many, METH_O, "discard_many(keys): `discard` for each of a list."),
    METHOD("encoded_keys", arena_encoded_keys, METH_NOARGS, "encoded_keys(): all, the one used longest ago first."),
    METHOD("keys_from", arena_keys_from, METH_VARARGS,
        "keys_from(place, most): encoded keys from a place on, 0 first, the one used longest ago first; and where to go on, 0 at the end."),
    METHOD("evict", arena_evict_method, METH_NOARGS, "evict(): the encoded key used longest ago and its bytes, which leaves."),
    METHOD("expire", arena_expire_method, METH_VARARGS, "expire(now_ms, limit): forget what is due; how many."),
    METHOD("shrink", arena_shrink_method, METH_FASTCALL, "shrink(bytes=None): evict down to so many, or to the budget; False if there is more to do."),
    METHOD("clear", arena_clear_method, METH_NOARGS, "clear(): forget everything, and give the memory back."),
    METHOD("wrong", arena_check_method, METH_NOARGS, "wrong(): what does not add up, '' if all does; looks at every record."),
    METHOD("steer", tiered_arena_steer, METH_VARARGS,
        "steer(policy, uses_max, sparing, hit_to, sketched): whom it asks, None: nobody, and what a hit does."),
    METHOD("queue_bytes", tiered_arena_queue_bytes, METH_O, "queue_bytes(queue): what its records take."),
    METHOD("queue_hits", tiered_arena_queue_hits, METH_O, "queue_hits(queue): hits on records in it, while a policy was asked."),
    METHOD("oldest", tiered_arena_oldest, METH_O, "oldest(queue): fingerprint, bytes, uses, deadline of its oldest, or None."),
    METHOD("shift", tiered_arena_shift, METH_FASTCALL, "shift(queue, to, uses): its oldest becomes the newest of another."),
    METHOD("drop", tiered_arena_drop, METH_O, "drop(queue): evict its oldest."),
    METHOD("pick", tiered_arena_pick, METH_O, "pick(number): `oldest` of a record that a random number stands for."),
    METHOD("drop_picked", tiered_arena_drop_picked, METH_O, "drop_picked(number): evict it."),
    METHOD("age_picked", tiered_arena_age_picked, METH_O, "age_picked(number): it loses one of its uses."),
    METHOD("see", tiered_arena_see, METH_O, "see(fingerprint): count an access in the sketch."),
    METHOD("seen", tiered_arena_seen, METH_O, "seen(fingerprint): how often that was accessed lately."),
    {NULL, NULL, 0, NULL},
};

static PySequenceMethods arena_as_sequence = {
    .sq_length = (lenfunc)arena_length,
    .sq_contains = (objobjproc)arena_contains,
};

PyTypeObject TieredArenaType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tiered._native.Arena",
    .tp_doc = "Arena(budget_bytes, encode_key, decoders, seed): hot records in a memory of their own.",
    .tp_basicsize = sizeof(ArenaObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = arena_new,
    .tp_traverse = (traverseproc)arena_traverse,
    .tp_clear = (inquiry)arena_tp_clear,
    .tp_dealloc = (destructor)arena_dealloc,
    .tp_methods = arena_methods,
    .tp_members = arena_members,
    .tp_getset = arena_getset,
    .tp_as_sequence = &arena_as_sequence,
};

int
tiered_add_arena(PyObject *module)
{
    return PyModule_AddType(module, &TieredArenaType);
}
