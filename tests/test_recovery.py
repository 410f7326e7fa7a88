"""Recovery: after a kill or a power cut the journal gives a prefix of what was written, and damage is told by name.

A power cut keeps any subset of the 512-byte sectors changed since the last sync; a lost
sector is what it was at that sync.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiered
from tiered import files, recovery
from tiered.errors import CorruptionError, FormatError
from tiered.journal import (
    CLOSE,
    DELETE,
    HEADER_BYTES,
    PUT,
    RECORD,
    Journal,
    SegmentFile,
    record_bytes,
)

SECTOR = 512
SHM = "/dev/shm" if os.path.isdir("/dev/shm") else None


class Written:
    """A journal being written, and what was written: (sequence, kind, key, payload, ends a batch)."""

    def __init__(self, directory: Path, applied: int = 0, mapped: bool = True, capacity: int = 8192) -> None:
        self.directory = directory
        self.capacity = capacity
        self.journal = Journal(directory, applied + 1, 1, applied)
        self.journal.mapped = mapped
        self.records: list[tuple[int, int, bytes, bytes, bool]] = []
        self.starts: list[tuple[Path, int]] = []
        self.durable: dict[Path, bytes] = {}

    def _room(self, size: int) -> None:
        active = self.journal.active
        if active is not None and active.position + size + RECORD.size > active.capacity:
            self.close()
        if self.journal.active is None:
            self.journal._capacity = self.capacity
            self.journal.open_segment(size, self.capacity)

    def _note(self, kind: int, key: bytes, payload: bytes, position: int, sequence: int, end: bool) -> None:
        self.records.append((sequence, kind, key, payload, end))
        self.starts.append((self.journal.active.path, position))

    def put(self, key: bytes, payload: bytes) -> None:
        self._room(RECORD.size + len(key) + len(payload))
        position = self.journal.append(PUT, 0, key, payload, 1, 0)
        self._note(PUT, key, payload, position, self.journal.last, True)

    def delete(self, key: bytes) -> None:
        self._room(RECORD.size + len(key))
        position = self.journal.append(DELETE, 0, key, b"", 0, 0)
        self._note(DELETE, key, b"", position, self.journal.last, True)

    def batch(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self._room(sum(RECORD.size + len(key) + len(payload) for key, payload in pairs))
        first = self.journal.last + 1
        keys, payloads = [key for key, _ in pairs], [payload for _, payload in pairs]
        count = len(pairs)
        size = sum(map(record_bytes, keys, payloads))
        positions = self.journal.append_batch([PUT] * count, keys, payloads, [1] * count, [0] * count, size)
        for at, ((key, payload), position) in enumerate(zip(pairs, positions, strict=True)):
            self._note(PUT, key, payload, position, first + at, at == len(pairs) - 1)

    def close(self) -> None:
        if self.journal.active is not None:
            position = self.journal.active.position
            path = self.journal.active.path
            self.journal.close_segment(1_700_000_000_000)
            self.records.append((self.journal.last, CLOSE, b"", b"", True))
            self.starts.append((path, position))

    def sync(self) -> None:
        self.journal.sync(self.journal.last)
        self.durable = self.contents()

    def contents(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(self.directory.glob("journal-*.log"))}


def recovered(directory: Path, applied: int = 0) -> tuple[recovery.Plan, list[tuple[int, int, bytes, bytes]]]:
    """The plan, and the records that it applies."""
    plan = recovery.plan(directory, applied)
    found = []
    for segment in plan.segments:
        for entry in segment.entries():
            if applied < entry.sequence <= plan.until:
                found.append((entry.sequence, entry.kind, entry.key, segment.slice(entry.start, entry.end)))
    assert [record[0] for record in found] == list(range(applied + 1, plan.until + 1))
    return plan, found


def assert_prefix(written: Written, plan: recovery.Plan, found: list[tuple[int, int, bytes, bytes]]) -> None:
    """What was found is a prefix of what was written, batches whole."""
    assert found == [record[:4] for record in written.records[: len(found)]]
    assert not found or written.records[len(found) - 1][4], "a batch was torn apart"


@pytest.fixture
def copied(tmp_path):
    """A fresh copy of a journal's directory, for breaking."""

    def copy(directory: Path) -> Path:
        target = tmp_path / "broken"
        if target.exists():
            shutil.rmtree(target)
        shutil.copytree(directory, target)
        return target

    return copy


