"""`Store`, the mapping: it forwards to the engine, and answers hits by itself (`reading`).

Closing and forking take the hot tier away (`handle`), so that every later call comes to the engine, or to what stands
in for it.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from tiered import codec, keys, ranges, record
from tiered.advisor import Advice, advice_of
from tiered.check import Finding, check_engine
from tiered.clock import Clock
from tiered.config import SETTINGS, setting_named
from tiered.errors import ConfigError
from tiered.events import Callback
from tiered.handle import Ended, Inherited
from tiered.journal import Dirty, record_bytes
from tiered.mapping import ABSENT, AGE_SECONDS_MAX, ATTEMPTS, ONE, Pairs, RangedMapping, keys_of, pairs_of
from tiered.moment import passing
from tiered.opening import named_errors
from tiered.reading import CHUNK_RECORDS, Reads
from tiered.sharing import TEMPORARY
from tiered.snapshot import SnapshotInfo
from tiered.stats import Explanation, MemoryStats, Stats, memory_stats_of, state_name, stats_of
from tiered.sub import Sub
from tiered.tiers import Where
from tiered.transaction import Transaction, added, edited, transacted
from tiered.view import View
from tiered.writing import UNSET, Batch, Change, collect

if TYPE_CHECKING:
    from tiered.doctor import Diagnosis
    from tiered.memoize import Memoizer

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

_UNSET = UNSET
_ENCODE, _ENCODE_KEY = codec.encode, keys.encode
_COMPRESSIONS = {0: "none", 1: "zstd", 2: "zlib"}


class Store(Reads[K, V], RangedMapping[K, V], MutableMapping[K, V]):
    """A mapping larger than memory that survives restarts; made by `tiered.open`.

    Keys are `str`, `bytes`, `int` and tuples of them.  Any number of threads may use one
    store.  Every method may raise `ClosedError`, `ForkedError`, `CorruptionError`; every
    method that writes also `ReadOnlyError`, `PoisonedError`, `StoreFullError`.
    """

    # Reading; what does it is inherited

    if TYPE_CHECKING:

        def __getitem__(self, key: K) -> V: ...
        @overload  # type: ignore[override]
        def get(self, key: K, /, *, promote: bool = True) -> V | None: ...
        @overload
        def get(self, key: K, /, default: V | T, *, promote: bool = True) -> V | T: ...
        def get(self, key: K, /, default: Any = None, *, promote: bool = True) -> Any: ...

    def _value(self, key: Any, promote: bool = True) -> Any:
        return self.get(key, ABSENT, promote=promote)

    # Writing

    def set(self, key: K, value: V, ttl: float | timedelta | None = _UNSET) -> None:
        """Write a value.  Without `ttl` the store's `default_ttl` holds; `ttl=None` means for ever.

        Replaces value and time to live.  Raises `TypeError` for a value that could not be
        read back exactly, `KeyTooLongError`, `ValueTooLargeError`.
        """
        engine = self._engine
        encoded = _ENCODE_KEY(key)
        number, payload = _ENCODE(value)
        deadline = 0 if ttl is _UNSET and engine.settings.default_ttl is None else engine.deadline_after(ttl)
        plain: Any = key if key.__class__ is str else keys.canonical(cast(keys.Key, key))
        if self._owned():
            engine.refuse_reentry()
        with self._lock:
            sequence = engine.put(plain, encoded, number, payload, deadline)
        if engine.attended:
            engine.acknowledged(sequence)

    __setitem__ = set

    def _put_packed(self, key: K, number: int, payload: bytes, deadline: int) -> None:
        """As `set`, of a value that is encoded already, until `deadline`, in milliseconds of the epoch, 0 for ever."""
        engine = self._engine
        encoded = _ENCODE_KEY(key)
        engine.refuse_reentry()
        with self._lock:
            sequence = engine.put(keys.canonical(cast(keys.Key, key)), encoded, number, payload, deadline)
        engine.acknowledged(sequence)

    def __delitem__(self, key: K) -> None:
        if self._remove(key) is None:
            raise KeyError(key)

    def _remove(self, key: K, unless_moved: tuple[Where, int] | None = None) -> Dirty | None:
        """Delete a key's record and return it; None if there is none, or not where it was in that generation."""
        engine = self._engine
        encoded = keys.encode(key)
        plain: Any = keys.canonical(cast(keys.Key, key))
        size = record_bytes(encoded, b"")
        engine.refuse_reentry()
        with self._lock:
            while True:
                engine.check_writable()
                where, found = self._live(encoded)
                if found is None or (unless_moved is not None and unless_moved != (where, engine.generation)):
                    return None
                if not engine.reserve(size, frees=True):
                    break
            sequence = engine.write([Change(plain, encoded, True)])
        engine.acknowledged(sequence)
        return found

    @overload
    def pop(self, key: K) -> V: ...
    @overload
    def pop(self, key: K, default: V | T) -> V | T: ...
    def pop(self, key: K, default: Any = _UNSET) -> Any:
        """Remove a key and return its value, atomically; `default` if it is absent, else KeyError."""
        engine = self._engine
        encoded = keys.encode(key)
        engine.check_writable()
        while True:
            generation = engine.generation
            where, found = self._live(encoded)
            if found is None:
                break
            # Decoded first, since that may fail, and without the lock, since it may be the user's code.
            value = engine.value_of(keys.stored(encoded), found)
            if self._remove(key, (where, generation)) is not None:
                return value
        if default is _UNSET:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[K, V]:
        """Remove and return the last key in key order and its value; KeyError if there is none."""
        while True:
            last = next(iter(self.keys(reverse=True)), _UNSET)
            if last is _UNSET:
                raise KeyError("popitem(): the store is empty")
            value = self.pop(last, ABSENT)
            if value is not ABSENT:
                return last, value

    @overload
    def setdefault(self: Store[K, T | None], key: K, default: None = None) -> T | None: ...
    @overload
    def setdefault(self, key: K, default: V) -> V: ...
    def setdefault(self, key: K, default: Any = None) -> Any:
        """The value under `key`, which is `default` from now on if there was none; atomic."""
        value = self.get(key, ABSENT)
        if value is not ABSENT:
            return value
        number, payload = codec.encode(default)
        deadline = self._engine.deadline_after(_UNSET)
        return self._change(key, lambda found: (number, payload, deadline) if found is None else None)

    def _change(self, key: K, decide: Callable[[Dirty | None], tuple[int, bytes, int] | None]) -> Any:
        """Replace a record by what `decide` makes of it, codec, payload and deadline, or None to leave it.

        Returns the value then.  `decide` runs under the lock, perhaps several times.
        """
        engine = self._engine
        encoded = keys.encode(key)
        plain = keys.canonical(cast(keys.Key, key))
        sequence = 0
        engine.refuse_reentry()
        with self._lock:
            while True:
                engine.check_writable()
                found = self._live(encoded)[1]
                decided = decide(found)
                if decided is None or not engine.reserve(record_bytes(encoded, decided[1])):
                    break
            if decided is not None:
                number, payload, deadline = decided
                sequence = engine.put(plain, encoded, number, payload, deadline)
                found = Dirty(number, deadline, b"", payload)
        if decided is not None:
            engine.acknowledged(sequence)
        assert found is not None
        return engine.value_of(keys.stored(encoded), found)

    def incr(self, key: K, by: V = ONE) -> V:
        """Add `by` to a number, 0 if absent, atomically; returns the sum.  Keeps the time to live.

        Raises `TypeError` if the value there is not an int or float.
        """

        def add(found: Dirty | None) -> tuple[int, bytes, int]:
            number, payload = codec.encode(added(found, key, by))
            return number, payload, self._engine.deadline_after(_UNSET) if found is None else found.deadline

        return self._change(key, add)  # type: ignore[no-any-return]

    def touch(self, key: K, ttl: float | timedelta | None) -> bool:
        """Give a key another time to live, in seconds from now, None for ever; False if it is absent."""
        return self._redeadline(key, self._engine.deadline_after(ttl))[0]

    def persist(self, key: K) -> bool:
        """Take a key's time to live away; False if it is absent or had none."""
        existed, before = self._redeadline(key, 0)
        return existed and before > 0

    def _redeadline(self, key: K, deadline: int) -> tuple[bool, int]:
        engine = self._engine
        encoded = keys.encode(key)
        engine.refuse_reentry()
        with self._lock:
            while True:
                engine.check_writable()
                found = self._live(encoded)[1]
                if found is None:
                    return False, 0
                if found.deadline == deadline:
                    return True, deadline
                if not engine.reserve(record_bytes(encoded, found.payload)):
                    break
            plain = keys.canonical(cast(keys.Key, key))
            sequence = engine.put(plain, encoded, found.codec, found.payload, deadline)
        engine.acknowledged(sequence)
        return True, found.deadline

    def ttl(self, key: K) -> float | None:
        """Seconds left to live, None for ever.  KeyError if the key is absent."""
        found = self._live(keys.encode(key))[1]
        if found is None:
            raise KeyError(key)
        return (found.deadline - self._engine.clock.now_ms()) / 1000 if found.deadline else None

    def set_many(self, pairs: Mapping[K, V] | Iterable[tuple[K, V]], ttl: float | timedelta | None = _UNSET) -> None:
        """Write many values, in chunks of up to 1,000, each of them whole or not at all.  Takes endless iterators."""
        limit = max(self._engine.share_bytes // 4, 1)
        source = iter(pairs.items() if isinstance(pairs, Mapping) else pairs)
        while (batch := collect(source, CHUNK_RECORDS, limit)).keys:
            self._put_batch(batch, ttl)

    def _put_batch(self, batch: Batch, ttl: float | timedelta | None) -> None:
        engine = self._engine
        deadline = engine.deadline_after(ttl)
        engine.refuse_reentry()
        with self._lock:
            engine.reserve(batch.bytes)
            sequence = engine.put_many(batch, deadline)
        if engine.attended:
            engine.acknowledged(sequence)

    def delete_many(self, unwanted: Iterable[K]) -> int:
        """Delete many keys, in chunks as `set_many`; returns how many of them existed."""
        engine = self._engine
        source = iter(keys_of(unwanted))
        removed = 0
        while chunk := {keys.encode(key): keys.canonical(cast(keys.Key, key)) for key in islice(source, CHUNK_RECORDS)}:
            engine.refuse_reentry()
            with self._lock:
                engine.check_writable()
                engine.reserve(sum(record_bytes(encoded, b"") for encoded in chunk), frees=True)
                there = [encoded for encoded in chunk if self._live(encoded)[1] is not None]
                if not there:
                    continue
                sequence = engine.write([Change(chunk[encoded], encoded, True) for encoded in there])
            removed += len(there)
            engine.acknowledged(sequence)
        return removed

    def update(self, other: Pairs[K, V] = (), /, **named: V) -> None:
        """Write all of a mapping, of an iterable of pairs, and of keyword arguments; in chunks as `set_many`."""
        self.set_many(pairs_of(other))
        if named:
            self.set_many(cast("dict[K, V]", named))

    def __ior__(self, other: Pairs[K, V]) -> Store[K, V]:
        self.update(other)
        return self

    def clear(self) -> None:
        """Delete everything, at once and atomically."""
        engine = self._engine
        engine.refuse_reentry()
        with self._lock:
            engine.check_writable()
            sequence = engine.clear()
        engine.acknowledged(sequence)

    # Iteration; in key order, over all tiers, leaving the hot tier as it is

    def __len__(self) -> int:
        with passing(self._engine) as moment:
            return moment.count(moment.dirty())

    def _iterate(self, bounds: ranges.Range, what: str) -> Iterator[Any]:
        engine = self._engine
        for item in ranges.shown(engine, ranges.live(engine), bounds, what):
            if self._engine is not engine:
                self._engine.check_readable()  # The handle was closed meanwhile, though its engine may not be.
            yield item

    # Many operations, one moment

    def transaction(self) -> Transaction[K, V]:
        """A transaction, as a context manager: reads and writes on it take place at once when it ends, or not at all.

        Raises `ConflictError`, at the latest at its end, if something it read was changed by another.
        """
        return Transaction(self)

    def transact(self, run: Callable[[Transaction[K, V]], T], attempts: int = ATTEMPTS) -> T:
        """What `run(txn)` returns, called with a transaction, again after each conflict.

        Raises `ConflictError` after so many attempts.
        """
        return transacted(self, run, attempts)

    def edit(self, key: K, default: V = _UNSET) -> contextlib.AbstractContextManager[V]:
        """A value to be changed in place in a `with` block, written back at its end if it changed, keeping its TTL.

        `default` is stored and given if the key is absent, else KeyError.  `ConflictError`
        if another wrote the key meanwhile; `TypeError` for what cannot be changed in place.
        """
        return edited(self, key, default)

    def view(self, max_age: float = AGE_SECONDS_MAX) -> View[K, V]:
        """A read-only mapping of the store as it is now, to be closed soon; costs the same whatever is dirty.

        Past `max_age` seconds, or five sixteenths of `memory` kept, it raises `ViewExpiredError`.
        """
        return View(self, max_age)

    def sub(self, *prefix: Any) -> Sub[Any, V]:
        """A mapping over the keys that are tuples beginning with `prefix`, which its own keys leave out."""
        return Sub(self, prefix)

    def memoize(
        self,
        ttl: float | timedelta | None = _UNSET,
        key: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        jitter: float = 0.1,
        early: float = 0.0,
    ) -> Memoizer:
        """A decorator that keeps a function's results in the store; one caller computes, others wait for it.

        A result lives for `ttl` seconds or up to the share `jitter` less; `key` makes a key of arguments that are no
        values.  `name` is the function's in the store.  With `early`, as a rule 1.0, one caller computes anew before a
        result expires.  An exception is given to all who wait, and not kept.
        """
        from tiered.memoize import Memoizer, Options

        return Memoizer(self, self._memoized, Options(ttl, key, name, jitter, early), awaited=False)

    # Durability

    def save(self) -> None:
        """Checkpoint now, and return when the cold tier holds everything written before the call."""
        self._engine.save()

    def sync(self) -> None:
        """Return when everything written before the call is on the disk."""
        engine = self._engine
        engine.check_writable()
        assert engine.journal is not None
        engine.sync(engine.journal.last)

    def refresh(self) -> None:
        """See everything that a writer in another process was told is written before this call.

        For `flag="r"`, which otherwise does so in the background, about every tenth of a
        second; a handle of the process that writes always does, and this has nothing to do.
        Costs about 3 µs for each record that is new.
        """
        engine = self._engine
        engine.check_readable()
        engine.refuse_reentry()
        engine.refresh()

    def compact(self) -> None:
        """Rewrite the cold tier into as little disk as it needs, while reads and writes go on.

        Needs room for the new copy beside the old one.
        """
        self._engine.compact()

    def snapshot(
        self, file: str | os.PathLike[str], progress: Callable[[int, int], object] | None = None
    ) -> SnapshotInfo:
        """Write the whole store, as it is at one moment, into one file; returns when it is on the disk.

        Everything acknowledged before the call is in it; reads and writes go on.  Of a store that is open
        for writing in another process, or crashed, it is the last checkpoint: `as_of` says of when.
        An older snapshot of that name is replaced, at once or not at all.  `progress(done, total)` is told of
        records.  Raises `NotAStoreError` for a name that is taken by anything else, `CorruptionError` for a
        damaged record, `StoreFullError`; there is no new file then, and the store is unharmed.
        """
        return self._engine.snapshot(file, progress)

    # Looking inside

    def config_get(self, name: str = "*") -> dict[str, object]:
        """The settings whose names match, with `*` and `?` as wildcards."""
        names = fnmatch.filter(sorted(SETTINGS), name)
        if not names:
            setting_named(name)
        return {name: getattr(self._engine.settings, name) for name in names}

    def config_set(self, name: str, value: object) -> None:
        """Change a setting from now on; all but `memory` are remembered in the store.  Raises `ConfigError`.

        Values may be text as in Redis: "128mb", "900 1 60 1000", "yes".  `compression` holds for what is
        compressed from the next checkpoint on.
        """
        setting = setting_named(name)
        if not setting.runtime:
            raise ConfigError(
                f"{name} cannot change while the store is open: {setting.fixed}; close it and open it with {name}=…"
            )
        parsed = setting.parse(value)
        engine = self._engine
        engine.check_readable()
        engine.refuse_reentry()
        with self._lock:
            if setting.remembered:
                engine.check_writable()
                sequence = engine.put_setting(name, parsed)
            engine.configure(name, parsed)
        engine.settle(name)
        if setting.remembered:
            engine.acknowledged(sequence)

    def stats(self) -> Stats:
        """Figures of the store now.  Costs as much as `len`."""
        with named_errors(self._engine.directory):
            return stats_of(self._engine, len(self), self._hits)

    def memory_stats(self) -> MemoryStats:
        """Where the store's memory is."""
        self._engine.check_readable()
        return memory_stats_of(self._engine)

    def explain(self, key: K) -> Explanation:
        """Where a key's record is and what it costs, without promoting it.  KeyError if it is absent."""
        encoded = keys.encode(key)
        where, found = self._live(encoded)
        if found is None:
            raise KeyError(key)
        engine = self._engine
        stored_key = keys.stored(encoded)
        hot = engine.hot.peek(key)
        data = cold = None
        if where is None:  # Else the cold tier has an older record at most, which is nobody's any more.
            with engine.cold.read() as reader:
                data = reader.newest(stored_key)
            cold = None if data is None else record.unpack(stored_key, data)
        places = {"hot": hot is not None, "write buffer": where is not None, "cold": cold is not None}
        return Explanation(
            tiers=tuple(tier for tier, there in places.items() if there),
            dirty=where is not None,
            ttl_seconds=(found.deadline - engine.clock.now_ms()) / 1000 if found.deadline else None,
            codec=found.codec,
            payload_bytes=len(found.payload),
            hot_bytes=0 if hot is None else hot[3],
            stored_bytes=len(data) if data else 0,
            compression=_COMPRESSIONS[cold.compression] if cold else "",
            dictionary=cold.dictionary if cold else 0,
        )

    def advise(self) -> Advice:
        """Which hit ratio 1/8 to 8 times the memory would give, and how much is enough; of the reads so far.

        Raises `ConfigError` unless `advisor` is on.  Costs a few milliseconds.
        """
        self._engine.check_readable()
        return advice_of(self._engine)

    def doctor(self) -> list[Diagnosis]:
        """What will hurt if it stays as it is, each with evidence and advice; empty for a healthy store.

        Looks at figures only, of now and of the last hour, and costs as much as `stats`.
        """
        from tiered.doctor import diagnoses

        return diagnoses(self._engine, self.stats(), self.memory_stats())

    def reclaim(self) -> int:
        """Checkpoint, evict everything, and give the memory back to the system; returns by how much the process shrank.

        Nothing is lost: what is read afterwards is cold at first.
        """
        engine = self._engine
        engine.check_readable()
        engine.refuse_reentry()
        return engine.reclaim()

    def check(self) -> list[Finding]:
        """What is wrong across the tiers; empty when all is well.  Reads every record."""
        self._engine.check_readable()
        return check_engine(self._engine)

    def on(self, kind: str, callback: Callback) -> Callable[[], None]:
        """Call `callback(event)` from now on for each event of a kind; call what this returns to end it.

        Kinds: "checkpoint", "eviction", "expiry", "snapshot"; `events.Event` says what each tells.  It is called in the
        background thread, a second or so after it happened, many at once as one event, and for the last time by the
        last `close`, before the store is closed; never under a lock of the store, which it may use.  What it raises is
        logged.  Until it returns, all background work of the program waits.  Raises `ConfigError`.
        """
        self._engine.check_readable()
        return self._engine.listen(kind, callback)

    def tick(self) -> float:
        """Do what the background thread does now and then; returns the seconds until there may be more to do."""
        self._engine.check_readable()
        return self._engine.tick()

    @property
    def path(self) -> str:
        """The store's directory."""
        return str(self._engine.directory)

    def __repr__(self) -> str:
        engine = self._engine
        if isinstance(engine, (Ended, Inherited)):
            return f"<tiered.Store {self.path!r} {engine.word}>"
        return (
            f"<tiered.Store {str(engine.directory)!r} {state_name(engine)}: "
            f"{engine.state.records:,} records checkpointed, "
            f"{sum(len(buffer.positions) for buffer in engine.buffers):,} dirty, {engine.hot.used_bytes:,} bytes hot>"
        )


def open(
    path: str | os.PathLike[str] = TEMPORARY,
    flag: str = "c",
    *,
    lock_timeout: float = 0.0,
    allow_network: bool = False,
    clock: Clock | None = None,
    **settings: Any,
) -> Store[Any, Any]:
    """Open the store in the directory `path`; without one, a temporary store, removed when it is closed.

    `flag` is as in `dbm`: "c" create if missing, "w" existing, "r" existing and
    read-only beside any writer, a tenth of a second behind it, "n" always new.  `settings` are those of `config`:
    memory, spill, low_watermark, hot_value_share, promotion, warm_start, advisor, cycle_seconds, eviction,
    object_share, object_entries_max, object_value_bytes_max, durability, save, compression, default_ttl, disk,
    disk_full, snapshot_save, snapshot_dir, snapshot_keep, helper.  One process at a time may have a store open
    for writing; others get `LockedError`, after `lock_timeout` seconds.  Opened again in the same process, it is
    another handle on the same engine, and settings that differ from those in force are a `ConfigError`.
    `allow_network` opens on a network file system, too, which promises nothing; `clock` is for tests.

    Raises `NotAStoreError`, `LockedError`, `CorruptionError`, `FormatError`,
    `ReadOnlyError`, `UnsupportedError`, `ConfigError`.  Opens in a few milliseconds,
    more if a crashed program left a journal to be applied.
    """
    return Store(path, flag, lock_timeout=lock_timeout, allow_network=allow_network, clock=clock, **settings)
