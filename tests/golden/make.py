"""Make the golden files of the format of this version: `python tests/golden/make.py DIRECTORY`.

They are made once for every format that is released, and never again: later versions must read these.
"""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import contents  # noqa: E402

import tiered  # noqa: E402
from tiered import files, journal  # noqa: E402
from tiered.clock import ManualClock  # noqa: E402


def trained(store: tiered.Store[Any, Any]) -> None:
    """Have a dictionary made."""
    round_ = 0
    while not store.stats().dictionary_count:
        store.update({("training", number): contents.user(round_ * 4000 + number) for number in range(4000)})
        store.save()
        while store.tick() == 0.0:
            pass
        round_ += 1
    store.clear()
    store.save()
    store.compact()


def make(directory: Path) -> None:
    """Make `store.tar.gz` and `snapshot.tsnap`."""
    with tempfile.TemporaryDirectory() as name:
        path, clock = Path(name) / "golden.tiered", ManualClock(contents.EPOCH_MS)
        store = tiered.open(
            path, helper=False, memory="2MB", save="77 7", durability="checkpoint", clock=clock, snapshot_keep=5
        )
        trained(store)
        items = contents.cold()
        for compression in ("zlib:6", "none", "zstd:3"):
            store.config_set("compression", compression)
            store.update({key: value for key, value in items.items() if compression == contents.compression(key)})
            store.save()
        store["array"] = contents.ARRAY
        for number, (key, value) in enumerate(contents.EXPIRING.items()):
            store.set(key, value, ttl=contents.CENTURY + number / 1000)
        for key, value in contents.GONE.items():
            store.set(key, value, ttl=1)
        store.save()
        store.update({("recent", number): number for number in range(3)})
        store.snapshot(directory / "snapshot.tsnap")

        store.update({key: value for key, value in contents.JOURNAL.items() if "batch" not in key})
        with store.transaction() as txn:
            txn.update({key: value for key, value in contents.JOURNAL.items() if "batch" in key})
        store.delete_many(contents.DELETED)
        store.set(("journal", "expiring"), 1, ttl=contents.CENTURY)
        store.config_set("default_ttl", 5000.0)
        left = Path(name) / "left" / "golden.tiered"
        shutil.copytree(path, left)  # As a killed program leaves it.
        store.close()
        for unneeded in (files.LOCK, files.APPLY, files.PREPARED):
            (left / unneeded).unlink(missing_ok=True)
        tear(left)
        pack(left, directory / "store.tar.gz")


def tear(store: Path) -> None:
    """Half a record at the end of the journal: what a power cut leaves."""
    path = files.segment_path(store, files.segment_numbers(store)[-1])
    *_, last = journal.SegmentFile(path).entries()
    with open(path, "r+b") as file:
        file.seek(last.end)
        file.write(
            b"\x01\x02\x03\x04" + journal.RECORD.pack(0, 0x7E5D, 1, 0, 9, 1, 0, 500, last.sequence + 1, 0, 0)[4:]
        )


def pack(store: Path, target: Path) -> None:
    """The files of a store, without names and times of the machine."""
    with tarfile.open(target, "w:gz", compresslevel=9) as archive:
        for path in sorted(store.rglob("*")):
            if path.is_file() and path.name != "lock.mdb":
                member = tarfile.TarInfo(str(path.relative_to(store.parent)))
                data = path.read_bytes()
                member.size, member.mode = len(data), 0o600
                archive.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
