"""What only the engine itself can show: a write that is interrupted half-way is in every tier or in none."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tiered import files, filters


class Interrupt(BaseException):
    """As KeyboardInterrupt, at a place of the test's choosing."""


def interrupting(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool, calls: int = 1) -> None:
    """Interrupt the n-th call of a method, before it does anything or when it is done."""
    original, left = getattr(owner, name), [calls]

    def interrupted(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0]:
            return original(*arguments)
        if after:
            original(*arguments)
        raise Interrupt

    monkeypatch.setattr(owner, name, interrupted)


PLACES = [
    (place, after)
    for place in ("journal.append", "journal.append_batch", "_active.put", "hot.put", "hot.discard")
    for after in (False, True)
]
WRITES = {
    "set": lambda store: store.set("b", "new"),
    "set_many": lambda store: store.set_many([("a", "new"), ("b", "new"), ("c", "new")]),
    "del": lambda store: store.pop("b"),
    "delete_many": lambda store: store.delete_many(["a", "b", "c"]),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("place", "after"), PLACES)
def test_an_interrupted_write_is_old_or_new_in_every_tier(
    opener: Any, monkeypatch: pytest.MonkeyPatch, write: str, place: str, after: bool
) -> None:
    store = opener(memory="1MB")
    store.update(dict.fromkeys("abc", "old"))
    engine = store._engine
    owner = engine
    *path, name = place.split(".")
    for step in path:
        owner = getattr(owner, step)
    calls = 2 if write.endswith("many") and name in ("put", "discard") else 1
    with monkeypatch.context() as patch:
        interrupting(patch, owner, name, after, calls)
        try:
            WRITES[write](store)
        except Interrupt:
            pass
    gone = "del" in write
    seen = {key: store.get(key) for key in "abc"}
    keys = "abc" if write.endswith("many") else "b"
    assert [seen[key] for key in keys] in ([None if gone else "new"] * len(keys), ["old"] * len(keys))
    assert store.check() == []
    store.save()
    engine.hot.clear()
    assert {key: store.get(key) for key in "abc"} == seen


def test_a_rotation_interrupted_before_the_hand_over_is_made_good_by_the_next(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(memory="1MB")
    store["a"] = 1
    store.save()
    for place, name, after in (("checkpointer", "submit", False), ("journal", "close_segment", True)):
        store["b"] = place
        with monkeypatch.context() as patch:
            interrupting(patch, getattr(store._engine, place), name, after)
            with pytest.raises(Interrupt):
                store.save()
        store["c"] = place
        store.save()
        store._engine.hot.clear()
        assert (store["b"], store["c"], store.check()) == (place, place, [])


def test_a_segment_whose_making_was_interrupted_does_not_block_later_writes(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(memory="1MB")
    store["a"] = 1
    store.save()
    original = files.preallocate

    def interrupted(path: Any, size: int) -> int:
        os.close(original(path, size))
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "preallocate", interrupted)
        with pytest.raises(Interrupt):
            store["b"] = 2
    store["b"] = 3
    store.save()
    assert store["b"] == 3


@pytest.mark.parametrize("helper", [False, True])
def test_what_was_applied_is_let_go_of_in_slices_once_nobody_reads_it(
    opener: Any, monkeypatch: pytest.MonkeyPatch, helper: bool
) -> None:
    store = opener(memory="16MB", helper=helper)
    engine = store._engine
    monkeypatch.setattr("tiered.write_buffer.EMPTIED_AT_ONCE", 100)
    pauses: list[int] = []
    pause = SimpleNamespace(sleep=lambda _: pauses.append(len(read.positions)))
    monkeypatch.setattr("tiered.write_buffer.time", pause)
    store.set_many([(str(number), number) for number in range(1000)], ttl=1000)
    (read,) = reading = engine.buffers
    store.save()
    engine.tick()
    assert (len(read.positions), pauses) == (1000, []), "a reader has it still"
    assert reading == (read,)
    positions, deadlines = read.positions, read.deadlines
    del reading
    read = SimpleNamespace(positions=positions)
    while engine._applied:
        engine.tick()
    assert pauses[:10] == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert (len(pauses), positions, deadlines) == (20, {}, {})
    assert store["999"] == 999


def test_the_first_write_into_a_segment_does_not_wait_for_what_would_be_read_ahead(opener: Any) -> None:
    store = opener(memory="16MB")
    store["k"] = 1
    (segment,) = (buffer.segment for buffer in store._engine.buffers)
    if segment.map is None:
        pytest.skip("this file system reserves no space, so that the journal is not mapped")
    maps = Path("/proc/self/smaps").read_text().partition(f"{segment.path}\n")[2]
    flags = next(line for line in maps.splitlines() if line.startswith("VmFlags"))
    assert "rr" in flags.split(), "read at random: nothing is read ahead"


def test_filters_count_against_the_budget_and_take_a_small_share_of_it(opener: Any) -> None:
    store = opener(memory="1MB", stepwise=True)
    store.set_many((number, number) for number in range(2000))
    store.save()
    store._engine.hot.clear()
    store._engine._rebudget()
    before, accounted = store._engine.hot.budget_bytes, store.memory_stats().accounted_bytes
    assert store[7] == 7
    store._engine.hot.clear()
    store._engine._rebudget()
    taken = filters.size_for(2000)
    assert store.memory_stats().filter_bytes == taken
    assert store._engine.hot.budget_bytes == before - taken
    assert store.memory_stats().accounted_bytes == accounted + taken
    store.set_many((number, number) for number in range(2000, 40_000))
    store.save()
    assert store[17] == 17
    assert store.memory_stats().filter_bytes <= (1 << 20) // 32
