/* Reads of what is cold (loads.c), of many keys at once (loads_many.c), and what they share. */
#ifndef TIERED_LOADS_H
#define TIERED_LOADS_H

#include "pages.h"
#include "pyarena.h"
#include "record.h"
#include "slots.h"

/* What came of a read; where it is LOAD_PYTHON the twin is to be asked, and nothing was done or raised. */
enum { LOAD_FOUND, LOAD_ABSENT, LOAD_FAILED, LOAD_PYTHON };

/* The value under a key that is not hot, or has a deadline; `*hot` is set where it was hot nevertheless. */
int tiered_load(ArenaObject *arena, PyObject *engine, PyObject *key, PyObject **value, bool *hot);

/* The values of many keys that are not hot, put into a dict: `Store._load_many` of those that have nothing unusual; returns the
 * others, which are the twin's. */
PyObject *tiered_load_many(ArenaObject *arena, PyObject *engine, PyObject *keys, PyObject *found);

/* Under the store's lock: keeps the records of keys that are neither hot nor dirty, in this order, while no more than so many
 * bytes are used; returns how many it kept.  What only Python knows is left out. */
PyObject *tiered_read_ahead(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* -- shared -------------------------------------------------------------------------------------- */

enum { STORED_BYTES_EXACT = 480 };                   /* As in tiered/keys.py. */
enum { COMPRESSION_NONE = 0, COMPRESSION_ZSTD = 1 }; /* As in tiered/compression.py. */
enum { LAYOUT_TRANSACTION, LAYOUT_LAYERS, LAYOUT_MERGED_TO, LAYOUT_BEHIND }; /* As in tiered/cold.py. */

/* An error that is kept while something is put in order. */
typedef struct {
    PyObject *kind, *value, *trace;
} LoadError;

LoadError tiered_set_aside(void);
void tiered_put_back(LoadError error);
/* LOAD_PYTHON where nothing was raised, or an error of the steps themselves, which is the twin's to raise again.  Whatever else
 * a handler of signals or the user's code raises comes once, and so stays: LOAD_FAILED. */
int tiered_given_up(void);

/* Adds to a counter; false with an error set. */
bool tiered_count(PyObject *engine, int name, Py_ssize_t more);
/* The key in the cold tier; NULL, perhaps without an error, if it is not the encoded key itself. */
PyObject *tiered_stored_key(const TieredKey *key);
/* What the write buffers have, as long as Python does not run. */
enum { BUFFERS_MAX = 8 };
typedef struct {
    PyObject *positions[BUFFERS_MAX];
    int count;
} Unsaved;

/* False, perhaps with an error set, and then empty: the twin has to look. */
bool tiered_unsaved(PyObject *engine, Unsaved *unsaved);
void tiered_unsaved_end(Unsaved *unsaved);
/* Whether no write buffer has anything of the key: then the cold tier alone knows. */
bool tiered_is_saved(const Unsaved *unsaved, PyObject *stored_key);
/* Whether a deadline is over by the store's clock; -1 with an error set. */
int tiered_is_over(PyObject *engine, int64_t deadline);
/* Has the maintenance thread serve the store, if it does not yet; false with an error set. */
bool tiered_is_attended(PyObject *engine);

/* Whether values up to a size are kept hot without further questions, as `Tiers.promote` keeps them otherwise. */
bool tiered_is_promoted_plainly(PyObject *engine, Py_ssize_t *size_max);
/* A record undone, as the twin has it. */
PyObject *tiered_found(const TieredRecord *record, PyObject *payload);
/* Takes the store's lock, to be given back; false where this thread has it, and so keeps nothing, or with an error set. */
bool tiered_lock(PyObject *engine, PyObject **lock);
bool tiered_unlock(PyObject *lock);
/* Under the lock: whether what was read in that generation is the newest, unless a write buffer has it. */
bool tiered_is_newest(PyObject *engine, PyObject *generation);

/* A read transaction, with its note among the users of the cold tier as long as it is there, and the layers it sees. */
typedef struct {
    PyObject *users, *user, *txn, *layout;
    bool noted;
    int count;
    PagesLayer layers[PAGES_LAYERS_MAX];
} ColdRead;

/* With all layers, or with those that are enough for a key; false, perhaps with an error set: the twin has to look. */
bool tiered_cold_enter(ColdRead *read, PyObject *cold, PyObject *stored_key);
void tiered_cold_leave(ColdRead *read);
/* NULL with the error that says so: LMDB is not asked, since it might look outside of the file. */
PyObject *tiered_damaged_page(PyObject *engine, PyObject *stored_key);

/* A context for frames of a dictionary that nobody has, and the pool to give it back to; NULL if there is none. */
PyObject *tiered_context(PyObject *engine, unsigned dictionary, PyObject **pool);
void tiered_context_back(PyObject *context, PyObject *pool);
/* The value of a payload that stays where it is meanwhile. */
PyObject *tiered_decoded(ArenaObject *arena, unsigned codec, const unsigned char *data, size_t size);

/* One of many records on its way to its payload. */
typedef struct {
    PyObject *key, *stored_key; /* Borrowed of a list, and owned. */
    PyObject *body;             /* Of the record, which is not in memory any more. */
    PyObject *segment;          /* What has the payload, as long as `view` is held. */
    Py_buffer view;
    TieredRecord record;
    bool there; /* A record was found. */
    enum { ITEM_LEFT, ITEM_ASKED, ITEM_ABSENT, ITEM_READ, ITEM_DECODED } state;
} LoadItem;

/* Undoes the bodies of those that were read, and leaves those with which it fails; false with an error set. */
bool tiered_undo_all(PyObject *engine, LoadItem *items, Py_ssize_t count);
/* Lets go of body and payload. */
void tiered_item_end(LoadItem *item);

static inline const unsigned char *
tiered_payload_of(const LoadItem *item, size_t *size)
{
    *size = (size_t)item->view.len;
    return item->view.buf;
}

/* Whether a record has nothing that only the twin knows. */
static inline bool
tiered_is_plain(const TieredRecord *record)
{
    return !(record->flags & ~(RECORD_HAS_DEADLINE | RECORD_IS_MARKER)) && record->codec >= CODEC_BYTES
        && record->codec <= CODEC_LAST && record->compression <= COMPRESSION_ZSTD;
}

/* Whether a frame's size takes no more than two bytes, as the top bits of its fifth byte say: others the twin judges. */
static inline bool
tiered_is_small_frame(PyObject *body)
{
    return PyBytes_GET_SIZE(body) > 4 && (unsigned char)PyBytes_AS_STRING(body)[4] < 0x80;
}

#endif
