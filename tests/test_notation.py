"""Values and keys as JSON: exact, whatever they are, and read back from the command line."""

from __future__ import annotations

import json
import math
import struct
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiered import codec
from tiered.cli import notation

VALUES: list[tuple[Any, Any]] = [
    (None, None),
    (True, True),
    ("text", "text"),
    (1, 1),
    (1.0, 1.0),
    (-0.0, -0.0),
    (2**53 + 1, {"$int": "9007199254740993"}),
    (math.inf, {"$float": "inf"}),
    (math.nan, {"$float": "nan"}),
    (b"\x00\xff", {"$bytes": "AP8="}),
    ([1, [2]], [1, [2]]),
    ((1, "a"), {"$tuple": [1, "a"]}),
    ({3, 1}, {"$set": [1, 3]}),
    (frozenset([1]), {"$frozenset": [1]}),
    ({"a": {"b": 1}}, {"a": {"b": 1}}),
    ({1: 2}, {"$dict": [[1, 2]]}),
    ({"$int": "1"}, {"$dict": [["$int", "1"]]}),
    (1 + 2j, {"$complex": "(1+2j)"}),
    (Decimal("1.10"), {"$decimal": "1.10"}),
    (UUID(int=7), {"$uuid": "00000000-0000-0000-0000-000000000007"}),
    (datetime(2026, 1, 2, 3, 4, 5), {"$datetime": "2026-01-02T03:04:05"}),
    (datetime(2026, 1, 2, tzinfo=timezone.utc), {"$datetime": "2026-01-02T00:00:00+00:00"}),
    (date(2026, 1, 2), {"$date": "2026-01-02"}),
    (time(3, 4, 5, 6), {"$time": "03:04:05.000006"}),
    (timedelta(-1, 5), {"$timedelta": [-1, 5, 0]}),
    (np.arange(3, dtype="<i4"), {"$array": {"dtype": "<i4", "shape": [3], "values": [0, 1, 2]}}),
    (np.float32(0.5), {"$scalar": {"dtype": "<f4", "value": 0.5}}),
]


@pytest.mark.parametrize(("value", "shown"), VALUES, ids=lambda each: repr(each)[:40])
def test_a_value_has_the_notation_that_is_documented_and_comes_back_from_it(value: Any, shown: Any) -> None:
    assert repr(notation.to_json(value)) == repr(shown)
    text = notation.dumps(notation.to_json(value))
    assert codec.encode(notation.from_json(notation.loads(text))) == codec.encode(value)


@pytest.mark.parametrize(
    "value",
    [
        struct.unpack("<d", b"\x01\x00\x00\x00\x00\x00\xf8\x7f")[0],
        datetime(2026, 10, 25, 2, 30, fold=1),
        datetime(2026, 1, 2, tzinfo=ZoneInfo("Europe/Berlin")),
        complex(-0.0, -0.0),
        np.array(["a", "b"]),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_the_readable_notation_would_change_is_exact_all_the_same(value: Any) -> None:
    text = notation.dumps(notation.to_json([value]))
    assert codec.encode(notation.from_json(notation.loads(text))) == codec.encode([value])


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=8) | st.decimals() | st.datetimes()
    | st.text(st.characters(), max_size=8) | st.timedeltas() | st.complex_numbers() | st.uuids()
)  # fmt: skip
ANY = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.just("$int"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(ANY)
def test_any_value_comes_back_exactly(value: Any) -> None:
    text = notation.dumps(notation.to_json(value))
    assert codec.encode(notation.from_json(notation.loads(text))) == codec.encode(value)
    assert notation.from_json(json.loads(text)) is not NotImplemented


KEYS = st.recursive(
    st.text(max_size=6) | st.integers() | st.binary(max_size=6), lambda inner: st.lists(inner, max_size=3).map(tuple)
)


@given(KEYS)
def test_any_key_can_be_given_as_it_is_shown(key: Any) -> None:
    assert notation.parse_key(notation.key_text(key)) == key


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("user:1", "user:1"),
        ("42", 42),
        ("-7", -7),
        ('"42"', "42"),
        ("007", "007"),
        ("true", "true"),
        ("1.5", "1.5"),
        ("", ""),
        ('["user", 42, ["x"]]', ("user", 42, ("x",))),
        ('{"$bytes": "YQ=="}', b"a"),
    ],
)
def test_an_argument_is_notation_where_it_looks_like_it_and_else_a_text(argument: str, key: Any) -> None:
    assert notation.parse_key(argument) == key
    assert type(notation.parse_key(argument)) is type(key)


@pytest.mark.parametrize("argument", ["[user", '{"a": 1}', '"x', '{"$decimal": "1"}', "[1.5]", "[null]", "[true, {}]"])
def test_an_argument_that_is_no_key_is_refused(argument: str) -> None:
    with pytest.raises(ValueError):
        notation.parse_key(argument)


@pytest.mark.parametrize(
    "tree",
    [
        {"$nonsense": 1},
        {"$int": "x"},
        {"$bytes": "###"},
        {"$int": "1", "more": 2},
        {"$dict": [[1]]},
        {"$dict": [[[], 1]]},
        {"$packed": [99, "AA=="]},
        {"$timedelta": "soon"},
        {"$array": {}},
    ],
    ids=str,
)
def test_notation_that_is_wrong_is_a_value_error(tree: Any) -> None:
    with pytest.raises(ValueError):
        notation.from_json(tree)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("Ada", "Ada"), ("1", 1), ("1.5", 1.5), ("null", None), ('"1"', "1"), ("NaN", "NaN"), ("[1, 2]", [1, 2])],
)
def test_a_value_is_json_where_it_is_and_else_a_text(argument: str, value: Any) -> None:
    assert notation.parse_value(argument) == value
    assert type(notation.parse_value(argument)) is type(value)


def test_what_a_terminal_would_take_for_commands_is_escaped() -> None:
    assert notation.dumps("\x1b[31m\x9b2J\x7f") == '"\\u001b[31m\\u009b2J\\u007f"'
    assert notation.dumps("\ud800") == '"\\ud800"'
    assert notation.dumps("ä") == '"ä"'
