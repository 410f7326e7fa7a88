"""The snapshot file, `.tsnap`: a whole store at one moment, in one portable file.

It begins with a header of 20 bytes:

    offset  size  field
    0       8     magic "tiersnap"
    8       2     version of this layout (1)
    10      2     zero
    12      4     seed: a random number that every checksum of the file starts from
    16      4     CRC-32 of the 16 bytes before

and goes on in sections, each of 32 bytes and then its body:

    0       4     CRC-32 of the 28 bytes after this field, from the seed
    4       2     magic 0x5EC7
    6       1     kind: 1 about, 2 dictionary, 3 records, 4 end
    7       1     zero
    8       4     kind 2: id of the dictionary; kind 3: number of records; else zero
    12      4     CRC-32 of the body, from the seed
    16      8     number of the section, from 0 on
    24      8     length of the body

    about       first: a msgpack map of what `About` holds, the store's settings among it
    dictionary  one trained dictionary; all of them come before any record
    records     2 bytes for the length of each stored key, 4 for that of each record, then the
                keys and then the records (`record`), exactly as the cold tier has them
    end         last: four numbers of 8 bytes, how many records, bytes of records, dictionaries and sections
                before this one, and the BLAKE2b digest, of 16 bytes, of everything before this section

Numbers are little-endian and never change meaning.  Stored keys ascend strictly through
the whole file, without deletion markers.  A section of records is closed at
1 MiB or 65,535 records, so that reading takes that much memory, or as much as the
largest record.  Records are neither compressed again nor undone: their own checksums are looked at
when they are copied, so that what is damaged in the store does not get into a snapshot as if it were well.

Crash argument.  The file is written under a temporary name, synced, renamed, and its
directory synced: under its own name it is there as a whole or not at all.  It has no
use for repair: one that ends early, or has one wrong byte, is damaged, and `SnapshotFile` says where.
Section numbers, the seed, the ascending keys and the digest find sections that were swapped, left out,
doubled, or taken from another snapshot.

Downsides.  There is no index: to find one key, all is read.  Keys are not compressed.
Snapshots are whole, never the difference to an earlier one.  Nothing is encrypted or signed: the
checksums find accidents, not forgers.
"""

from __future__ import annotations

import operator
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from zlib import crc32

import msgpack

from tiered import files
from tiered.errors import CorruptionError, FormatError, NotAStoreError, StoreError

HEADER = struct.Struct("<8sHHII")
assert HEADER.size == 20
SECTION = struct.Struct("<IHBBIIQQ")
assert SECTION.size == 32
END = struct.Struct("<QQQQ16s")
assert END.size == 48
_CRC = struct.Struct("<I")

MAGIC = b"tiersnap"
MAGIC_BYTES_ALIKE = 5
"""A file with so many right bytes of the magic is taken for a damaged snapshot, one with fewer for another file."""
VERSION = 1
SECTION_MAGIC = 0x5EC7
ABOUT, DICTIONARY, RECORDS, THE_END = 1, 2, 3, 4
BODY_BYTES = 1 << 20
BODY_RECORDS_MAX = 0xFFFF
_DAMAGED = "damaged snapshot: {}; take another one"


class About(NamedTuple):
    """What a snapshot says of itself: where it is from, what moment it holds, and the state a store goes on with."""

    store: str = ""
    """Path of the store's directory."""
    as_of_ms: int = 0
    """Everything acknowledged up to this time is in it, in milliseconds since the epoch."""
    sequence: int = 0
    """Number of the last write in it."""
    time_ms: int = 0
    """The store's time, up to which what expired has been removed."""
    records: int = 0
    packed_bytes: int = 0
    stored_bytes: int = 0
    dictionary: int = 0
    dictionary_next: int = 1
    settings: dict[str, Any] = {}  # noqa: RUF012  Never changed.


class SnapshotInfo(NamedTuple):
    """A snapshot file.  `as_of` is in seconds since the epoch: what was acknowledged up to then is in it."""

    path: str
    as_of: float
    sequence: int
    records: int
    file_bytes: int


