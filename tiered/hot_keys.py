"""The list of hot keys: saved at a clean close, read ahead at the next open.

    offset  bytes  field
    ------  -----  ---------------------------------------------
    0       8      b"TIEREDHK"
    8       4      version, 1
    12      4      bytes of the keys that follow
    16      4      CRC-32 of them
    20      ...    encoded key, its length (2 bytes), and so on; the one that would have left last is the last

Numbers are little-endian.  The list holds keys, no values: what is read ahead is what the cold tier holds by then, so a
list that is old, or of another time, costs a little work and is never wrong.  Hence it is not synced; it appears under
its name as a whole, and one that is damaged or missing is no list.  It takes a 16th of the memory, 64 MB at most, with
the keys that were hottest; as long as reading ahead lasts it is in memory, and counts against the budget.  It is read
from its end.  Who hardly read leaves the list as it was: what was written last says nothing of what will be read.

Reading ahead takes place in the background thread, in slices of a millisecond with pauses of nine, the hottest keys
first; and since a program that reads at full speed leaves that thread little of the interpreter's lock, each read that
misses meanwhile reads a few keys of the list ahead, too, as long as these are the hottest 32,768.  It never evicts: it
ends where the hot tier is nearly full.
A key that is hot already, or was written since (so that a write buffer has it), is left alone; and since it is done
under the store's lock, nothing is kept that another write or a checkpoint has made old.  In the end the keys are
touched once in the order in which they were hot, so that the hottest leaves last.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiered import files, keys
from tiered.arena import ArenaTier
from tiered.errors import StoreError
from tiered.log import LOG
from tiered.native import native

if TYPE_CHECKING:
    from tiered.engine import Engine
    from tiered.hot import HotTier
    from tiered.journal import Dirty

_HEADER = struct.Struct("<8sIII")
assert _HEADER.size == 20
_LENGTH = struct.Struct("<H")
_MAGIC, _VERSION = b"TIEREDHK", 1
MEMORY_SHARE, BYTES_MAX = 16, 64 << 20
KEY_BYTES_MAX = 1024
"""Longer ones are left out."""
READS_SHARE = 100
"""With fewer reads than one for so many hot keys a list stays as it was."""
FULL_SHARE = 0.9
"""Of the hot tier's budget: there reading ahead ends."""
SLICE_SECONDS, PAUSE_SECONDS = 0.001, 0.009
"""So it takes a tenth of the time, also where what is read ahead turns out to be of no use."""
HELPED_KEYS_MAX = 32_768
"""So many of the hottest keys are read ahead by those who miss."""
_TOGETHER = 32
_CHUNK_KEYS = 1000
_SLICE_STEPS_MAX = 64
"""With a clock that stands still."""


