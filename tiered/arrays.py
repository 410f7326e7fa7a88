"""NumPy data as bytes: arrays, and the scalars that are their elements.

The layouts are on disk and never change; all integers are big-endian:

    type    data
    ----    ----
    array   offset of the data u32, a multiple of 16; header size u32; header: msgpack array
            of dtype, shape, order ("C" or "F"); zeros; the data
    scalar  header size u32; header: msgpack dtype; the data (of a numpy.str_ or numpy.bytes_
            the dtype is "U" or "S" alone, the data UTF-8 or the bytes)

A dtype is NumPy's string for it ("<f8"), or for a structured one [alignment flag, item
size, [[name, dtype, offset, title or nil], ...]], or [dtype, shape] for a subarray.

NumPy is never imported to encode: a value can only be NumPy's if somebody has imported
it.  Packing raises `Refused`.  Unpacking other bytes raises whatever `struct`, msgpack
and NumPy do; `codec` makes one error of it.
"""

from __future__ import annotations

import re
import struct
import sys
from math import prod
from typing import Any

from msgpack import Packer, unpackb

from tiered.refusal import Refused, type_name

_ARRAY_LAYOUT = struct.Struct(">II")
_SIZE_LAYOUT = struct.Struct(">I")
_ALIGNMENT = 16
_HEADER_BUFFER_BYTES = 4 * 1024
_SIMPLE_DTYPE = re.compile(r"[<>|][biufcmMSUV][0-9]+(\[[0-9]*[A-Za-z]+\])?")
_DTYPE_DEPTH_MAX = 16


def _numpy_type(name: str) -> Any:
    return getattr(sys.modules.get("numpy"), name, None)


def is_array(value: object) -> bool:
    ndarray = _numpy_type("ndarray")
    return ndarray is not None and type(value) is ndarray


def writable(value: Any) -> Any:
    """A decoded value with its arrays, which are read-only, copied so that they can be changed."""
    if _numpy_type("ndarray") is None:
        return value
    if is_array(value):
        return value.copy(order="K")
    kind = type(value)
    if kind is list:
        value[:] = map(writable, value)
    elif kind is dict:
        for key, element in value.items():
            value[key] = writable(element)
    elif kind is tuple:
        return tuple(map(writable, value))
    return value


def is_numpy_scalar(value: Any) -> bool:
    generic = _numpy_type("generic")
    return generic is not None and isinstance(value, generic) and type(value).__module__ == "numpy"


def is_numpy_type(kind: type) -> bool:
    """Whether objects of a class are arrays or scalars that can be kept."""
    generic = _numpy_type("generic")
    if generic is None:
        return False
    return kind is _numpy_type("ndarray") or (issubclass(kind, generic) and kind.__module__ == "numpy")


def import_numpy() -> Any:
    try:
        import numpy
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        raise ImportError("the value holds NumPy data: install the extra 'tiered[numpy]' to read it") from error
    except ImportError as error:
        # An import that was interrupted cannot be done again: NumPy refuses to be loaded twice.
        raise ImportError(f"the value holds NumPy data, and NumPy cannot be imported: {error}") from error
    if getattr(numpy.__spec__, "_initializing", False):
        raise ImportError("the value holds NumPy data, and NumPy is being imported by what this interrupts: try again")
    return numpy


def _describe_dtype(dtype: Any, depth: int = 0) -> Any:
    """What the dtype is made from again, as msgpack has it; refused if that would not be the same dtype."""
    if depth > _DTYPE_DEPTH_MAX:
        raise Refused(f"a dtype nested too deeply (more than {_DTYPE_DEPTH_MAX} levels)")
    if dtype.hasobject:
        raise Refused(f"the dtype {dtype!r} cannot be kept: it refers to Python objects")
    if dtype.char in "gG":
        raise Refused(f"the dtype {dtype!r} cannot be kept: its bytes mean another number on another processor")
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
        raise Refused(f"the dtype {dtype!r} cannot be kept exactly")
    return described


def _make_dtype(described: Any, depth: int = 0) -> Any:
    """The dtype of a description; `ValueError` or `TypeError` if it is none."""
    np = import_numpy()
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
        packer = Packer(strict_types=True, buf_size=_HEADER_BUFFER_BYTES, unicode_errors="surrogatepass")
        return bytes(packer.pack(described))
    except TypeError:
        raise Refused("a dtype with a title that is no str cannot be kept") from None


def pack_array(array: Any) -> bytes:
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    header = _pack_header([_describe_dtype(array.dtype), list(array.shape), order])
    offset = -(-(_ARRAY_LAYOUT.size + len(header)) // _ALIGNMENT) * _ALIGNMENT
    head = (_ARRAY_LAYOUT.pack(offset, len(header)) + header).ljust(offset, b"\x00")
    straight = array.T if order == "F" else array
    if array.nbytes and straight.flags.c_contiguous:
        # Seen as bytes the array is copied once, into the payload; dates have no buffer of their own.
        return b"".join((head, straight.reshape(-1).view(_numpy_type("uint8")).data))
    return head + bytes(array.tobytes(order))


def unpack_array(payload: bytes) -> Any:
    """The array, read-only, in the memory of `payload`."""
    np = import_numpy()
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


def pack_numpy_scalar(scalar: Any) -> bytes:
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
            raise Refused(f"{type_name(kind)} cannot be kept: it would come back as {_make_dtype(described).type}")
    header = _pack_header(described)
    return _SIZE_LAYOUT.pack(len(header)) + header + data


def unpack_numpy_scalar(data: bytes) -> Any:
    np = import_numpy()
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
