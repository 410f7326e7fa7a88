"""Value types of the user's own: which classes are registered, and how their objects are kept.

An object is kept as the name that its class is registered under and a state, which is a
value like any other and which `codec` goes on with:

    class             state                      made again by
    -----             -----                      -------------
    dataclass         dict, field name to value  object.__new__ and object.__setattr__
    NamedTuple        dict, field name to value  tuple.__new__
    Enum              name of the member         looking it up
    Flag              number                     calling the class
    pack and unpack   what `pack` returned       `unpack`

What the user's class does when it is called (`__new__`, `__init__`, `__post_init__`)
does not run; the fields are set as they were.  So an object that is more than its
fields, or less, is refused when it is written.  Only objects of exactly the registered
class are kept; one of a subclass would come back as something else.  With `pack` and
`unpack` it is for these to be exact.

A class may change after its objects were stored: a new field takes its default.  Where
the class cannot tell (a field that it no longer has, a new one without default, a
member that is gone), and where no class has the name, reading is an
`UnknownTypeError`: the bytes are in order, it is the program that does not know them.

User code.  `pack`, `unpack` and default factories are the user's code.  What they raise
reaches the caller as it is: `Failed` carries it past code that would take it for damage.
They may use stores; no lock is held while they run (but by `incr`, on what is no number),
and no packer is in use.  `pack` is called again where a text in the value has lone
surrogates.  Objects that are keys or members are hashed when read; a class whose objects
no longer hash makes that a `ValueError`.

Threads.  The two tables are replaced, never changed, under `_LOCK`, and read without it.
Attributes in an object's `__dict__` are copied in one step, slots are read one by one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from types import BuiltinFunctionType, MemberDescriptorType
from typing import TYPE_CHECKING, Any, TypeVar, overload
from uuid import UUID

from tiered.arrays import is_numpy_type
from tiered.errors import ConfigError, UnknownTypeError
from tiered.refusal import Refused, type_name

if TYPE_CHECKING:
    import dataclasses

T = TypeVar("T")
C = TypeVar("C", bound=type)

_BUILT_IN: frozenset[type] = frozenset(
    {type(None), bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset}
    | {datetime, date, time, timedelta, Decimal, UUID}
)
NAME_BYTES_MAX = 255


def is_built_in(kind: type) -> bool:
    """Whether values of this type are kept without being registered; NumPy's apart."""
    return kind in _BUILT_IN


_ALLOWED = (
    "None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, datetime, date, time, "
    "timedelta, Decimal, UUID, NumPy arrays and scalars, and types registered with tiered.register"
)


