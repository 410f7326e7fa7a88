"""What readers beside a writer cost, and how far they are behind.

Latency: a writer in a process of its own, which writes as fast as it can or now and then; a reader
that looks at one key again and again, following in the background.  The rest in one process,
with a reader that follows when told to (`tests/beside.py`): CPU time per record, memory, hits.

    .venv/bin/python tools/bench/readers.py
"""

from __future__ import annotations

import gc
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from beside import beside  # type: ignore[import-not-found]

import tiered
from tiered.process import rss_anon_bytes

RECORDS = 65_000
WRITER = """
import sys, time, tiered
with tiered.open(sys.argv[1], memory="64MB", save="5 1") as store:
    store["now"] = time.time()
    print("ready", flush=True)
    limit, number, pause, longest = time.monotonic() + 10, 0, float(sys.argv[2]), 0
    last = time.time()
    while time.monotonic() < limit:
        store[number % 100_000] = {"number": number, "text": "reads books " * 18}
        now = time.time()
        store["now"] = now
        longest, last = max(longest, now - last), now
        number += 1
        if pause:
            time.sleep(pause)
    print(number, longest, flush=True)
"""


def latency(directory: Path, pause: float) -> None:
    """How old the newest value is that a reader sees."""
    command = [sys.executable, "-c", WRITER, str(directory), str(pause)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with tiered.open(directory, "r", memory="16MB") as reader:
            behind, said, began = [], [], time.process_time()
            until = time.monotonic() + 9
            while time.monotonic() < until:
                behind.append(time.time() - reader["now"])
                said.append(time.time() - reader._engine.as_of_ms / 1000)
                time.sleep(0.01)
            spent = time.process_time() - began
        number, longest = writer.stdout.readline().split()
    behind.sort()
    print(
        f"{int(number) / 5:9,.0f} writes/s, one at most {float(longest) * 1000:.0f} ms after another: "
        f"behind by {statistics.median(behind) * 1000:.0f} ms (median), "
        f"{behind[-len(behind) // 100] * 1000:.0f} (99 %), {behind[-1] * 1000:.0f} (most); "
        f"as_of at most {max(said) * 1000:.0f} ms ago; reader busy {spent / 9:.0%} of the time"
    )


def per(count: int, work: Any) -> float:
    """Microseconds of CPU time per piece."""
    began = time.process_time()
    work()
    return (time.process_time() - began) / count * 1e6


def cost(directory: Path) -> None:
    """Following, memory and reads."""
    items = [(f"user:{number:08d}", {"number": number, "text": "reads books " * 18}) for number in range(RECORDS)]
    writer = tiered.open(directory, memory="256MB", save="", helper=False)
    writer["first"] = 0
    writer.save()
    assert writer._engine.journal is not None
    writer._engine.journal._capacity = 64 << 20
    reader = beside(writer, memory="64MB")
    writer.set_many(items)
    dirty = writer.stats().dirty_records
    gc.collect()
    before = rss_anon_bytes()
    print(f"{per(dirty, reader.refresh):9.2f} µs to follow a record ({dirty:,} of them), nothing hot")
    gc.collect()
    counted = reader.stats().write_buffer_bytes / 1e6
    print(f"{(rss_anon_bytes() - before) / 1e6:9.1f} MB for them, {counted:.1f} counted")
    names = [name for name, _ in items[:20_000]]
    reader.get_many(names)
    writer.set_many(items[:20_000])
    print(f"{per(20_000, reader.refresh):9.2f} µs to follow a record that is hot")
    print(f"{per(1000, lambda: [reader.refresh() for _ in range(1000)]):9.1f} µs to look in vain")
    for what, store in (("the reader", reader), ("the writer", writer)):
        store.get_many(names[:5000])
        hits = min(per(5000, lambda store=store: [store[name] for name in names[:5000]]) for _ in range(7))
        print(f"{hits:9.2f} µs for a hit of {what}")
    shuffled = random.Random(1).sample([name for name, _ in items], 8000)
    for where in ("from the journal", "that is cold"):
        if where == "that is cold":
            writer.save()
            reader.refresh()
        for what, store in (("the reader", reader), ("the writer", writer)):
            found = []
            for _ in range(5):
                store._engine.hot.clear()
                found.append(per(8000, lambda store=store: [store[name] for name in shuffled]))
            print(f"{min(found):9.2f} µs for a read {where} by {what}")
    reader.close()
    writer.close()


if __name__ == "__main__":
    with TemporaryDirectory() as name:
        cost(Path(name) / "cost")
        for pause in (0.05, 0.001, 0):
            latency(Path(name) / f"latency {pause}", pause)
