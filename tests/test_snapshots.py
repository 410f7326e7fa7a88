"""Snapshots of open stores: one moment, whatever goes on; on schedule; and what a failing one leaves."""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from programs import children, helper_pid, line_of, running, tell, wait_until

import tiered
from tiered import copying, files, retention, snapshot
from tiered.clock import ManualClock
from tiered.cold import Cold
from tiered.snapshot import SnapshotFile

both = pytest.mark.parametrize("helper", [False, True], ids=["inline", "helper"])


def held(file: Path, path: Path) -> dict[Any, Any]:
    """What a snapshot holds, as a store restored from it shows; both are verified."""
    assert tiered.verify(file) == []
    tiered.restore(file, path)
    assert tiered.verify(path) == []
    with tiered.open(path, "r") as store:
        return dict(store)


def snapshots_in(directory: Path) -> list[str]:
    return sorted(os.listdir(directory)) if directory.exists() else []


# One moment


@both
def test_a_snapshot_holds_everything_acknowledged_before_it(opener: Any, tmp_path: Path, helper: bool) -> None:
    store = opener(helper=helper, memory="4MB")
    values: dict[Any, Any] = {number: {"n": number, "text": "words " * 20} for number in range(5000)}
    store.update(values)
    store.save()
    store.update({-1: "still in the write buffer", "long" * 200: [1, (2,)]})
    del store[77]
    told: list[tuple[int, int]] = []
    info = store.snapshot(tmp_path / "s.tsnap", lambda done, total: told.append((done, total)))
    expected = {key: value for key, value in values.items() if key != 77}
    expected |= {-1: "still in the write buffer", "long" * 200: [1, (2,)]}
    assert (info.records, info.path) == (len(expected), str(tmp_path / "s.tsnap"))
    assert info.file_bytes == os.path.getsize(info.path)
    assert info.sequence == store.stats().last_sequence
    assert told[-1] == (info.records, info.records)
    assert dict(store) == expected == held(tmp_path / "s.tsnap", tmp_path / "restored")
    assert oct(os.stat(info.path).st_mode & 0o777) == "0o600"


