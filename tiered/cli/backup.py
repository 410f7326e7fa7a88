"""Snapshots, restoring, verifying and repairing, as commands do it: what they say, and their exit status.

Nothing here needs more than the package: `tools/snapshot.py` and `tools/restore.py` call the same.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tiered import files, recovery, removal
from tiered.cli import output
from tiered.cli.running import DAMAGED, DONE, Failure, bar
from tiered.errors import TieredError
from tiered.restoration import restore as restore_store
from tiered.salvaging import Salvaged
from tiered.salvaging import salvage as salvage_store
from tiered.snapshot import SnapshotInfo
from tiered.store import open as open_store
from tiered.verification import verify as verify_path

_ADVICE = "damaged; keep it as it is, and restore from a snapshot that verifies"


def snapshot(store: str, file: str, verify: bool = False, quiet: bool = False, as_json: bool = False) -> int:
    """Make a snapshot file of a store, which another program may have open: then of its last checkpoint."""
    with open_store(store, "r") as reader:
        with bar(f"snapshot of {store}", quiet) as progress:
            info = reader.snapshot(file, progress)
        newer = _newer(Path(reader.path), info.sequence)
    text = _described(info) + (f"; {newer:,} later writes are in the journal still" if newer else "")
    return _told({**info._asdict(), "newer_records": newer}, text, file if verify else None, quiet, as_json)


def restore(
    file: str,
    store: str,
    force: bool = False,
    prefix: Any = None,
    verify: bool = False,
    quiet: bool = False,
    as_json: bool = False,
) -> int:
    """Make a store from a snapshot file."""
    with bar(f"restoring {store}", quiet) as progress:
        info = restore_store(file, store, force=force, prefix=prefix, progress=progress)
    text = f"{store}: {info.records:,} records, as of {moment(info.as_of)}"
    return _told({**info._asdict(), "store": store}, text, store if verify else None, quiet, as_json)


def verified(path: str, quiet: bool = False, as_json: bool = False) -> int:
    """Read a snapshot file or a store to its end; a line on stdout for everything that is wrong."""
    return _told({"path": path}, "", path, quiet, as_json)


def _told(done: dict[str, Any], text: str, verify: str | None, quiet: bool, as_json: bool) -> int:
    """Say what was done; read what is at the path `verify`, and say what is wrong there."""
    if text and not as_json:
        say(text, quiet)
    findings = []
    if verify is not None:
        with bar(f"verifying {verify}", quiet) as progress:
            findings = verify_path(verify, progress)
        if as_json:
            done["findings"] = [finding._asdict() for finding in findings]
        else:
            for finding in findings:
                output.write(f"{finding.what}: {finding.where}: {finding.detail}")
            if not findings:
                say(f"{verify}: all is well", quiet)
    if as_json:
        output.document(done)
    if findings:
        print(f"{verify}: {_ADVICE}", file=sys.stderr)
    return DAMAGED if findings else DONE


def repair(store: str, into: str) -> Salvaged:
    """Make a new store `into` of what can be saved of a damaged one, which stays as it is; none of one that is whole.

    Works on a copy of the files, under a temporary name until all is done.
    """
    source, target = Path(os.path.abspath(store)), Path(os.path.abspath(into))
    if not source.is_dir() or not files.cold_numbers(source):
        raise Failure(f"{store}: no store there; check the path")
    if target.exists():
        raise Failure(f"{into}: is there already; name a new directory")
    for leftover in files.temporaries(target):  # Of one that a damaged page ended.
        removal.remove_tree(leftover)
    fresh = files.temporary_name(target)
    try:
        shutil.copytree(source, fresh, ignore=_beside_the_data)
        os.chmod(fresh, 0o700)
        salvaged = salvage_store(fresh)
        for kept in files.damaged_paths(fresh):
            removal.remove_tree(kept)
        if salvaged.damage:
            files.move(fresh, target)
        return salvaged._replace(path=str(target))
    finally:
        if fresh.exists():
            removal.remove_tree(fresh)


def _beside_the_data(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if name in (files.LOCK, files.APPLY, "lock.mdb") or name.startswith("damaged-")]


def _newer(directory: Path, sequence: int) -> int:
    """How many writes the journal holds that the last checkpoint does not."""
    try:
        return max(0, recovery.plan(directory, sequence).until - sequence)
    except (TieredError, OSError):
        return 0  # Its writer is at work, or `verify` has more to say about it.


def _described(info: SnapshotInfo) -> str:
    return f"{info.path}: {info.records:,} records, {info.file_bytes:,} bytes, as of {moment(info.as_of)}"


def moment(seconds: float) -> str:
    """A time in words."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "its beginning"


def say(text: str, quiet: bool = False) -> None:
    """A line on stdout, unless nothing is to be said."""
    if not quiet:
        output.write(text)
