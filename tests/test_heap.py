"""The hot tier on the heap: its entries, and that its accounting is the memory it takes.

What every hot tier does is in test_hot.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiered import codec, entries
from tiered.entries import Expiring, Packed, cost, entry_of, value_of
from tiered.heap import EVICTIONS_PER_CALL_MAX, VALUE_SHARE_MAX, HeapTier

MB = 1 << 20
# Equal keys of different sizes in memory, and text whose object grows when others encode it.
KEYS = ["a", "b", "ключ", "é" * 40, 1, 2, -(1 << 70), b"raw", ("u", 1), ("u", ("é", b"x")), 10**6]


def put(tier, key, value, deadline=0):
    return tier.put(key, *codec.encode(value), deadline)


def put_many(tier, keys, values):
    numbers, payloads = zip(*map(codec.encode, values), strict=True)
    tier.put_many(list(keys), list(numbers), list(payloads), 0, 1 << 40)


@pytest.mark.parametrize(
    "value",
    [
        *("", "text", "é", b"", b"bytes", 0, -1, 1 << 80, 1.5, True, False, None),
        *([], [1, "a"], (), (1, (2,)), {}, {"a": [1]}, {1, 2}, 3 + 4j, ["\ud800"]),
    ],
    ids=repr,
)
def test_an_entry_stands_for_the_value_that_was_encoded(value):
    entry = entry_of(*codec.encode(value))
    found = value_of(entry)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("value", ["text", b"bytes", 5, 1.5, True, None])
def test_immutable_scalars_are_kept_as_they_are(value):
    assert type(entry_of(*codec.encode(value))) is type(value)


@pytest.mark.parametrize("value", [[1], {"a": 1}, (1, 2), {1}])
def test_everything_else_is_kept_packed_and_decoded_anew_at_each_read(value):
    entry = entry_of(*codec.encode(value))
    assert type(entry) is Packed
    assert value_of(entry) == value_of(entry)
    if isinstance(value, (list, dict, set)):
        assert value_of(entry) is not value_of(entry)


def test_a_payload_that_cannot_be_decoded_is_a_value_error():
    with pytest.raises(ValueError):
        value_of(entry_of(99, b"x"))


def test_the_entry_read_or_written_longest_ago_is_evicted_first():
    tier = HeapTier("lru", 1 << 20)
    for number in range(10):
        put(tier, number, "x")
    tier.hit(0)
    put(tier, 1, "again")
    order = []
    while tier.table:
        order.append(tier.order.leave()[0][0])
    assert order == [2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"),
            st.sampled_from(KEYS),
            st.one_of(st.integers(0, 40).map(lambda n: "é" * n), st.integers(0, 3000).map(bytes), st.none()),
            st.sampled_from([0, 0, 5_000, 5_400, 9_000]),
        ),
        st.tuples(st.just("discard"), st.sampled_from(KEYS)),
        st.tuples(st.just("expire"), st.sampled_from([0, 4_000, 6_000, 7_000, 20_000]), st.integers(1, 5)),
        st.tuples(st.just("budget"), st.integers(300, 20_000)),
        st.tuples(st.just("clear")),
    ),
    max_size=60,
)


@given(operations)
@settings(max_examples=300, deadline=None)
def test_accounting_equals_a_recount_and_the_budget_holds_after_any_operations(steps):
    tier = HeapTier("lru", 20_000)
    for step in steps:
        if step[0] == "put":
            put(tier, *step[1:])
            assert tier.used_bytes <= tier.budget_bytes or not tier.table
        elif step[0] == "discard":
            tier.discard(step[1])
            assert step[1] not in tier.table
        elif step[0] == "expire":
            tier.expire(step[1], step[2])
        elif step[0] == "budget":
            tier.budget_bytes = step[1]
            assert tier.shrink()
            assert tier.used_bytes <= tier.budget_bytes or not tier.table
        else:
            tier.clear()
        assert tier.wrong() == ""
        assert len(tier.deadlines) == sum(entry.__class__ is Expiring for entry in tier.table.values())
    while tier.table:
        tier.discard(next(iter(tier.table)))
    assert tier.entry_bytes == 0


def test_text_encoded_elsewhere_after_it_was_kept_does_not_shift_the_accounting():
    """CPython keeps the UTF-8 form of a text inside the object when a C library asks for it."""
    tier = HeapTier("lru", MB)
    key, value = "".join(["ключ"] * 10), "".join(["é"] * 500)  # Made here, so that no constant has grown already.
    put(tier, key, value)
    json.dumps([key, value])
    codec.encode([key, value])
    assert tier.wrong() == ""
    tier.discard(key)
    assert tier.entry_bytes == 0


def test_text_encoded_elsewhere_leaves_the_accounting_of_a_store_right(store):
    value = "".join(["é"] * 500)
    store["text"] = value
    store["list"] = [value]
    assert [finding.what for finding in store.check()] == []


def test_an_equal_key_of_another_type_is_accounted_as_the_one_kept(store):
    store[1] = "x"
    store[True] = "y"
    store[1.0] = "z"
    assert store._engine.hot.wrong() == ""
    assert list(store.items()) == [(1, "z")]


class Name(str):
    """Takes more memory than the text that it equals."""


def test_a_value_removed_by_an_equal_key_of_another_size_is_accounted_as_it_was(opener, clock):
    store = opener(clock=clock)
    for remove in (store.pop, store.__delitem__, lambda key: store.delete_many([key])):
        store["a"] = "x"
        remove(Name("a"))
        assert store._engine.hot.wrong() == ""
    store.set("a", "x", ttl=1)
    clock.sleep(2)
    assert store.get(Name("a")) is None
    assert store._engine.hot.wrong() == ""
    assert store._engine.hot.entry_bytes == 0


def test_what_expired_is_forgotten_in_bounded_steps_and_what_was_rewritten_stays():
    tier = HeapTier("lru", MB)
    for number in range(100):
        put(tier, number, "x", 1000 + number)
    put(tier, 7, "rewritten")
    put(tier, 8, "rewritten", 9_000)
    assert tier.expire(1099, 1000) == 0, "a second is due when it is over"
    assert tier.expire(2000, 30) == 30
    assert len(tier.table) == 70
    assert tier.expire(2000, 1000) == 68
    assert dict(tier.table) == {7: "rewritten", 8: ("rewritten", 9_000)}
    assert tier.wrong() == ""


def test_one_big_put_does_not_empty_the_tier():
    tier = HeapTier("lru", MB)
    for number in range(1000):
        put(tier, number, b"x" * 500)
    before = len(tier.table)
    put(tier, "big", b"x" * (MB - 100))
    put(tier, "bigger", b"x" * (5 * MB))
    assert len(tier.table) == before
    put(tier, "largest kept", b"x" * (MB // VALUE_SHARE_MAX - 200))
    assert "largest kept" in tier.table
    assert len(tier.table) >= before * (1 - 1 / VALUE_SHARE_MAX) - 1


@pytest.mark.parametrize(("size", "kept"), [(MB // VALUE_SHARE_MAX - 200, True), (MB // VALUE_SHARE_MAX, False)])
def test_a_value_above_an_eighth_of_the_budget_is_not_kept(size, kept):
    tier = HeapTier("lru", MB)
    put(tier, "key", "an older value")
    put(tier, "key", b"x" * size)
    assert ("key" in tier.table) is kept, "the older value must not stay either"
    assert tier.wrong() == ""


def test_a_smaller_budget_is_reached_in_bounded_steps():
    tier = HeapTier("lru", 64 * MB)
    count = 3 * EVICTIONS_PER_CALL_MAX
    for number in range(count):
        put(tier, number, None)
    tier.budget_bytes = 1000
    assert not tier.shrink()
    assert len(tier.table) == count - EVICTIONS_PER_CALL_MAX
    steps = 1
    while not tier.shrink():
        steps += 1
        assert steps <= 4
    assert not tier.table
    assert tier.evictions == count


def test_used_bytes_follow_the_table_as_it_grows_and_shrinks():
    tier = HeapTier("lru", 64 * MB)
    for number in range(10_000):
        put(tier, number, None)
    table = tier.order.table_bytes()
    assert tier.used_bytes - tier.entry_bytes == pytest.approx(table, rel=0.1)
    tier.clear()
    assert tier.used_bytes < 10_000


@pytest.mark.parametrize("deadline", [0, 5])
def test_an_entry_costs_what_its_key_and_value_take_rounded_up(deadline):
    for value in ("x" * 10, b"x" * 300, 5, Packed(b"x" * 700), "é" * 30):
        key = "user:1"
        size = sys.getsizeof(key) + (56 + len(value) + 1 if type(value) is Packed else sys.getsizeof(value))
        entry = (value, deadline) if deadline else value
        assert size <= cost(key, entry) - (192 if deadline else 0) <= size + 48


FILL = r"""
import random, sys
from tiered import codec, process
from tiered.heap import HeapTier

