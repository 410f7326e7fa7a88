"""The overlay: what a reader sees of the journal of a writer in another process.

    look    open what segments there are that are not open yet
    news    read on where reading stopped: whole batches, up to so many records
    take    let them be seen: put into the same write buffers that the writer has
    forget  let go of segments that the cold tier holds by now

Reading changes nothing.  `news` goes through the segments in order, each from the end of the last
batch that was taken, and stops where the next record is not valid or not the next in
number: there the writer is writing, or has ended.  A batch whose last record is not there yet is
not there at all.  A clear makes a new buffer for its segment, which hides all before it.  So
what has been taken is always a prefix of what was acknowledged, up to number `last`.

A segment stays mapped, even when its name is gone, until the cold tier is seen to hold it.
It is told from another of the same name by its inode, which is not used again
meanwhile: the numbers of a store whose journal was empty at open begin anew.
Segments appear in order, and one only when the one before is closed; so after `look`, whatever
precedes the newest segment can be read to its end.  They go in order too, once they are
applied; so the cold tier as it is after `look` holds whatever is between what was taken and
what was found.  A name may stay for a while after that.  The order is therefore: look, then look at
the cold tier, then read.

A writer that is interrupted (Ctrl-C) between writing a record and counting it writes over it
(`journal`).  A reader may have seen it: `rewound` tells by the checksums of the last
batch, and the segment is read anew.  A record that nobody was told of may so be seen for a moment.

At the end of the last segment, and where the next one does not continue this one, the verdict is
that of `recovery`: bad and once synced is damage; else it is torn, and what follows is not seen.

Locking: callers hold the store's lock.  Memory: the index over the records, not their bytes, which are
pages of files that the writer has in memory anyway (`Segment.held_bytes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgpack

from tiered import files, keys, mark
from tiered.errors import CorruptionError
from tiered.journal import CLEAR, CLOSE, DELETE, HEADER_BYTES, MORE, PUT, RECORD, SETTING, Entry, Segment, SegmentFile
from tiered.native import native
from tiered.recovery import refuse_damage, refuse_damaged_header, refuse_missing
from tiered.write_buffer import WriteBuffer

UNBOUNDED = 1 << 62


class Followed(Segment):
    """A segment that another program writes, as far as it was read: what its write buffer refers to."""

    def __init__(self, file: SegmentFile) -> None:
        self.path = file.path
        self.map: Any = file.map
        # Without a header, which never reached the disk, it continues nothing.
        self.seed, self.number, self.first, _ = file.header or (0, 0, 0, 0)
        self.records = None if native is None else native.Records(self.map, self.seed)
        self.last = self.first - 1
        self.position = HEADER_BYTES

    @property
    def held_bytes(self) -> int:
        """None: the bytes belong to the writer."""
        return 0


class Tail:
    """A segment, its write buffer, and how to read on."""

    def __init__(self, file: SegmentFile) -> None:
        self.file = file
        self.segment = Followed(file)
        self.buffer = WriteBuffer(self.segment)
        self.closed = False
        self.listed = True
        self.ends: tuple[tuple[int, bytes], ...] = ()

    def continues(self, last: int) -> bool:
        """Whether no record is missing between number `last` and this segment."""
        return self.file.header is not None and self.segment.first <= last + 1

    def rewound(self) -> bool:
        """Whether the batch that was taken last has been written over."""
        return any(self.file.slice(at, at + 4) != crc for at, crc in self.ends)

    def rest(self) -> Iterator[Entry]:
        """The records that were not taken yet, those of a batch without its end included."""
        return self.file.entries(self.segment.position, self.segment.last + 1)

    def news(self, known: int, limit: int) -> News | None:
        """The next whole batches, up to `limit` records; of records up to number `known` nothing is kept."""
        news, crc_at = News(self), self.file.slice
        whole, batch_at, enough = 0, -1, self.segment.last + limit
        for kind, flags, sequence, _, deadline, _, key, start, end, _ in self.rest():
            at = start - len(key) - RECORD.size
            batch_at = at if batch_at < 0 else batch_at
            if kind in (PUT, DELETE):
                if sequence > known:
                    news.keys.append(key)
                    news.places.append(at if kind == PUT else ~at)
                    news.deadlines.append(deadline)
            elif kind == CLEAR:
                if news.last:
                    news.more = True
                    break
                news.cleared = sequence > known
                news.empty()
            elif kind == CLOSE:
                news.closed, news.time_ms = True, deadline
            elif kind == SETTING:
                news.settings[key.decode()] = msgpack.unpackb(self.file.slice(start, end))
            if not flags & MORE:
                news.end, news.last, whole = end, sequence, len(news.keys)
                ends, batch_at = (batch_at, at), -1
                if sequence >= enough:
                    news.more = True
                    break
        if not news.last:
            return None
        news.ends = tuple((at, crc_at(at, at + 4)) for at in ends)
        news.empty(whole)
        return news

    def take(self, news: News) -> None:
        """Have the buffer hold what was read, all at once."""
        buffer = self.buffer
        if news.cleared:
            buffer = WriteBuffer(self.segment)
            buffer.cleared = True
        if news.keys:
            buffer.put_many(list(map(keys.stored, news.keys)), news.places, news.deadlines)
        # Interrupted before this, the same news is taken once more.
        self.buffer, self.closed, self.ends = buffer, news.closed, news.ends
        self.segment.position, self.segment.last = news.end, news.last


class News:
    """What was read of a segment and not taken yet.

    With `cleared`, all before it is gone.  Without `more`, it goes up to what was the segment's end.
    """

    def __init__(self, tail: Tail) -> None:
        self.tail = tail
        self.end = self.last = self.time_ms = 0
        self.cleared = self.closed = self.more = False
        self.keys: list[bytes] = []
        self.places: list[int] = []
        self.deadlines: list[int] = []
        self.settings: dict[str, object] = {}
        self.ends: tuple[tuple[int, bytes], ...] = ()

    def empty(self, kept: int = 0) -> None:
        """Forget the records after the first so many."""
        for column in (self.keys, self.places, self.deadlines):
            del column[kept:]


class Overlay:
    """The segments that a reader has open, oldest first, and up to what number they were taken."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.last = -1  # Nothing is known yet.
        self._synced = mark.read(directory)  # Before the first look, which so finds all that was synced by now.
        self.tails: list[Tail] = []
        self._spent: list[SegmentFile] = []  # Let go of, but still named in the directory.
        self._judged: tuple[Tail, int, int] | None = None

    @property
    def buffers(self) -> tuple[WriteBuffer, ...]:
        """Newest first: the newest may be written on, the others never are."""
        return tuple(tail.buffer for tail in reversed(self.tails) if tail.ends)

    def look(self) -> None:
        """Open what segments there are that are not open yet, and note which have lost their names."""
        known = {tail.file.identity: tail for tail in self.tails}
        spent, self._spent = {file.identity: file for file in self._spent}, []
        for tail in self.tails:
            tail.listed = False
        try:
            numbers = files.segment_numbers(self.directory)
        except FileNotFoundError:
            return  # The store was removed: what is open stays readable.
        for number in numbers:
            path = files.segment_path(self.directory, number)
            try:
                identity = files.identity(path)
                if identity in known:
                    known[identity].listed = True
                elif identity in spent:
                    self._spent.append(spent[identity])
                else:
                    self.tails.append(Tail(SegmentFile(path)))
            except FileNotFoundError:
                continue  # Applied and removed meanwhile, which the cold tier will say.

    def news(self, limit: int = UNBOUNDED) -> News | None:
        """The next whole batches of one segment, None where nothing more can be read."""
        for tail in self.tails:
            if not tail.continues(self.last):
                return None
            if not tail.closed and (news := tail.news(self.last, limit)) is not None:
                return news
        return None

    def take(self, news: News) -> None:
        """Let it be seen."""
        news.tail.take(news)
        self.last = max(self.last, news.last)

    def jump(self, applied: int) -> None:
        """The cold tier holds records up to `applied` that were never read here."""
        self.last = applied
        self.forget(applied)

    def ignore_unread(self) -> None:
        """Let go of segments of which nothing was taken yet."""
        self.tails = [tail for tail in self.tails if tail.ends]

    def forget(self, applied: int) -> None:
        """Let go of segments that the cold tier holds, as it does everything up to `applied`."""
        kept: list[Tail] = []
        for tail, following in zip_longest(self.tails, self.tails[1:]):
            behind = following is not None and following.continues(applied)
            done = tail.segment.last <= applied and (tail.closed or not tail.listed)
            never_taken = not tail.listed and not tail.ends
            if not (behind or done or never_taken):
                kept.append(tail)
            elif tail.listed:
                self._spent.append(tail.file)
        self.tails = kept
        if self._judged is not None and self._judged[0] not in kept:
            self._judged = None

    def rewound(self) -> bool:
        """Read segments anew whose last batch was written over; True if there was one."""
        found = False
        for index, tail in enumerate(self.tails):
            if tail.rewound():
                fresh = Tail(tail.file)
                while (news := fresh.news(0, UNBOUNDED)) is not None:
                    fresh.take(news)
                self.tails[index] = fresh
                self.last = fresh.segment.last
                found = True
        return found

    def judge(self, at_open: bool = False) -> bool:
        """Where nothing more can be read: is it damage?  True if there is more to read after all.

        Raises `CorruptionError`.  The last segment, where a live writer goes on, is looked at
        through to its end only when the store is opened.
        """
        # Read again: a store made anew in this place (`flag="n"`) has numbers of its own.
        synced = min(self._synced, mark.read(self.directory)) if at_open else 0
        for index, tail in enumerate(self.tails):
            rest = self.tails[index:]
            refuse_damaged_header(tail.file)
            position, last = 0, self.last
            if tail.continues(last):
                position = tail.segment.position
                if rest[1].continues(last) if rest[1:] else not at_open:
                    continue
                for entry in tail.rest():
                    position, last = entry.end, max(last, entry.sequence)
            return self._judge([each.file for each in rest], position, last + 1, (tail, position, len(rest)), synced)
        refuse_missing(self.directory, self.last, synced)
        return False

    def _judge(
        self, segments: list[SegmentFile], position: int, sequence: int, judged: tuple[Tail, int, int], synced: int
    ) -> bool:
        if judged == self._judged:
            return False
        try:
            refuse_damage(segments, position, sequence, synced)
        except CorruptionError:
            # Beside a live writer, what was not there just now may be there and synced.
            if self.news(1) is None:
                raise
            return True
        self._judged = judged
        return False
