"""get_many and set_many of `--batch` keys against single calls, per key, hot and cold, of documents and of text.

Batches of both kinds take turns on the same store; medians over the batches. Hot: records that fit the budget, read
before. Cold: records never read since opening, under the smallest budget. Each row has an order of its own: what is
used in the order of its last use lies side by side in memory, which programs cannot count on, and single calls gain by.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

from measure import table
from workload import batches, document, key, open_store, temporary_folder

Pairs = list[tuple[str, Any]]
Way = Callable[[Any, list[str], Pairs], object]
Make = Callable[[int], Any]


def get_single(store: Any, names: list[str], pairs: Pairs) -> object:
    return {name: store[name] for name in names}


def get_many(store: Any, names: list[str], pairs: Pairs) -> object:
    return store.get_many(names)


def set_single(store: Any, names: list[str], pairs: Pairs) -> object:
    for name, value in pairs:
        store[name] = value
    return None


def set_many(store: Any, names: list[str], pairs: Pairs) -> object:
    return store.set_many(pairs)


def microseconds(store: Any, numbers: list[int], make: Make, size: int, *ways: Way) -> list[float]:
    """The median cost per key of each way, which take turns over the batches.

    The values of a batch are made just before it, as programs write what they have just made.  Each batch that writes
    begins with nothing dirty and a segment begun, so that none pays for the checkpoint of the one before.
    """
    taken: list[list[float]] = [[] for _ in ways]
    for turn, chunk in enumerate(batches(numbers, size)):
        if set_many in ways:
            store.save()
            store["begin a segment"] = None
        batch = [(key(number), make(number)) for number in chunk]
        names = [name for name, _ in batch]
        begin = perf_counter()
        result = ways[turn % len(ways)](store, names, batch)
        taken[turn % len(ways)].append((perf_counter() - begin) / len(batch) * 1e6)
        assert result is None or result == dict(batch), "a batch came back different"
        del result  # Now, and not in the next one's time.
    return [statistics.median(times) for times in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=1000)
    options = parser.parse_args()
    print(f"{options.records:,} records, batches of {options.batch:,}\n")
    numbers = list(range(options.records))
    rows = [row for name, make in MAKERS.items() for row in measured(name, make, numbers, options.batch)]
    table(["us per key", "single", "many", "ratio"], rows)


def text(number: int) -> str:
    return f"text of record {number}, " * 4


MAKERS: dict[str, Make] = {"documents": document, "text": text}


def measured(name: str, make: Make, numbers: list[int], size: int) -> list[list[object]]:
    rows: list[list[object]] = []

    def row(what: str, *ways: Way) -> None:
        random.Random(len(rows)).shuffle(numbers)
        figures = microseconds(store, numbers, make, size, *ways)
        rows.append([f"{name}: {what}", *figures, figures[1] / figures[0]])

    with temporary_folder() as folder:
        path = folder / "store"
        with open_store(path, memory=max(64 << 20, len(numbers) * 4000)) as store:
            row("set new keys", set_single, set_many)
            row("set hot keys", set_single, set_many)
            store.save()
            store.get_many(map(key, numbers))
            row("get hot keys", get_single, get_many)
        with open_store(path, memory="1MB", warm_start=False) as store:
            row("get cold keys", get_single, get_many)
            assert store.stats().cold_hits == len(numbers), "some cold gets were not cold"
            row("set cold keys", set_single, set_many)
    return rows


if __name__ == "__main__":
    main()
