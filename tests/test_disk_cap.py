"""`disk_full="evict"`: the store is a bounded cache, whatever is written, and stays consistent."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import programs
import pytest
from contracts import evict
from test_threads import Crowd

import tiered
from tiered import disk_cap

MB = 1 << 20


def test_writing_many_times_the_cap_keeps_the_files_within_it_and_its_margin(opener: Any) -> None:
    store = opener(memory="1MB", disk="8MB", disk_full="evict", compression="none", durability="checkpoint")
    uniform, written = random.Random(1), 0
    while written < 60 * MB:
        store[uniform.randrange(10**9)] = uniform.randbytes(1000)
        written += 1000
        if written % 500_000 == 0:
            stats = store.stats()
            assert stats.disk_used_bytes <= 8 * MB
            assert stats.disk_bytes <= 8 * MB + 4 * MB, "the cap and four times `memory`"
    stats = store.stats()
    assert stats.disk_evictions > 40_000
    assert stats.records > 1500, "and it is no smaller than need be"


def test_what_is_hot_stays_and_what_was_evicted_is_absent_for_every_operation(opener: Any) -> None:
    store = opener(memory="1MB", disk="4MB", disk_full="evict", compression="none")
    for number in range(200):
        store["a", number] = "x" * 500
    for number in range(20_000):
        store["b", number] = "y" * 500
        assert store["a", number % 200] == "x" * 500
    assert len(store.sub("a")) == 200
    kept = set(store.keys(prefix=("b",)))
    assert 0 < len(kept) < 10_000
    assert len(store) == len(kept) + 200
    gone = next(number for number in range(20_000) if ("b", number) not in kept)
    assert store.get(("b", gone)) is None
    assert ("b", 19_999) in kept, "what was just written"
    path = store.path
    store.close()
    with opener(path, memory="1MB") as again:
        assert again.config_get("disk_full") == {"disk_full": "evict"}
        assert set(again.keys(prefix=("b",))) <= kept | {("b", 19_999)}


def test_a_cap_set_at_run_time_evicts_from_the_next_writes_on_and_error_refuses_again(opener: Any) -> None:
    store = opener(memory="1MB", compression="none")
    store.update((number, "x" * 1000) for number in range(8000))
    store.save()
    store.config_set("disk", "4mb")
    with pytest.raises(tiered.StoreFullError):
        store.update((number, "x" * 1000) for number in range(8000, 9000))
    store.config_set("disk_full", "evict")
    for number in range(9000, 14_000):
        store[number] = "x" * 1000
    store.save()
    assert store.stats().stored_bytes < 2 * MB
    assert store.stats().disk_evictions > 5000
    store.config_set("disk_full", "error")
    assert store.stats().state in ("open", "full")


def test_long_keys_and_deadlines_are_evicted_like_others(opener: Any) -> None:
    store = opener(memory="1MB", disk="2MB", disk_full="evict", compression="none")
    for number in range(6000):
        store.set(f"{number}" * 300, "x" * 500, ttl=1000 if number % 2 else None)
    store.save()
    assert 0 < len(store) < 3000
    assert store.stats().disk_evictions > 3000


def test_without_a_cap_nothing_is_evicted(opener: Any) -> None:
    store = opener(memory="1MB", disk_full="evict", compression="none")
    store.update((number, "x" * 1000) for number in range(5000))
    assert (len(store), store.stats().disk_evictions) == (5000, 0)
    assert disk_cap.excess_bytes(store._engine) == 0


def test_threads_and_views_see_right_values_or_none_while_records_are_evicted(opener: Any) -> None:
    store = opener(memory="1MB", disk="4MB", disk_full="evict", compression="none", helper=True)
    crowd = Crowd()

    def write(thread: int) -> None:
        number = thread
        while not crowd.stop.is_set():
            store[number % 9000] = [number % 9000, number, "x" * 500]
            number += 3

    def read() -> None:
        uniform = random.Random(2)
        while not crowd.stop.is_set():
            key = uniform.randrange(9000)
            value = store.get(key)
            assert value is None or value[0] == key
            wanted = [uniform.randrange(9000) for _ in range(50)]
            assert all(value[0] == key for key, value in store.get_many(wanted).items())

    def look() -> None:
        while not crowd.stop.is_set():
            with suppress(tiered.ViewExpiredError), store.view() as view:
                seen = [key for key, value in view.items() if value[0] == key]
                assert len(seen) == len(view)

    for thread in range(3):
        crowd.add(write, thread)
    crowd.add(read)
    crowd.add(look)
    with crowd.running(3):
        pass
    assert store.stats().disk_evictions > 100
    store.save()
    assert store.check() == []


def test_a_killed_cache_opens_whole_and_within_its_cap(tmp_path: Path) -> None:
    code = """
        import sys, tiered
        store = tiered.open(sys.argv[1], memory="1MB", disk="4MB", disk_full="evict", compression="none")
        for number in range(10**9):
            store[number] = [number, "x" * 500]
            if number == 20_000:
                print("go on", flush=True)
    """
    for _ in range(3):
        with programs.running(code, tmp_path / "store") as program:
            assert programs.line_of(program) == "go on"
            program.kill()
            program.wait()
        with tiered.open(tmp_path / "store", memory="1MB") as store:
            assert store.check() == []
            assert store.stats().disk_used_bytes <= 4 * MB
            assert all(value[0] == key for key, value in store.items())
            assert 500 < len(store) < 20_000


def test_a_transaction_that_read_what_is_evicted_meanwhile_conflicts(opener: Any) -> None:
    store = opener(memory="1MB", disk="2MB", disk_full="evict", compression="none", stepwise=True)
    store["read"] = "x"
    store.save()
    evict(store)
    with pytest.raises(tiered.ConflictError), store.transaction() as txn:  # noqa: PT012
        assert txn["read"] == "x"
        evict(store)
        for number in range(10_000):
            store["filling", number] = "x" * 500
        txn["other"] = 1
        assert "read" not in store
