"""What the operating system says of this process, and gives back to it.

Every figure is 0 where the system does not tell (anything but Linux).  `ctypes` is imported where
it is used, long after the start of a program.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache


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


def exchange_names(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Give two files or directories each other's name, atomically; False where the system or its file system cannot."""
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, numbers of the kernel's interface.
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
