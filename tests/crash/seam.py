"""The seam under a program: every system call that changes a store's files, and a disk that loses what was not synced.

`seam.c` is preloaded into the programs that use this module (`programs`), so that LMDB's calls are seen as well as
Python's.  `watched` tells a function of each call before and after it is made, which may have it fail; `Disk` keeps
what of a directory is on the disk for sure, and makes what a power cut at this moment may leave.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import programs

SECTOR = 512
SHM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
KINDS = {
    "w": "write",
    "s": "sync",
    "r": "rename",
    "u": "unlink",
    "o": "open",
    "m": "map",
    "a": "allocate",
    "t": "truncate",
    "d": "directory",
}
_LIBRARY = "SEAM_LIBRARY"
_HOOK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_longlong, ctypes.c_longlong
)


def compiled(folder: Path) -> Path | None:
    """The library, compiled into a folder; None where there is no C compiler."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    library = folder / "seam.so"
    source = Path(__file__).with_name("seam.c")
    if not sys.platform.startswith("linux") or shutil.which(compiler) is None:
        return None
    command = [compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", str(source)]
    subprocess.run([*command, "-o", str(library), "-ldl"], check=True)
    return library


def run(library: Path, program: str, *arguments: object, timeout: float = 120.0) -> str:
    """Run one of the programs beside this module under the seam, to its end, which must be a good one; what it says."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((programs.ROOT, str(Path(programs.__file__).parent)))}
    environment |= {"LD_PRELOAD": str(library), _LIBRARY: str(library)}
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name(program)), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{program} {arguments}: ended with {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


class Call(NamedTuple):
    """One system call on a file below the directory that is watched."""

    kind: str
    fd: int
    path: str
    offset: int
    size: int


@contextmanager
def watched(root: Path, told: Callable[[Call, bool], int]) -> Iterator[None]:
    """Have `told(call, after)` called for every call below `root`; what it returns before a call is its error."""
    library = ctypes.CDLL(os.environ[_LIBRARY])

    def hook(kind: int, after: int, fd: int, path: bytes, offset: int, size: int) -> int:
        return told(Call(chr(kind), fd, os.fsdecode(path), offset, size), bool(after))

    kept = _HOOK(hook)
    library.seam_begin(os.fsencode(root), kept)
    try:
        yield
    finally:
        library.seam_end()


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory in memory, where there is one: what was synced is known to the model, not to the medium."""
    name = tempfile.mkdtemp(prefix="tiered-seam-", dir=SHM)
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name)


Names = dict[str, dict[str, int]]
"""Of each directory, relative to the root: its entries, and the inode of each."""


class Image(NamedTuple):
    """All files below a directory at one moment, and what of them is on the disk for sure."""

    names: Names
    contents: dict[int, bytes]
    durable_names: Names
    durable: dict[int, bytes]


