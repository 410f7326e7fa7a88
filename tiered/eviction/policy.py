"""The contract of eviction policies, and the records that a policy sees.

A hot tier holds its records in up to `QUEUES` queues, each from the newest to the oldest.  A policy says in a table
what a hit does (`uses_max`, `hit_to`), so that the tier does it without a lock and without asking.  What it decides
itself are two things, under the store's lock: into which queue a new record goes (`enter`, `entering`), and who leaves
(`leave`).  All that it can look at, move or evict is the oldest of a queue, or any record by a number drawn at random:
enough for every policy here, and there is nothing to be looked up that may have gone.  Hits go on meanwhile, in other
threads, so that the oldest may be another one by the time it is dropped; of an empty queue nothing is dropped or
shifted.

What a policy remembers about records that have left is bounded (`GHOST_SHARE`) and counted in the budget, and so is the
sketch of those that have one; where the budget gets smaller, both are made to fit before anything is evicted.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol

QUEUES = 3
USES_MAX = 63
"""A record counts its uses up to this, in six bits."""
USE_WORTH, USE_NEW = 4, 2
"""What a use adds, and what a new record has, where uses are counted sparingly; ageing takes away one."""
GHOST_SHARE = 16
"""What a policy remembers of records that have left takes no more than the capacity divided by this."""


class Oldest(NamedTuple):
    """What is known of the record that is the oldest of its queue; a deadline in milliseconds, 0 is none."""

    fingerprint: int
    size: int
    uses: int
    deadline: int


class Records(Protocol):
    """The records of a hot tier, as a policy sees them."""

    @property
    def capacity_bytes(self) -> int: ...
    @property
    def ghost_bytes(self) -> int: ...
    def __len__(self) -> int: ...
    def queue_bytes(self, queue: int) -> int: ...
    def queue_hits(self, queue: int) -> int: ...
    def oldest(self, queue: int) -> tuple[int, int, int, int] | None: ...
    def shift(self, queue: int, to: int, uses: int) -> None: ...
    def drop(self, queue: int) -> None: ...
    def pick(self, number: int) -> tuple[int, int, int, int] | None: ...
    def drop_picked(self, number: int) -> None: ...
    def age_picked(self, number: int) -> None: ...
    def see(self, fingerprint: int) -> None: ...
    def seen(self, fingerprint: int) -> int: ...


class Policy:
    """All in the first queue, its oldest leaves, and a hit does nothing.  Each policy says what it does differently."""

    asked: ClassVar[bool] = True
    """Whether the tier asks it; if not, there is one queue, and its oldest leaves."""
    picks: ClassVar[bool] = False
    """Whether it looks at records at random (`Records.pick`)."""
    uses_max: ClassVar[int] = 0
    """Hits are counted in a record up to this."""
    sparing: ClassVar[bool] = False
    """Whether a new record has `USE_NEW`, and a use adds `USE_WORTH`, the rarer the more there is (`counts`)."""
    hit_to: ClassVar[tuple[int, int, int]] = (-1, -1, -1)
    """By queue: to the front of which one a hit moves a record; -1: it stays where it is."""
    sketched: ClassVar[bool] = False
    """Whether all accesses are counted in a sketch, of which `Records.seen` tells."""

    entering: int = 0
    """The queue for the new record, which will be its newest; asked for when there is room for it."""

    def enter(self, records: Records, fingerprint: int, size: int) -> None:
        """A new record of that many bytes comes; others may have to leave for it."""

    def adopt(self, records: Records) -> None:
        """Distribute what another policy leaves, all of it in the first queue."""

    def leave(self, records: Records) -> None:
        """Evict one record at least; there is one."""
        records.drop(0)

    @property
    def memory_bytes(self) -> int:
        """Memory of what is remembered of records that have left."""
        return 0

    def fit(self, memory_bytes: int) -> None:
        """Keep that within so much memory, which may be less than it was."""


def counts(uses: int, chance: float) -> bool:
    """Whether a record that counts sparingly counts a use: one in 1 + 10 · (uses - 5), as Redis has it."""
    return chance * (10 * max(uses / USE_WORTH - 5, 0) + 1) < 1
