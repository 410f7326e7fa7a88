"""The filters of the cold tier's runs: never wrong about a key that is there, seldom about one that is not."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tiered import filters
from tiered.native import native

WAYS: dict[str, tuple[Callable[[bytearray, Sequence[bytes]], None], Callable[[bytes, bytes], bool]]] = {
    "pure": (filters._add, filters._has)
}
if native is not None:
    WAYS["compiled"] = native.filter_add, native.filter_has
KINDS: dict[str, Callable[[int], bytes]] = {
    "numbered": lambda number: b"\x05user:%08d" % number,
    "random": lambda number: random.Random(number).randbytes(1 + number % 30),
    "long": lambda number: b"x" * 479 + b"%d" % number,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_key_that_was_noted_is_known_and_few_others_seem_to_be(way: str, kind: str) -> None:
    add, has = WAYS[way]
    keys = list(dict.fromkeys(map(KINDS[kind], range(6000))))
    noted, others = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    bits = bytearray(filters.size_for(len(noted)))
    for start in range(0, len(noted), 700):
        add(bits, noted[start : start + 700])
    known = bytes(bits)
    assert all(has(known, key) for key in noted)
    assert sum(has(known, key) for key in others) < 0.03 * len(others)


@pytest.mark.skipif(native is None, reason="needs the compiled part: a C compiler, and no TIERED_PURE=1")
@pytest.mark.parametrize("count", [1, 51, 52, 1000, 30_000])
def test_the_compiled_filter_has_the_bits_of_its_twin(count: int) -> None:
    keys = [random.Random(number).randbytes(number % 40) for number in range(count)]
    bits, twin = bytearray(filters.size_for(count)), bytearray(filters.size_for(count))
    native.filter_add(bits, keys)
    filters._add(twin, keys)
    assert bits == twin
    assert [native.filter_has(bytes(bits), key) for key in keys[:100]] == [True] * min(count, 100)


def test_the_size_is_whole_blocks_of_ten_bits_for_each_key() -> None:
    assert [filters.size_for(count) for count in (1, 51, 52, 1000)] == [64, 64, 128, 1280]


@pytest.mark.skipif(native is None, reason="needs the compiled part: a C compiler, and no TIERED_PURE=1")
@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("filter_add", (b"\0" * 64, [b"key"])),
        ("filter_add", (bytearray(), [b"key"])),
        ("filter_add", (bytearray(64), ["key"])),
        ("filter_add", (bytearray(64), 7)),
        ("filter_has", (bytearray(64), b"key")),
        ("filter_has", (b"\0" * 64, "key")),
    ],
)
def test_the_compiled_filter_refuses_what_it_cannot_use(call: str, arguments: Any) -> None:
    with pytest.raises(TypeError):
        getattr(native, call)(*arguments)
