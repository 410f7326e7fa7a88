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
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator

from tiered import record
from tiered.cold import translated
from tiered.cold_state import deadline_key, split_deadline
from tiered.journal import Dirty
from tiered.tiers import Tiers
from tiered.write_buffer import WriteBuffer

PAGE_RECORDS = 256
PAGE_BYTES = 1 << 20
_NEVER_MS = (1 << 63) - 1

Item = tuple[bytes, Dirty]
Page = tuple[list[Item], "bytes | None"]
_Source = bytes | tuple[WriteBuffer, int]
"""Where a record is: in the cold tier, as it is there, or in a buffer, `~position` for a deletion."""


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

    def let_go(self) -> None:
        """As `close`, but without the lock: nothing but atomic steps."""
        self._end_reading()
        if self._stays and self._active is not None:
            self._active.pins.discard(id(self))

    def __del__(self) -> None:
        self.let_go()  # Collected without `close`, perhaps in a thread that has no lock.

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

    def page(self, start: bytes, stop: bytes | None, reverse: bool, values: bool) -> Page:
        """Live records with `start <= key < stop` in key order, and the bound to go on from, None if there are no more.

        Without `values`, payloads may be left out.
        """
        with translated(self.cold.path):
            stored_keys, sources, bound = self._gathered(start, stop, reverse)
            cold = {key: data for key, data in zip(stored_keys, sources, strict=True) if isinstance(data, bytes)}
            # The last one comes first; they may end before the others do, where there are so many bytes.
            opened = self._tiers.opened_many(self.cold, list(cold), list(cold.values()), None, values, PAGE_BYTES)[::-1]
            found: list[Item] = []
            size, last = 0, b""
            for stored_key, source in zip(stored_keys, sources, strict=True):
                if size >= PAGE_BYTES or (isinstance(source, bytes) and not opened):
                    return found, last if reverse else stored_key
                put = opened.pop() if isinstance(source, bytes) else _put_at(*source)
                last = stored_key
                if put is not None and not 0 < put.deadline <= self.now_ms:
                    found.append((stored_key, put))
                    size += len(put.payload)
        return found, bound

    def _gathered(
        self, start: bytes, stop: bytes | None, reverse: bool
    ) -> tuple[list[bytes], list[_Source], bytes | None]:
        """Keys in order, where the newest record of each is, and the bound up to which these are all, None: no more."""
        asked = start, stop
        newer: list[tuple[WriteBuffer, list[bytes]]] = []
        for buffer, ordered in zip(self.buffers, self.put_in_order(), strict=True):
            low, high = _places(ordered, start, stop)
            if high - low > PAGE_RECORDS and reverse:
                low = high - PAGE_RECORDS
                start = ordered[low]
            elif high - low > PAGE_RECORDS:
                high = low + PAGE_RECORDS
                stop = ordered[high]
            newer.append((buffer, ordered[low:high]))
            if buffer.cleared:
                newest: dict[bytes, _Source] = {}
                break
        else:
            some = self._reader.slice(start, stop, reverse, PAGE_RECORDS, PAGE_BYTES)
            if some.damaged:
                self.cold.damaged_page(some.last or (stop if reverse and stop else start))
            newest = dict(zip(some.keys, some.datas, strict=True))
            if some.last is not None and reverse:
                start = some.last
            elif some.last is not None:
                stop = some.last + b"\0"
        for buffer, ordered in reversed(newer):
            for stored_key in ordered[slice(*_places(ordered, start, stop))]:
                position = self._position(buffer, stored_key)
                if position is not None:  # Else it came after this moment, and what is older may know the key.
                    newest[stored_key] = buffer, position
        stored_keys = sorted(newest, reverse=reverse) if newer else list(newest)
        if len(stored_keys) > PAGE_RECORDS:
            start, stop = (stored_keys[PAGE_RECORDS - 1], stop) if reverse else (start, stored_keys[PAGE_RECORDS])
            del stored_keys[PAGE_RECORDS:]
        ended = (start, stop) == asked
        return stored_keys, list(map(newest.__getitem__, stored_keys)), None if ended else start if reverse else stop

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


def _put_at(buffer: WriteBuffer, position: int) -> Dirty | None:
    return buffer.segment.put_at(position) if position >= 0 else None


def _places(ordered: list[bytes], start: bytes, stop: bytes | None) -> tuple[int, int]:
    """Where those that are not before `start`, but before `stop`, begin and end."""
    low = bisect_left(ordered, start)
    return low, len(ordered) if stop is None else bisect_left(ordered, stop, low)


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
