/* Records in the order of their keys, from the pages of an LMDB snapshot: of all layers, the newest of each key.  As in
 * pages.c, the interpreter lock is let go of once for many of them, and what cannot be is told as damage.  No walk
 * goes round, whatever the pages hold: each key must come after the one before. */
#include "page.h"

#include "record.h"
#include "slots.h"

/* Of one slice; EXAMINED_MAX is with what newer layers hide: the transaction should be short. */
enum { RECORDS_MAX = 1 << 16, EXAMINED_MAX = 8192 };

/* What a walk begins and ends with, in its direction; without data there is no such bound.  Forward, the first key is not
 * before `from`, and the last one before `to`; backwards, the first is before `from`, and the last not before `to`. */
typedef struct {
    PageBytes from, to;
    bool reverse;
} Bounds;

/* Where it is in a database: in each page on the way down the nodes that were not gone through, the current one included,
 * which is the first, or backwards the last. */
typedef struct {
    const TieredPages *pages;
    PagePlace places[LEVELS_MAX];
    PageBytes key, value; /* Of the current node of the leaf, unless one of these is true: */
    bool damaged, ended;
} Walk;

typedef struct {
    PageBytes key, value;
} Entry;

/* Some records, and what was looked at for them. */
typedef struct {
    Entry *entries;
    size_t count, bytes, examined;
    PageBytes last;
    bool damaged, ended;
} Slice;

static inline int
order_in(const Bounds *bounds, PageBytes one, PageBytes other)
{
    int order = compare(one, other);
    return bounds->reverse ? -order : order;
}

static inline unsigned
current(const Bounds *bounds, const PagePlace *place)
{
    return bounds->reverse ? place->high - 1 : place->low;
}

static inline void
leave(const Bounds *bounds, PagePlace *place)
{
    if (bounds->reverse)
        place->high--;
    else
        place->low++;
}

static inline bool
is_branch(const Walk *walk, int level)
{
    return level < walk->pages->levels - 1;
}

/* All nodes of a page. */
static bool
enter(Walk *walk, const unsigned char *page, int level)
{
    PagePlace *place = &walk->places[level];
    if (page == NULL || !open_page(walk->pages, page, is_branch(walk, level), place))
        return false;
    place->low = 0; /* Of a branch, too: its first node has no key, but leads somewhere. */
    return true;
}

static inline bool
enter_below(Walk *walk, const Bounds *bounds, int level)
{
    const PagePlace *place = &walk->places[level];
    return enter(walk, page_below(walk->pages, place->page, current(bounds, place)), level + 1);
}

/* Leaves the nodes out that lie before `from`. */
static bool
cut(const Walk *walk, const Bounds *bounds, PagePlace *place, bool branch)
{
    PagePlace found = *place;
    found.low = branch;
    while (found.low < found.high)
        if (!narrow(walk->pages, bounds->from, &found))
            return false;
    unsigned first = found.low; /* The first one whose key is greater, if there is any. */
    if (branch) {
        first--; /* What is not greater is below the one before. */
    } else if (first) {
        const unsigned char *node = node_at(walk->pages, place->page, first - 1);
        first -= node && compare(bounds->from, key_of(node)) == 0;
    }
    if (bounds->reverse)
        place->high = first + branch;
    else
        place->low = first;
    return true;
}

/* Goes to the current node of the leaf, or, if none is left there, of the next one; false if there is damage. */
static bool
settle(Walk *walk, const Bounds *bounds)
{
    int leaf = walk->pages->levels - 1, level = leaf;
    while (walk->places[level].low >= walk->places[level].high) {
        walk->ended = level == 0;
        if (walk->ended)
            return true;
        leave(bounds, &walk->places[--level]);
    }
    for (; level < leaf; level++)
        if (!enter_below(walk, bounds, level))
            return false;
    const PagePlace *place = &walk->places[leaf];
    const unsigned char *node = node_at(walk->pages, place->page, current(bounds, place));
    if (node == NULL || !value_of(walk->pages, place->page, node, &walk->value))
        return false;
    PageBytes before = walk->key.data ? walk->key : bounds->from;
    int order = before.data ? order_in(bounds, before, key_of(node)) : -1;
    if (order > 0 || (order == 0 && (walk->key.data || bounds->reverse)))
        return false;
    walk->key = key_of(node);
    order = bounds->to.data ? order_in(bounds, walk->key, bounds->to) : -1;
    walk->ended = bounds->reverse ? order > 0 : order >= 0;
    return true;
}

static void
begin(Walk *walk, const TieredPages *pages, const Bounds *bounds)
{
    *walk = (Walk){.pages = pages, .ended = pages->levels == 0};
    if (walk->ended)
        return;
    bool done = enter(walk, page_at(pages, pages->root), 0);
    for (int level = 0; done && level < pages->levels; level++) {
        bool branch = is_branch(walk, level);
        done = (!bounds->from.data || cut(walk, bounds, &walk->places[level], branch))
            && (!branch || enter_below(walk, bounds, level));
    }
    walk->damaged = !done || !settle(walk, bounds);
}

static inline void
advance(Walk *walk, const Bounds *bounds)
{
    leave(bounds, &walk->places[walk->pages->levels - 1]);
    walk->damaged = !settle(walk, bounds);
}

static inline bool
is_marker(PageBytes record)
{
    return record.size == RECORD_HEADER_BYTES && record.data[7] & RECORD_IS_MARKER;
}

/* The walk that comes to its key first, the newest of several with the same one. */
static Walk *
next_of(Walk *walks, int count, const Bounds *bounds, Slice *slice)
{
    Walk *next = NULL;
    for (int i = 0; i < count; i++) {
        slice->damaged |= walks[i].damaged;
        if (!walks[i].damaged && !walks[i].ended && (!next || order_in(bounds, walks[i].key, next->key) < 0))
            next = &walks[i];
    }
    slice->ended = next == NULL && !slice->damaged;
    return slice->damaged ? NULL : next;
}

