"""Walks through LMDB's pages by the compiled part: what LMDB gives, and nothing outside of them, whatever they hold."""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
from contracts import evict, merge
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pages import DAMAGES, KINDS, NAME, Damaged, damaged_store, environment, layer_of, leading_out, spoilt, values

import tiered
from tiered import record
from tiered.native import native

pytestmark = pytest.mark.skipif(native is None, reason="needs the compiled part: a C compiler, and no TIERED_PURE=1")

Pairs = list[tuple[bytes, bytes]]
UNBOUNDED = 1 << 40


def walked(
    layers: list[Any],
    start: bytes | None = None,
    stop: bytes | None = None,
    reverse: bool = False,
    records_max: int = 1000,
    bytes_max: int = UNBOUNDED,
) -> tuple[Pairs, bool]:
    """All records in a range, slice after slice, and whether damage ended it."""
    found: Pairs = []
    while True:
        begin, end = (stop, start) if reverse else (start, stop)
        keys, datas, last, damaged = native.pages_slice(layers, begin, end, reverse, records_max, bytes_max, None)
        assert len(keys) == len(datas) <= records_max
        assert sum(map(len, keys + datas)) - sum(map(len, keys[-1:] + datas[-1:])) < bytes_max
        assert keys == sorted(set(keys), reverse=reverse)
        found += zip(keys, datas, strict=True)
        if damaged or last is None:
            return found, damaged
        assert not keys or (last <= keys[-1] if reverse else last >= keys[-1])
        if reverse:
            assert stop is None or last < stop
            stop = last
        else:
            assert start is None or last >= start
            start = last + b"\0"


def expected_of(live: dict[bytes, bytes], start: bytes | None, stop: bytes | None, reverse: bool) -> Pairs:
    inside = [key for key in live if (start is None or key >= start) and (stop is None or key < stop)]
    return [(key, live[key]) for key in sorted(inside, reverse=reverse)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 2, 17, 400, 9000])
def test_a_walk_gives_the_newest_of_each_key_in_order(tmp_path: Path, count: int, kind: str, reverse: bool) -> None:
    rng, newest = random.Random(count), dict[bytes, bytes]()
    with lmdb.open(str(tmp_path), map_size=1 << 30, max_dbs=4, lib_version=0, sync=False) as env:
        names = [NAME, b"newer", b"newest"]
        for layer, name in enumerate(names):
            database = env.open_db(name)
            with env.begin(write=True, db=database) as txn:
                for number in range(count >> 2 * layer):
                    key, value = KINDS[kind](rng, number * (layer + 1)), values(rng, 5000 if number % 50 else 30_000)
                    newest[key] = record.pack_marker(key) if rng.random() < 0.2 else value
                    txn.put(key, newest[key])
        live = {key: value for key, value in newest.items() if not record.is_marker(value)}
        near = [
            *newest,
            *(key + b"\0" for key in newest),
            *(key[:-1] for key in newest if len(key) > 1),
            b"\0",
            b"\xff",
        ]
        with env.begin() as txn:
            layers = [layer_of(env, txn, name=name) for name in reversed(names)]
            assert walked(layers, reverse=reverse) == (expected_of(live, None, None, reverse), False)
            for turn in range(40):
                start, stop = (rng.choice([None, *rng.choices(near, k=4)]) for _ in "ab")
                limits = (rng.choice([1, 7, 300]), rng.choice([1, 3000, UNBOUNDED])) if count < 1000 else (700, 1 << 20)
                expected = expected_of(live, start, stop, reverse)
                assert walked(layers, start, stop, reverse, *limits) == (expected, False), (turn, start, stop)


@settings(max_examples=200)
@given(
    st.lists(st.dictionaries(st.binary(min_size=1, max_size=9), st.binary(max_size=3000), max_size=40), max_size=3),
    st.none() | st.binary(min_size=1, max_size=9),
    st.none() | st.binary(min_size=1, max_size=9),
    st.booleans(),
    st.integers(1, 50),
)
def test_any_keys_come_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[dict[bytes, bytes]],
    start: bytes | None,
    stop: bytes | None,
    reverse: bool,
    records_max: int,
) -> None:
    live: dict[bytes, bytes] = {}
    with lmdb.open(str(tmp_path_factory.mktemp("walk")), map_size=1 << 26, max_dbs=4, lib_version=0, sync=False) as env:
        env.open_db(NAME)
        names = [b"layer %d" % number for number in range(len(parts))]
        databases = [env.open_db(name) for name in names]
        with env.begin(write=True) as txn:
            for part, database in zip(parts, databases, strict=True):
                live.update(part)
                for key, value in part.items():
                    txn.put(key, value, db=database)
        live = {key: value for key, value in live.items() if not record.is_marker(value)}
        with env.begin() as txn:
            layers = [layer_of(env, txn, name=name) for name in reversed(names)]
            found = walked(layers, start, stop, reverse, records_max)
    assert found == (expected_of(live, start, stop, reverse), False)


def test_a_slice_ends_though_all_it_looks_at_was_deleted(tmp_path: Path) -> None:
    with environment(tmp_path) as env:
        keys = [b"%06d" % number for number in range(20_000)]
        with env.begin(write=True, db=env.open_db(NAME)) as txn:
            for key in keys:
                txn.put(key, record.pack_marker(key) if key < b"019990" else b"there")
        with env.begin() as txn:
            layers = [layer_of(env, txn)]
            found, _, last, damaged = native.pages_slice(layers, None, None, False, 256, UNBOUNDED, None)
            assert (found, damaged) == ([], False)
            assert last in keys[5000:10_000]
            assert walked(layers) == ([(key, b"there") for key in keys[19_990:]], False)


