"""The main job of this project, on real data: a dict larger than its memory, every value checked.

By default all cities of data/ go through a store whose memory is a tenth of their packed size; they are read back with
skew and uniformly, and checked before and after a restart. `--big` does the same with gigabytes of made records in a
process that the kernel holds to 512 MB of data. Every figure printed is measured in this run. The exit status is 1 if
any value differs from its source.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import math
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import msgpack
from dataset import Document, cities

import tiered

MB, GB = 1 << 20, 1 << 30
BIG_LIMIT_BYTES = 512 * MB
BIG_MEMORY_BYTES = 128 * MB

T = TypeVar("T")
Store = tiered.Store[Any, Any]
Row = tuple[str, str, str]


class Monitor:
    """Shows how far each phase is; samples this process's anonymous memory a hundred times per phase."""

    def __init__(self) -> None:
        self.bars = sys.stdout.isatty()
        if self.bars:
            import rich.progress  # noqa: F401  (loaded now, so that its memory is not taken for the store's)
        give_back_free_memory()
        self.start_bytes = self.peak_bytes = rss_anon_bytes()

    def watch(self, label: str, items: Iterable[T], total: int) -> Iterator[T]:
        step = max(1, total // 100)
        with self._bar(label, total) as show:
            for done, item in enumerate(items, 1):
                yield item
                if done % step == 0:
                    self.peak_bytes = max(self.peak_bytes, rss_anon_bytes())
                    show(done)
            show(total)

    @contextmanager
    def _bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        if self.bars:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            with Progress(*columns) as progress:
                task = progress.add_task(label, total=total)
                yield lambda done: progress.update(task, completed=done)
            return
        started, tenths = perf_counter(), 0

        def show(done: int) -> None:
            nonlocal tenths
            while tenths < done * 10 // total:
                tenths += 1
                print(f" {tenths * 10}%", end="", flush=True)

        print(f"{label:28}", end="", flush=True)
        yield show
        print(f"  {perf_counter() - started:.1f} s")


def give_back_free_memory() -> None:
    """Memory freed before the measuring begins would be filled by the store unseen (2.6 MB from reading the cities)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def rss_anon_bytes() -> int:
    """This process's resident anonymous memory; 0 where the system doesn't tell (it is Linux that does)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:")), 0)


@dataclass
class Check:
    """What was compared with its source, and which keys came back different."""

    checked: int = 0
    wrong: list[Any] = field(default_factory=list)

    def exact(self, key: object, value: object, expected: object) -> None:
        """Also types and the order of a dict's keys must be the same: `1`, `1.0` and `True` are equal, not the same."""
        self.checked += 1
        if repr(value) != repr(expected):
            self.wrong.append(key)

    def equal(self, key: object, value: object, expected: object) -> None:
        """The cheaper comparison, for phases that are timed; every value also goes through `exact`."""
        self.checked += 1
        if value != expected:
            self.wrong.append(key)

    def length(self, store: Store, expected: int) -> None:
        if len(store) != expected:
            self.wrong.append(f"the store has {len(store):,} records instead of {expected:,}")

    def row(self) -> Row:
        wrong = f"{len(self.wrong):,} WRONG: {', '.join(map(repr, self.wrong[:3]))}"
        return "values checked", f"{self.checked:,}", wrong if self.wrong else "all correct"


@dataclass
class Reads:
    per_second: float
    hit_ratio: float


def read(store: Store, pairs: Iterable[tuple[Any, Document]], count: int, check: Check) -> Reads:
    """Reads and compares. A hit is a read that the cold tier was not asked for."""
    cold_hits = store.stats().cold_hits
    started = perf_counter()
    for key, expected in pairs:
        check.equal(key, store[key], expected)
    seconds = perf_counter() - started
    return Reads(count / seconds, 1 - (store.stats().cold_hits - cold_hits) / count)


def skewed_order(count: int, rng: random.Random) -> list[int]:
    """Zipf with s = 1: the k-th most popular record is read 1/k as often as the first; which is popular is random."""
    ranked = list(range(count))
    rng.shuffle(ranked)
    # An array, not a list: it is freed in one piece; scattered floats would leave room that hides the store's growth.
    weights = array("d", itertools.accumulate(1 / rank for rank in range(1, count + 1)))
    return rng.choices(ranked, cum_weights=weights, k=count)


def cities_demo(path: Path) -> Check:
    items = list(cities())
    count = len(items)
    packed_bytes = sum(len(msgpack.packb(key)) + len(msgpack.packb(value)) for key, value in items)
    memory_bytes = max(MB, packed_bytes // 10)
    rng = random.Random(1)
    skewed, uniform = skewed_order(count, rng), rng.choices(range(count), k=count)

    check, monitor = Check(), Monitor()
    with tiered.open(path, memory=memory_bytes) as store:
        started = perf_counter()
        for key, value in monitor.watch("load", items, count):
            store[key] = value
        store.save()
        loads_per_second = count / (perf_counter() - started)
        pairs = (items[index] for index in monitor.watch("read, skewed", skewed, count))
        reads_skewed = read(store, pairs, count, check)
        pairs = (items[index] for index in monitor.watch("read, uniform", uniform, count))
        reads_uniform = read(store, pairs, count, check)
        for key, value in monitor.watch("check every value", items, count):
            check.exact(key, store[key], value)
        check.length(store, count)
        stats = store.stats()
    disk_bytes = directory_bytes(path)
    with tiered.open(path, memory=memory_bytes) as store:
        for key, value in monitor.watch("reopen, check every value", items, count):
            check.exact(key, store[key], value)
        check.length(store, count)
        store.compact()
    compacted_bytes = directory_bytes(path)

    print_table(
        ("records", f"{count:,}", "cities of the world (GeoNames, CC BY 4.0)"),
        ("packed", size(packed_bytes), "keys and values as msgpack"),
        ("memory budget", size(memory_bytes), f"packed / {packed_bytes / memory_bytes:.1f}"),
        *storage_rows(stats, packed_bytes, disk_bytes),
        ("on disk, compacted", size(compacted_bytes), f"packed / {packed_bytes / compacted_bytes:.2f}"),
        ("hit ratio, skewed", f"{reads_skewed.hit_ratio:.1%}", "Zipf, s = 1"),
        ("hit ratio, uniform", f"{reads_uniform.hit_ratio:.1%}", ""),
        ("loads per second", f"{loads_per_second:,.0f}", "one by one, until all are checkpointed"),
        ("reads per second, skewed", f"{reads_skewed.per_second:,.0f}", "each compared with its source"),
        ("reads per second, uniform", f"{reads_uniform.per_second:,.0f}", ""),
        *memory_rows(stats, monitor, memory_bytes),
        check.row(),
    )
    return check


class Trips:
    """Made records of about 1 KB, each computed from its number alone: it can be made again to check what was read."""

    DRAWS = struct.Struct("<16I")
    SENTENCES = 4096

    def __init__(self) -> None:
        places = [value for _, value in itertools.islice(cities(), 0, None, 41)][: self.SENTENCES]
        assert len(places) == self.SENTENCES
        self.names = [place["name"] for place in places]
        self.sentences = [
            "{name} ({country}) is in {region}, at {lat} degrees of latitude and {lng} of longitude.".format(
                region=(place["admin1"] or {}).get("name") or "no region", **place
            )
            for place in places
        ]

    def __getitem__(self, number: int) -> Document:
        digest = blake2b(number.to_bytes(8, "little"), digest_size=self.DRAWS.size).digest()
        draws = self.DRAWS.unpack(digest)
        names, sentences, choices = self.names, self.sentences, self.SENTENCES
        return {
            "id": number,
            "traveller": names[draws[0] % choices],
            "rating": draws[1] / 2**32,
            "paid": draws[2] % 2 == 0,
            "ticket": digest[:8].hex(),
            "stops": [names[draw % choices] for draw in draws[3:6]],
            "diary": " ".join([sentences[draw % choices] for draw in draws[6:]]),
        }


def big_demo(path: Path, wanted_bytes: int) -> Check:
    """Runs in a process of its own: the limit is for good, and its memory starts from little."""
    resource.setrlimit(resource.RLIMIT_DATA, (BIG_LIMIT_BYTES, BIG_LIMIT_BYTES))
    trips = Trips()
    count = math.ceil(wanted_bytes * 1000 / sum(len(msgpack.packb(trips[number])) for number in range(1000)))
    packed_bytes = 0

    def made(numbers: Iterator[int]) -> Iterator[tuple[tuple[str, int], Document]]:
        nonlocal packed_bytes
        for number in numbers:
            key, value = ("trip", number), trips[number]
            packed_bytes += len(msgpack.packb(key)) + len(msgpack.packb(value))
            yield key, value

    check, monitor = Check(), Monitor()
    with tiered.open(path, memory=BIG_MEMORY_BYTES) as store:
        started = perf_counter()
        store.update(made(monitor.watch("load", range(count), count)))
        store.save()
        loads_per_second = count / (perf_counter() - started)
        started = perf_counter()
        for number in monitor.watch("check every value, scattered", strided(count), count):
            key = ("trip", number)
            check.exact(key, store[key], trips[number])
        reads_per_second = count / (perf_counter() - started)
        check.length(store, count)
        stats = store.stats()
    disk_bytes = directory_bytes(path)
    with tiered.open(path, memory=BIG_MEMORY_BYTES) as store:
        check.length(store, count)
        started = perf_counter()
        for number, item in enumerate(monitor.watch("reopen, check in key order", store.items(), count)):
            check.exact(("trip", number), item, (("trip", number), trips[number]))
        scans_per_second = count / (perf_counter() - started)

    enough = "" if packed_bytes > BIG_LIMIT_BYTES else ": fits into memory, so this run proves nothing"
    print_table(
        ("records", f"{count:,}", "made, about 1 KB each"),
        ("packed", size(packed_bytes), f"{packed_bytes / BIG_LIMIT_BYTES:.1f} x the limit{enough}"),
        ("limit of the process", size(BIG_LIMIT_BYTES), "RLIMIT_DATA, for the helper process too"),
        ("memory budget", size(BIG_MEMORY_BYTES), f"packed / {packed_bytes / BIG_MEMORY_BYTES:.1f}"),
        *storage_rows(stats, packed_bytes, disk_bytes),
        ("loads per second", f"{loads_per_second:,.0f}", "making them included, until all are checkpointed"),
        ("writers waited", f"{stats.wait_seconds:.1f} s", f"{stats.writer_waits:,} times, for the checkpointer"),
        ("reads per second", f"{reads_per_second:,.0f}", "scattered, each compared with its record, made again"),
        ("scanned per second", f"{scans_per_second:,.0f}", "in key order, compared likewise"),
        *memory_rows(stats, monitor, BIG_MEMORY_BYTES),
        check.row(),
    )
    return check


def strided(count: int) -> Iterator[int]:
    """Every number below `count` once, neighbours far apart."""
    stride = max(1, int(count * 0.618))
    while math.gcd(stride, count) != 1:
        stride += 1
    return (step * stride % count for step in range(count))


def storage_rows(stats: tiered.Stats, packed_bytes: int, disk_bytes: int) -> list[Row]:
    ratio = f"{stats.packed_bytes / stats.stored_bytes:.2f} x" if stats.stored_bytes else "unknown"
    return [
        ("on disk", size(disk_bytes), f"closed; packed / {packed_bytes / disk_bytes:.2f}"),
        ("compression ratio", ratio, f"of cold values; dictionaries trained: {stats.dictionary_count}"),
        ("moved", f"{stats.evictions:,}", f"evicted; {stats.promotions:,} promoted, {stats.checkpoints:,} checkpoints"),
    ]


def memory_rows(stats: tiered.Stats, monitor: Monitor, memory_bytes: int) -> list[Row]:
    if not monitor.peak_bytes:
        return [("process memory", "unknown", "this system doesn't tell")]
    grown = monitor.peak_bytes - monitor.start_bytes
    ratio = f"budget x {grown / memory_bytes:.2f}"
    return [
        ("process memory, growth", size(grown), f"{ratio}; the most since before open; anonymous (RssAnon)"),
        ("process memory, all", size(monitor.peak_bytes), "with Python itself and what is compared with"),
        ("helper process, peak", size(stats.helper_peak_rss_anon_bytes), "anonymous memory, beside the budget"),
    ]


def print_table(*rows: Row) -> None:
    print()
    for name, value, note in rows:
        print(f"{name:28}{value:>12}   {note}".rstrip())


def size(number: int) -> str:
    return f"{number / GB:.2f} GB" if number >= GB else f"{number / MB:.1f} MB"


def directory_bytes(path: Path) -> int:
    """What the directory takes on disk, by the file system's account rather than the store's."""
    return sum(file.lstat().st_blocks * 512 for file in path.rglob("*"))


@contextmanager
def store_directory(parent: Path | None, keep: bool) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="tiered-demo-", dir=parent))
    try:
        yield directory / "demo.tiered"
    finally:
        if keep:
            print(f"\nkept: {directory / 'demo.tiered'}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def in_limited_process(path: Path, gigabytes: float) -> int:
    wanted_bytes = int(gigabytes * GB)
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < wanted_bytes:
        free, needed = size(free_bytes), size(wanted_bytes)
        print(f"{path.parent}: {free} free, {needed} needed; choose another --path", file=sys.stderr)
        return 2
    status = subprocess.run([sys.executable, __file__, f"--big-gb={gigabytes}", f"--limited={path}"]).returncode
    if status < 0:
        print(f"the limited process was killed by signal {-status}", file=sys.stderr)
    return 0 if status == 0 else 1


def positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--big", action="store_true", help="gigabytes of made records in a process limited to 512 MB")
    parser.add_argument("--big-gb", type=positive, metavar="N", help="the same with N gigabytes (--big: 2)")
    where = "where to make the store, in a directory of its own (default: the system's temporary one)"
    parser.add_argument("--path", type=Path, metavar="DIRECTORY", help=where)
    parser.add_argument("--keep", action="store_true", help="leave the store there at the end")
    parser.add_argument("--limited", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    gigabytes = options.big_gb or 2

    if options.limited:
        return 1 if big_demo(options.limited, int(gigabytes * GB)).wrong else 0
    if options.path and not (options.path.is_dir() and os.access(options.path, os.W_OK)):
        parser.error(f"--path: {options.path} is not a directory that can be written to")
    with store_directory(options.path, options.keep) as path:
        if options.big or options.big_gb:
            return in_limited_process(path, gigabytes)
        return 1 if cities_demo(path).wrong else 0


if __name__ == "__main__":
    sys.exit(main())
