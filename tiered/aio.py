"""A store for asyncio: the operations of `Store`, to be awaited.

    async with tiered.aio.open("users.tiered") as store:
        await store.set("k", 1)

Nothing here has a state of its own: each object refers to the mapping that it stands for, whose
methods it offers under their names and with their meaning (`count` for `len`, `contains`
for `in`, `delete` for `del`).

Two ways lead there.  What cannot wait is done in the event loop: a read of what is hot, a write
that finds the lock free and room in the journal's segment, everything a transaction
keeps in memory.  Anything else goes to a thread (`asyncio.to_thread`).

Cancellation.  A thread cannot be stopped, so an operation that was cancelled is done whole, then or
a little later, or was not begun.  What must not go on behind its task's back is waited for
before the cancellation goes on: closing, the end of a `with` block, and the operations of
a transaction, of which one at a time may be under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast, overload

from tiered import codec, keys, store
from tiered.check import Finding
from tiered.doctor import Diagnosis
from tiered.errors import ConflictError
from tiered.journal import record_bytes
from tiered.mapping import ONE, Pairs, RangedMapping
from tiered.sharing import TEMPORARY
from tiered.snapshot import SnapshotInfo
from tiered.stats import Explanation, MemoryStats, Stats
from tiered.store import Store
from tiered.sub import Sub, SubView
from tiered.transaction import ATTEMPTS, Transaction, backoff_seconds
from tiered.view import AGE_SECONDS_MAX, View
from tiered.writing import UNSET

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")
_NONE: Any = None
_FETCH_ITEMS = 256
_FETCH_SECONDS = 0.005
"""An iteration's thread comes back with what it has after this: large values must not pile up."""


async def _finished(call: Callable[..., T], /, *args: Any, **named: Any) -> T:
    """What `call` gives in a thread; a cancellation is raised when it has ended."""
    run = partial(contextvars.copy_context().run, call, *args, **named)
    future = asyncio.get_running_loop().run_in_executor(None, run)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # Its failure is known, and nothing that asyncio should complain of.
        raise


async def _handed_over(make: Callable[[], T], undo: Callable[[T], object]) -> T:
    """What `make` gives in a thread; undone in a thread where the task was cancelled meanwhile."""
    made: list[T] = []
    abandoned = False

    def abandon() -> None:
        with contextlib.suppress(IndexError):  # The other side may have been here: one of them gets it.
            undo(made.pop())

    def run() -> None:
        made.append(make())
        if abandoned:
            abandon()

    try:
        await asyncio.to_thread(run)
    except asyncio.CancelledError:
        abandoned = True
        if made:
            await _finished(abandon)
        raise
    return made.pop()


def _refusing(words: str) -> Any:
    """A method that says what to write in place of what Python made a call of it."""

    def refuse(self: object, *args: object) -> NoReturn:
        raise TypeError(words)

    return refuse


def _not_awaitable(run: Callable[[Any], Any], txn: Any) -> Any:
    """What a function called in a thread returns.  Raises `TypeError` for what was to be awaited."""
    result = run(txn)
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError(f"transact() takes an async function itself; {run!r} is none, but returns a coroutine")
    return result


