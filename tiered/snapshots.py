"""Snapshots of one open store: asked for, made on schedule, and what becomes of them.

    snapshot: checkpoint what is dirty, hand it over, and have whoever applies it copy the cold tier then

so that a snapshot holds everything acknowledged before it was asked for, and no write
waits for it: the copy is made between checkpoints (`helper.Job`), under one LMDB read
transaction.  A read-only store has nobody who applies; there the caller copies the last
checkpoint himself.

A snapshot that fails says nothing against the store: whoever asked for it gets the
error.  A scheduled one is logged and counted (`stats()`), and tried again after `RETRY_SECONDS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tiered import errors, retention, snapshot
from tiered.checkpointer import Checkpointer
from tiered.copying import Wish, copy_moment
from tiered.errors import StoreError
from tiered.events import Listeners
from tiered.helper import Event
from tiered.log import LOG
from tiered.schedule import is_due
from tiered.snapshot import SnapshotInfo
from tiered.writing import Writing

RETRY_SECONDS = 60.0
Progress = Callable[[int, int], object]
"""Told how many records are done, and how many there are."""


class Request:
    """A snapshot that somebody wants."""

    def __init__(self, number: int, until: int, wish: Wish, began: float) -> None:
        self.number = number
        self.until = until
        self.wish = wish
        self.began = began
        self.copied = self.total = 0
        self.info: SnapshotInfo | None = None
        self.error: StoreError | None = None

    @property
    def done(self) -> bool:
        """Whether it was made, or failed."""
        return self.info is not None or self.error is not None


class Schedule:
    """When the last scheduled snapshot was, and whether the next is due.  Time is the store's, in milliseconds."""

    def __init__(self) -> None:
        self.last: SnapshotInfo | None = None
        self._known = False
        self._taken_ms = self._sequence = 0
        self._retry_ms = 0

    def look(self, directory: Any, store: str) -> None:
        """Find the last one on the disk, the first time: programs that run for a short time have snapshots, too."""
        if not self._known:
            found = retention.snapshots(directory, store)
            if found:
                self._taken_ms, self._sequence = found[-1][1].as_of_ms, found[-1][1].sequence
            self._known = True

    def due(self, points: Any, now_ms: int, sequence: int) -> bool:
        """Whether a save point is met.  Where there never was a snapshot, any number of seconds has passed."""
        # A store that was restored has lower numbers than the snapshots taken since.
        changes = sequence - self._sequence if sequence >= self._sequence else sequence
        return is_due(points, (now_ms - self._taken_ms) / 1000, changes)

    def is_put_off(self, now_ms: int) -> bool:
        """Whether one failed a moment ago."""
        return now_ms < self._retry_ms

    def made(self, info: SnapshotInfo) -> None:
        """A snapshot is there."""
        self.last = info
        self._taken_ms, self._sequence = round(info.as_of * 1000), info.sequence

    def put_off(self, now_ms: int) -> None:
        """One failed."""
        self._retry_ms = now_ms + round(RETRY_SECONDS * 1000)


