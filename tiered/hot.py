"""The hot tier: values in memory, within a byte budget, leaving by a policy.

Two do the same, under one contract (below) and one suite of tests: the compiled arena (`arena`), whose memory the
process's cannot exceed, and its twin on Python's heap (`heap`), which runs where there is no compiled part.
`memory_stats()` says which.  `Hits` is what a store inherits: it answers reads of what is hot.

Locking: what reads (`get`, `get_at`, `get_many`, `deadline`) is atomic and called without the store's lock, the
rest under it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from tiered.arena import ArenaTier
from tiered.errors import ConfigError
from tiered.heap import HeapTier
from tiered.native import native

if TYPE_CHECKING or native is None:
    from tiered.heap import Hits
else:
    Hits = native.Hits


class HotTier(Protocol):
    """The contract; keys are plain ones (`keys.canonical`) where something is put or discarded."""

    name: str
    in_budget: bool
    """Whether the process's memory keeps to the budget, whatever the sizes do."""
    budget_bytes: int
    """What it may use; `shrink` enforces a smaller one, or as few bytes as it is told."""

    @property
    def used_bytes(self) -> int: ...
    @property
    def entry_bytes(self) -> int: ...
    @property
    def evictions(self) -> int: ...
    @property
    def evicted_bytes(self) -> int: ...
    @property
    def expiring(self) -> int: ...
    @property
    def objects(self) -> int: ...
    @property
    def object_bytes(self) -> int: ...
    @property
    def object_hits(self) -> int: ...
    def __len__(self) -> int: ...
    def __contains__(self, key: object) -> bool: ...
    def __iter__(self) -> Iterator[Any]: ...
    def get(self, key: Any, default: Any = None) -> Any: ...
    def get_at(self, key: Any, now_ms: int, default: Any) -> Any: ...
    def get_many(self, names: list[Any], found: dict[Any, Any], absent: Any) -> list[Any]: ...
    def deadline(self, key: Any) -> int | None: ...
    def hit(self, key: Any) -> None: ...
    def peek(self, key: Any) -> tuple[int, bytes, int, int] | None: ...
    def put(self, key: Any, number: int, payload: bytes, deadline: int) -> bool: ...
    def put_many(self, names: list[Any], numbers: list[int], payloads: list[bytes], deadline: int) -> None: ...
    def discard(self, key: Any) -> bool: ...
    def discard_many(self, names: list[Any]) -> None: ...
    def expire(self, now_ms: int, limit: int) -> int: ...
    def shrink(self, to_bytes: int | None = None) -> bool: ...
    def clear(self) -> None: ...
    def keep_objects(self, share_bytes: int, entries_max: int, value_bytes_max: int) -> None: ...
    def wrong(self) -> str: ...


def hot_tier(policy: str, budget_bytes: int) -> HotTier:
    """A hot tier: the arena where the compiled part is there.  `ConfigError` if it cannot have the address space."""
    if native is None:
        return HeapTier(policy, budget_bytes)
    try:
        return ArenaTier(policy, budget_bytes)
    except OSError:
        raise no_address_space(budget_bytes) from None


def no_address_space(memory: int) -> ConfigError:
    """The error for a budget that the arena has no room for."""
    return ConfigError(f"memory={memory:,} bytes: this process cannot have as much address space (ulimit -v)")


__all__ = ["Hits", "HotTier", "hot_tier", "no_address_space"]
