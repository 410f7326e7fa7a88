"""Nearest deadline first."""

from __future__ import annotations

from tiered.eviction.policy import Oldest
from tiered.eviction.sampled import Sampled


class TTL(Sampled):
    """Evict the record that would be the first to expire; what never expires leaves last."""

    def rank(self, record: Oldest) -> tuple[bool, int]:
        """Its deadline."""
        return record.deadline == 0, record.deadline
