"""Least frequently used, with ageing, as Redis has it."""

from __future__ import annotations

from tiered.eviction.policy import Oldest
from tiered.eviction.sampled import Sampled


class LFU(Sampled):
    """Evict a record that was used least.

    A record counts its uses in six bits, the more it has, the rarer one more; all lose one whenever as many have left as
    there are.  So what was used much, and is no more, leaves in the end.
    """

    uses_max = 63
    sparing = True
    ages = True

    def rank(self, record: Oldest) -> int:
        """How often it was used."""
        return record.uses
