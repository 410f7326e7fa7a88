/* What the arena does for eviction policies (tiered/eviction/policy.py): it follows their rules at each hit, and asks them,
 * which is Python, before it changes anything.
 *
 * Locking.  A policy is asked under the store's lock; hits of other threads go on meanwhile, and so may move what it
 * has just looked at.  So it names queues, never records.  Where nobody can be asked, in the middle of a change, the oldest
 * leaves: where segments leave no room for what fits by bytes, and where an object takes memory from the arena. */
#include "pyarena.h"

enum {
    ASKED_MAX = 100,   /* Evictions for one call: of policies that draw samples, some milliseconds. */
    ASKED_REVIEW = 64, /* After so many records that have entered, what the policy remembers is measured. */
};

static bool
queue_number(PyObject *object, unsigned *queue)
{
    long number = PyLong_AsLong(object);
    if (number >= 0 && number < ARENA_QUEUES) {
        *queue = (unsigned)number;
        return true;
    }
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "no such queue");
    return false;
}

PyObject *
tiered_arena_steer(ArenaObject *self, PyObject *args)
{
    PyObject *policy;
    int uses_max, sparing, sketched;
    ArenaRules rules = {0};
    int *to = rules.hit_to;
    if (!PyArg_ParseTuple(args, "Oip(iii)p:steer", &policy, &uses_max, &sparing, &to[0], &to[1], &to[2], &sketched))
        return NULL;
    for (int queue = 0; queue < ARENA_QUEUES; queue++)
        if (to[queue] >= ARENA_QUEUES)
            return PyErr_Format(PyExc_ValueError, "no such queue");
    if (uses_max < 0 || uses_max > ARENA_USES_MAX)
        return PyErr_Format(PyExc_ValueError, "a record counts up to %d", ARENA_USES_MAX);
    rules.uses_max = (unsigned)uses_max;
    rules.sparing = sparing;
    if (policy != Py_None)
        rules.hit_action = ARENA_HIT_BY_RULES;
    else
        rules.hit_action = to[0] < 0 ? ARENA_HIT_NOTHING : ARENA_HIT_MOVES_TO_FRONT;
    sketch_end(&self->arena.sketch);
    if (sketched && !sketch_begin(&self->arena.sketch))
        return PyErr_NoMemory();
    arena_rule(&self->arena, &rules);
    Py_XSETREF(self->policy, policy == Py_None ? NULL : Py_NewRef(policy));
    Py_RETURN_NONE;
}

int
tiered_arena_ask_to_leave(ArenaObject *self, size_t bytes, size_t outside)
{
    Arena *a = &self->arena;
    PyObject *policy = Py_NewRef(self->policy);
    int result = 0;
    for (int asked = 0; result == 0 && asked < ASKED_MAX && arena_crowded(a, bytes, outside); asked++) {
        uint64_t before = a->evictions;
        PyObject *done = PyObject_CallMethod(policy, "leave", "O", self);
        if (done == NULL)
            result = -1;
        Py_XDECREF(done);
        if (a->evictions == before)
            break;
    }
    Py_DECREF(policy);
    return result;
}

/* What the policy remembers is a part of the budget; false with an error set. */
static bool
count_remembered(ArenaObject *self, PyObject *policy)
{
    PyObject *remembered = PyObject_GetAttrString(policy, "memory_bytes");
    size_t memory = remembered ? PyLong_AsSize_t(remembered) : 0;
    Py_XDECREF(remembered);
    if (PyErr_Occurred())
        return false;
    self->arena.policy_bytes = memory;
    return true;
}

bool
tiered_arena_fit_policy(ArenaObject *self)
{
    size_t most = self->arena.budget_bytes / TIERED_GHOST_SHARE;
    sketch_fit(&self->arena.sketch, 0, most);
    if (self->policy == NULL || self->arena.policy_bytes <= most)
        return true;
    PyObject *policy = Py_NewRef(self->policy), *done = PyObject_CallMethod(policy, "fit", "n", (Py_ssize_t)most);
    bool fitted = done && count_remembered(self, policy);
    Py_XDECREF(done);
    Py_DECREF(policy);
    return fitted;
}

