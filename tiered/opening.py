"""From a path to an engine: what is there, who has it, what the journal still holds."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tiered import files, mark, recovery, removal
from tiered.checkpoint import Applier
from tiered.clock import Clock
from tiered.cold import Cold
from tiered.config import Settings
from tiered.engine import Engine
from tiered.errors import (
    ConfigError,
    CorruptionError,
    LockedError,
    NotAStoreError,
    ReadOnlyError,
    StoreError,
    StoreFullError,
    UnsupportedError,
)
from tiered.follower import Follower
from tiered.helper import APPLY_WAIT_SECONDS
from tiered.journal import Journal
from tiered.log import LOG

UNFINISHED_BYTES_MAX = 1 << 16
"""A cold tier without any record is smaller."""
FLAGS = {"c": "create if missing", "w": "existing", "r": "existing, read-only", "n": "always new"}


def check_arguments(
    path: str | os.PathLike[str], flag: str, explicit: Mapping[str, object], lock_timeout: float
) -> Path:
    """Refuse wrong arguments before anything is touched; the store's directory."""
    if flag not in FLAGS:
        raise ConfigError(f"flag={flag!r} is not one of {', '.join(f'{f!r} ({text})' for f, text in FLAGS.items())}")
    if isinstance(lock_timeout, bool) or not isinstance(lock_timeout, (int, float)) or not lock_timeout >= 0:
        raise ConfigError(f"lock_timeout={lock_timeout!r} is not a number of seconds from 0 on")
    name = os.fsdecode(path)
    if not name:
        raise ConfigError("path='' names no directory; '.' is the one that this program is in")
    if "\0" in name:
        raise NotAStoreError(name, "no path: it holds a null character")
    directory = Path(os.path.abspath(name))
    if sys.platform == "win32":
        raise UnsupportedError(directory, "Windows is not supported: the journal and the locks need a POSIX system")
    Settings.resolve(explicit, {})
    return directory


def open_engine(
    directory: Path,
    flag: str,
    explicit: Mapping[str, object],
    lock_timeout: float,
    allow_network: bool,
    clock: Clock,
) -> Engine:
    """The engine of the store in a directory.  Raises the errors of `errors` and nothing else."""
    settings = Settings.resolve(explicit, {})
    with named_errors(directory):
        LOG.prepare()
        _check_path(directory, flag)
        refuse_network(directory, allow_network)
        if flag == "r":
            return _open_readonly(directory, explicit, clock)
        return _open_writable(directory, flag, explicit, settings, lock_timeout, clock)


def refuse_network(directory: Path, allow_network: bool) -> None:
    """Raise `UnsupportedError` for a network file system that was not allowed."""
    if not allow_network and (kind := files.filesystem_type(_existing(directory))) in files.NETWORK_FILESYSTEMS:
        raise UnsupportedError(
            directory,
            f"on a network file system ({kind}), where locks and mapped files cannot be trusted; "
            "use a local disk, or open with allow_network=True",
        )


@contextlib.contextmanager
def named_errors(directory: Path) -> Iterator[None]:
    """Turn errors of the system into this package's."""
    try:
        yield
    except PermissionError as error:
        raise ReadOnlyError(
            error.filename or directory, f"{error.strerror}; check its permissions; reading needs flag='r' only"
        ) from None
    except OSError as error:
        if files.is_full(error):
            raise StoreFullError(directory, "the disk is full; free some space") from None
        if error.errno == errno.EROFS:
            raise ReadOnlyError(directory, "the file system is read-only; open with flag='r'") from None
        if error.errno == errno.EMFILE:
            raise StoreError(directory, files.TOO_MANY_FILES) from None
        raise StoreError(error.filename or directory, f"{error.strerror or error}") from error


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _check_path(directory: Path, flag: str) -> None:
    if directory.is_dir():
        names = os.listdir(directory)
        strange = [name for name in names if not files.is_store_file(name)]
        if files.CURRENT not in names and strange:
            raise NotAStoreError(directory, f"a directory that is not a store; it holds {strange[0]!r}")
        if files.CURRENT not in names and flag in "rw":
            raise NotAStoreError(directory, "no store there; open with flag='c' to create one")
    elif directory.exists():
        raise NotAStoreError(directory, "a file, where a store is a directory")
    elif flag in "rw":
        raise NotAStoreError(directory, "no store there; open with flag='c' to create one")


