"""What other packages hold, into a store: all of it, in order, with every row that cannot be taken reported."""

from __future__ import annotations

import json
import pickle
import shelve
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from programs import ROOT

import tiered
from tiered import migrate
from tiered.migrate import BadRow


@dataclass
class Foreign:
    """A class that the store does not know."""

    x: int


# JSON lines


def test_lines_with_a_field_for_the_key(store: Any, tmp_path: Path) -> None:
    rows = [{"id": number, "name": f"User {number}"} for number in range(2500)]
    (tmp_path / "users.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    told: list[tuple[int, int | None]] = []
    result = migrate.from_json_lines(
        tmp_path / "users.jsonl", store, key="id", progress=lambda done, total: told.append((done, total))
    )
    assert (result.read, result.written, result.bad) == (2500, 2500, 0)
    assert dict(store) == {row["id"]: row for row in rows}
    assert told == [(1000, None), (2000, None), (2500, None)]


def test_lines_that_are_pairs(store: Any, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('["a", 1]\n[["user", 7], {"n": null}]\n')
    assert migrate.from_json_lines(tmp_path / "pairs.jsonl", store).written == 2
    assert dict(store) == {"a": 1, ("user", 7): {"n": None}}


def test_bad_lines_are_reported_by_number_and_the_rest_is_taken(store: Any, tmp_path: Path) -> None:
    lines = [
        '["a", 1]',
        "not json",
        "",
        '{"a": 1}',
        '["b"]',
        '[1.5, "a float is no key"]',
        '["c", 3]',
        b"\xff\xfe".decode("latin1"),
    ]
    (tmp_path / "x.jsonl").write_bytes("\n".join(lines).encode("latin1"))
    result = migrate.from_json_lines(tmp_path / "x.jsonl", store)
    assert dict(store) == {"a": 1, "c": 3}
    assert (result.read, result.written, result.bad) == (7, 2, 5)
    assert [row.position for row in result.bad_rows] == [2, 4, 5, 6, 8]
    assert "JSONDecodeError" in result.bad_rows[0].reason
    assert "pair" in result.bad_rows[1].reason
    assert result.bad_rows[3] == BadRow(6, result.bad_rows[3].reason)
    assert "float" in result.bad_rows[3].reason


def test_of_very_many_bad_lines_a_hundred_are_listed_and_all_counted(store: Any, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("no\n" * 5000)
    result = migrate.from_json_lines(tmp_path / "x.jsonl", store)
    assert (result.bad, len(result.bad_rows), result.written, len(store)) == (5000, 100, 0, 0)


def test_a_missing_file_is_a_named_error(store: Any, tmp_path: Path) -> None:
    with pytest.raises(tiered.NotAStoreError, match="cannot be read"):
        migrate.from_json_lines(tmp_path / "missing", store)


def test_memory_stays_flat(store: Any, tmp_path: Path) -> None:
    with open(tmp_path / "big.jsonl", "w") as file:
        for number in range(4000):
            file.write(json.dumps([number, "x" * 3000]) + "\n")
    tracemalloc.start()
    try:
        migrate.from_json_lines(tmp_path / "big.jsonl", store)
        assert tracemalloc.get_traced_memory()[1] < 12 << 20  # A batch as text and as values, and the store's memory.
    finally:
        tracemalloc.stop()
    assert len(store) == 4000


def test_errors_of_the_store_are_not_bad_rows(opener: Any, tmp_path: Path) -> None:
    opener().close()
    (tmp_path / "pairs.jsonl").write_text('["a", 1]\n')
    with pytest.raises(tiered.ReadOnlyError):
        migrate.from_json_lines(tmp_path / "pairs.jsonl", opener(flag="r"))


# Pickle


class Bomb:
    """Its pickle makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def shelf_with(path: Path, values: dict[str, Any]) -> None:
    with shelve.open(str(path)) as shelf:
        shelf.update(values)


@pytest.mark.parametrize("reader", ["from_shelve", "from_sqlitedict", "from_diskcache"])
def test_nothing_is_unpickled_without_leave_and_the_error_says_why(store: Any, tmp_path: Path, reader: str) -> None:
    exploded = tmp_path / "exploded"
    source = {"from_shelve": shelf, "from_sqlitedict": sqlitedict_file, "from_diskcache": diskcache_directory}[reader](
        tmp_path, {"a": Bomb(exploded)}
    )
    read = getattr(migrate, reader)
    for found in (lambda: read(source, store), lambda: read(source, store, allow_pickle=False)):
        with pytest.raises(tiered.ConfigError, match=r"any code.*allow_pickle=True"):
            found()
    assert "any code" in read.__doc__
    assert not exploded.exists()
    assert len(store) == 0
    read(source, store, allow_pickle=True)
    assert exploded.exists()


# shelve


def shelf(directory: Path, values: dict[str, Any]) -> Path:
    shelf_with(directory / "shelf", values)
    return directory / "shelf"


def test_a_shelf(store: Any, tmp_path: Path) -> None:
    values = {f"key {number} é": {"n": [number, (1,)]} for number in range(1500)}
    result = migrate.from_shelve(shelf(tmp_path, values), store, allow_pickle=True)
    assert (result.read, result.written, result.bad) == (1500, 1500, 0)
    assert dict(store) == values


@pytest.mark.parametrize("kind", ["dbm.dumb", "dbm.gnu", "dbm.ndbm"])
def test_a_shelf_of_every_kind_of_file(store: Any, tmp_path: Path, kind: str) -> None:
    module = pytest.importorskip(kind)
    values = {f"key {number}": number for number in range(30)}
    with shelve.Shelf(module.open(str(tmp_path / "shelf"), "c")) as opened:
        opened.update(values)
    migrate.from_shelve(tmp_path / "shelf", store, allow_pickle=True)
    assert dict(store) == values


def test_what_is_in_a_shelf_and_no_value_of_a_store_is_reported_by_key(store: Any, tmp_path: Path) -> None:
    result = migrate.from_shelve(shelf(tmp_path, {"good": 1, "bad": Foreign(1)}), store, allow_pickle=True)
    assert dict(store) == {"good": 1}
    [bad] = result.bad_rows
    assert bad.position == "bad"
    assert "@tiered.register" in bad.reason


def test_what_is_no_shelf_is_a_named_error(store: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    for source in (tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(tiered.NotAStoreError):
            migrate.from_shelve(source, store, allow_pickle=True)


# sqlitedict


def sqlitedict_file(
    directory: Path, values: dict[str, Any], table: str = "unnamed", encode: Any = pickle.dumps
) -> Path:
    """A file as `SqliteDict` makes it."""
    path = directory / "dict.sqlite"
    database = sqlite3.connect(path)
    table = table.replace('"', '""')
    database.execute(f'CREATE TABLE IF NOT EXISTS "{table}" (key TEXT PRIMARY KEY, value BLOB)')
    database.executemany(
        f'REPLACE INTO "{table}" VALUES (?, ?)', [(key, encode(value)) for key, value in values.items()]
    )
    database.commit()
    database.close()
    return path


def test_a_sqlitedict(store: Any, tmp_path: Path) -> None:
    values = {f"key {number}": {"n": number} for number in range(2200)}
    told: list[tuple[int, int | None]] = []
    result = migrate.from_sqlitedict(
        sqlitedict_file(tmp_path, values), store, allow_pickle=True, progress=lambda *done: told.append(done)
    )
    assert (result.read, result.written, dict(store)) == (2200, 2200, values)
    assert told == [(1000, 2200), (2000, 2200), (2200, 2200)]


def test_a_sqlitedict_with_another_table_and_encoding_needs_no_pickle(store: Any, tmp_path: Path) -> None:
    source = sqlitedict_file(tmp_path, {"a": [1]}, 'odd "name"', json.dumps)
    result = migrate.from_sqlitedict(source, store, 'odd "name"', decode=json.loads)
    assert (result.written, dict(store)) == (1, {"a": [1]})


def test_damaged_pickles_are_reported_by_row(store: Any, tmp_path: Path) -> None:
    source = sqlitedict_file(tmp_path, {"a": 1, "b": 2, "c": 3})
    database = sqlite3.connect(source)
    database.execute("UPDATE unnamed SET value = x'80' WHERE key = 'b'")
    database.commit()
    database.close()
    result = migrate.from_sqlitedict(source, store, allow_pickle=True)
    assert dict(store) == {"a": 1, "c": 3}
    assert [row.position for row in result.bad_rows] == [2]


def test_another_database_is_a_named_error(store: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text" * 1000)
    for source in (sqlitedict_file(tmp_path, {}, "other"), tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(tiered.NotAStoreError):
            migrate.from_sqlitedict(source, store, allow_pickle=True)


# diskcache


def diskcache_directory(directory: Path, values: dict[Any, Any], expires: dict[Any, float] | None = None) -> Path:
    """A directory as `diskcache.Cache` makes it, as far as it is read."""
    path = directory / "cache"
    path.mkdir()
    database = sqlite3.connect(path / "cache.db")
    database.execute(
        "CREATE TABLE Cache (rowid INTEGER PRIMARY KEY, key BLOB, raw INTEGER, store_time REAL, expire_time REAL, "
        "access_time REAL, access_count INTEGER DEFAULT 0, tag BLOB, size INTEGER DEFAULT 0, mode INTEGER DEFAULT 0, "
        "filename TEXT, value BLOB)"
    )
    for number, (key, value) in enumerate(values.items()):
        plain = isinstance(key, (str, bytes, int, float))
        mode, file = 1, None
        if isinstance(value, (str, bytes)) and len(value) > 1000:
            mode, file = (3, f"{number}.val") if isinstance(value, str) else (2, f"{number}.val")
            (path / file).write_bytes(value.encode() if isinstance(value, str) else value)
            value = None
        elif not isinstance(value, (str, bytes, int, float)):
            mode, value = 4, pickle.dumps(value)
        row = (key if plain else pickle.dumps(key), plain, (expires or {}).get(key), mode, file, value)
        database.execute(
            "INSERT INTO Cache (key, raw, expire_time, mode, filename, value) VALUES (?, ?, ?, ?, ?, ?)", row
        )
    database.commit()
    database.close()
    return path


PLAIN = {
    "text": "t",
    "number": 7,
    "float": 1.5,
    b"bytes": b"\0\1",
    9: "int key",
    "large": "é" * 5000,
    "blob": b"x" * 5000,
}


def test_a_diskcache_without_pickles_needs_no_leave(store: Any, tmp_path: Path) -> None:
    result = migrate.from_diskcache(diskcache_directory(tmp_path, PLAIN), store)
    assert (result.written, result.bad) == (len(PLAIN), 0)
    assert dict(store) == PLAIN
    assert all(type(store[key]) is type(value) for key, value in PLAIN.items())


def test_a_diskcache_with_pickles(store: Any, tmp_path: Path) -> None:
    values = {**PLAIN, ("tuple", 1): {"a": [1]}, "none": None}
    migrate.from_diskcache(diskcache_directory(tmp_path, values), store, allow_pickle=True)
    assert dict(store) == values


def test_what_is_left_of_the_time_to_live_is_kept_and_what_is_over_is_counted(store: Any, tmp_path: Path) -> None:
    now = time.time()
    source = diskcache_directory(tmp_path, {"old": 1, "soon": 2, "never": 3}, {"old": now - 1, "soon": now + 500})
    result = migrate.from_diskcache(source, store)
    assert (result.read, result.written, result.expired) == (3, 2, 1)
    assert 400 < store.ttl("soon") <= 500
    assert store.ttl("never") is None
    assert "old" not in store


def test_a_missing_file_or_one_outside_of_the_cache_is_a_bad_row(store: Any, tmp_path: Path) -> None:
    source = diskcache_directory(tmp_path, PLAIN)
    database = sqlite3.connect(source / "cache.db")
    (tmp_path / "secret").write_text("secret")
    database.execute("UPDATE Cache SET filename = '../secret' WHERE key = 'large'")
    database.execute("UPDATE Cache SET filename = 'gone.val' WHERE key = 'blob'")
    database.commit()
    database.close()
    result = migrate.from_diskcache(source, store)
    assert result.bad == 2
    assert {"large", "blob"}.isdisjoint(store)


# The packages themselves, where they are installed

REAL = """
import sys
values = {f"key {number}": {"n": number} for number in range(10)}
values |= {"text": "t" * 50_000, "blob": b"b" * 50_000, "n": 1}
if sys.argv[1] == "diskcache":
    import diskcache
    with diskcache.Cache(sys.argv[2]) as cache:
        for key, value in values.items():
            cache.set(key, value)
        cache.set(("a", 1), 2, expire=1000)
else:
    import sqlitedict
    with sqlitedict.SqliteDict(sys.argv[2], autocommit=True) as store:
        store.update(values)
"""


@pytest.mark.parametrize("package", ["diskcache", "sqlitedict"])
def test_what_the_package_itself_wrote(store: Any, tmp_path: Path, package: str) -> None:
    pytest.importorskip(package)
    source = tmp_path / package
    subprocess.run([sys.executable, "-c", REAL, package, source], check=True, cwd=ROOT)
    result = getattr(migrate, f"from_{package}")(source, store, allow_pickle=True)
    assert result.bad == 0
    expected: dict[Any, Any] = {f"key {number}": {"n": number} for number in range(10)}
    expected |= {"text": "t" * 50_000, "blob": b"b" * 50_000, "n": 1}
    if package == "diskcache":
        assert 900 < store.ttl(("a", 1)) <= 1000
        expected["a", 1] = 2
    assert dict(store) == expected


def test_a_database_that_cannot_be_opened_is_named(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source.sqlite").write_bytes(b"")

    def refused(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(sqlite3, "connect", refused)
    with pytest.raises(tiered.StoreError, match=r"source\.sqlite: cannot be read: unable to open"):
        migrate.from_sqlitedict(tmp_path / "source.sqlite", store, allow_pickle=True)
