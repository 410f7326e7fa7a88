"""`verify`: reads everything, changes nothing, and says what is wrong instead of raising it."""

from __future__ import annotations

import gc
import os
import subprocess
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from programs import line_of, run, running, succeed, tell

import tiered
from tiered import codec, files, filters, journal, record
from tiered.cold import Cold
from tiered.cold_state import deadline_key, filter_name

CRASHED = """
import os, sys, tiered
store = tiered.open(sys.argv[1], helper=False, save="", durability="checkpoint")
store.update((number, {"n": number}) for number in range(100))
store.save()
store.update((("dirty", number), {"text": "words " * 5}) for number in range(100))
store.sync()
store["last"] = 1
store.sync()
os._exit(0)
"""


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """A store that was closed, with deadlines, a long key and records in both trees."""
    path = tmp_path / "store"
    with tiered.open(path, helper=False, compression="none", memory="4MB") as store:
        store.update((number, f"value {number}") for number in range(300))
        store.set("soon", "expiring", ttl=10_000)
        store["long" * 200] = "under a long key"
    return path


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """A store whose program ended without closing it: records in the cold tier and in the journal."""
    succeed(CRASHED, tmp_path / "crashed")
    return tmp_path / "crashed"


def what(path: Path) -> set[str]:
    return {finding.what for finding in tiered.verify(path)}


def tree(path: Path) -> dict[str, tuple[bytes, float]]:
    files_ = [each for each in sorted(path.rglob("*")) if each.is_file() and each.name != "lock.mdb"]
    return {str(each.relative_to(path)): (each.read_bytes(), each.stat().st_mtime) for each in files_}


def spoil(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


# All is well


def test_a_healthy_store_has_no_findings_and_is_not_changed(store_path: Path) -> None:
    before = tree(store_path)
    told: list[tuple[int, int]] = []
    assert tiered.verify(store_path, lambda done, total: told.append((done, total))) == []
    assert told[-1] == (302, 302)
    assert tree(store_path) == before


def test_a_crashed_store_has_none_and_stays_as_it_is(crashed: Path) -> None:
    before = tree(crashed)
    assert tiered.verify(crashed) == []
    assert tree(crashed) == before
    with tiered.open(crashed) as store:
        assert len(store) == 201


def test_a_torn_end_of_the_journal_is_no_damage(crashed: Path) -> None:
    [number] = files.segment_numbers(crashed)
    segment = files.segment_path(crashed, number)
    *_, last = journal.SegmentFile(segment).entries()
    with open(segment, "r+b") as file:
        file.seek(last.end + 4)
        file.write(b"half a record")
    assert tiered.verify(crashed) == []


def test_a_store_open_here_is_verified_with_its_last_checkpoint_and_its_journal(opener: Any) -> None:
    store = opener()
    store["a"] = 1
    store.save()
    store["b"] = 2
    assert tiered.verify(store.path) == []
    store["c"] = 3
    assert dict(store) == {"a": 1, "b": 2, "c": 3}


def test_a_store_open_elsewhere_is_verified_while_it_is_written(tmp_path: Path) -> None:
    code = """
        import sys, threading, tiered
        store = tiered.open(sys.argv[1], memory="1MB", save="0 500")
        stop = threading.Event()
        def write():
            number = 0
            while not stop.is_set():
                number += 1
                store.set(number % 5000, {"n": number, "text": "words " * 10}, ttl=3000 if number % 3 else None)
        thread = threading.Thread(target=write)
        thread.start()
        print("writing", flush=True)
        sys.stdin.readline()
        stop.set()
        thread.join()
        store.close()
        """
    with running(code, tmp_path / "store") as writer:
        line_of(writer)
        for _ in range(8):
            assert tiered.verify(tmp_path / "store") == []
        tell(writer)
        assert writer.wait(30) == 0
    assert tiered.verify(tmp_path / "store") == []


def test_a_read_only_medium_is_verified(store_path: Path, tmp_path: Path) -> None:
    medium = tmp_path / "medium"
    medium.mkdir()
    if subprocess.run(["mount", "--bind", tmp_path, medium], capture_output=True).returncode:
        pytest.skip("may not mount here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", medium], check=True)
        assert tiered.verify(medium / "store") == []
    finally:
        gc.collect()
        subprocess.run(["umount", medium], check=True)


