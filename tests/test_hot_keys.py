"""Warm restart: the list of hot keys is saved at a clean close, and read ahead at open."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from programs import wait_until

import tiered
from tiered import hot_keys, keys
from tiered.arena import ArenaTier
from tiered.heap import HeapTier
from tiered.native import native

MB = 1 << 20
KINDS: dict[str, Any] = {"heap": HeapTier, **({"arena": ArenaTier} if native is not None else {})}


def warm(store: Any) -> None:
    """Do what the background thread does until everything is read ahead."""
    while store._engine.warming is not None:
        store.tick()


def hot(store: Any) -> list[Any]:
    return list(store._engine.hot)


def read_newest(store: Any) -> None:
    """Reads enough for a list to be written, which change no order."""
    newest = hot(store)[-1]
    for _ in range(100):
        assert store[newest] is not None


def zipf(count: int, reads: int, seed: int) -> list[int]:
    weights = [1 / rank**0.9 for rank in range(1, count + 1)]
    drawn = random.Random(seed)
    names = list(range(count))
    random.Random(0).shuffle(names)
    return drawn.choices(names, weights, k=reads)


def hit_ratio(store: Any, reads: list[int]) -> float:
    before = store.stats()
    for key in reads:
        assert store[key] == (key, "x" * 100)
    after = store.stats()
    return float((after.hits - before.hits) / len(reads))


def test_after_a_restart_the_hit_ratio_is_at_once_what_it_was(opener: Any) -> None:
    count = 40_000
    with opener(stepwise=True, memory="2MB") as store:
        store.update((number, (number, "x" * 100)) for number in range(count))
        store.save()
        hit_ratio(store, zipf(count, 40_000, 1))
        before = hit_ratio(store, zipf(count, 10_000, 2))
    store = opener(stepwise=True, memory="2MB")
    warm(store)
    assert store.stats().prefetched > 1000
    after = hit_ratio(store, zipf(count, 10_000, 3))
    assert 0.3 < before < 0.8
    assert after >= 0.9 * before
    store.close()
    store = opener(stepwise=True, memory="2MB", warm_start=False)
    assert hit_ratio(store, zipf(count, 10_000, 3)) < 0.9 * before, "which is not so by itself"


def test_what_was_hot_is_hot_again_and_leaves_in_the_same_order(opener: Any) -> None:
    with opener(stepwise=True) as store:
        store.update((number, [number]) for number in range(500))
        store.save()
        read_newest(store)
        for number in (7, 3, 450, 7):
            assert store[number] == [number]
        order = hot(store)
    store = opener(stepwise=True)
    assert hot(store) == []
    warm(store)
    assert hot(store) == order
    assert (store.stats().prefetched, store.stats().promotions) == (500, 0)


def test_reading_ahead_takes_place_in_the_background(opener: Any) -> None:
    with opener() as store:
        store.update((number, [number]) for number in range(500))
        read_newest(store)
    store = opener()
    wait_until(lambda: len(hot(store)) == 500)
    wait_until(lambda: store._engine.warming is None)


@pytest.mark.parametrize(("count", "size"), [(5000, 200), (60, 25_000)])
def test_the_hottest_come_first_in_slices_and_none_is_evicted_for_another(opener: Any, count: int, size: int) -> None:
    with opener(stepwise=True, memory="4MB") as store:
        store.update((number, "x" * size) for number in range(count))
        store.save()
        read_newest(store)
        order = hot(store)
    store = opener(stepwise=True, memory="1MB")
    store.tick()
    first = hot(store)
    assert 0 < len(first) < count
    assert first == order[::-1][: len(first)]
    warm(store)
    assert set(hot(store)) == set(order[-len(hot(store)) :])
    assert store.stats().evictions == 0
    assert 0.7 < store._engine.hot.used_bytes / store._engine.hot.budget_bytes <= 1


def test_what_was_written_since_is_not_covered_by_what_is_read_ahead(opener: Any) -> None:
    with opener(stepwise=True) as store:
        store.update((number, "old") for number in range(100))
        read_newest(store)
    store = opener(stepwise=True)
    store[1] = "new"
    del store[2]
    store[3] = "new"
    store._engine.hot.discard(3)
    warm(store)
    assert (store[1], store.get(2), store[3]) == ("new", None, "new")
    assert 2 not in hot(store)
    store.save()
    assert (store[1], store.get(2), store[3], store[4]) == ("new", None, "new", "old")


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_write_and_a_checkpoint_in_the_middle_of_reading_ahead_win(
    opener: Any, monkeypatch: pytest.MonkeyPatch, checkpoint: bool
) -> None:
    with opener(stepwise=True) as store:
        store.update((number, "old") for number in range(100))
        read_newest(store)
    store = opener(stepwise=True)
    cold = store._engine.cold
    layout_of = cold.layout_of

    def write() -> None:
        for number in range(90, 100):
            store[number] = "new"
        if checkpoint:
            store.save()

    writer = threading.Thread(target=write)

    def read_and_be_late(txn: Any) -> Any:
        monkeypatch.undo()
        writer.start()
        writer.join(0.3)  # It is kept waiting; without that it is done by then.
        store._engine.hot.clear()
        return layout_of(txn)

    cold._layout = cold._layout._replace(transaction=-1)
    monkeypatch.setattr(cold, "layout_of", read_and_be_late)
    warm(store)
    writer.join()
    assert [store[number] for number in range(90, 100)] == ["new"] * 10


def test_who_misses_while_reading_ahead_is_under_way_reads_ahead_too(opener: Any) -> None:
    with opener(stepwise=True, memory="4MB") as store:
        store.update((number, "x" * 100) for number in range(10_000))
        store.save()
        read_newest(store)
    store = opener(stepwise=True, memory="4MB")
    engine = store._engine
    engine.tick()  # Which takes the list up.
    assert engine.warming is not None
    numbers = random.Random(4).sample(range(10_000), 2000)
    before = len(engine.hot)
    for number in numbers[:50]:
        assert store[number] == "x" * 100
    assert len(engine.hot) > before + 50 * 10
    before = len(engine.hot)
    assert len(store.get_many(numbers[50:500])) == 450
    assert len(engine.hot) > before + 700
    store.config_set("warm_start", False)
    before = len(engine.hot)
    assert engine.direct
    assert all(store[number] == "x" * 100 for number in numbers[500:600])
    assert len(engine.hot) <= before + 100


@pytest.mark.parametrize("durable", ["first", "second"])
def test_values_that_are_read_ahead_need_no_second_read_and_keep_their_time_to_live(
    opener: Any, clock: Any, durable: str
) -> None:
    with opener(stepwise=True, clock=clock, promotion=durable) as store:
        store["a"] = 1
        store.set("b", 2, ttl=100)
        store.set("c", 3, ttl=10)
        read_newest(store)
    clock.sleep(20)
    store = opener(stepwise=True, clock=clock)
    warm(store)
    assert set(hot(store)) == {"a", "b"}
    clock.sleep(100)
    assert (store["a"], store.get("b")) == (1, None)


def test_a_damaged_or_missing_list_is_no_list(opener: Any, tmp_path: Path) -> None:
    with opener(stepwise=True) as store:
        store.update((number, [number]) for number in range(100))
        read_newest(store)
    path = tmp_path / "store.tiered" / "HOT"
    whole = path.read_bytes()
    assert hot_keys.load(path) == whole[20:]
    damaged = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 7)]
    damaged += [whole[:at] for at in range(0, len(whole), 11)] + [whole + b"\0", b"", os.urandom(1000)]
    for data in damaged:
        path.write_bytes(data)
        assert hot_keys.load(path) == b""
    store = opener(stepwise=True)
    warm(store)
    assert hot(store) == []
    store.close()
    path.unlink(missing_ok=True)
    store = opener(stepwise=True)
    assert store._engine.warming is None
    assert store[1] == [1]
    store.close()
    path.unlink()
    path.mkdir()
    store = opener(stepwise=True)
    warm(store)
    assert store[1] == [1]
    store.close()


def test_a_damaged_record_ends_reading_ahead_and_no_call_but_its_own_read(opener: Any) -> None:
    from contracts import damage

    with opener(stepwise=True) as store:
        store.update((number, [number]) for number in range(100))
        store.save()
        read_newest(store)
        damage(store, 99)
    store = opener(stepwise=True)
    warm(store)
    assert store[1] == [1]
    with pytest.raises(tiered.CorruptionError):
        store[99]
    store[99] = "repaired"
    store.save()


def test_the_list_is_bounded_and_holds_the_hottest(tmp_path: Path) -> None:
    for kind in KINDS.values():
        tier = kind("lru", 8 * MB)
        for number in range(20_000):
            tier.put(f"key {number:06d}", 2, b"x", 0)
        tier.put("long" * 1000, 2, b"x", 0)
        hot_keys.save(tmp_path / "HOT", tier, MB, len(tier))
        body = hot_keys.load(tmp_path / "HOT")
        assert MB // 16 * 0.7 < len(body) <= MB // 16
        assert body[:-2].endswith(keys.encode("key 019999")), "what is long is left out"
        assert body.count(b"key") > 3000
        encoded, place = tier.keys_from(0, 20_000)
        assert place
        assert tier.keys_from(place, 5) == ([keys.encode("long" * 1000)], 0)
        assert [keys.decode(key) for key in encoded] == list(tier)[:-1]
        assert tier.keys_from(0, 20_001)[1] == 0
        tier.clear()
        hot_keys.save(tmp_path / "HOT", tier, MB, len(tier))
        assert not (tmp_path / "HOT").exists(), "nothing is hot: no list"


def test_switched_off_nothing_is_noted_or_read_and_what_was_noted_goes(opener: Any, tmp_path: Path) -> None:
    with opener(stepwise=True) as store:
        store["a"] = 1
        read_newest(store)
    assert (tmp_path / "store.tiered" / "HOT").exists()
    with opener(stepwise=True, warm_start=False) as store:
        assert store._engine.warming is None
    assert not (tmp_path / "store.tiered" / "HOT").exists()
    with opener(stepwise=True, warm_start=True) as store:
        assert store["a"] == 1
    store = opener(stepwise=True)
    assert store._engine.warming is not None
    store.config_set("warm_start", False)
    store.tick()
    assert hot(store) == []


def test_a_store_made_anew_reads_nothing_ahead(opener: Any, tmp_path: Path) -> None:
    with opener(stepwise=True) as store:
        store["secret"] = 1
        read_newest(store)
    with opener(stepwise=True, flag="n") as store:
        assert store._engine.warming is None
        assert not (tmp_path / "store.tiered" / "HOT").exists()


def test_a_list_that_cannot_be_written_keeps_no_store_from_closing(
    opener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, hot: Any, memory: int, reads: int) -> None:
        raise tiered.StoreFullError(path, "the disk is full")

    monkeypatch.setattr(hot_keys, "save", full)
    store = opener(stepwise=True)
    store["a"] = 1
    store.close()
    assert not (tmp_path / "store.tiered" / "HOT").exists()
    assert opener(stepwise=True)["a"] == 1


def test_closing_before_all_was_read_ahead_keeps_the_list(opener: Any, tmp_path: Path) -> None:
    with opener(stepwise=True) as store:
        store.update((number, [number]) for number in range(500))
        read_newest(store)
    before = (tmp_path / "store.tiered" / "HOT").read_bytes()
    opener(stepwise=True).close()
    assert (tmp_path / "store.tiered" / "HOT").read_bytes() == before


def test_who_hardly_reads_leaves_the_list_as_it_was(opener: Any, tmp_path: Path) -> None:
    path = tmp_path / "store.tiered" / "HOT"
    with opener(stepwise=True, memory="4MB") as store:
        store.update((number, [number]) for number in range(1000))
        assert store[1] == [1]
    assert not path.exists(), "what was written last says nothing"
    with opener(stepwise=True, memory="4MB") as store:
        assert [store[number] for number in range(100)] == [[number] for number in range(100)]
    before = path.read_bytes()
    with opener(stepwise=True, memory="4MB") as store:
        warm(store)
        store.update((number, [number]) for number in range(1000, 5000))
        assert store[4] == [4]
    assert path.read_bytes() == before
    with opener(stepwise=True, memory="4MB") as store:
        warm(store)
        with opener(memory="4MB") as other:
            assert [other[number] for number in range(3)] == [[0], [1], [2]]
    assert path.read_bytes() != before, "reads of every handle count"
