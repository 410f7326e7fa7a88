"""Ranges: order over all types and tiers, exactly once, whatever happens between two pages."""

from __future__ import annotations

import gc
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from contracts import evict, merge, set_aside

import tiered
from tiered import record
from tiered.journal import Dirty
from tiered.moment import PAGE_BYTES, PAGE_RECORDS, Moment

ORDERED: list[Any] = [b"", b"\0", b"a", b"a\0", b"ab", b"\xff"]
ORDERED += ["", "\0", "a", "a\0", "ab", "b", "z", "é", "\ud800", "\uffff", "\U0001f600"]
ORDERED += [(), (b"z",), ("a",), ("a", b""), ("a", ""), ("a", ()), ("a", -1), ("a", 1), ("a\0",), ("ab",), ((),), (0,)]
ORDERED += [(1, 2), (2,), -(2**200), -(2**64), -(2**64) + 1, -256, -255, -1, 0, 1, 255, 256, 2**64 - 1, 2**64, 2**200]


def spread(store: Any, keys: list[Any], seed: int = 1) -> None:
    """Write keys in random order, with older versions of some, and deleted others, over all tiers."""
    uniform = random.Random(seed)
    shuffled = uniform.sample(keys, len(keys))
    quarter = len(keys) // 4 + 1
    for key in shuffled[: 3 * quarter]:
        store[key] = "old"
    store.save()
    merge(store)
    for move in (merge, lambda store: None, set_aside, lambda store: None):
        for key in shuffled[:quarter]:
            store[key] = ["value", repr(key)]
        store["deleted"] = 1
        if move is not set_aside:
            store.save()
            del store["deleted"]
        else:
            del store["deleted"]
        move(store)
        shuffled = shuffled[quarter:]
    evict(store)


def test_keys_come_in_order_over_all_types_and_tiers(opener: Any) -> None:
    store = opener(stepwise=True)
    spread(store, ORDERED)
    assert list(store) == ORDERED
    assert list(reversed(store)) == list(store.keys(reverse=True)) == ORDERED[::-1]
    assert list(store.items()) == [(key, ["value", repr(key)]) for key in ORDERED]
    assert list(store.values(reverse=True)) == [["value", repr(key)] for key in ORDERED[::-1]]


def test_start_is_included_and_stop_is_not_for_every_pair_of_keys(opener: Any) -> None:
    store = opener(stepwise=True)
    spread(store, ORDERED)
    for low, start in enumerate(ORDERED):
        assert list(store.keys(start=start)) == ORDERED[low:]
        assert list(store.keys(stop=start, reverse=True)) == ORDERED[:low][::-1]
        for high, stop in list(enumerate(ORDERED))[::3]:
            assert list(store.keys(start=start, stop=stop)) == ORDERED[low:high]
            assert list(store.keys(start=start, stop=stop, reverse=True)) == ORDERED[low:high][::-1]


@pytest.mark.parametrize(
    ("prefix", "holds"),
    [
        ("", lambda key: isinstance(key, str)),
        ("a", lambda key: isinstance(key, str) and key.startswith("a")),
        (b"", lambda key: isinstance(key, bytes)),
        (b"\xff", lambda key: isinstance(key, bytes) and key.startswith(b"\xff")),
        ((), lambda key: isinstance(key, tuple)),
        (("a",), lambda key: isinstance(key, tuple) and key[:1] == ("a",)),
        (("a", 1), lambda key: isinstance(key, tuple) and key[:2] == ("a", 1)),
        ((1.0,), lambda key: isinstance(key, tuple) and key[:1] == (1,)),
    ],
)
def test_a_prefix_holds_what_begins_with_it_and_nothing_else(
    opener: Any, prefix: Any, holds: Callable[[Any], bool]
) -> None:
    store = opener(stepwise=True)
    spread(store, ORDERED)
    expected = [key for key in ORDERED if holds(key)]
    assert expected
    view = store.keys(prefix=prefix)
    assert list(view) == expected
    assert list(reversed(view)) == list(store.keys(prefix=prefix, reverse=True)) == expected[::-1]
    assert len(view) == len(expected)
    assert [key for key in ORDERED if key in view] == expected


def test_prefix_start_and_stop_hold_together(opener: Any) -> None:
    store = opener(stepwise=True)
    store.update({("user", number): number for number in range(100)} | {("user",): -1, ("users", 1): 0, "user": 0})
    store.save()
    assert list(store.values(prefix=("user",), start=("user", 10), stop=("user", 13))) == [10, 11, 12]
    assert list(store.values(prefix=("user",), stop=("user", 2))) == [-1, 0, 1]
    assert list(store.values(prefix=("user",), start=("user", 98), stop=(10**9,))) == [98, 99]
    assert list(store.keys(prefix=("user",), start=("users",))) == []
    assert list(store.keys(start=9, stop=3)) == []


