"""Registered types: each kind in each tier, exactness, refusals, later versions, functions that raise or call back."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import itertools
import math
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar
from uuid import UUID

import msgpack
import numpy as np
import pytest
from contracts import evict, set_aside

import tiered
from tiered import codec, conversion, extensions, registry

T = TypeVar("T")


BEFORE = registry._by_name, registry._by_class


def round_trip(value):
    return codec.decode(*codec.encode(value))


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """Each test begins with what this module registers, and no other test does."""
    monkeypatch.setattr(registry, "_by_name", dict(OWN_NAMES))
    monkeypatch.setattr(registry, "_by_class", dict(OWN_CLASSES))


def forget(name):
    kept = registry._by_name.pop(name)
    del registry._by_class[kept.kind]


@tiered.register("point")
@dataclass
class Point:
    x: float
    y: float
    names: list[str] = field(default_factory=list)


@tiered.register("frozen")
@dataclass(frozen=True)
class Frozen:
    key: object


@tiered.register("slotted")
@dataclass(frozen=True, slots=True)
class Slotted:
    key: object
    more: tuple[Any, ...] = ()


@tiered.register("base")
@dataclass
class Base:
    a: int


@tiered.register("derived")
@dataclass
class Derived(Base):
    b: int
    shared: ClassVar[int] = 7


@dataclass(slots=True)
class SlottedBase:
    a: int


@tiered.register("slots below")
@dataclass(slots=True)
class SlottedDerived(SlottedBase):
    b: int


@tiered.register("slots and dict")
@dataclass
class Mixed(SlottedBase):
    b: int


@tiered.register("counted")
@dataclass
class Counted:
    """Whose making does more than setting its fields."""

    given: dataclasses.InitVar[int]
    doubled: int = field(init=False)
    fixed: int = field(init=False, default=5)
    calls: ClassVar[list[str]] = []

    def __post_init__(self, given):
        self.calls.append("post")
        self.doubled = 2 * given


@tiered.register("pair")
class Pair(NamedTuple):
    left: object
    right: object = None


@tiered.register("old pair")
class OldPair(collections.namedtuple("OldPair", "left right")):
    """The idiom without `__slots__`: its objects can have attributes."""


@tiered.register("colour")
class Colour(enum.Enum):
    RED = "r"
    CRIMSON = "r"  # noqa: PIE796
    BLUE = object()


@tiered.register("number")
class Number(enum.IntEnum):
    ONE = 1
    TWO = 2


@tiered.register("mode")
class Mode(str, enum.Enum):
    READ = "r"


@tiered.register("access")
class Access(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()
    RUN = enum.auto()


@tiered.register("bits")
class Bits(enum.IntFlag):
    A = 1
    B = 2


class Money:
    def __init__(self, amount, currency):
        self.amount, self.currency = amount, currency

    def __eq__(self, other):
        return type(other) is Money and (self.amount, self.currency) == (other.amount, other.currency)

    def __hash__(self):
        return hash((self.amount, self.currency))


tiered.register("money", Money, pack=lambda money: [money.amount, money.currency], unpack=lambda state: Money(*state))


@tiered.register("tag", pack=str.__str__, unpack=lambda text: Tag(text))
class Tag(str):
    __slots__ = ()


@tiered.register("length", pack=int.__int__, unpack=lambda number: Length(number))
class Length(int):
    pass


@tiered.register("bag", pack=lambda bag: dict(bag), unpack=lambda items: Bag(items))
class Bag(dict):
    pass


@tiered.register("row", pack=lambda row: list(row), unpack=lambda items: Row(items))
class Row(list):
    pass


tiered.register("counter", collections.Counter, pack=dict, unpack=collections.Counter)
tiered.register("fraction", Fraction, pack=Fraction.as_integer_ratio, unpack=lambda ratio: Fraction(*ratio))
tiered.register("bytearray", bytearray, pack=bytes, unpack=bytearray)

OWN_NAMES, OWN_CLASSES = registry._by_name, registry._by_class
registry._by_name, registry._by_class = BEFORE

KINDS = {
    "dataclass": Point(1.5, -2.0, ["a"]),
    "frozen dataclass": Frozen(("a", 1)),
    "slotted dataclass": Slotted("k", (1, {2})),
    "derived dataclass": Derived(1, 2),
    "slots in base and class": SlottedDerived(1, 2),
    "slots in base only": Mixed(1, 2),
    "fields not of init": Counted(4),
    "named tuple": Pair(1, [2]),
    "named tuple without slots": OldPair(1, 2),
    "enum": Colour.BLUE,
    "int enum": Number.TWO,
    "str enum": Mode.READ,
    "flag": Access.READ,
    "flags": Access.READ | Access.RUN,
    "no flag": Access(0),
    "all but one": ~Access.READ,
    "int flags": Bits.A | Bits.B,
    "int flags beyond": Bits(64),
    "pack and unpack": Money(Decimal("1.50"), "EUR"),
    "str subclass": Tag("é\ud800"),
    "int subclass": Length(1 << 70),
    "dict subclass": Bag({"a": (1,), 2: None}),
    "list subclass": Row([1, Row()]),
    "of the standard library": collections.Counter("abba"),
    "fraction": Fraction(1, 3),
    "bytearray": bytearray(b"ab"),
}


def same(first, second):
    return type(first) is type(second) and first == second


def hashable(value):
    try:
        hash(value)
    except TypeError:
        return False
    return True


# -- every kind --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_comes_back_the_same_wherever_it_is(name):
    value = KINDS[name]
    for found in (
        round_trip(value),
        round_trip([0, value])[1],
        round_trip({"a": {"b": value}})["a"]["b"],
        round_trip((1, (value,)))[1][0],
        round_trip({(1,): [value]})[(1,)][0],
        round_trip(Frozen(value)).key,
        round_trip(Pair(value)).left,
        round_trip(Bag({"x": value}))["x"],
    ):
        assert type(found) is type(value)
        assert found == value
        if isinstance(value, enum.Enum):
            assert found is value
    if hashable(value):
        for mapping in ({value: 1}, {"a": 0, value: [value]}, {(value, 1): 2}):
            found = round_trip(mapping)
            assert found == mapping
            assert [type(key) for key in found] == [type(key) for key in mapping]
        for members in ({value}, frozenset({value, "x"}), {(value,)}):
            found = round_trip(members)
            assert found == members
            assert sorted(map(repr, map(type, found))) == sorted(map(repr, map(type, members)))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_the_same_in_every_tier_and_after_a_restart(opener, name):
    value = KINDS[name]

    def look(store, tier):
        places = store.explain("k").tiers
        assert tier is None or places == tier, places
        for found in (store["k"], store.get("k"), store.get_many(["k", "in"])["k"], store["in"][1][0]):
            assert same(found, value)
        assert same(dict(store.items())["k"], value)

    store = opener(stepwise=True)
    store["k"] = value
    store.set_many([("in", [0, (value,)])])
    look(store, ("hot", "write buffer"))
    evict(store)
    look(store, None)
    evict(store)
    assert same(store["k"], value)
    set_aside(store)
    evict(store)
    look(store, None)
    store.save()
    evict(store)
    assert store.explain("k").tiers == ("cold",)
    look(store, None)
    look(store, ("hot", "cold"))
    assert store.check() == []
    store.close()
    store = opener(stepwise=True)
    look(store, None)
    assert same(store.setdefault("k", 1), value)
    assert same(store.setdefault("new", value), value)
    assert store.persist("k") is False
    assert store.touch("k", 100)
    assert same(store.pop("k"), value)
    del store["in"]
    assert same(store.popitem()[1], value)
    assert len(store) == 0


def test_what_is_read_is_the_readers_own(opener):
    store = opener()
    store["k"] = Point(1.0, 2.0, ["a"])
    store["k"].names.append("b")
    store["k"].x = 5.0
    assert store["k"] == Point(1.0, 2.0, ["a"])


def test_the_layout_is_frozen():
    assert codec.encode(Frozen(1)) == (3, bytes.fromhex("c70e 0e 92 a6 66726f7a656e 81 a3 6b6579 01"))
    assert codec.encode(Pair(1, 2)) == (3, bytes.fromhex("c714 0e 92 a4 70616972 82 a4 6c656674 01 a5 7269676874 02"))
    assert codec.encode([Colour.RED]) == (3, bytes.fromhex("91 c70c 0e 92 a6 636f6c6f7572 a3 524544"))
    assert codec.encode(Access.READ | Access.RUN) == (3, bytes.fromhex("c709 0e 92 a6 616363657373 05"))
    assert codec.encode(Length(7)) == (3, bytes.fromhex("c709 0e 92 a6 6c656e677468 07"))


@pytest.mark.parametrize("name", KINDS)
def test_registered_objects_are_unknown_to_the_fast_packer(name):
    for value in (KINDS[name], [KINDS[name]], {"a": KINDS[name]}):
        assert codec._pack_fast(value) is None or name == "bytearray"
    if hashable(KINDS[name]):
        assert codec._pack_fast({KINDS[name]: 1}) is None


# -- exactness ---------------------------------------------------------------------------------


def test_fields_keep_what_equality_overlooks():
    nan = struct.unpack(">d", bytes.fromhex("fff8000000000123"))[0]
    for value in (-0.0, nan, math.inf, True, Decimal("1.50"), Number.ONE):
        for found in (round_trip(Frozen(value)).key, round_trip(Slotted(value)).key, round_trip(Pair(value)).left):
            assert type(found) is type(value)
            if type(value) is float:
                assert struct.pack("d", found) == struct.pack("d", value)
            else:
                assert str(found) == str(value)
    found = round_trip(Point(-0.0, nan))
    assert struct.pack("dd", found.x, found.y) == struct.pack("dd", -0.0, nan)


def test_fields_may_hold_arrays_and_other_registered_objects():
    array = np.arange(6.0).reshape(2, 3)
    found = round_trip(Pair(Frozen(array), Slotted(np.float32(1.5), (Money(1, "EUR"), date(2024, 1, 2)))))
    assert found.left.key.tobytes() == array.tobytes()
    assert found.left.key.shape == (2, 3)
    assert type(found.right.key) is np.float32
    assert found.right.more == (Money(1, "EUR"), date(2024, 1, 2))


def test_no_code_of_a_dataclass_runs_when_it_is_read():
    value = Counted(3)
    assert vars(value) == {"doubled": 6}  # The other field is the class's.
    Counted.calls.clear()
    found = round_trip(value)
    assert Counted.calls == []
    assert (found.doubled, found.fixed) == (6, 5)


def test_a_frozen_dataclass_stays_frozen_and_hashes_as_before():
    found = round_trip(Slotted("k"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.key = 1
    assert hash(found) == hash(Slotted("k"))
    assert not hasattr(found, "__dict__")


def test_an_object_that_is_more_than_its_fields_is_refused():
    beyond = Point(1, 2)
    beyond.z = 3
    with pytest.raises(TypeError, match=r"^value\['a'\]: .*Point cannot be kept with attributes .* fields: z$"):
        codec.encode({"a": beyond})
    pair = OldPair(1, 2)
    pair.note = "x"
    with pytest.raises(TypeError, match="OldPair cannot be kept with attributes that are not its fields: note"):
        codec.encode(pair)


def test_an_object_with_a_slot_that_is_no_field_is_refused_once_that_is_set():
    class Caching:
        __slots__ = ("cache",)

    @tiered.register("slot beyond")
    @dataclass
    class Beyond(Caching):
        __slots__ = ("a",)
        a: int

    assert round_trip(Beyond(1)) == Beyond(1)
    beyond = Beyond(1)
    beyond.cache = 2
    with pytest.raises(TypeError, match="cache"):
        codec.encode(beyond)


def test_what_a_cached_property_keeps_is_not_dropped_in_silence():
    @tiered.register("cached")
    @dataclass
    class Cached:
        a: int

        @functools.cached_property
        def double(self):
            return 2 * self.a

    value = Cached(1)
    assert round_trip(value) == value
    assert value.double == 2
    with pytest.raises(TypeError, match="double"):
        codec.encode(value)


@pytest.mark.parametrize(
    "value", [Point(1, 2), SlottedDerived(1, 2), Mixed(1, 2)], ids=lambda value: type(value).__name__
)
def test_an_object_that_misses_a_field_is_refused(value):
    value = dataclasses.replace(value)
    missing = dataclasses.fields(value)[-1].name
    delattr(value, missing)
    with pytest.raises(TypeError, match=f"cannot be kept without its field {missing!r}"):
        codec.encode(value)
    with pytest.raises(TypeError, match="Pair cannot be kept with 1 elements"):
        codec.encode(tuple.__new__(Pair, (1,)))


def test_a_default_of_the_class_does_not_stand_in_for_a_deleted_field():
    @tiered.register("defaulted")
    @dataclass
    class Defaulted:
        a: int = 1

    value = Defaulted(2)
    del value.a
    assert value.a == 1
    with pytest.raises(TypeError, match="without its field 'a'"):
        codec.encode(value)


@pytest.mark.parametrize("base", [Point, Frozen, Slotted, OldPair, Money, Tag, Bag, Row, Length, Base])
def test_an_unregistered_subclass_is_refused_and_never_flattened(base):
    class Sub(base):
        pass

    value = {Point: (1, 2), OldPair: (1, 2), Money: (1, 2), Base: (1,)}.get(
        base, ("1",) if base is not Length else (1,)
    )
    value = Sub([]) if base in (Bag, Row) else Sub(*value)
    for tried in (value, [value], {"a": (value,)}):
        with pytest.raises(TypeError, match="Sub cannot be kept"):
            codec.encode(tried)


def test_a_state_that_cannot_be_kept_is_refused_with_the_types_name_and_the_way_there():
    with pytest.raises(TypeError, match=r"^value\['a'\] \(the state of a .*Money\)\[0\]: object cannot be kept"):
        codec.encode({"a": Money(object(), "EUR")})
    with pytest.raises(TypeError, match=r"^value \(the state of a .*Frozen\)\['key'\]\[1\]: object cannot be kept"):
        codec.encode(Frozen([1, object()]))
    tiered.register("itself", range, pack=lambda value: value, unpack=range)
    with pytest.raises(TypeError, match="range cannot be kept: its pack function gave one again"):
        codec.encode([range(3)])


def test_registered_types_nest_as_deep_as_tuples_and_not_deeper():
    for wrap in (Frozen, Pair, lambda inner: Frozen((inner,)), lambda inner: Row([inner])):
        value: Any = 0
        refused = 0
        for _ in range(20):
            value = wrap(value)
            try:
                encoded = codec.encode(value)
            except TypeError as error:
                refused += "nested too deeply" in str(error)
            else:
                assert not refused
                assert codec.decode(*encoded) == value
        assert refused
    endless = Point(1, 2)
    endless.names.append(endless)
    with pytest.raises(TypeError, match="nested too deeply"):
        codec.encode(endless)


def test_members_are_looked_up_by_name_so_values_may_change():
    payload = codec.encode([Colour.RED, Number.TWO])
    forget("colour")

    @tiered.register("colour")
    class Colour2(enum.Enum):
        RED = "changed"

    assert codec.decode(*payload) == [Colour2.RED, Number.TWO]


# -- refusals that help ------------------------------------------------------------------------


def test_the_refusal_of_an_unregistered_type_prints_the_line_that_helps():
    @dataclass
    class City:
        name: str

    class Town(NamedTuple):
        name: str

    class Size(enum.Enum):
        BIG = 1

    class Step(enum.IntEnum):
        ONE = 1

    old = collections.namedtuple("Old", "a")
    for value in (City("x"), Town("x"), Size.BIG, Step.ONE, old(1)):
        kind = type(value)
        line = f'@tiered.register("{kind.__name__}") above class {kind.__name__}'
        with pytest.raises(TypeError) as caught:
            codec.encode({"a": value})
        assert line in str(caught.value)
        assert str(caught.value).startswith("value['a']: ")
        assert caught.value.__context__ is None
        tiered.register(kind.__name__, kind)
        assert round_trip(value) == value


def test_the_refusal_of_other_subclasses_names_their_base():
    class Sub(Money):
        pass

    with pytest.raises(TypeError, match="a subclass of Money, which is registered: register it as well"):
        codec.encode(Sub(1, 2))
    with pytest.raises(TypeError, match=r"a subclass of dict: convert it .* or register it with pack and unpack"):
        codec.encode(collections.OrderedDict())
    with pytest.raises(TypeError, match=r"and types registered with tiered\.register$"):
        codec.encode(object())


# -- registering -------------------------------------------------------------------------------


def define(amount=0):
    @dataclass
    class Again:
        a: int = amount

    return Again


def test_register_returns_the_class():
    again = define()
    assert tiered.register("again", again) is again
    again = define()
    assert tiered.register("again")(again) is again
    other = type("Other", (), {})
    assert tiered.register("other", other, pack=lambda value: None, unpack=lambda state: other()) is other


def test_a_class_defined_anew_replaces_itself_and_its_older_objects_are_refused():
    first = tiered.register("again", define())
    encoded = codec.encode(first(1))
    second = tiered.register("again", define())
    assert second is not first
    assert type(codec.decode(*encoded)) is second
    assert round_trip(second(1)) == second(1)
    with pytest.raises(TypeError, match="an earlier definition of class Again, registered anew"):
        codec.encode(first(1))
    tiered.register("again", second, pack=lambda value: value.a, unpack=lambda state: second(state + 1))
    assert round_trip(second(1)) == second(2)


def test_a_name_or_a_class_registered_twice_is_an_error_and_changes_nothing():
    with pytest.raises(tiered.ConfigError, match=r"the name 'point' is taken by .*Point; choose another for .*Again"):
        tiered.register("point", define())
    with pytest.raises(tiered.ConfigError, match=r"Point is registered already, as 'point'"):
        tiered.register("other point", Point)
    assert round_trip(Point(1, 2)) == Point(1, 2)
    assert "other point" not in registry._by_name
    tiered.register("point", Point)


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128, "\ud800"])
def test_a_name_is_a_short_text(name):
    with pytest.raises(tiered.ConfigError, match="name"):
        tiered.register(name, define())


def test_the_longest_name_works():
    kind = tiered.register("é" * 127, define())
    assert round_trip(kind(1)) == kind(1)


def test_what_is_a_value_type_already_is_not_registered():
    for kind in (*registry._BUILT_IN, Decimal, UUID, np.ndarray, np.float64, np.str_):
        with pytest.raises(TypeError, match="is a value type as it is"):
            tiered.register("builtin", kind, pack=lambda value: 1, unpack=lambda state: state)
    assert set(conversion.CONVERTERS) | set(extensions.SCALARS) | set(conversion.PACKED_AS_IS) == registry._BUILT_IN


def test_what_cannot_be_registered_says_why():
    class Plain:
        pass

    @dataclass
    class OfDict(dict):
        a: int

    @dataclass
    class OfException(Exception):
        a: int

    class Descriptor:
        def __get__(self, instance, owner):
            return 0

        def __set__(self, instance, value):
            pass

    @dataclass
    class Described:
        a: int = Descriptor()  # type: ignore[assignment]

    for kind, why in {
        Plain: "no dataclass, NamedTuple or Enum: give pack and unpack",
        tuple: "a value type as it is",
        OfDict: "derives from dict, whose content is no field",
        OfException: "derives from .*Exception, whose content",
        Described: "the field 'a' of .* is a descriptor",
    }.items():
        with pytest.raises(TypeError, match=why):
            tiered.register("no", kind)
    with pytest.raises(TypeError, match="takes a class, not 5"):
        tiered.register("no", 5)
    with pytest.raises(TypeError, match="a name first"):
        tiered.register(Plain)
    with pytest.raises(TypeError, match="pack and unpack together"):
        tiered.register("no", Plain, pack=str)
    assert "no" not in registry._by_name


def test_a_generic_dataclass_works_where_it_holds_no_alias():
    @tiered.register("box")
    @dataclass
    class Box(Generic[T]):
        content: T

    assert round_trip(Box(1)) == Box(1)
    with pytest.raises(TypeError, match="__orig_class__"):
        codec.encode(Box[int](1))


# -- what a program does not know --------------------------------------------------------------


def test_a_type_that_is_not_registered_is_an_unknown_type_wherever_it_is_read(opener):
    store = opener(stepwise=True)
    values = {
        "plain": 1,
        "k": Point(1, 2),
        "in": [(Point(1, 2),)],
        "odd": ["\ud800", Point(1, 2)],
        "key": {Frozen(1): 2},
    }
    store.update(values)
    names = ["k", "in", "odd", "key"]
    forget("point")
    forget("frozen")
    for settle in (lambda: None, lambda: evict(store), lambda: (store.save(), evict(store))):
        settle()
        for name in names:
            wanted = "frozen" if name == "key" else "point"
            for read in (
                lambda name=name: store[name],
                lambda name=name: store.get(name, 1),
                lambda name=name: store.get_many(["plain", name]),
                lambda name=name: list(store.items(start=name)),
                lambda name=name: store.pop(name),
                lambda name=name: store.setdefault(name, 1),
            ):
                with pytest.raises(tiered.UnknownTypeError, match=f'put @tiered.register."{wanted}".') as caught:
                    read()
                assert caught.value.name == wanted
                assert not isinstance(caught.value, (ValueError, tiered.StoreError))
        assert store["plain"] == 1
        assert len(store) == 5
        assert store.check() == []
        assert store.touch("k", 100)
        assert store.persist("k")
    with pytest.raises(tiered.UnknownTypeError):
        store.incr("k")
    del store["k"]
    assert store.delete_many(["in"]) == 1
    assert sorted(store) == ["key", "odd", "plain"]
    tiered.register("point", Point)
    assert store["odd"] == ["\ud800", Point(1, 2)]


def test_a_program_that_registers_nothing_reads_the_rest(opener, tmp_path):
    with opener() as store:
        store.update({"k": Point(1, 2), "other": {"a": (1,)}})
    program = """
