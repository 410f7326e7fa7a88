"""Policies that evict the first of a few records by some rank, as Redis does."""

from __future__ import annotations

from typing import Any, ClassVar

from tiered.eviction.policy import Oldest, Policy, Records

SAMPLE = 16
_CHOSEN = 2


class Sampled(Policy):
    """Of the next `SAMPLE` records round the queue evict the one whose rank is the lowest.

    Where there are no more records than that it is the lowest of all; else one of the lowest sixteenth, with a chance of
    two in three.  An exact order would take memory for each record, and time for each that comes or goes.
    """

    queues = 3
    ages: ClassVar[bool] = False
    """Whether each record loses one of its uses in every round that begins after as many left as there are."""

    def __init__(self) -> None:
        self._ahead, self._behind = 0, 1
        self._left = self._loss = 0

    def rank(self, record: Oldest) -> Any:
        """What is compared."""
        raise NotImplementedError

    @property
    def entering(self) -> int:  # type: ignore[override]
        """Where it is looked at last."""
        return self._ahead

    def leave(self, records: Records) -> None:
        """Evict the lowest of a sample."""
        lowest, uses = None, 0
        for _ in range(SAMPLE):
            oldest = records.oldest(self._ahead)
            if oldest is None:
                self._begin_a_round(records)
                oldest = records.oldest(self._ahead)
                if oldest is None:
                    break
            rank, kept = self.rank(Oldest(*oldest)), max(oldest[2] - self._loss, 0)
            if lowest is None or rank < lowest:
                if lowest is not None:
                    records.shift(_CHOSEN, self._behind, uses)
                records.shift(self._ahead, _CHOSEN, kept)
                lowest, uses = rank, kept
            else:
                records.shift(self._ahead, self._behind, kept)
        records.drop(_CHOSEN)
        self._left += 1

    def _begin_a_round(self, records: Records) -> None:
        self._ahead, self._behind = self._behind, self._ahead
        self._loss = 0
        if self.ages and self._left >= len(records):
            self._loss, self._left = 1, 0
