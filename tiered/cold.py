"""The cold tier: records in an LMDB environment; the only module that imports lmdb.

Databases of the environment:

    records       stored key -> record (`record`)
    recent        the same, newer; a deletion marker hides a record in `records`
    expiry        deadline (8 bytes, big-endian) + stored key -> nothing
    dictionaries  id (2 bytes, big-endian) -> CRC-32 (4 bytes, little-endian) + dictionary
    meta          "state" -> what `State` holds, "settings" -> remembered settings (both msgpack, after a CRC-32)

Checkpoints go into `recent`, since a B-tree rewrites a page for every scattered key
and a small tree has few pages; `merge` moves them on in key order.  Every live record
with a deadline has exactly one entry in `expiry`, and every entry there has its
record: the writer reads the old record of each key it writes, which also keeps the
count of records exact.  The cost is one lookup per written key, in key order.

How an environment is opened: `environment`.

Locking: any thread may read.  Only the holder of the APPLY lock writes.  Readers use
short transactions of their own; an environment that is no longer current is dropped,
not closed, and goes when the last reader lets go of it.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from zlib import crc32

import lmdb
import msgpack

from tiered import files, record
from tiered.compression import payload_size
from tiered.environment import READERS_MAX, open_environment, reserve_lock_file
from tiered.errors import (
    ClosedError,
    CorruptionError,
    FormatError,
    LockedError,
    StoreError,
    StoreFullError,
)
from tiered.log import LOG

CLOSE_WAIT_SECONDS = 5.0
FORMAT = 1
_DATABASES = ("records", "recent", "expiry", "dictionaries", "meta")
_DEADLINE_BYTES = 8
_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.IncompatibleError,
    lmdb.NotFoundError,
)


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
    dictionary: int = 0
    dictionary_next: int = 1
    moved: bool = False

    def __init__(self, **values: Any) -> None:
        super().__init__(**{name: values.get(name, getattr(State, name)) for name in State.__annotations__})


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn LMDB's errors into this package's."""
    try:
        yield
    except lmdb.MapFullError:
        raise StoreFullError(path, "larger than the address space that may be reserved; raise the limit") from None
    except lmdb.MapResizedError:
        raise StoreError(
            path, "grew beyond the address space reserved for it beside so many others; open it again"
        ) from None
    except lmdb.ReadersFullError:
        raise StoreError(path, f"more than {READERS_MAX} readers; close some") from None
    except _DAMAGE as error:
        raise CorruptionError(path, f"damaged: {error}; restore it from a backup") from error
    except lmdb.Error as error:
        code = getattr(error, "code", None) or 0
        # LMDB says EIO where the last write before a full disk was cut short.
        if files.is_full(OSError(code, "")) or (code == errno.EIO and files.lacks_room(path.parent)):
            raise StoreFullError(path, "the disk is full; free some space") from None
        if code == errno.EMFILE or "Too many open files" in str(error):
            raise StoreError(path, files.TOO_MANY_FILES) from None
        if "closed/deleted" in str(error):
            raise ClosedError(path, "the store was closed meanwhile") from None
        if "already open in this process" in str(error):
            raise LockedError(path.parent.parent, "already open in this process; use that handle") from None
        raise StoreError(path, f"{error}") from error


def deadline_key(deadline: int, stored_key: bytes) -> bytes:
    """Key in the expiry index."""
    return deadline.to_bytes(_DEADLINE_BYTES, "big") + stored_key


def split_deadline(entry: bytes) -> tuple[int, bytes]:
    """Deadline and stored key of an entry of the expiry index."""
    return int.from_bytes(entry[:_DEADLINE_BYTES], "big"), entry[_DEADLINE_BYTES:]


def _sealed(value: object) -> bytes:
    packed = cast(bytes, msgpack.packb(value))
    return crc32(packed).to_bytes(4, "little") + packed


def _unsealed(path: Path, what: str, data: bytes) -> Any:
    if len(data) < 4 or crc32(data[4:]) != int.from_bytes(data[:4], "little"):
        raise CorruptionError(path, f"checksum mismatch in {what}; restore the store from a backup")
    return msgpack.unpackb(data[4:])


