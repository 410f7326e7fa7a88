/* Look-ups in the pages of an LMDB snapshot, as `mdb_get` does them, but without LMDB: the interpreter lock is let go of
 * once for many keys, nothing is copied, of keys in order each begins where the one before went, and the searches in several
 * pages take turns, so that each finds what it looks at next fetched from memory by then.
 *
 * A read transaction of LMDB's, open meanwhile, keeps the pages as they are.  They may still be damaged: what cannot be is told
 * as damage (page.h has the format). */
#define _DEFAULT_SOURCE /* sysconf, msync */
#include "page.h"

#include "filters.h"
#include "slots.h"

#include <sys/mman.h>
#include <unistd.h>

enum { DATABASE_BYTES = 48, DATABASE_FLAGS = 4, DATABASE_LEVELS = 6, DATABASE_ROOT = 40, AT_ONCE = 16, LINE_BYTES = 64 };
static const char CAPSULE[] = "tiered.pages";
static const uint32_t MAGIC = 0xBEEFC0DE, VERSION = 1;

static inline void
fetch_middle(const TieredPages *pages, const PagePlace *place)
{
    unsigned offset = offset_of(place->page, (place->low + place->high) / 2);
    if (offset < pages->page_bytes)
        __builtin_prefetch(place->page + offset);
}

/* -- searches ----------------------------------------------------------------------------------- */

static inline PageBytes
sought(const PageSearch *search)
{
    return (PageBytes){search->key, search->key_size};
}

/* The value of the node before the place, if that has the key. */
static void
take(const TieredPages *pages, PageSearch *search)
{
    const unsigned char *page = search->place.page, *node;
    PageBytes value;
    search->state = PAGES_ABSENT;
    if (search->place.low == 0)
        return;
    search->state = PAGES_DAMAGED;
    node = node_at(pages, page, search->place.low - 1);
    if (node == NULL)
        return;
    if (compare(sought(search), key_of(node)) != 0) {
        search->state = PAGES_ABSENT;
    } else if (value_of(pages, page, node, &value)) {
        search->data = value.data;
        search->data_size = value.size;
        search->state = PAGES_FOUND;
    }
}

static void
find(const TieredPages *pages, PageSearch *search)
{
    const unsigned char *page = page_at(pages, pages->root);
    search->state = pages->levels ? PAGES_DAMAGED : PAGES_ABSENT;
    for (int level = 1; page && level <= pages->levels; level++) {
        if (!open_page(pages, page, level < pages->levels, &search->place))
            return;
        while (search->place.low < search->place.high)
            if (!narrow(pages, sought(search), &search->place))
                return;
        if (level == pages->levels)
            take(pages, search);
        else
            page = page_below(pages, search->place.page, search->place.low - 1);
    }
}

/* How a search came down: its place in each branch, all nodes behind it left. */
typedef struct {
    PagePlace places[LEVELS_MAX];
    int depth;
} Path;

/* Moves a place in a branch forward, first by one node, then by twice as many each time, and back as `narrow` does. */
static bool
forward(const TieredPages *pages, const PageSearch *search, PagePlace *place)
{
    unsigned high = place->high, step = 1;
    while (place->low < high) {
        unsigned next = place->low + step - 1 < high ? place->low + step - 1 : high - 1;
        const unsigned char *node = node_at(pages, place->page, next);
        if (node == NULL)
            return false;
        if (compare(sought(search), key_of(node)) < 0) {
            place->high = next;
            break;
        }
        place->low = next + 1;
        step *= 2;
    }
    while (place->low < place->high)
        if (!narrow(pages, sought(search), place))
            return false;
    place->high = high;
    return true;
}

/* The leaf, which is not looked at, that may have a key not less than the one before it; NULL if there is damage on the way. */
static const unsigned char *
leaf_of(const TieredPages *pages, const PageSearch *search, Path *path)
{
    const unsigned char *page = page_at(pages, pages->root);
    for (int level = 0; page && level < pages->levels - 1; level++) {
        PagePlace *place = &path->places[level];
        bool known = level < path->depth && place->page == page;
        path->depth = known ? path->depth : level; /* What is below belongs to another page. */
        if ((!known && !open_page(pages, page, true, place)) || !forward(pages, search, place)) {
            path->depth = level;
            return NULL;
        }
        path->depth += !known;
        page = page_below(pages, place->page, place->low - 1);
    }
    return page;
}

/* Looks in the leaves, in turns. */
static void
find_in_leaves(const TieredPages *pages, PageSearch *searches, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (searches[i].place.page && open_page(pages, searches[i].place.page, false, &searches[i].place))
            fetch_middle(pages, &searches[i].place);
        else
            searches[i].state = PAGES_DAMAGED;
    for (bool busy = true; busy;) {
        busy = false;
        for (size_t i = 0; i < count; i++) {
            PageSearch *search = &searches[i];
            if (search->state != PAGES_SEARCHING || search->place.low == search->place.high)
                continue;
            if (!narrow(pages, sought(search), &search->place))
                search->state = PAGES_DAMAGED;
            else if (search->place.low < search->place.high)
                fetch_middle(pages, &search->place);
            busy = true;
        }
    }
    for (size_t i = 0; i < count; i++)
        if (searches[i].state == PAGES_SEARCHING)
            take(pages, &searches[i]);
}