@both
def test_a_snapshot_under_writing_threads_is_one_moment(opener: Any, tmp_path: Path, helper: bool) -> None:
    """Each thread counts up, in batches, in two keys at once: they are equal, and no less than before the call."""
    store = opener(helper=helper, memory="2MB")
    store.update((("ballast", number), os.urandom(300)) for number in range(3000))
    stop = threading.Event()
    acknowledged = [0] * 8

    def write(me: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            store.set_many({("one", me): number, ("two", me): number})
            store[("noise", me, number % 50)] = number
            acknowledged[me] = number

    threads = [threading.Thread(target=write, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(3):
            before = list(acknowledged)
            store.snapshot(tmp_path / f"{turn}.tsnap")
            after = list(acknowledged)
            found = held(tmp_path / f"{turn}.tsnap", tmp_path / f"restored{turn}")
            for me in range(8):
                assert found.get(("one", me)) == found.get(("two", me))
                assert before[me] <= found.get(("one", me), 0) <= after[me] + 1
            assert sum(isinstance(key, tuple) and key[0] == "ballast" for key in found) == 3000
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_snapshot_goes_on_while_checkpoints_wait_and_they_go_on_too(
    opener: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    store = opener(stepwise=True, memory="8MB")
    store.update((number, os.urandom(200)) for number in range(40_000))
    store.save()
    job, applied, events = store._engine.checkpointer._job, [], []
    with monkeypatch.context() as patch:
        patch.setattr(job, "_apply", lambda: applied.append(1) or True)
        patch.setattr(job, "_waiting", [(1 << 30, 1 << 60)])  # There is always one more.
        job.snapshot(7, 0, copying.Wish(str(tmp_path / "s.tsnap"), "")._asdict())
        for _ in range(500):
            result = job.step()
            if isinstance(result, dict):
                events.append(result["event"])
    assert "snapshot_made" in events
    assert len(applied) > 250
    assert tiered.verify(tmp_path / "s.tsnap") == []


def test_what_is_written_while_it_is_made_is_not_in_it(opener: Any, tmp_path: Path) -> None:
    store = opener(stepwise=True)
    values = {number: f"before {number}" for number in range(20_000)}
    store.update(values)

    def meanwhile(done: int, total: int) -> None:
        store.update(dict.fromkeys(range(0, 20000, 100), "after"))
        store.pop(1, None)
        store[-1] = "after"

    store.snapshot(tmp_path / "s.tsnap", meanwhile)
    assert held(tmp_path / "s.tsnap", tmp_path / "restored") == values


def test_the_batches_of_a_snapshot_are_what_a_scan_gives(tmp_path: Path) -> None:
    """Newer records, deletion markers and large values in runs, over one another and over what lies behind them."""
    from tiered import record

    cold = Cold(tmp_path / "cold-0001", create=True)

    def stored(key: bytes, text: bytes) -> tuple[bytes, bytes, int, int]:
        return key, record.pack(key, 2, 0, 0, 0, b"", text), 0, len(text)

    keys = [b"\x02%05d" % number for number in range(30_000)]
    with cold.update() as update:
        update.write([stored(key, b"old") for key in keys])
        while update.current.runs:
            update.merge(1 << 30)
    with cold.update() as update:
        update.write([stored(key, b"newer" * 9) for key in keys[::5]])
    with cold.update() as update:
        update.write(
            [(key, None, 0, 0) if at % 7 == 0 else stored(key, b"new" * at) for at, key in enumerate(keys[::11])]
        )
        update.write([stored(b"\x02zz%03d" % number, os.urandom(200_000)) for number in range(12)])
    with cold.read() as reader:
        found = list(copying.batches(reader))
        assert [item for batch in found for item in zip(*batch, strict=True)] == list(reader.scan())
        assert len(found) > 10
        assert len(reader.layers) == 3
        assert max(sum(map(len, datas)) for _, datas in found) > snapshot.BODY_BYTES, "or there is nothing to cut"
        cut = list(copying.sections(iter(found)))
        assert [item for batch in cut for item in zip(*batch, strict=True)] == list(reader.scan())
        assert max(sum(map(len, datas)) for _, datas in cut) <= snapshot.BODY_BYTES
    cold.close()


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ([0] * (snapshot.BODY_RECORDS_MAX + 1), [snapshot.BODY_RECORDS_MAX, 1]),
        ([snapshot.BODY_BYTES, 1], [1, 1]),
        ([snapshot.BODY_BYTES - 1, 1, 1], [2, 1]),
        ([1, 5 * snapshot.BODY_BYTES, 1], [1, 1, 1]),
        ([], []),
    ],
)
def test_a_section_ends_at_its_bytes_or_its_records_or_with_one_that_is_larger(
    sizes: list[int], counts: list[int]
) -> None:
    keys, datas = [b"%d" % at for at in range(len(sizes))], [bytes(size) for size in sizes]
    cut = list(copying.sections(iter([(keys, datas)])))
    assert [len(part) for part, _ in cut] == counts
    assert [key for part, _ in cut for key in part] == keys
    assert [data for _, part in cut for data in part] == datas


@pytest.mark.parametrize("count", [0, 1, 3])
def test_small_stores_have_snapshots_too(opener: Any, tmp_path: Path, count: int) -> None:
    store = opener()
    store.update((number, None) for number in range(count))
    assert store.snapshot(tmp_path / "s.tsnap").records == count
    assert held(tmp_path / "s.tsnap", tmp_path / "restored") == dict.fromkeys(range(count))


def test_two_threads_may_ask_at_once(opener: Any, tmp_path: Path) -> None:
    store = opener(helper=True, memory="4MB")
    store.update((number, "v" * 100) for number in range(20_000))
    files_ = [tmp_path / f"{number}.tsnap" for number in range(4)]
    threads = [threading.Thread(target=store.snapshot, args=(file,)) for file in files_]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(tiered.verify(file) == [] for file in files_)
    assert store.stats().snapshots == 4


def test_dictionaries_and_settings_are_carried(opener: Any, tmp_path: Path) -> None:
    store = opener(memory="4MB", save="77 7", default_ttl=1000.0)
    store.update((number, {"name": f"User {number}", "city": "Bonn", "bio": "reads books"}) for number in range(6000))
    while store.stats().dictionary_count == 0:
        store.save()
        store.tick()
        store.update((number, {"name": f"U {number}", "city": "Bonn", "bio": "reads more"}) for number in range(6000))
    store.snapshot(tmp_path / "s.tsnap")
    expected = dict(store)
    assert held(tmp_path / "s.tsnap", tmp_path / "restored") == expected
    with tiered.open(tmp_path / "restored", "r") as restored:
        assert restored.config_get("save") == {"save": ((77, 7),)}
        assert restored.config_get("default_ttl") == {"default_ttl": 1000.0}
        assert restored.stats().dictionary_count == store.stats().dictionary_count
        assert restored.stats().packed_bytes == store.stats().packed_bytes


def test_stats_tell_of_a_snapshot_under_way(opener: Any, tmp_path: Path) -> None:
    store = opener(stepwise=True, clock=ManualClock())
    store.update((number, "v" * 100) for number in range(20_000))
    seen: list[float] = []

    def meanwhile(done: int, total: int) -> None:
        store._engine.clock.sleep(1)
        seen.append(store.stats().snapshot_seconds)

    store.snapshot(tmp_path / "s.tsnap", meanwhile)
    assert seen[0] >= 1.0
    assert (store.stats().snapshot_seconds, store.stats().snapshots) == (0.0, 1)


# Files


def test_an_older_snapshot_is_replaced_at_once_or_not_at_all(opener: Any, tmp_path: Path, monkeypatch: Any) -> None:
    store = opener(stepwise=True)
    file = tmp_path / "s.tsnap"
    store["a"] = 1
    store.snapshot(file)
    first = file.read_bytes()
    store["a"] = 2

    def failing(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(files.Replacement, "sync", failing)
        with pytest.raises(tiered.StoreError, match="Input/output error"):
            store.snapshot(file)
    assert file.read_bytes() == first
    store["a"] = 3
    assert (store.stats().state, store.stats().snapshot_failures) == ("open", 1)
    store.snapshot(file)
    assert held(file, tmp_path / "restored") == {"a": 3}
    assert snapshots_in(tmp_path) == ["restored", "s.tsnap", "store.tiered"]


@both
def test_another_file_is_never_overwritten(opener: Any, tmp_path: Path, helper: bool) -> None:
    store = opener(helper=helper)
    (tmp_path / "thesis.txt").write_text("years of work")
    for wrong in (tmp_path / "thesis.txt", tmp_path, tmp_path / "missing" / "s.tsnap"):
        with pytest.raises(tiered.NotAStoreError):
            store.snapshot(wrong)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@both
def test_what_the_progress_raises_ends_the_snapshot_and_leaves_nothing(
    opener: Any, tmp_path: Path, helper: bool
) -> None:
    store = opener(helper=helper, memory="4MB")
    store.update((number, os.urandom(100)) for number in range(30_000))

    def stopping(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.snapshot(tmp_path / "s.tsnap", stopping)
    wait_until(lambda: not [name for name in snapshots_in(tmp_path) if name.endswith(".tmp")])
    store["goes on"] = 1
    store.snapshot(tmp_path / "t.tsnap")
    if not helper:  # Which may be done before it hears of it.
        assert not (tmp_path / "s.tsnap").exists()
    assert snapshots_in(tmp_path) == (["s.tsnap"] if (tmp_path / "s.tsnap").exists() else []) + [
        "store.tiered",
        "t.tsnap",
    ]


def test_a_leftover_of_a_killed_writer_is_removed_by_the_next_snapshot(opener: Any, tmp_path: Path) -> None:
    store = opener()
    store["a"] = 1
    left = tmp_path / "s.tsnap.0123abcd.tmp"
    left.write_bytes(b"half")
    other = tmp_path / "other.tsnap.0123abcd.tmp"
    other.write_bytes(b"another's")
    under_way = files.Replacement(tmp_path / "s.tsnap")
    store.snapshot(tmp_path / "s.tsnap")
    assert not left.exists()
    assert other.exists()
    assert under_way.temporary.exists()  # Locked: somebody is writing it.
    under_way.abandon()


def test_a_damaged_record_is_no_part_of_a_snapshot(opener: Any, tmp_path: Path) -> None:
    store = opener(compression="none")
    store["victim"] = "spoiled text " * 10
    store["bystander"] = 1
    store.close()
    data = tmp_path / "store.tiered" / "cold-0001" / "data.mdb"
    data.write_bytes(data.read_bytes().replace(b"spoiled", b"rotten!"))
    store = tiered.open(tmp_path / "store.tiered", helper=False)
    with pytest.raises(tiered.CorruptionError, match="no snapshot was made"):
        store.snapshot(tmp_path / "s.tsnap")
    assert snapshots_in(tmp_path) == ["store.tiered"]
    assert (store["bystander"], store.stats().state) == (1, "open")
    store["victim"] = "mended"
    store.snapshot(tmp_path / "s.tsnap")
    assert held(tmp_path / "s.tsnap", tmp_path / "restored") == {"victim": "mended", "bystander": 1}
    store.close()


# Whose snapshot


def test_a_poisoned_store_makes_none_and_says_why(opener: Any, tmp_path: Path) -> None:
    store = tiered.open(tmp_path / "poisoned", helper=False)
    store["a"] = 1
    store._engine.poison("a test")
    with pytest.raises(tiered.PoisonedError):
        store.snapshot(tmp_path / "s.tsnap")
    with pytest.raises(tiered.PoisonedError):
        store.close()


def test_a_closed_store_makes_none(opener: Any, tmp_path: Path) -> None:
    store = opener()
    store.close()
    with pytest.raises(tiered.ClosedError):
        store.snapshot(tmp_path / "s.tsnap")


def test_a_read_only_handle_makes_one_of_everything_here_and_of_the_last_checkpoint_elsewhere(
    opener: Any, tmp_path: Path
) -> None:
    store = opener()
    store["a"] = 1
    reader = opener(flag="r")
    reader.snapshot(tmp_path / "s.tsnap")
    assert held(tmp_path / "s.tsnap", tmp_path / "restored") == {"a": 1}
    store.close()
    reader.close()
    reader = opener(flag="r")
    told: list[tuple[int, int]] = []
    info = reader.snapshot(tmp_path / "t.tsnap", lambda done, total: told.append((done, total)))
    assert told[-1] == (1, 1)
    assert info.as_of > 0
    assert held(tmp_path / "t.tsnap", tmp_path / "again") == {"a": 1}


def test_another_process_makes_one_beside_the_writer_as_of_the_last_checkpoint(opener: Any, tmp_path: Path) -> None:
    code = """
        import sys, tiered
        store = tiered.open(sys.argv[1], helper=False, save="")
        store["saved"] = 1
        store.save()
        store["dirty"] = 2
        print("ready", flush=True)
        sys.stdin.readline()
        store["later"] = 3
        store.close()
        """
    with running(code, tmp_path / "s.tiered") as writer:
        line_of(writer)
        with tiered.open(tmp_path / "s.tiered", "r") as reader:
            info = reader.snapshot(tmp_path / "s.tsnap")
        tell(writer)
        assert writer.wait(20) == 0
    assert held(tmp_path / "s.tsnap", tmp_path / "restored") == {"saved": 1}
    assert info.sequence == 2  # The write, and the end of its segment.


# Kills


def test_a_helper_killed_in_the_middle_makes_it_again(opener: Any, tmp_path: Path) -> None:
    store = opener(helper=True, memory="4MB")
    values = {number: os.urandom(200) for number in range(60_000)}
    store.update(values)
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if not killed:
            killed.append(helper_pid(store))
            os.kill(killed[0], signal.SIGKILL)

    store.snapshot(tmp_path / "s.tsnap", kill)
    assert killed
    assert held(tmp_path / "s.tsnap", tmp_path / "restored") == values
    assert snapshots_in(tmp_path) == ["restored", "s.tsnap", "store.tiered"]


@both
def test_a_writer_killed_in_the_middle_leaves_no_half_file_and_a_whole_store(tmp_path: Path, helper: bool) -> None:
    code = """
        import os, sys, tiered
        store = tiered.open(sys.argv[1], helper=sys.argv[3] == "True", memory="4MB")
        store.update((number, os.urandom(300)) for number in range(40_000))
        store["a"] = 1
        store.snapshot(sys.argv[2], lambda done, total: print(done, total, flush=True))
        """
    file = tmp_path / "s.tsnap"
    with running(code, tmp_path / "s.tiered", file, helper) as writer:
        line_of(writer)
        helpers = children(writer.pid)
        writer.kill()
        writer.wait(20)
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in helpers))
    if file.exists():  # The helper may have been quick.
        assert tiered.verify(file) == []
    with tiered.open(tmp_path / "s.tiered", "w") as store:
        assert len(store) == 40_001
        store.snapshot(file)
        assert store.check() == []
    assert tiered.verify(file) == []
    assert snapshots_in(tmp_path) == ["s.tiered", "s.tsnap"]


# On schedule


def scheduled(opener: Any, **settings: Any) -> tuple[tiered.Store[Any, Any], ManualClock]:
    clock = ManualClock()
    settings.setdefault("snapshot_save", "60 1")
    return opener(stepwise=not settings.get("helper"), clock=clock, **settings), clock


def ticks(store: tiered.Store[Any, Any], count: int = 30) -> None:
    for _ in range(count):
        store.tick()


def test_the_first_one_comes_with_the_first_changes_and_the_next_when_due(opener: Any, tmp_path: Path) -> None:
    store, clock = scheduled(opener)
    place = tmp_path / "store.tiered.snapshots"
    ticks(store)
    assert snapshots_in(place) == []  # Nothing to keep yet.
    store["a"] = 1
    ticks(store)
    first = snapshots_in(place)
    assert len(first) == 1
    clock.sleep(30)
    store["a"] = 2
    ticks(store)
    assert snapshots_in(place) == first
    clock.sleep(31)
    ticks(store)
    assert len(snapshots_in(place)) == 2
    clock.sleep(1000)
    ticks(store)
    assert len(snapshots_in(place)) == 2  # Nothing changed since.
    assert snapshots_in(place)[0] == first[0]
    assert store.stats().snapshot_last == str(place / snapshots_in(place)[1])
    assert held(place / snapshots_in(place)[1], tmp_path / "restored") == {"a": 2}


def test_names_tell_store_time_and_sequence_and_sort_by_time(tmp_path: Path) -> None:
    path = retention.path_for(tmp_path, Path("/data/users.tiered"), 1_700_000_000_000, 42)
    assert path == tmp_path / "users.tiered-20231114T221320Z-000000000042.tsnap"
    later = retention.path_for(tmp_path, Path("/data/users.tiered"), 1_700_000_001_000, 7)
    assert later.name > path.name


def test_a_tick_makes_a_slice_of_a_snapshot_not_all_of_it(opener: Any, tmp_path: Path) -> None:
    store, _ = scheduled(opener, memory="8MB")
    store.update((number, os.urandom(200)) for number in range(40_000))
    count = 0
    while not store.stats().snapshots:
        store.tick()
        store[-1] = count  # Goes on meanwhile.
        count += 1
    assert count > 5


@both
def test_only_so_many_stay_and_those_of_others_are_left_alone(opener: Any, tmp_path: Path, helper: bool) -> None:
    place = tmp_path / "place"
    store, clock = scheduled(opener, snapshot_dir=place, snapshot_keep=2, helper=helper)
    place.mkdir()
    other = opener("other/store.tiered")
    other["b"] = 1
    foreign = retention.path_for(place, tmp_path / "store.tiered", 1_600_000_000_000, 1)
    other.snapshot(foreign)  # Of the same name, but another store's.
    (place / "notes.txt").write_text("mine")
    made: list[str] = []
    for turn in range(4):
        store["a"] = turn
        if helper:
            wait_until(lambda turn=turn: store.stats().snapshots > turn)
        else:
            ticks(store)
        made.append(store.stats().snapshot_last)
        clock.sleep(61)
    assert len(set(made)) == 4
    assert snapshots_in(place) == sorted(["notes.txt", foreign.name, *(os.path.basename(path) for path in made[2:])])


def test_a_failing_one_is_logged_counted_tried_again_and_removes_nothing(
    opener: Any, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    store, clock = scheduled(opener, snapshot_keep=1)
    place = tmp_path / "store.tiered.snapshots"
    store["a"] = 1
    ticks(store)
    good = snapshots_in(place)
    assert len(good) == 1

    def full(*_: object) -> None:
        raise tiered.StoreFullError(place, "the disk is full; free some space")

    with monkeypatch.context() as patch:
        patch.setattr(files.Replacement, "sync", full)
        clock.sleep(61)
        store["a"] = 2
        ticks(store)
        assert snapshots_in(place) == good
        stats = store.stats()
        assert (stats.state, stats.snapshot_failures) == ("open", 1)
        assert "the disk is full" in stats.snapshot_failure
        assert "no snapshot, tried again in 60 s" in caplog.text
    store["a"] = 3
    ticks(store)
    assert snapshots_in(place) == good  # Not at every tick.
    clock.sleep(61)
    ticks(store)
    assert (store.stats().snapshot_failure, store.stats().snapshots) == ("", 2)
    assert len(snapshots_in(place)) == 1
    assert snapshots_in(place) != good


def test_one_that_reads_back_differently_does_not_count(opener: Any, tmp_path: Path, monkeypatch: Any) -> None:
    store, clock = scheduled(opener, snapshot_keep=1)
    place = tmp_path / "store.tiered.snapshots"
    store["a"] = 1
    ticks(store)
    good = snapshots_in(place)
    sync = files.Replacement.sync

    def spoiling(replacement: files.Replacement) -> None:
        sync(replacement)
        with open(replacement.temporary, "r+b") as file:
            file.seek(200)
            file.write(b"?")

    with monkeypatch.context() as patch:
        patch.setattr(files.Replacement, "sync", spoiling)
        clock.sleep(61)
        store["a"] = 2
        ticks(store)
    assert snapshots_in(place) == good
    assert "not what was written" in store.stats().snapshot_failure


def test_a_directory_that_cannot_be_made_is_reported_and_poisons_nothing(opener: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store, clock = scheduled(opener, snapshot_dir=tmp_path / "file" / "place")
    store["a"] = 1
    ticks(store)
    assert (store.stats().state, store.stats().snapshot_failures) == ("open", 1)
    store.config_set("snapshot_dir", tmp_path / "elsewhere")
    clock.sleep(61)
    ticks(store)
    assert len(snapshots_in(tmp_path / "elsewhere")) == 1


def test_leftovers_of_killed_ones_go_with_the_next(opener: Any, tmp_path: Path) -> None:
    store, _ = scheduled(opener)
    place = tmp_path / "store.tiered.snapshots"
    place.mkdir()
    left = place / "store.tiered-20200101T000000Z-000000000001.tsnap.0123abcd.tmp"
    left.write_bytes(b"half")
    store["a"] = 1
    ticks(store)
    assert len(snapshots_in(place)) == 1
    assert not left.exists()


def test_the_schedule_goes_on_after_reopening_and_can_change_at_run_time(opener: Any, tmp_path: Path) -> None:
    store, clock = scheduled(opener, snapshot_save="3600 1", snapshot_keep=3)
    place = tmp_path / "store.tiered.snapshots"
    store["a"] = 1
    ticks(store)
    store["a"] = 2
    store.close()
    again = opener(stepwise=True, clock=clock)
    assert again.config_get("snapshot_*") == {"snapshot_save": ((3600, 1),), "snapshot_dir": None, "snapshot_keep": 3}
    clock.sleep(3500)
    ticks(again)
    assert len(snapshots_in(place)) == 1  # Made by the program before, not an hour ago.
    clock.sleep(101)
    ticks(again)
    assert len(snapshots_in(place)) == 2
    again["a"] = 3
    again.config_set("snapshot_save", "")
    clock.sleep(10_000)
    ticks(again)
    assert len(snapshots_in(place)) == 2
    again.config_set("snapshot_save", [(1, 1)])
    ticks(again)
    assert len(snapshots_in(place)) == 3


def test_a_store_restored_to_an_older_moment_goes_on_with_its_snapshots(opener: Any, tmp_path: Path) -> None:
    store, clock = scheduled(opener)
    place = tmp_path / "store.tiered.snapshots"
    store["a"] = 1
    ticks(store)
    old = place / snapshots_in(place)[0]
    clock.sleep(61)
    store.update((number, number) for number in range(100))
    ticks(store)
    assert len(snapshots_in(place)) == 2
    store.close()
    tiered.restore(old, tmp_path / "store.tiered", force=True)
    store = opener(stepwise=True, clock=clock)
    assert dict(store) == {"a": 1}
    clock.sleep(61)
    store["a"] = 2
    ticks(store)
    assert len(snapshots_in(place)) == 3


def test_the_thread_makes_them_without_being_asked(opener: Any, tmp_path: Path) -> None:
    store = opener(snapshot_save="0 1", helper=True)
    store["a"] = 1
    wait_until(lambda: store.stats().snapshots)
    place = tmp_path / "store.tiered.snapshots"
    with SnapshotFile(place / snapshots_in(place)[0]) as file:
        assert file.about.store == str(tmp_path / "store.tiered")
    store.config_set("snapshot_save", "")


@pytest.mark.parametrize(
    ("name", "value"),
    [("snapshot_save", "60"), ("snapshot_save", 7), ("snapshot_dir", 7), ("snapshot_dir", ""), ("snapshot_keep", 0)],
)
def test_settings_out_of_bounds_are_refused_by_name(opener: Any, name: str, value: object) -> None:
    with pytest.raises(tiered.ConfigError, match=name):
        opener(**{name: value})
