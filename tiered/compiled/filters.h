/* Which keys a run cannot have: filters.c, the twin of tiered/filters.py. */
#ifndef TIERED_FILTERS_H
#define TIERED_FILTERS_H

#include "native.h"

#include <stdbool.h>

/* Whether a filter, which is a bytes object, may have a key.  Anything else may have it. */
bool tiered_filter_has(PyObject *filter, PyObject *stored_key);

#endif