import sys, tiered
with tiered.open(sys.argv[1]) as store:
    assert store["other"] == {"a": (1,)}
    try:
        store["k"]
    except tiered.UnknownTypeError as error:
        assert "'point'" in str(error)
    else:
        raise AssertionError
    assert store.check() == []
    store.save()
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "store.tiered")], check=True, timeout=60)
    assert opener()["k"] == Point(1, 2)


def version(name, **fields):
    forget(name)
    made = dataclasses.make_dataclass("Point", [(key, Any, value) for key, value in fields.items()], kw_only=True)
    return tiered.register(name, made)


def test_a_new_field_takes_its_default():
    encoded = codec.encode(Point(1, 2, ["a"]))
    made = itertools.count()
    fresh = field(default_factory=lambda: [next(made)])
    kind = version("point", x=field(), y=field(), names=field(), z=field(default=7), w=fresh)
    found = codec.decode(*encoded)
    assert found == kind(x=1, y=2, names=["a"], z=7, w=[0])
    assert codec.decode(*encoded).w == [1]
    encoded = codec.encode(Pair(1, 2))
    forget("pair")
    longer = tiered.register("pair", collections.namedtuple("Pair", "new right left", defaults=(1, 2, 3)))
    assert codec.decode(*encoded) == longer(1, 2, 1)


