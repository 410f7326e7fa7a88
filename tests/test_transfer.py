"""`tiered-cli load` and `dump`, as they are called."""

from __future__ import annotations

import csv
import json
import math
import os
import pty
import shelve
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import msgpack
import numpy as np
import pytest
from command_lines import call, calling, made
from programs import ROOT, succeed

import tiered
from tiered.cli import formats

CLI = [sys.executable, "-W", "error", "-m", "tiered"]
FORMATS = tuple(formats.FORMATS)
every_format = pytest.mark.parametrize("name", FORMATS)

VALUES: dict[Any, Any] = {
    "none": None,
    "true": True,
    "int": 5,
    "beyond what readers of JSON keep": 2**53 + 1,
    "big": 10**40,
    "float": 1.5,
    "minus zero": -0.0,
    "nan": math.nan,
    "inf": -math.inf,
    "text": "text",
    "empty": "",
    "looks like a number": "12",
    "looks like an object": '{"a": 1}',
    "spaces": " x ",
    "lines": 'a,b\n"c"\r\nd\0e',
    "surrogate": "\ud800",
    "surrogate inside": ["\ud800"],
    "bytes": b"\0\xff",
    "list": [1, [2, (3,)]],
    "tuple": (1, "a"),
    "dict": {"a": 1, "$b": {"$int": "no"}},
    "other keys": {(1, 2): {3}, b"x": None, 1: 2},
    "set": {1, 2},
    "frozenset": frozenset([1]),
    "datetime": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone.utc),
    "fold": datetime(2026, 1, 2, 3, fold=1),
    "date": date(2026, 1, 2),
    "time": time(1, 2, 3),
    "timedelta": timedelta(-1, 2, 3),
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=5),
    "complex": complex(1, -0.0),
    "array": np.arange(6.0).reshape(2, 3),
    "scalar": np.float32(1.5),
    "array of dates": np.array(["2026-01-01"], dtype="M8[D]"),
    1: "int key",
    -(2**70): "big key",
    b"\0b": "bytes key",
    ("user", 1): "tuple key",
    ("user", ("x", b"y")): "nested key",
    "x" * 1000: "long key",
    "12": "a text that looks like a number",
    "[1]": "a text that looks like an array",
    "": "empty key",
    "\ud800": "a key with a surrogate",
}


@pytest.fixture(scope="module", autouse=True)
def command_line() -> Iterator[None]:
    with calling():
        yield


def records(path: Path) -> list[tuple[Any, ...]]:
    """All that a store holds, packed, with deadlines; and what is equal in spite of other bytes by its text."""
    with tiered.open(path, "r") as store, store.view() as view:
        return [(key, found.codec, bytes(found.payload), found.deadline) for key, found in view.records()]


# There and back


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = made(tmp_path_factory.mktemp("everything") / "a.tiered", VALUES)
    with tiered.open(path) as store:
        store.set("ttl", 1, ttl=1000)
        store.set("other ttl", {"a": 1}, ttl=123_456.789)
    return path


@every_format
def test_every_value_key_and_deadline_comes_back_through_a_pipe(everything: Path, tmp_path: Path, name: str) -> None:
    status, dumped, errors = call("dump", everything, "--format", name, "-q")
    assert (status, errors) == (0, "")
    status, out, errors = call("load", tmp_path / "b.tiered", "--format", name, given=dumped)
    assert (status, errors) == (0, "")
    count = len(VALUES) + 2
    assert f"{count} rows read, {count} written" in out.decode()
    assert records(tmp_path / "b.tiered") == records(everything)


