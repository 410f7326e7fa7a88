"""Mappings whose operations are awaited: what `aio` makes of a store, a transaction, a view, or a part of them.

Each refers to the mapping that it stands for, and has no state of its own.  What cannot wait is done at once, in the
event loop (`_at_once`, `_set_at_once`), the rest in a thread (`_run`); what each kind makes of these is in `aio`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast, overload

from tiered.mapping import ONE, Pairs, RangedMapping
from tiered.sub import Sub
from tiered.writing import UNSET

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")
_NONE: Any = None
_FETCH_ITEMS = 256
_FETCH_SECONDS = 0.005
"""An iteration's thread comes back with what it has after this: large values must not pile up."""


async def finished(call: Callable[..., T], /, *args: Any, **named: Any) -> T:
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


def refusing(words: str) -> Any:
    """A method that says what to write in place of what Python made a call of it."""

    def refuse(self: object, *args: object) -> NoReturn:
        raise TypeError(words)

    return refuse


class AsyncMapping(Generic[K, V]):
    """What can be read: of a store, a transaction, a view, or a part of them."""

    def __init__(self, mapping: RangedMapping[K, V]) -> None:
        self._mapping: Any = mapping

    def _at_once(self, key: Any, promote: bool = True) -> Any:
        """The value of a key if it can be had without waiting, else UNSET."""
        return UNSET

    async def _run(self, call: Callable[..., T], /, *args: Any, **named: Any) -> T:
        """What may wait."""
        return await asyncio.to_thread(call, *args, **named)

    async def __getitem__(self, key: K) -> V:
        value = self._at_once(key)
        return cast(V, value) if value is not UNSET else await self._run(self._mapping.__getitem__, key)

    @overload
    async def get(self, key: K, *, promote: bool = True) -> V | None: ...
    @overload
    async def get(self, key: K, default: V | T, *, promote: bool = True) -> V | T: ...
    async def get(self, key: K, default: Any = None, *, promote: bool = True) -> Any:
        value = self._at_once(key, promote)
        return value if value is not UNSET else await self._run(self._mapping.get, key, default, promote=promote)

    async def contains(self, key: object) -> bool:
        return self._at_once(key) is not UNSET or await self._run(self._mapping.__contains__, key)

    async def get_many(self, wanted: Iterable[K], *, promote: bool = True) -> dict[K, V]:
        return await self._run(self._mapping.get_many, wanted, promote=promote)

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
        __contains__ = refusing("`in` cannot be awaited: use `await store.contains(key)`")
        __iter__ = refusing("iterate with `async for`")
        __len__ = refusing("len() cannot be awaited: use `await store.count()`")

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
        __setitem__ = refusing("an assignment cannot be awaited: use `await store.set(key, value)`")
        __delitem__ = refusing("`del` cannot be awaited: use `await store.delete(key)`")
        __ior__ = refusing("`|=` cannot be awaited: use `await store.update(other)`")

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
        value = await finished(context.__enter__)
        try:
            yield value
        except BaseException as error:
            if not await finished(context.__exit__, type(error), error, error.__traceback__):
                raise
        else:
            await finished(context.__exit__, None, None, None)

    def sub(self, *prefix: Any) -> AsyncSub[Any, V]:
        return AsyncSub(self._mapping.sub(*prefix), self)


class AsyncSub(AsyncMutableMapping[K, V]):
    """A part of a store or of a transaction; made by `sub`."""

    def __init__(self, mapping: Sub[K, V], whole: AsyncMutableMapping[Any, V]) -> None:
        super().__init__(mapping)
        self._whole = whole

    async def _run(self, call: Callable[..., T], /, *args: Any, **named: Any) -> T:
        return await self._whole._run(call, *args, **named)

    def _at_once(self, key: Any, promote: bool = True) -> Any:
        return self._whole._at_once(self._mapping._full(key), promote)

    def _set_at_once(self, key: Any, value: Any, ttl: float | timedelta | None) -> bool:
        return self._whole._set_at_once(self._mapping._full(key), value, ttl)

    def sub(self, *prefix: Any) -> AsyncSub[Any, V]:
        return AsyncSub(self._mapping.sub(*prefix), self._whole)
