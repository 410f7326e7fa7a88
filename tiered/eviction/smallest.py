"""Smallest first."""

from __future__ import annotations

from tiered.eviction.policy import Oldest
from tiered.eviction.sampled import Sampled


class Smallest(Sampled):
    """Evict small records before large ones: what is large takes longest to fetch again."""

    def rank(self, record: Oldest) -> int:
        """Its bytes."""
        return record.size
