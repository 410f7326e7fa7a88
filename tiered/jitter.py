"""Jitter: a number drawn anew each time, so that many stores don't do the same thing at the same moment."""

from __future__ import annotations

Bounds = tuple[float, float]


def drawn(bounds: Bounds) -> float:
    """A number between the two: Tmax − (Tmax − Tmin)·rand()."""
    from random import random  # Not at the top: it takes a while to import, and so would the package.

    least, most = bounds
    return most - (most - least) * random()