def test_values_of_types_not_registered_here_are_no_damage(tmp_path: Path) -> None:
    code = """
        import sys, tiered
        from dataclasses import dataclass
        @tiered.register("verification.point")
        @dataclass
        class Point:
            x: int
        with tiered.open(sys.argv[1], helper=False) as store:
            store["p"] = Point(1)
            store.snapshot(sys.argv[2])
        """
    succeed(code, tmp_path / "store", tmp_path / "s.tsnap")
    assert tiered.verify(tmp_path / "store") == []
    assert tiered.verify(tmp_path / "s.tsnap") == []
    tiered.restore(tmp_path / "s.tsnap", tmp_path / "restored")
    assert run(code, tmp_path / "restored", tmp_path / "t.tsnap").returncode == 0


def test_what_a_registered_type_cannot_read_is_a_finding(tmp_path: Path) -> None:
    @dataclass
    class Moody:
        x: int

    def unpack(state: Any) -> Moody:
        if fails:
            raise RuntimeError("not today")
        return Moody(state)

    fails = False
    tiered.register("verification.moody", Moody, pack=lambda moody: moody.x, unpack=unpack)
    with tiered.open(tmp_path / "store", helper=False) as store:
        store["m"] = Moody(1)
    assert tiered.verify(tmp_path / "store") == []
    fails = True
    [finding] = tiered.verify(tmp_path / "store")
    assert "not today" in finding.detail


# What is wrong


def test_a_damaged_value_is_found_and_named(store_path: Path) -> None:
    spoil(store_path / "cold-0001" / "data.mdb", b"value 77", b"value 78")
    [finding] = tiered.verify(store_path)
    assert finding.what == "damaged record"
    assert "checksum mismatch" in finding.detail


def changed(path: Path, change: Any) -> None:
    """Change a closed store's cold tier behind its back."""
    cold = Cold(path / "cold-0001")
    with cold.update() as update:
        change(cold, update)
    cold.close()


def test_a_wrong_count_is_found(store_path: Path) -> None:
    changed(store_path, lambda cold, update: setattr(update.current, "records", 7))
    assert what(store_path) == {"count"}


def test_a_wrong_sum_of_bytes_is_found(store_path: Path) -> None:
    changed(store_path, lambda cold, update: setattr(update.current, "stored_bytes", 7))
    assert what(store_path) == {"bytes"}


def test_a_deadline_that_the_index_lacks_is_found(store_path: Path) -> None:
    def change(cold: Cold, update: Any) -> None:
        [entry] = list(update.due((1 << 63) - 1))
        update.txn.delete(entry, db=cold.expiry)

    changed(store_path, change)
    assert what(store_path) == {"expiry index"}


def test_an_entry_of_the_index_without_its_record_is_found(store_path: Path) -> None:
    def change(cold: Cold, update: Any) -> None:
        [entry] = list(update.due((1 << 63) - 1))
        update.txn.delete(entry, db=cold.expiry)
        update.txn.put(deadline_key(123_456, b"\x02soon"), b"", db=cold.expiry)
        update.txn.put(deadline_key(1, b"\x02nobody"), b"", db=cold.expiry)

    changed(store_path, change)
    findings = tiered.verify(store_path)
    assert {finding.what for finding in findings} == {"expiry index"}
    assert len(findings) == 4  # One lacks its entry, two entries are wrong, and so is their number.


def test_a_missing_dictionary_is_found(store_path: Path) -> None:
    def change(cold: Cold, update: Any) -> None:
        data = record.pack(b"\x02d", codec.STR, 1, 9, 0, b"", b"(\xb5/\xfd no frame")
        update.write([(b"\x02d", data, 0, 5)])
        update.current.dictionary = 9

    changed(store_path, change)
    assert {"dictionary", "damaged record"} <= what(store_path)


def test_a_record_under_a_key_that_is_none_is_found(store_path: Path) -> None:
    def change(cold: Cold, update: Any) -> None:
        update.write([(b"\xee no key", record.pack(b"\xee no key", codec.STR, 0, 0, 0, b"", b"x"), 0, 1)])
        update.write([(b"\x02k", record.pack(b"\x02k", codec.STR, 0, 0, 0, b"\x02other", b"x"), 0, 1)])
        update.write([(b"\x02v", record.pack(b"\x02v", codec.MSGPACK, 0, 0, 0, b"", b"\xc1"), 0, 1)])

    changed(store_path, change)
    assert len(tiered.verify(store_path)) == 3


