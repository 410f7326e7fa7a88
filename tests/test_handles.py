"""Handles: several on one engine, temporary stores, pickling, forks, and what many of them cost.

`TIERED_HANDLE_CYCLES` sets how many times a store is opened, used and closed.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import programs
import pytest
from programs import line_of, running, succeed, wait_until
from test_processes import OPERATIONS, READS, fill, in_fork, outcome

import tiered
from tiered import handle as one
from tiered import process, sharing
from tiered.clock import ManualClock
from tiered.engine import Engine
from tiered.environment import map_bytes
from tiered.maintenance import MAINTENANCE
from tiered.sharing import HANDLES

CYCLES = int(os.environ.get("TIERED_HANDLE_CYCLES", "300"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.tiered"


# Several handles in one process


def test_a_path_that_is_open_gives_another_handle_on_the_same_engine(opener: Any) -> None:
    one, two = opener(), opener(flag="w")
    one["a"] = 1
    assert two["a"] == 1
    two["b"] = [2]
    del two["a"]
    assert dict(one) == {"b": [2]}
    assert one._engine is two._engine


def test_a_path_is_the_same_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("store.tiered")
    monkeypatch.chdir(tmp_path)
    names: list[Any] = ["store.tiered", tmp_path / "x" / ".." / "store.tiered", b"link"]
    stores = [tiered.open(name) for name in names]
    assert len({id(store._engine) for store in stores}) == 1
    for store in stores:
        store.close()


@pytest.mark.parametrize("flag", ["w", "r"])
def test_every_operation_of_a_closed_handle_is_a_closed_error_though_the_engine_is_open(opener: Any, flag: str) -> None:
    store, other = opener(), opener(flag=flag)
    fill(store)
    assert (other["hot"], store["hot"]) == (1, 1)
    views, started = [other.keys(), other.values(), other.items()], iter(other)
    next(started)
    other.close()
    got = {name: outcome(call, other) for name, call in OPERATIONS.items()}
    assert got == dict.fromkeys(OPERATIONS, "ClosedError")
    for late in (*views, started):
        with pytest.raises(tiered.ClosedError):
            list(late)
    assert "closed" in repr(other)
    assert other.path == store.path
    other.close()
    assert dict(store) == {"hot": 1, "cold": "c" * 100, "count": 1}


def test_the_engine_closes_with_its_last_handle(opener: Any) -> None:
    stores = [opener() for _ in range(3)]
    engine = stores[0]._engine
    stores[0]["a"] = 1
    for store in stores[:2]:
        store.close()
        store.close()
        assert not engine.closed
    assert stores[2]["a"] == 1
    stores[2].close()
    assert engine.closed
    with opener(flag="w") as again:
        assert again["a"] == 1


def test_a_setting_that_differs_from_the_one_in_force_is_a_config_error_naming_it_and_both_values(
    opener: Any,
) -> None:
    store = opener(memory="1MB", save="900 1", default_ttl=None)
    for name, value, has in (
        ("memory", "2MB", str(1 << 20)),
        ("save", "900 2", "((900, 1),)"),
        ("durability", "always", "'everysec'"),
        ("helper", True, "False"),
        ("default_ttl", 5, "None"),
    ):
        for flag in "cwr":
            with pytest.raises(tiered.ConfigError) as caught:
                opener(flag=flag, **{name: value})
            assert f"{name}={value!r}" in str(caught.value)
            assert f"{name}={has}" in str(caught.value)
    store.config_set("memory", "3MB")
    with opener(memory="3MB") as other:
        assert other.config_get("memory") == store.config_get("memory")
    with pytest.raises(tiered.ConfigError, match="clock"):
        opener(memory="3MB", clock=ManualClock())


def test_equal_settings_written_differently_are_fine(opener: Any) -> None:
    opener(memory="1MB", save="900 1", compression="zstd")
    opener(memory=1 << 20, save=[(900, 1)], compression="zstd:3")["a"] = 1


def test_a_notebook_cell_run_again_just_works(path: Path) -> None:
    names: dict[str, Any] = {"tiered": tiered, "path": path}
    cell = "store = tiered.open(path, memory='1MB', helper=False)\nstore['runs'] = store.get('runs', 0) + 1"
    exec(cell, names)
    engine = names["store"]._engine
    for _ in range(2):
        with pytest.warns(ResourceWarning, match="unclosed store"):
            exec(cell, names)
        assert names["store"]._engine is engine
    assert names["store"]["runs"] == 3
    names["store"].close()
    with tiered.open(path, "w") as store:
        assert store["runs"] == 3


def test_a_handle_collected_in_the_middle_of_an_open_of_its_path_does_not_wait_for_itself(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [tiered.open(path, helper=False)]
    left[0]["a"] = 1
    engine = left[0]._engine

    def collecting(*_: object) -> None:
        with pytest.warns(ResourceWarning, match="unclosed store"):
            left.clear()
        assert not engine.closed

    monkeypatch.setattr(sharing, "_check_flag", collecting)
    with tiered.open(path, helper=False) as again:
        assert (again["a"], engine.closed, again._shared.members) == (1, False, {again._member})  # type: ignore[union-attr]
    assert engine.closed


def test_a_last_handle_that_is_collected_closes_the_engine(path: Path) -> None:
    holder = [tiered.open(path, helper=False), tiered.open(path, helper=False)]
    holder[0]["a"] = 1
    engine = holder[0]._engine
    with pytest.warns(ResourceWarning, match="unclosed store"):
        holder.pop()
    assert not engine.closed
    with pytest.warns(ResourceWarning, match="unclosed store"):
        holder.pop()
    wait_until(lambda: not HANDLES._shared)  # By the maintenance thread, soon.
    assert engine.closed
    with tiered.open(path, "w") as store:
        assert store["a"] == 1


def test_a_handle_whose_opening_was_interrupted_goes_by_itself_without_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = one.Handle._adopt
    engines: list[Engine] = []

    def interrupted(self: Any, shared: Any) -> None:
        real(self, shared)
        engines.append(shared.engine)
        raise KeyboardInterrupt

    monkeypatch.setattr(one.Handle, "_adopt", interrupted)
    with pytest.raises(KeyboardInterrupt):  # Warnings are errors here.
        tiered.open(path, helper=False)
    gc.collect()
    monkeypatch.undo()
    with tiered.open(path, helper=False) as store:
        assert engines[0].closed
        store["a"] = 1


def test_flag_n_on_a_path_that_is_open_is_a_locked_error_with_a_hint(opener: Any) -> None:
    store = opener()
    store["a"] = 1
    with pytest.raises(tiered.LockedError, match=r"clear\(\)"):
        opener(flag="n")
    assert store["a"] == 1
    store.close()
    reader = opener(flag="r")
    with pytest.raises(tiered.LockedError):
        opener(flag="n")
    assert reader["a"] == 1


@pytest.mark.parametrize("flag", ["c", "w"])
def test_writing_where_this_process_only_reads_is_a_locked_error_with_a_hint(opener: Any, flag: str) -> None:
    opener().close()
    reader = opener(flag="r")
    with pytest.raises(tiered.LockedError, match="close that handle first"):
        opener(flag=flag)
    reader.close()
    opener(flag=flag)["a"] = 1


def test_several_read_only_handles_share_an_engine(opener: Any) -> None:
    with opener() as store:
        fill(store)
    one, two = opener(flag="r"), opener(flag="r")
    one.close()
    assert (two["hot"], len(two), two.stats().state) == (1, 3, "read-only")


def test_a_read_only_handle_beside_a_writing_one_sees_everything_at_once(opener: Any) -> None:
    store = opener()
    reader = opener(flag="r")
    store["a"] = [1]
    assert (reader["a"], len(reader), list(reader.items())) == ([1], 1, [("a", [1])])
    store["a"] = 2
    assert reader["a"] == 2
    store.save()
    store.compact()
    assert (reader["a"], reader.get_many(["a", "b"]), reader.check()) == (2, {"a": 2}, [])
    del store["a"]
    assert "a" not in reader
    assert (reader.stats().state, store.stats().state) == ("read-only", "open")


def test_a_read_only_handle_beside_a_writing_one_writes_nothing(opener: Any) -> None:
    store = opener()
    fill(store)
    reader = opener(flag="r")
    before = (dict(store), store.stats().last_sequence)
    for name, call in OPERATIONS.items():
        if name in READS and name != "reclaim":  # Which makes a checkpoint of what is dirty.
            expected = "KeyError" if name == "subscript, absent" else "no error"
        else:
            expected = "no error" if name == "config_set memory" else "ReadOnlyError"
        assert (name, outcome(call, reader)) == (name, expected)
    assert (dict(store), store.stats().last_sequence) == before
    store.close()
    assert reader["hot"] == 1, "the engine is open until its last handle is closed"
    assert outcome(OPERATIONS["set"], reader) == "ReadOnlyError"


def test_every_method_of_an_engine_is_one_that_a_reader_may_call_or_one_that_it_may_not() -> None:
    """A new one that only reads goes into `READS` of `handle`, another here."""
    writes = """
        begin_work bound check_writable clear close compact deadline_after dismiss disown has_room_now observe on_event
        poison put put_many put_setting reclaim reserve rotate save serve share_objects sync take_leave tell unwatch
        wait_for watch write
    """
    public = {name for name in dir(Engine) if not name.startswith("_") and callable(getattr(Engine, name))}
    assert public == one.READS | set(writes.split())


def test_threads_that_open_and_close_one_path_at_once_share_engines_and_lose_nothing(
    path: Path, quick_path: Path
) -> None:
    path = quick_path / "store.tiered"
    failures: list[BaseException] = []
    counts = [0] * 6

    def work(number: int) -> None:
        try:
            limit = time.monotonic() + 2.0
            while time.monotonic() < limit:
                store = tiered.open(path, memory="1MB", helper=False)
                store.incr(("count", number))
                counts[number] += 1
                with tiered.open(path, "r") as reader:
                    assert reader["count", number] == counts[number]
                store.close()
                with pytest.raises(tiered.ClosedError):
                    store.get("x")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not HANDLES._shared
    assert not HANDLES._claims
    with tiered.open(path, "w") as store:
        assert [store["count", number] for number in range(len(counts))] == counts
        assert store.check() == []
    assert min(counts) > 5


def test_an_open_during_the_last_close_waits_for_it_and_opens_anew(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener()
    store["a"] = 1
    engine = store._engine
    closing, go_on = threading.Event(), threading.Event()
    real = Engine.close

    def slowly(self: Engine) -> None:
        closing.set()
        go_on.wait(10)
        real(self)

    monkeypatch.setattr(Engine, "close", slowly)
    closer = threading.Thread(target=store.close)
    closer.start()
    closing.wait(10)
    got: list[Any] = []
    other = threading.Thread(target=lambda: got.append(opener()))
    other.start()
    time.sleep(0.05)
    assert not got
    go_on.set()
    closer.join()
    other.join()
    assert (got[0]["a"], got[0]._engine is engine, engine.closed) == (1, False, True)


def test_a_directory_removed_and_made_anew_is_another_store(opener: Any, path: Path) -> None:
    with opener() as made:
        made["a"] = "old"
    for flag in "wr":
        old = opener(flag=flag)
        assert old["a"] == "old"
        path.rename(path.with_name(f"removed {flag}"))
        with opener() as new:
            assert list(new) == []
            new["a"] = "old"
        old.close()


def test_lock_timeout_waits_for_handles_of_the_same_process(opener: Any) -> None:
    opener().close()
    reader = opener(flag="r")
    began = time.monotonic()
    with pytest.raises(tiered.LockedError, match="flag='r'"):
        opener(flag="w", lock_timeout=0.3)
    assert 0.3 <= time.monotonic() - began < 10
    timer = threading.Timer(0.2, reader.close)
    timer.start()
    opener(flag="w", lock_timeout=20)["a"] = 1
    timer.join()


def test_a_thread_that_waits_for_a_lock_does_not_keep_others_from_reading(path: Path) -> None:
    with tiered.open(path) as store:
        store["a"] = 1
    code = """
        import sys, time, tiered
        store = tiered.open(sys.argv[1], "w")
        print("open", flush=True)
        time.sleep(60)
    """
    with running(code, path) as holder:
        assert line_of(holder) == "open"
        got: list[str] = []
        waiting = threading.Thread(
            target=lambda: got.append(outcome(lambda _: tiered.open(path, "w", lock_timeout=60).close(), None))  # type: ignore[arg-type]
        )
        waiting.start()
        wait_until(lambda: HANDLES._changed._waiters)  # type: ignore[attr-defined]
        with tiered.open(path, "r") as reader:
            assert reader["a"] == 1
        assert waiting.is_alive()
        assert not got
    waiting.join()
    assert got == ["no error"]


def test_an_explicit_argument_beats_a_remembered_setting_beats_the_default_and_all_but_memory_and_helper_are_remembered(
    opener: Any,
) -> None:
    changed = {
        "durability": "always", "save": "900 7", "compression": "zlib:1", "default_ttl": 50.0, "disk": 1 << 30,
        "memory": 2 << 20, "helper": True, "eviction": "sieve",
    }  # fmt: skip
    with opener() as store:
        defaults = store.config_get()
    with opener(**changed) as store:
        explicit = store.config_get()
        assert all(explicit[name] != defaults[name] for name in changed)
    with tiered.open(store.path) as store:
        remembered = store.config_get()
    assert {name for name in changed if remembered[name] != explicit[name]} == {"memory"}
    assert remembered["memory"] == 64 << 20
    assert remembered["helper"] is True, "the default"
    with opener(durability="checkpoint", helper=False) as store:
        assert (store.config_get("durability"), store.config_get("save")) == (
            {"durability": "checkpoint"},
            {"save": ((900, 7),)},
        )


def test_a_signal_handler_that_closes_the_store_being_closed_does_not_hang(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = opener(), opener()
    store["a"] = 1
    store.close()
    real = Engine.close

    def interrupted(self: Engine) -> None:
        other.close()
        with pytest.raises(tiered.LockedError, match="in the middle"):
            opener()
        real(self)

    monkeypatch.setattr(Engine, "close", interrupted)
    other.close()
    monkeypatch.undo()
    with opener(flag="w") as again:
        assert again["a"] == 1


def test_completions_are_at_most_100_keys(opener: Any) -> None:
    store = opener()
    store.update((f"key {number:04}", number) for number in range(300))
    assert store._ipython_key_completions_() == [f"key {number:04}" for number in range(100)]
    assert opener("other")._ipython_key_completions_() == []


# Temporary stores


def test_open_without_a_path_is_a_temporary_store_removed_when_it_is_closed() -> None:
    for flag in "cn":
        with tiered.open(flag=flag, memory="1MB", helper=False) as store:
            store.update((number, "v" * 100) for number in range(1000))
            store.save()
            place = Path(store.path)
            assert place.is_dir()
            with tiered.open(place, "r") as reader:
                assert reader[7] == "v" * 100
        assert not place.exists()


def test_a_temporary_store_collected_unclosed_warns_and_is_removed() -> None:
    holder = [tiered.open(memory="1MB", helper=False)]
    holder[0]["a"] = 1
    place = Path(holder[0].path)
    with pytest.warns(ResourceWarning, match="unclosed store"):
        holder.clear()
    wait_until(lambda: not place.exists())


@pytest.mark.parametrize("ending", ["", "sys.exit(0)", "child()"])
def test_a_temporary_store_is_removed_at_the_end_of_the_interpreter(ending: str) -> None:
    code = f"""
        import os, sys, tiered
        def child():
            pid = os.fork()
            if not pid:
                sys.exit(0)
            os.waitpid(pid, 0)
            assert store["a"] == 1 and os.path.exists(store.path), "the child took it away"
        store = tiered.open(memory="1MB")
        store["a"] = 1
        print(store.path)
        {ending}
    """
    place = succeed(code)
    assert "tiered-" in place
    assert not Path(place).exists()


@pytest.mark.parametrize("flag", ["r", "w"])
def test_another_flag_without_a_path_is_a_config_error(flag: str) -> None:
    with pytest.raises(tiered.ConfigError, match="needs a path"):
        tiered.open(flag=flag)


def test_a_temporary_store_that_cannot_be_opened_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(tiered.ConfigError):
        tiered.open(memory="1 byte")
    assert os.listdir(tmp_path) == []


# Pickling


def test_a_pickled_handle_arrives_read_only_in_the_same_process(opener: Any) -> None:
    store = opener()
    store["a"] = 1
    arrived = pickle.loads(pickle.dumps(store))
    assert (arrived["a"], outcome(OPERATIONS["set"], arrived)) == (1, "ReadOnlyError")
    store["a"] = 2
    assert arrived["a"] == 2
    assert copy.copy(arrived)["a"] == 2
    store.close()
    arrived.close()
    with pytest.raises(tiered.ClosedError):
        pickle.dumps(store)


def test_views_and_transactions_say_why_they_cannot_be_pickled(store: Any) -> None:
    with store.view() as view, pytest.raises(TypeError, match="pickle the store, and make a view"):
        pickle.dumps(view)
    with store.transaction() as txn, pytest.raises(TypeError, match="pickle the store, and begin a transaction"):
        pickle.dumps(txn)


def test_a_pickled_handle_is_path_and_settings_and_no_code(opener: Any) -> None:
    import pickletools

    store = opener(memory="3MB")
    store["secret"] = "value"
    data = pickle.dumps(store)
    names = {argument for code, argument, _ in pickletools.genops(data) if code.name.endswith("GLOBAL")}
    strings = {argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)}
    assert not names - {"tiered.handle arrive", "tiered.store Store", None}
    assert store.path in strings
    assert "secret" not in strings
    store.close()
    arrived = pickle.loads(data)
    assert arrived.config_get("memory") == {"memory": 3 << 20}
    del arrived  # It came by itself, and goes by itself, without a warning.
    with opener(flag="w") as store:
        assert store["secret"] == "value"


def script(tmp_path: Path, code: str, *arguments: object) -> str:
    """Run a program from a file, as `spawn` and `forkserver` need it; what it printed."""
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(code))
    environment = {**os.environ, "PYTHONPATH": programs.ROOT}
    command = [sys.executable, "-W", "error::ResourceWarning", str(file), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.strip()


LOADER = """
    import multiprocessing, sys, time, tiered
    from concurrent.futures import ProcessPoolExecutor

    def load(task):
        store, number = task
        try:
            store["mine"] = 1
        except tiered.ReadOnlyError:
            return store[number] >= 0
        return "wrote"

    def follow(store):
        limit = time.monotonic() + 20
        while store.get("final") is None:
            assert time.monotonic() < limit
            time.sleep(0.01)
        return sum(1 for _ in store.values(start=0))

    if __name__ == "__main__":
        context = multiprocessing.get_context(sys.argv[2])
        store = tiered.open(sys.argv[1], memory="1MB", save="0 500")
        store.update((number, 0) for number in range(2000))
        store.save()
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            waiting = [executor.submit(load, (store, number)) for number in range(20)]
            store.update((number, 1) for number in range(2000))
            print({future.result() for future in waiting})
        with context.Pool(2) as pool:
            result = pool.map_async(follow, [store] * 2)
            for version in range(2, 6):
                store.update((number, version) for number in range(2000))
            store["final"] = 1
            store.save()
            print(result.get(60), pool.map(load, [(store, number) for number in range(20)]) == [True] * 20)
        print(store.check(), store[7])
        store.close()
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_data_loader_reads_through_pickled_handles_while_the_parent_writes_and_checkpoints(
    tmp_path: Path, path: Path, method: str
) -> None:
    assert script(tmp_path, LOADER, path, method) == "{True}\n[2000, 2000] True\n[] 5"


