"""The advisor: which hit ratio another budget would give, from a sample of the keys.

The miss-ratio curve of least-recently-used eviction, all sizes at once, while the store works: SHARDS of fixed size
(Waldspurger, Park, Garthwaite, Ahmad: "Efficient MRC Construction with SHARDS", FAST 2015).  A key is looked at if its
hash lies below a limit, so at all of its uses or at none.  Of those keys it is known how many bytes of other such keys
were used since the last use; divided by the share of keys that are looked at, that is how many bytes a hot tier must
have room for so that the read is a hit.  These distances are counted.  Where there are more than `KEYS_MAX` keys the
limit falls, keys above it are forgotten, and what was counted is scaled down to what the lower one would have counted.

    limit     1 of 2**32 hashes to begin with: as long as keys are few, all of them are looked at
    distance  Fenwick, "A new data structure for cumulative frequency tables", 1994, over the order of use
    counts    by distance, in 32 steps for each power of two
    SHARDS-adj: what the sampled keys have more or less of the reads than their share is counted as reads at distance 0

It differs from the paper on purpose where the limit falls by an eighth at a time, so that a pass over the sample takes
the place of a queue ordered by hash, and where a key's own bytes are not scaled, since it is in the sample for sure.

What is a use: a read of an existing key, whichever tier answers, and a write, which is not counted itself.  Reads
without promotion are none.  Eviction other than `lru`, large values that are not kept and keys that are deleted make
the hot tier differ from this model.

`Shards` here defines what the compiled one does (`compiled/shards.c`), which the arena calls at each hit.
Locking: the compiled one is atomic.  Here a use that meets another in progress is left out.
"""

from __future__ import annotations

import threading
from array import array
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from tiered.config import MEMORY_BYTES_MIN
from tiered.errors import ConfigError
from tiered.native import native

if TYPE_CHECKING:
    from tiered.tiers import Tiers

KEYS_MAX = 16_000
HASHES = 1 << 32
FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
NEAR_BEST = 0.01
_STEP_BITS = 5
_STEPS = 1 << _STEP_BITS
BUCKETS = 64 * _STEPS
_FULLY_PACKED = 0.9
"""Share of the hot tier that is records, where it holds too little to tell."""


def bucket_of(distance: int) -> int:
    """Where a distance is counted."""
    power = max(0, distance.bit_length() - 1 - _STEP_BITS)
    return power * _STEPS + (distance >> power)


