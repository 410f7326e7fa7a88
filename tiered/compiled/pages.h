/* Look-ups in the pages of an LMDB snapshot: pages.c. */
#ifndef TIERED_PAGES_H
#define TIERED_PAGES_H

#include "native.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One database as of a transaction, whose pages stay as they are while that is open. */
typedef struct {
    const unsigned char *map; /* LMDB's own, of the whole file. */
    size_t page_bytes;
    uint64_t count, root; /* Of the pages, and the number of the uppermost. */
    int levels;           /* Of pages, from there down to the leaves; 0: no page. */
} TieredPages;

/* The nodes of a page, numbered, that a search has left. */
typedef struct {
    const unsigned char *page;
    unsigned low, high;
} PagePlace;

/* One key looked for.  Where it is FOUND, `data` lies in the map. */
typedef struct {
    const unsigned char *key, *data;
    size_t key_size, data_size;
    enum { PAGES_SEARCHING, PAGES_FOUND, PAGES_ABSENT, PAGES_DAMAGED } state;
    PagePlace place;
} PageSearch;

/* What holds records: a database, and its filter, which may be of no bytes. */
typedef struct {
    const TieredPages *pages;
    const unsigned char *filter;
    size_t filter_bytes;
} PagesLayer;

enum { PAGES_LAYERS_MAX = 32 }; /* More than there ever are: tiered/cold_state.py. */
enum { LAYER_DATABASE, LAYER_FILTER, LAYER_PAGES }; /* As in tiered/cold.py. */

/* The layers in a list of the cold tier's; how many, -1 if there is one whose pages are not to be looked at. */
int tiered_layers(PyObject *list, PagesLayer *layers);
/* Looks for a key, in the first layer that has it.  Needs no interpreter lock, as the next one. */
void tiered_layers_find(const PagesLayer *layers, int count, PageSearch *search);
/* The same for many keys, in ascending order; `asked` has room for as many. */
void tiered_layers_find_many(const PagesLayer *layers, int count, PageSearch *searches, size_t keys, PageSearch *asked);

#endif
