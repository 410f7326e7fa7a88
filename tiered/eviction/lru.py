"""Least recently used."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any


class LRU:
    """Evict the key that was read or written longest ago.

    An `OrderedDict` is the table and the order at once: its `move_to_end` runs in C and
    is atomic, so hits need no lock.  A plain dict re-inserting its keys would be smaller,
    but finding its first key gets slower with every deletion at the front.  Insertion and
    choice of a victim are C functions too: no frame of Python in between.
    """

    def __init__(self) -> None:
        self._order: OrderedDict[Any, Any] = OrderedDict()
        self.table: Mapping[Any, Any] = self._order
        self.hit: Callable[[Any], None] = self._order.move_to_end
        self.insert: Callable[[Any, Any], None] = self._order.__setitem__
        self.victim: Callable[[], tuple[Any, Any]] = partial(self._order.popitem, last=False)

    def remove(self, key: Any) -> Any:
        """Take an entry out; None if there is none."""
        return self._order.pop(key, None)

    def table_bytes(self) -> int:
        """Memory of the table itself: slots, links, and the index from slots to links."""
        return sys.getsizeof(self._order)

    def clear(self) -> None:
        """Forget everything."""
        self._order.clear()
