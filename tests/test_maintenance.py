"""The background thread: what it does without being asked, and what happens to its errors."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from programs import wait_until

import tiered
from tiered import engine as engine_module
from tiered import files, maintenance
from tiered.clock import ManualClock
from tiered.maintenance import MAINTENANCE
from tiered.sharing import HANDLES


def broken_sync(_: int) -> None:
    raise OSError(errno.EIO, "Input/output error")


def expect_poisoned(store: tiered.Store[Any, Any]) -> None:
    for write in (lambda: store.set("x", 1), lambda: store.delete_many(["a"]), store.clear, store.save, store.sync):
        with pytest.raises(tiered.PoisonedError, match="Input/output error"):
            write()


@pytest.mark.parametrize("durability", ["always", "everysec", "checkpoint"])
def test_a_failed_sync_raises_poisons_and_reopening_recovers(
    opener: Any, monkeypatch: pytest.MonkeyPatch, durability: str
) -> None:
    store = opener(durability=durability)
    store["a"] = 1
    monkeypatch.setattr(files, "sync_data", broken_sync)
    with pytest.raises(tiered.PoisonedError, match="Input/output error"):
        store.set("b", 2) if durability == "always" else store.sync()
    monkeypatch.undo()  # A second sync would say that all is well: it must not be believed.
    expect_poisoned(store)
    assert (store["a"], store.get("absent"), "a" in store, store.stats().state) == (1, None, True, "poisoned")
    with pytest.raises(tiered.PoisonedError):
        store.close()
    again = opener(flag="w")
    assert again["a"] == 1
    again["c"] = 3
    again.sync()


def test_a_sync_that_fails_in_the_background_poisons_writes_and_lets_reads_go_on(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(durability="everysec")
    store.update((number, "v" * 100) for number in range(100))
    monkeypatch.setattr(files, "sync_data", broken_sync)
    store["last"] = 1
    wait_until(lambda: store.stats().state == "poisoned", 3)
    assert [store[number] for number in range(100)] == ["v" * 100] * 100
    assert (len(store), store.check()) == (101, [])
    monkeypatch.undo()
    expect_poisoned(store)
    with pytest.raises(tiered.PoisonedError):
        store.close()
    assert opener(flag="w")["last"] == 1


def test_everysec_syncs_within_about_a_second_without_being_asked(opener: Any) -> None:
    store = opener(durability="everysec")
    store["a"] = 1
    wait_until(lambda: store.stats().synced_sequence == store.stats().last_sequence, 2, "not synced")


def test_a_save_point_makes_a_checkpoint_without_being_asked(opener: Any) -> None:
    for helper in (False, True):
        store = opener(f"{helper}", helper=helper, save="1 3")
        store.set_many({"a": 1, "b": 2})
        time.sleep(1.2)
        assert store.stats().checkpoints == 0
        store["c"] = 3
        wait_until(lambda store=store: store.stats().checkpoints == 1, 3, "no checkpoint")


def test_a_save_point_is_due_by_the_stores_own_clock(opener: Any, clock: ManualClock) -> None:
    store = opener(save="60 1", clock=clock)
    store["a"] = 1
    clock.sleep(59)
    store.tick()
    assert store.stats().checkpoints == 0
    clock.sleep(2)
    store.tick()
    wait_until(lambda: store.stats().checkpoints == 1)


def test_an_error_in_the_background_reaches_the_next_call_by_name(
    opener: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = opener()
    store["a"] = 1

    def fail(*_: object) -> bool:
        if threading.current_thread() is threading.main_thread():  # The background thread itself goes on.
            raise RuntimeError("of the background")
        return False

    tick = store._engine.tick_guarded
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "is_due", fail)
        tick()
    with pytest.raises(tiered.StoreError, match="of the background"):
        store.get("absent")
    assert store.get("absent") is None
    assert store["a"] == 1
    caplog.clear()  # The logged error refers to what the engine was busy with.


def test_a_store_whose_directory_was_removed_raises_named_errors_only(tmp_path: Path) -> None:
    for helper in (False, True):
        store = tiered.open(tmp_path / "gone", memory="1MB", helper=helper)
        store.update((number, "v" * 100) for number in range(500))
        store.save()
        shutil.rmtree(tmp_path / "gone")
        store._engine._cycle_at = 0.0
        store._engine.tick_guarded()
        for call in (
            lambda store=store: store.get("absent"),
            lambda store=store: store.set("x", "y" * 10_000),
            lambda store=store: store.update((number, "w" * 1000) for number in range(1000)),
            store.save,
            store.close,
        ):
            try:
                call()
            except tiered.StoreError:
                continue
        assert store._engine.closed


def test_the_thread_waits_instead_of_spinning_however_many_files_are_open(opener: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("may not open enough files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
    descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        store = opener(helper=True)
        store["a"] = 1
        store.save()
        time.sleep(0.1)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.2
        store.close()
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_thread_ends_with_the_last_store_and_starts_again_with_the_next(opener: Any) -> None:
    def running() -> bool:
        return any(thread.name == "tiered-maintenance" for thread in threading.enumerate())

    for _ in range(3):
        one, two = opener("one"), opener("two")
        one["a"] = two["a"] = 1
        assert running()
        one.close()
        assert running()
        two.close()
        assert not running()


def test_an_engine_is_ticked_as_soon_as_it_is_served_whether_the_thread_is_there_or_not(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticked = {name: threading.Event() for name in ("first", "second")}

    def tick(engine: engine_module.Engine) -> float:
        ticked[engine.directory.name].set()
        return maintenance.TICK_SECONDS_MAX

    monkeypatch.setattr(engine_module.Engine, "tick_guarded", tick)
    for name, event in ticked.items():
        store = opener(name)
        store["k"] = 1
        assert event.wait(0.5), name


def test_engines_are_ticked_each_at_its_own_time_and_all_of_them_when_something_happens(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks: dict[str, int] = {"often": 0, "seldom": 0}

    def tick(engine: engine_module.Engine) -> float:
        ticks[engine.directory.name] += 1
        return 0.01 if engine.directory.name == "often" else 0.9

    monkeypatch.setattr(engine_module.Engine, "tick_guarded", tick)
    for name in ticks:
        opener(name)["k"] = 1
    wait_until(lambda: ticks["often"] > 30)
    seldom = ticks["seldom"]
    assert 1 <= seldom < 10
    MAINTENANCE.wake()
    wait_until(lambda: ticks["seldom"] > seldom, 0.5)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()], ids=repr)
def test_a_thread_that_could_not_be_started_is_started_by_the_next_write_and_not_waited_for_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise error

    for again in (True, False):
        store = tiered.open(tmp_path / "store", memory="1MB", warm_start=False)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(type(error)):
                store["k"] = 1
        if again:
            store["k"] = 2
            store.save()
            assert MAINTENANCE._thread is not None
            assert MAINTENANCE._thread.is_alive()
        assert store["k"] == 2
        store.close()
        assert not any(thread.name == "tiered-maintenance" for thread in threading.enumerate())


def test_nothing_is_left_of_an_engine_that_is_dismissed_in_the_middle_of_its_tick() -> None:
    thread = maintenance.Maintenance()

    class Closing:
        def tick_guarded(self) -> float:
            thread.dismiss(7)
            return 1.0

    engine: Any = Closing()
    thread._engines[7] = weakref.ref(engine)
    thread.pump(0)
    assert not thread._engines
    assert not thread._due


def test_a_look_at_the_helper_takes_no_lock_where_all_is_well(opener: Any) -> None:
    engine = opener(helper=True, stepwise=True)._engine
    looking = threading.Thread(target=engine._check_helper, args=(0.0,))
    with engine.lock:
        looking.start()
        looking.join(10)
        well = not looking.is_alive()
    looking.join()
    assert well


def test_an_engine_that_is_dismissed_gets_no_events_any_more(opener: Any) -> None:
    store = opener()
    store["a"] = 1
    number = store._engine._number
    store.close()
    MAINTENANCE._deliver({"event": "applied", "store": number, "memory": 0, "written": 0})


def test_a_store_can_be_closed_from_the_background_thread(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for helper in (False, True):
        store = opener(f"{helper}", helper=helper)
        store.update((number, "v" * 500) for number in range(3000))
        done = threading.Event()
        real = type(store._engine).tick_guarded

        def tick(engine: Any, real: Any = real, done: Any = done) -> float:
            if not engine.closed:
                engine.close()
                done.set()
            return maintenance.TICK_SECONDS_MAX or real(engine)

        monkeypatch.setattr(type(store._engine), "tick_guarded", tick)
        MAINTENANCE.wake()
        assert done.wait(10), "hangs"
        monkeypatch.undo()
        wait_until(lambda: not any(thread.name == "tiered-maintenance" for thread in threading.enumerate()))
        with opener(f"{helper}", flag="w") as again:
            assert len(again) == 3000


def test_a_write_that_waited_for_a_sync_which_failed_is_not_acknowledged_by_the_next_one(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(durability="always")
    store["warm"] = 1
    entered, go, calls, said = threading.Event(), threading.Event(), list[int](), dict[str, str]()
    real = files.sync_data

    def fails_once(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            entered.set()
            assert go.wait(10)
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    def write(key: str) -> None:
        try:
            store[key] = 1
            said[key] = "acknowledged"
        except tiered.PoisonedError:
            said[key] = "refused"

    monkeypatch.setattr(files, "sync_data", fails_once)
    threads = [threading.Thread(target=write, args=(key,)) for key in "ab"]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    wait_until(lambda: store.stats().last_sequence == 3)
    time.sleep(0.05)  # On to the lock that the failing sync has.
    go.set()
    for thread in threads:
        thread.join()
    assert said == {"a": "refused", "b": "refused"}
    assert store._engine.journal.synced < store._engine.journal.last
    with pytest.raises(tiered.PoisonedError):
        store.close()


def test_a_store_that_the_helper_cannot_open_is_poisoned_and_others_are_served(opener: Any) -> None:
    store, other = opener("bad.tiered", helper=True), opener("good.tiered", helper=True)
    apply = Path(store.path) / "APPLY"
    apply.unlink()
    apply.mkdir()
    store["k"] = other["k"] = 1
    with pytest.raises(tiered.PoisonedError, match="checkpoint failed"):
        store.save()
    other.save()
    assert other.stats().applied_sequence >= 1
    apply.rmdir()
    with pytest.raises(tiered.PoisonedError):
        store.close()


def test_an_event_that_cannot_be_heeded_poisons_its_store_and_no_other(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = opener("bad.tiered", helper=True), opener("good.tiered", helper=True)
    store["k"] = other["k"] = 1

    def broken(event: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(store._engine, "_on_applied", broken)
    with pytest.raises(tiered.PoisonedError, match="Read-only file system"):
        store.save()
    other.save()
    assert other.stats().state == "open"
    monkeypatch.undo()
    with pytest.raises(tiered.PoisonedError):
        store.close()


def test_the_background_thread_outlives_whatever_is_raised_in_it(
    opener: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = opener(helper=True)
    store["k"] = 1
    store.save()
    [thread] = [found for found in threading.enumerate() if found.name == "tiered-maintenance"]
    raised = threading.Event()

    def chore() -> None:
        if not raised.is_set():
            raised.set()
            raise SystemExit

    monkeypatch.setattr(MAINTENANCE, "chores", [chore])
    MAINTENANCE.wake()
    assert raised.wait(10)
    store["k"] = 2
    store.save()
    assert thread.is_alive()
    assert "background work failed" in caplog.text


def test_whoever_waits_for_a_background_thread_that_has_ended_starts_it_again(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(helper=True)
    store["k"] = 1
    store.save()
    thread = MAINTENANCE._thread
    assert thread is not None
    with monkeypatch.context() as patch:
        patch.setattr(MAINTENANCE, "_thread", None)
        MAINTENANCE.wake()
        thread.join(10)
    assert not thread.is_alive()
    assert MAINTENANCE._thread is thread
    store["k"] = 2
    closing = threading.Thread(target=store.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
    assert opener(flag="w")["k"] == 2


def test_background_work_that_fails_at_once_is_not_tried_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    thread, calls = maintenance.Maintenance(), list[str]()

    def pump(timeout: float) -> float:
        calls.append("pump")
        if len(calls) > 5:
            thread._thread = None
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(thread, "pump", pump)
    monkeypatch.setattr(maintenance.time, "sleep", lambda seconds: calls.append("sleep"))
    monkeypatch.setattr(thread, "_thread", threading.current_thread())
    thread._run()
    assert calls == ["pump", "sleep"] * 4


def test_a_checkpoint_whose_word_an_interrupt_took_does_not_keep_save_and_close_waiting(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(stepwise=True)
    store["k"] = 1

    def interrupted(event: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store._engine, "_on_applied", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.save()
    saving = threading.Thread(target=store.save, daemon=True)
    saving.start()
    saving.join(10)
    assert not saving.is_alive()
    assert store.stats().applied_sequence == store.stats().last_sequence


def test_what_failed_while_it_was_opened_leaves_no_thread_and_no_helper(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opener() as store:
        store["k"] = 1

    def broken(self: Any, name: str, value: object) -> int:
        self.serve()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(engine_module.Engine, "put_setting", broken)
    with pytest.raises(tiered.StoreFullError):
        opener(flag="w", compression="none")
    monkeypatch.undo()
    assert not MAINTENANCE._engines
    assert opener(flag="w")["k"] == 1


def test_a_segment_that_is_being_prepared_while_the_store_closes_is_not_left_behind(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(stepwise=True)
    store["k"] = 1
    journal = store._engine.journal
    inside, go = threading.Event(), threading.Event()
    real = files.preallocate

    def slow(path: Path, size: int) -> int:
        inside.set()
        assert go.wait(10)
        return real(path, size)

    monkeypatch.setattr(files, "preallocate", slow)
    preparing = threading.Thread(target=journal.prepare)
    preparing.start()
    assert inside.wait(10)
    closing = threading.Thread(target=store.close)
    closing.start()
    time.sleep(0.05)
    go.set()
    preparing.join()
    closing.join()
    assert not (Path(store.path) / files.PREPARED).exists()


def test_a_handler_inside_one_store_may_not_wait_for_another(opener: Any) -> None:
    """The thread it would wait for may be waiting for the store that was interrupted."""
    store, other = opener("one.tiered", helper=True), opener("two.tiered", helper=True)
    store["k"] = other["k"] = 1
    with store._engine.lock:
        other["k"] = 2  # What need not wait works.
        for call in (other.save, other.compact, other.close):
            with pytest.raises(tiered.ReentrantError):
                call()
        assert other["k"] == 2
    other.save()
    store.save()


def test_a_store_collected_inside_another_ones_operation_does_not_wait_for_it(opener: Any) -> None:
    store = opener("one.tiered", helper=True)
    store["k"] = 1
    store.save()
    holder = [tiered.open(Path(store.path).parent / "two.tiered", helper=True)]
    holder[0]["k"] = 1
    holder[0].save()  # From now on the helper has to be waited for.
    view = store.view(max_age=0.2)
    # The thread is on its way to end the view, and would not hear that the other store is checkpointed.
    with view._lock, pytest.warns(ResourceWarning, match="unclosed store"):
        time.sleep(0.3)
        MAINTENANCE.wake()
        wait_until(lambda: not store._engine.lock.acquire(blocking=False) or store._engine.lock.release())
        begun = time.monotonic()
        holder.clear()
    assert time.monotonic() - begun < 5
    wait_until(lambda: len(HANDLES._shared) == 1)  # The thread closes it.
    store["k"] = 2
    with tiered.open(Path(store.path).parent / "two.tiered", lock_timeout=10) as again:
        assert again["k"] == 1
