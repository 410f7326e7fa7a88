"""What a hit and a miss cost by eviction policy, beside `cachetools` and `cachebox`.

hit    `cache.get(key)` of what is there
miss   `cache.get(key)` of what is not, and putting it in place of another: the policy's own work

The hot tier alone, full, with records of 250 bytes, without the store around it; CPU time, the median of `--repeat`.
`cachetools` and `cachebox` hold as many entries, counted and not weighed.  Run by
`bash tools/bench_compare/run.sh policies`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from measure import MB, table

from tiered import codec
from tiered.eviction import POLICIES
from tiered.heap import HeapTier
from tiered.hot import hot_tier

VALUE = b"x" * 250


def filled(tier: Any) -> tuple[Callable[[int], Any], Callable[[int], Any], list[int]]:
    """How a tier is read and written, and what is hot in it."""
    number, payload = codec.encode(VALUE)
    for key in range(200_000):
        tier.put(key, number, payload, 0)
    return tier.get, lambda key: tier.put(key, number, payload, 0), list(tier)


def others(entries: int) -> dict[str, Any]:
    import cachebox
    import cachetools

    names = ("LRUCache", "LFUCache", "FIFOCache", "RRCache")
    found = {f"cachetools.{name}": getattr(cachetools, name)(entries) for name in names}
    return found | {f"cachebox.{name}": getattr(cachebox, name)(entries) for name in names if hasattr(cachebox, name)}


def per_call(call: Callable[[int], Any], keys: Sequence[int]) -> float:
    begin = process_time()
    for key in keys:
        call(key)
    return (process_time() - begin) / len(keys) * 1e6


def measured(get: Callable[[int], Any], put: Callable[[int], Any], hot: list[int], repeat: int) -> list[float]:
    rng, new, hits, misses = random.Random(1), 1_000_000, list[float](), list[float]()
    for _ in range(repeat):
        hits.append(per_call(get, rng.choices(hot[len(hot) // 2 :], k=20_000)))
        fresh = range(new, new + 3_000)
        new += 3_000
        misses.append(per_call(get, fresh) + per_call(put, fresh))
    return [statistics.median(hits), statistics.median(misses)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=int, default=8, help="budget in MB (default: 8)")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    rows, entries = list[list[Any]](), 0
    for policy in POLICIES:
        row: list[Any] = [policy]
        for tier in (hot_tier(policy, options.memory * MB), HeapTier(policy, options.memory * MB)):
            get, put, hot = filled(tier)
            row += measured(get, put, hot, options.repeat)
            entries = max(entries, len(hot))
        rows.append(row)
    table([f"{options.memory} MB, us", "hit", "miss", "hit, heap", "miss, heap"], rows)
    rows = []
    for name, cache in others(entries).items():
        for key in range(entries):
            cache[key] = VALUE

        def put(key: int, cache: Any = cache) -> None:
            cache[key] = VALUE

        def put(key: int, cache: Any = cache) -> None:
            cache[key] = VALUE

        rows.append([name, *measured(cache.get, put, list(cache), options.repeat)])
    table([f"{entries:,} entries, us", "hit", "miss"], rows)


if __name__ == "__main__":
    main()
