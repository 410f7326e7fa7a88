"""Many threads on one store: nothing torn, no version goes back, no update is lost.

Interleavings that matter are driven step by step, by doing the other thread's work at
the point between two steps of the first.  The rest is looked for in short bounded
runs, in which every value says of itself what it is: key, version, checksum.
"""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from contracts import evict, set_aside
from programs import wait_until

import tiered
from tiered import files
from tiered.write_buffer import WriteBuffer

SECONDS = 2.5
HELPER = pytest.mark.parametrize("helper", [False, True], ids=["inline", "helper"])


def made(key: Any, version: int, size: int) -> list[Any]:
    """A value that describes itself; large enough ones to go through every tier of a small store."""
    filling = random.Random(version).randbytes(size)
    return [key, version, filling, zlib.crc32(repr((key, version)).encode() + filling)]


def version_of(key: Any, value: Any) -> int:
    """The version of a value, which must be whole and the key's own."""
    found, version, filling, checksum = value
    assert found == key, f"{found!r} under {key!r}"
    assert zlib.crc32(repr((key, version)).encode() + filling) == checksum, f"torn: {key!r} {version}"
    return int(version)


class Crowd:
    """Threads that run until told to stop; the first failure of any of them is raised at the end."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.errors: list[BaseException] = []
        self.threads: list[threading.Thread] = []

    def add(self, work: Callable[..., None], *arguments: Any) -> None:
        def run() -> None:
            try:
                work(*arguments)
            except BaseException as error:
                self.errors.append(error)
                self.stop.set()

        self.threads.append(threading.Thread(target=run))

    @contextmanager
    def running(self, seconds: float | None) -> Iterator[None]:
        """Start all, do the block, let them run for the seconds or, with None, to their end."""
        for thread in self.threads:
            thread.start()
        try:
            yield
            if seconds is not None:
                self.stop.wait(seconds)
        finally:
            if seconds is not None:
                self.stop.set()
            for thread in self.threads:
                thread.join(20)
        assert not any(thread.is_alive() for thread in self.threads)
        if self.errors:
            raise self.errors[0]


def churn(store: Any, crowd: Crowd) -> None:
    """Checkpoints, evictions and changing budgets, as often as they go."""
    uniform = random.Random(0)
    while not crowd.stop.is_set():
        what = uniform.randrange(6)
        if what < 2:
            store.save()
        elif what == 2:
            evict(store)
        elif what == 3:
            set_aside(store)
        elif what == 4:
            store.tick()
        else:
            store.config_set("memory", uniform.choice(["1MB", "1MB", "4MB"]))
        crowd.stop.wait(0.01)


@HELPER
def test_readers_never_see_a_torn_value_nor_a_version_go_back(opener: Any, helper: bool) -> None:
    store, crowd = opener(helper=helper), Crowd()
    keys: list[Any] = [(number, "é" * (300 * (number % 7 == 0))) for number in range(120)]
    acknowledged = dict.fromkeys(keys, 0)
    for key in keys:
        store[key] = made(key, 0, 10)

    def write(share: int) -> None:
        uniform, version = random.Random(share), 0
        mine = keys[share::3]
        while not crowd.stop.is_set():
            version += 1
            if uniform.random() < 0.2:
                batch = uniform.sample(mine, 15)
                store.set_many([(key, made(key, version, uniform.randrange(3000))) for key in batch], ttl=1000)
            else:
                batch = [uniform.choice(mine)]
                size = 40_000 if uniform.random() < 0.03 else uniform.randrange(4000)
                if uniform.random() < 0.5:
                    store[batch[0]] = made(batch[0], version, size)
                else:
                    store.set(batch[0], made(batch[0], version, size), ttl=uniform.choice([None, 500]))
            if uniform.random() < 0.2:
                store.touch(batch[0], uniform.choice([None, 700]))
            for key in batch:
                acknowledged[key] = version

    def read(seed: int) -> None:
        uniform, seen = random.Random(seed), defaultdict(int)

        def saw(key: Any, value: Any, least: int) -> None:
            version = version_of(key, value)
            assert version >= max(seen[key], least), f"{key!r}: {version} after {seen[key]}, {least} acknowledged"
            seen[key] = version

        while not crowd.stop.is_set():
            what = uniform.random()
            if what < 0.8:
                key = uniform.choice(keys)
                least = acknowledged[key]
                saw(key, store[key] if what < 0.4 else store.get(key), least)
            elif what < 0.95:
                wanted = uniform.sample(keys, 20)
                floor = dict(acknowledged)
                found = store.get_many(wanted)
                assert list(found) == wanted
                for key, value in found.items():
                    saw(key, value, floor[key])
            else:
                floor, before = dict(acknowledged), dict(seen)
                count = 0
                for key, value in store.items():
                    count += 1
                    # What an iterator gives is as old as its page: compared with what was seen before it began.
                    assert version_of(key, value) >= max(before.get(key, 0), floor[key])
                assert count == len(keys) == len(store)

    for share in range(3):
        crowd.add(write, share)
        crowd.add(read, share)
    crowd.add(churn, store, crowd)
    with crowd.running(SECONDS):
        pass
    assert min(acknowledged.values()) > 0
    assert {key: version_of(key, value) for key, value in store.items()} == acknowledged
    store.save()
    evict(store)
    assert {key: version_of(key, store[key]) for key in keys} == acknowledged


@HELPER
def test_increments_of_eight_threads_add_up_exactly(opener: Any, helper: bool) -> None:
    store, crowd, churning = opener(helper=helper), Crowd(), Crowd()

    def add(seed: int) -> None:
        uniform = random.Random(seed)
        for _ in range(400):
            store.incr(("counter", uniform.randrange(3)))
            store.incr("all", 2)

    for seed in range(8):
        crowd.add(add, seed)
    churning.add(churn, store, churning)
    with churning.running(0), crowd.running(None):
        pass
    assert store["all"] == 8 * 400 * 2
    assert sum(store.values(prefix=("counter",))) == 8 * 400
    store.save()
    evict(store)
    assert sum(store.values(prefix=("counter",))) == 8 * 400


@HELPER
def test_of_many_threads_that_pop_one_key_or_set_its_default_one_wins(opener: Any, helper: bool) -> None:
    store, crowd, churning = opener(helper=helper), Crowd(), Crowd()
    popped: list[int] = []
    defaults: dict[int, set[int]] = defaultdict(set)
    for number in range(1500):
        store[number] = number

    def pop() -> None:
        for number in range(1400):  # The others are the last in key order: `popitem` takes those.
            value = store.pop(number, None)
            if value is not None:
                popped.append(value)

    def default(mine: int) -> None:
        for number in range(200):
            defaults[number].add(store.setdefault(("default", number), mine))

    def popitem() -> None:
        for _ in range(100):
            _, value = store.popitem()
            popped.append(value)

    for mine in range(4):
        crowd.add(pop)
        crowd.add(default, mine)
    crowd.add(popitem)
    churning.add(churn, store, churning)
    with churning.running(0), crowd.running(None):
        pass
    assert sorted(popped) == list(range(1500))
    assert all(values == {store["default", number]} for number, values in defaults.items())
    assert len(store) == 200


@HELPER
def test_keys_deleted_and_written_again_are_never_seen_with_an_older_version(opener: Any, helper: bool) -> None:
    store, crowd = opener(helper=helper), Crowd()
    keys = list(range(20))
    acknowledged = dict.fromkeys(keys, 0)

    def write(share: int) -> None:
        uniform, version = random.Random(share), 0
        while not crowd.stop.is_set():
            version += 1
            key = uniform.choice(keys[share::2])
            store[key] = made(key, version, 2000)
            acknowledged[key] = version
            if uniform.random() < 0.5:
                assert store.delete_many([key]) == 1
                assert key not in store
                assert store.get(key) is None

    def read() -> None:
        uniform = random.Random()
        while not crowd.stop.is_set():
            key = uniform.choice(keys)
            least = acknowledged[key]
            value = store.get(key)
            assert value is None or version_of(key, value) >= least

    crowd.add(write, 0)
    crowd.add(write, 1)
    crowd.add(read)
    crowd.add(read)
    crowd.add(churn, store, crowd)
    with crowd.running(SECONDS):
        pass


USES: list[Callable[[Any, int], Any]] = [
    lambda store, step: store.get(step % 500),
    lambda store, step: store[step % 100],
    lambda store, step: store.get_many(range(step % 300, step % 300 + 50)),
    lambda store, step: list(store.items(start=step % 400)),
    lambda store, step: len(store),
    lambda store, step: store.explain(step % 100),
    lambda store, step: store.ttl(step % 100),
    lambda store, step: step % 500 in store,
    lambda store, step: store.set(step % 500, b"x" * 2000),
    lambda store, step: store.set_many(dict.fromkeys(range(step % 400, step % 400 + 60), b"y" * 500)),
    lambda store, step: store.incr("counter"),
    lambda store, step: (store.set(1000 + step % 9, 1), store.pop(1000 + step % 9, None)),
    lambda store, step: store.save(),
    lambda store, step: store.sync(),
    lambda store, step: store.compact(),
    lambda store, step: store.tick(),
    lambda store, step: store.stats(),
    lambda store, step: store.check(),
    lambda store, step: store.config_set("save", "900 1"),
]


@HELPER
@pytest.mark.parametrize("durability", ["everysec", "always"])
def test_closing_while_others_use_the_store_gives_them_closed_error_and_nothing_else(
    opener: Any, helper: bool, durability: str
) -> None:
    for turn in range(2):
        store, crowd = opener(f"{turn}", helper=helper, durability=durability), Crowd()
        store.update({number: random.Random(number).randbytes(1500) for number in range(500)})
        store.save()
        steps = [0] * len(USES)

        def use(number: int, store: Any = store, steps: list[int] = steps) -> None:
            try:
                while True:
                    USES[number](store, steps[number])
                    if number == 7:
                        evict(store)
                    steps[number] += 1
                    time.sleep(0.001)  # The lock is not fair: without a breath `close` may wait for seconds.
            except tiered.ClosedError:
                pass

        for number in range(len(USES)):
            crowd.add(use, number)
        with crowd.running(None):
            time.sleep(0.1)
            store.close()
        assert sum(steps) > 0
        again = opener(f"{turn}", helper=helper)
        assert all(number in again for number in range(500))
        assert again.get("counter", 0) in (steps[10], steps[10] + 1)
        again.close()


def test_two_threads_closing_at_once_both_return_when_it_is_closed(opener: Any) -> None:
    store, crowd = opener(helper=True), Crowd()
    store.update(dict.fromkeys(range(400), b"x" * 2000))

    def close() -> None:
        store.close()
        assert store._engine.closed

    for _ in range(4):
        crowd.add(close)
    with crowd.running(None):
        pass
    assert len(opener()) == 400


# Step by step: the other thread's work done between two steps of a read


WRITES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "a write": (lambda store: store.set("k", "new"), "new"),
    "a deletion": (lambda store: store.__delitem__("k"), None),
    "a clear": (lambda store: store.clear(), None),
    "a batch": (lambda store: store.set_many({"k": "new"}), "new"),
    "a touch": (lambda store: (store.set("k", "new"), store.touch("k", 50)), "new"),
}
AFTERWARDS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda store: None,
    "an eviction": evict,
    "the segment set aside": lambda store: (set_aside(store), evict(store)),
    "a checkpoint": lambda store: (store.save(), evict(store)),
    "two checkpoints": lambda store: (store.save(), store.set("other", 1), store.save(), evict(store)),
    "a compaction": lambda store: (store.compact(), evict(store)),
}
READS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    # Each with a method of the engine that it calls between reading and keeping.
    "get": ("owned", lambda store: store.get("k")),
    "get, in Python": ("value_of", lambda store: store._load("k", None)),
    "get_many": ("owned", lambda store: store.get_many(["k"]).get("k")),
    "get_many, in Python": ("value_of", lambda store: in_python(store).get_many(["k"]).get("k")),
}


def in_python(store: Any) -> Any:
    """The store, whose `get_many` leaves nothing to what is compiled."""
    store._loaded = lambda keys, found: keys
    return store


# What is not cold is read in Python anyway.
@pytest.mark.parametrize(
    ("place", "read"),
    [("cold", read) for read in READS]
    + [(place, read) for place in ("aside", "dirty") for read in ("get", "get_many")],
)
@pytest.mark.parametrize("afterwards", AFTERWARDS)
@pytest.mark.parametrize("write", WRITES)
def test_a_value_read_before_a_write_is_not_promoted_after_it(
    opener: Any, monkeypatch: pytest.MonkeyPatch, place: str, write: str, afterwards: str, read: str
) -> None:
    store = opener(stepwise=True)
    store["k"] = "old"
    {"cold": store.save, "aside": lambda: set_aside(store), "dirty": lambda: None}[place]()
    evict(store)
    engine = store._engine
    change, expected = WRITES[write]
    step, reading = READS[read]
    if read == "get_many" and place != "cold":
        step = "value_of"  # It is the twin's.
    stepping = getattr(engine, step)

    def interrupted(*arguments: Any) -> Any:
        # The record has been read, and is not hot yet: now somebody else writes.
        monkeypatch.undo()
        value = stepping(*arguments)
        change(store)
        AFTERWARDS[afterwards](store)
        return value

    monkeypatch.setattr(engine, step, interrupted)
    assert reading(store) == "old"
    assert store.get("k") == expected
    assert store.check() == []


@pytest.mark.parametrize("checkpoint", [lambda store: store.save(), lambda store: store.compact()])
def test_a_key_that_moves_to_the_cold_tier_between_looking_in_buffers_and_there_is_found(
    opener: Any, monkeypatch: pytest.MonkeyPatch, checkpoint: Callable[[Any], Any]
) -> None:
    store = opener(stepwise=True)
    store["k"] = "value"
    store.save()
    store["k"] = "newer"
    set_aside(store)
    evict(store)
    engine = store._engine
    dirty = engine.dirty
    place: list[Any] = []

    def interrupted(stored_key: bytes) -> Any:
        monkeypatch.undo()
        place.append(dirty(stored_key))
        checkpoint(store)
        return place[0]

    monkeypatch.setattr(engine, "dirty", interrupted)
    assert store.get("k") == "newer"  # `get_many` looks in both under the lock: nothing can come between.
    assert place[0] is not None
    assert store["k"] == "newer"
    assert store.check() == []


@pytest.mark.parametrize(
    ("write", "new"),
    [
        (lambda store: store.set("k", "new"), "new"),
        (lambda store: store.set_many({"k": "new"}), "new"),
        (lambda store: store.__delitem__("k"), None),
        (lambda store: store.delete_many(["k"]), None),
    ],
)
def test_once_a_new_value_can_be_seen_in_the_buffer_the_old_one_is_not_hot_any_more(
    opener: Any, monkeypatch: pytest.MonkeyPatch, write: Callable[[Any], Any], new: Any
) -> None:
    store = opener(stepwise=True)
    store["k"] = "old"
    store.save()
    store["other"] = 1
    engine, seen = store._engine, list[Any]()

    def followed_by_a_read(original: Callable[..., None]) -> Callable[..., None]:
        def interrupted(*arguments: Any) -> None:
            original(*arguments)
            # A reader that comes here, without the lock: by iteration or `ttl` it finds the new state.
            seen.append(store.get("k"))

        return interrupted

    for name in ("put", "put_many"):
        monkeypatch.setattr(WriteBuffer, name, followed_by_a_read(getattr(WriteBuffer, name)))
    write(store)
    monkeypatch.undo()
    assert seen
    assert seen == [new] * len(seen)
    assert store.get("k") == new
    assert engine.hot.wrong() == ""


def test_hits_go_on_while_another_thread_holds_the_lock(opener: Any) -> None:
    store = opener(stepwise=True)
    store["hot"] = [1]
    store["cold"] = 2
    store.save()
    store._engine.hot.discard("cold")
    found: list[Any] = []
    with store._engine.lock:
        thread = threading.Thread(target=lambda: found.extend([store["hot"], store.get("hot"), "cold" in store]))
        thread.start()
        thread.join(5)
        assert not thread.is_alive()
    assert found == [[1], [1], True]


def test_reads_go_on_while_a_checkpoint_is_being_applied(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opener(stepwise=True)
    store["cold"] = "cold"
    store.save()
    store["k"] = "dirty"
    evict(store)
    from tiered.cold_update import Update

    write, found = Update.write, list[Any]()

    def interrupted(update: Any, changes: Any) -> None:
        reader = threading.Thread(target=lambda: found.extend([store["cold"], store["k"], list(store), len(store)]))
        reader.start()
        reader.join(5)
        assert not reader.is_alive()
        write(update, changes)

    monkeypatch.setattr(Update, "write", interrupted)
    store.save()
    assert found == ["cold", "dirty", ["cold", "k"], 2]


def test_writes_go_on_while_the_file_system_removes_a_segment_and_save_returns_when_it_is_gone(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(helper=True)
    removing, written = threading.Event(), threading.Event()
    unlink = Path.unlink

    def slow(path: Path, missing_ok: bool = False) -> None:
        if path.name == "journal-00000001.log":
            removing.set()
            assert written.wait(10), "a write waited for it"
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", slow)
    store["a"] = 1
    saving = threading.Thread(target=store.save)
    saving.start()
    assert removing.wait(10)
    store["b"] = 2
    assert saving.is_alive(), "it said that the segment is gone"
    written.set()
    saving.join()
    assert files.segment_numbers(Path(store._engine.directory)) == [2]


def test_a_store_is_not_given_up_before_whoever_removes_its_segments_is_done(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(stepwise=True)
    engine, removing, go_on = store._engine, threading.Event(), threading.Event()
    unlink = Path.unlink

    def slow(path: Path, missing_ok: bool = False) -> None:
        if path.name == "of-no-use" and not removing.is_set():
            removing.set()
            assert go_on.wait(10)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", slow)
    engine.journal.removal.add(Path(engine.directory) / "of-no-use")
    threads = [threading.Thread(target=engine._remove_applied), threading.Thread(target=store.close)]
    threads[0].start()
    assert removing.wait(10)
    threads[1].start()
    threads[1].join(0.1)
    assert engine._lock_file.held, "the next one to open it may give this name to a segment of its own"
    go_on.set()
    for thread in threads:
        thread.join()


def test_a_handler_in_the_middle_of_removing_a_segment_may_read_and_not_write(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(helper=True)
    answers: list[Any] = []
    unlink = Path.unlink

    def interrupted(path: Path, missing_ok: bool = False) -> None:
        if path.name == "of-no-use":
            answers.append(store["a"])
            for wrong in (store.close, store.save, store.clear):
                with pytest.raises(tiered.ReentrantError):
                    wrong()
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", interrupted)
    store["a"] = 1
    store._engine.journal.removal.add(Path(store._engine.directory) / "of-no-use")
    store._engine._remove_applied()
    assert answers == [1]


def test_a_thread_late_with_background_work_does_nothing_to_a_store_that_was_closed_meanwhile(opener: Any) -> None:
    store = opener(stepwise=True)
    store["k"] = 1
    store.save()
    engine = store._engine
    checkpointer = engine.checkpointer  # What a thread in the middle of a tick holds.
    store.close()
    before = sorted(engine.directory.iterdir())
    checkpointer.compact()
    assert not checkpointer.run(slices=True)
    assert not checkpointer.run()
    assert sorted(engine.directory.iterdir()) == before
    assert not engine.poisoned
    assert opener(stepwise=True)["k"] == 1


def test_closing_waits_for_whoever_reads_the_cold_tier_at_this_moment(opener: Any) -> None:
    """What is read is mapped: unmapping it under a reader would end the process."""
    store = opener(stepwise=True)
    store.update(dict.fromkeys(range(500), "x" * 100))
    store.save()
    cold = store._engine.cold
    inside, go = threading.Event(), threading.Event()
    found: list[Any] = []

    def read() -> None:
        with cold.read() as reader:
            inside.set()
            assert go.wait(10)
            found.append(sum(1 for _ in reader.scan()))

    reading = threading.Thread(target=read)
    reading.start()
    assert inside.wait(10)
    closing = threading.Thread(target=store.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    with pytest.raises(tiered.ClosedError):
        cold.get(b"any")
    go.set()
    reading.join()
    closing.join()
    assert found == [500]


def test_compactions_asked_for_by_many_threads_are_all_made(opener: Any) -> None:
    store = opener(helper=True)
    store.update(dict.fromkeys(range(500), "x" * 100))
    failures: list[BaseException] = []

    def compact() -> None:
        try:
            for _ in range(5):
                store.compact()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=compact) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    engine = store._engine

    def heard_late() -> bool:
        """A word that comes when another compaction has followed already; False while there is one to follow."""
        with engine.lock:
            cold, live = engine.cold, files.read_current(engine.directory)
            if files.cold_path(engine.directory, live or 0) != cold.directory:
                return False
            engine._on_compacted({"event": "compacted"})
            return engine.cold is cold

    wait_until(heard_late)
    store["k"] = 1
    store.save()
    assert len(store) == 501


def test_a_file_noted_for_removal_by_another_thread_is_no_reentry(opener: Any) -> None:
    class Filled(list[Path]):
        """Empty at the first look, and not at the next: another thread has noted a file in between."""

        looks = 0

        def __len__(self) -> int:
            self.looks += 1
            return self.looks - 1

    store = opener(stepwise=True)
    removal = store._engine.journal.removal
    removal.paths = Filled()
    store._engine.refuse_reentry()
    assert removal.paths.looks == 1
    removal.paths = []
