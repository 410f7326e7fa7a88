"""Largest first."""

from __future__ import annotations

from tiered.eviction.policy import Oldest
from tiered.eviction.sampled import Sampled


class Largest(Sampled):
    """Evict large records before small ones: so the most keys stay hot."""

    def rank(self, record: Oldest) -> int:
        """Its bytes, the most first."""
        return -record.size