class Failed(Exception):
    """Carries what code of the user's raised; never leaves `codec`, which raises that instead."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        raise Failed(error) from None


class Registered:
    """A registered class, and how its objects become states and states become objects."""

    def __init__(self, name: str, kind: type) -> None:
        self.name = name
        self.kind = kind
        self.shown = type_name(kind)

    def state(self, value: Any) -> object:
        """The state of an object; raises `Refused` where it would not come back the same."""
        raise NotImplementedError

    def restore(self, state: Any) -> object:
        """The object that has this state; raises `UnknownTypeError`."""
        raise NotImplementedError

    def unknown(self, what: str) -> UnknownTypeError:
        return UnknownTypeError(self.name, f"a value of the type registered as {self.name!r} {what}")


class _WithFields(Registered):
    """A class whose objects are their fields."""

    def __init__(self, name: str, kind: type, defaults: dict[str, Callable[[], Any] | None]) -> None:
        super().__init__(name, kind)
        self.defaults = defaults
        self.has_dict = kind.__dictoffset__ != 0

    def attributes(self, value: object) -> dict[str, Any]:
        """A private copy of what the object itself holds, made in one step."""
        return dict.copy(object.__getattribute__(value, "__dict__")) if self.has_dict else {}

    def refuse_others(self, others: dict[str, Any]) -> None:
        if others:
            names = ", ".join(sorted(map(str, others)))
            raise Refused(f"{self.shown} cannot be kept with attributes that are not its fields: {names}")

    def values(self, state: Any) -> list[Any]:
        """What a state has for each field, in the order of the fields."""
        if type(state) is not dict:
            raise self.unknown(f"was stored without fields, and {self.shown} has some; give it pack and unpack")
        if state.keys() != self.defaults.keys():
            for field in state:
                if field not in self.defaults:
                    raise self.unknown(
                        f"was stored with the field {field!r}, which {self.shown} does not have; "
                        "give it that field, or pack and unpack"
                    )
        return [state[field] if field in state else self.default(field) for field in self.defaults]

    def default(self, field: str) -> Any:
        make = self.defaults[field]
        if make is None:
            raise self.unknown(f"was stored without the field {field!r}; give that field of {self.shown} a default")
        return make()


class _Dataclass(_WithFields):
    def __init__(self, name: str, kind: type) -> None:
        import dataclasses

        fields = dataclasses.fields(kind)
        super().__init__(name, kind, {field.name: _default_of(field) for field in fields})
        self.slots: dict[str, Any] = {}
        for base in kind.__mro__:
            for attribute, found in vars(base).items():
                if type(found) is MemberDescriptorType:
                    if _class_attribute(kind, attribute) is not found:
                        raise TypeError(f"{self.shown} has the slot {attribute!r} twice; give pack and unpack")
                    self.slots[attribute] = found
        for field in fields:
            found = _class_attribute(kind, field.name)
            if field.name not in self.slots and hasattr(type(found), "__set__"):
                raise TypeError(f"the field {field.name!r} of {self.shown} is a descriptor; give pack and unpack")
        # Such a field is read from the class until it is set.
        self.from_class = {
            field.name: field.default for field in fields if not field.init and field.default is not dataclasses.MISSING
        }

    def state(self, value: Any) -> object:
        held = self.attributes(value)
        for attribute, slot in self.slots.items():
            try:
                held[attribute] = slot.__get__(value)
            except AttributeError:
                continue
        state = {}
        for field in self.defaults:
            if field in held:
                state[field] = held.pop(field)
            elif field in self.from_class:
                state[field] = self.from_class[field]
            else:
                raise Refused(f"{self.shown} cannot be kept without its field {field!r}")
        self.refuse_others(held)
        return state

    def restore(self, state: Any) -> object:
        values = self.values(state)
        made: object = object.__new__(self.kind)
        for field, value in zip(self.defaults, values, strict=True):
            object.__setattr__(made, field, value)
        return made


def _is_dataclass(kind: type) -> bool:
    """As `dataclasses.is_dataclass`, without importing what takes a tenth of the package's own import."""
    return hasattr(kind, "__dataclass_fields__")


def _default_of(field: dataclasses.Field[Any]) -> Callable[[], Any] | None:
    from dataclasses import MISSING

    if field.default is not MISSING:
        return lambda: field.default
    factory: Any = field.default_factory
    return None if factory is MISSING else lambda: _call(factory)


def _class_attribute(kind: type, name: str) -> Any:
    """What the class has under a name, as it lies there."""
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


class _NamedTuple(_WithFields):
    def __init__(self, name: str, kind: Any) -> None:
        given = {field: (lambda value=value: value) for field, value in kind._field_defaults.items()}
        super().__init__(name, kind, {field: given.get(field) for field in kind._fields})

    def state(self, value: Any) -> object:
        elements = list(tuple.__iter__(value))
        if len(elements) != len(self.defaults):
            raise Refused(f"{self.shown} cannot be kept with {len(elements)} elements, its fields are others")
        self.refuse_others(self.attributes(value))
        return dict(zip(self.defaults, elements, strict=True))

    def restore(self, state: Any) -> object:
        return tuple.__new__(self.kind, self.values(state))