static void
find_many(const TieredPages *pages, PageSearch *searches, size_t count)
{
    Path path = {.depth = 0};
    for (size_t i = 0; i < count; i++)
        searches[i].state = pages->levels ? PAGES_SEARCHING : PAGES_ABSENT;
    for (size_t done = 0; pages->levels && done < count; done += AT_ONCE) {
        size_t some = count - done < AT_ONCE ? count - done : AT_ONCE;
        for (size_t i = done; i < done + some; i++) {
            searches[i].place.page = leaf_of(pages, &searches[i], &path);
            if (searches[i].place.page) {
                __builtin_prefetch(searches[i].place.page);
                __builtin_prefetch(searches[i].place.page + LINE_BYTES);
            }
        }
        find_in_leaves(pages, searches + done, some);
    }
}

/* -- the pages of a database -------------------------------------------------------------------- */

static void
forget(PyObject *capsule)
{
    PyMem_Free(PyCapsule_GetPointer(capsule, CAPSULE));
}

/* Where the map begins that a value of one page lies in, or NULL: the page has its number, and the first page of all is known
 * by its looks. */
static const unsigned char *
map_around(const unsigned char *value, size_t page_bytes)
{
    const unsigned char *page = value - (uintptr_t)value % page_bytes;
    uint64_t number = number64(page);
    if (flags_of(page) != PAGE_IS_LEAF || number > (uintptr_t)page / page_bytes)
        return NULL;
    const unsigned char *map = page - number * page_bytes;
    if (msync((void *)map, page_bytes, MS_ASYNC) != 0) /* Nothing is there. */
        return NULL;
    bool known = number64(map) == 0 && flags_of(map) == PAGE_IS_META && number32(map + HEADER_BYTES) == MAGIC
        && number32(map + HEADER_BYTES + 4) == VERSION;
    return known ? map : NULL;
}

static PyObject *
pages_map(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    Py_buffer value;
    size_t page_bytes = count == 2 ? PyLong_AsSize_t(args[1]) : 0;
    if (PyErr_Occurred())
        return NULL;
    if (count != 2 || !PyObject_CheckBuffer(args[0]))
        return PyErr_Format(PyExc_TypeError, "pages_map(value, page_bytes), the first in a page of the map");
    if (PyObject_GetBuffer(args[0], &value, PyBUF_SIMPLE) < 0)
        return NULL;
    const unsigned char *map = NULL;
    if (sizeof(void *) == 8 && page_bytes == (size_t)sysconf(_SC_PAGESIZE) && value.len == DATABASE_BYTES)
        map = map_around(value.buf, page_bytes);
    PyBuffer_Release(&value);
    if (map == NULL)
        Py_RETURN_NONE;
    return PyLong_FromVoidPtr((void *)map);
}

static PyObject *
pages_of(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 4 || !PyBytes_CheckExact(args[3]) || PyBytes_GET_SIZE(args[3]) != DATABASE_BYTES)
        return PyErr_Format(PyExc_TypeError, "pages_of(map, page_bytes, count, database)");
    const unsigned char *database = (const unsigned char *)PyBytes_AS_STRING(args[3]);
    TieredPages pages = {.map = PyLong_AsVoidPtr(args[0]), .page_bytes = PyLong_AsSize_t(args[1])};
    pages.count = PyLong_AsUnsignedLongLong(args[2]);
    pages.root = number64(database + DATABASE_ROOT);
    if (PyErr_Occurred())
        return NULL;
    pages.levels = (int)number16(database + DATABASE_LEVELS);
    /* Sorted in another way, with several values for a key, or with more levels than any has. */
    if (number16(database + DATABASE_FLAGS) || pages.levels > LEVELS_MAX)
        Py_RETURN_NONE;
    TieredPages *kept = PyMem_Malloc(sizeof *kept);
    if (kept == NULL)
        return PyErr_NoMemory();
    *kept = pages;
    PyObject *capsule = PyCapsule_New(kept, CAPSULE, forget);
    if (capsule == NULL)
        PyMem_Free(kept);
    return capsule;
}

/* -- layers ------------------------------------------------------------------------------------- */

int
tiered_layers(PyObject *list, PagesLayer *layers)
{
    int count = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        PyObject *layer = PyList_GET_ITEM(list, i), *filter = PyTuple_GET_ITEM(layer, LAYER_FILTER);
        PyObject *pages = PyTuple_GET_ITEM(layer, LAYER_PAGES);
        if (count == PAGES_LAYERS_MAX || !PyCapsule_IsValid(pages, CAPSULE))
            return -1;
        layers[count] = (PagesLayer){.pages = PyCapsule_GetPointer(pages, CAPSULE)};
        if (PyBytes_CheckExact(filter)) {
            layers[count].filter = (const unsigned char *)PyBytes_AS_STRING(filter);
            layers[count].filter_bytes = (size_t)PyBytes_GET_SIZE(filter);
        }
        count++;
    }
    return count;
}

