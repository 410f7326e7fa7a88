"""`tiered-cli dump | tiered-cli load` of many records, and SQLite's own dump for comparison.

    .venv/bin/python tools/bench/transfer.py --records 1000000

Each way is a pipe between two processes, as a user would type it; seconds are those on the wall from the first byte to
a store that is closed.  SQLite: `iterdump` of Python's `sqlite3` (what `sqlite3 file .dump` prints) into
`executescript`, in one transaction, documents as JSON text.
"""

from __future__ import annotations

import argparse
import json
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


def piped(out: list[str], into: list[str]) -> tuple[float, float]:
    """Seconds that the writing side took, and both of them."""
    began = perf_counter()
    with subprocess.Popen(out, stdout=subprocess.PIPE) as first:
        second = subprocess.Popen(into, stdin=first.stdout, stdout=subprocess.DEVNULL)
        assert first.stdout is not None
        first.stdout.close()
        if first.wait():
            raise SystemExit("dump failed")
        dumped = perf_counter() - began
        if second.wait():
            raise SystemExit("load failed")
    return dumped, perf_counter() - began


def alone(command: list[str]) -> float:
    """Seconds of one side without the other."""
    began = perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return perf_counter() - began


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
        print(f"{given.records:,} documents; thousands of records per second")
        print(f"{'':12} {'dump':>8} {'dump | load':>12}")
        for form in given.formats:
            source, target = str(directory / "from.tiered"), str(directory / f"{form}.tiered")
            only = alone([*cli, "dump", source, "--format", form, "-q"])
            _, both = piped([*cli, "dump", source, "--format", form, "-q"], [*cli, "load", target, "--format", form])
            with tiered.open(target, "r") as store:
                assert len(store) == given.records
            print(f"{form:12} {given.records / only / 1000:8.0f} {given.records / both / 1000:12.0f}", flush=True)
        database = sqlite3.connect(directory / "from.sqlite")
        database.execute("CREATE TABLE kv (key INTEGER PRIMARY KEY, value TEXT)")
        rows = ((number, json.dumps(document(number))) for number in range(given.records))
        database.executemany("INSERT INTO kv VALUES (?, ?)", rows)
        database.commit()
        database.close()
        out = [sys.executable, "-c", DUMP, str(directory / "from.sqlite")]
        only = alone(out)
        _, both = piped(out, [sys.executable, "-c", LOAD, str(directory / "to.sqlite")])
        print(f"{'sqlite':12} {given.records / only / 1000:8.0f} {given.records / both / 1000:12.0f}")


if __name__ == "__main__":
    main()
