"""`tiered-cli dump | tiered-cli load` of many records, and SQLite's own dump for comparison.

    .venv/bin/python tools/bench/transfer.py --records 1000000

Each way is a pipe between two processes, as a user would type it, from the first byte to a store that is closed. On a
machine that others use, the CPU time of each side says more than the wall. SQLite: `iterdump` of Python's `sqlite3`
(what `sqlite3 file .dump` prints) into `executescript`, in one transaction, documents as JSON text.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tiered

FORMATS = ("jsonl", "msgpack", "csv")
DUMP = """
import sqlite3, sys
for line in sqlite3.connect(sys.argv[1]).iterdump():
    print(line)
"""
LOAD = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.executescript(sys.stdin.read())
database.commit()
"""


def document(number: int) -> dict[str, Any]:
    """One of about 260 bytes."""
    return {
        "id": number,
        "name": f"User {number}",
        "mail": f"user{number}@example.org",
        "tags": ["reader", "writer", str(number % 97)],
        "score": number * 0.37,
        "bio": "reads books and writes letters to friends in distant towns " * 2 + str(number * 7919 % 10007),
    }


def piped(out: list[str], into: list[str]) -> tuple[float, float, float]:
    """CPU seconds of the writing side and of the reading side, and seconds on the wall."""
    began = perf_counter()
    first = subprocess.Popen(out, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    second = subprocess.Popen(into, stdin=first.stdout, stdout=subprocess.DEVNULL)
    assert first.stdout is not None
    first.stdout.close()
    used = []
    for process in (first, second):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            raise SystemExit(f"one side of the pipe failed: {status}")
        used.append(usage.ru_utime + usage.ru_stime)
    return used[0], used[1], perf_counter() - began


def shown(name: str, records: int, figures: tuple[float, float, float]) -> None:
    dump, load, wall = figures
    each = 1e6 / records
    print(f"{name:10} {dump * each:12.1f} {load * each:12.1f} {records / wall / 1000:14.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--formats", nargs="*", default=FORMATS, choices=FORMATS)
    given = parser.parse_args()
    cli = [sys.executable, "-m", "tiered"]
    with tempfile.TemporaryDirectory(prefix="tiered-transfer-") as name:
        directory = Path(name)
        with tiered.open(directory / "from.tiered", memory="64MB") as store:
            store.update((number, document(number)) for number in range(given.records))
        print(f"{given.records:,} documents; CPU per record, that of load's helper included, and thousands a second")
        print(f"{'':10} {'dump, µs':>12} {'load, µs':>12} {'dump | load':>14}")
        for form in given.formats:
            source, target = str(directory / "from.tiered"), str(directory / f"{form}.tiered")
            dump, load = [*cli, "dump", source, "--format", form, "-q"], [*cli, "load", target, "--format", form]
            shown(form, given.records, piped(dump, load))
            with tiered.open(target, "r") as store:
                assert len(store) == given.records
        database = sqlite3.connect(directory / "from.sqlite")
        database.execute("CREATE TABLE kv (key INTEGER PRIMARY KEY, value TEXT)")
        rows = ((number, json.dumps(document(number))) for number in range(given.records))
        database.executemany("INSERT INTO kv VALUES (?, ?)", rows)
        database.commit()
        database.close()
        out = [sys.executable, "-c", DUMP, str(directory / "from.sqlite")]
        load = [sys.executable, "-c", LOAD, str(directory / "to.sqlite")]
        shown("sqlite", given.records, piped(out, load))


if __name__ == "__main__":
    main()
