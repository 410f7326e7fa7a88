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
    CorruptionError,
    ForkedError,
    FormatError,
    KeyTooLongError,
    LockedError,
    NotAStoreError,
    PoisonedError,
    ReadOnlyError,
    StoreError,
    StoreFullError,
    TieredError,
    UnknownTypeError,
    UnsupportedError,
    ValueTooLargeError,
)
from tiered.registry import register
from tiered.stats import Explanation, MemoryStats, Stats
from tiered.store import Store, open

__all__ = [
    "BatchTooLargeError",
    "ClosedError",
    "ConfigError",
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
    "Stats",
    "Store",
    "StoreError",
    "StoreFullError",
    "TieredError",
    "UnknownTypeError",
    "UnsupportedError",
    "ValueTooLargeError",
    "open",
    "register",
]
