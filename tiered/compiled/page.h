/* Pages as LMDB keeps them, for what reads them without LMDB: pages.c and page_walk.c.
 *
 * The format is that of LMDB 0.9 with 64 bits (mdb.c: `MDB_page`, `MDB_node`, `MDB_db`, `MDB_meta`), in the byte order of the
 * machine.  A page begins with its number (8 bytes), 2 bytes unused, its flags (2), the end of the offsets of its nodes (2)
 * and the begin of its nodes (2); for values of several pages, the last two are their count.  Then come the offsets (2 each)
 * of the nodes, in the order of their keys.  A node is 8 bytes, its key and, in a leaf, its value.  The 8 bytes of a branch
 * are the number of the page below (6) and the key's size (2); those of a leaf the value's size (4), flags (2) and the key's
 * size (2); the key of a branch's first node counts for none.
 *
 * Pages may be damaged: nothing is looked at outside of the page, or of the pages of the file. */
#ifndef TIERED_PAGE_H
#define TIERED_PAGE_H

#include "pages.h"

#include <string.h>

enum {
    HEADER_BYTES = 16, NODE_BYTES = 8, OFFSET_BYTES = 2,
    PAGE_IS_BRANCH = 0x01, PAGE_IS_LEAF = 0x02, PAGE_IS_OVERFLOW = 0x04, PAGE_IS_META = 0x08,
    PAGE_KINDS = 0x01 | 0x02 | 0x04 | 0x08 | 0x20 | 0x40,
    NODE_IS_LARGE = 0x01,
    LEVELS_MAX = 32,
};

/* Some bytes in a page. */
typedef struct {
    const unsigned char *data;
    size_t size;
} PageBytes;

static inline unsigned
number16(const unsigned char *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint32_t
number32(const unsigned char *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t
number64(const unsigned char *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline unsigned
flags_of(const unsigned char *page)
{
    return number16(page + 10) & PAGE_KINDS;
}

/* A page by its number, or NULL. */
static inline const unsigned char *
page_at(const TieredPages *pages, uint64_t number)
{
    return number < pages->count ? pages->map + number * pages->page_bytes : NULL;
}

/* All nodes of a page that have a key; false if it is damaged. */
static inline bool
open_page(const TieredPages *pages, const unsigned char *page, bool branch, PagePlace *place)
{
    unsigned end = number16(page + 12), first = branch;
    if (flags_of(page) != (branch ? PAGE_IS_BRANCH : PAGE_IS_LEAF) || end < HEADER_BYTES + OFFSET_BYTES * (first + 1)
        || end > pages->page_bytes)
        return false;
    *place = (PagePlace){page, first, (end - HEADER_BYTES) / OFFSET_BYTES};
    return true;
}

/* -- nodes -------------------------------------------------------------------------------------- */

static inline unsigned
offset_of(const unsigned char *page, unsigned number)
{
    return number16(page + HEADER_BYTES + OFFSET_BYTES * number);
}

/* The node with a number, which is in the page with its key, or NULL. */
static inline const unsigned char *
node_at(const TieredPages *pages, const unsigned char *page, unsigned number)
{
    unsigned offset = offset_of(page, number);
    const unsigned char *node = page + offset;
    bool inside = offset >= HEADER_BYTES && offset + NODE_BYTES <= pages->page_bytes
        && offset + NODE_BYTES + number16(node + 6) <= pages->page_bytes;
    return inside ? node : NULL;
}

static inline PageBytes
key_of(const unsigned char *node)
{
    return (PageBytes){node + NODE_BYTES, number16(node + 6)};
}

/* The value of a node of a leaf; false if it is damaged. */
static inline bool
value_of(const TieredPages *pages, const unsigned char *page, const unsigned char *node, PageBytes *value)
{
    size_t size = number32(node), at = (size_t)(node - page) + NODE_BYTES + number16(node + 6);
    unsigned flags = number16(node + 4);
    if (flags == 0 && size <= pages->page_bytes - at) {
        *value = (PageBytes){page + at, size};
        return true;
    }
    if (flags != NODE_IS_LARGE || sizeof(uint64_t) > pages->page_bytes - at)
        return false;
    uint64_t number = number64(page + at), all = (HEADER_BYTES + size + pages->page_bytes - 1) / pages->page_bytes;
    const unsigned char *first = page_at(pages, number);
    if (first == NULL || all > pages->count - number || flags_of(first) != PAGE_IS_OVERFLOW)
        return false;
    *value = (PageBytes){first + HEADER_BYTES, size};
    return true;
}

/* The page below a node of a branch; NULL if it is damaged. */
static inline const unsigned char *
page_below(const TieredPages *pages, const unsigned char *page, unsigned number)
{
    const unsigned char *node = node_at(pages, page, number);
    return node ? page_at(pages, number32(node) | (uint64_t)number16(node + 4) << 32) : NULL;
}

/* -- order -------------------------------------------------------------------------------------- */

/* As memcmp, of keys that mostly have much in common. */
static inline int
order_of(const unsigned char *one, const unsigned char *other, size_t size)
{
    size_t at = 0;
    if (size < 8)
        return memcmp(one, other, size);
    while (true) {
        uint64_t a = __builtin_bswap64(number64(one + at)), b = __builtin_bswap64(number64(other + at));
        if (a != b || at == size - 8)
            return (a > b) - (a < b);
        at = at + 16 <= size ? at + 8 : size - 8; /* The last eight again, perhaps: what was equal stays so. */
    }
}

static inline int
compare(PageBytes one, PageBytes other)
{
    int order = order_of(one.data, other.data, one.size < other.size ? one.size : other.size);
    return order ? order : (one.size > other.size) - (one.size < other.size);
}

/* One step to the first of the nodes left whose key is greater; false if one is damaged. */
static inline bool
narrow(const TieredPages *pages, PageBytes key, PagePlace *place)
{
    unsigned middle = (place->low + place->high) / 2;
    const unsigned char *node = node_at(pages, place->page, middle);
    if (node == NULL)
        return false;
    bool greater = compare(key, key_of(node)) < 0;
    place->high = greater ? middle : place->high;
    place->low = greater ? place->low : middle + 1;
    return true;
}

#endif
