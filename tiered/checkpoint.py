"""Checkpoints: closed journal segments applied to the cold tier.

`Applier.apply` is the one function that writes records to the cold tier, for a
checkpoint, for recovery at open, and for a compacted copy catching up.  It takes the
last version of every key, drops what expired by the time the segments carry,
compresses, and commits all of it, with the sequence number reached, in one LMDB
transaction.  Applying the same segments again changes nothing.

Everything else an applier does comes in slices, each a short transaction, so that an
apply never waits long: removing more of what expired, folding runs and merging them into
`records` (`cold_update`), training a dictionary, and compaction.  While something is to fold
or to merge, each apply is followed by slices worth a few times its records, which is what
keeps runs few under steady writes.

Compaction copies one moment of the cold tier, in key order, into a new environment.
Segments applied meanwhile are kept (open, even when their names are gone) and applied to the copy
afterwards, until it has caught up; then the old environment is marked moved and
CURRENT names the new one.  Records compressed without the current dictionary are
compressed again on the way.

An applier is not thread-safe: whoever holds the APPLY lock drives it from one thread
at a time.  Memory: the keys of the segments applied, the pages LMDB changes in one
transaction (at most one page of 4 KiB per record and tree level touched), and the
trainer's window.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Literal

from tiered import files, record, removal
from tiered.cold import Cold
from tiered.cold_reader import Reader
from tiered.cold_state import RUNS, State
from tiered.cold_update import Update
from tiered.compression import DICTIONARY_ID_MAX, Compressor, Decompressor, Dictionary, Trainer
from tiered.errors import CorruptionError, StoreError
from tiered.journal import SegmentFile
from tiered.pending import Pending
from tiered.process import by_handler

EXPIRE_RECORDS = 4096
MERGE_RECORDS = 32_768
COPIES_PER_WRITE = 4
"""How many records may be copied, where runs are due for it, for each that was just written."""
SETTLE_TIMES = 8
"""How many old records may be copied for a new one when there is nothing else to do."""
RUNS_RECORDS_MIN = 8192
DEAD_RECORDS_MIN = 256
COPY_RECORDS = 4096
COPY_BYTES = 8 << 20
CATCH_UP_RECORDS = 32_768
_COMPRESS_RECORDS = 2048
_SAMPLES_PER_APPLY = 800
_RECENT_SAMPLES = 300
"""So many measured samples outweigh what was known of the ratio before them."""


class UnsettledError(StoreError):
    """Nobody knows which cold tier a power cut would leave as the live one: neither may be written to."""


class Applier:
    """The writer of one store's cold tier."""

    def __init__(self, directory: Path, cold: Cold, compression: str) -> None:
        self.directory = directory
        self.cold = cold
        self._compression = compression
        self._trainer = Trainer()
        self._dictionary: Dictionary | None = None
        self._decompressor = Decompressor(self._load_dictionary)
        with cold.read() as reader:
            state = reader.state()
            if state.dictionary:
                self._dictionary = Dictionary(state.dictionary, reader.dictionary(state.dictionary))
        self._compressor = Compressor(compression, self._dictionary)
        self._expiry_behind = True
        self._owed = 0
        self._expired = 0
        self.merged = False  # Since whoever drives it set this back: what was deleted takes no room any more.
        self._applied_since: list[tuple[Sequence[SegmentFile], int]] | None = None

    def _load_dictionary(self, number: int) -> bytes:
        with self.cold.read() as reader:
            return reader.dictionary(number)

    def apply(self, segments: Sequence[SegmentFile], until: int) -> int:
        """Bring the cold tier up to sequence number `until`; returns the number of records written.

        Raises `CorruptionError` if the segments do not hold every record up to there.
        """
        written = self._apply_to(self.cold, segments, until, observe=True)
        if self._applied_since is not None:
            self._applied_since.append((segments, until))
        if self._copies_due():
            self._owed += COPIES_PER_WRITE * written
        return written

    def _apply_to(self, cold: Cold, segments: Sequence[SegmentFile], until: int, observe: bool) -> int:
        with cold.update() as update:
            state = update.current
            pending = Pending(segments, state.applied, until)
            if pending.settings:
                update.put_settings(update.settings() | pending.settings)
                if "compression" in pending.settings:
                    self._compression = str(pending.settings["compression"])
                    self._compressor = Compressor(self._compression, self._dictionary)
            if pending.cleared:
                update.clear()
            state.time_ms = max(state.time_ms, pending.time_ms)
            for at in range(0, len(pending), _COMPRESS_RECORDS):
                update.write(pending.changes(at, at + _COMPRESS_RECORDS, self._compressor, state.time_ms))
            expired = update.expire(state.time_ms, EXPIRE_RECORDS)
            if expired == EXPIRE_RECORDS:
                self._expiry_behind = True
            state.applied = max(state.applied, until)
            if observe:
                self._observe(pending, state)
        self._expired += expired
        return len(pending)

    def take_expired(self) -> int:
        """How many records have been removed since the last call because their time was up."""
        expired, self._expired = self._expired, 0
        return expired

    def _observe(self, pending: Pending, state: State) -> None:
        """Show the trainer a sample, evenly spread over the keys, and note how well the dictionary fits it."""
        samples = pending.sample(max(1, len(pending) // _SAMPLES_PER_APPLY))
        packed = sum(map(len, samples))
        measured = samples[:: max(1, len(samples) // 100)]
        stored = [len(self._compressor.compress(sample)[2]) for sample in measured]
        if measured and packed:
            self._trainer.observe(samples, sum(map(len, measured)), sum(stored))
        suited = [
            (len(sample), size) for sample, size in zip(measured, stored, strict=True) if Trainer.suits(len(sample))
        ]
        if suited and self._compressor.number:
            ratio = sum(size for _, size in suited) / sum(size for size, _ in suited)
            state.recent_ratio += (ratio - state.recent_ratio) * len(suited) / (len(suited) + _RECENT_SAMPLES)
        self._trainer.count(len(pending))

    @property
    def owes(self) -> bool:
        """Whether slices should come before the next apply."""
        return self._owed > 0

    def slice(self) -> bool:
        """Do one piece of work that is due apart from applying; False if there is none."""
        # What is owed comes first, since the next apply, and so a writer, may be waiting for it.
        if self._expiry_behind and not self.owes:
            self._expire_slice()
            return True
        moved = self._copy_slice()
        if moved:
            self._owed -= moved
            return True
        self._owed = 0
        if self._expiry_behind:
            return True
        if self._compression.startswith("zstd") and self._trainer.due():
            self._train()
            return True
        return False

    def settle(self, most: int = sys.maxsize) -> bool:
        """Fold runs further than writing alone is worth, so that reads find fewer of them; False if there are none.

        That is a slice, too.  `most` limits the records copied.
        """
        with self.cold.read() as reader:
            state = reader.state()
            if not (state.folding or reader.foldable(state, SETTLE_TIMES, most)):
                return False
        with self.cold.update() as update:
            return update.fold(MERGE_RECORDS, SETTLE_TIMES, most) > 0

    def _expire_slice(self) -> None:
        with self.cold.read() as reader:
            time_ms = reader.state().time_ms
            self._expiry_behind = next(reader.due(time_ms), None) is not None
        if self._expiry_behind:
            with self.cold.update() as update:
                expired = update.expire(time_ms, EXPIRE_RECORDS)
            self._expired += expired
            self._expiry_behind = expired == EXPIRE_RECORDS

    def _copies_due(self) -> Literal["fold", "merge", ""]:
        """Whether runs are to be folded, or merged."""
        with self.cold.read() as reader:
            state = reader.state()
            if state.folding or reader.foldable(state):
                return "fold"
            runs, records = reader.entries(RUNS), reader.entries("records")
            dead = runs + records - state.records  # Older versions, what was deleted, and what says so.
            enough = runs > max(RUNS_RECORDS_MIN, records) or dead > max(DEAD_RECORDS_MIN, state.records // 3)
            return "merge" if state.merging or enough else ""

    def _copy_slice(self) -> int:
        """Copy some records of runs into others or into `records`; how many, 0 where nothing is due."""
        due = self._copies_due()
        if not due:
            return 0
        with self.cold.update() as update:
            moved = update.fold(MERGE_RECORDS) if due == "fold" else update.merge(MERGE_RECORDS)
            ended = due == "merge" and not update.current.merging
        self.merged = self.merged or ended
        return max(1, moved)  # What expired may have left runs with nothing in them: that they went counts as one.

    def _train(self) -> None:
        with self.cold.read() as reader:
            number = reader.state().dictionary_next
        if number > DICTIONARY_ID_MAX:
            return
        trained = self._trainer.train(self._compression, self._dictionary, number)
        if trained is not None:
            with self.cold.update() as update:
                update.put_dictionary(number, trained.data)
                update.current.dictionary = number
                update.current.dictionary_next = number + 1
                update.current.adopted_ratio = update.current.recent_ratio = self._trainer.adopted_ratio
            self._dictionary = trained
            self._compressor = Compressor(self._compression, trained)

    def compaction(self) -> Generator[int, None, None]:
        """Rewrite the cold tier into a new environment, a slice per step; the last step switches to it.

        Yields the number of records copied so far.  Applies may come between steps.
        """
        live = int(self.cold.directory.name.rpartition("-")[2])
        for number in files.cold_numbers(self.directory):
            if number > live:  # Left by a compaction whose process was killed.
                removal.remove_cold(self.directory, number)
        number = live + 1
        if files.cold_path(self.directory, number).exists():
            raise StoreError(files.cold_path(self.directory, number), "left by another compaction, and not removable")
        fresh: Cold | None = None
        self._applied_since = []
        try:
            fresh = Cold(files.cold_path(self.directory, number), create=True)
            with self.cold.read() as reader:
                yield from self._copy(reader, fresh)
            while self._applied_since:
                self._catch_up(fresh, self._applied_since)
                # Not when all is caught up: as much would be applied before the next step.
                if self._applied_since:
                    yield fresh.state().records
            # What has no segment (dictionaries trained meanwhile) is carried over last.
            with self.cold.read() as reader, fresh.update() as update:
                _carry_over(reader, update)
            with self.cold.update() as update:
                update.current.moved = True
            try:
                self._switch(number)
            except UnsettledError:
                raise
            except BaseException:
                if files.read_current(self.directory) == number:  # Interrupted when that was done: it is the live one.
                    self._switch(number)
                    self.cold = fresh
                raise
            self.cold = fresh
        finally:
            self._applied_since = None
            if self.cold is not fresh and fresh is not None:
                fresh.close()
            if self.cold is not fresh and files.read_current(self.directory) != number:
                removal.remove_cold(self.directory, number)
                if self.cold.state().moved:
                    with self.cold.update() as update:
                        update.current.moved = False

    def _switch(self, number: int) -> None:
        """Have CURRENT name the copy.  Raises `UnsettledError` where it may do so or not after a power cut."""
        try:
            files.write_current(self.directory, number)
        except OSError as error:
            if by_handler(error) or files.read_current(self.directory) != number:
                raise
            where = self.directory / files.CURRENT
            raise UnsettledError(where, f"replaced, but syncing its directory failed: {error}") from error

    def _catch_up(self, fresh: Cold, applied: list[tuple[Sequence[SegmentFile], int]]) -> None:
        """Apply to the copy what was applied meanwhile, many segments at a time: faster than they come."""
        until = start = fresh.state().applied
        taken: list[SegmentFile] = []
        while applied and until - start < CATCH_UP_RECORDS:
            segments, until = applied.pop(0)
            taken += segments
        self._apply_to(fresh, taken, until, observe=False)

    def _copy(self, reader: Reader, fresh: Cold) -> Iterator[int]:
        state = reader.state()
        with fresh.update() as update:
            _carry_over(reader, update)
            update.current.applied, update.current.time_ms = state.applied, state.time_ms
        items: list[tuple[bytes, bytes]] = []
        size = copied = 0
        for stored_key, data in reader.scan():
            data = self._recompressed(stored_key, data)
            items.append((stored_key, data))
            size += len(data)
            if len(items) >= COPY_RECORDS or size >= COPY_BYTES:
                with fresh.update() as update:
                    update.append_records(items)
                copied, items, size = copied + len(items), [], 0
                yield copied
        with fresh.update() as update:
            update.append_records(items)

    def _recompressed(self, stored_key: bytes, data: bytes) -> bytes:
        """The record compressed as new ones are, where that makes it smaller.  Raises `CorruptionError`."""
        try:
            found = record.unpack(stored_key, data)
            if found is None or found.dictionary == self._compressor.number:
                return data
            payload = self._decompressor.decompress(found.compression, found.dictionary, found.body)
        except (ValueError, KeyError) as error:
            raise CorruptionError(
                self.cold.path,
                f"damaged record under stored key {stored_key[:60]!r}: {error}; assign a new value to the key",
            ) from None
        compression, dictionary, body = self._compressor.compress(payload)
        if len(body) >= len(found.body):
            return data
        return record.pack(stored_key, found.codec, compression, dictionary, found.deadline, found.full_key, body)


def _carry_over(reader: Reader, update: Update) -> None:
    """Copy settings, dictionaries and what the state says of them."""
    update.put_settings(reader.settings())
    for number in reader.dictionary_numbers():
        update.put_dictionary(number, reader.dictionary(number))
    state = reader.state()
    update.current.dictionary, update.current.dictionary_next = state.dictionary, state.dictionary_next
    update.current.adopted_ratio, update.current.recent_ratio = state.adopted_ratio, state.recent_ratio
