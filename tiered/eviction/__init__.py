"""Eviction policies: which value leaves the hot tier first.

One file each, in the short shape that `policy` describes; `order` is how they run on Python's heap, and the arena runs
the same classes.  They are imported when they are chosen.
"""

from __future__ import annotations

from importlib import import_module

from tiered.eviction.policy import Policy

POLICIES = {
    "arc": "ARC",
    "fifo": "FIFO",
    "largest": "Largest",
    "lfu": "LFU",
    "lru": "LRU",
    "random": "Random",
    "s3fifo": "S3FIFO",
    "sieve": "Sieve",
    "smallest": "Smallest",
    "ttl": "TTL",
    "wtinylfu": "WTinyLFU",
}
"""The class of each policy, in the module of its name."""


def policy_named(name: str, **seed: int) -> Policy:
    """A policy that has seen nothing; `seed` makes one that draws numbers draw the same again."""
    found: Policy = getattr(import_module(f"tiered.eviction.{name}"), POLICIES[name])(**seed)
    return found


__all__ = ["POLICIES", "Policy", "policy_named"]
