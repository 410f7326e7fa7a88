"""A follower: the engine of a store that is opened read-only, beside a writer in another process or after one.

It sees what the writer was told is written, at most about a tenth of a second later, and at
once after `refresh`.  It takes no lock that a writer takes, writes nothing (but its place in LMDB's table
of readers, `lock.mdb`, where the medium lets it), and applies nothing: what a killed writer left in the
journal is read where it lies, and judged as `recovery` would.

    find:  hot tier without the lock (`store`), else the overlay's buffers, then the cold tier

What is seen is always a prefix of the acknowledged operations, and never goes back.  The overlay
(`overlay`) holds the records up to number L, the cold tier those up to number M, in any of its moments
with a smaller M too.  A key that is not in the overlay has the same record in every cold tier whose M lies
between the overlay's beginning and L.  So any read of the cold tier is right as long as M <= L; but the
writer's checkpoints go on, and a moment with M > L would show an operation whose predecessors are not
seen yet.  Each read therefore compares the number of the LMDB transaction that it read with the one which
the overlay is known to go with (`_sight`).  Where it is another one, the follower catches up first and
reads again.  No lock is taken for that comparison, and hits have none to make.

Catching up goes in steps, each under the lock and each a prefix by itself:

    1. look for new segments, then at the cold tier (its number, M; where CURRENT has moved, the next one)
    2. read some records of the journal; drop the hot values of their keys; let the records be seen
    3. where nothing more can be read: if M > L, operations were missed, since their segment came and went
       between two looks: drop all hot values, forget the overlay, go on from M
    4. note the sight, and only then let go of segments that the cold tier holds

A hot value is dropped before the record that replaces it can be seen, and a promotion must find its key in
the same place, in the same generation, as for a writer (`tiers`).  In 4 the order is what a read without the lock
relies on: buffers that lack a segment mean that the sight has changed, which it looks at last.

A signal handler that reads in the middle of a step is given what is there, unchecked.

Memory: the index over the journal's records counts against the budget as a write buffer does, about 150
bytes for a record of a short key.  It can be as large as the writer's: 9/16 of the writer's `memory`, and
144 MB, at most; a reader with a smaller budget keeps an eighth of it for hot values all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tiered import files, keys
from tiered.clock import Clock
from tiered.cold import Cold
from tiered.cold_reader import Reader
from tiered.cold_state import State
from tiered.compression import Decompressor
from tiered.config import SETTINGS, Settings
from tiered.engine import HOT_EXPIRE_KEYS, SLICES_SECONDS, Engine
from tiered.errors import CorruptionError, StoreError
from tiered.jitter import drawn
from tiered.journal import Dirty
from tiered.maintenance import TICK_SECONDS_MAX
from tiered.overlay import News, Overlay
from tiered.recovery import Plan
from tiered.tiers import Where
from tiered.write_buffer import WriteBuffer

FOLLOW_SECONDS = 0.1
STEP_RECORDS = 2048
"""Records taken in one step, so that nobody waits for the lock longer than some milliseconds."""
STEPS_PER_TICK = 16


class Sight(NamedTuple):
    """A moment of the cold tier that the overlay goes with."""

    cold: Cold
    number: int


class Follower(Engine):
    """One store opened read-only, shared by its handles."""

    def __init__(self, directory: Path, explicit: Mapping[str, object], cold: Cold, clock: Clock) -> None:
        # First, since a fork may come to an engine as soon as it is known.
        self._explicit = explicit
        self._overlay = Overlay(directory)
        self._sight: Sight | None = None
        self._opening = True
        self._as_of_ms = 0
        with cold.read() as reader:
            self._remembered = reader.settings()
        settings = Settings.resolve(explicit, self._remembered)
        super().__init__(directory, settings, cold, None, None, clock, Plan())
        self.refresh()
        self._opening = False
        self.serve()

    # Reading

    def find(self, stored_key: bytes, encoded: bytes) -> tuple[Where, Dirty | None]:
        """Where a key's record was found and the record, deadline not considered."""
        while True:
            sight = self._sight
            where = self.dirty(stored_key) if self.buffers else None
            if where is not None:
                buffer, position = where
                try:
                    return where, buffer.put_of(encoded, position)
                except CorruptionError:
                    if self.owned() or not self._rewound():
                        raise
                    continue
            cold = self.cold if sight is None else sight.cold
            try:
                data, number = cold.get_at(stored_key)
                fits = sight is not None and number == sight.number and self._sight is sight
                if not fits and not self.owned():
                    if self.closed:
                        self.check_readable()
                    self.refresh()
                    continue
            except StoreError:
                self.check_readable()
                raise
            return None, None if data is None else self.opened(cold, stored_key, data, encoded)

    def begin(self, inside: bool) -> tuple[Cold, tuple[WriteBuffer, ...], Reader]:
        """Under the lock: the buffers, and a read transaction that belongs to them."""
        while True:
            cold = self.cold
            reader = cold.begin()
            if inside or self._sight == (cold, reader.number):
                return cold, self.buffers, reader
            cold.end(reader)
            self._catch_up()

    # Following

    def refresh(self) -> None:
        """See everything that was acknowledged before this call.  Raises `CorruptionError` as opening does."""
        began_ms = self.clock.now_ms()
        while self._locked_step():
            pass
        self._as_of_ms = max(self._as_of_ms, began_ms)

    @property
    def as_of_ms(self) -> int:
        """Everything acknowledged up to this moment is seen."""
        return self._as_of_ms

    @property
    def last_sequence(self) -> int:
        """The number of the last operation seen."""
        return self._overlay.last

    def _step_due(self) -> float:
        """Follow the writer; returns the seconds until there may be more."""
        if self.closed or self.forked:
            return TICK_SECONDS_MAX
        self.refuse_reentry()
        self._review_views(self.clock.monotonic())
        began_ms = self.clock.now_ms()
        for _ in range(STEPS_PER_TICK):
            if not self._locked_step():
                self._as_of_ms = max(self._as_of_ms, began_ms)
                break
        else:
            return 0.0  # Other stores have their turn.
        with self.lock:
            self.counters.expired_hot += self.hot.expire(self.clock.now_ms(), HOT_EXPIRE_KEYS)
        now = self.clock.monotonic()
        if now >= self._cycle_at:
            self._look_at_memory()
            self._cycle_at = now + drawn(self.settings.cycle_seconds)
        return SLICES_SECONDS if self._evict_slice() else FOLLOW_SECONDS

    def _locked_step(self) -> bool:
        with self.lock:
            return not self.closed and self._step()

    def _catch_up(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        """Under the lock: take in some of what is new; True if there is more."""
        overlay = self._overlay
        try:
            overlay.look()
            number, state = self._look_at_cold()
            if self._overlay is not overlay:
                return True
            if overlay.last < 0:
                self._jump(state.applied)
            self._rewound()
            if self._read_on():
                return True
            if state.applied > overlay.last:
                self._jump(state.applied)
                if self._read_on():
                    return True
            if self._sight != (self.cold, number):
                self._sight = Sight(self.cold, number)
                self.state = state
                self.cold_used_bytes = self.cold.used_bytes()
                self.clock.advance(state.time_ms)
            overlay.forget(state.applied)
            if self.buffers != (buffers := overlay.buffers):
                self.generation += 1
                self.buffers = buffers
                self._rebudget()
            return overlay.judge(self._opening)
        except OSError as error:
            if self._opening:
                raise
            raise StoreError(error.filename or self.directory, f"could not be read: {error.strerror}") from error

    def _read_on(self) -> bool:
        """Take in what was in the journal at the last look, up to so many records; True if that was not all."""
        overlay, more = self._overlay, False
        while not more and (news := overlay.news(STEP_RECORDS)) is not None:
            self._take(news)
            more = news.more
            if news.tail is overlay.tails[-1]:
                break  # What a busy writer has added meanwhile would never end.
        return more

    def _take(self, news: News) -> None:
        """Let news be seen, once what was hot of the same keys is gone."""
        hot = self.hot
        if news.cleared:
            hot.clear()
            self.generation += 1
        elif len(hot):
            for key in map(keys.decode, news.keys):
                hot.discard(key)
        self._overlay.take(news)
        self.buffers = self._overlay.buffers
        if news.settings:
            self._remember(self._remembered | news.settings)
        self.clock.advance(news.time_ms)
        self._rebudget()

    def _jump(self, applied: int) -> None:
        """Go on from a checkpoint that holds operations which were never seen in the journal."""
        self._sight = None  # Whoever reads now waits for the lock.
        self.hot.clear()
        self.generation += 1
        self._overlay.jump(applied)
        self.buffers = self._overlay.buffers
        with self.cold.read() as reader:
            self._remember(reader.settings())
        self._rebudget()

    def _rewound(self) -> bool:
        """Forget what was seen of a write that was interrupted, and never was; True if there was one."""
        with self.lock:
            if not self._overlay.rewound():
                return False
            self.hot.clear()
            self.generation += 1
            self.buffers = self._overlay.buffers
            return True

    def _remember(self, remembered: dict[str, object]) -> None:
        """Put the writer's settings in force where this program gave none of its own."""
        self._remembered = remembered
        resolved = Settings.resolve(self._explicit, remembered)
        for name, setting in SETTINGS.items():
            if setting.remembered and setting.runtime:
                setattr(self.settings, name, getattr(resolved, name))

    # The cold tier

    def _look_at_cold(self) -> tuple[int, State]:
        """Number of the last transaction and the state, of the cold tier that is live now."""
        while True:
            in_place = self.cold.in_place()  # Before: one is marked as moved before it is removed.
            with self.cold.read() as reader:
                number, state = reader.number, reader.state()
            # One marked as moved gets no more transactions, and its successor is named a moment later.
            if (in_place and not state.moved) or not self._follow_move(state.moved):
                break
        if not in_place:
            # Segments that were found may belong to a store that took this one's place.
            self._overlay.ignore_unread()
        return number, state

    def _follow_move(self, moved: bool) -> bool:
        """Open the cold tier that CURRENT names; False where that is none, or the one that is open."""
        try:
            live = files.read_current(self.directory)
        except ValueError:
            live = None
        if live is None or (files.cold_path(self.directory, live) == self.cold.directory and self.cold.in_place()):
            return False
        try:
            cold = self._opened_cold(files.cold_path(self.directory, live))
        except StoreError:
            if moved and files.read_current(self.directory) == live:
                raise
            return False  # Compacted once more meanwhile, or the store is being removed: the next look tells.
        if not moved:  # Another store is in place of this one (`flag="n"`), with numbers of its own.
            self._sight = None
            self.decompressor = Decompressor(self._load_dictionary)
            self._overlay = Overlay(self.directory)
        self.cold = cold
        return True

    def _opened_cold(self, directory: Path) -> Cold:
        return Cold(directory, readonly=True)

    # The end

    def _forget(self) -> None:
        super()._forget()
        self._overlay = Overlay(self.directory)
        self._sight = None

    def disown(self) -> None:
        """In a forked child: nothing of the parent's is open here."""
        super().disown()
        self._forget()
