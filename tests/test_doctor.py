"""The doctor: every piece of advice comes where it is due, with its evidence, and a healthy store gets none."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any

import pytest

from tiered import files
from tiered.watch import SAMPLES_MIN, Watch

MB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def advice(store: Any) -> list[str]:
    return [found.what for found in store.doctor()]


def test_a_healthy_store_gets_no_advice(opener: Any) -> None:
    store = opener(memory="8MB", disk="64MB")
    for number in range(3000):
        store[number] = {"name": f"user {number}", "groups": ["readers", "writers"]}
    store.save()
    for number in range(3000):
        assert store[number]["name"]
    while store.tick() == 0.0:
        pass
    assert store.doctor() == []
    assert opener(flag="r", memory="8MB").doctor() == []


# Memory over time


def test_memory_that_grows_beyond_what_is_accounted_is_drift_and_a_peak_that_passes_is_not() -> None:
    leaking, peaking, growing = Watch(0), Watch(0), Watch(0)
    for at in range(40):
        leaking.add(at * 10.0, 5 * MB, (20 + at) * MB)
        peaking.add(at * 10.0, 5 * MB, (20 + 100 * (at % 4 == 3)) * MB)
        growing.add(at * 10.0, (5 + at) * MB, (20 + at) * MB)
    assert leaking.drift() == (20 * MB, 390.0)
    assert peaking.drift()[0] == 0
    assert growing.drift()[0] == 0


def test_a_few_samples_are_no_evidence_and_samples_keep_their_distance() -> None:
    watch = Watch(0)
    for at in range(SAMPLES_MIN - 1):
        assert watch.due(at * 10.0)
        watch.add(at * 10.0, 0, at * 100 * MB)
        assert not watch.due(at * 10.0 + 9.9)
    assert watch.drift() == (0, 0.0)


@linux
def test_a_leak_beside_the_store_shows_as_drift_once_ticks_have_sampled_it(opener: Any, clock: Any) -> None:
    store = opener(clock=clock, stepwise=True)
    store["k"] = "v"
    kept = []
    for _ in range(SAMPLES_MIN):
        assert "memory drift" not in advice(store)
        kept.append(os.urandom(8 * MB))
        clock.sleep(10)
        store.tick()
    found = [one for one in store.doctor() if one.what == "memory drift"]
    assert len(found) == 1
    assert "in 70 s" in found[0].evidence
    assert "tracemalloc" in found[0].advice


FRAGMENTED = """
import sys, tiered
store = tiered.open(sys.argv[1], memory="1MB", helper=False)
store["k"] = "v"
print(*[found.what for found in store.doctor()])
blocks = [bytes(1000) for _ in range(80_000)]
print(*[found.what for found in store.doctor()])
del blocks[::2], blocks[::2]
print(*[found.what for found in store.doctor()])
print(store.memory_stats().fragmentation_ratio > 1.15)
blocks = []
store.reclaim()
print(*[found.what for found in store.doctor()])
store.close()
"""


@linux
def test_what_the_heap_holds_and_nobody_uses_is_fragmentation_and_what_the_program_holds_is_not(tmp_path: Any) -> None:
    program = [sys.executable, "-c", FRAGMENTED, str(tmp_path / "store")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["", "memory beyond the budget", "fragmentation", "True", ""]


# What keeps pages


def test_an_old_view_is_named_and_a_young_or_closed_one_is_not(opener: Any, clock: Any) -> None:
    store = opener(clock=clock, stepwise=True)
    store["k"] = "v"
    with store.view():
        clock.sleep(59)
        assert store.doctor() == []
        clock.sleep(2)
        (found,) = store.doctor()
        assert found.what == "an old view"
        assert "61 s" in found.evidence
    assert store.doctor() == []


READER = """
import sys, tiered
with tiered.open(sys.argv[1], "r") as store, store.view() as view:
    print(len(view), flush=True)
    sys.stdin.readline()
