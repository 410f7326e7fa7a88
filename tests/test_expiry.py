"""Expiry: nobody sees what has expired, and what was written, kept or postponed meanwhile stays."""

from __future__ import annotations

import random
from typing import Any

import pytest
from contracts import evict, merge, set_aside

import tiered
from tiered import keys
from tiered.clock import ManualClock


@pytest.fixture
def store(opener: Any, clock: ManualClock) -> Any:
    return opener(stepwise=True, clock=clock)


def index(store: Any) -> list[tuple[int, bytes]]:
    """The expiry index of the cold tier: deadline and stored key."""
    with store._engine.cold.read() as reader:
        return [(int.from_bytes(key[:8], "big"), key[8:]) for key in reader.due(1 << 62)]


def cold_records(store: Any) -> int:
    with store._engine.cold.read() as reader:
        return sum(1 for _ in reader.scan())


def tick(store: Any) -> None:
    """Let everything due at this moment be done; the first tick after a while may only begin it."""
    for _ in range(50):
        store.tick()


def settle_hot(store: Any) -> None:
    pass


def settle_aside(store: Any) -> None:
    set_aside(store)


def settle_clean(store: Any) -> None:
    store.save()


def settle_cold(store: Any) -> None:
    store.save()
    evict(store)


def settle_behind(store: Any) -> None:
    store.save()
    merge(store)
    evict(store)


SETTLES = pytest.mark.parametrize("settle", [settle_hot, settle_aside, settle_clean, settle_cold, settle_behind])


# Lazily


@SETTLES
def test_a_key_is_there_until_its_deadline_and_gone_at_it_without_any_tick(
    store: Any, clock: ManualClock, settle: Any
) -> None:
    store.set("k", "v", ttl=10)
    settle(store)
    clock.sleep(9.999)
    assert store["k"] == "v"
    assert store.ttl("k") == 0.001
    assert len(store) == 1
    clock.sleep(0.001)
    assert "k" not in store
    assert store.get("k") is None
    assert store.get_many(["k"]) == {}
    assert len(store) == 0
    assert list(store) == list(store.items()) == []
    assert not store.touch("k", 100)
    assert not store.persist("k")
    assert store.pop("k", "none") == "none"
    with pytest.raises(KeyError):
        store.ttl("k")


def test_the_shortest_ttl_is_a_millisecond(store: Any, clock: ManualClock) -> None:
    store.set("k", 1, ttl=1e-9)
    assert store["k"] == 1
    clock.sleep(0.001)
    assert "k" not in store


def test_ttl_counts_down_in_seconds_and_is_none_for_ever(store: Any, clock: ManualClock) -> None:
    store.set("k", 1, ttl=60)
    store["always"] = 1
    clock.sleep(20.5)
    assert store.ttl("k") == 39.5
    assert store.ttl("always") is None
    assert store.explain("k").ttl_seconds == 39.5


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), "5", True, 10**11])
def test_a_ttl_that_is_no_number_of_seconds_above_zero_is_refused_and_changes_nothing(store: Any, ttl: Any) -> None:
    store["k"] = "old"
    for write in (
        lambda: store.set("k", "new", ttl=ttl),
        lambda: store.touch("k", ttl),
        lambda: store.set_many({"k": "new"}, ttl=ttl),
    ):
        with pytest.raises(TypeError if isinstance(ttl, (str, bool)) else tiered.ConfigError, match="ttl"):
            write()
    assert store["k"] == "old"
    assert store.ttl("k") is None


# Actively, by tick


def test_tick_removes_what_expired_from_every_tier(store: Any, clock: ManualClock) -> None:
    store.update({number: number for number in range(100)})
    store.set_many({("cold", number): "x" * 50 for number in range(300)}, ttl=10)
    store.save()
    evict(store)
    store.set_many({("hot", number): "x" * 50 for number in range(300)}, ttl=10)
    clock.sleep(12)
    tick(store)
    assert cold_records(store) == 100
    assert index(store) == []
    assert store._engine.hot.expiring == 0
    assert set(store._engine.hot) <= set(range(100))
    assert store.check() == []
    assert dict(store) == {number: number for number in range(100)}


