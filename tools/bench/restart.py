"""Skewed reads right after opening, beside those before closing: with the hot keys read ahead, and without.

The reads begin at once, beside the background thread; `--pause` seconds later where given.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from typing import Any

from measure import MB, table
from workload import open_store, temporary_folder, zipf


def hit_ratio(store: Any, reads: Iterator[int], count: int) -> float:
    before = store.stats().hits
    for _ in range(count):
        store[next(reads)]
    return float((store.stats().hits - before) / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--memory", type=int, default=16, help="in MB")
    parser.add_argument("--reads", type=int, default=10_000)
    parser.add_argument("--pause", type=float, nargs="+", default=[0.0, 2.0])
    options = parser.parse_args()
    rows = []
    for warm in (True, False):
        for pause in options.pause:
            reads = iter(zipf(options.records, 20 * options.reads, random.Random(1), 0.9))
            settings = {"memory": options.memory * MB, "warm_start": warm}
            with temporary_folder() as folder:
                with open_store(folder / "store", **settings) as store:
                    store.update((key, b"%0500d" % key) for key in range(options.records))
                    store.save()
                    hit_ratio(store, reads, 15 * options.reads)
                    before = hit_ratio(store, reads, options.reads)
                with open_store(folder / "store", **settings) as store:
                    time.sleep(pause)
                    after = hit_ratio(store, reads, options.reads)
                    prefetched = store.stats().prefetched
            rows.append(["yes" if warm else "no", pause, before, after, after / before, prefetched])
    table(["read ahead", "reads after, s", "before", "after", "ratio", "read ahead, keys"], rows)


if __name__ == "__main__":
    main()
