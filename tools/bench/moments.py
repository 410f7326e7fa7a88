"""What transactions and views cost: ten keys in one transaction against ten single writes; opening a view.

Both kinds of writes take turns on one store. A view is opened over no dirty keys and over `--dirty` of them, with what
it keeps and what reading through it costs. Opening and closing is timed for an empty store and for the one just made.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from measure import MB, disk_bytes, table
from workload import document, key, open_store, temporary_folder

ROUNDS = 300


def seconds(step: Callable[[], object]) -> float:
    begin = perf_counter()
    step()
    return perf_counter() - begin


def singles(store: Any, pairs: list[tuple[str, Any]]) -> None:
    for name, value in pairs:
        store[name] = value


def transaction(store: Any, pairs: list[tuple[str, Any]]) -> None:
    with store.transaction() as txn:
        for name, value in pairs:
            txn[name] = value


def read_and_write(store: Any, pairs: list[tuple[str, Any]]) -> None:
    with store.transaction() as txn:
        for name, value in pairs:
            txn.get(name)
            txn[name] = value


def read_and_write_singly(store: Any, pairs: list[tuple[str, Any]]) -> None:
    for name, value in pairs:
        store.get(name)
        store[name] = value


def transactions(store: Any, records: int) -> list[list[object]]:
    """Microseconds for ten keys, ways taking turns, medians."""
    ways = (singles, transaction, read_and_write_singly, read_and_write)
    taken: dict[str, list[float]] = {way.__name__: [] for way in ways}
    rng = random.Random(1)
    for turn in range(ROUNDS * len(ways)):
        numbers = rng.sample(range(records), 10)
        pairs = [(key(number), document(number)) for number in numbers]
        way = ways[turn % len(ways)]
        taken[way.__name__].append(seconds(partial(way, store, pairs)) * 1e6)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    return [
        ["writes", medians["singles"], medians["transaction"], medians["transaction"] / medians["singles"]],
        [
            "reads and writes",
            medians["read_and_write_singly"],
            medians["read_and_write"],
            medians["read_and_write"] / medians["read_and_write_singly"],
        ],
    ]


def views(store: Any, dirty: int) -> list[object]:
    """Microseconds to open and to close a view, and per read through it."""
    opened, closed, reads = [], [], []
    for _ in range(ROUNDS):
        begin = perf_counter()
        view = store.view()
        opened.append(perf_counter() - begin)
        closed.append(seconds(view.close))
    with store.view() as view:
        for number in random.Random(2).sample(range(dirty or 1000), 1000):
            reads.append(seconds(partial(view.get, key(number))))
    middle = (statistics.median(times) * 1e6 for times in (opened, closed, reads))
    return [f"view, {len_dirty(store):,} dirty keys", *middle]


def len_dirty(store: Any) -> int:
    return int(store.stats().dirty_records)


def opening(path: Path) -> list[object]:
    """Milliseconds to open and to close, medians."""
    opened, closed = [], []
    for _ in range(15):
        begin = perf_counter()
        store = open_store(path)
        opened.append(perf_counter() - begin)
        closed.append(seconds(store.close))
    return [f"{disk_bytes(path) / MB:,.1f} MB", statistics.median(opened) * 1e3, statistics.median(closed) * 1e3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dirty", type=int, default=100_000)
    parser.add_argument("--gb", type=float, default=1.0, help="size of the large store to open (default: 1)")
    parser.add_argument("--dir", help="parent of the temporary folder: on the disk to be measured")
    options = parser.parse_args()
    with temporary_folder(options.dir) as folder:
        with open_store(folder / "store", memory="512MB", save="") as store:
            store.update((key(number), document(number)) for number in range(options.dirty))
            store.save()
            clean = views(store, 0)
            # Small values, so that as many keys stay dirty as one segment has.
            store.update((key(number), number) for number in range(options.dirty))
            table(["us", "open", "close", "a read"], [clean, views(store, options.dirty)])
            store.save()
            table(["us for 10 keys", "single", "transaction", "ratio"], transactions(store, options.dirty))
        open_store(folder / "empty").close()
        with open_store(folder / "large", memory="256MB", compression="none") as store:
            rng = random.Random(3)
            store.update((number, rng.randbytes(8000)) for number in range(int(options.gb * (1 << 30) / 8192)))
        table(["open and close", "open, ms", "close, ms"], [opening(folder / "empty"), opening(folder / "large")])


if __name__ == "__main__":
    main()