def test_tick_removes_more_than_one_slice_holds_and_says_that_there_is_more_to_do(
    store: Any, clock: ManualClock
) -> None:
    store.set_many(((number, number) for number in range(10_000)), ttl=5)
    store.save()
    assert cold_records(store) == 10_000
    clock.sleep(7)
    assert store.tick() < 0.1
    tick(store)
    assert cold_records(store) == 0
    assert index(store) == []
    assert store.check() == []


def test_memory_forgets_in_slices_of_bounded_size_with_which_nothing_else_of_a_cycle_is_done(
    opener: Any, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(stepwise=True, clock=clock, memory="8MB")
    store.set_many(((number, number) for number in range(3000)), ttl=5)
    engine = store._engine
    clock.sleep(7)
    left, cycles = [engine.hot.expiring], []
    for work in ("_expire_cycle", "_look_at_memory"):
        monkeypatch.setattr(engine, work, lambda work=work: cycles.append(work))
    while left[-1] and len(left) < 10:
        assert store.tick() < 0.01
        left.append(engine.hot.expiring)
    assert left == [3000, 2500, 2000, 1500, 1000, 500, 0]
    assert cycles == ["_expire_cycle", "_look_at_memory"]


def test_nothing_is_removed_before_its_deadline_by_ticks_and_checkpoints(store: Any, clock: ManualClock) -> None:
    store.set_many({number: number for number in range(50)}, ttl=1000)
    for _ in range(20):
        clock.sleep(49)
        tick(store)
        store.save()
    assert len(store) == cold_records(store) == 50
    clock.sleep(20)
    assert len(store) == 0


def test_a_store_without_anything_due_writes_nothing_when_it_ticks(store: Any, clock: ManualClock) -> None:
    store.set("k", 1, ttl=10**6)
    store.save()
    before = store.stats().last_sequence
    for _ in range(10):
        clock.sleep(100)
        tick(store)
    assert store.stats().last_sequence == before


# Never resurrected, never taken by mistake


def rewrite(store: Any) -> None:
    store["k"] = "kept"


def rewrite_by_batch(store: Any) -> None:
    store.set_many({"k": "kept"})


def persist(store: Any) -> None:
    store.persist("k")


def touch(store: Any) -> None:
    store.touch("k", 1000)


def rewrite_with_ttl(store: Any) -> None:
    store.set("k", "kept", ttl=1000)


def delete_and_rewrite(store: Any) -> None:
    del store["k"]
    set_aside(store)
    store["k"] = "kept"


def expire_and_rewrite(store: Any) -> None:
    store._engine.clock.sleep(20)
    assert "k" not in store
    assert store.setdefault("k", "kept") == "kept"


SAVES = [rewrite, rewrite_by_batch, persist, touch, rewrite_with_ttl, delete_and_rewrite, expire_and_rewrite]


@SETTLES
@pytest.mark.parametrize("save_it", SAVES)
@pytest.mark.parametrize("then_settle", [settle_hot, settle_aside, settle_cold, settle_behind])
def test_a_key_rewritten_persisted_or_touched_is_not_removed_at_its_old_deadline(
    store: Any, clock: ManualClock, settle: Any, save_it: Any, then_settle: Any
) -> None:
    store.set("k", "kept", ttl=10)
    settle(store)
    save_it(store)
    then_settle(store)
    clock.sleep(30)
    tick(store)
    store.save()
    assert store["k"] == "kept"
    evict(store)
    assert store["k"] == "kept"
    tick(store)
    assert len(store) == 1
    assert store.check() == []


def test_a_key_rewritten_between_falling_due_and_being_removed_stays(store: Any, clock: ManualClock) -> None:
    store.set("k", "old", ttl=10)
    store.save()
    clock.sleep(11)
    set_aside(store)
    # The checkpoint that will remove the old record is on its way.
    store["other"] = 1
    set_aside(store)
    store.set("k", "new", ttl=100)
    set_aside(store)
    store._engine.checkpointer.run()
    evict(store)
    assert store["k"] == "new"
    assert len(index(store)) == 1


def test_incr_keeps_the_deadline_and_an_expired_counter_begins_anew(store: Any, clock: ManualClock) -> None:
    store.set("k", 5, ttl=10)
    settle_cold(store)
    clock.sleep(4)
    assert store.incr("k") == 6
    assert store.ttl("k") == 6
    clock.sleep(6)
    assert store.incr("k") == 1
    assert store.ttl("k") is None


def test_a_newer_record_with_a_deadline_expires_together_with_the_older_ones_under_it(
    store: Any, clock: ManualClock
) -> None:
    store["k"] = "oldest, for ever"
    settle_behind(store)
    store.set("k", "newest", ttl=10)
    settle_cold(store)
    clock.sleep(11)
    assert "k" not in store
    tick(store)
    assert "k" not in store
    assert cold_records(store) == 0
    store.compact()
    assert "k" not in store


def test_an_expired_dirty_record_hides_older_ones_and_removes_them_at_the_checkpoint(
    store: Any, clock: ManualClock
) -> None:
    store["k"] = "for ever"
    settle_behind(store)
    store.set("k", "short", ttl=1)
    clock.sleep(2)
    assert "k" not in store
    settle_cold(store)
    assert "k" not in store
    assert cold_records(store) == 0


# The index


def test_overwriting_with_new_ttls_leaves_one_index_entry_per_key(store: Any, clock: ManualClock) -> None:
    uniform = random.Random(2)
    several = ["a", "b", 3, ("long" * 200,)]
    for _ in range(60):
        store.set(uniform.choice(several), "v", ttl=uniform.choice([None, 50, 500, 5000]))
        uniform.choice([lambda: None, store.save, lambda: set_aside(store), lambda: merge(store)])()
        store.touch(uniform.choice(several), uniform.randrange(10, 10_000))
    store.save()
    assert len(index(store)) == sum(store.ttl(key) is not None for key in store)
    assert store.check() == []
    for key in several:
        store.persist(key)
    store.save()
    assert index(store) == []
    assert store._engine.hot.expiring == 0


def test_an_index_entry_that_is_not_the_records_own_removes_nothing(store: Any, clock: ManualClock) -> None:
    store["for ever"] = 1
    store.set("later", 1, ttl=1000)
    store.save()
    with store._engine.cold.update() as update:
        for key in ("for ever", "later", "absent"):
            update.txn.put(clock.now_ms().to_bytes(8, "big") + keys.encode(key), b"", db=store._engine.cold.expiry)
    assert {finding.what for finding in store.check()} == {"expiry index"}
    clock.sleep(5)
    tick(store)
    evict(store)
    assert dict(store) == {"for ever": 1, "later": 1}
    assert store.check() == []


def test_deleting_and_clearing_empty_the_index(store: Any) -> None:
    store.set_many({number: number for number in range(20)}, ttl=50)
    store.save()
    store.delete_many(range(10))
    store.save()
    assert len(index(store)) == 10
    store.clear()
    store.save()
    assert index(store) == []
    assert store.check() == []


def test_the_hot_index_keeps_only_the_deadlines_of_what_is_hot(store: Any) -> None:
    hot = store._engine.hot
    for step in range(500):
        store.set("k", step, ttl=1 + step)
    assert hot.expiring == 1
    store.set_many(dict.fromkeys(range(1000), "x" * 3000), ttl=500)
    assert hot.expiring == len(hot) < 500
    store.delete_many(range(1000))
    del store["k"]
    assert hot.expiring == 0


def test_compaction_carries_the_index_over(store: Any, clock: ManualClock) -> None:
    store.set_many({number: number for number in range(100)}, ttl=10)
    store.set_many({-1 - number: number for number in range(100)}, ttl=100)
    store.save()
    store.compact()
    assert len(index(store)) == 200
    clock.sleep(11)
    tick(store)
    assert len(index(store)) == cold_records(store) == len(store) == 100
    assert store.check() == []


# default_ttl


def test_default_ttl_holds_where_a_write_names_none_and_only_there(opener: Any, clock: ManualClock) -> None:
    store = opener(stepwise=True, clock=clock, default_ttl=10)
    store["assigned"] = 1
    store.set("set", 1)
    store.set("for ever", 1, ttl=None)
    store.set("own", 1, ttl=20)
    store.update(updated=1)
    store.setdefault("setdefault", 1)
    store.incr("counted")
    store.set_many({"many": 1})
    store.set_many({"many for ever": 1}, ttl=None)
    expected = dict.fromkeys(["assigned", "set", "updated", "setdefault", "counted", "many"], 10.0)
    assert {key: store.ttl(key) for key in store} == expected | {"own": 20.0, "for ever": None, "many for ever": None}
    store.persist("set")
    store.incr("set")
    assert store.ttl("set") is None
    store["own"] = 2
    assert store.ttl("own") == 10
    clock.sleep(11)
    assert set(store) == {"for ever", "many for ever", "set"}


def test_default_ttl_is_remembered_and_can_change_at_run_time(opener: Any, clock: ManualClock) -> None:
    store = opener(stepwise=True, clock=clock, default_ttl=10)
    store["k"] = 1
    store.close()
    store = opener(stepwise=True, clock=clock)
    store["later"] = 1
    assert store.ttl("later") == 10
    store.config_set("default_ttl", None)
    store["for ever"] = 1
    assert store.ttl("for ever") is None
    assert store.ttl("k") == 10


# Over restarts


def test_deadlines_hold_over_a_restart_and_what_expired_meanwhile_stays_away(opener: Any, clock: ManualClock) -> None:
    store = opener(stepwise=True, clock=clock)
    store.set("short", 1, ttl=10)
    store.set("long", 1, ttl=100)
    store.close()
    clock.sleep(50)
    store = opener(stepwise=True, clock=clock)
    assert dict(store) == {"long": 1}
    assert store.ttl("long") == 50
    clock.sleep(2)
    tick(store)
    assert cold_records(store) == 1
    assert store.check() == []


def test_what_expired_before_a_restart_is_removed_after_it_without_any_write(opener: Any, clock: ManualClock) -> None:
    store = opener(stepwise=True, clock=clock)
    store.set_many(((number, 1) for number in range(10_000)), ttl=10)
    store.save()
    clock.sleep(11)
    # This checkpoint knows that all of them are due, and removes only a first slice.
    store["k"] = 1
    store.close()
    store = opener(stepwise=True, clock=clock)
    for _ in range(20):
        clock.sleep(2)
        tick(store)
    assert len(store) == 1
    assert cold_records(store) == 1


def test_a_clock_set_back_brings_nothing_to_life_again(opener: Any) -> None:
    clock = ManualClock()
    store = opener(stepwise=True, clock=clock)
    store.set("k", 1, ttl=10)
    clock.sleep(20)
    store["other"] = 1
    store.close()
    back = ManualClock(clock.now_ms() - 15_000)
    store = opener(stepwise=True, clock=back)
    assert "k" not in store
    assert list(store) == ["other"]
    assert back.now_ms() >= clock.now_ms()


def test_time_within_a_store_never_goes_backwards(store: Any, clock: ManualClock) -> None:
    store.set("k", 1, ttl=10)
    clock.sleep(20)
    assert "k" not in store
    clock.sleep(-19)
    assert "k" not in store
    store.set("new", 1, ttl=10)
    assert store.ttl("new") == 10


def test_the_program_that_only_reads_and_deletes_keeps_its_time_too(opener: Any) -> None:
    clock = ManualClock()
    store = opener(stepwise=True, clock=clock)
    store.set("k", 1, ttl=10)
    store.save()
    clock.sleep(20)
    tick(store)
    store.close()
    store = opener(stepwise=True, clock=ManualClock(clock.now_ms() - 15_000))
    assert "k" not in store