static int
ask(ArenaObject *self, PyObject *policy, const ArenaKey *key, size_t size, int64_t deadline)
{
    Arena *a = &self->arena;
    ArenaValue found;
    size_t outside, bytes = arena_need(a, key, size, deadline, &outside);
    if (bytes == 0)
        return 0;
    if (!arena_find(a, key, &found)) {
        PyObject *told = PyObject_CallMethod(
            policy, "enter", "Okn", self, (unsigned long)arena_hash(a, key), (Py_ssize_t)(bytes + outside));
        if (told == NULL)
            return -1;
        Py_DECREF(told);
        if (++self->asked % ASKED_REVIEW == 0 && !count_remembered(self, policy))
            return -1;
    }
    if (tiered_arena_ask_to_leave(self, bytes, outside) < 0)
        return -1;
    PyObject *queue = PyObject_GetAttrString(policy, "entering");
    unsigned number;
    bool known = queue != NULL && queue_number(queue, &number);
    Py_XDECREF(queue);
    if (known)
        a->entering = arena_state_new(&a->rules, number);
    return known ? 0 : -1;
}

int
tiered_arena_ask(ArenaObject *self, const ArenaKey *key, size_t size, int64_t deadline)
{
    PyObject *policy = Py_NewRef(self->policy);
    int result = ask(self, policy, key, size, deadline);
    Py_DECREF(policy);
    if (result < 0)
        arena_clear(&self->arena); /* Ctrl-C: what was to be put is not, and nothing older may be found in its place. */
    return result;
}

PyObject *
tiered_arena_queue_bytes(ArenaObject *self, PyObject *object)
{
    unsigned queue;
    return queue_number(object, &queue) ? PyLong_FromUnsignedLongLong(self->arena.queues[queue].bytes) : NULL;
}

PyObject *
tiered_arena_queue_hits(ArenaObject *self, PyObject *object)
{
    unsigned queue;
    return queue_number(object, &queue) ? PyLong_FromUnsignedLongLong(self->arena.hits[queue]) : NULL;
}

static PyObject *
description(const ArenaOldest *found)
{
    return Py_BuildValue(
        "knIL", (unsigned long)found->fingerprint, (Py_ssize_t)found->size, found->uses, (long long)found->deadline);
}

/* The place that a random number stands for, 0: none, or an error is set. */
static uint32_t
picked(ArenaObject *self, PyObject *number)
{
    unsigned long drawn = PyLong_AsUnsignedLongMask(number);
    return PyErr_Occurred() ? 0 : arena_pick(&self->arena, (uint32_t)drawn);
}

PyObject *
tiered_arena_pick(ArenaObject *self, PyObject *number)
{
    ArenaOldest found;
    uint32_t place = picked(self, number);
    if (place == 0)
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    arena_describe(&self->arena, place, &found);
    return description(&found);
}

PyObject *
tiered_arena_drop_picked(ArenaObject *self, PyObject *number)
{
    arena_drop_place(&self->arena, picked(self, number));
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

PyObject *
tiered_arena_age_picked(ArenaObject *self, PyObject *number)
{
    uint32_t place = picked(self, number);
    if (place)
        arena_age(&self->arena, place);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

PyObject *
tiered_arena_oldest(ArenaObject *self, PyObject *object)
{
    unsigned queue;
    ArenaOldest oldest;
    if (!queue_number(object, &queue))
        return NULL;
    if (!arena_oldest(&self->arena, queue, &oldest))
        Py_RETURN_NONE;
    return description(&oldest);
}

PyObject *
tiered_arena_shift(ArenaObject *self, PyObject *const *args, Py_ssize_t count)
{
    unsigned queue, to;
    if (count != 3)
        return PyErr_Format(PyExc_TypeError, "shift(queue, to, uses)");
    long uses = PyLong_AsLong(args[2]);
    if (uses < 0 || uses > ARENA_USES_MAX)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "a record counts up to %d", ARENA_USES_MAX);
    if (!queue_number(args[0], &queue) || !queue_number(args[1], &to))
        return NULL;
    arena_shift(&self->arena, queue, to, (unsigned)uses);
    Py_RETURN_NONE;
}

PyObject *
tiered_arena_drop(ArenaObject *self, PyObject *object)
{
    unsigned queue;
    if (!queue_number(object, &queue))
        return NULL;
    arena_drop(&self->arena, queue);
    Py_RETURN_NONE;
}

PyObject *
tiered_arena_see(ArenaObject *self, PyObject *object)
{
    unsigned long fingerprint = PyLong_AsUnsignedLong(object);
    if (PyErr_Occurred())
        return NULL;
    if (self->arena.sketch.words != NULL) {
        sketch_fit(&self->arena.sketch, self->arena.count, self->arena.budget_bytes / TIERED_GHOST_SHARE);
        sketch_add(&self->arena.sketch, fingerprint);
    }
    Py_RETURN_NONE;
}

PyObject *
tiered_arena_seen(ArenaObject *self, PyObject *object)
{
    unsigned long fingerprint = PyLong_AsUnsignedLong(object);
    return PyErr_Occurred() ? NULL : PyLong_FromLong((long)sketch_estimate(&self->arena.sketch, fingerprint));
}
