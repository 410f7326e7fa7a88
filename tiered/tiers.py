"""The tiers of one open store: what is in them, the lock over them, and how they are read.

    read:   hot tier without the lock (`store`), else `find`: buffers, then the cold tier

Locking.  `lock` covers hot tier, journal, write buffers and counters.  `find` takes no
lock: `buffers` is replaced as a whole, so a reader that takes it *before* it begins
its LMDB transaction finds every record in one or the other.  A value read without
the lock is put into the hot tier only if, under the lock, the key's place is still the one it was
read from and no checkpoint has finished since (`generation`): otherwise an old
value could cover a newer one.

A signal handler or a finalizer may run in the middle of anything here, in the thread that
holds the lock.  It may read; nothing it reads is kept hot.  What would change something is
refused (`refuse_reentry`), before it has begun: the lock can be entered again, but what it
protects is half-way.

Views keep buffers that the store itself has let go of (`views`), which counts against the budget.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tiered import codec, files, keys, record
from tiered.admission import Admission
from tiered.checkpointer import Checkpointer
from tiered.clock import Clock
from tiered.cold import Cold, translated
from tiered.cold_reader import Reader
from tiered.cold_state import State
from tiered.compression import Decompressor
from tiered.config import Settings
from tiered.entries import is_packed
from tiered.errors import (
    ClosedError,
    CorruptionError,
    ForkedError,
    PoisonedError,
    ReadOnlyError,
    ReentrantError,
    StoreError,
    StoreFullError,
)
from tiered.hot import hot_tier
from tiered.jitter import drawn
from tiered.journal import Dirty, Journal
from tiered.maintenance import MAINTENANCE
from tiered.native import native
from tiered.process import by_handler
from tiered.recovery import Plan
from tiered.stats import Counters
from tiered.watermark import Watermark
from tiered.write_buffer import Pinning, WriteBuffer

if TYPE_CHECKING:
    from tiered.engine import Engine

BUFFER_SHARE = 2
"""The write buffer, active and set aside, takes about the budget divided by this; nine sixteenths at most."""
BOUNDED_BUFFER_SHARE = 8
"""That with `spill=False`, where what is live is to be hot beside it."""
SEGMENT_BYTES_MAX = 64 << 20

HOT_SHARE_MIN = 8
"""The hot tier keeps at least the budget divided by this, whatever write buffers and views take."""
EVICTIONS_MAX = 2000
"""Of a batch, as many become hot until so many others were evicted for them: a millisecond or two."""
FILTER_SHARE = 32
"""Filters of the cold tier take the budget divided by this, or less; those of larger runs are not read."""
PINNED_SHARE = 5 / 16
"""What views may keep of the budget in buffers that the store itself has let go of."""

Where = tuple[WriteBuffer, int] | None


class Tiers:
    """The tiers of one open store, and how they are read."""

    __slots__ = (  # What every cold read asks for: the compiled part finds it without a look-up.
        "__dict__",
        "__weakref__",
        "_aside",
        "_background",
        "_number",
        "admission",
        "buffers",
        "clock",
        "closed",
        "cold",
        "counters",
        "decompressor",
        "direct",
        "generation",
        "lock",
        "owned",
    )

    advisor: Any = None  # Shards, of `advisor`.
    warming_bytes = 0
    """What reading ahead takes of the budget as long as it lasts."""

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
        cold.filter_bytes_max = settings.memory // FILTER_SHARE
        self.journal = journal
        self.clock = clock
        self.recovery = recovery
        self.counters = Counters()
        self.views: list[weakref.ref[Pinning]] = []
        self._views_counted = 0
        self.hot = hot_tier(settings.eviction, settings.memory)
        self.watermark = Watermark()
        self.admission = Admission(settings, settings.memory)
        self.share_objects()
        self.lock = threading.RLock()
        self.owned: Callable[[], bool] = self.lock._is_owned  # type: ignore[attr-defined]
        self.changed = threading.Condition(self.lock)
        self.buffers: tuple[WriteBuffer, ...] = ()
        self.generation = 0
        self.state: State = cold.state()
        self.time_sent_ms = 0  # Told to nobody yet: whoever knew it may have left with more to expire.
        self.cold_used_bytes = cold.used_bytes()
        self.readonly = journal is None
        self.direct = not self.readonly  # Whether a cold read is what `find` does here: the compiled part may do it.
        self.closed = self.forked = False
        self.poisoned = ""
        self.full = ""  # Why checkpoints are put off, if they are, and the error that says so.
        self.full_kind: type[StoreError] = StoreFullError
        self.capped = False
        self.bounded = not settings.spill
        self.always = self.attended = settings.durability == "always"
        self.checkpointer: Checkpointer | None = None
        self.decompressor = Decompressor(self._load_dictionary)
        self._lock_file = lock_file
        self._number = 0
        self._active: WriteBuffer | None = None
        self._aside: list[WriteBuffer] = []
        self._applied: list[WriteBuffer] = []  # To be let go of.
        self._room_until = -1
        self._journal_ahead = False
        self._changes = 0
        self._saved_at = self._synced_at = clock.monotonic()
        self._cycle_at = clock.monotonic() + drawn(settings.cycle_seconds)
        self._full_since, self._helper_deaths, self._expiring = 0.0, 0, False
        self._compactions, self._compacting, self._finished = 0, False, False
        self._moved = False  # A compaction is done, and its cold tier is not the one read here yet.
        self._compaction_failure: StoreError | None = None
        self._background: BaseException | None = None
        self._trimmed_bytes = 0
        clock.advance(self.state.time_ms)

    def serve(self) -> None:
        """Have the maintenance thread tick this engine from now on."""
        if not self._number:
            self._number = MAINTENANCE.serve(cast("Engine", self))

    # Reading

    def refuse_reentry(self) -> None:
        """Raise `ReentrantError` where this thread is already inside the store."""
        checkpointer, journal = self.checkpointer, self.journal
        # A bool, and not the list of files, which another thread may fill before it is looked at.
        removing = journal is not None and len(journal.removal.paths) > 0 and journal.removal.entered
        if self.owned() or removing or (checkpointer is not None and checkpointer.entered):
            raise ReentrantError(
                self.directory,
                "used by a signal handler, a finalizer or a codec in the middle of an operation of the same thread; "
                "nothing was done: have it set a flag, and act on it afterwards",
            )

    def refuse_waiting(self) -> None:
        """`refuse_reentry` of what has to wait."""
        self.refuse_reentry()
        self.refuse_inside_others()

    def refuse_inside_others(self) -> None:
        """Raise `ReentrantError` where this thread is inside another store: whom it waits for may wait for that."""
        for other in MAINTENANCE.open_engines():
            if other is not self:
                other.refuse_reentry()

    def check_readable(self) -> None:
        """Raise `ClosedError` or `ForkedError`, or an error kept from the background."""
        if self.forked:
            raise ForkedError(
                self.directory,
                "opened for writing before fork; in the child, open it again with tiered.open(path, flag='r'), "
                "or for writing once the parent has closed it",
            )
        if self.closed:
            raise ClosedError(self.directory, "the store is closed; open it again")
        if self._background is not None:
            error, self._background = self._background, None
            raise error

    def alive(self) -> bool:
        """Whether it is open, and its files are those at the path."""
        return not self.closed and self.in_place()

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
            return where, buffer.put_of(encoded, position)
        cold = self.cold
        try:
            data = cold.get(stored_key)
        except StoreError:
            self.check_readable()
            raise
        return None, None if data is None else self.opened(cold, stored_key, data, encoded)

    def begin(self, inside: bool) -> tuple[Cold, tuple[WriteBuffer, ...], Reader]:
        """Under the lock: the buffers, and a read transaction that belongs to them, for `Cold.end`.

        `inside`: whether the thread was in the middle of something that holds the lock (`owned`).
        """
        return self.cold, self.buffers, self.cold.begin()

    @contextlib.contextmanager
    def reading(self, inside: bool) -> Iterator[Reader]:
        """The transaction that `begin` gives, until the block ends; entered under the lock."""
        cold, _, reader = self.begin(inside)
        try:
            with translated(cold.path):
                yield reader
        finally:
            cold.end(reader)

    def find_many(
        self, stored_keys: Sequence[bytes], encoded: Sequence[bytes]
    ) -> tuple[list[Where], list[Dirty | None]]:
        """`find` for each of many keys, all at one moment."""
        inside = self.owned()
        wheres: list[Where] = [None] * len(stored_keys)
        with contextlib.ExitStack() as reading:
            with self.lock:
                reader = reading.enter_context(self.reading(inside))
                if self.buffers:
                    wheres = list(map(self.dirty, stored_keys))
            # LMDB looks ascending keys up faster.
            order = sorted([i for i, where in enumerate(wheres) if where is None], key=stored_keys.__getitem__)
            asked = list(map(stored_keys.__getitem__, order))
            datas = reader.newest_many(asked)
        records = [
            None if where is None else where[0].put_of(key, where[1])
            for key, where in zip(encoded, wheres, strict=True)
        ]
        undone = self.opened_many(reader.cold, asked, datas, list(map(encoded.__getitem__, order)))
        for i, found in zip(order, undone, strict=True):
            records[i] = found
        return wheres, records

    def opened(
        self, cold: Cold, stored_key: bytes, data: bytes, encoded: bytes | None = None, values: bool = True
    ) -> Dirty | None:
        """A record of the cold tier undone to its payload, left out without `values`.  Raises `CorruptionError`.

        The record is checked either way: its checksum takes in the key, so that no key is given out that never was, and
        damage makes none vanish as if it had expired.
        """
        try:
            found = record.unpack(stored_key, data)
            if found is None:
                return None
            number, compression, dictionary, deadline, full_key, body = found
            if full_key and encoded is not None and full_key != encoded:
                return None
            if not values:
                body = b""
            elif compression:
                body = self.decompressor.decompress(compression, dictionary, body)
        except (ValueError, KeyError) as error:
            raise self.damaged(cold, stored_key, error) from None
        return tuple.__new__(Dirty, (number, deadline, full_key, body))

    def opened_many(
        self,
        cold: Cold,
        stored_keys: list[bytes],
        datas: Sequence[bytes | None],
        encoded: Sequence[bytes] | None = None,
        values: bool = True,
        bytes_max: int = -1,
    ) -> list[Dirty | None]:
        """`opened` for each of many records that are there, or with `bytes_max` for the first of so many bytes.

        Without `values`, payloads are left out, but records are checked nevertheless.
        """
        datas = list(datas)
        if native is None:
            results, whole = cast("list[Dirty | None]", [None] * len(datas)), False
        else:
            results, whole = native.opened_many(self, Dirty, stored_keys, datas, values, bytes_max)
        if whole:
            return results
        size = 0
        for index, found in enumerate(results):
            data = datas[index]
            if found is None and data is not None:
                key = None if encoded is None else encoded[index]
                results[index] = found = self.opened(cold, stored_keys[index], data, key, values)
            size += 0 if found is None else len(found.payload)
            if 0 <= bytes_max <= size:
                return results[: index + 1]
        return results

    def damaged(self, cold: Cold, stored_key: bytes, error: Exception) -> Exception:
        """What says what is wrong with a record of the cold tier; what a handler of signals raised stays as it is."""
        text = f"{error}; assign a new value to the key, or restore it from a backup"
        damage = CorruptionError(cold.path, f"damaged record under stored key {stored_key[:60]!r}: {text}")
        return error if by_handler(error) else damage

    def key_of(self, encoded: bytes) -> Any:
        """The key that a record is kept under.  Raises `CorruptionError` where these bytes are none."""
        try:
            return keys.decode(encoded)
        except ValueError as error:
            raise self.damaged(self.cold, encoded, error) from None

    def value_of(self, stored_key: bytes, found: Dirty) -> Any:
        """The value of a record.  Raises `CorruptionError` where its codec cannot read it."""
        try:
            return codec.decode(found.codec, found.payload)
        except ValueError as error:
            if is_packed(found.codec, found.payload):
                raise  # Perhaps of a registered type, and its own.
            raise self.damaged(self.cold, stored_key, error) from None

    def promote(self, key: Any, stored_key: bytes, where: Where, generation: int, found: Dirty) -> None:
        """Keep a value that was read without the lock, if it is still the newest."""
        if self.owned():
            return
        number, deadline, _, payload = found  # A plain tuple, from the compiled part.
        asked = self._aside or len(payload) > self.admission.small_bytes
        if asked and not self._admits(key, stored_key, len(payload)):
            return
        with self.lock:
            newest = self.dirty(stored_key) if self.buffers else None
            if generation == self.generation and not self.closed and newest == where:
                plain = key if key.__class__ is str else keys.canonical(key)
                self.hot.put(plain, number, payload, deadline)
                self.counters.promotions += 1
                if not self._number and self.hot.evictions:
                    self.serve()  # A store that is only read is on its way to the low watermark, too.

    def promote_many(self, located: Sequence[tuple[Any, bytes, Where, Dirty]], generation: int) -> None:
        """`promote` for each `(key, stored key, where, record)`, under the lock once."""
        if self.owned():
            return
        with self.lock:
            if generation != self.generation or self.closed:
                return
            names, numbers, payloads = list[Any](), list[int](), list[bytes]()
            for key, stored_key, where, (number, deadline, _, payload) in located:
                if self.buffers and self.dirty(stored_key) != where:
                    continue
                asked = self._aside or len(payload) > self.admission.small_bytes
                if asked and not self._admits(key, stored_key, len(payload)):
                    continue
                plain = key if key.__class__ is str else keys.canonical(key)
                self.counters.promotions += 1
                if deadline:
                    self.hot.put(plain, number, payload, deadline)
                else:
                    names.append(plain)
                    numbers.append(number)
                    payloads.append(payload)
            self.hot.put_many(names, numbers, payloads, 0, EVICTIONS_MAX)
            if not self._number and self.hot.evictions:
                self.serve()

    def _admits(self, key: Any, stored_key: bytes, size: int) -> bool:
        """Whether a value that was read is to become hot: asked if it is not small, or a buffer is set aside."""
        if self.advisor is not None:
            self.hot.note_read(key, size)
        admitted = not self._pressed() and self.admission.admits(stored_key, size)
        self.counters.refusals += not admitted
        return admitted

    def _pressed(self) -> bool:
        """Whether writers are ahead of the checkpoints: half of the buffer is full, and the one before not applied.

        What is kept then is what was written, whose share of the memory grows; a promotion would evict for nothing.
        """
        active = self._active if self._aside else None
        return active is not None and active.used_bytes() * 2 > self.share_bytes

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
        share = BOUNDED_BUFFER_SHARE if self.bounded else BUFFER_SHARE
        return min(self.settings.memory // share // 2, SEGMENT_BYTES_MAX)

    @property
    def step_bytes(self) -> int:
        """So many bytes may come into the active buffer, index included, until the hot tier's budget is set anew."""
        return max(4096, self.share_bytes // 16)

    @property
    def buffer_bytes(self) -> int:
        """What the write buffers take now."""
        return sum(buffer.used_bytes() for buffer in self.buffers)

    def share_objects(self) -> None:
        """Let the hot tier keep documents decoded, as the settings say."""
        settings = self.settings
        self.hot.keep_objects(
            int(settings.memory * settings.object_share), settings.object_entries_max, settings.object_value_bytes_max
        )

    def _rebudget(self) -> None:
        """Give the hot tier what write buffers and views leave."""
        memory, pinned = self.settings.memory, 0
        if self.views:
            pinned = self.pinned_bytes()
            for view in self.open_views():
                if pinned <= memory * PINNED_SHARE:
                    break
                view.end(f"it kept more than its share of the memory, {PINNED_SHARE:.0%} of {memory:,} bytes")
                pinned = self.pinned_bytes()
        self.cold.filter_bytes_max = memory // FILTER_SHARE
        taken = self.buffer_bytes + pinned + self.admission.used_bytes + self.warming_bytes + self.cold.filter_bytes
        if self._active is not None:
            taken += self._active.foreseen_bytes(self.step_bytes)
        self.hot.budget_bytes = max(memory // HOT_SHARE_MIN, memory - taken)
        self.admission.share(self.hot.budget_bytes)
        if self.hot.used_bytes > self.hot.budget_bytes:
            self.hot.shrink()

    def keep_view(self, view: Pinning) -> None:
        """Note a view, as long as it is referred to."""
        self.views = [*(kept for kept in self.views if kept() is not None), weakref.ref(view)]
        self._views_counted += 1

    def drop_view(self, view: Pinning) -> None:
        """Forget a view, and those that were collected."""
        self.views = [kept for kept in self.views if (other := kept()) is not None and other is not view]

    def open_views(self) -> list[Pinning]:
        """The views that are open, oldest first."""
        return [view for reference in tuple(self.views) if (view := reference()) is not None]

    def pinned_bytes(self) -> int:
        """What views keep of the write buffers that the store has let go of."""
        views = self.open_views()
        kept = {id(buffer): buffer for view in views for buffer in view.buffers}
        for buffer in self.buffers:
            kept.pop(id(buffer), None)
        return sum(buffer.used_bytes() for buffer in kept.values()) + sum(view.order_bytes for view in views)
