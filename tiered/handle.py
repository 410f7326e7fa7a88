"""One handle on a store, and what stands for its engine.

A handle keeps the hot tier and the lock for itself, so that a hit asks nobody.  What must
not be answered any more is kept from it by taking these away: it has no hot tier then, and
its engine becomes one of the stand-ins below, which every other call meets:

    Ended      after `close()`: raises `ClosedError`
    Reading    a read-only handle beside a writing one: reads are the engine's, writes raise `ReadOnlyError`
    Inherited  a read-only handle in a forked child: opens the store again at first use

How handles find and share engines is in `sharing`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar, cast

from tiered.clock import Clock
from tiered.control import attend
from tiered.engine import Engine
from tiered.errors import ClosedError, ReadOnlyError
from tiered.maintenance import MAINTENANCE
from tiered.sharing import HANDLES, TEMPORARY, Arrived, Shared

Self = TypeVar("Self", bound="Handle")
READS = frozenset(
    [
        "acknowledged",
        "alive",
        "begin",
        "check_readable",
        "configure",
        "damaged",
        "dirty",
        "disk_bytes",
        "drop_view",
        "event_counts",
        "find",
        "find_many",
        "in_place",
        "keep_view",
        "key_of",
        "listen",
        "look_at_clock",
        "opened",
        "opened_many",
        "open_views",
        "pinned_bytes",
        "promote",
        "promote_many",
        "reading",
        "refresh",
        "refuse_inside_others",
        "refuse_reentry",
        "refuse_waiting",
        "settle",
        "snapshot",
        "tell_listeners",
        "tick",
        "warm",
        "tick_guarded",
        "value_of",
    ]
)
"""What a read-only handle may call of a writing engine; the rest it may not."""


class Ended:
    """Stands for the engine of a handle that was closed."""

    closed, forked, word = True, False, "closed"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __getattr__(self, name: str) -> NoReturn:
        raise ClosedError(self.directory, "the store is closed; open it again")


class Reading:
    """A writing engine as a read-only handle sees it."""

    readonly = True
    direct = False

    def __init__(self, engine: Engine) -> None:
        self._real = engine
        # What never changes is found without `__getattr__`.
        for name in ("hot", "lock", "counters", "clock", "directory", "settings"):
            setattr(self, name, getattr(engine, name))
        for name in ("check_readable", "dirty", "find", "opened", "promote", "promote_many", "value_of"):
            setattr(self, name, getattr(engine, name))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name not in READS and callable(found) and getattr(found, "__self__", None) is self._real:
            self.check_writable()
        return found

    def check_writable(self) -> NoReturn:
        """Raise what forbids writing."""
        self._real.check_readable()
        raise ReadOnlyError(
            self._real.directory,
            "this handle was opened with flag='r'; write through the one that was opened for writing",
        )


class Inherited:
    """Stands for the engine of a read-only handle that came into a forked child."""

    closed, forked, word = False, False, "read-only, opened again at first use"

    def __init__(self, handle: Handle, engine: Engine) -> None:
        self._handle = weakref.ref(handle)
        self._settings = {"memory": engine.settings.memory}
        self._clock = engine.clock
        self.directory = engine.directory

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        handle = self._handle()
        if handle is None:
            raise ClosedError(self.directory, "the store is closed; open it again")
        return getattr(handle._reopened(self), name)

    def open(self, handle: Handle) -> None:
        """Open the store for the handle."""
        HANDLES.open(handle, self.directory, "r", Arrived(self._settings), 0.0, self._clock)


class Handle:
    """One handle on an engine: what `Store` has in common with every other."""

    _engine: Engine
    _tier: Any
    _hits: int

    def __init__(
        self,
        path: str | os.PathLike[str] = TEMPORARY,
        flag: str = "c",
        *,
        lock_timeout: float = 0.0,
        allow_network: bool = False,
        clock: Clock | None = None,
        **settings: Any,
    ) -> None:
        self._open(path, flag, settings, lock_timeout, allow_network, clock)

    def _open(
        self,
        path: str | os.PathLike[str],
        flag: str,
        settings: Mapping[str, object],
        lock_timeout: float = 0.0,
        allow_network: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._shared: Shared | None = None
        self._member = object()
        self._guard = threading.RLock()
        self._readonly = flag == "r"
        self._arrived = True  # Interrupted before it is open, it is nobody's to close, and goes by itself as well.
        self._allow_network = allow_network
        self._hits = 0
        self._memoized: dict[str, str] = {}  # Which function has which name.
        HANDLES.open(self, path, flag, settings, lock_timeout, clock)
        self._arrived = isinstance(settings, Arrived)

    def _adopt(self, shared: Shared) -> None:
        """Take the engine that `HANDLES` found."""
        self._shared = shared
        shared.members.add(self._member)
        engine = shared.engine
        self._lock = engine.lock
        self._owned = engine.owned
        self._engine = cast(Engine, Reading(engine)) if self._readonly and not engine.readonly else engine
        self._tier = engine.hot
        HANDLES.watch(self)
        engine.begin_work()

    def _detach(self, stand_in: Ended | Inherited) -> None:
        # The tier goes first: a hit that finds none asks the engine.
        self._tier = None
        self._engine = cast(Engine, stand_in)
        self._shared = None

    def close(self) -> None:
        """Let go of this handle; with the last one, checkpoint what is dirty and close the files.

        Again is allowed and does nothing.  Raises what kept the last checkpoint from
        being made; the journal holds its records then.
        """
        shared = self._shared
        try:
            if shared is not None and shared.members <= {self._member}:
                shared.engine.take_leave()  # Without the guard: a callback may close the handle as well.
        finally:
            self._let_go()

    def _let_go(self) -> None:
        with self._guard:  # Who closes at the same time returns when it is done.
            shared, engine = self._shared, self._engine
            if engine.forked or (engine.closed and shared is None):
                return
            with contextlib.ExitStack() as ending:
                if shared is not None:
                    shared.engine.refuse_waiting()
                    ending.callback(HANDLES.release, shared, self._member)
                    ending.callback(self._end_views, shared.engine)
                    engine.left_hits += self._hits
                self._detach(Ended(engine.directory))

    def _end_views(self, engine: Engine) -> None:
        """Give back what views opened by this handle keep."""
        with engine.lock:
            for view in engine.open_views():
                if view.handle is self:
                    view.end("its handle was closed")

    def __enter__(self: Self) -> Self:
        self._engine.check_readable()  # A `with` that can do nothing says so at its beginning.
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        shared: Shared | None = getattr(self, "_shared", None)
        if shared is None or shared.engine.closed or shared.engine.forked or sys.is_finalizing():
            return
        try:
            if not self._arrived:
                warnings.warn(f"unclosed store {shared.engine.directory}", ResourceWarning, source=self, stacklevel=2)
        finally:
            shared.engine.left_hits += self._hits
            HANDLES.leave(shared, self._member)

    def __reduce__(self) -> Any:
        """Path and settings: the copy opens the store read-only where it arrives."""
        settings = self._engine.settings
        explicit = {name: getattr(settings, name) for name in ("memory", "helper")}
        return arrive, (type(self), str(self._engine.directory), explicit, self._allow_network)

    def _reopened(self, inherited: Inherited) -> Engine:
        """In a forked child: the engine of the store opened again, which the handle has from now on."""
        with self._guard:
            if cast(object, self._engine) is inherited:
                self._arrived = True
                inherited.open(self)
            return self._engine

    def _disown(self) -> None:
        """In a forked child: a read-only handle is to open the store again; a writing one says what to do."""
        self._guard = threading.RLock()
        if self._readonly and self._shared is not None:
            self._detach(Inherited(self, self._shared.engine))


def arrive(kind: type[Handle], path: str, settings: dict[str, object], allow_network: bool) -> Handle:
    """A handle that was pickled elsewhere."""
    handle = kind.__new__(kind)
    handle._open(path, "r", Arrived(settings), allow_network=allow_network)
    return handle


MAINTENANCE.chores.append(attend)  # Other programs may ask from now on.
