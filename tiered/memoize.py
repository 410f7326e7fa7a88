"""Functions whose results are kept in a store: computed once, by one caller, while the others wait.

The key of a call is `("memoize", name, arguments)`, as `calls` has it; of arguments above 64 bytes a digest, BLAKE2b of
32 bytes.

What is kept is the result itself; with `early` a list, `["tiered.memoize", seconds, result]`, of how long computing it
took.  A result that looks like one is kept in such a list as well, so each form is read as what it is, whether the
function has `early` now or had it then.

One caller computes.  What is being computed is a `Flight`; who comes meanwhile waits for it.  Each of them, the one who
computed too, gets a result of his own, made of the bytes that are kept, as a read would give it.  An exception of the
function is given to all who wait: their own calls would have met it, and computing anew one after the other would make
the last one wait for all.  It is not kept, so the next call computes.  What ends the caller itself (Ctrl-C, a cancelled
task, `SystemExit`) is nobody else's: one of those who wait computes then.

Nobody waits for himself.  The flights that a call belongs to are in a context variable, so that tasks and threads
started by `asyncio` belong to them as well, and each flight knows for which others its function waits.  A call that
would wait in a circle computes without waiting.  A flight whose thread is gone without ending it, as in a forked child,
or whose event loop has stopped, is noticed by the next to come, and by who waits for it within a second.

Early recomputation: with a chance that grows as the deadline comes near, and with how long computing took, one caller
computes a value anew before it expires (Vattani, Chierichetti, Lowenstein: "Optimal Probabilistic Cache Stampede
Prevention", VLDB 2015); the others get the old one meanwhile.

Locking: `_LOCK` covers all flights; nothing is called while it is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import threading
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextvars import ContextVar
from datetime import timedelta
from functools import update_wrapper
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, cast, overload

from tiered import codec, keys
from tiered.calls import is_async, name_of, place_of, told_apart
from tiered.config import parse_ttl
from tiered.errors import ConfigError
from tiered.jitter import drawn
from tiered.mapping import ABSENT
from tiered.writing import UNSET

P = ParamSpec("P")
T = TypeVar("T")
PREFIX = "memoize"
TIMED = "tiered.memoize"
ARGUMENT_BYTES_MAX = 64
_GONE_SECONDS = 1.0
_LOCK = threading.RLock()
_RETRY: Any = object()


class CacheInfo(NamedTuple):
    """What became of the calls in this process: answered by the store, computed, answered by another's computing, and
    how many of those computed were so before they had to."""

    hits: int
    misses: int
    waits: int
    early: int


class Flight:
    """One result being computed."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.thread = threading.current_thread()
        self.loop = loop
        self.done = threading.Event()
        self.futures: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.waits_for: list[Flight] = []
        self.packed: tuple[int, bytes] | None = None
        self.error: Exception | None = None

    def result(self) -> Any:
        """What came of it, each time anew; `_RETRY` if its caller ended without.  Raises what the function raised."""
        if self.error is not None:
            raise self.error
        return _RETRY if self.packed is None else codec.decode(*self.packed)

    def is_lost(self) -> bool:
        """Whether nobody is there who would end it."""
        return not self.thread.is_alive() or (self.loop is not None and not self.loop.is_running())

    def leads_to(self, flights: tuple[Flight, ...]) -> bool:
        """Whether it waits, in however many steps, for one of these."""
        return self in flights or any(other.leads_to(flights) for other in self.waits_for)


_FLIGHTS: ContextVar[tuple[Flight, ...]] = ContextVar("flights", default=())


def is_timed(found: Any) -> bool:
    """Whether this is a result with how long computing it took, as it is kept."""
    # Asked for its type first: what an array or an object of the user's says to `==` is its own matter.
    return type(found) is list and len(found) == 3 and type(found[0]) is str and found[0] == TIMED


