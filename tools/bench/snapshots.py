"""Snapshots and restores: how fast, and what they cost a program that goes on writing.

    python tools/bench/snapshots.py --records 300000 --seconds 8

Three parts, each beside its yardstick in the same run:

    writes    puts per second and their p99.9, by turns without and with one snapshot after the other being made
    copying   MB/s of a snapshot, of `cp` of the same bytes, and of LMDB's own `env.copy(compact=True)`
    restoring MB/s and time per record, beside `store[key] = value` of the same documents

MB are those of the snapshot file, but for LMDB's copy, which is measured in its own.  All of them sync their files.
CPU seconds, beside those on the wall, say more on a machine that others use, too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import MB, percentile
from workload import document

import tiered
from tiered.cold import Cold

CHUNK = 256


def puts(store: tiered.Store[Any, Any], documents: list[dict[str, Any]], seconds: float) -> tuple[float, float, float]:
    """Puts per second, and their p99.9 and longest in milliseconds."""
    taken: list[float] = []
    number, count = 0, len(documents)
    begin = last = perf_counter()
    while last - begin < seconds:
        store[number * 7919 % count] = documents[number % count]
        now = perf_counter()
        taken.append(now - last)
        last = now
        number += 1
    taken.sort()
    return number / (last - begin), percentile(taken, 0.999) * 1000, taken[-1] * 1000


def beside_snapshots(
    store: tiered.Store[Any, Any], file: Path, documents: list[dict[str, Any]], seconds: float
) -> tuple[tuple[float, float, float], int]:
    """`puts` while one snapshot after the other is made, and how many were."""
    stop, made = threading.Event(), 0

    def snapshots() -> None:
        nonlocal made
        while not stop.is_set():
            store.snapshot(file)
            made += 1

    thread = threading.Thread(target=snapshots)
    thread.start()
    try:
        result = puts(store, documents, seconds)
    finally:
        stop.set()
        thread.join()
    return result, made


def writes(directory: Path, documents: list[dict[str, Any]], seconds: float, rounds: int) -> None:
    with tiered.open(directory / "written", memory="64MB") as store:
        store.update(enumerate(documents))
        store.save()
        puts(store, documents, seconds / 2)  # What is new at the first time is on nobody's account.
        without, during = [], []
        for _ in range(rounds):
            without.append(puts(store, documents, seconds))
            result, made = beside_snapshots(store, directory / "s.tsnap", documents, seconds)
            during.append(result)
            print(
                f"  without {without[-1][0]:9,.0f}/s  p99.9 {without[-1][1]:6.2f} ms  longest {without[-1][2]:6.1f} ms"
            )
            print(f"  during  {result[0]:9,.0f}/s  p99.9 {result[1]:6.2f} ms  longest {result[2]:6.1f} ms  {made} made")
        share = statistics.median(b[0] / a[0] for a, b in zip(without, during, strict=True))
        late = statistics.median(each[1] for each in during)
        print(f"writes during snapshots: {share:.0%} of those without, p99.9 {late:.2f} ms (medians of {rounds})")


class Taken:
    """What some rounds took, on the wall and of this process's CPU."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def measure(self, work: Callable[[], object]) -> None:
        wall, cpu = perf_counter(), process_time()
        work()
        self.wall.append(perf_counter() - wall)
        self.cpu.append(process_time() - cpu)

    def line(self, name: str, size: float, count: int) -> str:
        wall, cpu = statistics.median(self.wall), statistics.median(self.cpu)
        return (
            f"{name:20} {size / MB:7.1f} MB {wall:7.2f} s {size / MB / wall:7.1f} MB/s"
            f" {wall / count * 1e6:7.2f} µs/record; CPU {cpu:6.2f} s {cpu / count * 1e6:6.2f} µs/record"
        )


def copy_file(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())


def copying(directory: Path, count: int, rounds: int) -> None:
    path, file = directory / "written", directory / "s.tsnap"
    snapshot, copied, verified, lmdb = Taken(), Taken(), Taken(), Taken()
    for _ in range(rounds):
        with tiered.open(path, "r") as reader:
            snapshot.measure(lambda reader=reader: reader.snapshot(file))  # type: ignore[misc]
        copied.measure(lambda: copy_file(file, directory / "copy"))
        verified.measure(lambda: tiered.verify(file))
        target = directory / "lmdb"
        target.mkdir()
        cold = Cold(path / (path / "CURRENT").read_text().strip(), readonly=True)

        def copy_lmdb(cold: Cold = cold, target: Path = target) -> None:
            cold._env.copy(str(target), compact=True)
            with open(target / "data.mdb", "rb") as made:
                os.fsync(made.fileno())

        lmdb.measure(copy_lmdb)
        cold.close()
        size = (target / "data.mdb").stat().st_size
        shutil.rmtree(target)
    for name, taken in (("snapshot", snapshot), ("cp", copied), ("verify", verified)):
        print(taken.line(name, file.stat().st_size, count))
    print(lmdb.line("LMDB's compact copy", size, count))


def restoring(directory: Path, documents: list[dict[str, Any]], rounds: int) -> None:
    file, count = directory / "s.tsnap", len(documents)
    restored, loaded = Taken(), Taken()
    for _ in range(rounds):
        restored.measure(lambda: tiered.restore(file, directory / "restored"))
        shutil.rmtree(directory / "restored")

        def load() -> None:
            with tiered.open(directory / "loaded", memory="64MB") as store:
                for key, value in enumerate(documents):
                    store[key] = value

        loaded.measure(load)
        shutil.rmtree(directory / "loaded")
    for name, taken in (("restore", restored), ("store[key] = value", loaded)):
        print(taken.line(name, file.stat().st_size, count))
    times = statistics.median(b / a for a, b in zip(restored.wall, loaded.wall, strict=True))
    print(f"restoring is {times:.1f} times as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", help="where to make the files; default: the system's temporary directory")
    arguments = parser.parse_args()
    documents = [document(number) for number in range(arguments.records)]
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        writes(directory, documents, arguments.seconds, arguments.rounds)
        copying(directory, arguments.records, arguments.rounds)
        restoring(directory, documents, arguments.rounds)


if __name__ == "__main__":
    main()
