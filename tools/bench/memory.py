"""Process memory (RssAnon) against the budget, through churn of shifting sizes: the case allocators are worst at.

Each round writes small values, then large ones, then mixed ones, then small ones again, deletes some keys, and reads
others back; every phase moves `--turnover` times the budget. Sizes are log-uniform in their range. Bytes are random, so
compression hides nothing; half the values are `bytes`, kept as they are, half are lists, kept packed.
"""

from __future__ import annotations

import argparse
import math
import random
from array import array
from typing import Any

from measure import MB, rss_anon_bytes, table
from workload import temporary_store

PHASES = {"small": (30, 300), "large": (2_000, 60_000), "mixed": (30, 60_000), "small again": (30, 300)}
NOISE = random.Random(1).randbytes(4 * MB)
# Few enough that keys are written again with another size, many enough that the data is many times the budget.
KEYS = 1_000_000


def value(rng: random.Random, low: int, high: int) -> Any:
    size = int(math.exp(rng.uniform(math.log(low), math.log(high))))
    at = rng.randrange(len(NOISE) - size)
    data = at.to_bytes(4, "little") + NOISE[at : at + size - 4]
    return data if rng.random() < 0.5 else [size, data]


def check(found: Any) -> None:
    data, size = (found[1], found[0]) if isinstance(found, list) else (found, len(found))
    at = int.from_bytes(data[:4], "little")
    assert len(data) == size, "a value came back with another length"
    assert data[4:] == NOISE[at : at + size - 4], "a value came back with other bytes"


def phase(store: Any, rng: random.Random, sizes: tuple[int, int], turnover_bytes: int, written: array[int]) -> int:
    """Write that many bytes, one delete and four reads to ten writes; the highest RssAnon, sampled every 100 writes."""
    peak = done = count = 0
    while done < turnover_bytes:
        number = rng.randrange(KEYS)
        made = value(rng, *sizes)
        done += len(made if isinstance(made, bytes) else made[1]) + 16
        store[number] = made
        written[count % len(written)] = number
        count += 1
        if count % 10 == 0:
            store.pop(rng.choice(written), None)
            for number in rng.choices(written, k=4):
                found = store.get(number)
                if found is not None:
                    check(found)
        if count % 100 == 0:
            peak = max(peak, rss_anon_bytes())
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=int, default=64, help="budget in MB (default: 64)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turnover", type=float, default=2.0, help="bytes written per phase, in budgets (default: 2)")
    parser.add_argument("--dir", help="parent of the temporary folder: on the disk to be measured")
    options = parser.parse_args()
    budget, rng, rows = options.memory * MB, random.Random(0), []
    # The keys to delete and read back: a ring of fixed size, made before the baseline.
    written = array("I", bytes(4 * 100_000))
    before, highest = rss_anon_bytes(), 0
    with temporary_store(memory=budget, dir=options.dir) as store:
        for turn in range(1, options.rounds + 1):
            for name, sizes in PHASES.items():
                peak = phase(store, rng, sizes, int(options.turnover * budget), written)
                highest = max(highest, peak)
                stats = store.stats()
                growth = (peak - before) / budget
                rows.append([f"{turn} {name}", stats.records, stats.hot_bytes / MB, peak / MB, growth])
        final = rss_anon_bytes()
        stats = store.stats()
    print(f"budget {options.memory} MB, {before / MB:.0f} MB in the process before opening the store\n")
    table(["round, phase", "records", "hot, MB", "RssAnon, MB", "growth / budget"], rows)
    limit = 1.5 * budget + 20 * MB
    for label, rss in (("highest", highest), ("final", final)):
        times = f"{rss / budget:.2f} x budget, {(rss - before) / budget:.2f} x without what was there before"
        print(f"{label:8}{rss / MB:.0f} MB = {times}")
    print(f"limit   1.5 x budget + 20 MB = {limit / MB:.0f} MB: {'kept' if highest <= limit else 'BROKEN'}")
    print(f"helper  {stats.helper_peak_rss_anon_bytes / MB:.0f} MB at most, beside the above")


if __name__ == "__main__":
    main()
