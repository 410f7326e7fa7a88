"""What is in a store: types and beginnings of its keys, types and sizes of its values, times to live.

Every record is counted up to `EXACT_RECORDS`; above it a sample of some `SAMPLE_RECORDS`, evenly spread, whose figures
are scaled to all.  Where there are more than `WALK_ENTRIES` entries even walking over the keys would read too much of
the file: the sample then comes from places spread over the range of keys, and is rough where keys are not spread so.
What the journal holds beside a sampled cold tier is left out.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

from tiered import codec, ranges
from tiered.cli import notation
from tiered.cold_reader import Reader
from tiered.engine import Engine
from tiered.errors import CorruptionError, UnknownTypeError
from tiered.journal import Dirty

EXACT_RECORDS, SAMPLE_RECORDS, WALK_ENTRIES = 20_000, 20_000, 2_000_000
PLACES, IN_PLACE = 400, 50
DEPTH_MAX, CHILDREN_MAX, SHOWN_MAX, LABEL_MAX = 3, 1000, 8, 40
SIZES = (16, 64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20)
TTLS = (("expired", 0), ("1 min", 60), ("1 h", 3600), ("1 d", 86400), ("7 d", 604800), ("30 d", 2592000))
_SEPARATOR = re.compile(r"(?<=[:/|#.])")


class Node:
    """What keys have in common, as a tree of their beginnings."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.count = self.bytes = 0
        self.children: dict[str, Node] = {}

    def add(self, path: list[str], size: int) -> None:
        """Count a key."""
        self.count += 1
        self.bytes += size
        if path:
            label = path[0] if path[0] in self.children or len(self.children) < CHILDREN_MAX else "…"
            self.children.setdefault(label, Node(label)).add(path[1:] if label != "…" else [], size)

    def tree(self, scale: float) -> dict[str, Any]:
        """As a document, the largest children first, and what few keys have put together."""
        ordered = sorted(self.children.values(), key=lambda node: (node.label == "…", -node.bytes))
        many = [node for node in ordered if node.count > 1 or len(ordered) <= SHOWN_MAX]
        shown = [node for node in many[:SHOWN_MAX] if node.label != "…"]
        rest = [node for node in ordered if node not in shown]
        children = [node.tree(scale) for node in shown]
        if rest and shown:
            others = {"count": sum(node.count for node in rest), "bytes": sum(node.bytes for node in rest)}
            children.append({"prefix": "…", **{name: round(scale * n) for name, n in others.items()}, "children": []})
        own = {"prefix": self.label, "count": round(scale * self.count), "bytes": round(scale * self.bytes)}
        return {**own, "children": children}


def path_of(key: Any) -> list[str]:
    """The beginnings of a key, from its type on."""
    if type(key) is str:
        return ["str", *(_short(part) for part in _SEPARATOR.split(key)[:-1][: DEPTH_MAX - 1])]
    if type(key) is tuple:
        labels = [_short(part) if type(part) is str else type(part).__name__ for part in key[: DEPTH_MAX - 1]]
        return ["tuple", *labels]
    return [type(key).__name__]


def _short(text: str) -> str:
    return text if len(text) <= LABEL_MAX else text[: LABEL_MAX - 1] + "…"


