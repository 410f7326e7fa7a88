"""Time, passed in so that schedules, deadlines and races are tested without sleeping.

Deadlines are whole milliseconds since the Unix epoch.  A store's time never goes
backwards: the largest value seen is kept in its `meta` and handed to `advance` at
open, so a wall clock set back cannot bring an expired key to life again.  The price: until the wall
clock has caught up, time stands still, and nothing expires; `behind_ms` says by how much.
"""

from __future__ import annotations

import time


class Clock:
    """The system's clocks."""

    def __init__(self) -> None:
        self._floor_ms = 0

    def now_ms(self) -> int:
        """Wall time in milliseconds, never less than any value returned or advanced to before."""
        now = time.time_ns() // 1_000_000
        if now < self._floor_ms:
            return self._floor_ms
        self._floor_ms = now
        return now

    def advance(self, floor_ms: int) -> None:
        """Never report less than `floor_ms` from here on."""
        self._floor_ms = max(self._floor_ms, floor_ms)

    def wall_ms(self) -> int:
        """What the system's clock shows, in milliseconds."""
        return time.time_ns() // 1_000_000

    def behind_ms(self) -> int:
        """How long time stands still, since the system's clock is behind what was seen before; 0 if it is not."""
        return max(0, self._floor_ms - self.wall_ms())

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin, for intervals."""
        return time.monotonic()


class ManualClock(Clock):
    """A clock that moves only when told to."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        super().__init__()
        self._now_ms = now_ms
        self._seconds = 0.0

    def now_ms(self) -> int:
        self._floor_ms = max(self._floor_ms, self._now_ms)
        return self._floor_ms

    def wall_ms(self) -> int:
        return self._now_ms

    def set_back(self, seconds: float) -> None:
        """Set the wall clock back."""
        self._now_ms -= round(seconds * 1000)

    def monotonic(self) -> float:
        return self._seconds

    def sleep(self, seconds: float) -> None:
        """Move both clocks on by `seconds`."""
        self._seconds += seconds
        self._now_ms += round(seconds * 1000)
