/* `Hits`: what answers `store[key]`, `store.get(key)` and `key in store` where the key is hot;
 * its twin is `Hits` in tiered/heap.py.
 *
 * A store inherits it, so that a hit is one C function called by the interpreter, without a frame of Python.  What is
 * cold, or has a deadline, mostly is one too (loads.c); the rest is a question for the methods `_load` and `_has`. */
#include "loads.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    ArenaObject *arena; /* NULL: nothing is a hit. */
    PyObject *engine;   /* Of the store, for what is not. */
    Py_ssize_t hits;
} HitsObject;

static PyObject *load_name, *has_name, *glance_name, *default_name, *promote_name;

static int
hits_traverse(HitsObject *self, visitproc visit, void *arg)
{
    Py_VISIT(self->arena);
    Py_VISIT(self->engine);
    return 0;
}

static int
hits_clear(HitsObject *self)
{
    Py_CLEAR(self->arena);
    Py_CLEAR(self->engine);
    return 0;
}

static void
hits_dealloc(HitsObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    hits_clear(self);
    type->tp_free((PyObject *)self);
}

/* The value under a key that is hot; NULL with an error set or none. */
static inline PyObject *
hit(HitsObject *self, PyObject *key)
{
    ArenaObject *arena = self->arena;
    if (arena == NULL)
        return NULL;
    Py_INCREF(arena); /* Decoding may let go of it. */
    PyObject *value = tiered_arena_lookup(arena, key, TIERED_BELOW_NOW, 0);
    Py_DECREF(arena);
    self->hits += value != NULL;
    return value;
}

/* The value under a key that is not hot: `fallback` where it is absent, `KeyError` where that is NULL. */
static PyObject *
load(HitsObject *self, PyObject *key, PyObject *fallback)
{
    int came = LOAD_PYTHON;
    PyObject *value = NULL;
    if (self->arena != NULL) {
        ArenaObject *arena = (ArenaObject *)Py_NewRef(self->arena);
        PyObject *engine = ATTRIBUTE((PyObject *)self, _engine);
        bool hot = false;
        came = engine ? tiered_load(arena, engine, key, &value, &hot) : LOAD_FAILED;
        self->hits += hot;
        Py_XDECREF(engine);
        Py_DECREF(arena);
    }
    if (came == LOAD_PYTHON)
        return PyObject_CallMethodObjArgs((PyObject *)self, load_name, key, fallback, NULL);
    if (came == LOAD_ABSENT && fallback == NULL) {
        PyObject *args = PyTuple_Pack(1, key); /* A tuple would be taken for these. */
        if (args != NULL)
            PyErr_SetObject(PyExc_KeyError, args);
        Py_XDECREF(args);
    }
    return came == LOAD_ABSENT ? Py_XNewRef(fallback) : value;
}

static PyObject *
hits_subscript(HitsObject *self, PyObject *key)
{
    PyObject *value = hit(self, key);
    return value != NULL || PyErr_Occurred() ? value : load(self, key, NULL);
}

static PyObject *
hits_get(HitsObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *fallback = count == 2 ? args[1] : Py_None;
    int promote = 1;
    if (count < 1 || count > 2)
        return PyErr_Format(PyExc_TypeError, "get(key, default=None, *, promote=True) was given %s",
                            count < 1 ? "no key" : "more than these");
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        if (count == 1 && PyUnicode_Compare(name, default_name) == 0)
            fallback = args[count + i];
        else if (PyUnicode_Compare(name, promote_name) != 0)
            return PyErr_Format(PyExc_TypeError, "get(key, default=None, *, promote=True) was given %R", name);
        else if ((promote = PyObject_IsTrue(args[count + i])) < 0)
            return NULL;
    }
    if (!promote)
        return PyObject_CallMethodObjArgs((PyObject *)self, glance_name, args[0], fallback, NULL);
    PyObject *value = hit(self, args[0]);
    return value != NULL || PyErr_Occurred() ? value : load(self, args[0], fallback);
}

