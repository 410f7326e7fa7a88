/* The object tier: values of hot records as they were decoded, given out as copies. */
#ifndef TIERED_OBJECTS_H
#define TIERED_OBJECTS_H

#include "native.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct ObjectSet ObjectSet;
typedef struct ObjectMaster ObjectMaster;

typedef struct {
    ObjectSet *sets; /* NULL until something is kept. */
    uint64_t *seen; /* Of the places whose values were decoded lately, 16 bits each. */
    uint32_t credit; /* Hits that were not spent on keeping others. */
    uint32_t set_count, hand; /* `set_count` is a power of two. */
    size_t share_bytes, bytes_max, used_bytes; /* `share_bytes` sizes the table, `bytes_max` holds now. */
    Py_ssize_t entries_max, value_bytes_max;
    Py_ssize_t hits, count;
    PyObject *is_immutable, *size_of; /* codec.is_immutable, sys.getsizeof */
} Objects;

/* How many bytes it may take from now on, its table included; `objects_make_room` drops what is over, in slices. */
void objects_limit(Objects *self, size_t bytes_max);
void objects_clear(Objects *self);

/* Fetches from memory what `objects_get` of that place would touch. */
void objects_foresee(const Objects *self, uint32_t place);
/* A copy of the value kept for the record at a place; NULL with an error set or none: there is none.  Copying may run any code. */
PyObject *objects_get(Objects *self, uint32_t place);
/* Whether the value of the record at a place, decoded just now, should be kept: it was decoded before, not long ago. */
bool objects_wanted(Objects *self, uint32_t place);
/* What is to be kept of a value: a copy nobody else has, and the bytes it takes.  NULL with an error set or none: it is
 * not of the kind or size that is kept.  May run any code. */
ObjectMaster *objects_master(const Objects *self, PyObject *value, size_t *bytes);
void objects_let_go(ObjectMaster *master);
/* Whether there is room for so many bytes more; makes some, a bounded part of it, if not. */
bool objects_make_room(Objects *self, size_t bytes);
/* Keeps a master, for which there is room, for the record at a place, and takes over the reference. */
void objects_put(Objects *self, uint32_t place, ObjectMaster *master, size_t bytes);

/* Whether the bytes that are counted are those of what is kept. */
bool objects_add_up(const Objects *self);

#endif