@every_format
def test_files_are_known_by_their_endings_and_private(everything: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / f"dump.{name}"
    assert call("dump", everything, file)[0] == 0
    assert file.read_bytes() == call("dump", everything, "--format", name)[1]
    assert file.stat().st_mode & 0o777 == 0o600
    assert formats.named(None, str(file)) is formats.FORMATS[name]


POINT = """
import sys, tiered
from dataclasses import dataclass
@tiered.register("point")
@dataclass
class Point:
    x: int
    name: str
with tiered.open(sys.argv[1]) as store:
    if sys.argv[2] == "write":
        store["p"], store["inside"] = Point(1, "\\ud800"), [Point(2, "b")]
        store.set("q", Point(3, "c"), ttl=1000)
    print(ascii([store["p"], store["inside"], store["q"]]), store.ttl("q") > 900)
"""


@every_format
def test_values_of_classes_that_others_registered_are_passed_on(tmp_path: Path, name: str) -> None:
    written = succeed(POINT, tmp_path / "a", "write")
    dumped = call("dump", tmp_path / "a", "--format", name, "-q")[1]
    assert call("load", tmp_path / "b", "--format", name, given=dumped)[0] == 0
    assert records(tmp_path / "b") == records(tmp_path / "a")
    assert succeed(POINT, tmp_path / "b", "read") == written


def test_what_expired_meanwhile_is_counted_and_not_written(tmp_path: Path) -> None:
    lines = b'{"key": 1, "value": 1, "expires": 1000.5}\n{"key": 2, "value": 2, "expires": 99999999999.123}\n'
    status, out, _ = call("load", tmp_path / "b", given=lines)
    assert (status, out.decode().split(": ")[1]) == (0, "2 rows read, 1 written, 1 expired\n")
    assert records(tmp_path / "b")[0][3] == 99999999999123


# Dump


def test_a_dump_is_of_one_moment_of_a_store_that_is_being_written(tmp_path: Path) -> None:
    with tiered.open(tmp_path / "live.tiered", memory="1MB") as store:
        store.update((number, "x" * 100) for number in range(3000))
        store.update({"a": 0, 9999: 0})
        done = threading.Event()

        def write() -> None:
            while not done.is_set():
                with store.transaction() as txn:
                    txn["a"] = txn[9999] = txn["a"] + 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            status, dumped, _ = call("dump", tmp_path / "live.tiered")
        finally:
            done.set()
            writer.join()
    rows = [json.loads(line) for line in dumped.splitlines()]
    assert (status, len(rows)) == (0, 3002)
    assert (rows[0]["key"], rows[-1]["key"]) == ("a", 9999)  # The pages between them take time to read.
    assert rows[0]["value"] == rows[-1]["value"] > 0


def test_a_dump_never_leaves_half_a_file_nor_replaces_one_unasked(tmp_path: Path) -> None:
    path = made(tmp_path / "a", {"a": 1})
    (tmp_path / "x.jsonl").write_text("mine")
    status, _, errors = call("dump", path, tmp_path / "x.jsonl")
    assert (status, (tmp_path / "x.jsonl").read_text()) == (1, "mine")
    assert "--force" in errors
    assert call("dump", path, tmp_path / "x.jsonl", "--force")[0] == 0
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {"key": "a", "value": 1}
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a", "x.jsonl"]


def test_a_damaged_record_ends_a_dump_with_its_status_and_without_a_file(tmp_path: Path) -> None:
    with tiered.open(tmp_path / "a", helper=False, compression="none") as store:
        store.update({"a": 1, "b": "spoiled " * 100})
    [data] = (tmp_path / "a").glob("cold-*/data.mdb")
    data.write_bytes(data.read_bytes().replace(b"spoiled spoiled", b"spoiled sXoiled"))
    status, _, errors = call("dump", tmp_path / "a", tmp_path / "x.jsonl")
    assert status == 3
    assert "damaged" in errors or "checksum" in errors
    assert [found.name for found in tmp_path.iterdir()] == ["a"]


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    path = made(tmp_path / "a", dict.fromkeys(range(2000), "x" * 1000))
    command = f"{' '.join(CLI)} dump {path} | head -n 1 | wc -l"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT})
    assert (done.stdout.strip(), done.stderr) == ("1", "")


def test_fields_of_documents_are_columns_of_a_table(tmp_path: Path) -> None:
    path = made(tmp_path / "a", {1: {"name": "Ada", "tags": ["x"]}, 2: {"name": "Bob, Jr."}, 3: "no document"})
    status, out, _ = call("dump", path, "--format", "csv", "--fields", "name,tags", "-q")
    assert status == 0
    table = list(csv.reader(out.decode().splitlines()))
    assert table == [["key", "name", "tags"], ["1", "Ada", '["x"]'], ["2", "Bob, Jr.", ""], ["3", "", ""]]
    assert call("dump", path, "--fields", "name")[0] == 2


def test_an_empty_store_is_an_empty_dump(tmp_path: Path) -> None:
    made(tmp_path / "a", {})
    for name in FORMATS:
        status, out, _ = call("dump", tmp_path / "a", "--format", name)
        assert (status, out) == (0, b"key,value,expires\r\n" if name == "csv" else b"")
        assert call("load", tmp_path / name, "--format", name, given=out)[0] == 0
    status, _, errors = call("dump", tmp_path / "missing")
    assert (status, len(errors.splitlines())) == (1, 1)


# Load


