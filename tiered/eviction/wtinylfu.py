"""W-TinyLFU with an adaptive window (Einziger, Eytan, Friedman, Manes, "Adaptive Software Cache Management", 2018)."""

from __future__ import annotations

from random import Random

from tiered.eviction.policy import Policy, Records

WINDOW, PROBATION, PROTECTED = 0, 1, 2
WINDOW_SHARE = 0.01
PROTECTED_SHARE = 0.8
"""Of what the window leaves."""
SAMPLE_FACTOR = 10
SAMPLE_MAX = 3000
"""The window is reviewed after so many accesses for each record, but no more than these, which tell the hit ratio to a
point: a large cache need not wait for longer."""
STEP_SHARE = 0.0625
STEP_DECAY = 0.98
RESTART_CHANGE = 0.05
"""A hit ratio that changed by so much lets the steps be large again."""
WARM_USES = 5
ADMIT_ANYWAY = 128


class WTinyLFU(Policy):
    """New records pass through a window, an LRU; what comes out of it stays if it was used more than the record that
    would have to leave for it.  How often a record was used, also when it was not there, is estimated by a sketch
    that forgets by halves.

    The main part is a segmented LRU: on probation until used again, then protected.  The window begins with 1 % and
    climbs: it is made larger or smaller by steps, on in the same direction while the hit ratio rises.
    """

    hit_to = (WINDOW, PROTECTED, PROTECTED)
    sketched = True

    def __init__(self, seed: int | None = None) -> None:
        self._chance = Random(seed).randrange
        self._window = WINDOW_SHARE
        self._step = STEP_SHARE
        self._hits_before = self._misses = 0
        self._ratio_before = 0.0
        self._entering_bytes = 0

    def enter(self, records: Records, fingerprint: int, size: int) -> None:
        """Into the window; what that has no room for goes on probation, as long as nothing must leave for it."""
        records.see(fingerprint)
        self._entering_bytes = size
        capacity = records.capacity_bytes
        room = capacity - size - sum(map(records.queue_bytes, (WINDOW, PROBATION, PROTECTED)))
        if room < 0:
            self._misses += 1
            self._review(records)
        else:
            self._hits_before = records.policy_hits
        self._demote(records)
        while room >= 0 and self._window_is_full(records):
            records.shift(WINDOW, PROBATION, 0)

    def _window_is_full(self, records: Records) -> bool:
        held, entering = records.queue_bytes(WINDOW), self._entering_bytes
        return held > 0 and held + entering > self._window * records.capacity_bytes

    def _demote(self, records: Records) -> None:
        most = records.capacity_bytes * (1 - self._window) * PROTECTED_SHARE
        while records.queue_bytes(PROTECTED) > most:
            records.shift(PROTECTED, PROBATION, 0)

    def adopt(self, records: Records) -> None:
        """All on probation, but for what the window holds."""
        while records.queue_bytes(WINDOW) > self._window * records.capacity_bytes:
            records.shift(WINDOW, PROBATION, 0)

    def leave(self, records: Records) -> None:
        """Evict what comes out of the window, or the oldest on probation if that was used less."""
        self._demote(records)
        candidate = records.oldest(WINDOW) if self._window_is_full(records) else None
        queue = PROBATION if records.queue_bytes(PROBATION) else PROTECTED
        victim = records.oldest(queue)
        if candidate is None and victim is not None:
            records.drop(queue)
        elif candidate is None or victim is None or not self._admits(records, candidate[0], victim[0]):
            records.drop(WINDOW)
        else:
            records.drop(queue)
            records.shift(WINDOW, PROBATION, 0)

    def _admits(self, records: Records, candidate: int, victim: int) -> bool:
        uses = records.seen(candidate)
        # Once in a while what is used much anyway: so nobody can keep a record in by making others look like it.
        return uses > records.seen(victim) or (uses > WARM_USES and not self._chance(ADMIT_ANYWAY))

    def _review(self, records: Records) -> None:
        """Climb: change the window's share of the capacity, where enough was seen since the last time."""
        hits = records.policy_hits - self._hits_before
        if hits + self._misses < min(SAMPLE_FACTOR * len(records), SAMPLE_MAX):
            return
        ratio = hits / (hits + self._misses)
        change = ratio - self._ratio_before
        step = self._step if change >= 0 else -self._step
        self._window = min(max(self._window + step, WINDOW_SHARE), 1 - WINDOW_SHARE)
        if abs(change) >= RESTART_CHANGE:
            self._step = STEP_SHARE if step >= 0 else -STEP_SHARE
        else:
            self._step = step * STEP_DECAY
        self._ratio_before = ratio
        self._hits_before, self._misses = records.policy_hits, 0
        while records.queue_bytes(WINDOW) < self._window * records.capacity_bytes:
            if not records.queue_bytes(PROBATION):
                break
            records.shift(PROBATION, WINDOW, 0)
        self.adopt(records)
