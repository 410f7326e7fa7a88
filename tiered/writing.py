"""Writing to one open store: room in the journal, then journal → write buffer → hot tier.

It builds on `checkpoints`, which hands closed segments over.  Everything here is called
under the lock.  A method that may wait (`reserve`) lets go of it meanwhile and says
so, and its caller looks again at what it had read.  An interrupt in the middle of a write
leaves it written, in every tier, if the journal has it (`_roll_forward`).

Transactions are told of every write as it is made (`watchers`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import msgpack

from tiered import codec, keys
from tiered.checkpoints import Checkpoints
from tiered.disk_cap import excess_bytes, victims
from tiered.errors import StoreError, StoreFullError
from tiered.journal import CLEAR, CLOSE_BYTES, DELETE, HEADER_BYTES, PUT, SETTING, record_bytes
from tiered.maintenance import MAINTENANCE
from tiered.memory_cap import DELETED, ENTRY_BYTES, admit
from tiered.native import native
from tiered.process import by_handler
from tiered.tiers import EVICTIONS_MAX
from tiered.write_buffer import WriteBuffer

SEGMENT_RECORDS_MAX = 65_536
"""Bounds the pages that one checkpoint changes, and so the memory of whoever applies it."""
TRIM_SHARE = 4
"""The heap is trimmed when as much as the budget divided by this was evicted."""
_RECORD_BYTES = record_bytes(b"", b"")


class Mark:
    """An argument's default that is no value of its own; `help()` shows what it stands for."""

    def __init__(self, meaning: str) -> None:
        self.meaning = meaning

    def __repr__(self) -> str:
        return f"<{self.meaning}>"


UNSET: Any = Mark("not given")
"""A `ttl` that was not given."""


class Batch(NamedTuple):
    """Records to be written together, as columns: a tuple for each would keep the garbage collector busy."""

    keys: list[Any]
    encoded: list[bytes]
    codecs: list[int]
    payloads: list[bytes]
    bytes: int
    key_bytes_max: int


def _collect(source: Iterator[tuple[Any, Any]], count_max: int, bytes_max: int) -> Batch:
    """The next pairs, encoded: as many as `count_max`, and no more once they have come to `bytes_max`."""
    batch = Batch([], [], [], [], 0, 0)
    size = longest = 0
    for key, value in islice(source, count_max):
        encoded = keys.encode(key)
        number, payload = codec.encode(value)
        size += _RECORD_BYTES + len(encoded) + len(payload)
        longest = max(longest, len(encoded))
        batch.keys.append(key if key.__class__ is str else keys.canonical(key))
        batch.encoded.append(encoded)
        batch.codecs.append(number)
        batch.payloads.append(payload)
        if size >= bytes_max:
            break
    return batch._replace(bytes=size, key_bytes_max=longest)


collect: Callable[[Iterator[tuple[Any, Any]], int, int], Batch] = (
    partial(native.collect, Batch, keys.encode, keys.canonical, codec.encode, _RECORD_BYTES) if native else _collect
)


