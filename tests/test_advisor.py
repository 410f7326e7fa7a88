"""The advisor: hit ratios of other budgets from a sample, against exact simulation of least-recently-used eviction."""

from __future__ import annotations

import asyncio
import gzip
import random
import struct
import sys
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiered
from tiered import advisor, aio
from tiered.advisor import PureShards, bucket_of, bucket_start, hit_ratio, hit_ratios
from tiered.native import native

MB = 1 << 20
KINDS: dict[str, Any] = {"pure": PureShards, **({"compiled": native.Shards} if native is not None else {})}
PLACES = [folder / "shared" / "traces" for folder in Path(__file__).resolve().parents[2:]]
TRACES = next((place for place in PLACES if place.exists()), PLACES[0])
Trace = list[tuple[int, int]]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]


def lru_hit_ratio(trace: Trace, room: float) -> float:
    """By doing it."""
    kept, used, hits = OrderedDict[int, int](), 0, 0
    for key, size in trace:
        before = kept.pop(key, None)
        if before is not None:
            used -= before
            hits += 1
        kept[key] = size
        used += size
        while used > room:
            used -= kept.popitem(last=False)[1]
    return hits / len(trace)


def zipf(reads: int, keys: int, seed: int, skew: float = 0.9) -> Iterator[int]:
    weights = [1 / rank**skew for rank in range(1, keys + 1)]
    return iter(random.Random(seed).choices(range(keys), weights, k=reads))


def size_of(key: int) -> int:
    """Between 50 and 3,000 bytes, small ones more often."""
    return int(50 * 60 ** random.Random(key).random())


def zipf_trace() -> Trace:
    sizes = {key: size_of(key) for key in range(60_000)}
    return [(key, sizes[key]) for key in zipf(150_000, 60_000, 1)]


def scans_trace() -> Trace:
    """Skewed reads, a loop over a part, and scans through everything in between."""
    drawn, skewed = random.Random(2), zipf(100_000, 30_000, 2)
    names: list[int] = []
    for _ in range(5):
        names += [next(skewed) for _ in range(15_000)]
        names += range(100_000, 112_000)
        names += [drawn.randrange(4000) for _ in range(5000)]
    return [(key, 100 + key % 50) for key in names]


def cloud_physics_trace() -> Trace:
    path = TRACES / "cloudPhysicsIO.oracleGeneral.bin"
    if not path.exists():
        pytest.skip(f"no trace {path}")
    return [(key, max(1, size)) for _, key, size, _ in struct.iter_unpack("<IQIq", path.read_bytes())]


def gli_trace() -> Trace:
    path = TRACES / "gli.trace.gz"
    if not path.exists():
        pytest.skip(f"no trace {path}")
    with gzip.open(path, "rt") as file:
        return [(int(line), 1) for line in file if line.strip() and not line.startswith("*")]


MADE: dict[str, Callable[[], Trace]] = {
    "zipf": zipf_trace,
    "scans": scans_trace,
    "cloudPhysics": cloud_physics_trace,
    "gli": gli_trace,
}


def sampled(kind: Any, trace: Trace, keys_max: int = advisor.KEYS_MAX, seed: int = 1) -> Any:
    shards, drawn, hashes = kind(keys_max), random.Random(seed), dict[int, int]()
    for key, size in trace:
        hashed = hashes.get(key)
        if hashed is None:
            hashed = hashes[key] = drawn.getrandbits(32)
        shards.touch(hashed, size, True)
    return shards


def rooms(trace: Trace) -> list[float]:
    """Twelve sizes, up to all of it."""
    whole = sum(dict(trace).values())
    return [whole / 1.6**step for step in range(12)]


@pytest.mark.parametrize("name", MADE)
def test_the_mean_absolute_error_against_exact_simulation_is_at_most_a_hundredth(name: str) -> None:
    trace = MADE[name]()
    exact = [lru_hit_ratio(trace, room) for room in rooms(trace)]
    ratios = hit_ratios(sampled(advisor.Shards, trace))
    found = [hit_ratio(ratios, room) for room in rooms(trace)]
    error = sum(abs(a - b) for a, b in zip(exact, found, strict=True)) / len(exact)
    assert error <= 0.01, list(zip(exact, found, strict=True))


