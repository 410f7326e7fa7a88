"""The figures of stores for Prometheus, through `prometheus_client`, from the extra `tiered[metrics]`.

    from prometheus_client import start_http_server
    from tiered import metrics

    metrics.register(store)                          # or {"users": users, "events": events}
    start_http_server(9100)

Everything is read when it is asked for, and costs what `store.stats()` costs.  Each sample has the label `store`: the
name given, else the path.  A store that was closed stays, with `tiered_up` 0 and nothing else.

Counters start at 0 when a store is opened, which Prometheus knows how to take.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tiered.errors import StoreError
from tiered.store import Store

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "tiered.metrics needs prometheus_client: pip install 'tiered[metrics]'", name=error.name
    ) from None

Family = CounterMetricFamily | GaugeMetricFamily


class Metric(NamedTuple):
    """One row of the table of metrics: where it comes from, its name, what it says; `tier` is a label of some."""

    field: str
    name: str
    help: str
    tier: str = ""

    @property
    def is_counter(self) -> bool:
        """Whether it only ever grows."""
        return self.name.endswith("_total")


_READS, _EXPIRED = "reads, by the tier that answered, none for a key that is absent", "keys expired, by the tier left"

METRICS = (
    Metric("records", "records", "records that the store holds"),
    Metric("hits", "reads_total", _READS, "hot"),
    Metric("buffer_hits", "reads_total", _READS, "write_buffer"),
    Metric("cold_hits", "reads_total", _READS, "cold"),
    Metric("misses", "reads_total", _READS, "none"),
    Metric("object_hits", "object_hits_total", "hot reads that were copies of a document kept decoded"),
    Metric("promotions", "promotions_total", "values that became hot when read"),
    Metric("refusals", "refusals_total", "values that did not become hot when read"),
    Metric("prefetched", "prefetched_total", "values read ahead after opening"),
    Metric("evictions", "evictions_total", "values that left memory and stay on disk"),
    Metric("evicted_bytes", "evicted_bytes_total", "bytes that those took in memory"),
    Metric("disk_evictions", "disk_evictions_total", "records deleted by disk_full='evict'"),
    Metric("expired_hot", "expired_total", _EXPIRED, "hot"),
    Metric("expired_cold", "expired_total", _EXPIRED, "cold"),
    Metric("checkpoints", "checkpoints_total", "checkpoints that the cold tier has taken in"),
    Metric("writer_waits", "writer_waits_total", "writes that had to wait for a checkpoint"),
    Metric("wait_seconds", "writer_wait_seconds_total", "seconds that writes have waited for checkpoints"),
    Metric("snapshots", "snapshots_total", "snapshots made"),
    Metric("snapshot_failures", "snapshot_failures_total", "snapshots that failed"),
    Metric("helper_written_bytes", "helper_written_bytes_total", "bytes that the helper process has written"),
    Metric("as_of", "as_of_timestamp_seconds", "everything acknowledged before this time is seen"),
    Metric("compiled", "compiled", "1 if the compiled part of the package runs"),
    Metric("hot_records", "hot_records", "values in memory"),
    Metric("hot_bytes", "hot_bytes", "bytes of the hot tier"),
    Metric("dirty_records", "dirty_records", "records that no checkpoint has taken in yet"),
    Metric("write_buffer_bytes", "write_buffer_bytes", "bytes of the write buffer"),
    Metric("packed_bytes", "packed_bytes", "bytes of the records in the cold tier before compression"),
    Metric("stored_bytes", "stored_bytes", "bytes of the records in the cold tier, compressed"),
    Metric("disk_bytes", "disk_bytes", "bytes that the store's files take"),
    Metric("disk_used_bytes", "disk_used_bytes", "bytes of the cold tier that hold something"),
    Metric("disk_free_bytes", "disk_free_bytes", "bytes of the cold tier's file to be used again"),
    Metric("view_count", "views", "open views"),
    Metric("view_seconds", "view_age_seconds", "age of the oldest view"),
    Metric("view_bytes", "view_bytes", "bytes of write buffers that only views keep"),
    Metric("snapshot_seconds", "snapshot_age_seconds", "age of the snapshot under way"),
    Metric("dictionary_count", "dictionaries", "compression dictionaries"),
    Metric("last_sequence", "last_sequence", "number of the last operation"),
    Metric("synced_sequence", "synced_sequence", "number of the last operation that is on the disk"),
    Metric("applied_sequence", "applied_sequence", "number of the last operation that the cold tier has"),
    Metric("recovery_dropped_bytes", "recovery_dropped_bytes", "bytes of a torn journal dropped when it was opened"),
    Metric("damaged_bytes", "damaged_bytes", "bytes of damaged files that were put aside"),
    Metric("budget_bytes", "memory_budget_bytes", "the setting `memory`"),
    Metric("accounted_bytes", "memory_accounted_bytes", "bytes of memory that count against it"),
    Metric("hot_entry_bytes", "hot_entry_bytes", "bytes of the hot tier's entries"),
    Metric("hot_table_bytes", "hot_table_bytes", "bytes of the hot tier's tables"),
    Metric("object_bytes", "object_bytes", "bytes of documents kept decoded"),
    Metric("admission_bytes", "admission_bytes", "bytes for what the second read of a key is known by"),
    Metric("filter_bytes", "filter_bytes", "bytes of the filters that say which runs cannot have a key"),
    Metric("dictionary_bytes", "dictionary_bytes", "bytes of compression dictionaries in memory"),
    Metric("grown_bytes", "process_grown_bytes", "growth of the process's anonymous memory since the store was opened"),
    Metric("fragmentation", "memory_fragmentation_ratio", "that growth for each byte accounted for"),
    Metric("process_rss_anon_bytes", "process_rss_anon_bytes", "anonymous memory of the process"),
    Metric("process_rss_file_bytes", "process_rss_file_bytes", "pages of mapped files that are resident"),
    Metric("helper_peak_rss_anon_bytes", "helper_peak_rss_anon_bytes", "most anonymous memory of the helper process"),
)
UP, STATE = "tiered_up", "tiered_state"
STATES = ("open", "read-only", "poisoned", "full", "held up")


class StoreCollector(Collector):
    """A collector for one store or many, to be registered; `register` does that.  Safe to use from any thread."""

    def __init__(self, stores: Store[Any, Any] | Mapping[str, Store[Any, Any]]) -> None:
        self._stores = {stores.path: stores} if isinstance(stores, Store) else dict(stores)

    def describe(self) -> Iterator[Family]:
        """The metrics, without samples: registering reads no store."""
        yield from _families().values()
        yield GaugeMetricFamily(UP, "", labels=["store"])
        yield GaugeMetricFamily(STATE, "", labels=["store", "state"])

    def collect(self) -> Iterator[Family]:
        """The metrics, with what the stores say now."""
        families = _families()
        up = GaugeMetricFamily(UP, "1 if the store is open", labels=["store"])
        states = GaugeMetricFamily(STATE, "1 for the state that the store is in", labels=["store", "state"])
        for name, store in self._stores.items():
            try:
                stats = store.stats()
                figures = {**store.memory_stats()._asdict(), **stats._asdict()}
            except StoreError:  # Closed, or of the process before a fork; or damaged, of which its reads speak.
                up.add_metric([name], 0)
                continue
            up.add_metric([name], 1)
            for state in STATES:
                states.add_metric([name, state], stats.state == state)
            for metric in METRICS:
                labels = [name, metric.tier] if metric.tier else [name]
                families[metric.name].add_metric(labels, float(figures[metric.field]))
        yield up
        yield states
        yield from families.values()


def _families() -> dict[str, Family]:
    """A family for each name, still empty."""
    found: dict[str, Family] = {}
    for metric in METRICS:
        labels = ["store", "tier"] if metric.tier else ["store"]
        kind = CounterMetricFamily if metric.is_counter else GaugeMetricFamily
        found.setdefault(metric.name, kind(f"tiered_{metric.name}", metric.help, labels=labels))
    return found


def register(
    stores: Store[Any, Any] | Mapping[str, Store[Any, Any]], registry: CollectorRegistry = REGISTRY
) -> StoreCollector:
    """Have a registry collect the figures of a store, or of a mapping of names to stores, from now on.

    Once for all stores of a registry, which takes no name of a metric twice (`ValueError`).
    `registry.unregister` ends it, given what this returns.
    """
    collector = StoreCollector(stores)
    registry.register(collector)
    return collector
