"""A dict larger than memory that survives restarts.

import tiered

with tiered.open("users.tiered", memory="256MB") as store:
    store["user:1"] = {"name": "Ada", "born": 1815}
"""

import typing as _typing

from tiered.errors import (
    BatchTooLargeError,
    ClosedError,
    ConfigError,
    ConflictError,
    CorruptionError,
    ForkedError,
    FormatError,
    KeyTooLongError,
    LockedError,
    MemoryFullError,
    NotAStoreError,
    PoisonedError,
    ReadOnlyError,
    ReentrantError,
    StoreError,
    StoreExistsError,
    StoreFullError,
    TieredError,
    UnknownTypeError,
    UnsupportedError,
    ValueTooLargeError,
    ViewExpiredError,
)

__version__ = "0.1.0"
__all__ = [
    "BatchTooLargeError",
    "ClosedError",
    "ConfigError",
    "ConflictError",
    "CorruptionError",
    "Diagnosis",
    "Explanation",
    "Finding",
    "ForkedError",
    "FormatError",
    "KeyTooLongError",
    "LockedError",
    "MemoryFullError",
    "MemoryStats",
    "NotAStoreError",
    "PoisonedError",
    "ReadOnlyError",
    "ReentrantError",
    "Salvaged",
    "SnapshotInfo",
    "Stats",
    "Store",
    "StoreError",
    "StoreExistsError",
    "StoreFullError",
    "Sub",
    "TieredError",
    "Transaction",
    "UnknownTypeError",
    "UnsupportedError",
    "ValueTooLargeError",
    "View",
    "ViewExpiredError",
    "open",
    "register",
    "restore",
    "salvage",
    "verify",
]

_MODULES = ("aio", "migrate")
_HOMES = {
    "Diagnosis": "doctor",
    "Explanation": "stats",
    "Finding": "check",
    "MemoryStats": "stats",
    "Salvaged": "salvaging",
    "SnapshotInfo": "snapshot",
    "Stats": "stats",
    "Store": "store",
    "Sub": "sub",
    "Transaction": "transaction",
    "View": "view",
    "open": "store",
    "register": "registry",
    "restore": "restoration",
    "salvage": "salvaging",
    "verify": "verification",
}
"""Where the names are that are imported when they are first asked for: importing the package takes little time."""

if _typing.TYPE_CHECKING:
    from tiered import aio as aio
    from tiered import migrate as migrate
    from tiered.check import Finding
    from tiered.doctor import Diagnosis
    from tiered.registry import register
    from tiered.restoration import restore
    from tiered.salvaging import Salvaged, salvage
    from tiered.snapshot import SnapshotInfo
    from tiered.stats import Explanation, MemoryStats, Stats
    from tiered.store import Store, open
    from tiered.sub import Sub
    from tiered.transaction import Transaction
    from tiered.verification import verify
    from tiered.view import View
else:

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        return globals().setdefault(name, getattr(import_module(f"{__name__}.{_HOMES[name]}"), name))


def __dir__() -> list[str]:
    """What is there for users; completions in a shell show no more."""
    return [*__all__, *_MODULES, "__doc__", "__version__"]
