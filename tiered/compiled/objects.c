/* The object tier: values of hot records as they were decoded, given out as copies.
 *
 * A hit on a document costs its decoding, several times what all else of it costs.  Of the records decoded most, a few
 * are kept as a master, which nobody else ever has: immutable values are given out as they are, and collections as
 * copies, which share what is immutable in them.  So what a caller changes is his own.
 *
 * Kept are values of exactly the built-in types, with lists, dicts and sets in any nesting, but none of these in a tuple; in
 * all no more than `entries_max` elements, none of more than `value_bytes_max` bytes.
 *
 * Masters are found by their record's place in the arena, in sets of four.  A record says whether a master was made of it
 * (`arena_note`); it no longer does once it is replaced, removed or moved.  So one left over for a place is never given
 * out for another record, and leaves when the hand comes round.  A value is kept when it is decoded for the second time while
 * its place is remembered, and, since making a master costs as much as some readings, only once those that are kept
 * have been given out 32 times for each that leaves; it leaves by CLOCK (Corbató, "A Paging Experiment with the Multics
 * System", 1968).
 *
 * A copy goes from one object to the next, and would wait for memory at each of them.  So a master has a list of where they
 * are, and all are fetched together, while the record is still being looked for.
 *
 * The garbage collector does not walk masters: they refer to nothing that could refer back.  Letting one go may run other code,
 * by a weak reference to something in it; so it is done last, when all is in order again. */
#include "objects.h"

#include <stddef.h>
#include <string.h>

enum { WAYS = 4, SEEN_PER_SET = 2, SET_SHARE_BYTES = 1024, DEPTH_MAX = 8, SWEEP_SETS = 32 };
enum { PARTS_MAX = 64, PART_UNIT = 16, LINE_BYTES = 64 };
enum { HEAD_BYTES = 48 }; /* Of a collection, or more: the rest of its bytes is its table. */
enum { SHARED_MIN = 8 };  /* References to what many have, and what is in the processor's cache already. */
enum { HITS_FOR_ONE = 32, CREDIT_MAX = 3200 };
enum { PARTS_BYTES = 96 }; /* What a time zone and its offset take, or the number in a UUID: no size says so. */

#define USED 1u /* Lowest bit of `bytes`, which are multiples of 16. */

struct ObjectMaster {
    PyObject *value;
    int count;
    int32_t parts[]; /* Where in memory they are that a copy touches, in units of 16 bytes from `value`. */
};

struct ObjectSet {
    uint32_t place[WAYS], bytes[WAYS];
    ObjectMaster *master[WAYS];
};

void
objects_let_go(ObjectMaster *master)
{
    PyObject *value = master->value;
    PyMem_Free(master);
    Py_DECREF(value);
}

/* What was dropped, to be let go of when all is in order. */
typedef struct {
    ObjectMaster *masters[WAYS * SWEEP_SETS];
    int count;
} Dropped;

static void
let_go(Dropped *dropped)
{
    while (dropped->count)
        objects_let_go(dropped->masters[--dropped->count]);
}

static inline uint32_t
mixed(uint32_t place)
{
    uint32_t hash = place * 0x9E3779B1u;
    return hash ^ hash >> 15;
}

static inline ObjectSet *
set_of(const Objects *self, uint32_t place)
{
    return &self->sets[mixed(place) & (self->set_count - 1)];
}

static size_t
table_bytes(const Objects *self)
{
    return self->set_count * (sizeof(ObjectSet) + SEEN_PER_SET * sizeof(uint64_t));
}

static void
drop(Objects *self, ObjectSet *set, int way, Dropped *dropped)
{
    self->used_bytes -= set->bytes[way] & ~USED;
    self->count--;
    dropped->masters[dropped->count++] = set->master[way];
    set->master[way] = NULL;
    set->place[way] = 0;
}

void
objects_clear(Objects *self)
{
    ObjectSet *sets = self->sets;
    uint32_t count = self->set_count;
    PyMem_RawFree(self->seen);
    self->sets = NULL;
    self->seen = NULL;
    self->set_count = self->hand = 0;
    self->used_bytes = 0;
    self->count = 0;
    for (uint32_t i = 0; i < count; i++)
        for (int way = 0; way < WAYS; way++)
            if (sets[i].master[way] != NULL)
                objects_let_go(sets[i].master[way]);
    PyMem_RawFree(sets);
}

static uint32_t
sets_for(size_t bytes_max)
{
    uint32_t count = 1;
    while (count < 1u << 24 && (size_t)count * 2 * SET_SHARE_BYTES <= bytes_max)
        count *= 2;
    return count;
}

void
objects_limit(Objects *self, size_t bytes_max)
{
    self->bytes_max = bytes_max;
    if (self->sets != NULL && (bytes_max == 0 || self->set_count != sets_for(self->share_bytes)))
        objects_clear(self);
    objects_make_room(self, 0);
}

