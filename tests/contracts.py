"""Contracts tested once and reused for every implementation: subclass, and give the fixture that makes the thing."""

from __future__ import annotations

import contextlib
import ctypes
import random
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import pytest

from tiered import codec, keys
from tiered.cold_state import run_name
from tiered.eviction import POLICIES
from tiered.hot import HotTier

KEYS: list[Any] = ["", "a", "b\0c", "é", "\ud800", b"", b"a", b"\xff\0", 0, 1, -1, 2**70, -(2**70), 256]
KEYS += [(), ("a",), ("a", 1), ("a", ("b", b"c")), "long" * 200, ("tuple", b"x" * 600)]
VALUES: list[Any] = [0, "text", b"bytes", None, True, 1.5, [1, [2]], {"k": (1, 2)}, "x" * 3000, {1, 2}, 2**200]


@contextlib.contextmanager
def upset_accounts(hot: Any) -> Iterator[None]:
    """A hot tier that holds at least one record, with something in it that does not add up."""
    if hot.name == "heap":
        hot.entry_bytes += 16
        yield
        hot.entry_bytes -= 16
        return
    older = hot.address + 4 + 4  # Of the first record; the segment begins with a unit that is nobody's.
    right = ctypes.string_at(older, 4)
    ctypes.memset(older, 0x11, 4)
    yield
    ctypes.memmove(older, right, 4)


class MappingContract:
    """What a `dict` does, of any mutable mapping; `settle` moves its values between tiers, if it has any."""

    some_keys = KEYS

    @pytest.fixture
    def mapping(self) -> MutableMapping[Any, Any]:
        raise NotImplementedError

    @pytest.fixture
    def settle(self) -> Callable[[], None]:
        return lambda: None

    def test_every_kind_of_key_finds_its_own_value(self, mapping: Any, settle: Any) -> None:
        for number, key in enumerate(self.some_keys):
            mapping[key] = number
        settle()
        assert [mapping[key] for key in self.some_keys] == list(range(len(self.some_keys)))
        assert len(mapping) == len(self.some_keys)
        assert set(mapping) == set(self.some_keys)

    def test_a_value_comes_back_equal_and_of_the_same_type(self, mapping: Any, settle: Any) -> None:
        for number, value in enumerate(VALUES):
            mapping[number] = value
        settle()
        for number, value in enumerate(VALUES):
            assert mapping[number] == value
            assert type(mapping[number]) is type(value)

    def test_keys_that_are_equal_are_the_same_key(self, mapping: Any, settle: Any) -> None:
        mapping[1] = "first"
        settle()
        mapping[True] = "second"
        settle()
        mapping[1.0] = "third"
        settle()
        assert mapping[1] == mapping[True] == mapping[1.0] == "third"
        assert list(mapping) == [1]
        del mapping[1.0]
        assert 1 not in mapping
        mapping[("a", True)] = 1
        settle()
        assert mapping.pop(("a", 1)) == 1

    def test_a_missing_key_is_a_key_error_that_names_it(self, mapping: Any) -> None:
        for missing in (lambda: mapping["no"], lambda: mapping.pop("no"), lambda: mapping.__delitem__("no")):
            with pytest.raises(KeyError, match="no"):
                missing()
        assert "no" not in mapping
        assert mapping.get("no") is None
        assert mapping.get("no", 5) == mapping.pop("no", 5) == 5

    def test_assignment_replaces(self, mapping: Any, settle: Any) -> None:
        mapping["k"] = "old"
        settle()
        mapping["k"] = "new"
        assert mapping["k"] == "new"
        settle()
        assert mapping["k"] == "new"
        assert len(mapping) == 1

    def test_a_deleted_key_is_gone_until_it_is_written_again(self, mapping: Any, settle: Any) -> None:
        mapping["k"] = 1
        settle()
        del mapping["k"]
        assert "k" not in mapping
        settle()
        assert "k" not in mapping
        assert len(mapping) == 0
        mapping["k"] = 2
        settle()
        assert mapping["k"] == 2

    def test_none_is_a_value_like_any_other(self, mapping: Any, settle: Any) -> None:
        mapping["k"] = None
        settle()
        assert "k" in mapping
        assert mapping.get("k", 1) is None
        assert mapping.setdefault("k", 1) is None
        assert mapping.pop("k", 1) is None
        assert "k" not in mapping

    def test_setdefault_writes_only_where_there_is_nothing(self, mapping: Any, settle: Any) -> None:
        assert mapping.setdefault("k", 1) == 1
        settle()
        assert mapping.setdefault("k", 2) == 1
        assert mapping["k"] == 1

    def test_update_takes_mappings_pairs_and_keywords(self, mapping: Any, settle: Any) -> None:
        mapping.update({"a": 1, "b": 1})
        mapping.update([("b", 2), ("c", 2)], d=3)
        mapping.update(iter([("e", 4)]))
        mapping.update()
        settle()
        assert dict(mapping) == {"a": 1, "b": 2, "c": 2, "d": 3, "e": 4}
        mapping |= {"a": 9}
        assert mapping["a"] == 9

    def test_popitem_empties_the_mapping_pair_by_pair(self, mapping: Any, settle: Any) -> None:
        expected = {number: str(number) for number in range(20)}
        mapping.update(expected)
        settle()
        popped = dict(mapping.popitem() for _ in range(20))
        assert popped == expected
        assert not mapping
        with pytest.raises(KeyError):
            mapping.popitem()

    def test_clear_leaves_nothing_and_writing_goes_on(self, mapping: Any, settle: Any) -> None:
        mapping.update({number: number for number in range(50)})
        settle()
        mapping["dirty"] = 1
        mapping.clear()
        assert len(mapping) == 0
        assert list(mapping.items()) == []
        mapping["after"] = 1
        settle()
        assert dict(mapping) == {"after": 1}

    def test_views_agree_with_each_other_and_follow_changes(self, mapping: Any, settle: Any) -> None:
        some_keys, some_values, some_items = mapping.keys(), mapping.values(), mapping.items()
        assert len(some_keys) == 0
        mapping.update({"a": 1, "b": [2]})
        settle()
        assert len(some_keys) == len(some_values) == len(some_items) == 2
        assert dict(zip(some_keys, some_values, strict=True)) == dict(some_items) == {"a": 1, "b": [2]}
        assert "a" in some_keys
        assert [2] in some_values
        assert ("b", [2]) in some_items
        assert ("b", [3]) not in some_items
        assert some_keys & {"a", "z"} == {"a"}
        assert some_keys == {"a", "b"}

    def test_equal_to_any_mapping_with_the_same_pairs(self, mapping: Any, settle: Any) -> None:
        mapping.update({"a": 1, 2: [3]})
        settle()
        assert mapping == {"a": 1, 2: [3]}
        assert mapping == {"a": 1, 2: [3]}
        assert mapping != {"a": 1}
        assert mapping != {"a": 1, 2: [4]}
        assert mapping != {"a": 1, 3: [3]}
        assert mapping != 5

    def test_true_exactly_while_it_holds_something(self, mapping: Any, settle: Any) -> None:
        assert not mapping
        mapping["k"] = 0
        assert mapping
        settle()
        assert mapping
        del mapping["k"]
        assert not mapping

    def test_random_operations_leave_what_they_leave_in_a_dict(self, mapping: Any, settle: Any) -> None:
        uniform, model = random.Random(5), dict[Any, Any]()
        for step in range(600):
            key, value = uniform.choice(self.some_keys), uniform.choice(VALUES)
            what = uniform.randrange(6)
            if what < 3:
                mapping[key] = model[key] = value
            elif what == 3:
                assert mapping.pop(key, "none") == model.pop(key, "none")
            elif what == 4:
                assert mapping.get(key, "none") == model.get(key, "none")
            else:
                assert mapping.setdefault(key, step) == model.setdefault(key, step)
            if not step % 50:
                settle()
        assert mapping == model
        assert len(mapping) == len(model)


