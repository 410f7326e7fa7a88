"""Who applies closed segments for one store: the helper process, or the caller.

Both take segments with `submit` and tell what happened through events (`helper`),
delivered to the engine: the helper's by the maintenance thread, the caller's own when
it calls `run`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tiered import files, process
from tiered.cold import Cold
from tiered.copying import Wish
from tiered.helper import Event, HelperProcess, Job


class Checkpointer(Protocol):
    """What the engine needs of whoever writes the cold tier."""

    name: str

    @property
    def entered(self) -> bool: ...
    @property
    def idle(self) -> bool: ...
    def submit(self, segment: int, until: int) -> None: ...
    def compact(self) -> None: ...
    def snapshot(self, request: int, until: int, wish: Wish) -> None: ...
    def cancel(self, request: int) -> None: ...
    def finish(self) -> None: ...
    def run(self, slices: bool = False) -> bool: ...
    def reopened(self) -> Cold: ...
    @property
    def ended(self) -> bool: ...
    def abandon(self) -> None: ...
    def disown(self) -> None: ...


class InlineCheckpointer:
    """Apply in the calling thread.  Any thread may call; one at a time works."""

    name = "inline"

    def __init__(self, directory: Path, cold: Cold, compression: str, deliver: Callable[[Event], None]) -> None:
        self._deliver = deliver
        self._working = threading.RLock()
        self._job = Job(0, directory, compression, cold)

    @property
    def entered(self) -> bool:
        """Whether this thread is in the middle of applying."""
        return bool(self._working._is_owned())  # type: ignore[attr-defined]

    @property
    def idle(self) -> bool:
        """Whether no segment waits."""
        return not self._job.urgent

    def submit(self, segment: int, until: int) -> None:
        """Queue a closed segment; `run` applies it."""
        self._job.submit(segment, until)

    def compact(self) -> None:
        """Queue a compaction."""
        self._job.compact()

    def snapshot(self, request: int, until: int, wish: Wish) -> None:
        """Queue a snapshot; `run` with `slices` makes it."""
        self._job.snapshot(request, until, wish._asdict())

    def cancel(self, request: int) -> None:
        """Make that snapshot no more."""
        with self._working:  # Where it may be under way.
            self._job.cancel(request)

    def finish(self) -> None:
        """Apply what waits and give the APPLY lock up."""
        with self._working:
            self._job.finish()
        self.run()

    def run(self, slices: bool = False) -> bool:
        """Do what waits, and with `slices` one slice of other work; returns whether there is more.

        Called by a signal handler in the middle of it, leaves it to the call that was interrupted.
        """
        if self.entered:
            return False
        with self._working:
            while True:
                result = self._job.step() if slices or self._job.urgent else False
                if isinstance(result, dict):
                    self._deliver(result)
                    process.trim_heap()  # LMDB has let go of the pages that it wrote.
                elif slices or not result:
                    return bool(result)

    def reopened(self) -> Cold:
        """The cold tier after a compaction."""
        return self._job.cold

    @property
    def ended(self) -> bool:
        """Whether it has given the APPLY lock up, even if its word was lost."""
        return self._job.ended

    def abandon(self) -> None:
        """Give the APPLY lock up now, whatever waits."""
        self._job.abandon()

    def disown(self) -> None:
        """Let go in a forked child."""
        self._job.disown()


class HelperCheckpointer:
    """Have the helper process apply."""

    name = "helper"

    def __init__(self, store: int, directory: Path, compression: str, process: HelperProcess) -> None:
        self.process = process
        self._store = store
        self._directory = directory
        self._send("open", directory=str(directory), compression=compression)

    def _send(self, do: str, **details: object) -> None:
        self.process.send({"do": do, "store": self._store, **details})

    @property
    def entered(self) -> bool:
        """Never: applying is another process's."""
        return False

    @property
    def idle(self) -> bool:
        """Never known: applying is another process's."""
        return False

    def submit(self, segment: int, until: int) -> None:
        """Have a closed segment applied."""
        self._send("apply", segment=segment, until=until)

    def compact(self) -> None:
        """Have the cold tier rewritten."""
        self._send("compact")

    def snapshot(self, request: int, until: int, wish: Wish) -> None:
        """Have a snapshot made."""
        self._send("snapshot", request=request, until=until, wish=wish._asdict())

    def cancel(self, request: int) -> None:
        """Have that snapshot made no more."""
        self._send("cancel", request=request)

    def finish(self) -> None:
        """Have the APPLY lock given up after what waits."""
        self._send("close")

    def run(self, slices: bool = False) -> bool:
        """Nothing to do here: the helper works by itself."""
        return False

    def reopened(self) -> Cold:
        """The cold tier after a compaction."""
        number = files.read_current(self._directory)
        assert number is not None
        return Cold(files.cold_path(self._directory, number))

    @property
    def ended(self) -> bool:
        """Whether the helper is gone."""
        return self.process.dead

    def abandon(self) -> None:
        """Have the APPLY lock given up: the helper does so after what waits, and need not be waited for."""
        self._send("close")

    def disown(self) -> None:
        """Nothing to let go of: the pipes belong to `maintenance`."""
