"""What the advisor costs a hit: the same reads with it and without, in turn within one process.

All is hot. Slices of a thousand reads alternate; the tenth percentile of their times is what is compared, since others
use the machine. With few keys all of them are looked at; the more there are, the fewer.
"""

from __future__ import annotations

import argparse
import random
from time import perf_counter
from typing import Any

from measure import MB, percentile, table
from workload import document, temporary_store, zipf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 400_000])
    parser.add_argument("--slices", type=int, default=300)
    options = parser.parse_args()
    rows = []
    for records in options.records:
        for kind, make in (("text", lambda number: f"value {number:0100d}"), ("document", document)):
            with temporary_store(memory=256 * MB + records * 1000) as store:
                store.update((f"key {number}", make(number)) for number in range(records))
                reads = [f"key {number}" for number in zipf(records, 1000 * options.slices, random.Random(1), 0.9)]
                store.config_set("advisor", True)
                sample: Any = store._engine.advisor
                for name in reads:
                    store[name]
                times: dict[bool, list[float]] = {False: [], True: []}
                for at in range(0, len(reads), 1000):
                    for on in (False, True):
                        store._engine.hot.sample(sample if on else None)
                        some = reads[at : at + 1000]
                        begin = perf_counter()
                        for name in some:
                            store[name]
                        times[on].append(perf_counter() - begin)
                store._engine.hot.sample(sample)
                off, on_ = (percentile(sorted(times[on]), 0.1) * 1e6 for on in (False, True))
                rows.append([f"{records:,}", kind, round(off), round(on_), on_ / off, store.advise().sampled_share])
    table(["records", "values", "off, ns per hit", "on", "ratio", "share of keys"], rows)


if __name__ == "__main__":
    main()
