"""Keys as bytes: the encoding, its order, its limits, and ranges over it.

A key is a `str`, `bytes`, `int` or a tuple of keys (tuples nest up to 32 deep).
Comparing two encoded keys as bytes gives the order of the keys: within a type the
natural one (integers numerically, strings by code point, tuples element by element
and the shorter first), between types `bytes < str < tuple < int`.  The idea, and
the codes, follow the tuple layer of FoundationDB.

One encoded key, or one element of a tuple:

    code         type    what follows
    ----         ----    ------------
    0x00         end     closes a nested tuple; no element begins with it
    0x01         bytes   the bytes
    0x02         str     UTF-8, lone surrogates included ("surrogatepass")
    0x05         tuple   the elements
    0x0b         int     below -(2**64 - 1): u16 length, magnitude; all bits of both inverted
    0x0c - 0x13  int     negative, 8 down to 1 bytes: magnitude with its bits inverted
    0x14         int     0: nothing follows
    0x15 - 0x1c  int     positive, 1 to 8 bytes: magnitude
    0x1d         int     above 2**64 - 1: u16 length, magnitude

Integers are big-endian, of the fewest bytes.  A key that is itself `bytes`, `str`
or a tuple runs to the end of the encoding, as it is.  As an element of a tuple it
ends with 0x00; in `bytes` and `str` elements 0x00 becomes 0x00 0xff.  No code is
0xff, so an end is never taken for an escaped 0x00, and sorts before it.

Keys that are equal in a dict encode the same: `True` and `1.0` as 1, an `IntEnum`,
`namedtuple` or `str` subclass as the base value it equals.  Other floats and other
types are a `TypeError`.  `decode` returns the plain form.

Stored keys.  LMDB keeps keys of up to 511 bytes, of which 8 are left for a deadline:

    encoded length   stored as                                                    length
    --------------   ---------                                                    ------
    up to 480        the encoded key                                              the same
    481 to 32,768    first 487 bytes (padded with 0x00), BLAKE2b-16 of the whole  503

so a stored key is long exactly if its length is 503.  Long keys are ordered by the
first 487 bytes only; among those alike, in no useful order.  Whoever reads a long
key compares the full encoding, which is in the record.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from typing import Any, TypeAlias

from .errors import KeyTooLongError
from .native import native

Key: TypeAlias = "str | bytes | int | tuple[Key, ...]"

KEY_BYTES_MAX = 32 * 1024
KEY_DEPTH_MAX = 32
STORED_BYTES_EXACT = 480
STORED_BYTES_LONG = 503

_DIGEST_BYTES = 16
_HEAD_BYTES = STORED_BYTES_LONG - _DIGEST_BYTES
assert STORED_BYTES_EXACT < _HEAD_BYTES == 487

_END = b"\x00"
_ESCAPED = b"\x00\xff"
_BYTES = b"\x01"
_STR = b"\x02"
_TUPLE = b"\x05"
_ABOVE_CODES = b"\x1e"

_CODE_BYTES, _CODE_STR, _CODE_TUPLE = 0x01, 0x02, 0x05
_CODE_INT_BIG_NEGATIVE, _CODE_INT_ZERO, _CODE_INT_BIG = 0x0B, 0x14, 0x1D
_INT_CODES = tuple(bytes((code,)) for code in range(_CODE_INT_BIG + 1))

_ALLOWED = "keys are str, bytes, int or tuples of them"


def _encode(key: object) -> bytes:
    """The key as bytes that sort as the keys do.

    `TypeError` for what is no key, `KeyTooLongError` above 32 KiB.
    """
    kind = type(key)
    value: Any = key
    encoded: bytes
    if kind is str:
        try:
            encoded = _STR + value.encode()
        except UnicodeEncodeError:
            encoded = _STR + value.encode("utf-8", "surrogatepass")
    elif kind is int:
        encoded = _encode_int(value)
    elif kind is bytes:
        encoded = _BYTES + value
    elif kind is tuple:
        encoded = _encode_elements(_TUPLE, value, 1)
    else:
        return _encode(_base_value(key))
    if len(encoded) > KEY_BYTES_MAX:
        raise KeyTooLongError(f"the key is {len(encoded):,} bytes when encoded, the limit is {KEY_BYTES_MAX:,}")
    return encoded


encode: Callable[[object], bytes] = native.KeyEncoder(_encode) if native else _encode


def decode(encoded: bytes) -> Key:
    """The plain key that `encode` made these bytes from; `ValueError` if there is none."""
    code = encoded[:1]
    if code == _STR:
        try:
            return encoded[1:].decode()
        except UnicodeDecodeError:
            return encoded[1:].decode("utf-8", "surrogatepass")
    if code == _BYTES:
        return encoded[1:]
    key: Key
    if code == _TUPLE:
        key, end = _decode_elements(encoded, 1, 1)
    elif code:
        key, end = _decode_int(encoded, 0)
    else:
        raise ValueError("not an encoded key: it is empty")
    if end != len(encoded):
        raise ValueError(f"not an encoded key: it goes on after its end at byte {end}")
    return key


def canonical(key: Key) -> Key:
    """The plain key equal to this one: what a dict in memory should hold.

    A key of exact types is returned as it is, unchecked; of any other the plain
    copy, so that no user's object (and no `__eq__` of its own) is kept.
    """
    kind = type(key)
    if kind is str or kind is int or kind is bytes:
        return key
    if kind is tuple and _is_plain_tuple(key, 1):
        return key
    return decode(encode(key))


def stored(encoded: bytes) -> bytes:
    """The form of an encoded key that the cold tier uses: itself, or a head and a digest."""
    if len(encoded) <= STORED_BYTES_EXACT:
        return encoded
    from hashlib import blake2b  # Takes time, with OpenSSL; few programs have such keys.

    head = encoded[:_HEAD_BYTES].ljust(_HEAD_BYTES, b"\x00")
    return head + blake2b(encoded, digest_size=_DIGEST_BYTES).digest()


def is_long(stored_key: bytes) -> bool:
    """Whether a stored key is a head and a digest, so that the full key must be compared."""
    return len(stored_key) == STORED_BYTES_LONG


def shown(stored_key: bytes) -> str:
    """A stored key for a message."""
    if is_long(stored_key):
        return f"a long key that begins with {stored_key[:60]!r}"
    text = repr(decode(stored_key))
    return f"key {text}" if len(text) <= 100 else f"key {text[:97]}..."


def bound(key: object) -> bytes:
    """A key as `start` (inclusive) or `stop` (exclusive) of a range of *stored* keys.

    Exact for keys of up to 480 bytes; a long one counts by its first 487 bytes: as
    `start` it includes all that share them, as `stop` it excludes all that do.
    """
    encoded = encode(key)
    if len(encoded) <= STORED_BYTES_EXACT:
        return encoded
    return encoded[:_HEAD_BYTES].ljust(_HEAD_BYTES, b"\x00")


def prefix_range(prefix: object) -> tuple[bytes, bytes | None]:
    """Bounds (inclusive, exclusive or None for no end) of the encoded keys with this prefix.

    A `str` or `bytes` prefix means keys of that type beginning with it; a tuple means
    the tuples whose first elements equal it, itself included.  For a range of stored
    keys pass the bounds through `stored_range`.
    """
    lower = encode(prefix)
    if lower[0] == _CODE_TUPLE:
        # Not the next byte string: after ("user",) that would let in ("user\0...",), which
        # goes on with 0xff where another element has its code.
        return lower, lower + _ABOVE_CODES
    if lower[0] in (_CODE_STR, _CODE_BYTES):
        return lower, _successor(lower)
    raise TypeError(f"a prefix is a str, bytes or a tuple, not {_type_name(prefix)}; use start= and stop= for integers")


def element_range(elements: tuple[Key, ...], beginning: str | bytes) -> tuple[bytes, bytes]:
    """Bounds of the encoded tuples that begin with `elements` and go on with a text or bytes of this `beginning`."""
    lower = encode((*elements, beginning)).removesuffix(_END)
    return lower, _successor(lower)


def stored_range(lower: bytes, upper: bytes | None) -> tuple[bytes, bytes | None]:
    """Bounds of the stored keys that hold all encoded keys between these bounds.

    Only long keys can lie between the new bounds without lying between the old ones;
    compare `lower <= encoded < upper` on the full encoding of those.
    """
    if upper is not None and len(upper) > STORED_BYTES_EXACT:
        upper = _successor(upper[:_HEAD_BYTES].ljust(_HEAD_BYTES, b"\x00"))  # Filled up, as the heads of long keys are.
    return lower[:_HEAD_BYTES], upper


def _successor(prefix: bytes) -> bytes:
    """The smallest byte string above all that begin with `prefix`, which begins with a type code."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes((head[-1] + 1,))


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _base_value(key: object) -> Key:
    """The plain value that a key of an unusual type equals; `TypeError` if there is none."""
    plain: Key
    if isinstance(key, int):
        plain = int.__index__(key)
    elif isinstance(key, str):
        plain = str.__getitem__(key, slice(None))
    elif isinstance(key, bytes):
        plain = bytes.__getitem__(key, slice(None))
    elif isinstance(key, tuple):
        plain = tuple.__getitem__(key, slice(None))
    elif isinstance(key, float):
        if not key.is_integer():
            raise TypeError(f"{float(key)!r} is no key: a float must be integral; {_ALLOWED}")
        return int(key)
    else:
        try:
            plain = index(key)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"{_type_name(key)} is no key: {_ALLOWED}") from None
    # The plain value stands for the object everywhere, so a dict must not tell them apart.  A tuple
    # is compared with its elements still unconverted; each of them is checked when it is encoded.
    if not (plain == key and hash(plain) == hash(key)):
        raise TypeError(f"{_type_name(key)} is no key: it does not equal its {type(plain).__name__} value; {_ALLOWED}")
    return plain


