/* From records of the cold tier to their payloads, of many at once: one call of zstandard's for the frames of each dictionary.
 * What is damaged, or only Python undoes, is left to `Tiers.opened`, the twin. */
#include "loads.h"

#include <string.h>

/* Keeps what has the payload; false if there is none. */
static bool
hold(LoadItem *item, PyObject *segment)
{
    item->segment = segment;
    if (segment && PyObject_GetBuffer(segment, &item->view, PyBUF_SIMPLE) < 0)
        Py_CLEAR(item->segment);
    item->state = item->segment ? ITEM_READ : ITEM_LEFT;
    return item->segment != NULL;
}

/* Undoes the frames of one dictionary, those from the first one that is still compressed on; what fails is left. */
static void
undo(PyObject *engine, LoadItem *items, Py_ssize_t count, const TieredRecord *like)
{
    PyObject *pool, *context = tiered_context(engine, like->dictionary, &pool), *bodies = PyList_New(0), *undone = NULL;
    Py_ssize_t next = 0;
    for (Py_ssize_t i = 0; bodies && i < count; i++) {
        LoadItem *item = &items[i];
        if (item->state != ITEM_READ || item->segment || item->record.compression != COMPRESSION_ZSTD
            || item->record.dictionary != like->dictionary)
            continue;
        item->state = tiered_is_small_frame(item->body) && PyList_Append(bodies, item->body) == 0 ? ITEM_ASKED : ITEM_LEFT;
    }
    if (context && bodies && PyList_GET_SIZE(bodies)) /* None at all would end the process. */
        undone = PyObject_CallMethodOneArg(context, tiered_names[NAME_multi_decompress_to_buffer], bodies);
    if (context)
        tiered_context_back(context, pool);
    for (Py_ssize_t i = 0; i < count; i++) {
        LoadItem *item = &items[i];
        if (item->state != ITEM_ASKED)
            continue;
        hold(item, undone ? PySequence_GetItem(undone, next++) : NULL);
    }
    Py_XDECREF(undone);
    Py_XDECREF(bodies);
}

bool
tiered_undo_all(PyObject *engine, LoadItem *items, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        LoadItem *item = &items[i];
        if (item->state != ITEM_READ || item->segment)
            continue;
        if (item->record.compression == COMPRESSION_ZSTD)
            undo(engine, items, count, &item->record);
        else
            hold(item, Py_NewRef(item->body));
        if (tiered_given_up() == LOAD_FAILED)
            return false;
    }
    return true;
}

void
tiered_item_end(LoadItem *item)
{
    if (item->segment)
        PyBuffer_Release(&item->view);
    Py_CLEAR(item->segment);
    Py_CLEAR(item->body);
}

/* -- for Python --------------------------------------------------------------------------------- */

/* What a small frame says its payload's size is; 0: nothing. */
static size_t
payload_size(const TieredRecord *record)
{
    static const size_t dictionary_bytes[] = {0, 1, 2, 4};
    unsigned head = record->body[4];
    bool single = head & 0x20; /* Then there is no byte for the window. */
    size_t at = 5 + !single + dictionary_bytes[head & 3], count = head >> 6 ? 2 : single;
    if (at + count > record->body_size)
        return 0;
    return count == 2 ? (record->body[at] | (size_t)record->body[at + 1] << 8) + 256 : count ? record->body[at] : 0;
}

/* Takes a record apart; false if it is the twin's. */
static bool
take(LoadItem *item, PyObject *stored_key, PyObject *data, size_t *size)
{
    TieredRecord *record = &item->record;
    if (!PyBytes_CheckExact(stored_key) || !PyBytes_CheckExact(data)
        || tiered_record((unsigned char *)PyBytes_AS_STRING(stored_key), (size_t)PyBytes_GET_SIZE(stored_key),
            (unsigned char *)PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data), record)
        || !tiered_is_plain(record) || record->flags & RECORD_IS_MARKER)
        return false;
    bool frame = record->compression == COMPRESSION_ZSTD;
    if (frame && (record->body_size < 5 || record->body[4] >= 0x80))
        return false;
    *size = frame ? payload_size(record) : record->body_size;
    return true;
}

