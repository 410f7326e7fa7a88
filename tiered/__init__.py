"""A dict larger than memory that survives restarts.

import tiered

with tiered.open("users.tiered", memory="256MB") as store:
    store["user:1"] = {"name": "Ada", "born": 1815}
"""

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
from tiered.restoration import restore
from tiered.salvaging import Salvaged, salvage
from tiered.snapshot import SnapshotInfo
from tiered.stats import Explanation, MemoryStats, Stats
from tiered.store import Store, open
from tiered.sub import Sub
from tiered.transaction import Transaction
from tiered.verification import verify
from tiered.view import View

__all__ = [
    "BatchTooLargeError",
    "ClosedError",
    "ConfigError",
    "ConflictError",
    "CorruptionError",
    "Explanation",
    "Finding",
    "ForkedError",
    "FormatError",
    "KeyTooLongError",
    "LockedError",
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
