"""One record of the cold tier as bytes.

    offset  size  field
    0       4     CRC-32 of the stored key followed by everything after this field
    4       1     version of this layout (1)
    5       1     codec id (`codec`)
    6       1     compression id (`compression`)
    7       1     flags: 1 has a deadline, 2 carries its full key, 4 is a deletion marker
    8       2     dictionary id, 0 for none
    10      8     deadline in milliseconds since the epoch        (flag 1)
    .       2+n   length of the full encoded key, and the key     (flag 2)
    .       .     the payload as stored

Numbers are little-endian and never change meaning.  The checksum takes in the key,
so a record found under another key is damage, not a value.  A deletion marker has
no payload; it hides an older record in the layers behind (`cold_state`).  A header costs
10 bytes of disk for most records; a longer checksum was not worth 4 more.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple
from zlib import crc32

from tiered.native import native

HEADER = struct.Struct("<IBBBBH")
assert HEADER.size == 10
_BODY = struct.Struct("<BBBBH")
assert _BODY.size == HEADER.size - 4
_CRC = struct.Struct("<I")
_DEADLINE = struct.Struct("<q")
_KEY_LENGTH = struct.Struct("<H")

VERSION = 1
HAS_DEADLINE, HAS_KEY, IS_MARKER = 1, 2, 4
_FLAGS_OFFSET = 7


class Record(NamedTuple):
    """The parts of one record; `body` is the payload as stored, `full_key` only for long keys."""

    codec: int
    compression: int
    dictionary: int
    deadline: int
    full_key: bytes
    body: bytes


@lru_cache(maxsize=256)
def _plain_head(codec: int, compression: int, dictionary: int) -> bytes:
    return _BODY.pack(VERSION, codec, compression, 0, dictionary)


def pack(
    stored_key: bytes,
    codec: int,
    compression: int,
    dictionary: int,
    deadline: int,
    full_key: bytes,
    body: bytes,
) -> bytes:
    """The bytes kept under `stored_key`; deadline 0 is none, `full_key` is empty but for long keys."""
    if not deadline and not full_key:
        tail = _plain_head(codec, compression, dictionary) + body
    else:
        flags = (HAS_DEADLINE if deadline else 0) | (HAS_KEY if full_key else 0)
        parts = [_BODY.pack(VERSION, codec, compression, flags, dictionary)]
        if deadline:
            parts.append(_DEADLINE.pack(deadline))
        if full_key:
            parts += [_KEY_LENGTH.pack(len(full_key)), full_key]
        tail = b"".join([*parts, body])
    return _CRC.pack(crc32(tail, crc32(stored_key))) + tail


def pack_marker(stored_key: bytes) -> bytes:
    """A deletion marker for `stored_key`."""
    tail = _BODY.pack(VERSION, 0, 0, IS_MARKER, 0)
    return _CRC.pack(crc32(tail, crc32(stored_key))) + tail


def is_marker(data: bytes) -> bool:
    """Whether `data` is a deletion marker.  Unchecked: enough for what the writer of the cold tier decides."""
    return len(data) == HEADER.size and bool(data[_FLAGS_OFFSET] & IS_MARKER)


def deadline_of(data: bytes) -> int:
    """The deadline in `data`, 0 for none.  Unchecked, as `is_marker`; any number of damaged bytes is safe."""
    if len(data) >= HEADER.size + _DEADLINE.size and data[_FLAGS_OFFSET] & HAS_DEADLINE:
        return max(0, int(_DEADLINE.unpack_from(data, HEADER.size)[0]))
    return 0


def _unpack(stored_key: bytes, data: bytes) -> Record | None:
    """The parts of `data`, or None for a deletion marker.  Raises ValueError if it is not what was stored."""
    if len(data) < HEADER.size:
        raise ValueError("record shorter than its header")
    crc, version, codec, compression, flags, dictionary = HEADER.unpack_from(data)
    if crc32(data[4:], crc32(stored_key)) != crc:
        raise ValueError("record checksum mismatch")
    if version != VERSION:
        raise ValueError(f"record version {version}, newer than this program")
    if not flags:
        # As calling the class, without its Python frame: this is on the way of every cold read.
        return tuple.__new__(Record, (codec, compression, dictionary, 0, b"", data[10:]))
    if flags & IS_MARKER:
        return None
    at, deadline, full_key = HEADER.size, 0, b""
    if len(data) - at < (_DEADLINE.size if flags & HAS_DEADLINE else 0) + (_KEY_LENGTH.size if flags & HAS_KEY else 0):
        raise ValueError("record shorter than its header")
    if flags & HAS_DEADLINE:
        deadline = _DEADLINE.unpack_from(data, at)[0]
        at += _DEADLINE.size
    if flags & HAS_KEY:
        (length,) = _KEY_LENGTH.unpack_from(data, at)
        at += _KEY_LENGTH.size
        full_key = data[at : at + length]
        at += length
    return Record(codec, compression, dictionary, deadline, full_key, data[at:])


unpack: Callable[[bytes, bytes], Record | None] = _unpack if native is None else partial(native.unpack, Record)