class Snapshots(Writing):
    """The tiers, writes and checkpoints, and snapshots of them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.snapshot_failure = ""
        self.listeners = Listeners()
        self._requests: dict[int, Request] = {}
        self._requested = 0
        self._schedule = Schedule()
        self._scheduled: Request | None = None

    def snapshot(self, path: str | os.PathLike[str], progress: Progress | None = None) -> SnapshotInfo:
        """Make a snapshot and return when it is on the disk."""
        self.refuse_waiting()
        target = snapshot.destination(path)
        with self.lock:
            self.check_readable()
            if self.readonly:
                wish = Wish(str(target), str(self.directory))
            else:
                request = self._request(str(target))
        if self.readonly:
            return self._copy_here(wish, progress)
        try:
            while not request.done:
                self._await(request)
                if progress is not None:
                    progress(request.copied, request.total)
        except BaseException:
            self._cancel(request)
            raise
        if request.error is not None:
            raise request.error
        assert request.info is not None
        return request.info

    def _request(self, path: str, keep: int = 0) -> Request:
        """Checkpoint, and have a snapshot made of it; under the lock."""
        self.check_writable()
        self.serve()
        until = self.rotate()
        self._retry_full()
        checkpointer = self.checkpointer or self._make_checkpointer()
        self._requested += 1
        wish = Wish(path, str(self.directory), self.clock.now_ms(), keep)
        request = Request(self._requested, until, wish, self.clock.monotonic())
        self._requests[request.number] = request
        checkpointer.snapshot(request.number, until, wish)
        return request

    def _make_checkpointer(self) -> Checkpointer:
        made = super()._make_checkpointer()
        for request in self._requests.values():  # Lost with the one before.
            made.snapshot(request.number, request.until, request.wish)
        return made

    def _await(self, request: Request) -> None:
        """Wait until a snapshot is done, or something was copied of it."""
        copied = request.copied
        with self.lock:
            checkpointer = self.checkpointer
            if checkpointer is not None and checkpointer.name == "inline":
                self._unlocked(lambda: checkpointer.run(slices=True))
            self.wait_for(lambda: request.done or request.copied != copied or self._steps_inline())

    def _steps_inline(self) -> bool:
        return self.checkpointer is not None and self.checkpointer.name == "inline"

    def _cancel(self, request: Request) -> None:
        self._requests.pop(request.number, None)
        checkpointer = self.checkpointer
        if checkpointer is not None and not self.closed:
            checkpointer.cancel(request.number)

    def _copy_here(self, wish: Wish, progress: Progress | None) -> SnapshotInfo:
        """Of a read-only store: copy the last checkpoint in this thread."""
        steps = copy_moment(self.cold, wish)
        try:
            while True:
                copied, total = next(steps)
                if progress is not None:
                    progress(copied, total)
        except StopIteration as stop:
            info: SnapshotInfo = stop.value
            return info
        except OSError as error:
            raise StoreError(error.filename or wish.path, f"no snapshot: {error.strerror or error}") from error
        finally:
            steps.close()

    # What whoever makes them says

    def _on_copied(self, event: Event) -> None:
        request = self._requests.get(event["request"])
        if request is not None:
            request.copied, request.total = event["done"], event["total"]

    def _on_snapshot_made(self, event: Event) -> None:
        request = self._requests.pop(event["request"], None)
        if request is None:
            return
        request.info = SnapshotInfo(**event["info"])
        request.copied = request.total = request.info.records
        self.counters.snapshots += 1
        self.listeners.note_snapshot(request.info.path)
        if request is self._scheduled:
            self._scheduled = None
            self._schedule.made(request.info)
            self.snapshot_failure = ""
            LOG.info("%s: snapshot %s, %d records", self.directory, request.info.path, request.info.records)

    def _on_snapshot_failed(self, event: Event) -> None:
        request = self._requests.pop(event["request"], None)
        if request is not None:
            kind = getattr(errors, event["error"], StoreError)
            known = isinstance(kind, type) and issubclass(kind, StoreError)
            self._fail(request, (kind if known else StoreError)(event["path"], event["message"]))

    def _on_failed(self, event: Event) -> None:
        super()._on_failed(event)
        for number in list(self._requests):  # Whoever makes them began anew, without them.
            self._on_snapshot_failed({**event, "request": number})

    def _fail(self, request: Request, error: StoreError) -> None:
        request.error = error
        self.counters.snapshot_failures += 1
        self.listeners.note_snapshot(request.wish.path, str(error))
        if request is self._scheduled:
            self._scheduled = None
            self._put_off(error)

    def _put_off(self, error: Exception) -> None:
        self._schedule.put_off(self.clock.now_ms())
        self.snapshot_failure = str(error)
        LOG.error("%s: no snapshot, tried again in %.0f s: %s", self.directory, RETRY_SECONDS, self.snapshot_failure)

    # On schedule

    def _snapshot_when_due(self) -> None:
        """Start the scheduled snapshot where a save point of it is met."""
        points, journal = self.settings.snapshot_save, self.journal
        if not points or journal is None or self._scheduled is not None or self.full:
            return
        now_ms = self.clock.now_ms()
        if self._schedule.is_put_off(now_ms):
            return
        directory = retention.directory_of(self.directory, self.settings.snapshot_dir)
        try:
            self._schedule.look(directory, str(self.directory))
        except OSError as error:
            self.counters.snapshot_failures += 1
            self._put_off(error)
            return
        if self._schedule.due(points, now_ms, journal.last):
            with self.lock:
                path = retention.path_for(directory, self.directory, now_ms, journal.last)
                if not self.closed:
                    self._scheduled = self._request(str(path), self.settings.snapshot_keep)

    @property
    def snapshot_seconds(self) -> float:
        """How long ago the oldest snapshot under way was asked for, 0.0 if there is none."""
        began = [request.began for request in tuple(self._requests.values())]
        return max(0.0, self.clock.monotonic() - min(began)) if began else 0.0

    @property
    def snapshot_last(self) -> str:
        """Path of the last scheduled snapshot since the store was opened, "" if there is none."""
        last = self._schedule.last
        return last.path if last is not None else ""
