"""What `dump` writes and `load` reads: JSON lines, a msgpack stream, CSV.

Each takes a record as key, codec, payload and deadline, and gives rows as `migrate` writes them.  All three bring every
value, key and time to live back as it was:

    jsonl     {"key": KEY, "value": VALUE, "expires": SECONDS}, KEY and VALUE in the `notation`; SECONDS since the
              epoch, with milliseconds, are left out where a key lives for ever.  Also read: [KEY, VALUE]; with
              `--key FIELD` any object, as it is, under what it has in that field.
    msgpack   arrays of key, value and such seconds or nil, one after another, all of it as the `codec` writes it: what
              msgpack lacks is in its extension types
    csv       columns key, value, expires; a cell is a text as it is, or else notation.  With `--key FIELD` any table: a
              row is a dict of texts by column.  With `--fields` columns of documents are written, not to be read back.

A value of a registered type, which only the program that registered it can make, is passed on as it is packed.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import IO, Any, NamedTuple

from msgpack import OutOfData, Unpacker, UnpackException, unpackb

from tiered import codec
from tiered.cli import notation
from tiered.cli.running import USAGE, Failure
from tiered.errors import UnknownTypeError
from tiered.journal import Dirty
from tiered.migrate import Made, Packed, Row, keyed, lines

CHUNK_BYTES = 1 << 18
COLUMNS = ("key", "value", "expires")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_LONG = re.compile(r"(?<![\d.])\d{16,}(?![\d.eE])")
"""In JSON, what may be a whole number that needs a word of its own, but no float."""
_WORD = re.compile(rb'"(\$|\\u0024)')
"""In JSON, what may be a word of the notation."""
_SURROGATE = re.compile(rb"\xed[\xa0-\xbf]")
"""What a lone surrogate looks like; where it is something else, the codec that takes them does no harm."""
Records = Iterable[tuple[Any, Dirty]]


class Format(NamedTuple):
    """One format: the endings of its files, what writes it, and what reads it."""

    endings: tuple[str, ...]
    write: Callable[[Records, tuple[str, ...]], Iterator[bytes]]
    read: Callable[[IO[bytes], str | None, bool], Iterator[Row]]
    position: str
    """What the position of a row counts."""


def named(name: str | None, file: str) -> Format:
    """The format of that name, else the one that a file's name ends with, else JSON lines."""
    if name is not None:
        return FORMATS[name]
    return next((found for found in FORMATS.values() if file.endswith(found.endings)), FORMATS["jsonl"])


def _seconds(deadline: int) -> float | None:
    return deadline / 1000 if deadline else None


def _value_to_json(found: Dirty) -> Any:
    try:
        return notation.to_json(codec.decode(found.codec, found.payload))
    except UnknownTypeError:
        return notation.packed(found.codec, found.payload)


def _value_from_json(tree: Any) -> Any:
    try:
        return notation.from_json(tree)
    except UnknownTypeError:
        if type(tree) is dict and "$packed" in tree:
            return Packed(*notation.unpacked(tree))
        raise


def _as_it_is(tree: Any) -> Any:
    return tree


def _expiry(found: Any) -> float | None:
    if found is None or (isinstance(found, (int, float)) and not isinstance(found, bool) and found >= 0):
        return found
    raise ValueError("expires is not a number of seconds since the epoch")


# JSON lines


def _write_jsonl(records: Records, fields: tuple[str, ...]) -> Iterator[bytes]:
    for key, found in records:
        name = str(key) if type(key) is int and abs(key) <= notation.INT_MAX else notation.key_text(key)
        value = _plain_text(found) or notation.dumps(_value_to_json(found))
        expires = f', "expires": {_seconds(found.deadline)}' if found.deadline else ""
        yield f'{{"key": {name}, "value": {value}{expires}}}\n'.encode()


def _plain_text(found: Dirty) -> str | None:
    """The value as JSON where it is one that the notation leaves as it is; None where it may not be: without looking at
    each part of it, in a tenth of the time.
    """
    if found.codec != codec.MSGPACK:
        return None
    try:
        # Tuples, sets and all else that JSON would change in silence are extension types, and refused with the keys.
        text = notation.encode(unpackb(found.payload, strict_map_key=True, ext_hook=_refuse))
    except (TypeError, ValueError):
        return None
    if '"$' in text:
        return None  # What may be a key that begins so.
    # Whole numbers of 64 bits begin with these bytes; the search takes longer than all the rest.
    if (b"\xcf" in found.payload or b"\xd3" in found.payload) and _LONG.search(text):
        return None
    return notation.escaped(text)


