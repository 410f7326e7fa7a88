"""The value codec: exact round trips, refusals, depth, threads, damage."""

from __future__ import annotations

import collections
import enum
import gc
import io
import math
import random
import struct
import subprocess
import sys
import threading
import tracemalloc
import zoneinfo
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, localcontext
from uuid import UUID, SafeUUID

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tiered import codec
from tiered.conversion import DEPTH_MAX
from tiered.errors import ValueTooLargeError
from tiered.extensions import DEPTH_MAX as EXTENSION_DEPTH_MAX
from tiered.native import native


def round_trip(value):
    return codec.decode(*codec.encode(value))


def same(first, second):
    """Equal, of the same types all the way down, and in what `==` overlooks."""
    kind = type(first)
    if kind is not type(second):
        return False
    if kind is float:
        return struct.pack("d", first) == struct.pack("d", second)
    if kind is complex:
        return same(first.real, second.real) and same(first.imag, second.imag)
    if kind is Decimal:
        return first.as_tuple() == second.as_tuple()
    if kind in (list, tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if kind is dict:
        return same(list(first.items()), list(second.items()))
    if kind in (set, frozenset):
        rest = list(second)
        for member in first:
            found = next((position for position, other in enumerate(rest) if same(member, other)), None)
            if found is None:
                return False
            del rest[found]
        return not rest
    if kind in (datetime, time):
        return (
            first.replace(tzinfo=None) == second.replace(tzinfo=None)
            and first.fold == second.fold
            and same(first.tzinfo, second.tzinfo)
        )
    if kind is timezone:
        return first.__getinitargs__() == second.__getinitargs__()
    if kind is zoneinfo.ZoneInfo:
        return first.key == second.key
    if kind is UUID:
        return first == second and first.is_safe is second.is_safe
    if kind is np.ndarray:
        return (
            first.dtype == second.dtype
            and first.shape == second.shape
            and first.flags.c_contiguous == second.flags.c_contiguous
            and first.tobytes() == second.tobytes()
        )
    if isinstance(first, np.generic):
        return first.dtype == second.dtype and first.tobytes() == second.tobytes()
    return first == second


def bits(pattern):
    return struct.unpack(">d", pattern.to_bytes(8, "big"))[0]


texts = st.text(st.one_of(st.characters(), st.sampled_from("\0é€\ud800\udfff\U0010ffff")), max_size=40)
integers = st.one_of(st.integers(-200, 200), st.integers(-(1 << 66), 1 << 66), st.integers())
floats = st.one_of(st.floats(), st.integers(0, (1 << 64) - 1).map(bits))
offsets = st.timedeltas(timedelta(hours=-23), timedelta(hours=23))
zones = st.one_of(
    st.none(),
    st.just(timezone.utc),
    offsets.map(timezone),
    st.builds(timezone, offsets, texts),
    st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns"]).map(zoneinfo.ZoneInfo),
)
folds = st.integers(0, 1)
decimals = st.one_of(
    st.decimals(),
    st.sampled_from(["sNaN", "-sNaN12", "NaN7", "-0", "0E-5", "1.00", "1E+999999", "-Infinity"]).map(Decimal),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    integers,
    floats,
    texts,
    st.binary(max_size=40),
    st.complex_numbers(),
    st.builds(lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold), st.datetimes(), zones, folds),
    st.dates(),
    st.builds(lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold), st.times(), zones, folds),
    st.timedeltas(),
    decimals,
    st.builds(lambda uuid, safe: UUID(bytes=uuid.bytes, is_safe=safe), st.uuids(), st.sampled_from(SafeUUID)),
)


def is_hashable(value):
    try:
        hash(value)
    except TypeError:
        return False
    return True


# A hashable value with an unequal twin in all but identity can be refused as a key.
def is_key(value):
    return is_hashable(value) and round_trip(value) == value


hashable = st.recursive(
    leaves.filter(is_key),
    lambda inner: st.one_of(st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)),
    max_leaves=4,
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(texts, inner, max_size=4),
        st.dictionaries(hashable, inner, max_size=4),
        st.sets(hashable, max_size=4),
        st.frozensets(hashable, max_size=4),
    ),
    max_leaves=12,
)


