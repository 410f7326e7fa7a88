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
(a `dict`, with keys of any type here) stand for themselves.  The rest are `extensions`.  How deep values
may nest says `conversion`.

Size.  An object that is in a value twice is written twice, and the size is known only
when all is written, since the packer has no limit to its buffer.  So `x = [x, x]` forty
times over takes all the memory there is, and at best ends with a `MemoryError`.

Threads.  All functions are safe to call from any thread, on values that others change
meanwhile: what is encoded is, for each list, dict or set in the value, one state that
it had during the call.  The fast way hands the value to C code that
calls only C code; it allocates nothing that the garbage collector tracks, so neither
another thread nor a finalizer runs before it is done.  Where a type is unknown to it,
the slow way starts again, on copies of each container, each made in one step; only
there does code of registered types run.  A packer belongs to one call at a time, since
where it fails, creating the exception may run a finalizer that encodes something itself.

Compiled part.  `_encode` and `_decode_msgpack` define all this, and run where there is no
compiled part.  Where there is, its `Encoder` and `Decoder` do the same for the types that nearly
all values are made of, some times faster; a value or payload with anything else in it, or
damaged, they hand to these as a whole.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

from msgpack import Packer, StackError, UnpackException, unpackb

from tiered import conversion, extensions, registry
from tiered.arrays import is_array, unpack_array
from tiered.native import native
from tiered.refusal import Refused

BYTES = 1
STR = 2
MSGPACK = 3
MSGPACK_SURROGATE = 4
NDARRAY = 5

VALUE_BYTES_MAX = conversion.VALUE_BYTES_MAX

PLAIN_TYPES = frozenset({str, bytes, int, float, bool, type(None)})
_IMMUTABLE_TYPES = PLAIN_TYPES | {tuple, frozenset, *extensions.SCALARS}


def is_immutable(kind: type) -> bool:
    """Whether values of this type cannot be changed in place; NumPy's and registered ones apart."""
    return kind in _IMMUTABLE_TYPES


# Types that the packer gets as they are.  Without its C extension msgpack is ordinary Python,
# during which others may change a container.
_PACKED_FAST = frozenset({int, float, bool, type(None)})
if Packer.__module__ != "msgpack.fallback":
    _PACKED_FAST |= {dict, list}


def _encode(value: object) -> tuple[int, bytes]:
    """The codec id and payload of a value.

    `TypeError` for what cannot be kept exactly, `ValueTooLargeError` above 1 GiB, and what `pack` raises.
    """
    kind = type(value)
    payload: bytes | None = None
    if kind in _PACKED_FAST:
        codec, payload = MSGPACK, _pack_fast(value)
        if payload is not None and (kind is dict or kind is list) and _is_suspicious(payload):
            payload = _read_back(payload)
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
        raise conversion.too_large(len(payload))
    return codec, payload


# -- the fast way ------------------------------------------------------------------------------

_PACKED_BYTES_KEPT = 16 * 1024

# Packers at rest, as many as calls ever ran at once, each with the list of what it could not
# pack.  A packer never shrinks its buffer, so one that has grown is not put back.
_packers: list[tuple[Any, list[object]]] = []


