"""Readers beside a writer, after one that was killed, and on media that cannot be written."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from beside import beside
from contracts import evict, merge, set_aside
from programs import line_of, running, succeed, tell, wait_until
from test_interrupts import Interrupter, free

import tiered
from tiered import codec, files, follower, journal, keys, overlay
from tiered.journal import HEADER_BYTES, RECORD
from tiered.overlay import Tail
from tiered.tiers import HOT_SHARE_MIN


@pytest.fixture
def writer(opener: Any, clock: Any) -> Any:
    return opener(stepwise=True, save="", clock=clock)


@pytest.fixture
def reader(writer: Any) -> Iterator[Any]:
    """A follower that follows when it is told to."""
    found = beside(writer)
    yield found
    found.refresh()
    assert found.check() == []
    found.close()


def agree(reader: Any, writer: Any) -> None:
    """After a refresh the reader shows what the writer shows, in every way there is to read it."""
    reader.refresh()
    expected = dict(writer)
    assert dict(reader) == expected
    assert list(reader) == list(writer)
    assert list(reader.items(reverse=True)) == list(reversed(list(expected.items())))
    assert len(reader) == len(expected)
    names = [*expected, "absent"]
    assert reader.get_many(names) == expected
    assert {name: reader[name] for name in expected} == expected
    assert reader.get("absent", "none") == "none"
    assert all(name in reader for name in expected)
    assert [reader.ttl(name) for name in expected] == [writer.ttl(name) for name in expected]
    with reader.view() as view:
        assert dict(view) == expected
        assert len(view) == len(expected)


def steps(store: Any) -> Iterator[None]:
    """What the checkpointer has to do, one piece at a time: before and after its word is heard."""
    job = store._engine.checkpointer._job
    while result := job.step():
        yield
        if isinstance(result, dict):
            store._engine.on_event(result)
            yield


# What is seen


def test_every_kind_of_write_is_seen_without_a_checkpoint(writer: Any, reader: Any) -> None:
    def transaction() -> None:
        with writer.transaction() as txn:
            txn["in"] = txn.pop("a")

    def edit() -> None:
        with writer.edit("list", []) as value:
            value.append(1)

    writes = {
        "set": lambda: writer.set("a", 1),
        "long key": lambda: writer.set("k" * 700, [1, {"x": None}]),
        "set again": lambda: writer.set("a", "text"),
        "set_many": lambda: writer.set_many({("t", n): n for n in range(2500)}),
        "delete": lambda: writer.pop(("t", 7)),
        "delete_many": lambda: writer.delete_many([("t", n) for n in range(300)]),
        "incr": lambda: writer.incr("count", 5),
        "setdefault": lambda: writer.setdefault("default", b"x"),
        "touch": lambda: writer.touch("a", 1000),
        "persist": lambda: writer.persist("a"),
        "transaction": transaction,
        "edit": edit,
        "large": lambda: writer.set("large", b"v" * 300_000),
        "clear": writer.clear,
        "after clear": lambda: writer.set("b", 2),
    }
    for name, write in writes.items():
        write()
        agree(reader, writer)
        assert reader.stats().last_sequence == writer.stats().last_sequence, name


def test_nothing_is_seen_before_the_reader_looks_and_a_tick_is_a_look(writer: Any, reader: Any) -> None:
    writer["a"] = 1
    assert "a" not in reader
    reader.tick()
    assert reader["a"] == 1


def test_refresh_does_nothing_for_who_writes_and_is_refused_after_the_end(writer: Any, reader: Any) -> None:
    writer["a"] = 1
    writer.refresh()
    with tiered.open(writer.path, "r") as own:
        own.refresh()
        assert own["a"] == 1
    reader.refresh()
    closed = beside(writer)
    closed.close()
    with pytest.raises(tiered.ClosedError):
        closed.refresh()


def test_deadlines_pass_for_a_reader_as_for_the_writer(opener: Any, clock: Any) -> None:
    writer = opener(stepwise=True, clock=clock, default_ttl=10)
    reader = beside(writer)
    writer["short"] = 1
    writer.set("long", 2, ttl=100)
    writer.set("never", 3, ttl=None)
    agree(reader, writer)
    with reader.view() as view:
        clock.sleep(11)
        assert dict(view) == {"long": 2, "never": 3, "short": 1}
    assert dict(reader) == {"long": 2, "never": 3}
    assert len(reader) == 2
    agree(reader, writer)
    reader.tick()
    assert "short" not in reader._engine.hot, "a value that expired does not stay hot"
    writer.touch("long", None)
    clock.sleep(100)
    agree(reader, writer)
    reader.close()


def test_settings_that_the_writer_changes_hold_for_a_reader_unless_it_has_its_own(writer: Any) -> None:
    plain, own = beside(writer), beside(writer, default_ttl=7)
    writer.config_set("default_ttl", 20)
    writer.config_set("memory", "2MB")
    for reader in (plain, own):
        reader.refresh()
    assert plain.config_get("default_ttl") == {"default_ttl": 20}
    assert own.config_get("default_ttl") == {"default_ttl": 7}
    assert plain.config_get("memory") == {"memory": 1 << 20}
    writer.save()
    plain.refresh()
    writer.config_set("default_ttl", 30)
    writer.save()
    plain.refresh()
    assert plain.config_get("default_ttl") == {"default_ttl": 30}, "from the cold tier, its segment never seen"
    plain.close()
    own.close()


def test_as_of_is_when_everything_before_had_been_read(opener: Any, clock: Any) -> None:
    writer = opener(stepwise=True, clock=clock)
    reader = beside(writer)
    opened = reader.stats().as_of
    assert opened == writer.stats().as_of == clock.now_ms() / 1000
    clock.sleep(5)
    assert (reader.stats().as_of, writer.stats().as_of) == (opened, opened + 5)
    reader.tick()
    assert reader.stats().as_of == opened + 5
    clock.sleep(5)
    reader.refresh()
    assert reader.stats().as_of == opened + 10
    reader.close()


def test_a_reader_that_cannot_keep_up_says_so(opener: Any, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiered.follower.STEP_RECORDS", 1)
    monkeypatch.setattr("tiered.follower.STEPS_PER_TICK", 5)
    writer = opener(stepwise=True, clock=clock)
    reader = beside(writer)
    before = reader.stats().as_of
    for number in range(8):
        writer[number] = number
    clock.sleep(1)
    assert (reader.tick(), reader.stats().as_of, len(reader)) == (0.0, before, 5)
    assert reader.tick() > 0
    assert (reader.stats().as_of, len(reader)) == (before + 1, 8)
    reader.close()


def test_a_batch_is_seen_as_a_whole_or_not_at_all(writer: Any, reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    writer.update(a=0, b=0)
    writer._engine._active.segment.records = None  # Compiled, it writes without this.
    real = journal.Segment.write
    seen = []

    def slowly(segment: Any, position: int, data: bytes) -> None:
        for cut in range(0, len(data), 7):
            real(segment, position, data[:cut])
            reader.refresh()
            seen.append(reader.get_many(["a", "b", "c"]))
        real(segment, position, data)

    reader.refresh()
    with monkeypatch.context() as patch:
        patch.setattr(journal.Segment, "write", slowly)
        writer.set_many({"a": 1, "c": 1, "b": 1})
    assert len(seen) > 10
    assert all(found == {"a": 0, "b": 0} for found in seen)
    agree(reader, writer)


def test_a_record_that_a_writer_was_interrupted_in_is_forgotten_when_it_is_written_over(
    writer: Any, reader: Any
) -> None:
    writer["a"] = "old"
    reader.refresh()
    segment = writer._engine._active.segment
    position, last = segment.position, segment.last
    # As when Ctrl-C comes after the record was written and before it is counted.
    writer["a"] = "never acknowledged"
    writer["z"] = "neither"
    for key in ("a", "z"):
        del writer._engine._active.positions[keys.encode(key)]
    reader.refresh()
    assert reader["a"] == "never acknowledged"
    segment.position, segment.last, writer._engine.journal.last = position, last, last
    writer._engine.hot.clear()
    writer["a"] = "new"
    writer["b"] = 1
    agree(reader, writer)
    assert dict(reader) == {"a": "new", "b": 1}


# Beside checkpoints


def test_a_reader_agrees_at_every_step_of_checkpoints_merges_and_compactions(
    writer: Any, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiered.checkpoint.COPY_RECORDS", 20)
    rng = random.Random(5)

    def some() -> None:
        for _ in range(5):
            key = rng.randrange(60)
            if rng.random() < 0.3:
                writer.pop(key, None)
            else:
                writer.set(key, rng.randbytes(rng.randrange(50)), ttl=rng.choice([None, 1000]))

    def look() -> None:
        with beside(writer) as fresh:
            agree(fresh, writer)
        agree(reader, writer)

    for turn in range(12):
        some()
        if turn == 7:
            writer.clear()
            some()
        set_aside(writer)
        look()
        # In the buffer that is active now, while the one set aside is applied.
        with writer._engine.lock:
            writer._engine._begin_segment(1000)
            for key in range(3):
                _put(writer, key, turn)
        if turn % 3 == 2:
            writer._engine.checkpointer.compact()
        for _ in steps(writer):
            look()
        if turn % 4 == 3:
            merge(writer)
            look()
        evict(reader)
    assert writer._engine.cold.directory.name == "cold-0005"


def test_reads_that_meet_a_newer_checkpoint_never_go_back_and_never_mix(writer: Any, reader: Any) -> None:
    names = [f"key {number}" for number in range(20)]
    writer.set_many(dict.fromkeys(names, 0))
    writer.save()
    writer.set_many(dict.fromkeys(names[::2], 1))
    reader.refresh()
    for way in ("one by one", "view", "pages", "many"):
        writer.set_many(dict.fromkeys(names, 2))
        writer.save()  # In the cold tier, and gone from the journal, before the reader looks again.
        evict(reader)
        if way == "one by one":
            assert [reader[name] for name in (*names[1::2], *names)] == [2] * 30
        elif way == "view":
            with reader.view() as view:
                assert dict(view) == dict.fromkeys(names, 2)
        elif way == "pages":
            assert set(reader.values()) == {2}
            assert len(reader) == 20
        else:
            assert reader.get_many(names) == dict.fromkeys(names, 2)
        writer.set_many(dict.fromkeys(names, 0))
        writer.save()
        writer.set_many(dict.fromkeys(names[::2], 1))
        reader.refresh()


@pytest.mark.parametrize("looks", [1, 2])
def test_a_value_read_before_a_checkpoint_is_not_kept_hot_after_it(writer: Any, reader: Any, looks: int) -> None:
    writer["a"] = "old"
    writer.save()
    reader.refresh()
    engine = reader._engine
    generation = engine.generation
    stored = keys.encode("a")
    where, found = engine.find(stored, stored)
    assert where is None
    writer["a"] = "new"
    if looks == 2:
        reader.refresh()
    writer.save()
    reader.refresh()
    engine.promote("a", stored, where, generation, found)
    assert reader["a"] == "new"


def test_whatever_the_writer_does_between_two_steps_of_a_look_the_reader_sees_one_moment(
    opener: Any, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = opener(quick_path / "store", stepwise=True, save="", durability="always")
    names = [f"key {number}" for number in range(30)]
    rng = random.Random(3)
    version = 0

    def write() -> None:
        nonlocal version
        for _ in range(rng.randrange(4)):
            version += 1
            writer.set_many(dict.fromkeys(names, version))
            step = rng.choice(["save", "save", "set aside", "apply", "compact", "nothing"])
            if step == "save":
                writer.save()
            elif step == "set aside":
                set_aside(writer)
            elif step == "apply" and writer._engine.checkpointer is not None:
                next(steps(writer), None)
            elif step == "compact" and rng.random() < 0.2:
                writer.compact()

    def maybe_write() -> None:
        if writing and rng.random() < 0.3:
            thread = threading.Thread(target=write)  # This one is inside the reader.
            thread.start()
            thread.join()

    def between(where: Any, name: str) -> None:
        real = getattr(where, name)

        def with_writes(*arguments: Any) -> Any:
            maybe_write()
            found = real(*arguments)
            maybe_write()
            return found

        monkeypatch.setattr(where, name, with_writes)

    writing = False
    write()
    version += 1
    writer.set_many(dict.fromkeys(names, version))
    reader = beside(writer)
    between(overlay.Overlay, "look")
    between(files, "segment_numbers")
    between(files, "identity")
    between(follower.Follower, "_look_at_cold")
    between(overlay.Overlay, "news")
    between(overlay.Overlay, "forget")
    newest = 0
    for _ in range(100):
        before, writing = version, True
        reader.refresh()
        writing = False
        with reader.view() as view:
            seen = set(view.values())
            assert len(seen) == 1
            assert newest <= (newest := seen.pop())
            assert newest >= before
        for name in rng.sample(names, 5):
            assert newest <= (newest := reader[name])
        if rng.random() < 0.3:
            evict(reader)
    agree(reader, writer)
    assert reader.check() == []
    reader.close()
    writer.close()


@pytest.mark.parametrize("what", ["interrupt", "read"])
def test_an_interrupt_or_a_signal_handler_at_any_line_of_a_look_harms_nothing(
    writer: Any, reader: Any, what: str
) -> None:
    writer.update((number, "v" * 40) for number in range(30))
    version = 0

    def handle() -> None:
        assert reader.get("old") == "value"
        assert len(reader) >= 31
        assert reader["n"] in (version, version - 1)

    def write(at: int) -> None:
        nonlocal version
        version += 1
        writer.update({"n": version, "old": "value"})
        writer[at % 7] = version
        if at % 3 == 0:
            writer.save()
            writer["n"] = version
        if at % 7 == 0:
            writer["n"] = version
            set_aside(writer)
        if at % 11 == 0:
            evict(reader)

    write(1)
    reader.refresh()
    interrupter = Interrupter(KeyboardInterrupt, handle if what == "read" else None)
    at, reached = 1, True
    while reached:
        write(at)
        assert reader["n"] in (version, version - 1)
        reached = interrupter.run(reader.refresh, at)
        assert free(reader._engine.lock), interrupter.place
        reader.refresh()
        assert dict(reader) == dict(writer), interrupter.place
        assert reader.check() == [], interrupter.place
        at += 3
    assert at > 200


def test_a_busy_writer_leaves_hot_what_it_does_not_write(writer: Any, reader: Any) -> None:
    writer.set_many((number, "v" * 50) for number in range(100))
    writer.save()
    reader.refresh()
    assert len(reader.get_many(range(100))) == 100
    for turn in range(5):
        writer[turn] = "new"
        reader.refresh()
        writer.save()
        reader.refresh()
    assert set(reader._engine.hot) == set(range(5, 100))
    assert [reader[number] for number in range(6)] == ["new"] * 5 + ["v" * 50]


def test_what_was_hot_goes_when_a_whole_segment_was_missed(writer: Any, reader: Any) -> None:
    writer["a"] = 1
    reader.refresh()
    assert reader["a"] == 1
    writer["b"] = 2
    writer.save()
    reader.refresh()
    writer["a"] = 3
    writer.save()
    reader.refresh()
    assert reader["a"] == 3
    writer["a"] = 4
    agree(reader, writer)


def test_a_segment_is_read_to_its_end_though_its_name_is_gone(writer: Any, reader: Any) -> None:
    writer.update(a=1, b=1)
    reader.refresh()
    assert (reader["a"], reader["b"]) == (1, 1)
    writer["a"] = 2
    writer.save()
    reader.refresh()
    assert set(reader._engine.hot) == {"b"}
    assert reader["a"] == 2


def test_views_of_a_reader_stay_as_they_are(writer: Any, reader: Any) -> None:
    writer.update(a=1, b=1, c=1)
    writer.save()
    writer.update(b=2, d=2)
    reader.refresh()
    views = [(reader.view(), dict(writer))]
    for write in (lambda: writer.update(b=3, e=3), writer.save, lambda: writer.pop("a"), writer.clear, writer.compact):
        write()
        reader.refresh()
        views.append((reader.view(), dict(writer)))
        writer["b"] = len(views)
        reader.refresh()
    for view, expected in views:
        assert dict(view) == expected
        assert len(view) == len(expected)
        view.close()


def test_a_view_and_a_page_are_one_moment_while_the_reader_follows(writer: Any, reader: Any) -> None:
    names = [f"key {number}" for number in range(200)]
    writer.set_many(dict.fromkeys(names, 0))
    reader.refresh()
    values = iter(reader.values())
    first = next(values)
    with reader.view() as view:
        items = iter(view.items())
        next(items)
        writer.set_many(dict.fromkeys(names, 1))
        reader.refresh()
        assert {first, *values} == {0}
        assert {value for _, value in items} == {0}
    assert reader._engine.buffers[0].pins == set()


def test_a_page_does_not_show_half_of_what_is_taken_in_meanwhile(
    writer: Any, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"key {number}" for number in range(50)]
    writer.set_many(dict.fromkeys(names, 0))
    reader.refresh()
    real = overlay.Followed.put_at
    version = iter(range(1, 10**6))

    def interleaved(segment: Any, position: int) -> Any:
        found = real(segment, position)
        writer.set_many(dict.fromkeys(names, next(version)))
        reader.refresh()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(overlay.Followed, "put_at", interleaved)
        assert len(set(reader.values())) == 1
        evict(reader)
        assert len(set(reader.get_many(names).values())) == 1


# Openings, ends, others in the same place


def test_a_reader_may_come_before_the_first_write_and_stay_after_the_last(opener: Any) -> None:
    writer = opener(stepwise=True)
    reader = beside(writer)
    assert dict(reader) == {}
    writer["a"] = 1
    agree(reader, writer)
    reader.close()
    code = """
        import sys, tiered
        with tiered.open(sys.argv[1], helper=False, durability="checkpoint") as store:
            store[sys.argv[2]] = 1
    """
    writer.close()
    reader = opener(flag="r", stepwise=True)
    for name in "bcde":  # Each begins to number its segments anew.
        succeed(code, reader.path, name)
        reader.refresh()
        assert reader[name] == 1
    assert dict(reader) == dict.fromkeys("abcde", 1)


def test_several_readers_follow_one_writer(writer: Any) -> None:
    readers = [beside(writer) for _ in range(3)]
    for turn in range(20):
        writer[turn] = turn
        if turn % 7 == 6:
            writer.save()
        agree(readers[turn % 3], writer)
    for reader in readers:
        agree(reader, writer)
        reader.close()


def test_a_store_that_is_made_anew_in_the_same_place_is_followed(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise tiered.StoreError("/", "too many open files")

    writer = opener()
    writer.update((number, "old") for number in range(100))
    writer.close()
    reader = opener(flag="r", stepwise=True)
    assert reader[5] == "old"
    code = """
        import sys, tiered
        store = tiered.open(sys.argv[1], "n", helper=False)
        store.update((number, "new") for number in range(150))
        print("ready", flush=True)
        sys.stdin.readline()
        store.close()
    """
    with running(code, reader.path) as program:
        assert line_of(program) == "ready"
        with monkeypatch.context() as patch:
            patch.setattr(follower.Follower, "_opened_cold", fails)
            reader.refresh()
            assert dict(reader) == dict.fromkeys(range(100), "old"), "nothing of the new one is mixed in"
        reader.refresh()
        assert dict(reader) == dict.fromkeys(range(150), "new")
        tell(program)
        assert program.wait(20) == 0
    reader.refresh()
    assert dict(reader) == dict.fromkeys(range(150), "new")


def test_a_store_that_is_removed_stays_readable_for_who_has_it_open(opener: Any, tmp_path: Path) -> None:
    writer = opener()
    writer.update(a=1)
    writer.save()
    writer["b"] = 2
    shutil.copytree(writer.path, tmp_path / "copy")
    reader = tiered.open(tmp_path / "copy", "r", memory="1MB")
    shutil.rmtree(tmp_path / "copy")
    reader.refresh()
    assert dict(reader) == {"a": 1, "b": 2}
    reader.close()


# After a writer that was killed


def picture(directory: Path) -> dict[str, Any]:
    """Names, contents and times of everything, but for LMDB's table of readers."""
    found: dict[str, Any] = {}
    for path in sorted([directory, *directory.rglob("*")]):
        if path.name != "lock.mdb":
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else sorted(os.listdir(path))
            found[str(path.relative_to(directory))] = (path.stat().st_mtime_ns, path.stat().st_size, content)
    return found


