/* `collect`: pairs from an iterator into the columns of a batch (tiered/writing.py), without a frame of Python for each.
 *
 * Its twin is `writing._collect`.  Keys and values are encoded by what it is given, which may be any code: nothing here
 * is held across a call but references of its own. */
#include "native.h"

typedef struct {
    PyObject *keys, *encoded, *codecs, *payloads;
    Py_ssize_t bytes, key_bytes_max;
} Columns;

/* Both halves of a pair as new references, of whatever can be unpacked into two, with the interpreter's own errors. */
static int
unpack_pair(PyObject *pair, PyObject **key, PyObject **value)
{
    if (PyTuple_CheckExact(pair) && PyTuple_GET_SIZE(pair) == 2) {
        *key = Py_NewRef(PyTuple_GET_ITEM(pair, 0));
        *value = Py_NewRef(PyTuple_GET_ITEM(pair, 1));
        return 0;
    }
    PyObject *items = PyObject_GetIter(pair), *third = NULL;
    if (items == NULL) {
        if (PyErr_ExceptionMatches(PyExc_TypeError) && Py_TYPE(pair)->tp_iter == NULL && !PySequence_Check(pair))
            PyErr_Format(PyExc_TypeError, "cannot unpack non-iterable %.200s object", Py_TYPE(pair)->tp_name);
        return -1;
    }
    if ((*key = PyIter_Next(items)) != NULL && (*value = PyIter_Next(items)) != NULL)
        third = PyIter_Next(items);
    Py_DECREF(items);
    if (third != NULL) {
        Py_DECREF(third);
        PyErr_SetString(PyExc_ValueError, "too many values to unpack (expected 2)");
    } else if (*value == NULL && !PyErr_Occurred()) {
        PyErr_Format(PyExc_ValueError, "not enough values to unpack (expected 2, got %d)", *key != NULL);
    }
    return PyErr_Occurred() ? -1 : 0;
}

/* Appends and gives up the reference; what it is given may be NULL, with an error set. */
static int
append(PyObject *column, PyObject *item)
{
    int wrong = item == NULL || PyList_Append(column, item) < 0;
    Py_XDECREF(item);
    return wrong ? -1 : 0;
}

static int
add(Columns *columns, PyObject *key, PyObject *value, PyObject *encode_key, PyObject *canonical, PyObject *encode)
{
    PyObject *encoded = PyObject_CallOneArg(encode_key, key);
    PyObject *coded = encoded == NULL ? NULL : PyObject_CallOneArg(encode, value);
    int wrong = coded == NULL;
    if (!wrong && (!PyBytes_Check(encoded) || !PyTuple_Check(coded) || PyTuple_GET_SIZE(coded) != 2
            || !PyBytes_Check(PyTuple_GET_ITEM(coded, 1)))) {
        PyErr_SetString(PyExc_TypeError, "a key is encoded to bytes, a value to a codec id and bytes");
        wrong = 1;
    }
    if (!wrong) {
        PyObject *payload = PyTuple_GET_ITEM(coded, 1);
        columns->bytes += PyBytes_GET_SIZE(encoded) + PyBytes_GET_SIZE(payload);
        columns->key_bytes_max = Py_MAX(columns->key_bytes_max, PyBytes_GET_SIZE(encoded));
        wrong = append(columns->keys, PyUnicode_CheckExact(key) ? Py_NewRef(key) : PyObject_CallOneArg(canonical, key)) < 0
            || PyList_Append(columns->encoded, encoded) < 0
            || PyList_Append(columns->codecs, PyTuple_GET_ITEM(coded, 0)) < 0
            || PyList_Append(columns->payloads, payload) < 0;
    }
    Py_XDECREF(encoded);
    Py_XDECREF(coded);
    return wrong ? -1 : 0;
}

static PyObject *
collect(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *kind, *encode_key, *canonical, *encode, *source;
    Py_ssize_t record_bytes, count_max, bytes_max;
    if (!PyArg_ParseTuple(args, "OOOOnOnn:collect", &kind, &encode_key, &canonical, &encode, &record_bytes, &source,
            &count_max, &bytes_max))
        return NULL;
    if (!PyIter_Check(source))
        return PyErr_Format(PyExc_TypeError, "collect() takes an iterator");
    Columns columns = {PyList_New(0), PyList_New(0), PyList_New(0), PyList_New(0), 0, 0};
    PyObject *pair, *batch = NULL;
    int wrong = !columns.keys || !columns.encoded || !columns.codecs || !columns.payloads;
    for (Py_ssize_t count = 0; !wrong && count < count_max && columns.bytes < bytes_max; count++) {
        PyObject *key = NULL, *value = NULL;
        if ((pair = PyIter_Next(source)) == NULL) {
            wrong = PyErr_Occurred() != NULL;
            break;
        }
        wrong = unpack_pair(pair, &key, &value) < 0 || add(&columns, key, value, encode_key, canonical, encode) < 0;
        columns.bytes += record_bytes;
        Py_XDECREF(key);
        Py_XDECREF(value);
        Py_DECREF(pair);
    }
    if (!wrong)
        batch = PyObject_CallFunction(kind, "OOOOnn", columns.keys, columns.encoded, columns.codecs, columns.payloads,
            columns.bytes, columns.key_bytes_max);
    Py_XDECREF(columns.keys);
    Py_XDECREF(columns.encoded);
    Py_XDECREF(columns.codecs);
    Py_XDECREF(columns.payloads);
    return batch;
}

/* Bytes have no code of their own, so that nothing else runs until all of a batch is noted. */
static PyObject *
note_all(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 3 || !PyDict_CheckExact(args[0]) || !PyList_CheckExact(args[1]) || !PyList_CheckExact(args[2]))
        return PyErr_Format(PyExc_TypeError, "note_all(known, keys, positions), a dict and two lists");
    PyObject *known = args[0], *keys = args[1], *positions = args[2];
    Py_ssize_t fresh = 0, rows = PyList_GET_SIZE(keys);
    if (PyList_GET_SIZE(positions) != rows)
        return PyErr_Format(PyExc_ValueError, "note_all() was given lists of different lengths");
    for (Py_ssize_t i = 0; i < rows; i++)
        if (!PyBytes_CheckExact(PyList_GET_ITEM(keys, i)) || !PyLong_CheckExact(PyList_GET_ITEM(positions, i)))
            return PyErr_Format(PyExc_TypeError, "keys are bytes, and positions int");
    for (Py_ssize_t i = 0; i < rows; i++) {
        PyObject *key = PyList_GET_ITEM(keys, i), *position = PyList_GET_ITEM(positions, i);
        Py_ssize_t before = PyDict_GET_SIZE(known);
        PyObject *there = PyDict_SetDefault(known, key, position);
        if (there == NULL)
            return NULL;
        if (PyDict_GET_SIZE(known) > before)
            fresh += PyBytes_GET_SIZE(key);
        else if (PyDict_SetItem(known, key, position) < 0)
            return NULL;
    }
    return PyLong_FromSsize_t(fresh);
}

static PyMethodDef functions[] = {
    {"note_all", (PyCFunction)(void (*)(void))note_all, METH_FASTCALL,
        "note_all(known, keys, positions): the positions of keys in a dict; returns the bytes of the keys that were new."},
    {"collect", collect, METH_VARARGS,
        "collect(kind, encode_key, canonical, encode, record_bytes, source, count_max, bytes_max): a batch of the next pairs."},
    {NULL, NULL, 0, NULL},
};

int
tiered_add_batch(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
