/* Records in segments: the hot tier as C sees it.
 *
 * A record lies in one piece: header, deadline if it has one, encoded key, value.  It is found through the index and
 * hangs in a queue, for LRU from the one used last to the one used longest ago; both refer to it by its place, and since a
 * record's own links and key lead back to whoever refers to it, it can be moved.  So the arena has no holes that
 * nothing fits into: when the heads are full, the segment with the least in it is emptied into them.  So much is
 * kept free that this moves few bytes for each byte written (SLACK), which is less than any allocator that
 * leaves records where they are loses to sizes that don't fit.
 *
 * What a removed record leaves is filled again by one of just its size; sizes are rounded so that there often is one.
 *
 * Deadlines are in a wheel of seconds (Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", 1987), whose links are in the records too.
 *
 * A value larger than a quarter of a segment is in pages of its own, and its record says where.
 *
 * Everything counts: segments as a whole once they are begun, index and outside values by pages, and the tables.
 * After a fork the child finds zeros (`tiered_map`), which read as an empty index; the first change there starts anew.
 * Nothing here calls Python or waits; the interpreter lock is the only lock there is.
 */
#include "arena_record.h"

#include <stdlib.h>

#define SEGMENTS_WANTED 128
#define SEGMENT_BYTES_MIN (16u << 10)
#define SEGMENT_BYTES_MAX (1u << 20)
/* Free or dead bytes, in segments: two, and one of every SLACK_SHARE. */
#define SLACK_SHARE 32
#define VALUE_SHARE_MAX 8 /* As in tiered/heap.py. */
#define OUTSIDE_MAX 16384 /* A process may have 65,530 mappings. */
/* What one call does at most, in units of a microsecond at most: an eviction, the move of a record, the return of
 * WORK_BYTES of pages. */
#define WORK_MAX 3000
#define WORK_BYTES (16u << 10)
#define MOVED_BYTES_MAX (2u << 20)
#define REBUILD_BYTES_MAX (4u << 20)
/* With fewer segments than this, their slack is too much of the whole. */
#define SEGMENTS_FEW 12


/* -- order of use and deadlines ---------------------------------------------------------------- */

static inline void
unlink_use(Arena *a, const Record *r, unsigned queue)
{
    *(r->newer ? &at(a, r->newer)->older : &a->queues[queue].newest) = r->older;
    *(r->older ? &at(a, r->older)->newer : &a->queues[queue].oldest) = r->newer;
}

static inline void
link_newest(Arena *a, Record *r, uint32_t place, unsigned queue)
{
    uint32_t newest = a->queues[queue].newest;
    r->older = newest;
    r->newer = 0;
    *(newest ? &at(a, newest)->newer : &a->queues[queue].oldest) = place;
    a->queues[queue].newest = place;
}

/* To the front of a queue, with so many uses. */
static void
move_to(Arena *a, uint32_t place, unsigned queue, unsigned uses)
{
    Record *r = at(a, place);
    unsigned before = queue_of(r);
    if (before != queue) {
        size_t bytes = arena_record_bytes(a, place);
        a->queues[before].bytes -= bytes;
        a->queues[queue].bytes += bytes;
    }
    unlink_use(a, r, before);
    link_newest(a, r, place, queue);
    r->state = (uint8_t)(queue << QUEUE_SHIFT | uses);
}

/* The first of the list that a record without a sooner one is in. */
static uint32_t *
due_head(Arena *a, const Record *r, uint32_t place)
{
    return a->pending == place ? &a->pending : &a->wheel[deadline_of(r) / 1000 % ARENA_WHEEL_SLOTS];
}

static void
link_due(Arena *a, Record *r, uint32_t place)
{
    /* What is due in a second that was looked through already is looked at next. */
    int64_t second = deadline_of(r) / 1000;
    uint32_t *head = second <= a->second ? &a->pending : &a->wheel[second % ARENA_WHEEL_SLOTS];
    Due *due = due_of(r);
    due->sooner = 0;
    due->later = *head;
    if (*head)
        due_of(at(a, *head))->sooner = place;
    *head = place;
}

static void
unlink_due(Arena *a, Record *r, uint32_t place)
{
    Due *due = due_of(r);
    *(due->sooner ? &due_of(at(a, due->sooner))->later : due_head(a, r, place)) = due->later;
    if (due->later)
        due_of(at(a, due->later))->sooner = due->sooner;
}

