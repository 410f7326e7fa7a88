"""Names in a store directory, locks, atomic replacement; the only place that syncs or renames.

    NAME/CURRENT, CURRENT.new  name of the live cold tier, replaced atomically, and what is to replace it
    NAME/cold-NNNN/            an LMDB environment
    NAME/journal-NNNNNNNN.log  journal segments
    NAME/journal-prepared.log  the next one, made ahead of need
    NAME/SYNCED                up to which number the journal is on the disk (`mark`)
    NAME/HOT                   the keys that were hot when it was closed (`hot_keys`)
    NAME/LOCK                  held (flock) by the program that has the store open for writing
    NAME/APPLY                 held (flock) by whoever writes the cold tier
    NAME/damaged-NNNN/         damaged files that `salvaging` put aside; nothing else looks into it
    NAME/control-XXXX          a question of another program (`control`)
    FILE.XXXXXXXX.tmp          what is to replace FILE, held (flock) by whoever writes it

Locks are `flock` locks: they belong to the open file, so that copying a store's files inside the program does not drop
them, as it would with `fcntl` locks.  In a forked child the after-fork hook of `maintenance` closes them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tiered import process
from tiered.errors import LockedError, StoreFullError

CURRENT, CURRENT_NEW, HOT, SYNCED = "CURRENT", "CURRENT.new", "HOT", "SYNCED"
LOCK, APPLY, PREPARED, CONTROL = "LOCK", "APPLY", "journal-prepared.log", "control-"
_SEGMENT = re.compile(r"journal-(\d{8}|[1-9]\d{8,})\.log")
_DAMAGED = re.compile(r"damaged-(\d{4}|[1-9]\d{4,})")
_COLD = re.compile(r"cold-(\d{4}|[1-9]\d{4,})")
_TEMPORARY = re.compile(r"(.+)\.[0-9a-f]{8}\.tmp")
NETWORK_FILESYSTEMS = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "afs", "beegfs", "fuse.sshfs")
)
_RESERVING_FILESYSTEMS = frozenset(("ext4", "xfs", "tmpfs"))
TOO_MANY_FILES = "too many open files; close some, or raise the limit (ulimit -n, or resource.RLIMIT_NOFILE)"
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))


def segment_path(directory: Path, number: int) -> Path:
    """Where segment `number` lives."""
    return directory / f"journal-{number:08d}.log"


def cold_path(directory: Path, number: int) -> Path:
    """Where cold tier `number` lives."""
    return directory / f"cold-{number:04d}"


def segment_numbers(directory: Path) -> list[int]:
    """Numbers of the segments there are, ascending."""
    return sorted(int(match[1]) for name in os.listdir(directory) if (match := _SEGMENT.fullmatch(name)))


def cold_numbers(directory: Path) -> list[int]:
    """Numbers of the cold tiers there are, ascending."""
    return sorted(int(match[1]) for name in os.listdir(directory) if (match := _COLD.fullmatch(name)))


def damaged_paths(directory: Path) -> list[Path]:
    """Where damaged files were put aside, oldest first."""
    numbers = sorted((int(match[1]), name) for name in os.listdir(directory) if (match := _DAMAGED.fullmatch(name)))
    return [directory / name for _, name in numbers]


def make_damaged(directory: Path) -> Path:
    """A new directory to put damaged files aside in, its name on the disk."""
    there = damaged_paths(directory)
    fresh = directory / f"damaged-{int(there[-1].name.rpartition('-')[2]) + 1 if there else 1:04d}"
    fresh.mkdir(mode=0o700)
    sync_directory(directory)
    return fresh


def identity(path: Path) -> tuple[int, int]:
    """What tells a file from every other, as long as one of them is open."""
    status = path.stat()
    return status.st_dev, status.st_ino


def is_store_file(name: str) -> bool:
    """Whether a file of this name may lie in a store's directory."""
    known = name in (CURRENT, CURRENT_NEW, HOT, SYNCED, LOCK, APPLY, PREPARED) or name.startswith(CONTROL)
    return known or final_name(name) == HOT or any(pattern.fullmatch(name) for pattern in (_SEGMENT, _COLD, _DAMAGED))


def read_current(directory: Path) -> int | None:
    """Number of the live cold tier, None if the store was never finished.  Raises ValueError for nonsense."""
    try:
        text = (directory / CURRENT).read_bytes().decode("ascii", "replace").strip()  # Without a codec to import.
    except FileNotFoundError:
        return None
    if not (match := _COLD.fullmatch(text)):
        raise ValueError(f"names no cold tier: {text[:40]!r}")
    return int(match[1])