"""


def test_a_reader_in_another_process_that_pins_old_pages_is_named_by_its_pid(opener: Any) -> None:
    store = opener()
    store["k"] = 0
    store.save()
    program = [sys.executable, "-c", READER, store.path]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "1\n"
        assert store.doctor() == []
        for number in range(25):
            store["k"] = number
            store.save()
        (found,) = store.doctor()
        assert found.what == "a reader pins old pages"
        assert f"process {reader.pid} " in found.evidence
        reader.communicate("\n")
    assert store.doctor() == []


# Compression, memory, disk


def test_a_dictionary_that_gains_nothing_on_what_is_written_now_is_noticed(opener: Any) -> None:
    store = opener(memory="8MB", stepwise=True)
    uniform = random.Random(1)
    words = [uniform.randbytes(6).hex() for _ in range(300)]
    for number in range(6000):
        store["a", number] = {uniform.choice(words): uniform.choice(words) for _ in range(6)}
    store.save()
    while store.tick() == 0.0:
        pass
    assert store.stats().dictionary_count
    for number in range(1500):
        store["b", number] = {uniform.choice(words): uniform.choice(words) for _ in range(6)}
    store.save()
    assert store.doctor() == []
    for number in range(1500):
        store["c", number] = f"{uniform.randbytes(30)!r}" * 2
    store.save()
    (found,) = store.doctor()
    assert found.what == "a dictionary that no longer fits"
    assert "without" in found.evidence


def test_a_budget_too_small_for_the_load_is_told_from_one_that_is_enough(opener: Any) -> None:
    store = opener(memory="1MB", stepwise=True)
    store.update((number, os.urandom(1000)) for number in range(8000))
    store.save()
    for number in range(1000):
        store[number % 100]
    assert "a budget too small for the load" not in advice(store)
    for number in range(8000):
        store[number]
    (found,) = (one for one in store.doctor() if one.what == "a budget too small for the load")
    assert "2MB" in found.advice
    assert "reads" in found.evidence


def test_a_cap_nearly_reached_is_noticed_before_writes_are_refused(opener: Any) -> None:
    store = opener(disk="4MB", compression="none")
    store.update((number, "x" * 1000) for number in range(2000))
    store.save()
    assert store.doctor() == []
    store.update((number, "x" * 1000) for number in range(2000, 3000))
    store.save()
    (found,) = store.doctor()
    assert found.what == "a disk cap nearly reached"
    store.config_set("disk", "40MB")
    assert store.doctor() == []


def test_a_disk_nearly_full_is_noticed(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda directory: 10 * MB)
    (found,) = store.doctor()
    assert (found.what, "10.0 MB" in str(found)) == ("a disk nearly full", True)
    monkeypatch.undo()
    assert store.doctor() == []


# Giving memory back


@linux
def test_reclaim_gives_the_memory_of_hot_and_dirty_values_back_and_loses_nothing(opener: Any) -> None:
    store = opener(memory="64MB")
    expected = {number: os.urandom(1000) for number in range(30_000)}
    store.update(expected)
    before = store.memory_stats()
    given_back = store.reclaim()
    after = store.memory_stats()
    assert after.accounted_bytes < MB
    assert given_back > 15 * MB
    assert before.process_rss_anon_bytes - after.process_rss_anon_bytes > 15 * MB
    assert store.stats().dirty_records == 0
    assert dict(store) == expected


@linux
def test_memory_statistics_tell_parts_growth_and_page_cache_apart(opener: Any) -> None:
    store = opener(memory="8MB")
    for number in range(6000):
        store[number] = {"name": f"user {number}", "mail": f"{number}@example.org", "groups": ["readers", "writers"]}
    store.save()
    while not store.stats().dictionary_count:
        store.tick()
    for number in range(6000):
        store[number] = {"name": f"user {number}", "mail": f"{number}@example.net", "groups": ["readers", "writers"]}
    store.reclaim()
    assert store[7]["name"] == "user 7"
    stats = store.memory_stats()
    parts = stats.hot_entry_bytes + stats.hot_table_bytes + stats.write_buffer_bytes + stats.view_bytes
    assert parts == stats.accounted_bytes
    assert 1024 < stats.dictionary_bytes <= 2 * 32 * 1024
    assert stats.process_rss_file_bytes > 0
    assert stats.fragmentation_ratio == pytest.approx(stats.process_growth_bytes / stats.accounted_bytes)
