"""Handles: how the stores of one program share engines, and what becomes of them at the end and after a fork.

LMDB allows one environment per file and process, so a path that is opened again in a
program gives another handle on the same engine; the engine is closed with its last
handle.  `HANDLES` knows the engines by the real path of their directory.

A handle keeps the hot tier's table and lock for itself, so that a hit asks nobody.  What
must not be answered any more is kept from it by taking these away: its table becomes an
empty one, and its engine one of the stand-ins below, which every other call meets:

    Ended      after `close()`: raises `ClosedError`
    Reading    a read-only handle beside a writing one: reads are the engine's, writes raise `ReadOnlyError`
    Inherited  a read-only handle in a forked child: opens the store again at first use

Locking.  A path is claimed by whoever opens it or lets go of it, for as long as that
takes, and others wait: so a last close and a new open do not meet.  A claim is an
entry in a dict, made by `setdefault`, which is atomic.  A handle that is collected may be
so in the middle of anything, also in the thread that has the claim: it never
waits, but leaves a note, which whoever has the claim heeds when giving it up.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar, cast

from tiered import files
from tiered.clock import Clock
from tiered.config import Settings
from tiered.engine import Engine
from tiered.errors import ClosedError, ConfigError, LockedError, ReadOnlyError, ReentrantError, StoreError
from tiered.maintenance import MAINTENANCE
from tiered.opening import check_arguments, open_engine

LOG = logging.getLogger("tiered")
Self = TypeVar("Self", bound="Handle")
TEMPORARY: Any = object()
"""In place of a path: a store in a directory of its own, removed when it is closed."""
READS = frozenset(
    [
        "acknowledged",
        "check_readable",
        "configure",
        "dirty",
        "disk_bytes",
        "drop_view",
        "entry_of",
        "find",
        "follow",
        "in_place",
        "keep_view",
        "opened",
        "opened_many",
        "open_views",
        "pinned_bytes",
        "promote",
        "promote_many",
        "refuse_inside_others",
        "refuse_reentry",
        "refuse_waiting",
        "shrink",
        "snapshot",
        "tick",
        "tick_guarded",
        "value_of",
    ]
)
"""What a read-only handle may call of a writing engine; the rest it may not."""
RETRY_SECONDS = 0.01


class Ended:
    """Stands for the engine of a handle that was closed."""

    closed, forked, word = True, False, "closed"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __getattr__(self, name: str) -> NoReturn:
        raise ClosedError(self.directory, "the store is closed")


class Reading:
    """A writing engine as a read-only handle sees it."""

    readonly = True

    def __init__(self, engine: Engine) -> None:
        self._real = engine
        # What never changes is found without `__getattr__`.
        for name in ("hot", "lock", "counters", "clock", "directory", "settings"):
            setattr(self, name, getattr(engine, name))
        for name in ("check_readable", "dirty", "entry_of", "find", "opened", "promote", "promote_many", "value_of"):
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
            self._real.directory, "this handle was opened with flag='r'; write through the one opened with flag='w'"
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
            raise ClosedError(self.directory, "the store is closed")
        return getattr(handle._reopened(self), name)

    def open(self, handle: Handle) -> None:
        """Open the store for the handle."""
        HANDLES.open(handle, self.directory, "r", Arrived(self._settings), 0.0, self._clock)


class Shared:
    """An engine and the handles that have it."""

    def __init__(self, key: str, engine: Engine) -> None:
        self.key = key
        self.engine = engine
        self.temporary = False
        self.members: set[object] = set()

    def end(self) -> None:
        """Close the engine, and remove what was temporary."""
        try:
            self.engine.close()
        except ReentrantError:
            raise
        except BaseException:
            self.engine.close()  # Does nothing, unless it was interrupted before it had begun.
            raise
        finally:
            if self.temporary and self.engine.closed:
                files.remove_tree(self.engine.directory, ignore_errors=True)


class Handle:
    """One handle on an engine: what `Store` has in common with every other."""

    _engine: Engine

    def __init__(
        self,
        path: str | os.PathLike[str] = TEMPORARY,
        flag: str = "c",
        settings: Mapping[str, object] | None = None,
        lock_timeout: float = 0.0,
        allow_network: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._shared: Shared | None = None
        self._member = object()
        self._guard = threading.RLock()
        self._readonly = flag == "r"
        self._arrived = False
        self._allow_network = allow_network
        self._hits = 0
        HANDLES.open(self, path, flag, settings or {}, lock_timeout, clock)

    def _adopt(self, shared: Shared) -> None:
        """Take the engine that `HANDLES` found."""
        self._shared = shared
        shared.members.add(self._member)
        engine = shared.engine
        self._lock = engine.lock
        self._owned = engine.owned
        self._engine = cast(Engine, Reading(engine)) if self._readonly and not engine.readonly else engine
        self._hit = engine.hot.hit
        self._table = engine.hot.table
        HANDLES.watch(self)

    def _detach(self, stand_in: Ended | Inherited) -> None:
        # The table goes first: a hit that finds it empty asks the engine.
        self._table = {}
        self._engine = cast(Engine, stand_in)
        self._shared = None

    def close(self) -> None:
        """Let go of this handle; with the last one, checkpoint what is dirty and close the files.

        Again is allowed and does nothing.  Raises what kept the last checkpoint from
        being made; the journal holds its records then.
        """
        with self._guard:  # Who closes at the same time returns when it is done.
            shared, engine = self._shared, self._engine
            if engine.forked or (engine.closed and shared is None):
                return
            with contextlib.ExitStack() as ending:
                if shared is not None:
                    shared.engine.refuse_waiting()
                    ending.callback(HANDLES.release, shared, self._member)
                self._detach(Ended(engine.directory))

    def __enter__(self: Self) -> Self:
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


class Arrived(dict[str, object]):
    """Settings that a handle brought along: those in force where it arrives are as good."""


def arrive(kind: type[Handle], path: str, settings: dict[str, object], allow_network: bool) -> Handle:
    """A handle that was pickled elsewhere."""
    handle = kind(path, "r", Arrived(settings), allow_network=allow_network)
    handle._arrived = True
    return handle


class Claim:
    """Somebody's right to open a path, or to let go of it."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()


