"""What closed segments hold for the cold tier: the last version of every key, and records made of it.

A version is kept as its *place*, one number of 8 bytes: which segment, and where in it; -1
for a deletion.  Payloads are taken out when their turn comes, a batch at a time, so
that memory holds the keys and a number for each, and no values.

`scan`, `ordered`, `payloads` and `changes` run once for every record and are compiled where
that is possible.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias
from zlib import crc32

import msgpack

from tiered import keys, record
from tiered.cold_state import Change
from tiered.compression import Compressor
from tiered.errors import CorruptionError
from tiered.journal import CLEAR, CLOSE, DELETE, HEADER_BYTES, PUT, RECORD, RECORD_MAGIC, SETTING, SegmentFile
from tiered.native import native

DELETED = -1
_SEGMENT_SHIFT = 40
_POSITION = (1 << _SEGMENT_SHIFT) - 1

Places: TypeAlias = "bytes | memoryview"
"""Places one after the other, 8 bytes each."""


class Pending:
    """What `segments` hold between the sequence numbers `applied` and `until`.

    Raises `CorruptionError` if it is not every record up to there.
    """

    def __init__(self, segments: Sequence[SegmentFile], applied: int, until: int) -> None:
        latest: dict[bytes, int] = {}
        self.cleared = False
        self.settings: dict[str, object] = {}
        self.time_ms = 0
        self._maps = [segment.data for segment in segments]
        sequence = applied
        for index, segment in enumerate(segments):
            # What was handed over twice has been read already, or follows what is missing.
            if segment.header is not None and max(segment.header.first, applied + 1) == sequence + 1:
                sequence = self._read(index, segment, applied, until, latest)
        if sequence < until:
            where = segments[-1].path if segments else Path()
            raise CorruptionError(where, f"holds records up to number {sequence} where {until} was written")
        self.stored_keys: list[bytes]
        self.stored_keys, places = ordered(latest)
        self._places = memoryview(places).cast("q")

    def _read(self, index: int, segment: SegmentFile, applied: int, until: int, latest: dict[bytes, int]) -> int:
        """Take in a segment; returns the number of the last record taken."""
        assert segment.header is not None
        seed, number, position = segment.header.seed, segment.header.first, HEADER_BYTES
        base, exact = index << _SEGMENT_SHIFT, keys.STORED_BYTES_EXACT
        while True:
            position, number = scan(segment.data, position, number, seed, applied, until, base, exact, latest)
            entry = segment.entry_at(position) if number <= until else None
            if entry is None or entry.sequence != number:
                return max(number - 1, applied)
            kind = entry.kind
            if kind in (PUT, DELETE):  # Of a long key.
                latest[keys.stored(entry.key)] = base + position if kind == PUT else DELETED
            elif kind == CLOSE:
                self.time_ms = entry.deadline
            elif kind == SETTING:
                self.settings[entry.key.decode()] = msgpack.unpackb(segment.slice(entry.start, entry.end))
            elif kind == CLEAR:
                latest.clear()
                self.cleared = True
            position, number = entry.end, number + 1

    def __len__(self) -> int:
        return len(self.stored_keys)

    def sample(self, step: int) -> list[bytes]:
        """The payloads of every `step`th key."""
        return payloads(self._places[::step].tobytes(), self._maps, 0)

    def changes(self, start: int, stop: int, compressor: Compressor, time_ms: int) -> list[Change]:
        """What becomes of `stored_keys[start:stop]`; what has expired by `time_ms` is deleted."""
        places = self._places[start:stop]
        compressed = compressor.compress_all(payloads(places, self._maps, time_ms))
        return changes(self.stored_keys[start:stop], places, self._maps, time_ms, keys.STORED_BYTES_EXACT, compressed)


def _scan(
    data: memoryview,
    position: int,
    number: int,
    seed: int,
    after: int,
    until: int,
    base: int,
    exact: int,
    latest: dict[bytes, int],
) -> tuple[int, int]:
    """Note the place of the last version of every key, from the record at `position` on, which is to be `number`.

    Records up to `after` are passed over.  It stops after `until`, and before anything else than a put or a
    deletion of a key of up to `exact` bytes, or what is no valid record; returns where, and which number is next.
    """
    size = len(data)
    if base >> 62 or size > _POSITION:
        raise OverflowError("too many segments, or one too large")
    while number <= until and position + RECORD.size <= size:
        crc, magic, kind, _, key_size, _, _, payload_size, sequence, _, _ = RECORD.unpack_from(data, position)
        start = position + RECORD.size
        end = start + key_size + payload_size
        if magic != RECORD_MAGIC or sequence != number or end > size:
            break
        if number > after and (kind not in (PUT, DELETE) or key_size > exact):
            break
        if crc32(data[position + 4 : end], seed) != crc:
            break
        if number > after:
            latest[bytes(data[start : start + key_size])] = base + position if kind == PUT else DELETED
        position, number = end, number + 1
    return position, number


def _ordered(latest: dict[bytes, int]) -> tuple[list[bytes], bytes]:
    """The keys, ascending, and their places."""
    stored_keys = sorted(latest)
    return stored_keys, array("q", map(latest.__getitem__, stored_keys)).tobytes()


def _payloads(places: Places, maps: list[memoryview], time_ms: int) -> list[bytes]:
    """Payloads of those of these places that hold a put which has not expired by `time_ms`.

    Raises ValueError for a place outside its segment.
    """
    found = (_find(place, maps, time_ms) for place in memoryview(places).cast("B").cast("q"))
    return [put[3] for put in found if put is not None]


def _changes(
    stored_keys: list[bytes],
    places: Places,
    maps: list[memoryview],
    time_ms: int,
    exact: int,
    compressed: list[tuple[int, int, bytes]],
) -> list[Change]:
    """The changes to these keys, given what `compress_all` made of their `payloads`.  ValueError if it was fewer."""
    result: list[Change] = []
    bodies = iter(compressed)
    for stored_key, place in zip(stored_keys, memoryview(places).cast("B").cast("q"), strict=False):
        put = _find(place, maps, time_ms)
        if put is None:
            result.append((stored_key, None, 0, 0))
            continue
        deadline, codec, key, payload = put
        following = next(bodies, None)
        if following is None:
            raise ValueError("fewer compressed payloads than puts")
        compression, dictionary, body = following
        full_key = key if len(stored_key) > exact else b""
        data = record.pack(stored_key, codec, compression, dictionary, deadline, full_key, body)
        result.append((stored_key, data, deadline, len(payload)))
    return result


def _find(place: int, maps: list[memoryview], time_ms: int) -> tuple[int, int, bytes, bytes] | None:
    """Deadline, codec, key and payload of the put at a place; None for a deletion, or what has expired."""
    if place == DELETED:
        return None
    index, position = place >> _SEGMENT_SHIFT, place & _POSITION
    if not 0 <= index < len(maps) or position + RECORD.size > len(maps[index]):
        raise ValueError("a place outside its segment")
    data = maps[index]
    _, _, _, _, key_size, codec, _, payload_size, _, _, deadline = RECORD.unpack_from(data, position)
    start = position + RECORD.size
    end = start + key_size + payload_size
    if end > len(data):
        raise ValueError("a place outside its segment")
    if 0 < deadline <= time_ms:
        return None
    return deadline, codec, bytes(data[start : start + key_size]), bytes(data[start + key_size : end])


scan = _scan if native is None else native.scan
ordered = _ordered if native is None else native.ordered
payloads = _payloads if native is None else native.payloads
changes = _changes if native is None else native.changes
