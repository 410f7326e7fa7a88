"""The compiled part: there where it can be, and giving what its twins in Python give, to the byte and to the error."""

from __future__ import annotations

import gc
import importlib.util
import mmap
import os
import random
import shutil
import sys
import sysconfig
import tracemalloc
from datetime import date
from functools import reduce
from pathlib import Path

import msgpack
import pytest
from beside import beside
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_codec import DAMAGED, same, texts, values
from test_keys import plain_keys

import tiered
from tiered import codec, keys
from tiered.journal import DELETE, HEADER_BYTES, PUT, Journal, record_bytes
from tiered.native import native
from tiered.writing import _collect, collect

compiled = pytest.mark.skipif(native is None, reason="the compiled part is left out, or there is no compiler here")

TWIN = object()


def to_twin(value):
    return TWIN


def outcome(function, *arguments):
    """What a call returns, or what it raises."""
    try:
        return function(*arguments)
    except Exception as error:
        return type(error), str(error)


def test_where_there_is_a_compiler_the_compiled_part_is_there():
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if header.exists() and shutil.which(compiler) and sys.byteorder == "little":
        assert importlib.util.find_spec("tiered._native"), "pip install -e . did not build it; see its warnings"
        pure = os.environ.get("TIERED_PURE", "") not in ("", "0")
        assert (native is None) is pure, "it is there and cannot be imported"


def test_stats_say_whether_the_compiled_part_runs(store):
    assert store.stats().compiled is (native is not None)


# Encoding


@compiled
@given(values)
@settings(max_examples=200, deadline=None)
@example([1 << 63, (1 << 64) - 1, -(1 << 63), 1 << 64, -(1 << 63) - 1])
@example({"é": "日本", "\U0001f600": "\ud800", "": [b"", {}, (), [()]]})
@example([float("nan"), -0.0, float("inf"), True, None])
@example({1: 2, b"x": 3, None: 4, 2.5: 5, (1,): 6})
def test_the_encoder_gives_the_bytes_of_its_twin(value):
    assert codec.encode(value) == codec._encode(value)


@compiled
def test_every_length_and_integer_has_the_twin_s_form():
    lengths = [0, 1, 2, 15, 16, 31, 32, 255, 256, 65_535, 65_536, 70_000]
    for length in lengths:
        for value in (["x" * length], [b"x" * length], ["é" * length], [0] * length, dict.fromkeys(range(length))):
            assert codec.encode(value) == codec._encode(value)
    for length in (*range(20), *lengths):
        assert codec.encode((b"x" * length,)) == codec._encode((b"x" * length,))
        assert codec.encode((0,) * length) == codec._encode((0,) * length)
    for bits in range(66):
        for number in (1 << bits, -(1 << bits)):
            for by in (-1, 0, 1):
                assert codec.encode([number + by]) == codec._encode([number + by])


OWN = {
    "document": {"id": 1, "name": "Ada é", "at": [1.5, None, True], "raw": b"x", "pair": ("a", (1,)), 5: {}},
    "text": "x" * 100,
    "bytes": b"x",
    "int": 7,
    "list": [],
    "long list": ["x" * 10] * 10_000,
    "tuple": (1, 2),
    "unsigned": [(1 << 64) - 1],
}
TWINS = {
    "set": [{1}],
    "frozenset": frozenset((1,)),
    "date": {"a": date(2024, 1, 1)},
    "long int": [1 << 64],
    "long negative int": [-(1 << 64)],
    "surrogate": ["\ud800"],
    "surrogate alone": "\ud800",
    "key that is a tuple": {(1,): 1},
    "subclass": [type("Text", (str,), {})("x")],
    "bytearray": [bytearray(b"x")],
    "extension": [msgpack.ExtType(1, b"\x90")],
    "deep": reduce(lambda inner, _: [inner], range(200), []),
    "deep tuples": reduce(lambda inner, _: (inner,), range(17), ()),
}


@compiled
def test_what_the_encoder_does_itself_and_what_its_twin():
    encode = native.Encoder(to_twin, codec.VALUE_BYTES_MAX)
    assert [name for name, value in OWN.items() if encode(value) is TWIN] == []
    assert [name for name, value in TWINS.items() if encode(value) is not TWIN] == []
    cyclic: list = []
    cyclic += [cyclic, cyclic]
    assert encode(cyclic) is TWIN


@compiled
def test_the_encoder_changes_no_text_it_encodes():
    text = "".join(["é", "日本"] * 50)
    before = sys.getsizeof(text)
    codec.encode([text])
    assert sys.getsizeof(text) == before, "no UTF-8 form is left in it"


