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

/* The pages of a layer of the cold tier; NULL if they are not to be looked at. */
const TieredPages *tiered_pages(PyObject *pages);
/* Looks for a key.  Needs no interpreter lock, as the next one. */
void tiered_pages_find(const TieredPages *pages, PageSearch *search);
/* The same for many keys, in ascending order. */
void tiered_pages_find_many(const TieredPages *pages, PageSearch *searches, size_t count);

#endif