def test_objects_of_others_are_kept_as_they_are_under_a_field(tmp_path: Path) -> None:
    lines = (
        b'{"id": 1, "name": "Ada", "at": {"$date": 5}}\n{"name": "nobody"}\n\n{"id": [1, "x"], "n": 1e3}\nnot json\n'
    )
    status, out, errors = call("load", tmp_path / "b", "--key", "id", given=lines)
    assert status == 6
    assert "4 rows read, 2 written, 2 not taken" in out.decode()
    assert [line.split(": ")[2] for line in errors.splitlines()] == ["line 2", "line 5"]
    with tiered.open(tmp_path / "b", "r") as store:
        assert dict(store) == {1: {"id": 1, "name": "Ada", "at": {"$date": 5}}, (1, "x"): {"id": [1, "x"], "n": 1000.0}}


def test_strict_stops_at_the_first_bad_row_and_says_what_is_written(tmp_path: Path) -> None:
    lines = b"".join(b"[%d, 1]\n" % number for number in range(10)) + b"bad\n[11, 1]\nbad\n"
    status, out, errors = call("load", tmp_path / "b", "--strict", "--json", given=lines)
    assert status == 6
    found = json.loads(out)
    assert (found["read"], found["written"], found["bad"]) == (11, 10, 1)
    assert found["bad_rows"][0]["position"] == 11
    assert "the 10 rows before it are written" in errors
    assert len(records(tmp_path / "b")) == 10


BAD = [
    *(
        '{"key": 1}',
        '{"key": 1, "value": 2, "more": 3}',
        "[1]",
        "[1.5, 2]",
        '[{"$bytes": "?"}, 1]',
        '["a", {"$nope": 1}]',
    ),
    *(
        '{"key": 1, "value": 2, "expires": "soon"}',
        '["a", NaN]',
        '["a", {"$packed": [3, "wQ=="]}]',
        '[["a", [1.5]], 1]',
    ),
    *('{"key": 1, "value": 2, "expires": -1}', "\udcff", '["a", {"$packed": 7}]', '["a", {"$packed": [1, 2, 3]}]'),
]


def test_every_kind_of_bad_line_is_one_line_of_complaint(tmp_path: Path) -> None:
    given = "\n".join(BAD).encode("utf-8", "surrogateescape")
    status, out, errors = call("load", tmp_path / "b", "--json", given=given)
    assert status == 6
    found = json.loads(out)
    assert (found["read"], found["bad"], found["written"]) == (len(BAD), len(BAD), 0)
    assert [row["position"] for row in found["bad_rows"]] == list(range(1, len(BAD) + 1))
    assert len(errors.splitlines()) == len(BAD)


def test_of_very_many_bad_rows_a_hundred_are_shown_and_all_counted(tmp_path: Path) -> None:
    status, _, errors = call("load", tmp_path / "b", given=b"no\n" * 3000)
    assert status == 6
    assert len(errors.splitlines()) == 101
    assert "and 2,900 more rows" in errors


def test_tables_of_others(tmp_path: Path) -> None:
    table = '\ufeffid,name,n\r\nu1,"Ada\r\nLovelace",007\r\nu2,Bob,-1.5e3\r\nu3,short\r\n'.encode()
    (tmp_path / "t.csv").write_bytes(table)
    status, _, errors = call("load", tmp_path / "b", tmp_path / "t.csv", "--key", "id", "--numbers")
    assert status == 6
    assert "line 5: ValueError: 2 cells, where the head has 3" in errors
    with tiered.open(tmp_path / "b", "r") as store:
        assert store["u1"] == {"id": "u1", "name": "Ada\r\nLovelace", "n": "007"}
        assert store["u2"]["n"] == -1500.0
    status, _, errors = call("load", tmp_path / "c", tmp_path / "t.csv")
    assert (status, "--key" in errors, (tmp_path / "c").exists()) == (2, True, False)
    assert call("load", tmp_path / "c", tmp_path / "t.csv", "--key", "nope")[0] == 2


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("broken", ["cut", "garbage"])
def test_of_a_msgpack_stream_that_breaks_off_all_before_is_written_and_the_status_says_that_not_all_is(
    tmp_path: Path, broken: str, strict: bool
) -> None:
    given = b"".join(msgpack.packb([number, f"value {number}"]) for number in range(1500))
    given = given[:-3] if broken == "cut" else given + b"\xc1" * 20
    options = ["--strict"] if strict else []
    status, out, errors = call("load", tmp_path / "a", "--format", "msgpack", *options, given=given)
    whole = 1499 if broken == "cut" else 1500
    assert status == 6
    assert f"record {whole + 1}: ValueError: " in errors
    assert f"{whole + 1:,} rows read, {whole:,} written, 1 not taken" in out.decode()
    with tiered.open(tmp_path / "a", "r") as store:
        assert len(store) == whole


