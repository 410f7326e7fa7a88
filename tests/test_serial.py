"""Transactions of several writers, interleaved step by step: what is committed equals one after the other.

The oracle is a plain dict.  Every transaction notes what it read and wrote; when it commits, its
reads, done again on the dict at that point, must give the same.  So each history of commits equals the
serial one in the order of commits.  A conflict must leave no trace, and have a cause: some
write, by another and since the transaction began, that touched what it had read.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from conftest import without_background
from contracts import evict, merge, set_aside
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_stateful import ROUNDS, TIMES, settings

import tiered
from tiered import ConflictError

pytestmark = pytest.mark.filterwarnings("ignore:transaction of:ResourceWarning")  # Some are abandoned.
ABSENT = "absent"
KEYS: list[Any] = [*range(4), "h" * 600 + "1", "h" * 600 + "2"]
WRITERS = 2
some_key = st.sampled_from(KEYS)
some_writer = st.integers(0, WRITERS - 1)


def lies(key: Any, low: Any, high: Any) -> bool:
    """Whether a key is in a range of numbers, or of all keys where `low` is None."""
    return low is None or (isinstance(key, int) and low <= key < high)


class Writer:
    """One transaction as the oracle sees it."""

    def __init__(self, store: Any) -> None:
        self.txn = store.transaction()
        self.reads: list[tuple[Any, ...]] = []
        self.seen: set[Any] = set()
        self.ranges: list[tuple[Any, Any]] = []
        self.writes: dict[Any, Any] = {}
        self.disturbed = self.doomed = False

    def told(self, keys: set[Any], cleared: bool = False) -> None:
        """Another wrote these keys."""
        for key in keys:
            near = isinstance(key, str) and any(low is None for low, _ in self.ranges)
            if key in self.seen or near or any(lies(key, low, high) for low, high in self.ranges):
                self.disturbed = True
        self.disturbed |= cleared and bool(self.seen or self.ranges)


class SerialMachine(RuleBasedStateMachine):
    """`model` is what was committed; writers work on overlays of their own."""

    @initialize()
    def open(self) -> None:
        self.directory = Path(mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        self.store = without_background(tiered.open(self.directory / "store", memory="1MB", helper=False, save=""))
        self.model: dict[Any, Any] = {}
        self.writers: list[Writer | None] = [None] * WRITERS
        self.value = 0

    def _writer(self, number: int) -> Writer:
        writer = self.writers[number]
        if writer is None:
            writer = self.writers[number] = Writer(self.store)
        return writer

    def _new_value(self) -> int:
        self.value += 1
        return self.value

    def _told(self, keys: Any, by: int | None = None, cleared: bool = False) -> None:
        for number, writer in enumerate(self.writers):
            if writer is not None and number != by:
                writer.told(set(keys), cleared)

    def _now(self, writer: Writer) -> dict[Any, Any]:
        """What a transaction that is not disturbed must see: what was committed, under its own writes."""
        merged = {**self.model, **writer.writes}
        return {key: value for key, value in merged.items() if value != ABSENT}

    def _step(self, number: int, step: Any, expected: Any) -> None:
        """A read: it gives what a serial execution would, or a conflict that has a cause."""
        writer = self._writer(number)
        disturbed = writer.disturbed
        try:
            found = step(writer.txn)
        except ConflictError:
            assert disturbed, "a conflict without a cause"
            writer.doomed = True
            return
        assert found == expected(self._now(writer)), "a read that no serial order gives"
        assert not writer.doomed, "read on after a conflict"

    # Steps of a transaction

    @rule(number=some_writer, key=some_key, how=st.sampled_from(["get", "in", "get_many"]))
    def read(self, number: int, key: Any, how: str) -> None:
        writer = self._writer(number)
        if key in writer.writes:
            assert writer.txn.get(key, ABSENT) == writer.writes[key]  # No conflict, not even when doomed.
            return
        if how == "in":
            self._step(number, lambda txn: key in txn, lambda now: key in now)
        elif how == "get":
            self._step(number, lambda txn: txn.get(key, ABSENT), lambda now: now.get(key, ABSENT))
        else:
            self._step(number, lambda txn: txn.get_many([key]), lambda now: {key: now[key]} if key in now else {})
        writer.seen.add(key)

    @rule(number=some_writer, low=st.integers(0, 3), size=st.integers(0, 3), reverse=st.booleans())
    def read_range(self, number: int, low: int, size: int, reverse: bool) -> None:
        self._step(
            number,
            lambda txn: list(txn.items(start=low, stop=low + size, reverse=reverse)),
            lambda now: sorted(((key, now[key]) for key in now if lies(key, low, low + size)), reverse=reverse),
        )
        self._writer(number).ranges.append((low, low + size))

    @rule(number=some_writer, reverse=st.booleans())
    def read_first_number(self, number: int, reverse: bool) -> None:
        """A range left at its first key."""
        writer = self._writer(number)
        now = sorted(key for key in self._now(writer) if isinstance(key, int))
        end = (now[-1] if reverse else now[0]) if now else None
        self._step(number, lambda txn: next(iter(txn.keys(start=0, reverse=reverse)), None), lambda _: end)
        low, high = (end, 10) if reverse else (0, 10 if end is None else end + 1)
        writer.ranges.append((0 if low is None else low, high))

    @rule(number=some_writer)
    def read_all(self, number: int) -> None:
        self._step(number, lambda txn: dict(txn.items()), lambda now: now)
        self._writer(number).ranges.append((None, None))

    @rule(number=some_writer)
    def read_length(self, number: int) -> None:
        self._step(number, len, len)
        self._writer(number).ranges.append((None, None))

    @rule(number=some_writer, key=some_key)
    def write(self, number: int, key: Any) -> None:
        writer = self._writer(number)
        writer.txn[key] = writer.writes[key] = self._new_value()

    @rule(number=some_writer, key=some_key)
    def add(self, number: int, key: Any) -> None:
        writer = self._writer(number)
        own = key in writer.writes
        before = self._now(writer).get(key, 0)
        if own:
            assert writer.txn.incr(key, 1000) == before + 1000
        else:
            self._step(number, lambda txn: txn.incr(key, 1000), lambda now: now.get(key, 0) + 1000)
            writer.seen.add(key)
        if not writer.doomed or own:
            writer.writes[key] = before + 1000

    @rule(number=some_writer, key=some_key)
    def delete(self, number: int, key: Any) -> None:
        writer = self._writer(number)
        own = key in writer.writes
        there = key in self._now(writer)
        if own:
            assert writer.txn.delete_many([key]) == there
        else:
            self._step(number, lambda txn: txn.delete_many([key]), lambda now: int(key in now))
            writer.seen.add(key)
        if there and (own or not writer.doomed):
            writer.writes[key] = ABSENT

    @rule(number=some_writer, key=some_key, other=some_key, how=st.sampled_from(["get", "in", "get_many"]))
    def meet(self, number: int, key: Any, other: Any, how: str) -> None:
        """What seldom comes about by single steps: a read, another's write of the same, a write, the end."""
        self.read(number, key, how)
        self.write_outside(key)
        self.write(number, other)
        self.commit(number)

    # Ends

    @rule(number=some_writer)
    def commit(self, number: int) -> None:
        writer, self.writers[number] = self.writers[number], None
        if writer is None:
            return
        try:
            writer.txn.commit()
        except ConflictError:
            assert writer.disturbed, "a conflict without a cause"
            assert writer.writes, "a transaction that only read failed at its end"
            return  # That it left no trace is looked at after every step.
        assert not writer.writes or not writer.disturbed, "committed what no serial order gives"
        for key, value in writer.writes.items():
            if value == ABSENT:
                self.model.pop(key, None)
            else:
                self.model[key] = value
        self._told(writer.writes, number)

    @rule(number=some_writer)
    def roll_back(self, number: int) -> None:
        writer, self.writers[number] = self.writers[number], None
        if writer is not None:
            writer.txn.rollback()

    @rule(number=some_writer)
    def abandon(self, number: int) -> None:
        self.writers[number] = None

    # Others

    @rule(key=some_key)
    def write_outside(self, key: Any) -> None:
        self.store[key] = self.model[key] = self._new_value()
        self._told([key])

    @rule(key=some_key)
    def delete_outside(self, key: Any) -> None:
        if self.store.pop(key, None) is not None:
            self._told([key])
        self.model.pop(key, None)

    @rule(keys=st.lists(some_key, max_size=4))
    def write_many_outside(self, keys: list[Any]) -> None:
        pairs = {key: self._new_value() for key in keys}
        self.store.set_many(pairs)
        self.model.update(pairs)
        self._told(pairs)

    @precondition(lambda self: len(self.model) > 3)
    @rule()
    def clear_outside(self) -> None:
        self.store.clear()
        self.model.clear()
        self._told([], cleared=True)

    @rule(what=st.sampled_from(["save", "evict", "set aside", "merge", "compact", "tick"]))
    def move(self, what: str) -> None:
        moves: dict[str, Any] = {"save": self.store.save, "compact": self.store.compact, "tick": self.store.tick}
        moves |= {"evict": lambda: evict(self.store), "set aside": lambda: set_aside(self.store)}
        moves["merge"] = lambda: merge(self.store)
        moves[what]()

    @invariant()
    def what_was_committed_is_there_and_nothing_else(self) -> None:
        if hasattr(self, "store"):
            assert dict(self.store.items()) == self.model
            assert {key: self.store[key] for key in self.model} == self.model
            assert len(self.store) == len(self.model)
            assert len(self.store._engine.watchers) == sum(writer is not None for writer in self.writers)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            for writer in self.writers:
                if writer is not None:
                    writer.txn.rollback()
            try:
                assert self.store.check() == []
            finally:
                self.store.close()
                shutil.rmtree(self.directory)


SerialMachine.TestCase.settings = settings(ROUNDS, max_examples=100 * TIMES, stateful_step_count=50)


class TestAnyInterleavingOfTransactions(SerialMachine.TestCase):  # type: ignore[name-defined,misc]
    pass
