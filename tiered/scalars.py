"""Scalars as bytes: the types of one value each, such as dates, that msgpack has none for.

Each type has a function that packs a value and one that unpacks the same value again.
The layouts are on disk and never change; all integers are big-endian:

    type       data
    ----       ----
    int        signed, two's complement, of any size
    datetime   year u16, month, day, hour, minute, second u8, microsecond u32, zone
    date       year u16, month u8, day u8
    time       hour, minute, second u8, microsecond u32, zone
    timedelta  days i32, seconds u32, microseconds u32
    Decimal    its str(), ASCII
    UUID       16 bytes; one more if is_safe is known: 1 safe, 0 unsafe
    complex    real f64, imaginary f64

A zone is one byte, fold << 7 | kind, and what the kind needs:

    kind  tzinfo           data
    ----  ------           ----
    0     None             nothing
    1     timezone.utc     nothing
    2     timezone         offset in microseconds i64
    3     timezone, named  offset in microseconds i64, name in UTF-8
    4     ZoneInfo         key in UTF-8

Packing raises `Refused`.  Unpacking other bytes raises whatever `struct` and the types
themselves do; `codec` makes one error of it.
"""

from __future__ import annotations

import struct
import sys
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID, SafeUUID

from tiered.refusal import Refused, type_name

_DATETIME_LAYOUT = struct.Struct(">HBBBBBI")
_DATE_LAYOUT = struct.Struct(">HBB")
_TIME_LAYOUT = struct.Struct(">BBBI")
_TIMEDELTA_LAYOUT = struct.Struct(">iII")
_COMPLEX_LAYOUT = struct.Struct(">dd")
_OFFSET_LAYOUT = struct.Struct(">q")
assert (_DATETIME_LAYOUT.size, _TIME_LAYOUT.size, _TIMEDELTA_LAYOUT.size) == (11, 7, 12)

_ZONE_NONE = 0
_ZONE_UTC = 1
_ZONE_OFFSET = 2
_ZONE_NAMED = 3
_ZONE_INFO = 4

_MICROSECOND = timedelta(microseconds=1)


def pack_int(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 8) // 8, "big", signed=True)


def pack_datetime(value: datetime) -> bytes:
    moment = _DATETIME_LAYOUT.pack(
        value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond
    )
    return moment + _pack_zone(value.tzinfo, value.fold)


def pack_date(value: date) -> bytes:
    return _DATE_LAYOUT.pack(value.year, value.month, value.day)


def pack_time(value: time) -> bytes:
    moment = _TIME_LAYOUT.pack(value.hour, value.minute, value.second, value.microsecond)
    return moment + _pack_zone(value.tzinfo, value.fold)


def pack_timedelta(value: timedelta) -> bytes:
    return _TIMEDELTA_LAYOUT.pack(value.days, value.seconds, value.microseconds)


def pack_decimal(value: Decimal) -> bytes:
    return str(value).encode()


def pack_uuid(value: UUID) -> bytes:
    if value.is_safe is SafeUUID.unknown:
        return value.bytes
    return value.bytes + (b"\x01" if value.is_safe is SafeUUID.safe else b"\x00")


def pack_complex(value: complex) -> bytes:
    return _COMPLEX_LAYOUT.pack(value.real, value.imag)


def unpack_int(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def unpack_datetime(data: bytes) -> datetime:
    zone, fold = _unpack_zone(data, _DATETIME_LAYOUT.size)
    year, month, day, hour, minute, second, microsecond = _DATETIME_LAYOUT.unpack_from(data)
    return datetime(year, month, day, hour, minute, second, microsecond, zone, fold=fold)


def unpack_date(data: bytes) -> date:
    return date(*_DATE_LAYOUT.unpack(data))


def unpack_time(data: bytes) -> time:
    zone, fold = _unpack_zone(data, _TIME_LAYOUT.size)
    hour, minute, second, microsecond = _TIME_LAYOUT.unpack_from(data)
    return time(hour, minute, second, microsecond, zone, fold=fold)


def unpack_timedelta(data: bytes) -> timedelta:
    return timedelta(*_TIMEDELTA_LAYOUT.unpack(data))


def unpack_decimal(data: bytes) -> Decimal:
    return Decimal(data.decode("ascii"))


def unpack_uuid(data: bytes) -> UUID:
    if len(data) == 17:
        return UUID(bytes=data[:16], is_safe=SafeUUID.safe if data[16] else SafeUUID.unsafe)
    return UUID(bytes=data)


def unpack_complex(data: bytes) -> complex:
    return complex(*_COMPLEX_LAYOUT.unpack(data))


# -- time zones --------------------------------------------------------------------------------


def _pack_zone(zone: tzinfo | None, fold: int) -> bytes:
    flag = fold << 7
    if zone is None:
        return bytes((flag | _ZONE_NONE,))
    if zone is timezone.utc:
        return bytes((flag | _ZONE_UTC,))
    if type(zone) is timezone:
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]
        packed = _OFFSET_LAYOUT.pack(offset // _MICROSECOND)
        if not name:
            return bytes((flag | _ZONE_OFFSET,)) + packed
        return bytes((flag | _ZONE_NAMED,)) + packed + _base_text(name[0]).encode("utf-8", "surrogatepass")
    # Not imported for its own sake: a value can only hold one if it was.
    zoneinfo = sys.modules.get("zoneinfo")
    if zoneinfo is not None and type(zone) is zoneinfo.ZoneInfo:
        key = zone.key  # type: ignore[attr-defined]
        if type(key) is str and _is_found_by_key(zone, zoneinfo, key):
            return bytes((flag | _ZONE_INFO,)) + key.encode("utf-8", "surrogatepass")
        raise Refused("a ZoneInfo read from a file cannot be kept, only one made by its key, ZoneInfo(key)")
    raise Refused(
        f"the tzinfo {type_name(type(zone))} cannot be kept; datetime.timezone and zoneinfo.ZoneInfo(key) can"
    )


def _base_text(text: str) -> str:
    if type(text) is not str:
        raise Refused("a timezone with a name of a subclass of str cannot be kept")
    return text


def _is_found_by_key(zone: Any, zoneinfo: Any, key: str) -> bool:
    try:
        if zoneinfo.ZoneInfo(key) is zone:
            return True
        zone.__reduce__()
    except Exception:
        # No such key here, or read from a file, to which pickling's half of the protocol objects.
        return False
    return True


def _unpack_zone(data: bytes, at: int) -> tuple[tzinfo | None, int]:
    """The zone that begins at `at`, and the fold."""
    flag = data[at]
    fold, kind = flag >> 7, flag & 0x7F
    rest = data[at + 1 :]
    if kind == _ZONE_NONE and not rest:
        return None, fold
    if kind == _ZONE_UTC and not rest:
        return timezone.utc, fold
    if kind == _ZONE_OFFSET:
        return timezone(_OFFSET_LAYOUT.unpack(rest)[0] * _MICROSECOND), fold
    if kind == _ZONE_NAMED:
        offset = _OFFSET_LAYOUT.unpack_from(rest)[0] * _MICROSECOND
        return timezone(offset, rest[_OFFSET_LAYOUT.size :].decode("utf-8", "surrogatepass")), fold
    if kind == _ZONE_INFO:
        import zoneinfo

        key = rest.decode("utf-8", "surrogatepass")
        try:
            return zoneinfo.ZoneInfo(key), fold
        except (KeyError, OSError, ValueError) as error:
            raise ValueError(
                f"this machine has no time zone {key!r}; install the system's tzdata or the package 'tzdata'"
            ) from error
    raise ValueError(f"no zone of kind {kind} and {len(rest)} bytes")
