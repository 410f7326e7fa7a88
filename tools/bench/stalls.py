"""The latency of every put while checkpoints run, and of gets beside a writing thread.

load        new keys in random order, under a budget of a quarter of the packed size, checkpoints as they come
overwrite   the same keys again, in the same process, against a filled cold tier
with reader overwriting while a second thread reads (skewed); "dict" is the same with a plain dict, which shows what
            the interpreter's switching of threads alone costs

Fetching the next documents is not on the clock, but leaves the helper a breath every 1,000 puts.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import threading
from array import array
from time import perf_counter_ns
from typing import Any

from measure import MB, percentile, table
from workload import Workload, temporary_folder, temporary_store


def puts(mapping: Any, workload: Workload) -> array[int]:
    nanoseconds = array("q")
    for chunk in workload.pairs():
        for key, value in chunk:
            begin = perf_counter_ns()
            mapping[key] = value
            nanoseconds.append(perf_counter_ns() - begin)
    return nanoseconds


class Reader(threading.Thread):
    """Reads by the skewed sequence until told to stop."""

    def __init__(self, mapping: Any, workload: Workload) -> None:
        super().__init__()
        self.mapping, self.workload = mapping, workload
        self.stop = threading.Event()
        self.nanoseconds = array("q")
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for keys, _ in itertools.cycle(list(self.workload.reads("skewed", self.workload.records))):
                for key in keys:
                    begin = perf_counter_ns()
                    self.mapping[key]
                    self.nanoseconds.append(perf_counter_ns() - begin)
                if self.stop.is_set():
                    break
        except BaseException as error:
            self.error = error


def beside_reader(mapping: Any, workload: Workload) -> tuple[array[int], array[int]]:
    reader = Reader(mapping, workload)
    reader.start()
    try:
        written = puts(mapping, workload)
    finally:
        reader.stop.set()
        reader.join()
    if reader.error:
        raise reader.error
    return written, reader.nanoseconds


def row(name: str, nanoseconds: array[int]) -> list[object]:
    ordered = sorted(value / 1000 for value in nanoseconds)
    shares = [percentile(ordered, share) for share in (0.5, 0.99, 0.999)]
    late = sum(value > 500 for value in ordered)
    return [name, len(ordered), sum(ordered) / len(ordered), *shares, ordered[-1] / 1000, late]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument(
        "--save", help="save points, such as '1 1' for a checkpoint every second (default: the store's)"
    )
    parser.add_argument("--dir", help="parent of the temporary folder: on the disk to be measured")
    options = parser.parse_args()
    with temporary_folder(options.dir) as folder:
        workload = Workload.prepare(folder, options.records, min(100_000, options.records))
        budget = max(MB, workload.packed_bytes // 4)
        settings = {} if options.save is None else {"save": options.save}
        gc.collect()
        rows = []
        with temporary_store(memory=budget, dir=options.dir, **settings) as store:
            rows.append(row("put, load", puts(store, workload)))
            rows.append(row("put, overwrite", puts(store, workload)))
            alone = store.stats()
            written, read = beside_reader(store, workload)
            rows += [row("put, with reader", written), row("get, beside writer", read)]
            stats = store.stats()
        plain = {key: value for chunk in workload.pairs() for key, value in chunk}
        written, read = beside_reader(plain, workload)
        rows += [row("dict: put, with reader", written), row("dict: get, beside writer", read)]
    print(f"{options.records:,} documents, budget {budget / MB:.1f} MB\n")
    table(["us per operation", "operations", "mean", "p50", "p99", "p99.9", "longest, ms", "above 0.5 ms"], rows)
    for name, figures in (("load and overwrite", alone), ("all", stats)):
        waits = f"{figures.writer_waits} waits of writers, {figures.wait_seconds * 1000:.1f} ms together"
        print(f"{name}: {figures.checkpoints} checkpoints, {waits}")


if __name__ == "__main__":
    main()
