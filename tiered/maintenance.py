"""The one background thread of a program, and its one helper process, for all its stores.

The thread waits for events from the helper and, between them, calls `tick` of each
engine, which does what is due and says when to come again.  Everything a tick does
works without the thread, so that tests call it with a clock of their own.  Thread and
helper start with the first store that needs them and end with the last one closed.
Engines are held weakly: a store that nobody refers to any more closes itself.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import select
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from tiered import files
from tiered.helper import Event, HelperProcess, can_start
from tiered.log import LOG

if TYPE_CHECKING:
    from tiered.engine import Engine

TICK_SECONDS_MAX = 1.0
FAILED_SECONDS = 0.1


class Maintenance:
    """Thread, helper and the engines they serve."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._engines: dict[int, weakref.ref[Engine]] = {}
        self._due: dict[int, float] = {}
        self._open: weakref.WeakSet[Engine] = weakref.WeakSet()
        self._numbers = itertools.count(1)
        self._thread: threading.Thread | None = None
        self._process: HelperProcess | None = None
        self._wake: tuple[int, int] | None = None
        self.chores: list[Callable[[], object]] = []
        self.hits_of: Callable[[Engine], int] = lambda engine: 0  # Set by `sharing`, which knows the handles.

    def add(self, engine: Engine) -> None:
        """Note an open engine: it is closed when the interpreter ends, and told when the process forks."""
        self._open.add(engine)

    def open_engines(self) -> list[Engine]:
        """All of them."""
        return list(self._open)

    def serve(self, engine: Engine) -> int:
        """Tick an engine and deliver its events from now on; returns its number."""
        with self._lock:
            # One that was made may not have been started: the system may refuse, or an interrupt come between.
            if self._thread is None or not self._thread.is_alive():
                self._start()
            number = next(self._numbers)
            self._engines[number] = weakref.ref(engine)
            self.wake()
            return number

    def _start(self) -> None:
        if self._wake is None:
            self._wake = os.pipe()
        for fd in self._wake:
            os.set_blocking(fd, False)
        self._thread = threading.Thread(target=self._run, name="tiered-maintenance", daemon=True)
        self._thread.start()

    def revive(self) -> None:
        """Start the thread again, should it have ended in the middle: whoever waits for it would wait in vain."""
        with self._lock:
            if self._thread is not None and not self._thread.is_alive():
                self._start()

    def dismiss(self, number: int) -> None:
        """Serve an engine no longer.  With the last one, thread and helper end."""
        with self._lock:
            self._engines.pop(number, None)
            self._due.pop(number, None)
            if self._engines or self._thread is None:
                return
            thread, self._thread = self._thread, None
            process, self._process = self._process, None
            self.wake()
            wake, self._wake = self._wake, None
        if thread is not threading.current_thread() and thread.is_alive():
            thread.join()
        for fd in wake or ():
            os.close(fd)
        if process is not None:
            process.stop()

    def wake(self) -> bool:
        """Make the thread look around now; False if there is none."""
        with self._lock:
            if self._wake is None:
                return False
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake[1], b"\0")
            return True

    def process(self) -> HelperProcess | None:
        """The helper, started if need be; None where none can be."""
        with self._lock:
            if self._process is None or self._process.dead:
                if self._process is not None:
                    self._process.stop()
                    self._process = None
                if not can_start():
                    return None
                with contextlib.suppress(OSError):
                    self._process = HelperProcess()
            return self._process

    @property
    def in_thread(self) -> bool:
        """Whether the caller is the maintenance thread, which must not wait for itself."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        thread = threading.current_thread()
        timeout = 0.0
        while self._thread is thread:
            try:
                timeout = self.pump(timeout)
            except BaseException:  # Whatever it is, nobody else does what is due.
                LOG.exception("background work failed")
                time.sleep(FAILED_SECONDS)  # It may fail before it has waited, again and again.
                timeout = TICK_SECONDS_MAX

    def pump(self, timeout: float) -> float:
        """Wait up to `timeout` seconds for events, deliver them, tick the engines; returns when to come again."""
        process, wake = self._process, self._wake
        poller = select.poll()
        ready: list[int] = []
        # A closed descriptor among these means that thread and helper are being stopped.
        with contextlib.suppress(OSError, ValueError):
            if wake:
                poller.register(wake[0], select.POLLIN)
            if process is not None and not process.dead:
                poller.register(process.fileno(), select.POLLIN)
            ready = [fd for fd, _ in poller.poll(timeout * 1000)]
            if wake and wake[0] in ready:
                os.read(wake[0], 4096)
        if process is not None:
            process.events(self._deliver)
        due, now = TICK_SECONDS_MAX, time.monotonic()
        for number, reference in list(self._engines.items()):
            engine = reference()
            if engine is None:  # Lost while it was being opened.
                self.dismiss(number)
            else:
                # Each at its own time, since there may be a thousand; all of them where something has happened.
                at = self._due.get(number, now)
                if ready or now >= at:
                    at = now + engine.tick_guarded()
                    with self._lock:
                        if number in self._engines:  # It may have been dismissed meanwhile.
                            self._due[number] = at
                due = min(due, max(0.0, at - now))
            del engine
        for chore in self.chores:
            chore()
        return due

    def _deliver(self, event: Event) -> None:
        with self._lock:
            reference = self._engines.get(event["store"])
        engine = reference() if reference else None
        if engine is not None:
            try:
                engine.on_event(event)
            except Exception as error:  # Of one store: the others must not lose their thread by it.
                LOG.exception("%s: an event could not be heeded", engine.directory)
                engine.poison(f"the word of the checkpointer could not be heeded: {error!r}")

    def disown(self) -> None:
        """In a forked child: nothing of the parent's thread and helper is ours."""
        engines = list(self._open)
        files.abandon_locks()
        if self._process is not None:
            self._process.disown()
        if self._wake is not None:
            for fd in self._wake:
                os.close(fd)
        chores, hits_of = self.chores, self.hits_of
        self.__init__()  # type: ignore[misc]
        self.chores, self.hits_of = chores, hits_of
        for engine in engines:
            engine.disown()

    def close_all(self) -> None:
        """At the end of the interpreter: checkpoint and close what is still open."""
        for engine in list(self._open):
            try:
                engine.close()
            except Exception:
                LOG.exception("%s: closing it at exit failed; its journal keeps what was written", engine.directory)


MAINTENANCE = Maintenance()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=MAINTENANCE.disown)
atexit.register(MAINTENANCE.close_all)