class Census:
    """The counts."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.keys = Node("")
        self.types: Counter[str] = Counter()
        self.sizes = [0] * (len(SIZES) + 1)
        self.ttls: Counter[str] = Counter()
        self.unreadable = 0
        self.counted = 0

    def add(self, key: Any, key_bytes: int, found: Dirty) -> None:
        """Count a record."""
        self.counted += 1
        size = len(found.payload)
        self.keys.add(path_of(key), key_bytes + size)
        self.sizes[bisect_left(SIZES, size)] += 1
        self.types[_type_of(found)] += 1
        seconds = (found.deadline - self.now_ms) / 1000
        self.ttls[next((n for n, most in TTLS if seconds <= most), "longer") if found.deadline else "never"] += 1

    def document(self, records: int) -> dict[str, Any]:
        """All of it, scaled to so many records."""
        scale = records / self.counted if self.counted else 0.0
        bounds = [*SIZES, None]
        return {
            "counted": self.counted,
            "unreadable": self.unreadable,
            "keys": self.keys.tree(scale)["children"],
            "value_types": {name: round(scale * count) for name, count in self.types.most_common()},
            "value_sizes": [
                {"bytes_max": most, "count": round(scale * count)}
                for most, count in zip(bounds, self.sizes, strict=True)
            ],
            "ttls": {name: round(scale * self.ttls[name]) for name in ("never", *(n for n, _ in TTLS), "longer")},
        }


def _type_of(found: Dirty) -> str:
    if found.codec == codec.STR:
        return "str"
    if found.codec == codec.BYTES:
        return "bytes"
    try:
        return type(codec.decode(found.codec, found.payload)).__name__
    except UnknownTypeError as error:
        return error.name
    except (ValueError, ImportError):
        return "unreadable"


def taken(engine: Engine, records: int, exact: bool) -> tuple[Census, str]:
    """The census of a store with so many records, and how it was taken: "exact", "sample", or "places"."""
    census = Census(engine.clock.now_ms())
    step = 1
    if exact or records <= EXACT_RECORDS:
        try:
            for encoded, found in ranges.items(ranges.live(engine), ranges.Range(), True):
                census.add(engine.key_of(encoded), len(encoded), found)
            return census, "exact"
        except CorruptionError:
            census = Census(census.now_ms)  # Without the journal, and over what is damaged.
            exact = True
    with engine.cold.read() as reader:
        entries = [int(reader.txn.stat(database)["entries"]) for database in reader.layers]
        total = sum(entries)
        walk = exact or total <= WALK_ENTRIES
        if not exact:
            step = -(-total // SAMPLE_RECORDS)
        for layer, database in enumerate(reader.layers):
            share = entries[layer] / total if total else 0
            if walk:
                sample = _every(reader, database, max(1, step))
            else:
                sample = _places(reader, database, round(PLACES * share))
            for stored_key, data in sample:
                # A record that a newer layer has as well is that one's.
                if not any(reader.txn.get(stored_key, None, newer) for newer in reader.layers[:layer]):
                    _add(census, engine, stored_key, data)
    return census, "exact" if exact else "sample" if walk else "places"


def _add(census: Census, engine: Engine, stored_key: bytes, data: bytes) -> None:
    try:
        found = engine.opened(engine.cold, stored_key, data)
        if found is not None:  # Else a marker.
            encoded = found.full_key or stored_key
            census.add(engine.key_of(encoded), len(encoded), found)
    except CorruptionError:
        census.unreadable += 1


def _every(reader: Reader, database: Any, step: int) -> Iterator[tuple[bytes, bytes]]:
    with reader.txn.cursor(database) as cursor:
        for stored_key in islice(cursor.iternext(values=False), 0, None, step):
            yield stored_key, cursor.value()


def _places(reader: Reader, database: Any, count: int) -> Iterator[tuple[bytes, bytes]]:
    """Some records from each of `count` places, evenly spread between the first key and the last."""
    with reader.txn.cursor(database) as cursor:
        if not count or not cursor.first():
            return
        first = cursor.key()
        cursor.last()
        last = cursor.key()
        same = next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
        low, high = (int.from_bytes(key[same : same + 8].ljust(8, b"\0"), "big") for key in (first, last))
        upto = b""
        for place in range(count):
            start = first[:same] + (low + (high - low) * place // count).to_bytes(8, "big")
            if cursor.set_range(max(start, upto)):
                for stored_key, data in islice(cursor, IN_PLACE):
                    upto = stored_key + b"\0"
                    yield stored_key, data


def histogram_label(most: int | None) -> str:
    """The name of a class of sizes."""
    from tiered.cli import output

    text = output.size(SIZES[-1] if most is None else most).replace(".0 ", " ")
    return f"> {text}" if most is None else f"≤ {text}"


def label(tree: dict[str, Any]) -> str:
    """A beginning of keys for people: what terminals would take for commands is escaped."""
    return notation.dumps(tree["prefix"])[1:-1]