def _refuse(code: int, data: bytes) -> Any:
    raise ValueError


def _read_jsonl(file: IO[bytes], key: str | None, numbers: bool) -> Iterator[Row]:
    def parse(line: bytes) -> Made:
        if key is not None:
            return keyed(json.loads(line), key)
        found = notation.loads(line.decode())
        value_of = _value_from_json if _WORD.search(line) else _as_it_is
        if type(found) is list and len(found) == 2:
            return Made(notation.key_from_json(found[0]), value_of(found[1]))
        if type(found) is not dict or not {"key", "value"} <= set(found) <= set(COLUMNS):
            raise ValueError("neither an object with key and value nor [key, value]; name the field of the key: --key")
        expires = _expiry(found.get("expires"))
        return Made(notation.key_from_json(found["key"]), value_of(found["value"]), expires)

    return lines(file, parse)


# msgpack


def _write_msgpack(records: Records, fields: tuple[str, ...]) -> Iterator[bytes]:
    for key, found in records:
        packed = found.codec in (codec.MSGPACK, codec.MSGPACK_SURROGATE)
        value = found.payload if packed else _element(codec.decode(found.codec, found.payload))
        yield b"".join((b"\x93", _element(key), value, _element(_seconds(found.deadline))))


def _element(value: Any) -> bytes:
    """A value as one object of msgpack: without the one byte of the list around it."""
    return codec.encode([value])[1][1:]


def _object(data: bytes) -> tuple[int, Any]:
    """The codec and value of one object of msgpack.  Raises ValueError, `UnknownTypeError`."""
    try:
        return codec.MSGPACK, codec.decode(codec.MSGPACK, data)
    except ValueError:
        return codec.MSGPACK_SURROGATE, codec.decode(codec.MSGPACK_SURROGATE, data)


def _read_msgpack(file: IO[bytes], key: str | None, numbers: bool) -> Iterator[Row]:
    if key is not None:
        raise Failure("--key is for JSON lines and CSV; a msgpack stream has its keys", USAGE)

    def parse(data: bytes) -> Made:
        try:
            found = _object(data)[1]
        except UnknownTypeError:
            return _unknown(data)
        if type(found) is not list or len(found) not in (2, 3):
            raise ValueError("not an array of key, value and expiry")
        return Made(found[0], found[1], _expiry(found[2] if len(found) == 3 else None))

    return _msgpack_rows(file, parse)


def _msgpack_rows(file: IO[bytes], parse: Callable[[bytes], Made]) -> Iterator[Row]:
    """A row for each object of the stream; where it breaks off, one more that says so, in its turn."""
    number = 0
    try:
        for data in _objects(file):
            number += 1
            yield Row(number, lambda data=data: parse(data))  # type: ignore[misc]
    except ValueError as error:
        if not number:
            raise Failure(str(error)) from None
        reason = error

        def broken() -> Made:
            raise reason

        yield Row(number + 1, broken)


def _unknown(data: bytes) -> Made:
    """A record whose value only another program can make."""
    unpacker = Unpacker()
    unpacker.feed(data)
    count, at = unpacker.read_array_header(), [unpacker.tell()]
    for _ in range(count):
        unpacker.skip()
        at.append(unpacker.tell())
    parts = [data[start:end] for start, end in pairwise(at)]
    if count not in (2, 3):
        raise ValueError("not an array of key, value and expiry")
    try:
        number, _ = _object(parts[1])
    except UnknownTypeError:
        number = codec.MSGPACK_SURROGATE if _SURROGATE.search(parts[1]) else codec.MSGPACK
    return Made(_object(parts[0])[1], Packed(number, parts[1]), _expiry(_object(parts[2])[1] if count == 3 else None))