KILLED = """
    import os, sys, tiered
    store = tiered.open(sys.argv[1], memory="1MB", helper=sys.argv[2] == "helper", save="0 500")
    number = 0
    while True:
        store[number] = str(number) * 50
        with store.transaction() as txn:
            txn["one"] = txn["two"] = number
        store.pop(number - 10, None)
        number += 1
        print(number, flush=True)
"""


@pytest.mark.parametrize("who", ["helper", "inline"])
@pytest.mark.parametrize("acknowledged", [3, 700])
def test_all_that_a_killed_writer_acknowledged_is_read_and_nothing_is_changed(
    tmp_path: Path, who: str, acknowledged: int
) -> None:
    path = tmp_path / "store"
    with running(KILLED, path, who) as program:
        while (last := int(line_of(program))) < acknowledged:
            pass
        program.send_signal(signal.SIGKILL)
        assert program.stdout is not None
        last = max([last, *map(int, program.stdout.read().split()[:-1])])
    # Whatever the helper of the killed program was about to finish.
    apply_lock = files.FileLock(path / "APPLY")
    if who == "helper":
        apply_lock.acquire(20)
        apply_lock.release()
    before = picture(path)
    with tiered.open(path, "r", memory="1MB") as reader:
        found = dict(reader)
        assert reader.check() == []
        reader.refresh()
        assert dict(reader.view()) == found
    assert picture(path) == before
    assert found.pop("one") == found.pop("two") >= last - 1
    assert set(range(max(0, last - 8), last)) <= found.keys()
    with tiered.open(path, "w", memory="1MB", helper=False) as recovered:
        assert recovered.pop("one") == recovered.pop("two")
        assert dict(recovered) == found