def test_a_filter_that_denies_a_key_or_cannot_be_read_is_found(store_path: Path) -> None:
    def deny(cold: Cold, update: Any) -> None:
        keys = [stored_key for stored_key, _ in update.scan()]
        bits = bytearray(filters.size_for(4 * len(keys)))
        filters.add(bits, keys[1:])
        update._put_filter(update.current.runs[0], bits)

    def spoil(cold: Cold, update: Any) -> None:
        update.txn.put(filter_name(update.current.runs[0]), b"nonsense", db=cold.databases["meta"])

    changed(store_path, deny)
    assert [finding.what for finding in tiered.verify(store_path)] == ["filter"]
    changed(store_path, spoil)
    assert [finding.what for finding in tiered.verify(store_path)] == ["filter"]


@pytest.mark.parametrize("name", ["state", "settings"])
def test_damage_to_what_the_store_knows_of_itself_is_found(store_path: Path, name: str) -> None:
    cold = Cold(store_path / "cold-0001")
    with cold._env.begin(write=True) as txn:
        txn.put(name.encode(), b"nonsense", db=cold.databases["meta"])
    cold.close()
    assert what(store_path) == {"damaged store"}


def test_damage_in_the_journal_is_found_and_the_rest_is_read(crashed: Path) -> None:
    [number] = files.segment_numbers(crashed)
    segment = files.segment_path(crashed, number)
    entries = list(journal.SegmentFile(segment).entries())
    with open(segment, "r+b") as file:
        file.seek(entries[40].start + 3)
        file.write(b"?")
    [finding] = tiered.verify(crashed)
    assert finding.what == "damaged journal"
    assert str(segment) == finding.where


def test_every_byte_of_a_small_journal_may_flip_without_an_exception(crashed: Path) -> None:
    [number] = files.segment_numbers(crashed)
    segment = files.segment_path(crashed, number)
    data = segment.read_bytes()
    *_, last = journal.SegmentFile(segment).entries()
    for at in range(0, last.end, 61):
        segment.write_bytes(data[:at] + bytes((data[at] ^ 0x40,)) + data[at + 1 :])
        assert what(crashed) <= {"damaged journal"}


def test_a_missing_or_truncated_data_file_is_found(store_path: Path) -> None:
    data = store_path / "cold-0001" / "data.mdb"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    assert what(store_path) == {"damaged store"}
    data.write_bytes(b"")
    assert what(store_path) == {"damaged store"}
    data.unlink()
    assert what(store_path) == {"damaged store"}


def test_a_missing_or_nonsensical_current_is_found(store_path: Path) -> None:
    current = store_path / files.CURRENT
    current.write_text("nonsense")
    assert what(store_path) == {"damaged store"}
    current.write_text("cold-0009")
    assert what(store_path) == {"damaged store"}
    current.unlink()
    assert what(store_path) == {"no CURRENT"}


def test_no_more_than_a_hundred_findings_are_listed_and_the_rest_counted(store_path: Path) -> None:
    data = store_path / "cold-0001" / "data.mdb"
    data.write_bytes(data.read_bytes().replace(b"value ", b"VALUE "))
    findings = tiered.verify(store_path)
    assert len(findings) == 101
    assert "200 more" in findings[-1].detail


# What there is to verify


def test_where_there_is_neither_store_nor_snapshot_it_raises(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    for path in ("missing", "text", "photos"):
        with pytest.raises(tiered.NotAStoreError):
            tiered.verify(tmp_path / path)


def test_verifying_a_store_takes_little_memory(tmp_path: Path) -> None:
    with tiered.open(tmp_path / "store", helper=False, memory="32MB", compression="none") as store:
        store.update((number, os.urandom(2000)) for number in range(8000))
    tracemalloc.start()
    try:
        assert tiered.verify(tmp_path / "store") == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("at", [10, 13, 15])
def test_what_lmdb_itself_finds_damaged_is_a_finding(tmp_path: Path, at: int) -> None:
    with tiered.open(tmp_path / "s", helper=False, compression="none") as store:
        store.update({"a": 1, "b:1": "two", "b:2": "spoiled"})
    file = tmp_path / "s" / "cold-0001" / "data.mdb"
    data = bytearray(file.read_bytes())
    data[data.index(b"spoiled") // 4096 * 4096 + at] = 0x10  # In the header of the page.
    file.write_bytes(data)
    assert tiered.verify(tmp_path / "s") != []


def test_what_may_not_be_read_is_an_error_of_the_store(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(store_path))

    monkeypatch.setattr("os.listdir", refused)
    with pytest.raises(tiered.ReadOnlyError, match="Permission denied; check its permissions"):
        tiered.verify(store_path)