class _Enum(Registered):
    kind: Any

    def state(self, value: Any) -> object:
        name = value._name_
        if self.kind._member_map_.get(name) is not value:
            raise Refused(f"{self.shown} cannot be kept: its {name!r} is another member")
        return name

    def restore(self, state: Any) -> object:
        member: object = self.kind._member_map_.get(state) if type(state) is str else None
        if member is None:
            raise self.unknown(f"was stored as the member {state!r}, which {self.shown} does not have")
        return member


class _Flag(Registered):
    kind: Any

    def state(self, value: Any) -> object:
        number = value._value_
        if self.kind._value2member_map_.get(number) is not value:
            raise Refused(f"{self.shown} cannot be kept: its {number!r} is another member")
        return number

    def restore(self, state: Any) -> object:
        try:
            member: object = self.kind(state)
        except (ValueError, TypeError):
            member = None
        except Exception as error:
            raise Failed(error) from None  # Of a `_missing_` of the user's.
        if type(member) is not self.kind:
            raise self.unknown(f"was stored as {state!r}, which {self.shown} does not have")
        return member


class _Packed(Registered):
    def __init__(self, name: str, kind: type, pack: Callable[[Any], object], unpack: Callable[[Any], object]) -> None:
        super().__init__(name, kind)
        self.pack = pack
        self.unpack = unpack

    def state(self, value: Any) -> object:
        state = _call(self.pack, value)
        if type(state) is self.kind:
            raise Refused(f"{self.shown} cannot be kept: its pack function gave one again")
        return state

    def restore(self, state: Any) -> object:
        return _call(self.unpack, state)


# -- registering -------------------------------------------------------------------------------

_LOCK = threading.Lock()
_by_name: dict[str, Registered] = {}
_by_class: dict[type, Registered] = {}


@overload
def register(name: str, /) -> Callable[[C], C]: ...
@overload
def register(name: str, /, *, pack: Callable[[Any], object], unpack: Callable[[Any], object]) -> Callable[[C], C]: ...
@overload
def register(name: str, kind: C, /) -> C: ...
@overload
def register(name: str, kind: type[T], /, *, pack: Callable[[T], object], unpack: Callable[[Any], T]) -> type[T]: ...
def register(
    name: str,
    kind: Any = None,
    /,
    *,
    pack: Callable[[Any], object] | None = None,
    unpack: Callable[[Any], object] | None = None,
) -> Any:
    """Make a class a value type, under a name that stands for it on disk; returns the class.

    As a decorator, `@tiered.register("point")`, on a dataclass (above `@dataclass`), a
    NamedTuple or an Enum; any other class needs `pack`, which makes a value of an object, and
    `unpack`, which makes the object of it again.  A value read back is of the class that has
    the name then, so register the same classes in every program that reads the store.
    A class defined anew, in the same place, replaces itself.

    Raises `ConfigError` for a name or class that is taken, `TypeError` for a class that
    cannot be registered so.
    """
    if not isinstance(name, str):
        raise TypeError('register() takes a name first: @tiered.register("point")')
    if not 0 < len(name.encode("utf-8", "surrogatepass")) <= NAME_BYTES_MAX or not _is_utf8(name):
        raise ConfigError(f"a type's name is a text of 1 to {NAME_BYTES_MAX} bytes in UTF-8, not {name[:80]!r}")
    if (pack is None) is not (unpack is None):
        raise TypeError("register() takes pack and unpack together, or neither")

    def add(kind: Any) -> Any:
        _add(_kept_by(name, kind, pack, unpack))
        return kind

    return add if kind is None else add(kind)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kept_by(name: str, kind: Any, pack: Any, unpack: Any) -> Registered:
    if not isinstance(kind, type):
        raise TypeError(f"register() takes a class, not {kind!r}")
    if is_built_in(kind) or is_numpy_type(kind):
        raise TypeError(f"{type_name(kind)} is a value type as it is")
    if pack is not None:
        return _Packed(name, kind, pack, unpack)
    if issubclass(kind, Enum):
        return (_Flag if issubclass(kind, Flag) else _Enum)(name, kind)
    if _is_named_tuple(kind):
        return _NamedTuple(name, kind)
    if not _is_dataclass(kind):
        raise TypeError(
            f"{type_name(kind)} is no dataclass, NamedTuple or Enum: give pack and unpack, "
            "or if @dataclass stands above @tiered.register, put it below"
        )
    native = _native_base(kind)
    if native is not object:
        raise TypeError(
            f"{type_name(kind)} derives from {native.__name__}, whose content is no field; give pack and unpack"
        )
    return _Dataclass(name, kind)


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and _native_base(kind) is tuple and type(getattr(kind, "_fields", None)) is tuple


