/* An encoded key to look up in an arena: of text in ASCII and of bytes, which are their own encoding but for its first
 * byte, nothing is copied. */
#ifndef TIERED_KEY_H
#define TIERED_KEY_H

#include "arena.h"
#include "keys.h"

typedef struct {
    ArenaKey key;    /* Points into the key object, into `bytes` or into `owner`. */
    PyObject *owner; /* NULL if it is neither of these. */
    TieredKeyBytes bytes;
} TieredKey;

/* 1: done, and to be let go of; 0: Python knows.  No Python code runs. */
static inline int
tiered_key(PyObject *object, TieredKey *encoded)
{
    const unsigned char *data;
    Py_ssize_t size;
    unsigned char code;
    encoded->owner = NULL;
    if (PyUnicode_CheckExact(object) && PyUnicode_IS_COMPACT_ASCII(object)) {
        data = (const unsigned char *)PyUnicode_DATA(object);
        size = PyUnicode_GET_LENGTH(object);
        code = 0x02;
    } else if (PyBytes_CheckExact(object)) {
        data = (const unsigned char *)PyBytes_AS_STRING(object);
        size = PyBytes_GET_SIZE(object);
        code = 0x01;
    } else {
        if (!tiered_key_bytes(object, &encoded->bytes))
            return 0;
        data = encoded->bytes.data + 1;
        size = encoded->bytes.size - 1;
        code = encoded->bytes.data[0];
    }
    encoded->key = (ArenaKey){data, (size_t)size, code};
    return size < (Py_ssize_t)ARENA_KEY_BYTES_MAX;
}

/* An encoded key as it is. */
static inline void
tiered_key_of_bytes(PyObject *bytes, TieredKey *encoded)
{
    const unsigned char *data = (const unsigned char *)PyBytes_AS_STRING(bytes);
    size_t size = (size_t)PyBytes_GET_SIZE(bytes);
    encoded->owner = Py_NewRef(bytes);
    encoded->key = size ? (ArenaKey){data + 1, size - 1, data[0]} : (ArenaKey){data, 0, 0};
}

static inline void
tiered_key_end(TieredKey *encoded)
{
    Py_XDECREF(encoded->owner);
}

#endif
