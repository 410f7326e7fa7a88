/* Records of the cold tier taken apart: the twin is `unpack` of tiered/record.py, which has the layout. */
#include "record.h"

#include "checksum.h"

#include <string.h>

static const char TOO_SHORT[] = "record shorter than its header", NEWER[] = "record version %d, newer than this program";

const char *
tiered_record(const unsigned char *key, size_t key_size, const unsigned char *data, size_t size, TieredRecord *record)
{
    if (size < RECORD_HEADER_BYTES)
        return TOO_SHORT;
    uint32_t expected;
    uint16_t dictionary;
    memcpy(&expected, data, 4);
    if (tiered_crc32(tiered_crc32(0, key, key_size), data + 4, size - 4) != expected)
        return "record checksum mismatch";
    if (data[4] != RECORD_VERSION)
        return NEWER;
    memcpy(&dictionary, data + 8, 2);
    *record = (TieredRecord){.codec = data[5], .compression = data[6], .flags = data[7], .dictionary = dictionary};
    const unsigned char *at = data + RECORD_HEADER_BYTES, *end = data + size;
    if (record->flags & RECORD_IS_MARKER)
        return NULL;
    if ((size_t)(end - at) < (record->flags & RECORD_HAS_DEADLINE ? 8u : 0u) + (record->flags & RECORD_HAS_KEY ? 2u : 0u))
        return TOO_SHORT;
    if (record->flags & RECORD_HAS_DEADLINE) {
        memcpy(&record->deadline, at, 8);
        at += 8;
    }
    if (record->flags & RECORD_HAS_KEY) {
        size_t full = at[0] | (size_t)at[1] << 8;
        at += 2;
        record->full_key = at;
        record->full_key_size = full < (size_t)(end - at) ? full : (size_t)(end - at);
        at += record->full_key_size;
    }
    record->body = at;
    record->body_size = (size_t)(end - at);
    return NULL;
}

static PyObject *
bytes_of(const unsigned char *data, size_t size)
{
    return PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
}

static PyObject *
unpack(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 3 || !PyType_Check(args[0]) || !PyType_IsSubtype((PyTypeObject *)args[0], &PyTuple_Type)
        || !PyBytes_Check(args[1]) || !PyBytes_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "unpack() takes a type of tuple and two bytes");
        return NULL;
    }
    TieredRecord record;
    const char *wrong = tiered_record(
        (const unsigned char *)PyBytes_AS_STRING(args[1]), (size_t)PyBytes_GET_SIZE(args[1]),
        (const unsigned char *)PyBytes_AS_STRING(args[2]), (size_t)PyBytes_GET_SIZE(args[2]), &record);
    if (wrong == NEWER)
        return PyErr_Format(PyExc_ValueError, NEWER, (int)(unsigned char)PyBytes_AS_STRING(args[2])[4]);
    if (wrong != NULL) {
        PyErr_SetString(PyExc_ValueError, wrong);
        return NULL;
    }
    if (record.flags & RECORD_IS_MARKER)
        Py_RETURN_NONE;
    PyTypeObject *type = (PyTypeObject *)args[0];
    PyObject *parts = type->tp_alloc(type, 6);
    if (parts == NULL)
        return NULL;
    PyTuple_SET_ITEM(parts, 0, PyLong_FromUnsignedLong(record.codec));
    PyTuple_SET_ITEM(parts, 1, PyLong_FromUnsignedLong(record.compression));
    PyTuple_SET_ITEM(parts, 2, PyLong_FromUnsignedLong(record.dictionary));
    PyTuple_SET_ITEM(parts, 3, PyLong_FromLongLong(record.deadline));
    PyTuple_SET_ITEM(parts, 4, bytes_of(record.full_key, record.full_key_size));
    PyTuple_SET_ITEM(parts, 5, bytes_of(record.body, record.body_size));
    for (Py_ssize_t i = 0; i < 6; i++)
        if (PyTuple_GET_ITEM(parts, i) == NULL) {
            Py_DECREF(parts);
            return NULL;
        }
    return parts;
}

static PyMethodDef methods[] = {
    {"unpack", (PyCFunction)(void (*)(void))unpack, METH_FASTCALL, "See tiered.record."},
    {NULL, NULL, 0, NULL},
};

int
tiered_add_record(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
