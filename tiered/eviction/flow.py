"""What left a queue lately, and how much has left since: a table of four bytes for each record, as `Window` asks it.

A record that leaves puts a tag of its fingerprint, and the number of a mark, into a slot.  A mark is set whenever a
share of the capacity has left, and says how much had by then.  Whoever comes to the same slot later takes it, so that
of those that left longest ago some are forgotten, and once in 65,536 times a stranger is taken for one: neither matters
for a count.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

MARKS = 64
"""So many marks are set while the capacity leaves, and so many are remembered."""
SLOT_BYTES, SLOTS_MIN = 4, 64
_MULTIPLIER = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Mark(NamedTuple):
    """How many bytes had left, and what some counters said, when a record did."""

    left_bytes: int
    counters: Sequence[int]


class Flow:
    """The records that left while at most the capacity did."""

    def __init__(self) -> None:
        self._slots = array("I", bytes(SLOT_BYTES * SLOTS_MIN))
        self._shift = 64 - 6
        self._marks: deque[Mark] = deque(maxlen=MARKS)
        self._number = MARKS  # Of the last mark; an empty slot's is too far back.
        self.left_bytes = 0
        """What has left, ever."""

    def grow(self, records: int, memory_bytes: int) -> None:
        """Have at least so many slots, within that memory.  What is there stays, in two slots instead of one."""
        while len(self._slots) < records and 2 * self.memory_bytes <= memory_bytes:
            doubled = array("I", bytes(2 * self.memory_bytes))
            doubled[::2] = doubled[1::2] = self._slots
            self._slots = doubled
            self._shift -= 1

    def fit(self, memory_bytes: int) -> None:
        """Keep within that memory, which may be less than it was: of two slots that become one, one is kept."""
        while self.memory_bytes > memory_bytes and len(self._slots) > SLOTS_MIN:
            self._slots = array("I", map(max, self._slots[::2], self._slots[1::2]))
            self._shift += 1

    def add(self, fingerprint: int, size: int, capacity_bytes: int, counters: Sequence[int]) -> None:
        """A record leaves."""
        if not self._marks or self.left_bytes - self._marks[-1].left_bytes >= capacity_bytes // MARKS:
            self._marks.append(Mark(self.left_bytes, counters))
            self._number = (self._number + 1) & 0xFFFF
        mixed = fingerprint * _MULTIPLIER & _MASK
        self._slots[mixed >> self._shift] = (mixed >> 16 & 0xFFFF) << 16 | self._number
        self.left_bytes += size

    def take(self, fingerprint: int) -> Mark | None:
        """Forget that one; the mark before which it left, None if it did not, or too long ago."""
        mixed = fingerprint * _MULTIPLIER & _MASK
        at = mixed >> self._shift
        tag, number = divmod(self._slots[at], 1 << 16)
        before = (self._number - number) & 0xFFFF
        if tag != mixed >> 16 & 0xFFFF or before >= len(self._marks):
            return None
        self._slots[at] = 0
        return self._marks[-1 - before]

    @property
    def memory_bytes(self) -> int:
        """Memory of the slots."""
        return SLOT_BYTES * len(self._slots)