def crashed(opener: Any, tmp_path: Path) -> Path:
    """A store as a killed program leaves it, with something in every tier, and synced marks."""
    store = opener("original", stepwise=True, durability="always")
    store.update((number, "cold") for number in range(20))
    store.save()
    for number in range(5):
        store[number] = f"first {number}"
    set_aside(store)
    with store._engine.lock:
        store._engine._begin_segment(100)
    copy = tmp_path / "crashed"
    with store._engine.lock:
        for number in range(5, 9):
            _put(store, number, f"second {number}")
    store._engine.sync(store._engine.journal.last)
    with store._engine.lock:
        _put(store, "last", 1)
    shutil.copytree(store.path, copy)
    return copy


def _put(store: Any, key: Any, value: Any) -> None:
    """A write that leaves what is set aside as it is."""
    encoded, (number, payload) = keys.encode(key), codec.encode(value)
    store._engine.put(key, encoded, number, payload, 0)


def outcome(path: Path, flag: str) -> Any:
    """What a store holds, or the error of opening it."""
    try:
        with tiered.open(path, flag, memory="1MB", helper=False) as store:
            return dict(store)
    except tiered.CorruptionError as error:
        return Path(error.path).name, error.offset, error.message


@pytest.mark.parametrize("harm", ["none", "cut", "flip", "zero sectors"])
def test_a_reader_of_a_crashed_store_sees_what_a_writer_would_recover_or_the_same_damage(
    opener: Any, tmp_path: Path, harm: str
) -> None:
    original = crashed(opener, tmp_path)
    numbers = files.segment_numbers(original)
    assert len(numbers) == 2
    rng = random.Random(harm)
    outcomes = set()
    for turn in range(1 if harm == "none" else 60):
        path = tmp_path / f"{harm} {turn}"
        shutil.copytree(original, path)
        if turn % 2:  # As a power cut may leave it.
            (path / files.SYNCED).unlink()
        segment = files.segment_path(path, rng.choice(numbers))
        data = bytearray(segment.read_bytes())
        used = len(bytes(data).rstrip(b"\0"))
        at = rng.randrange(used)
        if harm == "cut":
            data[at:] = bytes(len(data) - at)
        elif harm == "flip":
            data[at] ^= 1 << rng.randrange(8)
        elif harm == "zero sectors":
            at -= at % 64
            data[at : at + 64] = bytes(64)
        segment.write_bytes(data)
        before = picture(path)
        seen = outcome(path, "r")
        assert picture(path) == before
        assert seen == outcome(path, "w"), f"{segment.name} at {at}"
        outcomes.add("damage" if isinstance(seen, tuple) else len(seen))
        shutil.rmtree(path)
    if harm != "none":
        assert "damage" in outcomes
        assert len(outcomes) > 1


