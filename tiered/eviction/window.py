"""How large W-TinyLFU's window should be: by what another share of the capacity would have brought, and cost.

Caffeine climbs by the hit ratio: it makes the window larger or smaller and looks whether that rose.  But a step changes
the hit ratio by less than it varies by chance from one sample to the next: of 3,000 reads half of which are hits, it is
known to 0.9 points.  So this counts only the reads that a change would decide, which are few and vary by the root of
their number, as shadow queues do it in Cliffhanger (Cidon, Eisenman, Alizadeh and Katti, NSDI 2016) and ghosts in ARC:

    brought     misses on what came out of the window not long ago: so many of them as a window larger by a span
                would still have held (`Flow`), if what the main part would then lose came through it, too
    cost        hits on the records of the main part that would be the first to leave: those on probation, and for
                a large span some of those protected, in proportion

Spans are 1/16 of the capacity, which tells where to go, up to all of it, which tells that something is to be found
beyond a stretch where nothing is.  The window grows where for some span more was brought than it cost, by more than
the standard error of the difference, and shrinks where for the smallest span less was.  All this is looked at 32 times
while as many reads come as there are records, and what was counted fades by half in half of that; so no burst
moves the window by more than what it is of the whole.

The same two densities say how much the sketch is to be believed.  If what was turned away comes back as much as what
is on probation is used, some of that is there for what it was long ago: then as many as one in 8 of those who would be
turned away are let in.  That also ends what someone could do who made others look as if they were used much.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from tiered.eviction.flow import MARKS, Flow
from tiered.eviction.policy import Records

WINDOW, PROBATION, PROTECTED = 0, 1, 2
SHARE_MIN = 0.01
SPANS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
REVIEWS = 32
ACCESSES_MIN = 32
HALF_LIFE = 0.5
"""In accesses for each record."""
RISE_MAX = 0.5
FALL_MAX = 2.0
"""By how much of the capacity the share may change in as many accesses as there are records."""
ERRORS = (1, 2, 2, 2, 2)
"""By how many standard errors a span must have brought more than it cost.  The large ones are held to more: their
steps are."""
DOUBT_MAX = 1 / 8


class Window:
    """The share of the capacity that the window deserves, from when the capacity is first used up."""

    def __init__(self) -> None:
        self.share = SHARE_MIN
        self.doubt = 0.0
        """The chance to come in of a record that by its use would be turned away."""
        self._flow = Flow()
        self._began = False
        self._returns = [0.0] * len(SPANS)
        self._hits = [0.0] * 3
        self._hits_before = [0] * 3
        self._accesses_before = self._misses = 0

    @property
    def memory_bytes(self) -> int:
        """Memory of what is remembered of records that have left."""
        return self._flow.memory_bytes

    def fit(self, memory_bytes: int) -> None:
        """Keep that within so much memory."""
        self._flow.fit(memory_bytes)

    def miss(self, records: Records, fingerprint: int, full: bool) -> None:
        """Something was read that is not there, perhaps any more."""
        if not self._began:
            if not full:
                return
            self._began = True
            self._hits_before = [records.queue_hits(queue) for queue in (WINDOW, PROBATION, PROTECTED)]
            self._accesses_before = sum(self._hits_before)
        self._misses += 1
        mark = self._flow.take(fingerprint)
        if mark is not None:
            since = self._flow.left_bytes - mark.left_bytes - records.capacity_bytes / (2 * MARKS)
            self._count_return(records, since, mark.counters)

    def passed(self, records: Records, fingerprint: int, size: int) -> None:
        """A record comes out of the window, to stay or to leave."""
        self._flow.grow(4 * len(records), records.ghost_bytes)
        counters = records.queue_hits(PROBATION), records.queue_hits(PROTECTED)
        self._flow.add(fingerprint, size, records.capacity_bytes, counters)

    def _count_return(self, records: Records, since: float, before: Sequence[int]) -> None:
        """Count it for the smallest span with which it would still have been there."""
        mean = records.capacity_bytes / max(len(records), 1)
        probation, protected = records.queue_hits(PROBATION) - before[0], records.queue_hits(PROTECTED) - before[1]
        for number, span in enumerate(SPANS):
            bytes_ = _span_bytes(records, span)
            if since + mean * _of_first(records, bytes_, probation, protected) <= bytes_:
                self._returns[number] += 1
                break

    def review(self, records: Records) -> bool:
        """Change the share, where enough was seen since the last time; whether it is another one now."""
        count = len(records)
        accesses = self._misses + sum(records.queue_hits(queue) for queue in (WINDOW, PROBATION, PROTECTED))
        elapsed = (accesses - self._accesses_before) / max(count, 1)
        if accesses - self._accesses_before < max(count / REVIEWS, ACCESSES_MIN):
            return False
        self._accesses_before = accesses
        for queue in (PROBATION, PROTECTED):
            hits = records.queue_hits(queue)
            self._hits[queue] += hits - self._hits_before[queue]
            self._hits_before[queue] = hits
        before = self.share
        self.share = min(max(before + self._change(records, elapsed), SHARE_MIN), 1 - SHARE_MIN)
        probation = (self._hits[PROBATION] + 1) / max(records.queue_bytes(PROBATION), 1)
        returns = sum(self._returns)
        sure = max(returns - 2 * sqrt(returns), 0)
        self.doubt = DOUBT_MAX * min(1, sure / records.capacity_bytes / probation)
        fading = 0.5 ** (elapsed / HALF_LIFE)
        self._returns = [returns * fading for returns in self._returns]
        self._hits = [hits * fading for hits in self._hits]
        return self.share != before

    def _change(self, records: Records, elapsed: float) -> float:
        """By how much the share is to rise or fall."""
        brought, most, rise, fall = 0.0, 0.0, 0.0, 0.0
        for number, span in enumerate(SPANS):
            brought += self._returns[number]
            cost = _of_first(records, _span_bytes(records, span), self._hits[PROBATION], self._hits[PROTECTED])
            decided = brought + cost + 1
            beyond_chance = abs(brought - cost) - ERRORS[number] * sqrt(decided)
            if beyond_chance <= 0:
                continue
            if brought > cost and beyond_chance > most:
                most = beyond_chance
                rise = min(span, RISE_MAX * elapsed) if number else RISE_MAX * elapsed * beyond_chance / decided
            elif brought < cost and number == 0:
                fall = FALL_MAX * elapsed * beyond_chance / decided
        return rise or -fall


def _span_bytes(records: Records, span: float) -> float:
    return min(span * records.capacity_bytes, records.queue_bytes(PROBATION) + records.queue_bytes(PROTECTED))


def _of_first(records: Records, bytes_: float, probation: float, protected: float) -> float:
    """How many of so many hits on records on probation and protected ones were on the bytes that would leave first."""
    first, then = max(records.queue_bytes(PROBATION), 1), max(records.queue_bytes(PROTECTED), 1)
    return probation * min(1, bytes_ / first) + protected * min(max((bytes_ - first) / then, 0), 1)
