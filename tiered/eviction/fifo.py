"""First in, first out."""

from __future__ import annotations

from tiered.eviction.policy import Policy


class FIFO(Policy):
    """Evict the record that became hot or was written longest ago, however often it was read since."""

    asked = False
