"""The hot tier beside caches in memory: what a budget in bytes really takes, what it holds, what a hit and a put cost.

memory  each cache, given the same bytes, through churn of sizes that shift (tools/bench/memory.py): how far the process
        grew, at most, as a multiple of the budget. The others count keys and values by `sys.getsizeof`.
held    values of 250 bytes until the budget is full: records and their bytes for each MB by which the process has grown
hit     `cache[key]` of `bytes` and of text of 100 characters, all hot, as a multiple of a dict's subscript
put     `cache[key] = value` of new keys, `bytes` of 250, room for all

Every figure is of a process of its own, a median of `--repeat`; "tiered, heap" is without the compiled part. What
tiered puts is in its journal as well, and survives; what it drops from memory is on the disk. lru-dict counts entries.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from measure import MB, rss_anon_bytes, table
from memory import PHASES, phase
from workload import key, temporary_store

ENTRIES_MAX = 10_000_000


def weight(key: Any, value: Any) -> int:
    size = sys.getsizeof(value)
    return sys.getsizeof(key) + size + (sum(map(sys.getsizeof, value)) if isinstance(value, list) else 0)


def cachetools_lru(budget: int) -> Any:
    import cachetools

    return cachetools.LRUCache(budget, getsizeof=lambda value: weight(0, value))  # It passes no key.


def cachebox_lru(budget: int) -> Any:
    import cachebox

    return cachebox.LRUCache(budget, getsizeof=weight)


def zict_lru(budget: int) -> Any:
    import zict

    return zict.LRU(budget, {}, weight=weight)


def lru_dict(budget: int) -> Any:
    from lru import LRU

    return LRU(ENTRIES_MAX)


@contextmanager
def opened(name: str, budget: int) -> Iterator[Any]:
    if name.startswith("tiered"):
        with temporary_store(memory=budget) as store:
            yield store
    else:
        yield CACHES[name](budget)


CACHES: dict[str, Callable[[int], Any]] = {
    "dict": lambda budget: {},
    "tiered": lambda budget: None,
    "tiered, heap": lambda budget: None,
    "cachetools": cachetools_lru,
    "cachebox": cachebox_lru,
    "zict": zict_lru,
    "lru-dict": lru_dict,
}
WITHOUT_BUDGET = {"dict", "lru-dict"}


def memory(cache: Any, budget: int) -> dict[str, float]:
    """The highest growth by the budget, over rounds of phases."""
    rng, written = random.Random(0), array("I", bytes(4 * 100_000))
    before = highest = rss_anon_bytes()
    for _ in range(3):
        for sizes in PHASES.values():
            highest = max(highest, phase(cache, rng, sizes, 2 * budget, written))
    return {"growth": (highest - before) / budget}


def held(cache: Any, budget: int) -> dict[str, float]:
    """Records, and bytes of their keys and values, for each MB of growth, when more was put than there is room for."""
    before = rss_anon_bytes()
    for number in range(2 * budget // 250):
        cache[key(number)] = random.Random(number).randbytes(250)
    save = getattr(cache, "save", None)
    if save:
        save()
        for number in range(2 * budget // 250):  # What writes displaced is hot again.
            cache[key(number)]
    grown = (rss_anon_bytes() - before) / MB
    count = cache.stats().hot_records if save else len(cache)
    return {"records": count / grown, "bytes": count * (250 + len(key(0))) / MB / grown}


def per_call(cache: Any, names: list[str]) -> float:
    begin = perf_counter()
    for name in names:
        cache[name]
    return (perf_counter() - begin) / len(names) * 1e9


def hit(cache: Any, budget: int) -> dict[str, float]:
    """ns of a hit, and of a dict's in the same process, in turns."""
    names = [key(number) for number in range(10_000)]
    reads = random.Random(0).choices(names, k=100_000)
    figures = {}
    for kind, make in (("bytes", lambda number: b"%0100d" % number), ("str", lambda number: f"{number:0100d}")):
        plain = {name: make(number) for number, name in enumerate(names)}
        cache.update(plain)
        if hasattr(cache, "save"):
            cache.save()
        taken = [(per_call(plain, reads), per_call(cache, reads)) for _ in range(9)]
        figures[kind] = statistics.median(own / beside for beside, own in taken)
        figures[f"{kind}, ns"] = statistics.median(own for _, own in taken)
    return figures


def put(cache: Any, budget: int) -> dict[str, float]:
    values = [random.Random(number).randbytes(250) for number in range(1000)]
    names = [key(number) for number in range(50_000)]
    begin = perf_counter()
    for number, name in enumerate(names):
        cache[name] = values[number % 1000]
    return {"us": (perf_counter() - begin) / len(names) * 1e6}


TASKS: dict[str, Callable[[Any, int], dict[str, float]]] = {"memory": memory, "held": held, "hit": hit, "put": put}


def in_a_process(task: str, name: str, budget: int) -> dict[str, float]:
    """Run one task for one cache in a new interpreter."""
    environment = {**os.environ, **({"TIERED_PURE": "1"} if name.endswith("heap") else {})}
    arguments = [sys.executable, __file__, "--task", task, "--cache", name, "--memory", str(budget // MB)]
    out = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    figures: dict[str, float] = json.loads(out.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=int, default=64, help="budget in MB (default: 64)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--task", choices=TASKS, help="only this one")
    parser.add_argument("--cache", choices=CACHES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    budget = options.memory * MB
    if options.cache:
        room = max(budget, 64 * MB) if options.task in ("hit", "put") else budget
        with opened(options.cache, room) as cache:
            print(json.dumps(TASKS[options.task](cache, budget)))
        return
    for task in [options.task] if options.task else TASKS:
        names = [name for name in CACHES if task in ("hit", "put") or name not in WITHOUT_BUDGET]
        runs = {name: [in_a_process(task, name, budget) for _ in range(options.repeat)] for name in names}
        heads = list(next(iter(runs.values()))[0])
        rows = [[name, *(statistics.median(one[head] for one in runs[name]) for head in heads)] for name in names]
        table([f"{task}, {options.memory} MB", *heads], rows)


if __name__ == "__main__":
    main()
