"""Hit ratios of skewed reads, beside exact LRU of as many records: how approximate is what leaves?

Two tables. The bounded cache (`disk_full="evict"`): each read of an absent key writes it, as a cache's user does, and a
hit is a key that is there. The hot tier of a store that holds everything: a hit is a read answered from memory, with
several low watermarks, and with cycles far more frequent than they are by default, so that what they cost shows.

Keys are random numbers, drawn by Zipf's law; values are random bytes. The first half of the trace fills, the second
counts. Exact LRU and random replacement see the same trace, and hold as many records as the store did on average.
"""

from __future__ import annotations

import argparse
import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from measure import MB, table
from workload import temporary_store, zipf

LOOKS = 50
WATERMARKS = ("1", "0.95 0.99", "0.8 0.9", "0.5 0.6")


def lru(trace: Sequence[int], size: int) -> float:
    """Hits of exact LRU of so many records in the second half of a trace."""
    order: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for at, key in enumerate(trace):
        if key in order:
            order.move_to_end(key)
            hits += at >= len(trace) // 2
            continue
        order[key] = None
        if len(order) > size:
            order.popitem(last=False)
    return hits / (len(trace) - len(trace) // 2)


def at_random(trace: Sequence[int], size: int) -> float:
    """The same of random replacement."""
    rng = random.Random(1)
    places: list[int] = []
    kept: set[int] = set()
    hits = 0
    for at, key in enumerate(trace):
        if key in kept:
            hits += at >= len(trace) // 2
        elif len(places) < size:
            places.append(key)
            kept.add(key)
        else:
            place = rng.randrange(size)
            kept.discard(places[place])
            kept.add(key)
            places[place] = key
    return hits / (len(trace) - len(trace) // 2)


def bounded_cache(trace: Sequence[int], options: argparse.Namespace) -> list[Any]:
    """A row: records kept, hit ratios of the cache, of LRU, of random replacement."""
    noise = random.Random(2).randbytes(MB)
    settings: dict[str, Any] = {"memory": options.memory * MB, "disk": options.disk * MB, "compression": "none"}
    hits, records, half = 0, list[int](), len(trace) // 2
    with temporary_store(disk_full="evict", dir=options.dir, **settings) as store:
        for at, key in enumerate(trace):
            if store.get(key) is not None:
                hits += at >= half
            else:
                start = key % (MB - options.size)
                store[key] = noise[start : start + options.size]
            if at >= half and at % (half // LOOKS) == 0:
                records.append(len(store))
        deleted = store.stats().disk_evictions
    size = sum(records) // len(records)
    return [
        f"disk={options.disk} MB",
        size,
        deleted,
        hits / (len(trace) - half),
        lru(trace, size),
        at_random(trace, size),
    ]


def hot_tier(trace: Sequence[int], low_watermark: str, options: argparse.Namespace) -> list[Any]:
    """A row: hot records, evictions, hit ratios of the hot tier, of LRU, of random replacement."""
    noise = random.Random(2).randbytes(MB)
    settings: dict[str, Any] = {"memory": options.memory * MB, "cycle_seconds": options.cycle, "compression": "none"}
    records, half, cold = list[int](), len(trace) // 2, 0
    with temporary_store(low_watermark=low_watermark, dir=options.dir, **settings) as store:
        keys = sorted(set(trace))
        store.update((key, noise[key % (MB - options.size) :][: options.size]) for key in keys)
        store.save()
        for at, key in enumerate(trace):
            if at == half:
                cold = store.stats().cold_hits
            store[key]
            if at >= half and at % (half // LOOKS) == 0:
                records.append(store.stats().hot_records)
        stats = store.stats()
    size, ratio = sum(records) // len(records), 1 - (stats.cold_hits - cold) / (len(trace) - half)
    return [f"low_watermark={low_watermark}", size, stats.evictions, ratio, lru(trace, size), at_random(trace, size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reads", type=int, default=300_000)
    parser.add_argument("--keys", type=int, default=60_000)
    parser.add_argument("--skew", type=float, default=0.9, help="the s of Zipf's law (default: 0.9)")
    parser.add_argument("--size", type=int, default=300, help="bytes of a value (default: 300)")
    parser.add_argument("--memory", type=int, default=2, help="MB (default: 2)")
    parser.add_argument("--disk", type=int, default=16, help="cap of the bounded cache in MB (default: 16)")
    parser.add_argument("--cycle", default="0.05 0.2", help="seconds from cycle to cycle (default: 0.05 0.2)")
    parser.add_argument("--dir", help="parent of the temporary folder: on the disk to be measured")
    options = parser.parse_args()
    names = random.Random(3).sample(range(1 << 40), options.keys)
    trace = [names[rank] for rank in zipf(options.keys, options.reads, random.Random(4), options.skew)]
    print(f"{options.reads:,} reads of {options.keys:,} keys, Zipf {options.skew:g}, values of {options.size} bytes\n")
    heads = ["records", "evicted", "hit ratio", "exact LRU", "random"]
    table(["bounded cache", *heads], [bounded_cache(trace, options)])
    table(["hot tier", *heads], [hot_tier(trace, watermark, options) for watermark in WATERMARKS])


if __name__ == "__main__":
    main()
