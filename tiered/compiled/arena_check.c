/* Whether everything in an arena adds up: what backs `Store.check()`.  It follows no link that leads out of the arena. */
#include "arena_record.h"

/* Whether a record can be at a place: whatever damage led there, it can be looked at. */
static bool
can_be(const Arena *a, uint32_t place)
{
    const Segments *s = &a->segments;
    size_t offset = (size_t)place << s->unit_shift;
    if (place == 0 || offset >= s->bytes)
        return false;
    uint32_t segment = segment_of(s, place);
    size_t left = segment * s->segment_bytes + s->filled[segment];
    left = left > offset ? left - offset : 0;
    return left >= sizeof(Record) && at(a, place)->key_size && record_bytes(a, at(a, place)) <= left;
}

/* The live bytes of a segment as its records have them; SIZE_MAX if they don't fill it. */
static size_t
count_segment(const Arena *a, uint32_t segment, size_t *records, size_t *holes, uint64_t *payload)
{
    const Segments *s = &a->segments;
    size_t end = segment * s->segment_bytes + s->filled[segment], live = 0;
    size_t offset = segment * s->segment_bytes + segment_first(s, segment);
    while (offset < end) {
        const Record *r = at(a, (uint32_t)(offset >> s->unit_shift));
        size_t bytes = record_bytes(a, r);
        if (!can_be(a, (uint32_t)(offset >> s->unit_shift)))
            return SIZE_MAX;
        if (!(r->kind & DEAD)) {
            live += bytes;
            *records += 1;
            *payload += (uint64_t)r->key_size + r->value_size;
        } else {
            *holes += 1;
        }
        offset += bytes;
    }
    return live;
}

static const char *
check_index(const Arena *a)
{
    size_t found = 0;
    for (uint32_t bucket = 0; bucket < a->bucket_count; bucket++) {
        uint32_t *head = a->index + INDEX_HEAD + bucket;
        for (uint32_t place = *head; place; place = at(a, place)->chain) {
            if (++found > a->count || !can_be(a, place))
                return "the index holds more than there is";
            if (at(a, place)->kind & DEAD)
                return "the index leads to what was removed";
            if (bucket_of(a, hash_of_record(a, at(a, place))) != head)
                return "a record is in another bucket than its key's";
        }
    }
    return found == a->count ? NULL : "the index holds fewer records than there are";
}

static const char *
check_order(const Arena *a)
{
    size_t found = 0;
    for (unsigned queue = 0; queue < ARENA_QUEUES; queue++) {
        uint32_t before = 0;
        uint64_t bytes = 0;
        for (uint32_t place = a->queues[queue].oldest; place; place = at(a, place)->newer) {
            if (++found > a->count || !can_be(a, place) || at(a, place)->kind & DEAD)
                return "the order of use holds more than there is";
            if (at(a, place)->older != before)
                return "the order of use does not lead back";
            if (queue_of(at(a, place)) != queue)
                return "a record is in another queue than it says";
            bytes += arena_record_bytes(a, place);
            before = place;
        }
        if (a->queues[queue].newest != before || a->queues[queue].bytes != bytes)
            return "a queue does not end where it says, or its bytes are miscounted";
    }
    return found == a->count ? NULL : "the order of use lacks records";
}

static const char *
check_due(const Arena *a)
{
    size_t found = 0;
    for (int slot = -1; slot < ARENA_WHEEL_SLOTS; slot++) {
        uint32_t before = 0;
        for (uint32_t place = slot < 0 ? a->pending : a->wheel[slot]; place; place = due_of(at(a, place))->later) {
            Record *r = at(a, place);
            if (++found > a->expiring || !can_be(a, place) || !(r->kind & EXPIRING) || r->kind & DEAD)
                return "the wheel holds more than what expires";
            if (due_of(r)->sooner != before)
                return "the wheel does not lead back";
            if (slot >= 0 && deadline_of(r) / 1000 % ARENA_WHEEL_SLOTS != slot)
                return "a deadline is in another slot than its second's";
            before = place;
        }
    }
    return found == a->expiring ? NULL : "the wheel lacks records";
}

static const char *
check_holes(const Arena *a, size_t expected)
{
    size_t found = 0;
    for (unsigned class = 0; class < ARENA_SIZE_CLASSES; class++) {
        uint32_t before = 0;
        for (uint32_t place = a->holes[class]; place; place = at(a, place)->older) {
            Record *r = at(a, place);
            if (++found > expected || !can_be(a, place) || !(r->kind & DEAD) || class_of(a, record_bytes(a, r)) != class)
                return "a hole is listed that is none of its size";
            if (r->newer != before)
                return "the holes do not lead back";
            before = place;
        }
    }
    return found == expected ? NULL : "not all holes are listed";
}

static const char *
check_outside(const Arena *a)
{
    size_t held = 0, bytes = 0, records = 0;
    for (uint32_t slot = 0; slot < a->outside_count; slot++)
        if (a->outside[slot].map != NULL) {
            held++;
            bytes += a->outside[slot].bytes;
        }
    for (uint32_t place = arena_after(a, 0); place; place = arena_after(a, place))
        if (at(a, place)->kind & OUTSIDE) {
            records++;
            uint32_t slot = outside_slot(at(a, place));
            if (slot >= a->outside_count || a->outside[slot].bytes < at(a, place)->value_size)
                return "a value outside is not where its record says";
        }
    return held == a->outside_held && bytes == a->outside_bytes && records == held ? NULL : "values outside are miscounted";
}

const char *
arena_check(const Arena *a)
{
    const Segments *s = &a->segments;
    if (a->index[0] == 0)
        return NULL; /* A forked child's, empty. */
    size_t records = 0, holes = 0, held = 0, warm = 0;
    uint64_t payload = 0, live = 0, tails = 0;
    for (uint32_t segment = 0; segment < s->count; segment++) {
        bool is_head = false, is_held;
        for (uint32_t head = 0; head < s->head_count; head++)
            is_head = is_head || s->heads[head] == segment;
        is_held = is_head || segments_is_closed(s, segment);
        held += is_held;
        warm += segments_is_warm(s, segment);
        size_t counted = count_segment(a, segment, &records, &holes, &payload);
        if (counted == SIZE_MAX)
            return "the records of a segment do not fill it";
        if (counted != s->live[segment])
            return "a segment's live bytes are miscounted";
        if (!is_held && s->filled[segment])
            return "a free segment is filled";
        live += counted;
        tails += segments_is_closed(s, segment) ? s->segment_bytes - s->filled[segment] : 0;
    }
    if (tails != s->tail_bytes)
        return "the ends of segments are miscounted";
    if (held != s->held || warm != s->warm)
        return "the segments are miscounted";
    if (records != a->count || payload != a->payload_bytes || live != s->live_bytes)
        return "the records are miscounted";
    const char *wrong = check_index(a);
    wrong = wrong ? wrong : check_order(a);
    wrong = wrong ? wrong : check_due(a);
    wrong = wrong ? wrong : check_holes(a, holes);
    return wrong ? wrong : check_outside(a);
}