/* -- holes: records that were removed ---------------------------------------------------------- */

static void
list_hole(Arena *a, Record *r, uint32_t place, size_t bytes)
{
    uint32_t *head = &a->holes[class_of(a, bytes)];
    r->kind |= DEAD;
    r->newer = 0;
    r->older = *head;
    if (*head)
        at(a, *head)->newer = place;
    *head = place;
}

static void
unlist_hole(Arena *a, const Record *r, size_t bytes)
{
    *(r->newer ? &at(a, r->newer)->older : &a->holes[class_of(a, bytes)]) = r->older;
    if (r->older)
        at(a, r->older)->newer = r->newer;
}

/* A hole of exactly that size, taken again; 0 if there is none. */
static uint32_t
take_hole(Arena *a, size_t bytes)
{
    uint32_t place = a->holes[class_of(a, bytes)];
    if (place) {
        unlist_hole(a, at(a, place), bytes);
        segments_retake(&a->segments, place, bytes);
    }
    return place;
}

/* -- values outside ---------------------------------------------------------------------------- */

static size_t
outside_pages(size_t size)
{
    size_t page = tiered_page_bytes();
    return (size + page - 1) / page * page;
}

static void
outside_drop(Arena *a, uint32_t slot)
{
    ArenaOutside *o = &a->outside[slot];
    tiered_unmap(o->map, o->bytes);
    a->outside_bytes -= o->bytes;
    a->outside_held--;
    a->work -= (int64_t)(o->bytes / WORK_BYTES);
    o->map = NULL;
    o->bytes = a->outside_free; /* The free ones are a list. */
    a->outside_free = slot;
}

/* A slot with pages for a value; UINT32_MAX if there is none. */
static uint32_t
outside_take(Arena *a, size_t size)
{
    if (a->outside_held == OUTSIDE_MAX)
        return UINT32_MAX;
    if (a->outside_free == UINT32_MAX) {
        uint32_t count = a->outside_count ? a->outside_count * 2 : 16;
        ArenaOutside *grown = realloc(a->outside, count * sizeof *grown);
        if (grown == NULL)
            return UINT32_MAX;
        a->outside = grown;
        for (uint32_t slot = a->outside_count; slot < count; slot++) {
            grown[slot].map = NULL;
            grown[slot].bytes = slot + 1 < count ? slot + 1 : UINT32_MAX;
        }
        a->outside_free = a->outside_count;
        a->outside_count = count;
    }
    size_t bytes = outside_pages(size);
    void *map = tiered_map(bytes);
    if (map == NULL)
        return UINT32_MAX;
    uint32_t slot = a->outside_free;
    a->outside_free = (uint32_t)a->outside[slot].bytes;
    a->outside[slot] = (ArenaOutside){map, bytes};
    a->outside_bytes += bytes;
    a->outside_held++;
    return slot;
}

/* -- the budget -------------------------------------------------------------------------------- */

/* What counts beside the segments. */
static size_t
overhead_bytes(const Arena *a)
{
    return sizeof *a + a->segments.count * 9u + a->outside_count * sizeof *a->outside + a->outside_bytes
        + arena_index_pages(a) * tiered_page_bytes() + a->policy_bytes + sketch_bytes(&a->sketch);
}

size_t
arena_used_bytes(const Arena *a)
{
    return overhead_bytes(a) + segments_committed(&a->segments);
}

/* Segments that the budget has room for, with `more` bytes outside them. */
static uint32_t
segments_allowed(const Arena *a, size_t more)
{
    size_t other = overhead_bytes(a) + more;
    size_t allowed = a->budget_bytes > other ? (a->budget_bytes - other) / a->segments.segment_bytes : 0;
    return allowed < a->segments.count ? (uint32_t)allowed : a->segments.count;
}

/* Bytes of records that so many segments may hold. */
static size_t
live_limit(const Arena *a, uint32_t allowed)
{
    size_t whole = (size_t)allowed * a->segments.segment_bytes;
    size_t slack = 2 * a->segments.segment_bytes + whole / SLACK_SHARE;
    return whole > slack ? whole - slack : 0;
}

