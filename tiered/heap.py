"""The hot tier on Python's heap: the twin of the compiled arena, which defines what that does (`hot`).

Entries are of four kinds, told apart by their class alone so that a hit costs no more:

    str bytes int float bool None     immutable values, kept as they are
    bytearray                         a value encoded with msgpack, decoded at each read
    PackedSurrogate, PackedArray      the same with lone surrogates; a NumPy array
    tuple                             (one of the above, its deadline in milliseconds)

No value that can be stored is a bytearray, and tuples are always encoded, so neither
is ever a value itself.  A bytearray is invisible to the garbage collector, and so is a
tuple of such things after its first pass, so that a collection does not walk millions of entries;
instances of a subclass of `bytes` would all be visited.

Accounting: an entry costs what the allocator hands out for key and entry (sizes
rounded up to 16 bytes, and 16 more above 512 bytes, where malloc takes over), and the
table costs what the policy says.  Locking: everything here is called under the
store's lock, except `get`, `get_at` and `get_many`: they read `table` and `hit`, each atomic; where an
entry leaves between the two, the value is not there.

What this cannot do is keep the process within the budget: the heap fragments, so that under churn of mixed sizes the
process takes more than is accounted.  The arena can.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from sys import getsizeof
from typing import Any

from tiered import codec, keys
from tiered.eviction import POLICIES
from tiered.expiry import Deadlines

VALUE_SHARE_MAX = 8
"""A value larger than the budget divided by this is served, but not kept."""
EVICTIONS_PER_CALL_MAX = 1000
"""What one call evicts at most; the rest follows with the next calls."""
_TABLE_REVIEW = 256


class PackedSurrogate(bytes):
    """A value encoded with msgpack, with lone surrogates in it."""

    __slots__ = ()


class PackedArray(bytes):
    """A NumPy array; its memory is shared by what reads give out, so it must not be writable."""

    __slots__ = ()


Packed = bytearray
Expiring: type[tuple[Any, int]] = tuple
_CLASSES = {codec.MSGPACK: Packed, codec.MSGPACK_SURROGATE: PackedSurrogate, codec.NDARRAY: PackedArray}
DECODERS: dict[type, Callable[[Any], Any]] = {packed: codec.DECODERS[number] for number, packed in _CLASSES.items()}
_NUMBERS: dict[type, int] = {packed: number for number, packed in _CLASSES.items()}
_PACKED_STARTS = frozenset(
    bytes((mark,)) for mark in (*range(0x80, 0xA0), *range(0xC7, 0xCA), *range(0xD4, 0xD9), *range(0xDC, 0xE0))
)
"""First bytes of msgpack's maps, arrays and extension types: what is not an immutable scalar."""


def is_packed(number: int, payload: bytes) -> bool:
    """Whether a payload is kept as it is, so that registered types and damage in it are met when it is read."""
    return number in _CLASSES and (number != codec.MSGPACK or payload[:1] in _PACKED_STARTS)


def entry_of(number: int, payload: bytes) -> Any:
    """The entry that keeps a payload hot.  Raises ValueError if it cannot be decoded."""
    return _CLASSES[number](payload) if is_packed(number, payload) else codec.decode(number, payload)


def payload_of(entry: Any) -> tuple[int, bytes]:
    """The codec id and payload that an entry without deadline was made from."""
    number = _NUMBERS.get(entry.__class__)
    return codec.encode(entry) if number is None else (number, entry)


def refuse_unhashable(*names: Any) -> None:
    """Raise the `TypeError` that says what keys are, for what does not hash and so is none."""
    for name in names:
        keys.encode(name)


def value_of(entry: Any) -> Any:
    """The value that an entry without deadline stands for."""
    decode = DECODERS.get(entry.__class__)
    return entry if decode is None else decode(entry)


def _allocated(size: int) -> int:
    return (size + 15) & ~15 if size <= 512 else (size + 31) & ~15


def _size(item: Any) -> int:
    """Size of a key's or an entry's object, always the same for the same object."""
    # A text that is not ASCII grows when somebody asks CPython for its UTF-8 form, after it was
    # accounted for; a fresh copy of it has not grown.
    return getsizeof(item + " ") if item.__class__ is str and not item.isascii() else getsizeof(item)


