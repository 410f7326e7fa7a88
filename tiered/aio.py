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
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from tiered import codec, keys, store
from tiered.advisor import Advice
from tiered.awaited import AsyncMapping, AsyncMutableMapping, finished, refusing
from tiered.check import Finding
from tiered.doctor import Diagnosis
from tiered.errors import ConfigError, ConflictError
from tiered.events import Event
from tiered.journal import record_bytes
from tiered.mapping import AGE_SECONDS_MAX, ATTEMPTS
from tiered.memoize import Memoizer, Options
from tiered.sharing import TEMPORARY
from tiered.snapshot import SnapshotInfo
from tiered.stats import Explanation, MemoryStats, Stats
from tiered.store import Store
from tiered.sub import SubView
from tiered.transaction import Transaction, backoff_seconds
from tiered.view import View
from tiered.writing import UNSET

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")


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
            await finished(abandon)
        raise
    return made.pop()


def _not_awaitable(run: Callable[[Any], Any], txn: Any) -> Any:
    """What a function called in a thread returns.  Raises `TypeError` for what was to be awaited."""
    result = run(txn)
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError(f"transact() takes an async function itself; {run!r} is none, but returns a coroutine")
    return result


class AsyncTransaction(AsyncMutableMapping[K, V]):
    """A transaction; made by `AsyncStore.transaction`.  It belongs to one task at a time."""

    async def _run(self, call: Callable[..., T], /, *args: Any, **named: Any) -> T:
        return await finished(call, *args, **named)

    def _at_once(self, key: Any, promote: bool = True) -> Any:
        txn, engine = self._mapping, self._mapping._engine
        if not engine.lock.acquire(blocking=False):
            return UNSET
        try:
            at_hand = engine.hot.deadline(key) == 0 or keys.encode(key) in txn._pending
        finally:
            engine.lock.release()
        return txn.get(key, UNSET, promote=promote) if at_hand else UNSET

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

    def _at_once(self, key: Any, promote: bool = True) -> Any:
        store = self._store
        tier = store._tier
        if tier is None:
            return UNSET
        if not promote:
            keys.encode(key)
            return store._glanced(key)
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
        await finished(txn.commit)

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
        raise ConfigError(f"attempts={attempts!r} is not a number from 1 on")

    @asynccontextmanager
    async def view(self, max_age: float = AGE_SECONDS_MAX) -> AsyncIterator[AsyncView[K, V]]:
        view = await _handed_over(partial(self._store.view, max_age), View.close)
        try:
            yield AsyncView(view)
        finally:
            await finished(view.close)

    def on(self, kind: str, callback: Callable[[Event], object]) -> Callable[[], None]:
        """As `Store.on`; `callback` is called in the event loop that runs now, as long as it does."""
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # The loop is closed.
                loop.call_soon_threadsafe(callback, event)

        return self._store.on(kind, tell)

    def memoize(
        self,
        ttl: float | timedelta | None = UNSET,
        key: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        jitter: float = 0.1,
        early: float = 0.0,
    ) -> Memoizer:
        """As `Store.memoize`, of async functions."""
        return Memoizer(self, self._store._memoized, Options(ttl, key, name, jitter, early), awaited=True)

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

    async def advise(self) -> Advice:
        return await self._run(self._store.advise)

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
        await finished(self._store.close)

    @property
    def path(self) -> str:
        """The store's directory."""
        return self._store.path

    if not TYPE_CHECKING:
        __enter__ = __exit__ = refusing("closing has to be awaited: use `async with` in place of `with`")

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
        __enter__ = __exit__ = __getitem__ = __setitem__ = __delitem__ = __contains__ = __aiter__ = refusing(
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
