"""ARC, the adaptive replacement cache (Megiddo and Modha, FAST 2003)."""

from __future__ import annotations

from tiered.eviction.ghosts import Ghosts
from tiered.eviction.policy import Policy, Records

ONCE, AGAIN = 0, 1
"""T1 and T2 of the paper: records used once, and those used again."""


class ARC(Policy):
    """Two LRU queues, of records used once and of those used again, share the capacity: a record that comes back after
    it left shows which of them was too small.

    The paper counts pages, this bytes; the steps by which a share changes are the paper's, so for records of many bytes
    it changes slowly, as in its authors' and others' simulators.  Steps by the size of what came back were tried: on
    no trace here were they better by more than 0.2 points, and worse by up to 2.7.
    """

    hit_to = (AGAIN, AGAIN, -1)

    def __init__(self) -> None:
        self._ghosts = Ghosts(), Ghosts()
        self._once_bytes = 0.0  # p of the paper.
        self._came_back: int | None = None
        self._entering_bytes = 0

    @property
    def memory_bytes(self) -> int:
        """Memory of the ghosts."""
        return sum(ghosts.memory_bytes for ghosts in self._ghosts)

    def fit(self, memory_bytes: int) -> None:
        """Half of it for each."""
        for ghosts in self._ghosts:
            ghosts.fit(memory_bytes // 2)

    def enter(self, records: Records, fingerprint: int, size: int) -> None:
        """The queue of those used again for what left lately, whose queue deserved more."""
        self._entering_bytes = size
        once, again = (ghosts.total_bytes for ghosts in self._ghosts)
        self._came_back = None
        if self._ghosts[ONCE].take(fingerprint):
            self._came_back = ONCE
            self._once_bytes = min(self._once_bytes + max(again / once, 1), records.capacity_bytes)
        elif self._ghosts[AGAIN].take(fingerprint):
            self._came_back = AGAIN
            self._once_bytes = max(self._once_bytes - max(once / again, 1), 0)
        self.entering = ONCE if self._came_back is None else AGAIN

    def leave(self, records: Records) -> None:
        """Evict from the queue that has more than its share, and remember as much as there is capacity."""
        capacity, (once, again) = records.capacity_bytes, self._ghosts
        if self._came_back is None:
            used_once = records.queue_bytes(ONCE) + once.total_bytes
            if used_once + self._entering_bytes > capacity:
                if not once:
                    records.drop(ONCE)
                    return
                once.forget()
            elif used_once + records.queue_bytes(AGAIN) + again.total_bytes >= 2 * capacity:
                again.forget()
        first = records.queue_bytes(ONCE)
        if first and (
            first > self._once_bytes
            or (first == self._once_bytes and self._came_back == AGAIN)
            or not records.queue_bytes(AGAIN)
        ):
            queue = ONCE
        else:
            queue = AGAIN
        oldest = records.oldest(queue)
        if oldest is not None:
            self._ghosts[queue].add(oldest[0], oldest[1], records.ghost_bytes // 2)
            records.drop(queue)
