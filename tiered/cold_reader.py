"""Reading the cold tier: one transaction, one moment of it."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from zlib import crc32

from tiered import record
from tiered.cold_state import (
    DATABASES,
    DEADLINE_BYTES,
    FOLD_TIMES,
    FORMAT,
    RUNS,
    RUNS_MAX,
    State,
    filter_name,
    run_name,
    unsealed,
)
from tiered.errors import CorruptionError, FormatError
from tiered.filters import BLOCK_BYTES
from tiered.native import native

if TYPE_CHECKING:
    from tiered.cold import Cold, Layout


class Slice(NamedTuple):
    """Some records in key order: stored keys and records, the last key looked at, None where there are no more, and
    whether a damaged page comes next.
    """

    keys: list[bytes]
    datas: list[bytes]
    last: bytes | None
    damaged: bool


class Reader:
    """A read transaction."""

    def __init__(self, cold: Cold, txn: Any = None) -> None:
        self.cold = cold
        self.txn = txn
        self.stays = False
        self._layout: Layout | None = None
        self._layers: Sequence[Any] | None = None

    @property
    def number(self) -> int:
        """The number of the write transaction whose outcome it sees."""
        return int(self.txn.id())

    @property
    def layers(self) -> Sequence[Any]:
        """The databases that hold records, newest first."""
        if self._layers is None:
            self._layers = [layer.database for layer in self.layout.layers]
        return self._layers

    @property
    def layout(self) -> Layout:
        """The layers with what belongs to them, but no filters where it stays: only the store's own are accounted."""
        if self._layout is None:
            layout = self.cold.layout_of(self.txn)
            if self.stays:
                layout = layout._replace(layers=[layer._replace(filter=None) for layer in layout.layers], behind=[])
            self._layout = layout
        return self._layout

    def newest(self, stored_key: bytes) -> bytes | None:
        """The record under a key, markers resolved."""
        data = self.newest_many([stored_key])[0]
        return None if data is None or record.is_marker(data) else data

    def found(self, stored_keys: Sequence[bytes], layers: Sequence[Any]) -> dict[bytes, bytes]:
        """The newest record of each of these keys, ascending, that has any in these layers; markers included.

        Cost: one call of LMDB's binding for each layer, a look-up of 0.3 µs for each key and layer.
        """
        found: dict[bytes, bytes] = {}
        for database in layers:
            with self.txn.cursor(database) as cursor:
                if here := cursor.getmulti(stored_keys):
                    found.update(here)
                    stored_keys = [stored_key for stored_key in stored_keys if stored_key not in found]
        return found

    def newest_many(self, stored_keys: Sequence[bytes]) -> list[bytes | None]:
        """The newest record of each of many keys, ascending; markers included."""
        records = self.cold.found_in(self.layout.layers, list(stored_keys))
        return list(map(self.found(stored_keys, self.layers).get, stored_keys)) if records is None else records

    def entries(self, database: str) -> int:
        """How many entries a database has; `RUNS` stands for all runs together."""
        if database == RUNS:
            return sum(self.entries(run_name(slot)) for slot in self.state().runs)
        return int(self.txn.stat(self.cold.databases[database])["entries"])

    def foldable(self, state: State, times: int = FOLD_TIMES, most: int = sys.maxsize) -> list[int]:
        """The newest runs, two or more, to be folded into one, or none.

        As far as each has at most `times` the records of those newer than itself, and all of them no more than
        `most`; and further than that, where there are too many.
        """
        runs = [slot for slot in state.runs if slot not in state.merging]
        count = total = 0
        for slot in runs:
            size = self.entries(run_name(slot))
            small = size <= times * total and total + size <= most
            if count and not small and len(runs) - count < RUNS_MAX - 1:
                break
            count, total = count + 1, total + size
        return runs[:count] if count > 1 else []

    def used_bytes(self) -> int:
        """Bytes of the pages that hold something."""
        total = 2  # The two meta pages.
        for name in DATABASES:
            stat = self.txn.stat(self.cold.databases[name])
            total += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return int(total * stat["psize"])

    def state(self) -> State:
        """The state as of this transaction.  Raises `FormatError` for a newer format, `CorruptionError`."""
        data = self.txn.get(b"state", db=self.cold.databases["meta"])
        if data is None:
            raise CorruptionError(self.cold.path, "has no state; restore the store from a backup")
        values = unsealed(self.cold.path, "the store's state", data)
        if values.get("format") != FORMAT:
            raise FormatError(self.cold.path, f"format {values.get('format')}; this version knows {FORMAT}")
        return State(**values)

    def filter(self, slot: int) -> bytes:
        """The filter of a run that has one.  Raises `CorruptionError`."""
        data = self.txn.get(filter_name(slot), db=self.cold.databases["meta"])
        bits = unsealed(self.cold.path, f"the filter of run {slot}", data or b"")
        if not isinstance(bits, bytes) or not bits or len(bits) % BLOCK_BYTES:
            raise CorruptionError(self.cold.path, f"the filter of run {slot} is none")
        return bits

    def settings(self) -> dict[str, object]:
        """The settings remembered in the store."""
        data = self.txn.get(b"settings", db=self.cold.databases["meta"])
        return {} if data is None else cast("dict[str, object]", unsealed(self.cold.path, "the settings", data))

    def dictionary(self, number: int) -> bytes:
        """A trained dictionary by id; KeyError if there is none."""
        data = self.txn.get(number.to_bytes(2, "big"), db=self.cold.databases["dictionaries"])
        if data is None:
            raise KeyError(number)
        if len(data) < 4 or crc32(data[4:]) != int.from_bytes(data[:4], "little"):
            raise CorruptionError(self.cold.path, f"checksum mismatch in dictionary {number}")
        return cast(bytes, data[4:])

    def has_deadline(self, entry: bytes) -> bool:
        """Whether the expiry index has an entry."""
        return self.txn.get(entry, db=self.cold.expiry) is not None

    def dictionary_numbers(self) -> list[int]:
        """Ids of all dictionaries."""
        with self.txn.cursor(self.cold.databases["dictionaries"]) as cursor:
            return [int.from_bytes(key, "big") for key in cursor.iternext(values=False)]

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Live records with `start <= key < stop` in key order, the newest of each.

        It is LMDB that walks, over damage too, as far as that is possible: some of it may end the process.
        """
        if len(self.layers) == 1:
            yield from self.walk(self.layers[0], start, stop, reverse)
            return
        # `merge` takes from the first of those that have a key in common first.
        walks = [self.walk(database, start, stop, reverse) for database in self.layers]
        last = None
        for item in heapq.merge(*walks, key=itemgetter(0), reverse=reverse):
            if item[0] != last:
                last = item[0]
                if not record.is_marker(item[1]):
                    yield item

    def slice(self, start: bytes, stop: bytes | None, reverse: bool, records_max: int, bytes_max: int) -> Slice:
        """The first of what `scan` gives, as many as that, or as pass that many bytes.

        Where the compiled part walks, no damage ends the process, and what is out of order counts as such.
        """
        if (found := self._slice_of_pages(start or None, stop, reverse, records_max, bytes_max)) is not None:
            return Slice(*found)
        some, size, last = Slice([], [], None, False), 0, None
        for stored_key, data in self.scan(start, stop, reverse):
            if last is not None and (stored_key >= last if reverse else stored_key <= last):
                return some._replace(last=last, damaged=True)  # Or it would go round for ever.
            last = stored_key
            some.keys.append(stored_key)
            some.datas.append(data)
            size += len(stored_key) + len(data)
            if len(some.keys) == records_max or size >= bytes_max:
                return some._replace(last=last)
        return some

    def _slice_of_pages(self, start: bytes | None, stop: bytes | None, reverse: bool, *limits: int) -> Any:
        if native is None:
            return None
        first, end = (stop, start) if reverse else (start, stop)
        return native.pages_slice(self.layout.layers, first, end, reverse, *limits, self.cold)

    def walk(
        self, database: Any, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Entries of one database with `start <= key < stop` in key order."""
        with self.txn.cursor(database) as cursor:
            if not reverse:
                if not (cursor.set_range(start) if start else cursor.first()):
                    return
                for item in cursor:
                    if stop is not None and item[0] >= stop:
                        return
                    yield item
                return
            found = cursor.set_range(stop) if stop is not None else False
            if not (cursor.prev() if found else cursor.last()):
                return
            for item in cursor.iterprev():
                if item[0] < start:
                    return
                yield item

    def due(self, until_ms: int, start: bytes = b"") -> Iterator[bytes]:
        """Entries of the expiry index with a deadline up to `until_ms`, from `start` on, in order."""
        limit = (until_ms + 1).to_bytes(DEADLINE_BYTES, "big")
        with self.txn.cursor(self.cold.expiry) as cursor:
            if cursor.set_range(start) if start else cursor.first():
                for key in cursor.iternext(values=False):
                    if key >= limit:
                        return
                    yield key
