"""The disk's cap with `disk_full="evict"`: which records leave the store.

The hand of a clock goes over the cold tier in key order, round and round.  What it meets is deleted, unless it is hot
or dirty: that was used lately, and gets another chance until the hand comes again.  So this is CLOCK (Corbato, 1968)
with the hot tier in place of the bits of use: what is not hot leaves in key order, whatever its age.

Measured (tools/bench/hit_ratio.py): 300,000 reads by Zipf's law (0.9) of 60,000 random numbers, 16,475 of them kept in
16 MB, `memory="2MB"`: of the later half 74.1 % were hits, with exact LRU of as many records 75.4 %, with random
replacement 71.5 %.

The deletions are ordinary ones, through journal and checkpoint, a slice for each time a writer asks for room, so that a
crash, a reader in another process, and a transaction see them as they see any.  Their space can be used again when
the runs that they lie in were merged; until then a record may lie there twice.  Therefore what is kept is held to a
share of the cap.  With that, pages in use stayed below 0.85 of caps of 16 and 64 MB, and the files, journal included,
below the cap and three times `memory` (random keys, values of 1,000 bytes); README promises four.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiered import keys, record

if TYPE_CHECKING:
    from tiered.tiers import Tiers

KEPT_SHARE = 0.3
"""Of the cap, for live records; the rest is for older versions, and for copies while runs are merged."""
SLICE_RECORDS = 300
"""The hand passes so many records at most in one call."""
_ENTRY_BYTES = 16
"""What LMDB takes for an entry beside key and record."""


def excess_bytes(tiers: Tiers) -> int:
    """How much live records take beyond their share of the cap, those to be deleted by what is dirty left out."""
    disk = tiers.settings.disk
    if disk is None:
        return 0
    state = tiers.state
    dirty = sum(buffer.evicted_bytes for buffer in tiers.buffers)
    return state.stored_bytes + state.records * _ENTRY_BYTES - dirty - int(KEPT_SHARE * disk)


def victims(tiers: Tiers, hand: bytes) -> tuple[list[bytes], int, bytes]:
    """Encoded keys of records to be deleted, what they take, and where the hand is then.  Under the lock; 2 ms."""
    found: list[bytes] = []
    size, passed, wanted = 0, 0, excess_bytes(tiers)
    hot = tiers.hot
    with tiers.cold.read() as reader:
        for stored_key, data in reader.scan(hand):
            hand = stored_key + b"\0"
            passed += 1
            try:
                taken = record.unpack(stored_key, data)
                encoded = stored_key if taken is None or not taken.full_key else taken.full_key
                key = keys.decode(encoded)
            except ValueError:
                continue  # Damaged: it stays, for `check` and the reader to find.
            if tiers.dirty(stored_key) is None and key not in hot:
                found.append(encoded)
                size += len(data) + _ENTRY_BYTES
            if size >= wanted or passed == SLICE_RECORDS:
                return found, size, hand
    return found, size, b""  # Round again.
