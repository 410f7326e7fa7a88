/* The module tiered._native: what is too hot for Python.  Everything in it has a twin in Python, which
 * defines what it does (see tiered/native.py).  It needs the interpreter lock, but to
 * search pages (pages.c). */
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
    int (*const parts[])(PyObject *) = {
        tiered_add_applier, tiered_add_arena, tiered_add_batch, tiered_add_checksum, tiered_add_decoder,
        tiered_add_encoder, tiered_add_filters, tiered_add_hits, tiered_add_journal, tiered_add_keys, tiered_add_loads,
        tiered_add_pages, tiered_add_page_walk, tiered_add_record, tiered_add_shards, tiered_add_slots,
        tiered_add_undoing,
    };
    for (size_t part = 0; part < sizeof parts / sizeof parts[0]; part++)
        if (parts[part](module) < 0) {
            Py_DECREF(module);
            return NULL;
        }
    return module;
}
