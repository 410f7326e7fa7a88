"""The snapshot file: its format, and what every kind of damage to it comes to."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

import tiered
from tiered import codec, record, snapshot
from tiered.errors import CorruptionError, FormatError, NotAStoreError
from tiered.snapshot import About, SnapshotFile, SnapshotInfo, Writer


def made(path: Path, records: dict[bytes, bytes], sections: int = 1, **about: Any) -> SnapshotInfo:
    """A snapshot file of these records, in so many sections."""
    writer = Writer(path, About(records=len(records), **about))
    keys = sorted(records)
    step = max(1, -(-len(keys) // sections))
    try:
        for at in range(0, len(keys), step):
            chunk = keys[at : at + step]
            writer.records(chunk, [records[key] for key in chunk])
        info = writer.finish()
        writer.file.commit()
    finally:
        writer.file.abandon()
    return info


def stored(count: int) -> dict[bytes, bytes]:
    keys = [b"\x02key%04d" % number for number in range(count)]
    return {key: record.pack(key, codec.BYTES, 0, 0, 0, b"", b"value of " + key) for key in keys}


def read(path: Path) -> tuple[About, dict[int, bytes], dict[bytes, bytes]]:
    """All that a file holds."""
    dictionaries: dict[int, bytes] = {}
    records: dict[bytes, bytes] = {}
    with SnapshotFile(path) as file:
        for part in file.read():
            if isinstance(part[0], int):
                dictionaries[part[0]] = part[1]
            else:
                records.update(zip(*part, strict=True))
        return file.about, dictionaries, records


def outcome(path: Path) -> Any:
    """What reading gives: all that the file holds, or the kind of the error."""
    try:
        return read(path)
    except (CorruptionError, NotAStoreError, FormatError) as error:
        return type(error)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small snapshot with two sections of records and a dictionary."""
    path = tmp_path / "small.tsnap"
    writer = Writer(path, About(store="/s", records=4, dictionary=1, dictionary_next=2))
    writer.dictionary(1, b"a dictionary")
    records = stored(4)
    for keys in (sorted(records)[:2], sorted(records)[2:]):
        writer.records(keys, [records[key] for key in keys])
    writer.finish()
    writer.file.commit()
    return path


def sections(data: bytes) -> list[bytes]:
    """The parts of a file: header, then each section."""
    parts, at = [data[: snapshot.HEADER.size]], snapshot.HEADER.size
    while at < len(data):
        size = snapshot.SECTION.size + snapshot.SECTION.unpack_from(data, at)[-1]
        parts.append(data[at : at + size])
        at += size
    return parts


# The format


def test_the_numbers_of_the_format_are_frozen():
    assert (snapshot.MAGIC, snapshot.VERSION, snapshot.SECTION_MAGIC) == (b"tiersnap", 1, 0x5EC7)
    assert (snapshot.ABOUT, snapshot.DICTIONARY, snapshot.RECORDS, snapshot.THE_END) == (1, 2, 3, 4)
    assert (snapshot.HEADER.format, snapshot.SECTION.format, snapshot.END.format) == (
        "<8sHHII",
        "<IHBBIIQQ",
        "<QQQQ16s",
    )


def test_a_file_is_what_the_table_in_the_docstring_says(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda size: b"\1\2\3\4"[:size])
    path = tmp_path / "golden.tsnap"
    made(path, stored(2))
    data = path.read_bytes()
    assert data[:16] == b"tiersnap\x01\x00\x00\x00\x01\x02\x03\x04"
    assert struct.unpack("<I", data[16:20]) == (crc32(data[:16]),)
    _, _, records, end = sections(data)
    key, data = b"\x02key0000", stored(1)[b"\x02key0000"]
    head = struct.unpack("<IHBBIIQQ", records[:32])
    assert head[1:] == (0x5EC7, 3, 0, 2, crc32(records[32:], 0x04030201), 1, len(records) - 32)
    assert head[0] == crc32(records[4:32], 0x04030201)
    assert records[32:44] == struct.pack("<2H2I", 8, 8, len(data), len(data))
    assert records[44:60] == b"\x02key0000\x02key0001"
    assert records[60:].startswith(data)
    assert struct.unpack("<QQQQ", end[32:64]) == (2, 2 * len(data), 0, 2)
    assert len(end) == 80
    assert key in records


def test_what_is_written_is_read(small):
    about, dictionaries, records = read(small)
    assert (about.store, about.records, about.dictionary_next) == ("/s", 4, 2)
    assert (dictionaries, records) == ({1: b"a dictionary"}, stored(4))


