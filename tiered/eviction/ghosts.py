"""What a policy remembers of records that have left: a fingerprint and a size, in the order in which they left.

There are to be about as many of them as there are records, in a sixteenth of the memory: so each takes 16 bytes, and is
no object.  A ring holds both numbers, and a table, at most half full, says where in it a fingerprint is (linear
probing; Knuth, TAOCP 3, section 6.4).  Who is taken out of the middle leaves a gap until the ring is full.
"""

from __future__ import annotations

from array import array

SLOT_BYTES = 16
_SLOTS_MIN = 16
_GAPS_SHARE = 4
"""A full ring with so many gaps, one of these, is made anew without them."""
_MULTIPLIER = 0x9E3779B1
_MASK = 0xFFFFFFFF


class Ghosts:
    """Records that have left, the one that left longest ago first."""

    def __init__(self) -> None:
        self.total_bytes = 0
        """What the records took, when they were there."""
        self._make(0, array("Q"))

    def __len__(self) -> int:
        return self._count

    def add(self, fingerprint: int, size: int, memory_bytes: int) -> None:
        """Remember one more; the oldest are forgotten where all of them take more memory than that."""
        self.take(fingerprint)
        self.fit(memory_bytes)
        if self._next - self._first == len(self._ring):
            self._make_room(memory_bytes)
        if self._ring:
            self._append(fingerprint & _MASK, min(size, _MASK))

    def take(self, fingerprint: int) -> bool:
        """Forget that one; whether it was remembered."""
        if not self._count:
            return False
        slot = self._slot_of(fingerprint & _MASK)
        if not self._places[slot]:
            return False
        self._remove(slot)
        return True

    def forget(self) -> None:
        """Forget the one that left longest ago, if there is one."""
        while self._first < self._next:
            entry = self._ring[self._first % len(self._ring)]
            self._first += 1
            if entry:
                self._remove(self._slot_of(entry >> 32))
                return

    def trim(self, total_bytes: int) -> None:
        """Forget the oldest until the others took no more than that."""
        while self.total_bytes > total_bytes and self._count:
            self.forget()

    def fit(self, memory_bytes: int) -> None:
        """Forget the oldest where all of them take more memory than that."""
        slots = len(self._ring)
        if slots * SLOT_BYTES > memory_bytes:
            while slots * SLOT_BYTES > memory_bytes:
                slots = slots // 2 if slots > _SLOTS_MIN else 0
            self._make(slots, self._entries())

    @property
    def memory_bytes(self) -> int:
        """Memory of all this."""
        return len(self._ring) * SLOT_BYTES

    def _make(self, slots: int, entries: array[int]) -> None:
        """Begin anew with a ring of so many slots, and the last of these entries that it has room for."""
        self._ring = array("Q", bytes(8 * slots))
        self._places = array("I", bytes(8 * slots))  # Two for each slot: a slot's number and one, 0 for none.
        self._shift = 32 - slots.bit_length()  # As many homes as places.
        self._first = self._next = self._count = self.total_bytes = 0
        for entry in entries[-slots:] if slots else ():
            self._append(entry >> 32, entry & _MASK)

    def _entries(self) -> array[int]:
        around = self._first % len(self._ring) if self._ring else 0
        return array("Q", filter(None, self._ring[around:] + self._ring[:around]))

    def _make_room(self, memory_bytes: int) -> None:
        slots = len(self._ring)
        more = 2 * slots or _SLOTS_MIN
        if self._count > slots - slots // _GAPS_SHARE or not slots:
            if more * SLOT_BYTES > memory_bytes:
                self.forget()
                return
            slots = more
        self._make(slots, self._entries())

    def _append(self, fingerprint: int, size: int) -> None:
        at = self._next % len(self._ring)
        self._places[self._slot_of(fingerprint)] = at + 1
        self._ring[at] = fingerprint << 32 | size
        self._next += 1
        self._count += 1
        self.total_bytes += size

    def _slot_of(self, fingerprint: int) -> int:
        """Where in the table it is, or would be."""
        places, ring, last = self._places, self._ring, len(self._places) - 1
        slot = (fingerprint * _MULTIPLIER & _MASK) >> self._shift
        while (place := places[slot]) and ring[place - 1] >> 32 != fingerprint:
            slot = slot + 1 & last
        return slot

    def _remove(self, slot: int) -> None:
        places, ring, last, hole = self._places, self._ring, len(self._places) - 1, slot
        at = places[slot] - 1
        self.total_bytes -= ring[at] & _MASK
        self._count -= 1
        ring[at] = 0
        # Who came later and lies behind moves up, unless its home is behind the hole.
        while place := places[slot := slot + 1 & last]:
            home = ((ring[place - 1] >> 32) * _MULTIPLIER & _MASK) >> self._shift
            if slot - home & last >= slot - hole & last:
                places[hole] = place
                hole = slot
        places[hole] = 0
