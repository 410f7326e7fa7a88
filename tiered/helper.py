"""The helper process: checkpoints of all stores of a program, outside its interpreter lock.

One helper serves a whole program.  It is started on first need with `subprocess`
(never forked, so that it inherits no lock and no thread), isolated from the
environment, in a session of its own, deaf to SIGINT and SIGTERM, interrupting nobody when it
is woken (`process.give_way`), and ends when its pipe closes or its parent is gone, after
finishing the transaction it is in.

Messages are msgpack maps, one after the other.  To the helper:

    do      open, apply, compact, snapshot, cancel, close
    store   number that the program gave the store
    ...     open: directory, compression; apply: segment, until; snapshot: request, until, wish; cancel: request

and from it:

    event   opened, applied, merged, compacted, compaction_failed, copied, snapshot_made, snapshot_failed,
            closed, failed
    store   as above
    ...     applied: until, state, used; merged: used; copied: request, done, total; snapshot_made: request, info;
            failed: error (name of the class), path, message; all: memory, written

The helper takes a store's APPLY lock at `open` and gives it up at `close`.  After a
failure it drops the store's environment, so that the next try starts from what is on
the disk; the program decides whether there is one.

`Job` is one store's work, step by step; the helper drives its jobs in turn, and the
inline checkpointer drives one in the caller.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import msgpack

from tiered import files
from tiered.checkpoint import Applier, UnsettledError
from tiered.cold import Cold
from tiered.copying import Wish, copy_moment
from tiered.errors import StoreError, StoreFullError
from tiered.journal import SegmentFile
from tiered.process import by_handler, give_way, rss_anon_bytes, written_bytes
from tiered.snapshot import SnapshotInfo

APPLY_WAIT_SECONDS = 30.0
"""How long to wait for a helper of a killed program to finish its transaction."""
SETTLE_RECORDS_MAX = 131_072
"""What a close may spend on it: about 0.1 s."""
COPYING_SHARE = 0.3
"""While checkpoints wait, copying a snapshot takes this much time of what each of them took."""
COPIED_SECONDS = 0.1
"""How often to tell how far a snapshot is."""
LACKING = "Lacking"
"""The name of errors that pass when there is memory again, or a descriptor."""
_IDLE_SECONDS = 0.25
_CODE = (
    "import sys, json; sys.path[:0] = json.loads(sys.argv[1]); "
    "from tiered import helper; helper.serve(int(sys.argv[2]))"
)

Event = dict[str, Any]


def lacks_descriptors(error: Exception) -> bool:
    """Whether an error is gone when fewer files are open."""
    too_many = getattr(error, "message", "") == files.TOO_MANY_FILES
    return too_many or getattr(error, "errno", 0) in (errno.EMFILE, errno.ENFILE)


class Copying:
    """One snapshot being made, at a step's end or in the queue."""

    def __init__(self, request: int, until: int, wish: Wish) -> None:
        self.request = request
        self.until = until
        self.wish = wish
        self.steps: Generator[tuple[int, int], None, SnapshotInfo] | None = None
        self.told_at = 0.0


