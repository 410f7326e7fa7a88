"""The real data of the demo, tests and benchmarks: cities of the world (data/README.md), as keys and documents."""

from __future__ import annotations

import lzma
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent.parent / "data" / "cities.tsv.xz"
COLUMNS = ("country", "admin1", "admin1_name", "admin2", "admin2_name", "name", "lat", "lng")

Key = tuple[str, str, str, int]
Document = dict[str, Any]


def cities() -> Iterator[tuple[Key, Document]]:
    """Every city, always in the same order, under ("city", country, name, n): the n-th of that name in its country."""
    namesakes: Counter[tuple[str, str]] = Counter()
    with lzma.open(FILE, "rt", encoding="utf-8", newline="\n") as lines:
        header = tuple(next(lines).rstrip("\n").split("\t"))
        if header != COLUMNS:
            raise ValueError(f"{FILE}: the columns are {header}, not {COLUMNS}; make the file again with make_data.py")
        for line in lines:
            country, admin1, admin1_name, admin2, admin2_name, name, lat, lng = line.rstrip("\n").split("\t")
            n = namesakes[country, name]
            namesakes[country, name] = n + 1
            yield (
                ("city", country, name, n),
                {
                    "name": name,
                    "country": country,
                    "admin1": _region(admin1, admin1_name),
                    "admin2": _region(admin2, admin2_name),
                    "lat": float(lat),
                    "lng": float(lng),
                },
            )


def _region(code: str, name: str) -> dict[str, str | None] | None:
    return {"code": code, "name": name or None} if code else None
