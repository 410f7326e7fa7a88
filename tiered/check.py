"""Invariants across the tiers: what must hold at every moment, looked at from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tiered import filters, keys, record
from tiered.cold_reader import Reader
from tiered.cold_state import deadline_key, run_name, split_deadline
from tiered.engine import Engine
from tiered.errors import CorruptionError
from tiered.journal import Dirty

FINDINGS_MAX = 100
PROGRESS_RECORDS = 2048
NEVER_MS = (1 << 63) - 1


class Finding(NamedTuple):
    """Something that should not be."""

    what: str
    where: str
    detail: str


def check_engine(engine: Engine) -> list[Finding]:
    """Everything that is wrong, up to 100 findings.  Holds the lock, so that nothing moves meanwhile."""
    findings = Findings()
    inside = engine.owned()
    with engine.lock:
        _check_accounting(engine, findings)
        try:
            with engine.reading(inside) as reader:
                _check_hot(engine, reader, findings)
                check_cold(reader, lambda stored_key, data: engine.opened(engine.cold, stored_key, data), findings)
        except CorruptionError as error:
            findings.add("damaged store", error.path, error.message)
    return findings.closed()


def _check_accounting(engine: Engine, findings: Findings) -> None:
    hot = engine.hot
    if wrong := hot.wrong():
        findings.add("accounting drift", f"hot tier ({hot.name})", wrong)
    journal = engine.journal
    if journal is not None and engine.buffers:
        newest = engine.buffers[0].segment
        if newest is journal.active and newest.last != journal.last:
            findings.add("sequence", str(newest.path), f"ends at {newest.last}, journal at {journal.last}")


def _check_hot(engine: Engine, reader: Reader, findings: Findings) -> None:
    """Every hot value is the newest record of its key below."""
    for key in engine.hot:
        peeked = engine.hot.peek(key)
        if peeked is None:
            findings.add("hot index", repr(key)[:80], "in the order of use, but not found")
            continue
        number, payload, deadline, _ = peeked
        encoded = keys.encode(key)
        stored_key = keys.stored(encoded)
        where = engine.dirty(stored_key)
        if where is not None:
            found = where[0].segment.put_at(where[1]) if where[1] >= 0 else None
        else:
            data = reader.newest(stored_key)
            found = None if data is None else engine.opened(engine.cold, stored_key, data, encoded)
        if found is None:
            # The cold tier may have removed what expired before the hot tier noticed.
            if not 0 < deadline <= engine.clock.now_ms():
                findings.add("hot only", repr(key)[:80], "in no tier below")
        # Payloads, not values: to make these could run code of registered types, under the lock.
        elif (number, payload) != (found.codec, found.payload) or found.deadline != deadline:
            findings.add("hot differs", repr(key)[:80], "not the newest record below")


class Findings(list[Finding]):
    """What was found so far, up to 100; of the rest only how many."""

    left_out = 0

    def add(self, what: str, where: object, detail: str) -> None:
        """Note one more."""
        if len(self) < FINDINGS_MAX:
            self.append(Finding(what, str(where), detail))
        else:
            self.left_out += 1

    def closed(self) -> list[Finding]:
        """All of them, as a list."""
        if self.left_out:
            self.append(Finding("more", "", f"{self.left_out:,} more findings are not listed"))
        return list(self)


def check_cold(
    reader: Reader,
    undone: Callable[[bytes, bytes], Dirty | None],
    findings: Findings,
    examine: Callable[[bytes, Dirty], object] = lambda stored_key, found: None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Counts, checksums, dictionaries, and the expiry index both ways.

    `undone` makes a record's payload and raises `CorruptionError`; `examine` looks at that, and raises ValueError.
    A damaged page of LMDB's ends it, by what LMDB raises.
    """
    path, state, numbers = reader.cold.path, reader.state(), set(reader.dictionary_numbers())
    _check_filters(reader, findings)
    records = stored_bytes = with_deadline = 0
    last = b""
    for stored_key, data in reader.scan():
        if stored_key <= last:  # A page that is whole, and not the one that belongs there.
            findings.add("order", path, f"{stored_key[:60]!r} comes after {last[:60]!r}")
        last = stored_key
        records += 1
        stored_bytes += len(data)
        if not records % PROGRESS_RECORDS:
            progress(records, max(records, state.records))
        number = int.from_bytes(data[8:10], "little")
        try:
            found = undone(stored_key, data)
            if found is not None:
                examine(stored_key, found)
        except CorruptionError as error:
            missing = number and number not in numbers
            findings.add("damaged record", error.path, error.message)
            if missing:
                findings.add("dictionary", repr(stored_key)[:80], f"{number} is missing")
            continue
        except ValueError as error:
            findings.add("damaged record", repr(stored_key)[:80], str(error))
            continue
        if found is not None and found.deadline:
            with_deadline += 1
            if not reader.has_deadline(deadline_key(found.deadline, stored_key)):
                findings.add("expiry index", repr(stored_key)[:80], "record missing from it")
    if records != state.records:
        findings.add("count", path, f"{state.records} kept, {records} counted")
    if stored_bytes != state.stored_bytes:
        findings.add("bytes", path, f"{state.stored_bytes} kept, {stored_bytes} counted")
    if with_deadline != reader.entries("expiry"):
        findings.add("expiry index", path, f"{reader.entries('expiry')} entries for {with_deadline} records")
    for entry in reader.due(NEVER_MS):
        deadline, stored_key = split_deadline(entry)
        kept = reader.newest(stored_key)
        if kept is None or record.deadline_of(kept) != deadline:
            findings.add("expiry index", repr(stored_key)[:80], f"an entry for {deadline}, which is no deadline of it")
    progress(records, records)


def _check_filters(reader: Reader, findings: Findings) -> None:
    """Every run's filter knows every key of it."""
    state = reader.state()
    for slot in filter(state.filters.__getitem__, state.runs):
        try:
            bits = reader.filter(slot)
        except CorruptionError as error:
            findings.add("filter", error.path, f"{error.message}; reads do without it until the next compaction")
            continue
        with reader.txn.cursor(reader.cold.databases[run_name(slot)]) as cursor:
            for stored_key in cursor.iternext(values=False):
                if not filters.has(bits, stored_key):
                    findings.add("filter", repr(stored_key)[:80], f"unknown to the filter of run {slot}, which has it")