class Job:
    """One store's checkpoints, by whoever holds its APPLY lock."""

    def __init__(self, store: int, directory: Path, compression: str, cold: Cold | None = None) -> None:
        self.store = store
        self.directory = directory
        self._compression = compression
        self._lock = files.FileLock(directory / files.APPLY)  # Taken with the first work: that may fail.
        self._own = cold is None
        self._applier: Applier | None = None
        self._waiting: list[tuple[int, int]] = []
        self._held = False
        self._slices_held = False
        self._applied_last = False
        self._compaction_wanted = False
        self._compaction: Generator[int, None, None] | None = None
        self._copyings: list[Copying] = []
        self._copying_seconds = 0.0
        self._finished: Event | None = None
        self._ended = False
        self._peak = 0
        if cold is not None:
            self._applier = Applier(directory, cold, compression)

    def submit(self, segment: int, until: int) -> None:
        """A closed segment is to be applied up to sequence number `until`.

        After a failure nothing is applied until a segment that waits is submitted again: what
        was submitted meanwhile must not be applied without those before it.  Nor is other work done
        until then: where there is no room it would fail again at once, and for ever.
        """
        self._slices_held = False
        if (segment, until) in self._waiting:
            self._held = False
        else:
            # In order, also when an earlier one is handed over again because nobody heard that it was applied.
            self._waiting = sorted([*self._waiting, (segment, until)])

    def compact(self) -> None:
        """A compaction is to be done, unless one is under way."""
        self._compaction_wanted = self._compaction is None

    def snapshot(self, request: int, until: int, wish: dict[str, Any]) -> None:
        """Make a snapshot of a moment with everything up to `until`, after those that were asked for before."""
        self._copyings.append(Copying(request, until, Wish(**wish)))

    def cancel(self, request: int) -> None:
        """Make that snapshot no more, and leave nothing of it."""
        for copying in [each for each in self._copyings if each.request == request]:
            self._copyings.remove(copying)
            if copying.steps is not None:
                copying.steps.close()

    def finish(self) -> None:
        """After what waits, give the APPLY lock up."""
        self._finished = self._event("closed")

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for the next step."""
        work = (self._waiting and not self._held) or self._finished or self._compaction or self._compaction_wanted
        return bool(work) and not self._ended

    @property
    def ended(self) -> bool:
        """Whether it does nothing any more."""
        return self._ended

    @property
    def cold(self) -> Cold:
        """The live cold tier."""
        return self._open().cold

    def _open(self) -> Applier:
        if self._applier is None:
            number = files.read_current(self.directory)
            assert number is not None
            self._applier = Applier(self.directory, Cold(files.cold_path(self.directory, number)), self._compression)
        return self._applier

    def _event(self, name: str, **details: object) -> Event:
        self._peak = max(self._peak, rss_anon_bytes())
        return {"event": name, "store": self.store, "memory": self._peak, "written": written_bytes(), **details}

    def step(self, quiet: bool = False) -> Event | bool:
        """Do the next piece of work: an event to tell, True for more to do, False for nothing to do.

        `quiet` says that nothing was asked for in a while.
        """
        if self._ended:  # The cold tier may be closed at any moment, or be somebody else's.
            finished, self._finished = self._finished, None
            return finished or False
        waiting = self._waiting and not self._held
        if self._slices_held and not (waiting or self._finished or self._compaction_wanted or self._copyings):
            return False  # Not even the lock is tried: that may be what failed.
        try:
            if not self._lock.held and (waiting or not self._finished):
                self._lock.acquire(APPLY_WAIT_SECONDS)
            if self._compaction_wanted:
                self._compaction, self._compaction_wanted = self._open().compaction(), False
            applier = self._open() if waiting or self._compaction or self._copyings else self._applier
            if self._copying_seconds > 0 and self._copyings and not self._compaction:
                return self._copy_step()
            if waiting and not (self._applied_last if self._compaction else applier and applier.owes):
                self._applied_last = True
                began = time.monotonic()
                event = self._apply()
                self._copying_seconds = COPYING_SHARE * (time.monotonic() - began)
                return event
            self._applied_last = False
            if self._finished is not None and not waiting:
                # Whoever opens the store next reads it as it is left; what a dropped compaction leaves goes then.
                with contextlib.suppress(StoreError, OSError):
                    if applier and applier.settle(SETTLE_RECORDS_MAX):
                        return True
                finished = self._finished
                with contextlib.suppress(StoreError, OSError):
                    self.abandon()
                self._finished = None
                return finished
            if self._compaction is not None:
                return self._compact_step()
            if self._copyings and not waiting:
                return self._copy_step()
            if applier is None or self._slices_held:
                return False
            if not applier.slice():
                return quiet and applier.settle()
            if not applier.merged:
                return True
            applier.merged = False
            return self._event("merged", used=applier.cold.used_bytes(), expired=applier.take_expired())
        except UnsettledError as error:  # Nothing may be applied any more, to either cold tier.
            self.abandon()
            return self._failure("failed", error)
        except Exception as error:  # Reported to the program, which decides; the job starts anew.
            if by_handler(error):
                raise
            self._reset()
            self._held, self._slices_held = bool(self._waiting), True
            return self._failure("failed", error)

    def _failure(self, event: str, error: Exception, **details: object) -> Event:
        name, path = type(error).__name__, getattr(error, "path", str(self.directory))
        message = error.message if isinstance(error, StoreError) else repr(error)
        if isinstance(error, OSError) and files.is_full(error):
            name, message = StoreFullError.__name__, "the disk is full; free some space"
        if lacks_descriptors(error):
            name, message = LACKING, files.TOO_MANY_FILES
        if isinstance(error, MemoryError):
            name, message = LACKING, "not enough memory for a checkpoint; it is tried again"
        return self._event(event, error=name, path=path, message=message, **details)

    def _apply(self) -> Event:
        applier = self._open()
        waiting = list(self._waiting)
        applied = applier.cold.state().applied
        until = max(waiting[-1][1], applied)
        # One handed over twice may be applied, and its file gone, by now.
        segments = [
            SegmentFile(files.segment_path(self.directory, number)) for number, last in waiting if last > applied
        ]
        records = applier.apply(segments, until) if segments else 0
        state = vars(applier.cold.state())
        used = applier.cold.used_bytes()
        expired = applier.take_expired()
        event = self._event("applied", until=until, records=records, state=state, used=used, expired=expired)
        del self._waiting[: len(waiting)]
        return event

    def _compact_step(self) -> Event | bool:
        assert self._compaction is not None
        try:
            next(self._compaction)
            return True
        except StopIteration:
            self._compaction = None
            return self._event("compacted", state=vars(self.cold.state()))
        except UnsettledError:
            raise
        except Exception as error:  # The cold tier is as it was; only the copy failed.
            if by_handler(error):
                raise
            self._compaction = None
            return self._failure("compaction_failed", error)

    def _copy_step(self) -> Event | bool:
        copying = self._copyings[0]
        began = time.monotonic()
        try:
            if copying.steps is None:
                if self.cold.state().applied < copying.until:  # What comes first was lost, and comes again.
                    self._copying_seconds = 0.0
                    return False
                copying.steps = copy_moment(self.cold, copying.wish)
            done, total = next(copying.steps)
        except StopIteration as stop:
            self._copyings.remove(copying)
            return self._event("snapshot_made", request=copying.request, info=stop.value._asdict())
        except Exception as error:  # The store is as it was; only there is no snapshot.
            if by_handler(error):
                raise
            self._copyings.remove(copying)
            return self._failure("snapshot_failed", error, request=copying.request)
        now = time.monotonic()
        self._copying_seconds -= now - began
        if now - copying.told_at < COPIED_SECONDS:
            return True
        copying.told_at = now
        return self._event("copied", request=copying.request, done=done, total=total)

    def _reset(self) -> None:
        self._compaction_wanted = False
        for copying in self._copyings:
            if copying.steps is not None:
                copying.steps.close()
        self._copyings = []
        if self._compaction is not None:
            self._compaction.close()
            self._compaction = None
        if self._own and self._applier is not None:
            cold, self._applier = self._applier.cold, None
            with contextlib.suppress(StoreError):
                cold.close()

    def abandon(self) -> None:
        """Give the APPLY lock up now, and do nothing any more."""
        self._ended = True
        self._waiting = []
        try:
            self._reset()
        finally:
            self._lock.release()

    def disown(self) -> None:
        """In a forked child: close what was inherited, touching nothing of the parent's."""
        self._lock.abandon()


