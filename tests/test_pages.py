"""Look-ups in LMDB's pages by the compiled part: what LMDB finds, and nothing outside of them, whatever they hold."""

from __future__ import annotations

import ctypes
import mmap
import random
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest
from contracts import evict, merge
from hypothesis import given, settings
from hypothesis import strategies as st

import tiered
from tiered import filters
from tiered.native import native

pytestmark = pytest.mark.skipif(native is None, reason="needs the compiled part: a C compiler, and no TIERED_PURE=1")

NAME = b"records"
KINDS: dict[str, Callable[[random.Random, int], bytes]] = {
    "numbered": lambda rng, number: b"\x05record:%08d" % number,
    "random": lambda rng, number: rng.randbytes(1 + number % 24),
    "of few letters": lambda rng, number: bytes(rng.choices(b"\0ab\xff", k=rng.randint(1, 12))),
    "long": lambda rng, number: b"x" * rng.randint(300, 470) + b"%d" % number,
}
GUARD_BYTES = 1 << 18
SIZES = {"small": 60, "of a page": 5000, "large": 40_000}


@contextmanager
def environment(path: Path) -> Iterator[Any]:
    with lmdb.open(str(path), map_size=1 << 30, max_dbs=4, lib_version=0, sync=False) as env:
        env.open_db(NAME)
        yield env


def address_of(env: Any) -> int:
    with env.begin(buffers=True) as txn:
        return int(native.pages_map(txn.get(NAME), env.stat()["psize"]))


def layer_of(env: Any, txn: Any, bits: bytes | None = None, name: bytes = NAME) -> tuple[Any, ...]:
    page_bytes = env.stat()["psize"]
    return None, bits, native.pages_of(address_of(env), page_bytes, env.info()["last_pgno"] + 1, txn.get(name))


def values(rng: random.Random, most: int) -> bytes:
    return rng.randbytes(rng.choice([0, 1, rng.randint(0, 60), rng.randint(0, most)]))


def asked_of(rng: random.Random, present: list[bytes]) -> list[bytes]:
    """Those keys, and as many beside them."""
    beside = [key[:-1] + bytes([key[-1] ^ 1]) for key in present]
    return sorted({*present, *beside, *(key + b"\0" for key in present[:50]), b"\0", b"\xff" * 480})


def assert_as_lmdb(env: Any, keys: list[bytes]) -> None:
    database = env.open_db(NAME)
    with env.begin() as txn:
        expected = [txn.get(key, db=database) for key in keys]
        layers = [layer_of(env, txn)]
        assert native.pages_find(layers, keys) == expected
        for key, value in list(zip(keys, expected, strict=True))[:: max(1, len(keys) // 200)]:
            assert native.pages_find(layers, [key]) == [value]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 2, 17, 400, 9000])
def test_what_is_found_is_what_lmdb_finds(tmp_path: Path, count: int, kind: str, size: str) -> None:
    if count == 9000 and size == "large":
        count = 1000
    rng = random.Random(count)
    with environment(tmp_path) as env:
        database = env.open_db(NAME)
        with env.begin(write=True) as txn:
            for number in range(count):
                txn.put(KINDS[kind](rng, number), values(rng, SIZES[size]), db=database)
        with env.begin() as txn:
            present = [key for key, _ in txn.cursor(database)]
        assert_as_lmdb(env, asked_of(rng, present))
        with env.begin(write=True) as txn:
            for key in rng.sample(present, len(present) // 2):
                txn.delete(key, db=database)
        assert_as_lmdb(env, asked_of(rng, present))


@settings(max_examples=200)
@given(
    st.dictionaries(st.binary(min_size=1, max_size=40), st.binary(max_size=3000), max_size=60),
    st.lists(st.binary(min_size=1, max_size=40), max_size=60),
)
def test_any_keys_are_found_as_lmdb_finds_them(
    tmp_path_factory: pytest.TempPathFactory, pairs: dict[bytes, bytes], others: list[bytes]
) -> None:
    with environment(tmp_path_factory.mktemp("pages")) as env:
        with env.begin(write=True, db=env.open_db(NAME)) as txn:
            for key, value in pairs.items():
                txn.put(key, value)
        assert_as_lmdb(env, sorted([*pairs, *others, *others[:3]]))


def test_a_transaction_finds_what_was_there_when_it_began(tmp_path: Path) -> None:
    rng, keys = random.Random(0), [b"key %05d" % number for number in range(3000)]
    with environment(tmp_path) as env:
        database = env.open_db(NAME)
        with env.begin(write=True, db=database) as txn:
            for key in keys:
                txn.put(key, key * 9)
        with env.begin() as reader:
            layers = [layer_of(env, reader)]
            for turn in range(8):
                with env.begin(write=True, db=database) as txn:
                    for key in rng.sample(keys, 800):
                        txn.put(key, b"%d" % turn * rng.randint(1, 5000)) if turn % 2 else txn.delete(key)
                assert native.pages_find(layers, keys) == [key * 9 for key in keys]
        assert_as_lmdb(env, keys)


def test_the_first_layer_that_has_a_key_counts_and_a_filter_keeps_a_layer_out(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), map_size=1 << 24, max_dbs=4, lib_version=0, sync=False) as env:
        databases = [env.open_db(name) for name in (NAME, b"newer")]
        with env.begin(write=True) as txn:
            for key in (b"a", b"b", b"c"):
                txn.put(key, b"old", db=databases[0])
            for key in (b"b", b"c", b"d"):
                txn.put(key, b"new", db=databases[1])
        bits = bytearray(64)
        filters.add(bits, [b"b", b"d"])
        keys = [b"a", b"b", b"c", b"d", b"e"]
        with env.begin() as txn:
            layers = [layer_of(env, txn, name=b"newer"), layer_of(env, txn)]
            assert native.pages_find(layers, keys) == [b"old", b"new", b"new", b"new", None]
            assert native.pages_find(layers[::-1], keys) == [b"old", b"old", b"old", b"new", None]
            layers[0] = layer_of(env, txn, bytes(bits), b"newer")
            assert native.pages_find(layers, keys) == [b"old", b"new", b"old", b"new", None]


