"""Views: the whole store as it was at one moment, read-only.

A view refers to what was there and copies nothing: the write buffers, of which the active one
keeps for it what later writes replace, and an LMDB read transaction (`moment`).  It
never waits for a checkpoint and holds none up.  What it keeps counts: buffers that
the store has let go of against `memory`, up to a share of it; and pages of the cold tier that checkpoints
would use again stay as they are, so that the file grows by what is rewritten meanwhile (`stats()`:
`disk_free_bytes`).  Both end with the view, by `close` or by age.

Time stands still too: what had not expired when the view was opened is there.  Reads
go past the hot tier and leave it as it is.  Any number of threads may use one view,
one at a time does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from tiered import keys, ranges
from tiered.errors import ClosedError, ConfigError, ForkedError, ViewExpiredError
from tiered.handle import Handle
from tiered.journal import Dirty
from tiered.mapping import ABSENT, AGE_SECONDS_MAX, RangedMapping
from tiered.moment import Moment, Page
from tiered.sub import SubView
from tiered.write_buffer import WriteBuffer

K = TypeVar("K")
V = TypeVar("V")
R = TypeVar("R")


class View(RangedMapping[K, V]):
    """A read-only mapping at one moment; made by `Store.view`.

    Raises `ViewExpiredError` once it was open for longer than `max_age` seconds or kept
    more than five sixteenths of the store's memory, `ClosedError` after `close`.
    """

    def __init__(self, handle: Handle, max_age: float = AGE_SECONDS_MAX) -> None:
        if isinstance(max_age, bool) or not isinstance(max_age, (int, float)) or not max_age > 0:
            raise ConfigError(f"max_age={max_age!r} is not a number of seconds above 0")
        engine = handle._engine
        engine.refuse_reentry()
        self.handle = handle
        self._engine = engine
        self._lock = threading.RLock()
        self._ended = ""
        self._readings = (
            0  # Of the thread that has the lock; a handler of signals, or a finalizer, may end the view in one.
        )
        self._forked = False
        self._max_age = max_age
        with engine.lock:
            engine.check_readable()
            self._opened_at = engine.clock.monotonic()
            self._moment = Moment(engine, stays=True)
            engine.keep_view(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a view is of one moment in one process: pickle the store, and make a view of it there")

    @property
    def buffers(self) -> tuple[WriteBuffer, ...]:
        """The write buffers that it keeps."""
        return self._moment.buffers

    @property
    def order_bytes(self) -> int:
        """What it keeps beside them: their keys in order."""
        return self._moment.order_bytes

    @property
    def age_seconds(self) -> float:
        """How long ago it was opened."""
        return self._engine.clock.monotonic() - self._opened_at

    def overdue(self, now: float) -> bool:
        """Whether it is older than it may be."""
        return not self._ended and now - self._opened_at > self._max_age

    def end(self, reason: str) -> None:
        """Let go of everything; later reads raise and give the reason.  Under the store's lock."""
        with self._lock:
            if not self._ended and not self._forked:
                self._ended = reason
                if not self._readings:
                    self._moment.close()
                self._engine.drop_view(self)

    def abandon(self) -> None:
        """In a forked child: every read raises `ForkedError`."""
        self._forked = True
        self._lock = threading.RLock()  # Another thread may have held it at the fork.
        self._moment.abandon()

    def _check(self) -> None:
        engine = self._engine
        if self._forked:
            raise ForkedError(engine.directory, "a view opened before fork; open the store and a view in the child")
        self.handle._engine.check_readable()  # The handle may be closed, and its engine not.
        if self._ended == "closed":
            raise ClosedError(engine.directory, "the view is closed")
        if self._ended:
            raise ViewExpiredError(engine.directory, f"the view has ended: {self._ended}; open another")
        if self.overdue(engine.clock.monotonic()):
            raise ViewExpiredError(engine.directory, f"the view is older than max_age={self._max_age:g}; open another")

    def _read(self, step: Callable[..., R], *args: Any) -> R:
        with self._lock:
            before = self._readings
            try:
                self._readings = before + 1
                self._check()
                return step(*args)
            finally:
                self._readings = before
                if self._ended and not before:
                    self._moment.let_go()

    def _find(self, encoded: bytes) -> Dirty | None:
        return self._read(self._moment.find, keys.stored(encoded), encoded)

    def _value(self, key: Any, promote: bool = True) -> Any:
        encoded = keys.encode(key)
        found = self._find(encoded)
        return ABSENT if found is None else self._engine.value_of(keys.stored(encoded), found)

    def __contains__(self, key: object) -> bool:
        return self._find(keys.encode(key)) is not None

    def ttl(self, key: K) -> float | None:
        """Seconds that the key had left to live at this moment, None for ever.  KeyError if it is absent."""
        found = self._find(keys.encode(key))
        if found is None:
            raise KeyError(key)
        return (found.deadline - self._moment.now_ms) / 1000 if found.deadline else None

    def __len__(self) -> int:
        # The store's lock first, as everywhere.
        with self._engine.lock:
            dirty = self._moment.dirty()
        return self._read(self._moment.count, dirty)

    def _iterate(self, bounds: ranges.Range, what: str) -> Iterator[Any]:
        return ranges.shown(self._engine, self._page, bounds, what)

    def records(self) -> Iterator[tuple[Any, Dirty]]:
        """All keys in order with their records as they are kept: codec, payload, deadline in milliseconds or 0."""
        for encoded, found in ranges.items(self._page, ranges.Range(), True):
            yield self._engine.key_of(encoded), found

    def _page(self, start: bytes, stop: bytes | None, reverse: bool, values: bool) -> Page:
        self._moment.put_in_order()
        return self._read(self._moment.page, start, stop, reverse, values)

    def sub(self, *prefix: Any) -> SubView[Any, V]:
        """As `Store.sub`, at this moment."""
        return SubView(self, prefix)

    def close(self) -> None:
        """Let go of everything.  Again is allowed and does nothing."""
        with self._engine.lock:
            self.end("closed")

    def __enter__(self) -> View[K, V]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = self._ended or f"{self.age_seconds:.1f} s old"
        return f"<tiered.View of {str(self._engine.directory)!r}: {state}>"
