"""What a policy remembers of records that have left: a fingerprint and a size, in the order in which they left."""

from __future__ import annotations

from collections import OrderedDict
from sys import getsizeof

_NUMBERS_BYTES = 64
"""A fingerprint and a size, as objects."""


class Ghosts:
    """Records that have left, the one that left longest ago first."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[int, int] = OrderedDict()
        self.total_bytes = 0
        """What the records took, when they were there."""

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, fingerprint: int, size: int, memory_bytes: int) -> None:
        """Remember one more; the oldest are forgotten where all of them take more memory than that."""
        self.take(fingerprint)
        self._sizes[fingerprint] = size
        self.total_bytes += size
        while self._sizes and self.memory_bytes > memory_bytes:
            self.forget()

    def take(self, fingerprint: int) -> bool:
        """Forget that one; whether it was remembered."""
        size = self._sizes.pop(fingerprint, None)
        if size is None:
            return False
        self.total_bytes -= size
        return True

    def forget(self) -> None:
        """Forget the one that left longest ago, if there is one."""
        if self._sizes:
            self.total_bytes -= self._sizes.popitem(last=False)[1]

    def trim(self, total_bytes: int) -> None:
        """Forget the oldest until the others took no more than that."""
        while self.total_bytes > total_bytes and self._sizes:
            self.forget()

    @property
    def memory_bytes(self) -> int:
        """Memory of all this."""
        return getsizeof(self._sizes) + len(self._sizes) * _NUMBERS_BYTES
