"""Watermarks: eviction goes down to a share of the budget drawn anew, in slices, by the periodic cycle."""

from __future__ import annotations

import time
from typing import Any

import pytest

import tiered
from tiered import jitter
from tiered.arena import ArenaTier
from tiered.clock import ManualClock
from tiered.heap import HeapTier
from tiered.hot import HotTier
from tiered.maintenance import MAINTENANCE
from tiered.native import native
from tiered.watermark import Watermark

MB = 1 << 20
EVICTIONS_MAX = 3000
KINDS: dict[str, Any] = {"heap": HeapTier, **({"arena": ArenaTier} if native is not None else {})}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]


def fill(tier: HotTier, size: int = 100) -> None:
    """Put values until one had to leave."""
    number = 0
    while not tier.evictions:
        tier.put(number, 2, b"x" * size, 0)
        number += 1


def go_round(store: Any, clock: ManualClock, seconds: float = 2.1) -> float:
    """A periodic cycle and all slices that follow; the most values that one slice evicted."""
    clock.sleep(seconds)
    most = 0
    for number in range(1000):
        before = store.stats().evictions
        store.tick()
        most = max(most, store.stats().evictions - before)
        if number and store.stats().evictions == before and not store._engine.watermark.share:
            return most
        clock.sleep(0.002)
    raise AssertionError("it never ends")


def share(store: Any) -> float:
    return float(store._engine.hot.used_bytes / store._engine.hot.budget_bytes)


def test_a_number_is_drawn_between_its_bounds_and_another_one_each_time() -> None:
    numbers = [jitter.drawn((2.0, 6.0)) for _ in range(1000)]
    assert 2.0 <= min(numbers) < 2.2
    assert 5.8 < max(numbers) <= 6.0
    assert len(set(numbers)) > 990
    assert jitter.drawn((3.0, 3.0)) == 3.0


def test_nothing_leaves_where_the_budget_was_not_reached(kind: Any) -> None:
    tier, mark = kind("lru", 4 * MB), Watermark()
    for number in range(100):
        tier.put(number, 2, b"x" * 100, 0)
    mark.look(tier, (0.2, 0.3))
    assert not mark.share
    assert not mark.step(tier)
    assert len(tier) == 100


def test_where_it_was_reached_slices_lead_down_to_the_share_drawn_the_oldest_first(kind: Any) -> None:
    tier, mark = kind("lru", 4 * MB), Watermark()
    fill(tier)
    newest = list(tier)[-1]
    mark.look(tier, (0.5, 0.6))
    slices, target = 0, mark.share
    assert 0.5 <= target <= 0.6
    while True:
        before = tier.evictions
        more = mark.step(tier)
        assert tier.evictions - before <= EVICTIONS_MAX
        slices += 1
        if not more:
            break
    assert slices > 1
    assert target - 0.06 < tier.used_bytes / tier.budget_bytes <= target
    assert list(tier)[-1] == newest
    assert list(tier) == list(range(newest - len(tier) + 1, newest + 1))
    assert tier.wrong() == ""
    mark.look(tier, (0.1, 0.1))
    assert not mark.share, "its own evictions are no reason to go further down"
    tier.budget_bytes = tier.used_bytes
    fill_more = tier.evictions
    while tier.evictions == fill_more:
        newest += 1
        tier.put(newest, 2, b"x" * 100, 0)
    mark.look(tier, (0.5, 0.6))
    assert mark.share not in (0.0, target), "drawn anew"


def test_a_watermark_below_what_the_tables_take_comes_to_an_end(kind: Any) -> None:
    tier, mark = kind("lru", 100_000), Watermark()
    fill(tier)
    mark.look(tier, (1e-6, 1e-6))
    for _ in range(100):
        if not mark.step(tier):
            break
    assert not mark.step(tier)
    assert len(tier) == 0


