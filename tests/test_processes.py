"""One writing process, readers beside it, forks, and the end of the interpreter."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import programs
import pytest
from programs import line_of, running, succeed, tell, wait_until

import tiered

OPERATIONS: dict[str, Callable[[tiered.Store[Any, Any]], Any]] = {
    "subscript, hot": lambda store: store["hot"],
    "subscript, cold": lambda store: store["cold"],
    "subscript, absent": lambda store: store["absent"],
    "get": lambda store: store.get("hot"),
    "contains": lambda store: "hot" in store,
    "get_many": lambda store: store.get_many(["hot", "cold"]),
    "get_many of nothing": lambda store: store.get_many([]),
    "len": len,
    "bool": bool,
    "iter": list,
    "reversed": lambda store: list(reversed(store)),
    "keys": lambda store: list(store.keys()),
    "values": lambda store: list(store.values(start="a")),
    "items": lambda store: list(store.items(prefix="h")),
    "equals": lambda store: store == {"hot": 1},
    "ttl": lambda store: store.ttl("hot"),
    "explain": lambda store: store.explain("hot"),
    "stats": lambda store: store.stats(),
    "memory_stats": lambda store: store.memory_stats(),
    "doctor": lambda store: store.doctor(),
    "reclaim": lambda store: store.reclaim(),
    "check": lambda store: store.check(),
    "set": lambda store: store.set("hot", 2),
    "assignment": lambda store: store.__setitem__("new", 2),
    "delete": lambda store: store.__delitem__("hot"),
    "pop": lambda store: store.pop("hot", None),
    "popitem": lambda store: store.popitem(),
    "setdefault": lambda store: store.setdefault("absent", 1),
    "incr": lambda store: store.incr("count"),
    "touch": lambda store: store.touch("hot", 5),
    "persist": lambda store: store.persist("hot"),
    "update": lambda store: store.update(hot=5),
    "set_many": lambda store: store.set_many({"hot": 5}),
    "delete_many": lambda store: store.delete_many(["hot"]),
    "clear": lambda store: store.clear(),
    "save": lambda store: store.save(),
    "sync": lambda store: store.sync(),
    "compact": lambda store: store.compact(),
    "config_set": lambda store: store.config_set("default_ttl", 5),
    "config_set memory": lambda store: store.config_set("memory", "2MB"),
}
"""Everything a user can call; "hot" and "count" are in memory, "cold" may be."""
READS = list(OPERATIONS)[: list(OPERATIONS).index("set")]
NO_WRITES = {"config_set memory", "compact", "save", "sync"}


def fill(store: tiered.Store[Any, Any]) -> None:
    store.set_many({"hot": 1, "cold": "c" * 100, "count": 1})
    store.save()


def outcome(call: Callable[[tiered.Store[Any, Any]], Any], store: tiered.Store[Any, Any]) -> str:
    try:
        call(store)
    except Exception as error:
        return type(error).__name__
    return "no error"


def in_fork(action: Callable[[], str]) -> str:
    """What `action` returns in a forked child that ends with `os._exit`."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            text = action()
        except BaseException as error:
            text = f"raised {error!r}"
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    assert os.waitpid(child, 0)[1] == 0, "the child hung or crashed"
    return text


# Forks


@pytest.mark.parametrize("helper", [False, True])
def test_every_operation_in_a_forked_child_is_a_forked_error_and_the_parent_is_unharmed(
    opener: Any, helper: bool
) -> None:
    store = opener(helper=helper)
    fill(store)
    store["dirty"] = "d"

    def try_all() -> str:
        return ", ".join(
            f"{name}: {got}"
            for name, call in OPERATIONS.items()
            if (got := outcome(call, store)) != tiered.ForkedError.__name__
        )

    assert in_fork(try_all) == ""
    assert dict(store) == {"hot": 1, "cold": "c" * 100, "count": 1, "dirty": "d"}
    store["after"] = 1
    store.save()
    assert store.check() == []


def test_a_write_in_a_forked_child_leaves_no_byte_in_the_parents_journal(opener: Any) -> None:
    store = opener()
    store["a"] = 1
    segment = next(Path(store.path).glob("journal-0*.log"))
    before = segment.read_bytes()
    assert in_fork(lambda: outcome(lambda child: child.set("child", 2), store)) == "ForkedError"
    assert segment.read_bytes() == before


