"""Admission: which of the values that were read from below become hot.

    small_bytes         up to so many bytes nothing is asked
    hot_value_share     a larger one is compared with a share of the budget, drawn anew each time
    promotion="second"  a key is to be read twice before its value takes the place of others

With "first" a single scan fills the hot tier with what nobody reads again.  With "second" a value that is read for the
first time in a while is served, and only its key is noted, as 32 bits of its hash at the front of the eight slots that
the hash leads to; what is in the last one of them is forgotten.  So the table forgets by itself, is as large as it was
made, and remembers about as many keys as it has slots.  A key found there is the same one but for a few chances in
2**32.  The hash is CPython's of the stored key, whose seed differs from run to run: nobody can choose keys that meet.

Locking: none; each step is atomic, and where two threads note keys in the same eight slots one is forgotten.
"""

from __future__ import annotations

from array import array

from tiered.config import Settings
from tiered.jitter import drawn

SEEN_SHARE = 128
"""The table of "second" takes the memory divided by this, or less."""
SLOTS_MIN = 1024
_WAYS = 8
_SLOT_BYTES = array("I").itemsize


class Admission:
    """Decides for one hot tier."""

    __slots__ = ("__dict__", "small_bytes")  # As in `Tiers`.

    def __init__(self, settings: Settings, budget_bytes: int) -> None:
        self._settings = settings
        self._budget_bytes = budget_bytes
        self._seen: array[int] | None = None
        self.small_bytes = 0
        self._watched = False
        self.settle()

    @property
    def used_bytes(self) -> int:
        """Memory of what it remembers."""
        return 0 if self._seen is None else len(self._seen) * _SLOT_BYTES

    def settle(self) -> None:
        """Follow the settings `promotion` and `memory`."""
        if self._settings.promotion == "first":
            self._seen = None
        else:
            slots = max(SLOTS_MIN, 1 << (self._settings.memory // SEEN_SHARE // _SLOT_BYTES).bit_length() - 1)
            if self._seen is None or len(self._seen) != slots:
                self._seen = array("I", bytes(slots * _SLOT_BYTES))
        self.share(self._budget_bytes)

    def watch(self, on: bool) -> None:
        """Be asked of all values from now on, as long as somebody wants to see them."""
        self._watched = on
        self.share(self._budget_bytes)

    def share(self, budget_bytes: int) -> None:
        """Follow the hot tier's budget, and the setting `hot_value_share`."""
        self._budget_bytes = budget_bytes
        small = int(self._settings.hot_value_share[0] * budget_bytes)
        self.small_bytes = small if self._seen is None and not self._watched else -1

    def admits(self, stored_key: bytes, size: int) -> bool:
        """Whether a value of more than `small_bytes` that was just read is to become hot."""
        # A share drawn anew: a large value takes the place of many small ones rarely where it is read once, and in
        # the end where it is read again and again.
        bounds = self._settings.hot_value_share
        if size > bounds[0] * self._budget_bytes and size > drawn(bounds) * self._budget_bytes:
            return False
        seen = self._seen
        if seen is None:
            return True
        mixed = hash(stored_key)
        first = mixed % (len(seen) // _WAYS) * _WAYS
        mark = (mixed >> 31 & 0xFFFFFFFF) or 1  # 0 is an empty slot.
        slots = seen[first : first + _WAYS]
        if mark in slots:
            return True
        slots.insert(0, mark)
        seen[first : first + _WAYS] = slots[:_WAYS]
        return False
