"""The hot tier on Python's heap: the twin of the compiled arena, which defines what that does (`hot`).

What it keeps of a value, and what that costs: `entries`.  Locking: everything here is called under the
store's lock, except `get`, `get_at` and `get_many`: they read `table` and `note`, each atomic; where an
entry leaves between the two, the value is not there.

What this cannot do is keep the process within the budget: the heap fragments, so that under churn of mixed sizes the
process takes more than is accounted.  The arena can.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from tiered import codec, keys
from tiered.entries import (
    OBJECT_BYTES,
    Expiring,
    Packed,
    allocated,
    cost,
    entry_of,
    key_cost,
    payload_of,
    refuse_unhashable,
    spread_hash,
    value_of,
)
from tiered.eviction import policy_named
from tiered.eviction.order import Line, Queues
from tiered.expiry import Deadlines

VALUE_SHARE_MAX = 8
"""A value larger than the budget divided by this is served, but not kept."""
EVICTIONS_PER_CALL_MAX = 1000
"""What one call evicts at most; the rest follows with the next calls."""
_TABLE_REVIEW = 256


class HeapTier:
    """Values in memory, as Python objects."""

    name = "heap"
    in_budget = False

    def __init__(self, policy: str, budget_bytes: int) -> None:
        self._shards: Any = None
        self._budget_bytes = budget_bytes
        self.entry_bytes = 0
        self.evictions = 0
        self.evicted_bytes = 0
        self.deadlines = Deadlines()
        self._review = _TABLE_REVIEW
        self.table: OrderedDict[Any, Any] = OrderedDict()
        self._begin(policy)

    def _begin(self, policy: str) -> None:
        self.policy = policy
        chosen = policy_named(policy)
        asked = chosen.asked
        self.order = Queues(chosen, self.table, self._budget_bytes) if asked else Line(chosen, self.table)
        self.sample(self._shards)
        self._table_bytes = self.order.table_bytes()

    def evict_by(self, policy: str) -> None:
        """Another policy, from now on, which takes over the entries in the order that they have."""
        entries = [(key, self.table[key]) for key in self.order]
        self.order.clear()
        self.entry_bytes = 0
        self._begin(policy)
        for key, entry in entries:  # Which a new policy puts into its first queue.
            size = cost(key, entry)
            self.order.insert(key, entry, size, entry[1] if entry.__class__ is Expiring else 0)
            self.entry_bytes += size
        self.order.adopt()
        self._table_bytes = self.order.table_bytes()
        self.shrink()

    @property
    def budget_bytes(self) -> int:
        """What it may use; `shrink` enforces a smaller one."""
        return self._budget_bytes

    @budget_bytes.setter
    def budget_bytes(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        if isinstance(self.order, Queues):
            self.order.capacity_bytes = budget_bytes

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
        return iter(self.order)

    def hit(self, key: Any) -> None:
        """Note a use.  KeyError if the key is not there."""
        self.table[key]
        self.note(key)

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
            self.note(key)
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
            self.note(key)
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
            deque(map(self.note, names), maxlen=0)
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
                self.note(key)
            except KeyError:
                pass  # Gone meanwhile; the value is as good.
        if packed:
            # A key may have been asked for twice, and have gone in between.
            packed = [key for key in dict.fromkeys(packed) if found[key].__class__ is Packed]
            values = codec.decode_documents([found[key] for key in packed])
            found.update(zip(packed, values, strict=True))
        return missing

    def sample(self, shards: Any) -> None:
        """Tell the advisor's sample of uses from now on; None: nobody."""
        self._shards = shards
        self.note = self.order.note if shards is None else self._sampled

    def _sampled(self, key: Any) -> None:
        self.order.note(key)
        shards = self._shards
        if shards is not None:
            shards.touch(spread_hash(key), cost(key, self.table[key]), True)

    def note_read(self, key: Any, size: int) -> None:
        """Tell it of a read that was answered elsewhere."""
        if self._shards is not None:
            self._shards.touch(spread_hash(key), key_cost(key) + allocated(size + OBJECT_BYTES), True)

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
        try:
            entry = entry_of(number, payload)
        except ValueError:
            self.discard(key)
            return False  # Nothing here can read it.
        if deadline:
            entry = (entry, deadline)
        size = cost(key, entry)
        if self._shards is not None:
            self._shards.touch(spread_hash(key), size, False)
        if size * VALUE_SHARE_MAX > self.budget_bytes:
            self.discard(key)
            return False
        try:
            self._insert(key, entry, size)
            self.entry_bytes += size
            if deadline:
                self.deadlines.add(key, deadline)
        except BaseException:
            self.clear()  # Ctrl-C: half an entry would be accounted for wrongly for ever.
            raise
        self._review -= 1
        if not self._review:
            self._review = _TABLE_REVIEW
            self._table_bytes = self.order.table_bytes()
        if self.entry_bytes + self._table_bytes > self.budget_bytes:
            self.shrink()
        return True

    def _insert(self, key: Any, entry: Any, size: int) -> None:
        """Put an entry in order, in place of what was there; others leave before, for room for it."""
        order = self.order
        order.admit(key, size)
        self.discard(key)
        if self.entry_bytes + size + self._table_bytes > self.budget_bytes:
            self.shrink(self.budget_bytes - size)
        order.insert(key, entry, size, entry[1] if entry.__class__ is Expiring else 0)

    def put_many(
        self, names: Sequence[Any], numbers: Sequence[int], payloads: Sequence[bytes], deadline: int, evictions_max: int
    ) -> None:
        """`put` for each of many keys, until so many others were evicted for them; the rest is not kept."""
        most = self.evictions + evictions_max
        for key, number, payload in zip(names, numbers, payloads, strict=True):
            if self.evictions >= most:
                break
            self.put(key, number, payload, deadline)

    def shrink(self, to_bytes: int | None = None) -> bool:
        """Evict down to the budget, or to less; False if more is left than one call may evict."""
        self.order.fit()
        leave, count = self.order.leave, cost
        room = (self.budget_bytes if to_bytes is None else min(to_bytes, self.budget_bytes)) - self._table_bytes
        most = self.evictions + EVICTIONS_PER_CALL_MAX
        try:
            while self.entry_bytes > room:
                if self.evictions >= most:
                    self._table_bytes = self.order.table_bytes()
                    return False
                left = leave()
                if not left:
                    if not self.table:  # It is the tables, which never get smaller.
                        self.clear()
                        self._begin(self.policy)
                    return True
                for key, entry in left:
                    size = count(key, entry)
                    self.entry_bytes -= size
                    self.evicted_bytes += size
                    self.evictions += 1
                    if entry.__class__ is Expiring:
                        self.deadlines.discard(key, entry[1])
        except BaseException:
            self.clear()
            raise
        return True

    def discard(self, key: Any) -> bool:
        """Forget a key; whether it was there."""
        if key not in self.table:
            return False
        try:
            entry = self.order.remove(key)
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
                    self.entry_bytes -= cost(key, self.order.remove(key))
        except BaseException:
            self.clear()
            raise
        return len(due)

    def clear(self) -> None:
        """Forget everything."""
        self.order.clear()
        self.deadlines = Deadlines()
        self.entry_bytes = 0
        self._table_bytes = self.order.table_bytes()

    def wrong(self) -> str:
        """What does not add up, "" if all does."""
        entries = list(self.table.items())
        counted = sum(cost(key, entry) for key, entry in entries)
        if counted != self.entry_bytes:
            return f"accounted {self.entry_bytes}, counted {counted}"
        expiring = sum(entry.__class__ is Expiring for _, entry in entries)
        return "" if expiring == len(self.deadlines) else f"{len(self.deadlines)} deadlines, {expiring} entries"


