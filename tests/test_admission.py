"""Admission: which values that are read become hot, and what leaves the hot tier as it is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from contracts import set_aside

import tiered
from tiered import aio
from tiered.admission import Admission
from tiered.config import Settings

MB = 1 << 20


def filled(opener: Any, count: int = 200, size: int = 100, **settings: Any) -> tiered.Store[Any, Any]:
    """A store whose records are all cold."""
    store: tiered.Store[Any, Any] = opener(stepwise=True, **settings)
    store.update((number, [number, "x" * size]) for number in range(count))
    store.save()
    store._engine.hot.clear()
    return store


def hot_keys(store: Any) -> list[Any]:
    """Those that are hot, the one that leaves first at the front."""
    return list(store._engine.hot)


async def _async_get(store: Any, key: Any) -> Any:
    return await aio.AsyncStore(store).get(key, promote=False)


async def _async_get_many(store: Any, key: Any) -> Any:
    return (await aio.AsyncStore(store).get_many([key], promote=False))[key]


def _in_view(store: Any, key: Any) -> Any:
    with store.view() as view:
        return view.get(key, promote=False)


def _in_transaction(store: Any, key: Any) -> Any:
    with store.transaction() as txn:
        return txn.get(key, promote=False)


GLANCES: dict[str, Callable[[Any, Any], Any]] = {
    "get": lambda store, key: store.get(key, promote=False),
    "get with a default": lambda store, key: store.get(key, "absent", promote=False),
    "get with a default by name": lambda store, key: store.get(key, promote=False, default="absent"),
    "get_many": lambda store, key: store.get_many([key], promote=False)[key],
    "asyncio": lambda store, key: asyncio.run(_async_get(store, key)),
    "asyncio, many": lambda store, key: asyncio.run(_async_get_many(store, key)),
    "view": _in_view,
    "transaction": _in_transaction,
}


@pytest.mark.parametrize("glance", GLANCES)
def test_a_read_without_promotion_leaves_the_hot_tier_as_it_is(opener: Any, glance: str) -> None:
    store = filled(opener)
    for key in (1, 2, 3):
        assert store[key] == [key, "x" * 100]
    store[4] = "dirty"
    store._engine.hot.discard(4)
    for key, expected in ((1, [1, "x" * 100]), (9, [9, "x" * 100]), (4, "dirty")):
        assert GLANCES[glance](store, key) == expected
    assert hot_keys(store) == [1, 2, 3]
    assert store.stats().promotions == 3


def test_a_sub_store_hands_promotion_on(opener: Any) -> None:
    store = opener(stepwise=True)
    store.sub("a")["k"] = store.sub("a")["l"] = [1]
    store.save()
    store._engine.hot.clear()
    part = store.sub("a")
    assert part.get("k", promote=False) == [1]
    assert part.get_many(["k", "l"], promote=False) == {"k": [1], "l": [1]}
    assert asyncio.run(aio.AsyncStore(store).sub("a").get("k", promote=False)) == [1]
    assert hot_keys(store) == []
    assert part.get("k") == [1]
    assert hot_keys(store) == [("a", "k")]


def test_reads_without_promotion_are_counted_as_reads_and_absent_keys_give_the_default(opener: Any) -> None:
    store = filled(opener)
    assert store[1]
    assert store.get(1, promote=False)
    assert store.get(2, promote=False)
    assert store.get("absent", promote=False) is None
    assert store.get("absent", 5, promote=False) == 5
    assert store.get_many([1, 2, "absent", 2], promote=False) == {1: [1, "x" * 100], 2: [2, "x" * 100]}
    stats = store.stats()
    assert (stats.hits, stats.cold_hits, stats.misses, stats.promotions) == (2, 3, 3, 1)
    with pytest.raises(TypeError, match="key"):
        store.get([], promote=False)
    with pytest.raises(TypeError, match="key"):
        store.get_many([[]], promote=False)
    with pytest.raises(TypeError):
        store.get(1, demote=True)
    store.close()
    with pytest.raises(tiered.ClosedError):
        store.get(1, promote=False)


def test_what_has_expired_is_absent_without_promotion(opener: Any, clock: Any) -> None:
    store = opener(stepwise=True, clock=clock)
    store.set("k", [1], ttl=10)
    assert store.get("k", promote=False) == [1]
    clock.sleep(10)
    assert store.get("k", promote=False) is None
    assert store.get_many(["k"], promote=False) == {}


@pytest.mark.parametrize("what", ["keys", "values", "items", "range", "len", "equality", "view", "check"])
def test_iteration_never_promotes_and_is_no_use(opener: Any, what: str) -> None:
    store = filled(opener)
    assert store[1]
    assert store[2]
    scan: dict[str, Callable[[], Any]] = {
        "keys": lambda: list(store),
        "values": lambda: list(store.values()),
        "items": lambda: dict(store.items()),
        "range": lambda: list(store.items(start=0, stop=50, reverse=True)),
        "len": lambda: len(store),
        "equality": lambda: store == {1: 2},
        "view": lambda: dict(store.view().items()),
        "check": store.check,
    }
    scan[what]()
    assert hot_keys(store) == [1, 2]
    assert store.stats().promotions == 2


# The second touch


def test_with_second_a_value_becomes_hot_at_its_second_read(opener: Any) -> None:
    store = filled(opener, promotion="second")
    for key in range(3):
        assert store[key]
    assert store.get_many([3, 4]) == {key: [key, "x" * 100] for key in (3, 4)}
    assert hot_keys(store) == []
    assert (store.stats().refusals, store.stats().promotions) == (5, 0)
    assert store[1]
    assert store.get_many([3])
    assert hot_keys(store) == [1, 3]
    assert (store.stats().refusals, store.stats().promotions) == (5, 2)
    store[7] = "written"
    assert hot_keys(store) == [1, 3, 7], "what is written is hot as ever"


def test_a_scan_does_not_flush_the_hot_tier_where_the_second_read_promotes(opener: Any) -> None:
    kept = {}  # 200 keys: of more, some would meet in the memory of what was seen, by the chance of their hashes.
    for promotion in ("first", "second"):
        store = filled(opener, 20_000, 200, promotion=promotion, path=promotion)
        for key in [*range(200)] * 2:
            assert store[key]
        assert len(hot_keys(store)) > 190
        for key in range(1000, 20_000):
            assert store[key]
        kept[promotion] = len(set(hot_keys(store)) & set(range(200)))
    assert kept["first"] == 0
    assert kept["second"] > 190


def test_what_was_seen_is_bounded_counted_and_forgets(opener: Any) -> None:
    store = opener(stepwise=True, memory="8MB", promotion="second")
    engine = store._engine
    before = engine.admission.used_bytes
    assert 0 < before <= 8 * MB // 128
    assert store.memory_stats().admission_bytes == before
    store["k"] = 1
    engine._rebudget()
    with_table = engine.hot.budget_bytes
    for number in range(100_000):
        engine.admission.admits(b"%d" % number, 10)
    assert engine.admission.used_bytes == before
    assert not engine.admission.admits(b"1", 10), "so many others came since"
    assert engine.admission.admits(b"1", 10)
    store.config_set("promotion", "first")
    assert store.memory_stats().admission_bytes == 0
    assert engine.hot.budget_bytes - with_table > before - 200, "less what the write of the setting took"
    assert engine.admission.admits(b"never seen", 10)


def test_keys_are_remembered_for_about_as_many_others_as_the_table_has_slots() -> None:
    settings = Settings.resolve({"memory": "8MB", "promotion": "second"}, {})
    admission = Admission(settings, 8 * MB)
    slots = admission.used_bytes // 4
    drawn = random.Random(1)
    kept = 0
    for _ in range(50):
        key = drawn.randbytes(12)
        admission.admits(key, 10)
        for _ in range(slots // 2):
            admission.admits(drawn.randbytes(12), 10)
        kept += admission.admits(key, 10)
    assert kept > 40, "all but those that have eight others in their slots: one in twenty"


def test_the_table_follows_the_memory(opener: Any) -> None:
    store = opener(stepwise=True, memory="8MB", promotion="second")
    before = store.memory_stats().admission_bytes
    store.config_set("memory", "16MB")
    assert store.memory_stats().admission_bytes == 2 * before


# Large values, and writers ahead of the checkpoints


def test_values_above_a_share_drawn_anew_are_served_and_not_kept_and_counted(opener: Any) -> None:
    store = opener(stepwise=True, memory="8MB", hot_value_share="0.02 0.1", compression="none")
    store["between"], store["large"] = b"x" * 480_000, b"x" * 900_000
    store.save()
    kept = 0
    for _ in range(60):
        store._engine.hot.clear()
        assert len(store["between"]) == 480_000
        kept += "between" in hot_keys(store)
        assert len(store["large"]) == 900_000
        assert "large" not in hot_keys(store)
    assert 0 < kept < 60
    assert store.stats().refusals == 120 - kept


def test_promotion_stops_while_writers_are_ahead_of_the_checkpoints(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(opener, memory="2MB")
    store["dirty"] = 1
    monkeypatch.setattr(store._engine.checkpointer, "run", lambda slices=False: False)
    set_aside(store)
    store["small"] = 1
    assert store[1]
    assert store.get_many([2])
    assert hot_keys(store)[-2:] == [1, 2], "a buffer is set aside, as at every checkpoint, and no pressure yet"
    share = store._engine.share_bytes
    number = 0
    while store._engine._active.used_bytes() < share * 5 // 8:
        store["filling", number] = "y" * 1000
        number += 1
    assert store._engine._aside
    before = store.stats()
    assert store[11] == [11, "x" * 100]
    assert len(store.get_many([12, 13])) == 2
    assert not {11, 12, 13} & set(hot_keys(store))
    after = store.stats()
    assert (after.promotions, after.refusals) == (before.promotions, before.refusals + 3)
    monkeypatch.undo()
    store.save()
    assert store[11]
    assert store.get_many([12])
    assert {11, 12} <= set(hot_keys(store))
