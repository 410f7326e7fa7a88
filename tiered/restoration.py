"""A store from a snapshot file.

`restore` reads the file once and verifies it on the way; records go, in key order, in
append mode and as they are, into a new cold tier, in a directory of a temporary
name beside the one wanted.  Only when the file was read to its end, found whole, and
everything is on the disk, does the directory get its name: damage, a full disk or a
kill leave nothing at `path`, and what was there before is untouched.  What a killed restore leaves
is removed by the next one for the same path, since it holds the lock of its directory as long as it lives.

What is restored is the store of that moment: values, deadlines to the millisecond (what
has expired since is gone when it is read, as in any store), settings, dictionaries,
time, and the number of the last write.

Memory: one section of the file and one transaction of LMDB, whatever the size.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tiered import config, files, keys, record, removal
from tiered.cold import Cold
from tiered.cold_update import Update
from tiered.errors import (
    CorruptionError,
    LockedError,
    NotAStoreError,
    ReadOnlyError,
    StoreError,
    StoreExistsError,
    StoreFullError,
)
from tiered.ranges import Range
from tiered.snapshot import SnapshotFile, SnapshotInfo

Progress = Callable[[int, int], object]
MEMORY = "64MB"
TRANSACTION_SHARE = 8
"""A transaction holds the records, its own changed pages, and pages that the C library keeps: so much of the memory."""


def restore(
    file: str | os.PathLike[str],
    path: str | os.PathLike[str],
    memory: int | str | None = None,
    force: bool = False,
    prefix: object = None,
    progress: Progress | None = None,
) -> SnapshotInfo:
    """Make a store at `path` from a snapshot file; returns what was restored.

    `memory` bounds what restoring takes (default 64 MB); the store can be opened with any memory afterwards.
    With `prefix`, only the keys that `store.keys(prefix=…)` would give.  `progress(done, total)` is told of records.
    A store that is there is replaced only with `force`, and at once.  Raises `StoreExistsError`, `LockedError` if
    it is open, `NotAStoreError` where anything else is there or the file is no snapshot, `FormatError`,
    `StoreFullError`, and `CorruptionError` with the offset for a damaged file; `path` is as it was then.
    """
    bounds = Range.of(prefix, None, None, False)
    budget = config.SETTINGS["memory"].parse(MEMORY if memory is None else memory)
    source, target = Path(os.path.abspath(os.fsdecode(file))), Path(os.path.abspath(os.fsdecode(path)))
    try:
        with SnapshotFile(source) as snapshot, contextlib.ExitStack() as undo:
            there = _check_target(target, force)
            if there:
                _lock(target, undo)
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(target)
            fresh = files.temporary_name(target)
            fresh.mkdir(mode=0o700)
            undo.callback(removal.remove_tree, fresh, ignore_errors=True)
            lock = files.FileLock(fresh / files.LOCK)
            lock.acquire()
            undo.callback(lock.release)
            records = _fill(snapshot, fresh, bounds, budget // TRANSACTION_SHARE, progress)
            info = snapshot.info._replace(records=records)
            if there:
                files.exchange(fresh, target)  # What is removed now is the one that was there.
            else:
                files.move(fresh, target)
    except PermissionError as error:
        raise ReadOnlyError(error.filename or target, f"{error.strerror}") from None
    except OSError as error:
        if files.is_full(error):
            raise StoreFullError(target, "the disk is full; free some space, and restore again") from None
        raise StoreError(error.filename or target, f"not restored: {error.strerror or error}") from error
    return info


def _check_target(target: Path, force: bool) -> bool:
    """Whether a store is there, which may be replaced; raises what forbids it."""
    if not target.exists():
        return False
    names = os.listdir(target) if target.is_dir() else [target.name]
    if not names:
        return False
    if not target.is_dir() or files.CURRENT not in names or not all(map(files.is_store_file, names)):
        raise NotAStoreError(target, "there, and no store, or one with other files in it; choose another path")
    if not force:
        raise StoreExistsError(target, "a store is there; restore it elsewhere, or replace it with force=True")
    return True


def _lock(target: Path, undo: contextlib.ExitStack) -> None:
    """Keep everybody else from opening the store that is to be replaced."""
    for name in (files.LOCK, files.APPLY):
        lock = files.FileLock(target / name)
        lock.acquire()
        undo.callback(lock.release)


def _remove_leftovers(target: Path) -> None:
    """Remove what killed restores to this path left."""
    for leftover in files.temporaries(target):
        if leftover.is_dir():
            lock = files.FileLock(leftover / files.LOCK)
            with contextlib.suppress(LockedError, FileNotFoundError):
                lock.acquire()
                try:
                    removal.remove_tree(leftover, ignore_errors=True)
                finally:
                    lock.abandon()


def _fill(snapshot: SnapshotFile, fresh: Path, bounds: Range, limit: int, progress: Progress | None) -> int:
    """Make the new store in its directory, durably; returns its number of records."""
    about = snapshot.about
    cold = Cold(files.cold_path(fresh, 1), create=True)
    try:
        with cold.update() as update:
            update.put_settings(about.settings)
            state = update.current
            state.applied, state.time_ms = about.sequence, about.time_ms
        items: list[tuple[bytes, bytes]] = []
        size = done = 0
        for part in snapshot.read():
            if isinstance(part[0], int):
                with cold.update() as update:
                    _put_dictionary(update, part[0], part[1], about.dictionary, about.dictionary_next)
                continue
            done += len(part[0])
            chosen = list(_chosen(snapshot.path, bounds, *part))
            items += chosen
            size += sum(len(data) for _, data in chosen)
            if size + 64 * len(items) >= limit:
                with cold.update() as update:
                    update.append_records(items)
                items, size = [], 0
            if progress is not None:
                progress(done, max(done, about.records))
        with cold.update() as update:
            update.append_records(items)
            records = update.current.records
    finally:
        cold.close()
    files.write_current(fresh, 1)
    return records


def _put_dictionary(update: Update, number: int, data: bytes, current: int, following: int) -> None:
    update.put_dictionary(number, data)
    if number == current:
        update.current.dictionary = current
    update.current.dictionary_next = max(following, number + 1)


def _chosen(path: Path, bounds: Range, stored: list[bytes], datas: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The records whose keys lie in a range."""
    items = zip(stored, datas, strict=True)
    if not bounds.lower and bounds.upper is None:
        return items
    return (item for item in items if _holds(path, bounds, *item))


def _holds(path: Path, bounds: Range, stored_key: bytes, data: bytes) -> bool:
    if not keys.is_long(stored_key):
        return bounds.holds(stored_key)
    try:
        found = record.unpack(stored_key, data)
    except ValueError as error:
        raise CorruptionError(path, f"damaged record under stored key {stored_key[:60]!r}: {error}") from None
    return found is not None and bounds.holds(found.full_key)