@compiled
def test_coders_take_one_argument_and_say_so():
    decode = codec.DECODERS[codec.MSGPACK]
    for call in (codec.encode, decode):
        for arguments, named in (((), {}), ((1, 2), {}), ((), {"value": 1})):
            with pytest.raises(TypeError):
                call(*arguments, **named)
    with pytest.raises(TypeError):
        decode("text")
    with pytest.raises(ValueError):
        native.Encoder(to_twin, -1)


# Decoding


@compiled
@given(values)
@settings(max_examples=150, deadline=None)
def test_the_decoder_gives_the_values_of_its_twin(value):
    number, payload = codec.encode(value)
    if number == codec.MSGPACK:
        assert same(codec.decode(number, payload), codec._decode_msgpack(payload))
        assert same(codec.decode(number, bytearray(payload)), value)
        assert same(codec.decode_documents([payload, payload]), codec._decode_documents([payload, payload]))


def equal_outcomes(payload):
    first, second = (outcome(decode, payload) for decode in (codec.DECODERS[codec.MSGPACK], codec._decode_msgpack))
    assert same(first, second), (payload, first, second)


@compiled
@pytest.mark.filterwarnings("ignore")
@given(values, st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_payloads_have_the_outcome_they_have_with_the_twin(value, data):
    number, payload = codec.encode(value)
    if number != codec.MSGPACK:
        return
    changed = bytearray(payload)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from([0x81, 0x92, 0xC1, 0xC7, 0xD4, 0xDD])))
    equal_outcomes(bytes(changed[: data.draw(st.integers(0, len(changed)))]) + data.draw(st.binary(max_size=2)))


@compiled
@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
@example(b"\x82\xa1a\x01\xa1a\x02")
@example(b"\x81\x90\x01")
@example(b"\x92\xcc\x01\xd3\xff\xff\xff\xff\xff\xff\xff\xff")
@example(b"\xca\x3f\x80\x00\x00")
@example(b"\xd4\xff\x00")
@example(b"\xc7\x00\x01")
@example(b"\xd4\x02\x05")
@example(b"\xd9\x41" + b"k" * 65)
@example(b"\x81\xa2\xc3\xa9\x01")
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_have_the_outcome_they_have_with_the_twin(payload):
    equal_outcomes(payload)


@compiled
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["document", "extensions", "numpy inside"])
def test_every_cut_and_every_changed_byte_has_the_outcome_it_has_with_the_twin(name):
    payload = codec.encode(DAMAGED[name])[1]
    chance = random.Random(name)
    for at in range(len(payload)):
        equal_outcomes(payload[:at])
        for byte in (0xFF, 0xDF, chance.randrange(256)):
            equal_outcomes(payload[:at] + bytes((byte,)) + payload[at + 1 :])


@compiled
def test_what_the_decoder_does_itself_and_what_its_twin():
    decode = native.Decoder(to_twin, codec._HOOK)
    for name, value in OWN.items():
        number, payload = codec.encode(value)
        assert number != codec.MSGPACK or decode(payload) == value, name
    for value in ({1}, frozenset((1,)), [date(2024, 1, 1), 1 << 70], {(1,): 1}):
        assert decode(codec.encode(value)[1]) == value
    for payload in (b"", b"\xc1", b"\x01\x02", b"\x81\x90\x01", b"\xa1\xff", codec.encode(TWINS["deep"])[1]):
        assert decode(payload) is TWIN
    assert decode.many([b"\x01", b"\xc1"]) == [1, TWIN]


@compiled
def test_registered_types_are_restored_once_though_that_fails(monkeypatch):
    restored = []

    class Odd:
        pass

    def restore(state):
        restored.append(state)
        raise ValueError("no")

    tiered.register("test_compiled.Odd", Odd, pack=lambda value: 1, unpack=restore)
    payload = codec.encode([Odd()])
    with pytest.raises(ValueError, match="no"):
        codec.decode(*payload)
    assert restored == [1]


@compiled
@pytest.mark.parametrize(
    "payload",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\x00\x10\x00\x00" * 100,
        b"\xdc\xff\xff" * 127 + b"\xc0" * 65_535,
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
    ],
    ids=lambda payload: payload[:5].hex(),
)
def test_a_lying_length_allocates_nothing_beyond_the_size_of_the_payload(payload):
    decode = native.Decoder(to_twin, codec._HOOK)
    tracemalloc.start()
    try:
        assert decode(payload) is TWIN
        assert tracemalloc.get_traced_memory()[1] < 10 * len(payload) + 10_000
    finally:
        tracemalloc.stop()


