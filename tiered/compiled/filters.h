/* Which keys a run cannot have: filters.c, the twin of tiered/filters.py. */
#ifndef TIERED_FILTERS_H
#define TIERED_FILTERS_H

#include "native.h"

#include <stdbool.h>
#include <stddef.h>

/* Whether a filter may have a key.  One of no bytes may have any. */
bool tiered_filter_has(const unsigned char *filter, size_t size, const unsigned char *key, size_t key_size);

#endif
