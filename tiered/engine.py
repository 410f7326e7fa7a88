"""The engine of one open store: what follows a write, what is due with time, and the end.

It builds on `snapshots`, `writing`, `checkpoints`, and `tiers`, where the locking is described.  Errors met in the
background poison it or are kept for the next call; a full disk does neither: it is retried, and writers are refused.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from tiered import files, hot_keys, process
from tiered.advisor import Shards
from tiered.checkpointer import InlineCheckpointer
from tiered.clock import Clock
from tiered.cold import Cold
from tiered.cold_state import split_deadline
from tiered.config import Settings, parse_ttl
from tiered.errors import PoisonedError, ReentrantError, StoreError, StoreFullError
from tiered.events import Callback
from tiered.hot import no_address_space
from tiered.jitter import drawn
from tiered.journal import CLOSE_BYTES, Journal
from tiered.log import LOG
from tiered.maintenance import MAINTENANCE, TICK_SECONDS_MAX
from tiered.recovery import Plan
from tiered.schedule import is_due
from tiered.snapshots import Snapshots
from tiered.watermark import shrink
from tiered.write_buffer import Pinning
from tiered.writing import UNSET

HOT_EXPIRE_KEYS = 500
SLICES_SECONDS = 0.002
"""From one slice of evictions to the next: others have their turn."""
CLOSE_SECONDS_MAX = 600.0
SAMPLE_SECONDS, SAMPLES_MAX = 30.0, 120


class Sample(NamedTuple):
    """Figures of one moment: monotonic time, bytes accounted for, the process's own, reads answered by memory, all."""

    at: float
    used_bytes: int
    rss_anon_bytes: int
    hits: int = 0
    reads: int = 0


