"""The doctor: what is not broken, and will hurt: memory that grows, disks that fill, budgets that are too small.

`check` looks for what is wrong with the data.  This looks at figures, of now and of the last hour; every diagnosis
comes with its evidence and with what to do.  Each sign has a bound below, above which it is one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from tiered.checkpoints import CLOCK_BEHIND_MS_MAX
from tiered.memory_cap import limit_bytes, live_bytes

if TYPE_CHECKING:
    from tiered.engine import Engine
    from tiered.stats import MemoryStats, Stats

MB = 1 << 20
SAMPLES_MIN = 10
DRIFT_BYTES_MIN, DRIFT_SHARE = 10 * MB, 0.15
READS_MIN = 10_000
COLD_SHARE_MAX = 0.5
WAIT_SHARE_MAX = 0.1
RECORDS_MIN = 10_000
STORED_SHARE_MAX = 0.95
DICTIONARY_WORSE = 1.25
LIVE_SHARE_MAX = 0.9
CAP_SHARE_MAX = 0.9
DISK_FREE_BYTES_MIN, DISK_FREE_SHARE_MIN = 256 * MB, 0.02
PAGES_FREE_BYTES_MIN = 64 * MB
READER_LAG_MIN = 100


class Diagnosis(NamedTuple):
    """Something to be seen to: what it is, the figures that show it, and what to do."""

    what: str
    evidence: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what}: {self.evidence}; {self.advice}"


def diagnoses(engine: Engine, stats: Stats, memory: MemoryStats) -> list[Diagnosis]:
    """All that is to be said of a store; empty for a healthy one."""
    return [
        Diagnosis(*found)
        for signs in (
            _condition(engine, stats),
            _memory(engine, stats, memory),
            _load(engine, stats),
            _disk(engine, stats),
        )
        for found in signs
    ]


Signs = Iterator[tuple[str, str, str]]


def _condition(engine: Engine, stats: Stats) -> Signs:
    if engine.poisoned:
        yield "writes are refused", engine.poisoned, "close the store, see to the cause, and open it again"
    if engine.full:
        yield "checkpoints are put off", engine.full, "until then the journal grows, and writers are refused in the end"
    behind_ms = engine.clock.behind_ms()
    if behind_ms > CLOCK_BEHIND_MS_MAX:
        until = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(engine.clock.now_ms() / 1000))
        yield (
            "the clock is behind the store's time",
            f"by {behind_ms / 1000:,.1f} seconds: it was set back, or was ahead once; until it shows {until} UTC, "
            "times to live stand still, and nothing expires",
            "set it right if it is wrong; if it was ahead by mistake, delete what is not to live until then",
        )
    if stats.damaged_bytes:
        evidence = f"{stats.damaged_bytes:,} bytes that `salvage` put aside"
        yield "damaged files are kept", evidence, f"remove {stats.path}/damaged-* when you need them no more"
    if stats.snapshot_failure:
        yield "snapshots fail", stats.snapshot_failure, "see to it, or set snapshot_save to ''"


def _memory(engine: Engine, stats: Stats, memory: MemoryStats) -> Signs:
    samples = list(engine.samples)
    if len(samples) >= SAMPLES_MIN:
        # The least of some is what stays when a burst is over.
        count = len(samples) // 4
        beyond = [measured - accounted for _, accounted, measured, *_ in samples]
        grown = min(beyond[-count:]) - min(beyond[:count])
        if grown > max(DRIFT_BYTES_MIN, DRIFT_SHARE * memory.budget_bytes):
            minutes = (samples[-1][0] - samples[0][0]) / 60
            yield (
                "memory drifts",
                f"the process grew by {grown:,} bytes in {minutes:.0f} minutes beyond what the store accounts for",
                "look for what the program itself keeps (tracemalloc); if it keeps nothing, reclaim() and report it",
            )
    if memory.hot_tier == "heap" and memory.fragmentation > 1 + DRIFT_SHARE and stats.evictions:
        yield (
            "the heap is fragmented",
            f"{memory.fragmentation:.2f} bytes of the process for one that is accounted for",
            "install the package where there is a C compiler: the arena does not fragment",
        )
    reads = stats.hits + stats.buffer_hits + stats.cold_hits
    if reads >= READS_MIN and stats.cold_hits > COLD_SHARE_MAX * reads and stats.evictions:
        yield (
            "the budget is small for these reads",
            f"{stats.cold_hits:,} of {reads:,} reads came from the cold tier, {stats.evictions:,} values were evicted",
            f"give memory more than {memory.budget_bytes:,} bytes, if the reads repeat at all",
        )

    live, limit = live_bytes(engine), limit_bytes(engine)
    if not engine.settings.spill and live > LIVE_SHARE_MAX * limit:
        evidence = f"live records take {live:,} of the {limit:,} bytes that memory has for them, and spill is off"
        yield "the store is near what memory holds", evidence, "delete some, raise `memory`, or let values spill"


def _load(engine: Engine, stats: Stats) -> Signs:
    open_seconds = engine.clock.monotonic() - engine.opened_at
    if stats.wait_seconds > max(1.0, WAIT_SHARE_MAX * open_seconds):
        yield (
            "writers wait for checkpoints",
            f"{stats.wait_seconds:.1f} of {open_seconds:.0f} seconds, {stats.writer_waits:,} times",
            "give memory more, of which the write buffer has a share; a faster disk; fewer bytes",
        )
    lag, pid = engine.cold.oldest_reader()
    if lag > READER_LAG_MIN:
        yield (
            "a reader keeps old pages",
            f"process {pid} looks at the state {lag:,} commits ago, with pages that cannot be used again",
            "end its view, iteration or snapshot, or the process",
        )


def _disk(engine: Engine, stats: Stats) -> Signs:
    system = os.statvfs(engine.directory)
    free, size = system.f_bavail * system.f_frsize, system.f_blocks * system.f_frsize
    if free < max(DISK_FREE_BYTES_MIN, DISK_FREE_SHARE_MIN * size):
        evidence = f"{free:,} of {size:,} bytes are free, the store has {stats.disk_bytes:,}"
        yield "the disk is nearly full", evidence, "make room; writes are refused when there is none"
    cap = engine.settings.disk
    if cap is not None and stats.disk_used_bytes > CAP_SHARE_MAX * cap:
        evidence = f"{stats.disk_used_bytes:,} bytes are used of {cap:,}"
        yield "the store is near its cap", evidence, "delete, give records a time to live, or raise `disk`"
    if stats.disk_free_bytes > max(PAGES_FREE_BYTES_MIN, stats.disk_used_bytes):
        evidence = f"{stats.disk_free_bytes:,} bytes of its file hold nothing, {stats.disk_used_bytes:,} hold something"
        yield "the file is mostly free pages", evidence, "compact() gives them back, if they are not to be filled again"
    compressed = engine.settings.compression != "none" and stats.records >= RECORDS_MIN
    if compressed and stats.stored_bytes > STORED_SHARE_MAX * stats.packed_bytes:
        evidence = f"{stats.packed_bytes:,} bytes of records became {stats.stored_bytes:,}"
        yield "compression gains nothing", evidence, "compression='none' saves its time"
    fitted, lately = engine.state.adopted_ratio, engine.state.recent_ratio
    if compressed and fitted and lately > DICTIONARY_WORSE * fitted:
        yield (
            "the dictionary no longer fits",
            f"records come to {lately:.0%} of their size lately, to {fitted:.0%} when dictionary "
            f"{engine.state.dictionary} was adopted",
            "the store trains another one by itself where that saves a tenth; if it does not, what is written now is "
            "less alike, and compression='none' or a lower level may do as well",
        )
