"""How long `import tiered` takes, and the first use of `tiered.open`, which imports the rest of the package, against an
interpreter that does nothing; all take turns in one run.

Each process reads compiled modules, as an installed package does, kept in a temporary directory. "-S" is without
`site`, which in some environments (an editable install) imports part of the same modules already. `--times` shows
the modules that take longest.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from measure import table

ROOT = Path(__file__).resolve().parents[2]


def search_path() -> str:
    """Where `tiered` is, and the packages it needs."""
    specs = [importlib.util.find_spec(name) for name in ("lmdb", "zstandard", "msgpack")]
    found = [Path(spec.origin).parents[1] for spec in specs if spec is not None and spec.origin]
    return os.pathsep.join(map(str, dict.fromkeys([ROOT, *found])))


def run(environment: dict[str, str], *arguments: str) -> tuple[float, float]:
    """Milliseconds of a process: by the clock, and of the processor, which a busy machine blurs less."""
    begin, before = perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], env=environment, check=True)
    seconds, after = perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds * 1000, processor * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--times", action="store_true")
    options = parser.parse_args()
    codes = ("pass", "import tiered", "import tiered; tiered.open")
    programs = {
        f"python {' '.join((*site, '-c'))} '{code}'": (*site, "-c", code) for site in ((), ("-S",)) for code in codes
    }
    with tempfile.TemporaryDirectory() as compiled:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled, "PYTHONPATH": search_path()}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for arguments in programs.values():
            run(environment, *arguments)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
        for _ in range(options.runs):
            for name, arguments in programs.items():
                taken[name].append(run(environment, *arguments))
        if options.times:
            run(environment, "-S", "-X", "importtime", "-c", "import tiered; tiered.open")
    rows = []
    for name, figures in taken.items():
        clock, processor = (sorted(column) for column in zip(*figures, strict=True))
        rows.append([name, statistics.median(clock), clock[0], statistics.median(processor), processor[0]])
    table([f"ms, {options.runs} runs", "median", "least", "processor: median", "least"], rows)


if __name__ == "__main__":
    main()
