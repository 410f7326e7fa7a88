"""A hit through `store[key]` against a plain dict's subscript: same keys, same order, everything hot.

Medians of `--runs` rounds in which both take turns. "net" is without the loop itself, whose cost is measured too; the
ratio of net figures is the harder one.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

from measure import table
from workload import document, key, temporary_store

VALUES: dict[str, Callable[[int], Any]] = {
    "str": lambda number: f"value {number:0100d}",
    "bytes": lambda number: b"%0100d" % number,
    "int": lambda number: number * 1_000_003,
    "document": document,
}


def seconds(mapping: Any, keys: list[str]) -> float:
    begin = perf_counter()
    for name in keys:
        mapping[name]
    return perf_counter() - begin


def empty_seconds(keys: list[str]) -> float:
    begin = perf_counter()
    for _name in keys:
        pass
    return perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--reads", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    keys = [key(number) for number in range(options.records)]
    reads = random.Random(0).choices(keys, k=options.reads)
    rows = []
    for name, make in VALUES.items():
        plain = {key: make(number) for number, key in enumerate(keys)}
        with temporary_store(memory=max(64 << 20, options.records * 4000)) as store:
            store.update(plain)
            store.save()
            assert all(store[key] == value for key, value in plain.items())
            cold_hits = store.stats().cold_hits
            taken = [(empty_seconds(reads), seconds(plain, reads), seconds(store, reads)) for _ in range(options.runs)]
            assert store.stats().cold_hits == cold_hits, "not everything was hot"
        loop, subscript, hit = (statistics.median(column) / len(reads) * 1e9 for column in zip(*taken, strict=True))
        net = (hit - loop) / (subscript - loop)
        rows.append(
            [name, round(subscript), round(hit), hit / subscript, round(subscript - loop), round(hit - loop), net]
        )
    print(f"{options.records:,} hot records, {options.reads:,} random reads, medians of {options.runs} rounds\n")
    table(["ns per read", "dict", "store", "ratio", "dict net", "store net", "net ratio"], rows)


if __name__ == "__main__":
    main()
