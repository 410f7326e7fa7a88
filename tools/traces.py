"""Traces of requests: files of several formats, synthetic ones, and the best that any policy could do with them.

    oracleGeneral   24-byte records `<IQIq>`: time, object, size, next access (libCacheSim); *.oracleGeneral*
    CSV             time, object, size and perhaps more (libCacheSim); *.csv*; a line without numbers is a heading
    keys            one key a line, of size 1; lines that begin with * or # are none

Each as it is, or compressed with gzip, xz or zstd, which its first bytes say.
"""

from __future__ import annotations

import gzip
import heapq
import io
import lzma
import random
import struct
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import IO, NamedTuple, cast

GZIP, XZ, ZSTD = b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"
ORACLE_GENERAL = struct.Struct("<IQIq")


class Trace(NamedTuple):
    """Requests: numbers in place of keys, and the size of each request's object."""

    keys: Sequence[int]
    sizes: Sequence[int]

    @property
    def unit(self) -> bool:
        """Whether all sizes are 1, so that a capacity counts objects."""
        return max(self.sizes, default=1) == 1

    def whole_bytes(self) -> int:
        """What all objects take."""
        return sum(dict(zip(self.keys, self.sizes, strict=True)).values())


def opened(path: Path) -> IO[bytes]:
    """A file, uncompressed."""
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(GZIP):
        return cast(IO[bytes], gzip.open(path))
    if start.startswith(XZ):
        return cast(IO[bytes], lzma.open(path))
    if start.startswith(ZSTD):
        import zstandard

        return cast(IO[bytes], io.BufferedReader(zstandard.open(path, "rb")))
    return path.open("rb")


def _lines(file: IO[bytes], separator: str | None) -> Iterator[tuple[str, int]]:
    for line in file:
        text = line.decode("utf-8", "replace").strip()
        if not text or text[0] in "*#":
            continue
        if separator is None:
            yield text, 1
            continue
        fields = [field.strip() for field in text.split(separator)]
        if len(fields) >= 3 and fields[2].isdigit():
            yield fields[1], int(fields[2])
        elif len(fields) == 2 and fields[0].replace(".", "").isdigit():
            yield fields[1], 1


def read(path: Path, unit: bool = False) -> Trace:
    """The trace in a file; `unit`: every object counts as one.  `ValueError` if there is no request in it."""
    names: dict[object, int] = {}
    keys, sizes = array("q"), array("q")
    with opened(path) as file:
        requests: Iterator[tuple[object, int]]
        if ".oraclegeneral" in path.name.lower():
            data = file.read()
            whole = len(data) - len(data) % ORACLE_GENERAL.size
            requests = ((key, size) for _, key, size, _ in ORACLE_GENERAL.iter_unpack(data[:whole]))
        else:
            requests = _lines(file, "," if ".csv" in path.name.lower() else None)
        for key, size in requests:
            keys.append(names.setdefault(key, len(names)))
            sizes.append(1 if unit else max(size, 1))
    if not keys:
        raise ValueError(f"{path}: no request in it")
    return Trace(keys, sizes)


def zipf(keys: int, requests: int, skew: float, seed: int) -> list[int]:
    """Keys drawn by Zipf's law."""
    weights = list(accumulate(1 / rank**skew for rank in range(1, keys + 1)))
    return random.Random(seed).choices(range(keys), cum_weights=weights, k=requests)


def synthetic(kind: str, keys: int, requests: int, seed: int = 1) -> Trace:
    """`zipf`: skewed; `scan`: skewed, with passes over other keys between; `loop`: all keys in turn, over and over."""
    found = array("q")
    if kind == "loop":
        found.extend(at % keys for at in range(requests))
    else:
        found.extend(zipf(keys, requests, 0.9, seed))
    if kind == "scan":
        part = requests // 4
        for turn in range(3):
            found[part * (turn + 1) : part * (turn + 1)] = array("q", range(keys * (turn + 1), keys * (turn + 2)))
    return Trace(found, array("q", [1]) * len(found))


def belady_misses(trace: Trace, capacity: int) -> int:
    """Misses if always the object leaves whose next request is the farthest: the optimum for objects of equal size."""
    last: dict[int, int] = {}
    after = array("q", [0]) * len(trace.keys)
    for at in range(len(trace.keys) - 1, -1, -1):
        after[at] = last.get(trace.keys[at], len(trace.keys))
        last[trace.keys[at]] = at
    held: dict[int, tuple[int, int]] = {}
    farthest: list[tuple[int, int]] = []
    used = misses = 0
    for key, size, next_at in zip(trace.keys, trace.sizes, after, strict=True):
        if key in held:
            size = held[key][1]
        else:
            misses += 1
            if size > capacity:
                continue
            while used + size > capacity:
                at, victim = heapq.heappop(farthest)
                if victim in held and held[victim][0] == -at:
                    used -= held.pop(victim)[1]
            used += size
        held[key] = next_at, size
        heapq.heappush(farthest, (-next_at, key))
    return misses