def test_a_field_that_is_gone_or_cannot_be_made_up_is_named():
    encoded = codec.encode([Point(1, 2)])
    version("point", x=field(), y=field())
    with pytest.raises(tiered.UnknownTypeError, match=r"'point' was stored with the field 'names', which .*Point"):
        codec.decode(*encoded)
    version("point", x=field(), y=field(), names=field(), z=field())
    with pytest.raises(tiered.UnknownTypeError, match=r"'point' was stored without the field 'z'; .*Point"):
        codec.decode(*encoded)


def test_a_member_that_is_gone_and_a_class_of_another_kind_are_named():
    encoded = codec.encode([Colour.BLUE])
    flags = codec.encode(Access.RUN)
    forget("colour")
    forget("access")
    tiered.register("colour", enum.Enum("Colour", "RED"))
    with pytest.raises(tiered.UnknownTypeError, match="'colour' was stored as the member 'BLUE', which"):
        codec.decode(*encoded)
    for boundary in (enum.STRICT, enum.EJECT) if sys.version_info >= (3, 11) else (None,):
        registry._by_name.pop("access", None)
        fewer = enum.Flag("Access", "READ WRITE", **({"boundary": boundary} if boundary else {}))
        tiered.register("access", fewer)
        with pytest.raises(tiered.UnknownTypeError, match="'access' was stored as 4, which"):
            codec.decode(*flags)
    forget("colour")
    tiered.register("colour", define())
    with pytest.raises(tiered.UnknownTypeError, match="'colour' was stored without fields"):
        codec.decode(*encoded)