class Memoized(Generic[P, T]):
    """What functions and async functions have in common."""

    def __init__(self, store: Any, function: Callable[P, Any], options: Options) -> None:
        update_wrapper(cast(Any, self), function)
        self._store = store
        self._function = function
        self._options = options
        self.name = options.name if options.name is not None else name_of(function)
        signature = inspect.signature(function)
        self._signature = signature
        simple = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        ordinary = all(parameter.kind in simple for parameter in signature.parameters.values())
        self._count = len(signature.parameters) if ordinary else -1
        self._flights: dict[Any, Flight] = {}
        self._cleared = 0
        self._hits = self._misses = self._waits = self._early = 0

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(cast(Any, self), instance)

    def cache_key(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Any, ...]:
        """The key of a call in the store: to look it up, or to delete its result."""
        if self._options.key is not None:
            return (PREFIX, self.name, self._options.key(*args, **kwargs))
        given: tuple[Any, ...] = args
        if kwargs or len(args) != self._count:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = tuple(bound.arguments.values())
        try:
            encoded = told_apart(given)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}; give memoize() a key= that makes a key of the arguments") from None
        if len(encoded) > ARGUMENT_BYTES_MAX:
            return (PREFIX, self.name, hashlib.blake2b(encoded, digest_size=32).digest(), 0)
        return (PREFIX, self.name, encoded)

    def cache_info(self) -> CacheInfo:
        """Counts of this function since it was decorated."""
        return CacheInfo(self._hits, self._misses, self._waits, self._early)

    def _clear(self) -> Any:
        """Forget what was computed, and what is being computed; what to delete."""
        with _LOCK:
            self._cleared += 1
            self._flights.clear()
        return self._store.sub(PREFIX, self.name)

    def _unpacked(self, found: Any) -> tuple[Any, float]:
        return (found[2], found[1]) if is_timed(found) else (found, 0.0)

    def _packed(self, value: Any, seconds: float) -> Any:
        return [TIMED, seconds, value] if self._options.early or is_timed(value) else value

    def _is_due(self, left: float | None, seconds: float) -> bool:
        """Whether a value is to be computed anew though it has so many seconds left."""
        if left is None:
            return False
        from math import log
        from random import random

        return left <= -seconds * self._options.early * log(1.0 - random())

    def _ttl(self) -> Any:
        ttl = self._options.ttl
        if ttl is UNSET or ttl is None:
            return ttl
        seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
        return drawn((seconds * (1 - self._options.jitter), seconds))

    # Flights

    def _board(self, key: Any, fresh: Flight) -> Flight | None:
        """The flight for a key, `fresh` if there is none; None where waiting for it would never end."""
        above = _FLIGHTS.get()
        with _LOCK:
            flight = self._flights.setdefault(key, fresh)
            if flight is not fresh:
                if flight.leads_to(above):
                    return None
                for waiting in above:
                    waiting.waits_for.append(flight)
        return flight

    def _leave(self, flight: Flight) -> None:
        with _LOCK:
            for waiting in _FLIGHTS.get():
                with contextlib.suppress(ValueError):
                    waiting.waits_for.remove(flight)

    @contextlib.contextmanager
    def _leading(self, key: Any, flight: Flight) -> Iterator[None]:
        """While the function runs; whatever happens, the flight ends with it."""
        token = _FLIGHTS.set((*_FLIGHTS.get(), flight))
        try:
            yield
        except Exception as error:
            flight.error = error
            raise
        finally:
            self._end(key, flight)
            with contextlib.suppress(ValueError):  # A coroutine that was abandoned is ended in some other context.
                _FLIGHTS.reset(token)

    def _end(self, key: Any, flight: Flight) -> None:
        with _LOCK:
            if self._flights.get(key) is flight:
                del self._flights[key]
            flight.done.set()
            futures, flight.futures = flight.futures, []
        for loop, future in futures:
            with contextlib.suppress(RuntimeError):  # Its loop is closed: nobody waits there.
                loop.call_soon_threadsafe(_release, future)


