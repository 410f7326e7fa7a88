"""Who should apply closed segments: the helper process, a thread, or the writer itself?

Each way loads the same documents in a process of its own, under a budget of a quarter
of the packed size. The thread exists only here: an inline checkpointer that a thread of
the program drives.

load          until everything is in the cold tier, per record
put           latency of single puts meanwhile
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from pathlib import Path
from time import perf_counter
from typing import Any

from measure import MB, fresh_process, percentile, table
from stalls import puts
from workload import Workload, open_store, temporary_folder

from tiered import checkpoints
from tiered.checkpointer import InlineCheckpointer


class ThreadCheckpointer(InlineCheckpointer):
    """Apply in a thread of the program."""

    name = "thread"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._ended:
            self._wake.wait(0.05)
            self._wake.clear()
            while super().run(slices=True):
                pass

    def submit(self, segment: int, until: int) -> None:
        super().submit(segment, until)
        self._wake.set()

    def run(self, slices: bool = False) -> bool:
        return False

    def finish(self) -> None:
        self._ended = True
        self._wake.set()
        self._thread.join()
        self._job.finish()
        super().run()


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One load in this process."""
    if job["way"] == "thread":
        checkpoints.InlineCheckpointer = ThreadCheckpointer  # type: ignore[attr-defined,assignment]
    workload = Workload.load(job["folder"])
    path = Path(job["folder"]) / f"{job['way']}.tiered"
    store = open_store(path, flag="n", memory=job["budget"], helper=job["way"] == "helper")
    begin = perf_counter()
    nanoseconds = puts(store, workload)
    writing = sum(nanoseconds) / 1e9
    fetching = perf_counter() - begin - writing
    begin = perf_counter()
    store.save()
    saving = perf_counter() - begin
    stats = store.stats()
    store.close()
    ordered = sorted(nanoseconds)
    return {
        "load": (writing + saving) / workload.records * 1e6,
        "p50": percentile(ordered, 0.5) / 1e3,
        "p999": percentile(ordered, 0.999) / 1e3,
        "longest": ordered[-1] / 1e6,
        "waits": stats.writer_waits,
        "checkpoints": stats.checkpoints,
        "fetching": fetching,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dir", help="parent of the temporary folder: on the disk to be measured")
    options = parser.parse_args()
    rows = []
    with temporary_folder(options.dir) as folder:
        workload = Workload.prepare(folder, options.records, 1000)
        budget = max(MB, workload.packed_bytes // 4)
        runs: dict[str, list[dict[str, Any]]] = {"helper": [], "thread": [], "inline": []}
        for _ in range(options.repeat):
            for way, results in runs.items():
                job = {"way": way, "folder": str(folder), "budget": budget}
                results.append(fresh_process(__file__, job))
        for way, results in runs.items():
            medians = {name: sorted(result[name] for result in results)[len(results) // 2] for name in results[0]}
            names = ("load", "p50", "p999", "longest", "waits", "checkpoints")
            rows.append([way, *(medians[name] for name in names)])
    print(f"{options.records:,} documents, budget {budget / MB:.1f} MB, medians of {options.repeat} runs\n")
    table(["us", "load", "put p50", "put p99.9", "longest, ms", "waits", "checkpoints"], rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        print(json.dumps(measure(json.loads(sys.argv[2]))))
    else:
        main()