def bucket_start(bucket: int) -> int:
    """The least distance that is counted there."""
    power = max(0, bucket // _STEPS - 1)
    return bucket - power * _STEPS << power


class PureShards:
    """What is known of the keys in the sample, and the distances counted so far."""

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self.keys_max = keys_max
        self.limit = HASHES
        self.reads = 0
        self.first_reads = 0.0
        self._counts = array("d", bytes(8 * BUCKETS))
        # By order of use; a size of 0 where a key was used again later.  The tree is over the sizes.
        self._hashes = array("I", bytes(8 * keys_max))
        self._sizes = array("I", bytes(8 * keys_max))
        self._tree = array("Q", bytes(8 * (2 * keys_max + 1)))
        # From a hash to its place and one more; 0 is empty.  A dict would take five times as much.
        self._mask = (1 << (3 * keys_max).bit_length()) - 1
        self._table = array("I", bytes(4 * (self._mask + 1)))
        self._count = self._next = 0
        self._total = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    def touch(self, hashed: int, size: int, counted: bool) -> None:
        """Note a use of a key by its hash, of 32 bits, and its size, above 0; `counted` if it is a read."""
        self.reads += counted
        if hashed >= self.limit or not self._lock.acquire(blocking=False):
            return
        try:
            self._touch(hashed, size, counted)
        finally:
            self._lock.release()

    def _touch(self, hashed: int, size: int, counted: bool) -> None:
        slot = self._slot(hashed)
        place = self._table[slot] - 1
        if place >= 0:
            old = self._sizes[place]
            if counted:
                since = float(self._total - self._up_to(place))
                self._counts[bucket_of(int(since * (HASHES / self.limit)) + old)] += 1.0
            self._sizes[place] = 0
            self._add(place, -old)
        else:
            self._count += 1
            self.first_reads += counted
        if self._next == len(self._sizes):
            count = self._count
            self._renumber()
            self._count = count  # This key's place is among those that have gone.
            slot = self._slot(hashed)
        self._table[slot] = self._next + 1
        self._hashes[self._next] = hashed
        self._sizes[self._next] = size
        self._add(self._next, size)
        self._next += 1
        if self._count > self.keys_max:
            self._lower()

    def _slot(self, hashed: int) -> int:
        """Where a hash is in the table, or is to be."""
        slot = hashed & self._mask
        while self._table[slot] and self._hashes[self._table[slot] - 1] != hashed:
            slot = slot + 1 & self._mask
        return slot

    def _up_to(self, place: int) -> int:
        """Bytes of what was used up to there."""
        total, at = 0, place + 1
        while at:
            total += self._tree[at]
            at &= at - 1
        return total

    def _add(self, place: int, size: int) -> None:
        self._total += size
        at, end = place + 1, len(self._sizes)
        while at <= end:
            self._tree[at] += size
            at += at & -at

    def _renumber(self) -> None:
        """Close the gaps, and leave out keys above the limit."""
        kept, total = 0, 0
        self._table = array("I", bytes(4 * (self._mask + 1)))
        for place in range(self._next):
            size, hashed = self._sizes[place], self._hashes[place]
            if size and hashed < self.limit:
                self._sizes[kept], self._hashes[kept] = size, hashed
                self._table[self._slot(hashed)] = kept + 1
                kept, total = kept + 1, total + size
        self._next = self._count = kept
        self._total = total
        for at in range(1, len(self._tree)):
            if at > kept:
                self._sizes[at - 1] = 0
            self._tree[at] = self._sizes[at - 1]
        for at in range(1, len(self._tree)):
            above = at + (at & -at)
            if above < len(self._tree):
                self._tree[above] += self._tree[at]

    def _lower(self) -> None:
        before = self.limit
        while self._count > self.keys_max:
            self.limit -= self.limit // 8 or 1
            self._renumber()
        share = self.limit / before
        for bucket in range(BUCKETS):
            self._counts[bucket] *= share
        self.first_reads *= share

    def counts(self) -> list[float]:
        """Reads by the bucket of their distance, scaled to the limit as it is."""
        return self._counts.tolist()


Shards: Any = PureShards if native is None else native.Shards


def hit_ratios(shards: Any) -> list[float]:
    """The hit ratio of a hot tier with room for as much as each bucket starts with; one more for no end of room."""
    expected = shards.reads * shards.limit / HASHES
    counts = shards.counts()
    if not expected:
        return [0.0] * (len(counts) + 1)
    correction = expected - sum(counts) - shards.first_reads
    hits = accumulate(counts, initial=0.0)
    return list(accumulate((min(1.0, max(0.0, (found + correction) / expected)) for found in hits), max))


def hit_ratio(ratios: list[float], room: float) -> float:
    """The hit ratio with room for so many bytes, between those of two buckets."""
    bucket = bucket_of(int(room))
    start, stop = bucket_start(bucket), bucket_start(bucket + 1)
    return ratios[bucket] + (ratios[bucket + 1] - ratios[bucket]) * (room - start) / (stop - start)


class Estimate(NamedTuple):
    """The hit ratio that a budget would give."""

    memory: int
    hit_ratio: float


class Advice(NamedTuple):
    """How much memory is enough for the reads since the advisor was switched on.

    `curve` has the hit ratios at 1/8, 1/4 … 8 times `memory`, the present budget; `enough` is the smallest budget whose
    hit ratio is within 0.01 of the best of these.  `reads` were seen, those of `sampled_keys` looked at, which are
    `sampled_share` of all keys: few of either make it a guess.
    """

    memory: int
    curve: tuple[Estimate, ...]
    enough: Estimate
    reads: int
    sampled_keys: int
    sampled_share: float

    def __str__(self) -> str:
        if not self.reads:
            return "no reads seen yet"
        lines = [f"{'memory':>12}  hit ratio"]
        for memory, ratio in self.curve:
            lines.append(f"{_shown(memory):>12}  {ratio:9.3f}{'  now' if memory == self.memory else ''}")
        lines.append(f"{_shown(self.enough.memory)} are enough: a hit ratio of {self.enough.hit_ratio:.3f}")
        lines.append(f"from {self.reads:,} reads, 1 of {1 / self.sampled_share:,.0f} keys looked at")
        return "\n".join(lines)


def _shown(memory: int) -> str:
    return f"{memory / (1 << 20):,.1f} MB"


def advice_of(tiers: Tiers) -> Advice:
    """What a store's advisor has found out.  Raises `ConfigError` where there is none."""
    shards, memory = tiers.advisor, tiers.settings.memory
    if shards is None:
        raise ConfigError("the advisor is off; open the store with advisor=True, or config_set('advisor', True)")
    hot, ratios = tiers.hot, hit_ratios(shards)
    # What the model counts are records; a hot tier also takes tables and gaps, and leaves buffers their part.
    told = hot.used_bytes * 2 > hot.budget_bytes
    packed = hot.entry_bytes / hot.used_bytes if told else _FULLY_PACKED
    room = hot.budget_bytes * packed
    curve = tuple(Estimate(int(memory * factor), hit_ratio(ratios, room * factor)) for factor in FACTORS)
    best, enough = curve[-1].hit_ratio, curve[-1]
    for bucket, ratio in enumerate(ratios):
        if ratio >= best - NEAR_BEST:
            enough = min(enough, Estimate(max(MEMORY_BYTES_MIN, int(bucket_start(bucket) / room * memory)), ratio))
            break
    return Advice(memory, curve, enough, shards.reads, len(shards), shards.limit / HASHES)