@compiled
def test_keys_of_documents_are_shared_and_few_are_kept():
    decode = native.Decoder(to_twin, codec._HOOK)
    first, second = (decode(codec.encode({"name": 1, "k" * 64: 2, "éé": 3, "k" * 65: 4})[1]) for _ in range(2))
    shared = [key for key, other in zip(first, second, strict=True) if key is other]
    assert shared == ["name", "k" * 64]
    tracemalloc.start()
    try:
        for number in range(20_000):
            decode(codec.encode({f"a rather long key {number}": 1})[1])
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()


@compiled
def test_nothing_is_leaked_whatever_comes():
    chance = random.Random(5)
    payloads = [codec.encode(value)[1] for value in DAMAGED.values()] + [codec.encode(OWN["document"])[1]]
    odd = [*TWINS.values(), *OWN.values()]
    encode, decode = native.Encoder(to_twin, 1000), native.Decoder(to_twin, codec._HOOK)

    def round_of(count):
        for _ in range(count):
            changed = bytearray(chance.choice(payloads))
            changed[chance.randrange(len(changed))] = chance.randrange(256)
            outcome(decode, bytes(changed))
            outcome(decode.many, [bytes(changed)] * 2)
            encode(chance.choice(odd))

    round_of(3000)
    tracemalloc.start()
    try:
        round_of(200)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        round_of(3000)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()


@compiled
def test_the_collector_is_as_it_was_after_many_payloads():
    good, bad = codec.encode([{"a": [1]}])[1], b"\xc1"
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            codec.decode_documents([good] * 10)
            with pytest.raises(ValueError):
                codec.decode_documents([good, bad])
            assert gc.isenabled() is enabled
        finally:
            gc.enable()


@compiled
def test_a_finalizer_that_decodes_does_not_disturb_what_is_being_decoded():
    seen: list[bool] = []
    half_made: list[str] = []
    payload = codec.encode([[{"inner": [number, {f"k{number}": [()]}]} for number in range(50)]] * 3)
    expected = codec._decode_msgpack(payload[1])

    class Decoding:
        def __init__(self):
            self.itself = self

        def __del__(self):
            if len(seen) < 60:
                Decoding()  # For the next collection, in the middle of something else.
            seen.append(codec.decode(*payload) == expected)
            young = [found for generation in (0, 1) for found in gc.get_objects(generation)]
            half_made.extend(
                repr(found) for found in young if type(found) is list and len(gc.get_referents(found)) < len(found)
            )

    threshold = gc.get_threshold()
    gc.set_threshold(1, 1000, 1000)
    try:
        Decoding()
        while len(seen) < 60:
            assert codec.decode(*payload) == expected
    finally:
        gc.set_threshold(*threshold)
        gc.collect()
    assert all(seen)
    assert half_made == []


@compiled
@given(st.dictionaries(texts, st.integers(), max_size=30))
@settings(max_examples=100, deadline=None)
def test_keys_that_meet_in_one_slot_stay_themselves(document):
    number, payload = codec.encode(document)
    if number == codec.MSGPACK:
        for _ in range(2):
            assert list(codec.decode(number, payload).items()) == list(document.items())


# Keys


@compiled
@given(plain_keys)
@settings(max_examples=300, deadline=None)
@example("x" * 600)
@example(("x" * 505, 1))
@example(("\0" * 300,))
@example((-(1 << 63), (1 << 63) - 1, 1 << 63, -(1 << 63) - 1))
@example(("é\0", b"\0\xff", ("\ud800",), ()))
@example((True, 1.0))
def test_the_key_encoder_gives_the_bytes_of_its_twin(key):
    assert outcome(keys.encode, key) == outcome(keys._encode, key)


@compiled
def test_every_size_of_a_key_has_the_twin_s_bytes():
    for size in (*range(520), 32 * 1024 - 1, 32 * 1024):
        for key in ("x" * size, b"x" * size, "é" * size, ("x" * size,), (b"\0" * size, 5), ((("x" * size,),),)):
            assert outcome(keys.encode, key) == outcome(keys._encode, key)
    for bits in range(66):
        for number in (1 << bits, -(1 << bits)):
            for by in (-1, 0, 1):
                assert keys.encode(number + by) == keys._encode(number + by)
                assert keys.encode((number + by,)) == keys._encode((number + by,))
    deep: tuple = ()
    for _ in range(40):
        deep = (deep,)
        assert outcome(keys.encode, deep) == outcome(keys._encode, deep)