def _is_plain_tuple(key: Any, depth: int) -> bool:
    for element in key:
        kind = type(element)
        if kind is str or kind is int or kind is bytes:
            continue
        if kind is not tuple or depth == KEY_DEPTH_MAX or not _is_plain_tuple(element, depth + 1):
            return False
    return True


def _encode_int(key: int) -> bytes:
    size = (key.bit_length() + 7) >> 3
    if size <= 8:
        if key >= 0:
            return _INT_CODES[_CODE_INT_ZERO + size] + key.to_bytes(size, "big")
        return _INT_CODES[_CODE_INT_ZERO - size] + (key + (1 << 8 * size) - 1).to_bytes(size, "big")
    if size >= KEY_BYTES_MAX:
        raise KeyTooLongError(f"the integer needs {size:,} bytes, the limit of a key is {KEY_BYTES_MAX:,}")
    if key > 0:
        return _INT_CODES[_CODE_INT_BIG] + size.to_bytes(2, "big") + key.to_bytes(size, "big")
    inverted = (key + (1 << 8 * size) - 1).to_bytes(size, "big")
    return _INT_CODES[_CODE_INT_BIG_NEGATIVE] + (size ^ 0xFFFF).to_bytes(2, "big") + inverted


def _encode_elements(encoded: bytes, elements: tuple[Any, ...], depth: int) -> bytes:
    """`encoded` and after it the elements of a tuple, which is `depth` deep (the outermost is 1)."""
    if depth > KEY_DEPTH_MAX:
        raise TypeError(f"the key is nested too deeply: tuples in keys nest up to {KEY_DEPTH_MAX} deep")
    raw: bytes
    for element in elements:
        kind = type(element)
        if kind is not str and kind is not int and kind is not bytes and kind is not tuple:
            element = _base_value(element)
            kind = type(element)
        if kind is str:
            try:
                raw = element.encode()
            except UnicodeEncodeError:
                raw = element.encode("utf-8", "surrogatepass")
            if _END in raw:
                raw = raw.replace(_END, _ESCAPED)
            encoded += _STR + raw + _END
        elif kind is int:
            encoded += _encode_int(element)
        elif kind is bytes:
            encoded += _BYTES + element.replace(_END, _ESCAPED) + _END
        else:
            encoded += _encode_elements(_TUPLE, element, depth + 1) + _END
        if len(encoded) > KEY_BYTES_MAX:
            # Here and not only at the end: appending to bytes a million times is quadratic.
            raise KeyTooLongError(f"the key is above {KEY_BYTES_MAX:,} bytes when encoded, the limit")
    return encoded


