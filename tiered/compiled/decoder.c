/* Payloads to values: `Decoder`, for MSGPACK payloads.
 *
 * Its twin, `codec._decode_msgpack`, defines the values and the errors.  What the decoder meets and does not expect, damage included,
 * it does not judge: it drops what it has and the twin decodes the whole payload, or raises.
 *
 * No byte is trusted.  Every length is compared with the bytes that are left.  The elements that all containers claim together are
 * at most as many as the payload has bytes, since each takes one, so that what a lying length has allocated is bounded
 * by the payload's size.  Depth is bounded, hence the C stack.
 *
 * Other code may run meanwhile: a finalizer, when a container is allocated; the hook for extensions; `__hash__` of a key.  The payload's
 * buffer is held, so that it does not move; a list that is not full yet is kept from the garbage collector, and so
 * from whoever looks at all objects; and nothing is kept in the decoder but the keys, each taken with a reference of its own. */
#include "decoder.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { TUPLE = 1, SET = 2, FROZENSET = 3, SCALAR_MIN = 4, SCALAR_MAX = 13 };
enum { DEPTH_MAX = 128, EXTENSION_DEPTH_MAX = 16, KEY_BYTES_MAX = 64, KEYS = 1024 };

/* A short ASCII key seen lately: documents of a kind share theirs, in memory too. */
typedef struct {
    PyObject *key;
    uint64_t first, last, size;
} Known;

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *twin, *hook;
    Known known[KEYS];
} Decoder;

typedef struct {
    Decoder *decoder;
    const unsigned char *at, *end;
    Py_ssize_t claimable;
    int depth, extension_depth;
} Input;

/* A function that gives NULL without an exception says: this is the twin's. */
static PyObject *read_item(Input *in);

static PyObject *
not_mine_on(PyObject *error)
{
    if (PyErr_ExceptionMatches(error))
        PyErr_Clear();
    return NULL;
}

static inline uint64_t
number_at(const unsigned char *at, int count)
{
    uint64_t number = 0;
    for (int index = 0; index < count; index++)
        number = number << 8 | at[index];
    return number;
}

/* A number of `count` bytes; 0 if they are not there. */
static inline int
take_number(Input *in, int count, uint64_t *number)
{
    if (in->end - in->at < count)
        return 0;
    *number = number_at(in->at, count);
    in->at += count;
    return 1;
}

static inline uint64_t
word_at(const unsigned char *at)
{
    uint64_t word;
    memcpy(&word, at, 8);
    return word;
}

/* Whether no byte has its highest bit set. */
static inline int
is_ascii(const unsigned char *at, size_t size)
{
    uint64_t bits = 0;
    while (size >= 8) {
        bits |= word_at(at);
        at += 8;
        size -= 8;
    }
    while (size--)
        bits |= *at++;
    return (bits & 0x8080808080808080u) == 0;
}

static PyObject *
read_text(Input *in, uint64_t size)
{
    if (size > (uint64_t)(in->end - in->at))
        return NULL;
    PyObject *text;
    /* Of one byte or none there are objects already, which the function finds. */
    if (size > 1 && is_ascii(in->at, size)) {
        text = PyUnicode_New((Py_ssize_t)size, 0x7F);
        if (text != NULL)
            memcpy(PyUnicode_1BYTE_DATA(text), in->at, size);
        in->at += size;
        return text;
    }
    text = PyUnicode_DecodeUTF8((const char *)in->at, (Py_ssize_t)size, NULL);
    in->at += size;
    return text != NULL ? text : not_mine_on(PyExc_UnicodeDecodeError);
}

static PyObject *
read_bytes(Input *in, uint64_t size)
{
    if (size > (uint64_t)(in->end - in->at))
        return NULL;
    PyObject *data = PyBytes_FromStringAndSize((const char *)in->at, (Py_ssize_t)size);
    in->at += size;
    return data;
}

/* The first and the last eight bytes of a key, as far as it has them: all of it, if it has at most sixteen. */
static inline void
ends_of(const unsigned char *at, size_t size, uint64_t *first, uint64_t *last)
{
    *first = *last = 0;
    if (size >= 8) {
        *first = word_at(at);
        *last = word_at(at + size - 8);
    }
    else if (size >= 4) {
        uint32_t head, tail;
        memcpy(&head, at, 4);
        memcpy(&tail, at + size - 4, 4);
        *first = head;
        *last = tail;
    }
    else if (size)
        *first = (uint64_t)at[0] | (uint64_t)at[size / 2] << 8 | (uint64_t)at[size - 1] << 16;
}