@compiled
def test_the_twin_is_not_asked_for_usual_keys():
    encode = native.KeyEncoder(to_twin)
    assert [key for key in ("user:1", "é日", b"x", 7, -7, ("user", 42, (b"x", "\0"))) if encode(key) is TWIN] == []
    assert all(encode(key) is TWIN for key in (True, 1.0, None, [], "\ud800", 1 << 64, "x" * 600))


# The journal


@pytest.fixture
def journals(tmp_path, monkeypatch):
    """Two journals with one seed in their segments, of which the second writes by the twins."""
    monkeypatch.setattr(os, "urandom", lambda size: b"seed"[:size])
    made = []
    for name in ("compiled", "pure"):
        (tmp_path / name).mkdir()
        made.append(Journal(tmp_path / name, 5, 1, 4))
        made[-1].mapped = True
        made[-1].open_segment(100_000, 1 << 20)
    made[1].active.records = None
    yield made
    for journal in made:
        journal.let_go()


rows = st.tuples(
    st.sampled_from([PUT, DELETE]),
    st.binary(max_size=30),
    st.binary(max_size=100),
    st.integers(0, 255),
    st.integers(-(1 << 63), (1 << 63) - 1),
)


@compiled
@given(batch=st.lists(rows, max_size=8), single=rows)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_records_are_written_as_the_twin_writes_them_and_read_back(journals, batch, single):
    kind, key, payload, number, deadline = single
    columns = [list(column) for column in zip(*batch, strict=True)] or [[], [], [], [], []]
    written = []
    for journal in journals:
        segment = journal.active
        if segment.capacity - segment.position < 10_000:
            journal.close_segment(0)
            segment = journal.open_segment(100_000, 1 << 20)
            segment.records = None if journal is journals[1] else segment.records
        positions = [journal.append(kind, 1, key, payload, number, deadline)]
        positions += journal.append_batch(*columns, sum(map(record_bytes, columns[1], columns[2])))
        found = [segment.put_at(position) for position in positions]
        written.append((positions, found, journal.last, segment.position, bytes(segment.map)))
    assert written[0] == written[1]
    assert journals[0].active.records is not None


@compiled
def test_records_never_leave_the_mapping_nor_are_half_of_a_batch():
    mapping = mmap.mmap(-1, 4096)
    records = native.Records(mapping, 1)
    with pytest.raises(ValueError, match="no room"):
        records.append(4000, 1, 0, PUT, 0, 0, 0, b"key", b"x" * 60)
    assert records.append(4000, 1, 0, PUT, 0, 0, 0, b"key", b"x" * 53) == 4096
    before = bytes(mapping)
    columns = [[PUT] * 3, [0] * 3, [0] * 3, [b"a", b"b", b"c"], [b"x" * 100, b"x" * 100, b"x" * 4000]]
    with pytest.raises(ValueError, match="no room"):
        records.append_batch(0, 1, 0, *columns)
    # What it does not know is the twin's.
    for odd in ([PUT, 256, PUT], [PUT, 1.0, PUT], [PUT, PUT], (PUT,) * 3):
        assert records.append_batch(0, 1, 0, odd, *columns[1:]) is None
    for arguments in ((-1, 1, 0), (4097, 1, 0), (1 << 70, 1, 0), (0, -1, 0), (0, 1, None)):
        assert records.append(*arguments, PUT, 0, 0, 0, b"key", b"") is None
        assert records.append_batch(*arguments, *columns) is None
    assert records.append(0, 1, 0, PUT, 0, 0, 0, bytearray(b"key"), b"") is None
    assert records.append(0, 1, 0, PUT, 0, 0, 0, b"x" * 65_536, b"") is None
    assert bytes(mapping) == before
    for position in (-1, 4057, 4096, 1 << 70, None, 0):
        assert records.record_at(position) is None
    for arguments in ((), (1,) * 8, (1,) * 10):
        with pytest.raises(TypeError):
            records.append(*arguments)


@compiled
def test_a_record_of_any_damaged_length_is_refused_without_being_read():
    mapping = mmap.mmap(-1, 4096)
    records = native.Records(mapping, 1)
    end = records.append(0, 1, 0, PUT, 0, 3, 9, b"key", b"value")
    assert records.record_at(0) == (3, 9, b"key", b"value")
    for at in range(end):
        for byte in (0, 0x7F, 0xFF, mapping[at] ^ 1):
            right = mapping[at]
            if byte != right:
                mapping[at] = byte
                assert records.record_at(0) is None
                mapping[at] = right
    assert native.Records(mapping, 2).record_at(0) is None, "another segment's seed"