def three_segments(directory: Path, synced: bool = False) -> Written:
    """Some twenty records in three segments, batches among them."""
    directory.mkdir()
    written = Written(directory, capacity=1024)
    uniform = random.Random(3)
    while len(files.segment_numbers(directory)) < 3 or len(written.records) < 20:
        if uniform.random() < 0.4:
            written.batch([(b"batch %d" % at, uniform.randbytes(30)) for at in range(3)])
        else:
            written.put(b"key %d" % uniform.randrange(9), uniform.randbytes(uniform.randrange(1, 200)))
    if synced:
        written.sync()
        written.put(b"after", b"carries the mark")
    return written


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "pwrite"])
def test_all_that_was_written_is_applied_after_a_kill(tmp_path, mapped):
    written = Written(tmp_path, mapped=mapped, capacity=2048)
    for number in range(50):
        written.put(b"key %d" % number, b"x" * number)
        written.delete(b"key %d" % (number // 2))
        written.batch([(b"a", b"%d" % number), (b"b", b"%d" % number)])
    plan, found = recovered(tmp_path)
    assert found == [record[:4] for record in written.records]
    assert (plan.until, plan.dropped_bytes, plan.torn_at) == (written.journal.last, 0, "")
    assert len(plan.segments) > 3


def test_an_empty_or_missing_journal_is_nothing_to_apply(tmp_path):
    plan = recovery.plan(tmp_path, 7)
    assert (plan.until, plan.segments, plan.torn_at) == (7, [], "")
    Written(tmp_path).journal.open_segment(10, 100)
    plan = recovery.plan(tmp_path, 0)
    assert (plan.until, plan.dropped_bytes, plan.torn_at) == (0, 0, "")


@pytest.mark.parametrize("how", ["zeroed", "cut", "changed"])
def test_a_torn_tail_is_dropped_and_reported_and_everything_before_it_applied(tmp_path, copied, how):
    written = three_segments(tmp_path / "journal")
    ends = [*written.starts[1:], (written.starts[-1][0], written.journal.active.position)]
    for index, (path, start) in enumerate(written.starts):
        size = (ends[index][1] if ends[index][0] == path else start + RECORD.size) - start
        for offset in {0, 1, 4, 6, 8, 20, 39, 40, size // 2, size - 1}:
            if offset >= size:
                continue
            broken = copied(tmp_path / "journal")
            target = broken / path.name
            data = bytearray(target.read_bytes())
            if how == "cut":
                del data[start + offset :]
            elif how == "zeroed":
                if not any(data[start + offset : start + size]):
                    continue
                data[start + offset :] = bytes(len(data) - start - offset)
            else:
                data[start + offset] ^= 0x41
            target.write_bytes(data)
            plan, found = recovered(broken)
            assert_prefix(written, plan, found)
            whole = max((at for at in range(index + 1) if at == 0 or written.records[at - 1][4]), default=0)
            assert len(found) == whole, "everything before the bad record is applied"
            if offset or index < len(written.starts) - 1:
                assert plan.torn_at
            later = [at for at, (other, _) in enumerate(written.starts) if other > path]
            if how == "changed" or later:
                assert plan.dropped_bytes > 0
                assert path.name in plan.torn_at or later


def test_a_bad_record_at_or_below_a_synced_mark_is_damage_with_path_and_offset(tmp_path, copied):
    written = three_segments(tmp_path / "journal", synced=True)
    for path, start in written.starts[:-1]:
        for offset in (0, 5, 17, 39):
            broken = copied(tmp_path / "journal")
            target = broken / path.name
            data = bytearray(target.read_bytes())
            data[start + offset] ^= 0x10
            target.write_bytes(data)
            with pytest.raises(CorruptionError, match="was synced and is not readable") as caught:
                recovery.plan(broken, 0)
            assert (caught.value.path, caught.value.offset) == (str(target), start)
    path, start = written.starts[-1]
    broken = copied(tmp_path / "journal")
    data = bytearray((broken / path.name).read_bytes())
    data[start] ^= 1
    (broken / path.name).write_bytes(data)
    plan, found = recovered(broken)
    assert len(found) == len(written.records) - 1, "the last record was never synced"
    assert plan.torn_at


def test_damage_below_what_was_applied_already_does_not_matter(tmp_path):
    written = Written(tmp_path, capacity=1 << 16)
    for number in range(20):
        written.put(b"key %d" % number, b"x")
    written.sync()
    written.close()
    applied = written.journal.last
    written.put(b"later", b"y")
    path, start = written.starts[3]
    data = bytearray(path.read_bytes())
    data[start] ^= 1
    path.write_bytes(data)
    plan, found = recovered(tmp_path, applied)
    assert [record[2] for record in found] == [b"later"]
    assert len(plan.segments) == 1, "segments wholly before the applied number are not read"


def test_recovery_begins_after_the_applied_number_wherever_it_lies(tmp_path):
    written = three_segments(tmp_path / "journal")
    for applied in range(written.journal.last + 1):
        plan, found = recovered(tmp_path / "journal", applied)
        assert found == [record[:4] for record in written.records[applied:]]
        assert plan.until == written.journal.last
        assert plan.torn_at == ""


@pytest.mark.parametrize("synced", [True, False])
def test_a_missing_segment_is_damage_if_it_was_synced_and_else_torn(tmp_path, synced):
    written = three_segments(tmp_path / "journal", synced=synced)
    missing = files.segment_path(tmp_path / "journal", 2)
    before = [record[:4] for record, (path, _) in zip(written.records, written.starts, strict=True) if path < missing]
    missing.unlink()
    if synced:
        with pytest.raises(CorruptionError, match="synced"):
            recovery.plan(tmp_path / "journal", 0)
        return
    plan, found = recovered(tmp_path / "journal")
    assert found == before
    assert plan.dropped_bytes > 0
    assert plan.torn_at.startswith("journal-00000001.log at byte"), "where reading stopped"


@pytest.mark.parametrize("synced", [True, False])
def test_a_missing_first_segment_is_damage_if_it_was_synced_and_else_torn(tmp_path, synced):
    three_segments(tmp_path / "journal", synced=synced)
    files.segment_path(tmp_path / "journal", 1).unlink()
    if synced:
        with pytest.raises(CorruptionError):
            recovery.plan(tmp_path / "journal", 0)
    else:
        plan, found = recovered(tmp_path / "journal")
        assert found == []
        assert plan.torn_at


@pytest.mark.parametrize("synced", [True, False])
def test_a_segment_whose_header_never_reached_the_disk_is_torn(tmp_path, synced):
    written = Written(tmp_path, capacity=1024)
    for number in range(5):
        written.put(b"key %d" % number, b"first")
    if synced:
        written.sync()
    written.close()
    count = len(written.records)
    written.put(b"later", b"x")
    second = files.segment_path(tmp_path, 2)
    data = bytearray(second.read_bytes())
    data[:SECTOR] = bytes(SECTOR)
    second.write_bytes(data)
    _, found = recovered(tmp_path)
    assert found == [record[:4] for record in written.records[:count]]
    written.put(b"x" * 50, b"y" * 500)
    data[SECTOR:] = second.read_bytes()[SECTOR:]
    second.write_bytes(data)
    plan, found = recovered(tmp_path)
    assert len(found) == count
    assert plan.torn_at
    assert plan.dropped_bytes > 0


@pytest.mark.parametrize("offset", [0, 7, 8, 12, 16, 24, 32, 40])
def test_a_header_that_was_changed_afterwards_is_damage(tmp_path, offset):
    """It lies within one sector, so that no power cut leaves part of it."""
    written = Written(tmp_path)
    written.put(b"key", b"value")
    written.sync()
    path = files.segment_path(tmp_path, 1)
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x20
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match="header") as caught:
        recovery.plan(tmp_path, 0)
    assert (caught.value.path, caught.value.offset) == (str(path), 0)


def test_an_incomplete_batch_is_dropped_whole_and_reported(tmp_path):
    written = Written(tmp_path)
    written.put(b"before", b"x")
    written.batch([(b"batch %d" % at, b"y" * 20) for at in range(5)])
    for index in (1, 2, 3, 4, 5):
        broken = tmp_path / f"broken {index}"
        broken.mkdir()
        path, start = written.starts[index]
        data = bytearray(path.read_bytes())
        data[start:] = bytes(len(data) - start)
        (broken / path.name).write_bytes(data)
        plan, found = recovered(broken)
        assert [record[2] for record in found] == [b"before"]
        assert bool(plan.torn_at) is (index > 1)


def test_bytes_in_values_that_look_like_records_are_not_taken_for_records(tmp_path):
    (tmp_path / "donor").mkdir()
    donor = Written(tmp_path / "donor")
    for number in range(5):
        donor.put(b"key", b"stolen %d" % number)
        donor.sync()
    stolen = files.segment_path(tmp_path / "donor", 1).read_bytes()[: donor.journal.active.position]
    (tmp_path / "journal").mkdir()
    written = Written(tmp_path / "journal", capacity=1 << 16)
    written.put(b"first", stolen)
    written.put(b"second", stolen[HEADER_BYTES:])
    path, start = written.starts[1]
    data = bytearray(path.read_bytes())
    data[start] ^= 1  # The record is torn; what its value holds must not be found instead, nor its marks believed.
    path.write_bytes(data)
    plan, found = recovered(tmp_path / "journal")
    assert [record[2] for record in found] == [b"first"]
    assert plan.torn_at


def test_records_left_over_from_an_older_segment_in_the_same_blocks_are_not_found(tmp_path):
    (tmp_path / "old").mkdir()
    old = Written(tmp_path / "old")
    for number in range(20):
        old.put(b"key", b"old %d" % number)
    (tmp_path / "new").mkdir()
    new = Written(tmp_path / "new")
    for number in range(3):
        new.put(b"key", b"new %d" % number)
    path = files.segment_path(tmp_path / "new", 1)
    position = new.journal.active.position
    data = path.read_bytes()[:position] + files.segment_path(tmp_path / "old", 1).read_bytes()[position:]
    path.write_bytes(data)
    _, found = recovered(tmp_path / "new")
    assert [record[3] for record in found] == [b"new 0", b"new 1", b"new 2"]


def test_a_segment_of_a_newer_version_is_refused_by_name(tmp_path):
    written = Written(tmp_path)
    written.put(b"key", b"value")
    path = files.segment_path(tmp_path, 1)
    data = bytearray(path.read_bytes())
    data[8] = 2
    data[40:44] = recovery_crc(bytes(data[:40]))
    path.write_bytes(data)
    with pytest.raises(FormatError, match="journal format 2"):
        recovery.plan(tmp_path, 0)


def recovery_crc(data: bytes) -> bytes:
    from zlib import crc32

    return crc32(data).to_bytes(4, "little")


# Power cuts

keys = st.sampled_from([b"a", b"b", b"key %d" % 1, b"k" * 200])
payloads = st.one_of(st.integers(0, 1500).map(lambda size: random.Random(size).randbytes(size)), st.binary(max_size=60))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys, payloads),
        st.tuples(st.just("put"), keys, payloads),
        st.tuples(st.just("batch"), st.lists(st.tuples(keys, payloads), min_size=1, max_size=5)),
        st.tuples(st.just("delete"), keys),
        st.tuples(st.just("sync")),
        st.tuples(st.just("close")),
    ),
    min_size=1,
    max_size=25,
)


