"""The journal: what is appended is read back, from the writing end and from the file; syncing in order."""

from __future__ import annotations

import os
import threading
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiered import files
from tiered.errors import CorruptionError, FormatError, StoreFullError
from tiered.journal import (
    CLEAR,
    CLOSE,
    CLOSE_BYTES,
    DELETE,
    HEADER,
    HEADER_BYTES,
    MORE,
    PUT,
    RECORD,
    SEGMENT_BYTES_MIN,
    SETTING,
    Journal,
    SegmentFile,
    record_bytes,
)

mapped_or_not = pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "pwrite"])


def begin(directory, mapped=True, first=1, number=1):
    journal = Journal(directory, first, number, first - 1)
    journal.mapped = mapped
    return journal


def append_batch(journal, kinds, keys, payloads, *columns):
    return journal.append_batch(kinds, keys, payloads, *columns, sum(map(record_bytes, keys, payloads)))


def read(path):
    """What a segment says: kind, flags, number, key, payload, deadline, codec of each record."""
    segment = SegmentFile(path)
    return [
        (
            entry.kind,
            entry.flags,
            entry.sequence,
            entry.key,
            segment.slice(entry.start, entry.end),
            entry.deadline,
            entry.codec,
        )
        for entry in segment.entries()
    ]


@mapped_or_not
def test_records_of_every_kind_are_read_back(tmp_path, mapped):
    journal = begin(tmp_path, mapped, first=11, number=3)
    segment = journal.open_segment(1000, 1 << 20)
    positions = [
        journal.append(PUT, 0, b"key", b"value", 2, 99),
        journal.append(DELETE, 0, b"key", b"", 0, 0),
        journal.append(SETTING, 0, b"save", b"\x90", 0, 0),
        journal.append(CLEAR, 0, b"", b"", 0, 0),
        *append_batch(journal, [PUT, DELETE, PUT], [b"a", b"b", b"c"], [b"", b"", b"x" * 300], [1, 0, 255], [0, 0, 7]),
    ]
    assert journal.close_segment(1234) is segment
    assert journal.active is None
    assert segment.path == files.segment_path(tmp_path, 3)
    assert positions[0] == HEADER_BYTES
    assert read(segment.path) == [
        (PUT, 0, 11, b"key", b"value", 99, 2),
        (DELETE, 0, 12, b"key", b"", 0, 0),
        (SETTING, 0, 13, b"save", b"\x90", 0, 0),
        (CLEAR, 0, 14, b"", b"", 0, 0),
        (PUT, MORE, 15, b"a", b"", 0, 1),
        (DELETE, MORE, 16, b"b", b"", 0, 0),
        (PUT, 0, 17, b"c", b"x" * 300, 7, 255),
        (CLOSE, 0, 18, b"", b"", 1234, 0),
    ]
    assert segment.put_at(positions[0]) == (2, 99, b"key", b"value")
    assert segment.put_at(positions[6]) == (255, 7, b"c", b"x" * 300)
    assert (journal.last, segment.first, segment.last) == (18, 11, 18)


@mapped_or_not
def test_numbers_go_on_across_segments(tmp_path, mapped):
    journal = begin(tmp_path, mapped)
    for number in range(1, 4):
        segment = journal.open_segment(100, 1 << 20)
        assert segment.number == number
        journal.append(PUT, 0, b"key", b"%d" % number, 0, 0)
        journal.close_segment(0)
    headers = [SegmentFile(files.segment_path(tmp_path, number)).header for number in (1, 2, 3)]
    assert [(header.number, header.first) for header in headers] == [(1, 1), (2, 3), (3, 5)]
    assert len({header.seed for header in headers}) == 3
    assert [entry[2] for number in (1, 2, 3) for entry in read(files.segment_path(tmp_path, number))] == list(
        range(1, 7)
    )


@given(st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=200)), max_size=20), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_records_are_read_back(tmp_path_factory, pairs, batched, mapped):
    directory = tmp_path_factory.mktemp("journal")
    journal = begin(directory, mapped)
    segment = journal.open_segment(sum(record_bytes(*pair) for pair in pairs), 1 << 20)
    if batched:
        count = len(pairs)
        keys, payloads = [key for key, _ in pairs], [payload for _, payload in pairs]
        append_batch(journal, [PUT] * count, keys, payloads, [1] * count, [0] * count)
    else:
        for key, payload in pairs:
            journal.append(PUT, 0, key, payload, 1, 0)
    assert [entry[3:5] for entry in read(segment.path)] == pairs


