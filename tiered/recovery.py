"""What happens to the journal at open: how far it can be applied, and what must be dropped.

The terms are those of `journal`: a record is *torn* if it is bad and above every
synced mark that can be found in this or a later segment, and *damaged* if it is bad
and at or below one.  Torn records and all that follow them are dropped and reported,
and so are the first records of a batch whose last one is missing.  Damage is an error,
unless what can be saved is asked for (`salvaging`): then it ends what is applied as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiered import files, mark
from tiered.errors import CorruptionError
from tiered.journal import HEADER_BYTES, MORE, SegmentFile

_WHAT_TO_DO = "Restore from a backup, or keep everything before it with tiered.salvage(path)"


class Plan:
    """The segments to apply, up to which sequence number, and what is lost with the rest."""

    def __init__(self, until: int = 0) -> None:
        self.segments: list[SegmentFile] = []
        self.until = until
        self.synced = 0
        self.dropped_bytes = 0
        self.torn_at = ""
        self.damage: CorruptionError | None = None
        self.damaged: list[SegmentFile] = []


def plan(directory: Path, applied: int, salvage: bool = False) -> Plan:
    """Read the journal of a store whose cold tier holds everything up to `applied`.

    Raises `CorruptionError` where records that were on the disk are bad or missing; with
    `salvage` the plan ends there, and names the damage and the segments from there on.
    """
    result = Plan(until=applied)
    synced = mark.read(directory)
    try:
        _read(result, directory, applied, synced)
        refuse_missing(directory, result.until, synced)
    except CorruptionError as damage:
        if not salvage:
            raise
        result.damage = damage
        numbers = files.segment_numbers(directory)
        paths = [files.segment_path(directory, number) for number in numbers]
        first = next((at for at, path in enumerate(paths) if str(path) == damage.path), len(paths))
        result.damaged = list(map(SegmentFile, paths[first:]))
    return result


def _read(result: Plan, directory: Path, applied: int, synced: int) -> None:
    segments = [SegmentFile(files.segment_path(directory, number)) for number in files.segment_numbers(directory)]
    misplaced = [at for at, segment in enumerate(segments) if segment.misplaced]
    result.synced = 0 if misplaced else synced  # Else that one is the damage, and not where reading ends before it.
    _read_in_order(result, segments[: misplaced[0]] if misplaced else segments, applied)
    if misplaced:
        refuse_damaged_header(segments[misplaced[0]])


def _read_in_order(result: Plan, segments: list[SegmentFile], applied: int) -> None:
    while len(segments) > 1 and segments[1].header is not None and segments[1].header.first <= applied + 1:
        segments.pop(0)
    sequence = applied
    for index, segment in enumerate(segments):
        header = segment.header
        refuse_damaged_header(segment)
        if header is None or header.first > sequence + 1:
            _judge_tail(result, segments[index:], 0, sequence + 1)
            return
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
            return


def refuse_damaged_header(segment: SegmentFile) -> None:
    """Raise `CorruptionError` for a segment whose header was written and is not readable, or is of another one."""
    if segment.header_damaged:
        raise CorruptionError(segment.path, f"damaged header: its records cannot be read. {_WHAT_TO_DO}", 0)
    if segment.misplaced and segment.header is not None:
        named = f"this is segment {segment.header.number}, under another name"
        raise CorruptionError(segment.path, f"{named}. {_WHAT_TO_DO}", 0)


def refuse_missing(directory: Path, until: int, synced: int) -> None:
    """Raise `CorruptionError` if operations up to number `synced` were on the disk, and now they end at `until`."""
    if until < synced:
        raise CorruptionError(
            directory / files.SYNCED,
            f"operations up to number {synced:,} were on the disk, and what is there ends at number {until:,}: "
            f"a segment (journal-*.log) is missing or cut short. {_WHAT_TO_DO}",
        )


def refuse_damage(segments: Sequence[SegmentFile], position: int, sequence: int, synced: int = 0) -> None:
    """Raise `CorruptionError` if record `sequence`, bad at `position` in the first of `segments`, was synced once."""
    first = segments[0]
    highest = max([synced, first.highest_synced(position), *(segment.highest_synced(0) for segment in segments[1:])])
    if highest >= sequence:
        raise CorruptionError(
            first.path,
            f"bad record at byte {position}: number {sequence} was synced and is not readable. {_WHAT_TO_DO}",
            position,
        )


def _judge_tail(result: Plan, segments: Sequence[SegmentFile], position: int, sequence: int) -> None:
    """Where reading stopped, `position` in the first of `segments`: the end, torn, or damaged?"""
    first = segments[0]
    refuse_damage(segments, position, sequence, result.synced)
    if result.until < sequence - 1:
        result.torn_at = f"{first.path.name}, in the middle of a batch"
    left = [first] if not first.blank_after(position) else []
    left += [segment for segment in segments[1:] if not segment.blank_after(0)]
    if left:
        result.torn_at = f"{first.path.name} at byte {position}"
        result.dropped_bytes += sum(segment.written_bytes(position if segment is first else 0) for segment in left)