def _decode_int(encoded: bytes, at: int) -> tuple[int, int]:
    """The integer whose code is at `at`, and where it ends."""
    code = encoded[at]
    size = code - _CODE_INT_ZERO
    start = at + 1
    if 0 < size <= 8:
        end = start + size
        value = int.from_bytes(encoded[start:end], "big")
        if end <= len(encoded) and encoded[start]:
            return value, end
    if not -8 <= size <= 8:
        if code not in (_CODE_INT_BIG, _CODE_INT_BIG_NEGATIVE):
            raise ValueError(f"not an encoded key: code {code:#04x} at byte {at}")
        start = at + 3
        magnitude_size = int.from_bytes(encoded[at + 1 : start], "big")
        size = magnitude_size if code == _CODE_INT_BIG else -(magnitude_size ^ 0xFFFF)
        if abs(size) <= 8:
            raise ValueError(f"not an encoded key: a short integer in the long form at byte {at}")
    end = start + abs(size)
    raw = encoded[start:end]
    if len(raw) != abs(size):
        raise ValueError(f"not an encoded key: it ends inside the integer at byte {at}")
    value = int.from_bytes(raw, "big")
    if size < 0:
        value -= (1 << 8 * -size) - 1
    if size and value.bit_length() <= 8 * (abs(size) - 1):
        raise ValueError(f"not an encoded key: an integer with too many bytes at byte {at}")
    return value, end


