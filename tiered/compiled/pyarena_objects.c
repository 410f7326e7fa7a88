/* What the arena's Python type does with objects: documents that are read often, kept decoded (objects.c). */
#include "pyarena.h"

#include "decoder.h"

#include <string.h>

enum {
    OBJECTS_SHARE = 4, /* Of the budget that there is, at most this part is for objects. */
    OBJECTS_STEP = 64, /* They take it from the arena in this part of it. */
};

/* Has the arena leave to objects what they take, and `bytes` more. */
void
tiered_arena_divide(ArenaObject *self, size_t bytes)
{
    size_t step = self->budget_bytes / OBJECTS_STEP + 1, wanted = self->objects.used_bytes + bytes;
    size_t left = self->budget_bytes - self->arena.budget_bytes;
    if (self->arena.budget_bytes <= self->budget_bytes && wanted <= left && left <= wanted + 2 * step)
        return; /* No to and fro: each time the arena would have to evict. */
    size_t taken = (wanted + step - 1) / step * step;
    if (taken > self->budget_bytes / 2)
        taken = self->budget_bytes / 2;
    if (self->arena.budget_bytes != self->budget_bytes - taken)
        arena_resize(&self->arena, self->budget_bytes - taken); /* Smaller than it was: that it can always be. */
}

/* Keeps a value that was decoded for the second time lately, if its record is still what it was decoded from. */
static int
keep_object(ArenaObject *self, const ArenaKey *key, uint32_t place, const unsigned char *payload, size_t size, PyObject *value)
{
    size_t bytes;
    ObjectMaster *master = objects_master(&self->objects, value, &bytes);
    if (master == NULL)
        return PyErr_Occurred() ? -1 : 0;
    ArenaValue now;
    if (objects_make_room(&self->objects, bytes)) {
        tiered_arena_divide(self, bytes);
        if ((arena_used_bytes(&self->arena) <= self->arena.budget_bytes || arena_shrink(&self->arena, SIZE_MAX))
            && arena_find(&self->arena, key, &now) && now.place == place && (now.kind & CODEC_MASK) == CODEC_MSGPACK
            && now.size == size && memcmp(now.data, payload, size) == 0) {
            arena_note(&self->arena, place);
            objects_put(&self->objects, place, master, bytes);
            return 0;
        }
    }
    objects_let_go(master);
    return 0;
}

/* The value of a MSGPACK payload: of an object that is kept, or decoded from a copy of it. */
PyObject *
tiered_arena_document(ArenaObject *self, const ArenaKey *key, const ArenaValue *found)
{
    PyObject *decoder = self->decoders[CODEC_MSGPACK];
    unsigned char copy[TIERED_DOCUMENT_BYTES_MAX];
    uint32_t place = found->place;
    size_t size = found->size;
    bool noted = found->noted;
    if (!noted)
        memcpy(copy, found->data, size);
    arena_hit(&self->arena, place);
    if (noted) {
        PyObject *value = objects_get(&self->objects, place);
        if (value != NULL || PyErr_Occurred())
            return value;
        memcpy(copy, found->data, size); /* It has left, and no code has run. */
    }
    PyObject *value = tiered_decode(decoder, copy, (Py_ssize_t)size);
    if (value != NULL && objects_wanted(&self->objects, place) && keep_object(self, key, place, copy, size, value) < 0)
        Py_CLEAR(value);
    if (value != NULL || PyErr_Occurred())
        return value;
    PyObject *payload = PyBytes_FromStringAndSize((const char *)copy, (Py_ssize_t)size);
    value = payload ? PyObject_CallOneArg(decoder, payload) : NULL;
    Py_XDECREF(payload);
    return value;
}

void
tiered_arena_limit_objects(ArenaObject *self)
{
    size_t share = self->objects.share_bytes, most = self->budget_bytes / OBJECTS_SHARE;
    objects_limit(&self->objects, share < most ? share : most);
    tiered_arena_divide(self, 0);
}

PyObject *
tiered_arena_keep_objects(ArenaObject *self, PyObject *args)
{
    Py_ssize_t share, entries_max, value_bytes_max;
    PyObject *is_immutable, *size_of = PySys_GetObject("getsizeof");
    if (!PyArg_ParseTuple(args, "nnnO:keep_objects", &share, &entries_max, &value_bytes_max, &is_immutable))
        return NULL;
    if (share < 0 || entries_max < 0 || value_bytes_max < 0 || size_of == NULL)
        return PyErr_Format(PyExc_ValueError, "keep_objects() takes numbers that are not negative");
    Objects *objects = &self->objects;
    Py_XSETREF(objects->is_immutable, Py_NewRef(is_immutable));
    Py_XSETREF(objects->size_of, Py_NewRef(size_of));
    objects->share_bytes = (size_t)share;
    objects->entries_max = entries_max;
    objects->value_bytes_max = value_bytes_max;
    tiered_arena_limit_objects(self);
    Py_RETURN_NONE;
}
