"""The object tier: documents read often are kept decoded, and whoever reads one has a copy of his own."""

from __future__ import annotations

import gc
import random
import sys
import tracemalloc
import uuid
import weakref
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import tiered
from tiered import codec, keys
from tiered.native import native

pytestmark = pytest.mark.skipif(native is None, reason="needs the compiled part: a C compiler, and no TIERED_PURE=1")
MB = 1 << 20
SHARE = 128 << 10

DOCUMENT = {
    "id": 7,
    "tags": ["a", "b"],
    "at": {"place": [1.5, -2.0], "seen": {1, 2}},
    "who": ("x", 1, (2, "y")),
    "ok": True,
}


def arena(share: int = SHARE, budget: int = MB, entries: int = 512, value_bytes: int = 1024) -> Any:
    tier = native.Arena(budget, keys.encode, codec.DECODERS, bytes(16))
    tier.keep_objects(share, entries, value_bytes, codec.is_immutable)
    return tier


def put(tier: Any, key: Any, value: Any, deadline: int = 0) -> None:
    assert tier.put(key, *codec.encode(value), deadline)


def read(tier: Any, key: Any, times: int = 3) -> Any:
    """Read so often that it is kept decoded, if it is of the kind that is."""
    for _ in range(times):
        value = tier.get(key)
    return value