shape, count = sys.argv[1], int(sys.argv[2])
uniform = random.Random(1)
names = ["Ada", "Grace", "Edsger", "Barbara", "Donald", "Tony", "Leslie", "Frances"]

def made(number):  # Nothing is shared between entries, as when they were read from disk.
    if shape == "small str":
        return f"key:{number}", f"value {number}", 0
    if shape == "documents":
        document = {"id": number, "name": uniform.choice(names), "mail": f"user{number}@example.org",
                    "tags": ["a", "b"], "score": uniform.random(),
                    "text": "".join(uniform.choices("abcdefghij ", k=150))}
        return f"user:{number:09d}", document, 0
    if shape == "tuple keys":
        return ("".join(("us", "ers")), number, "".join(("na", "me"))), b"x" * uniform.randrange(20, 120), 0
    if shape == "non-ascii text":
        return f"город:{number}", "Ελληνικά " * uniform.randrange(1, 20), 0
    if shape == "deadlines":
        return f"session:{number}", f"{number:040d}", 1_700_000_000_000 + number * 7
    raise SystemExit(shape)

def put(tier, key, value, deadline):
    tier.put(key, *codec.encode(value), deadline)

tier = HeapTier("lru", 1 << 40)
for number in range(2000):
    put(tier, *made(number))
