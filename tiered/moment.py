"""One moment of a store: what all tiers hold, taken together under the lock.

The hot tier holds nothing that the others do not, so a moment is the write buffers,
newest first, and an LMDB read transaction begun under the same hold of the lock: no
record can be between them.  Buffers set aside never change.  The active one goes on
being written; a moment that is to *stay* (a view) notes how far it was filled and has
it keep the positions that later writes of the same keys replace, so that taking a moment costs
the same whatever is dirty.  One page of an iteration takes a moment of its own, which need not stay where
writes come one by one.

Locking: made and closed under the store's lock.  In between it takes the lock only to
put keys in order.  Not for two threads at a time, since it reads through one transaction.
"""

from __future__ import annotations

import contextlib
import heapq
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from operator import itemgetter

from tiered import record
from tiered.cold import translated
from tiered.cold_state import deadline_key, split_deadline
from tiered.journal import Dirty
from tiered.tiers import Tiers
from tiered.write_buffer import WriteBuffer

PAGE_RECORDS = 256
PAGE_BYTES = 1 << 20
_EXAMINED_MAX = 4096
_NEVER_MS = (1 << 63) - 1

Item = tuple[bytes, Dirty]
_Source = Iterator[tuple[bytes, "WriteBuffer | None", "bytes | None"]]