def test_a_journal_found_damaged_while_the_store_is_open_is_told(opener: Any, tmp_path: Path) -> None:
    path = crashed(opener, tmp_path)
    with tiered.open(path, "r", memory="1MB") as reader:
        with open(reader._engine._overlay.tails[0].file.path, "r+b") as file:
            file.seek(HEADER_BYTES + RECORD.size)
            file.write(b"\xff\xff")
        with pytest.raises(tiered.CorruptionError, match=f"checksum mismatch at byte {HEADER_BYTES}"):
            reader[0]
        assert reader[1] == "first 1"


def test_a_store_that_a_second_writer_recovers_is_followed_through_it(opener: Any, tmp_path: Path) -> None:
    path = crashed(opener, tmp_path)
    newest = files.segment_path(path, files.segment_numbers(path)[-1])
    data = newest.read_bytes()
    used = len(data.rstrip(b"\0"))
    newest.write_bytes(data[: used - 1] + b"\xff" + data[used:])  # The last record is torn.
    code = """
        import sys, tiered
        with tiered.open(sys.argv[1], helper=False) as store:
            store["after"] = 1
            print(len(store), flush=True)
            sys.stdin.readline()
            store.save()
            store["more"] = 2
            print(len(store), flush=True)
            sys.stdin.readline()
    """
    with tiered.open(path, "r", memory="1MB") as reader:
        expected = dict(reader)
        assert "last" not in expected
        with running(code, path) as program:
            for name, value in (("after", 1), ("more", 2)):
                expected[name] = value
                assert line_of(program) == str(len(expected))
                reader.refresh()
                assert dict(reader) == expected
                tell(program)
            assert program.wait(20) == 0
        reader.refresh()
        assert dict(reader) == expected
        assert reader._engine._overlay.tails == []


