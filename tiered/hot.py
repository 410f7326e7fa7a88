"""The hot tier: values in memory, within a byte budget, leaving by a policy.

Entries are of four kinds, told apart by their class alone so that a hit costs no more:

    str bytes int float bool None    immutable values, kept as they are
    Packed and its siblings          encoded values (`bytes` subclasses), decoded at each read
    Expiring                         one of the above with a deadline

A `bytes` subclass without attributes is invisible to the garbage collector and takes
no more than the bytes do; a tuple or an object around the payload would cost 70 bytes
more and a visit by every full collection.

Accounting: an entry costs what the allocator hands out for key and entry (sizes
rounded up to 16 bytes, and 16 more above 512 bytes, where malloc takes over), and the
table costs what the policy says.  Locking: everything here is called under the
store's lock, except reads of `table` and `hit`, which are atomic.
"""

from __future__ import annotations

from sys import getsizeof
from typing import Any, NamedTuple

from tiered import codec
from tiered.eviction import POLICIES
from tiered.expiry import Deadlines

VALUE_SHARE_MAX = 8
"""A value larger than the budget divided by this is served, but not kept."""
EVICTIONS_PER_CALL_MAX = 4096
"""What one call evicts at most; the rest follows with the next calls."""
_TABLE_REVIEW = 256


class Packed(bytes):
    """A value encoded with msgpack."""

    __slots__ = ()


class PackedSurrogate(bytes):
    """A value encoded with msgpack, with lone surrogates in it."""

    __slots__ = ()


class PackedArray(bytes):
    """A NumPy array."""

    __slots__ = ()


class Expiring(NamedTuple):
    """An entry with a deadline in milliseconds since the epoch."""

    entry: Any
    deadline: int


_CLASSES = {codec.MSGPACK: Packed, codec.MSGPACK_SURROGATE: PackedSurrogate, codec.NDARRAY: PackedArray}
DECODERS = {packed: codec.DECODERS[number] for number, packed in _CLASSES.items()}
_PACKED_MARKS = frozenset((*range(0x80, 0xA0), *range(0xC7, 0xCA), *range(0xD4, 0xD9), *range(0xDC, 0xE0)))
"""First bytes of msgpack's maps, arrays and extension types: what is not an immutable scalar."""


def entry_of(number: int, payload: bytes) -> Any:
    """The entry that keeps a payload hot.  Raises ValueError if it cannot be decoded."""
    packed = _CLASSES.get(number)
    if packed is None or (number == codec.MSGPACK and payload[0] not in _PACKED_MARKS):
        return codec.decode(number, payload)
    return packed(payload)


def value_of(entry: Any) -> Any:
    """The value that an entry without deadline stands for."""
    decode = DECODERS.get(entry.__class__)
    return entry if decode is None else decode(entry)


def _allocated(size: int) -> int:
    return (size + 15) & ~15 if size <= 512 else (size + 31) & ~15


def key_cost(key: Any) -> int:
    """Bytes the allocator gives for a key."""
    if key.__class__ is tuple:
        return _allocated(getsizeof(key) + 16) + sum(map(key_cost, key))
    return _allocated(getsizeof(key))


def cost(key: Any, entry: Any) -> int:
    """Bytes the allocator gives for a key and its entry."""
    size = getsizeof(key) if key.__class__ is not tuple else key_cost(key)
    total = (size + 15) & ~15
    if entry.__class__ is Expiring:
        total += 192  # The tuple, its deadline, and its place among the deadlines.
        entry = entry.entry
    return total + _allocated(getsizeof(entry))


class HotTier:
    """Values in memory."""

    def __init__(self, policy: str, budget_bytes: int) -> None:
        self.policy = POLICIES[policy]()
        self.table = self.policy.table
        self.hit = self.policy.hit
        self.budget_bytes = budget_bytes
        self.entry_bytes = 0
        self.evictions = 0
        self.deadlines = Deadlines()
        self._table_bytes = self.policy.table_bytes()
        self._review = _TABLE_REVIEW

    @property
    def used_bytes(self) -> int:
        """Memory of all entries and the table."""
        return self.entry_bytes + self._table_bytes

    def put(self, key: Any, entry: Any, deadline: int) -> None:
        """Keep an entry, evicting others over the budget; one too large for it is not kept."""
        old = self.table.get(key)
        if old is not None or key in self.table:
            self._drop(key, old)
        if deadline:
            entry = Expiring(entry, deadline)
        size = cost(key, entry)
        if size * VALUE_SHARE_MAX > self.budget_bytes:
            self.policy.remove(key)
            return
        self.policy.insert(key, entry)
        self.entry_bytes += size
        if deadline:
            self.deadlines.add(key, deadline)
        self._review -= 1
        if not self._review:
            self._review = _TABLE_REVIEW
            self._table_bytes = self.policy.table_bytes()
        if self.entry_bytes + self._table_bytes > self.budget_bytes:
            self.shrink()

    def _drop(self, key: Any, entry: Any) -> None:
        """Account for an entry that leaves."""
        self.entry_bytes -= cost(key, entry)
        if entry.__class__ is Expiring:
            self.deadlines.discard(key, entry.deadline)

    def shrink(self) -> bool:
        """Evict down to the budget; False if more is left than one call may evict."""
        victim = self.policy.victim
        for _ in range(EVICTIONS_PER_CALL_MAX):
            if self.entry_bytes + self._table_bytes <= self.budget_bytes:
                return True
            try:
                self._drop(*victim())
            except KeyError:
                self.entry_bytes = 0
                return True
            self.evictions += 1
            if not self.evictions & 0xFF:
                self._table_bytes = self.policy.table_bytes()
        return False

    def discard(self, key: Any) -> None:
        """Forget a key."""
        if key in self.table:
            self._drop(key, self.policy.remove(key))

    def expire(self, now_ms: int, limit: int) -> int:
        """Forget up to `limit` keys whose deadline has passed; returns how many were due."""
        due = self.deadlines.due(now_ms, limit)
        for key in due:
            entry = self.table.get(key)
            if entry.__class__ is Expiring and entry.deadline <= now_ms:
                self.entry_bytes -= cost(key, self.policy.remove(key))
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
