"""Ordered iteration and counting over all tiers.

The hot tier holds nothing that the others do not, so a range merges the write buffers,
newest first, with the cold tier.  It is read in pages: under the lock the buffers'
keys are put in order and an LMDB transaction begins, so that no record can be between
them; then the page is collected without the lock and the transaction ends before the
first of its items is given out.  A key that is there throughout comes exactly once;
one written or deleted meanwhile may come or not.
"""

from __future__ import annotations

import contextlib
import heapq
from bisect import bisect_left
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

from tiered import keys, record
from tiered.cold import Reader
from tiered.engine import Engine
from tiered.journal import Dirty
from tiered.write_buffer import WriteBuffer

PAGE_RECORDS = 256
PAGE_BYTES = 1 << 20
_EXAMINED_MAX = 4096

Item = tuple[bytes, Dirty]


class Range:
    """Bounds of encoded keys, and the direction to go in."""

    def __init__(self, lower: bytes = b"", upper: bytes | None = None, reverse: bool = False) -> None:
        self.lower, self.upper, self.reverse = lower, upper, reverse
        self.stored_lower, self.stored_upper = keys.stored_range(lower, upper)

    @classmethod
    def of(cls, prefix: object, start: object, stop: object, reverse: bool) -> Range:
        """The range of keys with a prefix and from `start` up to but without `stop`."""
        lower, upper = (b"", None) if prefix is None else keys.prefix_range(prefix)
        if start is not None:
            lower = max(lower, keys.encode(start))
        if stop is not None:
            bound = keys.encode(stop)
            upper = bound if upper is None else min(upper, bound)
        return cls(lower, upper, reverse)

    def holds(self, encoded: bytes) -> bool:
        """Whether a key lies in the range."""
        return encoded >= self.lower and (self.upper is None or encoded < self.upper)


def items(engine: Engine, bounds: Range, values: bool) -> Iterator[tuple[Any, Dirty]]:
    """Keys of a range with their records; without `values`, payloads may be left as they are stored."""
    start, stop = bounds.stored_lower, bounds.stored_upper
    while True:
        engine.check_readable()
        page, last = _page(engine, start, stop, bounds.reverse, values)
        for stored_key, found in page:
            encoded = found.full_key if keys.is_long(stored_key) else stored_key
            if encoded is stored_key or bounds.holds(encoded):
                yield keys.decode(encoded), found
        if last is None:
            return
        if bounds.reverse:
            stop = last
        else:
            start = last + b"\0"


def _page(
    engine: Engine, start: bytes, stop: bytes | None, reverse: bool, values: bool
) -> tuple[list[Item], bytes | None]:
    """Live records from `start` on, and the last key looked at, None when there are no more."""
    now_ms = engine.clock.now_ms()
    page: list[Item] = []
    with contextlib.ExitStack() as reading:
        with engine.lock:
            reader = reading.enter_context(engine.cold.read())
            buffers = engine.buffers
            ordered = [buffer.sorted_keys() for buffer in buffers]
        size = examined = 0
        previous = None
        for stored_key, buffer, data in _merged(buffers, ordered, reader, start, stop, reverse):
            if stored_key == previous:
                continue
            previous = stored_key
            found = _found(engine, stored_key, buffer, data, values, now_ms)
            if found is not None and not 0 < found.deadline <= now_ms:
                page.append((stored_key, found))
                size += len(found.payload)
            examined += 1
            if len(page) >= PAGE_RECORDS or size >= PAGE_BYTES or examined >= _EXAMINED_MAX:
                return page, stored_key
        return page, None


def _found(
    engine: Engine, stored_key: bytes, buffer: WriteBuffer | None, data: bytes | None, values: bool, now_ms: int
) -> Dirty | None:
    if buffer is not None:
        return buffer.get(stored_key)
    assert data is not None
    deadline = record.deadline_of(data)
    # What seems to have expired is looked at closely: damage must not make a key vanish.
    if values or keys.is_long(stored_key) or 0 < deadline <= now_ms:
        return engine.opened(engine.cold, stored_key, data)
    return Dirty(0, deadline, b"", b"")


def _merged(
    buffers: tuple[WriteBuffer, ...],
    ordered: list[list[bytes]],
    reader: Reader,
    start: bytes,
    stop: bytes | None,
    reverse: bool,
) -> Iterator[tuple[bytes, WriteBuffer | None, bytes | None]]:
    """Records of all tiers in key order, the newest first among equal keys."""
    sources: list[Iterator[tuple[bytes, WriteBuffer | None, bytes | None]]] = []
    for buffer, stored_keys in zip(buffers, ordered, strict=True):
        low = bisect_left(stored_keys, start)
        high = len(stored_keys) if stop is None else bisect_left(stored_keys, stop)
        indexes = range(high - 1, low - 1, -1) if reverse else range(low, high)
        sources.append(_of_buffer(buffer, stored_keys, indexes))
        if buffer.cleared:
            break
    else:
        sources.append((key, None, data) for key, data in reader.scan(start, stop, reverse))
    if len(sources) == 1:
        return sources[0]
    # Among equal keys `merge` keeps the order of its arguments.
    return heapq.merge(*sources, key=itemgetter(0), reverse=reverse)


def _of_buffer(
    buffer: WriteBuffer, stored_keys: list[bytes], indexes: range
) -> Iterator[tuple[bytes, WriteBuffer, None]]:
    for index in indexes:
        yield stored_keys[index], buffer, None


def count(engine: Engine) -> int:
    """Live records over all tiers.

    The cold tier knows its number.  Every dirty key costs a lookup there, about 1 µs,
    since writes never look whether their key exists; and what expired there without
    having been removed yet is counted in its index.
    """
    engine.check_readable()
    now_ms = engine.clock.now_ms()
    with contextlib.ExitStack() as reading:
        with engine.lock:
            reader = reading.enter_context(engine.cold.read())
            buffers = engine.buffers
            latest: dict[bytes, tuple[WriteBuffer, int]] = {}
            cleared = False
            for buffer in buffers:
                for key, position in buffer.positions.items():
                    latest.setdefault(key, (buffer, position))
                if buffer.cleared:
                    cleared = True
                    break
        alive = sum(
            position >= 0 and not 0 < buffer.deadlines.get(key, 0) <= now_ms
            for key, (buffer, position) in latest.items()
        )
        if cleared:
            return alive
        total = reader.state().records - sum(1 for _ in reader.due(now_ms))
        for key in latest:
            data = reader.newest(key)
            if data is not None and not 0 < record.deadline_of(data) <= now_ms:
                total -= 1
        return total + alive