def test_a_journal_on_a_read_only_medium_is_read(opener: Any, tmp_path: Path) -> None:
    path = crashed(opener, tmp_path)
    medium = tmp_path / "medium"
    medium.mkdir()
    if subprocess.run(["mount", "--bind", path, medium], capture_output=True, check=False).returncode:
        pytest.skip("may not mount here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", medium], check=True)
        with tiered.open(medium, "r", memory="1MB") as reader:
            reader.refresh()
            assert (reader["last"], reader[8], reader[0], reader[19]) == (1, "second 8", "first 0", "cold")
            assert (len(reader), reader.check()) == (21, [])
    finally:
        gc.collect()
        subprocess.run(["umount", medium], check=True)


# Cost


def test_a_small_reader_beside_a_large_journal_keeps_its_share_for_hot_values_and_says_what_it_takes(
    opener: Any,
) -> None:
    writer = opener(memory="64MB", save="", stepwise=True)
    writer.set_many((number, "v" * 100) for number in range(60_000))
    dirty = writer.stats().dirty_records
    assert dirty > 20_000
    reader = beside(writer, memory="1MB")
    stats, memory = reader.stats(), reader.memory_stats()
    assert stats.dirty_records == dirty
    assert dirty * 100 < stats.write_buffer_bytes < dirty * 200
    assert memory.accounted_bytes >= stats.write_buffer_bytes
    assert writer.stats().write_buffer_bytes > stats.write_buffer_bytes + dirty * 100, "the bytes are the writer's"
    assert reader._engine.hot.budget_bytes == (1 << 20) // HOT_SHARE_MIN
    for number in range(0, 60_000, 7):
        assert reader[number] == "v" * 100
    assert 0 < reader.stats().hot_bytes <= (1 << 20) // HOT_SHARE_MIN
    writer.save()
    reader.refresh()
    assert reader.stats().write_buffer_bytes == 0
    assert reader._engine.hot.budget_bytes == (1 << 20) - reader.memory_stats().filter_bytes
    reader.close()


