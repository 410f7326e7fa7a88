"""What a program can be told of while a store works: checkpoints, evictions, expiry, snapshots.

    store.on("checkpoint", lambda event: print(event.times))

Nothing is noted as it happens, except snapshots, which are rare: `tell` compares the store's counters with what they
were the last time.  So events cost nothing where nobody listens, and next to nothing where somebody does: a million
evictions are one event.

Locking: `tell` is called by `tick`, in the background thread or by the program, and for the last time before the store
is closed, each time without the store's lock, so that a callback may use the store.  `_lock` covers what was told, and
no callback is called under it.  `_turn` lets one thread call at a time: what happens meanwhile, also by what a callback
does, is told the next time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from tiered.errors import ConfigError
from tiered.log import LOG

KINDS = ("checkpoint", "eviction", "expiry", "snapshot")
SNAPSHOTS_KEPT = 100


class Event(NamedTuple):
    """Something that happened in the store at `path`, `times` times since the last event of its kind.

    `checkpoint`: the cold tier has taken in that many checkpoints.  `eviction`: so many values have left memory, and
    are on disk only.  `expiry`: so many times a key whose time was up has left a tier; one that was hot leaves two.
    `snapshot`: one was made, as `file`, or failed, and `error` says why.
    """

    kind: str
    path: str
    times: int
    file: str = ""
    error: str = ""


Callback = Callable[[Event], object]


class Listeners:
    """The callbacks of one store.  Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._caller = 0  # The thread that has the turn.
        self._callbacks: dict[str, list[Callback]] = {}
        self._told: dict[str, int] = {}
        self._snapshots: deque[tuple[str, str]] = deque(maxlen=SNAPSHOTS_KEPT)

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def add(self, kind: str, callback: Callback, counts: Mapping[str, int]) -> Callable[[], None]:
        """Call `callback` from now on, where `counts` is what has happened already; returns what ends that."""
        if kind not in KINDS:
            raise ConfigError(f"no event {kind!r}; there are {', '.join(KINDS)}")
        if not callable(callback):
            raise TypeError(f"{callback!r} cannot be called")
        with self._lock:
            if kind not in self._callbacks:
                self._told[kind] = counts.get(kind, 0)
            # A list of its own each time: `tell` goes through one without the lock.
            added = partial(callback)  # Not the same as any other, as the callback may be.
            self._callbacks[kind] = [*self._callbacks.get(kind, ()), added]

        def off() -> None:
            with self._lock:
                left = [other for other in self._callbacks.get(kind, ()) if other is not added]
                if left:
                    self._callbacks[kind] = left
                else:
                    self._callbacks.pop(kind, None)

        return off

    def note_snapshot(self, file: str, error: str = "") -> None:
        """Remember a snapshot that was made or failed, to be told with the next `tell`."""
        if "snapshot" in self._callbacks:
            self._snapshots.append((file, error))

    def tell(self, path: str, counts: Callable[[], Mapping[str, int]], last: bool = False) -> None:
        """Call those who listen for what has happened since the last time.

        What they raise is logged, `SystemExit` too, but not Ctrl-C in the main thread.
        `last` waits for its turn, where it is not what a callback does, and nobody is told of anything afterwards.
        """
        me = threading.get_ident()
        if self._caller == me:
            return
        taken = False
        try:
            taken = self._turn.acquire(blocking=last)
            if not taken:
                return
            self._caller = me
            for callbacks, event in self._due(path, counts()):
                for callback in callbacks:
                    self._call(callback, event)
        finally:
            if taken:
                if last:
                    self._callbacks = {}
                self._caller = 0
                self._turn.release()

    def _call(self, callback: Callback, event: Event) -> None:
        try:
            callback(event)
        except BaseException as error:  # A `SystemExit` would end the thread, which serves all stores.
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            LOG.exception("%s: a callback for %r raised", event.path, event.kind)

    def _due(self, path: str, counts: Mapping[str, int]) -> list[tuple[list[Callback], Event]]:
        due: list[tuple[list[Callback], Event]] = []
        with self._lock:
            for kind, callbacks in self._callbacks.items():
                if kind == "snapshot":
                    while self._snapshots:
                        due.append((callbacks, Event(kind, path, 1, *self._snapshots.popleft())))
                elif counts[kind] > self._told[kind]:
                    due.append((callbacks, Event(kind, path, counts[kind] - self._told[kind])))
                    self._told[kind] = counts[kind]
        return due
