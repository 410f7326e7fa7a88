"""Least frequently used, with ageing, as Redis has it."""

from __future__ import annotations

from tiered.eviction.policy import Oldest, Records
from tiered.eviction.sampled import Sampled


class LFU(Sampled):
    """Evict a record that was used least.

    A record counts its uses in six bits, the more it has, the rarer one more.  Whenever one leaves, another, drawn
    at random, loses a use.  So what was used much, and is no more, leaves in the end.
    """

    uses_max = 63
    sparing = True

    def rank(self, record: Oldest) -> int:
        """How often it was used."""
        return record.uses

    def leave(self, records: Records) -> None:
        """Evict one, and have another age."""
        super().leave(records)
        records.age_picked(self._number(32))
