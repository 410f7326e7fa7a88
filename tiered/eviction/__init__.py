"""Eviction policies: which value leaves the hot tier first.

A policy is the table of the hot tier and the order of its keys in one object, since a
hit must not look a key up twice.  Its contract:

    table               the mapping from key to entry that hits read, without a lock
    hit(key)            note a read; KeyError if the key has left meanwhile; atomic
    insert(key, entry)  put an entry, the newest, under a key that is not there
    remove(key)         take an entry out and return it, None if there is none
    victim()            take out the entry that leaves first, return (key, entry); KeyError if empty
    table_bytes()       memory of the table itself, without keys and entries

All but reads of `table` and `hit` are called under the store's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tiered.eviction.lru import LRU


class Policy(Protocol):
    """The contract above."""

    table: Mapping[Any, Any]
    hit: Callable[[Any], None]
    insert: Callable[[Any, Any], None]
    victim: Callable[[], tuple[Any, Any]]

    def remove(self, key: Any) -> Any: ...
    def table_bytes(self) -> int: ...
    def clear(self) -> None: ...


POLICIES: dict[str, Callable[[], Policy]] = {"lru": LRU}

__all__ = ["LRU", "POLICIES", "Policy"]
