"""Random replacement."""

from __future__ import annotations

from random import Random as Generator

from tiered.eviction.policy import Oldest
from tiered.eviction.sampled import Sampled


class Random(Sampled):
    """Evict any record, however much it was used."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self._chance = Generator(seed).random

    def rank(self, record: Oldest) -> float:
        """A number drawn anew each time."""
        return self._chance()