def test_damaged_names_and_states_are_a_value_error():
    for inside in ([], ["point"], [1, {}], [b"point", {}], ["point", {}, 1], {"point": 1}, 5, [None, None]):
        payload = msgpack.packb(msgpack.ExtType(14, msgpack.packb(inside)))
        with pytest.raises(ValueError, match="the bytes are no value"):
            codec.decode(codec.MSGPACK, payload)
    with pytest.raises(ValueError, match="the bytes are no value"):
        codec.decode(codec.MSGPACK, msgpack.packb(msgpack.ExtType(14, b"\x92\xa5poi")))


def test_an_object_that_says_it_is_of_another_class_is_not_kept_as_it_is(opener):
    class Proxy:
        def __init__(self, text):
            self.text = text

        @property
        def __class__(self):
            return str

    tiered.register("proxy", Proxy, pack=lambda proxy: proxy.text, unpack=Proxy)
    store = opener()
    value = Proxy("x")
    store["k"] = value
    store.set_many({"l": value})
    value.text = "changed"
    assert type(store["k"]) is type(store["l"]) is Proxy
    assert store["k"].text == store["l"].text == "x"


@pytest.mark.filterwarnings("ignore")
def test_damaged_payloads_raise_nothing_but_value_and_unknown_type_errors():
    values = [Point(1, -0.0, ["a"]), Slotted("k", (1, {2})), Pair(1, 2), Colour.RED, Access.READ | Access.RUN]
    for value in (values, [*values, "\ud800"]):
        codec_id, payload = codec.encode(value)
        chance = random.Random(7)
        damaged = [payload[:end] for end in range(len(payload))]
        for _ in range(6000):
            changed = bytearray(payload)
            for _ in range(chance.randrange(1, 4)):
                changed[chance.randrange(len(changed))] = chance.choice((chance.randrange(256), 0, 0xFF, 0xC7, 14))
            damaged.append(bytes(changed))
        outcomes = collections.Counter()
        for changed in damaged:
            try:
                codec.decode(codec_id, changed)
            except (ValueError, tiered.UnknownTypeError) as error:
                outcomes[type(error)] += 1
        assert set(outcomes) == {ValueError, tiered.UnknownTypeError}


