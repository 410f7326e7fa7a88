"""SIEVE (Zhang, Yang, Yue, Vigfusson and Rashmi, NSDI 2024)."""

from __future__ import annotations

from tiered.eviction.policy import Policy, Records


class Sieve(Policy):
    """A hand goes from the oldest record to the newest and round again: what was read since it last came stays where it
    is, what was not leaves.

    The hand is the place between two queues: those `ahead` of it and those `behind`, which are all older.  When none is
    ahead it begins anew with the oldest, which is the first of those behind: the two change their names.
    """

    uses_max = 1

    def __init__(self) -> None:
        self._ahead, self._behind = 0, 1

    def _begin_anew_at_the_end(self, records: Records) -> None:
        if not records.queue_bytes(self._ahead):
            self._ahead, self._behind = self._behind, self._ahead

    @property
    def entering(self) -> int:  # type: ignore[override]
        """Ahead of the hand: it is the newest of all."""
        return self._ahead

    def leave(self, records: Records) -> None:
        """Evict the first ahead that was not read."""
        while True:
            self._begin_anew_at_the_end(records)
            oldest = records.oldest(self._ahead)
            if oldest is None or not oldest[2]:
                break
            records.shift(self._ahead, self._behind, 0)
        records.drop(self._ahead)
        self._begin_anew_at_the_end(records)  # Now: what comes next is newer than all that is behind.
