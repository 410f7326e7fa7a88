"""The hot tier in a memory of its own, which the process's cannot exceed: the compiled part's `Arena`.

One anonymous mapping of the budget's size, whose pages are the process's once they are used and are given back when
the budget shrinks.  A record is one piece of it: 20 bytes of links and sizes, its deadline, the encoded key, the
payload as the journal has it.  Segments of a 128th of the budget (16 KiB to 1 MiB) are filled from their front; what a
removed record leaves is filled again by one of its size; and where no room is left, the segment with the least in it is
emptied into others.  Index, order of use and deadlines are links in the records and a table that grows by one
bucket at a time.  Values above a quarter of a segment have pages of their own.  Everything counts, and no call
evicts or moves more than a bounded part.  The design is in `compiled/arena.c`, the locking in `compiled/pyarena.c`.

Why not a Fibonacci buddy system, which splits and merges blocks and leaves records where they are?  Measured
(`tools/bench/allocators.c`: 54 MiB, keys and payloads by bytes of memory, time of an operation, on a busy machine;
this one's time holds the hash, the index and the order in the records, that of the other two does not):

    sizes        access          this            Fibonacci, linked     TLSF
    -----        ------          ----            -----------------     ----
    ~250 B       skewed reads    0.87, 1.0 us    0.82, 0.6 us          0.82, 0.4 us
    ~1,000 B     skewed reads    0.93, 0.8 us    0.94, 1.1 us          0.89, 0.5 us
    ~1,000 B     overwrites      0.93, 1.1 us    0.94, 1.1 us          0.89, 0.8 us
    30 B-30 KB   skewed reads    0.94, 1.3 us    0.98, 1.5 us          0.91, 0.5 us
    30 B-30 KB   overwrites      0.83, 1.3 us    0.84, 1.4 us          0.83, 1.1 us
    shifting     skewed reads    0.76, 2.2 us    0.79, 5.9 us          0.76, 1.0 us

The last two rows are of less data than memory, for a part of the time.  At 250 bytes only this comes to 0.85; elsewhere
the linked buddies are a little denser, with a record in 3 to 79 blocks, which its reader must copy together; TLSF is
faster and never denser.  Neither of the two can give memory back when the budget shrinks, which it does whenever dirty
records need their share; here that is emptying segments, which is done anyway.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from tiered import codec, keys
from tiered.eviction import policy_named
from tiered.native import native


class ArenaTier(native.Arena if native else object):  # type: ignore[misc]
    """Values in memory, as bytes in the arena."""

    name = "arena"
    in_budget = True

    policy: str

    def __new__(cls, policy: str, budget_bytes: int) -> ArenaTier:
        tier: ArenaTier = super().__new__(cls, budget_bytes, keys.encode, codec.DECODERS, os.urandom(16))
        tier.evict_by(policy)
        return tier

    def evict_by(self, policy: str) -> None:
        """Another policy, from now on, which takes over the records in their order; looks at each."""
        chosen = policy_named(policy)
        asked = chosen if chosen.asked else None
        self.policy = policy
        self.steer(asked, chosen.uses_max, chosen.sparing, chosen.hit_to, chosen.sketched)
        if asked is not None:
            asked.adopt(self)

    def keep_objects(self, share_bytes: int, entries_max: int, value_bytes_max: int) -> None:
        """Keep what is decoded most as objects, within so many bytes, which the arena then lacks."""
        super().keep_objects(share_bytes, entries_max, value_bytes_max, codec.is_immutable)

    def __iter__(self) -> Iterator[Any]:
        """All keys, the one that leaves first at the front."""
        return map(keys.decode, self.encoded_keys())