def test_a_hundred_small_values_or_a_huge_one_evict_a_bounded_part_and_the_cycle_the_rest(opener: Any) -> None:
    clock = ManualClock()
    store = opener(memory="12MB", low_watermark="0.5 0.6", clock=clock, stepwise=True)
    hot = store._engine.hot
    for start in range(0, 120_000, 1000):
        store.update((number, b"x" * 100) for number in range(start, start + 1000))
    store.save()
    assert len(store.get_many(range(120_000))) == 120_000
    store.update((number, b"y" * 100) for number in range(1000))
    assert len(hot) < 100_000
    for size in (1_200_000, 700_000, 100_000):
        before = hot.evictions
        store["huge"] = b"z" * size
        assert hot.evictions - before <= 2 * EVICTIONS_MAX, "one for the budget, one for the value"
        assert store["huge"] == b"z" * size
    before = hot.evictions
    store.update((("batch", number), b"z" * 30_000) for number in range(24))
    assert 1000 < hot.evictions - before <= 2 * EVICTIONS_MAX
    before = hot.evictions
    with store.transaction() as txn:
        txn.update((("transaction", number), b"z" * 30_000) for number in range(80))
    assert 1000 < hot.evictions - before <= 2 * EVICTIONS_MAX
    before = hot.evictions
    assert len(store.get_many(range(30_000))) == 30_000
    assert hot.evictions - before <= 2 * EVICTIONS_MAX
    store.save()
    assert share(store) > 0.65
    most = go_round(store, clock)
    assert 0.44 < share(store) <= 0.6
    assert 0 < most <= EVICTIONS_MAX
    assert store[5] == b"y" * 100


def test_two_stores_go_down_to_different_shares_and_again_to_another_one(opener: Any) -> None:
    clock = ManualClock()
    seen = []
    for name in ("one", "two"):
        store = opener(name, memory="2MB", low_watermark=(0.3, 0.8), clock=clock, stepwise=True)
        for _ in range(2):
            for number in range(20_000):
                store[number] = b"x" * 100
            store.save()
            for number in range(20_000):
                assert store[number] == b"x" * 100
            go_round(store, clock)
            seen.append(share(store))
    assert all(0.2 < found <= 0.8 for found in seen)
    assert len({round(found, 3) for found in seen}) >= 3, seen


def test_a_store_that_is_only_read_goes_down_by_itself_in_the_background(opener: Any) -> None:
    with opener("read.tiered", memory="1MB", helper=False) as store:
        store.update((number, b"x" * 1000) for number in range(3000))
    store = opener("read.tiered", memory="1MB", low_watermark="0.5", cycle_seconds="0.01 0.05")
    store["begin"] = 1  # Which the setting did already, being remembered.
    store.save()
    store.close()
    store = opener("read.tiered", memory="1MB", warm_start=False)
    store.close()
    store = opener("read.tiered", memory="1MB")
    assert store._engine._number == 0
    assert store[0] == b"x" * 1000
    assert store._engine._number == 0, "a little reading starts nothing"
    for number in range(3000):
        assert store[number] == b"x" * 1000
    limit = time.monotonic() + 10
    start = 0
    while share(store) > 0.5:  # It may have been down meanwhile, and be on its way up again.
        assert time.monotonic() < limit
        for number in range(start, start + 300):
            assert store[number % 3000] == b"x" * 1000
        start += 300
        time.sleep(0.1)


def test_a_reader_in_front_of_a_writer_goes_down_too(opener: Any) -> None:
    clock = ManualClock()
    writer = opener(memory="1MB", stepwise=True)
    writer.update((number, b"x" * 1000) for number in range(3000))
    writer.close()
    reader = opener(flag="r", memory="1MB", low_watermark="0.5", clock=clock, stepwise=True)
    for number in range(3000):
        assert reader[number] == b"x" * 1000
    assert share(reader) > 0.7
    go_round(reader, clock)
    assert share(reader) <= 0.5


def test_what_views_and_buffers_take_meanwhile_is_measured_anew_by_each_cycle(opener: Any) -> None:
    clock = ManualClock()
    store = opener(memory="2MB", clock=clock, stepwise=True)
    store.update((number, b"x" * 100) for number in range(300))
    engine = store._engine
    with store.view() as view:
        view_keys = list(view.keys())  # The order of the buffers' keys, kept by the view.
        engine.hot.budget_bytes = 2 * MB
        clock.sleep(2.1)
        store.tick()
        assert store.stats().dirty_records == len(view_keys) == 300
        assert engine.hot.budget_bytes < 2 * MB - 30_000