@given(steps, st.randoms(use_true_random=False), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.booleans())
@settings(max_examples=400, deadline=None)
def test_a_power_cut_leaves_a_prefix_that_holds_all_that_was_synced(steps, uniform, lost, mapped):
    with tempfile.TemporaryDirectory(dir=SHM) as name:
        directory = Path(name)
        written = Written(directory, mapped=mapped, capacity=2048)
        synced = 0
        for step in steps:
            getattr(written, step[0])(*step[1:])
            if step[0] == "sync":
                synced = written.journal.last
        for path, data in written.contents().items():
            old = written.durable.get(path)
            if old is None:
                if uniform.random() < lost / 3:
                    path.unlink()  # The directory was not synced since.
                    continue
                old = bytes(len(data))
            after = bytearray(data)
            for at in range(0, len(data), SECTOR):
                if data[at : at + SECTOR] != old[at : at + SECTOR] and uniform.random() < lost:
                    after[at : at + SECTOR] = old[at : at + SECTOR]
            path.write_bytes(after)
        plan, found = recovered(directory)
        assert_prefix(written, plan, found)
        assert plan.until >= synced
        if lost == 0.0:
            assert plan.until == written.journal.last
            assert plan.torn_at == ""
        elif plan.until < written.journal.last and found:
            assert_reported(plan, directory)


