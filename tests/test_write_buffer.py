"""The write buffer: which record of a key is the latest, and what the buffer takes of the budget."""

from __future__ import annotations

import sys

import pytest

from tiered import write_buffer
from tiered.errors import CorruptionError
from tiered.journal import HEADER_BYTES, PUT, Dirty, Journal
from tiered.native import native
from tiered.write_buffer import WriteBuffer

mapped_or_not = pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "pwrite"])


def begin(directory, mapped=True):
    journal = Journal(directory, 1, 1, 0)
    journal.mapped = mapped
    return journal, WriteBuffer(journal.open_segment(1 << 16, 1 << 16))


def put(journal, buffer, key, payload, deadline=0):
    buffer.put(key, journal.append(PUT, 0, key, payload, 7, deadline), deadline)


@mapped_or_not
def test_the_latest_put_of_a_key_is_found(tmp_path, mapped):
    journal, buffer = begin(tmp_path, mapped)
    put(journal, buffer, b"a", b"first")
    put(journal, buffer, b"b", b"other", 99)
    put(journal, buffer, b"a", b"second", 5)
    assert buffer.get(b"a") == Dirty(7, 5, b"a", b"second")
    assert buffer.get(b"b") == Dirty(7, 99, b"b", b"other")


@mapped_or_not
def test_a_key_without_a_record_here_is_a_key_error(tmp_path, mapped):
    journal, buffer = begin(tmp_path, mapped)
    put(journal, buffer, b"a", b"first")
    with pytest.raises(KeyError):
        buffer.get(b"b")


@mapped_or_not
def test_a_deleted_key_is_found_as_deleted_even_at_the_first_position(tmp_path, mapped):
    journal, buffer = begin(tmp_path, mapped)
    buffer.delete(b"a", HEADER_BYTES)
    assert buffer.get(b"a") is None
    buffer.delete(b"zero", 0)
    assert buffer.get(b"zero") is None
    put(journal, buffer, b"a", b"again")
    assert buffer.get(b"a").payload == b"again"


@mapped_or_not
def test_deadlines_are_those_of_the_latest_records(tmp_path, mapped):
    journal, buffer = begin(tmp_path, mapped)
    put(journal, buffer, b"a", b"x", 10)
    put(journal, buffer, b"b", b"x", 20)
    put(journal, buffer, b"c", b"x", 30)
    put(journal, buffer, b"a", b"x", 40)
    put(journal, buffer, b"b", b"x")
    buffer.delete(b"c", 100)
    assert buffer.deadlines == {b"a": 40}


@mapped_or_not
def test_sorted_keys_are_all_keys_in_order_deletions_included(tmp_path, mapped):
    journal, buffer = begin(tmp_path, mapped)
    assert buffer.sorted_keys() == []
    for key in (b"m", b"c", b"x"):
        put(journal, buffer, key, b"")
    first = buffer.sorted_keys()
    assert first == [b"c", b"m", b"x"]
    assert buffer.sorted_keys() is first
    put(journal, buffer, b"a", b"")
    put(journal, buffer, b"m", b"again")
    buffer.delete(b"q", 100)
    buffer.delete(b"c", 100)
    assert buffer.sorted_keys() == [b"a", b"c", b"m", b"q", b"x"]
    assert first == [b"c", b"m", b"x"], "a list given out is never changed"


@mapped_or_not
def test_a_record_damaged_in_its_segment_is_an_error_with_path_and_offset(tmp_path, mapped):
    journal, buffer = begin(tmp_path, mapped)
    put(journal, buffer, b"a", b"first")
    put(journal, buffer, b"b", b"second")
    position = buffer.positions[b"b"]
    buffer.segment.write(position + 42, b"\xff")
    with pytest.raises(CorruptionError) as caught:
        buffer.get(b"b")
    assert caught.value.offset == position
    assert caught.value.path == str(buffer.segment.path)
    assert buffer.get(b"a").payload == b"first"


@mapped_or_not
def test_used_bytes_take_in_records_keys_table_and_deadlines(tmp_path, mapped):
    journal, buffer = begin(tmp_path, mapped)
    assert buffer.used_bytes() == sys.getsizeof({}) + sys.getsizeof([])
    for number in range(200):
        put(journal, buffer, b"key %d" % number, b"x" * 50)
    without = buffer.used_bytes()
    records = buffer.segment.position - HEADER_BYTES
    held = sum(sys.getsizeof(key) + 32 for key in buffer.positions) + sys.getsizeof(buffer.positions)
    assert records + held <= without <= records + held + 200 * 40
    buffer.sorted_keys()
    assert buffer.used_bytes() >= without + 200 * 8
    for number in range(200):
        put(journal, buffer, b"key %d" % number, b"", 1_700_000_000_000 + number)
    grown = buffer.used_bytes() - buffer.segment.position
    assert grown >= held + sys.getsizeof(buffer.deadlines) + 200 * 32 - HEADER_BYTES


@mapped_or_not
def test_a_key_written_again_is_counted_once(tmp_path, mapped):
    journal, buffer = begin(tmp_path, mapped)
    put(journal, buffer, b"k" * 400, b"")
    once = buffer.used_bytes() - buffer.segment.position
    for _ in range(50):
        put(journal, buffer, b"k" * 400, b"")
    buffer.delete(b"k" * 400, 100)
    assert buffer.used_bytes() - buffer.segment.position == once


WAYS = {"pure": write_buffer._noted} | ({"compiled": native.note_all} if native else {})


@pytest.mark.parametrize("way", WAYS)
def test_keys_noted_together_count_once_and_keep_their_last_position(way):
    note = WAYS[way]
    known = {b"old": 1, b"older": 2}
    assert note(known, [b"new", b"old", b"again", b"new"], [3, ~4, 5, 6]) == len(b"new" + b"again")
    assert known == {b"old": ~4, b"older": 2, b"new": 6, b"again": 5}
    assert note(known, [], []) == 0
    with pytest.raises(ValueError):
        note(known, [b"a", b"b"], [1])


@pytest.mark.skipif(native is None, reason="needs the compiled part: a C compiler, and no TIERED_PURE=1")
@pytest.mark.parametrize("arguments", [([], [], []), ({}, (), []), ({}, ["k"], [1]), ({}, [b"k"], [1.0]), ({},)])
def test_what_runs_code_of_its_own_is_not_noted(arguments):
    with pytest.raises(TypeError):
        native.note_all(*arguments)