class PolicyContract:
    """What every eviction policy does on both hot tiers, whatever its order."""

    BUDGET = 400_000

    @pytest.fixture
    def tier(self) -> HotTier:
        raise NotImplementedError

    @staticmethod
    def put(tier: HotTier, key: Any, value: Any, deadline: int = 0) -> bool:
        return tier.put(key, *codec.encode(value), deadline)

    @staticmethod
    def empty(tier: HotTier) -> list[Any]:
        """Evicts all, a little at a time; the keys in the order in which they left."""
        left = []
        before = list(tier)
        while len(tier):
            tier.shrink(max(tier.used_bytes - 400, 0))
            now = set(tier)
            left += [key for key in before if key not in now]
            before = list(tier)
        return left

    def test_what_was_put_last_is_read_and_what_was_discarded_is_not(self, tier: HotTier) -> None:
        self.put(tier, "a", 1)
        self.put(tier, "b", [2])
        assert tier.discard("a")
        self.put(tier, "a", "again")
        self.put(tier, "b", "over")
        assert (tier.get("a"), tier.get("b"), len(tier)) == ("again", "over", 2)
        assert tier.wrong() == ""

    def test_a_hit_on_or_the_removal_of_what_is_not_there_changes_nothing(self, tier: HotTier) -> None:
        self.put(tier, "a", 1)
        for _ in range(100):
            tier.hit("a")
        with pytest.raises(KeyError):
            tier.hit("b")
        assert not tier.discard("b")
        assert (tier.get("a"), list(tier), tier.wrong()) == (1, ["a"], "")

    def test_every_record_leaves_exactly_once(self, tier: HotTier) -> None:
        for number in range(300):
            self.put(tier, number, "x" * 500)
        for number in range(0, 300, 3):
            tier.get(number)
        assert sorted(self.empty(tier)) == list(range(300))
        assert tier.evictions == 300
        assert (tier.entry_bytes, tier.wrong()) == (0, "")

    def test_the_budget_is_kept_and_used_whatever_the_sizes(self, tier: HotTier) -> None:
        uniform = random.Random(2)
        for step in range(6000):
            key = int(uniform.paretovariate(0.5)) % 5000
            if tier.get(key) is None:
                self.put(tier, key, bytes(uniform.choice((20, 200, 1000, 5000))))
            assert tier.used_bytes <= tier.budget_bytes
            if not step % 500:
                assert tier.wrong() == ""
        assert tier.evictions > 30
        assert tier.used_bytes > tier.budget_bytes * 0.55

    def test_a_value_too_large_to_be_kept_evicts_nobody(self, tier: HotTier) -> None:
        for number in range(100):
            self.put(tier, number, "x" * 200)
        assert not self.put(tier, 50, bytes(self.BUDGET))
        assert len(tier) == 99
        assert 50 not in tier

    def test_a_smaller_budget_and_a_larger_one_hold_from_then_on(self, tier: HotTier) -> None:
        for number in range(3000):
            self.put(tier, number, bytes(200))
        held = len(tier)
        tier.budget_bytes = self.BUDGET // 2
        while not tier.shrink():
            pass
        assert tier.used_bytes <= self.BUDGET // 2 or not len(tier)
        assert (held // 10 if tier.in_budget else -1) < len(tier) < held * 2 // 3
        tier.budget_bytes = 2 * self.BUDGET
        for number in range(6000):
            self.put(tier, number, bytes(200))
        assert len(tier) > held * 5 // 4
        assert tier.used_bytes <= 2 * self.BUDGET
        assert tier.wrong() == ""

    def test_what_has_expired_is_forgotten(self, tier: HotTier) -> None:
        for number in range(200):
            self.put(tier, number, "x", 5_000 if number % 2 else 0)
        tier.get_at(1, 1_000, None)
        assert tier.expire(7_000, 1000) == 100
        assert sorted(tier) == list(range(0, 200, 2))
        assert tier.wrong() == ""

    def test_clear_forgets_the_records_and_their_order(self, tier: HotTier) -> None:
        for number in range(3000):
            self.put(tier, number, bytes(200))
        tier.clear()
        assert (len(tier), tier.entry_bytes, tier.wrong()) == (0, 0, "")
        self.put(tier, "b", 2)
        assert self.empty(tier) == ["b"]

    def test_switching_to_any_other_keeps_all_records_and_their_values(self, tier: HotTier) -> None:
        for number in range(300):
            self.put(tier, number, "x" * number, 9_000 if number % 7 == 0 else 0)
            tier.get(number // 2)
        first = tier.policy
        for policy in [*POLICIES, first]:
            before = list(tier)
            tier.evict_by(policy)
            assert tier.policy == policy
            assert set(tier) == set(before)
            if len(before) < 100 or policy in ("lru", "fifo"):
                assert list(tier) == before, "taken over in the old order"
            assert tier.wrong() == ""
            tier.hit(5)
            self.put(tier, "new", 1)
        assert all(tier.get_at(number, 0, None) == "x" * number for number in range(300))
        assert tier.expiring == 43

    def test_what_it_keeps_in_mind_leaves_the_most_to_the_records(self, tier: HotTier) -> None:
        plain = type(tier)("fifo", self.BUDGET)  # type: ignore[call-arg]
        for number in range(10_000):
            for each in (tier, plain):
                self.put(each, number, bytes(150))
        assert len(tier) > len(plain) * (0.8 if tier.in_budget else 0.3)  # The heap's tables come in a few sizes only.


def stored_bytes_of(store: Any, key: Any) -> dict[str, bytes]:
    """A key's record in each layer of the cold tier, the newest first."""
    engine, found = store._engine, {}
    stored_key = keys.stored(keys.encode(key))
    with engine.cold.read() as reader:
        for name in (*map(run_name, reader.state().runs), "records"):
            data = reader.txn.get(stored_key, db=engine.cold.databases[name])
            if data is not None:
                found[name] = data
    return found


def damage(store: Any, key: Any, at: int = -1) -> None:
    """Flip one bit of a key's newest record in the cold tier."""
    name, data = next(iter(stored_bytes_of(store, key).items()))
    flipped = bytearray(data)
    flipped[at] ^= 1
    cold = store._engine.cold
    with cold.update() as update:
        update.txn.put(keys.stored(keys.encode(key)), bytes(flipped), db=cold.databases[name])


def set_aside(store: Any) -> None:
    """Begin a checkpoint without applying anything of it."""
    with store._engine.lock:
        store._engine.rotate()


def evict(store: Any) -> None:
    """Empty the hot tier."""
    with store._engine.lock:
        store._engine.hot.clear()


def merge(store: Any) -> None:
    """Move the cold tier's newer records behind."""
    with store._engine.cold.update() as update:
        while update.current.runs:
            update.merge(1 << 30)