@given(values)
@settings(max_examples=600, deadline=None)
@example({(): {}, frozenset(): []})
@example({1: "a", "1": "b", b"1": "c", (1,): "d", Decimal(1) / 3: "e", None: "f"})
@example([bits(0x7FF0000000000001), bits(0xFFF8000000000123), -0.0])
@example({"\ud800": ("\udfff", {"\ud800\udc00"})})
@example([b"", bytes(range(256)), {"b": b"\xc4"}])
def test_values_come_back_the_same(value):
    assert same(round_trip(value), value)


@pytest.mark.parametrize("bits_count", [7, 8, 15, 16, 31, 32, 63, 64, 65, 127, 128, 4000])
def test_integers_at_every_boundary(bits_count):
    for number in (1 << bits_count, -(1 << bits_count)):
        for by in (-1, 0, 1):
            assert same(round_trip(number + by), number + by)
            assert same(round_trip([number + by]), [number + by])
            assert same(round_trip({number + by: number + by}), {number + by: number + by})


def test_order_of_a_dict_is_kept():
    for keys in (list("zyxab"), [3, 1, 2], [(2,), "a", (1,), 0]):
        assert list(round_trip(dict.fromkeys(keys))) == keys


def test_a_decimal_is_kept_whatever_the_context():
    value = Decimal("1.23456789012345678901234567890E-700")
    with localcontext() as context:
        context.prec, context.Emin, context.capitals = 2, -5, 0
        encoded = codec.encode(value)
        assert same(codec.decode(*encoded), value)


def test_codec_ids_and_payloads_are_frozen():
    assert codec.encode(b"\x00a") == (1, b"\x00a")
    assert codec.encode("é\ud800") == (2, b"\xc3\xa9\xed\xa0\x80")
    assert codec.encode({"a": [1, 2.5, None]}) == (3, bytes.fromhex("81a161 9301cb4004000000000000c0"))
    assert codec.encode(["\ud800"]) == (4, bytes.fromhex("91a3eda080"))
    ext = {
        (1, "a"): "d601 9201a161",
        frozenset((1,)): "d503 9101",
        1 << 64: "c709 04 010000000000000000",
        datetime(2024, 2, 3, 4, 5, 6, 7, fold=1): "c70c 05 07e8 02 03 04 05 06 00000007 80",
        datetime(2024, 2, 3, tzinfo=timezone.utc): "c70c 05 07e8 02 03 00 00 00 00000000 01",
        date(2024, 2, 3): "d606 07e80203",
        time(4, 5, 6, 7, timezone(timedelta(seconds=1))): "d807 040506 00000007 02 00000000000f4240",
        timedelta(-1, 2, 3): "c70c 08 ffffffff 00000002 00000003",
        Decimal("-1.50"): "c705 09 2d312e3530",
        UUID(int=1): "d80a 00000000000000000000000000000001",
        1j: "d80b 0000000000000000 3ff0000000000000",
    }
    for value, expected in ext.items():
        assert codec.encode(value) == (3, bytes.fromhex(expected)), value
    assert codec.encode({7}) == (3, bytes.fromhex("d502 9107"))
    zone = zoneinfo.ZoneInfo("UTC")
    assert codec.encode(time(1, tzinfo=zone)) == (3, bytes.fromhex("c70b 07 010000 00000000 04 555443"))
    array = np.array([1, 2], "<i2")
    head = bytes.fromhex("00000020 00000009 93 a3 3c6932 91 02 a1 43").ljust(32, b"\0")
    assert codec.encode(array) == (5, head + b"\x01\x00\x02\x00")
    assert codec.encode(np.int16(-2)) == (3, bytes.fromhex("c70a 0d 00000004 a33c6932 feff"))


def test_plain_types_are_their_own_codecs():
    assert frozenset({str, bytes, int, float, bool, type(None)}) == codec.PLAIN_TYPES
    data = b"x" * 1000
    assert codec.encode(data)[1] is data
    assert codec.decode(codec.BYTES, data) is data


def test_decoding_gives_a_value_of_its_own_each_time():
    encoded = codec.encode({"a": [1]})
    codec.decode(*encoded)["a"].append(2)
    assert codec.decode(*encoded) == {"a": [1]}