def _pack_fast(value: object) -> bytes | None:
    """The value packed in one step, or None if it must go the slow way."""
    try:
        pair = _packers.pop()
    except IndexError:
        unknown: list[object] = []
        # An unknown object is noted and packed as nil: three times faster than an exception, and
        # `append` is C code, so that still nothing else can run.
        pair = conversion.new_packer(default=unknown.append), unknown
    packer, unknown = pair
    try:
        payload: bytes = packer.pack(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    packed = not unknown
    unknown.clear()
    if len(payload) <= _PACKED_BYTES_KEPT:
        _packers.append(pair)
    return payload if packed else None


# Even a strict packer takes a bytearray or memoryview for bytes, and would write a caller's
# ExtType or Timestamp as an extension.  This table changes the bytes that mark those (bin and
# ext), so a payload with any of them, be it inside a float, is not what `translate` returns,
# and is looked at more closely.  CPython returns an unchanged payload itself.
_SUSPECTS = bytes(byte ^ 1 if 0xC4 <= byte <= 0xC9 or 0xD4 <= byte <= 0xD8 else byte for byte in range(256))

# A packer may go one level deeper than an unpacker, both about a thousand. A level takes the head of a container.
_CONTAINERS = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
_LEVELS_SURE = 500


def _is_suspicious(payload: bytes) -> bool:
    if payload.translate(_SUSPECTS) is not payload:
        return True
    return len(payload) > _LEVELS_SURE and len(payload.translate(None, _CONTAINERS)) < len(payload) - _LEVELS_SURE


def _read_back(payload: bytes) -> bytes | None:
    """The payload if it has neither bytes nor extensions in it and can be read, None if it must go the slow way.

    Most suspects are floats and large integers; reading the payload back tells, at a
    fifth of the slow way's cost.  A limit of 0 would let empty ones through, and -1 is no limit.
    """
    try:
        unpackb(payload, strict_map_key=False, raw=True, max_bin_len=-2, max_ext_len=-2)
    except (ValueError, TypeError):
        return None
    return payload


# -- the slow way ------------------------------------------------------------------------------


def _encode_slowly(value: object) -> tuple[int, bytes]:
    failure: list[Exception]
    try:
        if is_array(value):
            payload = conversion.packed_array(value)
            codec = NDARRAY
        else:
            codec, payload = _convert_and_pack(value)
    except Refused as refused:
        failure = [TypeError(str(refused))]
    except registry.Failed as failed:
        failure = [failed.error]
    except RecursionError:
        failure = [TypeError(f"value: {conversion.TOO_DEEP}")]
    except RuntimeError as error:
        failure = [TypeError(f"value: changed while it was encoded ({error})")]
    else:
        return codec, payload
    # Raised here, so that neither the inner exception nor its frames go with it; taken from a list,
    # since a frame that kept it would be kept by it.
    raise failure.pop()


def _convert_and_pack(value: object) -> tuple[int, bytes]:
    try:
        return MSGPACK, conversion.Converter(None).pack_converted(value)
    except UnicodeEncodeError:
        return MSGPACK_SURROGATE, conversion.Converter("surrogatepass").pack_converted(value)


encode: Callable[[object], tuple[int, bytes]] = native.Encoder(_encode, VALUE_BYTES_MAX) if native else _encode


# -- decoding ----------------------------------------------------------------------------------


def decode(codec_id: int, payload: bytes) -> object:
    """The value that `encode` made this payload from; `ValueError` if it made no such payload.

    `UnknownTypeError`, and what `unpack` raises, for registered types.  Arrays share `payload`, read-only.
    """
    decoder = DECODERS.get(codec_id)
    if decoder is None:
        raise ValueError(f"codec id {codec_id} is unknown to this version")
    return decoder(payload)


_HOOK = extensions.hook(0, None)
_HOOK_SURROGATE = extensions.hook(0, "surrogatepass")

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


def _decode_msgpack(payload: bytes | bytearray) -> object:
    try:
        return unpackb(payload, strict_map_key=False, ext_hook=_HOOK)
    except _CAUGHT as error:
        failure = _failure(error)
    raise failure.pop()


def _decode_documents(payloads: Sequence[bytes | bytearray]) -> list[Any]:
    """The values of many MSGPACK payloads, in one call of the unpacker: a third cheaper than one by one."""
    joined = b"\xdd" + len(payloads).to_bytes(4, "big") + b"".join(payloads)
    try:
        return cast("list[Any]", unpackb(joined, strict_map_key=False, ext_hook=_HOOK))
    except StackError:
        # The list around them is one level more than the deepest value may have.
        return [_decode_msgpack(payload) for payload in payloads]
    except _CAUGHT as error:
        failure = _failure(error)
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


_decoder = native.Decoder(_decode_msgpack, _HOOK) if native else None
decode_documents: Callable[[Sequence[bytes | bytearray]], list[Any]] = _decoder.many if _decoder else _decode_documents
DECODERS: dict[int, Callable[[bytes], object]] = {
    BYTES: bytes,
    STR: _decode_str,
    MSGPACK: _decoder or _decode_msgpack,
    MSGPACK_SURROGATE: _decode_msgpack_surrogate,
    NDARRAY: _decode_array,
}
