"""The order of records on Python's heap, as a policy has it: what the compiled arena has in the links of its records.

`Line` is one queue, for LRU and FIFO, who are not asked; `Queues` are several, with a policy that is asked.  Both hold
the tier's table, and answer to the same names:

    table               the mapping from key to entry that hits read, without a lock; given, it outlives the policy
    note(key)           note a hit; atomic; the key may have left
    admit(key, size)    a record of that size is about to be put: tells the policy
    insert(key, entry, size, deadline)   put it, after `admit`; it is not there
    remove(key)         take an entry out and return it, None if there is none
    adopt()             what was inserted until now, without `admit`, comes from another policy
    leave()             evict, and return the keys and entries: one at least, none if there is none
    table_bytes()       memory of all this, without keys and entries
    clear()             forget everything
    iter()              all keys, about in the order in which they leave

All but reads of `table` and `note` are called under the store's lock.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

from tiered.eviction.policy import GHOST_SHARE, QUEUES, USE_NEW, USE_WORTH, USES_MAX, Policy, counts
from tiered.eviction.sketch import Sketch

HITS_MAX = 1024
"""So many hits are remembered until something is put; earlier ones are forgotten then."""
_RECORD_BYTES = 112
"""A record's state in its queue: a tuple and its numbers."""


class Line:
    """One queue: the oldest leaves.

    An `OrderedDict` is the table and the order at once: its `move_to_end` runs in C and is atomic, so hits need no
    lock.  A plain dict re-inserting its keys would be smaller, but finding its first key gets slower with every
    deletion at the front.
    """

    def __init__(self, policy: Policy, table: OrderedDict[Any, Any]) -> None:
        self.table = table
        self.note: Callable[[Any], object] = self.table.__contains__ if policy.hit_to[0] < 0 else self.table.move_to_end

    def admit(self, key: Any, size: int) -> None:
        """Nothing to ask."""

    def insert(self, key: Any, entry: Any, size: int, deadline: int) -> None:
        """Put an entry, the newest."""
        self.table[key] = entry

    def remove(self, key: Any) -> Any:
        """Take an entry out; None if there is none."""
        return self.table.pop(key, None)

    def adopt(self) -> None:
        """Nothing to ask."""

    def fit(self) -> None:
        """Nothing is remembered."""

    def leave(self) -> list[tuple[Any, Any]]:
        """Evict the oldest."""
        return [self.table.popitem(last=False)] if self.table else []

    def table_bytes(self) -> int:
        """Memory of the table itself: slots, links, and the index from slots to links."""
        return sys.getsizeof(self.table)

    def clear(self) -> None:
        """Forget everything."""
        self.table.clear()

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self.table))


class Drawn:
    """Keys, of which a number stands for each: a list, and the way back."""

    def __init__(self) -> None:
        self._keys: list[Any] = []
        self._places: dict[Any, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: Any) -> None:
        """One more."""
        self._places[key] = len(self._keys)
        self._keys.append(key)

    def remove(self, key: Any) -> None:
        """One less; the last one takes its place."""
        place, last = self._places.pop(key), self._keys.pop()
        if place < len(self._keys):
            self._keys[place] = last
            self._places[last] = place

    def drawn(self, number: int) -> Any:
        """The key that a number stands for; there is one."""
        return self._keys[number % len(self._keys)]

    @property
    def memory_bytes(self) -> int:
        """Memory of the list and of the way back."""
        return sys.getsizeof(self._keys) + sys.getsizeof(self._places) + 32 * len(self._keys)