def types_of(value: Any) -> Any:
    if isinstance(value, dict):
        return dict, [(types_of(key), types_of(element)) for key, element in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [types_of(element) for element in value]
    return type(value)


def test_the_second_reading_keeps_a_document_decoded_and_later_ones_are_copies_of_it():
    tier = arena()
    put(tier, "k", DOCUMENT)
    seen = [(tier.get("k") == DOCUMENT, tier.objects, tier.object_hits) for _ in range(4)]
    assert seen == [(True, 0, 0), (True, 1, 0), (True, 1, 1), (True, 1, 2)]


@pytest.mark.parametrize(
    "value",
    [
        *(DOCUMENT, {}, [], [[]], {"a": {}}, {1, 2}, set(), [1, 2.5, "é", b"b", None, True, 2**70], {"k": set()}),
        *({1: "int", b"b": "bytes", (1, "a"): "tuple", None: 0}, (1, "a"), 2**80, 3 + 4j, [3 + 4j]),
        [datetime(2026, 1, 2, tzinfo=timezone.utc), timedelta(1), Decimal("1.50"), uuid.UUID(int=5)],
        {f"key {i}": i for i in range(30)},
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_kept_decoded_comes_back_equal_of_the_same_types_and_in_order(value):
    tier = arena()
    put(tier, "k", value)
    found = read(tier, "k")
    assert tier.objects == 1
    assert tier.object_hits
    assert found == value
    assert types_of(found) == types_of(value)
    assert tier.wrong() == ""


def test_a_reader_may_change_what_it_got_at_any_depth():
    tier = arena()
    put(tier, "k", DOCUMENT)
    for _ in range(4):
        found = tier.get("k")
        found["tags"].append("mine")
        found["at"]["place"].clear()
        found["at"]["seen"].add(3)
        found["at"]["more"] = found
        found["new"] = 1
        del found["id"]
    assert tier.object_hits
    assert tier.get("k") == DOCUMENT


def test_copies_are_for_the_garbage_collector_to_look_at_and_masters_are_not():
    def looked_at():
        seen = [thing for thing in gc.get_objects() if isinstance(thing, dict) and thing.get("id") == 7]
        return [thing for thing in seen if "who" in thing and thing is not DOCUMENT]

    tier = arena()
    put(tier, "k", DOCUMENT)
    found = read(tier, "k")
    assert gc.is_tracked(found["tags"])
    assert gc.is_tracked(found)
    flat = {"a": 1}
    put(tier, "flat", flat)
    copy = read(tier, "flat")
    copy["self"] = copy
    assert gc.is_tracked(copy), "a cycle that nobody would ever find"
    assert [thing is found for thing in looked_at()] == [True]
    del found, copy
    gc.collect()
    assert looked_at() == []


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    "value",
    [
        *(
            [[1]] * 600,
            {"a": "x" * 2000},
            [2**40_000],
            ([1],),
            {"a": ({},)},
            {"a": frozenset({1})},
            "text",
            b"bytes",
            "é",
        ),
        [Point(1)],
    ],
    ids=[
        "entries",
        "text",
        "number",
        "list in a tuple",
        "dict in a tuple",
        "frozenset",
        "str",
        "bytes",
        "é",
        "registered",
    ],
)
def test_what_is_large_or_could_be_changed_inside_is_decoded_each_time(value):
    if value == [Point(1)]:
        tiered.register("objects.point")(Point)
    tier = arena()
    put(tier, "k", value)
    assert read(tier, "k", 5) == value
    assert (tier.objects, tier.object_hits) == (0, 0)


@pytest.mark.parametrize("change", ["overwrite", "other size", "discard", "deadline", "evict", "clear"])
def test_no_reader_gets_what_was_replaced_or_removed(change):
    tier = arena()
    put(tier, "k", {"n": 1, "of": [1]})
    read(tier, "k")
    if change == "overwrite":
        put(tier, "k", {"n": 2, "of": [2]})
        assert [tier.get("k")["n"] for _ in range(4)] == [2] * 4
    elif change == "other size":
        put(tier, "k", {"n": 2, "of": [2] * 40})
        assert [tier.get("k")["n"] for _ in range(4)] == [2] * 4
    elif change == "deadline":
        put(tier, "k", {"n": 2, "of": [2]}, 1000)
        assert [tier.get_at("k", 999, None)["n"] for _ in range(4)] == [2] * 4
        assert tier.get_at("k", 1000, None) is None
    else:
        {"discard": lambda: tier.discard("k"), "evict": tier.evict, "clear": tier.clear}[change]()
        assert tier.get("k") is None
        put(tier, "other", {"n": 3, "of": [3]})  # In its place.
        put(tier, "k", {"n": 4, "of": [4]})
        assert [(tier.get("k")["n"], tier.get("other")["n"]) for _ in range(4)] == [(4, 3)] * 4
    assert tier.wrong() == ""


def test_objects_take_no_more_than_their_share_and_what_they_take_the_arena_lacks():
    tier = arena(share=64 << 10, budget=512 << 10)
    for number in range(4000):
        put(tier, number, {"number": number, "text": f"{number} " * 10, "list": [number]})
        read(tier, number)
        read(tier, max(0, number - 5))
        assert tier.object_bytes <= 64 << 10
        assert tier.used_bytes <= tier.budget_bytes == 512 << 10
    assert tier.objects > 50
    assert tier.wrong() == ""
    tier.keep_objects(0, 512, 1024, codec.is_immutable)
    assert (tier.objects, tier.object_bytes) == (0, 0)
    before = tier.object_hits
    read(tier, 3999)
    assert tier.object_hits == before


def test_what_is_read_most_stays_decoded_while_others_pass():
    tier = arena(share=64 << 10, budget=4 * MB)
    for number in range(3000):
        put(tier, number, {"number": number, "text": f"{number} " * 10})
    hits = 0
    for number in range(10, 3000):
        before = tier.object_hits
        tier.get(number % 10)
        hits += tier.object_hits - before
        read(tier, number, 2)
    assert hits > 2900


def fields(rng: random.Random, number: int) -> Any:
    names = [f"field {number} {i}" if number % 3 else f"field {i}" for i in range(rng.randrange(1, 14))]
    return {name: [f"{number} {name}", rng.random(), {"n": number}] for name in names}


def keys_twice(rng: random.Random, number: int) -> Any:
    names = [f"{rng.getrandbits(256):064x}" for _ in range(10)]
    return [dict.fromkeys(names), dict.fromkeys(names)]


def times(rng: random.Random, number: int) -> Any:
    return [datetime(2020, 1, 1, tzinfo=timezone(timedelta(seconds=rng.randrange(80_000)))) for _ in range(20)]


def identifiers(rng: random.Random, number: int) -> Any:
    return [uuid.UUID(int=rng.getrandbits(128)) for _ in range(20)]


def numbers(rng: random.Random, number: int) -> Any:
    return {rng.getrandbits(60): {rng.getrandbits(200) for _ in range(9)} for _ in range(6)}


@pytest.mark.parametrize("make", [fields, keys_twice, times, identifiers, numbers])
def test_the_bytes_counted_are_those_that_are_allocated(make):
    tier = arena(share=MB, budget=16 * MB)
    rng = random.Random(1)
    for number in range(1500):
        put(tier, number, make(rng, number))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1500):
            read(tier, number, 2)
        gc.collect()
        allocated = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert tier.objects > 100
    assert 0.75 <= tier.object_bytes / allocated <= 1.6


def test_the_list_of_where_its_parts_are_counts_as_part_of_a_master():
    tier = arena(share=MB, budget=16 * MB)
    documents = [[f"{number} {n} " * 3 for n in range(40)] for number in range(2)]
    taken = []
    for number, document in enumerate(documents):
        put(tier, number, document)
        read(tier, number, 3)
        taken.append(tier.object_bytes)
    rounded = [sys.getsizeof(part) + 15 & ~15 for part in (documents[1], *documents[1])]
    assert tier.objects == 2
    assert taken[1] - taken[0] >= sum(rounded) + 4 * (40 + 5)


def test_what_happens_when_a_master_is_let_go_of_may_use_the_tier():
    tier = arena(share=16 << 10)
    put(tier, "k", {"who": uuid.UUID(int=1)})
    shared = read(tier, "k")["who"]
    calls = []

    def gone(_: object) -> None:
        calls.append(tier.get("other"))
        tier.clear()
        put(tier, "k", {"n": 9})

    reference = weakref.ref(shared, gone)
    put(tier, "other", {"n": 1})
    del shared
    tier.keep_objects(0, 512, 1024, codec.is_immutable)
    assert calls == [{"n": 1}]
    assert reference() is None
    assert tier.get("k") == {"n": 9}
    assert tier.wrong() == ""


def test_records_that_move_or_are_copied_to_a_larger_arena_are_not_mistaken_for_those_whose_place_they_take():
    tier = arena(share=256 << 10, budget=MB)
    rng = random.Random(2)
    model: dict[int, Any] = {}
    # Sizes that change now and then, so that segments are emptied into others.
    for turn in range(32_000):
        name = rng.randrange(6000)
        if turn % 2:
            model[name] = {"turn": turn, "of": "x" * (60, 190)[turn // 4000 % 2]}
            tier.put(name, *codec.encode(model[name]), 0)
        for _ in range(2):
            assert tier.get(name, model.get(name)) == model.get(name)
    assert tier.moved_bytes > MB
    assert tier.object_hits > 500
    for budget in (16 * MB, MB, 64 * MB):
        tier.budget_bytes = budget
        while not tier.shrink():
            pass
        for name, value in model.items():
            assert tier.get(name, value) == value
    assert tier.wrong() == ""


def test_what_is_written_while_a_value_is_decoded_is_not_hidden_by_it():
    tier = arena()

    class Writer:
        def __del__(self) -> None:
            put(tier, "k", {"n": [2]})

    put(tier, "k", {"n": [1]})
    tier.get("k")
    thresholds = gc.get_threshold()
    gc.collect()
    gc.disable()
    try:
        writer = Writer()
        writer.itself = writer  # type: ignore[attr-defined]
        del writer
        gc.set_threshold(1, 1, 1)
        gc.enable()
        tier.get("k")
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
    gc.collect()
    assert [tier.get("k") for _ in range(4)] == [{"n": [2]}] * 4


class Objects(RuleBasedStateMachine):
    """A small arena with objects against a dict: what is found is what was put last."""

    names = st.integers(0, 12)

    @initialize(share=st.sampled_from([4 << 10, 16 << 10, 64 << 10]))
    def begin(self, share: int) -> None:
        self.tier = arena(share=share, budget=256 << 10)
        self.model: dict[int, Any] = {}
        self.version = 0

    @rule(name=names, size=st.integers(0, 200))
    def put(self, name: int, size: int) -> None:
        self.version += 1
        self.model[name] = {"version": self.version, "list": [self.version] * size, "of": {"name": name}}
        self.tier.put(name, *codec.encode(self.model[name]), 0)  # Kept or not, in so small a budget.

    @rule(name=names, times=st.integers(1, 4))
    def get(self, name: int, times: int) -> None:
        for _ in range(times):
            found = self.tier.get(name)
            assert found is None or found == self.model[name]
            if found:
                found["list"].append(0)
                found["of"].clear()

    @rule(wanted=st.lists(names, min_size=1))
    def get_many(self, wanted: list[int]) -> None:
        found: dict[int, Any] = {}
        self.tier.get_many(wanted, found, None)
        for name, value in found.items():
            assert value is None or value == self.model[name]

    @rule(name=names)
    def discard(self, name: int) -> None:
        self.tier.discard(name)
        self.model.pop(name, None)

    @rule()
    def evict(self) -> None:
        self.tier.evict()

    @rule(budget=st.sampled_from([64 << 10, 256 << 10, 2 * MB]))
    def budget(self, budget: int) -> None:
        self.tier.budget_bytes = budget
        while not self.tier.shrink():
            pass

    @rule(share=st.sampled_from([0, 8 << 10, 128 << 10]))
    def share(self, share: int) -> None:
        self.tier.keep_objects(share, 512, 1024, codec.is_immutable)

    @invariant()
    def adds_up(self) -> None:
        if hasattr(self, "tier"):
            assert self.tier.wrong() == ""


TestObjects = Objects.TestCase
TestObjects.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_a_store_answers_with_objects_counts_them_and_has_none_where_the_share_is_0(tmp_path):
    with tiered.open(tmp_path / "s", memory="4MB") as store:
        store["k"] = DOCUMENT
        for _ in range(5):
            store["k"]["tags"].append("mine")
        assert store["k"] == DOCUMENT
        assert store.get_many(["k"]) == {"k": DOCUMENT}
        assert store.stats().object_hits >= 4
        memory = store.memory_stats()
        assert 0 < memory.object_bytes <= 4 * MB / 8
        parts = memory.hot_entry_bytes + memory.hot_table_bytes + memory.object_bytes + memory.write_buffer_bytes
        assert memory.accounted_bytes == parts + memory.view_bytes
        store.config_set("object_share", "0")
        assert store.memory_stats().object_bytes == 0
        before = store.stats().object_hits
        assert [store["k"] for _ in range(4)] == [DOCUMENT] * 4
        assert store.stats().object_hits == before
        store.config_set("object_share", 0.25)
        store.config_set("object_entries_max", "3")
        assert [store["k"] for _ in range(4)] == [DOCUMENT] * 4
        assert store.stats().object_hits == before