static bool
begin(Objects *self)
{
    uint32_t count = sets_for(self->share_bytes);
    self->sets = PyMem_RawCalloc(count, sizeof(ObjectSet));
    self->seen = PyMem_RawCalloc((size_t)count * SEEN_PER_SET, sizeof(uint64_t));
    if (self->sets == NULL || self->seen == NULL) {
        PyMem_RawFree(self->sets);
        PyMem_RawFree(self->seen);
        self->sets = NULL;
        self->seen = NULL;
        return false;
    }
    self->set_count = count;
    self->used_bytes = table_bytes(self);
    return true;
}

/* -- copies -------------------------------------------------------------------------------------- */

static inline bool
is_collection(PyObject *object)
{
    return PyDict_CheckExact(object) || PyList_CheckExact(object) || PySet_CheckExact(object);
}

static PyObject *copied(PyObject *master);

static PyObject *
copied_dict(PyObject *master)
{
    PyObject *copy = PyDict_Copy(master), *key, *value;
    Py_ssize_t at = 0;
    while (copy != NULL && PyDict_Next(master, &at, &key, &value)) {
        if (!is_collection(value))
            continue;
        PyObject *inner = copied(value);
        if (inner == NULL || PyDict_SetItem(copy, key, inner) < 0)
            Py_CLEAR(copy);
        Py_XDECREF(inner);
    }
#if PY_VERSION_HEX >= 0x030E0000
    /* Until then a dict is tracked when it is given something that needs it, and the copy of an untracked one is not. */
    if (copy != NULL && !PyObject_GC_IsTracked(copy))
        PyObject_GC_Track(copy);
#endif
    return copy;
}

static PyObject *
copied_list(PyObject *master)
{
    PyObject *copy = PyList_GetSlice(master, 0, PyList_GET_SIZE(master));
    for (Py_ssize_t at = 0; copy != NULL && at < PyList_GET_SIZE(master); at++) {
        PyObject *item = PyList_GET_ITEM(master, at);
        if (!is_collection(item))
            continue;
        PyObject *inner = copied(item);
        if (inner == NULL || PyList_SetItem(copy, at, inner) < 0)
            Py_CLEAR(copy);
    }
    return copy;
}

/* A value like it: itself, if it cannot be changed. */
static PyObject *
copied(PyObject *master)
{
    if (PyDict_CheckExact(master))
        return copied_dict(master);
    if (PyList_CheckExact(master))
        return copied_list(master);
    return PySet_CheckExact(master) ? PySet_New(master) : Py_NewRef(master);
}

/* The way of a set that has a place, WAYS if none has. */
static inline int
way_of(const ObjectSet *set, uint32_t place)
{
    int way = 0;
    while (way < WAYS && (set->place[way] != place || set->master[way] == NULL))
        way++;
    return way;
}

void
objects_foresee(const Objects *self, uint32_t place)
{
    if (self->sets == NULL)
        return;
    const ObjectSet *set = set_of(self, place);
    int way = way_of(set, place);
    const ObjectMaster *master = way < WAYS ? set->master[way] : NULL;
    for (int i = 0; master && i < master->count; i++)
        __builtin_prefetch((const char *)master->value + (ptrdiff_t)master->parts[i] * PART_UNIT, 1);
}

PyObject *
objects_get(Objects *self, uint32_t place)
{
    if (self->sets == NULL)
        return NULL;
    ObjectSet *set = set_of(self, place);
    int way = way_of(set, place);
    if (way == WAYS)
        return NULL;
    set->bytes[way] |= USED;
    self->hits++;
    self->credit += self->credit < CREDIT_MAX;
    PyObject *value = Py_NewRef(set->master[way]->value), *copy = copied(value);
    Py_DECREF(value);
    return copy;
}

/* -- masters ------------------------------------------------------------------------------------- */

typedef struct {
    const Objects *tier;
    Py_ssize_t entries;
    size_t bytes;
    int depth;
    const char *base;
    int count;
    int32_t parts[PARTS_MAX];
} Measure;

/* Notes where a part is, as long as there is room for it. */
static void
note(Measure *measure, const void *part)
{
    ptrdiff_t away = ((const char *)part - measure->base) / PART_UNIT;
    if (measure->count < PARTS_MAX && away == (int32_t)away)
        measure->parts[measure->count++] = (int32_t)away;
}

/* Notes what a collection has outside its head, as far as it goes in the lines of the processor's cache. */
static void
note_table(Measure *measure, PyObject *object, size_t bytes)
{
    const void *table = NULL;
    if (PyDict_CheckExact(object))
        table = ((PyDictObject *)object)->ma_keys;
    else if (PyList_CheckExact(object))
        table = ((PyListObject *)object)->ob_item;
    for (size_t line = 0; table && line < bytes; line += LINE_BYTES)
        note(measure, (const char *)table + line);
}

