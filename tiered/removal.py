"""Files that are of no use any more, removed outside the store's lock.

To remove a file the file system may wait for its own journal, and it gives the space back piece by piece: of a segment
of 8 MB, 3 ms were measured on a busy machine.  So who holds the lock only notes it, and who has let go of it removes
it.  Whoever needs it gone calls `run`, too, and waits there for others who are at it: after the end of a store its
names may belong to another's files.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from tiered import files
from tiered.log import LOG
from tiered.process import by_handler


class Removal:
    """Files to be removed.  Any thread may call anything."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self._running = threading.RLock()

    def add(self, path: Path) -> None:
        """Note a file."""
        self.paths.append(path)

    @property
    def entered(self) -> bool:
        """Whether this thread is in the middle of `run`."""
        return bool(self._running._is_owned())  # type: ignore[attr-defined]

    def run(self) -> None:
        """Remove what was noted: all of it is gone when this returns, or logged as not removable."""
        with self._running:
            while self.paths:
                path = self.paths[0]
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    if by_handler(error):
                        raise
                    # In nobody's way: the next open finds it applied, and removes it.
                    LOG.warning("%s: applied, but cannot be removed: %s", path, error)
                # Afterwards: an interrupt leaves it to the next call.
                del self.paths[0]


def remove_cold(directory: Path, number: int) -> None:
    """Remove a cold tier that is not the live one; processes that still read it keep their mapping."""
    remove_tree(files.cold_path(directory, number), ignore_errors=True)


def remove_tree(directory: Path, ignore_errors: bool = False) -> None:
    """Remove a directory and what is in it, but nothing that a link leads to.

    An interrupt leaves the rest, and is not lost, as it may be in `shutil`.
    """
    try:
        if os.path.islink(directory) or not os.path.isdir(directory):
            os.unlink(directory)
            return
        for name in os.listdir(directory):
            remove_tree(directory / name, ignore_errors)
        os.rmdir(directory)
    except OSError:
        if not ignore_errors:
            raise
