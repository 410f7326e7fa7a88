"""Values and keys as JSON, and back, without loss: what JSON has no word for is an object with one name.

    None, bool, str, list, float          as in JSON
    int                                   as in JSON; beyond 2**53, which others round, {"$int": "9007199254740993"}
    dict                                  an object, where all keys are texts that don't begin with "$"; else
                                          {"$dict": [[key, value], ...]}
    bytes                                 {"$bytes": base64}
    tuple, set, frozenset                 {"$tuple": [...]}, {"$set": [...]}, {"$frozenset": [...]}
    NaN and the infinities                {"$float": "nan"}
    Decimal, UUID, complex                {"$decimal": "1.10"}, {"$uuid": "..."}, {"$complex": "(1+2j)"}
    datetime, date, time                  {"$datetime": "2026-01-02T03:04:05"}, {"$date": ...}, {"$time": ...}
    timedelta                             {"$timedelta": [days, seconds, microseconds]}
    NumPy arrays and scalars              {"$array": {"dtype": "<f8", "shape": [1], "values": [2.0]}}, {"$scalar": ...}
    all else, registered types included   {"$packed": [codec id, base64 of the payload]}

What stands for a value is read back before it is used; where that is not exactly the value (a datetime with a fold, a
NaN with other bits), it is packed instead.  Keys are written in the same way, but that a tuple is an array, since no
list is a key.
"""

from __future__ import annotations

import json
import math
import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from tiered import arrays, codec, keys

INT_MAX = 1 << 53
_CONTROLS = re.compile("[\x7f-\x9f]")
"""What terminals may take for commands, and JSON does not escape."""


def _of_bytes(value: bytes) -> str:
    return b64encode(value).decode("ascii")


def _to_bytes(text: str) -> bytes:
    return b64decode(text, validate=True)


_LEAVES: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    bytes: ("$bytes", _of_bytes, _to_bytes),
    int: ("$int", str, int),
    float: ("$float", str, float),
    complex: ("$complex", str, complex),
    Decimal: ("$decimal", str, Decimal),
    UUID: ("$uuid", str, UUID),
    datetime: ("$datetime", datetime.isoformat, datetime.fromisoformat),
    date: ("$date", date.isoformat, date.fromisoformat),
    time: ("$time", time.isoformat, time.fromisoformat),
    timedelta: (
        "$timedelta",
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda parts: timedelta(*parts),
    ),
}
_READERS = {name: read for name, _, read in _LEAVES.values()}
_CONTAINERS: dict[type, str] = {tuple: "$tuple", set: "$set", frozenset: "$frozenset"}
_MAKERS: dict[str, Callable[[Any], Any]] = {name: kind for kind, name in _CONTAINERS.items()}


def to_json(value: Any) -> Any:
    """What stands for a value, for `json.dumps`."""
    kind = type(value)
    if value is None or kind is str or kind is bool:
        return value
    if kind is int and -INT_MAX <= value <= INT_MAX:
        return value
    if kind is float and math.isfinite(value):
        return value
    if kind is list:
        return [to_json(element) for element in value]
    if kind is dict:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: to_json(element) for key, element in value.items()}
        return {"$dict": [[to_json(key), to_json(element)] for key, element in value.items()]}
    if kind in _CONTAINERS:
        elements = [to_json(element) for element in value]
        return {_CONTAINERS[kind]: elements if kind is tuple else sorted(elements, key=json.dumps)}
    if kind is int or kind is bytes:
        name, write, _ = _LEAVES[kind]
        return {name: write(value)}
    return _exact(value, kind)


def _exact(value: Any, kind: type) -> Any:
    """What stands for a value of other types, read back to be sure."""
    number, payload = codec.encode(value)
    shown: Any = None
    if kind in _LEAVES:
        name, write, _ = _LEAVES[kind]
        shown = {name: write(value)}
    elif arrays.is_array(value) and value.dtype.kind in "biuf":
        values = [to_json(element) for element in value.reshape(-1).tolist()]
        shown = {"$array": {"dtype": value.dtype.str, "shape": list(value.shape), "values": values}}
    elif arrays.is_numpy_scalar(value) and value.dtype.kind in "biuf":
        shown = {"$scalar": {"dtype": value.dtype.str, "value": to_json(value.item())}}
    if shown is not None:
        try:
            if codec.encode(from_json(shown)) == (number, payload):
                return shown
        except ValueError:
            pass  # Such as an offset of half a second, which is written and not read.
    return packed(number, payload)