class AsyncMapping(Generic[K, V]):
    """What can be read: of a store, a transaction, a view, or a part of them."""

    def __init__(self, mapping: RangedMapping[K, V]) -> None:
        self._mapping: Any = mapping

    def _at_once(self, key: Any) -> Any:
        """The value of a key if it can be had without waiting, else UNSET."""
        return UNSET

    async def _run(self, call: Callable[..., T], /, *args: Any, **named: Any) -> T:
        """What may wait."""
        return await asyncio.to_thread(call, *args, **named)

    async def __getitem__(self, key: K) -> V:
        value = self._at_once(key)
        return cast(V, value) if value is not UNSET else await self._run(self._mapping.__getitem__, key)

    @overload
    async def get(self, key: K) -> V | None: ...
    @overload
    async def get(self, key: K, default: V | T) -> V | T: ...
    async def get(self, key: K, default: Any = None) -> Any:
        value = self._at_once(key)
        return value if value is not UNSET else await self._run(self._mapping.get, key, default)

    async def contains(self, key: object) -> bool:
        return self._at_once(key) is not UNSET or await self._run(self._mapping.__contains__, key)

    async def get_many(self, wanted: Iterable[K]) -> dict[K, V]:
        return await self._run(self._mapping.get_many, wanted)

    async def count(self) -> int:
        return await self._run(self._mapping.__len__)

    async def ttl(self, key: K) -> float | None:
        return await self._run(self._mapping.ttl, key)

    def keys(self, prefix: Any = None, start: Any = None, stop: Any = None, reverse: bool = False) -> AsyncIterator[K]:
        return self._fetched(self._mapping.keys(prefix, start, stop, reverse))

    def values(
        self, prefix: Any = None, start: Any = None, stop: Any = None, reverse: bool = False
    ) -> AsyncIterator[V]:
        return self._fetched(self._mapping.values(prefix, start, stop, reverse))

    def items(
        self, prefix: Any = None, start: Any = None, stop: Any = None, reverse: bool = False
    ) -> AsyncIterator[tuple[K, V]]:
        return self._fetched(self._mapping.items(prefix, start, stop, reverse))

    def __aiter__(self) -> AsyncIterator[K]:
        return self.keys()

    if not TYPE_CHECKING:  # A type checker says so itself.
        # Without these two, Python would ask `__getitem__` for 0, 1, 2 and so on, and get coroutines without end.
        __contains__ = _refusing("`in` cannot be awaited: use `await store.contains(key)`")
        __iter__ = _refusing("iterate with `async for`")
        __len__ = _refusing("len() cannot be awaited: use `await store.count()`")

        def __bool__(self) -> bool:
            return True  # As any object: whether it is empty would have to be awaited.

    async def _fetched(self, items: Iterable[T]) -> AsyncIterator[T]:
        source = iter(items)

        def fetch() -> list[T]:
            until = time.monotonic() + _FETCH_SECONDS
            fetched = []
            for item in islice(source, _FETCH_ITEMS):
                fetched.append(item)
                if time.monotonic() > until:
                    break
            return fetched

        while fetched := await self._run(fetch):
            for item in fetched:
                yield item

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._mapping!r}>"


class AsyncMutableMapping(AsyncMapping[K, V]):
    """What can be read and written."""

    if not TYPE_CHECKING:
        __setitem__ = _refusing("an assignment cannot be awaited: use `await store.set(key, value)`")
        __delitem__ = _refusing("`del` cannot be awaited: use `await store.delete(key)`")
        __ior__ = _refusing("`|=` cannot be awaited: use `await store.update(other)`")

    def _set_at_once(self, key: Any, value: Any, ttl: float | timedelta | None) -> bool:
        """Write a value if that can be done without waiting."""
        return False

    async def set(self, key: K, value: V, ttl: float | timedelta | None = UNSET) -> None:
        if not self._set_at_once(key, value, ttl):
            await self._run(self._mapping.set, key, value, ttl)

    async def delete(self, key: K) -> None:
        await self._run(self._mapping.__delitem__, key)

    @overload
    async def pop(self, key: K) -> V: ...
    @overload
    async def pop(self, key: K, default: V | T) -> V | T: ...
    async def pop(self, key: K, default: Any = UNSET) -> Any:
        return await self._run(self._mapping.pop, key, *(() if default is UNSET else (default,)))

    async def popitem(self) -> tuple[K, V]:
        return await self._run(self._mapping.popitem)

    async def setdefault(self, key: K, default: V = _NONE) -> V:
        value = self._at_once(key)
        return cast(V, value) if value is not UNSET else await self._run(self._mapping.setdefault, key, default)

    async def incr(self, key: K, by: V = ONE) -> V:
        return await self._run(self._mapping.incr, key, by)

    async def touch(self, key: K, ttl: float | timedelta | None) -> bool:
        return await self._run(self._mapping.touch, key, ttl)

    async def persist(self, key: K) -> bool:
        return await self._run(self._mapping.persist, key)

    async def set_many(
        self, pairs: Mapping[K, V] | Iterable[tuple[K, V]], ttl: float | timedelta | None = UNSET
    ) -> None:
        await self._run(self._mapping.set_many, pairs, ttl)

    async def delete_many(self, unwanted: Iterable[K]) -> int:
        return await self._run(self._mapping.delete_many, unwanted)

    async def update(self, other: Pairs[K, V] = (), /, **named: V) -> None:
        await self._run(self._mapping.update, other, **named)

    async def clear(self) -> None:
        await self._run(self._mapping.clear)

    @asynccontextmanager
    async def edit(self, key: K, default: V = UNSET) -> AsyncIterator[V]:
        context = self._mapping.edit(key, default)
        value = await _finished(context.__enter__)
        try:
            yield value
        except BaseException as error:
            if not await _finished(context.__exit__, type(error), error, error.__traceback__):
                raise
        else:
            await _finished(context.__exit__, None, None, None)

    def sub(self, *prefix: Any) -> AsyncSub[Any, V]:
        return AsyncSub(self._mapping.sub(*prefix), self)


