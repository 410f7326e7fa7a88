"""The engine of one open store: writing, what is due with time, and the end.

    write:  journal → write buffer → hot tier, under the lock

It builds on `checkpoints`, which hands closed segments over, and on `tiers`, which
holds the tiers and reads them; the locking is described there.  A method that may wait
(`reserve`) lets go of the lock meanwhile and says so, and its caller looks again at
what it had read.

Errors met in the background poison the engine or are kept and raised by the next
call; a full disk does neither: it is retried, and writers are refused until then.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import msgpack

from tiered import files, keys, process
from tiered.checkpointer import InlineCheckpointer
from tiered.checkpoints import Checkpoints
from tiered.clock import Clock
from tiered.cold import Cold
from tiered.config import Settings
from tiered.errors import (
    PoisonedError,
    StoreError,
    StoreFullError,
)
from tiered.expiry import next_cycle
from tiered.journal import CLEAR, CLOSE_BYTES, DELETE, PUT, SETTING, Journal, record_bytes
from tiered.maintenance import MAINTENANCE, TICK_SECONDS_MAX
from tiered.recovery import Plan
from tiered.schedule import is_due
from tiered.write_buffer import WriteBuffer

LOG = logging.getLogger("tiered")
SEGMENT_RECORDS_MAX = 65_536
"""Bounds the pages that one checkpoint changes, and so the memory of whoever applies it."""
FOLLOW_SECONDS = 0.1
HOT_EXPIRE_KEYS = 500
TRIM_SHARE = 4
"""The heap is trimmed when as much as the budget divided by this was evicted."""
CLOSE_SECONDS_MAX = 600.0


class Batch:
    """Records to be written together, as columns: a tuple for each would keep the garbage collector busy."""

    def __init__(self) -> None:
        self.keys: list[Any] = []
        self.encoded: list[bytes] = []
        self.codecs: list[int] = []
        self.payloads: list[bytes] = []
        self.entries: list[Any] = []
        self.bytes = 0


class Engine(Checkpoints):
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
        super().__init__(directory, settings, cold, journal, lock_file, clock, recovery)
        MAINTENANCE.add(self)
        if journal is None:
            self._number = MAINTENANCE.serve(self)
        else:
            journal.on_failure = self.poison

    # Writing; all under the lock

    def reserve(self, size: int, frees: bool = False) -> bool:
        """Make room for `size` bytes of records, in the active segment; True if the lock was let go of meanwhile.

        `frees` says that the write takes less room in the end, so that the disk cap does not refuse it.
        """
        buffer = self._active
        if buffer is not None and buffer.segment.position + size <= self._room_until:
            return False
        return self._make_room(size, frees)

    def _make_room(self, size: int, frees: bool) -> bool:
        waited = False
        # Again after each wait: another thread may have begun a segment meanwhile, too small for this.
        while not self._has_room(size, frees):
            waited = self._wait_for_applied() or waited
            if self._active is None:
                self._begin_segment(size)
                break
        return waited

    def _has_room(self, size: int, frees: bool) -> bool:
        """Whether the active segment has room; closes it if not."""
        self.check_writable()
        if self.capped and not frees:
            raise StoreFullError(self.directory, f"the cold tier has reached the cap of {self.settings.disk:,} bytes")
        if self._active is not None:
            used = self._active.used_bytes()
            segment = self._active.segment
            assert self.journal is not None
            if self.journal.active is not segment:  # A call that closes it was interrupted.
                self.rotate()
                return False
            room = segment.capacity - CLOSE_BYTES - segment.position
            if size <= room and used < self.share_bytes and len(self._active.positions) < SEGMENT_RECORDS_MAX:
                # Looked at again after this many bytes: dirty records take from the hot tier's budget.
                step = max(4096, self.share_bytes // 16)
                self._room_until = min(segment.position + max(size, step), segment.capacity - CLOSE_BYTES)
                self._rebudget()
                if not self._journal_ahead and 2 * segment.position > segment.capacity:
                    self._journal_ahead = True
                    MAINTENANCE.wake()  # To prepare the next segment before this one is full.
                elif self._trim_due():
                    MAINTENANCE.wake()
                return True
            self.rotate()
        return False

    def _wait_for_applied(self) -> bool:
        """Wait while a whole buffer is set aside; True if the lock was let go of for that."""
        waited = False
        # A buffer set aside is a little over its share, since it is closed when it has reached it.
        while sum(buffer.used_bytes() for buffer in self._aside) > self.share_bytes * 5 // 4:
            if not waited:
                self.counters.writer_waits += 1
                began = self.clock.monotonic()
            waited = True
            if self.full:
                raise StoreFullError(self.directory, self.full)
            self._wait_a_little()
            self.counters.wait_seconds += self.clock.monotonic() - began
            began = self.clock.monotonic()
            self.check_writable()
        return waited

    def _begin_segment(self, size: int, cleared: bool = False) -> None:
        assert self.journal is not None
        if not self._number:
            self._number = MAINTENANCE.serve(self)
        try:
            segment = self.journal.open_segment(size, max(self.share_bytes, 1 << 16))
        except StoreFullError:
            raise
        except OSError as error:
            raise StoreError(self.directory, f"cannot make a journal segment: {error}") from error
        self._active = WriteBuffer(segment, cleared)
        self._journal_ahead = False
        self.buffers = (self._active, *self.buffers)
        self._room_until = min(segment.capacity - CLOSE_BYTES, segment.position + max(size, 4096))
        self._rebudget()

    def put(self, key: Any, encoded: bytes, number: int, payload: bytes, entry: Any, deadline: int) -> int:
        """Write one record; room was reserved.  Returns its sequence number."""
        buffer, journal = self._active, self.journal
        assert buffer is not None
        assert journal is not None
        stored_key = encoded if len(encoded) <= keys.STORED_BYTES_EXACT else keys.stored(encoded)
        position = buffer.segment.position
        try:
            journal.append(PUT, 0, encoded, payload, number, deadline)
            # The old value goes before the new one can be read from the buffer: who has seen the
            # new one must not find the old one hot.
            hot = self.hot
            if key in hot.table:
                hot.discard(key)
            buffer.put(stored_key, position, deadline)
            hot.put_new(key, entry, deadline)
        except BaseException:
            self._roll_forward(buffer, position)
            raise
        self._changes += 1
        return journal.last

    def _roll_forward(self, buffer: WriteBuffer, position: int) -> None:
        """Interrupted in the middle of a write: what the journal has from `position` on is written, in every tier."""
        self.hot.clear()
        for at, kind, key, deadline in buffer.segment.heads(position):
            if kind == PUT:
                buffer.put(keys.stored(key), at, deadline)
            else:
                buffer.delete(keys.stored(key), at)

    def delete(self, key: Any, encoded: bytes) -> int:
        """Write one deletion; room was reserved.  Returns its sequence number."""
        buffer, journal = self._active, self.journal
        assert buffer is not None
        assert journal is not None
        stored_key = keys.stored(encoded)
        position = buffer.segment.position
        try:
            journal.append(DELETE, 0, encoded, b"", 0, 0)
            self.hot.discard(key)
            buffer.delete(stored_key, position)
        except BaseException:
            self._roll_forward(buffer, position)
            raise
        self._changes += 1
        return journal.last

    def put_many(self, batch: Batch, deadline: int) -> int:
        """Write a batch; room was reserved."""
        buffer, journal = self._active, self.journal
        assert buffer is not None
        assert journal is not None
        start, count = buffer.segment.position, len(batch.keys)
        records = zip(repeat(PUT), batch.encoded, batch.payloads, batch.codecs, repeat(deadline), strict=False)
        try:
            positions = journal.append_batch(records, count)
            for key in batch.keys:
                self.hot.discard(key)
            buffer.put_many(list(map(keys.stored, batch.encoded)), positions, deadline)
            self.hot.put_many(batch.keys, batch.entries, deadline)
        except BaseException:
            self._roll_forward(buffer, start)
            raise
        self._changes += count
        return journal.last

    def delete_many(self, batch: Sequence[tuple[Any, bytes]]) -> int:
        """Write deletions of `(key, encoded)` as one batch; room was reserved."""
        buffer, journal = self._active, self.journal
        assert buffer is not None
        assert journal is not None
        start = buffer.segment.position
        try:
            positions = journal.append_batch(((DELETE, encoded, b"", 0, 0) for _, encoded in batch), len(batch))
            for position, (key, encoded) in zip(positions, batch, strict=True):
                self.hot.discard(key)
                buffer.delete(keys.stored(encoded), position)
        except BaseException:
            self._roll_forward(buffer, start)
            raise
        self._changes += len(batch)
        return journal.last

    def clear(self) -> int:
        """Delete everything: one record, in a segment and buffer that hide all before them."""
        assert self.journal is not None
        self.rotate()
        self._begin_segment(CLOSE_BYTES, cleared=True)
        self.journal.append(CLEAR, 0, b"", b"", 0, 0)
        self.generation += 1
        self.hot.clear()
        self._changes += 1
        return self.journal.last

    def put_setting(self, name: str, value: object) -> int:
        """Journal a setting to be remembered."""
        assert self.journal is not None
        payload = msgpack.packb(value)
        self.reserve(record_bytes(name.encode(), payload), frees=True)
        self.journal.append(SETTING, 0, name.encode(), payload, 0, 0)
        self._changes += 1
        return self.journal.last

    def acknowledged(self, sequence: int) -> None:
        """What every write does last, without the lock: wait for the disk where durability asks for it."""
        if self.always:
            self.sync(sequence)
        if self.checkpointer is not None:
            self.checkpointer.run()

    def configure(self, name: str, parsed: Any) -> None:
        """Put a setting in force."""
        setattr(self.settings, name, parsed)
        self.always = self.settings.durability == "always"
        self._attend()
        if name == "disk":
            self.capped = self.settings.disk is not None and self.cold_used_bytes > self.settings.disk
        self._room_until = -1  # The active buffer may be over its share of a smaller budget.
        self._rebudget()

    def shrink(self) -> None:
        """Evict down to a budget that became smaller, letting others in meanwhile."""
        shrunk = False
        while not shrunk:
            with self.lock:
                shrunk = self.hot.shrink()

    def sync(self, sequence: int) -> None:
        """Return when the journal is on the disk up to `sequence`."""
        assert self.journal is not None
        try:
            self.journal.sync(sequence)
        except OSError as error:
            self.poison(f"syncing the journal failed: {error}")
            self.check_writable()

    def compact(self) -> None:
        """Rewrite the cold tier and wait for it; writes and reads go on."""
        with self.lock:
            self.check_writable()
            if not self._number:
                self._number = MAINTENANCE.serve(self)
            checkpointer = self.checkpointer or self._make_checkpointer()
            wanted = self._compactions + 1
            self._compacting = True
            self._compaction_failure = None
            self._retry_full()
            checkpointer.compact()
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
        except Exception as error:
            LOG.exception("%s: background work failed", self.directory)
            with self.lock:
                if not self.closed:
                    named = isinstance(error, StoreError)
                    self._background = error if named else StoreError(self.directory, f"background work: {error!r}")
            return TICK_SECONDS_MAX

    def tick(self) -> float:
        """Do what is due; returns the seconds until there may be more."""
        if self.closed or self.forked:
            return TICK_SECONDS_MAX
        if self.journal is None:
            self.follow()
            return FOLLOW_SECONDS
        now = self.clock.monotonic()
        self._check_helper(now)
        if self.poisoned:
            return TICK_SECONDS_MAX
        journal = self.journal
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
            with contextlib.suppress(StoreFullError):
                journal.prepare()
        self._trim()
        again = TICK_SECONDS_MAX / 2
        if now >= self._expire_at:
            more = self._expire_cycle()
            self._expire_at = now + (0.005 if more else next_cycle(self._random))
            again = 0.005 if more else again
        if self.checkpointer is not None and self.checkpointer.run(slices=True):
            again = 0.0
        return again

    def _expire_cycle(self) -> bool:
        """Forget what expired in memory, and have the cold tier do the same; True if more is due now."""
        now_ms = self.clock.now_ms()
        with self.lock:
            expired = self.hot.expire(now_ms, HOT_EXPIRE_KEYS)
            self.counters.expired_hot += expired
        with self.cold.read() as reader:
            first = next(reader.due(now_ms), None)
        # The checkpointer goes on by itself with what was due at the time it was last told.
        if first is not None and int.from_bytes(first[:8], "big") > self.time_sent_ms:
            with self.lock:
                if not self.closed and not self._aside and not self.full:
                    if self._active is None:
                        self._begin_segment(CLOSE_BYTES)
                    self.rotate()
        self._remove_old_colds()
        return expired == HOT_EXPIRE_KEYS

    def _trim(self) -> None:
        """Give free memory back to the system when much was evicted since the last time: what comes may fit nowhere."""
        if self._trim_due():
            self._trimmed_bytes = self.hot.evicted_bytes
            process.trim_heap()

    def _trim_due(self) -> bool:
        return self.hot.evicted_bytes - self._trimmed_bytes > self.settings.memory // TRIM_SHARE

    def disk_bytes(self) -> int:
        """Bytes that the store's files take on the disk."""
        return files.disk_bytes(self.directory)

    # The end

    def close(self) -> None:
        """Checkpoint what is dirty, and let go of everything.  What cannot be checkpointed stays in the journal."""
        with self.lock:
            if self.closed or self.forked:
                return
            self.closed = True
            error = None
            if self.journal is not None:
                try:
                    self._finish()
                except (StoreError, OSError) as failure:
                    error = failure
                self._close_journal()
            self.hot.clear()
        if self._number:
            MAINTENANCE.dismiss(self._number)
        self.checkpointer = None
        self.buffers = ()
        self._active = None
        self._aside.clear()
        self.cold.close()
        if self._lock_file is not None:
            self._lock_file.release()
        if error is not None:
            raise error

    def _finish(self) -> None:
        if not self.poisoned and self._active is not None:
            self.rotate()
        if self.checkpointer is not None:
            self._retry_full()
            with self._unlocked():
                self.checkpointer.finish()
            limit = self.clock.monotonic() + CLOSE_SECONDS_MAX
            self.wait_for(lambda: self._finished or self._helper_gone() or self.clock.monotonic() > limit, closing=True)
        if self._aside and not self.poisoned:
            # The helper died meanwhile: what it left is applied here.
            self.checkpointer = InlineCheckpointer(self.directory, self.cold, self.settings.compression, self.on_event)
            self._resubmit()
            with self._unlocked():
                self.checkpointer.finish()
        if self._aside or self._active is not None:
            reason = f"closed without a last checkpoint: {self.poisoned or self.full or 'the helper did not finish'}"
            kind = PoisonedError if self.poisoned else StoreFullError if self.full else StoreError
            raise kind(self.directory, f"{reason}; the journal keeps what was written")

    def _close_journal(self) -> None:
        assert self.journal is not None
        if not self._aside and self._active is None:
            self.journal.discard_empty()
        elif not self.poisoned:
            with contextlib.suppress(OSError):
                self.journal.sync(self.journal.last)
        if self.checkpointer is not None and not self._finished:
            self.checkpointer.disown()
        self.journal.let_go()

    def disown(self) -> None:
        """In a forked child: every later use raises `ForkedError`; nothing of the parent's is touched."""
        self.forked = True
        # In place, since handles keep a reference; another thread may have held it at the fork.
        self.lock._at_fork_reinit()  # type: ignore[attr-defined]
        self.changed = threading.Condition(self.lock)
        self.hot.clear()
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