@compiled
def test_records_of_a_segment_mapped_for_reading_are_read_and_never_written(tmp_path):
    mapping = mmap.mmap(-1, 4096)
    native.Records(mapping, 1).append(0, 1, 0, PUT, 0, 3, 9, b"key", b"value")
    (tmp_path / "segment").write_bytes(mapping)
    with open(tmp_path / "segment", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as readable:
        records = native.Records(readable, 1)
        assert records.record_at(0) == (3, 9, b"key", b"value")
        with pytest.raises(TypeError, match="reading only"):
            records.append(0, 1, 0, PUT, 0, 0, 0, b"key", b"other")
        with pytest.raises(TypeError, match="reading only"):
            records.append_batch(0, 1, 0, [PUT], [0], [0], [b"key"], [b"other"])
        assert records.record_at(0) == (3, 9, b"key", b"value")
        del records


@compiled
def test_a_reader_beside_a_writer_reads_the_journal_with_the_compiled_part(tmp_path):
    with tiered.open(tmp_path / "s", helper=False, save="") as writer:
        writer["key"] = "value"
        reader = beside(writer)
        assert reader["key"] == "value"
        segment = reader._engine.buffers[0].segment
        assert segment.records is not None
        assert segment.records.record_at(HEADER_BYTES) is not None
        reader.close()


@compiled
def test_a_payload_that_is_not_bytes_is_written_by_the_twin(journals):
    for journal in journals:
        position = journal.append(PUT, 0, b"key", bytearray(b"value"), 3, 0)
        assert journal.active.put_at(position).payload == b"value"


# Batches


PAIRS = [("a", 1), (("b", 2), {"c": [1.5]}), [3, "list"], "kv", (b"x", None), (True, "bool"), ("\u00e9", ("t",))]


@compiled
@pytest.mark.parametrize("count_max", [0, 1, 3, 100])
@pytest.mark.parametrize("bytes_max", [1, 60, 1000])
def test_batches_are_collected_as_the_twin_collects_them_and_the_rest_is_left(count_max, bytes_max):
    sources = iter(PAIRS), iter(PAIRS)
    batches = collect(sources[0], count_max, bytes_max), _collect(sources[1], count_max, bytes_max)
    assert batches[0] == batches[1]
    assert [*map(type, batches[0].keys)] == [*map(type, batches[1].keys)]
    assert len(batches[0].keys) == min(count_max, {1: 1, 60: 2, 1000: 7}[bytes_max])
    assert [*sources[0]] == [*sources[1]] == PAIRS[len(batches[0].keys) :]


@compiled
@pytest.mark.parametrize(
    "pair",
    [
        5,
        None,
        (),
        ("k",),
        ("k", 1, 2),
        iter(("k",)),
        (1.5, 1),
        ("k", object()),
        ("k" * 100_000, 1),
        ("\ud800", 1),
        ("k", "\ud800"),
    ],
    ids=[
        "number",
        "None",
        "nothing",
        "one",
        "three",
        "iterator of one",
        "key",
        "value",
        "long key",
        "surrogate in key",
        "surrogate",
    ],
)
def test_what_is_no_pair_or_cannot_be_encoded_is_refused_as_the_twin_refuses_it(pair):
    again = ("k",) if type(pair) is type(iter(())) else pair  # It is used up by the first of the two.
    ours, twins = (
        outcome(collect, iter([("first", 0), pair]), 10, 1000),
        outcome(_collect, iter([("first", 0), again]), 10, 1000),
    )
    assert ours == twins


@compiled
def test_an_iterator_that_fails_ends_the_batch_with_its_error():
    def failing():
        yield "k", 1
        raise LookupError("the source")

    assert outcome(collect, failing(), 10, 1000) == (LookupError, "the source")


@compiled
def test_collecting_leaks_nothing():
    pairs = [(("k", number), [number, "text"]) for number in range(100)]

    def run():
        collect(iter(pairs), 1000, 1 << 20)
        outcome(collect, iter([*pairs, ("k",)]), 1000, 1 << 20)
        outcome(collect, iter([*pairs, ("k", object())]), 1000, 1 << 20)

    run()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(20):
        run()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20_000, grown
