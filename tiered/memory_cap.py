"""Memory's cap with `spill=False`: which writes are refused, so that a store holds no more than its memory does.

The cold tier is written all the same, since checkpoints are what makes a store durable and lets its journal end; but
then it is a copy of what memory has room for, and nothing is on disk only because it did not fit.

What counts is what live records take when hot: key and payload before compression, and ENTRY_BYTES for each.  The cold
tier's state has the sums, as of the last checkpoint; each write buffer, by how much the writes in it have changed
them, for which a write looks at the size of what it replaces.  So the count is exact at each checkpoint, and never too
small between two, except where an interrupt came in the middle of a write.  What has expired counts until the
cycle has removed it.

LIVE_SHARE of the budget is for live records.  The rest is for the write buffer, which takes less than it does
otherwise (`share_bytes`), for documents kept decoded, and for the arena's tables and slack, so that all of them are hot
once they were read or written.  On the heap, whose entries are larger, some may not be.

A write that makes them more, and more than that, is refused as a whole, with `MemoryFullError`, before the journal
has it.  What makes them no more is not: deleting, replacing by as much or less, a new time to live.  That holds for
a store that has too much already, because it is opened with less memory, was restored, or had spilled before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tiered import keys
from tiered.errors import CorruptionError, MemoryFullError

if TYPE_CHECKING:
    from tiered.tiers import Tiers

LIVE_SHARE = 2 / 3
ENTRY_BYTES = 64
DELETED = -1


def limit_bytes(tiers: Tiers) -> int:
    """What live records may take."""
    return int(LIVE_SHARE * tiers.settings.memory)


def live_bytes(tiers: Tiers) -> int:
    """What live records take."""
    total = 0
    for buffer in tiers.buffers:
        total += buffer.grown_bytes
        if buffer.cleared:
            return total
    state = tiers.state
    return total + state.packed_bytes + state.key_bytes + state.records * ENTRY_BYTES


def admit(tiers: Tiers, writes: Iterable[tuple[Any, bytes, int]]) -> int:
    """By how much writes make live records more: each a key, plain and encoded, and its payload's size, or DELETED.

    Raises `MemoryFullError` where they would take too much.  Under the lock, before anything is written.
    """
    sizes = {encoded: (key, size) for key, encoded, size in writes}
    growth = sum(_size(encoded, size) - _held(tiers, key, encoded) for encoded, (key, size) in sizes.items())
    if growth > 0:
        live, limit = live_bytes(tiers), limit_bytes(tiers)
        if live + growth > limit:
            raise MemoryFullError(
                tiers.directory,
                f"spill is off, and live records take {live:,} of the {limit:,} bytes that the memory of "
                f"{tiers.settings.memory:,} has for them; this would add {growth:,}: delete some, give it more, "
                "or config_set('spill', True)",
            )
    return growth


def _size(encoded: bytes, size: int) -> int:
    return 0 if size == DELETED else size + len(encoded) + ENTRY_BYTES


def _held(tiers: Tiers, key: Any, encoded: bytes) -> int:
    """What the key's record takes now."""
    hot = tiers.hot.peek(key)
    if hot is not None and not hot[2]:  # One with a deadline may have been removed below already.
        return _size(encoded, len(hot[1]))
    try:
        found = tiers.find(keys.stored(encoded), encoded)[1]
    except CorruptionError:
        return 0  # It is replaced, which mends it.
    return 0 if found is None else _size(encoded, len(found.payload))