# -- damage ------------------------------------------------------------------------------------------


def found_in(pages: Any, keys: list[bytes]) -> list[bytes | None] | None:
    """None where there is damage on the way to one."""
    found: list[bytes | None] | bytes = native.pages_find([(None, None, pages)], keys)
    if isinstance(found, bytes):
        assert found in keys
        return None
    return found


class Damaged:
    """The pages of a database, to be damaged; what looks beyond their end ends the process."""

    def __init__(self, path: Path, rng: random.Random, count: int) -> None:
        self.keys = sorted(b"key %06d" % rng.randrange(10**6) + b"." * 70 for _ in range(count))
        with environment(path) as env:
            database = env.open_db(NAME)
            with env.begin(write=True) as txn:
                for key in self.keys:
                    txn.put(key, values(rng, 300 if rng.random() < 0.95 else 20_000 if count > 9 else 9), db=database)
            with env.begin() as txn:
                self.entry, self.page_bytes = txn.get(NAME), env.stat()["psize"]
        self.root = struct.unpack_from("<Q", self.entry, 40)[0]
        self.data = (path / "data.mdb").read_bytes()
        if count < 9:  # The page is the last one.
            self.data = self.data[: (self.root + 1) * self.page_bytes]
        self.data = self.data.ljust(-(-len(self.data) // self.page_bytes) * self.page_bytes, b"\0")
        self.count = len(self.data) // self.page_bytes
        with open(path / "copy", "w+b") as file:
            file.truncate(len(self.data) + GUARD_BYTES)
            self.map = mmap.mmap(file.fileno(), 0)
            file.truncate(len(self.data))
        self.expected = self.found(bytearray(self.data))

    def found(self, data: bytearray, entry: bytes | None = None, count: int | None = None) -> list[bytes | None] | None:
        self.map[: len(data)] = data
        held = ctypes.c_char.from_buffer(self.map)
        pages = native.pages_of(ctypes.addressof(held), self.page_bytes, count or self.count, entry or self.entry)
        found = found_in(pages, self.keys)
        alone = [found_in(pages, [key]) for key in self.keys[::100]]
        if data == self.data and entry is None and count is None:
            assert found is not None
            assert alone == [[value] for value in found[::100]]
        return found


def spoilt(damaged: Damaged, turns: int) -> Iterator[bytearray]:
    """The pages with bytes changed at random, many of them where a page says what it is."""
    rng = random.Random(2)
    for _ in range(turns):
        data = bytearray(damaged.data)
        for _ in range(rng.choice([1, 1, 3, 30])):
            page = rng.randrange(damaged.count) * damaged.page_bytes
            at = page + rng.choice([rng.randrange(24), rng.randrange(24, 120), rng.randrange(damaged.page_bytes)])
            data[at] = rng.choice([0, 0xFF, data[at] ^ 1 << rng.randrange(8), rng.randrange(256)])
        yield data


def leading_out(damaged: Damaged, turns: int) -> Iterator[bytearray]:
    """The pages, the last of which has a number in it that leads to its end or beyond."""
    rng, page, near = random.Random(3), damaged.root * damaged.page_bytes, damaged.page_bytes
    for turn in range(turns):
        data = bytearray(damaged.data)
        number = rng.choice(
            [near, near - 1, near - 2, near - 7, near - 8, near - 9, near - 90, 0xFFFF, rng.randrange(near)]
        )
        at = rng.choice([12, *range(16, 32, 2)])
        if turn % 2:  # In a node: its value's size, its flags, its key's size.
            at = struct.unpack_from("<H", data, page + at)[0] % (near - 8) + rng.choice([0, 2, 4, 6])
        struct.pack_into("<H", data, page + at, number)
        yield data


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    return Damaged(tmp_path_factory.mktemp("damaged"), random.Random(1), 2500)


def test_whatever_bytes_a_page_has_nothing_outside_of_the_pages_is_looked_at(damaged: Damaged) -> None:
    outcomes = {"right": 0, "other": 0, "none": 0}
    assert damaged.expected is not None
    for data in spoilt(damaged, 400):
        found = damaged.found(data)
        outcomes["none" if found is None else "right" if found == damaged.expected else "other"] += 1
    assert min(outcomes.values()) > 20, outcomes


def test_nothing_beyond_the_last_page_is_looked_at(tmp_path: Path) -> None:
    few = Damaged(tmp_path, random.Random(1), 8)
    assert few.expected is not None
    for data in leading_out(few, 6000):
        few.found(data)


def test_pages_of_other_kinds_and_pages_that_lead_back_end_the_search(damaged: Damaged) -> None:
    root = damaged.root * damaged.page_bytes
    for change in (0, 4, 8, 0x22, 0x42):  # None, a large value's, a meta page, fixed sizes, a page in a page.
        data = bytearray(damaged.data)
        struct.pack_into("<H", data, root + 10, change)
        assert damaged.found(data) is None
    data = bytearray(damaged.data)
    large = [page for page in range(damaged.count) if data[page * damaged.page_bytes + 10] == 4]
    data[large[0] * damaged.page_bytes + 10] = 2
    assert damaged.found(data) is None
    data = bytearray(damaged.data)
    nodes = re.compile(rb"\x01\0\x50\0key \d{6}\.{70}" + re.escape(struct.pack("<Q", large[-1])))
    node = next(nodes.finditer(data)).start() - 4
    data[node + 3] = 0x7F  # The size of the value.
    assert damaged.found(data) is None
    data = bytearray(damaged.data)
    for at in range(16, struct.unpack_from("<H", data, root + 12)[0], 2):  # Branches that lead to themselves.
        struct.pack_into("<I", data, root + struct.unpack_from("<H", data, root + at)[0], damaged.root)
    assert damaged.found(data) is None


@pytest.mark.parametrize("entry", ["a root beyond the end", "more levels", "fewer levels", "no level"])
def test_an_entry_that_is_wrong_finds_nothing(damaged: Damaged, entry: str) -> None:
    parts = list(struct.unpack("<IHHQQQQQ", damaged.entry))
    assert parts[2] == 3
    if entry == "a root beyond the end":
        parts[-1] = damaged.count
    else:
        parts[2] = {"more levels": 4, "fewer levels": 2, "no level": 0}[entry]
    found = damaged.found(bytearray(damaged.data), struct.pack("<IHHQQQQQ", *parts))
    assert found == ([None] * len(damaged.keys) if entry == "no level" else None)


def test_a_page_beyond_the_end_of_the_file_is_not_looked_at(damaged: Damaged) -> None:
    assert damaged.found(bytearray(damaged.data), count=damaged.count // 2) is None
    assert damaged.found(bytearray(damaged.data), count=3) is None
    parts = [*struct.unpack("<IHHQQQQ", damaged.entry[:40]), damaged.count]
    assert damaged.found(bytearray(damaged.data), struct.pack("<IHHQQQQQ", *parts)) is None


def test_databases_of_other_kinds_and_maps_that_are_none_are_left_to_lmdb(tmp_path: Path) -> None:
    with environment(tmp_path) as env, env.begin(buffers=True) as txn:
        entry, page_bytes = bytes(txn.get(NAME)), env.stat()["psize"]
        assert native.pages_map(txn.get(NAME), page_bytes) == address_of(env)
        assert native.pages_map(txn.get(NAME), 2 * page_bytes) is None
        assert native.pages_map(bytearray(10), page_bytes) is None
        for flags in (4, 8, 2):  # Several values for a key, numbers for keys, reversed keys.
            changed = entry[:4] + struct.pack("<H", flags) + entry[6:]
            assert native.pages_of(address_of(env), page_bytes, 9, changed) is None
        assert native.pages_of(address_of(env), page_bytes, 9, entry[:6] + struct.pack("<H", 33) + entry[8:]) is None
        assert native.pages_find([(None, None, None)], [b"key"]) is None


@pytest.mark.parametrize("number", [0, 1, 2, 3, 1 << 20, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_memory_that_is_no_map_of_lmdb_is_known(number: int, kind: int) -> None:
    with mmap.mmap(-1, 4 * mmap.PAGESIZE) as memory:
        page = 2 * mmap.PAGESIZE
        struct.pack_into("<QHH", memory, page, number, 0, kind)
        with memoryview(memory) as view, view[page + 100 : page + 148] as value:
            assert native.pages_map(value, mmap.PAGESIZE) is None
        struct.pack_into("<QHHHHII", memory, 0, 0, 0, 8, 0, 0, 0xBEEFC0DE, 1)
        with memoryview(memory) as view, view[page + 100 : page + 148] as value:
            assert (native.pages_map(value, mmap.PAGESIZE) is None) == ((number, kind) != (2, 2))


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("pages_map", ()),
        ("pages_map", (7, 4096)),
        ("pages_map", (b"", "text")),
        ("pages_of", (0, 4096, 1)),
        ("pages_of", (0, 4096, 1, b"short")),
        ("pages_of", ("text", 4096, 1, bytes(48))),
        ("pages_find", ([],)),
        ("pages_find", ((), [])),
        ("pages_find", ([], [b"b", b"a"])),
        ("pages_find", ([], ["text"])),
    ],
)
def test_other_arguments_are_refused(call: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        getattr(native, call)(*arguments)


# -- in a store ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_a_store_reads_the_same_where_its_pages_cannot_be_looked_at(opener: Any, known: bool) -> None:
    store = opener(stepwise=True)
    expected = {f"key {number}": {"number": number, "text": "of some length " * (number % 90)} for number in range(500)}
    store.set_many(expected)
    store.save()
    merge(store)
    store["key 7"] = expected["key 7"] = "newer"
    store.save()
    cold = store._engine.cold
    if not known:
        cold._map, cold._layout = None, cold._layout._replace(transaction=-1)
    for promote in (True, False):
        evict(store)
        assert store.get_many([*expected, "none"], promote=promote) == expected
    evict(store)
    assert {key: store[key] for key in expected} == expected
    assert [layer.pages is not None for layer in cold._layout.layers] == [known, known]
    assert store.check() == []


def large_value_grows(data: bytearray, key: bytes) -> None:
    nodes = [match.start() for match in re.finditer(rb"\x01\0" + struct.pack("<H", len(key)) + re.escape(key), data)]
    assert nodes
    for flags in nodes:
        data[flags - 1] = 0x10  # Its size: 256 MB more.


def page_is_none(data: bytearray, key: bytes) -> None:
    data[data.index(key) // 4096 * 4096 + 10] = 0


def branches_lead_back(data: bytearray, key: bytes) -> None:
    for page in range(2 * 4096, len(data), 4096):
        number, flags, end = struct.unpack_from("<QxxHH", data, page)
        for at in range(page + 16, page + end, 2) if number == page // 4096 and flags & 1 else ():
            struct.pack_into("<I", data, page + struct.unpack_from("<H", data, at)[0], number)


DAMAGES = [page_is_none, large_value_grows, branches_lead_back]


def damaged_store(path: Path, damage: Callable[[bytearray, bytes], None]) -> dict[str, bytes]:
    """Make a store that is damaged at "key 01000"; what was put into it."""
    expected = {f"key {number:05d}": random.Random(number).randbytes(90) for number in range(2000)}
    expected["key 01000"] = random.Random(0).randbytes(9000)
    with tiered.open(path, memory="64MB", helper=False) as store:
        store.set_many(expected)
    file = next(path.glob("*/data.mdb"))
    data = bytearray(file.read_bytes())
    at = data.index(b"key 01000")
    damage(data, bytes(data[at - 1 : at + 9]))  # As it is encoded.
    file.write_bytes(data)
    return expected


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_page_is_damage_however_it_is_read(
    tmp_path: Path, damage: Callable[[bytearray, bytes], None]
) -> None:
    expected = damaged_store(tmp_path / "store", damage)
    others = {name: value for name, value in expected.items() if name < "key 00900" or name > "key 01100"}
    with tiered.open(tmp_path / "store", memory="64MB", helper=False, warm_start=False) as store:
        reads: list[Callable[[], object]] = [
            lambda: store["key 01000"],
            lambda: store.get("key 01000", promote=False),
            lambda: store.get_many(expected),
            lambda: store.get_many(expected, promote=False),
        ]
        for read in reads:
            with pytest.raises(tiered.CorruptionError):
                read()
        if damage is not branches_lead_back:
            assert store.get_many(others) == others