def test_an_integer_is_no_prefix(store: Any) -> None:
    with pytest.raises(TypeError, match="prefix"):
        store.keys(prefix=1)
    with pytest.raises(TypeError):
        store.keys(start=1.5)


def test_long_keys_come_in_order_of_their_heads_and_ranges_over_them_are_exact(opener: Any) -> None:
    store = opener(stepwise=True)
    alike = ["h" * 500 + str(number) for number in range(300)]
    apart = [f"{number:03}" + "x" * 700 for number in range(300)]
    tuples = [("t" * 600, number) for number in range(300)]
    short = ["h", "h" * 479, "i", "0"]
    spread(store, [*alike, *apart, *tuples, *short])
    found = list(store)
    assert set(found) == {*alike, *apart, *tuples, *short}
    assert len(found) == 904
    assert found[: 300 + 1] == sorted([*apart, "0"])
    assert found[301:303] == ["h", "h" * 479]
    assert set(found[303:603]) == set(alike)
    assert found[603] == "i"
    assert list(reversed(store)) == found[::-1]
    assert set(store.keys(prefix="h" * 500 + "29")) == {key for key in alike if key.startswith("h" * 500 + "29")}
    assert set(store.keys(start=alike[7], stop=alike[80])) == {key for key in alike if alike[7] <= key < alike[80]}
    assert set(store.keys(prefix=tuples[5])) == {tuples[5]}
    assert set(store.keys(start=tuples[5], stop=tuples[250])) == set(tuples[5:250])
    assert alike[3] in store.keys(prefix="h" * 500, start=alike[2])
    assert alike[3] not in store.keys(prefix="h" * 501)
    assert alike[3] not in store.keys(stop=alike[3])


COUNT = 5 * PAGE_RECORDS


def disturb(store: Any, step: int) -> None:
    """One of the things that may happen between two items."""
    uniform = random.Random(step)
    what = step % 7
    if what == 0:
        store.save()
    elif what == 1:
        merge(store)
    elif what == 2:
        set_aside(store)
    elif what == 3:
        store.update({("passing", uniform.randrange(COUNT)): step for _ in range(50)})
    elif what == 4:
        store.delete_many([("passing", number) for number in range(step % 3, COUNT, 3)])
    elif what == 5:
        # Rewriting what stays, so that it moves to another tier.
        store.update({("stays", uniform.randrange(COUNT)): "rewritten" for _ in range(80)})
    else:
        evict(store)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_keys_there_throughout_come_exactly_once_while_others_come_and_go(
    opener: Any, seed: int, reverse: bool
) -> None:
    store = opener(stepwise=True)
    staying = [("stays", number) for number in range(COUNT)]
    mixed = staying + [("passing", number) for number in range(0, COUNT, 2)]
    spread(store, mixed, seed)
    found = []
    for step, (key, value) in enumerate(store.items(reverse=reverse)):
        found.append(key)
        assert value in ("rewritten", ["value", repr(key)]) or key[0] == "passing"
        if not step % 23:
            disturb(store, step + seed)
    assert [key for key in found if key[0] == "stays"] == (staying[::-1] if reverse else staying)
    assert found == sorted(set(found), reverse=reverse)
    assert store.check() == []


def test_deleting_each_key_while_iterating_visits_all_of_them(opener: Any) -> None:
    store = opener(stepwise=True)
    spread(store, list(range(COUNT)))
    visited = []
    for key in store:
        visited.append(key)
        del store[key]
    assert visited == list(range(COUNT))
    assert not store


def test_iteration_goes_on_over_a_clear_and_a_compaction(opener: Any) -> None:
    store = opener(stepwise=True)
    spread(store, list(range(COUNT)))
    pages = iter(store.items())
    first = [next(pages)[0] for _ in range(3)]
    store.compact()
    following = [next(pages)[0] for _ in range(PAGE_RECORDS + 3)]
    assert first + following == list(range(PAGE_RECORDS + 6))
    store.clear()
    rest = [key for key, _ in pages]
    # What the page at hand still held: in the first one, "deleted" had taken a place.
    assert rest == list(range(PAGE_RECORDS + 6, 2 * PAGE_RECORDS - 1))


def test_expired_keys_are_passed_over_even_when_pages_full_of_them_come_first(opener: Any, clock: Any) -> None:
    store = opener(stepwise=True, clock=clock)
    store.set_many(dict.fromkeys(range(3 * 4096), 1), ttl=5)
    store[10**6] = "last"
    store.save()
    clock.sleep(6)
    assert list(store) == [10**6]
    assert list(store.keys(reverse=True)) == [10**6]
    assert len(store) == 1


