"""The helper process: killed, signalled, impossible to start, shared; and the same job driven inline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import programs
import pytest
from conftest import without_background
from programs import alive, helper_pid, line_of, running, succeed, tell, wait_until

import tiered
from tiered import checkpoint, files, helper, maintenance
from tiered.checkpointer import HelperCheckpointer
from tiered.engine import Engine
from tiered.helper import Job
from tiered.maintenance import MAINTENANCE


@pytest.fixture
def helped(opener: Any) -> tiered.Store[Any, Any]:
    """A store whose helper process runs."""
    store: tiered.Store[Any, Any] = opener(helper=True)
    store["first"] = 1
    store.save()
    return store


def test_a_helper_that_is_killed_is_started_again_and_nothing_is_lost(helped: Any) -> None:
    first = helper_pid(helped)
    os.kill(first, signal.SIGKILL)
    helped.update((number, "v" * 100) for number in range(3000))
    helped.save()
    assert helper_pid(helped) != first
    assert (len(helped), helped.stats().applied_sequence) == (3001, helped.stats().last_sequence)
    assert helped.stats().checkpointer == "helper"


def test_a_helper_killed_while_a_save_waits_for_it_does_not_hang_the_save(helped: Any) -> None:
    pid = helper_pid(helped)
    os.kill(pid, signal.SIGSTOP)
    helped["a"] = 1
    timer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
    timer.start()
    helped.save()
    timer.join()
    assert helped.explain("a").tiers[-1] == "cold"


def test_helpers_that_keep_dying_poison_the_store_reads_go_on_and_reopening_recovers(
    opener: Any, helped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    helped.set_many({"dirty": [1, 2], "other": "o" * 1000})
    monkeypatch.setattr(helper, "_CODE", "raise SystemExit(1)")
    os.kill(helper_pid(helped), signal.SIGKILL)
    with pytest.raises(tiered.PoisonedError, match="helper process died"):
        helped.save()
    for write in (lambda: helped.set("x", 1), lambda: helped.pop("first"), helped.clear, helped.save, helped.compact):
        with pytest.raises(tiered.PoisonedError, match="open it again"):
            write()
    expected = {"first": 1, "dirty": [1, 2], "other": "o" * 1000}
    assert (dict(helped), helped["dirty"], len(helped), helped.check()) == (expected, [1, 2], 3, [])
    assert helped.stats().state == "poisoned"
    with pytest.raises(tiered.PoisonedError, match="journal keeps"):
        helped.close()
    monkeypatch.undo()
    again = opener(flag="w", helper=True)
    assert dict(again) == expected
    again["x"] = 1
    again.save()


def test_a_failing_checkpoint_poisons_the_store_with_its_cause(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(*_: object) -> int:
        raise OSError(5, "Input/output error")

    store = opener()
    store["kept"] = 1
    monkeypatch.setattr(checkpoint.Applier, "apply", apply)
    with pytest.raises(tiered.PoisonedError, match="Input/output error"):
        store.save()
    assert store["kept"] == 1
    monkeypatch.undo()
    with pytest.raises(tiered.PoisonedError):
        store.close()
    assert opener(flag="w")["kept"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_helper_ignores_what_ends_programs(helped: Any, number: signal.Signals) -> None:
    pid = helper_pid(helped)
    for _ in range(5):
        os.kill(pid, number)
        helped["a"] = int(number)
        helped.save()
    assert helper_pid(helped) == pid


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system has no batch processes")
def test_the_helper_interrupts_nobody_when_it_is_woken_and_has_its_share_of_the_processors(helped: Any) -> None:
    pid = helper_pid(helped)
    assert os.sched_getscheduler(pid) == os.SCHED_BATCH
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0)


def test_control_c_to_the_whole_group_does_not_reach_the_helper(tmp_path: Path) -> None:
    code = """
        import os, signal, sys, tiered
        store = tiered.open(sys.argv[1], memory="1MB")
        store["a"] = 1
        store.save()
        pid = store._engine.checkpointer.process.pid
        print(os.getpgid(pid) != os.getpgid(0) and os.getsid(pid) != os.getsid(0))
        try:
            os.killpg(0, signal.SIGINT)
            signal.pause()
        except KeyboardInterrupt:
            store["b"] = 2
            store.save()
        print(store._engine.checkpointer.process.pid == pid)
        store.close()
    """
    with running(code, tmp_path / "store.tiered", start_new_session=True) as program:
        assert [line_of(program), line_of(program)] == ["True", "True"]
        assert program.wait(20) == 0


@pytest.mark.parametrize("obstacle", ["no executable", "not startable", "no process allowed"])
def test_where_no_helper_can_start_checkpoints_are_made_inline_and_stats_say_so(
    opener: Any, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if obstacle == "no executable":
        monkeypatch.setattr(sys, "executable", "")
    elif obstacle == "not startable":
        monkeypatch.setattr(maintenance, "can_start", lambda: False)
    else:
        monkeypatch.setattr(subprocess, "Popen", refuse)
    store = opener(helper=True)
    store.update((number, "v" * 300) for number in range(5000))
    store.save()
    assert store.stats().checkpointer == "inline"
    assert (len(store), store.check()) == (5000, [])


def test_an_executable_that_is_no_python_does_not_lose_anything(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    store = opener(helper=True)
    store["a"] = 1
    with pytest.raises(tiered.PoisonedError, match="helper process died"):
        store.save()
    assert store["a"] == 1
    with pytest.raises(tiered.PoisonedError):
        store.close()
    monkeypatch.undo()
    assert opener()["a"] == 1


def test_the_helper_ends_with_the_last_store(opener: Any) -> None:
    one, two = opener("one", helper=True), opener("two", helper=True)
    for store in (one, two):
        store["a"] = 1
        store.save()
    pid = helper_pid(one)
    assert helper_pid(two) == pid
    one.close()
    assert alive(pid)
    two.close()
    assert not alive(pid)


def test_fifty_stores_share_one_helper_and_one_thread(opener: Any) -> None:
    before = threading.active_count()
    stores = [opener(f"{number}", helper=True) for number in range(50)]
    for store in stores:
        store.update((number, store.path) for number in range(20))
    for store in stores:
        store.save()
    assert len({helper_pid(store) for store in stores}) == 1
    assert threading.active_count() == before + 1
    assert len(programs.children(os.getpid())) == 1
    os.kill(helper_pid(stores[0]), signal.SIGKILL)
    for store in stores:
        store["again"] = 1
        store.save()
    assert len({helper_pid(store) for store in stores}) == 1


def test_a_store_that_is_only_opened_starts_nothing(opener: Any) -> None:
    before = threading.active_count()
    store = opener(helper=True)
    assert store.get("absent") is None
    assert (threading.active_count(), programs.children(os.getpid())) == (before, [])


def test_what_the_helper_prints_never_reaches_the_programs_output(tmp_path: Path) -> None:
    code = """
        import os, sys, tiered
        from tiered import helper
        noise = "import os, sys; print('noise', file=sys.stderr); os.write(2, b'noise'); "
        noise += "import tiered.checkpoint as c; apply = c.Applier.apply; "
        noise += "c.Applier.apply = lambda *x: (print('noise', flush=True), os.write(1, b'noise'), apply(*x))[2]; "
        helper._CODE = helper._CODE.replace("helper.serve", noise + "helper.serve")
        with tiered.open(sys.argv[1], memory="1MB") as store:
            store.update((number, "v" * 300) for number in range(5000))
            store.save()
            assert store.stats().checkpointer == "helper"
        print("done")
    """
    assert succeed(code, tmp_path / "store.tiered") == "done"


def test_the_helper_ends_when_its_program_is_killed(tmp_path: Path) -> None:
    code = """
        import sys, time, tiered
        store = tiered.open(sys.argv[1], memory="1MB")
        store["a"] = 1
        store.save()
        print(store._engine.checkpointer.process.pid, flush=True)
        time.sleep(60)
    """
    with running(code, tmp_path / "store.tiered") as program:
        pid = int(line_of(program))
        program.kill()
        wait_until(lambda: not alive(pid), 2, "the helper lives on")


def test_the_helper_is_isolated_from_the_programs_environment(tmp_path: Path) -> None:
    (tmp_path / "msgpack.py").write_text("raise SystemExit('the wrong one')")
    code = """
        import os, sys, tiered
        tiered.open  # Imported before there is another msgpack.
        os.chdir(sys.argv[2])
        os.environ["PYTHONPATH"] = sys.argv[2]
        os.environ["PYTHONSTARTUP"] = os.environ["PYTHONWARNINGS"] = "error"
        with tiered.open(sys.argv[1], memory="1MB") as store:
            store["a"] = 1
            store.save()
            print(store.stats().checkpointer)
    """
    assert succeed(code, tmp_path / "store.tiered", tmp_path) == "helper"


def test_a_segment_submitted_after_a_failed_one_waits_for_it(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, full = checkpoint.Applier.apply, [True]

    def apply(self: Any, *arguments: Any) -> int:
        if full[0]:
            raise tiered.StoreFullError(self.directory, "the disk is full")
        return real(self, *arguments)

    monkeypatch.setattr(checkpoint.Applier, "apply", apply)
    store = opener()
    store[0] = 0
    with pytest.raises(tiered.StoreFullError):
        store.save()
    full[0] = False
    for number in (1, 2):
        store[number] = number
        with store._engine.lock:
            store._engine.rotate()
        store._engine.checkpointer.run()
        assert store.stats().applied_sequence == 0
    store.save()
    assert (store.stats().state, dict(store)) == ("open", {0: 0, 1: 1, 2: 2})
    assert not list(Path(store.path).glob("journal-0*.log"))


def test_threads_that_wait_for_the_helper_find_room_whoever_goes_on_first(helped: Any) -> None:
    pid = helper_pid(helped)
    errors: list[BaseException] = []
    stop = threading.Event()

    def write(thread: int) -> None:
        try:
            while not stop.is_set():
                helped[thread, "small"] = "s"
                helped[thread, "large"] = "l" * (90_000 + 10_000 * thread)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.05)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert helped.stats().writer_waits > 0


def test_a_job_goes_on_from_what_is_on_the_disk_after_a_failure(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opener(save="")
    store.update((number, "v" * 50) for number in range(100))
    with store._engine.lock:
        segment = store._engine._active.segment
        store._engine.journal.close_segment(store._engine.clock.now_ms())
    job = Job(7, Path(store.path), "none", store._engine.cold)
    monkeypatch.setattr(files, "segment_path", lambda directory, number: Path("/nonexistent"))
    job.submit(segment.number, segment.last)
    event = job.step()
    assert isinstance(event, dict)
    assert (event["event"], event["error"]) == ("failed", "FileNotFoundError")
    monkeypatch.undo()
    while (event := job.step()) is True:
        pass
    assert event is False, "held until it is submitted again"
    job.submit(segment.number, segment.last)
    event = job.step()
    assert isinstance(event, dict)
    assert (event["event"], event["until"], event["records"]) == ("applied", segment.last, 100)
    job.finish()
    closed = job.step()
    assert isinstance(closed, dict)
    assert closed["event"] == "closed"
    store._engine.poison("the test took its segment")
    with pytest.raises(tiered.PoisonedError):
        store.close()
    assert len(opener(flag="w")) == 100


def test_messages_to_a_dead_helper_are_not_an_error(helped: Any) -> None:
    process = MAINTENANCE.process()
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not alive(process.pid))
    for number in range(3):
        helped[number] = number
        helped.save()


def test_a_program_that_told_nothing_to_its_helper_can_be_asked_to_go_on(tmp_path: Path) -> None:
    code = """
        import sys, tiered
        store = tiered.open(sys.argv[1], memory="1MB", save="")
        store["a"] = 1
        print("open", flush=True)
        sys.stdin.readline()
        store.close()
        print("closed", flush=True)
    """
    with running(code, tmp_path / "store.tiered") as program:
        assert line_of(program) == "open"
        assert programs.children(program.pid) == []
        tell(program)
        assert line_of(program) == "closed"
        assert program.wait(10) == 0


def test_a_segment_handed_over_again_because_its_word_was_lost_comes_before_later_ones(opener: Any) -> None:
    store = opener(save="", stepwise=True)
    engine = store._engine
    segments = []
    for number in range(2):
        store[number] = number
        with engine.lock:
            segments.append(engine._active.segment)
            engine.journal.close_segment(engine.clock.now_ms())
            engine._aside.append(engine._active)
            engine._active = None
    job = Job(7, Path(store.path), "none", engine.cold)
    first, second = segments
    job.submit(first.number, first.last)
    assert isinstance(job.step(), dict)  # Nobody hears it.
    job.submit(second.number, second.last)
    job.submit(first.number, first.last)
    event = job.step()
    assert isinstance(event, dict)
    assert (event["event"], event["until"]) == ("applied", second.last)
    assert engine.cold.state().applied == second.last
    job.abandon()
    for buffer in engine._aside:
        buffer.handed_over = False
    store.save()
    assert dict(store) == {0: 0, 1: 1}


def test_a_close_leaves_few_runs_to_whoever_opens_the_store_next(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiered.cold_update.SMALL_RUN_RECORDS", 0)
    store = opener(save="", stepwise=True)
    engine = store._engine
    for count in (70, 20, 5):
        for number in range(count):
            store[number] = count
        store.save()
    assert len(engine.cold.state().runs) == 3
    path = store.path
    store.close()
    again = opener(path=path, flag="r")
    assert len(again._engine.cold.state().runs) == 1


@pytest.mark.parametrize("afterwards", ["another helper", "no helper", "closed"])
def test_a_compaction_that_a_helper_did_and_died_before_it_told_is_followed(
    opener: Any, monkeypatch: pytest.MonkeyPatch, afterwards: str
) -> None:
    store = opener(helper=True, save="")
    store.update((number, number) for number in range(100))
    store.save()
    engine, before = store._engine, store._engine.cold.directory
    process = engine.checkpointer.process
    heard = Engine.on_event
    monkeypatch.setattr(Engine, "on_event", lambda self, event: event["event"] == "compacted" or heard(self, event))
    engine.checkpointer.compact()
    wait_until(lambda: files.cold_path(before.parent, files.read_current(before.parent) or 0) != before)
    os.kill(process.pid, signal.SIGSTOP)  # It does nothing more, and is not missed yet.
    store["late"] = 1
    with engine.lock:
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not alive(process.pid))
        if afterwards != "another helper":
            monkeypatch.setattr(maintenance, "can_start", lambda: False)
    monkeypatch.setattr(Engine, "on_event", heard)
    if afterwards != "closed":
        store.save()
        assert engine.cold.directory != before
        assert (store["late"], len(store), store.check()) == (1, 101, [])
    store.close()
    assert dict(opener(flag="w")) == {**{number: number for number in range(100)}, "late": 1}


@pytest.fixture
def bereft(opener: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A store whose helper has died, which nobody has noticed, with something to be checkpointed; there is no other."""
    store = opener(helper=True, save="")
    store["key"] = 1
    store.save()
    process = without_background(store)._engine.checkpointer.process
    store["late"] = 2
    monkeypatch.setattr(maintenance, "can_start", lambda: False)
    wait_until(lambda: process.dead)
    return store


def test_who_closes_a_store_alone_sees_to_its_dead_helper(
    opener: Any, bereft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, left = bereft._engine, list[str]()

    def finish(dead: Any) -> None:
        engine._check_helper(0.0)  # As the background thread does, which saw the store open.
        left.append(engine.checkpointer.name)

    monkeypatch.setattr(HelperCheckpointer, "finish", finish)
    bereft.close()
    assert left == ["helper"], "two in its place would wait for one another"
    assert dict(opener(flag="w")) == {"key": 1, "late": 2}


def test_one_takes_the_place_of_a_dead_helper_whoever_notices_it_first(
    bereft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, real = bereft._engine, bereft._engine.look_at_clock

    def look_again() -> None:  # Between the look at the helper and the lock.
        monkeypatch.setattr(engine, "look_at_clock", real)
        engine._check_helper(0.0)
        first.append(engine.checkpointer)

    first = list[Any]()
    monkeypatch.setattr(engine, "look_at_clock", look_again)
    engine._check_helper(0.0)
    assert [checkpointer.name for checkpointer in first] == ["inline"]
    assert engine.checkpointer is first[0]
    bereft.save()
    assert engine.counters.checkpoints == 2