_NOWHERE = HeapTier("lru", 0)
"""Where a hit is noted whose tier has just been taken away."""


class Hits:
    """Answers reads of what is hot; what is not, or has a deadline, goes to `_load` and `_has`."""

    _hits = 0
    _table: Mapping[Any, Any]
    _heap: HeapTier

    def _loaded(self, keys: list[Any], found: dict[Any, Any]) -> list[Any]:
        """Those of the keys that are left when all that is compiled for reading cold values has done its part."""
        return keys

    @property
    def _tier(self) -> HeapTier | None:
        """The tier that answers, None if none does."""
        return None if self._heap is _NOWHERE else self._heap

    @_tier.setter
    def _tier(self, tier: HeapTier | None) -> None:
        # Emptied, the table goes first: a hit that finds it so asks the engine.
        self._table = {} if tier is None else tier.table
        self._heap = _NOWHERE if tier is None else tier

    def _load(self, key: Any, default: Any = ...) -> Any:
        raise NotImplementedError

    def _has(self, key: Any) -> bool:
        raise NotImplementedError

    def _glance(self, key: Any, default: Any) -> Any:
        raise NotImplementedError

    def __getitem__(self, key: Any) -> Any:
        try:
            entry = self._table[key]
            self._heap.note(key)
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
            self._heap.note(key)
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