def test_large_values_come_in_pages_bounded_in_bytes(opener: Any) -> None:
    store = opener(stepwise=True)
    expected = {number: random.Random(number).randbytes(400_000) for number in range(12)}
    store.update(expected)
    assert list(store.items()) == list(expected.items())
    assert list(store.items(reverse=True)) == list(expected.items())[::-1]


def test_an_abandoned_iterator_leaves_no_reader_behind(opener: Any) -> None:
    store = opener(stepwise=True)
    spread(store, list(range(COUNT)))
    kept = [iter(store.items()) for _ in range(20)]
    for iterator in kept:
        next(iterator)
        assert store._engine.cold.readers() == 0
    for what in (store.keys, store.values, store.items):
        next(iter(what(reverse=True)))
    assert any(True for _ in store)
    del kept, iterator
    gc.collect()
    assert store._engine.cold.readers() == 0


def test_an_iterator_of_a_closed_store_raises_closed_error_at_its_next_page(opener: Any) -> None:
    import tiered

    store = opener(stepwise=True)
    spread(store, list(range(COUNT)))
    iterator = iter(store)
    next(iterator)
    store.close()
    with pytest.raises(tiered.ClosedError):
        list(iterator)
    with pytest.raises(tiered.ClosedError):
        list(store)


def test_len_counts_exactly_what_iteration_yields_in_any_mix_of_tiers(opener: Any, clock: Any) -> None:
    store = opener(stepwise=True, clock=clock)
    uniform = random.Random(9)
    for step in range(600):
        key = uniform.randrange(60)
        what = uniform.randrange(9)
        if what < 4:
            store.set(key, step, ttl=uniform.choice([None, 1, 5, 50]))
        elif what < 6:
            store.pop(key, None)
        else:
            (store.save, lambda: set_aside(store), lambda: clock.sleep(1))[what - 6]()
        assert len(store) == len(list(store)) == sum(1 for _ in store.items())


