"""The hot tier in a memory of its own, which the process's cannot exceed: the compiled part's `Arena`.

One anonymous mapping of the budget's size, whose pages are the process's once they are used and are given back when
the budget shrinks.  A record is one piece of it: 20 bytes of links and sizes, its deadline, the encoded key, the
payload as the journal has it.  Segments of a 128th of the budget (16 KiB to 1 MiB) are filled from their front; what a
removed record leaves is filled again by one of its size; and where no room is left, the segment with the least in it is
emptied into others.  Index, order of use and deadlines are links in the records and a table that grows by one
bucket at a time.  Values above a quarter of a segment have pages of their own.  Everything counts, and no call
evicts or moves more than a bounded part.  The design is in `compiled/arena.c`, the locking in `compiled/pyarena.c`.

Why not a Fibonacci buddy system, which splits and merges blocks and leaves records where they are?  Measured
(`tools/bench/allocators.c`: 54 MiB, keys and payloads by bytes of memory, CPU time of an operation, on a busy machine):

    sizes        access          this            Fibonacci, linked     TLSF
    -----        ------          ----            -----------------     ----
FIGURES
Records in many blocks cost their readers a copy and each block its header; and neither of the two can give memory
back when the budget shrinks, which it does whenever dirty records need their share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from tiered import codec, keys
from tiered.native import native


class ArenaTier(native.Arena if native else object):  # type: ignore[misc]
    """Values in memory, as bytes in the arena."""

    name = "arena"
    in_budget = True

    def __new__(cls, policy: str, budget_bytes: int) -> ArenaTier:
        assert policy == "lru"
        return super().__new__(cls, budget_bytes, keys.encode, codec.DECODERS, os.urandom(16))  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[Any]:
        """All keys, the one that leaves first at the front."""
        return map(keys.decode, self.encoded_keys())
