/* Values to payloads: `Encoder`, for the types that nearly all values are made of.
 *
 * Its twin, `codec._encode`, defines the bytes.  The encoder writes the same for None, bool, int of up to 64 bits, float,
 * str, bytes, list, tuple and dict, each of exactly that type, and refuses nothing: a value with anything else in
 * it (another type, a lone surrogate, a longer int, a tuple as a key, more depth, more bytes) is NOT_MINE, and goes to the twin as a whole.
 *
 * No other code runs from the first look at a value to the last.  The interpreter lock is held; only exact built-in types are
 * touched, by macros and functions that call no method of an object; nothing the garbage collector tracks is allocated, so that
 * no finalizer runs.  So borrowed references stay valid and no container changes its size meanwhile.  The one exception that
 * may be made, for an int too large, is made on the way out, when no container is looked at any more. */
#include "utf8.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { BYTES = 1, STR = 2, MSGPACK = 3 };
enum { DONE = 0, NOT_MINE = 1, FAILED = -1 };
enum { TUPLE = 1, DEPTH_MAX = 128, EXTENSION_DEPTH_MAX = 16, EXTENSION_HEAD_MAX = 6, INITIAL_BYTES = 2048 };

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *twin;
    Py_ssize_t bytes_max;
} Encoder;

/* What is written so far: in the caller's stack frame while it is small, then on the heap. */
typedef struct {
    unsigned char *data;
    Py_ssize_t size, capacity, bytes_max;
    unsigned char *heap;
    int depth, extension_depth;
} Output;

static int
grow(Output *out, Py_ssize_t more)
{
    if (more > out->bytes_max - out->size)
        return NOT_MINE;
    Py_ssize_t capacity = out->capacity * 2 > out->size + more ? out->capacity * 2 : out->size + more;
    unsigned char *heap = PyMem_Realloc(out->heap, (size_t)capacity);
    if (heap == NULL) {
        PyErr_NoMemory();
        return FAILED;
    }
    if (out->heap == NULL)
        memcpy(heap, out->data, (size_t)out->size);
    out->data = out->heap = heap;
    out->capacity = capacity;
    return DONE;
}

static inline int
reserve(Output *out, Py_ssize_t more)
{
    return more <= out->capacity - out->size ? DONE : grow(out, more);
}

static inline void
put_byte(Output *out, unsigned int byte)
{
    out->data[out->size++] = (unsigned char)byte;
}

/* A big-endian number of `count` bytes; room was reserved. */
static inline void
put_number(Output *out, uint64_t number, int count)
{
    for (int shift = 8 * (count - 1); shift >= 0; shift -= 8)
        put_byte(out, (unsigned int)(number >> shift & 0xFF));
}

static inline void
put_raw(Output *out, const void *data, Py_ssize_t size)
{
    memcpy(out->data + out->size, data, (size_t)size);
    out->size += size;
}

/* The head of a container or text, in the smallest of the forms it has; `mark8` is 0 where there is none of one byte. */
static inline int
put_head(Output *out, Py_ssize_t length, unsigned int fix, Py_ssize_t fix_max, unsigned int mark8, unsigned int mark16)
{
    int status = reserve(out, 5);
    if (status != DONE)
        return status;
    if (length <= fix_max)
        put_byte(out, fix | (unsigned int)length);
    else if (mark8 && length <= 0xFF) {
        put_byte(out, mark8);
        put_number(out, (uint64_t)length, 1);
    }
    else if (length <= 0xFFFF) {
        put_byte(out, mark16);
        put_number(out, (uint64_t)length, 2);
    }
    else if ((uint64_t)length <= 0xFFFFFFFFu) {
        put_byte(out, mark16 + 1);
        put_number(out, (uint64_t)length, 4);
    }
    else
        return NOT_MINE;
    return DONE;
}

static int
put_bytes(Output *out, PyObject *item)
{
    Py_ssize_t size = PyBytes_GET_SIZE(item);
    int status = put_head(out, size, 0, -1, 0xC4, 0xC5);
    if (status != DONE || (status = reserve(out, size)) != DONE)
        return status;
    put_raw(out, PyBytes_AS_STRING(item), size);
    return DONE;
}

/* UTF-8, written here: PyUnicode_AsUTF8AndSize would keep a copy in the object, which is the caller's memory. */
static int
put_wide_text(Output *out, PyObject *item)
{
    Py_ssize_t length = PyUnicode_GET_LENGTH(item), size = 0;
    int kind = PyUnicode_KIND(item);
    const void *data = PyUnicode_DATA(item);
    for (Py_ssize_t at = 0; at < length; at++) {
        int count = utf8_size(PyUnicode_READ(kind, data, at));
        if (count == 0)
            return NOT_MINE;
        size += count;
    }
    int status = put_head(out, size, 0xA0, 31, 0xD9, 0xDA);
    if (status != DONE || (status = reserve(out, size)) != DONE)
        return status;
    for (Py_ssize_t at = 0; at < length; at++)
        out->size += put_utf8(out->data + out->size, PyUnicode_READ(kind, data, at));
    return DONE;
}

