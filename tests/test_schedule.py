"""Save points: when a checkpoint is due."""

from __future__ import annotations

import pytest

from tiered.schedule import is_due

REDIS = ((3600, 1), (300, 100), (60, 10_000))


@pytest.mark.parametrize(
    ("points", "seconds", "changes", "due"),
    [
        ((), 10**9, 10**9, False),
        (REDIS, 0, 0, False),
        (REDIS, 10**9, 0, False),
        (REDIS, 59.9, 10**9, False),
        (REDIS, 60, 9_999, False),
        (REDIS, 60, 10_000, True),
        (REDIS, 299.9, 100, False),
        (REDIS, 300, 99, False),
        (REDIS, 300, 100, True),
        (REDIS, 3599.9, 1, False),
        (REDIS, 3600, 1, True),
        (((0, 1),), 0, 1, True),
        (((0, 0),), 10, 0, False),
        (((0, 1),), 10, 0, False),
        (((10, 5), (5, 50)), 7, 50, True),
        (((10, 5), (5, 50)), 7, 49, False),
    ],
)
def test_a_checkpoint_is_due_when_any_save_point_is_met(points, seconds, changes, due):
    assert is_due(points, seconds, changes) is due
