"""Stores from snapshots: exact, whole or not at all, and never in the place of something else."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import tracemalloc
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from contracts import KEYS, VALUES
from programs import line_of, running
from test_errors import small_disk  # noqa: F401  A fixture.

import tiered
from tiered import files, process, restoration
from tiered.clock import ManualClock
from tiered.cold import Cold


def snapshot_of(path: Path, values: dict[Any, Any], file: Path, **settings: Any) -> None:
    settings.setdefault("helper", False)
    with tiered.open(path, **settings) as store:
        store.update(values)
        store.snapshot(file)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A snapshot of three records."""
    snapshot_of(tmp_path / "origin", {"a": 1, "b": [2], ("c", 3): "three"}, tmp_path / "s.tsnap")
    return tmp_path / "s.tsnap"


THREE = {"a": 1, "b": [2], ("c", 3): "three"}


def contents(path: Path, **settings: Any) -> dict[Any, Any]:
    with tiered.open(path, "r", **settings) as store:
        assert store.check() == []
        return dict(store)


def tree(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


# Exact


def test_all_kinds_of_keys_and_values_come_back(tmp_path: Path) -> None:
    values: dict[Any, Any] = {key: number for number, key in enumerate(KEYS)}
    extra = [*VALUES, datetime(2026, 1, 2, tzinfo=timezone.utc), Decimal("1.20"), UUID(int=7), 1j, frozenset({1})]
    values |= {("value", number): value for number, value in enumerate(extra)}
    snapshot_of(tmp_path / "origin", values, tmp_path / "s.tsnap")
    info = tiered.restore(tmp_path / "s.tsnap", tmp_path / "restored")
    found = contents(tmp_path / "restored")
    assert found == values
    assert all(type(found[key]) is type(value) for key, value in values.items())
    assert info.records == len(values)


def test_deadlines_are_the_same_to_the_millisecond_and_what_expired_since_is_gone(tmp_path: Path) -> None:
    clock = ManualClock()
    with tiered.open(tmp_path / "origin", clock=clock, helper=False) as store:
        for number in range(50):
            store.set(number, "v", ttl=10 + number / 1000)
        store["for ever"] = 1
        store.snapshot(tmp_path / "s.tsnap")
        clock.sleep(10.02)
        expected = {key: store.ttl(key) for key in store}
    tiered.restore(tmp_path / "s.tsnap", tmp_path / "restored")
    with tiered.open(tmp_path / "restored", clock=clock, helper=False) as store:
        assert {key: store.ttl(key) for key in store} == expected
        assert len(store) == len(expected) == 30
        assert store.check() == []
        clock.sleep(1)
        assert list(store) == ["for ever"]


def test_time_does_not_go_backwards_in_a_restored_store(tmp_path: Path) -> None:
    clock = ManualClock()
    with tiered.open(tmp_path / "origin", clock=clock, helper=False) as store:
        store["a"] = 1
        store.snapshot(tmp_path / "s.tsnap")
    tiered.restore(tmp_path / "s.tsnap", tmp_path / "restored")
    earlier = ManualClock(clock.now_ms() - 60_000)
    with tiered.open(tmp_path / "restored", clock=earlier, helper=False):
        assert earlier.now_ms() == clock.now_ms()


def test_a_restored_store_can_be_written_and_its_sequence_goes_on(file: Path, tmp_path: Path) -> None:
    info = tiered.restore(file, tmp_path / "restored")
    with tiered.open(tmp_path / "restored", helper=False) as store:
        store["d"] = 4
        assert store.stats().last_sequence == info.sequence + 1
        store.save()
    assert contents(tmp_path / "restored") == {**THREE, "d": 4}


@pytest.mark.parametrize(
    "prefix", ["a", "", b"", b"\xff", ("user",), ("user", 7), ("user", "x" * 600), "long", "long" * 200, "none there"]
)
def test_a_prefix_chooses_what_keys_of_that_prefix_are(tmp_path: Path, prefix: Any) -> None:
    values: dict[Any, Any] = {key: number for number, key in enumerate(KEYS)}
    values |= {"abc": 1, ("user", 7, "name"): 2, ("user", 7): 3, ("user", 70): 4, ("users",): 5}
    values |= {("user", "x" * 600, number): number for number in range(3)}
    values |= {"long" * 200 + str(number): number for number in range(3)}
    snapshot_of(tmp_path / "origin", values, tmp_path / "s.tsnap")
    info = tiered.restore(tmp_path / "s.tsnap", tmp_path / "restored", prefix=prefix)
    with tiered.open(tmp_path / "origin", "r") as store:
        expected = dict(store.items(prefix=prefix))
    assert contents(tmp_path / "restored") == expected
    assert info.records == len(expected)
    assert tiered.verify(tmp_path / "restored") == []


def test_a_prefix_of_another_type_is_refused_before_anything_is_done(file: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="prefix"):
        tiered.restore(file, tmp_path / "restored", prefix=7)
    assert not (tmp_path / "restored").exists()


def test_it_works_in_little_memory_and_opens_in_less(tmp_path: Path) -> None:
    uniform = random.Random(1)
    values = {number: uniform.randbytes(1000) for number in range(20_000)}
    snapshot_of(tmp_path / "origin", values, tmp_path / "s.tsnap", memory="32MB", compression="none")
    tracemalloc.start()
    try:
        tiered.restore(tmp_path / "s.tsnap", tmp_path / "restored", memory="1MB")
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()
    assert contents(tmp_path / "restored", memory="1MB") == values


# Whole or not at all


def test_a_damaged_file_is_an_error_with_its_offset_and_leaves_nothing(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    before = sorted(os.listdir(tmp_path))
    offsets = set()
    for at in range(20, len(data), 7):
        file.write_bytes(data[:at] + bytes((data[at] ^ 0x10,)) + data[at + 1 :])
        with pytest.raises(tiered.CorruptionError) as caught:
            tiered.restore(file, tmp_path / "restored")
        offsets.add(caught.value.offset)
        assert sorted(os.listdir(tmp_path)) == before
    assert None not in offsets
    assert len(offsets) > 3
    for size in range(0, len(data), 11):
        file.write_bytes(data[:size])
        with pytest.raises((tiered.CorruptionError, tiered.NotAStoreError)):
            tiered.restore(file, tmp_path / "restored")
        assert sorted(os.listdir(tmp_path)) == before


def test_with_force_a_damaged_file_leaves_the_store_that_was_there(file: Path, tmp_path: Path) -> None:
    snapshot_of(tmp_path / "there", {"old": 1}, tmp_path / "other.tsnap")
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    before = tree(tmp_path / "there" / "cold-0001")
    with pytest.raises(tiered.CorruptionError):
        tiered.restore(file, tmp_path / "there", force=True)
    assert tree(tmp_path / "there" / "cold-0001")["data.mdb"] == before["data.mdb"]
    assert contents(tmp_path / "there") == {"old": 1}


def test_what_the_progress_raises_ends_it_and_leaves_nothing(file: Path, tmp_path: Path) -> None:
    def stopping(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = sorted(os.listdir(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        tiered.restore(file, tmp_path / "restored", progress=stopping)
    assert sorted(os.listdir(tmp_path)) == before


def test_progress_is_told_in_records(file: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    tiered.restore(file, tmp_path / "restored", progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 3)]


def test_a_killed_restore_leaves_nothing_under_the_name_and_the_next_removes_the_rest(tmp_path: Path) -> None:
    values = {number: os.urandom(500) for number in range(20_000)}
    snapshot_of(tmp_path / "origin", values, tmp_path / "s.tsnap", memory="32MB")
    code = """
        import sys, tiered
        def told(done, total):
            print(done, flush=True)
            sys.stdin.readline()
        tiered.restore(sys.argv[1], sys.argv[2], progress=told)
        """
    with running(code, tmp_path / "s.tsnap", tmp_path / "restored") as restoring:
        line_of(restoring)
        assert len(files.temporaries(tmp_path / "restored")) == 1
        assert not (tmp_path / "restored").exists()
        with running(code, tmp_path / "s.tsnap", tmp_path / "restored") as second:
            line_of(second)  # What is being written now is no leftover.
            assert len(files.temporaries(tmp_path / "restored")) == 2
            second.kill()
        restoring.kill()
        restoring.wait(20)
    assert len(files.temporaries(tmp_path / "restored")) == 2
    tiered.restore(tmp_path / "s.tsnap", tmp_path / "restored")
    assert files.temporaries(tmp_path / "restored") == []
    assert contents(tmp_path / "restored") == values


def test_a_full_disk_leaves_nothing_and_says_so(small_disk: Path, tmp_path: Path) -> None:  # noqa: F811
    values = {number: os.urandom(500) for number in range(20_000)}
    snapshot_of(tmp_path / "origin", values, tmp_path / "s.tsnap", memory="32MB")
    with pytest.raises(tiered.StoreFullError):
        tiered.restore(tmp_path / "s.tsnap", small_disk / "restored")
    assert os.listdir(small_disk) == []
    tiered.restore(tmp_path / "s.tsnap", small_disk / "restored", prefix="none")
    assert contents(small_disk / "restored") == {}


def test_a_snapshot_on_a_full_disk_leaves_nothing_and_the_store_goes_on(small_disk: Path, tmp_path: Path) -> None:  # noqa: F811
    values = {number: os.urandom(500) for number in range(20_000)}
    for helper in (False, True):
        with tiered.open(tmp_path / f"origin{helper}", memory="32MB", helper=helper) as store:
            store.update(values)
            with pytest.raises(tiered.StoreFullError):
                store.snapshot(small_disk / "s.tsnap")
            assert os.listdir(small_disk) == []
            store["after"] = 1
            assert store.stats().state == "open"
            store.snapshot(tmp_path / "s.tsnap")
            assert tiered.verify(tmp_path / "s.tsnap") == []


# Never in the place of something else


def test_a_store_that_is_there_is_replaced_only_with_force(file: Path, tmp_path: Path) -> None:
    snapshot_of(tmp_path / "there", {"old": 1}, tmp_path / "other.tsnap")
    with pytest.raises(tiered.StoreExistsError, match="force=True"):
        tiered.restore(file, tmp_path / "there")
    assert contents(tmp_path / "there") == {"old": 1}
    tiered.restore(file, tmp_path / "there", force=True)
    assert contents(tmp_path / "there") == THREE
    assert files.temporaries(tmp_path / "there") == []


def test_where_names_cannot_be_exchanged_it_takes_two_steps(file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    snapshot_of(tmp_path / "there", {"old": 1}, tmp_path / "other.tsnap")
    monkeypatch.setattr(process, "exchange_names", lambda one, other: False)
    tiered.restore(file, tmp_path / "there", force=True)
    assert contents(tmp_path / "there") == THREE
    assert files.temporaries(tmp_path / "there") == []


def test_names_are_exchanged_at_once_where_the_system_can(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert process.exchange_names(tmp_path / "one", tmp_path / "other")
    assert (os.listdir(tmp_path / "one"), os.listdir(tmp_path / "other")) == (["other"], ["one"])
    assert not process.exchange_names(tmp_path / "one", tmp_path / "missing")


def test_an_open_store_is_not_replaced_by_force(file: Path, tmp_path: Path) -> None:
    snapshot_of(tmp_path / "there", {"old": 1}, tmp_path / "other.tsnap")
    code = """
        import sys, tiered
        store = tiered.open(sys.argv[1], "w")
        print("open", flush=True)
        sys.stdin.readline()
        """
    with tiered.open(tmp_path / "there", "w"), pytest.raises(tiered.LockedError):
        tiered.restore(file, tmp_path / "there", force=True)
    with running(code, tmp_path / "there") as writer:
        line_of(writer)
        with pytest.raises(tiered.LockedError, match=str(writer.pid)):
            tiered.restore(file, tmp_path / "there", force=True)
    assert contents(tmp_path / "there") == {"old": 1}


def test_a_reader_of_a_store_that_is_replaced_goes_on_with_the_old_one(file: Path, tmp_path: Path) -> None:
    snapshot_of(tmp_path / "there", {"old": 1}, tmp_path / "other.tsnap")
    with tiered.open(tmp_path / "there", "r") as reader:
        tiered.restore(file, tmp_path / "there", force=True)
        assert dict(reader) == {"old": 1}
        with tiered.open(tmp_path / "there", "r") as fresh:
            assert dict(fresh) == THREE


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_store_is_never_touched(file: Path, tmp_path: Path, force: bool) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "text").write_text("text")
    snapshot_of(tmp_path / "mixed", {"old": 1}, tmp_path / "other.tsnap")
    (tmp_path / "mixed" / "notes.txt").write_text("mine")
    for name in ("photos", "text", "mixed"):
        with pytest.raises(tiered.NotAStoreError):
            tiered.restore(file, tmp_path / name, force=force)
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"
    assert (tmp_path / "text").read_text() == "text"
    assert (tmp_path / "mixed" / "notes.txt").read_text() == "mine"


def test_an_empty_directory_and_missing_parents_are_fine(file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    tiered.restore(file, tmp_path / "empty")
    tiered.restore(file, tmp_path / "a" / "b" / "c")
    assert contents(tmp_path / "empty") == contents(tmp_path / "a" / "b" / "c") == THREE


def test_no_file_or_another_kind_of_file_is_a_named_error(file: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    for wrong in (tmp_path / "missing.tsnap", tmp_path / "text", tmp_path):
        with pytest.raises(tiered.NotAStoreError):
            tiered.restore(wrong, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_whoever_waits_for_a_store_that_is_replaced_opens_the_new_one(file: Path, tmp_path: Path) -> None:
    """A lock waited for may be that of a directory which is gone when it is free."""
    snapshot_of(tmp_path / "there", {"old": 1}, tmp_path / "other.tsnap")
    lock = files.FileLock(tmp_path / "there" / files.LOCK)
    real = process.exchange_names
    code = """
        import sys, tiered
        print("waiting", flush=True)
        with tiered.open(sys.argv[1], "w", lock_timeout=30) as store:
            store["waited"] = 1
        """

    with contextlib.ExitStack() as ending:

        def exchanging(one: Any, other: Any) -> bool:
            waiting = ending.enter_context(running(code, tmp_path / "there"))
            line_of(waiting)
            ending.callback(waiting.wait, 30)
            return real(one, other)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process, "exchange_names", exchanging)
            tiered.restore(file, tmp_path / "there", force=True)
    assert not lock.held
    assert contents(tmp_path / "there") == {**THREE, "waited": 1}


def test_a_lock_file_that_was_replaced_meanwhile_is_not_held(tmp_path: Path, monkeypatch: Any) -> None:
    import fcntl

    real, path = fcntl.flock, tmp_path / "LOCK"

    def replaced(fd: int, how: int) -> None:
        real(fd, how)
        if not (tmp_path / "done").exists():
            (tmp_path / "done").touch()
            path.unlink()

    monkeypatch.setattr(fcntl, "flock", replaced)
    lock = files.FileLock(path)
    lock.acquire()
    assert lock.in_place()
    lock.release()


def test_the_append_mode_leaves_full_pages(tmp_path: Path) -> None:
    uniform = random.Random(1)
    values = {uniform.random().hex(): "v" * 100 for _ in range(20_000)}
    snapshot_of(tmp_path / "origin", values, tmp_path / "s.tsnap", memory="8MB", compression="none")
    tiered.restore(tmp_path / "s.tsnap", tmp_path / "restored")
    cold = Cold(tmp_path / "restored" / "cold-0001", readonly=True)
    used = cold.used_bytes()
    cold.close()
    assert used < 1.1 * (tmp_path / "s.tsnap").stat().st_size  # Pages split in the middle would be a third more.


def test_the_restored_store_has_nothing_that_belongs_to_another(file: Path, tmp_path: Path) -> None:
    tiered.restore(file, tmp_path / "restored")
    assert sorted(os.listdir(tmp_path / "restored")) == ["CURRENT", "LOCK", "cold-0001"]
    assert oct((tmp_path / "restored").stat().st_mode & 0o777) == "0o700"
    shutil.move(tmp_path / "restored", tmp_path / "moved")
    assert contents(tmp_path / "moved") == THREE


def test_restoring_where_nothing_may_be_written_is_a_named_error(file: Path, tmp_path: Path) -> None:
    medium = tmp_path / "medium"
    medium.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", medium], capture_output=True).returncode:
        pytest.skip("may not mount here")
    try:
        with pytest.raises(tiered.StoreError, match="Read-only file system"):
            tiered.restore(file, medium / "restored")
    finally:
        subprocess.run(["umount", medium], check=True)


def test_memory_is_a_size(file: Path, tmp_path: Path) -> None:
    with pytest.raises(tiered.ConfigError, match="not a size"):
        tiered.restore(file, tmp_path / "restored", memory="a lot")
    assert restoration.MEMORY == "64MB"