def test_an_empty_snapshot_is_whole(tmp_path):
    made(tmp_path / "empty.tsnap", {})
    assert read(tmp_path / "empty.tsnap")[1:] == ({}, {})


def test_a_record_that_is_damaged_in_the_store_is_refused(tmp_path):
    records = stored(3)
    records[b"\x02key0001"] = records[b"\x02key0001"][:-1] + b"?"
    with pytest.raises(ValueError) as caught:
        made(tmp_path / "x.tsnap", records)
    assert caught.value.args == (1,)


# Damage


def test_a_file_cut_off_at_any_byte_is_damaged(small):
    data = small.read_bytes()
    for size in range(len(data)):
        small.write_bytes(data[:size])
        assert outcome(small) is CorruptionError, size
        assert tiered.verify(small), size
    small.write_bytes(data)
    assert len(read(small)[2]) == 4


def test_any_byte_flipped_is_found(small):
    data = small.read_bytes()
    for at in range(len(data)):
        for flip in (0xFF, 1 << at % 8):
            small.write_bytes(data[:at] + bytes((data[at] ^ flip,)) + data[at + 1 :])
            assert outcome(small) is CorruptionError, (at, flip)
            assert tiered.verify(small), (at, flip)


def test_an_error_says_where(small):
    data = bytearray(small.read_bytes())
    data[-200] ^= 1
    small.write_bytes(data)
    with pytest.raises(CorruptionError, match="checksum mismatch in a section at byte") as caught:
        read(small)
    assert caught.value.offset is not None
    assert 0 < caught.value.offset <= len(data) - 200
    assert caught.value.path == str(small)


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_to_a_larger_file_is_found(tmp_path, seed):
    path = tmp_path / "large.tsnap"
    made(path, stored(9000), 5)
    data, random_ = path.read_bytes(), random.Random(seed)
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(random_.choice((1, 1, 2, 20))):
            damaged[random_.randrange(len(data))] ^= random_.randrange(1, 256)
        if damaged != data:
            path.write_bytes(damaged)
            assert outcome(path) is CorruptionError


@pytest.mark.parametrize(
    "order", [(0, 1, 2, 4, 3, 5), (0, 1, 3, 2, 4, 5), (0, 1, 2, 3, 3, 5), (0, 1, 2, 3, 5), (0, 2, 1, 3, 4, 5)]
)
def test_sections_swapped_doubled_or_left_out_are_found(small, order):
    parts = sections(small.read_bytes())
    small.write_bytes(b"".join(parts[each] for each in order))
    with pytest.raises(CorruptionError, match=r"section . where . belongs|no description"):
        read(small)
    assert tiered.verify(small)


def test_a_section_of_another_snapshot_is_found(small, tmp_path):
    other = tmp_path / "other.tsnap"
    writer = Writer(other, About(store="/s", records=4, dictionary=1, dictionary_next=2))
    writer.dictionary(1, b"a dictionary")
    for keys in (sorted(stored(4))[:2], sorted(stored(4))[2:]):
        writer.records(keys, [stored(4)[key] for key in keys])
    writer.finish()
    writer.file.commit()
    parts, others = sections(small.read_bytes()), sections(other.read_bytes())
    small.write_bytes(b"".join([*parts[:3], others[3], *parts[4:]]))
    assert outcome(small) is CorruptionError


def sealed(parts: list[bytes], at: int, body: bytes) -> list[bytes]:
    """The parts with another body of one section, its checksums made right: damage that only the contents show."""
    seed = snapshot.HEADER.unpack(parts[0])[3]
    _, magic, kind, zero, number, _, index, _ = snapshot.SECTION.unpack_from(parts[at])
    head = snapshot.SECTION.pack(0, magic, kind, zero, number, crc32(body, seed), index, len(body))[4:]
    return [*parts[:at], struct.pack("<I", crc32(head, seed)) + head + body, *parts[at + 1 :]]


