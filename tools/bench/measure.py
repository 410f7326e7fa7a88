"""Taking figures: timed loops, process memory, device writes, percentiles, tables.

Only the operations themselves are on the clock; fetching the next thousand documents is not, nor is reading `/proc`.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

MB = 1024 * 1024
CHUNK = 1000


def _proc(file: str, field: str, pid: int | str = "self") -> int:
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise LookupError(f"/proc/{pid}/{file} has no field {field}; these benchmarks need Linux")


def rss_anon_bytes(pid: int | str = "self") -> int:
    """Resident anonymous memory: what the program takes, without pages of mapped files."""
    return _proc("status", "RssAnon", pid) * 1024


def device_written_bytes() -> int:
    """Bytes this process has sent to storage, pages of mapped files included."""
    return _proc("io", "write_bytes")


def disk_bytes(path: str | Path) -> int:
    """Allocated blocks, as `du` counts them: LMDB's and the journal's files are sparse."""
    return sum(file.lstat().st_blocks * 512 for file in [Path(path), *Path(path).rglob("*")])


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class Run:
    """One timed phase: operations, seconds on the clock, and how far memory rose above where it was at the start."""

    def __init__(self) -> None:
        gc.collect()
        self.ops = 0
        self.seconds = 0.0
        self.capped = False
        self.rss_before = rss_anon_bytes()
        self.rss_peak = self.rss_before
        self.written_before = device_written_bytes()

    def load(
        self,
        mapping: Any,
        chunks: Iterable[Sequence[tuple[Any, Any]]],
        cap: float = math.inf,
        after: Callable[[], object] = lambda: None,
    ) -> None:
        for chunk in chunks:
            begin = perf_counter()
            for key, value in chunk:
                mapping[key] = value
            after()
            self._account(len(chunk), begin)
            if self.seconds > cap:
                self.capped = True
                break

    def read(self, mapping: Any, chunks: Iterable[tuple[Sequence[Any], Any]], cap: float = math.inf) -> None:
        for keys, expected in chunks:
            value = None
            begin = perf_counter()
            for key in keys:
                value = mapping[key]
            self._account(len(keys), begin)
            if value != expected:
                raise AssertionError(f"{keys[-1]} came back as {value!r}, not as {expected!r}")
            if self.seconds > cap:
                self.capped = True
                break

    def scan(self, mapping: Any, document: Callable[[Any], Any], cap: float = math.inf) -> None:
        """All pairs, in the order in which the mapping gives them; the last one of each chunk is compared."""
        begin = perf_counter()
        pairs = iter(mapping.items()) if hasattr(mapping, "items") else ((key, mapping[key]) for key in mapping)
        self._account(0, begin)
        while self.seconds <= cap:
            count, last = 0, None
            begin = perf_counter()
            for pair in itertools.islice(pairs, CHUNK):
                count += 1
                last = pair
            self._account(count, begin)
            if last is not None and last[1] != document(last[0]):
                raise AssertionError(f"{last[0]} came back as {last[1]!r}")
            if count < CHUNK:
                return
        self.capped = True

    def clock(self, step: Callable[[], object]) -> float:
        """Add one step, such as the final flush, to the time; its seconds."""
        begin = perf_counter()
        step()
        self._account(0, begin)
        return perf_counter() - begin

    def _account(self, ops: int, begin: float) -> None:
        self.seconds += perf_counter() - begin
        self.ops += ops
        self.rss_peak = max(self.rss_peak, rss_anon_bytes())

    def figures(self) -> dict[str, Any]:
        return {
            "ops": self.ops,
            "seconds": self.seconds,
            "us": self.seconds / max(1, self.ops) * 1e6,
            "capped": self.capped,
            "rss_growth": rss_anon_bytes() - self.rss_before,
            "rss_peak_growth": self.rss_peak - self.rss_before,
            "written": device_written_bytes() - self.written_before,
        }


def fresh_process(script: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run `script --job JSON` in a new interpreter and return the JSON of its last line.

    Memory can only be told apart in a process that did nothing else before.
    """
    done = subprocess.run(
        [sys.executable, script, "--job", json.dumps(job)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{job}: failed with {done.returncode}, see above")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns: the first to the left, figures to the right, floats with three digits that matter."""
    cells = [[_cell(cell) for cell in row] for row in [heads, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for row in cells:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([row[0].ljust(len(first)), *others]).rstrip())
    print(flush=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
