/* What the applier does for every record beside compression and LMDB: find the last version of every key in a
 * segment, sort the keys, take the payloads out, and make records of them (see tiered/pending.py, whose functions of
 * the same names say what each does, and the formats in tiered/journal.py and tiered/record.py). */
#include "native.h"
#include "checksum.h"
#include "record.h"

#include <stdlib.h>
#include <string.h>

enum { HEAD = 40, MAGIC = 0x7E5D, PUT = 1, DELETE = 2 };     /* of the journal */
enum { SEGMENT_SHIFT = 40, DELETED = -1 };                      /* of places */

typedef struct {
    uint32_t crc, payload_size;
    uint16_t magic, key_size;
    uint8_t kind, codec;
    uint64_t number;
    int64_t deadline;
} Head;

static Head
head_at(const unsigned char *at)
{
    Head head;
    memcpy(&head.crc, at, 4); /* Little-endian, as the module checks when it is loaded. */
    memcpy(&head.magic, at + 4, 2);
    head.kind = at[6];
    memcpy(&head.key_size, at + 8, 2);
    head.codec = at[10];
    memcpy(&head.payload_size, at + 12, 4);
    memcpy(&head.number, at + 16, 8);
    memcpy(&head.deadline, at + 32, 8);
    return head;
}

static PyObject *
scan(PyObject *module, PyObject *args)
{
    Py_buffer data;
    unsigned long long position, number, after, until, base;
    unsigned int seed;
    int exact;
    PyObject *latest, *deleted = NULL;
    if (!PyArg_ParseTuple(
            args, "y*KKIKKKiO!:scan", &data, &position, &number, &seed, &after, &until, &base, &exact, &PyDict_Type,
            &latest))
        return NULL;
    const unsigned char *bytes = data.buf;
    const uint64_t size = (uint64_t)data.len;
    if (base >> 62 || size >> SEGMENT_SHIFT) {
        PyErr_SetString(PyExc_OverflowError, "too many segments, or one too large");
        goto fail;
    }
    if ((deleted = PyLong_FromLong(DELETED)) == NULL)
        goto fail;
    while (number <= until && size >= HEAD && position <= size - HEAD) {
        const unsigned char *at = bytes + position;
        const Head head = head_at(at);
        const uint64_t length = (uint64_t)head.key_size + head.payload_size;
        if (head.magic != MAGIC || head.number != number || length > size - HEAD - position)
            break;
        if (number > after && (head.kind > DELETE || head.kind < PUT || head.key_size > exact))
            break;
        if (tiered_crc32(seed, at + 4, HEAD - 4 + length) != head.crc)
            break;
        if (number > after) {
            PyObject *key = PyBytes_FromStringAndSize((const char *)at + HEAD, head.key_size);
            if (key == NULL)
                goto fail;
            PyObject *place = head.kind == PUT ? PyLong_FromUnsignedLongLong(base + position) : Py_NewRef(deleted);
            int failed = place == NULL || PyDict_SetItem(latest, key, place) < 0;
            Py_DECREF(key);
            Py_XDECREF(place);
            if (failed)
                goto fail;
        }
        position += HEAD + length;
        number++;
    }
    Py_DECREF(deleted);
    PyBuffer_Release(&data);
    return Py_BuildValue("KK", position, number);
fail:
    Py_XDECREF(deleted);
    PyBuffer_Release(&data);
    return NULL;
}

/* Sorting: eight bytes after what all keys have in common decide nearly always, without a call or a cache miss. */

typedef struct {
    uint64_t next;
    PyObject *key;
    int64_t place;
} Sorted;

static int
compare(const void *left, const void *right)
{
    const Sorted *a = left, *b = right;
    if (a->next != b->next)
        return a->next < b->next ? -1 : 1;
    Py_ssize_t size_a = PyBytes_GET_SIZE(a->key), size_b = PyBytes_GET_SIZE(b->key);
    int order = memcmp(PyBytes_AS_STRING(a->key), PyBytes_AS_STRING(b->key), (size_t)Py_MIN(size_a, size_b));
    return order ? order : (size_a > size_b) - (size_a < size_b);
}

/* Fill `sorted` from a dict, but for `next`; how many bytes all keys begin with, or -1 with an error set.
 * The keys are the dict's: nothing may run other code as long as they are looked at. */
static Py_ssize_t
gather(Sorted *sorted, PyObject *latest)
{
    PyObject *key, *place;
    Py_ssize_t at = 0, count = 0, shared = 0;
    while (PyDict_Next(latest, &at, &key, &place)) {
        if (!PyBytes_CheckExact(key) || !PyLong_CheckExact(place)) {
            PyErr_SetString(PyExc_TypeError, "ordered() takes a dict from bytes to int");
            return -1;
        }
        sorted[count] = (Sorted){0, key, PyLong_AsLongLong(place)};
        if (sorted[count].place == -1 && PyErr_Occurred())
            return -1;
        const char *a = PyBytes_AS_STRING(key), *b = PyBytes_AS_STRING(sorted[0].key);
        if (count++ == 0 || PyBytes_GET_SIZE(key) < shared)
            shared = PyBytes_GET_SIZE(key);
        if (memcmp(a, b, (size_t)shared) != 0)
            for (shared = 0; a[shared] == b[shared]; shared++)
                ;
    }
    return shared;
}