static void
fill(Slice *slice, const PagesLayer *layers, int count, const Bounds *bounds, size_t records_max, size_t bytes_max)
{
    Walk walks[PAGES_LAYERS_MAX], *next;
    for (int i = 0; i < count; i++)
        begin(&walks[i], layers[i].pages, bounds);
    while ((next = next_of(walks, count, bounds, slice)) != NULL) {
        if (slice->count == records_max || slice->bytes >= bytes_max || slice->examined >= EXAMINED_MAX)
            return;
        PageBytes key = next->key;
        if (!is_marker(next->value)) {
            slice->entries[slice->count++] = (Entry){key, next->value};
            slice->bytes += key.size + next->value.size;
        }
        slice->last = key;
        for (Walk *walk = next; walk < walks + count; walk++) /* Of those before it, none has the key. */
            if (walk == next || (!walk->damaged && !walk->ended && compare(walk->key, key) == 0)) {
                advance(walk, bounds);
                slice->examined++;
            }
    }
}

/* -- for Python --------------------------------------------------------------------------------- */

static PyObject *
bytes_of(PageBytes bytes)
{
    return PyBytes_FromStringAndSize((const char *)bytes.data, (Py_ssize_t)bytes.size);
}

/* A list of new references, which it takes, though one be missing. */
static PyObject *
list_of(PyObject **objects, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    bool good = list != NULL;
    for (size_t i = 0; i < count; i++) {
        good = good && objects[i];
        if (list)
            PyList_SET_ITEM(list, (Py_ssize_t)i, objects[i]);
        else
            Py_XDECREF(objects[i]);
    }
    if (!good)
        Py_CLEAR(list);
    return list;
}

/* Everything is copied before lists are made, which may have Python run, and so the pages go. */
static PyObject *
result_of(const Slice *slice, PyObject **keys, PyObject **values)
{
    for (size_t i = 0; i < slice->count; i++) {
        keys[i] = bytes_of(slice->entries[i].key);
        values[i] = bytes_of(slice->entries[i].value);
    }
    PyObject *last = slice->ended || !slice->last.data ? Py_NewRef(Py_None) : bytes_of(slice->last);
    PyObject *all_keys = list_of(keys, slice->count), *all_values = list_of(values, slice->count), *result = NULL;
    if (last && all_keys && all_values)
        result = PyTuple_Pack(4, all_keys, all_values, last, slice->damaged ? Py_True : Py_False);
    Py_XDECREF(all_keys);
    Py_XDECREF(all_values);
    Py_XDECREF(last);
    return result;
}

/* The bytes of an object, none of None; false with an error set. */
static bool
bound_of(PyObject *object, PageBytes *bound)
{
    *bound = (PageBytes){NULL, 0};
    if (PyBytes_CheckExact(object))
        *bound = (PageBytes){(const unsigned char *)PyBytes_AS_STRING(object), (size_t)PyBytes_GET_SIZE(object)};
    else if (object != Py_None)
        PyErr_SetString(PyExc_TypeError, "a bound is bytes or None");
    return object == Py_None || bound->data;
}

static PyObject *
pages_slice(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    Bounds bounds;
    PagesLayer layers[PAGES_LAYERS_MAX];
    if (count != 7 || !PyList_CheckExact(args[0]))
        return PyErr_Format(PyExc_TypeError, "pages_slice(layers, from, to, reverse, records_max, bytes_max, cold)");
    size_t records_max = PyLong_AsSize_t(args[4]), bytes_max = PyErr_Occurred() ? 0 : PyLong_AsSize_t(args[5]);
    if (PyErr_Occurred() || !bound_of(args[1], &bounds.from) || !bound_of(args[2], &bounds.to))
        return NULL;
    if (records_max > RECORDS_MAX)
        return PyErr_Format(PyExc_OverflowError, "pages_slice() gives no more than %d records at once", RECORDS_MAX);
    bounds.reverse = args[3] == Py_True;
    int layer_count = tiered_layers(args[0], layers);
    /* Closed meanwhile by this very thread, in a handler of signals, the cold tier has no map any more; others wait. */
    if (layer_count < 0 || (args[6] != Py_None && tiered_is_true(args[6], NAME__barred)))
        Py_RETURN_NONE;
    Slice slice = {.entries = PyMem_Malloc(records_max * sizeof(Entry) + 1)};
    PyObject **copies = PyMem_Calloc(2 * records_max + 1, sizeof *copies), *result = NULL;
    if (slice.entries && copies && !PyErr_Occurred()) {
        Py_BEGIN_ALLOW_THREADS /* Pages may have to come from the disk. */
        fill(&slice, layers, layer_count, &bounds, records_max, bytes_max);
        Py_END_ALLOW_THREADS
        result = result_of(&slice, copies, copies + records_max);
    } else if (!PyErr_Occurred()) {
        PyErr_NoMemory();
    }
    PyMem_Free(slice.entries);
    PyMem_Free(copies);
    return result;
}

static PyMethodDef methods[] = {
    {"pages_slice", (PyCFunction)(void (*)(void))pages_slice, METH_FASTCALL,
     "pages_slice(layers, from, to, reverse, records_max, bytes_max, cold): records in the order of their keys, the newest of\n"
     "each, markers left out: their keys, themselves, the last key looked at, None if there are no more, and whether a damaged\n"
     "page comes after that.  None in place of it all if the pages are not to be looked at."},
    {NULL, NULL, 0, NULL},
};

int
tiered_add_page_walk(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
