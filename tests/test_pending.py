"""What closed segments hold for the cold tier: compiled functions against their twins, on good bytes and bad."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any
from zlib import crc32

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tiered import pending, record
from tiered.journal import CLEAR, CLOSE, DELETE, PUT, RECORD, RECORD_MAGIC, SETTING
from tiered.native import native

SEED = 0x1234_5678
TWINS = {
    "scan": pending._scan,
    "ordered": pending._ordered,
    "payloads": pending._payloads,
    "changes": pending._changes,
    "unpack": lambda kind, *arguments: record._unpack(*arguments),
}
compiled_only = pytest.mark.skipif(native is None, reason="the compiled part is not there to be compared")

entries = st.lists(
    st.tuples(
        st.sampled_from([PUT, PUT, PUT, PUT, DELETE, DELETE, CLOSE, SETTING, CLEAR, 9]),
        st.one_of(st.binary(max_size=5), st.binary(min_size=9, max_size=12)),
        st.binary(max_size=40),
        st.sampled_from([0, 0, 0, 5, 50, -3, 1 << 62]),
    ),
    max_size=12,
)
EXACT = 8


def segment(records: list[tuple[int, bytes, bytes, int]], first: int = 1) -> bytearray:
    """Records as in a segment, without a header before them."""
    data = bytearray()
    for number, (kind, key, payload, deadline) in enumerate(records, first):
        body = RECORD.pack(0, RECORD_MAGIC, kind, 0, len(key), kind, 0, len(payload), number, 0, deadline)[4:]
        body += key + payload
        data += struct.pack("<I", crc32(body, SEED)) + body
    return data


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call returns, or the kind of error it raises."""
    try:
        return call(*arguments)
    except (ValueError, OverflowError, KeyError) as error:
        return type(error)


def both(name: str, *arguments: Any) -> Any:
    """The outcome of a compiled function, which is that of its twin."""
    found = outcome(getattr(native, name), *arguments)
    assert found == outcome(TWINS[name], *arguments)
    return found


def both_scan(data: bytes | bytearray, position: int, number: int, after: int, until: int) -> dict[bytes, int]:
    ours: dict[bytes, int] = {}
    theirs: dict[bytes, int] = {}
    arguments = (memoryview(data), position, number, SEED, after, until, 3 << 40, EXACT)
    assert outcome(native.scan, *arguments, ours) == outcome(pending._scan, *arguments, theirs)
    assert (ours, list(ours)) == (theirs, list(theirs))
    return ours


@compiled_only
@given(entries, st.integers(0, 12), st.integers(0, 14))
@settings(max_examples=300, deadline=None)
def test_scanning_gives_the_same_places_as_its_twin(records, after, until):
    both_scan(segment(records), 0, 1, after, until)