static PyObject *
ordered(PyObject *module, PyObject *latest)
{
    if (!PyDict_Check(latest)) {
        PyErr_SetString(PyExc_TypeError, "ordered() takes a dict");
        return NULL;
    }
    const Py_ssize_t count = PyDict_GET_SIZE(latest);
    PyObject *result = NULL, *keys = PyList_New(count), *places = PyBytes_FromStringAndSize(NULL, count * 8);
    Sorted *sorted = PyMem_Malloc(((size_t)count + 1) * sizeof *sorted);
    if (keys == NULL || places == NULL)
        goto end;
    if (sorted == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    if (PyDict_GET_SIZE(latest) != count) { /* A finalizer ran, as the list was made. */
        PyErr_SetString(PyExc_RuntimeError, "the dict has changed");
        goto end;
    }
    const Py_ssize_t shared = gather(sorted, latest);
    if (shared < 0)
        goto end;
    for (Py_ssize_t i = 0; i < count; i++) {
        const unsigned char *bytes = (const unsigned char *)PyBytes_AS_STRING(sorted[i].key);
        const Py_ssize_t size = PyBytes_GET_SIZE(sorted[i].key);
        for (Py_ssize_t at = shared; at < shared + 8; at++)
            sorted[i].next = sorted[i].next << 8 | (at < size ? bytes[at] : 0);
    }
    qsort(sorted, (size_t)count, sizeof *sorted, compare);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyList_SET_ITEM(keys, i, Py_NewRef(sorted[i].key));
        memcpy(PyBytes_AS_STRING(places) + i * 8, &sorted[i].place, 8);
    }
    result = PyTuple_Pack(2, keys, places);
end:
    Py_XDECREF(keys);
    Py_XDECREF(places);
    PyMem_Free(sorted);
    return result;
}

/* Places, and the segments they lie in. */

typedef struct {
    Py_buffer places, *buffers;
    Py_ssize_t count;
} Segments;

static void
release(Segments *segments)
{
    while (segments->count)
        PyBuffer_Release(&segments->buffers[--segments->count]);
    PyMem_Free(segments->buffers);
    PyBuffer_Release(&segments->places);
}

/* Takes over `segments->places`, which is filled already. */
static int
acquire(Segments *segments, PyObject *maps)
{
    const Py_ssize_t count = PyList_GET_SIZE(maps);
    segments->count = 0;
    segments->buffers = PyMem_Calloc((size_t)count + 1, sizeof *segments->buffers);
    if (segments->buffers == NULL)
        PyErr_NoMemory();
    while (segments->buffers != NULL && segments->count < count
           && PyObject_GetBuffer(PyList_GET_ITEM(maps, segments->count), &segments->buffers[segments->count], PyBUF_SIMPLE)
                  == 0)
        segments->count++;
    if (!PyErr_Occurred())
        return 0;
    release(segments);
    return -1;
}

/* Where the put at place `i` lies and its head: 1; 0 where it is a deletion, or expired by `time_ms`; -1 with an error. */
static int
find(const Segments *segments, Py_ssize_t i, int64_t time_ms, const unsigned char **at, Head *head)
{
    int64_t place;
    memcpy(&place, (const char *)segments->places.buf + i * 8, 8);
    if (place == DELETED)
        return 0;
    const uint64_t index = (uint64_t)place >> SEGMENT_SHIFT;
    const uint64_t position = (uint64_t)place & (((uint64_t)1 << SEGMENT_SHIFT) - 1);
    if (index < (uint64_t)segments->count) {
        const Py_buffer *buffer = &segments->buffers[index];
        const uint64_t size = (uint64_t)buffer->len;
        if (size >= HEAD && position <= size - HEAD) {
            *at = (const unsigned char *)buffer->buf + position;
            *head = head_at(*at);
            if ((uint64_t)head->key_size + head->payload_size <= size - HEAD - position)
                return !(head->deadline > 0 && head->deadline <= time_ms);
        }
    }
    PyErr_SetString(PyExc_ValueError, "a place outside its segment");
    return -1;
}

