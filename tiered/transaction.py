"""Transactions: reads and writes of many keys that take place at one moment, or not at all.

A transaction is optimistic.  Its writes wait in memory, encoded; what it reads it
notes, and from then on every write to the store tells it the key (`Engine.tell`), so that it
knows of a conflict as soon as there is one: at its next read, or when it ends.  Its
reads take the lock, which writers hold until they have told, so everything a
transaction has read was true together at the moment of its last read (opacity, as in
Guerraoui, Kapałka, "On the correctness of transactional memory", 2008).  At
the end, under the lock once more, what it wrote becomes one batch of the journal.

Ranges are noted as far as they were read, so that a key which appears there later is a
conflict too.  A key read with a deadline that passes before the end is one as well.
A transaction that wrote nothing cannot fail at its end.

Nothing is bound to a thread or a task.  One transaction belongs to one of them at a
time.  Memory: what it wrote, at most the write buffer's share, and the keys it read.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from datetime import timedelta
from types import TracebackType
from typing import Any, NoReturn, TypeVar, overload

from tiered import codec, keys, ranges
from tiered.arrays import is_numpy_scalar, writable
from tiered.errors import BatchTooLargeError, ClosedError, ConfigError, ConflictError
from tiered.handle import Handle
from tiered.journal import Dirty
from tiered.mapping import ABSENT, ONE, RangedMapping, keys_of
from tiered.moment import passing
from tiered.sub import Sub
from tiered.writing import UNSET, Change

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")
_BACKOFF_SECONDS = 0.0005
_RIVAL_SECONDS = 0.002
"""Measured: 1,000 tasks that count up one number take three attempts each then, twelve with a fourth of it."""


class Reads:
    """What a transaction has read; the first write to any of it is remembered."""

    def __init__(self) -> None:
        self.keys: set[bytes] = set()
        self.spans: list[Span] = []
        self.deadline = 0
        self.conflict: str = ""

    def note(self, stored_key: bytes | None) -> None:
        """A key was written; None for all of them."""
        if stored_key is None:
            if self.keys or self.spans:
                self.conflict = "the store was cleared"
        elif stored_key in self.keys or any(span.holds(stored_key) for span in self.spans):
            self.conflict = f"{keys.shown(stored_key)} was written"

    def lives_until(self, deadline: int) -> None:
        """Something that was read expires at `deadline`."""
        if deadline:
            self.deadline = min(self.deadline or deadline, deadline)


class Span:
    """A range of stored keys that was read, up to `upper` (None: to the end)."""

    def __init__(self, lower: bytes, upper: bytes | None) -> None:
        self.lower, self.upper = lower, upper

    def holds(self, stored_key: bytes) -> bool:
        """Whether a key lies in it."""
        return self.lower <= stored_key and (self.upper is None or stored_key < self.upper)


class Transaction(RangedMapping[K, V], MutableMapping[K, V]):
    """A mapping like its store, whose writes others see when it ends; made by `Store.transaction`.

    Every read and the end may raise `ConflictError`: something it read was changed by
    another.  A write may raise `BatchTooLargeError`.  After its end it raises `ClosedError`.
    """

    def __reduce__(self) -> NoReturn:
        raise TypeError("a transaction is of one process: pickle the store, and begin a transaction of it there")

    def __init__(self, handle: Handle) -> None:
        engine = handle._engine
        engine.check_writable()
        self._handle = handle
        self._engine = engine
        self._pending: dict[bytes, Change] = {}
        self._bytes = 0
        self._bytes_max: float = engine.batch_bytes_max
        self._reads = Reads()
        self._ended = False
        engine.watch(self._reads)

    # Reading

    def _check(self) -> None:
        """Under the lock: raise where the transaction is over, or already lost."""
        self._handle._engine.check_readable()  # The handle may be closed, and its engine not.
        reads = self._reads
        if self._ended:
            raise ClosedError(self._engine.directory, "the transaction has ended")
        if not reads.conflict and 0 < reads.deadline <= self._engine.clock.now_ms():
            reads.conflict = "a key it read expired"
        if reads.conflict:
            raise ConflictError(
                self._engine.directory,
                f"{reads.conflict} while a transaction that had read it was open; "
                "run it again, or have store.transact() do so",
            )

    def _find(self, encoded: bytes) -> Dirty | None:
        """The live record of a key as the transaction sees it."""
        engine, pending = self._engine, self._pending.get(encoded)
        if pending is not None:
            if self._ended:
                self._check()
            gone = pending.deleted or 0 < pending.deadline <= engine.clock.now_ms()
            return None if gone else Dirty(pending.codec, pending.deadline, b"", pending.payload)
        stored_key = keys.stored(encoded)
        with engine.lock:
            self._check()
            self._reads.keys.add(stored_key)
            found = engine.find(stored_key, encoded)[1]
            if found is None or 0 < found.deadline <= engine.clock.now_ms():
                return None
            self._reads.lives_until(found.deadline)
            return found

    def _value(self, key: Any, promote: bool = True) -> Any:
        encoded = keys.encode(key)
        engine = self._engine
        if encoded not in self._pending:
            with engine.lock:
                self._check()
                hot = engine.hot.peek(key)
                if hot is not None and not hot[2]:
                    self._reads.keys.add(keys.stored(encoded))
                    if promote:
                        engine.hot.hit(key)
            # Decoded without the lock: it may be the user's code.
            if hot is not None and not hot[2]:
                return codec.decode(hot[0], hot[1])
        found = self._find(encoded)
        return ABSENT if found is None else engine.value_of(keys.stored(encoded), found)

    def __contains__(self, key: object) -> bool:
        return self._find(keys.encode(key)) is not None

    def ttl(self, key: K) -> float | None:
        """Seconds left to live, None for ever.  KeyError if the key is absent."""
        found = self._find(keys.encode(key))
        if found is None:
            raise KeyError(key)
        return (found.deadline - self._engine.clock.now_ms()) / 1000 if found.deadline else None

    def __len__(self) -> int:
        engine = self._engine
        with engine.lock:
            self._check()
            self._reads.spans.append(Span(b"", None))
            with passing(engine) as moment:
                count = moment.count(moment.dirty())
                for encoded, change in self._pending.items():
                    there = not change.deleted and not 0 < change.deadline <= moment.now_ms
                    count += there - (moment.find(keys.stored(encoded), encoded) is not None)
                # What it has written itself counts whatever becomes of the store's record.
                own = {keys.stored(encoded) for encoded in self._pending}
                self._reads.lives_until(moment.next_deadline(own))
        return count

    def _iterate(self, bounds: ranges.Range, what: str) -> Iterator[Any]:
        span = Span(bounds.stored_lower, bounds.stored_lower)
        if bounds.reverse:
            span.lower = span.upper = bounds.stored_upper or b"\xff"
        seen: bytes | None = None
        try:
            for encoded, found in self._merged(bounds, what != "keys", span):
                seen = keys.stored(encoded)
                yield ranges.shown_one(self._engine, encoded, found, what)
            seen = None
        finally:
            if seen is not None:  # Left half-way: what was fetched ahead was not seen.
                if bounds.reverse:
                    span.lower = seen
                else:
                    span.upper = seen + b"\0"

    def _merged(self, bounds: ranges.Range, values: bool, span: Span) -> Iterator[tuple[bytes, Dirty]]:
        """The store's records of a range with the transaction's own over them."""
        below = ranges.items(self._pages(span), bounds, values)
        own = self._own(bounds)
        previous = None
        # In the order of stored keys, which is another one for long keys.
        for encoded, found in heapq.merge(own, below, key=lambda item: keys.stored(item[0]), reverse=bounds.reverse):
            if encoded == previous:
                continue
            previous = encoded
            # As it is now: it may have been written again by the loop's body.
            if encoded in self._pending:
                found = self._find(encoded)
            elif found is None:
                continue
            else:
                self._reads.lives_until(found.deadline)
            if found is not None:
                yield encoded, found

    def _own(self, bounds: ranges.Range) -> list[tuple[bytes, Dirty | None]]:
        """Keys written in a range, as they were when the iteration began."""
        own = sorted(filter(bounds.holds, self._pending), key=keys.stored, reverse=bounds.reverse)
        return [(encoded, None) for encoded in own]

    def _pages(self, span: Span) -> ranges.Pages:
        """Pages of the store; each extends what the transaction has read."""
        engine = self._engine
        fetch = ranges.live(engine)

        def page(start: bytes, stop: bytes | None, reverse: bool, values: bool) -> Any:
            with engine.lock:
                self._check()
                if span not in self._reads.spans:
                    self._reads.spans.append(span)
                found, bound = fetch(start, stop, reverse, values)
                if reverse:
                    span.lower, span.upper = (start if bound is None else bound), max_bound(span.upper, stop)
                else:
                    span.upper = stop if bound is None else bound
            return found, bound

        return page

    # Writing

    def __setitem__(self, key: K, value: V) -> None:
        self.set(key, value)

    def set(self, key: K, value: V, ttl: float | timedelta | None = UNSET) -> None:
        """Write a value, as `Store.set`."""
        self._put(key, value, self._engine.deadline_after(ttl))

    def _put(self, key: K, value: Any, deadline: int) -> None:
        number, payload = codec.encode(value)
        self._pend(Change(self._canonical(key), keys.encode(key), False, number, payload, deadline))

    @staticmethod
    def _canonical(key: Any) -> Any:
        return keys.canonical(key)

    def _pend(self, change: Change) -> None:
        if self._ended:
            self._check()
        old = self._pending.get(change.encoded)
        size = self._bytes + change.bytes - (old.bytes if old is not None else 0)
        if size > self._bytes_max:
            raise BatchTooLargeError(
                f"the transaction's records are above {self._bytes_max:,} bytes, "
                "what one batch may take with this much memory"
            )
        self._pending[change.encoded] = change
        self._bytes = size

    def __delitem__(self, key: K) -> None:
        encoded = keys.encode(key)
        if self._find(encoded) is None:
            raise KeyError(key)
        self._pend(Change(self._canonical(key), encoded, True))

    @overload
    def pop(self, key: K) -> V: ...
    @overload
    def pop(self, key: K, default: V | T) -> V | T: ...
    def pop(self, key: K, default: Any = UNSET) -> Any:
        """Remove a key and return its value; `default` if it is absent, else KeyError."""
        value = self._value(key)
        if value is ABSENT:
            if default is UNSET:
                raise KeyError(key)
            return default
        del self[key]
        return value

    def setdefault(self, key: K, default: Any = None) -> Any:
        """The value under `key`, which is `default` from now on if there was none."""
        if self._value(key) is ABSENT:
            self[key] = default
        return self._value(key)

    def popitem(self) -> tuple[K, V]:
        """Remove and return the last key in key order and its value; KeyError if there is none."""
        for key, value in self.items(reverse=True):
            del self[key]
            return key, value
        raise KeyError("popitem(): there is nothing")

    def incr(self, key: K, by: V = ONE) -> V:
        """Add `by` to a number, 0 if absent; returns the sum.  Keeps the time to live."""
        encoded = keys.encode(key)
        found = self._find(encoded)
        value: V = added(found, key, by)
        self._put(key, value, found.deadline if found is not None else self._engine.deadline_after(UNSET))
        return value

    @contextlib.contextmanager
    def edit(self, key: K, default: V = UNSET) -> Iterator[V]:
        """A value to be changed in place, as `Store.edit`."""
        encoded = keys.encode(key)
        pending = self._pending.get(encoded)
        found = self._find(encoded)
        if found is None and default is UNSET:
            raise KeyError(key)
        number, payload = (found.codec, found.payload) if found is not None else codec.encode(default)
        value: Any = codec.decode(number, payload)
        if codec.is_immutable(value.__class__) or is_numpy_scalar(value):
            raise TypeError(f"edit() changes a value in place, which {type(value).__name__} does not allow: assign it")
        value = writable(value)
        before = codec.encode(value)  # Sets may come in another order than they were written in.
        yield value
        if found is None or codec.encode(value) != before:
            if self._pending.get(encoded) is not pending:
                raise ConflictError(self._engine.directory, f"{key!r} was written while edit() had its value out")
            self._put(key, value, found.deadline if found is not None else self._engine.deadline_after(UNSET))

    def touch(self, key: K, ttl: float | timedelta | None) -> bool:
        """Give a key another time to live, in seconds from now, None for ever; False if it is absent."""
        return self._redeadline(key, self._engine.deadline_after(ttl)) is not None

    def persist(self, key: K) -> bool:
        """Take a key's time to live away; False if it is absent or had none."""
        return bool(self._redeadline(key, 0))

    def _redeadline(self, key: K, deadline: int) -> int | None:
        """Give a key another deadline; returns the one it had, None if it is absent."""
        encoded = keys.encode(key)
        found = self._find(encoded)
        if found is None:
            return None
        self._pend(Change(self._canonical(key), encoded, False, found.codec, found.payload, deadline))
        return found.deadline

    def __ior__(self, other: Any) -> Transaction[K, V]:
        self.update(other)
        return self

    def set_many(self, pairs: Mapping[K, V] | Iterable[tuple[K, V]], ttl: float | timedelta | None = UNSET) -> None:
        """Write many values."""
        deadline = self._engine.deadline_after(ttl)
        for key, value in iter(pairs.items() if isinstance(pairs, Mapping) else pairs):
            self._put(key, value, deadline)

    def delete_many(self, unwanted: Iterable[K]) -> int:
        """Delete many keys; returns how many of them existed."""
        removed = 0
        for key in keys_of(unwanted):
            if key in self:
                del self[key]
                removed += 1
        return removed

    def clear(self) -> None:
        """Delete every key, one by one: as many as one batch may hold."""
        self.delete_many(self.keys())

    # The end

    def __del__(self) -> None:
        if not getattr(self, "_ended", True) and (lost := len(self._pending)) and not sys.is_finalizing():
            self.rollback()  # Who records the warning keeps the transaction.
            warnings.warn(
                f"transaction of {self._engine.directory} that did not end: {lost:,} writes are lost; "
                "use it in a `with` block, or call commit() or rollback()",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def __enter__(self) -> Transaction[K, V]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._ended:
            self.commit()
        else:
            self.rollback()

    def commit(self) -> None:
        """Write everything, as one batch.  Raises `ConflictError`, and has changed nothing then."""
        engine, changes = self._engine, list(self._pending.values())
        if self._ended:
            self._check()
        try:
            if not changes:
                return
            engine.refuse_reentry()
            with engine.lock:
                while True:
                    engine.check_writable()
                    self._check()
                    if not engine.reserve(self._bytes, frees=all(change.deleted for change in changes)):
                        break
                sequence = engine.write(changes)
        finally:
            self.rollback()
        engine.acknowledged(sequence)

    def rollback(self) -> None:
        """Forget everything; again is allowed and does nothing."""
        self._ended = True
        self._pending = {}
        self._engine.unwatch(self._reads)
        self._reads = Reads()

    def sub(self, *prefix: Any) -> Sub[Any, V]:
        """As `Store.sub`, within the transaction."""
        return Sub(self, prefix)

    def __repr__(self) -> str:
        state = "ended" if self._ended else f"{len(self._pending):,} writes"
        return f"<tiered.Transaction of {str(self._engine.directory)!r}: {state}>"


def max_bound(one: bytes | None, other: bytes | None) -> bytes | None:
    """The higher of two upper bounds, None for no bound."""
    return None if one is None or other is None else max(one, other)


def added(found: Dirty | None, key: object, by: Any) -> Any:
    """The number in a record, 0 for none, and `by`.  Raises `TypeError` for what is no int or float."""
    if by.__class__ not in (int, float):
        raise TypeError(f"incr() adds an int or a float, not {type(by).__name__}")
    if found is None:
        return 0 + by
    value: Any = codec.decode(found.codec, found.payload)
    if value.__class__ not in (int, float):
        raise TypeError(f"incr() needs an int or float under {key!r}, there is a {type(value).__name__}")
    return value + by


@contextlib.contextmanager
def edited(handle: Handle, key: Any, default: Any) -> Iterator[Any]:
    """What `Store.edit` does."""
    with Transaction[Any, Any](handle) as txn:
        txn._bytes_max = math.inf  # One record is no batch, and may be as large as in `set`.
        with txn.edit(key, default) as value:
            yield value


def backoff_seconds(attempt: int, rivals: int = 0) -> float:
    """How long to wait after a conflict; jittered, so that those who met do not meet again.

    Where it is known how many `rivals` wait like this, each of them gets a time of its own, about.
    """
    from random import uniform  # Not at the top: it takes a while to import, and so would the package.

    return uniform(0, max(_BACKOFF_SECONDS * min(2**attempt, 64), _RIVAL_SECONDS * rivals))


def _not_awaitable(result: T) -> T:
    """The result, or TypeError for one that has yet to run: what it would do is no part of the transaction."""
    if hasattr(result, "__await__") or hasattr(result, "gi_frame"):
        raise TypeError("transact() calls an ordinary function; tiered.aio takes async ones")
    return result


def transacted(handle: Handle, run: Callable[[Transaction[K, V]], T], attempts: int) -> T:
    """What `Store.transact` does."""
    for attempt in range(attempts):
        txn = Transaction[K, V](handle)
        try:
            with txn:
                return _not_awaitable(run(txn))
        except ConflictError:
            if attempt == attempts - 1:
                raise
            time.sleep(backoff_seconds(attempt))
    raise ConfigError(f"attempts={attempts!r} is not a number from 1 on")
