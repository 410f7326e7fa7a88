"""Invariants across the tiers: what must hold at every moment, looked at from outside."""

from __future__ import annotations

from dataclasses import dataclass

from tiered import keys
from tiered.cold_reader import Reader
from tiered.cold_state import deadline_key
from tiered.engine import Engine
from tiered.errors import CorruptionError
from tiered.hot import Expiring, payload_of

_FINDINGS_MAX = 100


@dataclass(frozen=True)
class Finding:
    """Something that should not be."""

    what: str
    where: str
    detail: str


def check_engine(engine: Engine) -> list[Finding]:
    """Everything that is wrong, up to 100 findings.  Holds the lock, so that nothing moves meanwhile."""
    findings: list[Finding] = []
    with engine.lock, engine.cold.read() as reader:
        _check_accounting(engine, findings)
        _check_hot(engine, reader, findings)
        _check_cold(engine, reader, findings)
    return findings[:_FINDINGS_MAX]


def _check_accounting(engine: Engine, findings: list[Finding]) -> None:
    hot = engine.hot
    recount = hot.recount()
    if recount != hot.entry_bytes:
        findings.append(Finding("accounting drift", "hot tier", f"accounted {hot.entry_bytes}, counted {recount}"))
    expiring = sum(entry.__class__ is Expiring for entry in list(hot.table.values()))
    if expiring != len(hot.deadlines):
        findings.append(Finding("deadline index", "hot tier", f"{len(hot.deadlines)} deadlines, {expiring} entries"))
    journal = engine.journal
    if journal is not None and engine.buffers:
        newest = engine.buffers[0].segment
        if newest is journal.active and newest.last != journal.last:
            findings.append(Finding("sequence", str(newest.path), f"ends at {newest.last}, journal at {journal.last}"))


def _check_hot(engine: Engine, reader: Reader, findings: list[Finding]) -> None:
    """Every hot value is the newest record of its key below."""
    for key, entry in list(engine.hot.table.items()):
        deadline = 0
        if entry.__class__ is Expiring:
            entry, deadline = entry
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
                findings.append(Finding("hot only", repr(key)[:80], "in no tier below"))
        # Payloads, not values: to make these could run code of registered types, under the lock.
        elif payload_of(entry) != (found.codec, found.payload) or found.deadline != deadline:
            findings.append(Finding("hot differs", repr(key)[:80], "not the newest record below"))


def _check_cold(engine: Engine, reader: Reader, findings: list[Finding]) -> None:
    """Counts, checksums, and the expiry index both ways."""
    state = reader.state()
    records = stored_bytes = with_deadline = 0
    for stored_key, data in reader.scan():
        records += 1
        stored_bytes += len(data)
        try:
            found = engine.opened(engine.cold, stored_key, data)
        except CorruptionError as error:
            findings.append(Finding("damaged record", error.path, error.message))
            continue
        if found is not None and found.deadline:
            with_deadline += 1
            if not reader.has_deadline(deadline_key(found.deadline, stored_key)):
                findings.append(Finding("expiry index", repr(stored_key)[:80], "record missing from it"))
    if records != state.records:
        findings.append(Finding("count", str(engine.cold.path), f"{state.records} kept, {records} counted"))
    if stored_bytes != state.stored_bytes:
        findings.append(Finding("bytes", str(engine.cold.path), f"{state.stored_bytes} kept, {stored_bytes} counted"))
    if with_deadline != reader.entries("expiry"):
        detail = f"{reader.entries('expiry')} entries for {with_deadline} records"
        findings.append(Finding("expiry index", str(engine.cold.path), detail))
    numbers = set(reader.dictionary_numbers())
    for stored_key, data in reader.scan():
        number = int.from_bytes(data[8:10], "little")
        if number and number not in numbers:
            findings.append(Finding("dictionary", repr(stored_key)[:80], f"{number} is missing"))
            break