def _decode_elements(encoded: bytes, at: int, depth: int) -> tuple[tuple[Key, ...], int]:
    """The elements from `at` to the end of their tuple, and the position after that end."""
    if depth > KEY_DEPTH_MAX:
        raise ValueError(f"not an encoded key: tuples more than {KEY_DEPTH_MAX} deep")
    elements: list[Key] = []
    length = len(encoded)
    while at < length:
        code = encoded[at]
        if _CODE_BYTES <= code <= _CODE_STR:
            end = encoded.find(_END, at + 1)
            raw = encoded[at + 1 : end]
            if encoded[end + 1 : end + 2] == b"\xff":
                while encoded[end + 1 : end + 2] == b"\xff":
                    end = encoded.find(_END, end + 2)
                raw = encoded[at + 1 : end].replace(_ESCAPED, _END)
            if end < 0:
                raise ValueError(f"not an encoded key: the element at byte {at} has no end")
            if code == _CODE_BYTES:
                elements.append(raw)
            else:
                try:
                    elements.append(raw.decode())
                except UnicodeDecodeError:
                    elements.append(raw.decode("utf-8", "surrogatepass"))
            at = end + 1
        elif code == _CODE_TUPLE:
            element, at = _decode_elements(encoded, at + 1, depth + 1)
            elements.append(element)
        elif code:
            number, at = _decode_int(encoded, at)
            elements.append(number)
        elif depth > 1:
            return tuple(elements), at + 1
        else:
            raise ValueError(f"not an encoded key: an end without a beginning at byte {at}")
    if depth > 1:
        raise ValueError("not an encoded key: a nested tuple has no end")
    return tuple(elements), at