/* Moves a record to where there is room for it, and has everything that refers to it follow. */
static bool
move(Arena *a, uint32_t place, size_t bytes)
{
    Segments *s = &a->segments;
    uint32_t target = segments_take(s, bytes);
    if (target == 0 && segments_open(s))
        target = segments_take(s, bytes);
    if (target == 0)
        return false;
    *arena_link_to_place(a, place) = target;
    Record *r = at(a, place);
    ArenaQueue *queue = &a->queues[queue_of(r)];
    *(r->newer ? &at(a, r->newer)->older : &queue->newest) = target;
    *(r->older ? &at(a, r->older)->newer : &queue->oldest) = target;
    if (r->kind & EXPIRING) {
        Due *due = due_of(r);
        *(due->sooner ? &due_of(at(a, due->sooner))->later : due_head(a, r, place)) = target;
        if (due->later)
            due_of(at(a, due->later))->sooner = target;
    }
    memcpy(at(a, target), r, bytes);
    at(a, target)->kind &= (uint8_t)~NOTED;
    r->kind |= DEAD;
    a->moved_bytes += bytes;
    a->work--;
    return true;
}

/* Empties a segment into the heads, so that it is free; false if there is no room to do so, or it is too much work. */
static bool
empty(Arena *a, uint32_t segment)
{
    Segments *s = &a->segments;
    segments_close(s, segment);
    size_t end = segment * s->segment_bytes + s->filled[segment];
    size_t offset = segment * s->segment_bytes + segment_first(s, segment);
    bool all = true;
    int64_t holes = 0;
    while (offset < end) {
        if (a->work <= 0 && s->live[segment]) {
            end = offset;
            all = false;
            break;
        }
        uint32_t place = (uint32_t)(offset >> s->unit_shift);
        Record *r = at(a, place);
        size_t bytes = record_bytes(a, r);
        if (r->kind & DEAD) {
            unlist_hole(a, r, bytes);
            holes++;
        } else if (move(a, place, bytes))
            segments_drop(s, place, bytes);
        else
            all = false;
        offset += bytes;
    }
    a->work -= holes / 8;
    if (all) {
        segments_free(s, segment);
        return true;
    }
    /* What was there and is not any more is a hole. */
    for (offset = segment * s->segment_bytes + segment_first(s, segment); offset < end;) {
        Record *r = at(a, (uint32_t)(offset >> s->unit_shift));
        size_t bytes = record_bytes(a, r);
        if (r->kind & DEAD)
            list_hole(a, r, (uint32_t)(offset >> s->unit_shift), bytes);
        offset += bytes;
    }
    return false;
}

static void
remove_linked(Arena *a, uint32_t place, uint32_t *link)
{
    Record *r = at(a, place);
    size_t bytes = record_bytes(a, r);
    *link = r->chain;
    a->queues[queue_of(r)].bytes -= bytes + (r->kind & OUTSIDE ? a->outside[outside_slot(r)].bytes : 0);
    unlink_use(a, r, queue_of(r));
    if (r->kind & EXPIRING) {
        unlink_due(a, r, place);
        a->expiring--;
    }
    if (r->kind & OUTSIDE)
        outside_drop(a, outside_slot(r));
    a->count--;
    a->payload_bytes -= (uint64_t)r->key_size + r->value_size;
    list_hole(a, r, place, bytes);
    if (segments_drop(&a->segments, place, bytes))
        empty(a, segment_of(&a->segments, place));
    if (a->bucket_count > BUCKETS_MIN && a->count < a->bucket_count / 2)
        arena_shrink_index(a);
}

bool
arena_drop_place(Arena *a, uint32_t place)
{
    if (place == 0)
        return false;
    a->work--;
    a->evictions++;
    a->evicted_bytes += arena_record_bytes(a, place);
    remove_linked(a, place, arena_link_to_place(a, place));
    return true;
}

bool
arena_drop(Arena *a, unsigned queue)
{
    return arena_drop_place(a, a->index[0] ? a->queues[queue].oldest : 0);
}

bool
arena_evict(Arena *a)
{
    unsigned queue = 0;
    while (a->queues[queue].oldest == 0 && queue < ARENA_QUEUES - 1)
        queue++;
    return arena_drop(a, queue);
}

/* Gives back pages of free segments that the budget has no room for. */
static void
release(Arena *a, uint32_t allowed)
{
    Segments *s = &a->segments;
    uint32_t kept = allowed > s->held ? allowed - s->held : 0, warm = s->warm;
    int64_t each = (int64_t)(s->segment_bytes / WORK_BYTES) + 1, most = a->work / each + 1;
    if (warm > kept && (int64_t)(warm - kept) > most)
        kept = warm - (uint32_t)most;
    segments_release(s, kept);
    a->work -= (warm - s->warm) * each;
}

