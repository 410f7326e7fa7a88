"""Checkpoints of one open store: handing closed segments over, and what comes back.

    rotate: close the segment, set its buffer aside, hand it to the checkpointer: O(1) under the lock
    applied: the checkpointer's word that the cold tier has a segment; its buffer is forgotten

A failure poisons the store: writes are refused, reads go on.  A full disk does not: it
is tried again, and writers are refused until then.  A method that waits lets go of the
lock, which its caller holds at one level.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from tiered import files, removal
from tiered.checkpointer import Checkpointer, HelperCheckpointer, InlineCheckpointer
from tiered.cold_state import State
from tiered.errors import CorruptionError, StoreError, StoreFullError
from tiered.helper import LACKING, Event, lacks_descriptors
from tiered.log import LOG
from tiered.maintenance import MAINTENANCE
from tiered.process import by_handler
from tiered.tiers import Tiers

HELPER_DEATHS_MAX = 3
FULL_RETRY_SECONDS = 1.0
CLOCK_BEHIND_MS_MAX = 5000
"""Less is what clocks are corrected by."""
_PASSING = {StoreFullError.__name__: StoreFullError, LACKING: StoreError}
"""Failures that pass, as there may be room, memory or descriptors again; and what those who wait for it get."""


def _references_of_one_variable() -> int:
    """What `getrefcount` says of an object that nothing else refers to: interpreters count its own argument or not."""
    thing = object()
    return sys.getrefcount(thing)


ALONE = _references_of_one_variable()


class Checkpoints(Tiers):
    """The tiers, and how what is dirty gets into the cold one."""

    _clock_behind = False

    def rotate(self) -> int:
        """Close the active segment and hand it over; returns the sequence number up to which all is handed over."""
        journal = self.journal
        assert journal is not None
        # Each step may be the last one before an interrupt, and the next call goes on from there.
        if self._active is not None:
            self._room_until = -1
            now_ms = self.clock.now_ms()
            if journal.active is self._active.segment:
                journal.close_segment(now_ms)
            if self._active not in self._aside:
                self._aside.append(self._active)
            self._active = None
            self._changes = 0
            self._saved_at = self.clock.monotonic()
            self.time_sent_ms = max(self.time_sent_ms, now_ms)
        self._hand_over()
        return journal.last

    def _hand_over(self) -> None:
        """Give the checkpointer what it does not have yet, in order."""
        for buffer in self._aside:
            if not buffer.handed_over:
                checkpointer = self.checkpointer or self._make_checkpointer()
                checkpointer.submit(buffer.segment.number, buffer.segment.last)
                buffer.handed_over = True

    def _make_checkpointer(self) -> Checkpointer:
        compression = self.settings.compression
        made: Checkpointer | None = None
        if self.settings.helper and not (self.closed and self.buffer_bytes < 1 << 20):
            helper = MAINTENANCE.process()
            if helper is not None:
                MAINTENANCE.wake()
                made = HelperCheckpointer(self._number, self.directory, compression, helper)
        self.checkpointer = made or InlineCheckpointer(self.directory, self.cold, compression, self.on_event)
        self._attend()
        return self.checkpointer

    def _resubmit(self) -> None:
        """Hand everything set aside over again, after the checkpointer lost it."""
        if self.checkpointer is not None:
            for buffer in self._aside:
                buffer.handed_over = False
            self._hand_over()

    def save(self) -> None:
        """Checkpoint now and wait for it."""
        self.refuse_waiting()
        with self.lock:
            self.check_writable()
            until = self.rotate()
            self._retry_full()
            self.wait_for(lambda: not self._aside or self._aside[0].segment.first > until)
        self._remove_applied()

    def wait_for(self, done: Callable[[], bool], closing: bool = False) -> None:
        """Wait, letting go of the lock; raises what keeps it from ever being done."""
        while not done():
            if not closing:
                self.check_readable()
                if self.full:
                    raise self.full_kind(self.directory, self.full)
            if self.poisoned and not self.closed:
                self.check_writable()
            self._wait_a_little()

    def _wait_a_little(self) -> None:
        """Let events happen, with the lock let go of; called at one level of it."""
        checkpointer = self.checkpointer
        if checkpointer is not None and checkpointer.name == "inline":
            self._unlocked(checkpointer.run)
            if self._aside and checkpointer.idle and not (self.closed or self.full or self.poisoned):
                self._resubmit()  # They were applied, but an interrupt took the word.
        elif MAINTENANCE.in_thread:
            self._unlocked(lambda: MAINTENANCE.pump(0.01))
        else:
            try:
                MAINTENANCE.revive()
                self.changed.wait(0.5)
            finally:
                if not self.owned():  # An interrupt between letting go of it and waiting.
                    self.lock.acquire()

    def _unlocked(self, work: Callable[[], object]) -> None:
        """Do something without the lock: nobody may wait for the checkpointer, or be told by it, while holding it."""
        # No context manager: an interrupt as it is entered would leave the lock to nobody.
        try:
            try:
                self.lock.release()
                work()
            finally:
                if not self.owned():
                    self.lock.acquire()
        finally:
            # An interrupt may have come while waiting for it: whoever called holds it, and will let go of it.
            if not self.owned():
                self.lock.acquire()

    def on_event(self, event: Event) -> None:
        """The checkpointer's word."""
        self.counters.helper_peak_rss_anon_bytes = event["memory"]
        self.counters.helper_written_bytes = event["written"]
        with self.lock:
            handler = getattr(self, f"_on_{event['event']}")
            try:
                handler(event)
            except (StoreError, OSError) as error:
                if by_handler(error):
                    raise
                self.poison(f"the word of the checkpointer could not be heeded: {error}")
            self.changed.notify_all()
        self._remove_applied()
        self._empty_applied()

    def _remove_applied(self) -> None:
        """Remove segments that were applied; without the lock, which nobody may hold while the file system works."""
        journal = self.journal
        if journal is not None:
            journal.removal.run()

    def _empty_applied(self) -> None:
        """Let go of buffers that were applied, a slice at a time: a large one at once would keep everybody waiting.

        Those that a reader or a view has yet stay as they are until it is done.
        """
        for _ in range(len(self._applied)):
            try:
                buffer = self._applied.pop(0)
            except IndexError:  # Another thread is at it.
                return
            if sys.getrefcount(buffer) > ALONE:
                self._applied.append(buffer)
            else:
                buffer.empty()

    def _on_opened(self, event: Event) -> None:
        pass

    def _on_applied(self, event: Event) -> None:
        assert self.journal is not None
        if self._moved and not self._follow_compaction():
            return  # Nothing is forgotten: when it can be, all of it is handed over again.
        until = event["until"]
        self.state = State(**event["state"])
        while self._aside and self._aside[0].segment.last <= until:
            buffer = self._aside.pop(0)
            self._applied.append(buffer)
            self.journal.forget(buffer.segment, until)
        self._set_buffers()
        self.generation += 1
        self._on_merged(event)
        self.full = ""
        self._helper_deaths = 0
        self.counters.checkpoints += 1
        LOG.debug(
            "%s: checkpoint of %d records up to operation %d; %d records in the cold tier, %d bytes used",
            self.directory,
            event["records"],
            until,
            self.state.records,
            self.cold_used_bytes,
        )
        self._rebudget()

    def _on_merged(self, event: Event) -> None:
        self.cold_used_bytes = event["used"]
        self.counters.expired_cold += event["expired"]
        self._look_at_cap()

    def _look_at_cap(self) -> None:
        """Note whether the cold tier has reached its cap, and writes are refused."""
        disk = self.settings.disk if self.settings.disk_full == "error" else None
        self.capped = disk is not None and self.cold_used_bytes > disk

    def _set_buffers(self) -> None:
        active = () if self._active is None else (self._active,)
        self.buffers = (*active, *reversed(self._aside))

    def _on_compacted(self, event: Event) -> None:
        self._compacting = False
        self._moved = True
        if not self._follow_compaction():
            self._compaction_failure = StoreError(self.directory, f"compacted, but not in use yet: {self.full}")
            return
        self._compactions += 1
        LOG.debug("%s: compacted into %s, %d bytes used", self.directory, self.cold.directory, self.cold_used_bytes)

    def _follow_compaction(self) -> bool:
        """Read the new cold tier.  Until then no buffer is forgotten, since what is applied is not in the old one.

        False where there are too many files open: then it is tried again later (`full`).
        """
        assert self.checkpointer is not None
        try:
            live = files.read_current(self.directory)
            # One compaction may have followed another before its word was heard.
            if live is None or files.cold_path(self.directory, live) != self.cold.directory:
                self.cold = self.checkpointer.reopened()
        except (StoreError, OSError) as error:
            if not lacks_descriptors(error):
                raise
            self._moved = True
            self._hold_up(files.TOO_MANY_FILES, StoreError)
            return False
        self._moved = False
        self.generation += 1
        self.cold_used_bytes = self.cold.used_bytes()
        return True

    def _hold_up(self, reason: str, kind: type[StoreError]) -> None:
        """Have checkpoints wait for what is lacking, and whoever waits for them told."""
        self.full, self.full_kind = reason, kind
        self._full_since = self.clock.monotonic()
        LOG.warning("%s: checkpoint put off: %s", self.directory, reason)

    def _on_closed(self, event: Event) -> None:
        self._finished = True

    def _on_failed(self, event: Event) -> None:
        if self._compacting:  # The checkpointer began anew, without it.
            self._on_compaction_failed(event)
        if event["error"] in _PASSING:
            self._hold_up(event["message"], _PASSING[event["error"]])
        else:
            self.poison(f"a checkpoint failed: {event['error']}: {event['path']}: {event['message']}")

    def _on_compaction_failed(self, event: Event) -> None:
        self._compacting = False
        kind = {
            StoreFullError.__name__: StoreFullError,
            CorruptionError.__name__: CorruptionError,
        }.get(event["error"], StoreError)
        self._compaction_failure = kind(event["path"], f"not compacted: {event['message']}")

    def poison(self, reason: str) -> None:
        """Refuse writes from now on."""
        with self.lock:
            if not self.poisoned:
                self.poisoned = reason
                self._room_until = -1
                LOG.error("%s: writes are refused from now on: %s", self.directory, reason)
            self.changed.notify_all()

    def _attend(self) -> None:
        """Note whether a write has something to do after it, without the lock."""
        self.attended = self.always or (self.checkpointer is not None and self.checkpointer.name == "inline")

    def look_at_clock(self) -> None:
        """Log when the system's clock falls behind the store's time, and when it has caught up."""
        behind_ms = self.clock.behind_ms()
        if (behind := behind_ms > CLOCK_BEHIND_MS_MAX) is not self._clock_behind:
            self._clock_behind = behind
            text = "behind the store's time, by %.1f seconds: until it has caught up, nothing expires"
            LOG.warning(
                f"%s: the system's clock is {text if behind else 'right again, behind by %.1f seconds'}",
                self.directory,
                behind_ms / 1000,
            )

    def _check_helper(self, now: float) -> None:
        """Start a dead helper again, and hand over again what a full disk held up."""
        checkpointer = self.checkpointer
        self.look_at_clock()
        dead = isinstance(checkpointer, HelperCheckpointer) and checkpointer.process.dead
        if not dead and not self.full:
            return  # Without the lock, as nearly always: whoever takes it may lose the processor before it lets go.
        with self.lock:
            if self.closed or self.checkpointer is not checkpointer:
                return  # Meanwhile: who closes the store sees to a dead helper; two in its place would be one too many.
            if dead and not self.poisoned:
                if not self._follow_compaction():  # One that it had done, and did not come to tell of.
                    return
                self._helper_deaths += 1
                if self._helper_deaths > HELPER_DEATHS_MAX:
                    self.poison(f"the helper process died {self._helper_deaths} times")
                    return
                LOG.warning("%s: the helper process died; starting another", self.directory)
                checkpointer = self._make_checkpointer()
                self.time_sent_ms = 0
                self._resubmit()
                if self._compacting:
                    checkpointer.compact()
            elif self.full and now - self._full_since >= FULL_RETRY_SECONDS:
                self._full_since = now
                self._retry_full()

    def _retry_full(self) -> None:
        """Hand over again what a full disk held up."""
        if self.full:
            self.full = ""
            if not self._moved or self._follow_compaction():
                self._resubmit()

    def _remove_old_colds(self) -> None:
        """Remove cold tiers that are not the live one any more; whoever still reads one keeps its mapping."""
        try:
            live = files.read_current(self.directory)
            numbers = files.cold_numbers(self.directory)
        except OSError as error:
            LOG.warning("%s: old cold tiers cannot be removed now: %s", self.directory, error)
            return
        for number in numbers:
            if live is not None and number < live:
                removal.remove_cold(self.directory, number)