def _native_base(kind: type) -> type:
    """The class that makes the objects of a class: the first that is written in C and does so itself."""
    for base in kind.__mro__:
        new = vars(base).get("__new__")
        if isinstance(new, BuiltinFunctionType) and new.__self__ is base:
            return base
    return object


def _same_place(first: type, second: type) -> bool:
    return (first.__module__, first.__qualname__) == (second.__module__, second.__qualname__)


def _add(added: Registered) -> None:
    global _by_name, _by_class
    with _LOCK:
        named = _by_name.get(added.name)
        if named is not None and not _same_place(named.kind, added.kind):
            raise ConfigError(f"the name {added.name!r} is taken by {named.shown}; choose another for {added.shown}")
        classed = _by_class.get(added.kind)
        if classed is not None and classed.name != added.name:
            raise ConfigError(f"{added.shown} is registered already, as {classed.name!r}")
        by_class = {kind: found for kind, found in _by_class.items() if found is not named}
        by_class[added.kind] = added
        _by_name = {**_by_name, added.name: added}
        _by_class = by_class


# -- for the codec -----------------------------------------------------------------------------


def of(kind: type) -> Registered | None:
    """How objects of exactly this class are kept, None if it is not registered."""
    return _by_class.get(kind)


def restore(elements: list[Any]) -> object:
    """The object of a name and a state; raises `UnknownTypeError`, and `ValueError` if they are not that."""
    if len(elements) != 2 or type(elements[0]) is not str:
        raise ValueError("a registered value without its name and state")
    name, state = elements
    registered = _by_name.get(name)
    if registered is None:
        raise UnknownTypeError(
            name,
            f"a value is of a type stored as {name!r}, and no class is registered under that name: "
            f"put @tiered.register({_quoted(name)}) above its class, or import the module that does",
        )
    return registered.restore(state)


def refusal(kind: type) -> Refused:
    """Why objects of a class cannot be kept, and what to do about it."""
    return Refused(f"{type_name(kind)} cannot be kept{_advice(kind)}; values are {_ALLOWED}")


def _advice(kind: type) -> str:
    if any(_same_place(kind, found.kind) for found in _by_name.values()):
        return f" (the object is of an earlier definition of class {kind.__name__}, registered anew: make it again)"
    if issubclass(kind, Enum) or _is_dataclass(kind) or _is_named_tuple(kind):
        name = kind.__name__ if kind.__name__ not in _by_name else type_name(kind)
        return f" (put @tiered.register({_quoted(name)}) above class {kind.__name__})"
    for base in kind.__mro__[1:]:
        if base in _by_class:
            return f" (a subclass of {base.__name__}, which is registered: register it as well)"
        if is_built_in(base):
            return (
                f" (a subclass of {base.__name__}: convert it to that if it may come back as one, "
                "or register it with pack and unpack)"
            )
    if issubclass(kind, (bytearray, memoryview)):
        return " (convert it to bytes)"
    return ""


def _quoted(name: str) -> str:
    return f'"{name}"' if name.isprintable() and '"' not in name and "\\" not in name else repr(name)
