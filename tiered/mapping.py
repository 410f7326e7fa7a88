"""What every mapping in key order shares: ranges, and what `keys`, `values` and `items` give.

Those hold no data and are live, as those of a dict; each iteration is one of `ranges`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar, cast, overload

from tiered import keys
from tiered.ranges import Range

if TYPE_CHECKING:
    from _typeshed import SupportsKeysAndGetItem

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")
ONE: Any = 1
ATTEMPTS = 100
"""Of `transact`, unless told otherwise."""
AGE_SECONDS_MAX = 600.0
"""Of a view, unless told otherwise."""
Pairs: TypeAlias = "SupportsKeysAndGetItem[K, V] | Iterable[tuple[K, V]]"
"""What `update` takes."""
ABSENT: Any = object()
_COMPLETIONS_MAX = 100


def pairs_of(given: Pairs[K, V]) -> Mapping[K, V] | Iterable[tuple[K, V]]:
    """What `update` was given, as `set_many` takes it."""
    if hasattr(given, "keys") and not isinstance(given, Mapping):
        mapping = cast("SupportsKeysAndGetItem[K, V]", given)
        return ((key, mapping[key]) for key in mapping.keys())  # noqa: SIM118
    return cast("Mapping[K, V] | Iterable[tuple[K, V]]", given)


def keys_of(given: Iterable[K]) -> Iterable[K]:
    """What `get_many` and `delete_many` were given; a `TypeError` for one text, whose letters would be the keys."""
    if isinstance(given, (str, bytes)):
        raise TypeError(f"an iterable of keys is needed, and a {type(given).__name__} is one key: put it into a list")
    return given


class RangedMapping(Mapping[K, V]):
    """A mapping that iterates in key order, over all of it or a range."""

    @abstractmethod
    def _iterate(self, bounds: Range, what: str) -> Iterator[Any]:
        """The "keys", "values" or "items" of a range."""

    @abstractmethod
    def _value(self, key: Any, promote: bool = True) -> Any:
        """The value under a key, `ABSENT` if there is none: a KeyError may be the user's, reading a registered type."""

    def _range(self, prefix: Any, start: Any, stop: Any, reverse: bool) -> Range:
        return Range.of(prefix, start, stop, reverse)

    def __iter__(self) -> Iterator[K]:
        return self._iterate(self._range(None, None, None, False), "keys")

    def __reversed__(self) -> Iterator[K]:
        return self._iterate(self._range(None, None, None, True), "keys")

    def __bool__(self) -> bool:
        return next(iter(self), ABSENT) is not ABSENT

    @overload
    def get(self, key: K, *, promote: bool = True) -> V | None: ...
    @overload
    def get(self, key: K, default: V | T, *, promote: bool = True) -> V | T: ...
    def get(self, key: K, default: Any = None, *, promote: bool = True) -> Any:
        """The value under `key`, or `default`; with `promote=False` leaving a store's hot tier as it is."""
        value = self._value(key, promote)
        return default if value is ABSENT else value

    def get_many(self, wanted: Iterable[K], *, promote: bool = True) -> dict[K, V]:
        """The values of those keys that exist, in the order asked for; `promote` is that of `get`."""
        found = ((key, self._value(key, promote)) for key in keys_of(wanted))
        return {key: value for key, value in found if value is not ABSENT}

    def __getitem__(self, key: K) -> V:
        value = self._value(key)
        if value is ABSENT:
            raise KeyError(key)
        return value  # type: ignore[no-any-return]

    def keys(self, prefix: Any = None, start: Any = None, stop: Any = None, reverse: bool = False) -> KeysView[K]:
        """The keys in key order, live; of those with a prefix, from `start` up to but without `stop`."""
        return RangeKeys(self, self._range(prefix, start, stop, reverse))

    def values(self, prefix: Any = None, start: Any = None, stop: Any = None, reverse: bool = False) -> ValuesView[V]:
        """The values in key order, live; arguments as for `keys`."""
        return RangeValues(self, self._range(prefix, start, stop, reverse))

    def items(self, prefix: Any = None, start: Any = None, stop: Any = None, reverse: bool = False) -> ItemsView[K, V]:
        """The pairs in key order, live; arguments as for `keys`."""
        return RangeItems(self, self._range(prefix, start, stop, reverse))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        if len(self) != len(other):
            return False
        return all(key in other and other[key] == value for key, value in self.items())

    __hash__ = None  # type: ignore[assignment]

    if not TYPE_CHECKING:  # A type checker says that there is no such operator.

        def __or__(self, other: object) -> NoReturn:
            raise TypeError("`|` would make a dict of it all; if that fits into memory, write `dict(store) | other`")

        __ror__ = __or__

    def _encode(self, key: object) -> bytes:
        """A key as it is encoded in the store."""
        return keys.encode(key)

    def _ipython_key_completions_(self) -> list[K]:
        return list(islice(self, _COMPLETIONS_MAX))


class _Part:
    """What the three share."""

    _mapping: RangedMapping[Any, Any]
    _what: str

    def __init__(self, mapping: RangedMapping[Any, Any], bounds: Range) -> None:
        self._mapping = mapping
        self._bounds = bounds

    def __iter__(self) -> Iterator[Any]:
        return self._mapping._iterate(self._bounds, self._what)

    def __reversed__(self) -> Iterator[Any]:
        return self._mapping._iterate(self._bounds.reversed(), self._what)

    def __len__(self) -> int:
        if not self._bounds.lower and self._bounds.upper is None:
            return len(self._mapping)
        return sum(1 for _ in self._mapping._iterate(self._bounds, "keys"))

    def __repr__(self) -> str:
        return f"<{self._what} of {self._mapping!r}>"

    def _holds(self, key: object) -> bool:
        return self._bounds.holds(self._mapping._encode(key)) and key in self._mapping


class RangeKeys(_Part, KeysView[Any]):
    """Keys of a range."""

    _what = "keys"

    def __contains__(self, key: object) -> bool:
        return self._holds(key)


class RangeValues(_Part, ValuesView[Any]):
    """Values of a range."""

    _what = "values"

    def __contains__(self, value: object) -> bool:
        return any(found is value or found == value for found in self)


class RangeItems(_Part, ItemsView[Any, Any]):
    """Pairs of a range."""

    _what = "items"

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        key, value = item
        return self._holds(key) and self._mapping.get(key, ABSENT) == value