static PyObject *
read_key(Input *in)
{
    if (in->at == in->end)
        return NULL;
    size_t size = in->at[0];
    const unsigned char *start = in->at + 1;
    if (size >= 0xA0 && size <= 0xBF)
        size -= 0xA0;
    else if (size == 0xD9 && in->end - in->at >= 2 && in->at[1] <= KEY_BYTES_MAX)
        size = *start++;
    else
        return read_item(in);
    if (size > (size_t)(in->end - start))
        return NULL;
    uint64_t first, last;
    ends_of(start, size, &first, &last);
    /* Mixed by multiplication with odd numbers.  A collision costs a new string, nothing more. */
    uint64_t mixed = (first ^ (last + size) * 0x9E3779B97F4A7C15u) * 0xD6E8FEB86659FD93u;
    Known *known = &in->decoder->known[mixed >> 54];
    in->at = start;
    if (known->first == first && known->last == last && known->size == size
        && (size <= 16 || memcmp(PyUnicode_DATA(known->key), start, size) == 0)) {
        in->at += size;
        return Py_NewRef(known->key);
    }
    PyObject *key = read_text(in, size), *former = known->key;
    if (key != NULL && PyUnicode_IS_ASCII(key)) {
        *known = (Known){Py_NewRef(key), first, last, size};
        Py_XDECREF(former);
    }
    return key;
}

static inline int
claim(Input *in, uint64_t count)
{
    if (count > (uint64_t)in->claimable)
        return 0;
    in->claimable -= (Py_ssize_t)count;
    return 1;
}

static PyObject *
read_list(Input *in, uint64_t count)
{
    if (!claim(in, count))
        return NULL;
    PyObject *list = PyList_New((Py_ssize_t)count);
    if (list == NULL)
        return NULL;
    PyObject_GC_UnTrack(list);
    for (uint64_t at = 0; at < count; at++) {
        PyObject *item = read_item(in);
        if (item == NULL) {
            PyObject_GC_Track(list);
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)at, item);
    }
    PyObject_GC_Track(list);
    return list;
}

