"""The key encoding: order, equality, limits, stored forms and ranges."""

from __future__ import annotations

import enum
from collections import namedtuple
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tiered import keys
from tiered.errors import KeyTooLongError

# Surrogates and NULs on purpose, and few letters, so that keys share prefixes.
texts = st.text(
    st.one_of(st.sampled_from("ab\0\x01\x7f\x80\xff\uffff\U00010000\U0010ffff\ud800\udfff"), st.characters())
)
raws = st.one_of(st.binary(), st.lists(st.sampled_from(b"\x00\x01\xfe\xffab")).map(bytes))
numbers = st.one_of(st.integers(), st.integers(-300, 300), st.integers(-(1 << 90), 1 << 90))
scalars = st.one_of(texts, raws, numbers)
plain_keys = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)
tuples = st.lists(plain_keys, max_size=4).map(tuple)

RANKS = {bytes: 0, str: 1, tuple: 2, int: 3}


def rank(key):
    """The documented order in terms of Python's own comparisons."""
    kind = type(key)
    return RANKS[kind], [rank(element) for element in key] if kind is tuple else key


@pytest.mark.parametrize(
    "strategy", [texts, raws, numbers, tuples, plain_keys], ids=["str", "bytes", "int", "tuple", "any"]
)
def test_order_of_bytes_is_order_of_keys(strategy):
    @given(strategy, strategy)
    @settings(max_examples=400, deadline=None)
    def check(first, second):
        assert (keys.encode(first) < keys.encode(second)) == (rank(first) < rank(second))
        assert (keys.encode(first) == keys.encode(second)) == (first == second)

    check()


@given(st.lists(plain_keys, max_size=12))
@settings(deadline=None)
def test_sorting_by_encoding_sorts_by_key(found):
    assert sorted(found, key=keys.encode) == sorted(found, key=rank)


@given(plain_keys)
@example("")
@example(b"")
@example(())
@example(((), (), ((),)))
@example((("\0", b"\0\xff"), "\0"))
@settings(deadline=None)
def test_decode_is_the_inverse_of_encode(key):
    decoded = keys.decode(keys.encode(key))
    assert rank(decoded) == rank(key)
    assert type(decoded) is type(key)


def test_every_length_of_integer_keeps_its_place_and_value():
    edges = {0, 1, -1}
    for bits in [*range(1, 90), 8 * 255, 8 * 256, 8 * 257, 8 * 4096]:
        edges |= {sign * ((1 << bits) + by) for sign in (1, -1) for by in (-1, 0, 1)}
    ordered = sorted(edges)
    assert [keys.decode(keys.encode(number)) for number in ordered] == ordered
    for first, second in pairwise(ordered):
        assert keys.encode(first) < keys.encode(second)
        # As elements, too, where something follows them.
        assert keys.encode((first, "z")) < keys.encode((second,))


def test_first_bytes_of_the_format_are_frozen():
    for key, expected in {
        "a\0": "02 61 00",
        b"a\0": "01 61 00",
        0: "14",
        1: "15 01",
        -1: "13 fe",
        -256: "12 fe ff",
        1 << 63: "1c 80 00 00 00 00 00 00 00",
        1 << 64: "1d 00 09 01 00 00 00 00 00 00 00 00",
        -(1 << 64): "0b ff f6 fe ff ff ff ff ff ff ff ff",
        ("a\0", 1, (b"",)): "05 02 61 00 ff 00 15 01 05 01 00 00",
    }.items():
        assert keys.encode(key) == bytes.fromhex(expected), key


# -- equality ----------------------------------------------------------------------------------


class Colour(enum.IntEnum):
    RED = 3


class Name(str):
    __slots__ = ()


class Shout(str):
    """Equal to what it is not."""

    __slots__ = ()

    def __eq__(self, other):
        return str(other).upper() == self.upper()

    def __hash__(self):
        return hash(self.upper())


class Mood(str, enum.Enum):
    GOOD = "good"


