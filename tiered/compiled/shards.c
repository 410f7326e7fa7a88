/* `Shards`: the sample of keys from which the advisor has its curve (tiered/advisor.py, whose `PureShards` says what each
 * step is for).  A use of a key that is not in the sample costs one comparison.  No call runs Python code. */
#include "shards.h"

#include <stddef.h>
#include <string.h>
#include <structmember.h>

#define STEP_BITS 5
#define BUCKETS (64u << STEP_BITS)
#define HASHES ((uint64_t)1 << 32)

struct TieredShards {
    PyObject_HEAD
    uint64_t limit, reads, total;
    double first_reads;
    uint32_t keys_max, count, next, slots, slot_mask;
    double *counts;     /* By bucket. */
    uint64_t *tree;     /* Fenwick's, over the sizes; the first is unused. */
    uint32_t *hashes, *sizes; /* By order of use. */
    uint32_t *table;    /* From a hash to its place and one more; 0 is empty. */
};

static unsigned
bucket_of(uint64_t distance)
{
    unsigned bits = distance ? 64u - (unsigned)__builtin_clzll(distance) : 0;
    unsigned power = bits > STEP_BITS + 1 ? bits - 1 - STEP_BITS : 0;
    return (power << STEP_BITS) + (unsigned)(distance >> power);
}

static uint32_t *
slot_of(const TieredShards *s, uint32_t hash)
{
    uint32_t at = hash & s->slot_mask;
    while (s->table[at] && s->hashes[s->table[at] - 1] != hash)
        at = (at + 1) & s->slot_mask;
    return s->table + at;
}

static uint64_t
up_to(const TieredShards *s, uint32_t place)
{
    uint64_t total = 0;
    for (uint32_t at = place + 1; at; at &= at - 1)
        total += s->tree[at];
    return total;
}

/* Of a negative size its complement, which does the same modulo 2^64. */
static void
add(TieredShards *s, uint32_t place, uint64_t size)
{
    s->total += size;
    for (uint32_t at = place + 1; at <= s->slots; at += at & (0u - at))
        s->tree[at] += size;
}

static void
renumber(TieredShards *s)
{
    uint32_t kept = 0;
    s->total = 0;
    memset(s->table, 0, (s->slot_mask + 1u) * sizeof *s->table);
    for (uint32_t place = 0; place < s->next; place++) {
        if (s->sizes[place] == 0 || s->hashes[place] >= s->limit)
            continue;
        s->sizes[kept] = s->sizes[place];
        s->hashes[kept] = s->hashes[place];
        s->total += s->sizes[kept];
        *slot_of(s, s->hashes[kept]) = kept + 1;
        kept++;
    }
    s->next = s->count = kept;
    memset(s->sizes + kept, 0, (s->slots - kept) * sizeof *s->sizes);
    for (uint32_t at = 1; at <= s->slots; at++)
        s->tree[at] = s->sizes[at - 1];
    for (uint32_t at = 1; at <= s->slots; at++) {
        uint32_t above = at + (at & (0u - at));
        if (above <= s->slots)
            s->tree[above] += s->tree[at];
    }
}

static void
lower(TieredShards *s)
{
    uint64_t before = s->limit;
    while (s->count > s->keys_max) {
        s->limit -= s->limit / 8 ? s->limit / 8 : 1;
        renumber(s);
    }
    double share = (double)s->limit / (double)before;
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++)
        s->counts[bucket] *= share;
    s->first_reads *= share;
}

void
tiered_shards_touch(TieredShards *s, uint32_t hash, uint32_t size, int counted)
{
    s->reads += counted != 0;
    if (hash >= s->limit)
        return;
    uint32_t *slot = slot_of(s, hash);
    if (*slot) {
        uint32_t place = *slot - 1, old = s->sizes[place];
        if (counted) {
            double since = (double)(s->total - up_to(s, place)) * ((double)HASHES / (double)s->limit);
            s->counts[bucket_of((uint64_t)since + old)] += 1.0;
        }
        s->sizes[place] = 0;
        add(s, place, 0 - (uint64_t)old);
    } else {
        s->count++;
        s->first_reads += counted != 0;
    }
    if (s->next == s->slots) {
        /* This key's place may be among those that have gone. */
        uint32_t count = s->count;
        renumber(s);
        s->count = count;
        slot = slot_of(s, hash);
    }
    *slot = s->next + 1;
    s->hashes[s->next] = hash;
    s->sizes[s->next] = size ? size : 1;
    add(s, s->next, s->sizes[s->next]);
    s->next++;
    if (s->count > s->keys_max)
        lower(s);
}