class AsyncSub(AsyncMutableMapping[K, V]):
    """A part of a store or of a transaction; made by `sub`."""

    def __init__(self, mapping: Sub[K, V], whole: AsyncMutableMapping[Any, V]) -> None:
        super().__init__(mapping)
        self._whole = whole

    async def _run(self, call: Callable[..., T], /, *args: Any, **named: Any) -> T:
        return await self._whole._run(call, *args, **named)

    def _at_once(self, key: Any) -> Any:
        return self._whole._at_once(self._mapping._full(key))

    def _set_at_once(self, key: Any, value: Any, ttl: float | timedelta | None) -> bool:
        return self._whole._set_at_once(self._mapping._full(key), value, ttl)

    def sub(self, *prefix: Any) -> AsyncSub[Any, V]:
        return AsyncSub(self._mapping.sub(*prefix), self._whole)


class AsyncTransaction(AsyncMutableMapping[K, V]):
    """A transaction; made by `AsyncStore.transaction`.  It belongs to one task at a time."""

    async def _run(self, call: Callable[..., T], /, *args: Any, **named: Any) -> T:
        return await _finished(call, *args, **named)

    def _at_once(self, key: Any) -> Any:
        txn, engine = self._mapping, self._mapping._engine
        if not engine.lock.acquire(blocking=False):
            return UNSET
        try:
            at_hand = engine.hot.deadline(key) == 0 or keys.encode(key) in txn._pending
        finally:
            engine.lock.release()
        return txn.get(key, UNSET) if at_hand else UNSET

    def _set_at_once(self, key: Any, value: Any, ttl: float | timedelta | None) -> bool:
        self._mapping.set(key, value, ttl)
        return True

    def rollback(self) -> None:
        """Forget everything; again is allowed and does nothing."""
        self._mapping.rollback()


class AsyncView(AsyncMapping[K, V]):
    """A store at one moment; made by `AsyncStore.view`."""

    def sub(self, *prefix: Any) -> AsyncMapping[Any, V]:
        return AsyncMapping(cast("SubView[Any, V]", self._mapping.sub(*prefix)))