/* Has the segments keep to the budget with `more` bytes outside, within what one call may do; true when they do.
 *
 * It comes to an end: what is evicted or was dropped becomes less with every step, since what is moved drops nothing
 * new.  The ends of segments count as held, because large records may leave as much wherever they are moved. */
static bool
keep_budget(Arena *a, size_t more)
{
    Segments *s = &a->segments;
    uint64_t moved_until = a->moved_bytes + MOVED_BYTES_MAX;
    for (;;) {
        uint32_t allowed = segments_allowed(a, more), segment = SEGMENT_NONE;
        bool over = s->live_bytes + s->tail_bytes > live_limit(a, allowed) && a->count;
        if (!over && (s->held + s->warm <= allowed || s->held + s->warm == 0))
            return overhead_bytes(a) + more + segments_committed(s) <= a->budget_bytes;
        if (a->work <= 0)
            return false;
        if (!over && s->warm)
            release(a, allowed);
        else if (!over && (segment = segments_emptiest(s)) != SEGMENT_NONE) {
            if (a->moved_bytes >= moved_until || !empty(a, segment))
                return false;
        } else if (!arena_evict(a)) {
            return false;
        }
    }
}

/* A place for a new record; 0 if none can be made within what one call may do. */
static uint32_t
make_room(Arena *a, size_t size)
{
    Segments *s = &a->segments;
    uint64_t moved_until = a->moved_bytes + MOVED_BYTES_MAX;
    uint32_t allowed = segments_allowed(a, 0);
    size_t limit = live_limit(a, allowed);
    for (;;) {
        uint32_t place = 0, segment = SEGMENT_NONE;
        bool over = s->live_bytes + s->tail_bytes + size > limit;
        if (!over && (place = take_hole(a, size)) == 0)
            place = segments_take(s, size);
        if (place)
            return place;
        /* One is left for what is moved. */
        if (!over && s->held + 1 < allowed && segments_open(s))
            continue;
        if (a->work <= 0)
            return 0;
        if (!over && (segment = segments_emptiest(s)) != SEGMENT_NONE) {
            if (a->moved_bytes >= moved_until || !empty(a, segment))
                return 0;
        } else if (!arena_evict(a)) {
            return 0;
        }
    }
}

/* -- what callers do --------------------------------------------------------------------------- */

static void
reset(Arena *a)
{
    memset(a->wheel, 0, sizeof a->wheel);
    memset(a->holes, 0, sizeof a->holes);
    a->pending = 0;
    memset(a->queues, 0, sizeof a->queues);
    a->count = a->expiring = 0;
    a->payload_bytes = 0;
    a->bucket_count = BUCKETS_MIN;
    a->bucket_mask = 1023;
    a->index[0] = 1;
}

void
arena_clear(Arena *a)
{
    for (uint32_t slot = 0; slot < a->outside_count; slot++)
        if (a->outside[slot].map != NULL)
            outside_drop(a, slot);
    segments_clear(&a->segments);
    /* Not all systems give zeros after a release, and Linux refuses it where memory is locked (`mlockall`). */
    memset(a->index, 0, arena_index_pages(a) * tiered_page_bytes());
    tiered_release(a->index, a->index_bytes);
    reset(a);
}

/* Whether this is a child that found zeros: everything is forgotten then. */
static inline void
notice_fork(Arena *a)
{
    if (a->index[0] == 0)
        arena_clear(a);
}

static size_t
index_bytes_for(size_t bytes)
{
    size_t page = tiered_page_bytes();
    return (bytes / 6 + page) / page * page + page;
}

static size_t
segment_bytes_for(size_t budget_bytes)
{
    size_t segment = SEGMENT_BYTES_MIN;
    while (segment < SEGMENT_BYTES_MAX && segment * 2 * SEGMENTS_WANTED <= budget_bytes)
        segment *= 2;
    return segment < tiered_page_bytes() ? tiered_page_bytes() : segment;
}

