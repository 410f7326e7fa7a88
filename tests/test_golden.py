"""Files that earlier versions wrote: this version opens, verifies and restores them, and reads what was written.

`golden/v1` was written by the first released format.  These files are never made again.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy
import pytest

import tiered
from tiered.clock import ManualClock

GOLDEN = Path(__file__).resolve().parent / "golden"
sys.path.insert(0, str(GOLDEN))

import contents  # noqa: E402

LATER_MS = contents.EPOCH_MS + 10_000
versions = pytest.mark.parametrize("version", sorted(path.name for path in GOLDEN.glob("v*")))


def unpacked(version: str, directory: Path) -> Path:
    """A golden store, in a directory of its own."""
    with tarfile.open(GOLDEN / version / "store.tar.gz") as archive:
        for member in archive.getmembers():
            source = archive.extractfile(member)
            assert source is not None
            target = directory / member.name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            target.write_bytes(source.read())
    return directory / "golden.tiered"


def is_expected(store: Any, expected: dict[Any, Any]) -> None:
    """Whether a store holds exactly this, and the array, types included."""
    found = dict(store)
    array = found.pop("array")
    assert (array.dtype, array.shape) == (contents.ARRAY.dtype, contents.ARRAY.shape)
    assert numpy.array_equal(array, contents.ARRAY)
    assert found == expected
    for key, value in expected.items():
        assert type(found[key]) is type(value)
        assert store[key] == value
    assert found["value", "registered"][0] == contents.Point(1, 2.5)
    assert len(store) == len(expected) + 1
    assert not any(key in store for key in contents.GONE)


def cold() -> dict[Any, Any]:
    return contents.cold() | contents.EXPIRING | {("recent", number): number for number in range(3)}


def with_journal() -> dict[Any, Any]:
    expected = cold() | contents.JOURNAL | {("journal", "expiring"): 1}
    return {key: value for key, value in expected.items() if key not in contents.DELETED}


def lifetimes(store: Any) -> dict[Any, float]:
    """What is left to live to those that do not live for ever."""
    return {key: left for key in store if (left := store.ttl(key)) is not None}


def left_of(keys: Any) -> dict[Any, float]:
    return {
        key: (round((contents.CENTURY + (key[1] if isinstance(key[1], int) else 0) / 1000) * 1000) - 10_000) / 1000
        for key in keys
    }


@versions
def test_a_golden_store_is_whole(version: str, tmp_path: Path) -> None:
    assert tiered.verify(unpacked(version, tmp_path)) == []


@versions
def test_a_golden_store_recovers_and_holds_what_was_written(version: str, tmp_path: Path) -> None:
    path = unpacked(version, tmp_path)
    for _ in range(2):
        with tiered.open(path, "w", helper=False, clock=ManualClock(LATER_MS)) as store:
            is_expected(store, with_journal())
            assert lifetimes(store) == left_of([*list(contents.EXPIRING)[:4], ("journal", "expiring")])
            settings = store.config_get("*")
            assert (settings["save"], settings["durability"], settings["snapshot_keep"]) == (
                ((77, 7),),
                "checkpoint",
                5,
            )
            assert (settings["default_ttl"], settings["compression"]) == (5000.0, "zstd:3")
            assert store.stats().dictionary_count >= 1
            assert store.check() == []


@versions
def test_what_is_torn_at_the_end_of_a_golden_journal_is_dropped_and_reported(version: str, tmp_path: Path) -> None:
    with tiered.open(unpacked(version, tmp_path), "w", helper=False, clock=ManualClock(LATER_MS)) as store:
        assert store.stats().recovery_dropped_bytes > 0
        assert "journal-" in store.stats().recovery_torn_at


@versions
def test_a_golden_store_can_be_written_compacted_and_read_again(version: str, tmp_path: Path) -> None:
    path = unpacked(version, tmp_path)
    with tiered.open(path, "w", helper=False, clock=ManualClock(LATER_MS)) as store:
        store["new"] = [1]
        store.compact()
    with tiered.open(path, "r", clock=ManualClock(LATER_MS)) as store:
        is_expected(store, with_journal() | {"new": [1]})


@versions
def test_a_golden_snapshot_is_whole_and_gives_what_was_written(version: str, tmp_path: Path) -> None:
    file = GOLDEN / version / "snapshot.tsnap"
    assert tiered.verify(file) == []
    info = tiered.restore(file, tmp_path / "restored")
    assert info.as_of == contents.EPOCH_MS / 1000
    assert tiered.verify(tmp_path / "restored") == []
    with tiered.open(tmp_path / "restored", helper=False, clock=ManualClock(LATER_MS)) as store:
        is_expected(store, cold())
        assert lifetimes(store) == left_of(contents.EXPIRING)
        assert store.config_get("save") == {"save": ((77, 7),)}
        assert store.check() == []


def test_the_golden_files_are_small() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.rglob("v*/*")) < 200_000