static bool
count_bytes(Measure *measure, PyObject *object)
{
    PyObject *size = PyObject_CallOneArg(measure->tier->size_of, object);
    Py_ssize_t bytes = size == NULL ? -1 : PyLong_AsSsize_t(size);
    Py_XDECREF(size);
    measure->bytes += bytes < 0 ? 0 : ((size_t)bytes + 15) & ~(size_t)15;
    return bytes >= 0;
}

/* Keys of documents are shared, by the decoder.  A text that only one master, the value it is a copy of and the decoder have is
 * counted in full, over all places where that has it; the more have it, the smaller is the part that each counts. */
static bool
measure_text(Measure *measure, PyObject *object)
{
    size_t length = (size_t)PyUnicode_GET_LENGTH(object), width = (size_t)PyUnicode_KIND(object);
    if (length * width > (size_t)measure->tier->value_bytes_max)
        return false;
    size_t head = PyUnicode_IS_ASCII(object) ? sizeof(PyASCIIObject) : sizeof(PyCompactUnicodeObject);
    size_t bytes = (head + (length + 1) * width + 15) & ~(size_t)15, others = (size_t)Py_REFCNT(object) - 1;
    measure->bytes += others > 2 ? bytes * 2 / others : bytes;
    return true;
}

static bool
measure_immutable(Measure *measure, PyObject *object)
{
    if (++measure->entries > measure->tier->entries_max)
        return false;
    if (PyUnicode_CheckExact(object))
        return measure_text(measure, object);
    if (object == Py_None || PyBool_Check(object))
        return true;
    if (PyFloat_CheckExact(object)) {
        measure->bytes += 32;
        return true;
    }
    if (PyTuple_CheckExact(object)) {
        if (++measure->depth > DEPTH_MAX)
            return false;
        for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(object); at++)
            if (!measure_immutable(measure, PyTuple_GET_ITEM(object, at)))
                return false;
        measure->depth--;
        return count_bytes(measure, object);
    }
    if (PyLong_CheckExact(object) || PyBytes_CheckExact(object) || PyComplex_CheckExact(object)) {
        size_t before = measure->bytes;
        return count_bytes(measure, object) && measure->bytes - before <= 64u + (size_t)measure->tier->value_bytes_max;
    }
    PyObject *answer = PyObject_CallOneArg(measure->tier->is_immutable, (PyObject *)Py_TYPE(object));
    bool immutable = answer == Py_True && !PyFrozenSet_Check(object);
    Py_XDECREF(answer);
    measure->bytes += PARTS_BYTES;
    return immutable && count_bytes(measure, object);
}

static bool measure_value(Measure *measure, PyObject *object);

static bool
measure_collection(Measure *measure, PyObject *object)
{
    size_t before = measure->bytes;
    if (++measure->depth > DEPTH_MAX || !count_bytes(measure, object))
        return false;
    note(measure, object);
    note_table(measure, object, measure->bytes - before - HEAD_BYTES);
    if (PyDict_CheckExact(object)) {
        Py_ssize_t at = 0;
        PyObject *key, *value;
        while (PyDict_Next(object, &at, &key, &value))
            if (!measure_immutable(measure, key) || !measure_value(measure, value))
                return false;
    } else if (PyList_CheckExact(object)) {
        for (Py_ssize_t at = 0; at < PyList_GET_SIZE(object); at++)
            if (!measure_value(measure, PyList_GET_ITEM(object, at)))
                return false;
    } else {
        PyObject *items = PySequence_List(object); /* A set has no other way through it. */
        bool good = items != NULL;
        for (Py_ssize_t at = 0; good && at < PyList_GET_SIZE(items); at++)
            good = measure_immutable(measure, PyList_GET_ITEM(items, at));
        Py_XDECREF(items);
        if (!good)
            return false;
    }
    measure->depth--;
    return true;
}

static bool
measure_value(Measure *measure, PyObject *object)
{
    if (!is_collection(object)) {
        if (Py_REFCNT(object) < SHARED_MIN)
            note(measure, object);
        return measure_immutable(measure, object);
    }
    return ++measure->entries <= measure->tier->entries_max && measure_collection(measure, object);
}

/* From the collector's lists, with the collections in it: it refers to nothing that refers back. */
static void
untrack(PyObject *master)
{
    if (!is_collection(master))
        return;
    PyObject_GC_UnTrack(master);
    if (PyList_CheckExact(master)) {
        for (Py_ssize_t at = 0; at < PyList_GET_SIZE(master); at++)
            untrack(PyList_GET_ITEM(master, at));
    } else if (PyDict_CheckExact(master)) {
        Py_ssize_t at = 0;
        PyObject *key, *value;
        while (PyDict_Next(master, &at, &key, &value))
            untrack(value);
    }
}