def test_the_growth_of_the_program_itself_evicts_nothing(opener: Any) -> None:
    clock = ManualClock()
    store = opener(memory="4MB", clock=clock, stepwise=True, low_watermark="0.5")
    store.update((number, b"x" * 1000) for number in range(2000))
    store.save()
    assert len(store.get_many(range(2000))) == 2000
    before = store.stats().hot_records
    kept = b"y" * (60 * MB)
    assert store.memory_stats().grown_bytes > 10 * store.memory_stats().budget_bytes
    go_round(store, clock)
    assert store.stats().hot_records == before
    assert kept


@pytest.mark.parametrize(("bounds", "least", "most"), [("3 5", 3.0, 5.0), ("0.05 0.2", 0.05, 0.2), (7, 7.0, 7.0)])
def test_cycles_come_after_seconds_between_the_bounds_also_when_these_change_at_run_time(
    opener: Any, bounds: Any, least: float, most: float
) -> None:
    clock = ManualClock()
    store = opener(clock=clock, stepwise=True)
    store.config_set("cycle_seconds", bounds)
    waits = set()
    for _ in range(20):
        clock.sleep(store._engine._cycle_at - clock.monotonic())
        now = clock.monotonic()
        again = store.tick()
        waits.add(store._engine._cycle_at - now)
        assert again <= max(0.01, store._engine._cycle_at - now) + 1e-9
    assert least - 1e-6 <= min(waits) <= max(waits) <= most + 1e-6
    assert len(waits) > 15 or least == most


def test_a_shorter_cycle_is_in_force_at_once(opener: Any) -> None:
    store = opener(cycle_seconds=3600)
    store["k"] = 1
    store.config_set("cycle_seconds", "0.01 0.02")
    assert store._engine._cycle_at - store._engine.clock.monotonic() <= 0.02


def test_a_large_value_that_is_read_is_kept_hot_below_a_share_that_is_drawn(opener: Any) -> None:
    store = opener(memory="8MB", stepwise=True, hot_value_share="0.02 0.1", compression="none")
    sizes = {"small": 100_000, "between": 480_000, "large": 900_000}
    for name, size in sizes.items():
        store[name] = b"x" * size
    store.save()
    kept = dict.fromkeys(sizes, 0)
    for _ in range(60):
        store._engine.hot.clear()
        for name, size in sizes.items():
            assert len(store[name]) == size
            kept[name] += "hot" in store.explain(name).tiers
    assert kept["small"] == 60
    assert 0 < kept["between"] < 60
    assert kept["large"] == 0
    store.config_set("hot_value_share", "0.125")
    store._engine.hot.clear()
    assert len(store.get_many(sizes)) == 3
    assert all("hot" in store.explain(name).tiers for name in sizes)
    store.config_set("hot_value_share", 0)
    store._engine.hot.clear()
    assert len(store.get_many(sizes)) == 3
    assert store["small"]
    assert store.stats().hot_records == 0


@pytest.mark.parametrize(
    "bad", ["", "0.5 0.4", "0.05", "1.1", "0.9 1.1", "a b", "0.5 0.6 0.7", None, True, [], {}, "nan"]
)
def test_what_is_no_pair_of_shares_is_refused(opener: Any, bad: Any) -> None:
    store = opener()
    with pytest.raises(tiered.ConfigError, match=r"low_watermark=.*from 0.1 to 1"):
        store.config_set("low_watermark", bad)
    assert store.config_get("low_watermark") == {"low_watermark": (0.95, 0.99)}


def test_no_slice_of_a_large_hot_tier_takes_long(kind: Any) -> None:
    tier = kind("lru", 256 * MB if kind is not HeapTier else 16 * MB)
    number = 0
    while not tier.evictions:
        names = list(range(number, number + 1000))
        tier.put_many(names, [2] * 1000, [b"x" * 100] * 1000, 0, 2000)
        number += 1000
    times = []
    done = False
    while not done:
        began = time.thread_time()
        done = tier.shrink(tier.budget_bytes // 2)
        times.append(time.thread_time() - began)
    assert len(times) > 5
    # The machine may be busy with others now and then, hence not the longest.
    assert sorted(times)[len(times) * 9 // 10] < 0.005


def test_the_thread_serves_engines_that_reach_their_budget_only(opener: Any) -> None:
    store = opener(memory="1MB")
    assert store.get("absent") is None
    assert not MAINTENANCE._engines