static PyObject *
payloads(PyObject *module, PyObject *args)
{
    Segments segments;
    PyObject *maps;
    long long time_ms;
    if (!PyArg_ParseTuple(args, "y*O!L:payloads", &segments.places, &PyList_Type, &maps, &time_ms)
        || acquire(&segments, maps) < 0)
        return NULL;
    PyObject *result = PyList_New(0);
    for (Py_ssize_t i = 0; result != NULL && i < segments.places.len / 8; i++) {
        const unsigned char *at;
        Head head;
        const int found = find(&segments, i, time_ms, &at, &head);
        if (found == 0)
            continue;
        PyObject *payload =
            found < 0 ? NULL
                      : PyBytes_FromStringAndSize((const char *)at + HEAD + head.key_size, (Py_ssize_t)head.payload_size);
        if (payload == NULL || PyList_Append(result, payload) < 0)
            Py_CLEAR(result);
        Py_XDECREF(payload);
    }
    release(&segments);
    return result;
}

static unsigned char *
append(unsigned char *to, const void *from, size_t size)
{
    memcpy(to, from, size);
    return to + size;
}

static PyObject *
packed(PyObject *key, const unsigned char *at, const Head *head, int exact, PyObject *compressed)
{
    PyObject *body;
    int compression, dictionary;
    if (!PyTuple_Check(compressed)) {
        PyErr_SetString(PyExc_TypeError, "a compressed payload is a tuple");
        return NULL;
    }
    if (!PyArg_ParseTuple(compressed, "iiS", &compression, &dictionary, &body))
        return NULL;
    if (compression < 0 || compression > 0xFF || dictionary < 0 || dictionary > 0xFFFF) {
        PyErr_SetString(PyExc_ValueError, "compression or dictionary id out of range");
        return NULL;
    }
    const int is_long = PyBytes_GET_SIZE(key) > exact && head->key_size > 0;
    const size_t body_size = (size_t)PyBytes_GET_SIZE(body);
    const size_t extra = (head->deadline ? 8 : 0) + (is_long ? 2 + (size_t)head->key_size : 0);
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(RECORD_HEADER_BYTES + extra + body_size));
    if (data == NULL)
        return NULL;
    unsigned char *const start = (unsigned char *)PyBytes_AS_STRING(data);
    const uint16_t number = (uint16_t)dictionary;
    start[4] = RECORD_VERSION;
    start[5] = head->codec;
    start[6] = (unsigned char)compression;
    start[7] = (head->deadline ? RECORD_HAS_DEADLINE : 0) | (is_long ? RECORD_HAS_KEY : 0);
    unsigned char *end = append(start + 8, &number, 2);
    if (head->deadline)
        end = append(end, &head->deadline, 8);
    if (is_long) {
        end = append(end, &head->key_size, 2);
        end = append(end, at + HEAD, head->key_size);
    }
    append(end, PyBytes_AS_STRING(body), body_size);
    uint32_t crc = tiered_crc32(0, (const unsigned char *)PyBytes_AS_STRING(key), (size_t)PyBytes_GET_SIZE(key));
    crc = tiered_crc32(crc, start + 4, RECORD_HEADER_BYTES - 4 + extra + body_size);
    memcpy(start, &crc, 4);
    return data;
}

static PyObject *
changes(PyObject *module, PyObject *args)
{
    Segments segments;
    PyObject *keys, *maps, *compressed;
    long long time_ms;
    int exact;
    if (!PyArg_ParseTuple(
            args, "O!y*O!LiO!:changes", &PyList_Type, &keys, &segments.places, &PyList_Type, &maps, &time_ms, &exact,
            &PyList_Type, &compressed)
        || acquire(&segments, maps) < 0)
        return NULL;
    Py_ssize_t next = 0;
    PyObject *result = PyList_New(0);
    for (Py_ssize_t i = 0; result != NULL && i < Py_MIN(PyList_GET_SIZE(keys), segments.places.len / 8); i++) {
        PyObject *key = PyList_GET_ITEM(keys, i), *change = NULL;
        const unsigned char *at;
        Head head;
        const int found = find(&segments, i, time_ms, &at, &head);
        if (found == 0)
            change = Py_BuildValue("OOii", key, Py_None, 0, 0);
        else if (found > 0 && next >= PyList_GET_SIZE(compressed))
            PyErr_SetString(PyExc_ValueError, "fewer compressed payloads than puts");
        else if (found > 0 && !PyBytes_Check(key))
            PyErr_SetString(PyExc_TypeError, "keys are bytes");
        else if (found > 0) {
            PyObject *data = packed(key, at, &head, exact, PyList_GET_ITEM(compressed, next++));
            if (data != NULL)
                change = Py_BuildValue("ONLI", key, data, (long long)head.deadline, head.payload_size);
        }
        if (change == NULL || PyList_Append(result, change) < 0)
            Py_CLEAR(result);
        Py_XDECREF(change);
    }
    release(&segments);
    return result;
}

static PyMethodDef methods[] = {
    {"scan", scan, METH_VARARGS, "See tiered.pending."},
    {"ordered", ordered, METH_O, "See tiered.pending."},
    {"payloads", payloads, METH_VARARGS, "See tiered.pending."},
    {"changes", changes, METH_VARARGS, "See tiered.pending."},
    {NULL, NULL, 0, NULL},
};

int
tiered_add_applier(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