/* The cold tier's part of `get_many`. */
static PyObject *
hits_load_many(HitsObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyList_CheckExact(args[0]) || !PyDict_CheckExact(args[1]))
        return PyErr_Format(PyExc_TypeError, "_loaded(keys, found), a list and a dict");
    if (self->arena == NULL)
        return Py_NewRef(args[0]);
    PyObject *arena = Py_NewRef(self->arena), *engine = ATTRIBUTE((PyObject *)self, _engine);
    PyObject *left = engine ? tiered_load_many((ArenaObject *)arena, engine, args[0], args[1]) : NULL;
    Py_XDECREF(engine);
    Py_DECREF(arena);
    return left;
}

static int
hits_contains(HitsObject *self, PyObject *object)
{
    TieredKey key;
    ArenaValue found;
    int known = self->arena ? tiered_key(object, &key) : 0;
    if (known < 0)
        return -1;
    if (known) {
        bool there = arena_find(&self->arena->arena, &key.key, &found) && !found.deadline;
        tiered_key_end(&key);
        if (there)
            return 1;
    }
    PyObject *answer = PyObject_CallMethodOneArg((PyObject *)self, has_name, object);
    if (answer == NULL)
        return -1;
    int there = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    return there;
}

static PyObject *
get_arena(HitsObject *self, void *closure)
{
    return Py_NewRef(self->arena ? (PyObject *)self->arena : Py_None);
}

static int
set_arena(HitsObject *self, PyObject *value, void *closure)
{
    if (value == NULL || (value != Py_None && !PyObject_TypeCheck(value, &TieredArenaType))) {
        PyErr_SetString(PyExc_TypeError, "an Arena or None");
        return -1;
    }
    Py_XSETREF(self->arena, value == Py_None ? NULL : (ArenaObject *)Py_NewRef(value));
    return 0;
}

static PyGetSetDef hits_getset[] = {
    {"_tier", (getter)get_arena, (setter)set_arena, "The arena that answers, None if none does.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef hits_members[] = {
    {"_engine", T_OBJECT_EX, offsetof(HitsObject, engine), 0, "The engine of the store."},
    {"_hits", T_PYSSIZET, offsetof(HitsObject, hits), 0, "Values that were found hot."},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef hits_methods[] = {
    {"get", (PyCFunction)(void (*)(void))hits_get, METH_FASTCALL | METH_KEYWORDS,
     "get($self, key, /, default=None, *, promote=True)\n--\n\nThe value under `key`, or `default`.\n\n"
     "With `promote=False` the hot tier stays as it is: what is cold is not promoted, what is hot not noted as used."},
    {"_loaded", (PyCFunction)(void (*)(void))hits_load_many, METH_FASTCALL,
     "_loaded(keys, found): puts values of keys that are not hot into a dict; returns those of the keys that are left."},
    {NULL, NULL, 0, NULL},
};

static PyMappingMethods hits_as_mapping = {.mp_subscript = (binaryfunc)hits_subscript};
static PySequenceMethods hits_as_sequence = {.sq_contains = (objobjproc)hits_contains};

static PyTypeObject HitsType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tiered._native.Hits",
    .tp_doc = "Answers reads of what is hot; what is not goes to `_load(key[, default])`, `_glance(key, default)` and `_has(key)`.",
    .tp_basicsize = sizeof(HitsObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_traverse = (traverseproc)hits_traverse,
    .tp_clear = (inquiry)hits_clear,
    .tp_dealloc = (destructor)hits_dealloc,
    .tp_methods = hits_methods,
    .tp_members = hits_members,
    .tp_getset = hits_getset,
    .tp_as_mapping = &hits_as_mapping,
    .tp_as_sequence = &hits_as_sequence,
};

int
tiered_add_hits(PyObject *module)
{
    load_name = PyUnicode_InternFromString("_load");
    has_name = PyUnicode_InternFromString("_has");
    glance_name = PyUnicode_InternFromString("_glance");
    default_name = PyUnicode_InternFromString("default");
    promote_name = PyUnicode_InternFromString("promote");
    if (load_name == NULL || has_name == NULL || glance_name == NULL || default_name == NULL || promote_name == NULL)
        return -1;
    return PyModule_AddType(module, &HitsType);
}
