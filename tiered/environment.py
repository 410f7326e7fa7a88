"""Opening an LMDB environment: its format, its map, its table of readers.  The part of `cold` that knows no records.

LMDB's own format is version 0.9, named explicitly.  The map is reserved far larger than any
store and equal in all processes, so that nobody ever resizes it; only a program that
has many stores open reserves less for the later ones, since 128 maps of 1 TiB are
all that a process can have.  The file is not opened with `writemap`: on a full disk that
is SIGBUS instead of an error.

LMDB must not have a file open twice in one process, since its locks belong to the
process, and py-lmdb refuses it by what it knows to be open.  A forked child
inherits that knowledge and none of the locks, and cannot get rid of it while a thread
that the fork stopped had a transaction.  There, what is open is told apart by process.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import lmdb

from tiered import files
from tiered.errors import ReadOnlyError, StoreFullError

MAP_BYTES_MAX = 1 << 40 if sys.maxsize > 1 << 32 else 1 << 30
MAP_BYTES_MIN = 1 << 28
MAPS = ((64, 0), (512, 4), (1 << 30, 7))
"""Up to so many open environments, the next map is smaller by so many bits: 64 TiB, 28 TiB, and 8 GiB for each more."""
MAP_FACTOR_MIN = 4
READERS_MAX = 4096
_LOCK_FILE_BYTES = 64 * READERS_MAX + 4096
"""A slot of 64 bytes for each reader, and LMDB's header."""
_IN_PROCESS = "already open in this process"
NEW_FILE_TRIES, NEW_FILE_WAIT_SECONDS = 200, 0.005

_open: weakref.WeakSet[lmdb.Environment] = weakref.WeakSet()
_main_pid = os.getpid()


def map_bytes(path: Path, count: int) -> int:
    """What to reserve for a data file beside `count` others: at least four times its size."""
    size = MAP_BYTES_MAX >> next(bits for limit, bits in MAPS if count < limit)
    wanted = MAP_FACTOR_MIN * path.stat().st_size if path.exists() else 0
    while size < min(wanted, MAP_BYTES_MAX):
        size *= 2
    return size


def open_environment(directory: Path, readonly: bool, databases: int) -> lmdb.Environment:
    """Open the environment in a directory.  Raises lmdb's errors, and `ReadOnlyError`."""
    size = map_bytes(directory / "data.mdb", len(_open))
    while True:
        try:
            environment = _opened(directory, readonly, databases, size)
            _open.add(environment)
            return environment
        except (lmdb.MemoryError, MemoryError):
            if size <= MAP_BYTES_MIN:
                raise
            size //= 2
        except lmdb.Error as error:
            if size > MAP_BYTES_MIN and "Cannot allocate memory" in str(error):
                size //= 2
            elif readonly and "Permission denied" in str(error):
                raise ReadOnlyError(directory, "reading beside a writer needs write permission for lock.mdb") from None
            else:
                raise


def _opened(directory: Path, readonly: bool, databases: int, size: int) -> lmdb.Environment:
    options: dict[str, Any] = {
        "map_size": size,
        "max_dbs": databases,
        "max_readers": READERS_MAX,
        "readonly": readonly,
        "mode": 0o600,
        "create": not readonly,
        "lib_version": 0,
        "readahead": True,
        # None kept for later: ending one in a forked child would free the parent's slot among
        # the readers.  A new one costs no more than 0.1 µs.
        "max_spare_txns": 0,
    }
    # A file that is new may have the number of one that another thread closes at this moment, after it was removed.
    tries = NEW_FILE_TRIES if not (directory / "data.mdb").exists() else 1
    while tries:
        tries -= 1
        try:
            return lmdb.open(str(directory), **options)
        except lmdb.Error as error:
            if _IN_PROCESS not in str(error) or (not tries and os.getpid() == _main_pid):
                raise
        if tries:
            sleep(NEW_FILE_WAIT_SECONDS)
    with _told_apart_by_process():
        return lmdb.open(str(directory), **options)


@contextmanager
def _told_apart_by_process() -> Iterator[None]:
    """Meanwhile py-lmdb tells open files of this process from those that the parent had open at the fork."""
    identity: Any = sys.modules.get("lmdb._envid")
    real = getattr(identity, "env_keys", None)
    if real is None:  # A version of py-lmdb that does it otherwise.
        yield
        return
    identity.env_keys = lambda path, subdir: tuple((os.getpid(), key) for key in real(path, subdir))
    try:
        yield
    finally:
        identity.env_keys = real


def reserve_lock_file(directory: Path) -> None:
    """Have the space of the mapped table of readers: a slot first used on a full disk would be SIGBUS.

    Before the environment is open: closing any descriptor of the file drops LMDB's locks on it.
    """
    path = directory / "lock.mdb"
    try:
        if not path.exists() or path.stat().st_blocks * 512 < _LOCK_FILE_BYTES:
            files.reserve(path, _LOCK_FILE_BYTES)
    except OSError as error:
        if files.is_full(error):
            raise StoreFullError(path, "no room for the table of readers; free some space") from None
        raise