def test_where_all_keys_fit_into_the_sample_the_curve_is_exact(kind: Any) -> None:
    trace = [(key, 64) for key in zipf(20_000, 3000, 3)]
    shards = sampled(kind, trace)
    assert shards.limit == 1 << 32
    ratios = hit_ratios(shards)
    for count in (10, 32, 100, 1000):
        room = bucket_start(bucket_of(count * 64))
        assert hit_ratio(ratios, room) == pytest.approx(lru_hit_ratio(trace, room - 1), abs=1e-9)


def test_both_kinds_give_the_same(kind: Any) -> None:
    drawn = random.Random(5)
    pure, other = PureShards(50), kind(50)
    for step in range(20_000):
        hashed = drawn.getrandbits(32) if step % 3 else drawn.getrandbits(8) << 24
        size, counted = drawn.randrange(1, 1 << 31 if step % 100 == 0 else 5000), drawn.random() < 0.8
        pure.touch(hashed, size, counted)
        other.touch(hashed, size, counted)
        if step % 500 == 0:
            assert (pure.limit, pure.reads, len(pure)) == (other.limit, other.reads, len(other))
            assert pure.first_reads == other.first_reads
            assert pure.counts() == other.counts()
    assert pure.limit < 1 << 32
    assert sum(pure.counts()) > 0


def test_buckets_are_contiguous_and_thirty_two_for_each_power_of_two() -> None:
    for bucket in range(1900):
        assert bucket_of(bucket_start(bucket)) == bucket
        assert bucket_of(bucket_start(bucket + 1) - 1) == bucket
    assert bucket_of((1 << 64) - 1) < advisor.BUCKETS
    assert bucket_of(1 << 40) - bucket_of(1 << 39) == 32


def test_the_sample_is_bounded_in_keys_and_takes_no_more_than_a_megabyte(kind: Any) -> None:
    tracemalloc.start()
    try:
        shards = kind()
        drawn = random.Random(1)
        for number in range(24_000):
            shards.touch(drawn.getrandbits(32), 100, True)
            assert number % 1000 or len(shards) <= advisor.KEYS_MAX
        used = max(tracemalloc.get_traced_memory()[0], sys.getsizeof(shards))
    finally:
        tracemalloc.stop()
    assert 0.8 * advisor.KEYS_MAX < len(shards) <= advisor.KEYS_MAX
    assert used <= MB


def test_a_write_is_a_use_but_no_read(kind: Any) -> None:
    shards = kind(100)
    shards.touch(1, 100, False)
    assert shards.reads == 0
    shards.touch(2, 50, False)
    shards.touch(1, 100, True)
    assert (shards.reads, shards.first_reads) == (1, 0.0)
    ratios = hit_ratios(shards)
    assert hit_ratio(ratios, 145) == 0.0
    assert hit_ratio(ratios, 160) == 1.0


# Under a store


def advised(opener: Any, memory: str, **settings: Any) -> tuple[float, tiered.Store[Any, Any]]:
    """The hit ratio of skewed reads, after as many to warm up."""
    store = opener(memory, stepwise=True, memory=memory, advisor=True, object_share=0, **settings)
    store.update((number, "x" * 200) for number in range(40_000))
    store.save()
    for key in zipf(40_000, 40_000, 1):
        assert store[key]
    store.config_set("advisor", False)
    store.config_set("advisor", True)
    before = store.stats()
    for key in zipf(60_000, 40_000, 2):
        assert store[key]
    after = store.stats()
    return (after.hits - before.hits) / 60_000, store


