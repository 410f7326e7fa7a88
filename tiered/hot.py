"""The hot tier: values in memory, within a byte budget, leaving by a policy.

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
store's lock, except reads of `table` and `hit`, which are atomic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from sys import getsizeof
from typing import Any

from tiered import codec
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
_PACKED_MARKS = frozenset((*range(0x80, 0xA0), *range(0xC7, 0xCA), *range(0xD4, 0xD9), *range(0xDC, 0xE0)))
"""First bytes of msgpack's maps, arrays and extension types: what is not an immutable scalar."""


def entry_of(number: int, payload: bytes) -> Any:
    """The entry that keeps a payload hot.  Raises ValueError if it cannot be decoded."""
    if number == codec.MSGPACK and payload[0] in _PACKED_MARKS:
        return bytearray(payload)
    packed = _CLASSES.get(number)
    if packed is None or packed is Packed:
        return codec.decode(number, payload)
    return packed(payload)


def payload_of(entry: Any) -> tuple[int, bytes]:
    """The codec id and payload that an entry without deadline was made from."""
    number = _NUMBERS.get(entry.__class__)
    return codec.encode(entry) if number is None else (number, entry)


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


EXPIRING_BYTES = 192
"""The tuple, its deadline, and its place among the deadlines."""


class HotTier:
    """Values in memory."""

    def __init__(self, policy: str, budget_bytes: int) -> None:
        self.policy = POLICIES[policy]()
        self.table = self.policy.table
        self.hit = self.policy.hit
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

    def put(self, key: Any, entry: Any, deadline: int) -> None:
        """Keep an entry, evicting others over the budget; one too large for it is not kept."""
        if key in self.table:
            self.discard(key)
        self.put_new(key, entry, deadline)

    def put_new(self, key: Any, entry: Any, deadline: int) -> None:
        """`put` for a key that is not there."""
        if deadline:
            entry = (entry, deadline)
        size = cost(key, entry)
        if size * VALUE_SHARE_MAX > self.budget_bytes:
            return
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

    def put_many(self, keys: Sequence[Any], entries: Sequence[Any], deadline: int) -> None:
        """`put` for each of many keys; evicts once, at the end."""
        if deadline:
            for key, entry in zip(keys, entries, strict=True):
                self.put(key, entry, deadline)
            return
        table, insert, largest = self.table, self._insert, self.budget_bytes // VALUE_SHARE_MAX
        try:
            for key, entry in zip(keys, entries, strict=True):
                if key in table:
                    self.discard(key)
                size = cost(key, entry)
                if size <= largest:
                    insert(key, entry)
                    self.entry_bytes += size
        except BaseException:
            self.clear()  # As in `put_new`.
            raise
        self._table_bytes = self.policy.table_bytes()
        while self.used_bytes > self.budget_bytes and not self.shrink():
            pass

    def _drop(self, key: Any, entry: Any) -> None:
        """Account for an entry that leaves."""
        self.entry_bytes -= cost(key, entry)
        if entry.__class__ is Expiring:
            self.deadlines.discard(key, entry[1])

    def shrink(self) -> bool:
        """Evict down to the budget; False if more is left than one call may evict."""
        victim, count = self._victim, cost
        room = self.budget_bytes - self._table_bytes
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

    def discard(self, key: Any) -> None:
        """Forget a key."""
        if key in self.table:
            try:
                self._drop(key, self.policy.remove(key))
            except BaseException:
                self.clear()
                raise

    def expire(self, now_ms: int, limit: int) -> int:
        """Forget up to `limit` keys whose deadline has passed; returns how many were due."""
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

    def recount(self) -> int:
        """The bytes of all entries, counted anew: what `entry_bytes` must equal."""
        return sum(cost(key, entry) for key, entry in list(self.table.items()))
