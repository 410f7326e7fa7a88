/* The module tiered._native: what is too hot for Python.  Everything in it has a twin in Python, which
 * defines what it does (see tiered/native.py).  It needs the interpreter lock throughout. */
#include "native.h"

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tiered._native",
    .m_doc = "The compiled part of tiered.",
    .m_size = -1,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL)
        return NULL;
    if (tiered_add_checksum(module) < 0 || tiered_add_applier(module) < 0 || tiered_add_arena(module) < 0
        || tiered_add_hits(module) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