# -- user code ---------------------------------------------------------------------------------


class Awkward:
    """Whose functions do what a test wants."""

    pack: ClassVar[Any] = None
    unpack: ClassVar[Any] = None


@pytest.fixture
def awkward():
    tiered.register(
        "awkward", Awkward, pack=lambda value: Awkward.pack(value), unpack=lambda state: Awkward.unpack(state)
    )
    Awkward.pack = Awkward.unpack = staticmethod(lambda value: None)
    return Awkward


ERRORS = [ValueError, TypeError, KeyError, RuntimeError, RecursionError, LookupError, ArithmeticError, OSError]
ERRORS += [AttributeError, IndexError, StopIteration, struct.error, tiered.StoreFullError, MemoryError]


@pytest.mark.parametrize("kind", [*ERRORS, KeyboardInterrupt, UnicodeEncodeError], ids=lambda kind: kind.__name__)
def test_what_pack_raises_reaches_the_caller_as_it_is_and_nothing_is_written(opener, awkward, kind):
    store = opener()
    store["k"] = "old"
    arguments = {UnicodeEncodeError: ("utf-8", "\ud800", 0, 1, "no"), tiered.StoreFullError: ("a", "b")}
    error = kind(*arguments.get(kind, ("mine",)))
    cause = error.__cause__ = OSError("why")

    def fail(value):
        raise error

    awkward.pack = staticmethod(fail)
    written = store._engine.journal.last
    for write in (
        lambda: store.set("k", awkward()),
        lambda: store.set("k", ["\ud800", (awkward(),)]),
        lambda: store.setdefault("new", {"a": awkward()}),
        lambda: store.set_many({"k": 2, "l": awkward()}),
    ):
        with pytest.raises(kind) as caught:
            write()
        assert caught.value is error
        assert error.__cause__ is cause
        assert not isinstance(error.__context__, registry.Failed)
    assert dict(store.items()) == {"k": "old"}
    assert store._engine.journal.last == written
    store["k"] = {"after": (1,)}
    assert store["k"] == {"after": (1,)}


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_what_unpack_raises_reaches_the_caller_as_it_is_and_the_value_stays(opener, awkward, kind):
    store = opener(stepwise=True)
    error = kind("a", "b") if kind is tiered.StoreFullError else kind("mine")

    def fail(state):
        raise error

    store.update({"k": awkward(), "in": ["\ud800", (awkward(),)], "plain": (1,)})
    awkward.unpack = staticmethod(fail)
    for settle in (lambda: None, lambda: evict(store), lambda: (store.save(), evict(store))):
        settle()
        for name in ("k", "in"):
            for read in (
                lambda name=name: store[name],
                lambda name=name: store.get(name),
                lambda name=name: store.get_many([name, "plain"]),
                lambda name=name: store.pop(name),
                lambda name=name: store.pop(name, None),
                lambda name=name: store.setdefault(name, 5),
            ):
                with pytest.raises(kind) as caught:
                    read()
                assert caught.value is error
                assert error.__cause__ is None
                assert not isinstance(error.__context__, registry.Failed)
        assert store["plain"] == (1,)
        assert store.check() == []
    awkward.unpack = staticmethod(lambda state: state)
    assert store.get_many(["k", "in"]) == {"k": None, "in": ["\ud800", (None,)]}


