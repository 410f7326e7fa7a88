"""What can be saved of a damaged store, and the damaged files put aside.

Opening refuses a store in which something that was on the disk is not what was written.
Salvage is asked for by name, once, and never by a setting that could stay on:

    CURRENT   missing or nonsense: names the cold tier that is complete.  A compaction marks the old one as moved
              when the new one is complete, just before CURRENT is to name it; so it is the oldest not so marked.
    records   those of the cold tier that cannot be read are left out of a new cold tier, into which the
              others are copied.  Where LMDB's own pages are damaged, what can be reached from either end is kept.
              A truncated file gets zeros in their place; LMDB does not write pages at its end that hold nothing, so
              that a program killed just then may leave one from which nothing is missing.
    journal   applied up to the damage.  What comes after it is not: the store then holds
              what it held at one moment, as after a crash.

What was damaged moves into a directory damaged-NNNN within the store's, under its own name.  Each step leaves a store
that is as damaged as before, or less, so that salvage can be stopped and begun again.

LMDB has no checksums over its own pages, so that reading a damaged one may end the process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tiered import files, keys, mark, record, recovery, removal
from tiered.check import Findings, check_cold
from tiered.checkpoint import COPY_BYTES, COPY_RECORDS, Applier
from tiered.cold import Cold
from tiered.cold_reader import Reader
from tiered.compression import Decompressor
from tiered.config import Settings
from tiered.errors import CorruptionError, NotAStoreError
from tiered.journal import Dirty
from tiered.log import LOG
from tiered.opening import check_arguments, lock_applying, named_errors, refuse_network

LOST_KEYS_MAX = 100
PROBES_DEPTH = 12
"""How often a range with damage in it is halved: a few thousand looks at most, and little of it is left unread."""
PROBE_BYTES = 8


class Salvaged(NamedTuple):
    """What `salvage` did.

    `damage` says what was found, a line for each; empty if nothing was.  `kept_in` is where
    the damaged files are now.  `lost_records` are those of the cold tier that could not be read, and
    `lost_keys` the first hundred of their keys, if these are known; `lost_all_known` is False where
    more may be missing, and where deleted keys and older values may be back: `damage` says so.
    `dropped_bytes` is how much of the journal was not applied.
    """

    path: str
    records: int
    damage: tuple[str, ...]
    kept_in: str
    lost_records: int
    lost_keys: tuple[Any, ...]
    lost_all_known: bool
    dropped_bytes: int


def salvage(path: str | os.PathLike[str], *, lock_timeout: float = 0.0, allow_network: bool = False) -> Salvaged:
    """Make a damaged store one that opens, with everything in it that can be read, and say what is lost.

    Damaged files are kept, within the store's directory.  Copy the whole directory first, all the
    same.  A store without damage is left as it is.  Reads all records, and needs room for a copy of
    the cold tier if one of them is damaged.  Raises `CorruptionError` if nothing can be saved, `LockedError`,
    `NotAStoreError`.
    """
    directory = check_arguments(path, "w", {}, lock_timeout)
    LOG.prepare()
    with named_errors(directory), contextlib.ExitStack() as ending:
        if not directory.is_dir() or not files.cold_numbers(directory):
            raise NotAStoreError(directory, "no store there")
        refuse_network(directory, allow_network)
        lock = files.FileLock(directory / files.LOCK)
        lock.acquire(lock_timeout)
        ending.callback(lock.release)
        ending.callback(lock_applying(directory).release)
        return _Salvage(directory).run()


class _Salvage:
    """One store being salvaged, its locks held."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.damage: list[str] = []
        self.lost_keys: list[Any] = []
        self.lost_records = 0
        self.lost_all_known = True
        self.dropped_bytes = 0
        self._kept: Path | None = None

    def run(self) -> Salvaged:
        number = self._live()
        cold = Cold(files.cold_path(self.directory, number), mend=True)
        try:
            state = cold.state()
            if self._read_records(cold):
                old, cold = cold, self._copied(cold, number + 1)
                old.close()
                self._put_aside(old.directory)
            self._apply_journal(cold, state.applied)
            records = cold.state().records
        finally:
            cold.close()
        return Salvaged(
            str(self.directory),
            records,
            tuple(self.damage),
            str(self._kept or ""),
            self.lost_records,
            tuple(self.lost_keys),
            self.lost_all_known,
            self.dropped_bytes,
        )

    def _found(self, what: str) -> None:
        LOG.warning("%s: salvage: %s", self.directory, what)
        self.damage.append(what)

    def _put_aside(self, path: Path) -> None:
        self._kept = self._kept or files.make_damaged(self.directory)
        files.rename(path, self._kept / path.name)
        files.sync_directory(self._kept)
        files.sync_directory(self.directory)

    def _live(self) -> int:
        """The number of the live cold tier, which CURRENT names afterwards."""
        with contextlib.suppress(ValueError):
            if (number := files.read_current(self.directory)) is not None:
                return number
        for number in files.cold_numbers(self.directory):
            try:
                with contextlib.closing(Cold(files.cold_path(self.directory, number), mend=True)) as cold:
                    moved = cold.state().moved
            except CorruptionError:
                continue  # Removed in part, or never finished; if it was neither, it is lost.
            if not moved:
                self._found(f"{files.CURRENT} named no cold tier, and now names {cold.directory.name}")
                files.write_current(self.directory, number)
                return number
        raise CorruptionError(self.directory, "none of its cold tiers can be read; restore it from a backup")

    # The cold tier

    def _read_records(self, cold: Cold) -> bool:
        """Read everything; whether there is damage."""
        before = len(self.damage)
        with cold.read() as reader:
            try:
                reader.settings()
            except CorruptionError as error:
                self._found(error.message)
            counted = reader.state().records
            readable = sum(1 for _ in self._good(cold, tell=True))
            if readable + self.lost_records != counted:
                # A page that is not damaged in itself, but is not the one that belongs there.
                self.lost_all_known = False
                self._found(f"{readable:,} records can be read where {counted:,} were kept")
                self._found("deleted keys and older values may be back, where what came after them is missing")
            if len(self.damage) == before:
                self._read_indexes(reader)
        return len(self.damage) > before

    def _read_indexes(self, reader: Reader) -> None:
        """Look at what is beside the records, and is made anew with a copy of them."""
        findings = Findings()
        try:
            for number in reader.dictionary_numbers():
                reader.dictionary(number)
            check_cold(reader, lambda _, data: Dirty(0, record.deadline_of(data), b"", b""), findings)
        except CorruptionError as error:
            self._found(error.message)
        for finding in findings.closed():
            self._found(f"{finding.what}: {finding.detail}")

    def _good(self, cold: Cold, tell: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """The records that can be read, in order."""

        def dictionary(number: int) -> bytes:
            with cold.read() as other:
                return other.dictionary(number)

        decompressor = Decompressor(dictionary)
        for stored_key, data in self._reached(cold, tell):
            try:
                found = record.unpack(stored_key, data)
                if found is not None:
                    decompressor.decompress(found.compression, found.dictionary, found.body)
            except (ValueError, KeyError, CorruptionError) as error:
                if tell:
                    self._lose(stored_key, error)
            else:
                yield stored_key, data

    def _reached(self, cold: Cold, tell: bool) -> Iterator[tuple[bytes, bytes]]:
        """All records, but for those that only a damaged page of LMDB's leads to."""
        last = b""
        for item in self._range(cold, b"", None, PROBES_DEPTH, tell):
            if tell and item[0] <= last and self.lost_all_known:
                self.lost_all_known = False
                self._found(f"records are out of order after stored key {last[:60]!r}")
            last = item[0]
            yield item

    def _range(
        self, cold: Cold, start: bytes, stop: bytes | None, depth: int, tell: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """What can be read from both ends of a range, and of either half of what is between where these reads end."""
        last = start
        try:
            for item in self._scanned(cold, start, stop):
                last = item[0]
                yield item
            return
        except CorruptionError as error:
            if tell:
                self.lost_all_known = False
                self._found(f"{error.message}; after stored key {last[:60]!r}")
        begin = stop
        with contextlib.suppress(CorruptionError):
            for stored_key, _ in self._scanned(cold, last + b"\0", stop, reverse=True):
                begin = stored_key
        middle = _between(last, begin)
        if depth and middle:
            yield from self._range(cold, last + b"\0", middle, depth - 1)
            yield from self._range(cold, middle, begin, depth - 1)
        if begin is not None and begin != stop:
            with contextlib.suppress(CorruptionError):
                yield from self._scanned(cold, begin, stop)

    def _scanned(
        self, cold: Cold, start: bytes, stop: bytes | None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """A scan with a transaction of its own: one that has met a damaged page reads nothing any more."""
        with cold.read() as reader:
            yield from reader.scan(start, stop, reverse)

    def _lose(self, stored_key: bytes, error: Exception) -> None:
        self.lost_records += 1
        if len(self.lost_keys) < LOST_KEYS_MAX:
            with contextlib.suppress(ValueError):
                key = stored_key if keys.is_long(stored_key) else keys.decode(stored_key)
                self.lost_keys.append(key)
                self._found(f"the record of {key!r:.80} cannot be read: {error}")

    def _copied(self, cold: Cold, number: int) -> Cold:
        """A new cold tier with what can be read of this one; it is the live one then."""
        if files.cold_path(self.directory, number).exists():  # Left by one that was stopped, or by a compaction.
            removal.remove_tree(files.cold_path(self.directory, number))
        fresh = Cold(files.cold_path(self.directory, number), create=True)
        with contextlib.ExitStack() as undo, cold.read() as reader:
            undo.callback(fresh.close)
            state = reader.state()
            with fresh.update() as update:
                with contextlib.suppress(CorruptionError):
                    update.put_settings(reader.settings())
                for dictionary in reader.dictionary_numbers():
                    with contextlib.suppress(CorruptionError):
                        update.put_dictionary(dictionary, reader.dictionary(dictionary))
                update.current.applied, update.current.time_ms = state.applied, state.time_ms
                # Not the current dictionary, which may be the damaged one: another is trained.
                update.current.dictionary_next = state.dictionary_next
            items: list[tuple[bytes, bytes]] = []
            size = 0
            for item in self._good(cold):
                items.append(item)
                size += len(item[1])
                if len(items) >= COPY_RECORDS or size >= COPY_BYTES:
                    with fresh.update() as update:
                        update.append_records(items, ordered=False)
                    items, size = [], 0
            with fresh.update() as update:
                update.append_records(items, ordered=False)
            self.lost_records = max(len(self.lost_keys), state.records - fresh.state().records)
            files.write_current(self.directory, number)
            undo.pop_all()
        return fresh

    # The journal

    def _apply_journal(self, cold: Cold, applied: int) -> None:
        """Apply the journal up to its damage, and put aside what comes from there on; an undamaged one is left."""
        plan = recovery.plan(self.directory, applied, salvage=True)
        if plan.damage is None:
            return
        self._found(f"{Path(plan.damage.path).name}: {plan.damage.message}")
        if plan.until > applied:
            with cold.read() as reader:
                try:
                    compression = Settings.resolve({}, reader.settings()).compression
                except CorruptionError:
                    compression = Settings.resolve({}, {}).compression
            Applier(self.directory, cold, compression).apply(plan.segments, plan.until)
        # In order: as long as any of them is left, the store is damaged, and not merely short of its end.
        for segment in plan.damaged:
            self.dropped_bytes += segment.written_bytes(0)
            self._put_aside(segment.path)
        mark.give_up(self.directory)


def _between(low: bytes, high: bytes | None) -> bytes | None:
    """A stored key half way between two others, the end where the second is None; None if they are too near."""
    alike = 0
    while high is not None and alike < len(low) and low[alike : alike + 1] == high[alike : alike + 1]:
        alike += 1
    size = alike + PROBE_BYTES
    begin = int.from_bytes(low[:size].ljust(size, b"\0"), "big")
    end = 256**size if high is None else int.from_bytes(high[:size].ljust(size, b"\0"), "big")
    middle = (begin + end) // 2
    return middle.to_bytes(size, "big") if begin < middle and size <= keys.STORED_BYTES_EXACT else None
