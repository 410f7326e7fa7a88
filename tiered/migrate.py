"""What `shelve`, `diskcache`, `sqlitedict` and JSON lines hold, into a store.

    from tiered import migrate

    result = migrate.from_json_lines("users.jsonl", store, key="id")
    result = migrate.from_shelve("users.db", store, allow_pickle=True)

All of it streams, in batches of up to 1,000 rows, so memory stays flat.  A row that cannot be taken is
never left out silently: it is counted in the result, the first hundred with position and reason, and
the rest goes on.  Running it again writes the same again.  The packages themselves are not needed: the files of
`diskcache` and `sqlitedict` are SQLite databases, which are opened read-only.

Pickle.  What `shelve` and, by default, `sqlitedict` and `diskcache` keep are pickles, and
reading a pickle can run any code that its writer chose.  So that takes `allow_pickle=True`, which says that
you trust whoever could write to the file.  The store itself keeps no pickles: values come
into it if they are of its types, else their rows are reported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tiered import codec
from tiered.errors import ConfigError, NotAStoreError, StoreError
from tiered.store import Store

if TYPE_CHECKING:
    from sqlite3 import Connection

BATCH_ROWS = 1000
BAD_ROWS_MAX = 100
Progress = Callable[[int, "int | None"], object]
"""Told how many rows are done, and how many there are, None where that is not known."""
_UNSAFE = (
    "{} holds pickled values, and reading a pickle can run any code that whoever wrote it chose; "
    "pass allow_pickle=True if you trust everybody who could write to it"
)
_DISKCACHE_BYTES, _DISKCACHE_FILE_BYTES, _DISKCACHE_TEXT, _DISKCACHE_PICKLE = 1, 2, 3, 4


class BadRow(NamedTuple):
    """A row that was not taken: where it is in the source (line, row id or key), and why."""

    position: int | str
    reason: str


@dataclass
class Migration:
    """What came of it: `read` rows, of which `written` are in the store, `expired` were over, `bad` were not taken."""

    read: int = 0
    written: int = 0
    expired: int = 0
    bad: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    """The first hundred of them."""

    def refuse(self, position: int | str, reason: object) -> None:
        """Count a row that cannot be taken."""
        self.bad += 1
        if len(self.bad_rows) < BAD_ROWS_MAX:
            self.bad_rows.append(BadRow(position, str(reason)[:500]))


class Packed(NamedTuple):
    """A value that is encoded already: its codec and payload."""

    codec: int
    payload: bytes


class Made(NamedTuple):
    """What a row holds: key, value (or a `Packed` one), and when it expires, in seconds since the epoch."""

    key: Any
    value: Any
    expires: float | None = None


class Row(NamedTuple):
    """One row to be written; `make` gives what it holds, and may raise."""

    position: int | str
    make: Callable[[], Made]


def from_json_lines(
    source: str | os.PathLike[str],
    store: Store[Any, Any],
    key: str | None = None,
    progress: Progress | None = None,
    strict: bool = False,
) -> Migration:
    """Write each line of a file: an object with its key in the field `key`, or without `key` a pair `[key, value]`.

    A key that is a JSON array becomes a tuple.  Blank lines do not count.  `progress(done, None)` is told of lines.
    `strict`, here and below, stops at the first row that cannot be taken.
    """

    def parse(line: bytes) -> Made:
        found = json.loads(line)
        if key is not None:
            return keyed(found, key)
        if not isinstance(found, list) or len(found) != 2:
            raise ValueError("not a pair [key, value]; name the field of the key with key=")
        return Made(_as_key(found[0]), found[1])

    with _opened(Path(source)) as file:
        return write(lines(file, parse), store, None, progress, strict)


def lines(file: Iterable[bytes], parse: Callable[[bytes], Made]) -> Iterator[Row]:
    """A row for each line of a file that is not blank, by its number."""
    for number, line in enumerate(file, 1):
        if line.strip():
            yield Row(number, lambda line=line: parse(line))  # type: ignore[misc]


def keyed(found: Any, key: str) -> Made:
    """An object under what one of its fields holds.  Raises ValueError."""
    if not isinstance(found, dict):
        raise ValueError("not an object")
    if key not in found:
        raise ValueError(f"no field {key!r}")
    return Made(_as_key(found[key]), found)


def _as_key(found: Any) -> Any:
    return tuple(map(_as_key, found)) if isinstance(found, list) else found


def _opened(path: Path) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise NotAStoreError(path, f"cannot be read: {error.strerror}") from None


def from_shelve(
    source: str | os.PathLike[str],
    store: Store[Any, Any],
    *,
    allow_pickle: bool = False,
    progress: Progress | None = None,
    strict: bool = False,
) -> Migration:
    """Write what a shelf holds, under its keys, which are `str`.

    A shelf is all pickles: reading one can run any code that whoever wrote it chose, so that it takes
    `allow_pickle=True`, which says that you trust everybody who could write to the file; else `ConfigError`.
    `source` is the name given to `shelve.open`.
    """
    import dbm

    loads = _unpickler(source, allow_pickle)
    try:
        shelf = dbm.open(os.fsdecode(source), "r")  # noqa: SIM115  Closed below.
    except (OSError, *dbm.error) as error:
        raise NotAStoreError(source, f"no shelf that can be read: {error}") from None

    def rows() -> Iterator[Row]:
        for name in _keys_of(shelf):
            position = name.decode("utf-8", "replace")
            yield Row(position, lambda name=name: Made(name.decode(), loads(shelf[name])))  # type: ignore[misc]

    with shelf:
        return write(rows(), store, None, progress, strict)


def _keys_of(shelf: Any) -> Iterator[bytes]:
    """The keys one by one where the kind of file allows that, else as a list."""
    if not hasattr(shelf, "firstkey"):
        yield from shelf.keys()
        return
    name = shelf.firstkey()
    while name is not None:
        yield name
        name = shelf.nextkey(name)


def from_sqlitedict(
    source: str | os.PathLike[str],
    store: Store[Any, Any],
    table: str = "unnamed",
    *,
    decode: Callable[[Any], Any] | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
    strict: bool = False,
) -> Migration:
    """Write what one table of a `SqliteDict` holds, under its keys.

    By default its values are pickles: reading one can run any code that whoever wrote it chose, so that it takes
    `allow_pickle=True`, which says that you trust everybody who could write to the file; else `ConfigError`.
    `decode` is what was given to `SqliteDict(decode=…)`, such as `json.loads`, and then there is no pickle.
    """
    loads = decode if decode is not None else _unpickler(source, allow_pickle)
    quoted = '"' + table.replace('"', '""') + '"'

    def rows() -> Iterator[Row]:
        for number, name, value in database.execute(f"SELECT rowid, key, value FROM {quoted} ORDER BY rowid"):
            yield Row(number, lambda name=name, value=value: Made(name, loads(value)))  # type: ignore[misc]

    with closing(_connected(Path(source))) as database:
        total = _one(database, source, f"SELECT COUNT(*) FROM {quoted}")
        return write(rows(), store, total, progress, strict)


def from_diskcache(
    source: str | os.PathLike[str],
    store: Store[Any, Any],
    *,
    allow_pickle: bool = False,
    progress: Progress | None = None,
    strict: bool = False,
) -> Migration:
    """Write what a `diskcache.Cache` holds, under its keys, with what is left of their time to live.

    Text, bytes and numbers are kept as they are; everything else is a pickle: reading one can run any code that whoever
    wrote it chose, so that it takes `allow_pickle=True`, which says that you trust everybody who could write to the
    directory; else a cache with any pickle is a `ConfigError`, before anything is written.  Tags are left behind.
    """
    directory = Path(source)

    def made(name: Any, raw: int, mode: int, file: str | None, value: Any, expires: float | None) -> Made:
        name = name if raw else loads(name)
        if file is not None:
            path = directory / file
            if not path.resolve().is_relative_to(directory.resolve()):
                raise ValueError(f"its value is outside of the cache: {file}")
            value = path.read_text("utf-8") if mode == _DISKCACHE_TEXT else path.read_bytes()
        return Made(name, loads(value) if mode == _DISKCACHE_PICKLE else value, expires)

    def rows() -> Iterator[Row]:
        columns = "rowid, key, raw, mode, filename, value, expire_time"
        for number, *parts in database.execute(f"SELECT {columns} FROM Cache ORDER BY rowid"):
            yield Row(number, lambda parts=parts: made(*parts))  # type: ignore[misc]

    with closing(_connected(directory / "cache.db")) as database:
        total = _one(database, source, "SELECT COUNT(*) FROM Cache")
        pickled = _one(database, source, f"SELECT COUNT(*) FROM Cache WHERE mode = {_DISKCACHE_PICKLE} OR NOT raw")
        loads = _unpickler(source, allow_pickle) if pickled else bytes
        return write(rows(), store, total, progress, strict)


def _unpickler(source: str | os.PathLike[str], allowed: bool) -> Callable[[Any], Any]:
    if not allowed:
        raise ConfigError(_UNSAFE.format(os.fsdecode(source)))
    import pickle  # Only here, and only where the caller has said so.

    return pickle.loads


def _connected(path: Path) -> Connection:
    import sqlite3

    if not path.is_file():
        raise NotAStoreError(path, "no such file")
    try:
        return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise StoreError(path, f"cannot be read: {error}") from None


def _one(database: Connection, source: str | os.PathLike[str], query: str) -> int:
    import sqlite3

    try:
        return int(database.execute(query).fetchone()[0])
    except sqlite3.Error as error:
        raise NotAStoreError(source, f"not what was expected there: {error}") from None


def write(
    rows: Iterable[Row],
    store: Store[Any, Any],
    total: int | None = None,
    progress: Progress | None = None,
    strict: bool = False,
) -> Migration:
    """Write rows in batches.  `strict` stops at the first that cannot be taken; those before it are written."""
    import sqlite3

    result = Migration()
    source = iter(rows)
    try:
        while not (strict and result.bad) and (batch := list(islice(source, BATCH_ROWS))):
            _write_batch(batch, store, result, strict)
            if progress is not None:
                progress(result.read, total)
    except sqlite3.Error as error:
        raise StoreError(store.path, f"reading stopped after {result.read:,} rows: {error}") from error
    return result


def _write_batch(batch: list[Row], store: Store[Any, Any], result: Migration, strict: bool) -> None:
    plain: list[Made] = []
    positions: list[int | str] = []
    for row in batch:
        result.read += 1
        try:
            made = row.make()
        except Exception as error:  # Whatever unpickling, `decode` or a bad row raises.
            _flush(plain, positions, store, result, strict)  # So that rows are refused in their order.
            if strict and result.bad:
                return
            result.refuse(row.position, f"{type(error).__name__}: {error}")
        else:
            if made.expires is not None or type(made.value) is Packed:
                # In their order, should a key come twice.
                _flush(plain, positions, store, result, strict)
                if not (strict and result.bad):
                    _write_one(made, row.position, store, result)
            else:
                plain.append(made)
                positions.append(row.position)
        if strict and result.bad:
            return
    _flush(plain, positions, store, result, strict)


def _flush(
    plain: list[Made], positions: list[int | str], store: Store[Any, Any], result: Migration, strict: bool
) -> None:
    """Write what is collected, which lives for ever."""
    try:
        if plain:
            store.set_many([(made.key, made.value) for made in plain], ttl=None)
        result.written += len(plain)
    except (TypeError, ValueError):  # One of them: each by itself then, which also says which.
        for position, made in zip(positions, plain, strict=True):
            _write_one(made, position, store, result)
            if strict and result.bad:
                break
    plain.clear()
    positions.clear()


def _write_one(made: Made, position: int | str, store: Store[Any, Any], result: Migration) -> None:
    deadline = 0 if made.expires is None else max(1, round(made.expires * 1000))
    if 0 < deadline <= store._engine.clock.now_ms():
        result.expired += 1
        return
    try:
        number, payload = made.value if type(made.value) is Packed else codec.encode(made.value)
        store._put_packed(made.key, number, payload, deadline)
    except (TypeError, ValueError, OverflowError) as error:
        result.refuse(position, f"{type(error).__name__}: {error}")
    else:
        result.written += 1