class Writer:
    """Writes a snapshot file section by section; then `finish` and `file.commit`, or `file.abandon`."""

    def __init__(self, path: Path, about: About) -> None:
        from hashlib import blake2b  # Takes time, with OpenSSL.

        self._digest = blake2b(digest_size=16)
        self._seed = int.from_bytes(os.urandom(4), "little")
        self._numbers = [0, 0, 0, 0]  # As in the end: records, bytes of records, dictionaries, sections.
        self._about = about
        self.file = files.Replacement(path)
        try:
            head = HEADER.pack(MAGIC, VERSION, 0, self._seed, 0)[:-4]
            self._put([head + _CRC.pack(crc32(head))])
            self._section(ABOUT, 0, [cast(bytes, msgpack.packb(about._asdict()))])
        except BaseException:
            self.file.abandon()
            raise

    def _put(self, parts: Sequence[bytes]) -> None:
        for part in parts:
            self._digest.update(part)
        self.file.write(parts)

    def _section(self, kind: int, count: int, parts: Sequence[bytes]) -> None:
        crc = self._seed
        for part in parts:
            crc = crc32(part, crc)
        head = SECTION.pack(0, SECTION_MAGIC, kind, 0, count, crc, self._numbers[3], sum(map(len, parts)))[4:]
        self._put([_CRC.pack(crc32(head, self._seed)) + head, *parts])
        self._numbers[3] += 1

    def dictionary(self, number: int, data: bytes) -> None:
        """Put a dictionary, before all records."""
        self._section(DICTIONARY, number, [data])
        self._numbers[2] += 1

    def records(self, keys: Sequence[bytes], datas: Sequence[bytes]) -> None:
        """Put records, as many as make one section, keys ascending.  Raises ValueError for one that is damaged."""
        _check_records(keys, datas)
        lengths, count = list(map(len, datas)), len(keys)
        sizes = struct.pack(f"<{count}H{count}I", *map(len, keys), *lengths)
        self._section(RECORDS, count, [sizes, b"".join(keys), b"".join(datas)])
        self._numbers[0] += count
        self._numbers[1] += sum(lengths)

    def finish(self) -> SnapshotInfo:
        """Put the end, and wait until the file is on the disk, under its temporary name still."""
        self._section(THE_END, 0, [END.pack(*self._numbers, self._digest.digest())])
        self.file.sync()
        return SnapshotInfo(
            str(self.file.path), self._about.as_of_ms / 1000, self._about.sequence, self._numbers[0], self.file.size
        )


def _check_records(keys: Sequence[bytes], datas: Sequence[bytes]) -> None:
    """Raise ValueError, with the position, for a record whose checksum, which takes in its key, is wrong."""
    for at, (key, data) in enumerate(zip(keys, datas, strict=True)):
        if len(data) < 10 or crc32(data[4:], crc32(key)).to_bytes(4, "little") != data[:4]:
            raise ValueError(at)


class Section(NamedTuple):
    """One section of a file; `kind` and `number` (of records, or a dictionary's) as in its header."""

    kind: int
    number: int
    offset: int
    body: bytes


Damage = Callable[[CorruptionError], object]


def _raised(error: CorruptionError) -> None:
    raise error


