"""Values as bytes: a codec id and a payload, from which the same value comes back.

Same means equal and of the same types all the way down: NaN keeps its bits, -0.0 its
sign, a datetime its `fold`, a dict its order.  What cannot be kept so is refused
when it is encoded, with a `TypeError`; subclasses of the types below are refused, never
flattened to their base.  No code runs from data: the types are a closed list, and those registered.

Codec ids and extension codes are on disk; their meaning never changes:

    id  name               payload
    --  ----               -------
    1   BYTES              the bytes
    2   STR                UTF-8, lone surrogates included ("surrogatepass")
    3   MSGPACK            one msgpack object, its strings strict UTF-8
    4   MSGPACK_SURROGATE  the same, its strings with lone surrogates
    5   NDARRAY            an array, as in extension 12

In msgpack the types nil, boolean, integer, float 64, str, bin, array (a `list`) and map
(a `dict`, with keys of any type here) stand for themselves.  The rest are extensions:

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

Depth.  Values nest at least 256 deep; with only msgpack's own types in them as deep as
msgpack packs (1,024 levels, which is what it unpacks).  Tuples, sets, frozensets and
registered types nest up to 16 deep in one another, since each is unpacked by a call of
its own (40 KiB of C stack).  Deeper, or a value that contains itself: `TypeError`.

Size.  An object that is in a value twice is written twice, and the size is known only
when all is written, since the packer has no limit to its buffer.  So `x = [x, x]` forty
times over takes all the memory there is, and at best ends with a `MemoryError`.

Threads.  All functions are safe to call from any thread, on values that others change
meanwhile: what is encoded is, for each list, dict or set in the value, one state that
it had during the call.  The fast way hands the value to a packer that is C code and
calls only C code; it allocates nothing that the garbage collector tracks, so neither
another thread nor a finalizer runs before it is done.  Where a type is unknown to it,
the slow way starts again, on copies of each container, each made in one step; only
there does code of registered types run.  A packer belongs to one call at a time, since
where it fails, creating the exception may run a finalizer that encodes something itself.
"""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from msgpack import ExtType, Packer, UnpackException, unpackb

from tiered import registry, scalars
from tiered.arrays import (
    is_array,
    is_numpy_scalar,
    pack_array,
    pack_numpy_scalar,
    unpack_array,
    unpack_numpy_scalar,
)
from tiered.errors import ValueTooLargeError
from tiered.refusal import Refused, key_name

BYTES = 1
STR = 2
MSGPACK = 3
MSGPACK_SURROGATE = 4
NDARRAY = 5

VALUE_BYTES_MAX = 1 << 30
DEPTH_MAX = 256
EXTENSION_DEPTH_MAX = 16
_TOO_DEEP = f"nested too deeply ({DEPTH_MAX} levels are sure to be kept), or it contains itself"

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
_REGISTERED = 14

# Scalars that the packer keeps as they are, whatever their value.
_PACKED_AS_IS = frozenset({str, bytes, float, bool, type(None)})

_INT_MIN = -(1 << 63)
_INT_MAX = (1 << 64) - 1

# Types that the packer gets as they are.  Without its C extension msgpack is ordinary Python,
# during which others may change a container.
_PACKED_FAST = frozenset({int, float, bool, type(None)})
if Packer.__module__ != "msgpack.fallback":
    _PACKED_FAST |= {dict, list}


def encode(value: object) -> tuple[int, bytes]:
    """The codec id and payload of a value.

    `TypeError` for what cannot be kept exactly, `ValueTooLargeError` above 1 GiB, and what `pack` raises.
    """
    kind = type(value)
    payload: bytes | None = None
    if kind in _PACKED_FAST:
        codec, payload = MSGPACK, _pack_fast(value)
        if payload is not None and (kind is dict or kind is list) and payload.translate(_SUSPECTS) is not payload:
            payload = _without_bytes(payload)
    elif kind is str:
        codec = STR
        try:
            payload = cast(str, value).encode()
        except UnicodeEncodeError:
            payload = cast(str, value).encode("utf-8", "surrogatepass")
    elif kind is bytes:
        codec, payload = BYTES, cast(bytes, value)
    if payload is None:
        codec, payload = _encode_slowly(value)
    if len(payload) > VALUE_BYTES_MAX:
        raise _too_large(len(payload))
    return codec, payload


