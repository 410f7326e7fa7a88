"""The cold tier: records in an LMDB environment; the only module that imports lmdb.

Databases of the environment:

    records       stored key -> record (`record`)
    run-N         the same, newer; a deletion marker hides a record in the layers behind (`cold_state`)
    expiry        deadline (8 bytes, big-endian) + stored key -> nothing
    dictionaries  id (2 bytes, big-endian) -> CRC-32 (4 bytes, little-endian) + dictionary
    meta          "state" -> what `State` holds, "settings" -> remembered settings (both msgpack, after a CRC-32)

Checkpoints become runs (`cold_update`).  Every live record with a deadline has exactly one entry in
`expiry`, and every entry there has its record: the writer reads the old record of each
key it writes, which also keeps the count of records exact.  The cost is a lookup in
every layer for each key written, in key order.

How an environment is opened: `environment`.

The compiled part looks records up in the pages of a read transaction itself (compiled/pages.c), in LMDB's own map,
around a value that LMDB gives without copying it.  LMDB is asked where that cannot be told, but not where a page is
damaged, since it would look wherever the damage leads.

Locking: any thread may read.  Only the holder of the APPLY lock writes.  Readers use
short transactions of their own; an environment that is no longer current is dropped,
not closed, and goes when the last reader lets go of it.  Whoever is at work in an environment
is noted among its users, since closing it under a thread that reads without the interpreter lock would end the
process.  An interrupt at any moment leaves no note that a close would wait for: it is taken away by
one call in a `finally` of the frame that made it, one of the closing thread itself keeps nobody
waiting, and that of a transaction which stays goes with its `Reader`.
"""

from __future__ import annotations

import errno
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any, NamedTuple, NoReturn

import lmdb

from tiered import files, filters, record
from tiered.cold_reader import Reader
from tiered.cold_state import DATABASES, State, run_name
from tiered.cold_update import Update
from tiered.environment import READERS_MAX, open_environment, reserve_lock_file
from tiered.errors import (
    ClosedError,
    CorruptionError,
    LockedError,
    StoreError,
    StoreFullError,
)
from tiered.log import LOG
from tiered.native import native

CLOSE_WAIT_SECONDS = 5.0
_DAMAGE = (
    lmdb.BadTxnError,  # Said of a transaction that has met a damaged page, by which time that may not have been told.
    lmdb.CorruptedError,
    lmdb.CursorFullError,  # Of pages that lead back to themselves.
    lmdb.BadValsizeError,  # Of a key that was read: no key that is written is empty, or too long.
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.IncompatibleError,
    lmdb.NotFoundError,
)


class Layer(NamedTuple):
    """A database that holds records; its filter, and its pages as of a transaction, where there are any to be had."""

    database: Any
    filter: bytes | None
    pages: Any


class Layout(NamedTuple):
    """The layers as of a transaction; those `behind` are enough for keys below `merged_to`."""

    transaction: int
    layers: list[Layer]
    merged_to: bytes
    behind: list[Layer]


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