static PyObject *
shards_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    static char *names[] = {"keys_max", NULL};
    unsigned int keys_max = 16000; /* As in tiered/advisor.py. */
    if (!PyArg_ParseTupleAndKeywords(args, named, "|I:Shards", names, &keys_max))
        return NULL;
    if (keys_max < 1 || keys_max > 1u << 20)
        return PyErr_Format(PyExc_ValueError, "keys_max is a number from 1 to %u", 1u << 20);
    TieredShards *s = (TieredShards *)type->tp_alloc(type, 0);
    if (s == NULL)
        return NULL;
    s->keys_max = keys_max;
    s->slots = 2 * keys_max;
    s->limit = HASHES;
    for (s->slot_mask = 1; s->slot_mask < 3 * keys_max; s->slot_mask = s->slot_mask << 1 | 1)
        ;
    s->counts = PyMem_Calloc(BUCKETS, sizeof *s->counts);
    s->tree = PyMem_Calloc(s->slots + 1u, sizeof *s->tree);
    s->hashes = PyMem_Calloc(s->slots, sizeof *s->hashes);
    s->sizes = PyMem_Calloc(s->slots, sizeof *s->sizes);
    s->table = PyMem_Calloc(s->slot_mask + 1u, sizeof *s->table);
    if (s->counts && s->tree && s->hashes && s->sizes && s->table)
        return (PyObject *)s;
    Py_DECREF(s);
    return PyErr_NoMemory();
}

static void
shards_dealloc(TieredShards *s)
{
    PyMem_Free(s->counts);
    PyMem_Free(s->tree);
    PyMem_Free(s->hashes);
    PyMem_Free(s->sizes);
    PyMem_Free(s->table);
    Py_TYPE(s)->tp_free((PyObject *)s);
}

static PyObject *
shards_touch(TieredShards *s, PyObject *args)
{
    unsigned int hash, size;
    int counted;
    if (!PyArg_ParseTuple(args, "IIp:touch", &hash, &size, &counted))
        return NULL;
    tiered_shards_touch(s, hash, size, counted);
    Py_RETURN_NONE;
}

static PyObject *
shards_counts(TieredShards *s, PyObject *Py_UNUSED(ignored))
{
    PyObject *list = PyList_New(BUCKETS);
    for (unsigned bucket = 0; list != NULL && bucket < BUCKETS; bucket++) {
        PyObject *count = PyFloat_FromDouble(s->counts[bucket]);
        if (count == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, bucket, count);
    }
    return list;
}

static Py_ssize_t
shards_length(TieredShards *s)
{
    return s->count;
}

static PyObject *
shards_sizeof(TieredShards *s, PyObject *Py_UNUSED(ignored))
{
    size_t bytes = sizeof *s + BUCKETS * sizeof *s->counts + (s->slots + 1u) * sizeof *s->tree
        + s->slots * (sizeof *s->hashes + sizeof *s->sizes) + (s->slot_mask + 1u) * sizeof *s->table;
    return PyLong_FromSize_t(bytes);
}

static PyMemberDef shards_members[] = {
    {"limit", T_ULONGLONG, offsetof(TieredShards, limit), READONLY, "Keys are looked at whose hash is below."},
    {"reads", T_ULONGLONG, offsetof(TieredShards, reads), READONLY, "All reads, of whichever keys."},
    {"first_reads", T_DOUBLE, offsetof(TieredShards, first_reads), READONLY, "Those that no room would make hits."},
    {"keys_max", T_UINT, offsetof(TieredShards, keys_max), READONLY, "So many keys are looked at, at most."},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef shards_methods[] = {
    {"touch", (PyCFunction)shards_touch, METH_VARARGS, "touch(hash, size, counted): note a use of a key."},
    {"counts", (PyCFunction)shards_counts, METH_NOARGS, "counts(): reads by the bucket of their distance."},
    {"__sizeof__", (PyCFunction)shards_sizeof, METH_NOARGS, "Its memory."},
    {NULL, NULL, 0, NULL},
};

static PySequenceMethods shards_as_sequence = {.sq_length = (lenfunc)shards_length};

PyTypeObject TieredShardsType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "tiered._native.Shards",
    .tp_doc = "Shards(keys_max=16000): a sample of the keys, and how far apart their uses are.",
    .tp_basicsize = sizeof(TieredShards),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = shards_new,
    .tp_dealloc = (destructor)shards_dealloc,
    .tp_methods = shards_methods,
    .tp_members = shards_members,
    .tp_as_sequence = &shards_as_sequence,
};

int
tiered_add_shards(PyObject *module)
{
    return PyModule_AddType(module, &TieredShardsType);
}
