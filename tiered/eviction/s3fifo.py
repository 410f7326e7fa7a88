"""S3-FIFO (Yang, Zhang, Qiu, Yue and Rashmi, SOSP 2023)."""

from __future__ import annotations

from tiered.eviction.ghosts import Ghosts
from tiered.eviction.policy import Policy, Records

SMALL, MAIN = 0, 1
SMALL_SHARE = 10
"""The small queue has the capacity divided by this."""
USES_TO_STAY = 2


class S3FIFO(Policy):
    """New records pass through a small queue, from which most leave; those read twice there, and those that come back
    soon after they left, go into the main queue, where each round costs one of the reads counted.

    As its authors' simulator has it since December 2024: until something has left, what does not fit into the small
    queue goes into the main one.
    """

    uses_max = 3

    def __init__(self) -> None:
        self._ghosts = Ghosts()
        self._has_evicted = self._came_back = False

    @property
    def memory_bytes(self) -> int:
        """Memory of the ghosts."""
        return self._ghosts.memory_bytes

    def fit(self, memory_bytes: int) -> None:
        """Forget ghosts."""
        self._ghosts.fit(memory_bytes)

    def enter(self, records: Records, fingerprint: int, size: int) -> None:
        """The main queue is for what left lately."""
        self._came_back = self._ghosts.take(fingerprint)
        full = not self._has_evicted and records.queue_bytes(SMALL) >= records.capacity_bytes // SMALL_SHARE
        self.entering = MAIN if self._came_back or full else SMALL

    def adopt(self, records: Records) -> None:
        """All into the main queue: they have been there for a while."""
        self._has_evicted = True
        while records.queue_bytes(SMALL):
            records.shift(SMALL, MAIN, 0)

    def leave(self, records: Records) -> None:
        """Evict from the small queue, or from the main one where that has more than its share."""
        if not self._has_evicted and not self._came_back:
            self.entering = SMALL
        self._has_evicted = True
        main_bytes = records.capacity_bytes - records.capacity_bytes // SMALL_SHARE
        if records.queue_bytes(MAIN) <= main_bytes:
            while (oldest := records.oldest(SMALL)) is not None:
                fingerprint, size, uses, _ = oldest
                if uses < USES_TO_STAY:
                    records.drop(SMALL)
                    self._ghosts.trim(main_bytes - size)
                    self._ghosts.add(fingerprint, size, records.ghost_bytes)
                    return
                records.shift(SMALL, MAIN, 0)
        self._leave_main(records)

    def _leave_main(self, records: Records) -> None:
        while (oldest := records.oldest(MAIN)) is not None and oldest[2]:
            records.shift(MAIN, MAIN, oldest[2] - 1)
        records.drop(MAIN)