class Disk:
    """What of the files below `root` is on the disk: told of every call, it knows what was synced when."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._kept: dict[bytes, bytes] = {}
        self._directories: set[int] = set()
        names, contents = self._now()
        self._durable_names, self._durable = names, contents
        self._gone: dict[int, bytes] = {}
        self._dropped: dict[int, dict[int, bytes]] = {}

    def _intern(self, data: bytes) -> bytes:
        return self._kept.setdefault(data, data)

    def _now(self) -> tuple[Names, dict[int, bytes]]:
        names: Names = {}
        contents: dict[int, bytes] = {}
        for folder, _, _ in os.walk(self.root):
            entries = names[os.path.relpath(folder, self.root)] = {}
            for entry in os.scandir(folder):
                if entry.name == "lock.mdb":
                    continue  # Made anew by whoever opens an environment that nobody has open.
                entries[entry.name] = entry.inode()
                if entry.is_dir():
                    self._directories.add(entry.inode())
                else:
                    contents[entry.inode()] = self._intern(Path(entry.path).read_bytes())
        return names, contents

    def told(self, call: Call, after: bool) -> None:
        """Heed a call: to be told before and after each."""
        if call.kind in "ur" and not after:
            gone = call.path.replace(".new", "") if call.kind == "r" else call.path
            if os.path.isfile(gone):
                self._gone[os.stat(gone).st_ino] = self._intern(Path(gone).read_bytes())
        elif call.kind == "s" and after:
            self._synced(call)
        if call.kind == "w" and after and self._dropped:
            at = call.offset if call.offset >= 0 else os.lseek(call.fd, 0, os.SEEK_CUR) - call.size
            for sector in range(at // SECTOR * SECTOR, at + call.size, SECTOR):  # To be written, from now on.
                self._dropped.get(os.fstat(call.fd).st_ino, {}).pop(sector, None)
        if call.kind == "w" and after and fcntl.fcntl(call.fd, fcntl.F_GETFL) & os.O_DSYNC:
            data = self._durable.get(os.fstat(call.fd).st_ino, b"")
            written = Path(call.path).read_bytes()[call.offset : call.offset + call.size]
            data = data.ljust(call.offset + call.size, b"\0")
            data = data[: call.offset] + written + data[call.offset + call.size :]
            self._durable[os.fstat(call.fd).st_ino] = self._intern(data)

    def failed(self, call: Call) -> None:
        """A sync failed: what it should have written is not on the disk, and the system takes it for written."""
        if call.kind == "s" and not os.path.isdir(call.path):
            inode = os.fstat(call.fd).st_ino
            now, then = self._content(call), self._durable.get(inode, b"")
            sectors = self._dropped.setdefault(inode, {})
            for at in range(0, len(now), SECTOR):
                if now[at : at + SECTOR] != then[at : at + SECTOR].ljust(min(SECTOR, len(now) - at), b"\0"):
                    sectors[at] = now[at : at + SECTOR]

    def _content(self, call: Call) -> bytes:
        with open(f"/proc/self/fd/{call.fd}", "rb") as file:  # Its name may be gone.
            return self._intern(file.read())

    def _synced(self, call: Call) -> None:
        if os.path.isdir(call.path):
            entries = {entry.name: entry.inode() for entry in os.scandir(call.path) if entry.name != "lock.mdb"}
            self._durable_names[os.path.relpath(call.path, self.root)] = entries
        else:
            inode = os.fstat(call.fd).st_ino
            now, then = self._content(call), self._durable.get(inode, b"")
            dropped = {at: was for at, was in self._dropped.get(inode, {}).items() if now[at : at + SECTOR] == was}
            if dropped:
                self._dropped[inode] = dropped
                after = bytearray(now)
                for at, was in dropped.items():
                    after[at : at + len(was)] = then[at : at + len(was)].ljust(len(was), b"\0")
                now = self._intern(bytes(after))
            self._durable[inode] = now

    def image(self) -> Image:
        """This moment."""
        names, contents = self._now()
        durable_names = {folder: dict(entries) for folder, entries in self._durable_names.items()}
        return Image(names, self._gone | contents, durable_names, dict(self._durable))

    def is_directory(self, inode: int) -> bool:
        """Whether an inode is, or was, a directory."""
        return inode in self._directories


def left_by_kill(disk: Disk, image: Image, target: Path) -> None:
    """Make what a kill at that moment leaves: all that was written."""
    _make(disk, image, target, random.Random(0), 0.0, 0.0)


def left_by_power_cut(disk: Disk, image: Image, target: Path, uniform: random.Random) -> None:
    """Make what a power cut at that moment may leave: any part of the sectors and names changed since the last sync."""
    chances = (0.0, 0.1, 0.5, 0.9, 1.0)
    _make(disk, image, target, uniform, uniform.choice(chances), uniform.choice(chances))


def _make(disk: Disk, image: Image, target: Path, uniform: random.Random, names_lost: float, lost: float) -> None:
    made: dict[int, bytes] = {}

    def fill(folder: str, path: Path) -> None:
        path.mkdir(mode=0o700)
        now, then = image.names.get(folder, {}), image.durable_names.get(folder, {})
        for name in sorted(now.keys() | then.keys()):
            inode = now.get(name)
            if inode != then.get(name) and uniform.random() < names_lost:
                inode = then.get(name)
            if inode is None:
                continue
            if disk.is_directory(inode):
                fill(os.path.normpath(os.path.join(folder, name)), path / name)
            else:
                if inode not in made:
                    made[inode] = _after(image.contents.get(inode, b""), image.durable.get(inode, b""), uniform, lost)
                (path / name).write_bytes(made[inode])

    fill(".", target)


def _after(now: bytes, then: bytes, uniform: random.Random, lost: float) -> bytes:
    if now == then or not lost:
        return now
    size = len(then) if len(now) != len(then) and uniform.random() < lost else len(now)
    now, then = now.ljust(size, b"\0")[:size], then.ljust(size, b"\0")[:size]
    after = bytearray(now)
    for at in range(0, size, SECTOR):
        if now[at : at + SECTOR] != then[at : at + SECTOR] and uniform.random() < lost:
            after[at : at + SECTOR] = then[at : at + SECTOR]
    return bytes(after)