def test_a_fork_while_another_thread_holds_the_lock_does_not_hang_the_child(opener: Any) -> None:
    store = opener()
    fill(store)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store._engine.lock:
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        got = in_fork(lambda: outcome(OPERATIONS["set"], store) + outcome(OPERATIONS["len"], store))
    finally:
        done.set()
        thread.join()
    assert got == "ForkedErrorForkedError"


def test_a_forked_child_can_read_with_a_handle_of_its_own_and_takes_nothing_from_the_parent(opener: Any) -> None:
    store = opener()
    store.update((number, "v" * 500) for number in range(4000))
    store.save()
    assert store[0] == store[3999]

    def let_go() -> str:
        gc.collect()
        with tiered.open(store.path, "r") as own:
            return f"{len(own)} {own.check()}"

    assert in_fork(let_go) == "4000 []"
    assert all(store[number] == "v" * 500 for number in range(4000))


def test_a_child_that_ends_as_a_normal_interpreter_does_harms_nothing(tmp_path: Path) -> None:
    code = """
        import gc, os, sys, tiered
        store = tiered.open(sys.argv[1], memory="1MB", helper=sys.argv[2] == "True")
        store.update((number, "v" * 500) for number in range(4000))
        store.save()
        store[0]
        store["dirty"] = 1
        for way in ("exit", "del", "close", "raise"):
            child = os.fork()
            if not child:
                if way == "del":
                    del store
                    gc.collect()
                elif way == "close":
                    store.close()
                sys.exit(7)
            assert os.waitpid(child, 0)[1] == 7 << 8
            assert all(store[number] == "v" * 500 for number in range(4000)), way
            store[way] = way
        assert store.check() == []
        store.close()
        with tiered.open(sys.argv[1], "w") as store:
            print(len(store), store["dirty"], store["del"], store.check())
    """
    for helper in (False, True):
        assert succeed(code, tmp_path / f"{helper}", helper) == "4005 1 del []"


def test_a_pool_of_forked_processes_gets_forked_errors_and_can_read_with_handles_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "store.tiered"
    code = """
        import multiprocessing, sys, tiered
        store = tiered.open(sys.argv[1], memory="1MB")
        store.update((number, number * 7) for number in range(1000))
        store.save()

        def use(number):
            try:
                return store[number]
            except tiered.ForkedError:
                with tiered.open(sys.argv[1], "r") as reader:
                    return reader[number]

        if __name__ == "__main__":
            with multiprocessing.get_context("fork").Pool(3) as pool:
                print(pool.map(use, range(100)) == [number * 7 for number in range(100)])
            store["after"] = 1
            print(store.check(), len(store))
            store.close()
    """
    assert succeed(code, path) == "True\n[] 1001"


@pytest.mark.parametrize("way", ["os.fork()", "fork and exec", "multiprocessing"])
def test_a_killed_writer_frees_the_store_at_once_though_a_child_of_it_lives_on(tmp_path: Path, way: str) -> None:
    path = tmp_path / "store.tiered"
    code = """
        import multiprocessing, os, subprocess, sys, time, tiered
        store = tiered.open(sys.argv[1], memory="1MB")
        store.update((number, "v" * 500) for number in range(5000))
        store.save()
        store["last"] = 1
        if sys.argv[2] == "os.fork()":
            child = os.fork()
            if not child:
                time.sleep(60)
        elif sys.argv[2] == "multiprocessing":
            process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            process.start()
            child = process.pid
        else:
            child = subprocess.Popen(["sleep", "60"], close_fds=False).pid
        print(child, store._engine.checkpointer.process.pid, flush=True)
        time.sleep(60)
    """
    with running(code, path, way) as program:
        child, helper = map(int, line_of(program).split())
        program.kill()
        try:
            # The child sleeps three times as long.
            with tiered.open(path, "w", memory="1MB", lock_timeout=20) as store:
                assert (len(store), store["last"], store.check()) == (5001, 1, [])
            wait_until(lambda: not programs.alive(helper), 10, "the helper lives on")
            assert programs.alive(child)
        finally:
            os.kill(child, signal.SIGKILL)


# One writer

