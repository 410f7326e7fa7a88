"""What durability costs: writes in each mode, threads that share a sync, SQLite beside it, recovery of a full buffer.

modes     CPU time of a put in "checkpoint" and in "everysec", in turn, program and helper together
always    puts per second that each wait for the disk: one thread, eight threads, and SQLite (journal_mode=WAL,
          synchronous=FULL) with one, in turn, in short rounds: the disk is not equally fast for long
recovery  seconds to open a store that was killed with a write buffer of 64 MB full
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
from measure import table
from workload import temporary_folder

import tiered

UNIFORM = random.Random(1)
VALUES = [{"name": f"User {n}", "tags": ["a", "b"], "text": UNIFORM.randbytes(90).hex()} for n in range(1000)]
KILLED = """
import os, signal, sys, tiered
store = tiered.open(sys.argv[1], memory="512MB", save="", durability="checkpoint", helper=False)
number, engine = 0, store._engine
rotate = engine.rotate
def kill_or_rotate():
    if engine._active.segment.position > 50 << 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return rotate()
engine.rotate = kill_or_rotate
while True:
    store[number] = "%d " % number * 150
    number += 1
"""


def cpu_seconds() -> float:
    """Of this process and the children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def load(path: Path, durability: str, records: int) -> float:
    """CPU microseconds per put, until everything is in the cold tier."""
    before = cpu_seconds()
    with tiered.open(path, "n", memory="64MB", durability=durability) as store:
        for number in range(records):
            store[number] = VALUES[number % 1000]
    return (cpu_seconds() - before) / records * 1e6


def puts_per_second(path: Path, threads: int, seconds: float) -> float:
    """Puts that wait for the disk, by some threads."""
    counts = [0] * threads
    with tiered.open(path, "n", memory="64MB", durability="always") as store:
        store["first"] = 1
        stop = time.perf_counter() + seconds

        def work(thread: int) -> None:
            while time.perf_counter() < stop:
                store[thread, counts[thread]] = VALUES[counts[thread] % 1000]
                counts[thread] += 1

        workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return sum(counts) / seconds


def sqlite_per_second(path: Path, seconds: float) -> float:
    """The same by SQLite, each put a transaction of its own."""
    path.unlink(missing_ok=True)
    count = 0
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode=WAL")
    connection.execute("pragma synchronous=FULL")
    connection.execute("create table records (key integer primary key, value blob)")
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        packed = msgpack.packb(VALUES[count % 1000])
        connection.execute("insert or replace into records values (?, ?)", (count, packed))
        count += 1
    connection.close()
    return count / seconds


def in_turn(rounds: int, measured: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Each once per round."""
    found: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, measure in measured.items():
            found[name].append(measure())
    return found


def ratio(found: dict[str, list[float]], over: str, under: str) -> str:
    """The median of the rounds' ratios, and their quartiles."""
    ratios = sorted(a / b for a, b in zip(found[over], found[under], strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{over} / {under}: {middle:.2f} ({low:.2f} to {high:.2f})"


def recovery(path: Path) -> list[Any]:
    """How long opening takes after a kill with a full buffer."""
    shutil.rmtree(path, ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(Path(tiered.__file__).resolve().parents[1])}
    died = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment, check=False).returncode
    assert died == -signal.SIGKILL
    size = sum(os.stat(segment).st_size for segment in path.glob("journal-0*.log"))
    before = time.perf_counter()
    with tiered.open(path, memory="64MB") as store:
        return [f"{size >> 20} MB", f"{len(store):,}", f"{time.perf_counter() - before:.1f} s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["modes", "always", "recovery"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--records", type=int, default=60_000)
    parser.add_argument("--seconds", type=float, default=0.5)
    arguments = parser.parse_args()
    with temporary_folder() as folder:
        path = Path(folder) / "store"
        if "modes" in arguments.what:
            modes = ("checkpoint", "everysec")
            found = in_turn(arguments.rounds, {mode: partial(load, path, mode, arguments.records) for mode in modes})
            table(["mode", "CPU µs per put"], [[mode, statistics.median(found[mode])] for mode in modes])
            print(ratio(found, "everysec", "checkpoint"))
        if "always" in arguments.what:
            measured: dict[str, Callable[[], float]] = {
                "sqlite": lambda: sqlite_per_second(Path(folder) / "sqlite", arguments.seconds),
                "one thread": lambda: puts_per_second(path, 1, arguments.seconds),
                "eight threads": lambda: puts_per_second(path, 8, arguments.seconds),
            }
            found = in_turn(arguments.rounds, measured)
            table(["always", "puts/s"], [[name, statistics.median(found[name])] for name in found])
            print(ratio(found, "one thread", "sqlite"))
            print(ratio(found, "eight threads", "one thread"))
        if "recovery" in arguments.what:
            table(["segments", "records", "opening"], [recovery(path)])


main()
