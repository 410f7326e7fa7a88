"""`tiered-cli bench`: it says what operations cost, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_lines import call, calling, made

from tiered.cli import benchmark


@pytest.fixture(scope="module", autouse=True)
def command_line() -> Iterator[None]:
    with calling():
        yield


def test_it_measures_beside_a_store_and_leaves_both_as_they_were(tmp_path: Path) -> None:
    store = made(tmp_path / "a.tiered", {"a": 1})
    before = {file: file.read_bytes() for file in store.rglob("*") if file.is_file()}
    status, out, errors = call("bench", store, "--json")
    assert (status, errors) == (0, "")
    found = json.loads(out)
    names = ("hit", "cold_read", "scan", "write", "sync", "save", "open")
    assert set(found["meanings"]) == set(names)
    assert all(0 < found[f"{name}_seconds"] < 5 for name in names)
    assert found["hit_seconds"] < found["cold_read_seconds"]
    assert found["records"] == benchmark.RECORDS
    assert found["seconds"] < 30  # Some five on a machine that has nothing else to do.
    assert list(tmp_path.iterdir()) == [store]
    assert {file: file.read_bytes() for file in store.rglob("*") if file.is_file()} == before


def test_a_place_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    status, out, errors = call("bench", tmp_path / "missing")
    assert (status, out, len(errors.splitlines())) == (1, b"", 1)


def test_times_for_people() -> None:
    assert [benchmark.duration(seconds) for seconds in (12.0, 0.0123, 4.5e-5, 3e-7)] == [
        "12 s",
        "12.3 ms",
        "45 µs",
        "300 ns",
    ]


def test_the_median_round_counts_and_time_ends_the_rounds() -> None:
    called: list[int] = []
    assert benchmark.timed(called.append, 70) > 0
    assert called == list(range(70))
    called.clear()
    benchmark.timed(called.append, 70, seconds=-1)
    assert called == list(range(10))
