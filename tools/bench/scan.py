"""A full scan in the middle of skewed reads: the hit ratio before, during and after it, with and without resistance.

The store is `--times` as large as its memory. The reads before and after are drawn by Zipf's law; each scan reads all
keys in key order, by `get`, with another skewed read after each four of them; "during" are the hits of those. "after"
are the first reads after the scan.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from typing import Any

from measure import MB, table
from workload import temporary_store, zipf

SCANS: dict[str, tuple[str, Callable[[Any, int], Any]]] = {
    "get": ("first", lambda store, key: store.get(key)),
    "get, promotion='second'": ("second", lambda store, key: store.get(key)),
    "get(promote=False)": ("first", lambda store, key: store.get(key, promote=False)),
}


def hit_ratio(store: Any, reads: Iterator[int], count: int) -> float:
    before = store.stats().hits
    for _ in range(count):
        store[next(reads)]
    return float((store.stats().hits - before) / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=int, default=4, help="in MB")
    parser.add_argument("--times", type=float, default=20)
    parser.add_argument("--policy", default="lru")
    parser.add_argument("--reads", type=int, default=20_000)
    options = parser.parse_args()
    size = 1000
    count = int(options.memory * MB * options.times / size)
    rows = []
    for name, (promotion, read) in SCANS.items():
        reads = iter(zipf(count, 8 * options.reads + count // 4 + 1, random.Random(1), 0.9))
        settings = {"memory": options.memory * MB, "eviction": options.policy, "promotion": promotion}
        with temporary_store(**settings) as store:
            store.update((key, b"%0*d" % (size, key)) for key in range(count))
            store.save()
            hit_ratio(store, reads, 6 * options.reads)
            before = hit_ratio(store, reads, options.reads)
            hits = others = 0
            for key in range(count):
                read(store, key)
                if key % 4 == 3:
                    at = store._hits
                    store[next(reads)]
                    hits, others = hits + store._hits - at, others + 1
            after = hit_ratio(store, reads, options.reads // 4)
        rows.append([name, before, hits / others, after])
    print(f"{count:,} records of {size:,} bytes, {options.times:g} times the memory, {options.policy}\n")
    table(["scan by", "before", "during", "after"], rows)


if __name__ == "__main__":
    main()