class Queues:
    """Several queues, and the policy that is asked.

    A hit that is to move a record, or count in it, takes several steps, and nobody holds a lock: so it is only
    remembered, in a list of bounded length, and done before the policy is asked the next time.
    """

    hits_max: int | None = HITS_MAX

    def __init__(
        self, policy: Policy, table: OrderedDict[Any, Any], capacity_bytes: int, seed: int | None = None
    ) -> None:
        from random import Random  # Not at the top: it takes a while to import, and so would the package.

        self.policy = policy
        self.capacity_bytes = capacity_bytes
        self.table = table
        self._hits: deque[Any] = deque(maxlen=self.hits_max)
        self.note: Callable[[Any], object] = self._hits.append
        self._chance = Random(seed).random
        self._sketch = Sketch() if policy.sketched else None
        self._queues: list[OrderedDict[Any, tuple[int, int, int]]] = [OrderedDict() for _ in range(QUEUES)]
        self._bytes = [0] * QUEUES
        self._queue_hits = [0] * QUEUES
        self._uses_new = USE_NEW if policy.sparing else 0
        self._keys = Drawn() if policy.picks else None
        self._entering: tuple[int, int] | None = None  # Of what was there: where to, and with how many uses.
        self._left: list[Any] = []

    # What the tier does

    def admit(self, key: Any, size: int) -> None:
        """Ask the policy; of a key that is there already this is a use, and it stays in its queue."""
        self._do_hits()
        queue = self._queue_of(key)
        if queue is None:
            self.policy.enter(self, hash(key), size)
            self._entering = None
        else:
            self._use(key)
            queue = self._queue_of(key) or 0
            self._entering = queue, self._queues[queue][key][1]

    def insert(self, key: Any, entry: Any, size: int, deadline: int) -> None:
        """Put an entry where the policy has said."""
        queue, uses = self._entering or (self.policy.entering, self._uses_new)
        self._queues[queue][key] = size, uses, deadline
        self._bytes[queue] += size
        if self._keys is not None:
            self._keys.add(key)
        self.table[key] = entry

    def remove(self, key: Any) -> Any:
        """Take an entry out; None if there is none."""
        queue = self._queue_of(key)
        if queue is None:
            return None
        self._take(queue, key)
        return self.table.pop(key)

    def adopt(self) -> None:
        """Have the policy distribute over its queues what is in the first."""
        self.policy.adopt(self)

    def leave(self) -> list[tuple[Any, Any]]:
        """Evict whom the policy chooses."""
        self._do_hits()
        if self.table:
            self.policy.leave(self)
        left = [(key, self.table.pop(key)) for key in self._left]
        self._left.clear()
        return left

    def fit(self) -> None:
        """Have what is remembered fit the capacity, which may be smaller than it was."""
        if self._sketch is not None:
            self._sketch.fit(0, self.ghost_bytes)
        self.policy.fit(self.ghost_bytes)

    def table_bytes(self) -> int:
        """Memory of the queues, of what the policy remembers, and of the table."""
        queues = sum(map(sys.getsizeof, self._queues)) + len(self.table) * _RECORD_BYTES
        sketch = self._sketch.memory_bytes if self._sketch else 0
        drawn = self._keys.memory_bytes if self._keys else 0
        return sys.getsizeof(self.table) + queues + sketch + drawn + self.policy.memory_bytes

    def clear(self) -> None:
        """Forget everything but what the policy remembers."""
        self._hits.clear()
        self._left.clear()
        for queue in self._queues:
            queue.clear()
        self._bytes = [0] * QUEUES
        self._keys = Drawn() if self.policy.picks else None
        self._entering = None
        self.table.clear()

    def __iter__(self) -> Iterator[Any]:
        self._do_hits()
        return iter([key for queue in self._queues for key in queue])

    def _take(self, queue: int, key: Any) -> None:
        self._bytes[queue] -= self._queues[queue].pop(key)[0]
        if self._keys is not None:
            self._keys.remove(key)

    def _queue_of(self, key: Any) -> int | None:
        return next((number for number, queue in enumerate(self._queues) if key in queue), None)

    def _do_hits(self) -> None:
        hits = self._hits
        while hits:
            try:
                self._use(hits.popleft())
            except IndexError:
                break  # Another thread's hit has pushed the last one out.

    def _use(self, key: Any) -> None:
        number = self._queue_of(key)
        if number is None:
            return
        self._queue_hits[number] += 1
        if self._sketch is not None:
            self._sketch.add(hash(key))
        queue, policy = self._queues[number], self.policy
        if policy.uses_max:
            size, uses, deadline = queue[key]
            if not policy.sparing:
                queue[key] = size, min(uses + 1, policy.uses_max), deadline
            elif counts(uses, self._chance()):
                queue[key] = size, min(uses + USE_WORTH, USES_MAX), deadline
        to = policy.hit_to[number]
        if to >= 0:
            state = queue.pop(key)
            self._queues[to][key] = state
            self._bytes[number] -= state[0]
            self._bytes[to] += state[0]

    # What the policy does (`policy.Records`)

    def __len__(self) -> int:
        return len(self.table)

    def queue_bytes(self, queue: int) -> int:
        """Bytes of the records in a queue."""
        return self._bytes[queue]

    def queue_hits(self, queue: int) -> int:
        """Hits on records in a queue."""
        return self._queue_hits[queue]

    def oldest(self, queue: int) -> tuple[int, int, int, int] | None:
        """Fingerprint, bytes, uses and deadline of the oldest of a queue; None if it is empty."""
        for key, (size, uses, deadline) in self._queues[queue].items():
            return hash(key), size, uses, deadline
        return None

    def shift(self, queue: int, to: int, uses: int) -> None:
        """Make the oldest of a queue the newest of another, or of the same, with so many uses."""
        if not self._queues[queue]:
            return
        key, (size, _, deadline) = self._queues[queue].popitem(last=False)
        self._queues[to][key] = size, uses, deadline
        self._bytes[queue] -= size
        self._bytes[to] += size

    def drop(self, queue: int) -> None:
        """Evict the oldest of a queue."""
        for key in self._queues[queue]:
            self._take(queue, key)
            self._left.append(key)
            break

    def pick(self, number: int) -> tuple[int, int, int, int] | None:
        """What `oldest` gives, of a record that a random number stands for, as long as none comes or goes."""
        if not self._keys:
            return None
        key = self._keys.drawn(number)
        size, uses, deadline = self._queues[self._queue_of(key) or 0][key]
        return hash(key), size, uses, deadline

    def drop_picked(self, number: int) -> None:
        """Evict the record that a number stands for."""
        if self._keys:
            key = self._keys.drawn(number)
            self._take(self._queue_of(key) or 0, key)
            self._left.append(key)

    def age_picked(self, number: int) -> None:
        """Have the record that a number stands for lose one of its uses."""
        if self._keys:
            key = self._keys.drawn(number)
            queue = self._queues[self._queue_of(key) or 0]
            size, uses, deadline = queue[key]
            queue[key] = size, max(uses - 1, 0), deadline

    @property
    def ghost_bytes(self) -> int:
        """Memory that the policy may take for what it remembers of records that have left."""
        return self.capacity_bytes // GHOST_SHARE

    def see(self, fingerprint: int) -> None:
        """Count an access in the sketch."""
        if self._sketch is not None:
            self._sketch.fit(len(self.table), self.ghost_bytes)
            self._sketch.add(fingerprint)

    def seen(self, fingerprint: int) -> int:
        """How often that was accessed lately, as the sketch has it."""
        return 0 if self._sketch is None else self._sketch.estimate(fingerprint)
