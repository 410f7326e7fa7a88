"""The extension types of msgpack that stand for values it has none for.

    code  type           data
    ----  ----           ----
    1     tuple          msgpack array of the elements
    2     set            the same
    3     frozenset      the same
    4     int            beyond 64 bits, as in `scalars`
    5     datetime       as in `scalars`
    6     date           the same
    7     time           the same
    8     timedelta      the same
    9     Decimal        the same
    10    UUID           the same
    11    complex        the same
    12    numpy.ndarray  as in `arrays`
    13    numpy scalar   the same
    14    registered     msgpack array of name and state, as in `registry`

A code is on disk; its meaning never changes.  Extensions nest up to 16 deep in one another, since each
of the collections is unpacked by a call of its own (40 KiB of C stack).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from msgpack import ExtType, unpackb

from tiered import registry, scalars
from tiered.arrays import unpack_array, unpack_numpy_scalar

DEPTH_MAX = 16

TUPLE = 1
SET = 2
FROZENSET = 3
INT = 4
DATETIME = 5
DATE = 6
TIME = 7
TIMEDELTA = 8
DECIMAL = 9
UNIQUE_ID = 10
COMPLEX = 11
NDARRAY = 12
NUMPY_SCALAR = 13
REGISTERED = 14

SCALARS: dict[type, tuple[int, Callable[[Any], bytes]]] = {
    datetime: (DATETIME, scalars.pack_datetime),
    date: (DATE, scalars.pack_date),
    time: (TIME, scalars.pack_time),
    timedelta: (TIMEDELTA, scalars.pack_timedelta),
    complex: (COMPLEX, scalars.pack_complex),
    Decimal: (DECIMAL, scalars.pack_decimal),
    UUID: (UNIQUE_ID, scalars.pack_uuid),
}
"""The types of one value each, with the code and the function that packs it."""

_UNPACKERS: dict[int, Callable[[bytes], object]] = {
    INT: scalars.unpack_int,
    DATETIME: scalars.unpack_datetime,
    DATE: scalars.unpack_date,
    TIME: scalars.unpack_time,
    TIMEDELTA: scalars.unpack_timedelta,
    DECIMAL: scalars.unpack_decimal,
    UNIQUE_ID: scalars.unpack_uuid,
    COMPLEX: scalars.unpack_complex,
    NDARRAY: unpack_array,
    NUMPY_SCALAR: unpack_numpy_scalar,
}
_COLLECTIONS: dict[int, Callable[[list[Any]], object]] = {TUPLE: tuple, SET: set, FROZENSET: frozenset}
_COLLECTIONS[REGISTERED] = registry.restore


def hook(depth: int, unicode_errors: str | None) -> Callable[[int, bytes], object]:
    """The function that unpacks extensions inside `depth` others.

    One for each depth, so that damaged data cannot nest on until the C stack overflows.
    """
    inner = hook(depth + 1, unicode_errors) if depth < DEPTH_MAX else None

    def unpack_one(code: int, data: bytes) -> object:
        unpack = _UNPACKERS.get(code)
        if unpack is not None:
            return unpack(data)
        collection = _COLLECTIONS.get(code)
        if collection is None:
            raise ValueError(f"extension code {code} is unknown to this version")
        if inner is None:
            raise ValueError(f"extensions more than {DEPTH_MAX} deep")
        elements = unpackb(data, strict_map_key=False, unicode_errors=unicode_errors, ext_hook=inner)
        if type(elements) is not list:
            raise ValueError(f"extension code {code} without elements")
        return collection(elements)

    return unpack_one


_new_tuple = tuple.__new__


def extension(code: int, data: bytes) -> Any:
    """What the packer writes as an extension."""
    # ExtType's own constructor checks what is certain here, and takes three times as long.
    return _new_tuple(ExtType, (code, data))
