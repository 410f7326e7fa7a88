"""Least recently used."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any


class LRU:
    """Evict the key that was read or written longest ago.

    An `OrderedDict` is the table and the order at once: its `move_to_end` runs in C and
    is atomic, so hits need no lock.  A plain dict re-inserting its keys would be smaller,
    but finding its first key gets slower with every deletion at the front.
    """

    def __init__(self) -> None:
        self._order: OrderedDict[Any, Any] = OrderedDict()
        self.table: Mapping[Any, Any] = self._order
        self.hit: Callable[[Any], None] = self._order.move_to_end

    def insert(self, key: Any, entry: Any) -> None:
        """Put an entry, the most recently used from now on."""
        table = self._order
        if key in table:
            table.move_to_end(key)
        table[key] = entry

    def remove(self, key: Any) -> Any:
        """Take an entry out; None if there is none."""
        return self._order.pop(key, None)

    def victim(self) -> tuple[Any, Any]:
        """Take out the entry that leaves first."""
        return self._order.popitem(last=False)

    def table_bytes(self) -> int:
        """Memory of the table itself: slots, links, and the index from slots to links."""
        return sys.getsizeof(self._order)

    def clear(self) -> None:
        """Forget everything."""
        self._order.clear()