def segment_descriptors() -> int:
    """How many journal segments this process has open for reading."""
    names = []
    for name in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return sum("journal-" in name for name in names)


def test_segments_are_closed_as_soon_as_nothing_needs_them(writer: Any, reader: Any) -> None:
    gc.collect()
    gc.disable()  # Nothing may depend on the garbage collector.
    try:
        before = segment_descriptors()
        for turn in range(50):
            writer[turn] = turn
            reader.refresh()
            writer.save()
            reader.refresh()
            assert segment_descriptors() <= before
        writer["a"] = 1
        reader.refresh()
        view = reader.view()
        writer.save()
        reader.refresh()
        assert segment_descriptors() == before + 1
        assert view["a"] == 1
        view.close()
        assert segment_descriptors() == before
        writer["b"] = 1
        reader.refresh()
        other = beside(writer)
        with_one = segment_descriptors()
        other.close()
        del other
        assert segment_descriptors() == with_one - 1
    finally:
        gc.enable()


def test_reading_on_continues_where_it_ended(writer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    real = Tail.rest

    def counted(tail: Any) -> Iterator[Any]:
        for entry in real(tail):
            read.append(entry.sequence)
            yield entry

    monkeypatch.setattr(Tail, "rest", counted)
    reader = beside(writer)
    for number in range(100):
        writer[number] = number
        reader.refresh()
    assert read == list(range(1, 101))
    reader.close()


# Two processes


def test_every_acknowledged_write_is_seen_within_a_second_without_a_checkpoint(opener: Any) -> None:
    code = """
        import sys, time, tiered
        store = tiered.open(sys.argv[1], save="", memory="8MB")
        print("ready", flush=True)
        for line in sys.stdin:
            store["key"] = int(line)
            print(time.time(), store.stats().checkpoints, flush=True)
        store.close()
    """
    with opener() as store:
        store["key"] = -1
    with running(code, store.path) as program:
        assert line_of(program) == "ready"
        reader = opener(flag="r")
        for number in range(10):
            tell(program, str(number))
            written, checkpoints = line_of(program).split()
            wait_until(lambda number=number: reader["key"] == number, 10)
            assert int(checkpoints) == 0
            assert reader.stats().as_of >= float(written) - 0.01
            # What the promise allows, and as much again for a machine that is busy otherwise.
            assert time.time() - float(written) < 2
        program.stdin.close()  # type: ignore[union-attr]
        assert program.wait(20) == 0


HAMMER = """
    import sys, tiered
    store = tiered.open(sys.argv[1], memory="1MB", save="0 3000")
    print("ready", flush=True)
    names = [f"part {number}" for number in range(20)]
    for version in range(int(sys.argv[2])):
        with store.transaction() as txn:
            for name in names:
                txn[name] = (version, "x" * (version % 50))
        if version % 500 == 250:
            store.compact()
    store.close()
"""


def test_a_reader_never_sees_half_a_transaction_and_never_goes_back_while_a_writer_hammers(opener: Any) -> None:
    with opener() as store:
        store.update((f"part {number}", (-1, "x" * 49)) for number in range(20))
    names = [f"part {number}" for number in range(20)]
    rng = random.Random(1)
    with running(HAMMER, store.path, 1500) as program:
        assert line_of(program) == "ready"
        with opener(flag="r") as reader:
            newest, seen = -1, set()
            while program.poll() is None:
                with reader.view() as view:
                    versions = {value[0] for value in view.values()}
                    assert len(versions) == 1
                    seen |= versions
                assert len({value[0] for value in reader.values()}) == 1
                evict(reader)
                assert len({value[0] for value in reader.get_many(names).values()}) == 1
                # In any order: what is read after a version is no older.
                for name in rng.sample(names, 20):
                    version, filling = reader[name]
                    assert version >= newest
                    assert filling == "x" * (version % 50)
                    newest = version
                if len(seen) % 3 == 0:
                    evict(reader)
            reader.refresh()
            assert {value[0] for value in reader.values()} == {1499}
        assert program.wait() == 0
    assert len(seen) > 2
