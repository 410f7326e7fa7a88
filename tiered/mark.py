"""How far the journal is known to be on the disk, noted outside it: the file SYNCED.

    offset  size  field
    0       8     magic "tiersync"
    8       8     sequence number up to which everything was on the disk
    16      4     CRC-32 of the 16 bytes before

Numbers are little-endian.  The records of the journal carry such a number, too, but not of themselves: of a segment
that is gone, empty or cut short, and of what was written last, nothing within the journal says that it was there.

Crash argument.  The number is written after the sync that it tells of, so journal and cold tier together always reach
it; where they don't, something is missing.  The file is synced with the first sync of each segment, and
reaches the disk in between when the system writes it: a power cut may leave an older number, or none that can be
read.  Then less is noticed, and nothing that is whole is refused.  It goes with the journal, at a close; and before
everything else, with a sync, where the numbers of a store begin anew or some are given up.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from zlib import crc32

from tiered import files
from tiered.log import LOG

_LAYOUT = struct.Struct("<8sQI")
assert _LAYOUT.size == 20
_MAGIC = b"tiersync"
_CHECKED = 16


class Mark:
    """The writing end.  One thread at a time notes, that which syncs."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / files.SYNCED
        self._file: files.Descriptor | None = None

    def open(self) -> None:
        """Make the file, where there is none yet.  Raises OSError."""
        if self._file is None:
            self._file = files.Descriptor(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def note(self, number: int, durable: bool) -> None:
        """Everything up to `number` is on the disk.  Nothing that was written depends on this: a failure is logged."""
        file = self._file
        if file is None:
            return
        data = _LAYOUT.pack(_MAGIC, number, 0)[:_CHECKED]
        try:
            os.pwrite(file, data + crc32(data).to_bytes(4, "little"), 0)
            if durable:
                files.sync_data(file)
        except OSError as error:
            LOG.warning("%s: could not be written: %s", self._path, error.strerror)

    def remove(self) -> None:
        """The cold tier holds everything."""
        self._path.unlink(missing_ok=True)

    def let_go(self) -> None:
        """Forget the file, which is closed when the last thread that uses it is done."""
        self._file = None


def read(directory: Path) -> int:
    """Up to what number everything was on the disk once; 0 where that is not known."""
    try:
        data = (directory / files.SYNCED).read_bytes()
    except FileNotFoundError:
        return 0
    if len(data) < _LAYOUT.size:
        return 0
    magic, number, crc = _LAYOUT.unpack_from(data)
    return number if magic == _MAGIC and crc == crc32(data[:_CHECKED]) else 0


def give_up(directory: Path) -> None:
    """Have nothing known any more, also after a power cut, before what was on the disk is removed on purpose."""
    path = directory / files.SYNCED
    if path.exists():
        path.unlink()
        files.sync_directory(directory)
