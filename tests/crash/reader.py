"""A program that reads the store all the time, while others write into it and are killed.

Argument: the store.  Says "reading" when it has read it for the first time; ends when its input does, and says
how often it has read everything.
"""

from __future__ import annotations

import select
import sys
from typing import Any

import operations

import tiered


def is_right(key: Any, value: Any) -> bool:
    """Whether it is a value that the program writes under this key at some time."""
    if isinstance(value, int):
        return "count" in key or "there" in key
    text = value["text"] if isinstance(value, dict) else value
    thread, step, number = map(int, text.split()[:3])
    made, what = operations.operation(thread, step)
    if (thread, number) != key:
        return False
    if made == "set":
        return bool(what == (key, value))
    return made in ("batch", "transaction") and bool(what[key] == value)


def main() -> None:
    scans = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        try:
            store = tiered.open(sys.argv[1], "r", memory="1MB")
        except tiered.NotAStoreError:
            continue  # Not made yet.
        with store:
            for _ in range(3):
                for key, value in store.items():
                    assert is_right(key, value), (key, value)
                if not scans:
                    print("reading", flush=True)
                scans += 1
    print(scans)


main()