def assert_reported(plan: recovery.Plan, directory: Path) -> None:
    """What is left on the disk beyond the prefix was reported, if anything is."""
    last = plan.segments[-1]
    position = HEADER_BYTES
    for entry in last.entries():
        position = entry.end
    others = [path for path in directory.glob("journal-*.log") if path > last.path]
    if not last.blank_after(position) or any(not SegmentFile(path).blank_after(0) for path in others):
        assert plan.torn_at


@given(steps, st.integers(0, 1 << 30), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_a_byte_changed_anywhere_never_gives_a_wrong_value(steps, at, change):
    with tempfile.TemporaryDirectory(dir=SHM) as name:
        directory = Path(name)
        written = Written(directory, capacity=2048)
        for step in steps:
            getattr(written, step[0])(*step[1:])
        contents = written.contents()
        if not contents:
            return
        path = sorted(contents)[at % len(contents)]
        data = bytearray(contents[path])
        data[at % len(data)] ^= change
        path.write_bytes(data)
        try:
            plan, found = recovered(directory)
        except CorruptionError:
            return
        assert_prefix(written, plan, found)


# Whole stores


def crashed(store: tiered.Store, path: Path) -> Path:
    """A copy of an open store's files: what a kill at this moment leaves."""
    shutil.copytree(store.path, path, ignore=shutil.ignore_patterns("lock.mdb"))
    return path


def test_a_killed_store_holds_all_that_was_acknowledged(opener, tmp_path, caplog):
    store = opener(stepwise=True)
    expected = {}
    for number in range(300):
        store[f"key {number}"] = expected[f"key {number}"] = ["value", number]
    store.save()
    for number in range(0, 300, 3):
        del store[f"key {number}"], expected[f"key {number}"]
    store.set_many(dict.fromkeys(range(100), "many"))
    expected |= dict.fromkeys(range(100), "many")
    store.incr("count", 5)
    expected["count"] = 5
    crashed(store, tmp_path / "copy")
    with caplog.at_level(logging.INFO, "tiered"):
        again = opener("copy")
    assert dict(again.items()) == expected
    assert again.stats().recovery_dropped_bytes == 0
    assert again.stats().recovery_torn_at == ""
    assert "applying" in caplog.text
    assert again.stats().dirty_records == 0
    assert files.segment_numbers(Path(again.path)) == []


def test_applying_the_same_segments_twice_changes_nothing(opener, tmp_path):
    store = opener(stepwise=True)
    store["deleted"] = 1
    store.save()
    store.update({number: "x" * number for number in range(200)})
    del store["deleted"]
    store.set("expiring", "x", ttl=1000)
    copy = crashed(store, tmp_path / "copy")
    segments = {path: path.read_bytes() for path in copy.glob("journal-*.log")}
    again = opener("copy")
    expected, before = dict(again.items()), again._engine.state
    again.close()
    for path, data in segments.items():
        path.write_bytes(data)  # As if the crash had come after the commit, before the segments were removed.
    third = opener("copy")
    assert dict(third.items()) == expected
    assert third._engine.state == before


def test_a_torn_tail_is_logged_and_counted_and_its_numbers_are_used_again(opener, tmp_path, caplog):
    store = opener(stepwise=True)
    for number in range(10):
        store[number] = "x" * 100
    copy = crashed(store, tmp_path / "copy")
    path = files.segment_path(copy, 1)
    data = bytearray(path.read_bytes())
    end = len(data.rstrip(b"\0"))
    data[end - 250] ^= 0xFF
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING, "tiered"):
        again = opener("copy")
    assert list(again) == list(range(8))
    stats = again.stats()
    assert stats.recovery_dropped_bytes > 100
    assert stats.recovery_torn_at.startswith("journal-00000001.log at byte ")
    assert "dropped" in caplog.text
    again["more"] = 1
    assert again.stats().last_sequence == 9
    crashed(again, tmp_path / "third")
    third = opener("third")
    assert list(third) == ["more", *range(8)]