class Cold:
    """One LMDB environment."""

    def __init__(self, directory: Path, readonly: bool = False, create: bool = False, mend: bool = False) -> None:
        self.path = directory / "data.mdb"
        self.directory = directory
        self._readonly = readonly
        self._users: list[None] = []
        self._closed = False
        self._barred = False
        if create:
            directory.mkdir(mode=0o700, exist_ok=True)
        elif not self.path.exists():
            raise CorruptionError(self.path, "missing, though the store names it; restore the store from a backup")
        elif not self.path.stat().st_size:
            # LMDB would make a new, empty environment of it.
            raise CorruptionError(self.path, "truncated to nothing; restore the store from a backup", 0)
        if not readonly:
            reserve_lock_file(directory)
        with ExitStack() as undo:
            with translated(self.path):
                self._open(create, undo, mend)
            if create:
                with self.update():
                    pass  # Writes the first state.
                files.sync_directory(directory)
            undo.pop_all()

    def _open(self, create: bool, undo: ExitStack, mend: bool = False) -> None:
        self._env = open_environment(self.directory, self._readonly, len(_DATABASES))
        undo.callback(self._env.close)
        self._status = self.path.stat()
        self._check_file(mend)
        self._databases = {name: self._env.open_db(name.encode(), create=create) for name in _DATABASES}
        self.records = self._databases["records"]
        self.recent = self._databases["recent"]
        self.expiry = self._databases["expiry"]

    def file_bytes(self) -> int:
        """Bytes of all pages, free ones included."""
        with self._used():
            return self._pages_bytes()

    def _pages_bytes(self) -> int:
        return int((self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"])

    def _check_file(self, mend: bool) -> None:
        """Refuse a data file shorter than its pages: reading past its end would be SIGBUS.

        With `mend` the missing ones become zeros, which LMDB and the records' checksums tell from what was there.
        """
        wanted, size = self._pages_bytes(), self.path.stat().st_size
        if size < wanted and mend:
            LOG.warning("%s: truncated to %d bytes of %d", self.path, size, wanted)
            files.extend(self.path, wanted)
        elif size < wanted:
            raise CorruptionError(
                self.path,
                f"truncated to {size:,} bytes of {wanted:,}; restore the store from a backup, "
                "or have tiered.salvage(path) keep what is there",
                size,
            )

    def in_place(self) -> bool:
        """Whether the data file is still the one at its path."""
        try:
            return os.path.samestat(self._status, self.path.stat())
        except OSError:
            return False

    def close(self) -> None:
        """Close the environment as soon as nobody is using it; who comes later gets `ClosedError`."""
        # Unmapping what another thread is reading, without the interpreter lock, ends the process.
        self._closed = self._barred = True
        if self._unused(0):
            self._env.close()
        else:
            LOG.warning("%s: still in use, and closed when that ends", self.path)

    def _unused(self, users: int) -> bool:
        """Wait until no more than so many use the environment, and none can come; False if that takes too long."""
        limit = time.monotonic() + CLOSE_WAIT_SECONDS
        while len(self._users) > users and time.monotonic() <= limit:
            time.sleep(0.0005)
        return len(self._users) <= users

    def _enter(self) -> None:
        """Keep the environment from being closed until `_leave`."""
        self._users.append(None)  # Before the look at `_barred`, and both atomic: `close` sees one or is seen.
        while self._barred:
            self._users.pop()
            if self._closed:
                raise ClosedError(self.path, "the store was closed meanwhile")
            time.sleep(0.0005)
            self._users.append(None)

    def _revive(self) -> None:
        """Open the environment again where LMDB takes no transaction any more, not even for reading.

        So it is after a failed write of a meta page, until nobody in the process has the environment open.
        """
        try:
            self._env.begin().abort()
        except lmdb.PanicError:
            self._barred = True
            try:
                if self._unused(1):  # The transaction that failed.
                    self._env.close()
                    with ExitStack() as undo, translated(self.path):
                        self._open(False, undo)
                        undo.pop_all()
            finally:
                self._barred = self._closed

    @contextmanager
    def _used(self) -> Iterator[None]:
        self._enter()
        try:
            yield
        finally:
            self._users.pop()

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A short read transaction: one moment of the cold tier."""
        with self._used(), translated(self.path), self._env.begin() as txn:
            yield Reader(self, txn)

    def begin(self) -> Reader:
        """A read transaction that stays, until `end`."""
        self._enter()
        try:
            with translated(self.path):
                return Reader(self, self._env.begin())
        except BaseException:
            self._users.pop()
            raise

    def end(self, reader: Reader) -> None:
        """End a transaction that `begin` began."""
        try:
            reader.txn.abort()
        finally:
            self._users.pop()

    def get(self, stored_key: bytes) -> bytes | None:
        """The record under a key, markers resolved, in a transaction of its own.  About 2 µs."""
        return self.get_at(stored_key)[0]

    def get_at(self, stored_key: bytes) -> tuple[bytes | None, int]:
        """What `get` gives, and the number of the transaction that wrote the moment it was read at."""
        self._enter()
        try:
            with self._env.begin() as txn:
                number = txn.id()
                data = txn.get(stored_key, None, self.recent)
                if data is None:
                    return txn.get(stored_key, None, self.records), number
        except lmdb.Error:
            with translated(self.path):
                raise
        finally:
            self._users.pop()
        return None if record.is_marker(data) else data, number

    @contextmanager
    def update(self) -> Iterator[Update]:
        """A write transaction: everything done through it is on the disk when the block ends, or nothing is."""
        with self._used(), translated(self.path):
            self._env.reader_check()
            try:
                with self._env.begin(write=True) as txn:
                    update = Update(self, txn)
                    yield update
                    update.finish()
            except lmdb.Error:
                self._revive()
                raise
            # LMDB does not write pages that were taken and freed again in one transaction, which
            # may leave the file shorter than it says: `_check_file` must not take that for damage.
            if self.path.stat().st_size < (wanted := self.file_bytes()):
                files.extend(self.path, wanted)

    def state(self) -> State:
        """The state of the last checkpoint."""
        with self.read() as reader:
            return reader.state()

    def readers(self) -> int:
        """How many read transactions are open on this environment, in any process."""
        self._env.reader_check()
        return sum(1 for line in self._env.readers().splitlines()[1:] if line.split()[2:3] != ["-"])

    def used_bytes(self) -> int:
        """Bytes of pages in use, free pages excluded."""
        with self.read() as reader:
            return reader.used_bytes()


class _Access:
    """What reading and writing transactions share."""

    def __init__(self, cold: Cold, txn: Any) -> None:
        self.cold = cold
        self.txn = txn

    def newest(self, stored_key: bytes) -> bytes | None:
        """The record under a key, markers resolved."""
        data = self.txn.get(stored_key, None, self.cold.recent)
        if data is None:
            data = self.txn.get(stored_key, None, self.cold.records)
        return None if data is None or record.is_marker(data) else cast(bytes, data)

    def newest_many(self, stored_keys: Sequence[bytes]) -> list[bytes | None]:
        """`newest` for each of many keys, ascending: two calls of LMDB's binding for all of them."""
        with self.txn.cursor(self.cold.recent) as cursor:
            found = dict(cursor.getmulti(stored_keys))
        rest = [stored_key for stored_key in stored_keys if stored_key not in found] if found else stored_keys
        with self.txn.cursor(self.cold.records) as cursor:
            found.update(cursor.getmulti(rest))
        datas = map(found.get, stored_keys)
        return [None if data is None or record.is_marker(data) else data for data in datas]

    def entries(self, database: str) -> int:
        """How many entries a database has."""
        return int(self.txn.stat(self.cold._databases[database])["entries"])

    def used_bytes(self) -> int:
        """Bytes of the pages that hold something."""
        total = 2  # The two meta pages.
        for name in _DATABASES:
            stat = self.txn.stat(self.cold._databases[name])
            total += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return int(total * stat["psize"])

    def state(self) -> State:
        """The state as of this transaction.  Raises `FormatError` for a newer format, `CorruptionError`."""
        data = self.txn.get(b"state", db=self.cold._databases["meta"])
        if data is None:
            raise CorruptionError(self.cold.path, "has no state; restore the store from a backup")
        values = _unsealed(self.cold.path, "the store's state", data)
        if values.get("format") != FORMAT:
            raise FormatError(self.cold.path, f"format {values.get('format')}; this version knows {FORMAT}")
        return State(**values)

    def settings(self) -> dict[str, object]:
        """The settings remembered in the store."""
        data = self.txn.get(b"settings", db=self.cold._databases["meta"])
        return {} if data is None else cast("dict[str, object]", _unsealed(self.cold.path, "the settings", data))

    def dictionary(self, number: int) -> bytes:
        """A trained dictionary by id; KeyError if there is none."""
        data = self.txn.get(number.to_bytes(2, "big"), db=self.cold._databases["dictionaries"])
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
        with self.txn.cursor(self.cold._databases["dictionaries"]) as cursor:
            return [int.from_bytes(key, "big") for key in cursor.iternext(values=False)]

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Live records with `start <= key < stop` in key order, `recent` over `records`."""
        front = self.walk(self.cold.recent, start, stop, reverse)
        behind = self.walk(self.cold.records, start, stop, reverse)
        newer, older = next(front, None), next(behind, None)
        while newer is not None or older is not None:
            if older is None or (newer is not None and (newer[0] >= older[0] if reverse else newer[0] <= older[0])):
                assert newer is not None
                if older is not None and older[0] == newer[0]:
                    older = next(behind, None)
                if not record.is_marker(newer[1]):
                    yield newer
                newer = next(front, None)
            else:
                yield older
                older = next(behind, None)

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
        limit = (until_ms + 1).to_bytes(_DEADLINE_BYTES, "big")
        with self.txn.cursor(self.cold.expiry) as cursor:
            if cursor.set_range(start) if start else cursor.first():
                for key in cursor.iternext(values=False):
                    if key >= limit:
                        return
                    yield key


class Reader(_Access):
    """A read transaction."""

    @property
    def number(self) -> int:
        """The number of the write transaction whose outcome it sees."""
        return int(self.txn.id())


class Update(_Access):
    """A write transaction.  `current`, the state, is written back when it ends."""

    def __init__(self, cold: Cold, txn: Any) -> None:
        super().__init__(cold, txn)
        self._meta = cold._databases["meta"]
        self.current = self.state() if txn.get(b"state", db=self._meta) else State()

    def finish(self) -> None:
        """Write the state back."""
        self.txn.put(b"state", _sealed(vars(self.current)), db=self._meta)

    def put_settings(self, settings: dict[str, object]) -> None:
        """Remember these settings."""
        self.txn.put(b"settings", _sealed(settings), db=self._meta)

    def put_dictionary(self, number: int, data: bytes) -> None:
        """Keep a dictionary; it must be committed no later than the first record that uses it."""
        sealed = crc32(data).to_bytes(4, "little") + data
        self.txn.put(number.to_bytes(2, "big"), sealed, db=self.cold._databases["dictionaries"])

    def write(self, changes: Sequence[Change]) -> None:
        """Make these the state of their keys.  Keys ascending, each once."""
        txn, cold, state = self.txn, self.cold, self.current
        behind_any = self.entries("records") > 0
        front_any = self.entries("recent") > 0
        puts: list[tuple[bytes, bytes]] = []
        index_puts: list[tuple[bytes, bytes]] = []
        get, recent, records, is_marker = txn.get, cold.recent, cold.records, record.is_marker
        added = stored_bytes = packed_bytes = 0
        for key, data, deadline, size in changes:
            front = get(key, None, recent) if front_any else None
            # Whether `records` has the key matters where `recent` has nothing to say, and
            # for a deletion, which needs a marker only over something.
            behind = get(key, None, records) if behind_any and (front is None or data is None) else None
            old = behind if front is None else (None if is_marker(front) else front)
            if old is not None:
                self._forget(key, old)
            if data is not None:
                added += 1
                stored_bytes += len(data)
                packed_bytes += size
                if deadline:
                    index_puts.append((deadline_key(deadline, key), b""))
                puts.append((key, data))
            elif behind is not None:
                puts.append((key, record.pack_marker(key)))
            elif front is not None:
                txn.delete(key, db=recent)
        state.records += added
        state.stored_bytes += stored_bytes
        state.packed_bytes += packed_bytes
        if puts:
            with txn.cursor(recent) as cursor:
                cursor.putmulti(puts)
        if index_puts:
            index_puts.sort()
            with txn.cursor(cold.expiry) as cursor:
                cursor.putmulti(index_puts)

    def _forget(self, key: bytes, old: bytes) -> None:
        """A live record is replaced or goes: undo what it counted for, its deadline included."""
        self._uncount(old)
        if deadline := record.deadline_of(old):
            self.txn.delete(deadline_key(deadline, key), db=self.cold.expiry)

    def _uncount(self, old: bytes) -> None:
        state = self.current
        state.records -= 1
        state.stored_bytes -= len(old)
        state.packed_bytes -= _packed_size(old)

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
                self._uncount(data)
                removed.append(stored_key)
        for stored_key in sorted(removed):
            self.txn.delete(stored_key, db=self.cold.recent)
            self.txn.delete(stored_key, db=self.cold.records)
        return len(due)

    def merge(self, after: bytes, limit: int) -> tuple[bytes, int]:
        """Move up to `limit` records from `recent`, from `after` on, into `records`, in key order.

        Returns where to go on (b"" when the end was reached) and how many were moved.
        """
        items: list[tuple[bytes, bytes]] = []
        with self.txn.cursor(self.cold.recent) as cursor:
            if cursor.set_range(after) if after else cursor.first():
                for item in cursor:
                    items.append(item)
                    if len(items) >= limit:
                        break
        puts: list[tuple[bytes, bytes]] = []
        for key, data in items:
            if record.is_marker(data):
                self.txn.delete(key, db=self.cold.records)
            else:
                puts.append((key, data))
        if puts:
            with self.txn.cursor(self.cold.records) as cursor:
                append = not cursor.last() or cursor.key() < puts[0][0]
                _all_put(self.cold.path, cursor.putmulti(puts, append=append), len(puts))
        if len(items) == self.entries("recent"):
            self.txn.drop(self.cold.recent, delete=False)
        else:
            with self.txn.cursor(self.cold.recent) as cursor:
                if items and cursor.set_key(items[0][0]):
                    for _ in items:
                        cursor.delete()
        return (items[-1][0] + b"\0" if len(items) == limit else b""), len(items)

    def append_records(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Put records after all there are: how a compacted or restored cold tier is filled."""
        index_puts = []
        for key, data in items:
            self.current.records += 1
            self.current.stored_bytes += len(data)
            self.current.packed_bytes += _packed_size(data)
            if deadline := record.deadline_of(data):
                index_puts.append((deadline_key(deadline, key), b""))
        with self.txn.cursor(self.cold.records) as cursor:
            _all_put(self.cold.path, cursor.putmulti(list(items), append=True), len(items))
        if index_puts:
            with self.txn.cursor(self.cold.expiry) as cursor:
                cursor.putmulti(sorted(index_puts))

    def clear(self) -> None:
        """Delete every record; dictionaries and settings stay."""
        for database in (self.cold.records, self.cold.recent, self.cold.expiry):
            self.txn.drop(database, delete=False)
        state = self.current
        state.records = state.stored_bytes = state.packed_bytes = 0


def _all_put(path: Path, counts: tuple[int, int], wanted: int) -> None:
    """LMDB leaves out, without a word, what is appended and does not come after all there is."""
    if counts[1] != wanted:
        raise CorruptionError(path, f"{wanted - counts[1]} records are not in order; restore the store from a backup")


def _packed_size(data: bytes) -> int:
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
