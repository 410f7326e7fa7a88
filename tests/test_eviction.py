"""Eviction: the contract of every policy, and the exact order of LRU, alone and through a store."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from contracts import PolicyContract

from tiered.eviction import LRU, POLICIES, Policy


class TestPolicies(PolicyContract):
    @pytest.fixture(params=sorted(POLICIES))
    def policy(self, request: pytest.FixtureRequest) -> Policy:
        return POLICIES[request.param]()


def victims(policy: Policy) -> list[Any]:
    found = []
    while policy.table:
        found.append(policy.victim()[0])
    return found


def test_lru_evicts_in_the_order_of_the_last_read_or_write() -> None:
    policy = LRU()
    for key in "abcde":
        policy.insert(key, key)
    policy.hit("b")
    policy.remove("a")
    policy.insert("a", "again")
    policy.remove("d")
    policy.hit("c")
    assert victims(policy) == ["e", "b", "a", "c"]


def test_lru_order_is_exact_over_many_random_operations() -> None:
    policy, uniform, model = LRU(), random.Random(3), list[int]()  # The model: the oldest first.
    for _ in range(5000):
        key = uniform.randrange(50)
        what = uniform.random()
        if what < 0.9:
            if key in model:
                model.remove(key)
                if what < 0.6:
                    policy.hit(key)
                else:
                    policy.remove(key)
                    policy.insert(key, key)
            else:
                policy.insert(key, key)
            model.append(key)
        elif what < 0.95 and key in model:
            policy.remove(key)
            model.remove(key)
        elif model:
            assert policy.victim()[0] == model.pop(0)
    assert victims(policy) == model


def hot(store: Any) -> list[Any]:
    """Keys of the hot tier, the one to leave first at the front."""
    return list(store._engine.hot)


@pytest.fixture
def letters(opener: Any) -> Any:
    store = opener(stepwise=True)
    for letter in "abcdef":
        store[letter] = [letter]
    assert hot(store) == list("abcdef")
    return store


USES: dict[str, Callable[[Any], Any]] = {
    "subscript": lambda store: store["b"],
    "get": lambda store: store.get("b"),
    "get_many": lambda store: store.get_many(["b"]),
    "set": lambda store: store.set("b", 1),
    "set_many": lambda store: store.set_many({"b": 1}),
    "setdefault": lambda store: store.setdefault("b", 1),
    "touch": lambda store: store.touch("b", 100),
    "promotion": lambda store: (store._engine.hot.discard("b"), store["b"]),
}
LOOKS: dict[str, Callable[[Any], Any]] = {
    "in": lambda store: "b" in store,
    "ttl": lambda store: store.ttl("b"),
    "explain": lambda store: store.explain("b"),
    "items": lambda store: dict(store.items()),
    "reversed": lambda store: list(reversed(store)),
    "values of a range": lambda store: list(store.values(prefix="b")),
    "len": len,
    "check": lambda store: store.check(),
    "stats": lambda store: store.stats(),
    "save": lambda store: store.save(),
    "equality": lambda store: store == dict.fromkeys("abcdef"),
}


@pytest.mark.parametrize("use", USES)
def test_a_read_or_written_key_leaves_last(letters: Any, use: str) -> None:
    USES[use](letters)
    assert hot(letters) == list("acdefb")


@pytest.mark.parametrize("look", LOOKS)
def test_looking_without_reading_the_value_and_iterating_leave_the_order_as_it_is(letters: Any, look: str) -> None:
    LOOKS[look](letters)
    assert hot(letters) == list("abcdef")


def test_iterating_over_cold_records_promotes_none(letters: Any) -> None:
    letters.save()
    letters._engine.hot.clear()
    assert len(dict(letters.items())) == len(list(letters.values())) == 6
    assert hot(letters) == []


def test_a_store_evicts_exactly_the_keys_used_longest_ago(opener: Any) -> None:
    store = opener(stepwise=True)
    uniform, order = random.Random(1), dict[int, None]()
    for step in range(4000):
        key = uniform.randrange(600)
        if key in order and uniform.random() < 0.5:
            assert len(store[key]) == 1000 + key
        else:
            store[key] = f"{key:04}" + "x" * (996 + key)
        order.pop(key, None)
        order[key] = None
        if not step % 100:
            kept = hot(store)
            assert kept == list(order)[-len(kept) :]
    assert store._engine.hot.evictions > 200
    assert store.memory_stats().accounted_bytes <= 1 << 20


def test_an_evicted_value_is_read_back_whether_it_was_dirty_or_clean(opener: Any) -> None:
    store = opener(stepwise=True)
    expected = {number: random.Random(number).randbytes(3000) for number in range(1000)}
    store.update(expected)
    stats = store.stats()
    assert stats.hot_records < 400
    assert stats.dirty_records < 1000
    for number, value in expected.items():
        assert store[number] == value
    assert store.stats().promotions > 600


def test_a_smaller_budget_evicts_at_once_and_loses_nothing(opener: Any) -> None:
    store = opener(stepwise=True, memory="8MB")
    expected = {number: random.Random(number).randbytes(2000) for number in range(1500)}
    store.update(expected)
    assert store.stats().hot_records == 1500
    store.config_set("memory", "1MB")
    assert store.stats().hot_bytes <= 1 << 20
    assert hot(store) == list(range(1500))[-len(hot(store)) :]
    assert dict(store.items()) == expected


def test_a_value_larger_than_its_share_of_the_budget_is_stored_but_not_kept_hot(opener: Any) -> None:
    store = opener(stepwise=True)
    store["small"] = "stays"
    store["large"] = "first"
    store["large"] = large = random.Random(0).randbytes(600_000)
    assert hot(store) == ["small"]
    assert store["large"] == large
    store.save()
    assert store["large"] == large
    assert hot(store) == ["small"]