def test_a_damaged_journal_refuses_to_open_and_nothing_is_removed(opener, tmp_path):
    store = opener(stepwise=True)
    store["a"] = "x" * 100
    store["b"] = "x" * 100
    store.sync()
    store["c"] = "x"
    copy = crashed(store, tmp_path / "copy")
    path = files.segment_path(copy, 1)
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 50] ^= 1
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(CorruptionError, match="byte 64"):
            opener("copy")
        assert path.read_bytes() == data
    data[HEADER_BYTES + 50] ^= 1
    path.write_bytes(data)
    assert list(opener("copy")) == ["a", "b", "c"]


LOSSES = {
    "removed": Path.unlink,
    "0 bytes": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut": lambda path: os.truncate(path, 300),
    "its last record": lambda path: path.write_bytes(path.read_bytes().replace(b"last", b"lost")),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_synced_journal_that_is_gone_empty_or_cut_is_damage_for_all_who_read_it_and_can_be_given_up(
    opener, tmp_path, loss
):
    store = opener(stepwise=True, compression="none")
    store["cold"] = 0
    store.save()
    for number in range(20):
        store[number] = "value" * 10
    store["end"] = "last"
    store.sync()
    copy = crashed(store, tmp_path / "copy")
    [number] = files.segment_numbers(copy)
    LOSSES[loss](files.segment_path(copy, number))
    before = {
        path.name: path.read_bytes() for path in copy.iterdir() if path.is_file() and path.name not in ("LOCK", "APPLY")
    }
    for flag in "wr":
        with pytest.raises(CorruptionError, match=r"salvage") as caught:
            tiered.open(copy, flag)
        assert Path(caught.value.path).name in (files.SYNCED, f"journal-{number:08}.log")
    assert [finding.what for finding in tiered.verify(copy)] == ["damaged journal"]
    assert before.items() <= {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}.items()
    assert len(tiered.salvage(copy).damage) == 1
    again = opener("copy")
    assert list(again) == ["cold", *range({"its last record": 20, "cut": 2}.get(loss, 0))]
    assert tiered.verify(copy) == []


def test_what_was_not_synced_may_be_gone_without_being_damage(opener, tmp_path):
    store = opener(stepwise=True)
    store["a"] = 1
    store.save()
    store["b"] = 2
    copy = crashed(store, tmp_path / "copy")
    for number in files.segment_numbers(copy):
        files.segment_path(copy, number).unlink()
    assert dict(opener("copy")) == {"a": 1}


def test_a_store_made_anew_begins_without_what_the_old_one_had_synced(opener, tmp_path):
    store = opener(stepwise=True)
    store.update((number, number) for number in range(100))
    store.sync()
    copy = crashed(store, tmp_path / "copy")
    with opener("copy", flag="n") as again:
        again["a"] = 1
    assert dict(opener("copy")) == {"a": 1}
    assert tiered.verify(copy) == []


@pytest.mark.parametrize("content", [b"", b"tiersync", bytes(20), b"tiersync" + b"\xff" * 12])
def test_a_mark_that_a_power_cut_left_unreadable_is_none(opener, tmp_path, content):
    store = opener(stepwise=True)
    store["a"] = 1
    store.sync()
    copy = crashed(store, tmp_path / "copy")
    (copy / files.SYNCED).write_bytes(content)
    assert dict(opener("copy")) == {"a": 1}


def test_a_mark_that_cannot_be_written_is_logged_and_loses_nothing(opener, monkeypatch, caplog):
    store = opener(stepwise=True)
    store["a"] = 1

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "tiered"):
        patch.setattr(os, "pwrite", fail)
        store.sync()
    assert ["SYNCED" in record.getMessage() for record in caplog.records] == [True]
    store["b"] = 2
    store.close()
    assert dict(opener()) == {"a": 1, "b": 2}


