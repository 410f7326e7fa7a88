"""Policies that evict the first of a few records by some rank, as Redis does."""

from __future__ import annotations

from random import Random
from typing import Any

from tiered.eviction.policy import Oldest, Policy, Records

SAMPLE = 16


class Sampled(Policy):
    """Of `SAMPLE` records, drawn at random, evict the one whose rank is the lowest.

    That is one of the lowest sixteenth of all with a chance of two in three.  An exact order would take memory for each
    record, and time for each that comes or goes.
    """

    picks = True

    def __init__(self, seed: int | None = None) -> None:
        self._number = Random(seed).getrandbits

    def rank(self, record: Oldest) -> Any:
        """What is compared."""
        raise NotImplementedError

    def sample(self, records: Records) -> list[tuple[Any, int]]:
        """Ranks, and the numbers by which they were drawn; empty if there is no record."""
        ranks = []
        for _ in range(SAMPLE):
            number = self._number(32)
            found = records.pick(number)
            if found is None:
                break
            ranks.append((self.rank(Oldest(*found)), number))
        return ranks

    def leave(self, records: Records) -> None:
        """Evict the lowest of a sample."""
        ranks = self.sample(records)
        if ranks:
            records.drop_picked(min(ranks)[1])
