"""The doctor: every sign provoked, and none of them at a healthy store."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tiered
from tiered import process
from tiered.doctor import Diagnosis
from tiered.engine import Sample

MB = 1 << 20
Sign = Callable[[Any, pytest.MonkeyPatch], object]


def poisoned(store: Any, patch: pytest.MonkeyPatch) -> None:
    store._engine.poison("the disk said no")


def put_off(store: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(store._engine, "full", "the disk is full")


def set_back(store: Any, patch: pytest.MonkeyPatch) -> None:
    store._engine.clock.advance(store._engine.clock.wall_ms() + 86_400_000)


def damaged(store: Any, patch: pytest.MonkeyPatch) -> None:
    kept = os.path.join(store.path, "damaged-0001")
    os.mkdir(kept)
    with open(os.path.join(kept, "data.mdb"), "wb") as file:
        file.write(bytes(10_000))


def snapshots_failed(store: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(store._engine, "snapshot_failure", "no such directory")


def drifting(store: Any, patch: pytest.MonkeyPatch) -> None:
    store._engine.samples.clear()
    for number in range(41):
        store._engine.samples.append(Sample(30.0 * number, 5 * MB, 50 * MB + number * MB))


def crowded(store: Any, patch: pytest.MonkeyPatch) -> None:
    for number in range(3000):
        store["filling", number] = bytes(1000)
    store._engine.counters.cold_hits = 20_000


def waiting(store: Any, patch: pytest.MonkeyPatch) -> None:
    store._engine.counters.wait_seconds = 5.0


def looked_at(store: Any, patch: pytest.MonkeyPatch) -> Any:
    view = store.view()
    for number in range(110):
        store["k"] = number
        store.save()
    return view


def nearly_full_disk(store: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=1000, f_frsize=4096, f_blocks=10**9))


def near_cap(store: Any, patch: pytest.MonkeyPatch) -> None:
    store["large"] = random.Random(1).randbytes(2 * MB)
    store.save()
    store.config_set("disk", store.stats().disk_used_bytes + 1000)


def mostly_free(store: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(store._engine.cold, "file_bytes", lambda: 500 * MB)


def incompressible(store: Any, patch: pytest.MonkeyPatch) -> None:
    uniform = random.Random(1)
    store.update((("random", number), uniform.randbytes(100)) for number in range(11_000))
    store.save()


def misfitting(store: Any, patch: pytest.MonkeyPatch) -> None:
    """First many documents of one shape, then as many that no dictionary makes a tenth smaller."""
    uniform = random.Random(1)
    words = [uniform.randbytes(6).hex() for _ in range(200)]
    for round_ in range(12):
        store.update((("shaped", round_, n), [uniform.choice(words) for _ in range(12)]) for n in range(1000))
        settle(store)
    assert store._engine.state.dictionary
    for round_ in range(12):
        store.update((("shapeless", round_, n), uniform.randbytes(150)) for n in range(1000))
        settle(store)


def settle(store: Any) -> None:
    store.save()
    while store.tick() == 0.0:
        pass


def nearly_what_memory_holds(store: Any, patch: pytest.MonkeyPatch) -> None:
    store.config_set("spill", False)
    for number in range(1050):
        store["filling", number] = bytes(1000)


SIGNS: dict[str, tuple[Sign, str]] = {
    "writes are refused": (poisoned, "the disk said no"),
    "checkpoints are put off": (put_off, "the disk is full"),
    "the clock is behind the store's time": (set_back, "by 86,"),
    "damaged files are kept": (damaged, r"1\d,\d{3} bytes"),
    "snapshots fail": (snapshots_failed, "no such directory"),
    "memory drifts": (drifting, r"grew by 3\d,\d{3},\d{3} bytes in 20 minutes"),
    "the budget is small for these reads": (crowded, r"20,000 of 22,\d{3} reads"),
    "writers wait for checkpoints": (waiting, "5.0 of"),
    "a reader keeps old pages": (looked_at, f"process {os.getpid()} looks at the state 1"),
    "the disk is nearly full": (nearly_full_disk, "4,096,000 of"),
    "the store is near its cap": (near_cap, "are used of"),
    "the file is mostly free pages": (mostly_free, "hold nothing"),
    "compression gains nothing": (incompressible, "became"),
    "the dictionary no longer fits": (
        misfitting,
        r"come to \d\d\d?% of their size lately, to \d\d% when dictionary \d",
    ),
    "the store is near what memory holds": (nearly_what_memory_holds, r"live records take 1,\d{3},\d{3} of the 1,3"),
}


@pytest.fixture
def used(opener: Any) -> Any:
    """A store that was written, read and checkpointed."""
    store = opener(stepwise=True, memory="2MB", save="")
    store.update((number, {"name": f"user {number}", "visits": number}) for number in range(2000))
    store.save()
    assert sum(store[number]["visits"] for number in range(2000)) == sum(range(2000))
    store.tick()
    return store


def test_a_healthy_store_has_no_diagnoses(used: Any) -> None:
    assert used.doctor() == []
    used._engine.samples.clear()
    for number in range(40):  # What the store itself holds, and one burst, are no drift.
        burst = 50 * MB if number == 20 else 0
        used._engine.samples.append(Sample(30.0 * number, number * MB, 50 * MB + number * MB + burst))
    assert used.doctor() == []


@pytest.mark.parametrize("what", SIGNS)
def test_each_sign_is_found_by_itself_with_evidence_and_advice(
    used: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    provoke, evidence = SIGNS[what]
    with monkeypatch.context() as patch:
        kept = provoke(used, patch)
        found = used.doctor()
        del kept
    assert [diagnosis.what for diagnosis in found] == [what]
    assert found[0].advice
    assert str(found[0]) == f"{what}: {found[0].evidence}; {found[0].advice}"
    assert re.search(evidence, found[0].evidence), found[0].evidence


def test_the_readme_has_a_row_for_each_sign() -> None:
    text = (Path(tiered.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    table = text.split("| Diagnosis | When |")[1].split("\n\n")[0]
    rows = [row.split(" | ")[0].removeprefix("| ") for row in table.splitlines()[2:]]
    assert rows == [*SIGNS, "the heap is fragmented"]


def test_a_dictionary_that_was_adopted_a_moment_ago_or_data_that_stay_alike_are_no_sign(used: Any) -> None:
    uniform = random.Random(1)
    words = [uniform.randbytes(6).hex() for _ in range(200)]
    for round_ in range(15):
        used.update((("shaped", round_, n), [uniform.choice(words) for _ in range(12)]) for n in range(1000))
        settle(used)
        assert used.doctor() == []
    state = used._engine.state
    assert state.dictionary
    assert 0.1 < state.recent_ratio <= 1.1 * state.adopted_ratio < 0.6
    used.compact()
    assert (used._engine.cold.state().adopted_ratio, used._engine.cold.state().recent_ratio) != (0.0, 0.0)


def test_a_fragmented_heap_is_told(used: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = used.memory_stats()
    monkeypatch.setattr(
        tiered.store, "memory_stats_of", lambda engine: memory._replace(hot_tier="heap", fragmentation=1.5)
    )
    crowded(used, monkeypatch)
    used._engine.counters.cold_hits = 0
    assert [diagnosis.what for diagnosis in used.doctor()] == ["the heap is fragmented"]


def test_memory_is_sampled_by_ticks_now_and_then(opener: Any, clock: Any) -> None:
    store = opener(stepwise=True, clock=clock)
    samples = store._engine.samples
    for _ in range(5):
        store.tick()
    assert len(samples) == 1
    clock.sleep(31)
    store.tick()
    assert len(samples) == 2
    assert samples[1][1:3] == (store.memory_stats().accounted_bytes, pytest.approx(process.rss_anon_bytes(), rel=0.2))


def test_a_program_that_grows_and_grows_is_told_from_ticks_alone(opener: Any, clock: Any) -> None:
    store = opener(stepwise=True, clock=clock)
    kept = []
    for number in range(40):
        store[number] = "x" * 1000
        kept.append(b"x" * MB)
        clock.sleep(31)
        store.tick()
    (found,) = store.doctor()
    assert found.what == "memory drifts"
    assert re.search(r"grew by [23]\d,\d{3},\d{3} bytes in 20 minutes", found.evidence), found.evidence
    kept.clear()


def test_reclaiming_checkpoints_evicts_everything_gives_its_memory_back_and_loses_nothing(used: Any) -> None:
    used["dirty"] = "x"
    hot = used.stats().hot_bytes
    assert hot > 100_000
    before = process.rss_anon_bytes()
    given = used.reclaim()
    assert (used.stats().hot_records, used.stats().dirty_records) == (0, 0)
    assert given > (hot // 2 if used.memory_stats().hot_tier == "arena" else 0), "a heap keeps what it cannot trim"
    assert process.rss_anon_bytes() < before
    assert used["dirty"] == "x"
    assert used[7] == {"name": "user 7", "visits": 7}


def test_a_diagnosis_is_a_tuple_for_programs() -> None:
    what, evidence, advice = Diagnosis("a", "b", "c")
    assert (what, evidence, advice) == ("a", "b", "c")
