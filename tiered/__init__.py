"""A dict larger than memory that survives restarts.

import tiered

with tiered.open("users.tiered", memory="256MB") as store:
    store["user:1"] = {"name": "Ada", "born": 1815}
"""

import typing as _typing

from tiered.check import Finding
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
from tiered.registry import register
from tiered.snapshot import SnapshotInfo
from tiered.stats import Explanation, MemoryStats, Stats
from tiered.store import Store, open
from tiered.sub import Sub
from tiered.transaction import Transaction
from tiered.view import View

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
_WHEN_ASKED_FOR = {
    "Diagnosis": "doctor",
    "Salvaged": "salvaging",
    "restore": "restoration",
    "salvage": "salvaging",
    "verify": "verification",
}
"""What few programs need, and what takes time to import: when it is asked for."""

if _typing.TYPE_CHECKING:
    from tiered import aio as aio
    from tiered import migrate as migrate
    from tiered.doctor import Diagnosis
    from tiered.restoration import restore
    from tiered.salvaging import Salvaged, salvage
    from tiered.verification import verify
else:

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _WHEN_ASKED_FOR:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        return globals().setdefault(name, getattr(import_module(f"{__name__}.{_WHEN_ASKED_FOR[name]}"), name))


def __dir__() -> list[str]:
    """What is there for users; completions in a shell show no more."""
    return [*__all__, *_MODULES, "__doc__", "__version__"]