static bool
may_have(const PagesLayer *layer, const PageSearch *search)
{
    return search->state == PAGES_ABSENT && tiered_filter_has(layer->filter, layer->filter_bytes, search->key, search->key_size);
}

void
tiered_layers_find(const PagesLayer *layers, int count, PageSearch *search)
{
    search->state = PAGES_ABSENT;
    for (int i = 0; i < count; i++)
        if (may_have(&layers[i], search))
            find(layers[i].pages, search);
}

void
tiered_layers_find_many(const PagesLayer *layers, int count, PageSearch *searches, size_t keys, PageSearch *asked)
{
    for (size_t key = 0; key < keys; key++)
        searches[key].state = PAGES_ABSENT;
    for (int i = 0; i < count; i++) {
        size_t some = 0, done = 0;
        for (size_t key = 0; key < keys; key++)
            if (may_have(&layers[i], &searches[key])) {
                asked[some++] = searches[key];
                searches[key].state = PAGES_SEARCHING;
            }
        find_many(layers[i].pages, asked, some);
        for (size_t key = 0; key < keys; key++)
            if (searches[key].state == PAGES_SEARCHING)
                searches[key] = asked[done++];
    }
}

static PyObject *
records_of(const PageSearch *searches, size_t keys)
{
    PyObject *records = PyList_New((Py_ssize_t)keys);
    for (size_t key = 0; records && key < keys; key++) {
        PyObject *record = Py_None;
        if (searches[key].state == PAGES_FOUND)
            record = PyBytes_FromStringAndSize((const char *)searches[key].data, (Py_ssize_t)searches[key].data_size);
        else
            Py_INCREF(record);
        if (record == NULL)
            Py_CLEAR(records);
        else
            PyList_SET_ITEM(records, (Py_ssize_t)key, record);
    }
    return records;
}

/* Takes the keys of a list; false with an error set, where they are not bytes in ascending order. */
static bool
begin(PyObject *list, PageSearch *searches)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        PyObject *key = PyList_GET_ITEM(list, i);
        if (!PyBytes_CheckExact(key) || (i && PyObject_RichCompareBool(PyList_GET_ITEM(list, i - 1), key, Py_GT))) {
            PyErr_SetString(PyExc_ValueError, "keys are bytes, in ascending order");
            return false;
        }
        searches[i].key = (const unsigned char *)PyBytes_AS_STRING(key);
        searches[i].key_size = (size_t)PyBytes_GET_SIZE(key);
    }
    return true;
}

static PyObject *
pages_find(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count < 2 || count > 3 || !PyList_CheckExact(args[0]) || !PyList_CheckExact(args[1]))
        return PyErr_Format(PyExc_TypeError, "pages_find(layers, keys, cold), two lists and the cold tier");
    PagesLayer layers[PAGES_LAYERS_MAX];
    int layer_count = tiered_layers(args[0], layers);
    if (layer_count < 0)
        Py_RETURN_NONE;
    /* Of its own, since others may change the caller's while they have the interpreter. */
    PyObject *list = PySequence_List(args[1]), *records = NULL;
    size_t keys = list ? (size_t)PyList_GET_SIZE(list) : 0;
    PageSearch *searches = PyMem_Malloc((2 * keys + 1) * sizeof *searches);
    size_t damaged = keys;
    /* Closed meanwhile by this very thread, in a handler of signals, it has no map any more; others wait. */
    if (list && searches && count == 3 && tiered_is_true(args[2], NAME__barred)) {
        records = Py_NewRef(Py_None);
    } else if (list && searches && !PyErr_Occurred() && begin(list, searches)) {
        Py_BEGIN_ALLOW_THREADS
        tiered_layers_find_many(layers, layer_count, searches, keys, searches + keys);
        for (size_t key = keys; key--;)
            damaged = searches[key].state == PAGES_DAMAGED ? key : damaged;
        Py_END_ALLOW_THREADS
        if (damaged == keys)
            records = records_of(searches, keys);
        else
            records = Py_NewRef(PyList_GET_ITEM(list, (Py_ssize_t)damaged));
    }
    if (!searches && list)
        PyErr_NoMemory();
    PyMem_Free(searches);
    Py_XDECREF(list);
    return records;
}

static PyMethodDef methods[] = {
    {"pages_find", (PyCFunction)(void (*)(void))pages_find, METH_FASTCALL,
     "pages_find(layers, keys, cold=None): the newest record of each of these keys, ascending, or None; in place of the list\n"
     "a key that a damaged page kept from being found, and None if the pages are not to be looked at."},
    {"pages_map", (PyCFunction)(void (*)(void))pages_map, METH_FASTCALL,
     "pages_map(value, page_bytes): where LMDB's map is in memory that the entry of a database lies in; None if unknown."},
    {"pages_of", (PyCFunction)(void (*)(void))pages_of, METH_FASTCALL,
     "pages_of(map, page_bytes, count, database): the pages of a database, by its entry, to be searched; None if they cannot."},
    {NULL, NULL, 0, NULL},
};

int
tiered_add_pages(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
