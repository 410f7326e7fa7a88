"""Cost per operation at ten times the data: load, skewed and uniform reads, device writes, memory of the helper.

Each size is loaded and read in processes of its own, under a budget of a quarter of its packed size.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from measure import MB, Run, disk_bytes, fresh_process, table
from workload import Workload, open_store, temporary_folder

PHASES = ("load", "skewed", "uniform")


def run_phase(job: dict[str, Any]) -> dict[str, Any]:
    """In the fresh process: one phase on the store, its figures."""
    workload = Workload.load(job["workload"])
    run = Run()
    with open_store(job["path"], memory=job["budget"]) as store:
        if job["phase"] == "load":
            run.load(store, workload.pairs())
            run.clock(store.save)
        else:
            run.read(store, workload.reads(job["phase"], workload.records))
        stats = store.stats()
        figures = run.figures()
        figures["helper"] = stats.helper_peak_rss_anon_bytes
        figures["written"] += stats.helper_written_bytes
        figures["waited"] = stats.wait_seconds
    return figures


def run_size(records: int, options: argparse.Namespace) -> dict[str, float]:
    with temporary_folder(options.dir) as folder:
        workload = Workload.prepare(folder, records, options.reads)
        job: dict[str, Any] = {"workload": workload.directory, "path": str(folder / "store")}
        job["budget"] = max(MB, int(workload.packed_bytes * options.budget))
        phases = {phase: fresh_process(__file__, {**job, "phase": phase}) for phase in PHASES}
        load = phases["load"]
        return {
            **{f"{phase}, us per operation": phases[phase]["us"] for phase in PHASES},
            "writers waited, share of load": load["waited"] / load["seconds"],
            "device writes, bytes per record": load["written"] / records,
            "disk after load, bytes per record": disk_bytes(Path(job["path"])) / records,
            "RssAnon growth in load, MB": load["rss_peak_growth"] / MB,
            "helper's RssAnon, peak, MB": load["helper"] / MB,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="300000,3000000", help="sizes, smallest first (default: 300000,3000000)")
    parser.add_argument("--reads", type=int, default=500_000)
    parser.add_argument("--budget", type=float, default=0.25, help="share of the packed size (default: 0.25)")
    parser.add_argument("--dir", help="parent of the temporary folder: on the disk to be measured")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(run_phase(options.job)))
        return
    sizes = [int(size) for size in options.records.split(",")]
    figures = [run_size(size, options) for size in sizes]
    print(f"budget {options.budget:g} of the packed size, {options.reads:,} reads of each kind after opening anew\n")
    table(
        ["records", *(f"{size:,}" for size in sizes), "last / first"],
        [
            [name, *values, values[-1] / values[0] if values[0] else "-"]
            for name in figures[0]
            for values in [[size[name] for size in figures]]
        ],
    )


if __name__ == "__main__":
    main()
