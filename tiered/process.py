"""What the operating system says of this process, gives back to it, and lets others do before it.

Every figure is 0 where the system does not tell (anything but Linux).  `ctypes` is imported where
it is used, long after the start of a program.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import lru_cache

NICER = 5
"""By how much the helper is nicer than its program: with a third of the weight it seldom gets two turns in a row."""


def _field(path: str, name: bytes) -> int:
    try:
        with open(path, "rb") as lines:
            for line in lines:
                if line.startswith(name):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def rss_anon_bytes() -> int:
    """Anonymous resident memory: heap and stacks, without mapped files."""
    return _field("/proc/self/status", b"RssAnon:") * 1024


def rss_file_bytes() -> int:
    """Resident pages of mapped files, LMDB's among them: the system's cache, which it takes back as it likes."""
    return _field("/proc/self/status", b"RssFile:") * 1024


def written_bytes() -> int:
    """Bytes this process caused to be written to devices."""
    return _field("/proc/self/io", b"write_bytes:")


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    import ctypes

    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return trim


def trim_heap() -> None:
    """Have the C library give its whole free pages back, where it can (glibc)."""
    try:
        trim = _malloc_trim()
    except OSError:  # No descriptor is left to import ctypes with.
        return
    if trim is not None:
        trim(0)


def give_way(program: int) -> None:
    """Let that process go first where there is more to do than processors; this one then is its helper.

    Measured on two processors with a third process at work, while a million keys expired, looking at operations that
    waited for 2 ms or longer because the helper had their processor: 39 of 321 waited for more than one turn of it, and
    so for 8 ms or more, up to 28; with a helper nicer by 5 it was 3 of 288, up to 8 ms.  By 10 was no better.

    Linux does not let a batch process interrupt another when it is woken, as every checkpoint does.  And it may weigh
    sessions against each other before it looks at what is in them (autogroup), and the helper has one of its own.

    Downside: on a machine that other programs keep busy, checkpoints take longer, and so does waiting for them.
    """
    with contextlib.suppress(OSError):
        os.nice(NICER)
    with contextlib.suppress(OSError, AttributeError):  # Not every system has these.
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with contextlib.suppress(OSError, ValueError):
        with open(f"/proc/{program}/autogroup") as group:
            nice = int(group.read().rpartition("nice")[2])
        with open("/proc/self/autogroup", "w") as group:
            group.write(str(min(19, nice + NICER)))


def exchange_names(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Give two files or directories each other's name, atomically; False where the system or its file system cannot."""
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, numbers of the kernel's interface.
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
