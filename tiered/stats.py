"""Counters, and what users see of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from tiered import files, process
from tiered.errors import StoreFullError
from tiered.native import COMPILED

if TYPE_CHECKING:
    from tiered.engine import Engine


class Counters:
    """Events since a store was opened.  Hits are counted by `store`, without a lock: nearly exact."""

    buffer_hits: int
    cold_hits: int
    misses: int
    promotions: int
    refusals: int
    prefetched: int
    expired_hot: int
    expired_cold: int
    checkpoints: int
    writer_waits: int
    wait_seconds: float
    helper_peak_rss_anon_bytes: int
    helper_written_bytes: int
    disk_evictions: int
    snapshots: int
    snapshot_failures: int
    __slots__ = tuple(__annotations__)  # As in `Tiers`.

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)
        self.wait_seconds = 0.0


def _lines(figures: Mapping[str, object]) -> str:
    """Figures to be read by people, a line for each."""
    width = max(map(len, figures))
    return "\n".join(f"{name:<{width}}  {_shown(value)}".rstrip() for name, value in figures.items())


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}"
    return ", ".join(value) if isinstance(value, tuple) else str(value)


class Stats(NamedTuple):
    """A store at a glance.  Bytes and seconds; counts are since it was opened.

    `compiled` says whether the compiled part of the package runs, or Python in its place.
    `disk_free_bytes` are pages of the cold tier's file that hold nothing: later checkpoints
    use them, but not those that an open view can still see.  `damaged_bytes` is what `salvage` has
    put aside, `disk_evictions` counts what `disk_full="evict"` has deleted, `expired_hot` and `expired_cold` the keys
    whose time was up that have left memory and the cold tier.  `view_seconds` is the age of the oldest
    view, `view_bytes` what views keep of write buffers that the store has let go of.

    Everything that was acknowledged before `as_of` is seen, in seconds since the epoch: now for the
    program that writes; for `flag="r"` the last time that it had read all of the journal, so that `time.time() -
    as_of` is how far behind it may be.  `last_sequence` is the number of the last operation seen.

    `promotions` are values that became hot when they were read, `refusals` those that did not: too large, read for
    the first time (`promotion="second"`), or while writers were ahead of the checkpoints.  `prefetched` counts those
    read ahead after opening (`warm_start`), `evicted_bytes` what the `evictions` took in the hot tier; `eviction` is
    the policy in force.

    `object_hits` are those of the hits that were copies of a document kept decoded.

    `snapshot_seconds` is the age of a snapshot under way, which holds pages as a view does; `snapshot_failure`
    why the last scheduled one failed, "" if it did not.
    """

    path: str
    state: str
    as_of: float
    compiled: bool
    records: int
    hot_records: int
    hot_bytes: int
    dirty_records: int
    write_buffer_bytes: int
    hits: int
    object_hits: int
    buffer_hits: int
    cold_hits: int
    misses: int
    promotions: int
    refusals: int
    prefetched: int
    eviction: str
    evictions: int
    evicted_bytes: int
    disk_evictions: int
    expired_hot: int
    expired_cold: int
    checkpoints: int
    checkpointer: str
    writer_waits: int
    wait_seconds: float
    packed_bytes: int
    stored_bytes: int
    disk_bytes: int
    disk_used_bytes: int
    disk_free_bytes: int
    view_count: int
    view_seconds: float
    view_bytes: int
    snapshots: int
    snapshot_failures: int
    snapshot_failure: str
    snapshot_last: str
    snapshot_seconds: float
    dictionary_count: int
    last_sequence: int
    synced_sequence: int
    applied_sequence: int
    helper_peak_rss_anon_bytes: int
    helper_written_bytes: int
    recovery_dropped_bytes: int
    recovery_torn_at: str
    damaged_bytes: int

    @property
    def hit_ratio(self) -> float:
        """Share of the reads of existing keys that memory answered; 0.0 before the first."""
        reads = self.hits + self.buffer_hits + self.cold_hits
        return (self.hits + self.buffer_hits) / reads if reads else 0.0

    def __str__(self) -> str:
        return _lines({**self._asdict(), "hit_ratio": self.hit_ratio})


class MemoryStats(NamedTuple):
    """Where a store's memory is, in bytes.

    `accounted_bytes` is the sum of what the budget is for: hot tier (its entries, its tables, and
    the documents it keeps decoded), write buffer, what views keep of it, what `promotion="second"`
    remembers (`admission_bytes`), and the filters of the cold tier's runs.  `dictionary_bytes` are those
    of compression that are loaded, beside the budget.  `grown_bytes` is by how much the anonymous memory
    of the whole process has grown since the store was opened, and `fragmentation` that for each byte
    accounted for, other stores and the program itself included.  `process_rss_file_bytes` are pages of mapped
    files, LMDB's among them: the system's cache, which counts as resident and is given up under pressure.
    """

    budget_bytes: int
    accounted_bytes: int
    hot_entry_bytes: int
    hot_table_bytes: int
    object_bytes: int
    write_buffer_bytes: int
    view_bytes: int
    admission_bytes: int
    filter_bytes: int
    dictionary_bytes: int
    grown_bytes: int
    fragmentation: float
    process_rss_anon_bytes: int
    process_rss_file_bytes: int
    helper_peak_rss_anon_bytes: int
    hot_tier: str
    bound: str

    def __str__(self) -> str:
        return _lines(self._asdict())


_BOUNDS = {
    True: "real: the arena's memory is the process's, page by page; the rest is accounted",
    False: "accounted: the heap may add fragmentation to it, since no compiled arena holds the hot tier",
}
_OWN_CHECKPOINTS = "; checkpoints, which this process makes itself, take memory beside it while they last"


def _checkpoints_itself(engine: Engine) -> bool:
    checkpointer = engine.checkpointer
    inline = checkpointer is not None and checkpointer.name == "inline"  # As where no helper could be started.
    return not engine.readonly and (inline or not engine.settings.helper)


class Explanation(NamedTuple):
    """Where one key's record is and what it costs."""

    tiers: tuple[str, ...]
    dirty: bool
    ttl_seconds: float | None
    codec: int
    payload_bytes: int
    hot_bytes: int
    stored_bytes: int
    compression: str
    dictionary: int

    def __str__(self) -> str:
        return _lines(self._asdict())