# Forks


def test_a_read_only_handle_opens_itself_again_in_a_forked_child(opener: Any) -> None:
    with opener() as store:
        fill(store)
    reader = opener(flag="r")
    assert reader["hot"] == 1

    def read() -> str:
        assert "first use" in repr(reader)
        results = {name: outcome(OPERATIONS[name], reader) for name in READS if name != "subscript, absent"}
        assert set(results.values()) == {"no error"}, results
        assert outcome(OPERATIONS["set"], reader) == "ReadOnlyError"
        text = f"{reader['hot']} {len(reader)} {reader.check()} {reader.stats().state}"
        reader.close()
        return f"{text} {outcome(OPERATIONS['subscript, hot'], reader)}"

    assert in_fork(read) == "1 3 [] read-only ClosedError"
    assert (reader["hot"], reader["cold"], reader.check()) == (1, "c" * 100, [])


@pytest.mark.parametrize("name", READS)
def test_whatever_a_forked_child_does_first_with_a_read_only_handle_works(opener: Any, name: str) -> None:
    store = opener()
    fill(store)
    reader = opener(flag="r")
    assert reader["hot"] == 1
    assert in_fork(lambda: outcome(OPERATIONS[name], reader)) == (
        "KeyError" if name == "subscript, absent" else "no error"
    )