def key_cost(key: Any) -> int:
    """Bytes the allocator gives for a key."""
    if key.__class__ is tuple:
        return _allocated(getsizeof(key) + 16) + sum(map(key_cost, key))
    return _allocated(_size(key))


def cost(key: Any, entry: Any) -> int:
    """Bytes the allocator gives for a key and its entry."""
    # For ASCII what `key_cost` gives, without its calls: 49 bytes more than the text.
    total = (len(key) + 64) & ~15 if key.__class__ is str and key.isascii() else key_cost(key)
    kind = entry.__class__
    if kind is Expiring:
        total += EXPIRING_BYTES
        entry = entry[0]
        kind = entry.__class__
    if kind is Packed:
        # The object, and its buffer with a zero byte at the end.
        size = len(entry)
        return total + ((size + 80) & ~15 if size < 512 else (size + 96) & ~15)
    return total + _allocated(_size(entry))


def _hash(key: Any) -> int:
    """Of 32 bits, spread evenly, which those of ints are not: mixed as in "splitmix64" (Steele, Lea, Flood, 2014)."""
    mixed = (hash(key) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ mixed >> 27) >> 32


_OBJECT_BYTES = 64
EXPIRING_BYTES = 192
"""The tuple, its deadline, and its place among the deadlines."""