@mapped_or_not
@pytest.mark.parametrize("size", [10, SEGMENT_BYTES_MIN, 5_000_000])
def test_a_segment_has_the_room_asked_for_and_space_for_its_close(tmp_path, mapped, size):
    journal = begin(tmp_path, mapped)
    segment = journal.open_segment(record_bytes(b"key", b"x" * size), 1 << 16)
    journal.append(PUT, 0, b"key", os.urandom(size), 0, 0)
    assert segment.position + CLOSE_BYTES <= segment.capacity == segment.path.stat().st_size
    journal.close_segment(1)
    assert [entry[0] for entry in read(segment.path)] == [PUT, CLOSE]


def test_segments_start_small_and_grow_up_to_the_limit(tmp_path):
    journal = begin(tmp_path)
    sizes = []
    for _ in range(5):
        sizes.append(journal.open_segment(100, 1 << 20).capacity)
        journal.close_segment(0)
    assert sizes == [1 << 16, 1 << 18, 1 << 20, 1 << 20, 1 << 20]


@mapped_or_not
def test_a_segment_prepared_ahead_is_taken_if_it_is_large_enough(tmp_path, mapped):
    journal = begin(tmp_path, mapped)
    journal.prepare()
    assert not journal.prepared, "nothing is made before the first write"
    journal.open_segment(100, 1 << 16)
    journal.prepare()
    journal.prepare()
    assert journal.prepared
    assert (tmp_path / files.PREPARED).exists()
    journal.append(PUT, 0, b"later", b"", 0, 0)
    journal.close_segment(0)
    segment = journal.open_segment(100, 1 << 16)
    assert not journal.prepared
    assert not (tmp_path / files.PREPARED).exists()
    assert SegmentFile(segment.path).header[1:3] == (2, 3), "it takes its number when it is used"
    journal.prepare()
    assert journal.open_segment(1_000_000, 1 << 16).capacity >= 1_000_000
    assert sorted(os.listdir(tmp_path)) == [files.SYNCED, *(f"journal-0000000{number}.log" for number in (1, 2, 3))]


def test_a_full_disk_at_the_next_segment_changes_nothing(tmp_path, monkeypatch):
    journal = begin(tmp_path)
    journal.open_segment(100, 1 << 16)
    journal.append(PUT, 0, b"key", b"", 0, 0)
    journal.close_segment(0)

    def fail(fd, offset, size):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(StoreFullError):
        journal.open_segment(100, 1 << 16)
    monkeypatch.undo()
    segment = journal.open_segment(100, 1 << 16)
    assert (segment.number, segment.first) == (2, 3)


