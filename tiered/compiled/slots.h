/* Attributes of Python objects by number: where their class keeps one in a slot (`__slots__`), without a look-up. */
#ifndef TIERED_SLOTS_H
#define TIERED_SLOTS_H

#include "native.h"

#include <stdbool.h>

#define SLOT_NAMES(X) \
    X(_aside) X(_background) X(_barred) X(_engine) X(_env) X(_layout) X(_number) X(_pools) X(_users) X(abort) \
    X(acquire) X(admission) X(begin) X(buffers) X(cleared) X(clock) X(closed) X(cold) X(cold_hits) X(counters) \
    X(damaged_page) X(decompress) X(decompressor) X(direct) X(generation) X(id) X(layout_of) X(lock) X(misses) \
    X(multi_decompress_to_buffer) X(now_ms) X(owned) X(pop) X(positions) X(promote) X(promote_many) \
    X(promotions) X(release) X(serve) X(small_bytes)
#define SLOT_NAME(name) NAME_##name,
enum { SLOT_NAMES(SLOT_NAME) NAME_COUNT };
extern PyObject *tiered_names[NAME_COUNT];

/* Called without an error set, and NULL with one. */
PyObject *tiered_attribute(PyObject *object, int name);
/* False, too, with an error set. */
bool tiered_is_true(PyObject *object, int name);
/* Adds to a number; false with an error set. */
bool tiered_add_to(PyObject *object, int name, Py_ssize_t more);

#define ATTRIBUTE(object, name) tiered_attribute(object, NAME_##name)
#define CALL(object, name) PyObject_CallMethodNoArgs(object, tiered_names[NAME_##name])

#endif
