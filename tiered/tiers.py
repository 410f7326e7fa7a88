"""The tiers of one open store: what is in them, the lock over them, and how they are read.

    read:   hot tier without the lock (`store`), else `find`: buffers, then the cold tier

Locking.  `lock` covers hot tier, journal, write buffers and counters.  `find` takes no
lock: `buffers` is replaced as a whole, so a reader that takes it *before* it begins
its LMDB transaction finds every record in one or the other.  A value read without
the lock is put into the hot tier only if, under the lock, the key's place is still the one it was
read from and no checkpoint has finished since (`generation`): otherwise an old
value could cover a newer one.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiered import files, keys, record
from tiered.checkpointer import Checkpointer
from tiered.clock import Clock
from tiered.cold import Cold, State
from tiered.compression import Decompressor
from tiered.config import Settings
from tiered.errors import (
    ClosedError,
    CorruptionError,
    ForkedError,
    PoisonedError,
    ReadOnlyError,
    StoreError,
)
from tiered.expiry import next_cycle
from tiered.hot import HotTier, entry_of
from tiered.journal import Dirty, Journal
from tiered.recovery import Plan
from tiered.stats import Counters
from tiered.write_buffer import WriteBuffer

LOG = logging.getLogger("tiered")
BUFFER_SHARE = 2
"""The write buffer takes at most the budget divided by this."""
SEGMENT_BYTES_MAX = 64 << 20

Where = tuple[WriteBuffer, int] | None


class Tiers:
    """The tiers of one open store, and how they are read."""

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
        self.directory = directory
        self.settings = settings
        self.cold = cold
        self.journal = journal
        self.clock = clock
        self.recovery = recovery
        self.counters = Counters()
        self.hot = HotTier(settings.eviction, settings.memory)
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.buffers: tuple[WriteBuffer, ...] = ()
        self.generation = 0
        self.state: State = cold.state()
        self.time_sent_ms = 0  # Told to nobody yet: whoever knew it may have left with more to expire.
        self.cold_used_bytes = cold.used_bytes()
        self.transaction_id = cold.transaction_id()
        self.readonly = journal is None
        self.closed = False
        self.forked = False
        self.poisoned = ""
        self.full = ""
        self.capped = False
        self.always = self.attended = settings.durability == "always"
        self.checkpointer: Checkpointer | None = None
        self.decompressor = Decompressor(self._load_dictionary)
        self._lock_file = lock_file
        self._number = 0
        self._active: WriteBuffer | None = None
        self._aside: list[WriteBuffer] = []
        self._room_until = -1
        self._journal_ahead = False
        self._buffer_bytes = 0
        self._changes = 0
        self._saved_at = self._synced_at = clock.monotonic()
        self._random = random.Random()
        self._expire_at = clock.monotonic() + next_cycle(self._random)
        self._full_since = 0.0
        self._helper_deaths = 0
        self._finished = False
        self._compactions = 0
        self._compacting = False
        self._compaction_failure: StoreError | None = None
        self._background: BaseException | None = None
        self._trimmed_bytes = 0
        clock.advance(self.state.time_ms)

    # Reading

    def check_readable(self) -> None:
        """Raise `ClosedError` or `ForkedError`, or an error kept from the background."""
        if self.forked:
            raise ForkedError(
                self.directory,
                "opened for writing before fork; in the child, open it again with tiered.open(path, flag='r'), "
                "or for writing once the parent has closed it",
            )
        if self.closed:
            raise ClosedError(self.directory, "the store is closed")
        if self._background is not None:
            error, self._background = self._background, None
            raise error

    def in_place(self) -> bool:
        """Whether the files that are open are those at the path: a directory may be removed and made anew."""
        if self._lock_file is not None:
            return self._lock_file.in_place()
        return self.cold.in_place() or self.cold.state().moved

    def dirty(self, stored_key: bytes) -> Where:
        """Buffer and position of a key's latest record, negative if deleted; None if only the cold tier can know."""
        for buffer in self.buffers:
            position = buffer.positions.get(stored_key)
            if position is not None:
                return buffer, position
            if buffer.cleared:
                return buffer, -1
        return None

    def find(self, stored_key: bytes, encoded: bytes) -> tuple[Where, Dirty | None]:
        """Where a key's record was found and the record, deadline not considered."""
        where = self.dirty(stored_key) if self.buffers else None
        if where is not None:
            buffer, position = where
            return where, buffer.segment.put_at(position) if position >= 0 else None
        cold = self.cold
        try:
            data = cold.get(stored_key)
        except StoreError:
            self.check_readable()
            raise
        return None, None if data is None else self.opened(cold, stored_key, data, encoded)

    def opened(self, cold: Cold, stored_key: bytes, data: bytes, encoded: bytes | None = None) -> Dirty | None:
        """A record of the cold tier undone to its payload.  Raises `CorruptionError`."""
        try:
            found = record.unpack(stored_key, data)
            if found is None:
                return None
            number, compression, dictionary, deadline, full_key, body = found
            if full_key and encoded is not None and full_key != encoded:
                return None
            payload = self.decompressor.decompress(compression, dictionary, body) if compression else body
        except (ValueError, KeyError) as error:
            raise self._damaged(cold, stored_key, error) from None
        return tuple.__new__(Dirty, (number, deadline, full_key, payload))

    def _damaged(self, cold: Cold, stored_key: bytes, error: Exception) -> CorruptionError:
        return CorruptionError(
            cold.path, f"damaged record under stored key {stored_key[:60]!r}: {error}; restore it from a backup"
        )

    def entry_of(self, stored_key: bytes, found: Dirty) -> Any:
        """The hot entry of a record.  Raises `CorruptionError` where its codec cannot read it."""
        try:
            return entry_of(found.codec, found.payload)
        except ValueError as error:
            raise self._damaged(self.cold, stored_key, error) from None

    def promote(self, key: Any, stored_key: bytes, where: Where, generation: int, entry: Any, deadline: int) -> None:
        """Keep a value that was read without the lock, if it is still the newest."""
        with self.lock:
            if generation == self.generation and not self.closed and self.dirty(stored_key) == where:
                self.hot.put(key if key.__class__ is str else keys.canonical(key), entry, deadline)
                self.counters.promotions += 1

    def promote_many(self, located: Sequence[tuple[Any, bytes, Where, Any, int]], generation: int) -> None:
        """`promote` for each `(key, stored key, where, entry, deadline)`, under the lock once."""
        with self.lock:
            if generation != self.generation or self.closed:
                return
            kept = [found for found in located if not self.buffers or self.dirty(found[1]) == found[2]]
            lasting = [found for found in kept if not found[4]]
            names = [found[0] if found[0].__class__ is str else keys.canonical(found[0]) for found in lasting]
            self.hot.put_many(names, [found[3] for found in lasting], 0)
            for key, _, _, entry, deadline in kept:
                if deadline:
                    self.hot.put(keys.canonical(key), entry, deadline)
            self.counters.promotions += len(kept)

    def follow(self) -> None:
        """A read-only handle: look for a newer checkpoint, and forget what it may have changed."""
        current = self.cold.transaction_id()
        # One marked as moved gets no more transactions, and its successor is named a moment later.
        if current == self.transaction_id and not self.state.moved:
            return
        with self.lock:
            self.transaction_id = current
            self.state = self.cold.state()
            if self.state.moved:
                self._follow_move()
            self.clock.advance(self.state.time_ms)
            self.generation += 1
            self.hot.clear()

    def _follow_move(self) -> None:
        live = files.read_current(self.directory)
        if live is None or files.cold_path(self.directory, live) == self.cold.directory:
            return
        try:
            self.cold = Cold(files.cold_path(self.directory, live), readonly=True)
        except StoreError:
            if files.read_current(self.directory) == live:
                raise
            return  # Compacted once more meanwhile: the next look finds that one.
        self.state = self.cold.state()
        self.transaction_id = self.cold.transaction_id()

    def _load_dictionary(self, number: int) -> bytes:
        with self.cold.read() as reader:
            return reader.dictionary(number)

    def check_writable(self) -> None:
        """Raise what forbids writing."""
        self.check_readable()
        if self.journal is None:
            raise ReadOnlyError(self.directory, "opened with flag='r'; open it with flag='w' to write")
        if self.poisoned:
            raise PoisonedError(
                self.directory,
                f"writes are refused since {self.poisoned}; reads go on. "
                "Close the store, see to the cause, and open it again: what was acknowledged is recovered",
            )

    @property
    def share_bytes(self) -> int:
        """What the active buffer may take, and as much again what is set aside."""
        return min(self.settings.memory // BUFFER_SHARE // 2, SEGMENT_BYTES_MAX)

    @property
    def buffer_bytes(self) -> int:
        """What the write buffers take now."""
        return sum(buffer.used_bytes() for buffer in self.buffers)

    def _rebudget(self) -> None:
        """Give the hot tier what the write buffers leave."""
        self._buffer_bytes = self.buffer_bytes
        self.hot.budget_bytes = max(self.settings.memory // 2, self.settings.memory - self._buffer_bytes)
        if self.hot.used_bytes > self.hot.budget_bytes:
            self.hot.shrink()