def test_a_segment_left_over_from_before_its_first_use_is_removed(opener, tmp_path):
    store = opener(stepwise=True)
    store["key"] = "value"
    store._engine.journal.prepare()
    copy = crashed(store, tmp_path / "copy")
    assert (copy / files.PREPARED).exists()
    again = opener("copy")
    assert dict(again.items()) == {"key": "value"}
    assert not (copy / files.PREPARED).exists()


def test_a_crash_between_removing_segments_is_recovered_from(opener, tmp_path):
    store = opener(stepwise=True)
    store._engine.acknowledged = lambda sequence: None  # Nothing is applied until the store is closed.
    store["a"] = "x"
    with store._engine.lock:
        store._engine.rotate()
    store["b"] = "x"
    with store._engine.lock:
        store._engine.rotate()
    store["c"] = "x"
    copy = crashed(store, tmp_path / "copy")
    segments = {path: path.read_bytes() for path in sorted(copy.glob("journal-0*.log"))}
    assert len(segments) == 3
    opener("copy").close()
    for path, data in list(segments.items())[1:]:
        path.write_bytes(data)
    assert list(opener("copy")) == ["a", "b", "c"]


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "pwrite"])
def test_values_larger_than_a_segment_survive_a_kill(opener, tmp_path, mapped, monkeypatch):
    monkeypatch.setattr(files, "reserves_space", lambda path: mapped)
    store = opener(stepwise=True, compression="none")
    big = {"one": os.urandom(3_000_000), "two": os.urandom(700_000), "small": b"x"}
    for key, value in big.items():
        store[key] = value
    assert store._engine.journal.mapped is mapped
    crashed(store, tmp_path / "copy")
    assert dict(opener("copy").items()) == big