def test_a_load_that_ends_half_way_has_the_status_of_one_that_wrote_something(tmp_path: Path) -> None:
    tiered.open(tmp_path / "a", disk="500KB", compression="none").close()
    given = b"".join(b'[%d, "%s"]\n' % (number, b"x" * 1000) for number in range(5000))
    status, out, errors = call("load", tmp_path / "a", "--memory", "1MB", given=given)
    assert (status, out, errors.count("\n")) == (6, b"", 1)
    assert "has reached the cap" in errors
    assert "the rows before it are written" in errors
    with tiered.open(tmp_path / "a", "r") as store:
        written = list(store)
    assert 0 < len(written) < 5000
    assert written == list(range(len(written)))


def test_a_msgpack_stream_of_others_and_one_that_is_torn(tmp_path: Path) -> None:
    given = b"\x92\xa1a\x01" + b"\x93\xa1b\xca\x3f\xc0\x00\x00\xc0" + b"\x07" + b"\x92\xa1c"
    status, _, errors = call("load", tmp_path / "b", "--format", "msgpack", given=given)
    assert status == 6
    assert "record 4: ValueError: the stream ends in the middle of this record" in errors
    with tiered.open(tmp_path / "b", "r") as store:
        assert dict(store) == {"a": 1, "b": 1.5}
    status, _, errors = call("load", tmp_path / "b", "--format", "msgpack", given=given[:-3])
    assert status == 6
    assert "record 3: ValueError" in errors
    with tiered.open(tmp_path / "b", "r") as store:
        assert dict(store) == {"a": 1, "b": 1.5}
    assert call("load", tmp_path / "c", "--format", "msgpack", given=b"\xc1")[0] == 1


def test_load_needs_the_store_for_itself_and_says_who_has_it(tmp_path: Path) -> None:
    with tiered.open(tmp_path / "a") as store:
        store["a"] = 1
        status, _, errors = call("load", tmp_path / "a", given=b"[1, 2]\n")
        assert status == 1
        assert str(os.getpid()) in errors
        assert len(errors.splitlines()) == 1
        assert dict(store) == {"a": 1}


def test_a_file_that_is_not_there_makes_no_store(tmp_path: Path) -> None:
    status, _, errors = call("load", tmp_path / "b", tmp_path / "missing.jsonl")
    assert (status, len(errors.splitlines()), list(tmp_path.iterdir())) == (1, 1, [])


def test_what_other_packages_keep(tmp_path: Path) -> None:
    with shelve.open(str(tmp_path / "shelf")) as shelf:
        shelf.update({"a": [1], "b": {"n": 2}})
    status, _, errors = call("load", tmp_path / "b", tmp_path / "shelf", "--from", "shelve")
    assert (status, "--allow-pickle" in errors, (tmp_path / "b").exists()) == (2, True, False)
    assert call("load", tmp_path / "b", tmp_path / "shelf", "--from", "shelve", "--allow-pickle")[0] == 0
    database = sqlite3.connect(tmp_path / "dict.sqlite")
    database.execute("CREATE TABLE things (key TEXT PRIMARY KEY, value BLOB)")
    database.execute("INSERT INTO things VALUES ('c', x'80044b032e')")  # A pickle of 3.
    database.commit()
    database.close()
    arguments = (tmp_path / "dict.sqlite", "--from", "sqlitedict", "--table", "things", "--allow-pickle")
    assert call("load", tmp_path / "b", *arguments)[0] == 0
    with tiered.open(tmp_path / "b", "r") as store:
        assert dict(store) == {"a": [1], "b": {"n": 2}, "c": 3}
    assert call("load", tmp_path / "b", "-", "--from", "shelve", "--allow-pickle")[0] == 2


def test_progress_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    path = made(tmp_path / "a", dict.fromkeys(range(3000), "x"))
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": ROOT, "TERM": "xterm"}
    arguments = [*CLI, "dump", str(path), str(tmp_path / "x.jsonl")]
    try:
        done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=slave, env=environment, timeout=60)
        os.close(slave)
        shown = os.read(master, 100_000).decode()
    finally:
        os.close(master)
    assert (done.returncode, done.stdout) == (0, b"")
    assert "dump of" in shown
    assert "3,000 records" in shown