class HeapTier:
    """Values in memory, as Python objects."""

    name = "heap"
    in_budget = False

    def __init__(self, policy: str, budget_bytes: int) -> None:
        self.policy = POLICIES[policy]()
        self.table = self.policy.table
        self.hit: Callable[[Any], None] = self.policy.hit
        self._shards: Any = None
        self._insert = self.policy.insert
        self._victim = self.policy.victim
        self.budget_bytes = budget_bytes
        self.entry_bytes = 0
        self.evictions = 0
        self.evicted_bytes = 0
        self.deadlines = Deadlines()
        self._table_bytes = self.policy.table_bytes()
        self._review = _TABLE_REVIEW

    @property
    def used_bytes(self) -> int:
        """Memory of all entries and the table."""
        return self.entry_bytes + self._table_bytes

    # Its values that cannot change are objects anyway; documents are not kept decoded here.
    objects = object_bytes = object_hits = 0

    def keep_objects(self, share_bytes: int, entries_max: int, value_bytes_max: int) -> None:
        """Nothing: only the arena keeps documents decoded."""

    @property
    def expiring(self) -> int:
        """How many keys have a deadline."""
        return len(self.deadlines)

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, key: object) -> bool:
        return key in self.table

    def __iter__(self) -> Iterator[Any]:
        """All keys, the one that leaves first at the front."""
        return iter(list(self.table))

    def keys_from(self, place: int, most: int) -> tuple[list[bytes], int]:
        """Up to `most` of them, encoded, from a place on, 0 first; and the place to go on from, 0 at the end."""
        names = list(islice(self.table, place, place + most))
        return list(map(keys.encode, names)), place + most if place + most < len(self.table) else 0

    # Reading; without the lock

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of a key that has no deadline, else `default`; counts as a use."""
        try:
            entry = self.table[key]
            if entry.__class__ is Expiring:
                return default
            self.hit(key)
        except KeyError:
            return default
        except TypeError:
            refuse_unhashable(key)
            raise
        return value_of(entry)

    def get_at(self, key: Any, now_ms: int, default: Any) -> Any:
        """The value of a key whose deadline, if it has one, has not passed."""
        try:
            entry = self.table[key]
            if entry.__class__ is Expiring:
                entry, deadline = entry
                if deadline <= now_ms:
                    return default
            self.hit(key)
        except KeyError:
            return default
        except TypeError:
            refuse_unhashable(key)
            raise
        return value_of(entry)

    def get_many(self, names: list[Any], found: dict[Any, Any], absent: Any) -> list[Any]:
        """`get` for each of many keys, into `found`; returns those that are missing, which are `absent` there."""
        try:
            entries = list(map(self.table.__getitem__, names))
            deque(map(self.hit, names), maxlen=0)
            kinds = set(map(type, entries))
        except KeyError:
            kinds = set()
        except TypeError:
            refuse_unhashable(*names)
            raise
        if kinds <= codec.PLAIN_TYPES and kinds:
            found.update(zip(names, entries, strict=True))
            return []
        if kinds == {Packed}:
            found.update(zip(names, codec.decode_documents(entries), strict=True))
            return []
        packed: list[Any] = []
        missing: list[Any] = []
        for key in names:
            entry = self.table.get(key, absent)
            if entry is absent or entry.__class__ is Expiring:
                found[key] = absent
                missing.append(key)
                continue
            found[key] = entry
            if entry.__class__ is Packed:
                packed.append(key)
            elif entry.__class__ not in codec.PLAIN_TYPES:
                found[key] = value_of(entry)
            try:
                self.hit(key)
            except KeyError:
                pass  # Gone meanwhile; the value is as good.
        if packed:
            # A key may have been asked for twice, and have gone in between.
            packed = [key for key in dict.fromkeys(packed) if found[key].__class__ is Packed]
            values = codec.decode_documents([found[key] for key in packed])
            found.update(zip(packed, values, strict=True))
        return missing

    def sample(self, shards: Any) -> None:
        """Tell the advisor's sample of uses from now on; None: nobody.  Who keeps `hit` is to take it anew."""
        self._shards = shards
        self.hit = self.policy.hit if shards is None else self._sampled_hit

    def _sampled_hit(self, key: Any) -> None:
        self.policy.hit(key)
        shards = self._shards
        if shards is not None:
            shards.touch(_hash(key), cost(key, self.table[key]), True)

    def note_read(self, key: Any, size: int) -> None:
        """Tell it of a read that was answered elsewhere."""
        if self._shards is not None:
            self._shards.touch(_hash(key), key_cost(key) + _allocated(size + _OBJECT_BYTES), True)

    def deadline(self, key: Any) -> int | None:
        """The deadline of a key, 0 for none; None if the key is not there."""
        entry = self.table.get(key, Expiring)
        if entry is Expiring:
            return None
        return entry[1] if entry.__class__ is Expiring else 0

    def peek(self, key: Any) -> tuple[int, bytes, int, int] | None:
        """Codec id, payload, deadline of a key and the bytes that it takes; counts as no use."""
        entry = self.table.get(key, Expiring)
        if entry is Expiring:
            return None
        size, deadline = cost(key, entry), 0
        if entry.__class__ is Expiring:
            entry, deadline = entry
        number, payload = payload_of(entry)
        return number, bytes(payload), deadline, size

    # Writing; under the store's lock

    def put(self, key: Any, number: int, payload: bytes, deadline: int) -> bool:
        """Keep a value, evicting others over the budget; False if it is not kept, nor what was there."""
        self.discard(key)
        try:
            entry = entry_of(number, payload)
        except ValueError:
            return False  # Nothing here can read it.
        if deadline:
            entry = (entry, deadline)
        size = cost(key, entry)
        if self._shards is not None:
            self._shards.touch(_hash(key), size, False)
        if size * VALUE_SHARE_MAX > self.budget_bytes:
            return False
        try:
            self._insert(key, entry)
            self.entry_bytes += size
            if deadline:
                self.deadlines.add(key, deadline)
        except BaseException:
            self.clear()  # Ctrl-C: half an entry would be accounted for wrongly for ever.
            raise
        self._review -= 1
        if not self._review:
            self._review = _TABLE_REVIEW
            self._table_bytes = self.policy.table_bytes()
        if self.entry_bytes + self._table_bytes > self.budget_bytes:
            self.shrink()
        return True

    def put_many(self, names: Sequence[Any], numbers: Sequence[int], payloads: Sequence[bytes], deadline: int) -> None:
        """`put` for each of many keys."""
        for key, number, payload in zip(names, numbers, payloads, strict=True):
            self.put(key, number, payload, deadline)

    def shrink(self, to_bytes: int | None = None) -> bool:
        """Evict down to the budget, or to less; False if more is left than one call may evict."""
        victim, count = self._victim, cost
        room = (self.budget_bytes if to_bytes is None else min(to_bytes, self.budget_bytes)) - self._table_bytes
        try:
            for _ in range(EVICTIONS_PER_CALL_MAX):
                if self.entry_bytes <= room:
                    return True
                key, entry = victim()
                size = count(key, entry)
                self.entry_bytes -= size
                self.evicted_bytes += size
                self.evictions += 1
                if entry.__class__ is Expiring:
                    self.deadlines.discard(key, entry[1])
        except KeyError:
            return True  # Nothing is left to evict.
        except BaseException:
            self.clear()
            raise
        self._table_bytes = self.policy.table_bytes()
        return False

    def discard(self, key: Any) -> bool:
        """Forget a key; whether it was there."""
        if key not in self.table:
            return False
        try:
            entry = self.policy.remove(key)
            self.entry_bytes -= cost(key, entry)
            if entry.__class__ is Expiring:
                self.deadlines.discard(key, entry[1])
        except BaseException:
            self.clear()
            raise
        return True

    def discard_many(self, names: Iterable[Any]) -> None:
        """`discard` for each of many keys."""
        for key in names:
            self.discard(key)

    def expire(self, now_ms: int, limit: int) -> int:
        """Forget up to `limit` keys whose deadline's second is over; returns how many were due."""
        due = self.deadlines.due(now_ms, limit)
        try:
            for key in due:
                entry = self.table.get(key)
                if entry.__class__ is Expiring and entry[1] <= now_ms:
                    self.entry_bytes -= cost(key, self.policy.remove(key))
        except BaseException:
            self.clear()
            raise
        return len(due)

    def clear(self) -> None:
        """Forget everything."""
        self.policy.clear()
        self.deadlines = Deadlines()
        self.entry_bytes = 0
        self._table_bytes = self.policy.table_bytes()

    def wrong(self) -> str:
        """What does not add up, "" if all does."""
        entries = list(self.table.items())
        counted = sum(cost(key, entry) for key, entry in entries)
        if counted != self.entry_bytes:
            return f"accounted {self.entry_bytes}, counted {counted}"
        expiring = sum(entry.__class__ is Expiring for _, entry in entries)
        return "" if expiring == len(self.deadlines) else f"{len(self.deadlines)} deadlines, {expiring} entries"


