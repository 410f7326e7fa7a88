"""What open stores cost: memory and descriptors of `--stores` idle ones open at once, and how long opening one takes.

The time is that of an empty store and of one of `--records` documents, medians of `--runs`, everything on the disk
beforehand. `--cycles` opens, uses and closes a store so often and says what is left of it.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from measure import table
from workload import document, key

import tiered
from tiered.process import rss_anon_bytes, trim_heap


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def idle(directory: Path, count: int) -> None:
    """Open so many stores at once; memory before and after each has been written to and read."""
    gc.collect()
    memory, files, threads = rss_anon_bytes(), descriptors(), threading.active_count()
    began = perf_counter()
    stores = [tiered.open(directory / str(number)) for number in range(count)]
    seconds = perf_counter() - began
    rows = [["open, idle", (rss_anon_bytes() - memory) / count / 1024, (descriptors() - files) / count]]
    rows[0] += [threading.active_count() - threads, seconds / count * 1000]
    began = perf_counter()
    for number, store in enumerate(stores):
        store["number"] = number
    seconds = perf_counter() - began
    rows.append(["one small record written", (rss_anon_bytes() - memory) / count / 1024])
    rows[1] += [(descriptors() - files) / count, threading.active_count() - threads, seconds / count * 1000]
    began = perf_counter()
    for store in stores:
        store.close()
    seconds = perf_counter() - began
    del store, stores
    gc.collect()
    trim_heap()
    rows.append(["closed", (rss_anon_bytes() - memory) / count / 1024, (descriptors() - files) / count])
    rows[2] += [threading.active_count() - threads, seconds / count * 1000]
    print(f"{count:,} stores at once\n")
    table(["", "RssAnon, KB/store", "descriptors/store", "threads", "ms/store"], rows)


def times(directory: Path, records: int, runs: int) -> None:
    """Open and close an empty store and a full one."""
    with tiered.open(directory / "full", memory="64MB") as store:
        store.update((key(number), document(number)) for number in range(records))
    tiered.open(directory / "empty").close()
    rows = []
    for name in ("empty", "full"):
        for flag in "wr":
            taken = []
            for _ in range(runs):
                began = perf_counter()
                store = tiered.open(directory / name, flag)
                opened = perf_counter()
                store.close()
                taken.append((opened - began, perf_counter() - opened))
            opening, closing = (statistics.median(column) * 1000 for column in zip(*taken, strict=True))
            size = f"{records:,} records" if name == "full" else "empty"
            rows.append([f"{size}, flag={flag!r}", opening, closing])
    print("\nopen and close\n")
    table(["", "open, ms", "close, ms"], rows)


def cycles(directory: Path, count: int) -> None:
    """Open, use and close a store, and a reader beside it."""

    def cycle(number: int) -> None:
        with tiered.open(directory / "cycles") as store, tiered.open(directory / "cycles", "r") as reader:
            store[number % 100] = [number] * 20
            assert reader[number % 100] == [number] * 20

    for number in range(200):
        cycle(number)
    gc.collect()
    memory, files, threads = rss_anon_bytes(), descriptors(), threading.active_count()
    began = perf_counter()
    for number in range(count):
        cycle(number)
    seconds = perf_counter() - began
    gc.collect()
    with tiered.open(directory / "cycles", "r") as store:
        slots = len(store._engine.cold._env.readers().splitlines()) - 1
    print(
        f"\n{count:,} cycles of open, write, read beside it, close: {seconds / count * 1000:.2f} ms each; "
        f"RssAnon {(rss_anon_bytes() - memory) / 1024:+,.0f} KB, descriptors {descriptors() - files:+}, "
        f"threads {threading.active_count() - threads:+}, reader slots used ever {slots}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", type=int, default=1000)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--cycles", type=int, default=0)
    parser.add_argument("--directory", type=Path, default=None, help="where the stores are made")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="tiered-bench-", dir=options.directory) as name:
        idle(Path(name), options.stores)
        times(Path(name), options.records, options.runs)
        if options.cycles:
            cycles(Path(name), options.cycles)


if __name__ == "__main__":
    main()
