"""The write buffer: dirty records, as positions in the journal segment that holds them.

A buffer belongs to one segment.  It maps each stored key to the position of the
key's latest record there, `~position` for a deletion, so that it holds no values of
its own.  When the segment is closed the buffer is set aside, unchanged from then on,
until the cold tier has acknowledged the segment.

While a view has the active buffer pinned, what a write replaces is kept in `replaced`, so
that the view finds the positions of its own moment.

Writers hold the store's lock.  Readers take no lock: a lookup is one dict operation,
the record it leads to is never moved, and the segment stays mapped as long as
anything refers to it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

from tiered.journal import Dirty, Segment
from tiered.native import native

ENTRY_BYTES = 33 + 16 + 32
"""A stored key as a bytes object with its rounding, and an int: what an entry takes beside key and table."""

EMPTIED_AT_ONCE = 1000
"""Keys forgotten without letting other threads in: a tenth of a millisecond."""
LIST_BYTES = 88
"""An empty list that has grown once."""
DEADLINE_BYTES = 32
"""An int, for keys that have a deadline."""


def _noted(known: dict[bytes, int], stored_keys: Sequence[bytes], positions: Sequence[int]) -> int:
    """Note the positions of keys; returns the bytes of those that were new."""
    fresh = {stored_key for stored_key in stored_keys if stored_key not in known}
    # One call of C code: no reader, which takes no lock, finds a part of a batch.
    known.update(zip(stored_keys, positions, strict=True))
    return sum(map(len, fresh))


_note_all: Callable[[dict[bytes, int], Sequence[bytes], Sequence[int]], int] = native.note_all if native else _noted


class WriteBuffer:
    """Positions of the dirty records in one segment."""

    __slots__ = ("__dict__", "__weakref__", "cleared", "positions")  # As in `Tiers`.

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.evicted_bytes = 0  # What the deletions in it that the disk's cap asked for take in the cold tier.
        self.grown_bytes = 0  # By how much what is written in it makes live records more; with `spill=False` only.
        self.cleared = False
        self.handed_over = False
        self.positions: dict[bytes, int] = {}
        self.deadlines: dict[bytes, int] = {}
        self.key_bytes = 0
        self.pins: set[int] = set()
        self.replaced: dict[bytes, list[int]] = {}
        self._replaced_count = 0
        self._sorted: list[bytes] = []

    def put(self, stored_key: bytes, position: int, deadline: int) -> None:
        """The latest record of a key is at `position`."""
        positions = self.positions
        if stored_key not in positions:
            self.key_bytes += len(stored_key)
        elif self.pins:
            # First kept, then replaced: a view may be looking at this moment.
            self._replace(stored_key)
        positions[stored_key] = position
        if deadline:
            self.deadlines[stored_key] = deadline
        elif self.deadlines:
            self.deadlines.pop(stored_key, None)

    def put_many(self, stored_keys: Sequence[bytes], positions: Sequence[int], deadlines: Sequence[int]) -> None:
        """`put` for each of many keys, `~position` for a deletion; they are found all at once."""
        if self.deadlines or any(deadlines):
            for stored_key, deadline in zip(stored_keys, deadlines, strict=True):
                if deadline:
                    self.deadlines[stored_key] = deadline
                else:
                    self.deadlines.pop(stored_key, None)
        if self.pins:
            for stored_key in stored_keys:
                if stored_key in self.positions:
                    self._replace(stored_key)
        self.key_bytes += _note_all(self.positions, stored_keys, positions)

    def empty(self) -> None:
        """Forget everything, where nobody else has the buffer any more, letting other threads in now and then."""
        for table in (self.positions, self.deadlines):
            while table:
                for _ in range(min(len(table), EMPTIED_AT_ONCE)):
                    table.popitem()
                time.sleep(0)

    def _replace(self, stored_key: bytes) -> None:
        """Keep the position that a view may still need."""
        self.replaced.setdefault(stored_key, []).append(self.positions[stored_key])
        self._replaced_count += 1

    def delete(self, stored_key: bytes, position: int) -> None:
        """The key was deleted by the record at `position`."""
        self.put(stored_key, ~position, 0)

    def get(self, stored_key: bytes) -> Dirty | None:
        """The latest put of a key, None where it was deleted.  KeyError if this buffer does not have the key."""
        position = self.positions[stored_key]
        return None if position < 0 else self.segment.put_at(position)

    def put_of(self, encoded: bytes, position: int) -> Dirty | None:
        """The put of a key at `position`, None for a deletion or the put of another long key with its digest."""
        if position < 0:
            return None
        put = self.segment.put_at(position)
        return put if put.full_key == encoded else None

    def position_before(self, stored_key: bytes, filled: int) -> int | None:
        """Position of a key's latest record when the segment was filled up to `filled`; needs a pin since then."""
        position = self.positions.get(stored_key)
        if position is None or (position if position >= 0 else ~position) < filled:
            return position
        for earlier in reversed(self.replaced.get(stored_key, ())):
            if (earlier if earlier >= 0 else ~earlier) < filled:
                return earlier
        return None

    def deadline_at(self, stored_key: bytes, position: int) -> int:
        """The deadline of the put of a key at `position`."""
        if not self.replaced or self.positions[stored_key] == position:
            return self.deadlines.get(stored_key, 0)
        return self.segment.put_at(position).deadline

    def pin(self, view: int) -> None:
        """Keep from now on what writes replace, for this view."""
        self.pins.add(view)

    def unpin(self, view: int) -> None:
        """A view lets go; with the last one goes what was kept for them."""
        self.pins.discard(view)
        self.forget_replaced()

    def forget_replaced(self) -> None:
        """Forget what was kept for views, if none of them is left; under the store's lock."""
        if not self.pins:
            self.replaced = {}
            self._replaced_count = 0

    def used_bytes(self) -> int:
        """What the buffer takes of the budget: the segment's bytes in use and the index over them."""
        index = sys.getsizeof(self.positions) + len(self.positions) * ENTRY_BYTES + self.key_bytes
        if self.deadlines:
            index += sys.getsizeof(self.deadlines) + len(self.deadlines) * DEADLINE_BYTES
        if self.replaced:
            index += sys.getsizeof(self.replaced) + len(self.replaced) * LIST_BYTES + self._replaced_count * 40
        return self.segment.held_bytes + index + sys.getsizeof(self._sorted)

    def foreseen_bytes(self, more: int) -> int:
        """What it takes beyond `used_bytes()`, at most, until `more` bytes have come, index included.

        A dict doubles its table when that is two thirds full.
        """
        records = more // ENTRY_BYTES
        tables = (self.positions, self.deadlines, self.replaced)
        return more + sum(sys.getsizeof(table) for table in tables if table and _doubles(len(table), records))

    def is_order(self, ordered: list[bytes]) -> bool:
        """Whether a list of `sorted_keys` is the one that the buffer itself keeps, and counts."""
        return ordered is self._sorted

    def sorted_keys(self) -> list[bytes]:
        """The keys in order, deletions included; a new list when keys came since the last call.

        Cost: one merge of the sorted keys with the new ones.
        """
        known = len(self._sorted)
        if known != len(self.positions):
            # Keys keep their place in a dict when overwritten, so the new ones are its tail.
            merged = self._sorted + list(islice(self.positions, known, None))
            merged.sort()
            self._sorted = merged
        return self._sorted


def _doubles(count: int, more: int) -> bool:
    """Whether a dict of `count` entries gets a larger table before it has `more` of them more."""
    slots = 8
    while slots * 2 // 3 <= count:
        slots *= 2
    return count + more > slots * 2 // 3


class Pinning(Protocol):
    """A view, which keeps write buffers, as far as its memory and its age concern the engine."""

    @property
    def handle(self) -> object: ...
    @property
    def buffers(self) -> tuple[WriteBuffer, ...]: ...
    @property
    def order_bytes(self) -> int: ...
    @property
    def age_seconds(self) -> float: ...
    def end(self, reason: str) -> None: ...
    def overdue(self, now: float) -> bool: ...
    def abandon(self) -> None: ...
