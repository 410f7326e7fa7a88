"""Save points: is a checkpoint due?

A save point `(seconds, changes)` is met when at least `changes` writes were made
and at least `seconds` have passed since the last checkpoint began; any one of them
suffices (the `save` directive of redis.conf).
"""

from __future__ import annotations

from collections.abc import Sequence

SavePoints = Sequence[tuple[int, int]]


def is_due(points: SavePoints, seconds_since: float, changes_since: int) -> bool:
    """Whether any save point is met.  Nothing is ever due without changes."""
    return changes_since > 0 and any(
        changes_since >= changes and seconds_since >= seconds for seconds, changes in points
    )
