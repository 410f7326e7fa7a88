/* Records in a mapped segment of the journal: `Records`, which writes and reads them.
 *
 * The layout is described, once, in `journal.py`, whose `Journal` and `Segment` are the twins.  Arguments of other types than
 * bytes and int are not judged here: None says that the twin is to do it.  Nothing is written outside the mapping, whatever the
 * position, and nothing of a batch before all of it was looked at; no other code runs in between. */
#include "checksum.h"

#include <string.h>

enum { HEAD_BYTES = 40, MAGIC = 0x7E5D, MORE = 1 };

typedef struct {
    PyObject_HEAD
    Py_buffer mapping;
    uint32_t seed;
} Records;

typedef struct {
    int64_t position, sequence, synced;
} Place;

typedef struct {
    long kind, flags, codec;
    int64_t deadline;
    PyObject *key, *payload;
} Record;

static inline void
put_number(unsigned char *at, uint64_t number, int count)
{
    memcpy(at, &number, (size_t)count); /* Little-endian, as the module checks when it is loaded. */
}

static inline uint64_t
number_at(const unsigned char *at, int count)
{
    uint64_t number = 0;
    memcpy(&number, at, (size_t)count);
    return number;
}

/* Whether an argument is an int of the range; no exception is left. */
static int
take(PyObject *item, int64_t lowest, int64_t highest, int64_t *number)
{
    int overflow;
    if (!PyLong_CheckExact(item))
        return 0;
    long long found = PyLong_AsLongLongAndOverflow(item, &overflow);
    *number = found;
    return !overflow && found >= lowest && found <= highest;
}

static int
take_record(PyObject *kind, PyObject *codec, PyObject *deadline, PyObject *key, PyObject *payload, Record *record)
{
    int64_t kind_number, codec_number;
    if (!take(kind, 0, 0xFF, &kind_number) || !take(codec, 0, 0xFF, &codec_number)
        || !take(deadline, INT64_MIN, INT64_MAX, &record->deadline) || !PyBytes_CheckExact(key) || !PyBytes_CheckExact(payload)
        || PyBytes_GET_SIZE(key) > 0xFFFF || PyBytes_GET_SIZE(payload) > 0xFFFFFFFFLL)
        return 0;
    record->kind = (long)kind_number;
    record->codec = (long)codec_number;
    record->key = key;
    record->payload = payload;
    return 1;
}

static inline Py_ssize_t
size_of(PyObject *key, PyObject *payload)
{
    return HEAD_BYTES + PyBytes_GET_SIZE(key) + PyBytes_GET_SIZE(payload);
}

/* Write one record, for which there is room. */
static void
write_record(Records *self, const Place *place, const Record *record)
{
    Py_ssize_t key_size = PyBytes_GET_SIZE(record->key), payload_size = PyBytes_GET_SIZE(record->payload);
    const unsigned char *key = (const unsigned char *)PyBytes_AS_STRING(record->key);
    const unsigned char *payload = (const unsigned char *)PyBytes_AS_STRING(record->payload);
    unsigned char head[HEAD_BYTES];
    put_number(head + 4, MAGIC, 2);
    put_number(head + 6, (uint64_t)record->kind, 1);
    put_number(head + 7, (uint64_t)record->flags, 1);
    put_number(head + 8, (uint64_t)key_size, 2);
    put_number(head + 10, (uint64_t)record->codec, 1);
    put_number(head + 11, 0, 1);
    put_number(head + 12, (uint64_t)payload_size, 4);
    put_number(head + 16, (uint64_t)place->sequence, 8);
    put_number(head + 24, (uint64_t)place->synced, 8);
    put_number(head + 32, (uint64_t)record->deadline, 8);
    /* Of what was to be written, not of what was: a checksum over the mapping would bless whatever came between. */
    uint32_t crc = tiered_crc32(self->seed, head + 4, HEAD_BYTES - 4);
    crc = tiered_crc32(crc, key, (size_t)key_size);
    crc = tiered_crc32(crc, payload, (size_t)payload_size);
    put_number(head, crc, 4);
    unsigned char *at = (unsigned char *)self->mapping.buf + place->position;
    memcpy(at + HEAD_BYTES, key, (size_t)key_size);
    memcpy(at + HEAD_BYTES + key_size, payload, (size_t)payload_size);
    memcpy(at, head, HEAD_BYTES);
}

static int
take_place(Records *self, PyObject *const *args, Place *place)
{
    return take(args[0], 0, self->mapping.len, &place->position) && take(args[1], 0, INT64_MAX, &place->sequence)
        && take(args[2], 0, INT64_MAX, &place->synced);
}

static int
refuse_readonly(Records *self)
{
    if (self->mapping.readonly)
        PyErr_SetString(PyExc_TypeError, "the segment is mapped for reading only");
    return self->mapping.readonly;
}

static PyObject *
no_room(void)
{
    PyErr_SetString(PyExc_ValueError, "the segment has no room for this");
    return NULL;
}

static PyObject *
append(Records *self, PyObject *const *args, Py_ssize_t count)
{
    Place place;
    Record record;
    int64_t flags;
    if (count != 9)
        return PyErr_Format(PyExc_TypeError, "append() takes 9 arguments");
    if (refuse_readonly(self))
        return NULL;
    if (!take_place(self, args, &place) || !take(args[4], 0, 0xFF, &flags)
        || !take_record(args[3], args[5], args[6], args[7], args[8], &record))
        Py_RETURN_NONE;
    record.flags = (long)flags;
    Py_ssize_t size = size_of(record.key, record.payload);
    if (size > self->mapping.len - place.position)
        return no_room();
    write_record(self, &place, &record);
    return PyLong_FromLongLong(place.position + size);
}