def write_current(directory: Path, number: int) -> None:
    """Make cold tier `number` the live one, atomically and durably."""
    # The name of the cold tier must not reach the disk after the one that leads to it.
    sync_directory(directory)
    fresh = directory / CURRENT_NEW
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, f"cold-{number:04d}\n".encode())
            sync_data(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if is_full(error):
            raise StoreFullError(fresh, "the disk is full; free some space") from None
        raise
    os.replace(fresh, directory / CURRENT)
    sync_directory(directory)


def sync_data(fd: int) -> None:
    """Wait until the file's data are on the disk itself; mapped writes included."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)


def open_directory(directory: Path) -> Descriptor:
    """For `sync_directory`, at a moment when it may fail."""
    return Descriptor(os.open(directory, os.O_RDONLY | os.O_CLOEXEC))


def sync_directory(directory: Path | Descriptor) -> None:
    """Wait until the names in `directory` are on the disk."""
    os.fsync(open_directory(directory) if isinstance(directory, Path) else directory)


def preallocate(path: Path, size: int) -> int:
    """Create a file of `size` zeros with its space reserved where the system can; returns its descriptor.

    Raises `StoreFullError` if there is no room, and leaves nothing behind then.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:
            os.ftruncate(fd, size)
        return fd
    except BaseException as error:
        os.close(fd)
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise StoreFullError(path, "no room for the journal; free some space and write again") from None
        raise


def reserve(path: Path, size: int) -> None:
    """Make a file, which may be there already, at least `size` bytes long, with space for all of them."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
    finally:
        os.close(fd)


def extend(path: Path, size: int) -> None:
    """Make a file longer, with zeros that take no space, and its length durable."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        sync_data(fd)
    finally:
        os.close(fd)


def rename(old: Path, new: Path) -> Path:
    """Give a file another name; durable with the next sync of the directory, or of both."""
    os.rename(old, new)
    return new


def move(fresh: Path, wanted: Path) -> None:
    """Give a file or directory a name that nothing has, or an empty directory; durable when this returns."""
    os.rename(fresh, wanted)
    sync_directory(wanted.parent)


def exchange(fresh: Path, old: Path) -> None:
    """Give two directories each other's name, durably: at once where the system can, else one after the other.

    In the second case a crash in between leaves none under the name `old`, and both under others.
    """
    if not process.exchange_names(fresh, old):
        aside = temporary_name(old)
        os.rename(old, aside)
        os.rename(fresh, old)
        os.rename(aside, fresh)
    sync_directory(old.parent)


def temporary_name(path: Path) -> Path:
    """A name for what is to take the place of `path`."""
    return path.with_name(f"{path.name}.{os.urandom(4).hex()}.tmp")


def final_name(name: str) -> str | None:
    """The name that a file under such a name is to have, None for any other name."""
    match = _TEMPORARY.fullmatch(name)
    return match[1] if match else None


def temporaries(path: Path) -> list[Path]:
    """What there is under such names, whoever made it."""
    with contextlib.suppress(FileNotFoundError):
        names = sorted(os.listdir(path.parent))
        return [path.parent / name for name in names if final_name(name) == path.name]
    return []


class Replacement:
    """A file that is written under a temporary name, and takes the place of another as a whole or not at all.

    Its writer holds a lock on it, so that `remove_leftovers` can tell what a killed one left.
    """

    def __init__(self, path: Path) -> None:
        import fcntl

        self.path = path
        self.size = 0
        self._pid = os.getpid()
        while True:
            self.temporary = temporary_name(path)
            self._fd = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(self._fd), os.stat(self.temporary)):
                    return
            os.close(self._fd)  # Taken for a leftover before it was locked.

    def write(self, parts: Sequence[bytes]) -> None:
        """Put these at the end.  Raises `StoreFullError`."""
        try:
            for part in parts:
                view = memoryview(part)
                while view:
                    written = os.write(self._fd, view)
                    view, self.size = view[written:], self.size + written
        except OSError as error:
            raise self._full(error) from None

    def sync(self) -> None:
        """Wait until what was written is on the disk, and have the system forget its copy of it."""
        try:
            sync_data(self._fd)
        except OSError as error:
            raise self._full(error) from None
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def commit(self) -> None:
        """Take the other's place, durably."""
        os.replace(self.temporary, self.path)
        try:
            sync_directory(self.path.parent)
        finally:
            self._close()

    def abandon(self) -> None:
        """Remove it; nothing if it has taken its place, or belongs to the process this one was forked from."""
        if self._fd >= 0 and self._pid == os.getpid():
            self.temporary.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _full(self, error: OSError) -> OSError | StoreFullError:
        return StoreFullError(self.path, "the disk is full; free some space") if is_full(error) else error


