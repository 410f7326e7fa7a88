"""The low watermark: how far down the hot tier goes when it has reached its budget, which is the high one.

A write, or a read that promotes, evicts no more than what it needs room for, the value used longest ago first, and
only a bounded part of that: what would take longer is not kept hot.  The way down from there belongs to the periodic
cycle.  Where something had to leave since the last time, it draws a share of the budget between the bounds of
`low_watermark`, and evicts down to it in slices, letting go of the lock between them.  Puts then find room without
evicting, so that in the long run as much is evicted as without a low watermark; only a little less is hot.  Measured
(tools/bench/hit_ratio.py: Zipf 0.9, a tenth of the data hot, ten times as many cycles as by default): 59.3 % of reads
were hits without a low watermark, 59.3 % with the default of 0.95 to 0.99, 59.1 with 0.8 to 0.9, 58.4 with 0.5 to 0.6.

What is compared with the watermarks is measured as far as it is the store's own.  Of the arena these are the pages that
it has taken, whole segments, index and values outside, and of write buffers and views what they hold at this moment;
each cycle takes these anew.  Of the heap it is what the allocator hands out for entries and tables.  The resident
memory of the process is no part of it, on purpose: nobody can tell the store's share in it from what the program itself
keeps, and a store that answered the program's growth by evicting would end empty, without the process being smaller.
What the heap keeps of evicted values is given back when as much as a quarter of the budget was evicted (`_trim_due`),
and what stays all the same is `doctor`'s to tell.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

from tiered.hot import HotTier
from tiered.jitter import Bounds, drawn

YIELD_SECONDS = 50e-6
FRUITLESS_SLICES_MAX = 20
"""Where so many slices change nothing, what is left is tables: the watermark lies below them."""


def shrink(hot: HotTier, lock: AbstractContextManager[object]) -> None:
    """Evict down to a budget that got smaller, in slices, letting go of the lock between them."""
    fruitless, done = 0, False
    while not done and fruitless < FRUITLESS_SLICES_MAX:
        with lock:
            before = hot.evictions, hot.used_bytes
            done = hot.shrink()
            fruitless = fruitless + 1 if before == (hot.evictions, hot.used_bytes) else 0
        time.sleep(YIELD_SECONDS)  # Who waits for the lock is not as quick as who has just had it.


class Watermark:
    """The way down of one hot tier.  Everything under the store's lock."""

    def __init__(self) -> None:
        self.share = 0.0
        """Of the budget, where it is on its way to; 0.0 where it is on none."""
        self._evictions = 0
        self._fruitless = 0

    def look(self, hot: HotTier, bounds: Bounds) -> None:
        """Begin the way down where the budget was reached since the end of the last one."""
        if not self.share and hot.evictions != self._evictions:
            self.share = drawn(bounds)
            self._fruitless = 0

    def step(self, hot: HotTier) -> bool:
        """Evict a slice; True if there is more to do."""
        if not self.share:
            return False
        before = hot.evictions, hot.used_bytes
        done = hot.shrink(int(self.share * hot.budget_bytes))
        self._evictions = hot.evictions
        self._fruitless = self._fruitless + 1 if before == (hot.evictions, hot.used_bytes) else 0
        if done or self._fruitless == FRUITLESS_SLICES_MAX:
            self.share = 0.0
        return not done and self.share > 0