static PyObject *
append_batch(Records *self, PyObject *const *args, Py_ssize_t count)
{
    Place place;
    Record record;
    if (count != 8)
        return PyErr_Format(PyExc_TypeError, "append_batch() takes 8 arguments");
    if (refuse_readonly(self))
        return NULL;
    if (!PyList_CheckExact(args[3]) || !take_place(self, args, &place))
        Py_RETURN_NONE;
    Py_ssize_t rows = PyList_GET_SIZE(args[3]);
    PyObject *positions = PyList_New(rows);
    if (positions == NULL)
        return NULL;
    /* From here on nothing is allocated that could run other code, so that the columns stay as they are. */
    for (int column = 3; column < 8; column++)
        if (!PyList_CheckExact(args[column]) || PyList_GET_SIZE(args[column]) != rows) {
            Py_DECREF(positions);
            Py_RETURN_NONE;
        }
#define ROW(at)                                                                                                              \
    take_record(PyList_GET_ITEM(args[3], at), PyList_GET_ITEM(args[4], at), PyList_GET_ITEM(args[5], at),                    \
                PyList_GET_ITEM(args[6], at), PyList_GET_ITEM(args[7], at), &record)
    int64_t end = place.position;
    for (Py_ssize_t at = 0; at < rows; at++) {
        PyObject *position = ROW(at) ? PyLong_FromLongLong(end) : NULL;
        if (position == NULL) {
            Py_DECREF(positions);
            if (PyErr_Occurred())
                return NULL;
            Py_RETURN_NONE;
        }
        PyList_SET_ITEM(positions, at, position);
        Py_ssize_t size = size_of(record.key, record.payload);
        if (size > self->mapping.len - end) {
            Py_DECREF(positions);
            return no_room();
        }
        end += size;
    }
    for (Py_ssize_t at = 0; at < rows; at++) {
        (void)ROW(at);
        record.flags = at < rows - 1 ? MORE : 0;
        place.sequence += at > 0;
        write_record(self, &place, &record);
        place.position += size_of(record.key, record.payload);
    }
#undef ROW
    return positions;
}

/* (codec, deadline, key, payload) of the record at a position, None if there is no valid one.  The copies are what is judged: a
 * reader's mapping may be written by another process meanwhile. */
static PyObject *
record_at(Records *self, PyObject *argument)
{
    int64_t position;
    unsigned char head[HEAD_BYTES];
    if (!take(argument, 0, self->mapping.len - HEAD_BYTES, &position))
        Py_RETURN_NONE;
    const char *at = (const char *)self->mapping.buf + position;
    memcpy(head, at, HEAD_BYTES);
    Py_ssize_t key_size = (Py_ssize_t)number_at(head + 8, 2), payload_size = (Py_ssize_t)number_at(head + 12, 4);
    if (key_size + payload_size > self->mapping.len - HEAD_BYTES - position)
        Py_RETURN_NONE;
    PyObject *key = PyBytes_FromStringAndSize(at + HEAD_BYTES, key_size);
    PyObject *payload = key == NULL ? NULL : PyBytes_FromStringAndSize(at + HEAD_BYTES + key_size, payload_size);
    if (payload == NULL) {
        Py_XDECREF(key);
        return NULL;
    }
    uint32_t crc = tiered_crc32(self->seed, head + 4, HEAD_BYTES - 4);
    crc = tiered_crc32(crc, (const unsigned char *)PyBytes_AS_STRING(key), (size_t)key_size);
    crc = tiered_crc32(crc, (const unsigned char *)PyBytes_AS_STRING(payload), (size_t)payload_size);
    if (crc != number_at(head, 4)) {
        Py_DECREF(key);
        Py_DECREF(payload);
        Py_RETURN_NONE;
    }
    return Py_BuildValue("(iLNN)", (int)head[10], (long long)number_at(head + 32, 8), key, payload);
}

static PyObject *
new_records(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *mapping;
    unsigned int seed;
    if (!PyArg_ParseTuple(args, "OI:Records", &mapping, &seed))
        return NULL;
    Records *self = (Records *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->seed = seed;
    /* Of a segment that another program writes there is a mapping that can only be read. */
    if (PyObject_GetBuffer(mapping, &self->mapping, PyBUF_SIMPLE) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void
dealloc(Records *self)
{
    PyBuffer_Release(&self->mapping);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef methods[] = {
    {"append", (PyCFunction)(void (*)(void))append, METH_FASTCALL,
     "append(position, sequence, synced, kind, flags, codec, deadline, key, payload): the record's end."},
    {"append_batch", (PyCFunction)(void (*)(void))append_batch, METH_FASTCALL,
     "append_batch(position, sequence, synced, kinds, codecs, deadlines, keys, payloads): the records' positions."},
    {"record_at", (PyCFunction)record_at, METH_O, "record_at(position): (codec, deadline, key, payload) or None."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject RecordsType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tiered._native.Records",
    .tp_doc = "Records(mapping, seed): the records of a mapped segment; of one mapped for reading, record_at only.",
    .tp_basicsize = sizeof(Records),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_methods = methods,
    .tp_new = new_records,
    .tp_dealloc = (destructor)dealloc,
};

int
tiered_add_journal(PyObject *module)
{
    return PyModule_AddType(module, &RecordsType);
}