def decode(codec_id: int, payload: bytes) -> object:
    """The value that `encode` made this payload from; `ValueError` if it made no such payload.

    `UnknownTypeError`, and what `unpack` raises, for registered types.  Arrays share `payload`, read-only.
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
    if unknown:
        unknown.clear()
        _packers.append(pair)
        return None
    if len(payload) <= _PACKED_BYTES_KEPT:
        _packers.append(pair)
    return payload


# Even a strict packer takes a bytearray or memoryview for bytes, and would write a caller's
# ExtType or Timestamp as an extension.  This table changes the bytes that mark those (bin and
# ext), so a payload with any of them, be it inside a float, is not what `translate` returns,
# and is looked at more closely.  CPython returns an unchanged payload itself.
_SUSPECTS = bytes(byte ^ 1 if 0xC4 <= byte <= 0xC9 or 0xD4 <= byte <= 0xD8 else byte for byte in range(256))


def _without_bytes(payload: bytes) -> bytes | None:
    """The payload if it has neither bytes nor extensions in it, None if it must go the slow way.

    Most suspects are floats and large integers; reading the payload back tells, at a
    fifth of the slow way's cost.  A limit of 0 would let empty ones through, and -1 is no limit.
    """
    try:
        unpackb(payload, strict_map_key=False, raw=True, max_bin_len=-2, max_ext_len=-2)
    except (ValueError, TypeError):
        return None
    return payload


def _too_large(size: int) -> ValueTooLargeError:
    return ValueTooLargeError(f"the value is {size:,} bytes when encoded, the limit is {VALUE_BYTES_MAX:,}")


# -- the slow way ------------------------------------------------------------------------------


def _encode_slowly(value: object) -> tuple[int, bytes]:
    failure: list[Exception]
    try:
        if is_array(value):
            payload = _pack_array(value)
            codec = NDARRAY
        else:
            codec, payload = _convert_and_pack(value)
    except Refused as refused:
        failure = [TypeError(str(refused))]
    except registry.Failed as failed:
        failure = [failed.error]
    except RecursionError:
        failure = [TypeError(f"value: {_TOO_DEEP}")]
    except RuntimeError as error:
        failure = [TypeError(f"value: changed while it was encoded ({error})")]
    else:
        return codec, payload
    # Raised here, so that neither the inner exception nor its frames go with it; taken from a list,
    # since a frame that kept it would be kept by it.
    raise failure.pop()


def _convert_and_pack(value: object) -> tuple[int, bytes]:
    try:
        return MSGPACK, _Converter(None).pack_converted(value)
    except UnicodeEncodeError:
        return MSGPACK_SURROGATE, _Converter("surrogatepass").pack_converted(value)


def _pack_array(array: Any) -> bytes:
    # Asked before it is copied: the data is nearly all of the payload, and may be larger than memory.
    if array.nbytes > VALUE_BYTES_MAX:
        raise _too_large(array.nbytes)
    return pack_array(array)


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
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            code, pack = scalar
            return _extension(code, pack(value))
        registered = registry.of(kind)
        if registered is not None:
            return self.convert_registered(registered, value)
        if is_array(value):
            return _extension(_NDARRAY, _pack_array(value))
        if is_numpy_scalar(value):
            return _extension(_NUMPY_SCALAR, pack_numpy_scalar(value))
        raise registry.refusal(kind)

    def convert_int(self, value: int) -> object:
        if _INT_MIN <= value <= _INT_MAX:
            return value
        return _extension(_INT, scalars.pack_int(value))

    def convert_list(self, value: list[Any]) -> list[Any]:
        copy = value.copy()
        self.enter()
        position = 0
        try:
            for position, item in enumerate(copy):
                kind = type(item)
                if kind not in _PACKED_AS_IS and (kind is not int or not _INT_MIN <= item <= _INT_MAX):
                    copy[position] = self.convert(item)
        except Refused as refused:
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
        except Refused as refused:
            refused.steps.append(f"[{key_name(key)}]")
            raise
        if not all_str:
            copy = self.convert_keys(copy)
        self.depth -= 1
        return copy

    def convert_keys(self, copy: dict[Any, Any]) -> dict[Any, Any]:
        try:
            converted = {self.convert(key): item for key, item in copy.items()}
        except Refused as refused:
            refused.steps.append(" (a key)")
            raise
        if len(converted) != len(copy):
            # Such as two Decimal("NaN"), or two tuples holding a NaN: equal in all but identity.
            raise Refused("dict keys that differ only in identity cannot be kept")
        return converted

    def convert_elements(self, code: int, elements: list[Any]) -> Any:
        """An extension of these elements, a private list."""
        if self.extension_depth == EXTENSION_DEPTH_MAX:
            raise Refused(
                f"tuples, sets, registered types nested too deeply (over {EXTENSION_DEPTH_MAX} in one another)"
            )
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
        except Refused as refused:
            # A position in a set says nothing.
            refused.steps[-1:] = [" (a member)"] if refused.steps else []
            raise

    def convert_registered(self, registered: registry.Registered, value: object) -> Any:
        state = registered.state(value)
        try:
            return self.convert_elements(_REGISTERED, [registered.name, state])
        except Refused as refused:
            refused.steps[-1:] = [f" (the state of a {registered.shown})"] if refused.steps else []
            raise

    def enter(self) -> None:
        if self.depth == DEPTH_MAX:
            raise Refused(_TOO_DEEP)
        self.depth += 1


_CONVERTERS: dict[type, Callable[[_Converter, Any], object]] = {
    int: _Converter.convert_int,
    list: _Converter.convert_list,
    dict: _Converter.convert_dict,
    tuple: _Converter.convert_tuple,
    set: _Converter.convert_set,
    frozenset: _Converter.convert_frozenset,
}

# What else there is, each with its extension code and the function that packs it.
_SCALARS: dict[type, tuple[int, Callable[[Any], bytes]]] = {
    datetime: (_DATETIME, scalars.pack_datetime),
    date: (_DATE, scalars.pack_date),
    time: (_TIME, scalars.pack_time),
    timedelta: (_TIMEDELTA, scalars.pack_timedelta),
    Decimal: (_DECIMAL, scalars.pack_decimal),
    UUID: (_UUID, scalars.pack_uuid),
    complex: (_COMPLEX, scalars.pack_complex),
}
IMMUTABLE_TYPES = PLAIN_TYPES | {tuple, frozenset, *_SCALARS}


# -- decoding ----------------------------------------------------------------------------------


_UNPACKERS: dict[int, Callable[[bytes], object]] = {
    _INT: scalars.unpack_int,
    _DATETIME: scalars.unpack_datetime,
    _DATE: scalars.unpack_date,
    _TIME: scalars.unpack_time,
    _TIMEDELTA: scalars.unpack_timedelta,
    _DECIMAL: scalars.unpack_decimal,
    _UUID: scalars.unpack_uuid,
    _COMPLEX: scalars.unpack_complex,
    _NDARRAY: unpack_array,
    _NUMPY_SCALAR: unpack_numpy_scalar,
}
_COLLECTIONS: dict[int, Callable[[list[Any]], object]] = {_TUPLE: tuple, _SET: set, _FROZENSET: frozenset}
_COLLECTIONS[_REGISTERED] = registry.restore


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


_CAUGHT = (*_DAMAGE, registry.Failed)


def _failure(error: Exception) -> list[Exception]:
    """What to raise, outside the handler, for an error met in reading; in a list to take it from, as above."""
    if isinstance(error, registry.Failed):
        return [error.error]
    damaged = ValueError(f"the bytes are no value: {error or type(error).__name__}")
    damaged.__cause__ = error
    return [damaged]


def _decode_str(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return payload.decode("utf-8", "surrogatepass")


def _decode_msgpack(payload: bytes) -> object:
    try:
        return unpackb(payload, strict_map_key=False, ext_hook=_HOOK)
    except _CAUGHT as error:
        failure = _failure(error)
    raise failure.pop()


def decode_documents(payloads: Sequence[bytes | bytearray]) -> list[Any]:
    """The values of many MSGPACK payloads, in one call of the unpacker: a third cheaper than one by one."""
    joined = b"\xdd" + len(payloads).to_bytes(4, "big") + b"".join(payloads)
    # Thousands of new containers, none of them garbage yet: collections meanwhile would only walk them.
    enabled = gc.isenabled()
    gc.disable()
    try:
        return cast("list[Any]", unpackb(joined, strict_map_key=False, ext_hook=_HOOK))
    except _CAUGHT as error:
        failure = _failure(error)
    finally:
        if enabled:
            gc.enable()
    raise failure.pop()


def _decode_msgpack_surrogate(payload: bytes) -> object:
    try:
        return unpackb(payload, strict_map_key=False, ext_hook=_HOOK_SURROGATE, unicode_errors="surrogatepass")
    except _CAUGHT as error:
        failure = _failure(error)
    raise failure.pop()


def _decode_array(payload: bytes) -> object:
    try:
        return unpack_array(payload)
    except _DAMAGE as error:
        raise _failure(error)[0] from error


DECODERS: dict[int, Callable[[bytes], object]] = {
    BYTES: bytes,
    STR: _decode_str,
    MSGPACK: _decode_msgpack,
    MSGPACK_SURROGATE: _decode_msgpack_surrogate,
    NDARRAY: _decode_array,
}