tier.clear()
process.trim_heap()
before = process.rss_anon_bytes()
for number in range(count):
    put(tier, *made(number))
print(process.rss_anon_bytes() - before, tier.used_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RssAnon")
@pytest.mark.parametrize("shape", ["small str", "documents", "tuple keys", "non-ascii text", "deadlines"])
def test_accounted_bytes_are_the_memory_that_the_process_grows_by(shape):
    done = subprocess.run(
        [sys.executable, "-c", FILL, shape, "200000"], capture_output=True, text=True, check=True, timeout=60
    )
    grown, accounted = map(int, done.stdout.split())
    assert 0.75 * grown <= accounted <= 1.25 * grown, f"accounted {accounted / grown:.2f} of what the process grew by"


def test_accounting_stays_right_under_churn_of_mixed_sizes():
    uniform = random.Random(5)
    tier = HeapTier("lru", 300_000)
    for _ in range(20_000):
        key = uniform.choice((uniform.randrange(500), f"key:{uniform.randrange(500)}", ("t", uniform.randrange(500))))
        if uniform.random() < 0.1:
            tier.discard(key)
        else:
            deadline = uniform.choice((0, 0, 1000, 5_000_000))
            put(tier, key, b"x" * uniform.choice((10, 100, 1000, 10_000)), deadline)
        assert tier.used_bytes <= tier.budget_bytes
    assert tier.wrong() == ""
    assert tier.evictions > 100
    assert entries.DECODERS


@pytest.mark.parametrize("step", ["put_many", "expire"])
def test_an_interrupt_in_the_middle_of_many_leaves_the_accounts_right(step):
    tier = HeapTier("lru", MB)
    put_many(tier, range(20), [f"value {number}" for number in range(20)])
    for number in range(100, 120):
        put(tier, number, "expiring", 1000)
    calls = []

    def interrupted(function):
        def call(*arguments):
            result = function(*arguments)
            calls.append(arguments)
            if len(calls) == 5:
                raise KeyboardInterrupt
            return result

        return call

    if step == "put_many":
        tier._insert = interrupted(tier._insert)
        with pytest.raises(KeyboardInterrupt):
            put_many(tier, range(10, 30), ["new"] * 20)
    else:
        tier.order.remove = interrupted(tier.order.remove)
        with pytest.raises(KeyboardInterrupt):
            tier.expire(2000, 20)
    assert len(calls) == 5
    assert tier.wrong() == ""