@pytest.mark.parametrize("failing", ["rename", "mmap"])
def test_a_segment_that_could_not_begin_does_not_stand_in_the_way_of_the_next_try(tmp_path, monkeypatch, failing):
    journal = begin(tmp_path)

    def fail(*arguments):
        raise OSError(5, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(*((files, "rename") if failing == "rename" else ("tiered.journal.mmap.mmap",)), fail)
        with pytest.raises(OSError):
            journal.open_segment(100, 1 << 16)
    assert journal.open_segment(100, 1 << 16).number == 1


@mapped_or_not
def test_a_put_changed_in_memory_or_on_disk_is_never_given_out(tmp_path, mapped):
    journal = begin(tmp_path, mapped)
    segment = journal.open_segment(1000, 1 << 16)
    position = journal.append(PUT, 0, b"key", b"value", 3, 12)
    for offset in range(record_bytes(b"key", b"value")):
        if 8 <= offset < 10 or 12 <= offset < 16:
            continue  # The lengths are tried below.
        right = segment._read(position + offset, 1)
        segment.write(position + offset, bytes((right[0] ^ 0x10,)))
        with pytest.raises(CorruptionError) as caught:
            segment.put_at(position)
        assert (caught.value.path, caught.value.offset) == (str(segment.path), position)
        segment.write(position + offset, right)
    for offset in (8, 9, 12, 13):
        right = segment._read(position + offset, 1)
        segment.write(position + offset, b"\xfe")
        with pytest.raises(CorruptionError):
            segment.put_at(position)
        segment.write(position + offset, right)
    assert segment.put_at(position).payload == b"value"


# Syncing


def test_sync_marks_all_that_was_written_and_later_records_carry_the_mark(tmp_path):
    journal = begin(tmp_path)
    segment = journal.open_segment(1000, 1 << 16)
    journal.append(PUT, 0, b"a", b"", 0, 0)
    journal.append(PUT, 0, b"b", b"", 0, 0)
    assert journal.synced == 0
    journal.sync(1)
    assert journal.synced == 2
    journal.append(PUT, 0, b"c", b"", 0, 0)
    append_batch(journal, [PUT] * 2, [b"d", b"e"], [b""] * 2, [0] * 2, [0] * 2)
    assert [entry.synced for entry in SegmentFile(segment.path).entries()] == [0, 0, 2, 2, 2]
    journal.close_segment(0)
    journal.sync(journal.last)
    assert SegmentFile(journal.open_segment(10, 1 << 16).path).header.synced == 6


def test_segments_are_synced_in_order_after_the_names_in_their_directory(tmp_path, monkeypatch):
    journal = begin(tmp_path)
    segments, calls = [], []
    monkeypatch.setattr(files, "sync_data", lambda fd: calls.append(fd))
    monkeypatch.setattr(files, "sync_directory", lambda path: calls.append("directory"))
    for _ in range(3):
        segments.append(journal.open_segment(100, 1 << 16))
        journal.append(PUT, 0, b"key", b"", 0, 0)
        if len(segments) < 3:
            journal.close_segment(0)
    journal.sync(journal.last)
    assert calls == ["directory", *(segment.fd for segment in segments), journal._mark._file], "and then the mark"
    calls.clear()
    journal.sync(journal.last)
    assert calls == [], "nothing to do"
    journal.append(PUT, 0, b"key", b"", 0, 0)
    journal.sync(journal.last)
    assert calls == [segments[-1].fd], "closed segments are synced once, and the mark once for new ones"


def test_a_failed_sync_marks_nothing(tmp_path, monkeypatch):
    journal = begin(tmp_path)
    journal.open_segment(100, 1 << 16)
    journal.append(PUT, 0, b"key", b"", 0, 0)

    def fail(fd):
        raise OSError(5, "input/output error")

    monkeypatch.setattr(files, "sync_data", fail)
    with pytest.raises(OSError):
        journal.sync(1)
    assert journal.synced == 0


def test_threads_that_wait_share_a_sync(tmp_path, monkeypatch):
    journal = begin(tmp_path)
    segment = journal.open_segment(10_000, 1 << 16)
    syncing, go_on, syncs = threading.Event(), threading.Event(), []

    def slowly(fd):
        if fd != segment.fd:
            return  # The mark.
        syncs.append(journal.last)
        syncing.set()
        assert go_on.wait(10)

    monkeypatch.setattr(files, "sync_data", slowly)
    journal.append(PUT, 0, b"key", b"", 0, 0)
    first = threading.Thread(target=journal.sync, args=(1,))
    first.start()
    assert syncing.wait(10)
    others = []
    for _ in range(20):
        journal.append(PUT, 0, b"key", b"", 0, 0)
        others.append(threading.Thread(target=journal.sync, args=(journal.last,)))
        others[-1].start()
    go_on.set()
    for thread in (first, *others):
        thread.join(10)
    assert journal.synced == 21
    assert len(syncs) == 2


def test_a_checkpointed_segment_is_removed_and_not_synced_any_more(tmp_path, monkeypatch):
    journal = begin(tmp_path)
    first = journal.open_segment(100, 1 << 16)
    journal.append(PUT, 0, b"key", b"", 0, 0)
    journal.close_segment(0)
    second = journal.open_segment(100, 1 << 16)
    journal.append(PUT, 0, b"key", b"", 0, 0)
    journal.forget(first, first.last)
    assert journal.synced == first.last == 2
    assert files.segment_numbers(tmp_path) == [1, 2], "not under the lock"
    journal.removal.run()
    assert files.segment_numbers(tmp_path) == [2]
    synced = []
    monkeypatch.setattr(files, "sync_data", synced.append)
    journal.sync(3)
    assert synced == [second.fd, journal._mark._file]
    assert first.put_at(HEADER_BYTES).payload == b"", "readers may still hold it"


# Reading files


def test_a_record_ends_what_is_read_if_it_is_bad_or_not_the_next_in_number(tmp_path):
    journal = begin(tmp_path)
    segment = journal.open_segment(1000, 1 << 16)
    positions = [journal.append(PUT, 0, b"key %d" % number, b"value", 0, 0) for number in range(5)]
    segment.write(positions[3] + 45, b"!")
    assert [entry[2] for entry in read(segment.path)] == [1, 2, 3]
    assert SegmentFile(segment.path).entry_at(positions[3]) is None
    assert SegmentFile(segment.path).entry_at(positions[4]).sequence == 5
    # A valid record out of its place: the same bytes again after their original.
    again = segment._read(positions[0], positions[1] - positions[0])
    segment.write(positions[1], again)
    assert [entry[2] for entry in read(segment.path)] == [1]


def test_bytes_inside_a_value_are_not_taken_for_records(tmp_path):
    other = begin(tmp_path / ".", number=50)
    donor = other.open_segment(1000, 1 << 16)
    other.append(PUT, 0, b"key", b"stolen", 0, 0)
    other.sync(1)
    other.append(PUT, 0, b"key", b"stolen", 0, 0)
    foreign = donor._read(0, donor.position)
    journal = begin(tmp_path)
    segment = journal.open_segment(5000, 1 << 16)
    journal.append(PUT, 0, b"key", foreign * 3, 0, 0)
    reader = SegmentFile(segment.path)
    assert [entry.sequence for entry in reader.entries()] == [1]
    assert reader.highest_synced(0) == 0
    assert not any(reader.entry_at(position) for position in range(HEADER_BYTES + 1, segment.position))


@pytest.mark.parametrize("offset", range(44))
def test_a_header_with_any_byte_changed_is_no_header(tmp_path, offset):
    journal = begin(tmp_path)
    segment = journal.open_segment(100, 1 << 16)
    journal.append(PUT, 0, b"key", b"", 0, 0)
    right = segment._read(offset, 1)
    segment.write(offset, bytes((right[0] ^ 0x04,)))
    reader = SegmentFile(segment.path)
    assert reader.header is None
    assert list(reader.entries()) == []
    assert reader.highest_synced(0) == 0


@pytest.mark.parametrize("size", [0, 1, 43, 63])
def test_a_file_shorter_than_a_header_has_none(tmp_path, size):
    path = files.segment_path(tmp_path, 1)
    path.write_bytes(b"tierjrnl"[:size].ljust(size, b"\0"))
    reader = SegmentFile(path)
    assert reader.header is None
    assert list(reader.entries()) == []
    assert reader.blank_after(0) is (size == 0)


def test_a_segment_of_a_newer_version_is_refused_by_name(tmp_path):
    head = HEADER.pack(b"tierjrnl", 2, 0, 1, 1, 1, 0, 0)[:40]
    path = files.segment_path(tmp_path, 1)
    path.write_bytes((head + crc32(head).to_bytes(4, "little")).ljust(64, b"\0"))
    with pytest.raises(FormatError, match="journal format 2; this version knows 1") as caught:
        SegmentFile(path)
    assert caught.value.path == str(path)


def test_the_layout_is_frozen(tmp_path, monkeypatch):
    """The bytes of a segment as written by the first version."""
    monkeypatch.setattr(os, "urandom", lambda size: b"seed")
    journal = begin(tmp_path, first=5, number=9)
    segment = journal.open_segment(100, 1 << 16)
    journal.append(PUT, 0, b"key", b"value", 2, 77)
    assert RECORD.size == 40
    expected = (
        "746965726a726e6c0100000073656564090000000000000005000000000000000400000000000000e541b3c3000000000000"
        "0000000000000000000000000000529f573c5d7e01000300020005000000050000000000000004000000000000004d000000"
        "000000006b657976616c7565"
    )
    assert segment._read(0, segment.position).hex() == expected


def test_a_record_that_was_cut_off_is_damage(tmp_path):
    journal = begin(tmp_path, mapped=False)
    segment = journal.open_segment(1000, 1 << 20)
    position = journal.append(PUT, 0, b"key", b"value" * 9, 2, 0)
    assert segment.put_at(position).payload == b"value" * 9
    for size in (position + 40, position + 5, position):
        os.truncate(segment.path, size)
        with pytest.raises(CorruptionError, match="cut short") as caught:
            segment.put_at(position)
        assert caught.value.offset == size