def _read_current(directory: Path) -> int | None:
    try:
        return files.read_current(directory)
    except ValueError as error:
        raise CorruptionError(
            directory / files.CURRENT, f"{error}; tiered.salvage(path) finds the one to name"
        ) from None


def _open_readonly(directory: Path, explicit: Mapping[str, object], clock: Clock) -> Engine:
    for attempt in range(5):
        number = _read_current(directory)
        assert number is not None
        try:
            cold = Cold(files.cold_path(directory, number), readonly=True)
            break
        except StoreError:
            # A compaction may have replaced the cold tier between the two steps.
            if attempt == 4 or _read_current(directory) == number:
                raise
    with contextlib.ExitStack() as undo:
        undo.callback(cold.close)
        engine = Follower(directory, explicit, cold, clock)
        undo.pop_all()
    return engine


def _open_writable(
    directory: Path,
    flag: str,
    explicit: Mapping[str, object],
    settings: Settings,
    lock_timeout: float,
    clock: Clock,
) -> Engine:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as undo:
        lock = files.FileLock(directory / files.LOCK)
        lock.acquire(lock_timeout)
        undo.callback(lock.release)
        apply_lock = lock_applying(directory)
        undo.callback(apply_lock.release)
        number = None if flag == "n" else _read_current(directory)
        if flag == "n" and files.CURRENT in os.listdir(directory):
            cold = _emptied(directory, settings)
        elif number is None:
            number = 1
            if flag != "n":
                _check_unfinished(directory)
            _remove_contents(directory)
            cold = _create(directory, number, settings)
        else:
            cold = Cold(files.cold_path(directory, number))
        undo.callback(cold.close)
        engine = _recover(directory, cold, explicit, lock, clock)
        apply_lock.release()
        undo.pop_all()
    return engine


def lock_applying(directory: Path) -> files.FileLock:
    """Take the APPLY lock, waiting for a helper that is still at it."""
    lock = files.FileLock(directory / files.APPLY)
    try:
        lock.acquire(APPLY_WAIT_SECONDS)
    except LockedError:
        raise LockedError(
            directory, f"the helper of a program that is gone has not finished within {APPLY_WAIT_SECONDS:.0f} s"
        ) from None
    return lock


def _check_unfinished(directory: Path) -> None:
    """Without CURRENT there is a store that was never finished, or one that lost it: that is not thrown away."""
    with_data = files.segment_numbers(directory) + [number for number in files.cold_numbers(directory) if number != 1]
    path = files.cold_path(directory, 1)
    if not with_data and (path / "data.mdb").exists() and (path / "data.mdb").stat().st_size:
        try:
            with contextlib.closing(Cold(path)) as cold:
                with_data = [1] if cold.state().applied else []
        except CorruptionError:
            with_data = [1] if (path / "data.mdb").stat().st_size > UNFINISHED_BYTES_MAX else []
    if with_data:
        raise CorruptionError(
            directory / files.CURRENT, "missing, though there are data; tiered.salvage(path) finds the one to name"
        )


def _create(directory: Path, number: int, settings: Settings) -> Cold:
    # Before CURRENT makes a store of it, which nobody would do this for any more.
    files.sync_directory(directory.parent)
    cold = Cold(files.cold_path(directory, number), create=True)
    with contextlib.ExitStack() as undo:
        undo.callback(cold.close)
        with cold.update() as update:
            update.put_settings(settings.remembered())
        files.write_current(directory, number)
        undo.pop_all()
    return cold