def state_name(engine: Engine) -> str:
    """The condition a store is in."""
    if engine.forked:
        return "forked"
    if engine.closed:
        return "closed"
    if engine.poisoned:
        return "poisoned"
    if engine.full or engine.capped:
        return "full" if engine.capped or engine.full_kind is StoreFullError else "held up"
    return "read-only" if engine.readonly else "open"


def stats_of(engine: Engine, records: int, hits: int) -> Stats:
    """The figures of an engine now."""
    counters, journal = engine.counters, engine.journal
    views = engine.open_views()
    with engine.cold.read() as reader:
        dictionaries = len(reader.dictionary_numbers())
    return Stats(
        path=str(engine.directory),
        state=state_name(engine),
        as_of=engine.as_of_ms / 1000,
        compiled=COMPILED,
        records=records,
        hot_records=len(engine.hot),
        hot_bytes=engine.hot.used_bytes,
        dirty_records=sum(len(buffer.positions) for buffer in engine.buffers),
        write_buffer_bytes=engine.buffer_bytes,
        hits=hits,
        object_hits=engine.hot.object_hits,
        buffer_hits=counters.buffer_hits,
        cold_hits=counters.cold_hits,
        misses=counters.misses,
        promotions=counters.promotions,
        refusals=counters.refusals,
        prefetched=counters.prefetched,
        eviction=engine.hot.policy,
        evictions=engine.hot.evictions,
        evicted_bytes=engine.hot.evicted_bytes,
        disk_evictions=counters.disk_evictions,
        expired_hot=counters.expired_hot,
        expired_cold=counters.expired_cold,
        checkpoints=counters.checkpoints,
        checkpointer=engine.checkpointer.name if engine.checkpointer else "none",
        writer_waits=counters.writer_waits,
        wait_seconds=counters.wait_seconds,
        packed_bytes=engine.state.packed_bytes,
        stored_bytes=engine.state.stored_bytes,
        disk_bytes=engine.disk_bytes(),
        disk_used_bytes=engine.cold_used_bytes,
        disk_free_bytes=max(0, engine.cold.file_bytes() - engine.cold_used_bytes),
        view_count=len(views),
        view_seconds=max((view.age_seconds for view in views), default=0.0),
        view_bytes=engine.pinned_bytes(),
        snapshots=counters.snapshots,
        snapshot_failures=counters.snapshot_failures,
        snapshot_failure=engine.snapshot_failure,
        snapshot_last=engine.snapshot_last,
        snapshot_seconds=engine.snapshot_seconds,
        dictionary_count=dictionaries,
        last_sequence=engine.last_sequence,
        synced_sequence=max(journal.synced, engine.state.applied) if journal else engine.state.applied,
        applied_sequence=engine.state.applied,
        helper_peak_rss_anon_bytes=counters.helper_peak_rss_anon_bytes,
        helper_written_bytes=counters.helper_written_bytes,
        recovery_dropped_bytes=engine.recovery.dropped_bytes,
        recovery_torn_at=engine.recovery.torn_at,
        damaged_bytes=sum(map(files.disk_bytes, files.damaged_paths(engine.directory))),
    )


def memory_stats_of(engine: Engine) -> MemoryStats:
    """The memory of an engine now."""
    hot, buffers, views = engine.hot, engine.buffer_bytes, engine.pinned_bytes()
    seen, filters = engine.admission.used_bytes, engine.cold.filter_bytes
    accounted, anonymous = hot.used_bytes + buffers + views + seen + filters, process.rss_anon_bytes()
    grown = max(0, anonymous - engine.rss_anon_before)
    return MemoryStats(
        budget_bytes=engine.settings.memory,
        accounted_bytes=accounted,
        hot_entry_bytes=hot.entry_bytes,
        hot_table_bytes=hot.used_bytes - hot.entry_bytes - hot.object_bytes,
        object_bytes=hot.object_bytes,
        write_buffer_bytes=buffers,
        view_bytes=views,
        admission_bytes=seen,
        filter_bytes=filters,
        dictionary_bytes=engine.decompressor.dictionary_bytes,
        grown_bytes=grown,
        fragmentation=grown / accounted if accounted else 0.0,
        process_rss_anon_bytes=anonymous,
        process_rss_file_bytes=process.rss_file_bytes(),
        helper_peak_rss_anon_bytes=engine.counters.helper_peak_rss_anon_bytes,
        hot_tier=hot.name,
        bound=_BOUNDS[hot.in_budget] + (_OWN_CHECKPOINTS if _checkpoints_itself(engine) else ""),
    )