static PyObject *
opened(PyTypeObject *kind, const LoadItem *item, bool values)
{
    size_t size = 0;
    const unsigned char *payload = values ? tiered_payload_of(item, &size) : NULL;
    PyObject *found = kind->tp_alloc(kind, 4);
    if (found == NULL)
        return NULL;
    PyTuple_SET_ITEM(found, 0, PyLong_FromUnsignedLong(item->record.codec));
    PyTuple_SET_ITEM(found, 1, PyLong_FromLongLong(item->record.deadline));
    PyTuple_SET_ITEM(found, 2, PyBytes_FromStringAndSize(NULL, 0));
    PyTuple_SET_ITEM(found, 3, PyBytes_FromStringAndSize((const char *)payload, (Py_ssize_t)size));
    for (int part = 0; part < 4; part++)
        if (PyTuple_GET_ITEM(found, part) == NULL)
            Py_CLEAR(found);
    return found;
}

/* Takes apart as many records as have `bytes_max` bytes; how many. */
static Py_ssize_t
take_some(LoadItem *items, PyObject *stored_keys, PyObject *datas, bool values, Py_ssize_t bytes_max)
{
    size_t all = 0, size = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(datas); i++) {
        LoadItem *item = &items[i];
        if (bytes_max >= 0 && i && all >= (size_t)bytes_max)
            return i;
        if (take(item, PyList_GET_ITEM(stored_keys, i), PyList_GET_ITEM(datas, i), &size)) {
            item->state = ITEM_READ;
            item->body = values ? PyBytes_FromStringAndSize((const char *)item->record.body, (Py_ssize_t)item->record.body_size) : NULL;
            if (values && item->body == NULL)
                return -1;
            all += values ? size : 0;
        }
    }
    return PyList_GET_SIZE(datas);
}

static PyObject *
opened_many(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 6 || !PyType_Check(args[1]) || !PyType_IsSubtype((PyTypeObject *)args[1], &PyTuple_Type)
        || !PyList_CheckExact(args[2]) || !PyList_CheckExact(args[3]) || PyList_GET_SIZE(args[2]) != PyList_GET_SIZE(args[3]))
        return PyErr_Format(PyExc_TypeError, "opened_many(engine, kind, stored_keys, datas, values, bytes_max), two lists as long");
    bool values = args[4] == Py_True, whole = true;
    Py_ssize_t bytes_max = PyLong_AsSsize_t(args[5]), all = PyList_GET_SIZE(args[3]);
    LoadItem *items = PyErr_Occurred() ? NULL : PyMem_Calloc((size_t)all + 1, sizeof *items);
    if (items == NULL)
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    Py_ssize_t some = take_some(items, args[2], args[3], values, bytes_max);
    PyObject *results = some < 0 || (values && !tiered_undo_all(args[0], items, some)) ? NULL : PyList_New(some);
    for (Py_ssize_t i = 0; results && i < some; i++) {
        PyObject *one = items[i].state == ITEM_READ ? opened((PyTypeObject *)args[1], &items[i], values) : Py_NewRef(Py_None);
        whole &= items[i].state == ITEM_READ;
        if (one == NULL)
            Py_CLEAR(results);
        else
            PyList_SET_ITEM(results, i, one);
    }
    for (Py_ssize_t i = 0; i < all; i++)
        tiered_item_end(&items[i]);
    PyMem_Free(items);
    PyObject *answer = results ? PyTuple_Pack(2, results, whole ? Py_True : Py_False) : NULL;
    Py_XDECREF(results);
    return answer;
}

static PyMethodDef methods[] = {
    {"opened_many", (PyCFunction)(void (*)(void))opened_many, METH_FASTCALL,
     "opened_many(engine, kind, stored_keys, datas, values, bytes_max): the first of these records as `kind`, a tuple of codec,\n"
     "deadline, full key and payload, or None for what is the twin's; and whether none is.  They end where there are\n"
     "`bytes_max` bytes, unless that is negative, those of the twin not counted.  Without `values`, payloads are empty."},
    {NULL, NULL, 0, NULL},
};

int
tiered_add_undoing(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
