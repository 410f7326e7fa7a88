"""Advice on one open store: what costs it memory, speed or disk, with the evidence and what to do.

`check` says what is wrong; here nothing is wrong, and something could be better.  Each examination looks at
one thing and gives one piece of advice or none.  What changes with time is sampled by the engine's ticks
(`watch`): memory of the process beyond what is accounted, its lowest values early and late compared, so that a moment's
work is not taken for a leak.

The memory of the process is that of the whole program.  What the program itself holds cannot be told from what the
store does: the advice says so, and gives the accounted figure beside the measured one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from tiered import files, process, record
from tiered.compression import ZSTD, Dictionary, size_with
from tiered.engine import Engine
from tiered.errors import CorruptionError
from tiered.stats import BUDGET_MARGIN_BYTES, BUDGET_TIMES, memory_stats_of

DRIFT_SHARE = 8
"""Drift counts above the budget divided by this, and above `DRIFT_BYTES_MIN`."""
DRIFT_BYTES_MIN = 16 << 20
VIEW_SECONDS = 60.0
READER_LAG = 20
READS_MIN = 1000
HIT_RATIO_MIN = 0.5
SAMPLES = 500
SAMPLES_MIN = 100
DICTIONARY_GAIN = 0.05
DISK_SHARE_MAX = 0.9
DISK_FREE_MIN = 256 << 20


class Advice(NamedTuple):
    """Something that could be better: what it is, how that shows, what to do."""

    what: str
    evidence: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what}: {self.evidence}.  {self.advice}."


def examine(engine: Engine, hits: int) -> list[Advice]:
    """Everything there is to say.  Costs milliseconds: it reads up to 500 records of the cold tier."""
    found: list[Advice] = []
    for part in (_drift(engine), _fragmentation(engine), _pinned(engine), _dictionary(engine), _disk(engine)):
        found += part
    return found + list(_budget(engine, hits))


def _mb(size: float) -> str:
    return f"{size / (1 << 20):,.1f} MB"


def _drift(engine: Engine) -> Iterator[Advice]:
    drift, seconds = engine.watch_memory.drift()
    if drift > max(DRIFT_BYTES_MIN, engine.settings.memory // DRIFT_SHARE):
        yield Advice(
            "memory drift",
            f"the process's anonymous memory grew by {_mb(drift)} more than what is accounted, in {seconds:,.0f} s",
            "What the program itself keeps counts here; if it keeps nothing, something leaks: see tracemalloc, and "
            "report it with memory_stats()",
        )


def _fragmentation(engine: Engine) -> Iterator[Advice]:
    stats = memory_stats_of(engine)
    excess = stats.process_growth_bytes - int(BUDGET_TIMES * stats.budget_bytes) - BUDGET_MARGIN_BYTES
    if excess > 0:
        free = process.heap_free_bytes()
        yield Advice(
            "fragmentation" if 2 * free > excess else "memory beyond the budget",
            f"the process grew by {_mb(stats.process_growth_bytes)} since the store was opened, "
            f"{stats.fragmentation_ratio:.2f} times the {_mb(stats.accounted_bytes)} accounted; "
            f"{_mb(free)} of the C heap are free",
            "store.reclaim() gives back what can be; what the program holds itself counts here, too"
            + ("" if engine.hot.in_budget else "; the compiled arena fragments less: install with a C compiler"),
        )


def _pinned(engine: Engine) -> Iterator[Advice]:
    for view in engine.open_views():
        if view.age_seconds > VIEW_SECONDS:
            yield Advice(
                "an old view",
                f"open for {view.age_seconds:,.0f} s; it keeps the pages it sees, "
                f"and {_mb(engine.pinned_bytes())} of memory",
                "Close views after use, or give them a smaller max_age",
            )
            return
    lag, pid = engine.cold.oldest_reader()
    if lag >= READER_LAG:
        free = engine.cold.file_bytes() - engine.cold_used_bytes
        yield Advice(
            "a reader pins old pages",
            f"process {pid} reads the cold tier as it was {lag:,} transactions ago; "
            f"up to {_mb(free)} of its file cannot be used again",
            "End its view, snapshot or iteration",
        )


def _dictionary(engine: Engine) -> Iterator[Advice]:
    """Whether the newest records would be as small without the dictionary they are compressed with."""
    number = engine.state.dictionary
    if not number or not engine.settings.compression.startswith("zstd"):
        return
    with engine.cold.read() as reader:
        payloads, stored = [], 0
        for stored_key, data in islice(reader.walk(reader.layers[0]), SAMPLES):
            try:
                found = record.unpack(stored_key, data)
                if found is None or found.compression != ZSTD or found.dictionary != number:
                    continue
                payloads.append(engine.decompressor.decompress(ZSTD, number, found.body))
            except (ValueError, KeyError):
                continue  # Damage is what `check` is for.
        if len(payloads) < SAMPLES_MIN:
            return
        try:
            dictionary = Dictionary(number, reader.dictionary(number))
        except CorruptionError:
            return
    stored = size_with(engine.settings.compression, dictionary, payloads)
    without = size_with(engine.settings.compression, None, payloads)
    if stored > (1 - DICTIONARY_GAIN) * without:
        yield Advice(
            "a dictionary that no longer fits",
            f"{len(payloads)} newest records take {stored:,} bytes with dictionary {number}, {without:,} without",
            "Another is trained as such records come; compact() then compresses older ones again",
        )


def _disk(engine: Engine) -> Iterator[Advice]:
    cap, used = engine.settings.disk, engine.cold_used_bytes
    if cap is not None and used > DISK_SHARE_MAX * cap:
        yield Advice(
            "a disk cap nearly reached",
            f"{_mb(used)} of {_mb(cap)} are used",
            'Raise it: config_set("disk", …); or delete keys and save()',
        )
    free = files.free_bytes(engine.directory)
    if free < max(DISK_FREE_MIN, 2 * engine.settings.memory):
        yield Advice(
            "a disk nearly full",
            f"{_mb(free)} are free where the store lies, whose files take {_mb(engine.disk_bytes())}",
            "Free some space; compact() needs room for a copy",
        )


def _budget(engine: Engine, hits: int) -> Iterator[Advice]:
    counters, hot = engine.counters, engine.hot
    memory_hits = hits + counters.buffer_hits
    reads = memory_hits + counters.cold_hits
    # Values that leave, and are read again after that: more memory would keep them.
    if reads >= READS_MIN and memory_hits < HIT_RATIO_MIN * reads and hot.evictions > len(hot):
        yield Advice(
            "a budget too small for the load",
            f"memory answered {memory_hits / reads:.0%} of {reads:,} reads; "
            f"{hot.evictions:,} values were evicted, {len(hot):,} are hot",
            f'Give it more: config_set("memory", "{2 * engine.settings.memory >> 20}MB")',
        )
