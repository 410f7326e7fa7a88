"""Many keys that expire in the same second: how long other operations take meanwhile, how soon the space is free again.

The keys get their TTLs as they are written, all to end at one moment. From that moment on, gets and sets of other keys
are timed one by one until LMDB itself (asked in another process) holds no expired record, or `--patience` is over. Then
as many new records are written: if the disk space does not grow, it was reusable.

"Own" is the longest operation without the time in which the system, or the machine's host, had given the processor to
somebody else although the thread could have run: the work of the operation and its waits for locks, for the interpreter
and for the disk. On two cores the program and its helper share them with the kernel's threads and whatever else runs,
in turns of up to 4 ms, which no program can prevent.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import Any

from measure import MB, disk_bytes, percentile, table
from workload import batches, key, open_store, temporary_folder

COUNT = """
import lmdb, sys
from pathlib import Path
path = Path(sys.argv[1])
cold = path / (path / "CURRENT").read_text().strip()
with lmdb.open(str(cold), readonly=True, max_dbs=32, max_readers=4096, lib_version=0) as env:
    with env.begin() as txn:
        names = [name for name, _ in txn.cursor()]
        entries = {name: txn.stat(env.open_db(name, txn=txn, create=False))["entries"] for name in names}
        runs = sum(count for name, count in entries.items() if name.startswith(b"run-"))
        print(entries[b"records"], runs, entries[b"expiry"])
"""


def entries(path: Path) -> tuple[int, int, int]:
    """What LMDB holds in `records`, the runs and `expiry`."""
    out = subprocess.run([sys.executable, "-c", COUNT, str(path)], stdout=subprocess.PIPE, text=True, check=True).stdout
    records, runs, expiry = map(int, out.split())
    return records, runs, expiry


def value(number: int) -> dict[str, Any]:
    return {"id": number, "token": f"{number * 2654435761 % 2**32:08x}", "text": "x" * 60}


class Timed:
    """Times of operations in ns, and how much of the longest of them was their own."""

    def __init__(self, schedule: int) -> None:
        self.schedule = schedule  # A descriptor of /proc/thread-self/schedstat.
        self.all, self.own = array("q"), array("q", [0])
        self.begin, self.before = 0, (0, 0, 0)

    def processor(self) -> tuple[int, int, int]:
        """How often the thread gave up the processor by itself, how many ns it waited for it, how many it had it."""
        return (
            resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw,
            int(os.pread(self.schedule, 100, 0).split()[1]),
            time.clock_gettime_ns(time.CLOCK_THREAD_CPUTIME_ID),
        )

    def start(self) -> None:
        self.before = self.processor()
        self.begin = time.perf_counter_ns()

    def stop(self) -> None:
        self.all.append(took := time.perf_counter_ns() - self.begin)
        if took > self.own[-1]:
            given_up, waited, had = (now - then for now, then in zip(self.processor(), self.before, strict=True))
            # Where it never gave it up, whatever is more than it had it is somebody else's, the host's included.
            self.own.append(max(self.own[-1], took - waited if given_up else had))


def work(store: Any, others: list[str], rng: random.Random, gets: Timed, sets: Timed) -> None:
    """A tenth of a second of gets and sets of keys that don't expire, each on the clock."""
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        key = rng.choice(others)
        gets.start()
        found = store[key]
        gets.stop()
        sets.start()
        store[key] = found
        sets.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--others", type=int, default=10_000)
    parser.add_argument("--memory", default="32MB")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds (default: 120)")
    parser.add_argument("--dir", help="parent of the temporary folder: on the disk to be measured")
    options = parser.parse_args()
    others, rng = [f"other:{number:08d}" for number in range(options.others)], random.Random(0)
    schedule = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    gets, sets = Timed(schedule), Timed(schedule)
    with temporary_folder(options.dir) as folder:
        path = folder / "store"
        with open_store(path, memory=options.memory) as store:
            store.set_many((key, value(number)) for number, key in enumerate(others))
            begin = time.time()
            moment = begin + 5 + options.records * 40e-6
            for numbers in batches(range(options.records), 1000):
                store.set_many([(key(number), value(number)) for number in numbers], ttl=moment - time.time())
            store.save()
            loaded, file_loaded = entries(path), disk_bytes(path)
            quiet_gets, quiet_sets = Timed(schedule), Timed(schedule)
            spare = moment - time.time()
            if spare < 1:
                raise SystemExit(f"loading took {time.time() - begin:.0f} s, longer than the keys live: too slow")
            while time.time() < moment - 0.2:
                work(store, others, rng, quiet_gets, quiet_sets)
            time.sleep(max(0.0, moment - time.time()))
            begin, left, gone, asked = time.monotonic(), loaded, None, 0.0
            while gone is None and time.monotonic() - begin < options.patience:
                work(store, others, rng, gets, sets)
                if time.monotonic() - asked > 2:
                    asked, left = time.monotonic(), entries(path)
                    if left[0] <= options.others and left[2] == 0:
                        gone = time.monotonic() - begin
            records, file_expired = store.stats().records, disk_bytes(path)
            for numbers in batches(range(options.records), 1000):
                store.set_many([(f"again:{number:08d}", value(number)) for number in numbers])
            store.save()
            file_again = disk_bytes(path)
    print(f"{options.records:,} records expired in one second, {options.others:,} did not; memory {options.memory}")
    print("entries in LMDB (records, runs, expiry): loaded {:,} {:,} {:,};".format(*loaded), end=" ")
    print("at the end {:,} {:,} {:,}".format(*left))
    print(f"records by stats() afterwards: {records:,}; expired records gone after:", end=" ")
    print(f"{gone:.1f} s" if gone is not None else f"not within {options.patience:g} s")
    print(f"disk: {file_loaded / MB:.0f} MB loaded, {file_expired / MB:.0f} MB expired,", end=" ")
    print(f"{file_again / MB:.0f} MB with as many new records\n")
    rows = []
    for name, timed in (("get, before", quiet_gets), ("set, before", quiet_sets), ("get", gets), ("set", sets)):
        ordered = sorted(value / 1e6 for value in timed.all)
        shares = [percentile(ordered, share) for share in (0.5, 0.999)]
        rows.append([name, len(ordered), *shares, ordered[-1], timed.own[-1] / 1e6])
    table(["ms per operation", "operations", "p50", "p99.9", "longest", "own"], rows)


if __name__ == "__main__":
    main()
