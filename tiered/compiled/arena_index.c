/* The index of the arena: a hash table with chains that grows by one bucket at a time (linear hashing: Litwin, "Linear
 * Hashing: A New Tool for File and Table Addressing", 1980), so that no call ever rehashes everything.  Its buckets are
 * 32-bit places, in a mapping of their own; the chains are in the records. */
#include "arena_record.h"

#define FORESEEN_BYTES 320 /* Of a value: an ordinary document. */

uint32_t *
arena_link_to_place(const Arena *a, uint32_t place)
{
    uint32_t *link = bucket_of(a, hash_of_record(a, at(a, place)));
    while (*link != place)
        link = &at(a, *link)->chain;
    return link;
}

size_t
arena_index_pages(const Arena *a)
{
    size_t page = tiered_page_bytes();
    return ((INDEX_HEAD + (size_t)a->bucket_count) * sizeof(uint32_t) + page - 1) / page;
}

void
arena_grow_index(Arena *a)
{
    uint32_t fresh = a->bucket_count;
    if ((INDEX_HEAD + (size_t)fresh + 1) * sizeof(uint32_t) > a->index_bytes)
        return;
    if (fresh > a->bucket_mask)
        a->bucket_mask = a->bucket_mask << 1 | 1;
    uint32_t *link = a->index + INDEX_HEAD + (fresh & a->bucket_mask >> 1);
    uint32_t *other = a->index + INDEX_HEAD + fresh;
    a->bucket_count = fresh + 1;
    while (*link) {
        uint32_t place = *link;
        Record *r = at(a, place);
        if ((hash_of_record(a, r) & a->bucket_mask) == fresh) {
            *link = r->chain;
            r->chain = *other;
            *other = place;
        } else {
            link = &r->chain;
        }
    }
}

void
arena_shrink_index(Arena *a)
{
    size_t before = arena_index_pages(a);
    uint32_t last = --a->bucket_count;
    uint32_t *from = a->index + INDEX_HEAD + last;
    uint32_t *link = a->index + INDEX_HEAD + (last & a->bucket_mask >> 1);
    while (*link)
        link = &at(a, *link)->chain;
    *link = *from;
    *from = 0;
    if (last == (a->bucket_mask >> 1) + 1)
        a->bucket_mask >>= 1;
    size_t page = tiered_page_bytes(), after = arena_index_pages(a);
    if (after < before)
        tiered_release((unsigned char *)a->index + after * page, page);
}

uint32_t
arena_hash(const Arena *a, const ArenaKey *key)
{
    return hash_of(a, key->code, key->data, key->size);
}

uint32_t
arena_first(const Arena *a, uint32_t hash)
{
    uint32_t place = a->index[0] ? *bucket_of(a, hash) : 0;
    __builtin_prefetch(at(a, place));
    return place;
}

/* First the bucket, then the record that it leads to, then the rest of that and its neighbours in the order of use. */
void
arena_foresee(const Arena *a, uint32_t hash, int step)
{
    if (a->index[0] == 0)
        return;
    const uint32_t *bucket = bucket_of(a, hash);
    if (step == 0) {
        __builtin_prefetch(bucket);
        return;
    }
    const Record *r = at(a, *bucket);
    if (step == 1) {
        __builtin_prefetch(r);
        return;
    }
    size_t size = sizeof *r + r->key_size + (r->value_size < FORESEEN_BYTES ? r->value_size : FORESEEN_BYTES);
    for (size_t line = 64; line < size + 63; line += 64)
        __builtin_prefetch((const char *)r + line);
    __builtin_prefetch(at(a, r->older), 1);
    __builtin_prefetch(at(a, r->newer), 1);
    __builtin_prefetch(at(a, r->chain));
}

void
arena_foresee_put(const Arena *a)
{
    if (a->index[0] == 0 || a->queues[0].oldest == 0)
        return;
    const Record *r = at(a, a->queues[0].oldest); /* Still there from when the one before it left. */
    __builtin_prefetch(bucket_of(a, hash_of_record(a, r)), 1);
    __builtin_prefetch(at(a, r->newer), 1);
}
