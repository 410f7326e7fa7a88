"""Filters: which keys a run of the cold tier cannot have, so that it is not searched for them.

A blocked Bloom filter (B. Bloom, "Space/Time Trade-offs in Hash Coding with Allowable Errors", 1970; F. Putze,
P. Sanders and J. Singler, "Cache-, Hash- and Space-Efficient Bloom Filters", 2007).  Each key has six bits in one
block of 64 bytes, so that the question waits for memory once.  At ten bits for each key a run is searched in vain for
about one key in a hundred.  Which bits follows from the CRC-32 of the stored key, and so is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from zlib import crc32

from tiered.native import native

BLOCK_BYTES = 64
KEY_BITS = 10
_BLOCK_BITS = 8 * BLOCK_BYTES
_PROBES = 6
_FACTOR = 0x9E3779B97F4A7C15
"""2^64 by the golden ratio: the multiplier of multiplicative hashing (Knuth, Art of Computer Programming 3, 6.4)."""


def size_for(count: int) -> int:
    """Bytes of a filter for so many keys."""
    return -(-count * KEY_BITS // _BLOCK_BITS) * BLOCK_BYTES


def _bits(size: int, key: bytes) -> Iterator[int]:
    """The numbers of a key's bits in a filter of so many bytes."""
    mixed = crc32(key)
    first = (mixed * (size // BLOCK_BYTES) >> 32) * _BLOCK_BITS
    spread = mixed * _FACTOR
    for probe in range(1, _PROBES + 1):
        yield first + (spread >> 64 - 9 * probe) % _BLOCK_BITS


def _add(bits: bytearray, keys: Sequence[bytes]) -> None:
    """Note keys."""
    for key in keys:
        for bit in _bits(len(bits), key):
            bits[bit >> 3] |= 1 << (bit & 7)


def _has(bits: bytes, key: bytes) -> bool:
    """False if the key was never noted."""
    return all(bits[bit >> 3] >> (bit & 7) & 1 for bit in _bits(len(bits), key))


add: Callable[[bytearray, Sequence[bytes]], None] = native.filter_add if native else _add
has: Callable[[bytes, bytes], bool] = native.filter_has if native else _has