@pytest.mark.parametrize("where", ["cold", "dirty", "both"])
@pytest.mark.parametrize("size", [3_000, 60_000, 70_000, 1_500_000])
def test_a_page_holds_no_more_than_a_megabyte_beside_its_last_value(
    opener: Any, monkeypatch: pytest.MonkeyPatch, size: int, where: str
) -> None:
    store = opener(memory="64MB", stepwise=True)
    store.set_many((number, b"%d" % number + bytes(size)) for number in range(40 if size > PAGE_BYTES else 600))
    if where != "dirty":
        store.save()
        evict(store)
    if where == "both":
        store.update((number, b"%d" % number + bytes(size)) for number in range(0, 40, 3))
    pages: list[list[int]] = []
    real = Moment.page

    def page(self: Moment, *bounds: Any) -> Any:
        found = real(self, *bounds)
        pages.append([len(put.payload) for _, put in found[0]])
        return found

    monkeypatch.setattr(Moment, "page", page)
    for reverse in (False, True):
        pages.clear()
        values = list(store.values(reverse=reverse))
        assert [int(value.rstrip(b"\0")) for value in values] == sorted(range(len(store)), reverse=reverse)
        assert all(sum(sizes[:-1]) < PAGE_BYTES and len(sizes) <= PAGE_RECORDS for sizes in pages)
        full = [sizes for sizes in pages[:-1] if len(sizes) < PAGE_RECORDS]
        assert all(sum(sizes) >= PAGE_BYTES // 2 for sizes in full)


UNUSUAL: dict[str, Any] = {
    "as they are": [b"x" * 300, "text", 7, None, b""],
    "small frames": [{"name": "somebody", "text": "word " * number} for number in range(20)],
    "frames of one byte's size and of two": [
        "a" * size for size in (24, 200, 255, 256, 257, 700, 65_000, 65_791, 65_792)
    ],
    "large frames": [b"\0" * 70_000, "word " * 60_000],
    "incompressible": [random.Random(1).randbytes(size) for size in (10, 100, 5000, 200_000)],
}


@pytest.mark.parametrize("compression", ["zstd:3", "zlib:6", "none"])
@pytest.mark.parametrize("kind", UNUSUAL)
def test_records_of_every_kind_are_opened_together_as_one_by_one(opener: Any, kind: str, compression: str) -> None:
    store = opener(memory="64MB", stepwise=True, compression=compression)
    for number, value in enumerate([*UNUSUAL[kind], *UNUSUAL["small frames"]]):
        store.set(number, value, ttl=1000 if number % 3 == 0 else None)
        store["long" * (200 + number % 2 * 10) + str(number)] = value
    store.save()
    engine = store._engine
    for values, bytes_max in ((True, -1), (True, 1), (True, 100_000), (False, -1), (False, 1)):
        with engine.cold.read() as reader:
            stored_keys, datas = map(list, zip(*reader.scan(), strict=True))
            expected = [
                engine.opened(engine.cold, *pair, None, values) for pair in zip(stored_keys, datas, strict=True)
            ]
        found: list[Any] = []
        while len(found) < len(datas):
            done = len(found)
            some = engine.opened_many(engine.cold, stored_keys[done:], datas[done:], None, values, bytes_max)
            assert some
            assert bytes_max < 0 or sum(len(put.payload) for put in some[:-1]) < bytes_max
            found += some
        assert found == expected
        assert all(put.payload == b"" for put in found) or values
        assert [type(put) for put in found] == [Dirty] * len(datas)
    assert engine.opened_many(engine.cold, [b"key"], [record.pack_marker(b"key")]) == [None]
    assert engine.opened_many(engine.cold, [], []) == []
    assert engine.opened_many(engine.cold, stored_keys[:2], [None, datas[1]]) == [
        None,
        engine.opened(engine.cold, stored_keys[1], datas[1]),
    ]


def test_of_records_opened_together_the_damaged_one_is_named(opener: Any) -> None:
    store = opener(memory="64MB", stepwise=True)
    store.update((number, {"number": number, "text": "of some length " * 9}) for number in range(100))
    store.save()
    engine = store._engine
    with engine.cold.read() as reader:
        stored_keys, datas = map(list, zip(*reader.scan(), strict=True))
    for values in (True, False):
        for damage in (b"", datas[50][:-1], datas[50][:-1] + b"\1", datas[51]):
            with pytest.raises(tiered.CorruptionError, match=re.escape(repr(stored_keys[50]))):
                engine.opened_many(engine.cold, stored_keys, [*datas[:50], damage, *datas[51:]], None, values)
    # A checksum that is right over a frame that is none.
    spoilt = record.pack(stored_keys[50], 3, 1, 0, 0, b"", b"\x28\xb5\x2f\xfd\x20\x30no frame at all")
    with pytest.raises(tiered.CorruptionError, match=re.escape(repr(stored_keys[50]))):
        engine.opened_many(engine.cold, stored_keys, [*datas[:50], spoilt, *datas[51:]])


@pytest.mark.parametrize("reverse", [0, 1, 2, None, "yes", [], 0.5], ids=repr)
@pytest.mark.parametrize("saved", [True, False])
def test_reverse_is_whatever_is_true(opener: Any, saved: bool, reverse: Any) -> None:
    store = opener(stepwise=True)
    expected = [("k", number) for number in range(1000)]
    store.set_many((key, key[1]) for key in expected)
    if saved:
        store.save()
    ordered = expected[::-1] if reverse else expected
    with store.view() as view, store.transaction() as transaction:
        for mapping in (store, view, transaction):
            assert list(mapping.keys(prefix=("k",), reverse=reverse)) == ordered
            assert list(mapping.items(reverse=reverse)) == [(key, key[1]) for key in ordered]
            inside = [key for key in ordered if 10 <= key[1] < 20]
            assert list(mapping.keys(start=("k", 10), stop=("k", 20), reverse=reverse)) == inside
        assert list(store.sub("k").keys(reverse=reverse)) == [key[1] for key in ordered]


@pytest.mark.parametrize("saved", [True, False])
def test_a_bound_just_above_a_key_lets_it_in_however_long_it_is(opener: Any, saved: bool) -> None:
    store = opener(stepwise=True)
    lengths = [*range(470, 495), 600]
    store.set_many(("a" * length, length) for length in lengths)
    store.set_many((b"\xff" * length, length) for length in lengths)
    if saved:
        store.save()
    for key in list(store):
        for above in (key + type(key)(b"\0", "ascii") if isinstance(key, str) else key + b"\0", key + key[:1]):
            expected = [other for other in store if type(other) is type(key) and key <= other < above]
            assert expected == [key]
            assert list(store.keys(start=key, stop=above)) == expected
            assert list(store.keys(start=key, stop=above, reverse=True)) == expected
            assert key in list(store.keys(stop=above))
            assert len(store.keys(start=key, stop=above)) == 1
        assert list(store.keys(start=key, stop=key)) == []
    key = "a" * 480
    with pytest.raises(tiered.ConflictError), store.transaction() as transaction:  # noqa: PT012 - at its end.
        assert list(transaction.keys(start=key, stop=key + "\0")) == [key]
        store[key] = "another"
        transaction["seen"] = True
