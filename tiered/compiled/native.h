/* What the files of the compiled part share: each adds its functions and types to the one module. */
#ifndef TIERED_NATIVE_H
#define TIERED_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int tiered_add_applier(PyObject *module);
int tiered_add_batch(PyObject *module);
int tiered_add_checksum(PyObject *module);
int tiered_add_arena(PyObject *module);
int tiered_add_decoder(PyObject *module);
int tiered_add_encoder(PyObject *module);
int tiered_add_filters(PyObject *module);
int tiered_add_hits(PyObject *module);
int tiered_add_journal(PyObject *module);
int tiered_add_keys(PyObject *module);
int tiered_add_shards(PyObject *module);
int tiered_add_slots(PyObject *module);
int tiered_add_loads(PyObject *module);
int tiered_add_pages(PyObject *module);
int tiered_add_page_walk(PyObject *module);
int tiered_add_record(PyObject *module);
int tiered_add_undoing(PyObject *module);

#endif