class Handles:
    """The engines of a program, and who has them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shared: dict[str, Shared] = {}
        self._claims: dict[str, Claim] = {}
        self._left: deque[tuple[Shared, object]] = deque()
        self._handles: weakref.WeakValueDictionary[object, Handle] = weakref.WeakValueDictionary()

    def engine_at(self, directory: Path) -> Engine | None:
        """The engine that has a directory open in this program."""
        shared = self._shared.get(os.path.realpath(directory))
        return shared.engine if shared is not None and shared.engine.alive() else None

    def watch(self, handle: Handle) -> None:
        """Note a handle, to tell it of a fork."""
        self._handles[handle._member] = handle

    def open(
        self,
        handle: Handle,
        path: str | os.PathLike[str],
        flag: str,
        explicit: Mapping[str, object],
        lock_timeout: float,
        clock: Clock | None,
    ) -> None:
        """Give a handle its engine: one that is open, or a new one."""
        if path is TEMPORARY:
            self._open_temporary(handle, flag, explicit, lock_timeout, clock)
            return
        directory = check_arguments(path, flag, explicit, lock_timeout)
        self.sweep()
        limit = time.monotonic() + lock_timeout
        while True:
            try:
                self._try_open(handle, directory, flag, explicit, clock)
                return
            except LockedError:
                left = limit - time.monotonic()
                if left <= 0:
                    raise
            # Without a claim, so that a reader need not wait for somebody else's lock as well.
            with self._changed:
                self._changed.wait(min(left, RETRY_SECONDS))

    def _open_temporary(
        self, handle: Handle, flag: str, explicit: Mapping[str, object], lock_timeout: float, clock: Clock | None
    ) -> None:
        if flag not in ("c", "n"):
            raise ConfigError(f"flag={flag!r} needs a path; without one there is only a new, temporary store")
        import tempfile  # Takes time, with what it imports.

        directory = tempfile.mkdtemp(prefix="tiered-")
        try:
            self.open(handle, directory, "c", explicit, lock_timeout, clock)
            assert handle._shared is not None
            handle._shared.temporary = True
        except BaseException:
            files.remove_tree(Path(directory), ignore_errors=True)
            raise

    def _try_open(
        self, handle: Handle, directory: Path, flag: str, explicit: Mapping[str, object], clock: Clock | None
    ) -> None:
        key = os.path.realpath(directory)
        with self._claimed(key) as claimed:
            if not claimed:
                raise LockedError(directory, "this thread is in the middle of opening or closing it")
            shared = self._shared.get(key)
            if shared is not None and not shared.engine.alive():
                shared = None
            try:
                if shared is None:
                    engine = open_engine(directory, flag, explicit, 0.0, handle._allow_network, clock or Clock())
                    shared = self._shared[key] = Shared(key, engine)
                else:
                    _check_flag(shared.engine, flag)
                    _check_settings(shared.engine, explicit, clock)
                handle._adopt(shared)
            finally:
                if shared is not None and not shared.members:
                    self._drop(shared, handle._member)

    def release(self, shared: Shared, member: object) -> None:
        """A handle is closed; with the last one its engine is, before this returns."""
        try:
            with self._claimed(shared.key) as claimed:
                if claimed:
                    self._drop(shared, member)
                else:  # A signal handler, in the middle of opening or closing the same path.
                    self._left.append((shared, member))
        except BaseException:
            if member in shared.members:  # Interrupted before anything was done: somebody else will.
                self.leave(shared, member)
            raise

    def leave(self, shared: Shared, member: object) -> None:
        """A handle was collected; waits for nobody: the maintenance thread heeds the note, if there is one."""
        self._left.append((shared, member))
        if not MAINTENANCE.wake():
            self.sweep()

    def _drop(self, shared: Shared, member: object) -> None:
        """Under the claim: one handle less."""
        with contextlib.ExitStack() as ending:  # Done to the end, though a step of it be interrupted.
            if shared.members <= {member}:
                ending.callback(self._forget, shared)
                ending.callback(shared.end)
            shared.members.discard(member)

    def _forget(self, shared: Shared) -> None:
        if self._shared.get(shared.key) is shared:
            del self._shared[shared.key]

    @contextlib.contextmanager
    def _claimed(self, key: str) -> Iterator[bool]:
        """Claim a path, waiting for others; False if this thread has it claimed further up."""
        claim = Claim()
        claims = self._claims
        try:
            try:
                while (other := claims.setdefault(key, claim)) is not claim and other.thread != claim.thread:
                    with self._changed:
                        if key in claims:
                            self._changed.wait(1.0)
                yield other is claim
            finally:
                if claims.get(key) is claim:
                    self._unclaim(key)
                    self.sweep()
        finally:
            if claims.get(key) is claim:  # Interrupted just now.
                self._unclaim(key)

    def _unclaim(self, key: str) -> None:
        del self._claims[key]
        with self._changed:
            self._changed.notify_all()

    def sweep(self) -> None:
        """Heed the notes of handles that were collected, but for paths that are claimed: who claims them does it."""
        if any(engine.owned() for engine in MAINTENANCE.open_engines()):
            return  # In the middle of a store, as a signal handler may be: closing one has to wait for others.
        again = True
        while again:
            again = False
            for _ in range(len(self._left)):
                try:
                    shared, member = self._left.popleft()
                except IndexError:
                    return
                claim = Claim()
                if self._claims.setdefault(shared.key, claim) is not claim:
                    self._left.append((shared, member))
                    # Given up before the note was back: then nobody else will look.
                    again = again or shared.key not in self._claims
                    continue
                try:
                    self._drop(shared, member)
                except (StoreError, OSError):
                    LOG.exception("%s: closing it failed; its journal keeps what was written", shared.key)
                finally:
                    self._unclaim(shared.key)
                again = True

    def disown(self) -> None:
        """In a forked child: nothing of the parent's is open here."""
        handles = list(self._handles.values())
        self.__init__()  # type: ignore[misc]
        for handle in handles:
            handle._disown()

    def end_temporary(self) -> None:
        """At the end of the interpreter: remove what is temporary."""
        for shared in list(self._shared.values()):
            if shared.temporary:
                try:
                    shared.end()
                except StoreError:
                    LOG.exception("%s: closing it at exit failed", shared.key)