def test_clearing_and_settings_are_recovered_in_their_place(opener, tmp_path):
    store = opener(stepwise=True)
    store["before"] = 1
    store.save()
    store["dirty"] = 1
    store.clear()
    store["after"] = 1
    store.config_set("default_ttl", 500)
    store.config_set("compression", "zlib:9")
    crashed(store, tmp_path / "copy")
    again = opener("copy")
    assert list(again) == ["after"]
    assert again.config_get("*t*")["default_ttl"] == 500
    assert again.config_get("compression") == {"compression": "zlib:9"}


def test_a_kill_during_a_batch_leaves_it_out_whole(opener, tmp_path):
    store = opener(stepwise=True)
    store["before"] = 1
    start = store._engine._active.segment.position
    store.set_many((f"key {number}", "x" * 50) for number in range(100))
    end = store._engine._active.segment.position
    for keep in (0, 1, 30, 100, (end - start) // 2, end - start - 1):
        copy = crashed(store, tmp_path / f"copy {keep}")
        path = files.segment_path(copy, 1)
        data = path.read_bytes()
        path.write_bytes(data[: start + keep].ljust(len(data), b"\0"))
        again = opener(copy.name)
        assert dict(again.items()) == {"before": 1}, keep
        again.close()


def test_nothing_of_an_interrupted_batch_comes_back_behind_a_record_written_over_its_first(
    opener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(stepwise=True, save="")
    store["before"] = 0
    # The moment when the batch is written and not yet counted.
    segment = store._engine.journal.active
    compiled = segment.records is not None
    real = segment.records.append_batch if compiled else Journal._write

    def interrupted(*arguments: Any) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    if compiled:
        monkeypatch.setattr(segment, "records", SimpleNamespace(append_batch=interrupted))
    else:
        monkeypatch.setattr(Journal, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.set_many({f"k{number}": "value" for number in range(5)})
    monkeypatch.undo()
    assert dict(store) == {"before": 0}
    store["k0"] = "other"  # As long as the batch's first record, and with its number.
    shutil.copytree(store.path, tmp_path / "copy")
    assert dict(opener("copy")) == {"before": 0, "k0": "other"}


def test_recovery_says_how_far_it_is_and_applies_a_segment_at_a_time(
    opener: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = opener(stepwise=True)
    store._engine.acknowledged = lambda sequence: None  # Nothing is applied until the store is closed.
    for number in range(3):
        store.set_many({(number, at): at for at in range(10)})
        with store._engine.lock:
            store._engine.rotate()
    store["last"] = 1
    expected = dict(store)
    crashed(store, tmp_path / "copy")
    with caplog.at_level(logging.INFO, "tiered"):
        assert dict(opener("copy")) == expected
    said = [record.getMessage().partition("copy: ")[2] for record in caplog.records if "to go" in record.getMessage()]
    steps = ((1, 23), (2, 12), (3, 1), (4, 0))
    assert said == [f"journal-0000000{at}.log applied; {left} records to go" for at, left in steps]