class Moment:
    """Buffers and a read transaction that belong together; close it soon, the transaction keeps pages from reuse."""

    _stays = False  # Until it is made: making may be interrupted.

    def __init__(self, tiers: Tiers, stays: bool = False, inside: bool = False) -> None:
        self._tiers = tiers
        self.now_ms = tiers.clock.now_ms()
        self._ordered: list[list[bytes]] | None = None
        self.cold, self.buffers, self._reader = tiers.begin(inside)
        self._active = self.buffers[0] if self.buffers else None
        # What the newest buffer holds from here on came later.
        self._filled = self._active.segment.position if stays and self._active is not None else None
        self._stays = stays
        if stays and self._active is not None:
            self._active.pin(id(self))

    def close(self) -> None:
        """End the transaction and let go of the buffers."""
        self._end_reading()
        if self._stays and self._active is not None:
            self._active.unpin(id(self))
            self._active = None
        self.buffers = ()
        self._ordered = None

    def _end_reading(self) -> None:
        if (reader := self.__dict__.pop("_reader", None)) is not None:
            self.cold.end(reader)

    def __del__(self) -> None:
        # Collected without `close`, perhaps in a thread that has no lock: nothing but atomic steps.
        self._end_reading()
        if self._stays and self._active is not None:
            self._active.pins.discard(id(self))

    def abandon(self) -> None:
        """In a forked child: forget everything.

        The transaction's slot is the parent's.  Ended, it would be free and what the parent sees
        written over; merely forgotten, it stays (py-lmdb looks at the process), and the child can open the store.
        """
        del self._reader, self.cold
        self.buffers = ()

    def find(self, stored_key: bytes, encoded: bytes) -> Dirty | None:
        """A key's record, None if it was deleted, had expired or was never there.  Raises `CorruptionError`."""
        for buffer in self.buffers:
            position = self._position(buffer, stored_key)
            if position is not None:
                found = buffer.put_of(encoded, position)
                break
            if buffer.cleared:
                return None
        else:
            with translated(self.cold.path):
                data = self._reader.newest(stored_key)
            found = None if data is None else self._tiers.opened(self.cold, stored_key, data, encoded)
        return None if found is None or 0 < found.deadline <= self.now_ms else found

    def _position(self, buffer: WriteBuffer, stored_key: bytes) -> int | None:
        if self._filled is None or buffer is not self._active:
            return buffer.positions.get(stored_key)
        return buffer.position_before(stored_key, self._filled)

    def put_in_order(self) -> list[list[bytes]]:
        """The keys of each buffer in order; takes the lock the first time."""
        if self._ordered is None:
            with self._tiers.lock:
                self._ordered = [buffer.sorted_keys() for buffer in self.buffers]
        return self._ordered

    @property
    def order_bytes(self) -> int:
        """Lists of keys in order that only this moment keeps, since their buffers have newer ones."""
        pairs = zip(self._ordered or (), self.buffers, strict=False)
        return sum(sys.getsizeof(ordered) for ordered, buffer in pairs if not buffer.is_order(ordered))

    def page(self, start: bytes, stop: bytes | None, reverse: bool, values: bool) -> tuple[list[Item], bytes | None]:
        """Live records from `start` on, and the last key looked at, None when there are no more.

        Without `values`, payloads may be left as they are stored.
        """
        with translated(self.cold.path):
            return self._page(start, stop, reverse, values)

    def _page(self, start: bytes, stop: bytes | None, reverse: bool, values: bool) -> tuple[list[Item], bytes | None]:
        found: list[Item] = []
        size = examined = 0
        previous = None
        for stored_key, buffer, data in self._merged(start, stop, reverse):
            if stored_key == previous:
                continue
            if buffer is not None:
                position = self._position(buffer, stored_key)
                if position is None:
                    continue  # It came after this moment; an older buffer or the cold tier may know the key.
                put = buffer.segment.put_at(position) if position >= 0 else None
            else:
                assert data is not None
                put = self._of_cold(stored_key, data, values)
            previous = stored_key
            if put is not None and not 0 < put.deadline <= self.now_ms:
                found.append((stored_key, put))
                size += len(put.payload)
            examined += 1
            if len(found) >= PAGE_RECORDS or size >= PAGE_BYTES or examined >= _EXAMINED_MAX:
                # A page of LMDB that is whole, and not the one that belongs there, would have it go round for ever.
                if stored_key < start or (reverse and stop is not None and stored_key >= stop):
                    raise self._tiers.damaged(self.cold, stored_key, ValueError("keys are out of order"))
                return found, stored_key
        return found, None

    def _of_cold(self, stored_key: bytes, data: bytes, values: bool) -> Dirty | None:
        if values:
            return self._tiers.opened(self.cold, stored_key, data)
        # The checksum takes in the key: none is given out that never was, and damage makes none vanish as if expired.
        try:
            found = record.unpack(stored_key, data)
        except ValueError as error:
            raise self._tiers.damaged(self.cold, stored_key, error) from None
        return None if found is None else tuple.__new__(Dirty, (0, found.deadline, found.full_key, b""))

    def _merged(self, start: bytes, stop: bytes | None, reverse: bool) -> _Source:
        """Records of all tiers in key order, the newest first among equal keys."""
        sources: list[_Source] = []
        for buffer, stored_keys in zip(self.buffers, self.put_in_order(), strict=True):
            low = bisect_left(stored_keys, start)
            high = len(stored_keys) if stop is None else bisect_left(stored_keys, stop)
            indexes = range(high - 1, low - 1, -1) if reverse else range(low, high)
            sources.append(_of_buffer(buffer, stored_keys, indexes))
            if buffer.cleared:
                break
        else:
            sources.append((key, None, data) for key, data in self._reader.scan(start, stop, reverse))
        if len(sources) == 1:
            return sources[0]
        # Among equal keys `merge` keeps the order of its arguments.
        return heapq.merge(*sources, key=itemgetter(0), reverse=reverse)

    def dirty(self) -> dict[bytes, bool]:
        """The keys in the buffers, and whether they are there and alive; takes the lock."""
        latest: dict[bytes, bool] = {}
        with self._tiers.lock:
            for buffer in self.buffers:
                for key in buffer.positions:
                    if key not in latest and (position := self._position(buffer, key)) is not None:
                        latest[key] = position >= 0 and not 0 < buffer.deadline_at(key, position) <= self.now_ms
                if buffer.cleared:
                    break
        return latest

    def next_deadline(self, but: Iterable[bytes] = ()) -> int:
        """No record but those of the stored keys `but` expires before this, 0 if none does; under the lock."""
        newer = set(but)
        later: list[int] = []
        for buffer in self.buffers:
            later += [at for key, at in buffer.deadlines.items() if at > self.now_ms and key not in newer]
            newer.update(buffer.positions)
            if buffer.cleared:
                return min(later, default=0)
        with translated(self.cold.path):
            for entry in self._reader.due(_NEVER_MS, deadline_key(self.now_ms + 1, b"")):
                deadline, stored_key = split_deadline(entry)
                if stored_key not in newer:  # Else it was written again, with a deadline of its own or none.
                    later.append(deadline)
                    break
        return min(later, default=0)

    def count(self, dirty: dict[bytes, bool]) -> int:
        """Live records over all tiers, given `dirty()`.

        The cold tier knows its number.  Every dirty key costs a lookup there, about 1 µs,
        since writes never look whether their key exists; and what expired there without
        having been removed yet is counted in its index.
        """
        alive = sum(dirty.values())
        if any(buffer.cleared for buffer in self.buffers):
            return alive
        with translated(self.cold.path):
            reader = self._reader
            total = reader.state().records - sum(1 for _ in reader.due(self.now_ms))
            for key in dirty:
                data = reader.newest(key)
                if data is not None and not 0 < record.deadline_of(data) <= self.now_ms:
                    total -= 1
        return total + alive


def _of_buffer(buffer: WriteBuffer, stored_keys: list[bytes], indexes: range) -> _Source:
    for index in indexes:
        yield stored_keys[index], buffer, None


@contextlib.contextmanager
def passing(tiers: Tiers) -> Iterator[Moment]:
    """The moment now, closed when the block ends."""
    tiers.check_readable()
    inside = tiers.owned()
    with tiers.lock:
        # A follower takes in many batches at a time, of which a page must not show the half.
        moment = Moment(tiers, tiers.readonly, inside)
    try:
        yield moment
    finally:
        if tiers.readonly:
            with tiers.lock:
                moment.close()
        else:
            moment.close()