ObjectMaster *
objects_master(const Objects *self, PyObject *value, size_t *bytes)
{
    PyObject *copy = copied(value);
    if (copy == NULL)
        return NULL;
    /* From here on nobody else can change it, whatever runs. */
    untrack(copy);
    Measure measure = {.tier = self, .bytes = 16, .base = (const char *)copy};
    bool good = measure_value(&measure, copy);
    size_t parts_bytes = (size_t)measure.count * sizeof *measure.parts;
    *bytes = (measure.bytes + sizeof(ObjectMaster) + parts_bytes + 15) & ~(size_t)15;
    ObjectMaster *master = good && *bytes <= self->bytes_max / 16 ? PyMem_Malloc(sizeof *master + parts_bytes) : NULL;
    if (master == NULL) {
        Py_DECREF(copy);
        return NULL;
    }
    master->value = copy;
    master->count = measure.count;
    memcpy(master->parts, measure.parts, parts_bytes);
    return master;
}

/* -- which are kept ------------------------------------------------------------------------------ */

/* Whether one of a set may leave for another; if all were used, none the next time. */
static bool
makes_way(ObjectSet *set, uint32_t place)
{
    for (int way = 0; way < WAYS; way++)
        if (set->master[way] == NULL || set->place[way] == place || !(set->bytes[way] & USED))
            return true;
    for (int way = 0; way < WAYS; way++)
        set->bytes[way] &= ~USED;
    return false;
}

/* Whether keeping one more can pay: where others leave for it, those that are kept must have been given out so often. */
static bool
pays(Objects *self)
{
    size_t mean = self->count ? (self->used_bytes - table_bytes(self)) / (size_t)self->count : 0;
    if (self->used_bytes + mean <= self->bytes_max)
        return true;
    if (self->credit < HITS_FOR_ONE)
        return false;
    self->credit -= HITS_FOR_ONE;
    return true;
}

bool
objects_wanted(Objects *self, uint32_t place)
{
    if (self->bytes_max == 0 || (self->sets == NULL && !begin(self)))
        return false;
    uint32_t hash = mixed(place);
    uint64_t *seen = &self->seen[hash & (self->set_count * SEEN_PER_SET - 1)], mark = hash >> 16 | 1;
    bool wanted = false;
    for (int lane = 0; lane < 64; lane += 16)
        wanted |= (*seen >> lane & 0xFFFF) == mark;
    if (!wanted)
        *seen = *seen << 16 | mark;
    return wanted && pays(self) && makes_way(set_of(self, place), place);
}

/* Lets the hand go on by some sets: what was not used since it last came leaves. */
static void
sweep(Objects *self, size_t bytes)
{
    Dropped dropped = {.count = 0};
    for (int turn = 0; turn < SWEEP_SETS && self->used_bytes + bytes > self->bytes_max; turn++) {
        ObjectSet *set = &self->sets[self->hand++ & (self->set_count - 1)];
        for (int way = 0; way < WAYS; way++) {
            if (set->master[way] != NULL && !(set->bytes[way] & USED))
                drop(self, set, way, &dropped);
            set->bytes[way] &= ~USED;
        }
    }
    let_go(&dropped);
}

bool
objects_make_room(Objects *self, size_t bytes)
{
    if (self->sets != NULL && self->used_bytes + bytes > self->bytes_max)
        sweep(self, bytes);
    return self->sets != NULL && self->used_bytes + bytes <= self->bytes_max;
}

void
objects_put(Objects *self, uint32_t place, ObjectMaster *master, size_t bytes)
{
    ObjectSet *set = set_of(self, place);
    Dropped dropped = {.count = 0};
    int chosen = -1;
    for (int way = 0; way < WAYS; way++)
        if (set->place[way] == place || (chosen < 0 && set->master[way] == NULL))
            chosen = way;
    for (int way = 0; way < WAYS && chosen < 0; way++)
        if (!(set->bytes[way] & USED))
            chosen = way;
    if (chosen < 0)
        chosen = 0; /* They were used since `objects_wanted` found one that was not. */
    if (set->master[chosen] != NULL)
        drop(self, set, chosen, &dropped);
    set->place[chosen] = place;
    set->bytes[chosen] = (uint32_t)bytes;
    set->master[chosen] = master;
    self->used_bytes += bytes;
    self->count++;
    let_go(&dropped);
}

bool
objects_add_up(const Objects *self)
{
    size_t bytes = self->sets == NULL ? 0 : table_bytes(self);
    Py_ssize_t count = 0;
    for (uint32_t i = 0; i < self->set_count; i++)
        for (int way = 0; way < WAYS; way++)
            if (self->sets[i].master[way] != NULL) {
                bytes += self->sets[i].bytes[way] & ~USED;
                count++;
            }
    return bytes == self->used_bytes && count == self->count;
}
