"""The slow way of encoding: a copy of a value in which everything is of a type that msgpack has.

Depth.  Values nest at least 256 deep; with only msgpack's own types in them as deep as
msgpack packs (1,024 levels, which is what it unpacks).  Tuples, sets, frozensets and
registered types nest up to 16 deep in one another, since each is unpacked by a call of
its own (40 KiB of C stack).  Deeper, or a value that contains itself: `TypeError`.

Threads.  Each container of the value is copied in one step, before it is looked at; only then does code of
registered types run.  A converter belongs to one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgpack import Packer

from tiered import extensions, registry, scalars
from tiered.arrays import is_array, is_numpy_scalar, pack_array, pack_numpy_scalar
from tiered.errors import ValueTooLargeError
from tiered.extensions import FROZENSET, INT, NDARRAY, NUMPY_SCALAR, REGISTERED, SET, TUPLE, extension
from tiered.refusal import Refused, key_name

VALUE_BYTES_MAX = 1 << 30
DEPTH_MAX = 256
TOO_DEEP = f"nested too deeply ({DEPTH_MAX} levels are sure to be kept), or it contains itself"
PACKER_BYTES = 4 * 1024

# Scalars that the packer keeps as they are, whatever their value.
PACKED_AS_IS = frozenset({str, bytes, float, bool, type(None)})

_INT_MIN = -(1 << 63)
_INT_MAX = (1 << 64) - 1


def new_packer(unicode_errors: str | None = None, default: Callable[[object], None] | None = None) -> Any:
    return Packer(strict_types=True, buf_size=PACKER_BYTES, unicode_errors=unicode_errors, default=default)


def too_large(size: int) -> ValueTooLargeError:
    return ValueTooLargeError(f"the value is {size:,} bytes when encoded, the limit is {VALUE_BYTES_MAX:,}")


def packed_array(array: Any) -> bytes:
    # Asked before it is copied: the data is nearly all of the payload, and may be larger than memory.
    if array.nbytes > VALUE_BYTES_MAX:
        raise too_large(array.nbytes)
    return pack_array(array)


class Converter:
    """Copies of values in which everything is of a type that msgpack has."""

    def __init__(self, unicode_errors: str | None) -> None:
        self.unicode_errors = unicode_errors
        self.depth = 0
        self.extension_depth = 0

    def pack(self, converted: object) -> bytes:
        packer = new_packer(self.unicode_errors)
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
        if kind in PACKED_AS_IS:
            return value
        method = CONVERTERS.get(kind)
        if method is not None:
            return method(self, value)
        scalar = extensions.SCALARS.get(kind)
        if scalar is not None:
            code, pack = scalar
            return extension(code, pack(value))
        registered = registry.of(kind)
        if registered is not None:
            return self.convert_registered(registered, value)
        if is_array(value):
            return extension(NDARRAY, packed_array(value))
        if is_numpy_scalar(value):
            return extension(NUMPY_SCALAR, pack_numpy_scalar(value))
        raise registry.refusal(kind)

    def convert_int(self, value: int) -> object:
        if _INT_MIN <= value <= _INT_MAX:
            return value
        return extension(INT, scalars.pack_int(value))

    def convert_list(self, value: list[Any]) -> list[Any]:
        copy = value.copy()
        self.enter()
        position = 0
        try:
            for position, item in enumerate(copy):
                kind = type(item)
                if kind not in PACKED_AS_IS and (kind is not int or not _INT_MIN <= item <= _INT_MAX):
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
                if kind not in PACKED_AS_IS and (kind is not int or not _INT_MIN <= item <= _INT_MAX):
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
        if self.extension_depth == extensions.DEPTH_MAX:
            raise Refused(
                f"tuples, sets, registered types nested too deeply (over {extensions.DEPTH_MAX} in one another)"
            )
        self.extension_depth += 1
        packed = self.pack(self.convert_list(elements))
        self.extension_depth -= 1
        return extension(code, packed)

    def convert_tuple(self, value: tuple[Any, ...]) -> Any:
        return self.convert_elements(TUPLE, list(value))

    def convert_set(self, value: set[Any]) -> Any:
        return self.convert_members(SET, value)

    def convert_frozenset(self, value: frozenset[Any]) -> Any:
        return self.convert_members(FROZENSET, value)

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
            return self.convert_elements(REGISTERED, [registered.name, state])
        except Refused as refused:
            refused.steps[-1:] = [f" (the state of a {registered.shown})"] if refused.steps else []
            raise

    def enter(self) -> None:
        if self.depth == DEPTH_MAX:
            raise Refused(TOO_DEEP)
        self.depth += 1


CONVERTERS: dict[type, Callable[[Converter, Any], object]] = {
    int: Converter.convert_int,
    list: Converter.convert_list,
    dict: Converter.convert_dict,
    tuple: Converter.convert_tuple,
    set: Converter.convert_set,
    frozenset: Converter.convert_frozenset,
}