class AsyncStore(AsyncMutableMapping[K, V]):
    """A store whose operations are awaited; made by `tiered.aio.open`, or of a `Store` at hand.

    Its methods are those of `Store`.  Tasks and threads may use one store at the same time.
    """

    def __init__(self, store: Store[K, V]) -> None:
        super().__init__(store)
        self._store = store
        self._rivals = 0  # Calls of `transact` that have met a conflict and are not through yet.

    def _at_once(self, key: Any) -> Any:
        store = self._store
        tier = store._tier
        if tier is None:
            return UNSET
        value = tier.get_at(key, store._engine.clock.now_ms(), UNSET) if tier.expiring else tier.get(key, UNSET)
        store._hits += value is not UNSET
        return value

    def _set_at_once(self, key: Any, value: Any, ttl: float | timedelta | None) -> bool:
        engine = self._store._engine
        if engine.attended or engine.owned():
            return False
        encoded = keys.encode(key)
        number, payload = codec.encode(value)
        if not engine.lock.acquire(blocking=False):
            return False
        try:
            if not engine.has_room_now(record_bytes(encoded, payload)):
                return False
            deadline = engine.deadline_after(ttl)
            engine.put(keys.canonical(key), encoded, number, payload, deadline)
        finally:
            engine.lock.release()
        return True

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncTransaction[K, V]]:
        txn = self._store.transaction()
        try:
            yield AsyncTransaction(txn)
        except BaseException:
            txn.rollback()
            raise
        await _finished(txn.commit)

    @overload
    async def transact(self, run: Callable[[AsyncTransaction[K, V]], Awaitable[T]], attempts: int = ATTEMPTS) -> T: ...
    @overload
    async def transact(self, run: Callable[[Transaction[K, V]], T], attempts: int = ATTEMPTS) -> T: ...
    async def transact(self, run: Any, attempts: int = ATTEMPTS) -> Any:
        """As `Store.transact`: an async function is called with an `AsyncTransaction`, any other in a thread."""
        if not inspect.iscoroutinefunction(run):
            return await asyncio.to_thread(self._store.transact, partial(_not_awaitable, run), attempts)
        rival = False
        try:
            for attempt in range(attempts):
                try:
                    async with self.transaction() as txn:
                        return await run(txn)
                except ConflictError:
                    if attempt == attempts - 1:
                        raise
                    self._rivals += not rival
                    rival = True
                    await asyncio.sleep(backoff_seconds(attempt, self._rivals))
        finally:
            self._rivals -= rival
        raise ValueError(f"attempts={attempts!r} is not a number from 1 on")

    @asynccontextmanager
    async def view(self, max_age: float = AGE_SECONDS_MAX) -> AsyncIterator[AsyncView[K, V]]:
        view = await _handed_over(partial(self._store.view, max_age), View.close)
        try:
            yield AsyncView(view)
        finally:
            await _finished(view.close)

    async def save(self) -> None:
        await self._run(self._store.save)

    async def sync(self) -> None:
        await self._run(self._store.sync)

    async def refresh(self) -> None:
        await self._run(self._store.refresh)

    async def compact(self) -> None:
        await self._run(self._store.compact)

    async def snapshot(
        self, file: str | os.PathLike[str], progress: Callable[[int, int], object] | None = None
    ) -> SnapshotInfo:
        return await self._run(self._store.snapshot, file, progress)

    async def stats(self) -> Stats:
        return await self._run(self._store.stats)

    async def memory_stats(self) -> MemoryStats:
        return await self._run(self._store.memory_stats)

    async def doctor(self) -> list[Diagnosis]:
        return await self._run(self._store.doctor)

    async def reclaim(self) -> int:
        return await self._run(self._store.reclaim)

    async def explain(self, key: K) -> Explanation:
        return await self._run(self._store.explain, key)

    async def check(self) -> list[Finding]:
        return await self._run(self._store.check)

    async def config_get(self, name: str = "*") -> dict[str, object]:
        return self._store.config_get(name)

    async def config_set(self, name: str, value: object) -> None:
        await self._run(self._store.config_set, name, value)

    async def close(self) -> None:
        await _finished(self._store.close)

    @property
    def path(self) -> str:
        """The store's directory."""
        return self._store.path

    if not TYPE_CHECKING:
        __enter__ = __exit__ = _refusing("closing has to be awaited: use `async with` in place of `with`")

    async def __aenter__(self) -> AsyncStore[K, V]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Opening:
    """A store being opened: `await` it, or use it in `async with`, which closes the store."""

    def __init__(self, make: Callable[[], Store[Any, Any]]) -> None:
        self._make = make

    def __await__(self) -> Generator[Any, None, AsyncStore[Any, Any]]:
        return self._open().__await__()

    if not TYPE_CHECKING:  # Nothing of this is there for a type checker, which says so itself.
        __enter__ = __exit__ = __getitem__ = __setitem__ = __delitem__ = __contains__ = __aiter__ = _refusing(
            "the store is not open yet: write `async with tiered.aio.open(…) as store:`, "
            "or `store = await tiered.aio.open(…)`"
        )

        def __getattr__(self, name: str) -> object:
            raise AttributeError(
                f"no {name!r} before the store is open: await tiered.aio.open(…), or use it in `async with`", name=name
            )

    async def _open(self) -> AsyncStore[Any, Any]:
        return AsyncStore(await _handed_over(self._make, Store.close))

    async def __aenter__(self) -> AsyncStore[Any, Any]:
        self._opened = await self._open()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.close()


def open(path: str | os.PathLike[str] = TEMPORARY, flag: str = "c", **settings: Any) -> Opening:
    """Open a store as `tiered.open` does, with the same arguments and errors, when it is awaited or entered."""
    return Opening(partial(store.open, path, flag, **settings))