class Cold:
    """One LMDB environment."""

    __slots__ = ("__dict__", "__weakref__", "_barred", "_env", "_layout", "_users")  # As in `Tiers`.

    def __init__(self, directory: Path, readonly: bool = False, create: bool = False, mend: bool = False) -> None:
        self.path = directory / "data.mdb"
        self.directory = directory
        self._readonly = readonly
        self._users: dict[object, int] = {}  # Something of its own for each time, and the thread.
        self._readers: set[weakref.ref[Reader]] = set()  # Those that stay, of whichever thread.
        self._closed = False
        self._barred = False
        self._filters: dict[int, tuple[int, bytes | None]] = {}  # By slot: the transaction that wrote it, and itself.
        self.filter_bytes, self.filter_bytes_max = 0, 0
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
        self._env = open_environment(self.directory, self._readonly, len(DATABASES))
        undo.callback(self._env.close)
        self._status = self.path.stat()
        self._check_file(mend)
        if create:
            with self._env.begin(write=True) as txn:  # One sync for all of them.
                for name in DATABASES:
                    self._env.open_db(name.encode(), txn=txn)
        self.databases = {name: self._env.open_db(name.encode(), create=False) for name in DATABASES}
        self.records = self.databases["records"]
        self.expiry = self.databases["expiry"]
        self._layout = Layout(-1, [], b"", [])
        with self._env.begin(buffers=True) as txn:
            self._map = native and native.pages_map(txn.get(b"records"), self._env.stat()["psize"])

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
        if self._unused():
            self._env.close()
        else:
            LOG.warning("%s: still in use, and closed when that ends", self.path)

    def _unused(self) -> bool:
        """Wait until no other thread uses the environment, and none can come; False if that takes too long.

        What this thread was doing in it was interrupted, or is further up and finds it closed.
        """
        limit, this = time.monotonic() + CLOSE_WAIT_SECONDS, get_ident()
        while used := bool(self._readers) or any(thread != this for thread in list(self._users.values())):
            if time.monotonic() > limit:
                break
            time.sleep(0.0005)
        return not used

    def _wait_until_open(self, user: object) -> None:
        """The environment is barred: wait until it is not, with the user taken away meanwhile."""
        while self._barred:
            self._users.pop(user, None)
            if self._closed:
                raise ClosedError(self.path, "the store was closed meanwhile")
            time.sleep(0.0005)
            self._users[user] = get_ident()

    def _revive(self) -> None:
        """Open the environment again where LMDB takes no transaction any more, not even for reading.

        So it is after a failed write of a meta page, until nobody in the process has the environment open.
        """
        try:
            self._env.begin().abort()
        except lmdb.PanicError:
            self._barred = True
            try:
                if self._unused():
                    self._env.close()
                    with ExitStack() as undo, translated(self.path):
                        self._open(False, undo)
                        undo.pop_all()
            finally:
                self._barred = self._closed

    @contextmanager
    def _used(self) -> Iterator[None]:
        user = object()
        try:
            # Before the look at `_barred`, and both atomic: `close` sees one or is seen.
            self._users[user] = get_ident()
            if self._barred:
                self._wait_until_open(user)
            yield
        finally:
            self._users.pop(user, None)

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A short read transaction: one moment of the cold tier."""
        with self._used(), translated(self.path), self._env.begin() as txn:
            yield Reader(self, txn)

    def begin(self) -> Reader:
        """A read transaction that stays, until `end`."""
        reader = Reader(self)
        reader.stays = True
        try:
            with self._used(), translated(self.path):
                self._readers.add(weakref.ref(reader, self._readers.discard))
                reader.txn = self._env.begin()
            return reader
        except BaseException:
            self._readers.discard(weakref.ref(reader))
            raise

    def layers(self, state: State) -> list[Any]:
        """The databases that hold records, newest first."""
        return [*(self.databases[run_name(slot)] for slot in state.runs), self.records]

    def layout_of(self, txn: Any) -> Layout:
        """That of the transaction before, unless something was committed since."""
        layout, transaction = self._layout, txn.id()
        if layout.transaction != transaction:
            reader = Reader(self, txn)
            state = reader.state()
            known = self._read_filters(reader, state)
            end = self._pages_bytes()
            runs = {slot: self._layer(txn, run_name(slot), known.get(slot, (0, None))[1], end) for slot in state.runs}
            layers = [*runs.values(), self._layer(txn, "records", None, end)]
            merged = [runs[slot] for slot in state.merging]
            behind = [layer for layer in layers if layer not in merged]
            # Replaced as a whole, by whichever thread comes last.
            self._layout = layout = Layout(transaction, layers, state.merged_to, behind)
        return layout

    def _layer(self, txn: Any, name: str, bits: bytes | None, end: int) -> Layer:
        """That of a database, whose pages end after so many bytes of the file."""
        pages, page_bytes = None, self._env.stat()["psize"]
        if self._map is not None:
            pages = native.pages_of(self._map, page_bytes, end // page_bytes, txn.get(name.encode()))
        return Layer(self.databases[name], bits, pages)

    def _read_filters(self, reader: Reader, state: State) -> dict[int, tuple[int, bytes | None]]:
        """The filters of the runs there are, as many as may be kept; a damaged one is none, and `check` reports it."""
        before, kept, room = self._filters, dict[int, tuple[int, "bytes | None"]](), self.filter_bytes_max
        for slot in state.runs:
            number = state.filters[slot]
            if not number or filters.size_for(reader.entries(run_name(slot))) > room:
                continue
            if before.get(slot, (0,))[0] == number:
                kept[slot] = before[slot]
            else:
                try:
                    kept[slot] = number, reader.filter(slot)
                except CorruptionError:
                    kept[slot] = number, None
            room -= len(kept[slot][1] or b"")
        self._filters, self.filter_bytes = kept, self.filter_bytes_max - room
        return kept

    def found_in(self, layers: list[Layer], stored_keys: list[bytes]) -> list[bytes | None] | None:
        """The newest record of each of these keys, ascending, in layers of a transaction; None: LMDB has to say."""
        found = None if native is None else native.pages_find(layers, stored_keys, self)
        if isinstance(found, bytes):
            self.damaged_page(found)
        return found

    def damaged_page(self, stored_key: bytes) -> NoReturn:
        """Raise what says that a page leads to no record, and to no end of the search."""
        raise CorruptionError(
            self.path, f"damaged page on the way to stored key {stored_key[:60]!r}; restore the store from a backup"
        )

    def end(self, reader: Reader) -> None:
        """End a transaction that `begin` began."""
        try:
            reader.txn.abort()
        finally:
            self._readers.discard(weakref.ref(reader))
            if self._closed and not self._readers and not self._users:
                self._env.close()  # What `close` left to the last one.

    def get(self, stored_key: bytes) -> bytes | None:
        """The record under a key, markers resolved, in a transaction of its own.  About 2 µs."""
        return self.get_at(stored_key)[0]

    def get_at(self, stored_key: bytes) -> tuple[bytes | None, int]:
        """What `get` gives, and the number of the transaction that wrote the moment it was read at."""
        users, user = self._users, object()
        try:
            users[user] = get_ident()  # As in `_used`, which costs more.
            if self._barred:
                self._wait_until_open(user)
            with self._env.begin() as txn:
                transaction, layers, merged_to, behind = self._layout
                if transaction != txn.id():
                    transaction, layers, merged_to, behind = self.layout_of(txn)
                layers = layers if stored_key >= merged_to else behind
                found = self.found_in(layers, [stored_key])
                data = self._asked(txn, layers, stored_key) if found is None else found[0]
        except lmdb.Error:
            with translated(self.path):
                raise
        finally:
            users.pop(user, None)
        return None if data is None or record.is_marker(data) else data, transaction

    def _asked(self, txn: Any, layers: list[Layer], stored_key: bytes) -> bytes | None:
        for database, bits, _ in layers:
            if bits is None or filters.has(bits, stored_key):
                data: bytes | None = txn.get(stored_key, None, database)
                if data is not None:
                    return data
        return None

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

    def oldest_reader(self) -> tuple[int, int]:
        """By how many write transactions the oldest read transaction is behind the last one, and its process."""
        self._env.reader_check()
        lines = (line.split() for line in self._env.readers().splitlines()[1:])
        held = [(int(words[2]), int(words[0])) for words in lines if len(words) == 3 and words[2].isdigit()]
        if not held:
            return 0, 0
        number, pid = min(held)
        return max(0, int(self._env.info()["last_txnid"]) - number), pid

    def used_bytes(self) -> int:
        """Bytes of pages in use, free pages excluded."""
        with self.read() as reader:
            return reader.used_bytes()