def _emptied(directory: Path, settings: Settings) -> Cold:
    """A new cold tier in the place of all there is: whoever is stopped leaves what was there, or nothing."""
    mark.give_up(directory)
    for number in reversed(files.segment_numbers(directory)):  # Without its end it is still what it was at one moment.
        files.segment_path(directory, number).unlink()
    for damaged in files.damaged_paths(directory):
        removal.remove_tree(damaged)
    (directory / files.HOT).unlink(missing_ok=True)
    return _create(directory, files.cold_numbers(directory)[-1] + 1 if files.cold_numbers(directory) else 1, settings)


def _remove_contents(directory: Path) -> None:
    for name in (files.CURRENT, files.SYNCED, files.PREPARED, files.HOT):
        (directory / name).unlink(missing_ok=True)
    for number in files.segment_numbers(directory):
        files.segment_path(directory, number).unlink()
    for number in files.cold_numbers(directory):
        removal.remove_tree(files.cold_path(directory, number))


def _apply(directory: Path, cold: Cold, plan: recovery.Plan, applied: int, compression: str) -> None:
    """Apply what the plan says, a segment at a time, which says how far it is and bounds what a transaction takes."""
    LOG.info("%s: applying %d records that the journal holds", directory, plan.until - applied)
    applier = Applier(directory, cold, compression)
    firsts = [segment.header.first for segment in plan.segments[1:] if segment.header is not None]
    for segment, until in zip(plan.segments, [*(first - 1 for first in firsts), plan.until], strict=True):
        until = min(until, plan.until)
        if until > applied:
            applier.apply([segment], until)
            LOG.info("%s: %s applied; %d records to go", directory, segment.path.name, plan.until - until)
            applied = until
    LOG.info("%s: recovered", directory)


def _import_ahead() -> None:
    """Import what operations of a store that is written will need (`process`, `files`, `helper`), and then do not.

    Ctrl-C in an import may leave the interpreter's lock of that module held, and the background would wait for it.
    """
    import ctypes  # noqa: F401
    import shutil  # noqa: F401
    import subprocess  # noqa: F401


def _recover(directory: Path, cold: Cold, explicit: Mapping[str, object], lock: files.FileLock, clock: Clock) -> Engine:
    """Apply what the journal holds, remove its segments, and start the engine after it."""
    with cold.read() as reader:
        state = reader.state()
        remembered = reader.settings()
    plan = recovery.plan(directory, state.applied)
    if plan.until > state.applied:
        _apply(directory, cold, plan, state.applied, Settings.resolve({}, remembered).compression)
        with cold.read() as reader:
            remembered = reader.settings()
    if plan.torn_at:
        LOG.warning(
            "%s: dropped %d bytes of the journal that never reached the disk as a whole, from %s on",
            directory,
            plan.dropped_bytes,
            plan.torn_at,
        )
    if state.moved:
        with cold.update() as update:
            update.current.moved = False
    for name in (files.SYNCED, files.PREPARED, files.CURRENT_NEW):
        (directory / name).unlink(missing_ok=True)
    numbers = files.segment_numbers(directory)
    for number in numbers:
        files.segment_path(directory, number).unlink()
    live = int(cold.directory.name.rpartition("-")[2])
    others = [number for number in files.cold_numbers(directory) if number != live]
    if numbers or others or not plan.until:
        # Also the name of CURRENT may not be on the disk yet, where who wrote it failed in the end.
        files.sync_directory(directory)
    for number in others:
        removal.remove_cold(directory, number)
    for kept in files.damaged_paths(directory):
        LOG.warning("%s: holds damaged files that were put aside; remove it when they are of no use any more", kept)
    plan.segments = []
    settings = Settings.resolve(explicit, remembered)
    _import_ahead()
    journal = Journal(directory, plan.until + 1, numbers[-1] + 1 if numbers else 1, plan.until)
    engine = Engine(directory, settings, cold, journal, lock, clock, plan)
    engine.look_at_clock()
    changed = {
        name: value
        for name, value in settings.remembered().items()
        if name in explicit and Settings.resolve({}, remembered).remembered()[name] != value
    }
    try:
        for name, value in changed.items():
            with engine.lock:
                sequence = engine.put_setting(name, value)
            engine.acknowledged(sequence)
    except BaseException:
        engine.dismiss()
        raise
    return engine
