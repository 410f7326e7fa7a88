"""What a call is known by when the program runs again: the name of its function, and its arguments as bytes.

The name is that of module and function.  The module of a script is its file, as where it is imported.

In the bytes, types are told apart (1, True and 1.0 differ, though they are equal), and the order of dicts and sets
makes no difference, also inside objects of registered classes, whose states are looked at.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tiered import codec, registry
from tiered.refusal import Refused


def told_apart(value: Any) -> bytes:
    """An argument as bytes, of its type and value.  Raises `TypeError` for what the store cannot keep."""
    kind = type(value)
    if kind in (list, tuple):
        parts = [told_apart(item) for item in value]
    elif kind is dict:
        pairs = [(told_apart(key), told_apart(item)) for key, item in value.items()]
        parts = [part for pair in sorted(pairs) for part in pair]
    elif kind in (set, frozenset):
        parts = sorted(map(told_apart, value))
    elif isinstance(value, type):
        parts = [f"{value.__module__}.{value.__qualname__}".encode()]
        kind = type
    elif (registered := registry.of(kind)) is not None:
        parts = [registered.name.encode(), told_apart(_state(registered, value))]
        kind = registry.Registered
    else:
        number, payload = codec.encode(value)
        return bytes((number,)) + payload
    return b"\xff%s(%d)" % (kind.__name__.encode(), len(parts)) + b"".join(b"%d:%s" % (len(p), p) for p in parts)


def _state(registered: registry.Registered, value: object) -> object:
    try:
        return registered.state(value)
    except Refused as refused:
        raise TypeError(str(refused)) from None
    except registry.Failed as failed:
        raise failed.error from None


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call is to be awaited: of an async function, an object with such a `__call__`, a `partial` of these."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def place_of(function: Callable[..., Any]) -> str:
    """Module and name of a function, or of the class of an object that can be called."""
    named = function if hasattr(function, "__qualname__") else type(function)
    module = named.__module__
    if module in ("__main__", "__mp_main__"):  # The latter in processes that `multiprocessing` has spawned.
        main = sys.modules.get(module)
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec is not None else Path(file).stem if file else "__main__"
    return f"{module}.{named.__qualname__}"


def name_of(function: Callable[..., Any]) -> str:
    """The name under which a function's results are kept.  Raises `TypeError` where another may have the same."""
    place = place_of(function)
    if "<" in place or not hasattr(function, "__qualname__"):
        raise TypeError(f"{place}: another function may be called so; give memoize() a name=")
    return place
