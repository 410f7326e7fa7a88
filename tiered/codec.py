"""Values as bytes: a codec id and a payload, from which the same value comes back.

Same means equal and of the same types all the way down: NaN keeps its bits, -0.0 its
sign, a datetime its `fold`, a dict its order.  What cannot be kept so is refused
when it is encoded, with a `TypeError`; subclasses of the types below are refused,
never flattened to their base.  No code runs from data: the types are a closed list.

Codec ids and extension codes are on disk; their meaning never changes:

    id  name               payload
    --  ----               -------
    1   BYTES              the bytes
    2   STR                UTF-8, lone surrogates included ("surrogatepass")
    3   MSGPACK            one msgpack object, its strings strict UTF-8
    4   MSGPACK_SURROGATE  the same, its strings with lone surrogates
    5   NDARRAY            an array, as in extension 12

In msgpack the types nil, boolean, integer, float 64, str, bin, array (a `list`) and map
(a `dict`, with keys of any type here) stand for themselves.  The rest are extensions,
with all integers big-endian:

    code  type           data
    ----  ----           ----
    1     tuple          msgpack array of the elements
    2     set            the same
    3     frozenset      the same
    4     int            beyond 64 bits: signed, two's complement
    5     datetime       year u16, month, day, hour, minute, second u8, microsecond u32, zone
    6     date           year u16, month u8, day u8
    7     time           hour, minute, second u8, microsecond u32, zone
    8     timedelta      days i32, seconds u32, microseconds u32
    9     Decimal        its str(), ASCII
    10    UUID           16 bytes; one more if is_safe is known: 1 safe, 0 unsafe
    11    complex        real f64, imaginary f64
    12    numpy.ndarray  offset of the data u32, a multiple of 16; header size u32; header: msgpack
                         array of dtype, shape, order ("C" or "F"); zeros; the data
    13    numpy scalar   header size u32; header: msgpack dtype; the data (of a numpy.str_ or
                         numpy.bytes_ the dtype is "U" or "S" alone, the data UTF-8 or the bytes)

A zone is one byte, fold << 7 | kind, and what the kind needs:

    kind  tzinfo           data
    ----  ------           ----
    0     None             nothing
    1     timezone.utc     nothing
    2     timezone         offset in microseconds i64
    3     timezone, named  offset in microseconds i64, name in UTF-8
    4     ZoneInfo         key in UTF-8

A dtype is NumPy's string for it ("<f8"), or for a structured one [alignment flag, item
size, [[name, dtype, offset, title or nil], ...]], or [dtype, shape] for a subarray.

Depth.  Values nest at least 256 deep; with only msgpack's own types in them as deep as
msgpack packs (1,024 levels, which is what it unpacks).  Tuples, sets and frozensets
nest up to 16 deep in one another, since each is unpacked by a call of its own (40 KiB
of C stack).  Deeper, or a value that contains itself: `TypeError`.

Threads.  All functions are safe to call from any thread, on values that others change
meanwhile: what is encoded is, for each list, dict or set in the value, one state that
it had during the call.  The fast way hands the value to a packer that is C code and
calls only C code; it allocates nothing that the garbage collector tracks, so neither
another thread nor a finalizer runs before it is done.  Where a type is unknown to it,
the slow way starts again, on copies of each container, each made in one step.  A
packer belongs to one call at a time, because where it fails, creating the exception
may run a finalizer that encodes something itself.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from math import prod
from typing import Any
from uuid import UUID, SafeUUID

from msgpack import ExtType, Packer, UnpackException, unpackb

from .errors import ValueTooLargeError

BYTES = 1
STR = 2
MSGPACK = 3
MSGPACK_SURROGATE = 4
NDARRAY = 5

VALUE_BYTES_MAX = 1 << 30
DEPTH_MAX = 256
EXTENSION_DEPTH_MAX = 16

PLAIN_TYPES = frozenset({str, bytes, int, float, bool, type(None)})

_TUPLE = 1
_SET = 2
_FROZENSET = 3
_INT = 4
_DATETIME = 5
_DATE = 6
_TIME = 7
_TIMEDELTA = 8
_DECIMAL = 9
_UUID = 10
_COMPLEX = 11
_NDARRAY = 12
_NUMPY_SCALAR = 13

_DATETIME_LAYOUT = struct.Struct(">HBBBBBI")
_DATE_LAYOUT = struct.Struct(">HBB")
_TIME_LAYOUT = struct.Struct(">BBBI")
_TIMEDELTA_LAYOUT = struct.Struct(">iII")
_COMPLEX_LAYOUT = struct.Struct(">dd")
_OFFSET_LAYOUT = struct.Struct(">q")
_ARRAY_LAYOUT = struct.Struct(">II")
_SIZE_LAYOUT = struct.Struct(">I")
assert (_DATETIME_LAYOUT.size, _TIME_LAYOUT.size, _TIMEDELTA_LAYOUT.size) == (11, 7, 12)

_ZONE_NONE = 0
_ZONE_UTC = 1
_ZONE_OFFSET = 2
_ZONE_NAMED = 3
_ZONE_INFO = 4

_ARRAY_ALIGNMENT = 16
_MICROSECOND = timedelta(microseconds=1)

# Scalars that the packer keeps as they are, whatever their value.
_PACKED_AS_IS = frozenset({str, bytes, float, bool, type(None)})

_INT_MIN = -(1 << 63)
_INT_MAX = (1 << 64) - 1

# Types that the packer gets as they are.  Without its C extension msgpack is ordinary Python,
# during which others may change a container.
_PACKED_FAST = frozenset({int, float, bool, type(None)})
if Packer.__module__ != "msgpack.fallback":
    _PACKED_FAST |= {dict, list}

_ALLOWED = (
    "None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, datetime, date, time, "
    "timedelta, Decimal, UUID, NumPy arrays and scalars"
)


def encode(value: object) -> tuple[int, bytes]:
    """The codec id and payload of a value.

    `TypeError` for what cannot be kept exactly, `ValueTooLargeError` above 1 GiB.
    """
    kind = type(value)
    raw: Any = value
    payload: bytes | None
    if kind is str:
        codec = STR
        try:
            payload = raw.encode()
        except UnicodeEncodeError:
            payload = raw.encode("utf-8", "surrogatepass")
    elif kind is bytes:
        codec, payload = BYTES, raw
    elif kind in _PACKED_FAST:
        codec, payload = MSGPACK, _pack_fast(value)
        if (kind is dict or kind is list) and payload is not None and payload.translate(_SUSPECTS) is not payload:
            payload = _without_bytes(payload)
    else:
        payload = None
    if payload is None:
        codec, payload = _encode_slowly(value)
    if len(payload) > VALUE_BYTES_MAX:
        raise _too_large(len(payload))
    return codec, payload


def decode(codec_id: int, payload: bytes) -> object:
    """The value that `encode` made this payload from; `ValueError` if it made no such payload.

    Arrays share the memory of `payload` and are read-only.
    """
    decoder = DECODERS.get(codec_id)
    if decoder is None:
        raise ValueError(f"codec id {codec_id} is unknown to this version")
    return decoder(payload)


# -- the fast way ------------------------------------------------------------------------------

_PACKER_BYTES = 4 * 1024
_PACKED_BYTES_KEPT = 16 * 1024

# Packers at rest, as many as calls ever ran at once, each with the list of what it could not
# pack.  A packer never shrinks its buffer, so one that has grown is not put back.
_packers: list[tuple[Any, list[object]]] = []


def _new_packer(unicode_errors: str | None = None, default: Callable[[object], None] | None = None) -> Any:
    return Packer(strict_types=True, buf_size=_PACKER_BYTES, unicode_errors=unicode_errors, default=default)


def _pack_fast(value: object) -> bytes | None:
    """The value packed in one step, or None if it must go the slow way."""
    try:
        pair = _packers.pop()
    except IndexError:
        unknown: list[object] = []
        # An unknown object is noted and packed as nil: three times faster than an exception, and
        # `append` is C code, so that still nothing else can run.
        pair = _new_packer(default=unknown.append), unknown
    packer, unknown = pair
    try:
        payload: bytes = packer.pack(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    complete = not unknown
    unknown.clear()
    if len(payload) <= _PACKED_BYTES_KEPT:
        _packers.append(pair)
    return payload if complete else None


# Even a strict packer takes a bytearray or memoryview for bytes, and would write a caller's
# ExtType or Timestamp as an extension.  This table changes the bytes that mark those (bin and
# ext), so a payload with any of them, be it inside a float, is not what `translate` returns,
# and is looked at more closely.  CPython returns an unchanged payload itself.
_SUSPECTS = bytes(byte ^ 1 if 0xC4 <= byte <= 0xC9 or 0xD4 <= byte <= 0xD8 else byte for byte in range(256))


_EMPTY_BIN, _EMPTY_EXTENSION = b"\xc4\x00", b"\xc7\x00"


def _without_bytes(payload: bytes) -> bytes | None:
    """The payload if it has neither bytes nor extensions in it, None if it must go the slow way.

    Most suspects are floats and large integers; reading the payload back tells, at a
    fifth of the slow way's cost.  Limits of 0 refuse all but empty ones, looked for first.
    """
    if _EMPTY_BIN in payload or _EMPTY_EXTENSION in payload:
        return None
    try:
        unpackb(payload, strict_map_key=False, max_bin_len=0, max_ext_len=0)
    except (ValueError, TypeError):
        return None
    return payload


def _too_large(size: int) -> ValueTooLargeError:
    return ValueTooLargeError(f"the value is {size:,} bytes when encoded, the limit is {VALUE_BYTES_MAX:,}")


# -- the slow way ------------------------------------------------------------------------------


class _Refused(Exception):
    """Why a value cannot be kept; the steps to it are added, innermost first, on the way out."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []

    def __str__(self) -> str:
        if len(self.steps) > 16:
            return f"value: {self.reason}"
        return f"value{''.join(reversed(self.steps))}: {self.reason}"