def remove_leftovers(path: Path) -> None:
    """Remove what killed programs left that was to take the place of the file `path`."""
    import fcntl

    for temporary in temporaries(path):
        with contextlib.suppress(OSError):
            fd = os.open(temporary, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                temporary.unlink()
            finally:
                os.close(fd)


def is_full(error: OSError) -> bool:
    """Whether `error` says that the disk or the quota is used up."""
    return error.errno in _FULL


def lacks_room(directory: Path) -> bool:
    """Whether the disk or the quota has less than a megabyte left."""
    try:
        fd = os.open(directory, os.O_RDWR | getattr(os, "O_TMPFILE", os.O_DIRECTORY) | os.O_CLOEXEC, 0o600)
    except OSError:
        status = os.statvfs(directory)
        return status.f_bavail * status.f_frsize < 1 << 20
    try:
        os.posix_fallocate(fd, 0, 1 << 20)
    except OSError as error:
        return is_full(error)
    finally:
        os.close(fd)
    return False


def filesystem_type(path: Path) -> str:
    """Type of the file system `path` is on as the kernel names it, "" where that is not known."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return ""


def reserves_space(path: Path) -> bool:
    """Whether writes into preallocated, mapped files of this file system cannot meet a full disk."""
    return filesystem_type(path) in _RESERVING_FILESYSTEMS


class Descriptor(int):
    """A file descriptor that is closed when nobody refers to it any more.

    No step of that is Python code.  Ctrl-C may come before the first line of a finalizer, which then
    does nothing, and the interrupt goes no further: the descriptor would stay open for ever.
    """

    __del__: Any = property(partial(partial, os.close))  # Looked up, it gives what closes this number.


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class _Forks:
    """How many forks were begun and are over: other threads run on beside the functions called at a fork."""

    over = 0
    begun = 0

    @classmethod
    def before(cls) -> None:
        cls.begun += 1

    @classmethod
    def after(cls) -> None:
        cls.over += 1


os.register_at_fork(before=_Forks.before, after_in_parent=_Forks.after, after_in_child=_Forks.after)


class FileLock:
    """An exclusive lock on a file which says who holds it."""

    _fd: int = -1

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held = False

    def acquire(self, timeout_seconds: float = 0.0) -> None:
        """Take the lock, waiting up to `timeout_seconds`; `LockedError` names the holder if it stays taken."""
        import fcntl  # Not at the top: importing the package works on systems that a store cannot.

        # Kept at once: whoever is interrupted from here on lets go of it when this object goes.
        _held.add(self)
        self._open()
        try:
            limit = time.monotonic() + timeout_seconds
            while True:
                try:
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self.in_place():
                        break
                    # Another directory has taken the name of the one it was in, which somebody restored.
                    self._open()
                except BlockingIOError:
                    if time.monotonic() >= limit:
                        raise LockedError(self.path.parent, self._describe()) from None
                    time.sleep(0.005)
            self.held = True
            self._sign()
        except BaseException:
            self.abandon()
            raise

    def _open(self) -> None:
        # A child that another thread forked after the file was opened, and before this object had it, keeps it
        # open without knowing: with a lock on it, the lock would live as long as the child.
        forks = -1
        while not forks == _Forks.over == _Forks.begun:
            forks = _Forks.over
            self._fd = Descriptor(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _sign(self) -> None:
        """Say who holds it: a courtesy to others, which a full disk may deny them."""
        import json  # Not at the top, nor others like it below: importing the package is to be quick.

        holder = {"host": os.uname().nodename, "pid": os.getpid(), "command": " ".join(sys.orig_argv)[:200]}
        holder["since"] = time.strftime("%Y-%m-%d %H:%M:%S")
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, json.dumps(holder).encode(), 0)

    def _describe(self) -> str:
        import json

        try:
            holder = json.loads(os.pread(self._fd, 4096, 0))
            who = f"process {holder['pid']} on {holder['host']} ({holder['command']}) since {holder['since']}"
        except (ValueError, KeyError, TypeError):
            who = "another process"
        return f"open for writing by {who}; close it there, or open with flag='r'"

    def in_place(self) -> bool:
        """Whether the file that is locked is still the one at its path."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except OSError:
            return False

    def release(self) -> None:
        """Give the lock up, also where a forked child still has the file open."""
        if self._fd >= 0:
            import fcntl

            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self.abandon()

    def abandon(self) -> None:
        """Close the file only: what a forked child does with the lock of its parent."""
        self.held = False
        self._fd = -1


def abandon_locks() -> None:
    """In a forked child: let go of what the parent has locked, whichever of its threads was about to use it.

    A thread that was in the middle of using a descriptor is not in the child, and will never let go of it: the
    number is made to stand for another file first, since closing it could close one that has the number by then.
    """
    locks = [lock for lock in _held if lock._fd >= 0]
    if not locks:
        return
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for lock in locks:
        os.dup2(nothing, lock._fd, inheritable=False)
        lock.abandon()
    os.close(nothing)


def disk_bytes(directory: Path) -> int:
    """Bytes that a store's files take on the disk."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # Removed by a checkpoint meanwhile.
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
    return total