HOLD = """
    import sys, tiered
    store = tiered.open(sys.argv[1], memory="1MB")
    store["a"] = 1
    print("open", flush=True)
    sys.stdin.readline()
    store.close()
    print("closed", flush=True)
    sys.stdin.readline()
"""


def test_a_second_writing_process_is_told_host_pid_command_and_since_when(tmp_path: Path) -> None:
    path = tmp_path / "store.tiered"
    with running(HOLD, path) as holder:
        assert line_of(holder) == "open"
        for flag in "cwn":
            with pytest.raises(tiered.LockedError) as caught:
                tiered.open(path, flag)
        text = str(caught.value)
        assert f"process {holder.pid} on {socket.gethostname()} ({sys.executable} -W error -c" in text
        assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", text)
        tell(holder)
        assert line_of(holder) == "closed"
        with tiered.open(path, "w") as store:
            assert store["a"] == 1


def test_lock_timeout_waits_for_the_other_writer_and_no_longer_than_it_says(tmp_path: Path) -> None:
    path = tmp_path / "store.tiered"
    with running(HOLD, path) as holder:
        assert line_of(holder) == "open"
        began = time.monotonic()
        with pytest.raises(tiered.LockedError):
            tiered.open(path, lock_timeout=0.3)
        assert 0.3 <= time.monotonic() - began < 10
        timer = threading.Timer(0.3, tell, (holder,))
        timer.start()
        with tiered.open(path, lock_timeout=20) as store:
            assert store["a"] == 1
        timer.join()


# Readers beside a writer

READ = """
    import sys, tiered
    store = tiered.open(sys.argv[1], "r", memory="1MB")
    for line in sys.stdin:
        print(eval(line), flush=True)
    store.close()
"""


def answer(reader: subprocess.Popen[str], expression: str) -> str:
    tell(reader, expression)
    return line_of(reader)


@pytest.fixture
def readers(tmp_path: Path) -> Iterator[Callable[[int], list[subprocess.Popen[str]]]]:
    """Start processes that read `store.tiered` and answer expressions."""
    started = []

    def start(count: int) -> list[subprocess.Popen[str]]:
        for _ in range(count):
            context = running(READ, tmp_path / "store.tiered")
            started.append((context, context.__enter__()))
        return [process for _, process in started]

    yield start
    for context, process in started:
        assert process.stdin is not None
        process.stdin.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(10) == 0
        context.__exit__(None, None, None)


def test_reading_processes_follow_checkpoints_within_a_second_hot_values_included(opener: Any, readers: Any) -> None:
    store = opener()
    store.set_many({"kept": "k", "changed": "old", "deleted": "d", "expiring": "e"})
    store.save()
    processes = readers(3)
    for process in processes:
        assert answer(process, "[store.get(key) for key in sorted(store)]") == "['old', 'd', 'e', 'k']"
    store["changed"] = "new"
    del store["deleted"]
    store["added"] = [1, 2]
    for process in processes:
        assert answer(process, "store['changed']") in ("old", "new"), "the journal is followed as well, a little later"
    store.touch("expiring", 0.001)
    store.save()
    for process in processes:
        wait_until(
            lambda process=process: answer(process, "store['changed']") != "old", 10, "the reader does not follow"
        )
        assert answer(process, "dict(store)") == "{'added': [1, 2], 'changed': 'new', 'kept': 'k'}"
        assert answer(process, "(len(store), store.check(), store.stats().state)") == "(3, [], 'read-only')"


def test_reading_processes_never_see_half_a_checkpoint(opener: Any, readers: Any) -> None:
    store = opener(helper=True, save="0 1")
    store.set_many((number, 0) for number in range(50))
    store.save()
    processes = readers(2)
    stop = threading.Event()

    def write() -> None:
        version = 0
        while not stop.is_set():
            version += 1
            store.set_many((number, version) for number in range(50))
            time.sleep(0.002)  # Three processes on two processors: who never pauses leaves the readers no time to look.

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = set()
        for _ in range(40):
            for process in processes:
                values = answer(process, "set(store.values())")
                assert re.fullmatch(r"\{\d+\}", values), values
                seen.add(values)
                time.sleep(0.002)
    finally:
        stop.set()
        writer.join()
    assert len(seen) > 3