static inline int
put_text(Output *out, PyObject *item)
{
#if PY_VERSION_HEX < 0x030C0000
    if (!PyUnicode_IS_READY(item))
        return NOT_MINE;
#endif
    Py_ssize_t length = PyUnicode_GET_LENGTH(item);
    if (length > out->bytes_max)
        return NOT_MINE;
    if (!PyUnicode_IS_ASCII(item))
        return put_wide_text(out, item);
    int status = put_head(out, length, 0xA0, 31, 0xD9, 0xDA);
    if (status != DONE || (status = reserve(out, length)) != DONE)
        return status;
    put_raw(out, PyUnicode_DATA(item), length);
    return DONE;
}

static int
put_int(Output *out, PyObject *item)
{
    int status = reserve(out, 9), overflow;
    if (status != DONE)
        return status;
    long long number = PyLong_AsLongLongAndOverflow(item, &overflow);
    if (overflow < 0)
        return NOT_MINE;
    uint64_t magnitude = (uint64_t)number;
    if (overflow > 0) {
        magnitude = PyLong_AsUnsignedLongLong(item);
        if (magnitude == (uint64_t)-1 && PyErr_Occurred()) {
            PyErr_Clear(); /* See above: nothing is looked at after this. */
            return NOT_MINE;
        }
        number = 0;
    }
    if (number < -32) {
        int size = number >= -0x80 ? 0 : number >= -0x8000 ? 1 : number >= -0x80000000LL ? 2 : 3;
        put_byte(out, 0xD0u + (unsigned int)size);
        put_number(out, magnitude, 1 << size);
    }
    else if (number < 0 || magnitude < 0x80)
        put_byte(out, (unsigned int)(magnitude & 0xFF));
    else {
        int size = magnitude <= 0xFF ? 0 : magnitude <= 0xFFFF ? 1 : magnitude <= 0xFFFFFFFFu ? 2 : 3;
        put_byte(out, 0xCCu + (unsigned int)size);
        put_number(out, magnitude, 1 << size);
    }
    return DONE;
}

static int
put_float(Output *out, PyObject *item)
{
    int status = reserve(out, 9);
    if (status != DONE)
        return status;
    double number = PyFloat_AS_DOUBLE(item);
    uint64_t bits;
    memcpy(&bits, &number, 8);
    put_byte(out, 0xCB);
    put_number(out, bits, 8);
    return DONE;
}

static int
put_constant(Output *out, unsigned int mark)
{
    int status = reserve(out, 1);
    if (status == DONE)
        put_byte(out, mark);
    return status;
}

/* Anything that holds nothing else: NOT_MINE also says "a container". */
static inline int
put_single(Output *out, PyObject *item)
{
    PyTypeObject *kind = Py_TYPE(item);
    if (kind == &PyUnicode_Type)
        return put_text(out, item);
    if (kind == &PyLong_Type)
        return put_int(out, item);
    if (kind == &PyFloat_Type)
        return put_float(out, item);
    if (kind == &PyBool_Type)
        return put_constant(out, item == Py_True ? 0xC3 : 0xC2);
    if (item == Py_None)
        return put_constant(out, 0xC0);
    if (kind == &PyBytes_Type)
        return put_bytes(out, item);
    return NOT_MINE;
}

static int put_item(Output *out, PyObject *item);

static int
put_elements(Output *out, PyObject **items, Py_ssize_t count)
{
    int status = put_head(out, count, 0x90, 15, 0, 0xDC);
    for (Py_ssize_t at = 0; status == DONE && at < count; at++)
        status = put_item(out, items[at]);
    return status;
}

static int
put_dict(Output *out, PyObject *item)
{
    int status = put_head(out, PyDict_Size(item), 0x80, 15, 0, 0xDE);
    Py_ssize_t at = 0;
    PyObject *key, *value;
    while (status == DONE && PyDict_Next(item, &at, &key, &value)) {
        /* The twin looks at keys that are tuples for twins among them, which differ in identity only. */
        status = put_single(out, key);
        if (status == DONE)
            status = put_item(out, value);
    }
    return status;
}

/* An extension: its length, which comes first, is known when all is written. */
static int
put_tuple(Output *out, PyObject *item)
{
    int status = reserve(out, EXTENSION_HEAD_MAX);
    if (status != DONE)
        return status;
    if (out->extension_depth == EXTENSION_DEPTH_MAX)
        return NOT_MINE;
    Py_ssize_t start = out->size;
    out->size += EXTENSION_HEAD_MAX;
    out->extension_depth++;
    status = put_elements(out, ((PyTupleObject *)item)->ob_item, PyTuple_GET_SIZE(item));
    out->extension_depth--;
    if (status != DONE)
        return status;
    Py_ssize_t size = out->size - start - EXTENSION_HEAD_MAX;
    out->size = start;
    if (size == 1 || size == 2 || size == 4 || size == 8 || size == 16)
        put_byte(out, size == 1 ? 0xD4 : size == 2 ? 0xD5 : size == 4 ? 0xD6 : size == 8 ? 0xD7 : 0xD8);
    else {
        int count = size <= 0xFF ? 1 : size <= 0xFFFF ? 2 : 4;
        put_byte(out, count == 1 ? 0xC7 : count == 2 ? 0xC8 : 0xC9);
        put_number(out, (uint64_t)size, count);
    }
    put_byte(out, TUPLE);
    memmove(out->data + out->size, out->data + start + EXTENSION_HEAD_MAX, (size_t)size);
    out->size += size;
    return DONE;
}

