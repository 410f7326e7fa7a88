"""What the golden stores and snapshots hold: the same for ever, whatever version reads them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import numpy

import tiered

EPOCH_MS = 1_700_000_000_000
"""The time at which they were made."""
CENTURY = 3_000_000_000.125
"""A time to live, in seconds."""


@tiered.register("golden.point")
@dataclass(frozen=True)
class Point:
    """A registered dataclass."""

    x: int
    y: float


@tiered.register("golden.pair")
class Pair(NamedTuple):
    """A registered named tuple."""

    one: str
    other: Any


VALUES: dict[Any, Any] = {
    "none": None,
    "true": True,
    "false": False,
    "zero": 0,
    "negative": -(2**63),
    "unsigned": 2**64 - 1,
    "huge": 2**200 + 1,
    "huge negative": -(2**200),
    "float": 0.1,
    "infinite": float("inf"),
    "complex": 1.5 - 2j,
    "text": "Grüße, 世界 \U0001f600",
    "surrogate": "lone \ud800",
    "empty": "",
    "bytes": bytes(range(256)),
    "list": [1, "two", [3.0, None], {"four": (4,)}],
    "tuple": (1, ("two", b"three")),
    "dict": {"a": 1, 2: "b", (3, "c"): None, b"d": [True]},
    "set": {1, "two", (3,)},
    "frozenset": frozenset({b"x", 7}),
    "datetime": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    "naive": datetime(1, 1, 1),
    "date": date(9999, 12, 31),
    "time": time(23, 59, 59, 999999),
    "timedelta": timedelta(days=-1, microseconds=1),
    "decimal": Decimal("-1.2300E+5"),
    "uuid": UUID("12345678-1234-5678-1234-567812345678"),
    "registered": [Point(1, 2.5), Pair("a", {Point(0, 0.0)})],
    "large": "a text that is larger than a page " * 400,
    "very large": "a text that is too large for the dictionary " * 1600,
}
KEYS: list[Any] = ["", "\0", "é", b"", b"\xff\0", 0, -1, 255, 256, -(2**70), 2**70, (), ("a",), ("a", 1, b"x")]
KEYS += [("a", ("nested", (2,))), "k" * 480, "k" * 481, ("long", "l" * 700), b"b" * 2000]


def cold() -> dict[Any, Any]:
    """What the cold tier holds without a time to live."""
    records: dict[Any, Any] = {("value", name): value for name, value in VALUES.items()}
    records |= {("key", key): number for number, key in enumerate(KEYS)}
    records |= {key: ["key", number] for number, key in enumerate(KEYS)}
    records |= {("user", number): user(number) for number in range(40)}
    records |= {(name, number): f"{name} {number} " * 30 for name in ("zlib:6", "none") for number in range(5)}
    return records


def compression(key: Any) -> str:
    """How the record of a key was compressed."""
    return key[0] if isinstance(key, tuple) and key[:1] in (("zlib:6",), ("none",)) else "zstd:3"


def user(number: int) -> dict[str, Any]:
    """A document of the kind that the dictionary was trained on."""
    return {
        "id": number,
        "name": f"User {number}",
        "city": "Bonn",
        "tags": ["reader", "writer"],
        "active": number % 2 == 0,
    }


ARRAY = numpy.arange(12, dtype="<i4").reshape(3, 4)
EXPIRING = {("expiring", number): f"until {number}" for number in range(5)}
"""Each lives `CENTURY` seconds and as many milliseconds as its number."""
GONE = {("gone", number): number for number in range(3)}
"""They live for a second."""
JOURNAL: dict[Any, Any] = {
    ("journal", "text"): "came after the last checkpoint",
    ("journal", "batch", 1): {"n": [1]},
    ("journal", "batch", 2): (2,),
    ("journal", "l" * 900): "under a long key",
    ("value", "zero"): "written again",
}
"""What the journal holds beside the cold tier."""
DELETED = [("user", 7), ("value", "none"), ("expiring", 4)]
"""What the journal deletes."""