class Engine(Snapshots):
    """One open store, shared by its handles."""

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        cold: Cold,
        journal: Journal | None,
        lock_file: files.FileLock | None,
        clock: Clock,
        recovery: Plan,
    ) -> None:
        self.rss_anon_before = process.rss_anon_bytes()
        self.opened_at = clock.monotonic()
        self.warming: hot_keys.Warming | None = None
        self.samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)
        self.left_hits = 0  # Of handles that have closed.
        super().__init__(directory, settings, cold, journal, lock_file, clock, recovery)
        self.observe(settings.advisor)
        MAINTENANCE.add(self)
        if journal is not None:
            journal.on_failure = self.poison
            if settings.warm_start and (directory / files.HOT).exists():
                self._warm(hot_keys.Warming(directory / files.HOT))

    def begin_work(self) -> None:
        """Have the background thread do what is due without a write; once there is somebody to close the store."""
        if not self.readonly and (self.settings.snapshot_save or self.warming is not None):
            self.serve()

    def _warm(self, warming: hot_keys.Warming | None) -> None:
        self.warming = warming
        self.direct = warming is None and not self.readonly

    def warm(self, misses: int) -> None:
        """Help to read ahead, where that is under way: who misses what is hot brings in what is hotter."""
        warming = self.warming
        if warming is not None and not self.owned():
            warming.help(self, misses)
            self.direct = warming.helped  # From now on reads need not come by here.

    def keep_view(self, view: Pinning) -> None:
        """Note a view, which is ended when it is too old."""
        self.serve()
        super().keep_view(view)

    def _begin_segment(self, size: int) -> None:
        self.serve()
        super()._begin_segment(size)

    def acknowledged(self, sequence: int) -> None:
        """What every write does last, without the lock: wait for the disk where durability asks for it."""
        if self.always:
            self.sync(sequence)
        checkpointer = self.checkpointer  # Which `close` takes away, without the lock.
        if checkpointer is not None:
            checkpointer.run()

    def configure(self, name: str, parsed: Any) -> None:
        """Put a setting in force.  Raises `ConfigError` for more memory than there is address space."""
        before = getattr(self.settings, name)
        setattr(self.settings, name, parsed)
        self.always = self.settings.durability == "always"
        self._attend()
        if name == "snapshot_save":
            self.serve()
        if name == "spill":
            self.bound(parsed)
        if name == "warm_start" and not parsed:
            self._warm(None)
        if name == "advisor":
            self.observe(parsed)
        if name == "cycle_seconds":
            self._cycle_at = self.clock.monotonic() + drawn(parsed)
            MAINTENANCE.wake()
        if name == "eviction":
            self.hot.evict_by(parsed)
        if name in ("disk", "disk_full"):
            self._look_at_cap()
        if name == "memory" or name.startswith("object_"):
            self.share_objects()
        self.admission.settle()
        self._room_until = -1  # The active buffer may be over its share of a smaller budget.
        try:
            self._rebudget()
        except OSError:
            setattr(self.settings, name, before)
            raise no_address_space(parsed) from None

    def observe(self, on: bool) -> None:
        """Switch the advisor on, which knows nothing then, or off."""
        if on != (self.advisor is not None):
            self.advisor = Shards() if on else None
            self.hot.sample(self.advisor)
            self.admission.watch(on)

    def settle(self, name: str) -> None:
        """What follows a setting, without the lock: evict down to a smaller budget, count what live records take."""
        if name == "spill" and self.bounded:
            with contextlib.suppress(StoreError):  # Where there is no checkpoint now, more is counted until there is.
                self.save()
        shrink(self.hot, self.lock)

    def sync(self, sequence: int) -> None:
        """Return when the journal is on the disk up to `sequence`."""
        assert self.journal is not None
        try:
            self.journal.sync(sequence)
        except OSError as error:
            if process.by_handler(error):
                raise
            self.poison(f"syncing the journal failed: {error}")
            self.check_writable()

    def refresh(self) -> None:
        """Be current: who writes always is."""

    @property
    def as_of_ms(self) -> int:
        """Everything acknowledged up to this moment is seen."""
        return self.clock.now_ms()

    @property
    def last_sequence(self) -> int:
        """The number of the last operation seen."""
        assert self.journal is not None
        return self.journal.last

    def compact(self) -> None:
        """Rewrite the cold tier and wait for it; writes and reads go on."""
        self.refuse_waiting()
        with self.lock:
            self.check_writable()
            self.serve()
            checkpointer = self.checkpointer or self._make_checkpointer()
            wanted = self._compactions + 1
            self._compaction_failure = None
            self._retry_full()
            checkpointer.compact()  # Where one is under way, it serves both.
            self._compacting = True
            self.wait_for(lambda: self._compactions >= wanted or not self._compacting)
            if self._compactions < wanted:
                self.check_writable()
                raise self._compaction_failure or StoreError(self.directory, "compaction was interrupted; try again")
        self._remove_old_colds()

    # Time

    def tick_guarded(self) -> float:
        """`tick` for the maintenance thread: an error is kept for the next call."""
        try:
            return self.tick()
        except PoisonedError:
            return TICK_SECONDS_MAX  # Every write from now on says so; reads go on.
        except ReentrantError:
            return TICK_SECONDS_MAX / 10  # Another store is being closed in the middle of this one's tick.
        except Exception as error:
            LOG.exception("%s: background work failed", self.directory)
            with self.lock:
                if not self.closed:
                    named = isinstance(error, StoreError)
                    self._background = error if named else StoreError(self.directory, f"background work: {error!r}")
            return TICK_SECONDS_MAX

    def tick(self) -> float:
        """Do what is due, and tell who listens; returns the seconds until there may be more."""
        again = self._step_due()
        self.tell_listeners()
        return again

    def tell_listeners(self, last: bool = False) -> None:
        """Call who listens for events, without the lock."""
        if self.listeners and not self.forked:
            self.listeners.tell(str(self.directory), self.event_counts, last)

    def take_leave(self) -> None:
        """Checkpoint, and tell who listens for the last time, while there is a store to use; before `close`."""
        if self.listeners and not self.closed and not self.forked:
            self.refuse_waiting()
            with contextlib.suppress(StoreError, OSError):  # `close` meets it as well, and says so.
                self.save()
            self.tell_listeners(last=True)

    def event_counts(self) -> dict[str, int]:
        """How often each kind of event has happened."""
        counters = self.counters
        expired = counters.expired_hot + counters.expired_cold
        return {"checkpoint": counters.checkpoints, "eviction": self.hot.evictions, "expiry": expired}

    def listen(self, kind: str, callback: Callback) -> Callable[[], None]:
        """Call `callback` with events of a kind; returns what ends that."""
        self.serve()
        return self.listeners.add(kind, callback, self.event_counts())

    def _step_due(self) -> float:
        """Do what is due; returns the seconds until there may be more."""
        if self.closed or self.forked:
            return TICK_SECONDS_MAX
        self.refuse_reentry()
        now = self.clock.monotonic()
        self._review_views(now)
        journal = self.journal
        assert journal is not None
        self._check_helper(now)
        if self.poisoned:
            return TICK_SECONDS_MAX
        if self.settings.durability == "everysec" and journal.synced < journal.last and now - self._synced_at >= 0.5:
            self._synced_at = now
            self.sync(journal.last)
        active = self._active
        over = active is not None and active.used_bytes() > self.share_bytes  # By one large value.
        if over or is_due(self.settings.save, now - self._saved_at, self._changes):
            with self.lock:
                self.rotate()
            active = self._active
        if active is not None and not journal.prepared and active.segment.position * 2 > active.segment.capacity:
            with contextlib.suppress(StoreFullError, OSError):  # Who needs it says why there is none.
                journal.prepare()
        self._empty_applied()
        self._snapshot_when_due()
        self._trim()
        self._sample(now)
        if now >= self._cycle_at:
            self._expire_cycle()
            self._look_at_memory()
            self._cycle_at, self._expiring = now + drawn(self.settings.cycle_seconds), True
        again = max(SLICES_SECONDS, min(TICK_SECONDS_MAX / 2, self._cycle_at - now))
        self._expiring = self._expiring and self._expire_slice()
        again = SLICES_SECONDS if self._expiring else again
        if self.watermark.share:
            again = SLICES_SECONDS if self._evict_slice() else again
        if self.warming is not None:
            if not self.warming.step(self):
                self._warm(None)
            self.warming_bytes = 0 if self.warming is None else self.warming.used_bytes
            again = min(again, hot_keys.PAUSE_SECONDS)
        checkpointer = self.checkpointer
        if checkpointer is not None and checkpointer.run(slices=True):
            again = 0.0
        return again

    def _expire_slice(self) -> bool:
        """Forget some of what expired in memory; True if there is more: a cycle's other work is not done with each."""
        with self.lock:
            expired = self.hot.expire(self.clock.now_ms(), HOT_EXPIRE_KEYS)
            self.counters.expired_hot += expired
        return expired == HOT_EXPIRE_KEYS

    def _expire_cycle(self) -> None:
        """Have the cold tier forget what expired."""
        with self.cold.read() as reader:
            first = next(reader.due(self.clock.now_ms()), None)
        # The checkpointer goes on by itself with what was due at the time it was last told.
        if first is not None and split_deadline(first)[0] > self.time_sent_ms:
            with self.lock:
                if not self.closed and not self._aside and not self.full:
                    if self._active is None:
                        self._begin_segment(CLOSE_BYTES)
                    self.rotate()
        self._remove_old_colds()

    def _look_at_memory(self) -> None:
        """Compare what is used now with the budget, and begin the way to the low watermark where it was reached."""
        with self.lock:
            if not self.closed:
                self._rebudget()
                self.watermark.look(self.hot, self.settings.low_watermark)

    def _evict_slice(self) -> bool:
        """Go on to the low watermark; True if there is more to do."""
        with self.lock:
            return not self.closed and self.watermark.step(self.hot)

    def _trim(self) -> None:
        """Give free memory back to the system when much was evicted since the last time: what comes may fit nowhere."""
        if self._trim_due():
            self._trimmed_bytes = self.hot.evicted_bytes
            process.trim_heap()

    def _sample(self, now: float) -> None:
        """Note what is accounted for, what the process has, and how reads were answered, for `doctor` and reports."""
        if not self.samples or now - self.samples[-1].at >= SAMPLE_SECONDS:
            used, hits = self.hot.used_bytes + self.buffer_bytes, self._hits()
            self.samples.append(Sample(now, used, process.rss_anon_bytes(), hits, hits + self.counters.cold_hits))

    def _hits(self) -> int:
        return self.left_hits + MAINTENANCE.hits_of(self) + self.counters.buffer_hits

    def reclaim(self) -> int:
        """Checkpoint, evict everything, and give memory back to the system; returns by how much the process shrank."""
        before = process.rss_anon_bytes()
        if self.journal is not None and not self.poisoned:
            self.save()
        with self.lock:
            self.check_readable()
            self.hot.clear()
        self.decompressor.forget()
        process.trim_heap()
        return max(0, before - process.rss_anon_bytes())

    def _review_views(self, now: float) -> None:
        """End those that are too old, and give back what others kept that are gone."""
        views = self.open_views()
        for view in views:
            if view.overdue(now):
                with self.lock:
                    view.end("it was open for longer than its max_age")
        if len(views) < self._views_counted and not self.closed:
            with self.lock:
                for buffer in self.buffers:
                    buffer.forget_replaced()
                self._views_counted = len(self.open_views())
                self._rebudget()

    def deadline_after(self, ttl: Any) -> int:
        """Deadline in milliseconds of what is written now with a `ttl`, 0 for none."""
        if ttl is UNSET:
            ttl = self.settings.default_ttl
        elif ttl is not None:
            if not isinstance(ttl, (int, float, timedelta)) or isinstance(ttl, bool):
                raise TypeError(f"ttl is a number of seconds, a timedelta or None, not {type(ttl).__name__}")
            ttl = parse_ttl(ttl)
        return 0 if ttl is None else self.clock.now_ms() + max(1, round(ttl * 1000))

    def disk_bytes(self) -> int:
        """Bytes that the store's files take on the disk."""
        return files.disk_bytes(self.directory)

    # The end

    def close(self) -> None:
        """Checkpoint what is dirty, and let go of everything.  What cannot be checkpointed stays in the journal."""
        self.refuse_waiting()
        self.take_leave()
        error: StoreError | None = None
        with contextlib.ExitStack() as ending, self.lock:
            if self.closed or self.forked:
                return
            # Interrupted from here on, it lets go of everything all the same; the journal has what is dirty.
            ending.callback(self._let_go)
            self.closed = True
            for view in self.open_views():
                view.end("the store was closed")
            for step in (self._finish, self._close_journal) if self.journal is not None else ():
                try:
                    step()
                except StoreError as failure:
                    error = error or failure
                except OSError as failure:
                    named = f"closing: {failure}; the journal keeps what was written"
                    error = error or StoreError(failure.filename or self.directory, named)
            if self.journal is not None and error is None:
                self._note_hot_keys()
            self.hot.clear()
        if error is not None:
            raise error

    def _note_hot_keys(self) -> None:
        path = self.directory / files.HOT
        try:
            if not self.settings.warm_start:
                path.unlink(missing_ok=True)
            elif self.warming is None:  # Else what is hot is a part of the list that there is.
                hot_keys.save(path, self.hot, self.settings.memory, self._hits() + self.counters.cold_hits)
        except (OSError, StoreError) as error:
            LOG.info("%s: the list of hot keys was not written: %s", self.directory, error)

    def _let_go(self) -> None:
        """Let go of files, locks and the helper, whatever any of these steps raises."""
        self.closed = True
        with contextlib.ExitStack() as last_first:
            if self._lock_file is not None:
                last_first.callback(self._lock_file.release)
            last_first.callback(self.cold.close)
            last_first.callback(self._forget)
            last_first.callback(self.dismiss)
            if self.journal is not None:
                last_first.callback(self.journal.let_go)
                last_first.callback(self._remove_applied)  # Before others may have the directory.

    def dismiss(self) -> None:
        """Give checkpointer and maintenance thread up."""
        checkpointer = self.checkpointer
        try:
            if checkpointer is not None and not self._finished:
                checkpointer.abandon()
            if self._moved and isinstance(checkpointer, InlineCheckpointer):
                checkpointer.reopened().close()  # Which could not be followed to.
        finally:
            if self._number:
                MAINTENANCE.dismiss(self._number)

    def _forget(self) -> None:
        self.checkpointer = None
        self.buffers = ()
        self._active = None
        self._aside.clear()
        self._applied.clear()

    def _finish(self) -> None:
        if not self.poisoned and self._active is not None:
            self.rotate()
        if self.checkpointer is not None:
            self._retry_full()
            self._unlocked(self.checkpointer.finish)
            limit = self.clock.monotonic() + CLOSE_SECONDS_MAX
            checkpointer = self.checkpointer
            self.wait_for(lambda: self._finished or checkpointer.ended or self.clock.monotonic() > limit, closing=True)
        if self._aside and not self.poisoned and (self.checkpointer is None or self._follow_compaction()):
            # The helper died meanwhile: what it left is applied here, to the cold tier that it left.
            self.checkpointer = InlineCheckpointer(self.directory, self.cold, self.settings.compression, self.on_event)
            self._resubmit()
            self._unlocked(self.checkpointer.finish)
        if self._aside or self._active is not None:
            reason = f"closed without a last checkpoint: {self.poisoned or self.full or 'the helper did not finish'}"
            kind = PoisonedError if self.poisoned else self.full_kind if self.full else StoreError
            raise kind(self.directory, f"{reason}; the journal keeps what was written")

    def _close_journal(self) -> None:
        assert self.journal is not None
        if not self._aside and self._active is None:
            self.journal.discard_empty()
        elif not self.poisoned:
            with contextlib.suppress(OSError):
                self.journal.sync(self.journal.last)

    def disown(self) -> None:
        """In a forked child: every later use raises `ForkedError`; nothing of the parent's is touched."""
        self.forked = True
        # In place, since handles keep a reference; another thread may have held it at the fork.
        self.lock._at_fork_reinit()  # type: ignore[attr-defined]
        self.changed = threading.Condition(self.lock)
        self.hot.clear()
        for view in self.open_views():
            view.abandon()
        # The segment is a mapping shared with the parent: the next write must come to `check_writable`.
        self._room_until = -1
        if self._lock_file is not None:
            self._lock_file.abandon()
        if self.checkpointer is not None:
            self.checkpointer.disown()
            self.checkpointer = None
        # Not closed: the transactions of other threads, which the fork stopped, would be ended and their
        # slots, which are the parent's, freed.  Without them it goes now, and the child may open the store again.
        del self.cold
