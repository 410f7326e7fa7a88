/* Keys to bytes: `KeyEncoder`, for str, bytes, int of 64 bits, and tuples of them, each of exactly that type.
 *
 * Its twin, `keys._encode`, defines the bytes.  What does not fit into a frame of this function, and so all that is near
 * a limit or over it, goes to the twin, as other types do.  No other code runs before a key is encoded: see `encoder.c`. */
#include "keys.h"
#include "utf8.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { END = 0, BYTES = 1, STR = 2, TUPLE = 5, INT_ZERO = 0x14, ESCAPE = 0xFF };
enum { ROOM = TIERED_KEY_ROOM, DEPTH_MAX = 32 };

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *twin;
} KeyEncoder;

typedef TieredKeyBytes Output;

/* These return whether they could; `inside` says that the item is an element of a tuple. */

static inline int
put_byte(Output *out, unsigned int byte)
{
    if (out->size == ROOM)
        return 0;
    out->data[out->size++] = (unsigned char)byte;
    return 1;
}

static int
put_raw(Output *out, unsigned int code, const void *data, Py_ssize_t size, int inside)
{
    if (size > ROOM - out->size - 2)
        return 0;
    out->data[out->size++] = (unsigned char)code;
    if (!inside || memchr(data, END, (size_t)size) == NULL) {
        memcpy(out->data + out->size, data, (size_t)size);
        out->size += size;
        return !inside || put_byte(out, END);
    }
    for (const unsigned char *at = data; size--; at++)
        if (!put_byte(out, *at) || (*at == END && !put_byte(out, ESCAPE)))
            return 0;
    return put_byte(out, END);
}

static int
put_text(Output *out, PyObject *item, int inside)
{
#if PY_VERSION_HEX < 0x030C0000
    if (!PyUnicode_IS_READY(item))
        return 0;
#endif
    Py_ssize_t length = PyUnicode_GET_LENGTH(item), size = 0;
    if (PyUnicode_IS_ASCII(item))
        return put_raw(out, STR, PyUnicode_DATA(item), length, inside);
    unsigned char raw[ROOM];
    int kind = PyUnicode_KIND(item);
    const void *data = PyUnicode_DATA(item);
    for (Py_ssize_t at = 0; at < length; at++) {
        Py_UCS4 point = PyUnicode_READ(kind, data, at);
        int count = utf8_size(point);
        if (count == 0 || count > ROOM - size)
            return 0;
        size += put_utf8(raw + size, point);
    }
    return put_raw(out, STR, raw, size, inside);
}

static int
put_int(Output *out, PyObject *item)
{
    int overflow, size = 0;
    long long number = PyLong_AsLongLongAndOverflow(item, &overflow);
    if (overflow)
        return 0;
    uint64_t magnitude = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    while (size < 8 && magnitude >> 8 * size)
        size++;
    if (out->size + 1 + size > ROOM)
        return 0;
    out->data[out->size++] = (unsigned char)(number < 0 ? INT_ZERO - size : INT_ZERO + size);
    if (number < 0)
        magnitude = ~magnitude;
    for (int index = size - 1; index >= 0; index--)
        out->data[out->size++] = (unsigned char)(magnitude >> 8 * index & 0xFF);
    return 1;
}

static int
put_key(Output *out, PyObject *item, int depth)
{
    PyTypeObject *kind = Py_TYPE(item);
    if (kind == &PyUnicode_Type)
        return put_text(out, item, depth > 0);
    if (kind == &PyLong_Type)
        return put_int(out, item);
    if (kind == &PyBytes_Type)
        return put_raw(out, BYTES, PyBytes_AS_STRING(item), PyBytes_GET_SIZE(item), depth > 0);
    if (kind != &PyTuple_Type || depth == DEPTH_MAX || !put_byte(out, TUPLE))
        return 0;
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(item); at++)
        if (!put_key(out, PyTuple_GET_ITEM(item, at), depth + 1))
            return 0;
    return depth == 0 || put_byte(out, END);
}

int
tiered_key_bytes(PyObject *key, TieredKeyBytes *out)
{
    out->size = 0;
    return put_key(out, key, 0);
}

static PyObject *
call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *names)
{
    KeyEncoder *self = (KeyEncoder *)callable;
    if (PyVectorcall_NARGS(flags) != 1 || names != NULL)
        return PyErr_Format(PyExc_TypeError, "encode() takes one key");
    Output out;
    if (tiered_key_bytes(args[0], &out))
        return PyBytes_FromStringAndSize((const char *)out.data, out.size);
    return PyObject_CallOneArg(self->twin, args[0]);
}

static PyObject *
new_encoder(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *twin;
    if (!PyArg_ParseTuple(args, "O:KeyEncoder", &twin))
        return NULL;
    KeyEncoder *self = (KeyEncoder *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->vectorcall = call;
    self->twin = Py_NewRef(twin);
    return (PyObject *)self;
}

static int
traverse(KeyEncoder *self, visitproc visit, void *arg)
{
    Py_VISIT(self->twin);
    return 0;
}

static int
clear(KeyEncoder *self)
{
    Py_CLEAR(self->twin);
    return 0;
}

static void
dealloc(KeyEncoder *self)
{
    PyObject_GC_UnTrack(self);
    clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject KeyEncoderType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tiered._native.KeyEncoder",
    .tp_doc = "KeyEncoder(twin): `keys.encode`; what it does not know goes to the twin.",
    .tp_basicsize = sizeof(KeyEncoder),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_vectorcall_offset = offsetof(KeyEncoder, vectorcall),
    .tp_call = PyVectorcall_Call,
    .tp_new = new_encoder,
    .tp_traverse = (traverseproc)traverse,
    .tp_clear = (inquiry)clear,
    .tp_dealloc = (destructor)dealloc,
};

int
tiered_add_keys(PyObject *module)
{
    return PyModule_AddType(module, &KeyEncoderType);
}