def test_what_the_missing_method_of_a_flag_raises_reaches_the_caller():
    encoded = codec.encode([Access.RUN])
    forget("access")

    @tiered.register("access")
    class Access2(enum.Flag):
        READ = 1

        @classmethod
        def _missing_(cls, value):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        codec.decode(*encoded)


def test_what_a_default_factory_raises_reaches_the_caller():
    def fail():
        raise ValueError("mine")

    encoded = codec.encode(Pair(Point(1, 2)))
    version("point", x=field(), y=field(), names=field(), z=field(default_factory=fail))
    with pytest.raises(ValueError, match=r"^mine$"):
        codec.decode(*encoded)


class Opaque:
    """Of no kind that `register` knows."""

    def __init__(self, inside):
        self.inside = inside


def test_who_wants_pickle_says_so_for_a_class_and_only_that_class_is_pickled(opener):
    store = opener(path="pickled")
    with pytest.raises(TypeError, match="Opaque"):
        store["a"] = Opaque([1, {2: (3,)}])
    tiered.register("opaque", Opaque, pack=pickle.dumps, unpack=pickle.loads)
    store["a"] = [Opaque([1, {2: (3,)}])]
    with pytest.raises(TypeError, match="range"):
        store["b"] = range(3)
    store.save()
    evict(store)
    assert type(store["a"][0]) is Opaque
    assert store["a"][0].inside == [1, {2: (3,)}]