def _objects(file: IO[bytes]) -> Iterator[bytes]:
    """One object of the stream after another, as bytes.  Raises ValueError where it breaks off."""
    unpacker = Unpacker(max_buffer_size=0)
    pending, begin = bytearray(), 0
    while chunk := file.read(CHUNK_BYTES):
        pending += chunk
        unpacker.feed(chunk)
        done = 0
        try:
            while True:
                unpacker.skip()
                end = unpacker.tell() - begin
                yield bytes(pending[done:end])
                done = end
        except OutOfData:
            del pending[:done]
            begin += done
        except (UnpackException, ValueError) as error:
            raise ValueError(f"no msgpack from here on: {error or type(error).__name__}") from None
    if pending:
        raise ValueError("the stream ends in the middle of this record")


# CSV


def _cell(value: str, parse: Callable[[str], Any]) -> str:
    """A text as it is, in quotes where that stands for something else."""
    try:
        value.encode()
        plain = "\0" not in value and parse(value) == value and value != ""
    except (UnicodeEncodeError, ValueError):
        plain = False
    return value if plain else notation.dumps(value)


def _write_csv(records: Records, fields: tuple[str, ...]) -> Iterator[bytes]:
    yield _csv_line(("key", *fields) if fields else COLUMNS)
    for key, found in records:
        name = _cell(key, notation.parse_key) if type(key) is str else notation.key_text(key)
        if fields:
            document = codec.decode(found.codec, found.payload)
            inside = document if type(document) is dict else {}
            yield _csv_line((name, *(_shown(inside.get(field, "")) for field in fields)))
            continue
        value = _plain_text(found)
        if value is None:
            tree = _value_to_json(found)
            value = _cell(tree, notation.parse_value) if type(tree) is str else notation.dumps(tree)
        yield _csv_line((name, value, f"{found.deadline / 1000:.3f}" if found.deadline else ""))


def _shown(value: Any) -> str:
    return value if type(value) is str else notation.dumps(notation.to_json(value))


def _csv_line(cells: Iterable[str]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerow(cells)
    return out.getvalue().encode("utf-8", "surrogatepass")


def _read_csv(file: IO[bytes], key: str | None, numbers: bool) -> Iterator[Row]:
    csv.field_size_limit((1 << 31) - 1)
    rows = csv.reader(io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline=""))
    columns = next(rows, [])
    wanted = {"key", "value"} if key is None else {key}
    if columns and not wanted <= set(columns):
        have = ", ".join(columns)[:200]
        missing = "columns key and value; name that of the key: --key" if key is None else f"column {key!r}"
        raise Failure(f"the table has no {missing}; it has {have}", USAGE)

    def parse(cells: list[str]) -> Made:
        if len(cells) != len(columns):
            raise ValueError(f"{len(cells)} cells, where the head has {len(columns)}")
        for cell in cells:
            cell.encode()  # What is not UTF-8 raises.
        row = dict(zip(columns, cells, strict=True))
        if key is not None:
            return keyed({name: _number(cell) for name, cell in row.items()} if numbers else row, key)
        expires = _expiry(float(row["expires"])) if row.get("expires") else None
        return Made(notation.parse_key(row["key"]), _value_of_cell(row["value"]), expires)

    return _csv_rows(rows, parse)


def _value_of_cell(cell: str) -> Any:
    if cell[:1] not in ('"', "[", "{"):
        return notation.parse_value(cell)
    tree = notation.loads(cell)
    return _value_from_json(tree) if _WORD.search(cell.encode()) else tree


def _csv_rows(rows: Any, parse: Callable[[list[str]], Made]) -> Iterator[Row]:
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(rows.line_num, lambda error=error: _raise(ValueError(str(error))))  # type: ignore[misc]
            continue
        if cells:
            yield Row(rows.line_num, lambda cells=cells: parse(cells))  # type: ignore[misc]


def _number(cell: str) -> Any:
    return json.loads(cell) if _NUMBER.fullmatch(cell) else cell


def _raise(error: Exception) -> Made:
    raise error


FORMATS = {
    "jsonl": Format((".jsonl", ".ndjson", ".json"), _write_jsonl, _read_jsonl, "line"),
    "msgpack": Format((".msgpack", ".mpk"), _write_msgpack, _read_msgpack, "record"),
    "csv": Format((".csv",), _write_csv, _read_csv, "line"),
}