def packed(number: int, payload: bytes) -> Any:
    """What stands for a value as it is packed."""
    return {"$packed": [number, _of_bytes(payload)]}


def unpacked(tree: Any) -> tuple[int, bytes]:
    """The codec and payload in that.  Raises ValueError."""
    number, text = tree["$packed"]
    return number, _to_bytes(text)


def from_json(tree: Any) -> Any:
    """The value that something stands for.  Raises ValueError."""
    if type(tree) is list:
        return [from_json(element) for element in tree]
    if type(tree) is not dict:
        return tree
    named = [name for name in tree if name.startswith("$")]
    if not named:
        return {key: from_json(element) for key, element in tree.items()}
    if len(tree) > 1:
        raise ValueError(f"{named[0]!r} stands beside other names; such a dict is {{'$dict': [[key, value]]}}")
    (name, inner) = next(iter(tree.items()))
    try:
        return _named(name, inner)
    except (ArithmeticError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error or type(error).__name__}") from None


def _named(name: str, inner: Any) -> Any:
    if name in _READERS:
        return _READERS[name](inner)
    if name in _MAKERS:
        return _MAKERS[name](from_json(element) for element in inner)
    if name == "$dict":
        return {from_json(key): from_json(element) for key, element in inner}
    if name == "$packed":
        return codec.decode(inner[0], _to_bytes(inner[1]))
    if name == "$array":
        values = [from_json(element) for element in inner["values"]]
        return arrays.import_numpy().array(values, dtype=inner["dtype"]).reshape(inner["shape"])
    if name == "$scalar":
        return arrays.import_numpy().dtype(inner["dtype"]).type(from_json(inner["value"]))
    words = sorted({*_READERS, *_MAKERS, "$array", "$dict", "$packed", "$scalar"})
    raise ValueError(f"there is no such word; there are {', '.join(words)}")


def key_to_json(key: Any) -> Any:
    """What stands for a key: as for values, but that a tuple is an array."""
    return [key_to_json(element) for element in key] if type(key) is tuple else to_json(key)


def key_from_json(tree: Any) -> Any:
    """The key that something stands for.  Raises ValueError."""
    key = tuple(map(key_from_json, tree)) if type(tree) is list else from_json(tree)
    if type(key) not in (str, bytes, int, tuple):
        raise ValueError("keys are texts, bytes, whole numbers and arrays of them")
    return key


def dumps(tree: Any, indent: int | None = None) -> str:
    """JSON as text, safe for a terminal."""
    text = encode(tree) if indent is None else json.dumps(tree, ensure_ascii=False, indent=indent, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(tree, indent=indent, allow_nan=False)
    return escaped(text)


# Made once: making one takes as long as writing or reading a small document.
encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
"""JSON as text of what JSON has words for; lone surrogates and controls are left as they are."""


def escaped(text: str) -> str:
    """JSON without what terminals may take for commands."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is not JSON; write {{'$float': {word.lower()!r}}}")


_decode = json.JSONDecoder(parse_constant=_refuse).decode


def loads(text: str) -> Any:
    """JSON of a text.  Raises ValueError, for NaN and such as well, which are none."""
    return _decode(text)


def key_text(key: Any) -> str:
    """A key on one line, as it can be given on the command line."""
    return dumps(key_to_json(key))


def parse_key(text: str) -> Any:
    """The key that an argument stands for: notation if it is a whole number or begins as a text, an array or an object;
    else the argument itself, a text.  Raises ValueError.
    """
    if re.fullmatch(r"-?(0|[1-9][0-9]*)", text):
        return int(text)
    if text[:1] in ('"', "[", "{"):
        key = key_from_json(_notation(text))
        try:
            keys.encode(key)
        except TypeError as error:
            raise ValueError(str(error)) from None
        return key
    return text


def parse_value(text: str) -> Any:
    """The value that an argument stands for: JSON in this notation, else the argument itself, a text.

    Raises ValueError for what begins as a text, an array or an object and is none.
    """
    if text[:1] in ('"', "[", "{"):
        return from_json(_notation(text))
    try:
        return from_json(loads(text))
    except ValueError:
        return text


def _notation(text: str) -> Any:
    try:
        return loads(text)
    except ValueError as error:
        raise ValueError(
            f"{text[:60]!r} is no notation ({error}); a text that begins so is to be in quotes within quotes: "
            f"'{json.dumps(text[:60])}'"
        ) from None