class Hits:
    """Answers reads of what is hot; what is not, or has a deadline, goes to `_load` and `_has`."""

    _hits = 0
    _table: Mapping[Any, Any]
    _hit: Callable[[Any], None]
    _heap: HeapTier | None

    def _loaded(self, keys: list[Any], found: dict[Any, Any]) -> list[Any]:
        """Those of the keys that are left when all that is compiled for reading cold values has done its part."""
        return keys

    @property
    def _tier(self) -> HeapTier | None:
        """The tier that answers, None if none does."""
        return self._heap

    @_tier.setter
    def _tier(self, tier: HeapTier | None) -> None:
        # Emptied, the table goes first: a hit that finds it so asks the engine.
        self._table = {} if tier is None else tier.table
        if tier is not None:
            self._hit = tier.hit
        self._heap = tier

    def _load(self, key: Any, default: Any = ...) -> Any:
        raise NotImplementedError

    def _has(self, key: Any) -> bool:
        raise NotImplementedError

    def _glance(self, key: Any, default: Any) -> Any:
        raise NotImplementedError

    def __getitem__(self, key: Any) -> Any:
        try:
            entry = self._table[key]
            self._hit(key)
        except KeyError:
            return self._load(key)
        except TypeError:
            refuse_unhashable(key)
            raise
        if type(entry) is str or type(entry) is bytes:
            self._hits += 1
            return entry
        if entry.__class__ is Expiring:
            return self._load(key)
        self._hits += 1
        return value_of(entry)

    def get(self, key: Any, /, default: Any = None, *, promote: bool = True) -> Any:
        """The value under `key`, or `default`.

        With `promote=False` the hot tier stays as it is: what is cold is not promoted, what is hot not noted as used.
        """
        if not promote:
            return self._glance(key, default)
        # Not by the KeyError of a missing key: reading a registered type may raise one of its own.
        try:
            entry = self._table[key]
            self._hit(key)
        except KeyError:
            return self._load(key, default)
        except TypeError:
            refuse_unhashable(key)
            raise
        if entry.__class__ is Expiring:
            return self._load(key, default)
        self._hits += 1
        return value_of(entry)

    def __contains__(self, key: object) -> bool:
        try:
            if key in self._table and not isinstance(self._table.get(key), Expiring):
                return True
        except TypeError:
            refuse_unhashable(key)
            raise
        return self._has(key)