static PyObject *
read_dict(Input *in, uint64_t count)
{
    if (!claim(in, 2 * count))
        return NULL;
    PyObject *dict = PyDict_New();
    for (uint64_t at = 0; dict != NULL && at < count; at++) {
        PyObject *key = read_key(in), *value = key == NULL ? NULL : read_item(in);
        if (value == NULL)
            Py_CLEAR(dict);
        else if (PyDict_SetItem(dict, key, value) < 0) {
            Py_CLEAR(dict);
            not_mine_on(PyExc_Exception); /* A key that cannot be hashed. */
        }
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return dict;
}

static PyObject *
read_collection(Input *in, int code, const unsigned char *end)
{
    if (in->extension_depth == EXTENSION_DEPTH_MAX)
        return NULL;
    Input inner = {in->decoder, in->at, end, in->claimable, in->depth, in->extension_depth + 1};
    PyObject *elements = read_item(&inner);
    if (elements == NULL)
        return NULL;
    PyObject *collection = NULL;
    if (inner.at == end && PyList_CheckExact(elements)) {
        collection = code == TUPLE ? PyList_AsTuple(elements) : code == SET ? PySet_New(elements) : PyFrozenSet_New(elements);
        if (collection == NULL)
            not_mine_on(PyExc_Exception);
    }
    Py_DECREF(elements);
    in->at = end;
    in->claimable = inner.claimable;
    return collection;
}

static PyObject *
read_extension(Input *in, uint64_t size)
{
    uint64_t code;
    if (!take_number(in, 1, &code) || size > (uint64_t)(in->end - in->at))
        return NULL;
    if (code >= TUPLE && code <= FROZENSET)
        return read_collection(in, (int)code, in->at + size);
    /* A registered type, code 14, runs code of the user's; it is the twin's from the start, so that this runs once. */
    if (code < SCALAR_MIN || code > SCALAR_MAX)
        return NULL;
    PyObject *value = PyObject_CallFunction(in->decoder->hook, "iy#", (int)code, (const char *)in->at, (Py_ssize_t)size);
    in->at += size;
    return value != NULL ? value : not_mine_on(PyExc_Exception);
}

static PyObject *
read_container(Input *in, PyObject *(*read)(Input *, uint64_t), uint64_t count)
{
    if (in->depth == DEPTH_MAX)
        return NULL;
    in->depth++;
    PyObject *value = read(in, count);
    in->depth--;
    return value;
}

static PyObject *
read_item(Input *in)
{
    uint64_t number;
    if (in->at == in->end)
        return NULL;
    unsigned int mark = *in->at++;
    if (mark <= 0x7F)
        return PyLong_FromLong((long)mark);
    if (mark >= 0xE0)
        return PyLong_FromLong((long)mark - 0x100);
    if (mark >= 0xA0 && mark <= 0xBF)
        return read_text(in, mark & 0x1F);
    if (mark <= 0x8F)
        return read_container(in, read_dict, mark & 0x0F);
    if (mark <= 0x9F)
        return read_container(in, read_list, mark & 0x0F);
    switch (mark) {
    case 0xC0:
        Py_RETURN_NONE;
    case 0xC2:
        Py_RETURN_FALSE;
    case 0xC3:
        Py_RETURN_TRUE;
    case 0xC4: case 0xC5: case 0xC6:
        return take_number(in, 1 << (mark - 0xC4), &number) ? read_bytes(in, number) : NULL;
    case 0xC7: case 0xC8: case 0xC9:
        return take_number(in, 1 << (mark - 0xC7), &number) ? read_container(in, read_extension, number) : NULL;
    case 0xCB: {
        double value;
        if (!take_number(in, 8, &number))
            return NULL;
        memcpy(&value, &number, 8);
        return PyFloat_FromDouble(value);
    }
    case 0xCC: case 0xCD: case 0xCE: case 0xCF:
        return take_number(in, 1 << (mark - 0xCC), &number) ? PyLong_FromUnsignedLongLong(number) : NULL;
    case 0xD0:
        return take_number(in, 1, &number) ? PyLong_FromLong((int8_t)number) : NULL;
    case 0xD1:
        return take_number(in, 2, &number) ? PyLong_FromLong((int16_t)number) : NULL;
    case 0xD2:
        return take_number(in, 4, &number) ? PyLong_FromLong((int32_t)number) : NULL;
    case 0xD3:
        return take_number(in, 8, &number) ? PyLong_FromLongLong((int64_t)number) : NULL;
    case 0xD4: case 0xD5: case 0xD6: case 0xD7: case 0xD8:
        return read_container(in, read_extension, 1u << (mark - 0xD4));
    case 0xD9: case 0xDA: case 0xDB:
        return take_number(in, 1 << (mark - 0xD9), &number) ? read_text(in, number) : NULL;
    case 0xDC: case 0xDD:
        return take_number(in, 2 << (mark - 0xDC), &number) ? read_container(in, read_list, number) : NULL;
    case 0xDE: case 0xDF:
        return take_number(in, 2 << (mark - 0xDE), &number) ? read_container(in, read_dict, number) : NULL;
    default:
        return NULL;
    }
}

PyObject *
tiered_decode(PyObject *decoder, const unsigned char *payload, Py_ssize_t size)
{
    Input in = {(Decoder *)decoder, payload, payload + size, size, 0, 0};
    PyObject *value = read_item(&in);
    if (value != NULL && in.at != in.end)
        Py_CLEAR(value);
    return value;
}

static PyObject *
decode(Decoder *self, PyObject *payload)
{
    Py_buffer buffer;
    if (PyObject_GetBuffer(payload, &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *value = tiered_decode((PyObject *)self, buffer.buf, buffer.len);
    PyBuffer_Release(&buffer);
    if (value == NULL && !PyErr_Occurred())
        return PyObject_CallOneArg(self->twin, payload);
    return value;
}

static PyObject *
call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *names)
{
    if (PyVectorcall_NARGS(flags) != 1 || names != NULL)
        return PyErr_Format(PyExc_TypeError, "decode() takes one payload");
    return decode((Decoder *)callable, args[0]);
}

static PyObject *
many(Decoder *self, PyObject *payloads)
{
    /* A list of its own: the twin runs any code, which may change the caller's. */
    PyObject *values = PySequence_List(payloads);
    if (values == NULL)
        return NULL;
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(values); at++) {
        PyObject *payload = Py_NewRef(PyList_GET_ITEM(values, at)), *value = decode(self, payload);
        Py_DECREF(payload);
        if (value == NULL || PyList_SetItem(values, at, value) < 0) {
            Py_CLEAR(values);
            break;
        }
    }
    return values;
}

static PyObject *
new_decoder(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *twin, *hook;
    if (!PyArg_ParseTuple(args, "OO:Decoder", &twin, &hook))
        return NULL;
    Decoder *self = (Decoder *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    for (int slot = 0; slot < KEYS; slot++)
        self->known[slot].size = KEY_BYTES_MAX + 1; /* As no key has. */
    self->vectorcall = call;
    self->twin = Py_NewRef(twin);
    self->hook = Py_NewRef(hook);
    return (PyObject *)self;
}

static int
traverse(Decoder *self, visitproc visit, void *arg)
{
    Py_VISIT(self->twin);
    Py_VISIT(self->hook);
    return 0;
}

static int
clear(Decoder *self)
{
    Py_CLEAR(self->twin);
    Py_CLEAR(self->hook);
    return 0;
}

static void
dealloc(Decoder *self)
{
    PyObject_GC_UnTrack(self);
    clear(self);
    for (int slot = 0; slot < KEYS; slot++)
        Py_CLEAR(self->known[slot].key);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef methods[] = {
    {"many", (PyCFunction)many, METH_O, "many(payloads): the list of their values."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject DecoderType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tiered._native.Decoder",
    .tp_doc = "Decoder(twin, hook): the value of a MSGPACK payload; what it does not know goes to the twin.",
    .tp_basicsize = sizeof(Decoder),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_vectorcall_offset = offsetof(Decoder, vectorcall),
    .tp_call = PyVectorcall_Call,
    .tp_methods = methods,
    .tp_new = new_decoder,
    .tp_traverse = (traverseproc)traverse,
    .tp_clear = (inquiry)clear,
    .tp_dealloc = (destructor)dealloc,
};

int
tiered_is_decoder(PyObject *object)
{
    return Py_IS_TYPE(object, &DecoderType);
}

int
tiered_add_decoder(PyObject *module)
{
    return PyModule_AddType(module, &DecoderType);
}
