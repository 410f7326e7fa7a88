"""Least recently used."""

from __future__ import annotations

from tiered.eviction.policy import Policy


class LRU(Policy):
    """Evict the record that was read or written longest ago."""

    asked = False
    hit_to = (0, -1, -1)
