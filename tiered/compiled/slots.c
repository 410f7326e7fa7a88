#include "slots.h"

#include <structmember.h>

#define AS_TEXT(name) #name,
static const char *const texts[] = {SLOT_NAMES(AS_TEXT)};
PyObject *tiered_names[NAME_COUNT];

/* Where the type that was asked last keeps an attribute.  The type is kept: another one at the address of one that is gone
 * may keep it elsewhere. */
static struct {
    PyTypeObject *type;
    Py_ssize_t offset; /* 0: not in a slot. */
} slots[NAME_COUNT];

/* A class answers with the descriptor of its slot. */
static Py_ssize_t
offset_in(PyTypeObject *type, PyObject *name)
{
    PyObject *found = PyObject_GetAttr((PyObject *)type, name);
    Py_ssize_t offset = 0;
    if (found == NULL)
        PyErr_Clear();
    else if (Py_IS_TYPE(found, &PyMemberDescr_Type)) {
        const PyMemberDef *member = ((PyMemberDescrObject *)found)->d_member;
        offset = member->type == T_OBJECT_EX ? member->offset : 0;
    }
    Py_XDECREF(found);
    return offset;
}

/* Where an object keeps an attribute, NULL: not in a slot, or nothing is there. */
static inline PyObject **
slot_of(PyObject *object, int name)
{
    PyTypeObject *type = Py_TYPE(object);
    if (slots[name].type != type) {
        Py_ssize_t offset = offset_in(type, tiered_names[name]);
        PyTypeObject *before = slots[name].type;
        slots[name].type = (PyTypeObject *)Py_NewRef(type);
        slots[name].offset = offset;
        Py_XDECREF(before);
    }
    PyObject **slot = slots[name].offset ? (PyObject **)((char *)object + slots[name].offset) : NULL;
    return slot && *slot ? slot : NULL;
}

PyObject *
tiered_attribute(PyObject *object, int name)
{
    PyObject **slot = slot_of(object, name);
    return slot ? Py_NewRef(*slot) : PyObject_GetAttr(object, tiered_names[name]);
}

bool
tiered_is_true(PyObject *object, int name)
{
    PyObject *value = tiered_attribute(object, name);
    int is = value == NULL ? -1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return is > 0;
}

bool
tiered_add_to(PyObject *object, int name, Py_ssize_t more)
{
    PyObject *before = tiered_attribute(object, name), *added = before ? PyLong_FromSsize_t(more) : NULL;
    PyObject *after = added ? PyNumber_Add(before, added) : NULL;
    PyObject **slot = after ? slot_of(object, name) : NULL;
    bool done = slot || (after && PyObject_SetAttr(object, tiered_names[name], after) == 0);
    if (slot)
        Py_SETREF(*slot, Py_NewRef(after));
    Py_XDECREF(after);
    Py_XDECREF(added);
    Py_XDECREF(before);
    return done;
}

int
tiered_add_slots(PyObject *module)
{
    for (int name = 0; name < NAME_COUNT; name++)
        if ((tiered_names[name] = PyUnicode_InternFromString(texts[name])) == NULL)
            return -1;
    return 0;
}
