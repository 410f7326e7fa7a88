"""W-TinyLFU with an adaptive window (Einziger, Eytan, Friedman, Manes, "Adaptive Software Cache Management", 2018)."""

from __future__ import annotations

from random import Random

from tiered.eviction.policy import Policy, Records
from tiered.eviction.window import PROBATION, PROTECTED, WINDOW, Window

PROTECTED_SHARE = 0.8
"""Of what the window leaves."""
SHIFTS_MAX = 64
"""So many records change their queue for one that comes; the rest follows with the next ones."""


class WTinyLFU(Policy):
    """New records pass through a window, an LRU; what comes out of it stays if it was used more than the record that
    would have to leave for it.  How often a record was used, also when it was not there, is estimated by a sketch
    that forgets by halves.

    The main part is a segmented LRU: on probation until used again, then protected.  The window begins with 1 % and
    adapts (`window`, which also says how this differs from Caffeine's).
    """

    hit_to = (WINDOW, PROTECTED, PROTECTED)
    sketched = True

    def __init__(self, seed: int | None = None) -> None:
        self._chance = Random(seed).random
        self.window = Window()
        self._settling = False
        self._entering_bytes = 0

    @property
    def memory_bytes(self) -> int:
        """Memory of what the window is measured by."""
        return self.window.memory_bytes

    def fit(self, memory_bytes: int) -> None:
        """Forget some of what left."""
        self.window.fit(memory_bytes)

    def enter(self, records: Records, fingerprint: int, size: int) -> None:
        """Into the window; what that has no room for goes on probation, as long as nothing must leave for it."""
        records.see(fingerprint)
        self._entering_bytes = size
        room = records.capacity_bytes - size - sum(map(records.queue_bytes, (WINDOW, PROBATION, PROTECTED)))
        self.window.miss(records, fingerprint, room < 0)
        if self.window.review(records):
            self._settling = True
        self._settle(records)
        while room >= 0 and self._window_is_full(records):
            records.shift(WINDOW, PROBATION, 0)

    def _window_is_full(self, records: Records) -> bool:
        held, entering = records.queue_bytes(WINDOW), self._entering_bytes
        return held > 0 and held + entering > self.window.share * records.capacity_bytes

    def _settle(self, records: Records) -> None:
        """Have the queues keep to their shares, where those changed."""
        self._demote(records)
        if not self._settling:
            return
        wanted = self.window.share * records.capacity_bytes
        queue, to = (PROBATION, WINDOW) if records.queue_bytes(WINDOW) < wanted else (WINDOW, PROBATION)
        for _ in range(SHIFTS_MAX):
            held = records.queue_bytes(WINDOW)
            if (held >= wanted if to == WINDOW else held <= wanted) or not records.queue_bytes(queue):
                self._settling = False
                return
            records.shift(queue, to, 0)

    def _demote(self, records: Records) -> None:
        most = records.capacity_bytes * (1 - self.window.share) * PROTECTED_SHARE
        for _ in range(SHIFTS_MAX):
            if records.queue_bytes(PROTECTED) <= most:
                break
            records.shift(PROTECTED, PROBATION, 0)

    def adopt(self, records: Records) -> None:
        """All on probation, but for what the window holds."""
        while records.queue_bytes(WINDOW) > self.window.share * records.capacity_bytes:
            records.shift(WINDOW, PROBATION, 0)

    def leave(self, records: Records) -> None:
        """Evict what comes out of the window, or the oldest on probation if that was used less."""
        self._demote(records)
        candidate = records.oldest(WINDOW) if self._window_is_full(records) else None
        queue = PROBATION if records.queue_bytes(PROBATION) else PROTECTED
        victim = records.oldest(queue)
        if candidate is None and victim is not None:
            records.drop(queue)
            return
        if candidate is None or victim is None:
            records.drop(WINDOW)
            return
        self.window.passed(records, candidate[0], candidate[1])
        if records.seen(candidate[0]) > records.seen(victim[0]) or self._chance() < self.window.doubt:
            records.drop(queue)
            records.shift(WINDOW, PROBATION, 0)
        else:
            records.drop(WINDOW)