bool
arena_begin(Arena *a, size_t budget_bytes, const uint64_t seed[2])
{
    memset(a, 0, sizeof *a);
    memcpy(a->seed, seed, sizeof a->seed);
    a->budget_bytes = budget_bytes;
    a->outside_free = UINT32_MAX;
    size_t segment = segment_bytes_for(budget_bytes);
    size_t bytes = budget_bytes < ARENA_BUDGET_MIN ? ARENA_BUDGET_MIN : budget_bytes;
    if (!segments_begin(&a->segments, bytes, segment))
        return false;
    a->index_bytes = index_bytes_for(bytes);
    a->index = tiered_map(a->index_bytes);
    if (a->index == NULL) {
        segments_end(&a->segments);
        return false;
    }
    reset(a);
    return true;
}

void
arena_end(Arena *a)
{
    if (a->index == NULL)
        return;
    for (uint32_t slot = 0; slot < a->outside_count; slot++)
        if (a->outside[slot].map != NULL)
            outside_drop(a, slot);
    free(a->outside);
    segments_end(&a->segments);
    tiered_unmap(a->index, a->index_bytes);
    sketch_end(&a->sketch);
    memset(a, 0, sizeof *a);
}

/* Begins anew with segments of the size that suits another budget; what was used last is copied, up to a bound. */
static bool
rebuild(Arena *a, size_t budget_bytes)
{
    static Arena fresh; /* Large for a stack; nobody else is here, by the interpreter lock. */
    if (!arena_begin(&fresh, budget_bytes, a->seed))
        return false;
    int64_t work = a->work;
    fresh.second = a->second;
    size_t moved = 0, limit = budget_bytes < REBUILD_BYTES_MAX ? budget_bytes : REBUILD_BYTES_MAX, forgotten = a->count;
    for (unsigned queue = 0; queue < ARENA_QUEUES; queue++) {
        uint32_t place = a->queues[queue].newest;
        uint64_t bytes = 0, all = a->segments.live_bytes + a->outside_bytes;
        uint64_t share = all > limit ? (uint64_t)((double)limit * (double)a->queues[queue].bytes / (double)all) : all;
        while (place && at(a, place)->older && (bytes += arena_record_bytes(a, place)) < share)
            place = at(a, place)->older;
        for (; place; place = at(a, place)->newer) {
            ArenaValue value;
            ArenaKey key = arena_record(a, place, &value);
            fresh.entering = at(a, place)->state;
            arena_put(&fresh, &key, value.kind, value.data, value.size, value.deadline);
        }
        moved += (size_t)bytes;
    }
    forgotten -= fresh.count;
    fresh.evictions = a->evictions + forgotten;
    fresh.evicted_bytes = a->evicted_bytes;
    fresh.moved_bytes = a->moved_bytes + moved;
    fresh.rules = a->rules;
    fresh.entering = a->entering;
    memcpy(fresh.hits, a->hits, sizeof fresh.hits);
    fresh.policy_bytes = a->policy_bytes;
    fresh.sketch = a->sketch;
    a->sketch.words = NULL;
    arena_end(a);
    *a = fresh;
    a->work = work;
    return true;
}

/* Whether the budget has become so small that its few segments are mostly slack. */
static bool
too_few_segments(const Arena *a)
{
    return a->budget_bytes / a->segments.segment_bytes < SEGMENTS_FEW
        && segment_bytes_for(a->budget_bytes) < a->segments.segment_bytes;
}

/* Within the work that is left. */
static bool
shrink(Arena *a, size_t bytes)
{
    if (too_few_segments(a)) {
        while (a->segments.live_bytes + a->outside_bytes > a->budget_bytes)
            if (a->work <= 0 || !arena_evict(a))
                return false;
        if (!rebuild(a, a->budget_bytes))
            return false;
    }
    return keep_budget(a, bytes < a->budget_bytes ? a->budget_bytes - bytes : 0);
}

bool
arena_shrink(Arena *a, size_t bytes)
{
    notice_fork(a);
    a->work = WORK_MAX;
    return shrink(a, bytes);
}

/* Address space for a larger budget: of the index first, so that it never lacks buckets for what the segments hold. */
static bool
extend(Arena *a, size_t budget_bytes)
{
    size_t wanted = index_bytes_for(budget_bytes);
    if (wanted > a->index_bytes) {
        uint32_t *index = tiered_map(wanted);
        if (index == NULL)
            return false;
        memcpy(index, a->index, arena_index_pages(a) * tiered_page_bytes());
        tiered_unmap(a->index, a->index_bytes);
        a->index = index;
        a->index_bytes = wanted;
    }
    return segments_extend(&a->segments, budget_bytes);
}

