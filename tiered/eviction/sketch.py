"""How often each of very many keys was used lately, estimated: the counters of TinyLFU.

A count-min sketch (Cormode and Muthukrishnan, 2005) of counters up to 15: a key has one in each of four rows, and was
used at most as often as the lowest of them says.  After `SAMPLE_FACTOR` uses for each record all are halved (Einziger,
Friedman and Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", 2017).  It has four counters in a row for each
record, and grows with them, up to its share of the budget.

The arena has one in C (`compiled/sketch.c`), whose counters are of four bits; this one defines what that does.
"""

from __future__ import annotations

ROWS = 4
COUNT_MAX = 15
RECORDS_MIN = 64
SAMPLE_FACTOR = 10
_RECORD_BYTES = 8
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)
_HALVES = bytes(count // 2 for count in range(256))
_MASK = (1 << 64) - 1


class Sketch:
    """Counters for about as many keys as there are records."""

    def __init__(self) -> None:
        self._records = RECORDS_MIN
        self._shift = 64 - 8  # A row has 256 counters.
        self._rows = [bytearray(4 * RECORDS_MIN) for _ in range(ROWS)]
        self._uses = 0

    def fit(self, records: int, bytes_max: int) -> None:
        """Have counters for at least so many records, as far as those of half a byte take no more than that.

        What was counted stays: where there are more of them, a key's counter begins as its old one; where there are
        fewer, it is the larger of two.
        """
        while self._records < records and 2 * self._records * _RECORD_BYTES <= bytes_max:
            self._records *= 2
            self._shift -= 1
            for number, row in enumerate(self._rows):
                doubled = bytearray(2 * len(row))
                doubled[::2] = doubled[1::2] = row
                self._rows[number] = doubled
        while self._records > RECORDS_MIN and self._records * _RECORD_BYTES > bytes_max:
            self._records //= 2
            self._shift += 1
            self._rows = [bytearray(map(max, row[::2], row[1::2])) for row in self._rows]

    def add(self, fingerprint: int) -> None:
        """Count a use."""
        counted = False
        for row, multiplier in zip(self._rows, _MULTIPLIERS, strict=True):
            at = (fingerprint * multiplier & _MASK) >> self._shift
            if row[at] < COUNT_MAX:
                row[at] += 1
                counted = True
        self._uses += counted
        if self._uses >= SAMPLE_FACTOR * self._records:
            self._uses //= 2
            for number, row in enumerate(self._rows):
                self._rows[number] = row.translate(_HALVES)

    def estimate(self, fingerprint: int) -> int:
        """How often it was used lately, at most 15."""
        return min(
            row[(fingerprint * multiplier & _MASK) >> self._shift]
            for row, multiplier in zip(self._rows, _MULTIPLIERS, strict=True)
        )

    @property
    def memory_bytes(self) -> int:
        """Memory of the counters."""
        return sum(map(len, self._rows))