class Change(NamedTuple):
    """The new state of one key: a value, or its deletion."""

    key: Any
    encoded: bytes
    deleted: bool = False
    codec: int = 0
    payload: bytes = b""
    deadline: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of its record."""
        return record_bytes(self.encoded, self.payload)


class Watcher(Protocol):
    """A transaction, as far as writes concern it."""

    def note(self, stored_key: bytes | None) -> None:
        """A key was written; None for all of them."""


class Writing(Checkpoints):
    """Checkpoints, and the writes that make them needed."""

    _hand = b""
    """Where the next look for what the disk's cap drives out begins."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.watchers: set[weakref.ref[Watcher]] = set()

    def reserve(self, size: int, frees: bool = False) -> bool:
        """Make room for `size` bytes of records, in the active segment.

        True if the lock was let go of meanwhile, or keys were deleted.

        `frees` says that the write takes less room in the end, so that the disk cap does not refuse it.
        """
        buffer = self._active
        if buffer is not None and buffer.segment.position + size <= self._room_until:
            return False
        return self._make_room(size, frees)

    def has_room_now(self, size: int) -> bool:
        """Whether `reserve` would return at once, having done nothing."""
        buffer = self._active
        return buffer is not None and buffer.segment.position + size <= self._room_until

    def _make_room(self, size: int, frees: bool) -> bool:
        waited = False
        if not frees and self.settings.disk_full == "evict" and excess_bytes(self) > 0:
            waited = self._evict_cold()
        # Again after each wait: another thread may have begun a segment meanwhile, too small for this.
        while not self._has_room(size, frees):
            waited = self._wait_for_applied() or waited
            if self._active is None:
                self._begin_segment(size)
                break
        return waited

    def _evict_cold(self) -> bool:
        """Delete a slice of what was not used lately; True where the caller has to look again at what it had read."""
        self.check_writable()
        encoded, stored_bytes, self._hand = victims(self, self._hand)
        waited = self._make_room(sum(record_bytes(key, b"") for key in encoded), True)
        if not encoded or waited:  # Somebody may have read or written them in between: another call will look again.
            return waited
        self.write([Change(keys.decode(key), key, True) for key in encoded])
        assert self._active is not None
        self._active.evicted_bytes += stored_bytes
        self.counters.disk_evictions += len(encoded)
        return True

    def _has_room(self, size: int, frees: bool) -> bool:
        """Whether the active segment has room; closes it if not."""
        self.check_writable()
        if self.capped and not frees:
            raise StoreFullError(
                self.directory,
                f"the cold tier has reached the cap of {self.settings.disk:,} bytes; "
                "raise `disk`, or delete keys and save()",
            )
        if self._active is not None:
            used = self._active.used_bytes()
            segment = self._active.segment
            assert self.journal is not None
            if self.journal.active is not segment:  # A call that closes it was interrupted.
                self.rotate()
                return False
            room = segment.capacity - CLOSE_BYTES - segment.position
            if size <= room and used < self.share_bytes and len(self._active.positions) < SEGMENT_RECORDS_MAX:
                # Looked at again when so many bytes have come, index included: they take from the hot tier's budget.
                step = self.step_bytes * (segment.position - HEADER_BYTES) // max(used, 1)
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
                self.refuse_inside_others()
                self.counters.writer_waits += 1
                began = self.clock.monotonic()
            waited = True
            if self.full:
                raise self.full_kind(self.directory, self.full)
            self._wait_a_little()
            self.counters.wait_seconds += self.clock.monotonic() - began
            began = self.clock.monotonic()
            self.check_writable()
        return waited

    def _begin_segment(self, size: int) -> None:
        assert self.journal is not None
        try:
            segment = self.journal.open_segment(size, max(self.share_bytes, 1 << 16))
        except StoreFullError:
            raise
        except OSError as error:
            if by_handler(error):
                raise
            raise StoreError(self.directory, f"cannot make a journal segment: {error}") from error
        buffer = WriteBuffer(segment)
        self._journal_ahead = False
        self._active, self.buffers = buffer, (buffer, *self.buffers)
        self._room_until = min(segment.capacity - CLOSE_BYTES, segment.position + max(size, 4096))
        self._rebudget()

    def put(self, key: Any, encoded: bytes, number: int, payload: bytes, deadline: int) -> int:
        """Write one record, making room for it where that was not reserved.  Returns its sequence number."""
        size = _RECORD_BYTES + len(encoded) + len(payload)
        buffer = self._active
        if buffer is None or buffer.segment.position + size > self._room_until:
            self._make_room(size, False)
            buffer = self._active
        journal = self.journal
        assert buffer is not None
        assert journal is not None
        growth = admit(self, ((key, encoded, len(payload)),)) if self.bounded else 0
        stored_key = encoded if len(encoded) <= keys.STORED_BYTES_EXACT else keys.stored(encoded)
        position = buffer.segment.position
        try:
            journal.append(PUT, 0, encoded, payload, number, deadline)
            # The old value goes before the new one can be read from the buffer: who has seen the
            # new one must not find the old one hot.
            hot = self.hot
            hot.discard(key)
            buffer.put(stored_key, position, deadline)
            hot.put(key, number, payload, deadline)
            if self.watchers:
                self.tell((stored_key,))
        except BaseException:
            self._roll_forward(buffer, position)
            raise
        buffer.grown_bytes += growth
        self._changes += 1
        return journal.last

    def _roll_forward(self, buffer: WriteBuffer, position: int) -> None:
        """Interrupted in the middle of a write: what the journal has from `position` on is written, in every tier."""
        self.hot.clear()
        buffer.segment.rewind()
        for at, kind, key, deadline in buffer.segment.heads(position):
            if kind == PUT:
                buffer.put(keys.stored(key), at, deadline)
            elif kind == DELETE:
                buffer.delete(keys.stored(key), at)
            else:
                buffer.cleared = True
                self.generation += 1
            self.tell((None if kind == CLEAR else keys.stored(key),))

    def put_many(self, batch: Batch, deadline: int) -> int:
        """Write a batch; room was reserved."""
        buffer, journal = self._active, self.journal
        assert buffer is not None
        assert journal is not None
        start, count = buffer.segment.position, len(batch.keys)
        growth = 0
        if self.bounded:
            growth = admit(self, zip(batch.keys, batch.encoded, map(len, batch.payloads), strict=True))
        deadlines = [deadline] * count
        stored_keys = batch.encoded
        if batch.key_bytes_max > keys.STORED_BYTES_EXACT:
            stored_keys = list(map(keys.stored, batch.encoded))
        try:
            columns = [PUT] * count, batch.encoded, batch.payloads, batch.codecs, deadlines
            positions = journal.append_batch(*columns, batch.bytes)
            self.hot.discard_many(batch.keys)
            buffer.put_many(stored_keys, positions, deadlines)
            self.hot.put_many(batch.keys, batch.codecs, batch.payloads, deadline, EVICTIONS_MAX)
            if self.watchers:
                self.tell(stored_keys)
        except BaseException:
            self._roll_forward(buffer, start)
            raise
        buffer.grown_bytes += growth
        self._changes += count
        return journal.last

    @property
    def batch_bytes_max(self) -> int:
        """Records of one batch take at most this: the write buffer's share."""
        return self.share_bytes

    def write(self, changes: Sequence[Change]) -> int:
        """Write puts and deletions as one batch; room was reserved.  Each key once."""
        buffer, journal = self._active, self.journal
        assert buffer is not None
        assert journal is not None
        start = buffer.segment.position
        growth = 0
        if self.bounded:
            growth = admit(self, ((c.key, c.encoded, DELETED if c.deleted else len(c.payload)) for c in changes))
        stored_keys = [keys.stored(change.encoded) for change in changes]
        deadlines = [change.deadline for change in changes]
        try:
            positions = journal.append_batch(
                [DELETE if change.deleted else PUT for change in changes],
                [change.encoded for change in changes],
                [change.payload for change in changes],
                [change.codec for change in changes],
                deadlines,
                sum(change.bytes for change in changes),
            )
            for change in changes:
                self.hot.discard(change.key)
            places = [~at if change.deleted else at for at, change in zip(positions, changes, strict=True)]
            buffer.put_many(stored_keys, places, deadlines)
            most = self.hot.evictions + EVICTIONS_MAX
            for change in changes:
                if not change.deleted and self.hot.evictions < most:
                    self.hot.put(change.key, change.codec, change.payload, change.deadline)
            if self.watchers:
                self.tell(stored_keys)
        except BaseException:
            self._roll_forward(buffer, start)
            raise
        buffer.grown_bytes += growth
        self._changes += len(changes)
        return journal.last

    def clear(self) -> int:
        """Delete everything: one record, in a segment and buffer that hide all before them."""
        journal = self.journal
        assert journal is not None
        self.rotate()
        self._begin_segment(CLOSE_BYTES)
        buffer = self._active
        assert buffer is not None
        start = buffer.segment.position
        try:
            journal.append(CLEAR, 0, b"", b"", 0, 0)
            self.hot.clear()
            buffer.cleared = True
            self.generation += 1
            self.tell((None,))
        except BaseException:
            self._roll_forward(buffer, start)
            raise
        self._changes += 1
        return journal.last

    def bound(self, spill: bool) -> None:
        """Count what live records take from now on, where they may not spill, and refuse what is too much."""
        if not spill and not self.bounded:
            for buffer in self.buffers:  # Nobody has counted what is in them: as if all of it were new.
                buffer.grown_bytes = buffer.segment.position + len(buffer.positions) * ENTRY_BYTES
            self.rotate()
        self.bounded = not spill

    def put_setting(self, name: str, value: object) -> int:
        """Journal a setting to be remembered."""
        assert self.journal is not None
        payload = msgpack.packb(value)
        self.reserve(record_bytes(name.encode(), payload), frees=True)
        self.journal.append(SETTING, 0, name.encode(), payload, 0, 0)
        self._changes += 1
        return self.journal.last

    def _trim_due(self) -> bool:
        return (
            not self.hot.in_budget and self.hot.evicted_bytes - self._trimmed_bytes > self.settings.memory // TRIM_SHARE
        )

    def watch(self, watcher: Watcher) -> None:
        """Tell a transaction of writes, until `unwatch`, or as long as it is referred to."""
        self.watchers.add(weakref.ref(watcher, self.watchers.discard))

    def unwatch(self, watcher: Watcher) -> None:
        """Tell it no more: who keeps the `ConflictError` would refer to it for long."""
        self.watchers.discard(weakref.ref(watcher))

    def tell(self, stored_keys: Iterable[bytes | None]) -> None:
        """Tell transactions of keys just written."""
        watchers = [watcher for reference in tuple(self.watchers) if (watcher := reference()) is not None]
        for stored_key in stored_keys:
            for watcher in watchers:
                watcher.note(stored_key)