def _check_flag(engine: Engine, flag: str) -> None:
    """Raise `LockedError` for a flag that the engine there is cannot serve."""
    if flag == "n":
        raise LockedError(engine.directory, "open in this process; close it first, or empty it with clear()")
    if flag != "r" and engine.readonly:
        raise LockedError(
            engine.directory,
            "open in this process with flag='r', and there can be one environment per process; "
            "close that handle first, or open it for writing before it",
        )


def _check_settings(engine: Engine, explicit: Mapping[str, object], clock: Clock | None) -> None:
    """Raise `ConfigError` for a setting that differs from the one in force."""
    if isinstance(explicit, Arrived):
        return
    wanted = Settings.resolve(explicit, {})
    for name, given in explicit.items():
        have = getattr(engine.settings, name)
        if getattr(wanted, name) != have:
            raise ConfigError(
                f"{name}={given!r} differs from {name}={have!r}, which is in force: {engine.directory} is open "
                "in this process already; leave it out, or change it with config_set()"
            )
    if clock is not None and clock is not engine.clock:
        raise ConfigError(f"clock={clock!r} is not the one in force where {engine.directory} is open already")


HANDLES = Handles()
MAINTENANCE.chores.append(HANDLES.sweep)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=HANDLES.disown)  # After the engines were told, by `maintenance`.
atexit.register(HANDLES.end_temporary)
