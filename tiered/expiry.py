"""Deadlines of the keys in the hot tier: which are due?

Keys are kept in one set per second of their deadlines, so that adding, moving and
removing one is a set operation, and nothing is left behind when a key is written
again with another deadline.  A heap would keep every old deadline until it passes.

In the cold tier the index is a database of its own (`cold`), and what is due there
leaves with the next checkpoints, by the time the program wrote into the journal.
"""

from __future__ import annotations

import heapq
from typing import Any


class Deadlines:
    """Keys by the second in which they are due.  Called under the store's lock."""

    def __init__(self) -> None:
        self._seconds: dict[int, set[Any]] = {}
        self._order: list[int] = []  # A heap of the seconds, some of which may be gone.

    def add(self, key: Any, deadline: int) -> None:
        """Note that `key` is due at `deadline`, in milliseconds."""
        second = deadline // 1000
        keys = self._seconds.get(second)
        if keys is None:
            keys = self._seconds[second] = set()
            if len(self._order) > 2 * len(self._seconds) + 64:
                self._order = sorted(self._seconds)
            else:
                heapq.heappush(self._order, second)
        keys.add(key)

    def discard(self, key: Any, deadline: int) -> None:
        """Forget that `key` is due at `deadline`."""
        second = deadline // 1000
        if (keys := self._seconds.get(second)) is not None:
            keys.discard(key)
            if not keys:
                del self._seconds[second]

    def due(self, now_ms: int, limit: int) -> list[Any]:
        """Take out up to `limit` keys of seconds that are wholly over."""
        found: list[Any] = []
        while self._order and self._order[0] < now_ms // 1000:
            keys = self._seconds.get(self._order[0], set())
            while keys and len(found) < limit:
                found.append(keys.pop())
            if keys:
                break
            self._seconds.pop(heapq.heappop(self._order), None)
        return found

    def __len__(self) -> int:
        return sum(map(len, self._seconds.values()))
