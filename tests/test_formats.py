"""The short ways of the formats give what the long ways do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_transfer import VALUES

from tiered import codec
from tiered.cli import formats, notation
from tiered.journal import Dirty

NUMBERS = st.integers() | st.floats() | st.integers(min_value=2**52, max_value=2**54)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text() | st.sampled_from(["$int", "$", '"$', "\x9b", "1" * 20])
TREES = st.recursive(
    LEAVES | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.just("$a") | st.integers(), inner)
    ),
    max_leaves=8,
)


def record(value: Any) -> Dirty:
    number, payload = codec.encode(value)
    return Dirty(number, 0, b"", payload)


def agrees(value: Any) -> None:
    found = record(value)
    short, long = formats._plain_text(found), notation.dumps(notation.to_json(value))
    assert short is None or short == long
    line = f'["k", {long}]'.encode()
    [row] = formats.FORMATS["jsonl"].read(iter([line]), None, False)  # type: ignore[arg-type]
    assert codec.encode(row.make().value) == (found.codec, found.payload) or row.make().value == value


@given(TREES)
def test_json_in_one_step_is_that_of_the_notation(value: Any) -> None:
    agrees(value)


@pytest.mark.parametrize("value", VALUES.values(), ids=range(len(VALUES)))
def test_json_in_one_step_is_that_of_the_notation_for_every_type(value: Any) -> None:
    if type(value).__module__ != "numpy":
        agrees(value)


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, "x"]}, [2**49, 0.1 + 0.2, 1e300], {"n": {"m": -(2**49)}}])
def test_what_json_has_words_for_takes_one_step(value: Any) -> None:
    assert formats._plain_text(record(value)) == notation.dumps(value)
