"""How a command is run: its exit status, its errors as one line on stderr, a process of its own, a bar of progress.

    0    done, nothing wrong
    1    not done, and nothing was changed: no such store, locked, no room, no permission
    2    called wrongly
    3    damage was found: in the file or store that was read
    4    no such key
    5    the doctor has something to say
    6    not all rows were taken; the others are in the store
    130  interrupted (Ctrl-C); what was done before it stays
    141  whoever read the output had enough of it

A command runs in a forked process: LMDB has no checksums over its pages, and a damaged one may
end whoever reads it.  That is a finding then.  This module needs nothing but the package: the scripts in `tools/` use
it as well.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tiered.errors import CorruptionError, TieredError

DONE, FAILED, USAGE, DAMAGED, ABSENT, ADVICE, PARTLY, INTERRUPTED, PIPE = 0, 1, 2, 3, 4, 5, 6, 130, 141
STATUS = (
    "Exit status: 0 done, 1 not done and nothing changed, 2 called wrongly, 3 damage found, 4 no such key, "
    "5 doctor's advice, 6 not all rows taken."
)
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
MAKE_ONE = "check the path; 'tiered-cli load' makes a store"
_ADVICE = {
    "; open with flag='c' to create one": f"; {MAKE_ONE}",
    "with force=True": "with --force",
    ", or open with flag='r'": "",
    "tiered.salvage(path)": "'tiered-cli repair'",
}
MISSING = "needs {}: pip install 'tiered[cli]'"
Progress = Callable[[int, int | None], object]


class Failure(Exception):
    """What a command says when it cannot do what it was asked to: one line with the next step, and its status."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status


class Enough(Exception):
    """Whoever reads the output has had enough of it."""


def program() -> str:
    """The name that errors begin with."""
    name = os.path.basename(sys.argv[0])
    return "tiered-cli" if name in ("__main__.py", "") else name


def complain(text: str) -> None:
    """A line on stderr."""
    print(f"{program()}: {' '.join(text.split())}", file=sys.stderr)


def run(command: Callable[[], int | None]) -> int:
    """The exit status of a command, which runs in a process of its own."""
    return _apart(lambda: _guarded(command))


def _guarded(command: Callable[[], int | None]) -> int:
    """The status that it returns, or that of what it raises, which is one line on stderr."""
    try:
        status = command() or DONE
        sys.stdout.flush()
        return status
    except CorruptionError as error:
        status, text = DAMAGED, in_words_of_the_command_line(str(error))
    except Failure as error:
        status, text = error.status, str(error)
    except (BrokenPipeError, Enough):
        # What is still to be written would be complained of at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE
    except TieredError as error:
        status, text = FAILED, in_words_of_the_command_line(str(error))
    except OSError as error:
        status, text = FAILED, f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except RecursionError:
        status, text = (
            FAILED,
            "a value is nested too deeply to be shown or taken as text; 256 levels are sure to be kept",
        )
    except KeyboardInterrupt:
        status, text = INTERRUPTED, "interrupted"
    complain(text)
    return status


def in_words_of_the_command_line(text: str) -> str:
    """An error's text, whose advice is for programs."""
    for advice, instead in _ADVICE.items():
        text = text.replace(advice, instead)
    return text


def _apart(run: Callable[[], int]) -> int:
    """The status of `run` in a process of its own; if that crashes, pages of LMDB are damaged.

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
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else FAILED
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
    died = f"the process that read them died of signal {-status} ({signal.Signals(-status).name})"
    if -status not in CRASHES:
        complain(died.replace("read them", "did it"))
        return 128 - status
    print(f"damaged store: LMDB's pages are damaged: {died}", flush=True)
    complain("damaged; keep the store as it is, and restore from a snapshot that verifies, or try 'tiered-cli repair'")
    return DAMAGED


@contextmanager
def bar(title: str, quiet: bool = False) -> Iterator[Progress | None]:
    """A bar for the progress of something, on stderr; None where that is no terminal, or `rich` is not there."""
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
        columns.TextColumn(title, markup=False),
        columns.BarColumn(),
        columns.MofNCompleteColumn(),
        columns.TimeRemainingColumn(),
    )
    with columns.Progress(*parts, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
