"""Random replacement."""

from __future__ import annotations

from random import Random as Generator

from tiered.eviction.policy import Policy, Records


class Random(Policy):
    """Evict any record, however much it was used."""

    picks = True

    def __init__(self, seed: int | None = None) -> None:
        self._number = Generator(seed).getrandbits

    def leave(self, records: Records) -> None:
        """Evict whom the lot falls on."""
        records.drop_picked(self._number(32))
