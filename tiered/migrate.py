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
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Row(NamedTuple):
    """One row to be written; `make` gives its key and value, and may raise."""

    position: int | str
    make: Callable[[], tuple[Any, Any]]
    expires: float | None = None


def from_json_lines(
    source: str | os.PathLike[str], store: Store[Any, Any], key: str | None = None, progress: Progress | None = None
) -> Migration:
    """Write each line of a file: an object with its key in the field `key`, or without `key` a pair `[key, value]`.

    A key that is a JSON array becomes a tuple.  Blank lines do not count.  `progress(done, None)` is told of lines.
    """

    def parse(line: bytes) -> tuple[Any, Any]:
        found = json.loads(line)
        if key is None:
            if not isinstance(found, list) or len(found) != 2:
                raise ValueError("not a pair [key, value]; name the field of the key with key=")
            return _as_key(found[0]), found[1]
        if not isinstance(found, dict):
            raise ValueError("not an object")
        if key not in found:
            raise ValueError(f"no field {key!r}")
        return _as_key(found[key]), found

    def rows() -> Iterator[Row]:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield Row(number, lambda line=line: parse(line))  # type: ignore[misc]

    with _opened(Path(source)) as file:
        return _write(rows(), store, None, progress)


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
            yield Row(position, lambda name=name: (name.decode(), loads(shelf[name])))  # type: ignore[misc]

    with shelf:
        return _write(rows(), store, None, progress)


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
            yield Row(number, lambda name=name, value=value: (name, loads(value)))  # type: ignore[misc]

    with closing(_connected(Path(source))) as database:
        total = _one(database, source, f"SELECT COUNT(*) FROM {quoted}")
        return _write(rows(), store, total, progress)


def from_diskcache(
    source: str | os.PathLike[str],
    store: Store[Any, Any],
    *,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Migration:
    """Write what a `diskcache.Cache` holds, under its keys, with what is left of their time to live.

    Text, bytes and numbers are kept as they are; everything else is a pickle: reading one can run any code that whoever
    wrote it chose, so that it takes `allow_pickle=True`, which says that you trust everybody who could write to the
    directory; else a cache with any pickle is a `ConfigError`, before anything is written.  Tags are left behind.
    """
    directory = Path(source)

    def made(name: Any, raw: int, mode: int, file: str | None, value: Any) -> tuple[Any, Any]:
        name = name if raw else loads(name)
        if file is not None:
            path = directory / file
            if not path.resolve().is_relative_to(directory.resolve()):
                raise ValueError(f"its value is outside of the cache: {file}")
            value = path.read_text("utf-8") if mode == _DISKCACHE_TEXT else path.read_bytes()
        return name, loads(value) if mode == _DISKCACHE_PICKLE else value

    def rows() -> Iterator[Row]:
        columns = "rowid, key, raw, mode, filename, value, expire_time"
        for number, *parts, expires in database.execute(f"SELECT {columns} FROM Cache ORDER BY rowid"):
            yield Row(number, lambda parts=parts: made(*parts), expires)  # type: ignore[misc]

    with closing(_connected(directory / "cache.db")) as database:
        total = _one(database, source, "SELECT COUNT(*) FROM Cache")
        pickled = _one(database, source, f"SELECT COUNT(*) FROM Cache WHERE mode = {_DISKCACHE_PICKLE} OR NOT raw")
        loads = _unpickler(source, allow_pickle) if pickled else bytes
        return _write(rows(), store, total, progress)


def _unpickler(source: str | os.PathLike[str], allowed: bool) -> Callable[[Any], Any]:
    if not allowed:
        raise ConfigError(_UNSAFE.format(os.fsdecode(source)))
    import pickle  # Only here, and only where the caller has said so.

    return pickle.loads


def _connected(path: Path) -> Connection:
    import sqlite3

    if not path.is_file():
        raise NotAStoreError(path, "no such file")
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def _one(database: Connection, source: str | os.PathLike[str], query: str) -> int:
    import sqlite3

    try:
        return int(database.execute(query).fetchone()[0])
    except sqlite3.Error as error:
        raise NotAStoreError(source, f"not what was expected there: {error}") from None


def _write(rows: Iterator[Row], store: Store[Any, Any], total: int | None, progress: Progress | None) -> Migration:
    """Write rows in batches."""
    import sqlite3

    result = Migration()
    try:
        while batch := list(islice(rows, BATCH_ROWS)):
            _write_batch(batch, store, result)
            if progress is not None:
                progress(result.read, total)
    except sqlite3.Error as error:
        raise StoreError(store.path, f"reading stopped after {result.read:,} rows: {error}") from error
    return result


def _write_batch(batch: list[Row], store: Store[Any, Any], result: Migration) -> None:
    pairs: list[tuple[Any, Any]] = []
    positions: list[int | str] = []
    for row in batch:
        result.read += 1
        try:
            key, value = row.make()
        except Exception as error:  # Whatever unpickling, `decode` or a bad row raises.
            result.refuse(row.position, f"{type(error).__name__}: {error}")
            continue
        if row.expires is None:
            pairs.append((key, value))
            positions.append(row.position)
        elif (left := row.expires - time.time()) <= 0:
            result.expired += 1
        elif _taken(lambda key=key, value=value, left=left: store.set(key, value, ttl=left), row.position, result):  # type: ignore[misc]
            result.written += 1
    try:
        store.set_many(pairs, ttl=None)
        result.written += len(pairs)
    except (TypeError, ValueError):  # One of them: each by itself then, which also says which.
        for position, (key, value) in zip(positions, pairs, strict=True):
            if _taken(lambda key=key, value=value: store.set(key, value, ttl=None), position, result):  # type: ignore[misc]
                result.written += 1


def _taken(write: Callable[[], None], position: int | str, result: Migration) -> bool:
    try:
        write()
    except (TypeError, ValueError) as error:
        result.refuse(position, f"{type(error).__name__}: {error}")
        return False
    return True