def test_reading_processes_follow_a_compaction_to_the_new_file(opener: Any, readers: Any) -> None:
    store = opener()
    store.update((number, "v" * 300) for number in range(2000))
    store.save()
    processes = readers(2)
    for process in processes:
        assert answer(process, "len(store)") == "2000"
    for name in ("one", "two"):
        store.compact()
        store[name] = name
        store.save()
        for process in processes:
            wait_until(lambda process=process, name=name: answer(process, f"store.get({name!r})") == name, 3, "lost")
            assert answer(process, "store[1999] + str(store.check())") == "v" * 300 + "[]"


def test_a_reader_that_looks_between_the_two_steps_of_a_compaction_follows_it_later(
    opener: Any, readers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiered import files

    store = opener()
    store["a"] = 1
    store.save()
    (process,) = readers(1)
    assert answer(process, "store['a']") == "1"
    real = files.write_current

    def slowly(directory: Path, number: int) -> None:
        wait_until(lambda: answer(process, "store._engine.state.moved") == "True")
        real(directory, number)

    monkeypatch.setattr(files, "write_current", slowly)
    store.compact()
    store["a"] = 2
    store.save()
    wait_until(lambda: answer(process, "store['a']") == "2", 3, "the reader stayed with the old file")


def test_writing_through_a_reader_is_a_read_only_error_and_reading_works(opener: Any) -> None:
    with opener() as store:
        fill(store)
    reader = opener(flag="r")
    for name, call in OPERATIONS.items():
        if name in READS:
            expected = "KeyError" if name == "subscript, absent" else "no error"
        else:
            expected = "no error" if name == "config_set memory" else "ReadOnlyError"
        assert (name, outcome(call, reader)) == (name, expected)


def test_opening_for_reading_waits_for_nobody_and_writes_nothing(tmp_path: Path, opener: Any) -> None:
    with opener() as store:
        fill(store)

    def picture() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock.mdb"
        }

    before = picture()
    with opener(flag="r") as reader:
        assert dict(reader) == {"hot": 1, "cold": "c" * 100, "count": 1}
    assert picture() == before


# Media and permissions