class SnapshotFile:
    """A snapshot file being read, once and from its beginning to its end.

    Raises `NotAStoreError` for a file that is none, `FormatError` for a newer layout, and
    `CorruptionError` with the offset for what is not what was written; where `damage` is given,
    that is told instead, and reading goes on if it can.
    """

    def __init__(self, path: Path, damage: Damage = _raised) -> None:
        from hashlib import blake2b

        self.path = path
        self._damage = damage
        self._digest = blake2b(digest_size=16)
        self._numbers = [0, 0, 0, 0]
        self._offset = 0
        self._last_key = b""
        self._whole = True
        self.about = About()
        self._file: IO[bytes] = self._opened()
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._read_header()
            self._read_about()
        except BaseException:
            self._file.close()
            raise

    def _opened(self) -> IO[bytes]:
        try:
            return open(self.path, "rb", buffering=0)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            reason = "a directory, where a snapshot is a file" if self.path.is_dir() else "no such file"
            raise NotAStoreError(self.path, reason) from None
        except OSError as error:
            raise StoreError(self.path, f"cannot be read: {error.strerror}") from error

    def __enter__(self) -> SnapshotFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @property
    def info(self) -> SnapshotInfo:
        """The file, with as many records as it announces; so does `SnapshotInfo` of one read to the end."""
        about = self.about
        return SnapshotInfo(str(self.path), about.as_of_ms / 1000, about.sequence, about.records, self._size)

    def _error(self, offset: int, reason: str) -> CorruptionError:
        return CorruptionError(self.path, _DAMAGED.format(f"{reason} at byte {offset:,}"), offset)

    def _take(self, size: int) -> bytes:
        """The next bytes; fewer at the end of the file."""
        parts = []
        try:
            while size and (part := self._file.read(min(size, 1 << 26))):
                parts.append(part)
                size -= len(part)
        except OSError as error:
            raise self._error(self._offset, f"cannot be read ({error.strerror})") from None
        data = b"".join(parts) if len(parts) != 1 else parts[0]
        self._offset += len(data)
        return data

    def _read_header(self) -> None:
        data = self._take(HEADER.size)
        self._digest.update(data)
        alike = sum(map(operator.eq, data, MAGIC))
        if alike < min(MAGIC_BYTES_ALIKE, len(data)):
            raise NotAStoreError(self.path, "not a snapshot")
        if len(data) < HEADER.size:
            raise self._error(len(data), "ends in its header")
        _, version, _, self._seed, crc = HEADER.unpack(data)
        if crc32(data[:-4]) != crc or alike < len(MAGIC):
            raise self._error(0, "checksum mismatch in the header")
        if version != VERSION:
            raise FormatError(self.path, f"snapshot format {version}; this version knows {VERSION}")

    def _read_about(self) -> None:
        offset = self._offset
        found = next(self._sections(), None)
        if found is None or found.kind != ABOUT:
            raise self._error(offset, "no description")
        try:
            values = dict(msgpack.unpackb(found.body))
        except (ValueError, TypeError) as error:
            raise self._error(offset, f"a description that cannot be read ({error})") from None
        for name, default in About()._asdict().items():
            if type(values.get(name)) is not type(default):
                raise self._error(offset, f"a description without {name}")
        self.about = About(**{name: values[name] for name in About._fields})

    def _sections(self) -> Iterator[Section]:
        """The sections from here on, without the end; what is damaged is told and left out."""
        while True:
            offset, digest = self._offset, self._digest.digest()
            head = self._take(SECTION.size)
            if len(head) < SECTION.size:
                self._damage(self._error(offset, "ends without its last section"))
                return
            crc, magic, kind, _, count, body_crc, number, size = SECTION.unpack(head)
            if crc32(head[4:], self._seed) != crc or magic != SECTION_MAGIC or size > self._size - self._offset:
                truncated = crc32(head[4:], self._seed) == crc and magic == SECTION_MAGIC
                reason = "ends in the middle of a section" if truncated else "checksum mismatch in a section's header"
                self._damage(self._error(offset, reason))
                return
            body = self._take(size)
            self._digest.update(head)
            self._digest.update(body)
            if number != self._numbers[3]:
                self._tell(self._error(offset, f"section {number} where {self._numbers[3]} belongs"))
                self._numbers[3] = number
            self._numbers[3] += 1
            if len(body) < size or crc32(body, self._seed) != body_crc:
                self._tell(self._error(offset + SECTION.size, "checksum mismatch in a section"))
            elif kind == THE_END:
                self._check_end(offset, body, digest)
                return
            else:
                yield Section(kind, count, offset, body)

    def _tell(self, error: CorruptionError) -> None:
        """Tell of damage after which reading can go on; the sums at the end are wrong then, as is known."""
        self._whole = False
        self._damage(error)

    def _check_end(self, offset: int, body: bytes, digest: bytes) -> None:
        if self._offset != self._size:
            self._damage(self._error(self._offset, f"{self._size - self._offset:,} bytes after its end"))
        if not self._whole:
            return
        self._numbers[3] -= 1  # Without this one.
        if len(body) != END.size or END.unpack(body) != (*self._numbers, digest):
            self._damage(self._error(offset, "the sums at its end are not those of what is before it"))

    def read(self) -> Iterator[tuple[int, bytes] | tuple[list[bytes], list[bytes]]]:
        """`(id, dictionary)` of each dictionary, then `(stored keys, records)` of each section of records."""
        for found in self._sections():
            if found.kind == DICTIONARY:
                self._numbers[2] += 1
                yield found.number, found.body
            elif found.kind == RECORDS:
                try:
                    keys, datas = self._records(found)
                except ValueError as error:
                    self._tell(self._error(found.offset, str(error)))
                    continue
                self._numbers[0] += len(keys)
                self._numbers[1] += sum(map(len, datas))
                yield keys, datas
            else:
                self._tell(self._error(found.offset, f"a section of unknown kind {found.kind}"))

    def _records(self, section: Section) -> tuple[list[bytes], list[bytes]]:
        count, body = section.number, section.body
        if not 0 < count <= BODY_RECORDS_MAX or len(body) < 6 * count:
            raise ValueError("a section of no length that it could have")
        sizes = struct.unpack_from(f"<{count}H{count}I", body)
        ends = list(accumulate(sizes, initial=6 * count))
        if ends[-1] != len(body):
            raise ValueError("lengths that do not add up")
        parts = [body[start:end] for start, end in pairwise(ends)]
        keys, datas = parts[:count], parts[count:]
        if keys[0] <= self._last_key or not all(map(operator.lt, keys, keys[1:])):
            raise ValueError("keys that do not ascend")
        self._last_key = keys[-1]
        return keys, datas


def destination(path: str | os.PathLike[str]) -> Path:
    """Where a snapshot is to be: nothing, an empty file, or an older snapshot, which is replaced.

    Raises `NotAStoreError` for anything else: another file is not overwritten by a slip.
    """
    target = Path(os.path.abspath(os.fsdecode(path)))
    if target.is_dir():
        raise NotAStoreError(target, f"a directory; name a file in it, as {target.name}.tsnap")
    if not target.parent.is_dir():
        raise NotAStoreError(target.parent, "no such directory; make it first")
    try:
        if target.exists():
            with open(target, "rb") as file:
                if file.read(len(MAGIC)) not in (b"", MAGIC):
                    raise NotAStoreError(target, "there, and no snapshot; remove it first, or choose another name")
    except OSError as error:
        raise StoreError(error.filename or target, f"no place for a snapshot: {error.strerror}") from None
    return target
