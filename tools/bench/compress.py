"""Data that drifts: how well B is compressed after the store has learned from A, against a store that saw only B.

Both stores end with the same last third of B, everything else deleted and the store compacted; the ratio is the packed
size of that third, keys included, over the bytes it takes on disk. "values" is that of a sample of them, without
keys and pages around them, by `explain()`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgpack
from measure import MB, disk_bytes, table
from workload import batches, document, log_line, open_store, temporary_folder


def fill(store: Any, keys: range, prefix: str, make: Any) -> None:
    for number in keys:
        store[f"{prefix}:{number:08d}"] = make(number)


def last_third(path: Path, records: int, drifted: bool, memory: str) -> tuple[int, float]:
    """Disk bytes of the last third of B's records alone, and the ratio of a sample of their values."""
    third = records // 3
    with open_store(path, memory=memory) as store:
        if drifted:
            fill(store, range(records), "a", document)
        fill(store, range(2 * third), "b", log_line)
        store.save()
        fill(store, range(2 * third, records), "b", log_line)
        store.save()
        for prefix, count in (("a", records if drifted else 0), ("b", 2 * third)):
            for numbers in batches(range(count), 1000):
                store.delete_many([f"{prefix}:{number:08d}" for number in numbers])
        store.save()
        store.compact()
        assert len(store) == records - 2 * third
        sample = range(2 * third, records, 97)
        assert all(store[f"b:{number:08d}"] == log_line(number) for number in sample)
        found = [store.explain(f"b:{number:08d}") for number in sample]
        values = sum(one.payload_bytes for one in found) / sum(one.stored_bytes for one in found)
    return disk_bytes(path), values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=150_000, help="of A, and of B (default: 150,000)")
    parser.add_argument("--memory", default="8MB")
    options = parser.parse_args()
    kept = range(2 * (options.records // 3), options.records)
    packed = sum(len(msgpack.packb(log_line(number))) + 10 for number in kept)
    rows: list[list[object]] = []
    ratios = []
    with temporary_folder() as folder:
        for name, drifted in (("A, then B", True), ("B only", False)):
            disk, values = last_third(folder / name.replace(" ", ""), options.records, drifted, options.memory)
            ratios.append(packed / disk)
            rows.append([name, packed / MB, disk / MB, packed / disk, values])
    print(
        f"{options.records:,} records of each kind, memory {options.memory}; the last {len(kept):,} of B are measured\n"
    )
    table(["store saw", "packed, MB", "disk, MB", "ratio", "values"], rows)
    print(f"after the drift: {ratios[0] / ratios[1]:.3f} of the ratio of a store that saw only B")


if __name__ == "__main__":
    main()
