"""The write buffer: dirty records, as positions in the journal segment that holds them.

A buffer belongs to one segment.  It maps each stored key to the position of the
key's latest record there, `~position` for a deletion, so that it holds no values of
its own.  When the segment is closed the buffer is set aside, unchanged from then on,
until the cold tier has acknowledged the segment.

Writers hold the store's lock.  Readers take no lock: a lookup is one dict operation,
the record it leads to is never moved, and the segment stays mapped as long as
anything refers to it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice

from tiered.journal import HEADER_BYTES, Dirty, Segment

ENTRY_BYTES = 33 + 16 + 32
"""A stored key as a bytes object with its rounding, and an int: what an entry takes beside key and table."""

DEADLINE_BYTES = 32
"""An int, for keys that have a deadline."""


class WriteBuffer:
    """Positions of the dirty records in one segment."""

    def __init__(self, segment: Segment, cleared: bool = False) -> None:
        self.segment = segment
        self.cleared = cleared
        self.handed_over = False
        self.positions: dict[bytes, int] = {}
        self.deadlines: dict[bytes, int] = {}
        self.key_bytes = 0
        self._sorted: list[bytes] = []

    def put(self, stored_key: bytes, position: int, deadline: int) -> None:
        """The latest record of a key is at `position`."""
        positions = self.positions
        if stored_key not in positions:
            self.key_bytes += len(stored_key)
        positions[stored_key] = position
        if deadline:
            self.deadlines[stored_key] = deadline
        elif self.deadlines:
            self.deadlines.pop(stored_key, None)

    def put_many(self, stored_keys: Sequence[bytes], positions: Sequence[int], deadline: int) -> None:
        """`put` for each of many keys."""
        if deadline or self.deadlines or not self.positions.keys().isdisjoint(stored_keys):
            for stored_key, position in zip(stored_keys, positions, strict=True):
                self.put(stored_key, position, deadline)
            return
        before = len(self.positions)
        self.positions.update(zip(stored_keys, positions, strict=True))
        unique = stored_keys if len(self.positions) - before == len(stored_keys) else set(stored_keys)
        self.key_bytes += sum(map(len, unique))

    def delete(self, stored_key: bytes, position: int) -> None:
        """The key was deleted by the record at `position`."""
        self.put(stored_key, ~position, 0)

    def get(self, stored_key: bytes) -> Dirty | None:
        """The latest put of a key, None where it was deleted.  KeyError if this buffer does not have the key."""
        position = self.positions[stored_key]
        return None if position < 0 else self.segment.put_at(position)

    def used_bytes(self) -> int:
        """What the buffer takes of the budget: the segment's bytes in use and the index over them."""
        index = sys.getsizeof(self.positions) + len(self.positions) * ENTRY_BYTES + self.key_bytes
        if self.deadlines:
            index += sys.getsizeof(self.deadlines) + len(self.deadlines) * DEADLINE_BYTES
        return self.segment.position - HEADER_BYTES + index + sys.getsizeof(self._sorted)

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
