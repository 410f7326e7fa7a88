"""What the cold tier knows of itself, and the keys of its expiry index.

Records lie in layers, newest first: the *runs*, each written once, in key order, by a
checkpoint or by folding several into one; and behind them `records`.  A run has a
slot, one of `SLOTS` databases.  Where a key is in several layers, the first one counts.

    runs       slots of the runs, newest first
    merging    those of the oldest that are being copied into `records`, as they are for keys below `merged_to`
    folding    neighbours that are being copied into the run `fold_slot`, as they are for keys below `folded_to`
    filters    for each slot the number of the transaction that wrote its filter, under "filter-SLOT" in `meta`; 0: none

A filter says which keys a run cannot have (`filters`).  One that is missing costs a search, no more.

What is copied stays where it was until all of it is; then the copied runs go, in the same
transaction.  The run that others are folded into is no layer until then.

The state is one msgpack map, kept under "state" in `meta` and written by every transaction.  Beside those above:

    format           1: of everything in the environment; a newer one is refused
    applied          number of the last write that is in the cold tier
    time_ms          the store's time, up to which what expired may have been removed; never goes back
    records          how many live records there are, all layers together, markers left out
    stored_bytes     length of these records
    packed_bytes     length of their payloads before compression
    key_bytes        length of their keys
    dictionary       id of the one that new records are compressed with, 0 for none
    dictionary_next  id of the one trained next; none is used again
    adopted_ratio    stored bytes by packed ones, of payloads held out, when that dictionary was adopted; 0.0 if unknown
    recent_ratio     the same of samples compressed with it lately
    moved            whether a compaction has made a copy that CURRENT names, or is about to
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from zlib import crc32

import msgpack

from tiered import keys, record
from tiered.compression import payload_size
from tiered.errors import CorruptionError

FORMAT = 1
RUNS_MAX = 6
FOLD_TIMES = 1
"""How many old records are copied for a new one, at most, when a run is folded into newer ones."""
SLOTS = 2 * RUNS_MAX + 4
"""While `RUNS_MAX` and one are merged, as many may come, be folded into another one, and be followed by one more."""
RUNS = "runs"
"""Stands for the databases of all runs together."""
DATABASES = ("records", *(f"run-{slot}" for slot in range(SLOTS)), "expiry", "dictionaries", "meta")
DEADLINE_BYTES = 8

Change = tuple[bytes, "bytes | None", int, int]
"""A stored key; its record, None for a deletion; the record's deadline; its payload's length before compression."""


class State(SimpleNamespace):
    """What the cold tier knows of itself; written with every checkpoint.  `vars()` of it is what is written."""

    format: int = FORMAT
    applied: int = 0
    time_ms: int = 0
    records: int = 0
    stored_bytes: int = 0
    packed_bytes: int = 0
    key_bytes: int = 0
    dictionary: int = 0
    dictionary_next: int = 1
    adopted_ratio: float = 0.0
    recent_ratio: float = 0.0
    moved: bool = False
    runs: list[int] = []  # noqa: RUF012 - copied for each.
    merging: list[int] = []  # noqa: RUF012
    merged_to: bytes = b""
    folding: list[int] = []  # noqa: RUF012
    folded_to: bytes = b""
    fold_slot: int = -1
    filters: list[int] = []  # noqa: RUF012

    def __init__(self, **values: Any) -> None:
        super().__init__(**{name: values.get(name, getattr(State, name)) for name in State.__annotations__})
        self.runs, self.merging, self.folding = list(self.runs), list(self.merging), list(self.folding)
        self.filters = [*self.filters, *[0] * (SLOTS - len(self.filters))]


def run_name(slot: int) -> str:
    """The database of a slot."""
    return f"run-{slot}"


def filter_name(slot: int) -> bytes:
    """What the filter of a run is kept under in `meta`."""
    return b"filter-%d" % slot


def deadline_key(deadline: int, stored_key: bytes) -> bytes:
    """Key in the expiry index."""
    return deadline.to_bytes(DEADLINE_BYTES, "big") + stored_key


def split_deadline(entry: bytes) -> tuple[int, bytes]:
    """Deadline and stored key of an entry of the expiry index."""
    return int.from_bytes(entry[:DEADLINE_BYTES], "big"), entry[DEADLINE_BYTES:]


def sealed(value: object) -> bytes:
    """A value in msgpack, after its checksum."""
    packed = cast(bytes, msgpack.packb(value))
    return crc32(packed).to_bytes(4, "little") + packed


def unsealed(path: Path, what: str, data: bytes) -> Any:
    """What was sealed.  Raises `CorruptionError`."""
    if len(data) < 4 or crc32(data[4:]) != int.from_bytes(data[:4], "little"):
        raise CorruptionError(path, f"checksum mismatch in {what}; restore the store from a backup")
    return msgpack.unpackb(data[4:])


def key_size(stored_key: bytes, data: bytes) -> int:
    """Length of a record's key."""
    if len(stored_key) <= keys.STORED_BYTES_EXACT:
        return len(stored_key)
    at = record.HEADER.size + (8 if data[7] & record.HAS_DEADLINE else 0)
    return int.from_bytes(data[at : at + 2], "little") if data[7] & record.HAS_KEY else len(stored_key)


def packed_size(data: bytes) -> int:
    """Length of a record's payload before compression; 0 where damage makes it unknown."""
    if len(data) < record.HEADER.size:
        return 0
    flags = data[7]
    at = record.HEADER.size
    if flags:
        if flags & record.HAS_DEADLINE:
            at += 8
        if flags & record.HAS_KEY:
            at += 2 + int.from_bytes(data[at : at + 2], "little")
    return payload_size(data[6], data[at:])
