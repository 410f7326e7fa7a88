"""Group commit: threads that wait for the disk share its syncs.

One of them makes a sync, for all that was written before it; then the others are woken together, and the first whose
write came later makes the next.  A lock alone would do, and let them pass through it one after another, each a switch
of threads, while no sync is under way: half as many writes per second by eight threads on a fast disk
(`tools/bench/durability.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

_WAIT_SECONDS_MAX = 0.25
"""For who makes a sync to say that it is over: an interrupt may keep it from that, not from letting go of the lock."""


class GroupCommit:
    """Whose turn it is to make a sync."""

    def __init__(self) -> None:
        # Entered again by a signal handler: a sync is complete in itself, and the outer one then finds less to do.
        self.lock = threading.RLock()
        self._mutex = threading.RLock()
        self._over = threading.Condition(self._mutex)
        self._maker = 0

    def run(self, done: Callable[[], bool], sync: Callable[[], None]) -> None:
        """Return when `done()`, having called `sync()` unless another thread did; raises what its own call raises."""
        me = threading.get_ident()
        with self._mutex:
            while not done() and self._maker not in (0, me) and self._wait():
                pass
            if done():
                return
            self._maker = me
        with self.lock:
            try:
                if not done():
                    sync()
            finally:
                with self._mutex:
                    self._maker = 0
                    self._over.notify_all()

    def _wait(self) -> bool:
        """Wait for the end of a sync; False if it took too long to be told."""
        try:
            return self._over.wait(_WAIT_SECONDS_MAX)
        finally:
            if not self._over._is_owned():  # type: ignore[attr-defined]
                self._mutex.acquire()  # An interrupt between letting go of it and waiting.
