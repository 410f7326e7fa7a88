"""Compaction: the file shrinks, nothing is lost, whoever is killed; readers elsewhere are in `test_processes`."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from programs import helper_pid, line_of, running, wait_until

import tiered
from tiered import checkpoint, files
from tiered.checkpointer import HelperCheckpointer, InlineCheckpointer
from tiered.cold_update import Update
from tiered.helper import Job


def data_bytes(store: tiered.Store[Any, Any]) -> int:
    return int((store._engine.cold.path).stat().st_size)


def colds(store: tiered.Store[Any, Any]) -> list[int]:
    return files.cold_numbers(Path(store.path))


def fill(store: tiered.Store[Any, Any], count: int = 3000, size: int = 400) -> dict[int, str]:
    uniform = random.Random(5)
    values = {number: uniform.randbytes(size // 2).hex() for number in range(count)}
    store.update(values)
    store.save()
    return values


@pytest.mark.parametrize("helper", [False, True])
def test_the_file_shrinks_after_deletions_and_keeps_every_record(opener: Any, helper: bool) -> None:
    store = opener(helper=helper)
    values = fill(store)
    before = data_bytes(store)
    assert store.delete_many(range(2700)) == 2700
    store.save()
    assert data_bytes(store) >= before, "LMDB never gives space back by itself"
    store["dirty"] = 1
    store.compact()
    assert data_bytes(store) < before / 4
    assert dict(store) == {**{number: values[number] for number in range(2700, 3000)}, "dirty": 1}
    assert (colds(store), store.check()) == ([2], [])


def test_the_file_shrinks_after_everything_was_overwritten_by_less(opener: Any) -> None:
    store = opener()
    fill(store)
    before = data_bytes(store)
    store.update((number, "short") for number in range(3000))
    store.save()
    store.compact()
    assert data_bytes(store) < before / 3
    assert set(store.values()) == {"short"}


def test_a_store_just_opened_can_be_compacted(opener: Any) -> None:
    for helper in (False, True):
        with opener(f"{helper}", helper=helper) as store:
            fill(store)
            store.delete_many(range(2900))
        with opener(f"{helper}", flag="w", helper=helper) as store:
            before = data_bytes(store)
            store.compact()
            assert (len(store), data_bytes(store) < before / 4) == (100, True)
        with opener(f"{helper}", flag="w") as store:
            assert (len(store), store.check(), colds(store)) == (100, [], [2])


def test_an_empty_store_can_be_compacted_and_so_can_a_compacted_one(opener: Any) -> None:
    store = opener()
    for number in range(2, 6):
        store.compact()
        assert (len(store), colds(store)) == (0, [number])
    store["a"] = 1
    store.compact()
    assert store["a"] == 1


def test_deadlines_settings_and_dictionaries_survive(opener: Any, clock: Any) -> None:
    store = opener(clock=clock, default_ttl=5000, compression="zstd:2")
    for number in range(3000):
        document = {"name": f"user {number}", "mail": f"{number}@example.org", "groups": ["readers", "writers"]}
        store.set(number, document, ttl=100 + number)
    store.save()
    wait_until(lambda: store.tick() > 0 and store.stats().dictionary_count)
    dictionaries = store.stats().dictionary_count
    store.compact()
    assert store.stats().dictionary_count == dictionaries > 0
    assert (store.ttl(7), store[2999]["name"]) == (107, "user 2999")
    clock.sleep(1100)
    assert len(store) == 2000 - 1
    store.close()
    again = opener(flag="w", clock=clock)
    assert again.config_get("default_ttl") == {"default_ttl": 5000}
    assert (len(again), again.check()) == (1999, [])


@pytest.mark.parametrize("helper", [False, True])
def test_nothing_is_lost_while_threads_write_delete_and_read_and_another_process_reads(
    opener: Any, helper: bool
) -> None:
    store = opener(helper=helper, save="0 500")
    fill(store, 4000)
    stop = threading.Event()
    models: list[dict[Any, Any]] = [{}, {}, {}]
    errors: list[BaseException] = []

    def write(thread: int) -> None:
        uniform, model = random.Random(thread), models[thread]
        try:
            while not stop.is_set():
                key = (thread, uniform.randrange(300))
                if uniform.random() < 0.3:
                    assert store.pop(key, None) == model.pop(key, None)
                else:
                    store[key] = model[key] = uniform.randbytes(uniform.randrange(600)).hex()
                other = (thread, uniform.randrange(300))
                assert store.get(other) == model.get(other)
        except BaseException as error:
            errors.append(error)

    code = """
        import sys, tiered
        store = tiered.open(sys.argv[1], "r", memory="1MB")
        print("open", flush=True)
        numbers = 0
        while True:
            for number in range(0, 4000, 97):
                assert len(store[number]) == 400
            assert sum(1 for key in store.keys(start=0)) == 4000
            numbers += 1
            print(numbers, flush=True)
    """
    with running(code, store.path) as reader:
        assert line_of(reader) == "open"
        threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(4):
                store.compact()
                time.sleep(0.15)
                line_of(reader)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        for _ in range(3):
            line_of(reader)
    assert errors == []
    expected = {key: value for model in models for key, value in model.items()}
    assert {key: value for key, value in store.items() if isinstance(key, tuple)} == expected
    assert len(store) == 4000 + len(expected)
    store.close()
    again = opener(flag="w")
    assert {key: value for key, value in again.items() if isinstance(key, tuple)} == expected


def test_a_helper_killed_while_it_compacts_is_started_again_and_finishes(opener: Any) -> None:
    store = opener(helper=True)
    values = fill(store, 30_000, 300)
    directory = Path(store.path)

    def kill() -> None:
        wait_until(lambda: (directory / "cold-0002").exists())
        os.kill(helper_pid(store), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    store["meanwhile"] = 1
    store.compact()
    thread.join()
    assert store.stats().checkpointer == "helper"
    assert (len(store), store[29_999], store["meanwhile"]) == (30_001, values[29_999], 1)
    assert len(colds(store)) == 1


@pytest.mark.parametrize("victims", ["program", "both"])
@pytest.mark.parametrize("late", [False, True])
def test_killed_in_the_middle_of_a_compaction_the_store_opens_and_leftovers_are_removed(
    tmp_path: Path, victims: str, late: bool
) -> None:
    code = """
        import random, sys, threading, time, tiered
        uniform = random.Random(5)
        store = tiered.open(sys.argv[1], memory="1MB")
        store.update((number, uniform.randbytes(150).hex()) for number in range(20_000))
        store.save()
        print(store._engine.checkpointer.process.pid, flush=True)
        thread = threading.Thread(target=store.compact)
        thread.start()
        store["meanwhile"] = 1
        print("acknowledged", flush=True)
        time.sleep(60)
    """
    path = tmp_path / "store.tiered"
    with running(code, path) as program:
        helper = int(line_of(program))
        assert line_of(program) == "acknowledged"
        wait_until(lambda: (path / "cold-0002").exists())
        time.sleep(0.15 if late else 0.005)
        for pid in (program.pid, helper)[: 1 if victims == "program" else 2]:
            os.kill(pid, signal.SIGKILL)
        with tiered.open(path, "w", memory="1MB", lock_timeout=5) as store:
            assert (len(store), store["meanwhile"], store.check()) == (20_001, 1, [])
            assert len(colds(store)) == 1
            store.compact()
            assert (len(store), len(colds(store))) == (20_001, 1)


@pytest.mark.parametrize("step", ["before the old one is marked", "before CURRENT is written", "after CURRENT"])
def test_a_crash_at_each_step_of_the_switch_leaves_one_whole_store(
    opener: Any, monkeypatch: pytest.MonkeyPatch, step: str, tmp_path: Path
) -> None:
    import shutil

    store = opener()
    values = fill(store, 500)
    pictures: list[str] = []

    def picture() -> None:
        shutil.copytree(store.path, tmp_path / "picture", ignore=shutil.ignore_patterns("LOCK", "APPLY"))
        pictures.append(step)

    real_carry, real_write = checkpoint._carry_over, files.write_current
    calls = []

    def carry(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2 and step == "before the old one is marked":
            picture()
        real_carry(*arguments)

    def write(*arguments: Any) -> None:
        if step == "before CURRENT is written":
            picture()
        real_write(*arguments)
        if step == "after CURRENT":
            picture()

    monkeypatch.setattr(checkpoint, "_carry_over", carry)
    monkeypatch.setattr(files, "write_current", write)
    store.compact()
    monkeypatch.undo()
    assert pictures == [step]
    with opener("picture", flag="r") as reader:
        assert len(reader) == 500
    again = opener("picture", flag="w")
    assert (dict(again), len(colds(again))) == (values, 1)
    again["more"] = 1
    again.compact()
    assert len(again) == 501


def test_a_compaction_that_fails_leaves_the_store_as_it_was(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opener()
    values = fill(store)

    def full(*_: object) -> None:
        raise tiered.StoreFullError(store.path, "the disk is full")

    for name in ("append_records", "put_dictionary", "put_settings"):
        monkeypatch.setattr(Update, name, full)
        if name != "put_dictionary":
            with pytest.raises(tiered.StoreFullError):
                store.compact()
            assert colds(store) == [1], "the room for the copy is given back at once"
        monkeypatch.undo()
    store["after"] = 1
    store.save()
    assert dict(store) == {**values, "after": 1}
    store.compact()
    assert (colds(store), dict(store)) == ([2], {**values, "after": 1})


class Recorder:
    """A checkpointer that does nothing, in whose place the test drives a job step by step."""

    name, entered, ended = "recorder", False, False

    def __init__(self, job: Job) -> None:
        self.submit, self.compact, self.finish, self.reopened = job.submit, job.compact, job.finish, lambda: job.cold

    def run(self, slices: bool = False) -> bool:
        return False

    def disown(self) -> None:
        pass


def test_checkpoints_and_a_compaction_take_turns_even_while_a_merge_is_under_way(opener: Any) -> None:
    store = opener(memory="64MB", save="")
    engine = store._engine
    job = Job(1, Path(store.path), "none", engine.cold)

    def step() -> str:
        if isinstance(event := job.step(), dict):
            engine.on_event(event)
            return str(event["event"])
        return "more" if event else "nothing"

    engine.checkpointer = Recorder(job)
    try:
        store.update((number, "v" * 20) for number in range(20_000))
        engine.rotate()
        assert step() == "applied"
        job._applier._merging, job._applier._owed = True, 100_000
        job.compact()
        done = []
        for number in range(20):
            store["meanwhile", number] = number
            with engine.lock:
                engine.rotate()
            done.append(step())
        assert done[:6] in (["applied", "more"] * 3, ["more", "applied"] * 3)
        assert "compacted" in done, "a compaction never catches up with a busy writer"
        while step() != "nothing":
            pass
        assert (len(store), store.check()) == (20_020, [])
    finally:
        job.abandon()
        engine.checkpointer = None


def test_a_compaction_that_fails_at_its_last_step_marks_nothing_as_moved(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(stepwise=True)
    store.update(dict.fromkeys(range(300), "v" * 50))
    store.save()

    def full(directory: Path, number: int) -> None:
        raise tiered.StoreFullError(directory, "the disk is full")

    monkeypatch.setattr(files, "write_current", full)
    with pytest.raises(tiered.StoreFullError):
        store.compact()
    monkeypatch.undo()
    assert not store._engine.cold.state().moved
    store["after"] = 1
    store.save()
    store.compact()
    assert len(store) == 301


@pytest.mark.parametrize(
    ("helper", "end"), [(False, "followed"), (True, "followed"), (True, "closed"), (True, "the helper dies")]
)
def test_a_compaction_whose_copy_cannot_be_opened_for_want_of_descriptors_is_followed_later(
    opener: Any, monkeypatch: pytest.MonkeyPatch, helper: bool, end: str
) -> None:
    store = opener(helper=helper, save="", memory="4MB")
    store.update((number, f"old {number}") for number in range(500))
    store.save()
    old = store._engine.cold.directory

    def lacking(*arguments: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(InlineCheckpointer, "reopened", lacking)
        patch.setattr(HelperCheckpointer, "reopened", lacking)
        for _ in range(2):
            with pytest.raises(tiered.StoreError, match="too many open files"):
                store.compact()
            store.update((number, f"new {number}") for number in range(100, 200))
            del store[0]
            with pytest.raises(tiered.StoreError, match="too many open files"):
                store.save()
            store._engine.hot.clear()
            right = {n: f"new {n}" if 100 <= n < 200 else f"old {n}" for n in range(1, 500)}
            assert dict(store) == right, "from the old cold tier, and the buffers"
            assert (store.stats().state, store._engine.cold.directory) == ("held up", old)
            store[0] = "again"
        if end == "closed":
            with pytest.raises(tiered.StoreError, match="journal keeps what was written"):
                store.close()
    if end == "closed":
        store = opener(helper=helper)
    elif end == "the helper dies":
        os.kill(helper_pid(store), signal.SIGKILL)
    store["last"] = 1
    wait_until(lambda: store.tick() >= 0 and store.stats().state == "open")
    store.save()
    store.compact()
    store._engine.hot.clear()
    assert dict(store) == {"last": 1, 0: "again", **right}
    # A compaction that the dead helper had begun may be done again now, and leaves its old tier to a later cycle.
    wait_until(lambda: len(list(Path(store.path).glob("cold-*"))) == 1)


def test_a_view_from_before_a_compaction_reads_what_was_there(opener: Any) -> None:
    store = opener(stepwise=True)
    store["key"] = "old"
    store.save()
    with store.view() as view:
        store["other"] = 1
        store.save()  # So that the view's layout is not known yet.
        store.compact()
        assert view["key"] == "old"
        assert list(view.items()) == [("key", "old")]
        assert view.get_many(["key", "other"]) == {"key": "old"}