def test_a_read_only_handle_beside_a_writing_one_follows_the_parents_writes_in_the_child(opener: Any) -> None:
    store = opener()
    store["a"] = 1
    store.save()
    reader = opener(flag="r")
    store["a"] = 2
    assert reader["a"] == 2
    go, done = os.pipe(), os.pipe()

    def read() -> str:
        first = reader["a"]
        os.write(done[1], b"1")
        os.read(go[0], 1)
        wait_until(lambda: reader["a"] == 3, 5)
        return f"{first} {reader['a']}"

    def write() -> None:
        os.read(done[0], 1)
        store["a"] = 3
        os.write(go[1], b"1")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert in_fork(read) == "2 3"
    finally:
        writer.join()
        for end in (*go, *done):
            os.close(end)
    assert store.check() == []


def test_a_writing_handle_in_a_forked_child_says_what_to_do(opener: Any) -> None:
    store = opener()
    store["a"] = 1

    def use() -> str:
        try:
            store["a"]
        except tiered.ForkedError as error:
            return str(error)
        return "no error"

    text = in_fork(use)
    assert "flag='r'" in text
    assert "once the parent has closed it" in text


def test_a_forked_child_can_open_the_store_for_reading_and_for_writing_once_the_parent_closed_it(
    opener: Any, path: Path
) -> None:
    store = opener(memory="1MB")
    store["a"] = 1
    store.save()
    go, done = os.pipe(), os.pipe()

    def child() -> str:
        with tiered.open(path, "r", memory="4MB") as reader:
            first = reader["a"]
        with pytest.raises(tiered.LockedError):
            tiered.open(path, "w")
        os.write(done[1], b"1")
        os.read(go[0], 1)
        with tiered.open(path, "w", memory="2MB", helper=False) as own:
            own["child"] = os.getpid() > 0
            return f"{first} {dict(own)}"

    def close() -> None:
        os.read(done[0], 1)
        store.close()
        os.write(go[1], b"1")

    closer = threading.Thread(target=close)
    closer.start()
    try:
        assert in_fork(child) == "1 {'a': 1, 'child': True}"
    finally:
        closer.join()
        for end in (*go, *done):
            os.close(end)
    with opener(flag="w") as store:
        assert dict(store) == {"a": 1, "child": True}


