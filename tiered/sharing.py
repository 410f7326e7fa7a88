"""The engines of a program, and the handles that share them.

LMDB allows one environment per file and process, so a path that is opened again in a
program gives another handle on the same engine; the engine is closed with its last
handle.  `HANDLES` knows the engines by the real path of their directory.

Locking.  A path is claimed by whoever opens it or lets go of it, for as long as that
takes, and others wait: so a last close and a new open do not meet.  A claim is an
entry in a dict, made by `setdefault`, which is atomic.  A handle that is collected may be
so in the middle of anything, also in the thread that has the claim: it never
waits, but leaves a note, which whoever has the claim heeds when giving it up.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from tiered import removal
from tiered.clock import Clock
from tiered.config import Settings
from tiered.engine import Engine
from tiered.errors import ConfigError, LockedError, ReentrantError, StoreError
from tiered.log import LOG
from tiered.maintenance import MAINTENANCE
from tiered.opening import check_arguments, open_engine
from tiered.writing import Mark

TEMPORARY: Any = Mark("a temporary directory")
"""In place of a path: a store in a directory of its own, removed when it is closed."""
RETRY_SECONDS = 0.01


class Sharer(Protocol):
    """A handle, as far as sharing engines goes."""

    _member: object
    _tier: Any
    _shared: Shared | None
    _allow_network: bool

    def _adopt(self, shared: Shared) -> None:
        """Take the engine that was found for it."""

    def _disown(self) -> None:
        """Let go of what is the parent's, in a forked child."""


class Arrived(dict[str, object]):
    """Settings that a handle brought along: those in force where it arrives are as good."""


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
                removal.remove_tree(self.engine.directory, ignore_errors=True)


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
        self._handles: weakref.WeakValueDictionary[object, Sharer] = weakref.WeakValueDictionary()

    def engine_at(self, directory: Path) -> Engine | None:
        """The engine that has a directory open in this program."""
        shared = self._shared.get(os.path.realpath(directory))
        return shared.engine if shared is not None and shared.engine.alive() else None

    def of(self, engine: Engine) -> list[Any]:
        """The handles on an engine that are open."""
        handles = list(self._handles.values())
        return [handle for handle in handles if (shared := handle._shared) is not None and shared.engine is engine]

    def hits_of(self, engine: Engine) -> int:
        """Reads that the hot tier answered, through all handles that are open."""
        return sum(handle._hits for handle in self.of(engine))

    def watch(self, handle: Sharer) -> None:
        """Note a handle, to tell it of a fork."""
        self._handles[handle._member] = handle

    def open(
        self,
        handle: Sharer,
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
        self, handle: Sharer, flag: str, explicit: Mapping[str, object], lock_timeout: float, clock: Clock | None
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
            removal.remove_tree(Path(directory), ignore_errors=True)
            raise

    def _try_open(
        self, handle: Sharer, directory: Path, flag: str, explicit: Mapping[str, object], clock: Clock | None
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
MAINTENANCE.hits_of = HANDLES.hits_of
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=HANDLES.disown)  # After the engines were told, by `maintenance`.
atexit.register(HANDLES.end_temporary)
