"""The views that `keys`, `values` and `items` of a store give: of all of it, or of a range.

They hold no data and are live, as those of a dict; each iteration is one of `ranges`.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import TYPE_CHECKING, Any

from tiered import keys, ranges

if TYPE_CHECKING:
    from tiered.store import Store

_MISSING: Any = object()


class _RangeView:
    """What the three views share."""

    _mapping: Store[Any, Any]
    _what: str

    def __init__(self, store: Store[Any, Any], bounds: ranges.Range) -> None:
        self._mapping = store
        self._bounds = bounds

    def __iter__(self) -> Iterator[Any]:
        return self._mapping._iterate(self._bounds, self._what)

    def __reversed__(self) -> Iterator[Any]:
        bounds = self._bounds
        return self._mapping._iterate(ranges.Range(bounds.lower, bounds.upper, not bounds.reverse), self._what)

    def __len__(self) -> int:
        if not self._bounds.lower and self._bounds.upper is None:
            return len(self._mapping)
        return sum(1 for _ in self._mapping._iterate(self._bounds, "keys"))

    def __repr__(self) -> str:
        return f"<{self._what} of {self._mapping!r}>"

    def _holds(self, key: object) -> bool:
        return self._bounds.holds(keys.encode(key)) and key in self._mapping


class RangeKeys(_RangeView, KeysView[Any]):
    """Keys of a range."""

    _what = "keys"

    def __contains__(self, key: object) -> bool:
        return self._holds(key)


class RangeValues(_RangeView, ValuesView[Any]):
    """Values of a range."""

    _what = "values"

    def __contains__(self, value: object) -> bool:
        return any(found is value or found == value for found in self)


class RangeItems(_RangeView, ItemsView[Any, Any]):
    """Pairs of a range."""

    _what = "items"

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        key, value = item
        return self._holds(key) and self._mapping.get(key, _MISSING) == value
