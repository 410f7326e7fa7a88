"""What happens to the journal at open: how far it can be applied, and what must be dropped.

The terms are those of `journal`: a record is *torn* if it is bad and above every
synced mark that can be found in this or a later segment, and *damaged* if it is bad
and at or below one.  Torn records and all that follow them are dropped and reported,
and so are the first records of a batch whose last one is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiered import files
from tiered.errors import CorruptionError
from tiered.journal import HEADER_BYTES, MORE, SegmentFile


class Plan:
    """The segments to apply, up to which sequence number, and what is lost with the rest."""

    def __init__(self, until: int = 0) -> None:
        self.segments: list[SegmentFile] = []
        self.until = until
        self.dropped_bytes = 0
        self.torn_at = ""


def plan(directory: Path, applied: int) -> Plan:
    """Read the journal of a store whose cold tier holds everything up to `applied`.

    Raises `CorruptionError` where records that were on the disk are bad or missing.
    """
    segments = [SegmentFile(files.segment_path(directory, number)) for number in files.segment_numbers(directory)]
    while len(segments) > 1 and segments[1].header is not None and segments[1].header.first <= applied + 1:
        segments.pop(0)
    result = Plan(until=applied)
    sequence = applied
    for index, segment in enumerate(segments):
        header = segment.header
        if segment.header_damaged:
            raise CorruptionError(
                segment.path,
                "damaged header: its records cannot be read. Restore from a backup; or move the file away, "
                "which drops its records and all that follow",
                0,
            )
        if header is None or header.first > sequence + 1:
            _judge_tail(result, segments[index:], 0, sequence + 1)
            return result
        position, sequence = HEADER_BYTES, max(sequence, header.first - 1)
        for entry in segment.entries():
            position = entry.end
            if entry.sequence > applied:
                sequence = entry.sequence
                if not entry.flags & MORE:
                    result.until = sequence
        result.segments.append(segment)
        following = segments[index + 1].header if index + 1 < len(segments) else None
        if following is None or following.first != sequence + 1:
            _judge_tail(result, segments[index:], position, sequence + 1)
            return result
    return result


def _judge_tail(result: Plan, segments: Sequence[SegmentFile], position: int, sequence: int) -> None:
    """Where reading stopped, `position` in the first of `segments`: the end, torn, or damaged?"""
    first = segments[0]
    highest = max([first.highest_synced(position), *(segment.highest_synced(0) for segment in segments[1:])])
    if highest >= sequence:
        raise CorruptionError(
            first.path,
            f"bad record at byte {position}: number {sequence} was synced and is not readable; "
            f"everything before it can be recovered. Restore from a backup, or keep a copy before writing",
            position,
        )
    if result.until < sequence - 1:
        result.torn_at = f"{first.path.name}, in the middle of a batch"
    left = [first] if not first.blank_after(position) else []
    left += [segment for segment in segments[1:] if not segment.blank_after(0)]
    if left:
        result.torn_at = f"{first.path.name} at byte {position}"
        result.dropped_bytes += sum(segment.written_bytes(position if segment is first else 0) for segment in left)