def _release(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class MemoizedFunction(Memoized[P, T]):
    """A function whose results are kept; made by `Store.memoize`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """The result for these arguments, kept, computed, or computed by another meanwhile."""
        key = self.cache_key(*args, **kwargs)
        while True:
            value, seconds = self._kept(key)
            early = value is not ABSENT and self._options.early > 0 and self._wants(key, seconds)
            if value is not ABSENT and not early:
                self._hits += 1
                return cast(T, value)
            fresh = Flight()
            try:
                flight = self._board(key, fresh)
                if flight is None:
                    return cast(T, self._function(*args, **kwargs))
                if flight is fresh:
                    return self._computed(key, flight, early, args, kwargs)
                if early:
                    self._hits += 1
                    return cast(T, value)
                value = self._awaited(key, flight)
                if value is not _RETRY:
                    return cast(T, value)
            finally:
                self._end(key, fresh)

    def _kept(self, key: Any) -> tuple[Any, float]:
        return self._unpacked(self._store.get(key, ABSENT))

    def _wants(self, key: Any, seconds: float) -> bool:
        with contextlib.suppress(KeyError):
            return self._is_due(self._store.ttl(key), seconds)
        return True

    def _computed(self, key: Any, flight: Flight, early: bool, args: Any, kwargs: Any) -> T:
        with self._leading(key, flight):
            # Another may have been through between the look and the flight.
            value = ABSENT if early else self._kept(key)[0]
            if value is not ABSENT:
                self._hits += 1
                return cast(T, value)
            cleared, began = self._cleared, time.monotonic()
            value = self._function(*args, **kwargs)
            self._misses += 1
            self._early += early
            self._store.set(key, self._packed(value, time.monotonic() - began), self._ttl())
            if cleared != self._cleared:
                self._store.pop(key, None)
            flight.packed = codec.encode(value)
            return cast(T, flight.result())

    def _awaited(self, key: Any, flight: Flight) -> Any:
        try:
            while not flight.done.is_set():
                if flight.is_lost():
                    self._end(key, flight)
                flight.done.wait(_GONE_SECONDS)
        finally:
            self._leave(flight)
        value = flight.result()
        self._waits += value is not _RETRY
        return value

    def cache_clear(self) -> None:
        """Delete all results of this function; what is being computed now is not kept."""
        self._clear().clear()


class MemoizedCoroutine(Memoized[P, T]):
    """An async function whose results are kept; made by `Store.memoize` and `AsyncStore.memoize`."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """The result for these arguments, kept, computed, or computed by another task meanwhile."""
        key = self.cache_key(*args, **kwargs)
        while True:
            found = await self._store.get(key, ABSENT)
            value, seconds = self._unpacked(found)
            early = value is not ABSENT and self._options.early > 0 and await self._wants(key, seconds)
            if value is not ABSENT and not early:
                self._hits += 1
                return cast(T, value)
            fresh = Flight(asyncio.get_running_loop())
            try:
                flight = self._board(key, fresh)
                if flight is None:
                    return cast(T, await self._function(*args, **kwargs))
                if flight is fresh:
                    return await self._computed(key, flight, early, args, kwargs)
                if early:
                    self._hits += 1
                    return cast(T, value)
                value = await self._awaited(key, flight)
                if value is not _RETRY:
                    return cast(T, value)
            finally:
                self._end(key, fresh)

    async def _wants(self, key: Any, seconds: float) -> bool:
        with contextlib.suppress(KeyError):
            return self._is_due(await self._store.ttl(key), seconds)
        return True

    async def _computed(self, key: Any, flight: Flight, early: bool, args: Any, kwargs: Any) -> T:
        with self._leading(key, flight):
            value = ABSENT if early else self._unpacked(await self._store.get(key, ABSENT))[0]
            if value is not ABSENT:
                self._hits += 1
                return cast(T, value)
            cleared, began = self._cleared, time.monotonic()
            value = await self._function(*args, **kwargs)
            self._misses += 1
            self._early += early
            await self._store.set(key, self._packed(value, time.monotonic() - began), self._ttl())
            if cleared != self._cleared:
                await self._store.pop(key, None)
            flight.packed = codec.encode(value)
            return cast(T, flight.result())

    async def _awaited(self, key: Any, flight: Flight) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        try:
            with _LOCK:
                if not flight.done.is_set():
                    flight.futures.append((loop, future))
            while not flight.done.is_set():
                if flight.is_lost():
                    self._end(key, flight)
                await asyncio.wait([future], timeout=_GONE_SECONDS)
        finally:
            self._leave(flight)
        value = flight.result()
        self._waits += value is not _RETRY
        return value

    async def cache_clear(self) -> None:
        """Delete all results of this function; what is being computed now is not kept."""
        await self._clear().clear()


class Options(NamedTuple):
    """What `memoize` was given."""

    ttl: float | timedelta | None
    key: Callable[..., Any] | None
    name: str | None
    jitter: float
    early: float

    def checked(self) -> Options:
        """These; raises `ConfigError` for numbers out of bounds and for what is no time to live."""
        if callable(self.ttl):
            raise TypeError("memoize() takes the function afterwards: write @store.memoize(), with parentheses")
        if self.ttl is not UNSET:
            parse_ttl(self.ttl)
        if not 0 <= self.jitter < 1 or not self.early >= 0:
            raise ConfigError(f"jitter={self.jitter!r} is to be from 0 to below 1, early={self.early!r} 0 or more")
        if self.name is not None:
            keys.encode(self.name)
        return self


class _Threaded:
    """A store for async functions, where no `AsyncStore` is at hand."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._store, name)

        async def call(*args: Any) -> Any:
            return await asyncio.to_thread(method, *args)

        return call

    def sub(self, *prefix: Any) -> _Threaded:
        return _Threaded(self._store.sub(*prefix))


class Memoizer:
    """The decorator that `memoize` gives."""

    def __init__(self, store: Any, names: dict[str, str], options: Options, awaited: bool) -> None:
        self._store = store
        self._names = names
        self._options = options.checked()
        self._awaited = awaited

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]]) -> MemoizedCoroutine[P, T]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[P, T]) -> MemoizedFunction[P, T]: ...
    def __call__(self, function: Callable[..., Any]) -> Any:
        """The function, with its results kept.

        Raises `TypeError` where it has no name of its own, `ConfigError` where another function has it.
        """
        memoized: Memoized[Any, Any]
        if is_async(function):
            memoized = MemoizedCoroutine(
                self._store if self._awaited else _Threaded(self._store), function, self._options
            )
        elif self._awaited:
            raise TypeError(f"{function!r} is no async function: use memoize() of the store that `tiered.open` gives")
        else:
            memoized = MemoizedFunction(self._store, function, self._options)
        # A function defined anew in the same place, as by a notebook cell run again, replaces itself.
        place = place_of(function)
        taken = self._names.setdefault(memoized.name, place)
        if taken != place:
            raise ConfigError(f"the results of {taken} are kept as {memoized.name!r}; give {place} another name=")
        return memoized
