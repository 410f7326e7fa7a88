"""Records: what was packed comes back, and bytes that were not packed under that key never do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiered import record
from tiered.native import native
from tiered.record import Record

SHAPES = {
    "plain": (b"key", 2, 1, 0, 0, b"", b"the payload, compressed or not"),
    "with dictionary": (b"key", 2, 1, 0xFFFF, 0, b"", b"payload"),
    "with deadline": (b"key", 2, 0, 0, 1_700_000_000_123, b"", b"payload"),
    "long key": (b"k" * 503, 0, 0, 0, 0, b"k" * 600, b"payload"),
    "long key and deadline": (b"k" * 503, 0, 2, 0, 1, b"k" * 32_768, b"payload"),
    "empty payload": (b"\x14", 0, 0, 0, 0, b"", b""),
    "empty payload, deadline": (b"\x14", 0, 0, 0, 5, b"", b""),
}


@pytest.mark.skipif(native is None, reason="there is no compiled part")
@given(st.binary(max_size=700), st.integers(0, 700), st.integers(0, 0xFFFFFFFF))
def test_the_compiled_checksum_is_zlibs_of_any_length_and_in_pieces(data, at, start):
    assert native is not None
    assert native.crc32(data, start) == record.crc32(data, start)
    assert native.crc32(data[at:], native.crc32(data[:at], start)) == record.crc32(data, start)


@pytest.mark.parametrize("parts", SHAPES.values(), ids=SHAPES)
def test_what_was_packed_is_unpacked(parts):
    stored_key, codec, compression, dictionary, deadline, full_key, body = parts
    data = record.pack(*parts)
    assert record.unpack(stored_key, data) == Record(codec, compression, dictionary, deadline, full_key, body)
    assert record.deadline_of(data) == deadline
    assert not record.is_marker(data)


@given(
    st.binary(min_size=1, max_size=503),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 0xFFFF),
    st.one_of(st.just(0), st.integers(1, (1 << 63) - 1)),
    st.one_of(st.just(b""), st.binary(min_size=481, max_size=700)),
    st.binary(max_size=300),
)
def test_any_parts_come_back(stored_key, codec, compression, dictionary, deadline, full_key, body):
    data = record.pack(stored_key, codec, compression, dictionary, deadline, full_key, body)
    assert record.unpack(stored_key, data) == (codec, compression, dictionary, deadline, full_key, body)
    assert record.deadline_of(data) == deadline


def test_a_deletion_marker_is_no_record():
    data = record.pack_marker(b"key")
    assert record.is_marker(data)
    assert record.unpack(b"key", data) is None
    assert record.deadline_of(data) == 0


def test_a_plain_record_takes_ten_bytes_more_than_its_payload():
    assert len(record.pack(b"key", 0, 0, 0, 0, b"", b"payload")) == 10 + len(b"payload")


@pytest.mark.parametrize("parts", [*SHAPES.values(), None], ids=[*SHAPES, "marker"])
def test_a_record_with_any_byte_changed_is_refused(parts):
    stored_key = parts[0] if parts else b"key"
    data = record.pack(*parts) if parts else record.pack_marker(stored_key)
    positions = range(len(data)) if len(data) < 1000 else [*range(64), *range(64, len(data), 97), len(data) - 1]
    for position in positions:
        for change in (0x01, 0x80, 0xFF, 0x55):
            broken = bytearray(data)
            broken[position] ^= change
            with pytest.raises(ValueError):
                record.unpack(stored_key, bytes(broken))


@pytest.mark.parametrize("parts", [*SHAPES.values(), None], ids=[*SHAPES, "marker"])
def test_a_record_cut_anywhere_is_refused(parts):
    stored_key = parts[0] if parts else b"key"
    data = record.pack(*parts) if parts else record.pack_marker(stored_key)
    for size in range(len(data)) if len(data) < 1000 else [*range(64), *range(64, len(data), 97), len(data) - 1]:
        with pytest.raises(ValueError):
            record.unpack(stored_key, data[:size])


@pytest.mark.parametrize("more", [b"\0", b"\0" * 4, b"x", b"\xff" * 40])
def test_a_record_followed_by_other_bytes_is_refused(more):
    data = record.pack(b"key", 0, 0, 0, 0, b"", b"payload")
    with pytest.raises(ValueError):
        record.unpack(b"key", data + more)


@pytest.mark.parametrize("other", [b"", b"kez", b"ke", b"keyy", b"KEY", b"key\0"])
@pytest.mark.parametrize("make", [lambda key: record.pack(key, 0, 0, 0, 0, b"", b"v"), record.pack_marker])
def test_a_record_found_under_another_key_is_refused(make, other):
    with pytest.raises(ValueError, match="checksum"):
        record.unpack(other, make(b"key"))


@given(st.binary(max_size=64))
@settings(max_examples=300)
def test_bytes_that_were_never_a_record_are_refused(data):
    with pytest.raises(ValueError):
        record.unpack(b"key", data)


@pytest.mark.parametrize("version", [2, 127, 200, 255])
def test_a_record_of_a_newer_version_is_refused_by_name(version):
    tail = bytes((version, 0, 0, 0, 0, 0)) + b"payload"
    data = record.crc32(tail, record.crc32(b"key")).to_bytes(4, "little") + tail
    with pytest.raises(ValueError, match=f"version {version}, newer than this program"):
        record.unpack(b"key", data)


def test_the_layout_is_frozen():
    """The bytes of one record of each shape, as written by the first version."""
    assert record.pack(b"key", 1, 2, 3, 0, b"", b"body").hex() == "118a3415010102000300626f6479"
    assert (
        record.pack(b"key", 1, 2, 3, 4, b"full", b"body").hex()
        == "396b0aba0101020303000400000000000000040066756c6c626f6479"
    )
    assert record.pack_marker(b"key").hex() == "894b9115010000040000"
