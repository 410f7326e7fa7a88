"""Writing the cold tier: one transaction.

What a checkpoint writes becomes a run (`cold_state`): a tree of its own, filled in key order, so that
its pages are full and written once.  In one tree, a page would be written again for every
scattered key.  Two runs and more are folded into one when none of them is larger than the newer ones
together, so that their number is a logarithm and each record is copied about once for
every doubling.  When all runs together have as many records as `records`, or a quarter of all
entries are dead (older versions, deletions and what they hide), they are merged into it.  Both happen in
slices.

Measured (tools/bench/applier.py) with 300,000 and 3 million documents in random order, 27 and 46 checkpoints: 755 and
920 bytes of device writes per record; with one tree in front of `records`, merged at a quarter of it, 2,080 and 4,130.

A small run takes what comes next into itself, so that a store with little in it has one run only.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from tiered import filters, record
from tiered.cold_reader import Reader
from tiered.cold_state import (
    FOLD_TIMES,
    RUNS_MAX,
    SLOTS,
    Change,
    State,
    deadline_key,
    filter_name,
    key_size,
    packed_size,
    run_name,
    sealed,
    split_deadline,
)
from tiered.errors import CorruptionError

if TYPE_CHECKING:
    from tiered.cold import Cold

SMALL_RUN_RECORDS = FILTERED_RECORDS_MIN = 1024
_CHUNK_RECORDS = 1024
_SLICE_BYTES = 16 << 20
_first = itemgetter(0)


class Update(Reader):
    """A write transaction.  `current`, the state, is written back when it ends."""

    def __init__(self, cold: Cold, txn: Any) -> None:
        super().__init__(cold, txn)
        self._meta = cold.databases["meta"]
        self.current = self.state() if txn.get(b"state", db=self._meta) else State()
        self._own = -1  # The slot that this transaction writes to, and the last key there.
        self._last = b""
        self._fresh: dict[int, list[bytes]] = {}  # Runs that get a filter at the end, and their keys.
        self._lay()

    def newest(self, stored_key: bytes) -> bytes | None:
        """The record under a key, markers resolved; pages that were written just now are LMDB's alone."""
        for database in self.layers:
            data: bytes | None = self.txn.get(stored_key, None, database)
            if data is not None:
                return None if record.is_marker(data) else data
        return None

    def _slice_of_pages(self, *args: object) -> None:
        return None  # Likewise.

    def _lay(self) -> None:
        self._layers = self.cold.layers(self.current)

    def finish(self) -> None:
        """Write filters and the state."""
        for slot, keys in self._fresh.items():
            if len(keys) >= FILTERED_RECORDS_MIN:
                bits = bytearray(filters.size_for(len(keys)))
                filters.add(bits, keys)
                self._put_filter(slot, bits)
        self.txn.put(b"state", sealed(vars(self.current)), db=self._meta)

    def put_settings(self, settings: dict[str, object]) -> None:
        """Remember these settings."""
        self.txn.put(b"settings", sealed(settings), db=self._meta)

    def put_dictionary(self, number: int, data: bytes) -> None:
        """Keep a dictionary; it must be committed no later than the first record that uses it."""
        self.txn.put(
            number.to_bytes(2, "big"), crc32(data).to_bytes(4, "little") + data, db=self.cold.databases["dictionaries"]
        )

    def write(self, changes: Sequence[Change]) -> None:
        """Make these the state of their keys.  Keys ascending, each once."""
        if not changes:
            return
        stored_keys, datas, deadlines, sizes = zip(*changes, strict=True)
        # What this transaction wrote before has lower keys, as a rule.
        layers = self.layers[1:] if self._own >= 0 and self._last < stored_keys[0] else self.layers
        found = self.found(stored_keys, layers)
        alive = {key: old for key, old in found.items() if not record.is_marker(old)} if found else found
        for key, old in alive.items():
            self._forget(key, old)
        puts = list(zip(stored_keys, datas, strict=True))
        if not all(datas):
            # Only what lies in a layer needs a marker to hide it.
            deleted = [(key, record.pack_marker(key)) for key, data in puts if data is None and key in alive]
            puts = [put for put in puts if put[1] is not None]
            datas = tuple(data for _, data in puts)
            puts = sorted(puts + deleted)
        state = self.current
        state.records += len(datas)
        state.stored_bytes += sum(map(len, datas))
        state.packed_bytes += sum(sizes)
        state.key_bytes += sum(key_size(key, data) for key, data, _, _ in changes if data is not None)
        if puts:
            self._put(puts)
        if any(deadlines):
            index = [(deadline_key(deadline, key), b"") for key, _, deadline, _ in changes if deadline]
            with self.txn.cursor(self.cold.expiry) as cursor:
                cursor.putmulti(sorted(index))

    def _put(self, puts: list[tuple[bytes, bytes]]) -> None:
        """Put into the run of this transaction: a new one, or the newest where it is small."""
        if self._own < 0:
            self._own = self._begin_run()
        with self.txn.cursor(self._run(self._own)) as cursor:
            append = not cursor.last() or cursor.key() < puts[0][0]
            _all_put(self.cold.path, cursor.putmulti(puts, append=append), len(puts))
        self._last = max(self._last, puts[-1][0])
        if self._own in self._fresh:
            self._fresh[self._own] += map(_first, puts)

    def _begin_run(self) -> int:
        state = self.current
        taken = {*state.runs, state.fold_slot}
        free = [slot for slot in range(SLOTS) if slot not in taken]
        newest = state.runs[0] if state.runs else -1
        if newest >= 0 and newest not in state.merging and newest not in state.folding:
            small = self.entries(run_name(newest)) < SMALL_RUN_RECORDS
            if small or not free or len(state.runs) - len(state.merging) >= RUNS_MAX:
                self._last = b"\xff" * 512  # There may be any key in it.
                self._drop_filter(newest)
                if small:
                    with self.txn.cursor(self._run(newest)) as cursor:
                        self._fresh[newest] = list(cursor.iternext(values=False))
                return newest
        state.runs.insert(0, free[0])
        self._fresh[free[0]] = []
        self._lay()
        return free[0]

    def _put_filter(self, slot: int, bits: bytearray) -> None:
        self.txn.put(filter_name(slot), sealed(bytes(bits)), db=self._meta)
        self.current.filters[slot] = self.number

    def _add_to_filter(self, slot: int, keys: list[bytes]) -> None:
        try:
            bits = bytearray(self.filter(slot))
        except CorruptionError:  # Then the run has none, and is searched for every key.
            self._drop_filter(slot)
            return
        filters.add(bits, keys)
        self._put_filter(slot, bits)

    def _drop_filter(self, slot: int) -> None:
        if self.current.filters[slot]:
            self.txn.delete(filter_name(slot), db=self._meta)
            self.current.filters[slot] = 0

    def _run(self, slot: int) -> Any:
        return self.cold.databases[run_name(slot)]

    def _forget(self, key: bytes, old: bytes) -> None:
        """A live record is replaced or goes: undo what it counted for, its deadline included."""
        self._uncount(key, old)
        if deadline := record.deadline_of(old):
            self.txn.delete(deadline_key(deadline, key), db=self.cold.expiry)

    def _uncount(self, key: bytes, old: bytes) -> None:
        state = self.current
        state.records -= 1
        state.stored_bytes -= len(old)
        state.packed_bytes -= packed_size(old)
        state.key_bytes -= key_size(key, old)

    def expire(self, until_ms: int, limit: int) -> int:
        """Remove up to `limit` records whose deadline has passed; returns how many entries were due."""
        due = [key for _, key in zip(range(limit), self.due(until_ms), strict=False)]
        removed: list[bytes] = []
        for entry in due:
            self.txn.delete(entry, db=self.cold.expiry)
            deadline, stored_key = split_deadline(entry)
            data = self.newest(stored_key)
            # Only the deadline in the record itself counts: the key may have been written again.
            if data is not None and record.deadline_of(data) == deadline:
                self._uncount(stored_key, data)
                removed.append(stored_key)
        if removed:
            # From the run that others are being folded into, too: it becomes a layer later.
            hidden = [self._run(self.current.fold_slot)] if self.current.folding else []
            removed.sort()
            for database in (*hidden, *self.layers):
                for stored_key in removed:
                    self.txn.delete(stored_key, db=database)
        return len(due)

    def fold(self, limit: int, times: int = FOLD_TIMES, most: int = sys.maxsize) -> int:
        """Copy about `limit` records of runs into one, in key order; returns how many, 0 where nothing is due.

        Which runs is decided with the first slice, by `foldable`.
        """
        state = self.current
        if not state.folding:
            state.folding, state.folded_to = self.foldable(state, times, most), b""
            if not state.folding:
                return 0
            state.fold_slot = next(slot for slot in range(SLOTS) if slot not in state.runs)
            count = sum(self.entries(run_name(slot)) for slot in state.folding)
            if count >= FILTERED_RECORDS_MIN:
                self._put_filter(state.fold_slot, bytearray(filters.size_for(count)))
        items, ended = self._take(state.folding, state.folded_to, limit)
        with self.txn.cursor(self._run(state.fold_slot)) as cursor:
            _all_put(self.cold.path, cursor.putmulti(items, append=True), len(items))
        if state.filters[state.fold_slot]:
            self._add_to_filter(state.fold_slot, list(map(_first, items)))
        if ended:
            state.runs[state.runs.index(state.folding[0])] = state.fold_slot
            self._drop(state.folding)
            self._end_fold()
        else:
            state.folded_to = items[-1][0] + b"\0"
        return len(items)

    def merge(self, limit: int) -> int:
        """Copy about `limit` records of the runs there are into `records`, in key order; returns how many.

        Runs that are written before the last of these slices wait for the next merge.
        """
        state = self.current
        if not state.merging:
            if state.folding:
                self.txn.drop(self._run(state.fold_slot), delete=False)
                self._end_fold()
            state.merging, state.merged_to = list(state.runs), b""
        items, ended = self._take(state.merging, state.merged_to, limit)
        puts = [item for item in items if not record.is_marker(item[1])]
        if len(puts) < len(items):
            for key, data in items:
                if record.is_marker(data):
                    self.txn.delete(key, db=self.cold.records)
        if puts:
            with self.txn.cursor(self.cold.records) as cursor:
                append = not cursor.last() or cursor.key() < puts[0][0]
                _all_put(self.cold.path, cursor.putmulti(puts, append=append), len(puts))
        if ended:
            self._drop(state.merging)
            state.merging, state.merged_to = [], b""
        else:
            state.merged_to = items[-1][0] + b"\0"
        return len(items)

    def _end_fold(self) -> None:
        state = self.current
        if state.fold_slot not in state.runs:
            self._drop_filter(state.fold_slot)
        state.folding, state.folded_to, state.fold_slot = [], b"", -1
        self._lay()

    def _drop(self, slots: list[int]) -> None:
        for slot in slots:
            self.txn.drop(self._run(slot), delete=False)
            self._drop_filter(slot)
            self._fresh.pop(slot, None)
        self.current.runs = [slot for slot in self.current.runs if slot not in slots]
        self._own = -1
        self._lay()

    def _take(self, slots: list[int], start: bytes, limit: int) -> tuple[list[tuple[bytes, bytes]], bool]:
        """Up to about `limit` items of runs from `start` on, the newest of each key; and whether those were all.

        Memory: about `_SLICE_BYTES`, and what one record takes.  The largest run says up to which key; of the
        others it reads little more than that.
        """
        bound: bytes | None = None
        parts: dict[int, list[tuple[bytes, bytes]]] = {}
        for slot in sorted(slots, key=lambda slot: -self.entries(run_name(slot))):
            part = parts[slot] = []
            with self.txn.cursor(self._run(slot)) as cursor:
                source = iter(cursor) if (cursor.set_range(start) if start else cursor.first()) else iter(())
                count, room = 16, _SLICE_BYTES // len(slots)
                while len(part) < limit and (bound is None or not part or part[-1][0] <= bound):
                    chunk = list(islice(source, min(count, _CHUNK_RECORDS, limit - len(part))))
                    if not chunk:
                        break
                    part += chunk
                    room -= (size := sum(len(data) for _, data in chunk))
                    if room <= 0:
                        bound = part[-1][0] if bound is None else min(bound, part[-1][0])
                        break
                    # Fewer at a time where they are large.
                    count = max(1, room * len(chunk) // (4 * size)) if size else _CHUNK_RECORDS
                else:
                    bound = part[-1][0] if bound is None else min(bound, part[-1][0])
        if len(slots) == 1:
            return parts[slots[0]], bound is None
        newest: dict[bytes, bytes] = {}
        for slot in reversed(slots):
            newest.update(parts[slot])
        # Several ascending sequences, which is what sorting is fast at.
        items = sorted(newest.items(), key=_first)
        return (items, True) if bound is None else (items[: bisect_right(items, bound, key=_first)], False)

    def append_records(self, items: Sequence[tuple[bytes, bytes]], ordered: bool = True) -> None:
        """Put records after all there are: how a compacted or restored cold tier is filled.

        Not `ordered`, they come in any order, and whatever key is there already stays as it is.
        """
        if not ordered:
            items = sorted({key: data for key, data in items if self.newest(key) is None}.items())
        index_puts = []
        for key, data in items:
            self.current.records += 1
            self.current.stored_bytes += len(data)
            self.current.packed_bytes += packed_size(data)
            self.current.key_bytes += key_size(key, data)
            if deadline := record.deadline_of(data):
                index_puts.append((deadline_key(deadline, key), b""))
        with self.txn.cursor(self.cold.records) as cursor:
            _all_put(self.cold.path, cursor.putmulti(list(items), append=ordered), len(items))
        if index_puts:
            with self.txn.cursor(self.cold.expiry) as cursor:
                cursor.putmulti(sorted(index_puts))

    def clear(self) -> None:
        """Delete every record; dictionaries and settings stay."""
        state = self.current
        if state.folding:
            self.txn.drop(self._run(state.fold_slot), delete=False)
            self._end_fold()
        self._drop(state.runs)
        state.merging, state.merged_to = [], b""
        for database in (self.cold.records, self.cold.expiry):
            self.txn.drop(database, delete=False)
        state.records = state.stored_bytes = state.packed_bytes = state.key_bytes = 0


def _all_put(path: Path, counts: tuple[int, int], wanted: int) -> None:
    """LMDB leaves out, without a word, what is appended and does not come after all there is."""
    if counts[1] != wanted:
        raise CorruptionError(path, f"{wanted - counts[1]} records are not in order; restore the store from a backup")