def test_a_read_only_medium_can_be_read_and_refuses_writers_by_name(tmp_path: Path, opener: Any) -> None:
    with opener() as store:
        fill(store)
    path = tmp_path / "medium"
    path.mkdir()
    if subprocess.run(["mount", "--bind", tmp_path, path], capture_output=True, check=False).returncode:
        pytest.skip("may not mount here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)
        with tiered.open(path / "store.tiered", "r") as reader:
            assert (reader["hot"], len(reader), reader.check()) == (1, 3, [])
        for flag in "cwn":
            with pytest.raises(tiered.ReadOnlyError, match="read-only"):
                tiered.open(path / "store.tiered", flag)
        with pytest.raises(tiered.ReadOnlyError):
            tiered.open(path / "other.tiered")
    finally:
        gc.collect()
        subprocess.run(["umount", path], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("mode", ["0o700", "0o755"])
def test_a_store_of_another_user_is_a_named_error(opener: Any, tmp_path: Path, mode: str) -> None:
    with opener() as store:
        fill(store)
    code = """
        import encodings.ascii, fcntl, json, logging, os, random, sys, tiered
        tiered.open  # Whoever it becomes may not read the modules.
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        for flag in "rwc":
            try:
                tiered.open(sys.argv[1], flag).close()
            except tiered.ReadOnlyError as error:
                print(flag, "permission" in str(error).lower())
    """
    for path in [tmp_path / "store.tiered", *(tmp_path / "store.tiered").rglob("*")]:
        path.chmod(int(mode, 8))
    private = [parent for parent in tmp_path.parents if parent.stat().st_mode & 0o77 == 0]
    modes = [(parent, parent.stat().st_mode) for parent in [tmp_path, *private]]
    for parent, _ in modes:
        parent.chmod(0o755)
    try:
        assert succeed(code, tmp_path / "store.tiered") == "r True\nw True\nc True"
    finally:
        for parent, before in modes:
            parent.chmod(before)


# The end of the interpreter

ENDING = """
    import os, signal, sys, threading, time, tiered
    store = tiered.open(sys.argv[1], memory="1MB", helper=sys.argv[3] == "True")
    store.update((number, "v" * 200) for number in range(int(sys.argv[4])))
    way = sys.argv[2]
    if way == "exit":
        sys.exit(3)
    if way == "error":
        raise RuntimeError("of the program itself")
    if way == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    if way == "thread":
        def later():
            time.sleep(0.2)
            store["later"] = 1
        threading.Thread(target=later).start()
"""


@pytest.mark.parametrize("helper", [False, True])
@pytest.mark.parametrize("way", ["end", "exit", "error", "interrupt", "thread"])
def test_a_program_that_ends_without_closing_loses_nothing_and_says_nothing(
    tmp_path: Path, way: str, helper: bool
) -> None:
    path = tmp_path / "store.tiered"
    done = programs.run(ENDING, path, way, helper, 6000)
    codes = {"end": 0, "exit": 3, "error": 1, "interrupt": -signal.SIGINT, "thread": 0}
    assert done.returncode == codes[way], done.stderr
    assert "tiered" not in done.stderr.replace(str(path), "")
    assert done.stderr.count("Traceback") == (way in ("error", "interrupt"))
    assert not list(path.glob("journal-*")), "the last checkpoint was not made"
    with tiered.open(path, "w") as store:
        assert len(store) == 6000 + (way == "thread")
        assert (store[5999], store.check()) == ("v" * 200, [])


def test_daemon_threads_that_write_until_the_end_lose_nothing_acknowledged(tmp_path: Path) -> None:
    path, notes = tmp_path / "store.tiered", tmp_path / "notes"
    code = """
        import os, sys, threading, time, tiered
        store = tiered.open(sys.argv[1], memory="1MB", helper=sys.argv[3] == "True")
        notes = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        def write(thread):
            number = 0
            try:
                while True:
                    store[thread, number] = "v" * 100
                    os.write(notes, b"%d %d\\n" % (thread, number))
                    number += 1
            except tiered.ClosedError:
                pass
        for thread in range(4):
            threading.Thread(target=write, args=(thread,), daemon=True).start()
        time.sleep(0.3)
    """
    for helper in (False, True):
        for _ in range(3):
            notes.unlink(missing_ok=True)
            succeed(code, path, notes, helper)
            with tiered.open(path, "w") as store:
                acknowledged = {tuple(map(int, line.split())) for line in notes.read_text().splitlines()}
                assert acknowledged <= set(store.keys())
                assert len(acknowledged) > 100
                assert store.check() == []
                store.clear()


def test_a_store_collected_unclosed_warns_and_loses_nothing(tmp_path: Path) -> None:
    for helper in (False, True):
        store = tiered.open(tmp_path / str(helper), memory="1MB", helper=helper)
        store["a"] = 1
        holder = [store]
        del store
        with pytest.warns(ResourceWarning, match="unclosed store"):
            holder.clear()
        with tiered.open(tmp_path / str(helper), "w") as store:
            assert dict(store) == {"a": 1}
        del store


def test_threads_that_read_while_the_store_is_closed_get_values_or_a_closed_error(opener: Any) -> None:
    with opener() as store:
        store.update((number, str(number) * 50) for number in range(8000))
    for _ in range(5):
        store = opener()
        got: set[str] = set()

        def read(store: Any = store, got: set[str] = got) -> None:
            number = 0
            try:
                while True:
                    number = (number + 7919) % 8000
                    assert store[number] == str(number) * 50
                    assert len(store.get_many(range(number, min(number + 50, 8000)))) == min(50, 8000 - number)
                    assert len(list(store.keys(start=number, stop=number + 100))) == min(100, 8000 - number)
            except Exception as error:
                got.add(type(error).__name__)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        store.close()
        for thread in threads:
            thread.join()
        assert got == {"ClosedError"}


def test_a_thread_that_waits_for_a_save_or_compaction_is_told_when_the_store_is_closed(opener: Any) -> None:
    store = opener(helper=True)
    store.update((number, os.urandom(150).hex()) for number in range(20_000))
    got: list[str] = []
    threads = [
        threading.Thread(target=lambda name=name: got.append(outcome(OPERATIONS[name], store)))
        for name in ("compact", "save", "compact")
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    store.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "waits for ever"
    assert set(got) <= {"no error", "ClosedError"}
