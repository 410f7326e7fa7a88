"""The scheduled snapshots of one store in their directory: names, which is the newest, which go.

    NAME-20260102T030405Z-SEQUENCE.tsnap     NAME is that of the store's directory, the time is in UTC

so that names sort by time.  A directory may hold those of several stores, and other
files: only what has such a name, and says itself that it is of a store at the same path, is ever
removed.  A new snapshot has been read back and has its name before an older one
goes, so the last good one never does.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from tiered import files
from tiered.errors import StoreError
from tiered.snapshot import About, SnapshotFile

_NAME = re.compile(r"(.+)-(\d{8}T\d{6})Z-(\d{12,})\.tsnap")


def directory_of(store: Path, setting: str | None) -> Path:
    """Where a store's scheduled snapshots go: beside the store where the setting names nothing."""
    return Path(setting) if setting is not None else store.with_name(f"{store.name}.snapshots")


def path_for(directory: Path, store: Path, now_ms: int, sequence: int) -> Path:
    """The file of a snapshot that is made now."""
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_ms / 1000))
    return directory / f"{store.name}-{moment}-{sequence:012d}.tsnap"


def snapshots(directory: Path, store: str) -> list[tuple[Path, About]]:
    """Those of one store with what they say of themselves, oldest first; unreadable ones are left out."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            match = _NAME.fullmatch(name)
            if match is not None and match[1] == os.path.basename(store):
                with contextlib.suppress(StoreError), SnapshotFile(directory / name) as file:
                    if file.about.store == store:
                        found.append((directory / name, file.about))
    return sorted(found, key=lambda each: each[0].name)


def retain(newest: Path, store: str, keep: int) -> None:
    """Remove all but the newest `keep` snapshots of a store, of which `newest` was just made."""
    others = [path for path, _ in snapshots(newest.parent, store) if path != newest]
    for path in others[: max(0, len(others) - (keep - 1))]:
        path.unlink(missing_ok=True)


def remove_leftovers(path: Path, store: str) -> None:
    """Remove what killed programs left of scheduled snapshots of this store, whatever their time."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(path.parent):
            final = files.final_name(name)
            match = _NAME.fullmatch(final) if final is not None else None
            if match is not None and match[1] == os.path.basename(store):
                files.remove_leftovers(path.with_name(final or ""))
