"""Sub-stores: a store, a view or a transaction as seen through a common beginning of its keys.

`store.sub("users")` holds under `key` what the store holds under `("users", key)`, and
under a tuple key what it holds under `("users", *key)`.  A sub-store has no state of
its own; it forwards, so that budget, transactions and durability are the store's.

The key given back for `("users", 42)` is `42`, for `("users", 42, "name")` it is
`(42, "name")`, and for `("users", ("a", 1))`, whose rest is one tuple, `(("a", 1),)`: each leads back to
where it came from.  `("x",)` is another name of `"x"`.  Its order is the store's: `"a"`,
`("a", 1)`, `"b"`; a text as a prefix takes in tuples whose first element begins with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from datetime import timedelta
from typing import Any, TypeVar, overload

from tiered import keys
from tiered.mapping import AGE_SECONDS_MAX, ATTEMPTS, ONE, Pairs, RangedMapping, keys_of, pairs_of
from tiered.ranges import Range
from tiered.writing import UNSET

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")
_MISSING: Any = object()


class SubView(RangedMapping[K, V]):
    """The reading half: over a store, a view or a transaction."""

    def __init__(self, whole: Any, prefix: tuple[Any, ...]) -> None:
        if not prefix:
            raise TypeError("sub() takes the first elements of the keys, at least one")
        keys.encode(prefix)  # Refused here if it is no key.
        self._whole = whole
        self._prefix = prefix

    def _full(self, key: Any) -> tuple[Any, ...]:
        return (*self._prefix, *key) if isinstance(key, tuple) else (*self._prefix, key)

    def _rest(self, full: tuple[Any, ...]) -> Any:
        rest = full[len(self._prefix) :]
        return rest[0] if len(rest) == 1 and not isinstance(rest[0], tuple) else rest

    def _encode(self, key: object) -> bytes:
        return keys.encode(self._full(key))

    def _range(self, prefix: Any, start: Any, stop: Any, reverse: bool) -> Range:
        if isinstance(prefix, (str, bytes)):
            lower, upper = keys.element_range(self._prefix, prefix)
            bounds = Range(lower, upper, reverse)
        elif prefix is None or isinstance(prefix, tuple):
            bounds = Range(*keys.prefix_range((*self._prefix, *(prefix or ()))), reverse)
        else:
            raise TypeError(f"a prefix is a str, bytes or a tuple, not {type(prefix).__name__}")
        return bounds.between(
            None if start is None else self._encode(start), None if stop is None else self._encode(stop)
        )

    def _iterate(self, bounds: Range, what: str) -> Iterator[Any]:
        for item in self._whole._iterate(bounds, what):
            if what == "values":
                yield item
            else:
                yield self._rest(item) if what == "keys" else (self._rest(item[0]), item[1])

    def _value(self, key: Any, promote: bool = True) -> Any:
        return self._whole._value(self._full(key), promote)

    def __contains__(self, key: object) -> bool:
        return self._full(key) in self._whole

    def __len__(self) -> int:
        """Counts them, one by one."""
        return sum(1 for _ in self)

    def get_many(self, wanted: Iterable[K], *, promote: bool = True) -> dict[K, V]:
        """The values of those keys that exist, in the order asked for; `promote` is that of `get`."""
        names = list(keys_of(wanted))
        found = self._whole.get_many(map(self._full, names), promote=promote)
        return {key: found[full] for key in names if (full := self._full(key)) in found}

    def ttl(self, key: K) -> float | None:
        """Seconds left to live, None for ever.  KeyError if the key is absent."""
        return self._whole.ttl(self._full(key))  # type: ignore[no-any-return]

    def sub(self, *prefix: Any) -> SubView[Any, V]:
        """A sub-store of this one."""
        return SubView(self._whole, (*self._prefix, *prefix) if prefix else ())

    def __repr__(self) -> str:
        return f"<tiered.{type(self).__name__} {self._prefix!r} of {self._whole!r}>"


class Sub(SubView[K, V], MutableMapping[K, V]):
    """A mutable mapping over a part of a store or of a transaction; made by `Store.sub`."""

    def __setitem__(self, key: K, value: V) -> None:
        self._whole[self._full(key)] = value

    def sub(self, *prefix: Any) -> Sub[Any, V]:
        """A sub-store of this one."""
        return Sub(self._whole, (*self._prefix, *prefix) if prefix else ())

    def set(self, key: K, value: V, ttl: float | timedelta | None = UNSET) -> None:
        """Write a value, as `Store.set`."""
        self._whole.set(self._full(key), value, ttl)

    def __delitem__(self, key: K) -> None:
        try:
            del self._whole[self._full(key)]
        except KeyError:
            raise KeyError(key) from None

    @overload
    def pop(self, key: K) -> V: ...
    @overload
    def pop(self, key: K, default: V | T) -> V | T: ...
    def pop(self, key: K, default: Any = UNSET) -> Any:
        """Remove a key and return its value, atomically; `default` if it is absent, else KeyError."""
        value = self._whole.pop(self._full(key), _MISSING)
        if value is not _MISSING:
            return value
        if default is UNSET:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[K, V]:
        """Remove and return the last key in key order and its value; KeyError if there is none."""
        for key in self.keys(reverse=True):
            value = self.pop(key, _MISSING)
            if value is not _MISSING:
                return key, value
        raise KeyError("popitem(): there is nothing")

    @overload
    def setdefault(self: Sub[K, T | None], key: K, default: None = None) -> T | None: ...
    @overload
    def setdefault(self, key: K, default: V) -> V: ...
    def setdefault(self, key: K, default: Any = None) -> Any:
        """The value under `key`, which is `default` from now on if there was none; atomic."""
        return self._whole.setdefault(self._full(key), default)

    def set_many(self, pairs: Mapping[K, V] | Iterable[tuple[K, V]], ttl: float | timedelta | None = UNSET) -> None:
        """Write many values, as `Store.set_many`."""
        items = pairs.items() if isinstance(pairs, Mapping) else pairs
        self._whole.set_many(((self._full(key), value) for key, value in items), ttl)

    def update(self, other: Pairs[K, V] = (), /, **named: V) -> None:
        """Write all of a mapping, of an iterable of pairs, and of keyword arguments; as `Store.update`."""
        self.set_many(pairs_of(other))
        if named:
            self.set_many(named)  # type: ignore[arg-type]

    def __ior__(self, other: Pairs[K, V]) -> Sub[K, V]:
        self.update(other)
        return self

    def delete_many(self, unwanted: Iterable[K]) -> int:
        """Delete many keys; returns how many of them existed."""
        return int(self._whole.delete_many(map(self._full, keys_of(unwanted))))

    def clear(self) -> None:
        """Delete every key of this part, in chunks as `Store.delete_many`."""
        self.delete_many(self.keys())

    def incr(self, key: K, by: V = ONE) -> V:
        """As `Store.incr`."""
        return self._whole.incr(self._full(key), by)  # type: ignore[no-any-return]

    def touch(self, key: K, ttl: float | timedelta | None) -> bool:
        """As `Store.touch`."""
        return bool(self._whole.touch(self._full(key), ttl))

    def persist(self, key: K) -> bool:
        """As `Store.persist`."""
        return bool(self._whole.persist(self._full(key)))

    def edit(self, key: K, default: V = UNSET) -> contextlib.AbstractContextManager[V]:
        """As `Store.edit`."""
        return self._whole.edit(self._full(key), default)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Sub[K, V]]:
        """This part within a transaction, as `Store.transaction`."""
        with self._whole.transaction() as txn:
            yield Sub(txn, self._prefix)

    def transact(self, run: Callable[[Sub[K, V]], T], attempts: int = ATTEMPTS) -> T:
        """As `Store.transact`; `run` is called with this part within a transaction."""
        return self._whole.transact(lambda txn: run(Sub(txn, self._prefix)), attempts)  # type: ignore[no-any-return]

    def view(self, max_age: float = AGE_SECONDS_MAX) -> contextlib.AbstractContextManager[SubView[K, V]]:
        """This part at this moment, as `Store.view`; a context manager."""
        return _closing(self._whole.view(max_age), self._prefix)


@contextlib.contextmanager
def _closing(view: Any, prefix: tuple[Any, ...]) -> Iterator[SubView[Any, Any]]:
    with view:
        yield SubView(view, prefix)
