"""Events: what a program is told of while a store works, and what its callbacks may do."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from beside import beside
from conftest import without_background
from programs import succeed, wait_until

import tiered
from tiered.checkpoint import EXPIRE_RECORDS
from tiered.events import KINDS, Event


def heard(store: Any, kind: str) -> list[Event]:
    events: list[Event] = []
    store.on(kind, events.append)
    return events


def total(events: list[Event]) -> int:
    return sum(event.times for event in events)


def test_checkpoints_are_told_of(opener: Any) -> None:
    store = opener(stepwise=True)
    events = heard(store, "checkpoint")
    store["a"] = 1
    store.save()
    assert events == []  # Only what is told by a tick or the background thread is.
    store.tick()
    assert events == [Event("checkpoint", store.path, 1)]
    store.tick()
    assert len(events) == 1


def test_what_happened_before_somebody_listened_is_not_told(opener: Any) -> None:
    store = opener(stepwise=True)
    store["a"] = 1
    store.save()
    events = heard(store, "checkpoint")
    store.tick()
    assert events == []


def test_many_evictions_are_one_event(opener: Any) -> None:
    store = opener(stepwise=True)
    events = heard(store, "eviction")
    store.update((number, bytes(1000)) for number in range(5000))
    store.save()
    for number in range(5000):
        store[number]
    evicted = store.stats().evictions
    assert evicted > 1000
    store.tick()
    assert len(events) == 1
    assert events[0].times >= evicted


def test_expiry_is_counted_in_each_tier_that_a_key_leaves(opener: Any, clock: Any) -> None:
    store = opener(stepwise=True, clock=clock)
    events = heard(store, "expiry")
    for number in range(10):
        store.set(number, "x", ttl=5)
    store.save()
    store.tick()
    assert events == []
    clock.sleep(20)
    for _ in range(5):
        store.tick()
        clock.sleep(5)
    store.tick()
    assert total(events) == 20
    stats = store.stats()
    assert (stats.expired_hot, stats.expired_cold) == (10, 10)


def test_what_expires_in_slices_after_a_checkpoint_is_counted(opener: Any, clock: Any) -> None:
    store = opener(stepwise=True, clock=clock)
    events = heard(store, "expiry")
    count = 2 * EXPIRE_RECORDS + 10
    store.update((number, None) for number in range(10))
    store.set_many(((number, None) for number in range(10, 10 + count)), ttl=5)
    store.save()
    store._engine.hot.clear()
    clock.sleep(20)
    for _ in range(20):
        store.tick()
        clock.sleep(5)
    store["more"] = 1
    store.save()
    store.tick()
    assert total(events) == store.stats().expired_cold == count


def test_snapshots_are_told_of_with_their_file_and_failures_with_the_reason(tmp_path: Path) -> None:
    with tiered.open(tmp_path / "s", memory="1MB", helper=False, compression="none") as store:
        without_background(store)
        events = heard(store, "snapshot")
        store["a"] = "spoiled " * 100
        store.snapshot(tmp_path / "good.tsnap")
        [data] = (tmp_path / "s").glob("cold-*/data.mdb")
        with open(data, "r+b") as file:
            found = file.read().index(b"spoiled spoiled")
            file.seek(found)
            file.write(b"sXoiled")
        with pytest.raises(tiered.CorruptionError):
            store.snapshot(tmp_path / "bad.tsnap")
        store.tick()
    assert events[0] == Event("snapshot", str(tmp_path / "s"), 1, str(tmp_path / "good.tsnap"))
    [bad] = events[1:]
    assert (bad.file, bad.times, "checksum" in bad.error or "damaged" in bad.error) == (
        str(tmp_path / "bad.tsnap"),
        1,
        True,
    )


def test_close_tells_what_was_not_told_yet(opener: Any) -> None:
    store = opener(stepwise=True)
    events = heard(store, "checkpoint")
    store["a"] = 1
    store.close()
    assert total(events) == 1


def test_a_callback_that_raises_is_logged_and_breaks_nothing(opener: Any, caplog: pytest.LogCaptureFixture) -> None:
    store = opener(stepwise=True)

    def broken(event: Event) -> None:
        raise RuntimeError("of the callback")

    store.on("checkpoint", broken)
    events = heard(store, "checkpoint")
    store["secret key"] = "secret value"
    store.save()
    with caplog.at_level(logging.DEBUG, "tiered"):
        store.tick()
    assert total(events) == 1
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "checkpoint" in record.getMessage()
    assert store["secret key"] == "secret value"
    store["more"] = 1
    assert store.stats().state == "open"


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_callback_that_would_end_the_background_thread_is_logged_and_the_thread_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    store, other = (tiered.open(tmp_path / name, memory="1MB") for name in "so")

    def ending(event: Event) -> None:
        raise error

    store.on("checkpoint", ending)
    events, others = heard(store, "checkpoint"), heard(other, "checkpoint")
    [thread] = [found for found in threading.enumerate() if found.name == "tiered-maintenance"]
    store["a"] = other["a"] = 1
    store.save()
    wait_until(lambda: events)
    other.save()
    wait_until(lambda: others)
    assert thread.is_alive()
    for each in (store, other):
        each.close()
    assert {record.getMessage() for record in caplog.records} == {f"{store.path}: a callback for 'checkpoint' raised"}


def test_ctrl_c_in_a_callback_that_the_main_thread_calls_is_the_programs(opener: Any) -> None:
    store = opener(stepwise=True)

    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    off = store.on("checkpoint", interrupted)
    store["a"] = 1
    store.save()
    with pytest.raises(KeyboardInterrupt):
        store.tick()
    off()


def test_a_callback_may_use_the_store_and_holds_no_lock(opener: Any) -> None:
    store = opener(stepwise=True)
    seen: list[Any] = []

    def use(event: Event) -> None:
        assert not store._engine.owned()
        reading = threading.Thread(target=lambda: seen.append(store["a"]))
        reading.start()
        reading.join(10)
        store["a"] += 1
        store.save()  # The next event, but told by the next tick, or this would never end.

    store.on("checkpoint", use)
    store["a"] = 1
    store.save()
    store.tick()
    assert (seen, store["a"]) == ([1], 2)
    store.tick()
    assert (seen, store["a"]) == ([1, 2], 3)


def test_a_callback_may_close_the_store(opener: Any) -> None:
    store = opener(stepwise=True)
    store.on("checkpoint", lambda event: store.close())
    store["a"] = 1
    store.save()
    store.tick()
    assert store._engine.closed
    assert opener()["a"] == 1


def test_the_background_thread_tells_and_close_tells_the_last(tmp_path: Path) -> None:
    with tiered.open(tmp_path / "store", memory="1MB") as store:
        threads: list[str] = []
        events: list[Event] = []
        store.on("checkpoint", lambda event: threads.append(threading.current_thread().name))
        store.on("checkpoint", events.append)
        store["a"] = 1
        store.save()
        wait_until(lambda: events)
        assert threads == ["tiered-maintenance"]
        store["a"] = 2
    assert total(events) == 2


@pytest.mark.parametrize("helper", [False, True])
def test_what_close_tells_is_told_while_the_store_can_be_used(opener: Any, caplog: Any, helper: bool) -> None:
    store = opener(helper=helper)
    seen: list[Any] = []

    def use(event: Event) -> None:
        seen.append(store["a"])
        store["told"] = len(seen)

    store.on("checkpoint", use)
    store["a"] = 1
    store.close()
    assert (seen, caplog.records) == ([1], [])
    with opener(helper=helper) as again:
        assert again["told"] == 1


def test_a_store_that_is_closed_by_the_end_of_the_program_can_be_used_by_what_it_tells(tmp_path: Path) -> None:
    code = """
        import sys, tiered
        store = tiered.open(sys.argv[1], helper=False)
        store.on("checkpoint", lambda event: print("told", store["a"]))
        store["a"] = 1
    """
    assert succeed(code, tmp_path / "store") == "told 1"


def test_only_the_last_handle_that_is_closed_tells(opener: Any) -> None:
    store, other = opener(stepwise=True), opener()
    events = heard(store, "checkpoint")
    store["a"] = 1
    store.close()
    assert events == []
    other.close()
    assert total(events) == 1


def test_close_says_what_keeps_it_from_a_last_checkpoint_and_tells_what_else_happened(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(stepwise=True, durability="checkpoint")
    events = heard(store, "checkpoint")
    store["a"] = 1
    store.save()
    store["a"] = 2
    store._engine.poison("of the test")
    with pytest.raises(tiered.PoisonedError, match="of the test"):
        store.close()
    assert total(events) == 1
    assert store._engine.closed


def test_the_background_thread_may_close_the_store_in_a_callback_while_the_program_does(tmp_path: Path) -> None:
    store = tiered.open(tmp_path / "store", memory="1MB", helper=False)
    entered, go = threading.Event(), threading.Event()

    def closing(event: Event) -> None:
        entered.set()
        assert go.wait(10)
        store.close()

    store.on("checkpoint", closing)
    listeners = store._engine.listeners
    tell = listeners.tell

    def told(*arguments: Any) -> None:
        if threading.current_thread() is program:
            go.set()
        tell(*arguments)

    store["a"] = 1
    store.save()
    assert entered.wait(10)
    listeners.tell = told  # type: ignore[method-assign]
    program = threading.Thread(target=store.close, daemon=True)
    program.start()
    program.join(10)
    assert not program.is_alive()
    assert store._engine.closed


def test_what_on_returns_ends_it_and_the_others_go_on(opener: Any) -> None:
    store = opener(stepwise=True)
    first: list[Event] = []
    off = store.on("checkpoint", first.append)
    second = heard(store, "checkpoint")
    off()
    off()
    store["a"] = 1
    store.save()
    store.tick()
    assert (total(first), total(second)) == (0, 1)


def test_a_callback_that_is_registered_twice_is_called_twice_and_each_is_ended_by_itself(opener: Any) -> None:
    store = opener(stepwise=True)
    events: list[Event] = []
    callback = events.append
    offs = [store.on("checkpoint", callback) for _ in range(2)]
    for number, calls in enumerate((2, 3, 3)):
        store["a"] = number
        store.save()
        store.tick()
        assert len(events) == calls
        if offs:
            offs.pop()()


def test_evictions_are_told_of_after_the_policy_was_switched(opener: Any) -> None:
    store = opener(stepwise=True)
    events = heard(store, "eviction")
    for policy in ("sieve", "arc", "wtinylfu", "s3fifo", "lru"):
        store.update((number, bytes(1000)) for number in range(3000))
        before = store.stats().evictions
        store.config_set("eviction", policy)
        store.update((number, bytes(1000)) for number in range(3000))
        store.tick()
        assert total(events) == store.stats().evictions > before


def test_a_reader_tells_of_its_own_evictions(opener: Any) -> None:
    store = opener(stepwise=True)
    store.update((number, bytes(1000)) for number in range(3000))
    store.save()
    reader = beside(store)
    try:
        events = heard(reader, "eviction")
        for number in range(3000):
            reader[number]
        reader.tick()
        assert total(events) == reader.stats().evictions > 100
        for number in range(2000):
            reader[number]
        reader._engine.take_leave()  # As its close does first.
        assert total(events) == reader.stats().evictions
    finally:
        reader._engine.close()


def test_a_read_only_handle_beside_a_writing_one_hears_of_the_same(opener: Any) -> None:
    store = opener(stepwise=True)
    events = heard(opener(flag="r"), "checkpoint")
    store["a"] = 1
    store.save()
    store.tick()
    assert total(events) == 1


def test_there_is_no_other_kind_of_event(store: Any) -> None:
    with pytest.raises(tiered.ConfigError, match="checkpoint, eviction, expiry, snapshot"):
        store.on("deletion", print)
    with pytest.raises(TypeError):
        store.on("checkpoint", "print")
    assert all(f'"{kind}"' in tiered.Store.on.__doc__ for kind in KINDS)


def test_where_nobody_listens_nothing_is_kept(opener: Any, tmp_path: Path) -> None:
    store = opener(stepwise=True)
    store["a"] = 1
    store.snapshot(tmp_path / "s.tsnap")
    store.tick()
    assert not store._engine.listeners
    assert not store._engine.listeners._snapshots