class Raw(bytes):
    pass


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("key", "plain"),
    [
        (True, 1),
        (False, 0),
        (1.0, 1),
        (-0.0, 0),
        (1e300, int(1e300)),
        (Colour.RED, 3),
        (Name("x"), "x"),
        (Mood.GOOD, "good"),
        (Raw(b"\x02"), b"\x02"),
        (Point(True, 2.0), (1, 2)),
        ((1, (False, Name("n"))), (1, (0, "n"))),
        (np.int64(-7), -7),
        (np.uint8(200), 200),
        (np.float64(2.0), 2),
        (np.str_("é"), "é"),
    ],
    ids=repr,
)
def test_equal_keys_encode_the_same_and_come_back_plain(key, plain):
    assert key == plain
    assert keys.encode(key) == keys.encode(plain)
    for found in (keys.decode(keys.encode(key)), keys.canonical(key)):
        assert found == plain
        assert type(found) is type(plain)
        if type(plain) is tuple:
            assert [type(element) for element in found] == [type(element) for element in plain]


def test_canonical_returns_plain_keys_themselves():
    for key in ("long " * 9, b"long " * 9, 10**40, ("a", 1, (b"c", ("d",)))):
        assert keys.canonical(key) is key


@pytest.mark.parametrize(
    ("key", "named"),
    [
        (1.5, "1.5"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (None, "NoneType"),
        (Decimal(1), "decimal.Decimal"),
        (Fraction(1), "fractions.Fraction"),
        (1 + 0j, "complex"),
        ([1], "list"),
        ({}, "dict"),
        (frozenset(), "frozenset"),
        (bytearray(b"x"), "bytearray"),
        (memoryview(b"x"), "memoryview"),
        (np.float64(0.5), "0.5"),
        (np.array(3), "array"),
        (Shout("x"), "Shout"),
    ],
    ids=lambda value: repr(value).partition(" at ")[0][:20],
)
def test_other_types_are_refused_by_name_also_inside_tuples(key, named):
    for tried in (key, (key,), ("a", ("b", key))):
        with pytest.raises(TypeError, match=named) as caught:
            keys.encode(tried)
        assert "keys are str, bytes, int or tuples of them" in str(caught.value) or "array" in named
        with pytest.raises(TypeError):
            keys.canonical(tried)


def nested(depth, leaf=()):
    for _ in range(depth - 1):
        leaf = (leaf,)
    return leaf


def test_tuples_nest_up_to_the_limit_and_no_deeper():
    assert keys.decode(keys.encode(nested(32))) == nested(32)
    assert keys.canonical(nested(32)) == nested(32)
    for depth in (33, 100, 5000):
        with pytest.raises(TypeError, match="nested too deeply"):
            keys.encode(nested(depth))
        with pytest.raises(TypeError, match="nested too deeply"):
            keys.canonical(nested(depth))


# -- limits and stored forms -------------------------------------------------------------------


def test_encoded_keys_are_limited_to_32_kib():
    for longest in ("x" * 32767, b"x" * 32767, ("x" * 32765,), 1 << (8 * 32764)):
        assert len(keys.encode(longest)) == keys.KEY_BYTES_MAX
        assert keys.decode(keys.encode(longest)) == longest
    assert len(keys.encode(-(1 << (8 * 32764)))) == keys.KEY_BYTES_MAX
    for too_long in ("x" * 32768, b"x" * 32768, ("x" * 32766,), 1 << (8 * 32765), 1 << 600_000, (0,) * 32768):
        with pytest.raises(KeyTooLongError):
            keys.encode(too_long)


def test_stored_form_is_exact_up_to_480_bytes_and_503_bytes_beyond():
    for size in (0, 1, 478, 479):
        encoded = keys.encode("x" * size)
        assert keys.stored(encoded) is encoded
        assert not keys.is_long(keys.stored(encoded))
    forms = set()
    for size in (480, 481, 485, 486, 487, 1000, 32767):
        encoded = keys.encode("x" * size)
        form = keys.stored(encoded)
        assert len(form) == 503
        assert keys.is_long(form)
        assert form.startswith(encoded[:487])
        forms.add(form)
    assert len(forms) == 7


def test_long_keys_alike_in_their_first_bytes_have_different_stored_forms():
    assert keys.stored(b"\x02" + b"x" * 481) != keys.stored(b"\x02" + b"x" * 481 + b"\x00")


# Encoded lengths on both sides of 480 and of 487.
long_keys = st.builds(
    lambda size, tail: "x" * size + tail, st.integers(470, 490), st.text(st.sampled_from("\0\x01xyz\xff"), max_size=20)
)


@given(st.lists(st.one_of(plain_keys, long_keys, long_keys.map(lambda text: (text, 1))), max_size=20), plain_keys)
@settings(deadline=None)
def test_bounds_split_stored_keys_as_keys_where_they_are_exact(found, limit):
    bound = keys.bound(limit)
    for key in found:
        encoded = keys.encode(key)
        assert (keys.stored(encoded) < bound) == (encoded < keys.encode(limit))


@given(st.lists(long_keys, max_size=20), long_keys)
@settings(deadline=None)
def test_bounds_of_long_keys_split_by_the_first_487_bytes(found, limit):
    def head(key):
        return keys.encode(key)[:487].ljust(487, b"\0")

    bound = keys.bound(limit)
    for key in [*found, limit]:
        stored = keys.stored(keys.encode(key))
        if keys.is_long(stored) and len(keys.encode(limit)) > 480:
            assert (stored < bound) == (head(key) < head(limit))
        else:
            assert (stored < bound) == (keys.encode(key) < keys.encode(limit))


# -- prefixes ----------------------------------------------------------------------------------


def has_prefix(key, prefix):
    if type(key) is not type(prefix):
        return False
    if type(key) is tuple:
        return rank(key[: len(prefix)]) == rank(prefix)
    return key.startswith(prefix)


def within(encoded, lower, upper):
    return lower <= encoded and (upper is None or encoded < upper)


@pytest.mark.parametrize("strategy", [texts, raws, tuples], ids=["str", "bytes", "tuple"])
def test_prefix_range_holds_exactly_the_keys_with_the_prefix(strategy):
    @given(st.data())
    @settings(max_examples=300, deadline=None)
    def check(data):
        key = data.draw(strategy)
        prefix = key[: data.draw(st.integers(0, len(key)))]
        lower, upper = keys.prefix_range(prefix)
        for other in [key, prefix, *data.draw(st.lists(plain_keys, max_size=6))]:
            assert within(keys.encode(other), lower, upper) == has_prefix(other, prefix), other

    check()


def test_prefix_of_a_tuple_is_not_fooled_by_nul_or_longer_elements():
    lower, upper = keys.prefix_range(("user",))
    inside = [("user",), ("user", 42, "x"), ("user", ()), ("user", ""), ("user", 10**300), ("user", -(10**300))]
    outside = [("users",), ("user\0",), ("user\0\xff",), (b"user",), "user", ("use",), (("user",),), ()]
    assert all(within(keys.encode(key), lower, upper) for key in inside)
    assert not any(within(keys.encode(key), lower, upper) for key in outside)


@given(long_keys, long_keys, st.integers(465, 500), st.booleans())
@settings(max_examples=400, deadline=None)
def test_stored_range_of_a_prefix_misses_no_key_and_lets_in_only_long_ones(first, second, cut, wrapped):
    prefix = (first[:cut],) if wrapped else first[:cut]
    lower, upper = keys.prefix_range(prefix)
    stored_lower, stored_upper = keys.stored_range(lower, upper)
    for key in (first, second, first[:cut], (first[:cut], -5), (first[:cut], "x" * 30), (second, 1), "y", ("y",)):
        encoded = keys.encode(key)
        form = keys.stored(encoded)
        inside, stored_inside = within(encoded, lower, upper), within(form, stored_lower, stored_upper)
        assert stored_inside or not inside
        assert inside or not stored_inside or keys.is_long(form)


@pytest.mark.parametrize("prefix", [42, True, 1.0, None, 1.5])
def test_only_strings_bytes_and_tuples_are_prefixes(prefix):
    with pytest.raises(TypeError):
        keys.prefix_range(prefix)
    with pytest.raises(TypeError, match="a prefix is a str, bytes or a tuple, not int"):
        keys.prefix_range(42)


# -- damage ------------------------------------------------------------------------------------


@given(st.one_of(st.binary(max_size=40), st.builds(bytes.__add__, st.just(b"\x05"), st.binary(max_size=40))))
@settings(max_examples=800, deadline=None)
@example(b"")
@example(b"\x00")
@example(b"\x05\x00")
@example(b"\x05\x02ab")
@example(b"\x05\x05")
@example(b"\x15")
@example(b"\x15\x00")
@example(b"\x13\xff")
@example(b"\x14\x00")
@example(b"\x1d\x00\x01\x05")
@example(b"\x1d\x00")
@example(b"\x0b\xff")
@example(b"\x02\xff")
@example(b"\x05" * 40)
@example(b"\x05" * 5000)
def test_what_decodes_is_what_encode_makes_and_all_else_is_a_value_error(encoded):
    try:
        key = keys.decode(encoded)
    except ValueError:
        return
    assert keys.encode(key) == encoded