def save(path: Path, hot: HotTier, memory: int, reads: int) -> None:
    """Write down the keys that are hot, after so many reads; without any there is no list."""
    if reads * READS_SHARE < len(hot):
        return
    room = min(memory // MEMORY_SHARE, BYTES_MAX)
    chunks, size, place, more = deque[bytes](), 0, 0, True
    while more:
        encoded, place = hot.keys_from(place, _CHUNK_KEYS)
        more = place > 0
        chunks.append(b"".join(key + _LENGTH.pack(len(key)) for key in encoded if len(key) <= KEY_BYTES_MAX))
        size += len(chunks[-1])
        while size > room:
            size -= len(chunks.popleft())
    files.remove_leftovers(path)
    if not size:
        path.unlink(missing_ok=True)
        return
    checksum = 0
    for chunk in chunks:
        checksum = zlib.crc32(chunk, checksum)
    fresh = files.Replacement(path)
    try:
        fresh.write([_HEADER.pack(_MAGIC, _VERSION, size, checksum), *chunks])
        fresh.commit()
    finally:
        fresh.abandon()


def load(path: Path) -> bytes:
    """The keys of a list as they lie in it; b"" where there is none that is whole."""
    try:
        with path.open("rb") as file:
            data = file.read(_HEADER.size + BYTES_MAX + 1)
    except OSError:
        return b""
    if len(data) < _HEADER.size:
        return b""
    magic, version, size, checksum = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    whole = magic == _MAGIC and version == _VERSION and size == len(body) and checksum == zlib.crc32(body)
    return body if whole else b""


class Warming:
    """Reads ahead what a list names.  Some at a time, under the store's lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._body: bytes | None = None
        self._at = 0
        self._lengths = array("H")
        self._reading = True

    def step(self, engine: Engine) -> bool:
        """Go on for a slice; True if there is more to do."""
        if self._body is None:
            self._body = load(self._path)
            self._at = len(self._body)
        until = engine.clock.monotonic() + SLICE_SECONDS
        try:
            for _ in range(_SLICE_STEPS_MAX):
                if not (self._read(engine) if self._reading else self._touch(engine)):
                    return False
                if engine.clock.monotonic() >= until:
                    break
        except (StoreError, ValueError) as error:
            LOG.warning("%s: reading ahead ends: %s", engine.directory, error)  # A read of that key will raise it.
            return False
        return True

    def help(self, engine: Engine, misses: int) -> None:
        """Read a few keys ahead for each of so many reads that missed, once the list is there."""
        try:
            for _ in range(-(-misses // _TOGETHER)):
                if self._body is None or self.helped or not self._read(engine):
                    return
        except (StoreError, ValueError):
            pass  # The background thread meets it as well, and says so.

    @property
    def helped(self) -> bool:
        """Whether those who miss have done their part."""
        return not self._reading or len(self._lengths) >= HELPED_KEYS_MAX

    @property
    def used_bytes(self) -> int:
        """Memory of the list, and of what was noted of it."""
        return len(self._body or b"") + len(self._lengths) * self._lengths.itemsize

    def _next(self) -> list[bytes]:
        """Some of the keys that come next."""
        assert self._body is not None
        encoded = list[bytes]()
        while self._at > 0 and len(encoded) < _TOGETHER:
            end = self._at - _LENGTH.size
            (length,) = _LENGTH.unpack_from(self._body, end)
            self._lengths.append(length)
            self._at = end - length
            encoded.append(self._body[self._at : end])
        return encoded

    def _read(self, engine: Engine) -> bool:
        with engine.lock:
            if engine.closed:
                return False
            encoded = self._next()
            wanted = [(key, name) for key in encoded if (name := keys.decode(key)) not in engine.hot]
            if isinstance(engine.hot, ArenaTier):
                room = int(FULL_SHARE * engine.hot.budget_bytes)
                names = [name for _, name in wanted]
                engine.counters.prefetched += native.read_ahead(engine.hot, engine, names, room)
                # What is left is unusual, or the first of a dictionary.
                wanted = [(key, name) for key, name in wanted if name not in engine.hot]
            stored_keys = [keys.stored(key) for key, _ in wanted]
            records = engine.find_many(stored_keys, [key for key, _ in wanted])[1] if wanted else []
            found = [
                (name, stored_key, dirty)
                for (_, name), stored_key, dirty in zip(wanted, stored_keys, records, strict=True)
                if dirty is not None
            ]
            self._reading = bool(encoded) and self._keep(engine, found)
        return True

    def _keep(self, engine: Engine, found: Sequence[tuple[Any, bytes, Dirty]]) -> bool:
        """Under the lock: put what was read into the hot tier; False if it has room for no more."""
        hot, now_ms = engine.hot, engine.clock.now_ms()
        for name, stored_key, (number, deadline, _, payload) in found:
            if hot.used_bytes + len(payload) > FULL_SHARE * hot.budget_bytes:
                return False
            # What a buffer has was written since.
            if 0 < deadline <= now_ms or engine.dirty(stored_key) is not None:
                continue
            if hot.put(name, number, payload, deadline):
                engine.counters.prefetched += 1
        return True

    def _touch(self, engine: Engine) -> bool:
        """Note some of the keys as used, from where reading ended on: the hottest comes last."""
        assert self._body is not None
        with engine.lock:
            for length in self._lengths[: -_TOGETHER - 1 : -1]:
                end = self._at + length
                name = keys.decode(self._body[self._at : end])
                self._at = end + _LENGTH.size
                if name in engine.hot:
                    engine.hot.hit(name)
        del self._lengths[-_TOGETHER:]
        return len(self._lengths) > 0 and not engine.closed
