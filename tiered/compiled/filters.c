#include "filters.h"

#include "checksum.h"

enum { BLOCK_BYTES = 64, PROBES = 6 };

/* A key's bits: one block, and six numbers of nine bits each. */
typedef struct {
    size_t block;
    uint64_t spread;
} Bits;

static inline Bits
bits_of(size_t size, const unsigned char *key, size_t key_size)
{
    uint64_t mixed = tiered_crc32(0, key, key_size);
    return (Bits){(size_t)(mixed * (size / BLOCK_BYTES) >> 32) * BLOCK_BYTES, mixed * 0x9E3779B97F4A7C15u};
}

static inline unsigned
bit_of(Bits bits, int probe)
{
    return (unsigned)(bits.spread >> (64 - 9 * (probe + 1))) & (8 * BLOCK_BYTES - 1);
}

bool
tiered_filter_has(const unsigned char *filter, size_t size, const unsigned char *key, size_t key_size)
{
    if (size < BLOCK_BYTES)
        return true;
    Bits bits = bits_of(size, key, key_size);
    const unsigned char *block = filter + bits.block;
    for (int probe = 0; probe < PROBES; probe++) {
        unsigned bit = bit_of(bits, probe);
        if (!(block[bit >> 3] >> (bit & 7) & 1))
            return false;
    }
    return true;
}

static const unsigned char *
data_of(PyObject *bytes)
{
    return (const unsigned char *)PyBytes_AS_STRING(bytes);
}

static size_t
size_of(PyObject *bytes)
{
    return (size_t)PyBytes_GET_SIZE(bytes);
}

static PyObject *
filter_has(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_CheckExact(args[0]) || !PyBytes_CheckExact(args[1]))
        return PyErr_Format(PyExc_TypeError, "filter_has(bits, key), both bytes");
    return PyBool_FromLong(tiered_filter_has(data_of(args[0]), size_of(args[0]), data_of(args[1]), size_of(args[1])));
}

static PyObject *
filter_add(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyByteArray_CheckExact(args[0]) || PyByteArray_GET_SIZE(args[0]) < BLOCK_BYTES)
        return PyErr_Format(PyExc_TypeError, "filter_add(bits, keys), a bytearray of a block or more and a sequence");
    PyObject *keys = PySequence_Fast(args[1], "a sequence of bytes");
    for (Py_ssize_t i = 0; keys && i < PySequence_Fast_GET_SIZE(keys); i++) {
        PyObject *key = PySequence_Fast_GET_ITEM(keys, i);
        if (!PyBytes_CheckExact(key)) {
            PyErr_SetString(PyExc_TypeError, "a key that is not bytes");
            Py_CLEAR(keys);
            break;
        }
        Bits bits = bits_of((size_t)PyByteArray_GET_SIZE(args[0]), data_of(key), size_of(key));
        unsigned char *block = (unsigned char *)PyByteArray_AS_STRING(args[0]) + bits.block;
        for (int probe = 0; probe < PROBES; probe++) {
            unsigned bit = bit_of(bits, probe);
            block[bit >> 3] |= (unsigned char)(1u << (bit & 7));
        }
    }
    if (keys == NULL)
        return NULL;
    Py_DECREF(keys);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"filter_add", (PyCFunction)(void (*)(void))filter_add, METH_FASTCALL, "filter_add(bits, keys): tiered.filters.add."},
    {"filter_has", (PyCFunction)(void (*)(void))filter_has, METH_FASTCALL, "filter_has(bits, key): tiered.filters.has."},
    {NULL, NULL, 0, NULL},
};

int
tiered_add_filters(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