@pytest.mark.parametrize("flag", ["c", "r"])
def test_a_fork_in_the_middle_of_another_threads_read_leaves_the_child_able_to_open_and_the_parent_its_slot(
    opener: Any, flag: str
) -> None:
    with opener() as store:
        fill(store)
    store = opener(flag=flag)
    reader = opener(flag="r")
    reading, go_on = threading.Event(), threading.Event()
    got: list[Any] = []

    def read() -> None:
        with store._engine.cold.read() as transaction:
            reading.set()
            go_on.wait(20)
            got.append(transaction.state().records)

    thread = threading.Thread(target=read)
    thread.start()
    reading.wait(10)

    def child() -> str:
        gc.collect()
        with tiered.open(store.path, "r") as own:
            return f"{len(own)} {reader['cold'] == 'c' * 100}"

    try:
        assert in_fork(child) == "3 True"
        assert store._engine.cold.readers() == 1
    finally:
        go_on.set()
        thread.join()
    assert got == [3]
    assert (store["cold"], store.check()) == ("c" * 100, [])


def test_a_fork_while_another_thread_closes_or_opens_does_not_hang_the_child(
    opener: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opener() as store:
        store["a"] = 1
    store = opener(flag="r")
    closing, go_on = threading.Event(), threading.Event()
    real = Engine.close

    def slowly(self: Engine) -> None:
        closing.set()
        go_on.wait(20)
        real(self)

    monkeypatch.setattr(Engine, "close", slowly)
    thread = threading.Thread(target=store.close)
    thread.start()
    closing.wait(10)

    def child() -> str:
        monkeypatch.undo()
        store.close()
        with tiered.open(path, "r") as own:
            return str(own["a"])

    try:
        assert in_fork(child) == "1"
    finally:
        go_on.set()
        thread.join()


def test_a_fork_in_the_middle_of_an_open_takes_no_lock_into_the_child(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, go_on = threading.Event(), threading.Event()
    real = sharing.open_engine

    def slowly(*arguments: Any) -> Any:
        engine = real(*arguments)
        del arguments
        lock = engine._lock_file
        assert lock is not None
        engine._lock_file = None  # As it is before there is an engine.
        opening.set()
        go_on.wait(20)
        engine._lock_file = lock
        return engine

    monkeypatch.setattr(sharing, "open_engine", slowly)
    thread = threading.Thread(target=opener)
    thread.start()
    opening.wait(10)

    def locks() -> str:
        names = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if int(name) > 2
                 and os.path.exists(f"/proc/self/fd/{name}")]  # fmt: skip
        return str([name for name in names if name.endswith(("LOCK", "APPLY"))])

    try:
        assert in_fork(locks) == "[]"
    finally:
        go_on.set()
        thread.join()


PREFORK = """
    import os, signal, sys, time, tiered
    before = sys.argv[2] == "before"
    store = tiered.open(sys.argv[1], memory="1MB")
    store.update((number, str(number) * 20) for number in range(1000))
    store.save()
    handle = tiered.open(sys.argv[1], "r") if before else None
    if before:
        assert handle[5] == "5" * 20
    children = []
    for child in range(4):
        pid = os.fork()
        if not pid:
            signal.alarm(120)
            handle = handle if before else tiered.open(sys.argv[1], "r")
            limit = time.monotonic() + 100
            served = 0
            while not served or handle.get("stop") is None:
                for number in range(0, 1000, 37):
                    assert handle[number].startswith(str(number))
                    served += 1
                assert time.monotonic() < limit
                time.sleep(0.005)
            assert served and len(handle) == 1501, len(handle)
            sys.exit(0)
        children.append(pid)
    for turn in range(5):
        store.update((1000 + turn * 100 + number, str(1000 + turn * 100 + number) * 9) for number in range(100))
        store.save()
    store.compact()
    store["stop"] = True
    store.save()
    print([os.waitpid(pid, 0)[1] for pid in children])
    print(store.check(), len(store), store._engine.cold.readers())
    if handle is not None:
        print(handle[1500 - 1][:4])
        handle.close()
    store.close()
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_prefork_server_whose_parent_writes_and_whose_children_read(path: Path, when: str) -> None:
    expected = "[0, 0, 0, 0]\n[] 1501 0" + ("\n1499" if when == "before" else "")
    assert succeed(PREFORK, path, when, timeout=150) == expected


def test_a_fork_leaves_the_parents_writing_and_its_handles_unharmed(opener: Any) -> None:
    store = opener(helper=True)
    readers = [opener(flag="r", helper=True) for _ in range(3)]
    fill(store)
    for turn in range(5):
        assert in_fork(lambda: str(len(readers[0]))) == "3"
        store["turn"] = turn
        store.save()
        del store["turn"]
        store.save()
    assert [reader["cold"] for reader in readers] == ["c" * 100] * 3
    assert (store.check(), store._engine.cold.readers()) == ([], 0)


# Many stores, many times


def resources() -> tuple[int, int, int]:
    """Threads, descriptors, children."""
    children = programs.children(os.getpid())
    return threading.active_count(), len(os.listdir("/proc/self/fd")), len(children)


def settled_memory() -> int:
    """Memory without what the C library has ready for later."""
    gc.collect()
    process.trim_heap()
    return process.rss_anon_bytes()


@pytest.fixture
def many_files() -> Iterator[int]:
    """How many files may be open at once: as many as this process may allow itself, 8,000 at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = 8000 if hard == resource.RLIM_INFINITY else min(8000, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    yield max(soft, allowed)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_stores_open_at_once_take_one_thread_and_one_helper_at_most_and_little_memory(
    quick_path: Path, many_files: int
) -> None:
    count = min(1000, many_files // 8)
    # In a process of its own that has closed none: else the C library uses freed memory again, as the README says.
    code = """
        import sys, tiered
        from tiered.process import rss_anon_bytes
        first = tiered.open(memory="1MB")
        before = rss_anon_bytes()
        stores = [tiered.open(f"{sys.argv[1]}/{number}", memory="1MB") for number in range(int(sys.argv[2]))]
        print((rss_anon_bytes() - before) // len(stores))
    """
    assert int(succeed(code, quick_path / "measured", count)) < 80_000, "the README says 60 KB"
    threads, descriptors, children = resources()
    stores = [tiered.open(quick_path / str(number), memory="1MB") for number in range(count)]
    try:
        assert resources()[0] == threads, "an idle store starts nothing"
        assert (resources()[1] - descriptors) / len(stores) <= 4
        for number, store in enumerate(stores[:100]):
            store["number"] = number
        for store in stores[:20]:
            store.save()
        assert resources()[0] <= threads + 1
        assert resources()[2] <= children + 1
        assert [store["number"] for store in stores[:100]] == list(range(100))
    finally:
        for store in stores:
            store.close()
    wait_until(lambda: resources() == (threads, descriptors, children))


def test_a_program_with_many_stores_reserves_less_address_space_for_the_later_ones(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    assert sum(map_bytes(nothing, count) for count in range(1000)) < 120 << 40
    assert map_bytes(nothing, 0) == 1 << 40
    assert map_bytes(nothing, 1000) == 8 << 30
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(10 << 30)
    assert map_bytes(large, 1000) >= 40 << 30


def test_more_files_than_the_limit_allows_are_a_named_error_and_the_stores_open_go_on(quick_path: Path) -> None:
    code = """
        import os, resource, sys, tiered
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        path = sys.argv[1] + "/one"
        with tiered.open(sys.argv[1] + "/other", memory="1MB", helper=False) as other:
            other["a"] = 1
            for flag in ("c", "w", "r"):
                failures = 0
                for more in range(20):
                    highest = max(map(int, os.listdir("/proc/self/fd")))
                    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + more, hard))
                    try:
                        store = tiered.open(path, flag, memory="1MB", helper=False)
                    except tiered.StoreError as error:
                        assert "too many open files" in str(error) and "ulimit" in str(error), error
                        failures += 1
                    else:
                        store.close()
                    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1024), hard))
                assert 2 <= failures < 15, (flag, failures)
            print(other["a"], other.check())
    """
    assert succeed(code, quick_path) == "1 []"


@pytest.mark.parametrize("free", range(4))
def test_a_program_that_has_too_many_files_open_is_told_so_and_goes_on_when_it_has_fewer(
    quick_path: Path, free: int
) -> None:
    code = """
        import logging, os, resource, sys, tiered, time
        logging.disable()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        store = tiered.open(sys.argv[1] + "/store", memory="1MB", helper=False, save="", durability="always")
        store["first"] = 1
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, hard))
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        for _ in range(int(sys.argv[2])):
            os.close(taken.pop())
        store["synced"] = 2  # Which names no file that is not open.
        acknowledged = 0
        for number in range(400):
            try:
                store[number] = "x" * 5000
                acknowledged += 1
            except tiered.StoreError as error:
                assert "oo many open files" in str(error), error
        for call in (store.save, store.compact):
            try:
                call()
            except tiered.StoreError as error:
                assert "oo many open files" in str(error), error
        assert acknowledged < 400 and store["first"] == 1
        try:
            store.stats()
        except tiered.StoreError as error:
            assert "oo many open files" in str(error), error
        for fd in taken:
            os.close(fd)
        for _ in range(100):  # What was put off is tried again within about a second.
            try:
                store["last"] = 3
                break
            except tiered.StoreError as error:
                assert "oo many open files" in str(error), error
            time.sleep(0.05)
        store.save()
        assert store.stats().state == "open"
        store.close()
        with tiered.open(sys.argv[1] + "/store", memory="1MB") as store:
            print(store["first"], store["synced"], store["last"], len(store) - acknowledged, store.check())
    """
    assert succeed(code, quick_path, free) == "1 2 3 3 []"


def test_opening_using_and_closing_leaks_no_memory_descriptor_thread_slot_or_process(quick_path: Path) -> None:
    path = quick_path / "store.tiered"

    def cycle(number: int) -> None:
        with tiered.open(path, memory="1MB") as store:
            store[number % 50] = [number] * 20
            assert store[number % 50] == [number] * 20
            with tiered.open(path, "r") as reader:
                assert len(reader) <= 50
        if not number % 10:
            with pickle.loads(pickled) as arrived:
                assert arrived[number % 50] == [number] * 20
        if not number % 100:
            with tiered.open(path) as store:
                store.save()

    with tiered.open(path) as store:
        store[0] = [0] * 20
        pickled = pickle.dumps(store)
    del store
    for number in range(max(60, CYCLES // 10)):
        cycle(number)
    before, memory, handles = resources(), settled_memory(), len(HANDLES._handles)
    for number in range(CYCLES):
        cycle(number)
    wait_until(lambda: resources() == before, 5, f"{before} became {resources()}")
    assert settled_memory() - memory < 2 << 20
    assert not HANDLES._shared
    assert not HANDLES._claims
    assert not HANDLES._left
    assert len(HANDLES._handles) == handles  # Of tests before this one.
    assert not MAINTENANCE._engines
    with tiered.open(path, "w") as store:
        assert store._engine.cold.readers() == 0
        assert len(store._engine.cold._env.readers().splitlines()) <= 4, "a slot of its own for each"
        assert store.check() == []


def test_a_close_that_is_refused_in_the_middle_of_an_operation_has_done_nothing(opener: Any) -> None:
    store = opener()
    temporary = tiered.open(memory="1MB", helper=False)
    for handle in (store, temporary):
        handle["k"] = 1
        with handle._engine.lock, pytest.raises(tiered.ReentrantError):
            handle.close()
        assert handle["k"] == 1
        handle["k"] = 2
    place = Path(temporary.path)
    with temporary._engine.lock, pytest.raises(tiered.ReentrantError):
        temporary._shared.end()
    assert place.is_dir()
    temporary.close()
    assert not place.exists()
    store.close()
    assert opener(flag="w")["k"] == 2
