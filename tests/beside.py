"""A reader beside a writer in one process, as if it were in another: both are then driven step by step."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import tiered
from tiered.cold import Cold
from tiered.follower import Follower
from tiered.maintenance import MAINTENANCE
from tiered.sharing import Shared


class Beside(Follower):
    """A follower that uses the writer's environment, of which LMDB allows one in a process."""

    def __init__(self, writer: Any, settings: dict[str, object], clock: Any) -> None:
        self.writer = writer
        super().__init__(writer.directory, settings, writer.cold, clock)
        MAINTENANCE.dismiss(self._number)
        self._number = -1

    def _opened_cold(self, directory: Path) -> Cold:
        cold: Cold = self.writer.cold
        if cold.directory != directory:  # The writer has not heard of it yet.
            cold = self.writer.checkpointer.reopened()
        assert cold.directory == directory
        return cold

    def close(self) -> None:
        self.closed = True
        self._forget()
        self.hot.clear()


def beside(store: tiered.Store[Any, Any], **settings: object) -> tiered.Store[Any, Any]:
    """A read-only handle of another engine than the writer's; it follows when it is told to."""
    settings.setdefault("memory", "1MB")
    engine = Beside(store._engine, settings, store._engine.clock)
    reader = tiered.Store.__new__(tiered.Store)
    reader._shared = None
    reader._member = object()
    reader._guard = threading.RLock()
    reader._readonly = True
    reader._arrived = True
    reader._allow_network = False
    reader._hits = 0
    reader._memoized = {}
    reader._adopt(Shared(str(id(engine)), engine))
    return reader