def test_what_is_advised_is_what_comes_of_it(opener: Any) -> None:
    _, store = advised(opener, "4MB")
    advice = store.advise()
    assert advice.memory == 4 * MB
    assert [memory for memory, _ in advice.curve] == [int(4 * MB * factor) for factor in (0.125, 0.25, 0.5, 1, 2, 4, 8)]
    ratios = [ratio for _, ratio in advice.curve]
    assert ratios == sorted(ratios)
    # In the 60,000 reads that the advisor saw, those that were first are none that it could count as hits.
    first = len(set(zipf(60_000, 40_000, 2))) / 60_000
    for memory, ratio in ((2, ratios[2]), (4, ratios[3]), (8, ratios[4])):
        found, _ = advised(opener, f"{memory}MB")
        assert ratio - 0.03 <= found <= ratio + first + 0.03, (memory, ratio, found)
    assert ratios[-1] - 0.011 <= advice.enough.hit_ratio
    assert advice.curve[2].hit_ratio < advice.enough.hit_ratio, "half as much is not enough"
    assert 2 * MB < advice.enough.memory < 8 * MB
    assert str(advice).count("\n") == 9
    assert "4.0 MB" in str(advice)
    assert " now" in str(advice)


def test_reads_of_all_tiers_are_seen_and_reads_without_promotion_and_of_nothing_are_not(opener: Any) -> None:
    store = opener(stepwise=True, advisor=True)

    def seen(read: Callable[[], Any]) -> int:
        before = store.advise().reads
        read()
        return int(store.advise().reads - before)

    store["k"] = ["document"]
    for _ in range(5):
        assert seen(lambda: store["k"]) == 1  # In the end decoded already.
    assert seen(lambda: store.get("k")) == 1
    assert seen(lambda: store.get_many(["k", "absent"])) == 1
    assert seen(lambda: asyncio.run(aio.AsyncStore(store).get("k"))) == 1
    store._engine.hot.clear()
    assert seen(lambda: store["k"]) == 1, "from the write buffer"
    store.save()
    for read in (
        lambda: store["k"],
        lambda: store.get_many(["k"]),
        lambda: asyncio.run(aio.AsyncStore(store).get("k")),
    ):
        store._engine.hot.clear()
        assert seen(read) == 1, "cold"
    assert seen(lambda: store.get("absent")) == 0
    assert seen(lambda: store.get("k", promote=False)) == 0
    assert seen(lambda: dict(store.items())) == 0
    assert seen(lambda: store.update({"a": 1})) == 0
    assert store.advise().sampled_keys == 2
    assert asyncio.run(aio.AsyncStore(store).advise()).reads == store.advise().reads


def test_the_same_key_is_the_same_hot_and_cold_and_however_it_is_written(opener: Any) -> None:
    store = opener(stepwise=True, advisor=True)
    for key in (1, "text", "é", b"bytes", ("a", 1), 10**30):
        store[key] = 1
        store.save()
        store._engine.hot.clear()
        assert store[key] == store[key] == store.get_many([key])[key] == 1
    assert store[True] == store[1.0] == 1
    assert store.advise().sampled_keys == 6


def test_the_advisor_is_switched_at_run_time_for_all_handles(opener: Any) -> None:
    store, other = opener(stepwise=True), opener(stepwise=True)
    store["k"] = 1
    with pytest.raises(tiered.ConfigError, match="advisor=True"):
        store.advise()
    store.config_set("advisor", True)
    assert str(store.advise()) == "no reads seen yet"
    assert {ratio for _, ratio in store.advise().curve} == {0.0}
    assert store["k"] == other["k"] == 1
    assert store.advise() == other.advise()
    assert store.advise().reads == 2
    other.config_set("advisor", False)
    assert store["k"] == other["k"] == 1
    assert store._engine.advisor is None
    store.config_set("advisor", True)
    assert store.advise().reads == 0, "from nothing"


def test_reads_of_a_read_only_handle_and_of_a_closed_store(opener: Any) -> None:
    store = opener(stepwise=True, advisor=True)
    store["k"] = 1
    reader = opener(flag="r", memory="1MB")
    assert reader["k"] == 1
    assert reader.advise().reads == 1
    store.close()
    with pytest.raises(tiered.ClosedError):
        store.advise()
