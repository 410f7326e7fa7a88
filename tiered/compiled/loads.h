/* Reads of what is cold, for the type of `Hits`. */
#ifndef TIERED_LOADS_H
#define TIERED_LOADS_H

#include "pyarena.h"

/* What came of a read; where it is LOAD_PYTHON the twin is to be asked, and nothing was done or raised. */
enum { LOAD_FOUND, LOAD_ABSENT, LOAD_FAILED, LOAD_PYTHON };

/* The value under a key that is not hot, or has a deadline; `*hot` is set where it was hot nevertheless. */
int tiered_load(ArenaObject *arena, PyObject *engine, PyObject *key, PyObject **value, bool *hot);

#endif
