"""Payload to stored bytes and back, and the dictionaries trained for it.

Compression ids in records (frozen): 0 stored as it is, 1 a standard zstd frame
(without dictionary id: the record's header names the dictionary), 2 four bytes of
little-endian payload length, then a zlib stream.

A `Dictionary` is made once per process and id and never changed.  Its tables for
compression are computed once, when it is loaded: computing them again on the same
object would free what compressors already made from it still use.

`Trainer` belongs to whoever writes the cold tier.  It keeps a sliding window of the
payloads that were spilled and now and then trains a dictionary on it (fastCOVER,
Liao, Petri, Moffat, Wirth, 2017, with k=200, d=8: on documents of 40 to 260 bytes as good
as the library's parameter search and 5 to 9 times faster, 15 to 80 ms for 3,000 of them).
A candidate is adopted only if it makes payloads it was not trained on at least a
tenth smaller than what is in force.  A trial comes when the ratio moves by a
twentieth in either direction since the last one, since data that compresses *better*
than before may still deserve a dictionary of its own, and else at growing intervals.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import zstandard

from tiered.codec import VALUE_BYTES_MAX

NONE, ZSTD, ZLIB = 0, 1, 2
DICTIONARY_BYTES = 32 * 1024
DICTIONARY_ID_MAX = 0xFFFF
_PAYLOAD_BYTES_MIN = 24
"""Below this no method gains anything: a zstd frame alone takes about 9 bytes."""
_DICTIONARY_PAYLOAD_BYTES_MAX = 64 * 1024
"""Above this a dictionary of 32 KiB no longer helps, and copying its tables costs."""

_SMALL_BYTES = 512
"""The size of payload that a dictionary is tuned for."""
_SMALL_LEVELS = {3: 2}
"""With a dictionary, level 3's second table of matches makes documents of 260 bytes 1 % smaller than level 2, and
takes half as much time again."""
_BATCHED_BYTES_MAX = 4096
"""Bounds the memory of a batch."""


class Dictionary:
    """A trained dictionary under its id."""

    def __init__(self, number: int, data: bytes) -> None:
        self.number = number
        self.data = data
        self.zstd = zstandard.ZstdCompressionDict(data)


class Compressor:
    """Compress payloads by one setting, with a dictionary or without.  For one thread at a time."""

    def __init__(self, setting: str, dictionary: Dictionary | None = None) -> None:
        self.method, _, level = setting.partition(":")
        self.level = int(level or 0)
        self.number = 0
        self._small: zstandard.ZstdCompressor | None = None
        if self.method == "zstd":
            self._large = zstandard.ZstdCompressor(level=self.level, write_checksum=False)
            if dictionary:
                # A fresh object: precomputing is done once on it, for one level, see above.
                own = zstandard.ZstdCompressionDict(dictionary.data)
                parameters = zstandard.ZstdCompressionParameters.from_level(
                    _SMALL_LEVELS.get(self.level, self.level),
                    source_size=_SMALL_BYTES,
                    dict_size=len(dictionary.data),
                    write_checksum=False,
                    write_dict_id=False,
                )
                own.precompute_compress(compression_params=parameters)
                self._small = zstandard.ZstdCompressor(dict_data=own, compression_params=parameters)
                self.number = dictionary.number

    def compress(self, payload: bytes) -> tuple[int, int, bytes]:
        """`(compression id, dictionary id, bytes)`; whatever does not shrink is kept as it is."""
        size = len(payload)
        if size < _PAYLOAD_BYTES_MIN or self.method == "none":
            return NONE, 0, payload
        if self.method == "zlib":
            body = size.to_bytes(4, "little") + zlib.compress(payload, self.level)
            return (ZLIB, 0, body) if len(body) < size else (NONE, 0, payload)
        if self._small is not None and size <= _DICTIONARY_PAYLOAD_BYTES_MAX:
            body = self._small.compress(payload)
            return (ZSTD, self.number, body) if len(body) < size else (NONE, 0, payload)
        body = self._large.compress(payload)
        return (ZSTD, 0, body) if len(body) < size else (NONE, 0, payload)

    def compress_all(self, payloads: list[bytes]) -> list[tuple[int, int, bytes]]:
        """`compress` for each of many payloads; small ones in one call, a quarter cheaper."""
        sizes = list(map(len, payloads))
        if self._small is None or not sizes or min(sizes) < _PAYLOAD_BYTES_MIN or max(sizes) > _BATCHED_BYTES_MAX:
            return [self.compress(payload) for payload in payloads]
        number = self.number
        batch: Any = self._small.multi_compress_to_buffer(cast("list[Any]", payloads))
        bodies = [segment.tobytes() for segment in batch]
        return [
            (ZSTD, number, body) if len(body) < size else (NONE, 0, payload)
            for payload, size, body in zip(payloads, sizes, bodies, strict=True)
        ]


class Decompressor:
    """Undo any compression.  Safe for many threads: each call borrows a context of its own.

    `load` returns the bytes of a dictionary by id and raises KeyError if there is none.
    """

    __slots__ = ("__dict__", "_pools")  # As in `Tiers`.

    def __init__(self, load: Callable[[int], bytes]) -> None:
        self._load = load
        self._pools: dict[int, list[zstandard.ZstdDecompressor]] = {0: []}
        self._dictionaries: dict[int, Dictionary] = {}

    @property
    def dictionary_bytes(self) -> int:
        """Bytes of the dictionaries that are loaded."""
        return sum(len(dictionary.data) for dictionary in list(self._dictionaries.values()))

    def forget(self) -> None:
        """Let go of contexts that nobody is using; they are made anew when they are needed."""
        for pool in list(self._pools.values()):
            pool.clear()

    def decompress(self, compression: int, dictionary: int, body: bytes) -> bytes:
        """The payload.  Raises ValueError if the bytes are no such frame, KeyError for an unknown dictionary."""
        if compression == ZSTD:
            try:
                # A list's pop and append are atomic, so that no two threads hold one context.
                pool = self._pools[dictionary]
                context = pool.pop()
            except LookupError:
                pool, context = self._borrow(dictionary)
            try:
                # The two top bits of a frame's fifth byte say how wide its size is: below 0x80 up to two bytes.
                if body[4:5] >= b"\x80" and zstandard.frame_content_size(body) > VALUE_BYTES_MAX:
                    raise ValueError("frame larger than any value")
                return context.decompress(body, 0, False, False)  # One frame, and nothing after it.
            except zstandard.ZstdError as error:
                raise ValueError(f"not a zstd frame: {error}") from None
            finally:
                pool.append(context)
        if compression == NONE:
            return body
        if compression == ZLIB:
            return _inflate(body)
        raise ValueError(f"unknown compression id {compression}")

    def _borrow(self, dictionary: int) -> tuple[list[zstandard.ZstdDecompressor], zstandard.ZstdDecompressor]:
        """A context for frames of one dictionary, and the pool to give it back to."""
        pool = self._pools.get(dictionary)
        if pool is None:
            self._dictionaries[dictionary] = Dictionary(dictionary, self._load(dictionary))
            pool = self._pools.setdefault(dictionary, [])
        try:
            return pool, pool.pop()
        except IndexError:
            if dictionary:
                return pool, zstandard.ZstdDecompressor(dict_data=self._dictionaries[dictionary].zstd)
            return pool, zstandard.ZstdDecompressor()


def _inflate(body: bytes) -> bytes:
    size = int.from_bytes(body[:4], "little")
    stream = zlib.decompressobj()
    try:
        payload = stream.decompress(body[4:], size + 1)
    except zlib.error as error:
        raise ValueError(f"not a zlib stream: {error}") from None
    if len(payload) != size or not stream.eof or stream.unused_data:
        raise ValueError("zlib stream of another length than announced")
    return payload


def payload_size(compression: int, body: bytes) -> int:
    """Length of the payload without undoing the compression; 0 where damage makes it unknown."""
    if compression == ZSTD:
        try:
            size: int = zstandard.frame_content_size(body)
        except zstandard.ZstdError:
            return 0
        return size if 0 <= size <= VALUE_BYTES_MAX else 0
    return int.from_bytes(body[:4], "little") if compression == ZLIB else len(body)


class Trainer:
    """Decide when a new dictionary pays, and train it.  Memory: at most `WINDOW_BYTES_MAX` of samples."""

    WINDOW_BYTES_MAX = 4 << 20
    WINDOW_SAMPLES_MAX = 4000
    SAMPLE_BYTES_MAX = 16 * 1024
    SAMPLES_MIN = 600
    DRIFT = 0.05
    DRIFT_SAMPLES_MIN = 2000
    INTERVAL_MAX = 500_000
    GAIN = 0.10

    def __init__(self) -> None:
        self._window: deque[bytes] = deque()
        self._window_bytes = 0
        self._seen_since_trial = 0
        self._interval = self.SAMPLES_MIN
        self._ratio = 0.0
        self._ratio_at_trial = 0.0

    @classmethod
    def suits(cls, size: int) -> bool:
        """Whether a dictionary is trained on, and judged by, payloads of that size."""
        return _PAYLOAD_BYTES_MIN <= size <= cls.SAMPLE_BYTES_MAX

    def observe(self, payloads: Sequence[bytes], payload_bytes: int, stored_bytes: int) -> None:
        """Take note of payloads just written (a sample of them will do) and of all they took, before and after."""
        for payload in payloads:
            if self.suits(len(payload)):
                self._window.append(payload)
                self._window_bytes += len(payload)
        while self._window_bytes > self.WINDOW_BYTES_MAX or len(self._window) > self.WINDOW_SAMPLES_MAX:
            self._window_bytes -= len(self._window.popleft())
        if payload_bytes:
            self._ratio = stored_bytes / payload_bytes

    def count(self, records: int) -> None:
        """Take note of how many records were written."""
        self._seen_since_trial += records

    @property
    def adopted_ratio(self) -> float:
        """Stored bytes by packed ones with the dictionary trained last, of payloads held out."""
        return self._ratio_at_trial

    @property
    def window_bytes(self) -> int:
        """Bytes of samples held now."""
        return self._window_bytes

    def due(self) -> bool:
        """Whether a trial is worth its 20 ms now."""
        if len(self._window) < self.SAMPLES_MIN:
            return False
        if self._seen_since_trial >= self._interval:
            return True
        drifted = abs(self._ratio - self._ratio_at_trial) > self.DRIFT * self._ratio_at_trial
        return drifted and self._seen_since_trial >= self.DRIFT_SAMPLES_MIN

    def train(self, setting: str, current: Dictionary | None, number: int) -> Dictionary | None:
        """A dictionary that beats `current` by the margin on payloads held out, under id `number`, or None."""
        self._seen_since_trial = 0
        self._interval = min(max(8 * self._interval, 20_000), self.INTERVAL_MAX)
        self._ratio_at_trial = self._ratio
        samples = list(self._window)
        held_out = samples[::5]
        try:
            trained = zstandard.train_dictionary(
                DICTIONARY_BYTES,
                [sample for index, sample in enumerate(samples) if index % 5],
                k=200,
                d=8,
                f=18,
                accel=1,
                steps=1,
            )
        except zstandard.ZstdError:
            return None  # Too little or too uniform to train on; the next trial may find more.
        candidate = Dictionary(number, trained.as_bytes())
        before, after = _size_with(setting, current, held_out), _size_with(setting, candidate, held_out)
        if after > (1 - self.GAIN) * before:
            return None
        self._ratio_at_trial = after / sum(map(len, held_out))
        return candidate


def _size_with(setting: str, dictionary: Dictionary | None, payloads: Sequence[bytes]) -> int:
    compressor = Compressor(setting, dictionary)
    return sum(len(compressor.compress(payload)[2]) for payload in payloads)
