/* See key.h. */
#include "key.h"

#include <string.h>

#define CODE_BYTES 0x01
#define CODE_STR 0x02
#define CODE_TUPLE 0x05
#define CODE_INT_ZERO 0x14
#define DEPTH_MAX 32

/* The code of an integer and its bytes, big-endian and of the fewest; returns how many those are. */
static unsigned
encode_int(long long number, unsigned char *code, unsigned char *bytes)
{
    unsigned long long magnitude = number < 0 ? 0 - (unsigned long long)number : (unsigned long long)number;
    unsigned size = 0;
    for (unsigned long long rest = magnitude; rest; rest >>= 8)
        size++;
    if (number < 0)
        magnitude = ~magnitude;
    for (unsigned at = size; at-- > 0; magnitude >>= 8)
        bytes[at] = (unsigned char)magnitude;
    *code = (unsigned char)(number < 0 ? CODE_INT_ZERO - size : CODE_INT_ZERO + size);
    return size;
}

/* UTF-8 of a text that is not ASCII, a new object: CPython's own copy would stay in the text. */
static PyObject *
utf8_of(PyObject *text)
{
    PyObject *bytes = PyUnicode_AsUTF8String(text);
    if (bytes == NULL && PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) {
        PyErr_Clear();
        bytes = PyUnicode_AsEncodedString(text, "utf-8", "surrogatepass");
    }
    return bytes;
}

/* Appends text or bytes as an element; false if it does not fit. */
static int
append_escaped(unsigned char *to, size_t *used, unsigned char code, const unsigned char *data, size_t size)
{
    size_t at = *used;
    if (size >= TIERED_KEY_SCRATCH || at + 2 * size + 2 > TIERED_KEY_SCRATCH)
        return 0;
    to[at++] = code;
    for (size_t i = 0; i < size; i++) {
        to[at++] = data[i];
        if (data[i] == 0)
            to[at++] = 0xFF;
    }
    to[at++] = 0;
    *used = at;
    return 1;
}

static int
append_tuple(unsigned char *to, size_t *used, PyObject *elements, int depth)
{
    if (depth > DEPTH_MAX)
        return 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(elements); i++) {
        PyObject *element = PyTuple_GET_ITEM(elements, i);
        int done;
        if (PyUnicode_CheckExact(element)) {
            if (PyUnicode_READY(element) < 0)
                return -1;
            if (PyUnicode_IS_ASCII(element)) {
                done = append_escaped(to, used, CODE_STR, PyUnicode_DATA(element), (size_t)PyUnicode_GET_LENGTH(element));
            } else {
                PyObject *utf8 = utf8_of(element);
                if (utf8 == NULL)
                    return -1;
                done = append_escaped(to, used, CODE_STR, (unsigned char *)PyBytes_AS_STRING(utf8), (size_t)PyBytes_GET_SIZE(utf8));
                Py_DECREF(utf8);
            }
        } else if (PyLong_CheckExact(element) || PyBool_Check(element)) {
            int overflow;
            long long number = PyLong_AsLongLongAndOverflow(element, &overflow);
            if (overflow || *used + 9 > TIERED_KEY_SCRATCH)
                return 0;
            *used += 1 + encode_int(number, to + *used, to + *used + 1);
            done = 1;
        } else if (PyBytes_CheckExact(element)) {
            done = append_escaped(to, used, CODE_BYTES, (unsigned char *)PyBytes_AS_STRING(element), (size_t)PyBytes_GET_SIZE(element));
        } else if (PyTuple_CheckExact(element)) {
            if (*used + 2 > TIERED_KEY_SCRATCH)
                return 0;
            to[(*used)++] = CODE_TUPLE;
            done = append_tuple(to, used, element, depth + 1);
            if (done == 1 && *used == TIERED_KEY_SCRATCH)
                return 0;
            if (done == 1)
                to[(*used)++] = 0;
        } else {
            return 0;
        }
        if (done != 1)
            return done;
    }
    return 1;
}

void
tiered_key_of_bytes(PyObject *bytes, TieredKey *encoded)
{
    const unsigned char *data = (unsigned char *)PyBytes_AS_STRING(bytes);
    size_t size = (size_t)PyBytes_GET_SIZE(bytes);
    encoded->owner = Py_NewRef(bytes);
    encoded->key = size ? (ArenaKey){data + 1, size - 1, data[0]} : (ArenaKey){data, 0, 0};
}

int
tiered_key(PyObject *object, TieredKey *encoded)
{
    encoded->owner = NULL;
    if (PyUnicode_CheckExact(object)) {
        if (PyUnicode_READY(object) < 0)
            return -1;
        if (PyUnicode_IS_ASCII(object)) {
            encoded->key = (ArenaKey){PyUnicode_DATA(object), (size_t)PyUnicode_GET_LENGTH(object), CODE_STR};
        } else {
            encoded->owner = utf8_of(object);
            if (encoded->owner == NULL)
                return -1;
            encoded->key = (ArenaKey){(unsigned char *)PyBytes_AS_STRING(encoded->owner),
                (size_t)PyBytes_GET_SIZE(encoded->owner), CODE_STR};
        }
    } else if (PyLong_CheckExact(object) || PyBool_Check(object)) {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(object, &overflow);
        if (overflow)
            return 0;
        unsigned size = encode_int(number, &encoded->scratch[0], &encoded->scratch[1]);
        encoded->key = (ArenaKey){encoded->scratch + 1, size, encoded->scratch[0]};
    } else if (PyBytes_CheckExact(object)) {
        encoded->key = (ArenaKey){(unsigned char *)PyBytes_AS_STRING(object), (size_t)PyBytes_GET_SIZE(object), CODE_BYTES};
    } else if (PyTuple_CheckExact(object)) {
        size_t used = 0;
        int done = append_tuple(encoded->scratch, &used, object, 1);
        if (done != 1)
            return done;
        encoded->key = (ArenaKey){encoded->scratch, used, CODE_TUPLE};
    } else {
        return 0;
    }
    if (encoded->key.size < ARENA_KEY_BYTES_MAX)
        return 1;
    tiered_key_end(encoded); /* Too long for a key: Python says so. */
    return 0;
}
