"""Copying one moment of a cold tier into a snapshot file, a slice at a time.

`copy_moment` is a generator: each step writes one section of records, read under one LMDB
read transaction, so that whoever drives it (the helper process between two checkpoints, the
maintenance thread between two ticks, a caller who waits) can do other work in
between.  Closed early, it leaves nothing behind.  Memory: a section of each layer, or the largest record.

Checkpoints go on meanwhile; they cannot use again the pages that the moment sees, so the
file of the cold tier grows by what is rewritten until the copy is done.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Generator, Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from tiered import files, record, retention
from tiered.cold import Cold, translated
from tiered.cold_reader import Reader
from tiered.errors import CorruptionError, StoreError
from tiered.snapshot import BODY_BYTES, BODY_RECORDS_MAX, About, SnapshotFile, SnapshotInfo, Writer

SECTION_RECORDS = 8192
SYNC_BYTES = 32 << 20
"""Synced each time so much was written: one sync of everything at the end would hold the disk up for others."""


class Wish(NamedTuple):
    """A snapshot that is to be made.

    `as_of_ms`, if not 0, is a time up to which the store holds everything acknowledged.  With `keep`, the snapshot is a
    scheduled one: it is read back before it counts, and only so many of this store stay in its directory.
    """

    path: str
    store: str
    as_of_ms: int = 0
    keep: int = 0


class _Walk:
    """The entries of one tree in order, some at a time."""

    def __init__(self, reader: Reader, database: object) -> None:
        self._items = reader.walk(database)
        self._next: tuple[bytes, bytes] | None = next(self._items, None)
        self.keys: list[bytes] = []
        self.datas: list[bytes] = []
        self.at = 0

    def fill(self) -> None:
        """Read on, where all that was read is used up."""
        if self.at < len(self.keys) or self._next is None:
            return
        keys, datas, size = [self._next[0]], [self._next[1]], len(self._next[1])
        self._next = None
        for key, data in self._items:
            size += len(data)
            if size > BODY_BYTES or len(keys) == SECTION_RECORDS:
                self._next = (key, data)
                break
            keys.append(key)
            datas.append(data)
        self.keys, self.datas, self.at = keys, datas, 0

    @property
    def bound(self) -> bytes | None:
        """Up to where all keys are known, None for all there are."""
        return self.keys[-1] if self._next is not None else None

    def take(self, bound: bytes | None) -> tuple[list[bytes], list[bytes]]:
        """What was read with a key up to `bound`."""
        start, end = self.at, len(self.keys) if bound is None else bisect_right(self.keys, bound, self.at)
        self.at = end
        return self.keys[start:end], self.datas[start:end]


def batches(reader: Reader) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """All live records as `Reader.scan` gives them, stored keys and records of many at a time.

    Newer records go over older ones by a dict's update: a third of the time that a merge one by one takes.
    """
    behind, *runs = walks = [_Walk(reader, database) for database in reversed(reader.layers)]
    while True:
        for walk in walks:
            walk.fill()
        bound = min((walk.bound for walk in walks if walk.bound is not None), default=None)
        keys, datas = behind.take(bound)
        newer = [part for run in runs if (part := run.take(bound))[0]]
        if newer:
            merged = dict(zip(keys, datas, strict=True))
            for part in newer:  # The newest last.
                merged.update(zip(*part, strict=True))
            keys = [key for key in sorted(merged) if not record.is_marker(merged[key])]
            datas = [merged[key] for key in keys]
        if keys:
            yield keys, datas
        if bound is None:
            return


def sections(found: Iterator[tuple[list[bytes], list[bytes]]]) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """The same in pieces that make a section each: layers together give several times as much as one of them."""
    for keys, datas in found:
        ends = list(accumulate(map(len, datas), initial=0))
        start = 0
        while start < len(keys):
            full = bisect_right(ends, ends[start] + BODY_BYTES) - 1
            stop = min(max(full, start + 1), start + BODY_RECORDS_MAX)
            yield keys[start:stop], datas[start:stop]
            start = stop


def copy_moment(cold: Cold, wish: Wish) -> Generator[tuple[int, int], None, SnapshotInfo]:
    """Make the snapshot; yields how many records are copied and how many there are.

    Raises `CorruptionError` for a damaged record, which a snapshot must not hide, `StoreFullError`, OSError.
    """
    path, writer, pid = Path(wish.path), None, os.getpid()
    if wish.keep:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        retention.remove_leftovers(path, wish.store)
    files.remove_leftovers(path)
    reader = cold.begin()
    try:
        with translated(cold.path):
            about = _about(reader, wish)
            writer = Writer(path, about)
            for number in reader.dictionary_numbers():
                writer.dictionary(number, reader.dictionary(number))
            yield from _copy_records(reader, writer, about.records)
            info = writer.finish()
        if wish.keep:
            yield from _read_back(writer.file.temporary, about.records)
        writer.file.commit()
    finally:
        if writer is not None:
            writer.file.abandon()
        if pid == os.getpid():  # In a forked child it would free the parent's slot.
            cold.end(reader)
    if wish.keep:
        retention.retain(path, wish.store, wish.keep)
    return info


def _about(reader: Reader, wish: Wish) -> About:
    state = reader.state()
    return About(
        store=wish.store,
        as_of_ms=wish.as_of_ms or state.time_ms,
        sequence=state.applied,
        time_ms=state.time_ms,
        records=state.records,
        packed_bytes=state.packed_bytes,
        stored_bytes=state.stored_bytes,
        dictionary=state.dictionary,
        dictionary_next=state.dictionary_next,
        settings=reader.settings(),
    )


def _copy_records(reader: Reader, writer: Writer, total: int) -> Iterator[tuple[int, int]]:
    copied, synced = 0, 0
    yield copied, total
    for keys, datas in sections(batches(reader)):
        try:
            writer.records(keys, datas)
        except ValueError as error:
            raise CorruptionError(
                reader.cold.path,
                f"damaged record under stored key {keys[error.args[0]][:60]!r}: no snapshot was made; "
                "assign a new value to the key, or restore it from an older snapshot",
            ) from None
        copied += len(keys)
        yield copied, total
        if writer.file.size - synced > SYNC_BYTES:
            writer.file.sync()
            synced = writer.file.size
            yield copied, total


def _read_back(path: Path, total: int) -> Iterator[tuple[int, int]]:
    """Read what was written from the disk, looking at every checksum of the file."""
    try:
        with SnapshotFile(path) as file:
            for _ in file.read():
                yield total, total
    except StoreError as error:
        raise StoreError(path, f"not what was written to it a moment ago: {error.message}") from error