static int
put_item(Output *out, PyObject *item)
{
    PyTypeObject *kind = Py_TYPE(item);
    if (kind != &PyDict_Type && kind != &PyList_Type && kind != &PyTuple_Type)
        return put_single(out, item);
    if (out->depth == DEPTH_MAX)
        return NOT_MINE; /* Or it contains itself. */
    out->depth++;
    int status = kind == &PyDict_Type ? put_dict(out, item)
        : kind == &PyList_Type        ? put_elements(out, ((PyListObject *)item)->ob_item, PyList_GET_SIZE(item))
                                      : put_tuple(out, item);
    out->depth--;
    return status;
}

/* The payload as a new reference and its codec id; NULL with an exception if that failed, without one if it is the twin's. */
static PyObject *
payload_of(Encoder *self, PyObject *value, int *codec)
{
    if (Py_TYPE(value) == &PyBytes_Type) {
        *codec = BYTES;
        return PyBytes_GET_SIZE(value) <= self->bytes_max ? Py_NewRef(value) : NULL;
    }
    unsigned char start[INITIAL_BYTES];
    Output out = {start, 0, INITIAL_BYTES, self->bytes_max, NULL, 0, 0};
    if (Py_TYPE(value) == &PyUnicode_Type) {
        *codec = STR;
#if PY_VERSION_HEX < 0x030C0000
        if (!PyUnicode_IS_READY(value))
            return NULL;
#endif
        if (PyUnicode_IS_ASCII(value) && PyUnicode_GET_LENGTH(value) <= self->bytes_max)
            return PyBytes_FromStringAndSize(PyUnicode_DATA(value), PyUnicode_GET_LENGTH(value));
        return NULL;
    }
    *codec = MSGPACK;
    PyObject *payload = NULL;
    if (put_item(&out, value) == DONE && out.size <= self->bytes_max)
        payload = PyBytes_FromStringAndSize((const char *)out.data, out.size);
    PyMem_Free(out.heap);
    return payload;
}

static PyObject *
call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *names)
{
    Encoder *self = (Encoder *)callable;
    if (PyVectorcall_NARGS(flags) != 1 || names != NULL)
        return PyErr_Format(PyExc_TypeError, "encode() takes one value");
    int codec;
    PyObject *payload = payload_of(self, args[0], &codec);
    if (payload == NULL)
        return PyErr_Occurred() ? NULL : PyObject_CallOneArg(self->twin, args[0]);
    PyObject *number = PyLong_FromLong(codec), *pair = number == NULL ? NULL : PyTuple_New(2);
    if (pair == NULL) {
        Py_XDECREF(number);
        Py_DECREF(payload);
        return NULL;
    }
    PyTuple_SET_ITEM(pair, 0, number);
    PyTuple_SET_ITEM(pair, 1, payload);
    return pair;
}

static PyObject *
new_encoder(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *twin;
    Py_ssize_t bytes_max;
    if (!PyArg_ParseTuple(args, "On:Encoder", &twin, &bytes_max))
        return NULL;
    if (bytes_max < 0 || bytes_max > 1 << 30)
        return PyErr_Format(PyExc_ValueError, "a payload has at most 1 GiB");
    Encoder *self = (Encoder *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->vectorcall = call;
    self->twin = Py_NewRef(twin);
    self->bytes_max = bytes_max;
    return (PyObject *)self;
}

static int
traverse(Encoder *self, visitproc visit, void *arg)
{
    Py_VISIT(self->twin);
    return 0;
}

static int
clear(Encoder *self)
{
    Py_CLEAR(self->twin);
    return 0;
}

static void
dealloc(Encoder *self)
{
    PyObject_GC_UnTrack(self);
    clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject EncoderType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tiered._native.Encoder",
    .tp_doc = "Encoder(twin, bytes_max): `codec.encode`; what it does not know goes to the twin.",
    .tp_basicsize = sizeof(Encoder),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_vectorcall_offset = offsetof(Encoder, vectorcall),
    .tp_call = PyVectorcall_Call,
    .tp_new = new_encoder,
    .tp_traverse = (traverseproc)traverse,
    .tp_clear = (inquiry)clear,
    .tp_dealloc = (destructor)dealloc,
};

int
tiered_add_encoder(PyObject *module)
{
    return PyModule_AddType(module, &EncoderType);
}