bool
arena_resize(Arena *a, size_t budget_bytes)
{
    notice_fork(a);
    if (segment_bytes_for(budget_bytes) >= 8 * a->segments.segment_bytes)
        return rebuild(a, budget_bytes);
    if (budget_bytes > a->segments.bytes && !extend(a, budget_bytes))
        return false;
    a->budget_bytes = budget_bytes;
    return true;
}

static void
value_at(const Arena *a, uint32_t place, ArenaValue *found)
{
    Record *r = at(a, place);
    found->place = place;
    found->kind = r->kind & KIND_MASK;
    found->noted = r->kind & NOTED;
    found->deadline = r->kind & EXPIRING ? deadline_of(r) : 0;
    found->size = r->value_size;
    found->data = r->kind & OUTSIDE ? a->outside[outside_slot(r)].map : key_of(r) + r->key_size;
}

bool
arena_find(const Arena *a, const ArenaKey *key, ArenaValue *found)
{
    return arena_find_hashed(a, key, arena_hash(a, key), found);
}

bool
arena_find_hashed(const Arena *a, const ArenaKey *key, uint32_t hash, ArenaValue *found)
{
    if (a->index[0] == 0)
        return false;
    uint32_t place = *link_from(a, key, hash);
    if (place)
        value_at(a, place, found);
    return place != 0;
}

/* What a hit adds to a record that counts sparingly.  A pseudo-random number for each hit, by a multiplicative hash of its
 * number, is compared with 1 / (1 + 10 * (uses / worth - 5)). */
static inline unsigned
counted(uint64_t hit, unsigned uses)
{
    uint32_t draw = (uint32_t)(hit * 0x9E3779B97F4A7C15u >> 32);
    unsigned over = uses > 5 * ARENA_USE_WORTH ? uses - 5 * ARENA_USE_WORTH : 0;
    if (over && (uint64_t)draw * (10 * over + ARENA_USE_WORTH) >= (uint64_t)ARENA_USE_WORTH << 32)
        return 0;
    return uses + ARENA_USE_WORTH > ARENA_USES_MAX ? ARENA_USES_MAX - uses : ARENA_USE_WORTH;
}

static void
hit_by_rules(Arena *a, Record *r, uint32_t place)
{
    const ArenaRules *rules = &a->rules;
    unsigned uses = r->state & USES_MASK, queue = queue_of(r);
    uint64_t hit = ++a->hits[queue];
    if (a->sketch.words != NULL)
        sketch_add(&a->sketch, hash_of_record(a, r));
    if (uses < rules->uses_max)
        r->state += (uint8_t)(rules->sparing ? counted(hit, uses) : 1);
    if (rules->hit_to[queue] >= 0)
        move_to(a, place, (unsigned)rules->hit_to[queue], r->state & USES_MASK);
}

void
arena_hit(Arena *a, uint32_t place)
{
    Record *r = at(a, place);
    if (a->rules.hit_action == ARENA_HIT_MOVES_TO_FRONT) {
        if (a->queues[0].newest != place) {
            unlink_use(a, r, 0);
            link_newest(a, r, place, 0);
        }
    } else if (a->rules.hit_action == ARENA_HIT_BY_RULES) {
        hit_by_rules(a, r, place);
    }
}

void
arena_note(Arena *a, uint32_t place)
{
    at(a, place)->kind |= NOTED;
}

bool
arena_discard(Arena *a, const ArenaKey *key)
{
    notice_fork(a);
    uint32_t *link = link_to(a, key);
    if (*link == 0)
        return false;
    remove_linked(a, *link, link);
    return true;
}

size_t
arena_need(const Arena *a, const ArenaKey *key, size_t size, int64_t deadline, size_t *outside)
{
    *outside = 0;
    if (key->size >= ARENA_KEY_BYTES_MAX || size > a->budget_bytes / VALUE_SHARE_MAX || size > UINT32_MAX)
        return 0;
    size_t head = sizeof(Record) + key->size + 1 + (deadline ? sizeof(Due) : 0);
    if (head + sizeof(uint32_t) > a->segments.segment_bytes / 2)
        return 0; /* A key of kilobytes, in a small arena. */
    size_t total = rounded(a, head + size);
    if (total > a->segments.segment_bytes / 4) {
        total = rounded(a, head + sizeof(uint32_t));
        *outside = outside_pages(size);
    }
    return total;
}

