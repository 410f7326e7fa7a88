"""The store's own quick benchmark: what its operations cost on this machine and this disk, and what that means.

Every phase is bounded in time, all of them in about five seconds.  Operations are timed in rounds and the median round
counts, since others use the machine as well.  Cold reads find the file in the system's cache, as they mostly do while
it fits there; a read that has to wait for the disk takes as long as the disk does.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from tiered.cli import options, output, running

RECORDS = 30_000
ROUNDS = 7
SYNCS = 50
SECONDS_PER_PHASE, WRITE_SECONDS = 1.0, 4.0
WORDS = ("river", "stone", "harbour", "lantern", "copper", "meadow", "signal", "winter")


class Figure(NamedTuple):
    """What one operation takes, and what that means."""

    name: str
    seconds: float
    meaning: str


def documents() -> list[dict[str, Any]]:
    """Documents of some 260 bytes, the same every time."""
    draw = random.Random(7)
    return [
        {
            "id": number,
            "name": f"User {number}",
            "mail": f"user{number}@example.org",
            "score": draw.random(),
            "tags": draw.sample(WORDS, 3),
            "bio": " ".join(draw.choices(WORDS, k=24)),
        }
        for number in range(RECORDS)
    ]


def measured(directory: Path) -> tuple[list[Figure], dict[str, Any]]:
    """The figures, taken in a store of its own in a directory, which is empty again afterwards."""
    import tiered
    from tiered.native import COMPILED

    made = documents()
    order = random.Random(1).sample(range(RECORDS), RECORDS)
    with tiered.open(directory / "bench.tiered", memory="64MB", save="") as store:
        write = timed(lambda at: store.set(order[at], made[order[at]]), RECORDS, WRITE_SECONDS)
        dirty, began = store.stats().dirty_records, time.perf_counter()
        store.save()
        save = (time.perf_counter() - began) / max(1, dirty)
        hot = order[:2000]
        store.get_many(hot)
        hit = timed(lambda at: store[hot[at % len(hot)]], RECORDS)

        def write_through(at: int) -> None:
            store.set(order[at], made[at])
            store.sync()

        sync = timed(write_through, SYNCS)
    began = time.perf_counter()
    store = tiered.open(directory / "bench.tiered", memory="1MB", save="")
    opening = time.perf_counter() - began
    with store:
        cold = timed(lambda at: store[order[at]], RECORDS)
        began = time.perf_counter()
        count = sum(1 for _ in store.items())
        scan = (time.perf_counter() - began) / count
        stats = store.stats()
    facts = {
        "records": RECORDS,
        "packed_bytes": stats.packed_bytes,
        "stored_bytes": stats.stored_bytes,
        "disk_bytes": stats.disk_bytes,
        "compiled": COMPILED,
    }
    return [*_of_reads(hit, cold, scan), *_of_writes(write, sync, save, opening)], facts


def timed(operation: Callable[[int], object], count: int, seconds: float = SECONDS_PER_PHASE) -> float:
    """Seconds for one operation: the median of some rounds, as many as the time allows."""
    size, rounds = max(1, count // ROUNDS), list[float]()
    end = time.perf_counter() + seconds
    for start in range(0, count - size + 1, size):
        began = time.perf_counter()
        for at in range(start, start + size):
            operation(at)
        rounds.append((time.perf_counter() - began) / size)
        if time.perf_counter() > end:
            break
    from statistics import median  # Not at the top: `--help` is to be quick.

    return median(rounds)


def _of_reads(hit: float, cold: float, scan: float) -> list[Figure]:
    return [
        Figure(
            "hit", hit, f"A read of what is in memory: {_rate(hit)} by one thread. More memory makes more of these."
        ),
        Figure(
            "cold read",
            cold,
            f"A read from the cold tier, its page in the system's cache: {cold / hit:.0f} hits' time. "
            "Where the page is not cached, the disk's time comes on top.",
        ),
        Figure("scan", scan, f"A record while all are gone through in key order: {_rate(scan)}."),
    ]


def _of_writes(write: float, sync: float, save: float, opening: float) -> list[Figure]:
    return [
        Figure("write", write, f"A write into the journal and memory: {_rate(write)} by one thread."),
        Figure(
            "sync",
            sync,
            f"A write that waits for the disk. With durability='always' one thread writes {_rate(sync)}, "
            "and threads that wait together share one; with the default nobody waits.",
        ),
        Figure(
            "save",
            save,
            "A record's part of a checkpoint, which runs beside the program: a lasting load of writes can be no faster "
            f"than {_rate(save)}.",
        ),
        Figure("open", opening, "Opening the store after it was closed."),
    ]


def _rate(seconds: float) -> str:
    return f"{1 / seconds:,.0f} a second" if seconds < 0.5 else f"one in {seconds:.1f} s"


def duration(seconds: float) -> str:
    """A short time for people."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


@click.command("bench")
@click.argument("path", type=click.Path(), default=".")
@options.as_json
def bench_command(path: str, as_json: bool) -> None:
    """Measure what a store's operations cost on this machine and on the disk of PATH.

    In a temporary directory beside PATH if that is a store, else in it; what is there is left alone. Takes a few
    seconds.
    """
    from tiered import files

    place = Path(path)
    if files.read_current(place) is not None:
        place = Path(os.path.abspath(place)).parent
    if not place.is_dir():
        raise running.Failure(f"{path}: no such directory; name one on the disk that is to be measured")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=".tiered-bench-", dir=place) as name:
        figures, facts = measured(Path(name))
    seconds = time.perf_counter() - began
    if as_json:
        named = {f"{figure.name.replace(' ', '_')}_seconds": figure.seconds for figure in figures}
        meanings = {figure.name.replace(" ", "_"): figure.meaning for figure in figures}
        output.document({**named, **facts, "meanings": meanings, "seconds": seconds})
        return
    output.table(
        ("", "takes", "which means"),
        [(figure.name, duration(figure.seconds), figure.meaning) for figure in figures],
        right=("takes",),
    )
    output.write(
        f"{RECORDS:,} documents of {facts['packed_bytes'] // RECORDS} bytes, {facts['stored_bytes'] // RECORDS} when "
        f"compressed; the compiled part {'runs' if facts['compiled'] else 'is missing: see README'}; {seconds:.1f} s."
    )