def _encode_slowly(value: object) -> tuple[int, bytes]:
    reason: str
    try:
        if _is_array(value):
            payload = _pack_array(value)
            codec = NDARRAY
        else:
            codec, payload = _convert_and_pack(value)
    except _Refused as refused:
        reason = str(refused)
    except RecursionError:
        reason = f"value: nested too deeply ({DEPTH_MAX} levels are sure to be kept), or it contains itself"
    except RuntimeError as error:
        reason = f"value: changed while it was encoded ({error})"
    else:
        return codec, payload
    # Raised here, so that neither the inner exception nor its frames go with it.
    raise TypeError(reason)


def _convert_and_pack(value: object) -> tuple[int, bytes]:
    try:
        return MSGPACK, _Converter(None).pack_converted(value)
    except UnicodeEncodeError:
        return MSGPACK_SURROGATE, _Converter("surrogatepass").pack_converted(value)


def _extension(code: int, data: bytes) -> Any:
    # ExtType's own constructor checks what is certain here, and takes three times as long.
    return _new_tuple(ExtType, (code, data))


_new_tuple = tuple.__new__


class _Converter:
    """Copies of values in which everything is of a type that msgpack has."""

    def __init__(self, unicode_errors: str | None) -> None:
        self.unicode_errors = unicode_errors
        self.depth = 0
        self.extension_depth = 0

    def pack(self, converted: object) -> bytes:
        packer = _new_packer(self.unicode_errors)
        try:
            payload: bytes = packer.pack(converted)
        except UnicodeEncodeError:
            raise
        except ValueError as error:
            # More than 4 GiB in one string, which msgpack has no length for.
            raise ValueTooLargeError(f"the value is too large to encode: {error}") from None
        return payload

    def pack_converted(self, value: object) -> bytes:
        return self.pack(self.convert(value))

    def convert(self, value: object) -> object:
        kind = type(value)
        if kind in _PACKED_AS_IS:
            return value
        method = _CONVERTERS.get(kind)
        if method is not None:
            return method(self, value)
        if _is_array(value):
            return _extension(_NDARRAY, _pack_array(value))
        if _is_numpy_scalar(value):
            return _extension(_NUMPY_SCALAR, _pack_numpy_scalar(value))
        raise _Refused(f"{_type_name(kind)} cannot be kept{_advice(value)}; values are {_ALLOWED}")

    def convert_int(self, value: int) -> object:
        if _INT_MIN <= value <= _INT_MAX:
            return value
        return _extension(_INT, value.to_bytes((value.bit_length() + 8) // 8, "big", signed=True))

    def convert_list(self, value: list[Any]) -> list[Any]:
        copy = value.copy()
        self.enter()
        position = 0
        try:
            for position, item in enumerate(copy):
                kind = type(item)
                if kind not in _PACKED_AS_IS and (kind is not int or not _INT_MIN <= item <= _INT_MAX):
                    copy[position] = self.convert(item)
        except _Refused as refused:
            refused.steps.append(f"[{position}]")
            raise
        self.depth -= 1
        return copy

    def convert_dict(self, value: dict[Any, Any]) -> dict[Any, Any]:
        copy = value.copy()
        self.enter()
        key = None
        all_str = True
        try:
            for key, item in copy.items():
                kind = type(item)
                if kind not in _PACKED_AS_IS and (kind is not int or not _INT_MIN <= item <= _INT_MAX):
                    copy[key] = self.convert(item)
                if type(key) is not str:
                    all_str = False
        except _Refused as refused:
            refused.steps.append(f"[{_key_name(key)}]")
            raise
        if not all_str:
            copy = self.convert_keys(copy)
        self.depth -= 1
        return copy

    def convert_keys(self, copy: dict[Any, Any]) -> dict[Any, Any]:
        try:
            converted = {self.convert(key): item for key, item in copy.items()}
        except _Refused as refused:
            refused.steps.append(" (a key)")
            raise
        if len(converted) != len(copy):
            # Such as two Decimal("NaN"), or two tuples holding a NaN: equal in all but identity.
            raise _Refused("dict keys that differ only in identity cannot be kept")
        return converted

    def convert_elements(self, code: int, elements: list[Any]) -> Any:
        """An extension of these elements, a private list."""
        if self.extension_depth == EXTENSION_DEPTH_MAX:
            raise _Refused(f"tuples and sets nested too deeply (more than {EXTENSION_DEPTH_MAX} in one another)")
        self.extension_depth += 1
        extension = _extension(code, self.pack(self.convert_list(elements)))
        self.extension_depth -= 1
        return extension

    def convert_tuple(self, value: tuple[Any, ...]) -> Any:
        return self.convert_elements(_TUPLE, list(value))

    def convert_set(self, value: set[Any]) -> Any:
        return self.convert_members(_SET, value)

    def convert_frozenset(self, value: frozenset[Any]) -> Any:
        return self.convert_members(_FROZENSET, value)

    def convert_members(self, code: int, value: set[Any] | frozenset[Any]) -> Any:
        try:
            return self.convert_elements(code, list(value))
        except _Refused as refused:
            # A position in a set says nothing.
            refused.steps[-1:] = [" (a member)"] if refused.steps else []
            raise

    def enter(self) -> None:
        if self.depth == DEPTH_MAX:
            raise _Refused(f"nested too deeply ({DEPTH_MAX} levels are sure to be kept), or it contains itself")
        self.depth += 1

    def convert_datetime(self, value: datetime) -> Any:
        moment = _DATETIME_LAYOUT.pack(
            value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond
        )
        return _extension(_DATETIME, moment + _pack_zone(value.tzinfo, value.fold))

    def convert_date(self, value: date) -> Any:
        return _extension(_DATE, _DATE_LAYOUT.pack(value.year, value.month, value.day))

    def convert_time(self, value: time) -> Any:
        moment = _TIME_LAYOUT.pack(value.hour, value.minute, value.second, value.microsecond)
        return _extension(_TIME, moment + _pack_zone(value.tzinfo, value.fold))

    def convert_timedelta(self, value: timedelta) -> Any:
        return _extension(_TIMEDELTA, _TIMEDELTA_LAYOUT.pack(value.days, value.seconds, value.microseconds))

    def convert_decimal(self, value: Decimal) -> Any:
        return _extension(_DECIMAL, str(value).encode())

    def convert_uuid(self, value: UUID) -> Any:
        if value.is_safe is SafeUUID.unknown:
            return _extension(_UUID, value.bytes)
        return _extension(_UUID, value.bytes + (b"\x01" if value.is_safe is SafeUUID.safe else b"\x00"))

    def convert_complex(self, value: complex) -> Any:
        return _extension(_COMPLEX, _COMPLEX_LAYOUT.pack(value.real, value.imag))


_CONVERTERS: dict[type, Callable[[_Converter, Any], object]] = {
    int: _Converter.convert_int,
    list: _Converter.convert_list,
    dict: _Converter.convert_dict,
    tuple: _Converter.convert_tuple,
    set: _Converter.convert_set,
    frozenset: _Converter.convert_frozenset,
    datetime: _Converter.convert_datetime,
    date: _Converter.convert_date,
    time: _Converter.convert_time,
    timedelta: _Converter.convert_timedelta,
    Decimal: _Converter.convert_decimal,
    UUID: _Converter.convert_uuid,
    complex: _Converter.convert_complex,
}


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _key_name(key: object) -> str:
    if type(key) in PLAIN_TYPES:
        shown = repr(key)
        return shown if len(shown) <= 40 else f"{shown[:37]}..."
    return f"<{_type_name(type(key))}>"


def _advice(value: object) -> str:
    for base in type(value).__mro__[1:]:
        if base in _CONVERTERS or base in _PACKED_AS_IS:
            return f" (a subclass of {base.__name__}: convert it to that if it may come back as one)"
    if isinstance(value, (bytearray, memoryview)):
        return " (convert it to bytes)"
    return ""


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
        raise _Refused("a ZoneInfo read from a file cannot be kept, only one made by its key, ZoneInfo(key)")
    raise _Refused(
        f"the tzinfo {_type_name(type(zone))} cannot be kept; datetime.timezone and zoneinfo.ZoneInfo(key) can"
    )


def _base_text(text: str) -> str:
    if type(text) is not str:
        raise _Refused("a timezone with a name of a subclass of str cannot be kept")
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


# -- NumPy -------------------------------------------------------------------------------------
# Never imported to encode: a value can only be NumPy's if somebody has imported it.


def _numpy_type(name: str) -> Any:
    return getattr(sys.modules.get("numpy"), name, None)


def _is_array(value: object) -> bool:
    ndarray = _numpy_type("ndarray")
    return ndarray is not None and type(value) is ndarray


def _is_numpy_scalar(value: Any) -> bool:
    generic = _numpy_type("generic")
    return generic is not None and isinstance(value, generic) and type(value).__module__ == "numpy"


def _import_numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        raise ImportError("the value holds NumPy data: install the extra 'tiered[numpy]' to read it") from error
    return numpy


_SIMPLE_DTYPE = re.compile(r"[<>|][biufcmMSUV][0-9]+(\[[0-9]*[A-Za-z]+\])?")
_DTYPE_DEPTH_MAX = 16


def _describe_dtype(dtype: Any, depth: int = 0) -> Any:
    """What the dtype is made from again, as msgpack has it; refused if that would not be the same dtype."""
    if depth > _DTYPE_DEPTH_MAX:
        raise _Refused(f"a dtype nested too deeply (more than {_DTYPE_DEPTH_MAX} levels)")
    if dtype.hasobject:
        raise _Refused(f"the dtype {dtype!r} cannot be kept: it refers to Python objects")
    if dtype.char in "gG":
        raise _Refused(f"the dtype {dtype!r} cannot be kept: its bytes mean another number on another processor")
    described: Any
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        described = [_describe_dtype(base, depth + 1), list(shape)]
    elif dtype.names is not None:
        fields = []
        for name in dtype.names:
            field, offset, *title = dtype.fields[name]
            fields.append([name, _describe_dtype(field, depth + 1), offset, title[0] if title else None])
        described = [dtype.isalignedstruct, dtype.itemsize, fields]
    else:
        described = dtype.str
    try:
        rebuilt = _make_dtype(described)
        same = rebuilt == dtype and not dtype.metadata
    except (TypeError, ValueError):
        same = False
    # A type of its own among void ones is a subclass (numpy.record).  Among numbers it is another
    # of C's names for the same type, which NumPy holds for the same dtype.
    if not same or (dtype.kind == "V" and rebuilt.type is not dtype.type):
        raise _Refused(f"the dtype {dtype!r} cannot be kept exactly")
    return described


def _make_dtype(described: Any, depth: int = 0) -> Any:
    """The dtype of a description; `ValueError` or `TypeError` if it is none."""
    np = _import_numpy()
    if type(described) is str and _SIMPLE_DTYPE.fullmatch(described):
        return np.dtype(described)
    if type(described) is not list or depth > _DTYPE_DEPTH_MAX:
        raise ValueError(f"no dtype: {described!r}")
    if len(described) == 2:
        base, shape = described
        return np.dtype((_make_dtype(base, depth + 1), tuple(shape)))
    aligned, itemsize, fields = described
    layout = {
        "names": [name for name, _, _, _ in fields],
        "formats": [_make_dtype(field, depth + 1) for _, field, _, _ in fields],
        "offsets": [offset for _, _, offset, _ in fields],
        "titles": [title for _, _, _, title in fields],
        "itemsize": itemsize,
    }
    return np.dtype(layout, align=aligned)


def _pack_header(described: Any) -> bytes:
    try:
        return bytes(_new_packer("surrogatepass").pack(described))
    except TypeError:
        raise _Refused("a dtype with a title that is no str cannot be kept") from None


def _pack_array(array: Any) -> bytes:
    if array.nbytes > VALUE_BYTES_MAX:
        raise _too_large(array.nbytes)
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    header = _pack_header([_describe_dtype(array.dtype), list(array.shape), order])
    offset = -(-(_ARRAY_LAYOUT.size + len(header)) // _ARRAY_ALIGNMENT) * _ARRAY_ALIGNMENT
    head = (_ARRAY_LAYOUT.pack(offset, len(header)) + header).ljust(offset, b"\x00")
    straight = array.T if order == "F" else array
    if array.nbytes and straight.flags.c_contiguous:
        # Seen as bytes the array is copied once, into the payload; dates have no buffer of their own.
        return b"".join((head, straight.reshape(-1).view(_numpy_type("uint8")).data))
    return head + bytes(array.tobytes(order))


def _unpack_array(payload: bytes) -> Any:
    np = _import_numpy()
    offset, header_size = _ARRAY_LAYOUT.unpack_from(payload)
    header = payload[_ARRAY_LAYOUT.size : _ARRAY_LAYOUT.size + header_size]
    described, shape, order = unpackb(header, unicode_errors="surrogatepass")
    dtype = _make_dtype(described)
    if order not in ("C", "F") or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError("no header of an array")
    size = dtype.itemsize * prod(shape)
    if len(payload) - offset != size:
        raise ValueError(f"an array of {size} bytes in {len(payload) - offset}")
    if size:
        return np.ndarray(tuple(shape), dtype, payload, offset, order=order)
    empty = np.empty(tuple(shape), dtype, order)
    empty.flags.writeable = False
    return empty


def _pack_numpy_scalar(scalar: Any) -> bytes:
    kind = type(scalar)
    described: Any
    # The str and bytes among them can end with NUL, which their dtype takes for padding.
    if kind is _numpy_type("str_"):
        described, data = "U", str.encode(scalar, "utf-8", "surrogatepass")
    elif kind is _numpy_type("bytes_"):
        described, data = "S", bytes.__getitem__(scalar, slice(None))
    else:
        described, data = _describe_dtype(scalar.dtype), scalar.tobytes()
        if _make_dtype(described).type is not kind:
            raise _Refused(f"{_type_name(kind)} cannot be kept: it would come back as {_make_dtype(described).type}")
    header = _pack_header(described)
    return _SIZE_LAYOUT.pack(len(header)) + header + data


def _unpack_numpy_scalar(data: bytes) -> Any:
    np = _import_numpy()
    (header_size,) = _SIZE_LAYOUT.unpack_from(data)
    end = _SIZE_LAYOUT.size + header_size
    described = unpackb(data[_SIZE_LAYOUT.size : end], unicode_errors="surrogatepass")
    raw = data[end:]
    if described == "U":
        return np.str_(raw.decode("utf-8", "surrogatepass"))
    if described == "S":
        return np.bytes_(raw)
    dtype = _make_dtype(described)
    if len(raw) != dtype.itemsize:
        raise ValueError(f"a NumPy scalar of {dtype.itemsize} bytes in {len(raw)}")
    return np.ndarray((), dtype, raw)[()] if raw else np.zeros((), dtype)[()]


# -- decoding ----------------------------------------------------------------------------------


def _unpack_int(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _unpack_datetime(data: bytes) -> datetime:
    zone, fold = _unpack_zone(data, _DATETIME_LAYOUT.size)
    year, month, day, hour, minute, second, microsecond = _DATETIME_LAYOUT.unpack_from(data)
    return datetime(year, month, day, hour, minute, second, microsecond, zone, fold=fold)


def _unpack_date(data: bytes) -> date:
    return date(*_DATE_LAYOUT.unpack(data))


def _unpack_time(data: bytes) -> time:
    zone, fold = _unpack_zone(data, _TIME_LAYOUT.size)
    hour, minute, second, microsecond = _TIME_LAYOUT.unpack_from(data)
    return time(hour, minute, second, microsecond, zone, fold=fold)


def _unpack_timedelta(data: bytes) -> timedelta:
    return timedelta(*_TIMEDELTA_LAYOUT.unpack(data))


def _unpack_decimal(data: bytes) -> Decimal:
    return Decimal(data.decode("ascii"))


def _unpack_uuid(data: bytes) -> UUID:
    if len(data) == 17:
        return UUID(bytes=data[:16], is_safe=SafeUUID.safe if data[16] else SafeUUID.unsafe)
    return UUID(bytes=data)


def _unpack_complex(data: bytes) -> complex:
    return complex(*_COMPLEX_LAYOUT.unpack(data))


_UNPACKERS: dict[int, Callable[[bytes], object]] = {
    _INT: _unpack_int,
    _DATETIME: _unpack_datetime,
    _DATE: _unpack_date,
    _TIME: _unpack_time,
    _TIMEDELTA: _unpack_timedelta,
    _DECIMAL: _unpack_decimal,
    _UUID: _unpack_uuid,
    _COMPLEX: _unpack_complex,
    _NDARRAY: _unpack_array,
    _NUMPY_SCALAR: _unpack_numpy_scalar,
}
_COLLECTIONS: dict[int, Callable[[list[Any]], object]] = {_TUPLE: tuple, _SET: set, _FROZENSET: frozenset}


def _extension_hook(depth: int, unicode_errors: str | None) -> Callable[[int, bytes], object]:
    """The function that unpacks extensions inside `depth` others.

    One for each depth, so that damaged data cannot nest on until the C stack overflows.
    """
    inner = _extension_hook(depth + 1, unicode_errors) if depth < EXTENSION_DEPTH_MAX else None

    def hook(code: int, data: bytes) -> object:
        unpack = _UNPACKERS.get(code)
        if unpack is not None:
            return unpack(data)
        collection = _COLLECTIONS.get(code)
        if collection is None:
            raise ValueError(f"extension code {code} is unknown to this version")
        if inner is None:
            raise ValueError(f"extensions more than {EXTENSION_DEPTH_MAX} deep")
        elements = unpackb(data, strict_map_key=False, unicode_errors=unicode_errors, ext_hook=inner)
        if type(elements) is not list:
            raise ValueError(f"extension code {code} without elements")
        return collection(elements)

    return hook


_HOOK = _extension_hook(0, None)
_HOOK_SURROGATE = _extension_hook(0, "surrogatepass")

# What reading damaged bytes raises here, in msgpack, struct, decimal, datetime and NumPy.  Not
# RecursionError or MemoryError: those speak of this program's state, not of the bytes.
_DAMAGE = (ValueError, TypeError, ArithmeticError, LookupError, struct.error, UnpackException)


def _damaged(error: Exception) -> ValueError:
    return ValueError(f"the bytes are no value: {error or type(error).__name__}")


def _decode_str(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return payload.decode("utf-8", "surrogatepass")


def _decode_msgpack(payload: bytes) -> object:
    try:
        return unpackb(payload, strict_map_key=False, ext_hook=_HOOK)
    except _DAMAGE as error:
        raise _damaged(error) from error


def _decode_msgpack_surrogate(payload: bytes) -> object:
    try:
        return unpackb(payload, strict_map_key=False, ext_hook=_HOOK_SURROGATE, unicode_errors="surrogatepass")
    except _DAMAGE as error:
        raise _damaged(error) from error


def _decode_array(payload: bytes) -> object:
    try:
        return _unpack_array(payload)
    except _DAMAGE as error:
        raise _damaged(error) from error


DECODERS: dict[int, Callable[[bytes], object]] = {
    BYTES: bytes,
    STR: _decode_str,
    MSGPACK: _decode_msgpack,
    MSGPACK_SURROGATE: _decode_msgpack_surrogate,
    NDARRAY: _decode_array,
}
