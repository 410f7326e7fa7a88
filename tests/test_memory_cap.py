"""`spill=False`: a store that holds no more than its memory does, and refuses what would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import programs
import pytest

import tiered
from tiered import codec, keys
from tiered.clock import ManualClock
from tiered.memory_cap import ENTRY_BYTES, limit_bytes, live_bytes

MB = 1 << 20
SIZE = 1000
FILLING = 600
Step = Callable[[Any], object]


def counted(store: Any) -> int:
    """What live records take, by looking at each."""
    return sum(len(keys.encode(key)) + len(codec.encode(value)[1]) + ENTRY_BYTES for key, value in store.items())


def full(store: Any) -> None:
    """Fill a store up to less than a small record below its limit."""
    store["key"] = b"x" * SIZE
    store["number"] = 7
    store["list"] = [1] * SIZE
    store.set("expiring", b"x" * SIZE, ttl=100)
    number = 0
    while live_bytes(store._engine) + 8 * SIZE < limit_bytes(store._engine):
        store["filling", number] = b"x" * 5 * SIZE
        number += 1
    left = limit_bytes(store._engine) - live_bytes(store._engine) - ENTRY_BYTES - len(keys.encode("last")) - 20
    store["last"] = b"x" * left
    assert 0 <= limit_bytes(store._engine) - live_bytes(store._engine) < 50


def edited(store: Any, more: int) -> None:
    with store.edit("list") as items:
        items[:] = [2] * (SIZE + more)


def exchanged(store: Any, size: int) -> None:
    with store.transaction() as txn:
        del txn["key"]
        txn["other"] = b"x" * size


def in_one_batch(store: Any) -> None:
    store.set_many({"key": b"y" * SIZE, "new one": b"y" * SIZE})


ALLOWED: dict[str, Step] = {
    "as much in place of it": lambda store: store.set("key", b"y" * SIZE),
    "less in place of it": lambda store: store.set("key", b"y"),
    "deleting": lambda store: store.pop("key"),
    "deleting many": lambda store: store.delete_many(["key", "list", "absent"]),
    "counting": lambda store: store.incr("number"),
    "another time to live": lambda store: store.touch("key", 50),
    "no time to live": lambda store: store.persist("expiring"),
    "setdefault of what is there": lambda store: store.setdefault("key", b"x" * 9 * SIZE),
    "editing in place": lambda store: edited(store, 0),
    "a transaction that adds nothing": lambda store: exchanged(store, SIZE - 10),
    "a batch that adds nothing": lambda store: store.set_many({"key": b"y" * SIZE, "number": 9}),
    "clearing": lambda store: store.clear(),
    "a setting": lambda store: store.config_set("default_ttl", 5000),
}
REFUSED: dict[str, Step] = {
    "a new key": lambda store: store.set("new", b"x" * SIZE),
    "more in place of it": lambda store: store.set("key", b"x" * 2 * SIZE),
    "counting from nothing": lambda store: store.incr("a new number"),
    "setdefault of what is not there": lambda store: store.setdefault("new", b"x" * SIZE),
    "editing to more": lambda store: edited(store, SIZE),
    "a transaction that adds": lambda store: exchanged(store, 3 * SIZE),
    "a batch that adds": in_one_batch,
}
STATES: dict[str, Step] = {
    "dirty": lambda store: None,
    "clean": lambda store: store.save(),
    "cold": lambda store: (store.save(), store._engine.hot.clear()),
}


@pytest.fixture
def bounded(opener: Any, clock: ManualClock) -> Any:
    store = opener(spill=False, stepwise=True, clock=clock, save="", compression="none")
    full(store)
    return store


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("what", [*ALLOWED, *REFUSED])
def test_at_the_limit_what_adds_is_refused_whole_and_what_does_not_is_done(bounded: Any, what: str, state: str) -> None:
    STATES[state](bounded)
    before = dict(bounded)
    assert live_bytes(bounded._engine) == counted(bounded)
    if what in ALLOWED:
        ALLOWED[what](bounded)
    else:
        with pytest.raises(tiered.MemoryFullError, match=r"spill is off.*delete some, give it more, or config_set"):
            REFUSED[what](bounded)
        assert dict(bounded) == before
    assert live_bytes(bounded._engine) == counted(bounded) <= limit_bytes(bounded._engine)
    bounded.save()
    assert live_bytes(bounded._engine) == counted(bounded)


def test_the_limit_is_two_thirds_of_memory_and_all_of_it_stays_hot(opener: Any) -> None:
    store = opener(memory="8MB", spill=False)
    with pytest.raises(tiered.MemoryFullError) as caught:
        store.update((number, [number, f"{number:06}" * 400]) for number in range(100_000))
    assert str(caught.value).startswith(str(store.path))
    assert 0.65 < counted(store) / (8 * MB) <= 2 / 3
    store.save()
    store.tick()
    for number in [*range(100)] * 5:  # Some are kept decoded, too.
        assert store[number][0] == number
    if store.memory_stats().hot_tier == "arena":
        assert store.stats().hot_records == len(store)
        assert store.stats().evictions == 0
    assert all(store[number] == [number, f"{number:06}" * 400] for number in range(len(store)))
    assert store.memory_stats().accounted_bytes <= 8 * MB


def test_deleting_and_time_make_room_again(opener: Any, clock: ManualClock) -> None:
    store = opener(spill=False, stepwise=True, clock=clock, save="")
    for number in range(100):
        store.set(number, b"x" * SIZE, ttl=60)
    full(store)
    with pytest.raises(tiered.MemoryFullError):
        store["new"] = b"x" * SIZE
    del store["key"]
    store["new"] = b"x" * (SIZE - 20)
    with pytest.raises(tiered.MemoryFullError):
        store["newer"] = b"x" * SIZE
    clock.sleep(70)
    for _ in range(100):
        clock.sleep(0.5)
        store.tick()
    assert live_bytes(store._engine) == counted(store)
    for number in range(80):
        store["newer", number] = b"x" * SIZE


def test_what_expired_and_is_gone_from_disk_while_it_is_hot_counts_as_nothing(opener: Any, clock: ManualClock) -> None:
    store = opener(spill=False, stepwise=True, clock=clock, save="")
    store.set("key", b"x" * SIZE, ttl=60)
    store.save()
    clock.sleep(70)
    store["other"] = 1
    store.save()
    assert "key" in store._engine.hot
    assert live_bytes(store._engine) == counted(store)
    store.set("key", b"x" * SIZE)
    assert live_bytes(store._engine) == counted(store)


def test_a_restart_or_a_kill_keeps_everything_and_the_limit(opener: Any, tmp_path: Any) -> None:
    code = """
        import sys, tiered
        store = tiered.open(sys.argv[1], memory="1MB", spill=False)
        try:
            for number in range(10_000):
                store[number] = [number, "x" * 500]
        except tiered.MemoryFullError:
            print(len(store), flush=True)
            sys.stdin.readline()
    """
    with programs.running(code, tmp_path / "store.tiered") as program:
        written = int(programs.line_of(program))
        program.kill()
        program.wait()
    store = opener()
    assert store.config_get("spill") == {"spill": False}
    assert written > 1000
    assert dict(store) == {number: [number, "x" * 500] for number in range(written)}
    assert live_bytes(store._engine) == counted(store)
    with pytest.raises(tiered.MemoryFullError):
        store[written] = [written, "x" * 500]
    store.close()
    assert len(opener()) == written


def test_a_store_that_holds_more_opens_is_read_and_takes_what_does_not_add(opener: Any) -> None:
    store = opener(memory="2MB", compression="none")
    store.update((number, b"x" * SIZE) for number in range(5000))
    store.close()
    store = opener(memory="1MB", spill=False)
    assert len(store) == 5000
    assert all(store[number] == b"x" * SIZE for number in range(5000))
    with pytest.raises(tiered.MemoryFullError):
        store["new"] = 1
    store[7] = b"y" * SIZE
    assert store.delete_many(range(4600)) == 4600
    store["new"] = b"x" * SIZE


def test_it_is_switched_off_and_on_at_run_time_with_what_is_dirty_counted(opener: Any) -> None:
    store = opener(compression="none", helper=True)
    store.update((number, b"x" * SIZE) for number in range(FILLING))
    store.config_set("spill", "no")
    assert store.stats().dirty_records == 0, "counted by a checkpoint"
    assert live_bytes(store._engine) == counted(store)
    with pytest.raises(tiered.MemoryFullError):
        store.update((number, b"x" * SIZE) for number in range(FILLING, 2 * FILLING))
    there = len(store)
    assert FILLING < there < 2 * FILLING
    store.config_set("spill", "yes")
    store.update((number, b"x" * SIZE) for number in range(3 * FILLING))
    assert len(store) == 3 * FILLING
    store.config_set("spill", False)
    with pytest.raises(tiered.MemoryFullError):
        store["new"] = 1
    store.config_set("memory", "8mb")
    store["new"] = 1


def test_more_is_counted_until_the_first_checkpoint_where_there_can_be_none(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(stepwise=True, save="")
    store.update((number, b"x" * 100) for number in range(300))

    def refuse(engine: Any) -> None:
        raise tiered.StoreFullError(engine.directory, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(type(store._engine), "save", refuse)
        patch.setattr(type(store._engine), "acknowledged", lambda engine, sequence: None)
        store.config_set("spill", False)
    assert store.stats().dirty_records == 300
    assert live_bytes(store._engine) >= counted(store)
    store.save()
    assert live_bytes(store._engine) == counted(store)


def test_long_keys_count_as_long_as_they_are(opener: Any) -> None:
    store = opener(spill=False, stepwise=True)
    for number in range(20):
        store[f"{number}" * 2000] = number
    assert live_bytes(store._engine) == counted(store)
    store.save()
    assert live_bytes(store._engine) == counted(store) > 20 * 2000
    store.delete_many([f"{number}" * 2000 for number in range(10)])
    store.save()
    store.compact()
    assert live_bytes(store._engine) == counted(store)


def test_a_key_given_twice_in_a_batch_counts_once(opener: Any) -> None:
    store = opener(spill=False, stepwise=True)
    store.set_many([("key", b"x" * 100), ("key", b"x" * 500)])
    assert live_bytes(store._engine) == counted(store)


def test_a_damaged_record_can_be_replaced_at_the_limit(opener: Any) -> None:
    from contracts import damage

    store = opener(spill=False, stepwise=True, compression="none", save="")
    store["key"] = b"x" * 5000
    full(store)
    store.delete_many([("filling", 0), ("filling", 1)])
    store.save()
    store._engine.hot.clear()
    damage(store, "key")
    with pytest.raises(tiered.CorruptionError):
        store["key"]
    store["key"] = b"y" * SIZE
    store.save()
    assert store["key"] == b"y" * SIZE
    assert live_bytes(store._engine) == counted(store)


def test_without_it_nothing_is_counted_and_nothing_refused(opener: Any) -> None:
    store = opener(stepwise=True)
    store.update((number, b"x" * SIZE) for number in range(3000))
    assert all(buffer.grown_bytes == 0 for buffer in store._engine.buffers)
    assert len(store) == 3000
