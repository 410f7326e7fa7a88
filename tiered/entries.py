"""What the hot tier on Python's heap keeps of a value, and what that costs.

Entries are of four kinds, told apart by their class alone so that a hit costs no more:

    str bytes int float bool None     immutable values, kept as they are
    bytearray                         a value encoded with msgpack, decoded at each read
    PackedSurrogate, PackedArray      the same with lone surrogates; a NumPy array
    tuple                             (one of the above, its deadline in milliseconds)

No value that can be stored is a bytearray, and tuples are always encoded, so neither
is ever a value itself.  A bytearray is invisible to the garbage collector, and so is a
tuple of such things after its first pass, so that a collection does not walk millions of entries;
instances of a subclass of `bytes` would all be visited.

Accounting: an entry costs what the allocator hands out for key and entry (sizes
rounded up to 16 bytes, and 16 more above 512 bytes, where malloc takes over), and the
table costs what its order says.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import getsizeof
from typing import Any

from tiered import codec, keys


class PackedSurrogate(bytes):
    """A value encoded with msgpack, with lone surrogates in it."""

    __slots__ = ()


class PackedArray(bytes):
    """A NumPy array; its memory is shared by what reads give out, so it must not be writable."""

    __slots__ = ()


Packed = bytearray
Expiring: type[tuple[Any, int]] = tuple
_CLASSES = {codec.MSGPACK: Packed, codec.MSGPACK_SURROGATE: PackedSurrogate, codec.NDARRAY: PackedArray}
DECODERS: dict[type, Callable[[Any], Any]] = {packed: codec.DECODERS[number] for number, packed in _CLASSES.items()}
_NUMBERS: dict[type, int] = {packed: number for number, packed in _CLASSES.items()}
_PACKED_STARTS = frozenset(
    bytes((mark,)) for mark in (*range(0x80, 0xA0), *range(0xC7, 0xCA), *range(0xD4, 0xD9), *range(0xDC, 0xE0))
)
"""First bytes of msgpack's maps, arrays and extension types: what is not an immutable scalar."""


def is_packed(number: int, payload: bytes) -> bool:
    """Whether a payload is kept as it is, so that registered types and damage in it are met when it is read."""
    return number in _CLASSES and (number != codec.MSGPACK or payload[:1] in _PACKED_STARTS)


def entry_of(number: int, payload: bytes) -> Any:
    """The entry that keeps a payload hot.  Raises ValueError if it cannot be decoded."""
    return _CLASSES[number](payload) if is_packed(number, payload) else codec.decode(number, payload)


def payload_of(entry: Any) -> tuple[int, bytes]:
    """The codec id and payload that an entry without deadline was made from."""
    number = _NUMBERS.get(entry.__class__)
    return codec.encode(entry) if number is None else (number, entry)


def refuse_unhashable(*names: Any) -> None:
    """Raise the `TypeError` that says what keys are, for what does not hash and so is none."""
    for name in names:
        keys.encode(name)


def value_of(entry: Any) -> Any:
    """The value that an entry without deadline stands for."""
    decode = DECODERS.get(entry.__class__)
    return entry if decode is None else decode(entry)


def allocated(size: int) -> int:
    return (size + 15) & ~15 if size <= 512 else (size + 31) & ~15


def _size(item: Any) -> int:
    """Size of a key's or an entry's object, always the same for the same object."""
    # A text that is not ASCII grows when somebody asks CPython for its UTF-8 form, after it was
    # accounted for; a fresh copy of it has not grown.
    return getsizeof(item + " ") if item.__class__ is str and not item.isascii() else getsizeof(item)


def key_cost(key: Any) -> int:
    """Bytes the allocator gives for a key."""
    if key.__class__ is tuple:
        return allocated(getsizeof(key) + 16) + sum(map(key_cost, key))
    return allocated(_size(key))


def cost(key: Any, entry: Any) -> int:
    """Bytes the allocator gives for a key and its entry."""
    # For ASCII what `key_cost` gives, without its calls: 49 bytes more than the text.
    total = (len(key) + 64) & ~15 if key.__class__ is str and key.isascii() else key_cost(key)
    kind = entry.__class__
    if kind is Expiring:
        total += EXPIRING_BYTES
        entry = entry[0]
        kind = entry.__class__
    if kind is Packed:
        # The object, and its buffer with a zero byte at the end.
        size = len(entry)
        return total + ((size + 80) & ~15 if size < 512 else (size + 96) & ~15)
    return total + allocated(_size(entry))


def spread_hash(key: Any) -> int:
    """Of 32 bits, spread evenly, which those of ints are not: mixed as in "splitmix64" (Steele, Lea, Flood, 2014)."""
    mixed = (hash(key) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ mixed >> 27) >> 32


OBJECT_BYTES = 64
EXPIRING_BYTES = 192
"""The tuple, its deadline, and its place among the deadlines."""
