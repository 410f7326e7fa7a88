"""Random operations on a store and on a plain dict with deadlines; the two must never differ.

The oracle shares no code with the store: it has its own idea of time, of key order, of
what a range is.  Budgets are the smallest there are and some values large, so that
records move between all tiers.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from conftest import without_background
from contracts import evict, merge, set_aside
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import tiered
from tiered.clock import ManualClock

EPOCH_MS = 1_700_000_000_000
KEYS: list[Any] = ["", "a", "a\0", "ab", "abc", "b", "é", "\U0001f600", b"", b"a", b"a\0", b"ab", b"\xff"]
KEYS += [-(2**70), -300, -1, 0, 1, 255, 256, 2**64, (), ("a",), ("a", 1), ("a", 1, b"x"), ("a", "b"), ("b",)]
KEYS += [("a", ("n", 1)), ("a\0", 1), ("ab",)]
KEYS += ["a" * 480, "a" * 600 + "1", "a" * 600 + "2", b"k" * 700, ("a", "l" * 700), ("a", "l" * 700, 2)]
PREFIXES: list[Any] = ["", "a", "ab", "a" * 550, b"", b"a", (), ("a",), ("a", 1), ("a", "l" * 700)]
HEAD = 440
"""Of long keys only about so much counts for their order."""
KINDS = {bytes: 0, str: 1, tuple: 2, int: 3}


def rank(key: Any, cut: int | None = None) -> Any:
    """Sorts as keys do: by type, then within it; strings by code point, tuples element by element.

    With `cut` only as far as long keys are in order.
    """
    if isinstance(key, tuple):
        ranks = []
        for element in key:
            ranks.append(rank(element, cut))
            if cut and isinstance(element, (str, bytes)) and len(element) > cut:
                break
        return 2, tuple(ranks)
    return KINDS[type(key)], key[:cut] if isinstance(key, (str, bytes)) else key


def starts_with(key: Any, prefix: Any) -> bool:
    if type(key) is not type(prefix):
        return False
    return key[: len(prefix)] == prefix


some_key = st.sampled_from(KEYS)
some_ttl = st.sampled_from([0.001, 0.5, 1, 30, 4000.0])
large_value = st.builds(
    lambda size, seed: random.Random(seed).randbytes(size), st.integers(20_000, 60_000), st.integers(0, 9)
)
some_value = st.one_of(
    st.integers(-5, 5),
    st.sampled_from([None, True, 1.5, 2**80, "text", b"bytes", [1, {"a": (2, b"3")}], {"x": None}, "words " * 400]),
    large_value,
)
some_pairs = st.lists(st.tuples(some_key, some_value), max_size=6)


class StoreMachine(RuleBasedStateMachine):
    """`model` maps a key to its value and deadline in milliseconds, None for none; expired ones are dropped first."""

    helper = False

    @initialize(default_ttl=st.sampled_from([None, None, 20]), save=st.sampled_from(["", "5 1"]))
    def open(self, default_ttl: float | None, save: str) -> None:
        self.directory = Path(mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        self.copies = 0
        self.path = self.directory / "store"
        self.now_ms = EPOCH_MS
        self.default_ttl = default_ttl
        self.model: dict[Any, tuple[Any, int | None]] = {}
        self.clock = ManualClock(EPOCH_MS)
        self._open(default_ttl=default_ttl, save=save)

    def _open(self, **given: Any) -> None:
        self.store = tiered.open(self.path, memory="1MB", helper=self.helper, clock=self.clock, **given)
        if not self.helper:
            without_background(self.store)

    def _deadline(self, ttl: float | None) -> int | None:
        return None if ttl is None else self.now_ms + max(1, round(ttl * 1000))

    def _put(self, key: Any, value: Any, ttl: float | None) -> None:
        self.model[key] = value, self._deadline(ttl)

    # Single keys

    @rule(key=some_key, value=some_value)
    def set(self, key: Any, value: Any) -> None:
        self.store[key] = value
        self._put(key, value, self.default_ttl)

    @rule(key=some_key, value=some_value, ttl=st.one_of(st.none(), some_ttl))
    def set_with_ttl(self, key: Any, value: Any, ttl: float | None) -> None:
        self.store.set(key, value, ttl=ttl)
        self._put(key, value, ttl)

    @rule(key=some_key)
    def get(self, key: Any) -> None:
        assert (key in self.store) == (key in self.model)
        value, _ = self.model.get(key, ("none", None))
        found = self.store.get(key, "none")
        assert found == value
        assert type(found) is type(value)

    @rule(key=some_key)
    def subscript(self, key: Any) -> None:
        if key in self.model:
            assert self.store[key] == self.model[key][0]
        else:
            with pytest.raises(KeyError):
                self.store[key]

    @rule(key=some_key)
    def delete(self, key: Any) -> None:
        if self.model.pop(key, None):
            del self.store[key]
        else:
            with pytest.raises(KeyError):
                del self.store[key]

    @rule(key=some_key)
    def pop(self, key: Any) -> None:
        assert self.store.pop(key, "none") == self.model.pop(key, ("none", None))[0]

    @rule()
    def popitem(self) -> None:
        if not self.model:
            with pytest.raises(KeyError):
                self.store.popitem()
            return
        key, value = self.store.popitem()
        assert rank(key, HEAD) == max(rank(key, HEAD) for key in self.model)
        assert self.model.pop(key)[0] == value

    @rule(key=some_key, value=some_value)
    def setdefault(self, key: Any, value: Any) -> None:
        if key not in self.model:
            self._put(key, value, self.default_ttl)
        assert self.store.setdefault(key, value) == self.model[key][0]

    @rule(key=some_key, by=st.sampled_from([1, -3, 2**70, 0.5]))
    def incr(self, key: Any, by: Any) -> None:
        value, deadline = self.model.get(key, (0, self._deadline(self.default_ttl)))
        if type(value) not in (int, float):
            with pytest.raises(TypeError):
                self.store.incr(key, by)
            return
        self.model[key] = value + by, deadline
        assert self.store.incr(key, by) == value + by

    @rule(key=some_key, ttl=st.one_of(st.none(), some_ttl))
    def touch(self, key: Any, ttl: float | None) -> None:
        assert self.store.touch(key, ttl) == (key in self.model)
        if key in self.model:
            self._put(key, self.model[key][0], ttl)

    @rule(key=some_key)
    def persist(self, key: Any) -> None:
        value, deadline = self.model.get(key, (None, None))
        assert self.store.persist(key) == (deadline is not None)
        if key in self.model:
            self.model[key] = value, None

    @rule(key=some_key)
    def ttl(self, key: Any) -> None:
        if key not in self.model:
            with pytest.raises(KeyError):
                self.store.ttl(key)
            return
        deadline = self.model[key][1]
        assert self.store.ttl(key) == (None if deadline is None else (deadline - self.now_ms) / 1000)

    @rule(key=some_key)
    def explain(self, key: Any) -> None:
        if key in self.model:
            assert self.store.explain(key).tiers
        else:
            with pytest.raises(KeyError):
                self.store.explain(key)

    # Many keys

    @rule(pairs=some_pairs, ttl=st.one_of(st.none(), some_ttl), mapping=st.booleans())
    def set_many(self, pairs: list[tuple[Any, Any]], ttl: float | None, mapping: bool) -> None:
        self.store.set_many(dict(pairs) if mapping else iter(pairs), ttl=ttl)
        for key, value in pairs:
            self._put(key, value, ttl)

    @rule(keys=st.lists(some_key, max_size=8))
    def get_many(self, keys: list[Any]) -> None:
        wanted = {key: self.model[key][0] for key in keys if key in self.model}
        found = self.store.get_many(iter(keys))
        assert found == wanted
        assert list(found) == list(wanted)

    @rule(keys=st.lists(some_key, max_size=8))
    def delete_many(self, keys: list[Any]) -> None:
        there = set(keys) & self.model.keys()
        assert self.store.delete_many(keys) == len(there)
        for key in there:
            del self.model[key]

    @rule(pairs=some_pairs)
    def update(self, pairs: list[tuple[Any, Any]]) -> None:
        self.store.update(pairs, named=1)
        for key, value in [*pairs, ("named", 1)]:
            self._put(key, value, self.default_ttl)

    @precondition(lambda self: len(self.model) > 4)
    @rule()
    def clear(self) -> None:
        self.store.clear()
        self.model.clear()

    @rule(
        prefix=st.one_of(st.none(), st.sampled_from(PREFIXES)),
        start=st.one_of(st.none(), some_key),
        stop=st.one_of(st.none(), some_key),
        reverse=st.booleans(),
        backwards=st.booleans(),
    )
    def range(self, prefix: Any, start: Any, stop: Any, reverse: bool, backwards: bool) -> None:
        expected = {
            key: value
            for key, (value, _) in self.model.items()
            if (prefix is None or starts_with(key, prefix))
            and (start is None or rank(key) >= rank(start))
            and (stop is None or rank(key) < rank(stop))
        }
        view = self.store.items(prefix=prefix, start=start, stop=stop, reverse=reverse)
        found = list(reversed(view) if backwards else view)
        assert len(found) == len(expected) == len(view)
        assert dict(found) == expected
        ranks = [rank(key, HEAD) for key, _ in found]
        assert ranks == sorted(ranks, reverse=reverse != backwards)
        keys = self.store.keys(prefix=prefix, start=start, stop=stop, reverse=reverse != backwards)
        assert list(keys) == [key for key, _ in found]
        for key in KEYS:
            assert (key in keys) == (key in expected)

    # What users should not notice

    @rule(seconds=st.sampled_from([0.001, 0.499, 1, 2, 10, 35, 5000]))
    def time_passes(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        self.now_ms += round(seconds * 1000)
        self.model = {
            key: (value, deadline)
            for key, (value, deadline) in self.model.items()
            if deadline is None or deadline > self.now_ms
        }

    @rule()
    def tick(self) -> None:
        self.store.tick()

    @rule()
    def save(self) -> None:
        self.store.save()

    @rule()
    def sync(self) -> None:
        self.store.sync()

    @rule()
    def begin_a_checkpoint(self) -> None:
        set_aside(self.store)

    @rule()
    def evict(self) -> None:
        evict(self.store)

    @precondition(lambda self: not self.helper)
    @rule()
    def merge(self) -> None:
        merge(self.store)

    @rule(memory=st.sampled_from(["1MB", "1.2MB", "3MB", "20MB"]))
    def change_budget(self, memory: str) -> None:
        self.store.config_set("memory", memory)

    @rule(compression=st.sampled_from(["zstd:3", "zlib:1", "none"]))
    def change_compression(self, compression: str) -> None:
        self.store.config_set("compression", compression)

    @rule(seconds=st.sampled_from([None, 5, 100]))
    def change_default_ttl(self, seconds: float | None) -> None:
        self.store.config_set("default_ttl", seconds)
        self.default_ttl = seconds

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self._open()
        assert self.store.config_get("default_ttl")["default_ttl"] == self.default_ttl

    @precondition(lambda self: not self.helper)
    @rule()
    def die(self) -> None:
        """What a killed program leaves: all files as they are at this moment."""
        self.copies += 1
        left = self.directory / f"copy-{self.copies}"
        shutil.copytree(self.path, left)
        self.store.close()
        self.path = left
        self._open()
        assert self.store.stats().recovery_dropped_bytes == 0

    @invariant()
    def nothing_is_wrong_between_the_tiers(self) -> None:
        if hasattr(self, "store"):
            assert self.store.check() == []

    @invariant()
    def length_and_iteration_agree_with_the_model(self) -> None:
        if hasattr(self, "store"):
            assert len(self.store) == len(self.model)
            found = list(self.store)
            assert len(found) == len(self.model)
            assert set(found) == self.model.keys()
            assert bool(self.store) == bool(self.model)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            try:
                items = dict(self.store.items())
                assert items == {key: value for key, (value, _) in self.model.items()}
            finally:
                self.store.close()
                shutil.rmtree(self.directory)


class HelperMachine(StoreMachine):
    """The same with checkpoints by the helper process, at whatever moment they happen."""

    helper = True


ROUNDS = settings(
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
StoreMachine.TestCase.settings = settings(ROUNDS, max_examples=250, stateful_step_count=40)
HelperMachine.TestCase.settings = settings(ROUNDS, max_examples=8, stateful_step_count=30)


class TestAnySequenceOfOperations(StoreMachine.TestCase):  # type: ignore[name-defined,misc]
    pass


class TestAnySequenceOfOperationsWithHelper(HelperMachine.TestCase):  # type: ignore[name-defined,misc]
    pass
