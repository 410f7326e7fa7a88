"""Metrics, as a scraper reads them."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from typing import Any

import pytest
from programs import ROOT

from tiered.stats import MemoryStats, Stats

prometheus_client = pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from tiered import metrics  # noqa: E402

NOT_NUMBERS = {
    *("path", "state", "checkpointer", "snapshot_failure", "snapshot_last", "recovery_torn_at"),
    *("hot_tier", "bound"),
}


def scraped(stores: Any) -> dict[tuple[str, ...], float]:
    """What a scraper reads: samples by name and values of labels."""
    registry = prometheus_client.CollectorRegistry()
    metrics.register(stores, registry)
    text = prometheus_client.generate_latest(registry).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_figures_of_a_store_are_those_of_its_stats(opener: Any) -> None:
    store = opener(stepwise=True)
    store.update((number, bytes(1000)) for number in range(3000))
    store.save()
    for number in range(3000):
        store[number]
    assert 7000 not in store
    assert store.get(7000) is None
    found, stats = scraped(store), store.stats()
    path = store.path
    assert found["tiered_records", path] == 3000
    assert found["tiered_reads_total", path, "cold"] == stats.cold_hits > 0
    assert found["tiered_reads_total", path, "none"] == stats.misses == 1
    assert found["tiered_evictions_total", path] == stats.evictions > 0
    assert found["tiered_checkpoints_total", path] == stats.checkpoints
    assert found["tiered_memory_budget_bytes", path] == 1 << 20
    assert found["tiered_memory_accounted_bytes", path] == store.memory_stats().accounted_bytes
    assert found["tiered_up", path] == 1
    assert [found["tiered_state", state, path] for state in metrics.STATES] == [1, 0, 0, 0, 0]


def test_many_stores_are_told_apart_by_name_and_a_closed_one_is_down(opener: Any) -> None:
    users, events = opener("users"), opener("events")
    users["a"] = 1
    found = scraped({"users": users, "events": events})
    assert (found["tiered_records", "users"], found["tiered_records", "events"]) == (1, 0)
    events.close()
    found = scraped({"users": users, "events": events})
    assert (found["tiered_up", "users"], found["tiered_up", "events"]) == (1, 0)
    assert ("tiered_records", "events") not in found


def test_every_figure_is_a_metric(store: Any) -> None:
    named = {metric.field for metric in metrics.METRICS}
    assert named | NOT_NUMBERS == set(Stats._fields) | set(MemoryStats._fields)
    assert not named & NOT_NUMBERS
    assert {name for name, *_ in scraped(store)} == {f"tiered_{metric.name}" for metric in metrics.METRICS} | {
        metrics.UP,
        metrics.STATE,
    }


def test_metrics_are_named_as_prometheus_wants_them() -> None:
    for metric in metrics.METRICS:
        assert metric.name.endswith(("_bytes", "_seconds", "_total")) or not metric.field.endswith(("bytes", "seconds"))
        assert metric.name.islower()
        assert metric.help


def test_registering_reads_no_store(opener: Any) -> None:
    store = opener()
    store.close()
    registry = prometheus_client.CollectorRegistry()
    collector = metrics.register(store, registry)
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.register(store, registry)
    registry.unregister(collector)
    metrics.register(store, registry)


def test_a_server_serves_them(store: Any) -> None:
    registry = prometheus_client.CollectorRegistry()
    metrics.register({"one": store}, registry)
    server, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
            assert 'tiered_records{store="one"} 0.0' in answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_without_the_package_the_error_names_the_extra() -> None:
    code = "import sys; sys.modules['prometheus_client'] = None\nimport tiered.metrics"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: tiered.metrics needs prometheus_client: pip install 'tiered[metrics]'" in done.stderr
