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
from beside import beside
from conftest import without_background
from contracts import evict, merge, set_aside
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import tiered
from tiered import ConflictError, ViewExpiredError, codec, keys
from tiered.clock import ManualClock
from tiered.memory_cap import ENTRY_BYTES, live_bytes

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


TXN_STEPS = ["set", "set", "set with ttl", "pop", "get", "touch", "sub", "range"]


class Stop(Exception):
    """Ends a transaction."""


class StoreMachine(RuleBasedStateMachine):
    """`model` maps a key to its value and deadline in milliseconds, None for none; expired ones are dropped first."""

    helper = False
    reader: Any = None

    @initialize(default_ttl=st.sampled_from([None, None, 20]), save=st.sampled_from(["", "5 1"]))
    def open(self, default_ttl: float | None, save: str) -> None:
        self.directory = Path(mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        self.copies = 0
        self.path = self.directory / "store"
        self.now_ms = EPOCH_MS
        self.default_ttl = default_ttl
        self.model: dict[Any, tuple[Any, int | None]] = {}
        self.views: list[tuple[Any, dict[Any, Any]]] = []
        self.snapshots: list[tuple[Path, dict[Any, tuple[Any, int | None]], float | None]] = []
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

    # Many operations, one moment

    @rule(
        steps=st.lists(st.tuples(st.sampled_from(TXN_STEPS), some_key, some_value), max_size=4),
        end=st.sampled_from(["commit", "commit", "roll back", "conflict"]),
        pause=st.sampled_from(["nothing", "save", "evict", "begin_a_checkpoint"]),
    )
    def transaction(self, steps: list[tuple[str, Any, Any]], end: str, pause: str) -> None:
        before, raised = dict(self.model), Stop if end == "roll back" else ConflictError
        try:
            with self.store.transaction() as txn:
                for step, key, value in steps:
                    self._step_of(txn, step, key, value)
                if pause != "nothing":
                    getattr(self, pause)()
                items = {key: value for key, (value, _) in self.model.items()}
                assert dict(txn.items()) == items
                assert len(txn) == len(items)
                if end == "roll back":
                    raise Stop
                if end == "conflict":
                    self.model = dict(before)
                    self.set("a", "another's")
                    before = dict(self.model)
                    txn["mine"] = 1
        except raised:
            assert end != "commit"
            self.model = before
        else:
            assert end == "commit"

    def _step_of(self, txn: Any, step: str, key: Any, value: Any) -> None:
        """One step of a transaction and of the model, which stays only if it commits."""
        known = self.model.get(key)
        if step == "set":
            txn[key] = value
            self._put(key, value, self.default_ttl)
        elif step == "set with ttl":
            txn.set(key, value, ttl=30)
            self._put(key, value, 30)
        elif step == "pop":
            assert txn.pop(key, "none") == self.model.pop(key, ("none",))[0]
        elif step == "get":
            assert txn.get(key, "none") == (known or ("none",))[0]
        elif step == "touch":
            assert txn.touch(key, 5) == (known is not None)
            if known:
                self._put(key, known[0], 5)
        elif step == "sub" and isinstance(key, tuple) and key:
            part = txn.sub(key[0])
            part[key[1:]] = value
            self._put(key, value, self.default_ttl)
        elif step == "range":
            keys = [other for other in self.model if rank(other) >= rank(key)]
            assert set(txn.keys(start=key)) == set(keys)

    @rule(key=some_key, addition=some_value)
    def edit(self, key: Any, addition: Any) -> None:
        value, deadline = self.model.get(key, ([], self._deadline(self.default_ttl)))
        if type(value) is dict:
            with self.store.edit(key) as edited:
                edited["added"] = addition
            self.model[key] = {**value, "added": addition}, deadline
            return
        if type(value) is not list:
            with pytest.raises(TypeError), self.store.edit(key):
                pass
            return
        with self.store.edit(key, []) as edited:
            edited.append(addition)
        self.model[key] = [*value, addition], deadline

    @precondition(lambda self: len(self.views) < 3)
    @rule()
    def open_view(self) -> None:
        moment = {key: value for key, (value, _) in self.model.items()}
        self.views.append((self.store.view(max_age=1e9), moment))

    @precondition(lambda self: self.views)
    @rule(key=some_key, prefix=st.sampled_from(PREFIXES), start=some_key, reverse=st.booleans(), close=st.booleans())
    def look_at_view(self, key: Any, prefix: Any, start: Any, reverse: bool, close: bool) -> None:
        view, moment = self.views.pop(0)
        try:
            assert dict(view.items()) == moment
            assert len(view) == len(moment)
            assert view.get(key, "none") == moment.get(key, "none")
            assert view.get_many([key, start]) == {key: moment[key] for key in (key, start) if key in moment}
            expected = {key for key in moment if starts_with(key, prefix) and rank(key) >= rank(start)}
            found = list(view.keys(prefix=prefix, start=start, reverse=reverse))
            assert set(found) == expected
            assert len(found) == len(expected)
            ranks = [rank(key, HEAD) for key in found]
            assert ranks == sorted(ranks, reverse=reverse)
        except ViewExpiredError as error:
            assert "share of the memory" in str(error)  # noqa: PT017
            close = True
        if close:
            view.close()
        else:
            self.views.append((view, moment))

    @rule(prefix=st.sampled_from([("a",), ("a", 1), ("b",), ("a", "l" * 700)]))
    def sub(self, prefix: tuple[Any, ...]) -> None:
        expected = {}
        for key, (value, _) in self.model.items():
            if starts_with(key, prefix):
                rest = key[len(prefix) :]
                expected[rest[0] if len(rest) == 1 and not isinstance(rest[0], tuple) else rest] = value
        part = self.store.sub(*prefix)
        assert dict(part.items()) == expected
        assert len(part) == len(expected)
        for key, value in expected.items():
            assert part[key] == value
        with self.store.view() as view:
            assert dict(view.sub(*prefix)) == expected

    @rule(prefix=st.sampled_from([("a",), ("b",)]), clear=st.booleans(), value=some_value)
    def write_through_sub(self, prefix: tuple[Any, ...], clear: bool, value: Any) -> None:
        part = self.store.sub(*prefix)
        if clear:
            part.clear()
            self.model = {key: found for key, found in self.model.items() if not starts_with(key, prefix)}
        part[1] = value
        self._put((*prefix, 1), value, self.default_ttl)

    def _close_views(self) -> None:
        for view, _ in self.views:
            view.close()
        self.views.clear()

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

    @rule(shares=st.sampled_from(["0.1 0.2", "0.95 0.99", "1"]), values=st.sampled_from(["0", "0.01 0.1", "0.125"]))
    def change_watermarks(self, shares: str, values: str) -> None:
        self.store.config_set("low_watermark", shares)
        self.store.config_set("hot_value_share", values)

    @rule(promotion=st.sampled_from(["first", "second"]))
    def change_promotion(self, promotion: str) -> None:
        self.store.config_set("promotion", promotion)

    @rule(key=some_key, value=some_value)
    def write_where_nothing_may_spill(self, key: Any, value: Any) -> None:
        self.store.config_set("spill", False)
        try:
            self.store[key] = value
            self._put(key, value, self.default_ttl)
        except tiered.MemoryFullError:
            pass
        there = ((keys.encode(key), codec.encode(value)[1]) for key, value in self.store.items())
        counted = sum(len(encoded) + len(payload) + ENTRY_BYTES for encoded, payload in there)
        assert live_bytes(self.store._engine) >= counted
        self.store.config_set("spill", True)

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
        self._close_views()
        self.store.close()
        self._open()
        assert self.store.config_get("default_ttl")["default_ttl"] == self.default_ttl

    @rule()
    def change_handles(self) -> None:
        """Another handle on the same engine takes over; the first one is closed with its views, the engine goes on."""
        before = self.store
        self.store = tiered.open(self.path)
        before.close()
        for closed in (before, *(view for view, _ in self.views)):
            with pytest.raises(tiered.ClosedError):
                closed.get("any")
        self.views.clear()

    @rule(key=some_key, value=some_value)
    def read_through_another_handle(self, key: Any, value: Any) -> None:
        with tiered.open(self.path, "r") as reader:
            assert reader.get(key, "none") == self.model.get(key, ("none", None))[0]
            assert len(reader) == len(self.model)
            with pytest.raises(tiered.ReadOnlyError):
                reader[key] = value

    @rule(key=some_key, look=st.sampled_from(["refresh", "refresh", "evict", "close"]))
    def follow(self, key: Any, look: str) -> None:
        """A reader as in another process looks, and sees the same; it stays from one time to the next."""
        if self.reader is None or self.reader._engine.writer is not self.store._engine:
            self.reader = beside(self.store)
        self.reader.refresh()
        assert self.reader.get(key, "none") == self.model.get(key, ("none", None))[0]
        assert dict(self.reader) == {key: value for key, (value, _) in self.model.items()}
        assert len(self.reader) == len(self.model)
        assert self.reader.get_many(KEYS) == {key: self.model[key][0] for key in KEYS if key in self.model}
        assert self.reader.check() == []
        if look == "evict":
            evict(self.reader)
        elif look == "close":
            self.reader.close()
            self.reader = None

    @precondition(lambda self: not self.helper)
    @rule()
    def die(self) -> None:
        """What a killed program leaves: all files as they are at this moment."""
        self.copies += 1
        left = self.directory / f"copy-{self.copies}"
        shutil.copytree(self.path, left)
        self._close_views()
        self.store.close()
        self.path = left
        self._open()
        assert self.store.stats().recovery_dropped_bytes == 0

    @rule()
    def snapshot(self) -> None:
        self.copies += 1
        file = self.directory / f"snapshot-{self.copies}.tsnap"
        info = self.store.snapshot(file)
        assert info.records >= len(self.model)  # What expired a moment ago may be in it.
        self.snapshots.append((file, dict(self.model), self.default_ttl))

    def _of_snapshot(self, model: dict[Any, tuple[Any, int | None]]) -> dict[Any, tuple[Any, int | None]]:
        """What is left of a snapshot now."""
        return {key: found for key, found in model.items() if found[1] is None or found[1] > self.now_ms}

    @precondition(lambda self: self.snapshots)
    @rule(number=st.integers(0, 9), prefix=st.one_of(st.none(), st.sampled_from(PREFIXES)))
    def restore_elsewhere(self, number: int, prefix: Any) -> None:
        file, model, _ = self.snapshots[number % len(self.snapshots)]
        path = self.directory / "restored"
        assert tiered.verify(file) == []
        tiered.restore(file, path, prefix=prefix)
        assert tiered.verify(path) == []
        left = {
            key: value
            for key, (value, _) in self._of_snapshot(model).items()
            if prefix is None or starts_with(key, prefix)
        }
        with tiered.open(path, memory="1MB", helper=False, clock=self.clock) as restored:
            assert dict(restored.items()) == left
            assert len(restored) == len(left)
            for key in left:
                deadline = model[key][1]
                assert restored.ttl(key) == (None if deadline is None else (deadline - self.now_ms) / 1000)
            assert restored.check() == []
        shutil.rmtree(path)

    @precondition(lambda self: self.snapshots)
    @rule(number=st.integers(0, 9))
    def restore_in_place(self, number: int) -> None:
        file, model, default_ttl = self.snapshots[number % len(self.snapshots)]
        self._close_views()
        self.store.close()
        tiered.restore(file, self.path, force=True)
        self.model, self.default_ttl = self._of_snapshot(model), default_ttl
        self._open()

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
                for view, moment in self.views:
                    try:
                        assert dict(view) == moment
                    except ViewExpiredError:
                        continue
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
    # Making an example smaller takes minutes, and what takes minutes counts as hung.
    phases=[Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] if os.environ.get("TIERED_SHRINK") else [])],
)
TIMES = int(os.environ.get("TIERED_EXAMPLES", "1"))
"""So many times more examples than the ordinary run has."""
StoreMachine.TestCase.settings = settings(ROUNDS, max_examples=80 * TIMES, stateful_step_count=40)
HelperMachine.TestCase.settings = settings(ROUNDS, max_examples=8 * TIMES, stateful_step_count=30)


class TestAnySequenceOfOperations(StoreMachine.TestCase):  # type: ignore[name-defined,misc]
    pass


class TestAnySequenceOfOperationsWithHelper(HelperMachine.TestCase):  # type: ignore[name-defined,misc]
    pass
