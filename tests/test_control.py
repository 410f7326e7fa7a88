"""What other programs may ask of the one that has a store open, and what becomes of questions that nobody answers."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from programs import line_of, running, tell, wait_until

import tiered
from tiered import control, files, keys
from tiered.errors import LockedError, ReadOnlyError, StoreError

WRITER = """
    import sys, tiered
    store = tiered.open(sys.argv[1], save="")
    if sys.argv[2] == "writes":
        store["a"] = 1
    print("ready", flush=True)
    sys.stdin.readline()
    store.close()
    print("closed", flush=True)
    sys.stdin.readline()
    """


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with tiered.open(tmp_path / "s", save="", helper=False) as opened:
        opened["a"] = 1
        yield opened


def questions(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith(files.CONTROL)]


def test_a_question_is_answered_by_the_program_that_has_the_store_open_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with running(WRITER, path, "writes") as writer:
        line_of(writer)
        assert control.holder(path).pid == writer.pid
        found = control.ask(path, "stats")
        assert found["pid"] == writer.pid
        assert (found["stats"]["dirty_records"], found["memory"]["budget_bytes"]) == (1, 64 << 20)
        control.ask(path, "save")
        assert control.ask(path, "stats")["stats"]["dirty_records"] == 0
        assert control.ask(path, "explain", key=keys.encode("a").hex())["tiers"] == ["hot", "cold"]
        assert control.ask(path, "explain", key=keys.encode("b").hex()) is None
        assert control.ask(path, "config_set", name="memory", value="32mb") == {"memory": 32 << 20}
        assert control.ask(path, "reclaim")["reclaimed_bytes"] >= 0
        assert control.ask(path, "compact")["disk_bytes"] > 0
        assert control.ask(path, "doctor") == []
        assert questions(path) == []
        tell(writer)
        assert line_of(writer) == "closed"
        assert control.holder(path) is None
        with pytest.raises(StoreError, match="no program has it open"):
            control.ask(path, "stats")


def test_the_hits_of_all_handles_are_counted(store: Any) -> None:
    with tiered.open(store.path, "r") as other:
        assert other["a"] == store["a"] == 1
        assert control.ask(Path(store.path), "stats")["stats"]["hits"] == 2


def test_an_error_of_what_was_asked_reaches_the_asker_and_harms_nothing(store: Any) -> None:
    path = Path(store.path)
    with pytest.raises(StoreError, match="no setting 'nonsense'"):
        control.ask(path, "config_set", name="nonsense", value="1")
    for what, arguments in (("nonsense", {}), ("explain", {"key": "zz"}), ("save", {"much": 1})):
        with pytest.raises(StoreError, match="the question failed"):
            control.ask(path, what, **arguments)
    assert control.ask(path, "stats")["stats"]["state"] == "open"


def test_a_holder_whose_lock_the_system_passes_over_is_still_the_holder(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, looks = control._is_told, list[bool]()

    def passed_over(pid: int, inode: int) -> bool:
        looks.append(real(pid, inode))
        return looks[-1] and len(looks) % 4 == 0

    monkeypatch.setattr(control, "_is_told", passed_over)
    for _ in range(3):
        looks.clear()
        found = control.holder(Path(store.path))
        assert found is not None
        assert found.pid == os.getpid()
        assert looks == [True] * 4
    store.close()
    assert control.holder(Path(store.path)) is None


def test_a_program_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "TAKEN_SECONDS_MAX", 0.2)
    path = tmp_path / "s"
    with running(WRITER, path, "idles") as writer:
        line_of(writer)
        with pytest.raises(LockedError, match=f"process {writer.pid} on .*, which does not answer"):
            control.ask(path, "stats")
        assert questions(path) == []


def test_a_writer_that_is_killed_is_no_longer_the_holder_and_leaves_its_asker_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    with running(WRITER, path, "idles") as writer:
        line_of(writer)
        who = control.holder(path)
        writer.kill()
        writer.wait()
        assert control.holder(path) is None
        monkeypatch.setattr(control, "holder", lambda directory, found=[who, None]: found.pop(0))
        with pytest.raises(StoreError, match="has ended, or closed the store, before it answered"):
            control.ask(path, "stats")
        assert questions(path) == []


def test_the_lock_tells_who_holds_the_store_not_what_is_written_in_it(tmp_path: Path) -> None:
    with tiered.open(tmp_path / "s"):
        assert control.holder(tmp_path / "s").pid == os.getpid()
    assert json.loads((tmp_path / "s" / files.LOCK).read_text())["pid"] == os.getpid()
    assert control.holder(tmp_path / "s") is None
    assert control.holder(tmp_path / "missing") is None


def test_looking_for_the_holder_does_not_stand_in_the_way_of_who_opens(tmp_path: Path) -> None:
    path = tmp_path / "s"
    tiered.open(path).close()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            control.holder(path)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(30):
            tiered.open(path, "w").close()
    finally:
        ended.set()
        thread.join()


def test_what_a_killed_asker_left_is_removed_and_what_is_fresh_is_not(store: Any) -> None:
    path = Path(store.path)
    old, fresh = path / "control-00000000000000aa", path / "control-00000000000000bb"
    fresh.write_text("")
    old.write_text('{"ask": "save"}\n')
    os.utime(old, (time.time() - 60,) * 2)
    wait_until(lambda: not old.exists())
    assert fresh.exists()
    assert store.stats().dirty_records == 1
    os.utime(fresh, (time.time() - 60,) * 2)
    wait_until(lambda: not fresh.exists())


def test_a_question_is_for_the_owner_of_the_store_only(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[os.stat_result] = []
    real = control._answer

    def looked_at(directory: Path, who: Any, fd: int, start: int) -> Any:
        made.append(os.fstat(fd))
        return real(directory, who, fd, start)

    monkeypatch.setattr(control, "_answer", looked_at)
    control.ask(Path(store.path), "stats")
    assert stat.S_IMODE(made[0].st_mode) == 0o600


def test_what_no_asker_makes_is_not_taken_for_a_question(store: Any, tmp_path: Path) -> None:
    import fcntl

    victim = tmp_path / "victim"
    victim.write_text('{"ask": "save"}\n')
    link, pipe = (Path(store.path) / f"control-00000000000000{end}" for end in ("cc", "dd"))
    os.mkfifo(pipe)
    with open(victim) as locked, open(os.open(pipe, os.O_RDWR)) as also:
        fcntl.flock(locked, fcntl.LOCK_EX)
        fcntl.flock(also, fcntl.LOCK_EX)
        link.symlink_to(victim)
        assert control._take(store._engine, link)
        assert control._take(store._engine, pipe)
        assert control.ask(Path(store.path), "stats")["stats"]["dirty_records"] == 1
    assert victim.read_text() == '{"ask": "save"}\n'


def test_a_path_longer_than_a_socket_could_have_is_as_good_as_any(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120) / ("y" * 120)
    with tiered.open(path, helper=False) as store:
        store["a"] = 1
        assert control.ask(path, "stats")["stats"]["records"] == 1


def test_where_no_file_can_be_made_nothing_is_asked(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise OSError(30, "Read-only file system")
        return real(path, flags, mode)

    monkeypatch.setattr(control.os, "open", refuse)
    with pytest.raises(ReadOnlyError, match="cannot ask process"):
        control.ask(Path(store.path), "stats")


def test_a_forked_child_answers_nothing_in_the_name_of_its_parent(store: Any) -> None:
    path = Path(store.path)
    child = os.fork()
    if not child:
        try:
            control._look_at = 0.0
            (path / "control-00000000000000ee").write_text('{"ask": "stats"}\n')
            os.utime(path / "control-00000000000000ee", (1, 1))
            control.attend()
            os._exit(0 if (path / "control-00000000000000ee").exists() else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_store_with_a_question_in_it_is_a_store(tmp_path: Path) -> None:
    tiered.open(tmp_path / "s").close()
    (tmp_path / "s" / "control-00000000000000aa").write_text("")
    with tiered.open(tmp_path / "s", "n") as store:
        store["a"] = 1
    assert tiered.verify(tmp_path / "s") == []
    (tmp_path / "s" / files.CURRENT).unlink()
    with pytest.raises(tiered.CorruptionError):
        tiered.open(tmp_path / "s")


def test_while_nobody_asks_a_directory_is_not_even_listed(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = store._engine
    os.utime(store.path, (1, 1))
    control._look(engine)
    listed: list[Any] = []
    monkeypatch.setattr(control.os, "listdir", lambda path: listed.append(path) or [])
    for _ in range(3):
        control._look(engine)
    assert listed == []
