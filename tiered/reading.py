"""Reading one store: what of a read the hot tier cannot answer by itself (`hot`).

A hit takes no lock.  In the compiled arena it is one C function, which nothing interrupts; in Python one lookup in the
hot tier's table and one note in its order, each atomic in CPython with its interpreter lock, and where the
entry leaves between the two, the value is simply read again from below.  Most reads of what is cold are C, too
(compiled/loads.c), and then these methods are their twins, which define them and do what is out of the ordinary.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from tiered import codec, keys
from tiered.handle import Handle
from tiered.hot import Hits, HotTier
from tiered.journal import Dirty
from tiered.mapping import keys_of
from tiered.writing import UNSET

K = TypeVar("K")
V = TypeVar("V")

_UNSET = UNSET
_ENCODE_KEY = keys.encode
CHUNK_RECORDS = 1000


class Reads(Hits, Handle, Generic[K, V]):
    """What `Store` inherits to be read key by key."""

    def _has(self, key: Any) -> bool:
        return self._live(keys.encode(key))[1] is not None

    def _live(self, encoded: bytes) -> tuple[Any, Dirty | None]:
        """Where a key was looked for last, and its record unless it expired."""
        engine = self._engine
        engine.check_readable()
        where, found = engine.find(keys.stored(encoded), encoded)
        if found is not None and 0 < found.deadline <= engine.clock.now_ms():
            return where, None
        return where, found

    def _load(self, key: K, default: Any = _UNSET) -> Any:
        """The value of a key that is not hot or has a deadline; if it is absent, `default`, else KeyError."""
        engine = self._engine
        tier = self._tier
        if tier is not None and tier.expiring:
            value = self._unexpired(tier, key)
            if value is not _UNSET:
                return value
        encoded = _ENCODE_KEY(key)
        stored_key = encoded if len(encoded) <= keys.STORED_BYTES_EXACT else keys.stored(encoded)
        generation = engine.generation
        engine.check_readable()
        where, found = engine.find(stored_key, encoded)
        counters = engine.counters
        if found is None or 0 < found.deadline <= engine.clock.now_ms():
            counters.misses += 1
            if default is _UNSET:
                raise KeyError(key)
            return default
        if where is None:
            counters.cold_hits += 1
        else:
            counters.buffer_hits += 1
        value = engine.value_of(stored_key, found)
        engine.promote(key, stored_key, where, generation, found)
        if engine.warming is not None and where is None:
            engine.warm(1)
        return value

    def _unexpired(self, tier: HotTier, key: Any) -> Any:
        """The value of a key that is hot and alive, else `_UNSET`; forgets it if it has expired."""
        engine = self._engine
        now_ms = engine.clock.now_ms()
        value = tier.get_at(key, now_ms, _UNSET)
        if value is not _UNSET:
            self._hits += 1
        elif 0 < (tier.deadline(key) or 0) <= now_ms and not engine.owned():
            with engine.lock:
                if 0 < (tier.deadline(key) or 0) <= now_ms and tier.discard(keys.canonical(key)):
                    engine.counters.expired_hot += 1
        return value

    def _glance(self, key: K, default: Any) -> Any:
        """The value of a key, or `default`, leaving the hot tier as it is."""
        engine, encoded = self._engine, keys.encode(key)
        engine.check_readable()
        value = self._glanced(key)
        if value is not _UNSET:
            return value
        where, found = self._live(encoded)
        if found is None:
            engine.counters.misses += 1
            return default
        engine.counters.cold_hits += where is None
        engine.counters.buffer_hits += where is not None
        return engine.value_of(keys.stored(encoded), found)

    def _glanced(self, key: K) -> Any:
        """The value of a key if it is hot, else `_UNSET`; counts as no use."""
        tier, engine = self._tier, self._engine
        peeked = None if tier is None else tier.peek(key)
        if peeked is None or 0 < peeked[2] <= engine.clock.now_ms():
            return _UNSET
        self._hits += 1
        return engine.value_of(b"", Dirty(peeked[0], peeked[2], b"", peeked[1]))

    def get_many(self, wanted: Iterable[K], *, promote: bool = True) -> dict[K, V]:
        """The values of those keys that exist, in the order asked for.  A thousand cold ones are read at one moment.

        With `promote=False` the hot tier stays as it is, as with `get`.
        """
        engine = self._engine
        engine.check_readable()
        names, found = list(keys_of(wanted)), dict[K, Any]()
        tier = self._tier
        if not promote:
            for key in names:
                keys.encode(key)  # Refuses what is no key, before it is hashed.
                found[key] = self._glanced(key)
            self._load_many([key for key in found if found[key] is _UNSET], found, engine.clock.now_ms(), False)
            return found
        collecting = gc.isenabled()
        try:
            gc.disable()  # Thousands of new containers, none of them garbage yet: it would walk them again and again.
            missing = names if tier is None else tier.get_many(names, found, _UNSET)
            if len(found) < len(names):  # Some were asked for twice, and are read once.
                missing = list(dict.fromkeys(missing))
            if missing and tier is not None and tier.expiring:
                for key in missing:
                    found[key] = self._unexpired(tier, key)
                missing = [key for key in missing if found[key] is _UNSET]
            self._hits += len(names) - len(missing)
            if not missing:
                return found
            # In slices, between which other threads have their turn.
            slices = [missing[at : at + CHUNK_RECORDS] for at in range(0, len(missing), CHUNK_RECORDS)]
            missing = [key for part in slices for key in self._loaded(part, found)]
            if missing:
                self._load_many(missing, found, engine.clock.now_ms())
            return found
        finally:
            if collecting:
                gc.enable()

    def _load_many(self, missing: list[K], found: dict[K, Any], now_ms: int, promote: bool = True) -> None:
        """Put the values of keys that are not hot into `found`, which has a place for each, or take that away."""
        if not missing:
            return
        engine = self._engine
        counters = engine.counters
        generation = engine.generation
        located: list[tuple[K, bytes, Any, Dirty]] = []
        names = list(dict.fromkeys(missing))
        encoded = list(map(_ENCODE_KEY, names))
        stored_keys = list(map(keys.stored, encoded)) if max(map(len, encoded)) > keys.STORED_BYTES_EXACT else encoded
        for key, stored_key, where, dirty in zip(
            names, stored_keys, *engine.find_many(stored_keys, encoded), strict=True
        ):
            if dirty is not None and not 0 < dirty.deadline <= now_ms:
                located.append((key, stored_key, where, dirty))
                if where is None:
                    counters.cold_hits += 1
                else:
                    counters.buffer_hits += 1
            else:
                found.pop(key, None)
        counters.misses += len(missing) - len(located)
        packed = [(key, dirty.payload) for key, _, _, dirty in located if dirty.codec == codec.MSGPACK]
        try:
            values = codec.decode_documents([payload for _, payload in packed])
        except ValueError:
            packed, values = [], []  # One by one, so that the error names it.
        found.update(zip([key for key, _ in packed], values, strict=True))
        for key, stored_key, _, dirty in located:
            if found.get(key, _UNSET) is _UNSET:
                found[key] = engine.value_of(stored_key, dirty)
        if promote:
            engine.promote_many(located, generation)
            if engine.warming is not None:
                engine.warm(len(located))
