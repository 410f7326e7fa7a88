"""tiered beside its rivals: the same documents, the same order, the same reads, each phase in a process of its own.

load      random insertion order, until everything is on disk (the engine's own flush, save or commit included)
skewed    reads by Zipf's law (s = 1) after opening anew: the engine's own caches are cold, the system's are warm
uniform   reads of equally likely keys, likewise
scan      all keys and values, in the engine's own order, likewise
compact   give disk space back

Engines take turns within each repeat, and figures are medians over the repeats, so that a noisy minute hurts all alike.
An engine that is not through a phase after `--cap` seconds stops there: its figure is of a part, and marked `*`.
Checked: the last value of every 1,000 reads, and that a scan gives as many records as were loaded.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from engines import ENGINES
from measure import MB, Run, disk_bytes, fresh_process, table
from workload import Workload, document, temporary_folder

DEFAULT = "tiered,rocksdict,zict,diskcache,sqlitedict,shelve,dict"
REFERENCE = "rocksdict"
PHASES = ("load", "skewed", "uniform", "scan")


def run_phase(job: dict[str, Any]) -> dict[str, Any]:
    """In the fresh process: open the engine, run one phase, return its figures."""
    workload, path = Workload.load(job["workload"]), Path(job["path"])
    path.mkdir(exist_ok=True)
    run = Run()
    engine = ENGINES[job["engine"]](path, job["budget"])
    if job["engine"] == "dict" and job["phase"] != "load":
        for chunk in workload.pairs():
            engine.mapping.update(chunk)
    if job["phase"] == "load":
        run.load(engine.mapping, workload.pairs(), job["cap"], engine.after_chunk)
        flush_seconds = run.clock(engine.flush)
    elif job["phase"] == "compact":
        flush_seconds = run.clock(engine.compact) if engine.compact else -1.0
    elif job["phase"] == "scan":
        run.scan(engine.mapping, lambda key: document(int(key.split(":")[1]), workload.seed), job["cap"])
        flush_seconds = 0.0
        assert run.capped or run.ops == job["loaded"], f"{run.ops:,} records came of {job['loaded']:,}"
    else:
        run.read(engine.mapping, workload.reads(job["phase"], job["loaded"]), job["cap"])
        flush_seconds = 0.0
    figures = {**run.figures(), "flush_seconds": flush_seconds, "note": engine.note, "stats": engine.figures()}
    figures["written"] += figures["stats"].get("helper_written_bytes", 0)
    figures["close_seconds"] = run.clock(engine.close)
    return figures


def run_engine(engine: str, workload: Workload, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    job = {"engine": engine, "workload": workload.directory, "path": str(path)}
    job.update(budget=options.budget, cap=options.cap)
    result: dict[str, Any] = {"load": fresh_process(__file__, {**job, "phase": "load"})}
    result["disk_bytes"] = disk_bytes(path)
    for phase in ("skewed", "uniform", "scan"):
        result[phase] = fresh_process(__file__, {**job, "phase": phase, "loaded": result["load"]["ops"]})
    compacted = fresh_process(__file__, {**job, "phase": "compact"})
    result["compacted_bytes"] = disk_bytes(path) if compacted["flush_seconds"] >= 0 else None
    result["compact_seconds"] = compacted["flush_seconds"]
    shutil.rmtree(path)
    return result


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of one engine's repeats, per record where the engine may have loaded fewer than the others."""

    def median(*way: str) -> float:
        values: list[Any] = list(runs)
        for step in way:
            values = [value[step] for value in values]
        return float(statistics.median(values))

    loaded = median("load", "ops")
    return {
        "load": median("load", "us"),
        "skewed": median("skewed", "us"),
        "uniform": median("uniform", "us"),
        "scan": median("scan", "us"),
        "disk": median("disk_bytes") / loaded,
        "compacted": median("compacted_bytes") / loaded if runs[0]["compacted_bytes"] is not None else None,
        "device": median("load", "written") / loaded,
        "rss_load": median("load", "rss_peak_growth") / MB,
        "rss_skewed": median("skewed", "rss_peak_growth") / MB,
        "rss_uniform": median("uniform", "rss_peak_growth") / MB,
        "helper": max(run["load"]["stats"].get("helper_peak_rss_anon_bytes", 0) for run in runs) / MB,
        "capped": {phase: any(run[phase]["capped"] for run in runs) for phase in PHASES},
        "loaded": int(loaded),
        "note": runs[0]["load"]["note"],
    }