bool
arena_crowded(const Arena *a, size_t bytes, size_t outside)
{
    const Segments *s = &a->segments;
    return a->index[0] && a->count && s->live_bytes + s->tail_bytes + bytes > live_limit(a, segments_allowed(a, outside));
}

size_t
arena_capacity(const Arena *a)
{
    size_t limit = live_limit(a, segments_allowed(a, 0)), lost = a->segments.tail_bytes;
    return (limit > lost ? limit - lost : 0) + a->outside_bytes;
}

/* One of a bucket's chain.  Each record is as likely as any other: a place in the chain is drawn with the bucket, and if
 * nothing is there, both are drawn again.  Only where more are in one bucket than places, those share them. */
uint32_t
arena_pick(const Arena *a, uint32_t number)
{
    enum { PLACES = 3 };
    if (a->index[0] == 0 || a->count == 0)
        return 0;
    for (uint64_t draw = number;; draw = draw * 0xD1342543DE82EF95u + 0x9E3779B97F4A7C15u) {
        uint64_t mixed = (draw ^ draw >> 29) * 0xBF58476D1CE4E5B9u;
        uint32_t first = a->index[INDEX_HEAD + (uint32_t)((mixed >> 32) * a->bucket_count >> 32)];
        uint32_t step = (uint32_t)(mixed & 0xFFFF), length = 0, place;
        for (place = first; place; place = at(a, place)->chain)
            length++;
        step %= length > PLACES ? length : PLACES;
        if (step >= length)
            continue;
        for (place = first; step; step--)
            place = at(a, place)->chain;
        return place;
    }
}

void
arena_age(Arena *a, uint32_t place)
{
    Record *r = at(a, place);
    r->state -= (r->state & USES_MASK) > 0;
}

bool
arena_oldest(const Arena *a, unsigned queue, ArenaOldest *found)
{
    uint32_t place = a->index[0] ? a->queues[queue].oldest : 0;
    if (place)
        arena_describe(a, place, found);
    return place != 0;
}

void
arena_describe(const Arena *a, uint32_t place, ArenaOldest *found)
{
    const Record *r = at(a, place);
    *found = (ArenaOldest){hash_of_record(a, r), arena_record_bytes(a, place), r->state & USES_MASK,
        r->kind & EXPIRING ? deadline_of(r) : 0};
}

void
arena_shift(Arena *a, unsigned queue, unsigned to, unsigned uses)
{
    if (a->index[0] && a->queues[queue].oldest)
        move_to(a, a->queues[queue].oldest, to, uses);
}

void
arena_rule(Arena *a, const ArenaRules *rules)
{
    notice_fork(a);
    for (unsigned queue = 0; queue < ARENA_QUEUES; queue++) {
        for (uint32_t place = a->queues[queue].oldest, next; place && queue; place = next) {
            next = at(a, place)->newer;
            move_to(a, place, 0, 0);
        }
    }
    for (uint32_t place = a->queues[0].oldest; place; place = at(a, place)->newer)
        at(a, place)->state = arena_state_new(rules, 0);
    a->rules = *rules;
    a->entering = arena_state_new(rules, 0);
    a->policy_bytes = 0;
}

/* Where an old value takes as much room as the new one it is written over. */
static bool
overwrite(Arena *a, uint32_t place, unsigned kind, const unsigned char *data, size_t size)
{
    Record *r = at(a, place);
    if (r->kind & (EXPIRING | OUTSIDE))
        return false;
    if (rounded(a, sizeof(Record) + r->key_size + size) != record_bytes(a, r))
        return false;
    a->payload_bytes += (uint64_t)size - r->value_size;
    r->value_size = (uint32_t)size;
    r->kind = (uint8_t)kind;
    memcpy(key_of(r) + r->key_size, data, size);
    move_to(a, place, queue_of(r), r->state & USES_MASK);
    return true;
}

