"""The memory of a store over time: what is accounted beside what the system says of the process.

Locking: samples are taken by ticks, one at a time; reading them copies them first.
"""

from __future__ import annotations

from collections import deque

SAMPLE_SECONDS = 10.0
SAMPLES_MAX = 360
SAMPLES_MIN = 8


class Watch:
    """Samples of the last hour, ten seconds apart."""

    def __init__(self, rss_anon_bytes: int) -> None:
        self.rss_at_open = rss_anon_bytes
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX)

    def due(self, now: float) -> bool:
        """Whether it is time for another sample."""
        return not self._samples or now - self._samples[-1][0] >= SAMPLE_SECONDS

    def add(self, now: float, accounted_bytes: int, rss_anon_bytes: int) -> None:
        """Take a sample."""
        self._samples.append((now, rss_anon_bytes - accounted_bytes))

    def drift(self) -> tuple[int, float]:
        """By how much measured memory outgrew what is accounted, and over how many seconds; (0, 0.0) with few samples.

        The lowest difference of the later half less that of the earlier one: peaks that pass do not count.
        """
        samples = list(self._samples)
        half = len(samples) // 2
        if len(samples) < SAMPLES_MIN:
            return 0, 0.0
        early, late = (min(beyond for _, beyond in part) for part in (samples[:half], samples[half:]))
        return late - early, samples[-1][0] - samples[0][0]