def report(results: dict[str, list[dict[str, Any]]], workload: Workload, options: argparse.Namespace) -> None:
    medians = {engine: summary(runs) for engine, runs in results.items() if runs}

    def timed(figures: dict[str, Any], phase: str) -> str:
        return f"{figures[phase]:.1f}{'*' if figures['capped'][phase] or figures['capped']['load'] else ''}"

    def per_record(engine: str, name: str) -> object:
        return "-" if engine == "dict" or medians[engine][name] is None else round(medians[engine][name])

    packed, budget = f"{workload.packed_bytes / MB:.1f} MB packed with keys", f"budget {options.budget / MB:.1f} MB"
    print(f"{workload.records:,} documents, {packed}, {budget}")
    print(f"medians of {options.repeat}; * = stopped after {options.cap:g} s: of a part of the records or reads\n")
    phases, sizes = list(PHASES), ["disk", "compacted", "device writes"]
    table(
        ["", *phases, *sizes, "RssAnon load", "skewed", "uniform", "helper"],
        [
            ["", "us/put", "us/get", "us/get", "us/item", *["bytes/record"] * 3, *["MB"] * 4],
            *(
                [
                    engine,
                    *(timed(figures, phase) for phase in PHASES),
                    *(per_record(engine, name) for name in ("disk", "compacted", "device")),
                    *(round(figures[f"rss_{phase}"]) for phase in ("load", "skewed", "uniform")),
                    round(figures["helper"]) or "-",
                ]
                for engine, figures in medians.items()
            ),
        ],
    )
    if reference := medians.get(REFERENCE):

        def times(engine: str, name: str, speed: bool) -> str:
            mine, theirs = medians[engine][name], reference[name]
            if (engine == "dict" and not speed) or mine is None or not theirs or not mine:
                return "-"
            return f"{theirs / mine if speed else mine / theirs:.2f}"

        print(f"against {REFERENCE}: speed (above 1: faster), size (below 1: smaller)\n")
        table(
            ["", *phases, *sizes],
            [
                [
                    engine,
                    *(times(engine, name, True) for name in PHASES),
                    *(times(engine, name, False) for name in ("disk", "compacted", "device")),
                ]
                for engine in medians
            ],
        )
    for engine, figures in medians.items():
        part = "" if figures["loaded"] == workload.records else f" ({figures['loaded']:,} records loaded)"
        print(f"{engine}: {figures['note']}{part}")
    print("RssAnon: highest growth over the process before opening the engine, sampled every 1,000 operations")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--reads", type=int, default=500_000)
    parser.add_argument("--budget", type=float, default=0.25, help="share of the packed size (default: 0.25)")
    parser.add_argument("--engines", default=DEFAULT, help=f"any of {','.join(ENGINES)} (default: {DEFAULT})")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cap", type=float, help="seconds per phase (default: 30 per 300,000 records)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", help="parent of the temporary folder: on the disk to be measured")
    parser.add_argument("--json", help="write every run's figures to this file")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(run_phase(options.job), default=str))
        return
    engines = options.engines.split(",")
    if unknown := sorted(set(engines) - set(ENGINES)):
        parser.error(f"unknown engines {', '.join(unknown)}; there are {', '.join(ENGINES)}")
    options.cap = options.cap or max(30.0, options.records / 10_000)
    with temporary_folder(options.dir) as folder:
        print(f"making {options.records:,} documents ...", file=sys.stderr, flush=True)
        workload = Workload.prepare(folder, options.records, options.reads, options.seed)
        options.budget = max(MB, int(workload.packed_bytes * options.budget))
        results: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
        for repeat in range(options.repeat):
            for engine in engines:
                print(f"run {repeat + 1} of {options.repeat}: {engine}", file=sys.stderr, flush=True)
                results[engine].append(run_engine(engine, workload, folder / "store", options))
        report(results, workload, options)
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), "results": results}, indent=1))


if __name__ == "__main__":
    main()
