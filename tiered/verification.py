"""Reading every byte of a snapshot or a store, and saying what is wrong with it.

`verify` writes nothing but LMDB's table of readers, and takes no lock that anybody waits for, so
that it works beside a program that has the store open, on what a crash left, and on a
read-only medium.  Damage is a finding, never an exception.  Of a store it reads one moment: the last
checkpoint, and the journal as far as recovery would apply it.  Memory: one section of a
snapshot, or the largest record.

Not found, since LMDB trusts its own pages: a page of its tree that is damaged in a way that leads
nowhere.  Values, keys, counts and indexes are all looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tiered import codec, files, keys, record, recovery
from tiered.check import Finding, Findings, check_cold
from tiered.cold import Cold, translated
from tiered.cold_reader import Reader
from tiered.compression import Decompressor
from tiered.errors import CorruptionError, FormatError, NotAStoreError, StoreError, UnknownTypeError
from tiered.journal import PUT, Dirty
from tiered.opening import named_errors
from tiered.sharing import HANDLES
from tiered.snapshot import SnapshotFile

Progress = Callable[[int, int], object]
TRIES = 5


def verify(path: str | os.PathLike[str], progress: Progress | None = None) -> list[Finding]:
    """What is wrong with the snapshot file or the store at `path`: every byte is read, every checksum compared, every
    record decompressed and decoded, counts, dictionaries and the expiry index compared, the journal read.

    `[]` if all is well; else up to 100 findings.  Also while the store is open, here or in another process: then
    of the last checkpoint, and the journal.  Values of types that this program has not registered are not decoded.
    Raises `NotAStoreError` where there is neither, `FormatError` for a newer format, `ReadOnlyError` where it may not
    be read.  Some 5 µs per record.
    """
    target = Path(os.path.abspath(os.fsdecode(path)))
    findings = Findings()
    told = progress or (lambda done, total: None)
    with named_errors(target):
        if target.is_dir():
            _verify_store(target, findings, told)
        else:
            _verify_snapshot(target, findings, told)
    return findings.closed()


class Undoing:
    """Records to payloads and values, as the dictionaries of one file or store allow."""

    def __init__(self, path: Path, load: Callable[[int], bytes]) -> None:
        self._path = path
        self._decompressor = Decompressor(load)

    def undone(self, stored_key: bytes, data: bytes) -> Dirty | None:
        """A record undone to its payload.  Raises `CorruptionError`."""
        try:
            found = record.unpack(stored_key, data)
            if found is None:
                return None
            payload = self._decompressor.decompress(found.compression, found.dictionary, found.body)
        except (ValueError, KeyError) as error:
            raise CorruptionError(self._path, f"damaged record under stored key {stored_key[:60]!r}: {error}") from None
        return Dirty(found.codec, found.deadline, found.full_key, payload)

    @staticmethod
    def examine(stored_key: bytes, found: Dirty) -> None:
        """Raise ValueError where key or value cannot be read."""
        encoded = found.full_key or stored_key
        if keys.stored(encoded) != stored_key:
            raise ValueError("a full key that is stored elsewhere")
        keys.decode(encoded)
        _check_value(found.codec, found.payload)


def _check_value(number: int, payload: bytes) -> None:
    try:
        codec.decode(number, payload)
    except UnknownTypeError:
        pass  # Another program's: whole, and not ours to read.
    except Exception as error:  # Also what a registered type's `unpack` raises.
        raise ValueError(f"a value that cannot be read: {repr(error)[:200]}") from None


# A snapshot


def _verify_snapshot(path: Path, findings: Findings, progress: Progress) -> None:
    told: list[CorruptionError] = []

    def damaged(error: CorruptionError) -> None:
        told.append(error)
        findings.add("damaged snapshot", path, error.message.removeprefix("damaged snapshot: "))

    dictionaries: dict[int, bytes] = {}
    undoing = Undoing(path, dictionaries.__getitem__)
    records = 0
    try:
        with SnapshotFile(path, damaged) as file:
            total = file.about.records
            for part in file.read():
                if isinstance(part[0], int):
                    dictionaries[part[0]] = part[1]
                    continue
                for stored_key, data in zip(*part, strict=True):
                    _verify_record(undoing, stored_key, data, findings)
                records += len(part[0])
                progress(records, max(records, total))
            if file.about.dictionary and file.about.dictionary not in dictionaries:
                findings.add("dictionary", path, f"{file.about.dictionary} is missing")
    except CorruptionError as error:
        if not told:
            damaged(error)


def _verify_record(undoing: Undoing, stored_key: bytes, data: bytes, findings: Findings) -> None:
    try:
        found = undoing.undone(stored_key, data)
        if found is None:
            findings.add("damaged record", repr(stored_key)[:80], "a deletion marker, which no snapshot has")
        else:
            undoing.examine(stored_key, found)
    except CorruptionError as error:
        findings.add("damaged record", error.path, error.message)
    except ValueError as error:
        findings.add("damaged record", repr(stored_key)[:80], str(error))


# A store


def _verify_store(directory: Path, findings: Findings, progress: Progress) -> None:
    names = os.listdir(directory)
    if files.CURRENT not in names:
        if not any(files.is_store_file(name) for name in names):
            raise NotAStoreError(directory, "no store there")
        findings.add("no CURRENT", directory / files.CURRENT, "missing: nothing says which cold tier is the live one")
        return
    try:
        with _opened(directory) as reader, translated(reader.cold.path):
            _verify_cold(reader, findings, progress)
        _verify_journal(directory, findings)
    except FormatError:
        raise
    except CorruptionError as error:
        findings.add("damaged store", error.path, error.message)


@contextmanager
def _opened(directory: Path) -> Iterator[Reader]:
    """One moment of the live cold tier, which this process may have open already."""
    engine = HANDLES.engine_at(directory)
    if engine is not None:
        with engine.cold.read() as reader:
            yield reader
        return
    cold = _open_cold(directory)
    try:
        with cold.read() as reader:
            yield reader
    finally:
        cold.close()


def _open_cold(directory: Path) -> Cold:
    for _ in range(TRIES):
        try:
            number = files.read_current(directory)
        except ValueError as error:
            raise CorruptionError(directory / files.CURRENT, str(error)) from None
        try:
            return Cold(files.cold_path(directory, number or 0), readonly=True)
        except StoreError as error:
            failure = error
            if files.read_current(directory) == number:
                break  # Else a compaction replaced it between the two steps.
    raise failure


def _verify_cold(reader: Reader, findings: Findings, progress: Progress) -> None:
    """Everything in it."""
    state = reader.state()
    reader.settings()
    for number in reader.dictionary_numbers():
        try:
            reader.dictionary(number)
        except CorruptionError as error:
            findings.add("dictionary", error.path, error.message)
    if state.dictionary and state.dictionary not in reader.dictionary_numbers():
        findings.add("dictionary", reader.cold.path, f"{state.dictionary}, which is in use, is missing")
    undoing = Undoing(reader.cold.path, reader.dictionary)
    check_cold(reader, undoing.undone, findings, undoing.examine, progress)


def _verify_journal(directory: Path, findings: Findings) -> None:
    """What of the journal a checkpoint does not hold yet.

    Beside a writer it changes while it is read, and what looks like damage may be that:
    it is believed when it is found twice in the same place.
    """
    before: tuple[str, int | None, str] | None = None
    for _ in range(TRIES):
        with _opened(directory) as reader:
            applied = reader.state().applied
        try:
            plan = recovery.plan(directory, applied)
        except FileNotFoundError:
            continue  # Applied meanwhile.
        except CorruptionError as error:
            if before == (found := (error.path, error.offset, error.message)):
                findings.add("damaged journal", error.path, error.message)
                return
            before = found
            continue
        for segment in plan.segments:
            for entry in segment.entries():
                if entry.kind == PUT and applied < entry.sequence <= plan.until:
                    try:
                        keys.decode(entry.key)
                        _check_value(entry.codec, segment.slice(entry.start, entry.end))
                    except ValueError as error:
                        findings.add("damaged record", segment.path, f"number {entry.sequence}: {error}")
        return