def test_two_records_swapped_are_found_whatever_the_checksums_say(small):
    parts = sections(small.read_bytes())
    body = parts[3][32:]
    one, two = (stored(2)[key] for key in sorted(stored(2)))
    assert body.endswith(one + two)
    small.write_bytes(b"".join(sealed(parts, 3, body.removesuffix(one + two) + two + one)))
    assert outcome(small) is CorruptionError  # The digest at the end is another.
    assert {finding.what for finding in tiered.verify(small)} == {"damaged record", "damaged snapshot"}


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body[:12] + body[20:28] + body[12:20] + body[28:],
        lambda body: body[:12] + body[12:20] + body[12:20] + body[28:],
        lambda body: body + b"!",
        lambda body: b"\xff" * 12 + body[12:],
        lambda body: body[:3],
    ],
    ids=["keys descend", "keys are equal", "too long", "lengths too large", "too short"],
)
def test_contents_that_cannot_be_are_damage(small, change):
    parts = sections(small.read_bytes())
    small.write_bytes(b"".join(sealed(parts, 3, change(parts[3][32:]))))
    with pytest.raises(CorruptionError, match=r"ascend|add up|could have"):  # Not only by the sums at the end.
        read(small)


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x90", b"\x80", b"\x81\xa5store\x01"])
def test_a_description_that_cannot_be_read_is_damage(small, body):
    parts = sections(small.read_bytes())
    small.write_bytes(b"".join(sealed(parts, 1, body)))
    assert outcome(small) is CorruptionError


def test_sums_that_are_not_those_of_the_file_are_found(small):
    parts = sections(small.read_bytes())
    for at in range(4):
        numbers = list(snapshot.END.unpack(parts[-1][32:]))
        numbers[at] += 1
        small.write_bytes(b"".join(sealed(parts, len(parts) - 1, snapshot.END.pack(*numbers))))
        assert outcome(small) is CorruptionError


def test_bytes_after_the_end_are_found(small):
    small.write_bytes(small.read_bytes() + b"\0")
    assert outcome(small) is CorruptionError


def test_a_newer_format_is_refused_by_name(small):
    data = bytearray(small.read_bytes())
    data[8] = 2
    data[16:20] = struct.pack("<I", crc32(data[:16]))
    small.write_bytes(data)
    with pytest.raises(FormatError, match="snapshot format 2; this version knows 1"):
        read(small)


@pytest.mark.parametrize("text", ["not a snapshot at all, but a text", "tixxx", "x"])
def test_another_file_is_no_snapshot(tmp_path, text):
    path = tmp_path / "text"
    path.write_text(text)
    assert outcome(path) is NotAStoreError


def test_all_damaged_sections_are_told_not_only_the_first(small):
    data = bytearray(small.read_bytes())
    parts = sections(bytes(data))
    starts = [sum(map(len, parts[:at])) + 40 for at in (3, 4)]
    for start in starts:
        data[start] ^= 1
    small.write_bytes(data)
    findings = tiered.verify(small)
    assert len(findings) == 2
    assert all("checksum mismatch in a section" in finding.detail for finding in findings)


def test_reading_takes_the_memory_of_a_section(tmp_path):
    import tracemalloc

    path = tmp_path / "large.tsnap"
    records = {}
    for number in range(4000):
        name = b"\x02%06d" % number
        records[name] = record.pack(name, codec.BYTES, 0, 0, 0, b"", os.urandom(5000))
    made(path, records, 40)
    del records
    tracemalloc.start()
    try:
        assert tiered.verify(path) == []
        assert tracemalloc.get_traced_memory()[1] < 4 << 20 < path.stat().st_size // 4
    finally:
        tracemalloc.stop()


# Where it may be written


def test_a_directory_is_no_place(tmp_path):
    with pytest.raises(NotAStoreError, match="name a file in it"):
        snapshot.destination(tmp_path)


def test_the_directory_must_be_there(tmp_path):
    with pytest.raises(NotAStoreError, match="no such directory"):
        snapshot.destination(tmp_path / "missing" / "x.tsnap")


def test_another_file_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(NotAStoreError, match="no snapshot"):
        snapshot.destination(tmp_path / "thesis.txt")
    (tmp_path / "empty").touch()
    assert snapshot.destination(tmp_path / "empty") == tmp_path / "empty"


def test_an_older_snapshot_is_replaced(tmp_path, small):
    assert snapshot.destination(small) == small


def test_an_error_of_the_disk_leaves_no_file(tmp_path, monkeypatch):
    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", failing)
    with pytest.raises(OSError):
        made(tmp_path / "x.tsnap", stored(2))
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_looked_at_is_an_error_of_the_store(tmp_path, monkeypatch):
    (tmp_path / "there.tsnap").write_bytes(b"")

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "there.tsnap"))

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(tiered.StoreError, match="no place for a snapshot: Permission denied") as caught:
        snapshot.destination(tmp_path / "there.tsnap")
    assert caught.value.path == str(tmp_path / "there.tsnap")