# -- damage ------------------------------------------------------------------------------------------


class Walked(Damaged):
    """The pages of a database, to be walked through in both directions."""

    def found(self, data: bytearray, entry: bytes | None = None, count: int | None = None) -> Any:
        self.map[: len(data)] = data
        held = ctypes.c_char.from_buffer(self.map)
        pages = native.pages_of(ctypes.addressof(held), self.page_bytes, count or self.count, entry or self.entry)
        middle = self.keys[len(self.keys) // 2]
        found = []
        for reverse in (False, True):
            for start, stop in ((None, None), (middle, None), (None, middle)):
                pairs, damaged = walked([(None, None, pages)], start, stop, reverse)
                assert len(pairs) <= 20 * len(self.keys)
                found.append(None if damaged else pairs)
        if data == self.data and entry is None and count is None:
            assert found[0] is not None
            assert found[3] == found[0][::-1]
            keys = sorted(set(self.keys))
            all_of_them = zip(keys, native.pages_find([(None, None, pages)], keys), strict=True)
            assert found[0] == [(key, value) for key, value in all_of_them if not record.is_marker(value)]
        return None if None in found else found


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    return Walked(tmp_path_factory.mktemp("damaged"), random.Random(1), 2500)


def test_whatever_bytes_a_page_has_a_walk_ends_inside_of_the_pages(damaged: Walked) -> None:
    outcomes = {"right": 0, "other": 0, "none": 0}
    for data in spoilt(damaged, 300):
        found = damaged.found(data)
        outcomes["none" if found is None else "right" if found == damaged.expected else "other"] += 1
    assert min(outcomes.values()) > 15, outcomes


def test_a_walk_looks_at_nothing_beyond_the_last_page(tmp_path: Path) -> None:
    few = Walked(tmp_path, random.Random(1), 8)
    for data in leading_out(few, 4000):
        few.found(data)


def test_keys_that_are_not_in_order_are_damage(damaged: Walked) -> None:
    keys = sorted(set(damaged.keys))
    for number in (300, 1200, 2000):
        data = bytearray(damaged.data)
        at = data.rindex(keys[number])
        data[at : at + 10] = keys[number - 2][:10]
        found = damaged.found(data)
        assert found is None
        data[at : at + 10] = keys[number - 1][:10]  # Twice the same.
        assert damaged.found(data) is None


@pytest.mark.parametrize("entry", ["a root beyond the end", "more levels", "fewer levels", "no level"])
def test_a_walk_from_an_entry_that_is_wrong_finds_nothing(damaged: Walked, entry: str) -> None:
    parts = list(struct.unpack("<IHHQQQQQ", damaged.entry))
    if entry == "a root beyond the end":
        parts[-1] = damaged.count
    else:
        parts[2] = {"more levels": 4, "fewer levels": 2, "no level": 0}[entry]
    found = damaged.found(bytearray(damaged.data), struct.pack("<IHHQQQQQ", *parts))
    assert found == ([[]] * 6 if entry == "no level" else None)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ([], None, None, False, 1, 1),
        ((), None, None, False, 1, 1, None),
        ([], "text", None, False, 1, 1, None),
        ([], None, 7, False, 1, 1, None),
        ([], None, None, False, -1, 1, None),
        ([], None, None, False, 1 << 60, 1, None),
        ([], None, None, False, 1, "text", None),
    ],
)
def test_other_arguments_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, OverflowError)):
        native.pages_slice(*arguments)
    for lists in (([b"key"], []), ([], ()), (None, [])):
        with pytest.raises(TypeError):
            native.opened_many(None, tuple, *lists, True, -1)
    assert native.pages_slice([], None, None, False, 1, 1, None) == ([], [], None, False)
    assert native.pages_slice([(None, None, None)], None, None, False, 1, 1, None) is None


# -- in a store ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_a_store_is_iterated_the_same_where_its_pages_cannot_be_looked_at(opener: Any, known: bool) -> None:
    store = opener(stepwise=True)
    expected = {
        f"key {number:05d}": {"number": number, "text": "of some length " * (number % 90)} for number in range(900)
    }
    store.set_many(expected)
    store.save()
    merge(store)
    store["key 00007"] = expected["key 00007"] = "newer"
    del store["key 00008"], expected["key 00008"]
    store.save()
    store["key 00009"] = expected["key 00009"] = "newest"
    cold = store._engine.cold
    if not known:
        cold._map, cold._layout = None, cold._layout._replace(transaction=-1)
    evict(store)
    assert list(store.items()) == list(expected.items())
    assert list(store.keys(start="key 00100", stop="key 00500", reverse=True)) == list(expected)[498:98:-1]
    assert [layer.pages is not None for layer in cold._layout.layers] == [known, known]
    assert store.check() == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_page_is_damage_in_every_iteration(
    tmp_path: Path, damage: Callable[[bytearray, bytes], None]
) -> None:
    expected = damaged_store(tmp_path / "store", damage)
    with tiered.open(tmp_path / "store", memory="64MB", helper=False, warm_start=False) as store:
        for iteration in (store.keys, store.values, store.items, store.view, store.transaction):
            found: list[Any] = []
            with pytest.raises(tiered.CorruptionError, match="damaged page on the way to"):
                found.extend(iteration())
            assert set(found) <= {*expected, *expected.values(), *expected.items()}
        for reverse in (False, True):
            with pytest.raises(tiered.CorruptionError, match="damaged page on the way to"):
                list(store.items(reverse=reverse))
        if damage.__name__ != "branches_lead_back":
            assert dict(store.items(stop="key 00900")) == {key: expected[key] for key in expected if key < "key 00900"}