def test_functions_may_use_the_store(opener, awkward):
    store = opener(stepwise=True)
    store["seen"] = 0

    def pack(value):
        store.incr("seen")
        store["written"] = {"in pack": (1,)}
        return store.get_many(["seen"])

    def unpack(state):
        store.incr("read")
        store.set_many({("read", number): [number] for number in range(50)})
        return state

    awkward.pack, awkward.unpack = staticmethod(pack), staticmethod(unpack)
    store["k"] = [awkward(), (awkward(),)]
    assert store["k"] == [{"seen": 1}, ({"seen": 2},)]
    assert store.setdefault("new", awkward()) == {"seen": 3}
    evict(store)
    assert store.get_many(["k", "written"]) == {"k": [{"seen": 1}, ({"seen": 2},)], "written": {"in pack": (1,)}}
    assert store.pop("new") == {"seen": 3}
    assert "new" not in store
    store.save()
    evict(store)
    assert [value for _, value in store.items(prefix="k")] == [[{"seen": 1}, ({"seen": 2},)]]
    assert store["read"] > 4
    assert store.check() == []


def test_no_lock_is_held_while_functions_run(opener, awkward):
    store = opener()
    used = []

    def elsewhere(value):
        thread = threading.Thread(target=lambda: used.append(store.incr("used")), daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive(), "the store is locked"

    awkward.pack = awkward.unpack = staticmethod(elsewhere)
    store["k"] = awkward()
    store.setdefault("new", [awkward()])
    store.set_many({"many": (awkward(),)})
    for read in (
        lambda: store["k"],
        lambda: store.get("new"),
        lambda: store.get_many(["k", "new"]),
        lambda: list(store.values(prefix="k")),
        lambda: store.setdefault("k", 5),
        lambda: store.pop("k"),
    ):
        before = len(used)
        evict(store)
        read()
        assert len(used) > before
    before = len(used)
    assert store.check() == []
    assert store.touch("new", 100)
    del store["new"]
    assert store.delete_many(["many"]) == 1
    assert len(used) == before


def test_pop_gives_the_value_that_it_deletes_when_that_changes_meanwhile(opener, awkward):
    store = opener()
    store["k"] = awkward()

    def change(state):
        store["k"] = "newer"
        return "older"

    awkward.unpack = staticmethod(change)
    assert store.pop("k") == "newer"
    assert "k" not in store


def test_setdefault_does_not_replace_what_pack_wrote(opener, awkward):
    store = opener()

    def write(value):
        store["k"] = "written by pack"

    awkward.pack = staticmethod(write)
    assert store.setdefault("k", awkward()) == "written by pack"
    assert store["k"] == "written by pack"


def test_no_exception_of_pack_is_kept_alive(awkward):
    class Large(Exception):
        pass

    def fail(value):
        raise Large

    awkward.pack = staticmethod(fail)
    value = awkward()
    before = sys.getrefcount(value)
    with pytest.raises(Large):
        codec.encode([value])
    assert sys.getrefcount(value) == before


# -- threads -----------------------------------------------------------------------------------


def test_threads_may_register_write_and_read_at_once(opener):
    store = opener(memory="1MB")
    wrong: list[BaseException] = []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def work(number):
        try:
            for turn in range(60):
                kind = dataclasses.make_dataclass(f"Made{number}_{turn}", ["a", "b"])
                tiered.register(kind.__name__, kind)
                value = [kind(turn, (number,)), Money(turn, Colour.RED), {Slotted(turn): Pair(number, Tag("x"))}]
                store[number, turn] = value
                assert store[number, turn] == value
                if turn % 20 == 19:
                    evict(store)
                    store.save()
                assert store[number, turn // 2][1:] == [
                    Money(turn // 2, Colour.RED),
                    {Slotted(turn // 2): Pair(number, Tag("x"))},
                ]
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong
    assert sum(name.startswith("Made") for name in registry._by_name) == 240
    assert len(store) == 240


def test_one_of_many_threads_gets_a_name():
    outcomes: list[str] = []
    barrier = threading.Barrier(8)

    def claim(number):
        kind = dataclasses.make_dataclass(f"Claimant{number}", ["a"])
        barrier.wait()
        try:
            tiered.register("claimed", kind)
        except tiered.ConfigError:
            outcomes.append("refused")
        else:
            outcomes.append("registered")

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 7 + ["registered"]
    assert sum(found.name == "claimed" for found in registry._by_class.values()) == 1


def test_classes_registered_at_once_are_all_registered(monkeypatch):
    looking = threading.Semaphore(0)
    go_on = threading.Event()

    class Slow(dict):
        def items(self):
            found = list(super().items())
            looking.release()
            assert go_on.wait(10)
            return found

    monkeypatch.setattr(registry, "_by_class", Slow(registry._by_class))
    kinds = [dataclasses.make_dataclass(f"AtOnce{number}", ["a"]) for number in range(2)]
    threads = [threading.Thread(target=tiered.register, args=(kind.__name__, kind)) for kind in kinds]
    for thread in threads:
        thread.start()
    assert looking.acquire(timeout=10)
    looking.acquire(timeout=0.1)  # The other, if it is not kept out.
    go_on.set()
    for thread in threads:
        thread.join()
    for kind in kinds:
        assert round_trip(kind(1)) == kind(1)


def test_an_object_changed_by_others_is_kept_as_it_was_at_one_moment():
    shared = Base(0)
    stop = threading.Event()

    def change():
        for number in itertools.count():
            shared.__dict__ = {"a": number}
            if stop.is_set():
                return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        seen = [round_trip(shared).a for _ in range(500)]
    finally:
        stop.set()
        thread.join()
    assert seen == sorted(seen)


# -- types -------------------------------------------------------------------------------------


def test_type_checkers_see_the_class_itself(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "program.py").write_text(
        """
from dataclasses import dataclass
from typing import NamedTuple
import tiered

@tiered.register("point")
@dataclass
class Point:
    x: int

@tiered.register("pair")
class Pair(NamedTuple):
    a: int

@tiered.register("tag", pack=str, unpack=lambda text: Tag(text))
class Tag(str): ...

class Money:
    cents: int

reveal_type(Point(1).x)
reveal_type(Pair(1).a)
reveal_type(Tag("x"))
reveal_type(tiered.register("money", Money, pack=lambda money: money.cents, unpack=lambda state: Money()))
tiered.register("money", Money, pack=lambda money: money.missing, unpack=lambda state: Money())
tiered.register("money", Money, pack=lambda money: 1, unpack=lambda state: 1)
tiered.register("money", Money, pack=lambda money: 1)
Point("1")
"""
    )
    found = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")),
            *("--config-file", str(Path(tiered.__file__).parents[1] / "pyproject.toml"), "program.py"),
        ],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(Path(tiered.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=200,
    )
    lines = [line.partition(": ")[2] for line in found.stdout.splitlines() if line.startswith("program.py")]
    assert lines[:4] == [
        'note: Revealed type is "int"',
        'note: Revealed type is "int"',
        'note: Revealed type is "program.Tag"',
        'note: Revealed type is "type[program.Money]"',
    ], found.stdout
    assert [line for line in lines[4:] if line.startswith("error")], found.stdout
    assert len({line.split(":")[1] for line in found.stdout.splitlines() if ": error" in line}) == 4, found.stdout


class Missing:
    """Reading one raises a KeyError of its own."""


def test_a_key_error_of_unpack_is_not_taken_for_an_absent_key(opener):
    def unpack(state):
        raise KeyError("field")

    tiered.register("missing", Missing, pack=lambda value: 1, unpack=unpack)
    store = opener()
    key = "part", "k"
    store[key] = Missing()
    reads = [
        lambda mapping, name: mapping[name],
        lambda mapping, name: mapping.get(name, "default"),
        lambda mapping, name: mapping.get_many([name]),
        lambda mapping, name: mapping.setdefault(name, "overwritten"),
        lambda mapping, name: mapping.pop(name, "default"),
    ]
    for round_ in range(2):
        with store.view() as view, store.transaction() as txn:
            for mapping, name in (
                (store, key),
                (view, key),
                (txn, key),
                (store.sub("part"), "k"),
                (txn.sub("part"), "k"),
            ):
                for number, read in enumerate(reads[: 3 if mapping is view else 5]):
                    with pytest.raises(KeyError) as caught:
                        read(mapping, name)
                    assert caught.value.args == ("field",), (round_, mapping, number)
        store.save()
        store._engine.hot.clear()
    assert key in store
