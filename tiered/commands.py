"""What the command line does, whichever way it is called: `tiered-cli` (`cli`), or the scripts in `tools/`.

Each command returns its exit status, so that cron and scripts can tell what happened:

    0  done, nothing wrong
    1  not done, and nothing was changed: no such store, locked, no room, no permission
    2  called wrongly
    3  damage was found: in the file or store that was read

`verify` and `salvage` read a store in a process of its own: LMDB has no checksums over its pages, and a damaged one may
end whoever reads it.  That is a finding then.

An error of the user's is one line on stderr, without a traceback.  The progress bar is on
stderr, if that is a terminal and `rich` is there.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiered import recovery
from tiered.errors import CorruptionError, TieredError
from tiered.restoration import restore as restore_store
from tiered.salvaging import salvage as salvage_store
from tiered.snapshot import SnapshotInfo
from tiered.store import open as open_store
from tiered.verification import verify as verify_path

DONE, FAILED, USAGE, DAMAGED, INTERRUPTED = 0, 1, 2, 3, 130
STATUS = "Exit status: 0 done, 1 not done and nothing changed, 2 called wrongly, 3 damage found."
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
_ADVICE = {"; open with flag='c' to create one": "", "with force=True": "with --force", ", or open with flag='r'": ""}
Progress = Callable[[int, int], object]


def snapshot(store: str, file: str, verify: bool = False, quiet: bool = False) -> int:
    """Make a snapshot file of a store, which another program may have open: then of its last checkpoint."""

    def run() -> int:
        with open_store(store, "r") as reader:
            with _bar(f"snapshot of {store}", quiet) as progress:
                info = reader.snapshot(file, progress)
            newer = _newer(Path(reader.path), info.sequence)
        _say(_described(info) + (f"; {newer:,} later writes are in the journal still" if newer else ""), quiet)
        return _verified(file, quiet) if verify else DONE

    return _guarded(run)


def restore(
    file: str, store: str, force: bool = False, prefix: Any = None, verify: bool = False, quiet: bool = False
) -> int:
    """Make a store from a snapshot file."""

    def run() -> int:
        with _bar(f"restoring {store}", quiet) as progress:
            info = restore_store(file, store, force=force, prefix=prefix, progress=progress)
        _say(f"{store}: {info.records:,} records, as of {_moment(info.as_of)}", quiet)
        return _verified(store, quiet) if verify else DONE

    return _guarded(run)


def verify(path: str, quiet: bool = False) -> int:
    """Read a snapshot file or a store to its end; a line on stdout for everything that is wrong."""
    return _apart(path, lambda: _guarded(lambda: _verified(path, quiet)))


def salvage(store: str, quiet: bool = False) -> int:
    """Make a damaged store one that opens; a line on stdout for what was wrong and for each lost key that is known."""

    def run() -> int:
        done = salvage_store(store)
        if not done.damage:
            _say(f"{store}: all is well, nothing was changed", quiet)
            return DONE
        print(*done.damage, *(f"lost: {key!r}" for key in done.lost_keys), sep="\n")
        more = "" if done.lost_all_known else " at least"
        print(
            f"{store}: opens again, with {done.records:,} records;{more} {done.lost_records:,} are lost, and "
            f"{done.dropped_bytes:,} bytes of the journal; what was damaged is kept in {done.kept_in}",
            file=sys.stderr,
        )
        return DAMAGED

    return _apart(store, lambda: _guarded(run))


def _apart(path: str, run: Callable[[], int]) -> int:
    """The status of `run` in a process of its own; if that crashes, the store's pages are damaged.

    Forked, since a command line has no threads yet, and what is said goes where it would have gone.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        status = FAILED
        try:
            status = run()
            sys.stdout.flush()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    # A terminal interrupts both, and the child says what came of it; others tell this one alone that it is to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status >= 0:
        return status
    died = f"died of signal {-status} ({signal.Signals(-status).name})"
    if -status not in CRASHES or not os.path.isdir(path):
        print(f"{os.path.basename(sys.argv[0])}: the process that read {path} {died}", file=sys.stderr)
        return 128 - status
    print(f"damaged store: {path}: LMDB's pages are damaged: the process that read them {died}")
    print(f"{path}: damaged; keep it as it is, and restore from a snapshot that verifies", file=sys.stderr)
    return DAMAGED


def _verified(path: str, quiet: bool) -> int:
    with _bar(f"verifying {path}", quiet) as progress:
        findings = verify_path(path, progress)
    for finding in findings:
        print(f"{finding.what}: {finding.where}: {finding.detail}")
    if not findings:
        _say(f"{path}: all is well", quiet)
        return DONE
    print(f"{path}: damaged; keep it as it is, and restore from a snapshot that verifies", file=sys.stderr)
    return DAMAGED


def _newer(directory: Path, sequence: int) -> int:
    """How many writes the journal holds that the last checkpoint does not."""
    try:
        return max(0, recovery.plan(directory, sequence).until - sequence)
    except (TieredError, OSError):
        return 0  # Its writer is at work, or `verify` has more to say about it.


def _described(info: SnapshotInfo) -> str:
    return f"{info.path}: {info.records:,} records, {info.file_bytes:,} bytes, as of {_moment(info.as_of)}"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "its beginning"


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text)


def _guarded(run: Callable[[], int]) -> int:
    """What `run` returns, or the status of what it raises, which is one line on stderr."""
    try:
        return run()
    except CorruptionError as error:
        status, text = DAMAGED, str(error)
    except (TieredError, OSError) as error:
        status, text = FAILED, _in_words_of_the_command_line(str(error))
    except KeyboardInterrupt:
        status, text = INTERRUPTED, "interrupted; nothing was changed"
    print(f"{os.path.basename(sys.argv[0])}: {' '.join(text.split())}", file=sys.stderr)
    return status


def _in_words_of_the_command_line(text: str) -> str:
    """An error's text, whose advice is for programs."""
    for advice, instead in _ADVICE.items():
        text = text.replace(advice, instead)
    return text


@contextmanager
def _bar(title: str, quiet: bool) -> Iterator[Progress | None]:
    """A bar for the progress of something."""
    columns: Any = None
    if not quiet and sys.stderr.isatty():
        try:
            from rich import progress as columns
        except ImportError:
            columns = None
    if columns is None:
        yield None
        return
    from rich.console import Console

    parts = (
        columns.TextColumn(title),
        columns.BarColumn(),
        columns.MofNCompleteColumn(),
        columns.TimeRemainingColumn(),
    )
    with columns.Progress(*parts, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