@compiled_only
@given(entries, st.data())
@settings(max_examples=400, deadline=None)
def test_scanning_damaged_bytes_ends_where_its_twin_ends(records, data):
    bytes_ = segment(records)
    for _ in range(data.draw(st.integers(0, 3))):
        if bytes_:
            bytes_[data.draw(st.integers(0, len(bytes_) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    del bytes_[data.draw(st.integers(0, len(bytes_))) :]
    both_scan(bytes_, data.draw(st.integers(0, len(bytes_) + 50)), data.draw(st.integers(0, 3)), 0, 1 << 63)


@compiled_only
@pytest.mark.parametrize("key_size", [0, 1, 7, 0xFFFF])
@pytest.mark.parametrize("payload_size", [0, 1, 100, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_lengths_that_lie_end_the_scan_and_are_refused_as_places(key_size, payload_size):
    """Also where the checksum agrees, as far as there are bytes to take it of."""
    body = RECORD.pack(0, RECORD_MAGIC, PUT, 0, key_size, 0, 0, payload_size, 1, 0, 0)[4:] + b"x" * 20
    data = struct.pack("<I", crc32(body, SEED)) + body
    # In a buffer of exactly its size, so that reading past it would be found by a checker of memory.
    both_scan(data, 0, 1, 0, 9)
    place = struct.pack("<q", 0)
    found = both("payloads", place, [memoryview(data)], 0)
    assert (found is ValueError) is (key_size + payload_size > 20)
    both("changes", [b"x" * min(key_size, 20)], place, [memoryview(data)], 0, EXACT, [(1, 2, b"body")])


@compiled_only
@example([-1_099_511_627_766])
@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 300), max_size=5))
def test_places_outside_their_segment_are_refused(places):
    maps = [memoryview(bytes(segment([(PUT, b"key", b"payload", 0)])))]
    both("payloads", struct.pack(f"<{len(places)}q", *places), maps, 0)


@compiled_only
@given(st.dictionaries(st.binary(max_size=12), st.integers(-1, 1 << 62), max_size=30), st.binary(max_size=9))
def test_keys_are_sorted_as_by_python_with_their_places(latest, prefix):
    latest = {prefix + key: place for key, place in latest.items()}
    stored_keys, places = both("ordered", latest)
    assert stored_keys == sorted(latest)
    assert struct.unpack(f"<{len(latest)}q", places) == tuple(map(latest.get, stored_keys))


@compiled_only
@pytest.mark.parametrize("wrong", [{"text": 1}, {b"key": "text"}, {b"key": None}, {b"key": 1 << 70}, [b"key"], None])
def test_what_is_no_dict_of_places_is_refused(wrong):
    with pytest.raises((TypeError, OverflowError)):
        native.ordered(wrong)


@compiled_only
@given(entries, st.sampled_from([0, 5, 60]), st.data())
@settings(max_examples=300, deadline=None)
def test_changes_are_those_of_the_twin_byte_for_byte(records, time_ms, data):
    maps = [memoryview(bytes(segment(records))), memoryview(bytes(segment(records, 7)))]
    latest: dict[bytes, int] = {}
    for index, map_ in enumerate(maps):
        position = 0
        for kind, key, payload, _ in records:
            # A long key stands under another one, as `keys.stored` makes it.
            name = key if len(key) <= EXACT else b"long " + key[:EXACT]
            if kind in (PUT, DELETE):
                latest[name] = (index << 40) + position if kind == PUT else -1
            position += RECORD.size + len(key) + len(payload)
        assert position == len(map_)
    stored_keys, places = both("ordered", latest)
    found = both("payloads", places, maps, time_ms)
    bodies = [data.draw(st.tuples(st.integers(0, 255), st.integers(0, 65535), st.binary(max_size=9))) for _ in found]
    changes = both("changes", stored_keys, places, maps, time_ms, EXACT, bodies)
    for stored_key, packed, deadline, _ in changes:
        if packed is not None:
            parts = both("unpack", record.Record, stored_key, packed)
            assert parts.deadline == deadline
    if bodies:
        assert both("changes", stored_keys, places, maps, time_ms, EXACT, bodies[1:]) is ValueError


@compiled_only
def test_ids_out_of_range_are_refused():
    data, place = memoryview(bytes(segment([(PUT, b"key", b"payload", 0)]))), struct.pack("<q", 0)
    for wrong in ((256, 0, b""), (-1, 0, b""), (0, 65536, b""), (0, -1, b"")):
        with pytest.raises((ValueError, struct.error)):
            pending._changes([b"key"], place, [data], 0, EXACT, [wrong])
        with pytest.raises(ValueError, match="out of range"):
            native.changes([b"key"], place, [data], 0, EXACT, [wrong])


@compiled_only
@given(st.data())
@settings(max_examples=400, deadline=None)
def test_records_good_and_damaged_are_taken_apart_as_by_the_twin(data):
    key, body = data.draw(st.binary(max_size=20)), data.draw(st.binary(max_size=40))
    full_key, deadline = data.draw(st.sampled_from([b"", b"full key" * 70])), data.draw(st.sampled_from([0, 9, -9]))
    packed = bytearray(record.pack(key, 1, 2, 3, deadline, full_key, body))
    if data.draw(st.booleans()):
        for _ in range(data.draw(st.integers(0, 2))):
            packed[data.draw(st.integers(0, min(30, len(packed) - 1)))] ^= 1 << data.draw(st.integers(0, 7))
        del packed[data.draw(st.integers(0, len(packed))) :]
        if len(packed) >= 4 and data.draw(st.booleans()):  # With a checksum that agrees.
            packed[:4] = struct.pack("<I", crc32(packed[4:], crc32(key)))
    found = both("unpack", record.Record, key, bytes(packed))
    assert found is None or found is ValueError or type(found) is record.Record


@compiled_only
def test_random_bytes_with_a_right_checksum_are_taken_apart_as_by_the_twin():
    uniform = random.Random(5)
    for _ in range(3000):
        rest = bytes((1, *uniform.randbytes(2), uniform.randrange(8))) + uniform.randbytes(uniform.randrange(20))
        both("unpack", record.Record, b"k", struct.pack("<I", crc32(rest, crc32(b"k"))) + rest)
