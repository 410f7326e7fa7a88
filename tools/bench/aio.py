"""Awaited operations against plain ones: a hit, a write that finds room, and what goes to a thread.

One task after the other awaits each operation; medians of `--runs` rounds in which all take turns. "empty await" is
an async function that does nothing, "thread" is `asyncio.to_thread` of nothing: what the ways cost by themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from measure import table
from workload import document, key, temporary_store

from tiered import aio


async def awaited(call: Callable[[str], Awaitable[object]], keys: list[str]) -> float:
    begin = perf_counter()
    for name in keys:
        await call(name)
    return perf_counter() - begin


async def plain(call: Callable[[str], object], keys: list[str]) -> float:
    begin = perf_counter()
    for name in keys:
        call(name)
    return perf_counter() - begin


async def nothing(_: str) -> None:
    pass


async def thread(_: str) -> None:
    await asyncio.to_thread(int)


async def rounds(store: Any, options: argparse.Namespace) -> None:
    keys = [key(number) for number in range(options.records)]
    store.update({name: document(number) for number, name in enumerate(keys)})
    store.save()
    awaiting = aio.AsyncStore[str, Any](store)
    hot = random.Random(0).choices(keys[-1000:], k=options.reads)
    cold = keys[: options.reads // 10]
    few = hot[: options.reads // 10]
    value = document(1)
    taken: dict[str, list[float]] = {}

    async def note(name: str, seconds: Awaitable[float], count: int) -> None:
        taken.setdefault(name, []).append(await seconds / count * 1e6)

    def make_cold() -> None:
        engine = store._engine
        with engine.lock:
            engine.hot.clear()

    for _ in range(options.runs):
        for name in dict.fromkeys(hot):
            store[name]
        await note("get, hot: plain", plain(store.get, hot), len(hot))
        await note("get, hot: awaited", awaited(awaiting.get, hot), len(hot))
        await note("get, hot: to_thread", awaited(lambda name: asyncio.to_thread(store.get, name), few), len(few))
        make_cold()
        await note("get, cold: plain", plain(store.get, cold), len(cold))
        make_cold()
        await note("get, cold: awaited", awaited(awaiting.get, cold), len(cold))
        await note("set: plain", plain(lambda name: store.set(name, value), few), len(few))
        await note("set: awaited", awaited(lambda name: awaiting.set(name, value), few), len(few))
        await note("set: to_thread", awaited(lambda name: asyncio.to_thread(store.set, name, value), few), len(few))
        await note("empty await", awaited(nothing, hot), len(hot))
        await note("thread", awaited(thread, few), len(few))
    table(["µs each", "median", "least"], [[name, statistics.median(all), min(all)] for name, all in taken.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    with temporary_store(memory=64 << 20) as store:
        asyncio.run(rounds(store, options))


if __name__ == "__main__":
    main()