# -- refusals ----------------------------------------------------------------------------------


class Text(str):
    __slots__ = ()


class Colour(enum.IntEnum):
    RED = 1


class Zone(tzinfo):
    def utcoffset(self, moment):
        return timedelta(0)


class Moment(datetime):
    pass


class Array(np.ndarray):
    pass


class Double(np.float64):
    pass


def zone_from_a_file():
    content = b"TZif" + b"\0" * 16 + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + b"\0\0\0\0\0\0UTC\0"
    return zoneinfo.ZoneInfo.from_file(io.BytesIO(content), key="Europe/Berlin")


class Unfriendly:
    def __eq__(self, other):
        raise AssertionError("no code of the value may run")

    def __hash__(self):
        return 1

    def __repr__(self):
        raise AssertionError("no code of the value may run")


REFUSED = {
    "object": object(),
    "unfriendly": Unfriendly(),
    "bytearray": bytearray(b"x"),
    "empty bytearray": bytearray(),
    "memoryview": memoryview(b"x"),
    "range": range(3),
    "function": len,
    "type": int,
    "ellipsis": ...,
    "str subclass": Text("x"),
    "int enum": Colour.RED,
    "ordered dict": collections.OrderedDict(a=1),
    "default dict": collections.defaultdict(list),
    "counter": collections.Counter("a"),
    "deque": collections.deque(),
    "named tuple": collections.namedtuple("P", "x")(1),
    "datetime subclass": Moment(2024, 1, 1),
    "own tzinfo": datetime(2024, 1, 1, tzinfo=Zone()),
    "time with own tzinfo": time(1, tzinfo=Zone()),
    "zone from a file": datetime(2024, 1, 1, tzinfo=zone_from_a_file()),
    "zone with an odd name": datetime(2024, 1, 1, tzinfo=timezone(timedelta(0), Text("x"))),
    "msgpack extension": msgpack.ExtType(1, b"\x90"),
    "empty msgpack extension": msgpack.ExtType(99, b""),
    "msgpack timestamp": msgpack.Timestamp(1, 2),
    "object array": np.array([object()]),
    "array with objects": np.zeros(2, [("a", "O")]),
    "array subclass": np.zeros(2).view(Array),
    "masked array": np.ma.zeros(2),
    "matrix": np.zeros((1, 1)).view(np.matrix),
    "record array": np.rec.array([(1,)], dtype=[("a", "i4")]),
    "array of records": np.zeros(2, np.dtype((np.record, [("a", "i4")]))),
    "record": np.zeros(2, np.dtype((np.record, [("a", "i4")])))[0],
    "longdouble array": np.zeros(2, np.longdouble),
    "longdouble in a field": np.zeros(2, [("a", np.clongdouble)]),
    "dtype with metadata": np.zeros(2, np.dtype("i4", metadata={"a": 1})),
    "string dtype": np.array(["a"], np.dtypes.StringDType()) if hasattr(np.dtypes, "StringDType") else object(),
    "numpy scalar subclass": Double(1),
    "dtype": np.dtype("i4"),
    "generator": (n for n in ()),
    "exception": ValueError("x"),
    "dict view": {}.keys(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_types_are_refused_wherever_they_are(name):
    value = REFUSED[name]
    for tried in (value, [value], {"a": value}, (1, value), [1, {"b": [value]}]):
        with pytest.raises(TypeError, match="cannot be kept") as caught:
            codec.encode(tried)
        assert caught.value.__context__ is None
    if is_hashable(value):
        for tried in ({value}, frozenset({value}), {value: 1}, {(1, value): 1}):
            with pytest.raises(TypeError, match="cannot be kept"):
                codec.encode(tried)


def test_a_refusal_says_where():
    bad = {"a": [0, 1, 2, {"x": (5, {6: bytearray()})}]}
    with pytest.raises(TypeError, match=r"^value\['a'\]\[3\]\['x'\]\[1\]\[6\]: bytearray cannot be kept .*bytes"):
        codec.encode(bad)
    with pytest.raises(TypeError, match=r"^value\['k'\] \(a member\)\[0\]: object cannot"):
        codec.encode({"k": {(object(),)}})
    with pytest.raises(TypeError, match=r"^value\[0\] \(a key\): object cannot"):
        codec.encode([{object(): 1}])
    with pytest.raises(TypeError, match=r"^value\[0\]: the dtype .* refers to Python objects"):
        codec.encode([np.array([None])])
    with pytest.raises(TypeError, match=r"OrderedDict cannot be kept \(a subclass of dict"):
        codec.encode(collections.OrderedDict())


def test_keys_that_differ_only_in_identity_are_refused_not_merged():
    with pytest.raises(TypeError, match="differ only in identity"):
        codec.encode({Decimal("NaN"): 1, Decimal("NaN"): 2})
    with pytest.raises(TypeError, match="differ only in identity"):
        codec.encode({(math.nan,): 1, (float("nan"),): 2})
    assert len(round_trip({float("nan"): 1, float("nan"): 2})) == 2
    assert len(round_trip({Decimal("NaN"), Decimal("NaN")})) == 2


def test_values_above_the_limit_are_refused(monkeypatch):
    assert codec.VALUE_BYTES_MAX == 1 << 30
    monkeypatch.setattr(codec, "VALUE_BYTES_MAX", 1000)
    encoders = [codec._encode, native.Encoder(codec._encode, 1000)] if native else [codec._encode]
    for encode in encoders:
        for largest in (b"x" * 1000, "x" * 1000, ["x" * 996]):
            assert len(encode(largest)[1]) == 1000
        for too_large in (b"x" * 1001, "x" * 1001, ["x" * 997], ("x" * 1000,), 1 << 8000, np.zeros(126)):
            with pytest.raises(ValueTooLargeError):
                encode(too_large)


def test_an_array_too_large_is_refused_before_it_is_copied():
    with pytest.raises(ValueTooLargeError):
        codec.encode(np.broadcast_to(np.zeros(1), 1 << 50))


# -- depth -------------------------------------------------------------------------------------


def wrap_list(value):
    return [value]


def wrap_dict(value):
    return {"k": value}


def wrap_tuple(value):
    return (value,)


def wrap_frozenset(value):
    return frozenset({value})


WRAPPERS = {
    "list": [wrap_list],
    "dict": [wrap_dict],
    "list and dict": [wrap_list, wrap_dict],
    "tuple": [wrap_tuple],
    "frozenset": [wrap_frozenset],
    "tuple and frozenset": [wrap_tuple, wrap_frozenset],
    "list and tuple": [wrap_list, wrap_tuple],
    "all": [wrap_dict, wrap_tuple, wrap_list],
}


LEAVES = [0, "x", (), date(2024, 1, 1), 1 << 70, b"x"]
DEEP = [(name, leaf) for name in WRAPPERS for leaf in [*LEAVES, *([] if "frozenset" in name else [[], {}])]]


@pytest.mark.parametrize(("wrappers", "leaf"), DEEP, ids=repr)
def test_what_is_not_too_deep_to_encode_is_not_too_deep_to_decode(wrappers, leaf):
    chain = WRAPPERS[wrappers]
    extensions = sum(wrapper in (wrap_tuple, wrap_frozenset) for wrapper in chain)
    promised = (EXTENSION_DEPTH_MAX - 1) * len(chain) // extensions if extensions else DEPTH_MAX - 1
    value, refused = leaf, 0
    for depth in range(1, 1100):
        value = chain[depth % len(chain)](value)
        if depth > 40 and depth % 20 and not 250 < depth < 260 and not 1020 < depth < 1030:
            continue
        if refused or depth > promised:
            try:
                encoded = codec.encode(value)
            except TypeError as error:
                refused += "nested too deeply" in str(error)
                continue
        else:
            encoded = codec.encode(value)
        assert not refused
        decoded = codec.decode(*encoded)
        if encoded[0] == codec.MSGPACK:  # Beside others, too.
            assert len(codec.decode_documents([encoded[1]] * 2)) == len(codec._decode_documents([encoded[1]] * 2)) == 2
        for _ in range(depth):
            decoded = next(iter(decoded.values() if type(decoded) is dict else decoded))
        assert same(decoded, leaf)
    assert refused


def test_a_value_that_contains_itself_is_refused():
    cyclic_list: list = []
    cyclic_list.append(cyclic_list)
    cyclic_dict: dict = {}
    cyclic_dict["k"] = [cyclic_dict]
    through_tuple: list = []
    through_tuple.append((through_tuple, date(2024, 1, 1)))
    for value in (cyclic_list, cyclic_dict, through_tuple, (cyclic_list,), [date(2024, 1, 1), cyclic_list]):
        with pytest.raises(TypeError, match="nested too deeply"):
            codec.encode(value)


def test_a_deep_call_stack_gives_a_type_error_not_a_recursion_error():
    value: object = date(2024, 1, 1)
    for _ in range(250):
        value = [value]

    def call(levels):
        return call(levels - 1) if levels else codec.encode(value)

    with pytest.raises(TypeError, match="nested too deeply"):
        call(sys.getrecursionlimit() - 400)


def test_the_depth_limit_is_not_only_pythons_own():
    value: object = date(2024, 1, 1)
    for _ in range(1100):
        value = [value]
    previous = sys.getrecursionlimit()
    sys.setrecursionlimit(8000)
    try:
        with pytest.raises(TypeError, match="nested too deeply"):
            codec.encode(value)
    finally:
        sys.setrecursionlimit(previous)


def test_damaged_extensions_cannot_nest_without_end():
    payload = b"\x90"
    for _ in range(3000):
        payload = msgpack.packb([msgpack.ExtType(1, payload)])
    with pytest.raises(ValueError, match="deep"):
        codec.decode(codec.MSGPACK, payload)


def test_the_deepest_value_decodes_on_a_small_stack():
    value: tuple = ()
    for _ in range(EXTENSION_DEPTH_MAX - 1):
        value = (value,)
    encoded = codec.encode(value)
    found = []
    previous = threading.stack_size(1 << 20)
    try:
        thread = threading.Thread(target=lambda: found.append(codec.decode(*encoded)))
        thread.start()
    finally:
        threading.stack_size(previous)
    thread.join()
    assert found == [value]


# -- threads -----------------------------------------------------------------------------------


# One step in C that either packs a value or finds that it cannot: the packer, and the compiled encoder.
PACKING = {"packer": codec._pack_fast}
if native:
    PACKING["compiled"] = native.Encoder(bool, codec.VALUE_BYTES_MAX)  # What it cannot encode goes to a C function.


@pytest.mark.parametrize("name", PACKING)
def test_packing_runs_no_python_code(name):
    called = []
    value = [date(2024, 1, 1), {Unfriendly(): Unfriendly(), "n": 1 << 80}, Zone()]
    pack = PACKING[name]
    pack([])
    sys.setprofile(lambda frame, event, argument: called.append(frame.f_code.co_name) if event == "call" else None)
    try:
        for part in (value, *value, *value[1]):
            pack(part)
    finally:
        sys.setprofile(None)
    assert set(called) <= {"_pack_fast"}


@pytest.mark.parametrize("name", PACKING)
def test_packing_does_not_start_the_garbage_collector(name):
    # Its finalizers are Python code.  Anything it tracks, allocated while packing, would start it.
    value = [{"a": number, "b": [1, 2.5, "x", {"c": None}], "d": 1 << 63} for number in range(300)]
    started = []
    pack = PACKING[name]
    pack([])
    threshold = gc.get_threshold()
    gc.callbacks.append(lambda phase, info: started.append(phase))
    try:
        gc.set_threshold(1, 1000, 1000)
        del started[:]
        pack(value)
        count = len(started)
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.pop()
    # Calling the function may; each of 900 lists and dicts must not.
    assert count <= 4


def test_a_finalizer_that_encodes_does_not_disturb_the_value_being_encoded():
    outcome = []

    class Encoding:
        def __init__(self):
            self.itself = self

        def __del__(self):
            outcome.append(codec.decode(*codec.encode({"inner": ["x" * 50] * 5})))

    threshold = gc.get_threshold()
    gc.set_threshold(1, 1000, 1000)
    try:
        for number in range(300):
            Encoding()
            # Beyond 64 bits and too deep, so that packing fails midway.
            cyclic: list = ["y" * 100, 1 << 70]
            assert round_trip({"a": cyclic, "n": number}) == {"a": cyclic, "n": number}
            cyclic.append(cyclic)
            with pytest.raises(TypeError):
                codec.encode(cyclic)
            assert codec.encode(["z"]) == (3, b"\x91\xa1z")
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert len(outcome) == 300
    assert all(found == {"inner": ["x" * 50] * 5} for found in outcome)


@pytest.mark.parametrize("special", [None, (1, 2), b"\xc4", 1 << 70], ids=repr)
def test_a_value_changed_while_encoded_is_old_or_new_or_refused(special):
    shared = {"list": [special], "dict": {}, "set": set(), "n": 0}
    if special is None:
        del shared["set"]
    stop = threading.Event()
    wrong = []

    def change(seed):
        chance = random.Random(seed)
        while not stop.is_set():
            number = chance.randrange(60)
            shared["dict"][number] = [number] * 3
            shared["list"].append(number)
            if special is not None:
                shared["set"].add((number, number))
                shared["set"].discard((chance.randrange(60),) * 2)
            shared["dict"].pop(chance.randrange(60), None)
            del shared["list"][len(shared["list"]) // 2 + 20 :]
            shared["n"] = number

    def encode():
        try:
            for _ in range(400):
                found = round_trip(shared)
                assert list(found) == list(shared)
                assert all(items == [number] * 3 for number, items in found["dict"].items())
                assert all(type(item) in (int, type(special)) for item in found["list"])
                assert all(first == second for first, second in found.get("set", ()))
        except BaseException as error:
            wrong.append(error)

    previous = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=change, args=(seed,)) for seed in range(2)]
    encoders = [threading.Thread(target=encode) for _ in range(2)]
    try:
        for thread in threads + encoders:
            thread.start()
        for thread in encoders:
            thread.join()
    finally:
        stop.set()
        sys.setswitchinterval(previous)
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_failure_leaves_nothing_behind_for_the_next_value():
    for failing in (["x" * 100, 1 << 80], ["\ud800"], ["y", object()], [["z"], b"\xc4"]):
        try:
            codec.encode(failing)
        except TypeError:
            pass
        assert codec.encode([1]) == (3, b"\x91\x01")


def test_no_buffer_of_a_large_value_is_kept():
    codec.encode([1])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for value in (["x" * 20_000_000], ["x" * 20_000_000, date(2024, 1, 1)], [b"x" * 20_000_000]):
            codec.encode(value)
            del value
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 300_000


def test_no_refused_value_is_kept_alive():
    class Large:
        pass

    value = Large()
    before = sys.getrefcount(value)
    with pytest.raises(TypeError):
        codec.encode([value])
    assert sys.getrefcount(value) == before


# -- NumPy -------------------------------------------------------------------------------------

STRUCTURED = np.dtype(
    {
        "names": ["a", "b", "c"],
        "formats": ["<f8", ("<i2", (2, 3)), [("x", ">u4"), ("y", "S3")]],
        "offsets": [8, 0, 24],
        "titles": ["first", None, None],
        "itemsize": 40,
    }
)
ARRAYS = {
    "floats": np.linspace(0, 1, 100),
    "big endian": np.arange(10, dtype=">i4"),
    "0-d": np.array(7, "u2"),
    "empty": np.zeros((3, 0, 2)),
    "empty 1-d": np.array([]),
    "no item size": np.zeros(3, "S0"),
    "fortran": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "fortran 3-d": np.asfortranarray(np.arange(24).astype("M8[D]").reshape(2, 3, 4)),
    "not contiguous": np.arange(100).reshape(10, 10)[::2, ::3],
    "reversed": np.arange(5)[::-1],
    "bool": np.array([True, False]),
    "complex": np.array([1j, complex(math.nan, -0.0)], "c8"),
    "half": np.array([1.5], "f2"),
    "dates": np.array(["2024-01-01", "NaT"], "M8[ns]"),
    "dates of 25 s": np.array([1, 2], "M8[25s]"),
    "deltas": np.array([1, 2], "m8[D]"),
    "generic deltas": np.array([1, 2]).view("m8"),  # Made of numbers, they are deprecated by NumPy 2.5.
    "bytes": np.array([b"a", b"b\0c"]),
    "text": np.array(["é", "日本"]),
    "void": np.zeros(3, "V5"),
    "structured": np.zeros((2, 2), STRUCTURED),
    "structured fortran": np.asfortranarray(np.zeros((2, 3), STRUCTURED)),
    "aligned": np.zeros(3, np.dtype([("a", "u1"), ("b", "f8")], align=True)),
    "no fields": np.zeros(3, np.dtype([])),
    "overlapping": np.zeros(2, {"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 1]}),
    "longlong": np.zeros(2, "q"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_the_same_and_read_only(name):
    array = ARRAYS[name]
    codec_id, payload = codec.encode(array)
    assert codec_id == codec.NDARRAY
    whole = codec.decode(codec_id, payload)
    inside = round_trip({"a": [1, array]})["a"][1]
    in_tuple = round_trip((array,))[0]
    for found in (whole, inside, in_tuple):
        assert found.dtype == array.dtype
        assert found.dtype.isalignedstruct == array.dtype.isalignedstruct
        assert found.dtype.fields == array.dtype.fields
        assert found.shape == array.shape
        assert found.tobytes() == array.tobytes()
        assert not found.flags.writeable
        assert found.flags.aligned
        if array.flags.f_contiguous:
            assert found.flags.f_contiguous
        if found.size and found.dtype.itemsize:
            with pytest.raises(ValueError, match="read-only"):
                found[...] = found
            with pytest.raises(ValueError):
                found.flags.writeable = True
    if array.nbytes:
        assert np.shares_memory(np.frombuffer(payload, "u1"), whole.reshape(-1, order="A").view("u1"))
        assert (whole.__array_interface__["data"][0] - np.frombuffer(payload, "u1").ctypes.data) % 16 == 0


SCALARS = [
    np.int8(-1),
    np.uint64(1 << 63),
    np.float64(-0.0),
    np.float32("nan"),
    np.float16(1.5),
    np.complex64(1j),
    np.bool_(True),
    np.datetime64("2024-01-01T00:00:00.123"),
    np.array([-(2**63)]).view("M8")[0],  # NaT, and no unit.
    np.timedelta64(5, "D"),
    np.str_("é\ud800\0"),
    np.str_(""),
    np.bytes_(b"a\0\0"),
    np.void(b"abc"),
    np.zeros((), STRUCTURED)[()],
]


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda scalar: type(scalar).__name__)
def test_numpy_scalars_come_back_the_same(scalar):
    for found in (round_trip(scalar), round_trip([1, scalar])[1], round_trip((scalar,))[0]):
        assert type(found) is type(scalar)
        assert same(found, scalar)
        assert str(found) == str(scalar)
    if scalar == scalar and is_hashable(scalar):
        assert round_trip({scalar: 1, "x": {scalar}}) == {scalar: 1, "x": {scalar}}


@pytest.mark.skipif(np.dtype("q") != np.dtype("l"), reason="only where long is long long")
def test_a_second_name_of_an_integer_type_is_refused_as_a_scalar():
    with pytest.raises(TypeError, match="come back as"):
        codec.encode(np.array([1], "q" if np.dtype("i8").char == "l" else "l")[0])


def test_encoding_does_not_import_numpy_and_its_absence_is_explained():
    program = """
import sys
from tiered import codec
from tiered.conversion import DEPTH_MAX
assert codec.decode(*codec.encode([1, (2,), {3}, "x"])) == [1, (2,), {3}, "x"]
try:
    codec.encode([object()])
except TypeError:
    pass
assert "numpy" not in sys.modules
sys.modules["numpy"] = None
for number, payload in ((5, bytes.fromhex(sys.argv[1])), (3, bytes.fromhex(sys.argv[2]))):
    try:
        codec.decode(number, payload)
    except ImportError as error:
        assert "tiered[numpy]" in str(error), error
    else:
        raise AssertionError
"""
    payloads = [codec.encode(np.zeros(2))[1].hex(), codec.encode([np.int8(1)])[1].hex()]
    subprocess.run([sys.executable, "-c", program, *payloads], check=True, timeout=60)


# -- damage ------------------------------------------------------------------------------------

DAMAGED = {
    "document": {"id": 1, "name": "Ada", "tags": ["a", "b"], "pi": 3.5, "raw": b"xyz", 5: None},
    "extensions": [
        (1, {2}, frozenset({3})),
        1 << 70,
        datetime(2024, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=1), "CET")),
        datetime(2024, 1, 2, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        date(2024, 1, 2),
        time(1, 2, tzinfo=timezone.utc),
        timedelta(1, 2, 3),
        Decimal("1.5E+7"),
        UUID(int=5),
        1j,
        {(1, "x"): 2},
    ],
    "surrogates": ["\ud800", ("\udfff",)],
    "array": np.arange(6, dtype="<i2").reshape(2, 3),
    "structured": np.zeros(2, STRUCTURED),
    "numpy inside": [np.arange(3.0), np.float32(1), np.str_("x"), np.zeros((), STRUCTURED)[()]],
    "text": "é日本",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_payloads_raise_nothing_but_value_error(name):
    codec_id, payload = codec.encode(DAMAGED[name])
    chance = random.Random(name)
    damaged = [payload[:end] for end in range(len(payload))]
    damaged += [payload + b"\0", payload + payload, b"", b"\xc1", b"\xdf\xff\xff\xff\xff", b"\x81\x90\x01"]
    for _ in range(4000):
        changed = bytearray(payload)
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(len(changed))] = chance.choice((chance.randrange(256), 0, 0xFF, 0xC7, 0xD4))
        damaged.append(bytes(changed))
    for number in codec.DECODERS:
        for changed in damaged if number == codec_id else damaged[: len(payload) + 200]:
            try:
                codec.decode(number, changed)
            except ValueError:
                pass


@pytest.mark.parametrize("codec_id", [0, 6, 255, -1])
def test_unknown_codec_ids_are_a_value_error(codec_id):
    with pytest.raises(ValueError, match="unknown"):
        codec.decode(codec_id, b"")


@pytest.mark.parametrize("code", [0, 15, 127, -2])
def test_unknown_extension_codes_are_a_value_error(code):
    with pytest.raises(ValueError, match="unknown"):
        codec.decode(codec.MSGPACK, msgpack.packb(msgpack.ExtType(code, b"x")) if code >= 0 else b"\xd4\xfe\x00")


def test_object_arrays_are_never_made_from_bytes():
    for described in ("|O", "O", [False, 8, [["a", "|O", 0, None]]]):
        header = msgpack.packb([described, [1], "C"])
        payload = (struct.pack(">II", 64, len(header)) + header).ljust(64, b"\0") + b"\x01" * 8
        with pytest.raises(ValueError, match="no dtype"):
            codec.decode(codec.NDARRAY, payload)


def test_a_zone_unknown_to_this_machine_says_so():
    codec_id, payload = codec.encode(datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")))
    with pytest.raises(ValueError, match="no time zone 'Europe/Berlix'; install"):
        codec.decode(codec_id, payload.replace(b"Berlin", b"Berlix"))


def test_strict_payloads_refuse_surrogates():
    with pytest.raises(ValueError):
        codec.decode(codec.MSGPACK, codec.encode(["\ud800"])[1])


def test_a_value_read_while_numpy_is_being_imported_or_after_its_import_failed_says_so(monkeypatch):
    encoded = codec.encode(np.arange(3.0))
    with monkeypatch.context() as patch:
        patch.setattr(np.__spec__, "_initializing", True, raising=False)
        with pytest.raises(ImportError, match="being imported by what this interrupts"):
            codec.decode(*encoded)
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "numpy")
        patch.setattr(sys, "path_hooks", [])
        patch.setattr(sys, "meta_path", [Interrupted()])
        with pytest.raises(ImportError, match="cannot be imported: cannot load module more than once"):
            codec.decode(*encoded)
    assert list(codec.decode(*encoded)) == [0.0, 1.0, 2.0]


class Interrupted:
    """Finds NumPy as it is after an import of it was interrupted."""

    def find_spec(self, name, path=None, target=None):
        raise ImportError("cannot load module more than once per process")