def serve(parent: int) -> None:
    """Run as the helper of process `parent` until its pipe closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    give_way()
    # A compaction keeps every segment open that is applied while it copies.
    files_max = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    # An apply holds ten thousand entries, none of them garbage: walking them was a twentieth of its time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    out = os.dup(1)
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), 1)
    jobs: dict[int, Job] = {}
    unpacker = msgpack.Unpacker()
    busy = quiet = False
    while os.getppid() == parent:
        asked = bool(select.select([0], [], [], 0 if busy else _IDLE_SECONDS)[0])
        quiet = not asked and (quiet or not busy)
        if asked:
            data = os.read(0, 1 << 16)
            if not data:
                return
            unpacker.feed(data)
            for message in unpacker:
                event = _accept(jobs, message)
                if event:
                    _send(out, event)
        busy = False
        for store, job in list(jobs.items()):
            result = job.step(quiet)
            busy = busy or bool(result)
            if isinstance(result, dict):
                _send(out, result)
                if result["event"] == "closed":
                    del jobs[store]


def _accept(jobs: dict[int, Job], message: dict[str, Any]) -> Event | None:
    store, do = message["store"], message["do"]
    try:
        if do == "open":
            jobs[store] = Job(store, Path(message["directory"]), message["compression"])
            return _answer("opened", store)
        if store not in jobs:  # It could not be opened, or has been closed.
            return _answer("closed", store) if do == "close" else None
        if do == "apply":
            jobs[store].submit(message["segment"], message["until"])
        elif do == "compact":
            jobs[store].compact()
        elif do == "snapshot":
            jobs[store].snapshot(message["request"], message["until"], message["wish"])
        elif do == "cancel":
            jobs[store].cancel(message["request"])
        elif do == "close":
            jobs[store].finish()
    except Exception as error:  # Reported to the program, as in Job.step.
        text = error.message if isinstance(error, StoreError) else repr(error)
        path = getattr(error, "path", "")
        return _answer("failed", store, error=type(error).__name__, path=path, message=text)
    return None


def _answer(event: str, store: int, **details: object) -> Event:
    return {"event": event, "store": store, "memory": rss_anon_bytes(), "written": written_bytes(), **details}


def _send(fd: int, event: Event) -> None:
    data = memoryview(msgpack.packb(event))
    while data:
        data = data[os.write(fd, data) :]


class HelperProcess:
    """The program's end of the pipes."""

    def __init__(self) -> None:
        # They take time, which a program that starts no helper does not spend.
        import json
        import subprocess

        needed = (sys.modules[name] for name in ("lmdb", "msgpack", "zstandard"))
        roots = {str(Path(str(module.__file__)).resolve().parents[1]) for module in needed}
        roots.add(str(Path(__file__).resolve().parents[1]))
        # Raises OSError where no process may be started; the caller then works inline.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _CODE, json.dumps(sorted(roots)), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
            cwd="/",
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        os.set_blocking(self._out.fileno(), False)
        self._unpacker = msgpack.Unpacker()
        self.dead = False

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def fileno(self) -> int:
        """What to select on for events."""
        return self._out.fileno()

    def send(self, message: dict[str, object]) -> None:
        """Send a message; one to a dead helper is lost, which `events` will tell."""
        try:
            self._in.write(msgpack.packb(message))
        except (BrokenPipeError, ValueError):
            self.dead = True

    def events(self, deliver: Callable[[Event], None]) -> None:
        """Deliver what has arrived; `dead` is set when the helper is gone."""
        while not self.dead:
            try:
                data: bytes | None = self._out.read(1 << 16)
            except ValueError:  # Closed: thread and helper are being stopped.
                self.dead = True
                return
            if data is None:
                return
            if not data:
                self.dead = True
            self._unpacker.feed(data)
            for event in self._unpacker:
                deliver(event)

    def stop(self) -> None:
        """Close the pipes and wait for the end."""
        self.dead = True
        self._in.close()
        self._process.wait()
        self._out.close()

    def disown(self) -> None:
        """In a forked child: close the inherited pipes; the process is the parent's."""
        self._in.close()
        self._out.close()
        self._process.returncode = 0  # Not ours to wait for.


def can_start() -> bool:
    """Whether there is a Python interpreter to start."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)