bool
arena_put(Arena *a, const ArenaKey *key, unsigned kind, const unsigned char *data, size_t size, int64_t deadline)
{
    notice_fork(a);
    a->work = WORK_MAX;
    uint32_t *link = link_to(a, key);
    uint8_t state = a->entering;
    if (*link) {
        if (a->rules.hit_action == ARENA_HIT_BY_RULES)
            hit_by_rules(a, at(a, *link), *link);
        state = at(a, *link)->state;
        if (deadline == 0 && overwrite(a, *link, kind, data, size))
            return true;
        remove_linked(a, *link, link);
    }
    size_t outside, total = arena_need(a, key, size, deadline, &outside);
    if (total == 0)
        return false;
    if (too_few_segments(a)) {
        if (!shrink(a, a->budget_bytes) || too_few_segments(a))
            return false;
        total = arena_need(a, key, size, deadline, &outside); /* Its segments are others now. */
        if (total == 0)
            return false;
    }
    uint32_t slot = UINT32_MAX;
    if (outside) {
        if (!keep_budget(a, outside))
            return false;
        slot = outside_take(a, size);
        if (slot == UINT32_MAX)
            return false;
    }
    uint32_t place = make_room(a, total);
    if (place == 0) {
        if (slot != UINT32_MAX)
            outside_drop(a, slot);
        return false;
    }
    Record *r = at(a, place);
    r->value_size = (uint32_t)size;
    r->key_size = (uint16_t)(key->size + 1);
    r->kind = (uint8_t)(kind | (deadline ? EXPIRING : 0) | (slot != UINT32_MAX ? OUTSIDE : 0));
    r->state = state;
    unsigned char *own = key_of(r);
    own[0] = key->code;
    memcpy(own + 1, key->data, key->size);
    if (slot != UINT32_MAX) {
        memcpy(own + r->key_size, &slot, sizeof slot);
        memcpy(a->outside[slot].map, data, size);
    } else {
        memcpy(own + r->key_size, data, size);
    }
    link = bucket_of(a, hash_of(a, key->code, key->data, key->size));
    r->chain = *link;
    *link = place;
    link_newest(a, r, place, queue_of(r));
    a->queues[queue_of(r)].bytes += total + outside;
    if (deadline) {
        due_of(r)->deadline_low = (uint32_t)deadline;
        due_of(r)->deadline_high = (uint32_t)((uint64_t)deadline >> 32);
        link_due(a, r, place);
        a->expiring++;
    }
    a->count++;
    a->payload_bytes += (uint64_t)r->key_size + size;
    if (a->count > a->bucket_count)
        arena_grow_index(a);
    if (arena_used_bytes(a) > a->budget_bytes)
        keep_budget(a, 0);
    return true;
}

size_t
arena_expire(Arena *a, int64_t now_ms, size_t limit)
{
    notice_fork(a);
    int64_t over = now_ms / 1000 - 1; /* The last second that is wholly over. */
    size_t forgotten = 0, looks = limit * 8;
    if (a->second < over - ARENA_WHEEL_SLOTS)
        a->second = over - ARENA_WHEEL_SLOTS;
    while (a->expiring && forgotten < limit && looks) {
        if (a->pending == 0) {
            if (a->second >= over)
                break;
            uint32_t *slot = &a->wheel[++a->second % ARENA_WHEEL_SLOTS];
            a->pending = *slot;
            *slot = 0;
            continue;
        }
        uint32_t place = a->pending;
        Record *r = at(a, place);
        looks--;
        if (deadline_of(r) / 1000 <= over) {
            remove_linked(a, place, arena_link_to_place(a, place));
            forgotten++;
        } else {
            /* Of a later turn of the wheel. */
            unlink_due(a, r, place);
            link_due(a, r, place);
        }
    }
    if (a->expiring == 0 && a->second < over)
        a->second = over;
    return forgotten;
}

uint32_t
arena_after(const Arena *a, uint32_t place)
{
    if (a->index[0] == 0)
        return 0;
    unsigned queue = 0;
    if (place) {
        if (at(a, place)->newer)
            return at(a, place)->newer;
        queue = queue_of(at(a, place)) + 1;
    }
    while (queue < ARENA_QUEUES && a->queues[queue].oldest == 0)
        queue++;
    return queue < ARENA_QUEUES ? a->queues[queue].oldest : 0;
}

ArenaKey
arena_record(const Arena *a, uint32_t place, ArenaValue *value)
{
    Record *r = at(a, place);
    value_at(a, place, value);
    unsigned char *own = key_of(r);
    return (ArenaKey){own + 1, r->key_size - 1u, own[0]};
}

size_t
arena_record_bytes(const Arena *a, uint32_t place)
{
    const Record *r = at(a, place);
    return record_bytes(a, r) + (r->kind & OUTSIDE ? a->outside[outside_slot(r)].bytes : 0);
}
