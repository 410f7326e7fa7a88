"""Statistics: what they count, their types, and where a key is said to be."""

from __future__ import annotations

import pytest

from tiered import process
from tiered.stats import Counters, Explanation, MemoryStats, Stats

KINDS = {"bool": bool, "int": int, "float": float, "str": str}


def annotations(kind):
    """The figures of a class and the names of their types."""
    found = {name: getattr(kind, "__forward_arg__", kind) for name, kind in kind.__annotations__.items()}
    assert found
    return found


@pytest.mark.parametrize("kind", [Stats, MemoryStats, Counters])
def test_every_figure_is_a_number_a_text_or_yes_or_no(kind):
    for name, found in annotations(kind).items():
        assert found in KINDS, name
        if name.endswith("_bytes"):
            assert found == "int", name
        if name.endswith("_seconds"):
            assert found == "float", name
    assert kind.__doc__


def test_what_a_store_reports_is_of_the_types_announced(store):
    store.update(dict.fromkeys(range(100), "x" * 100))
    store.save()
    for figures in (store.stats(), store.memory_stats()):
        for name, found in annotations(type(figures)).items():
            value = getattr(figures, name)
            assert type(value) is KINDS[found], name
            if found != "str":
                assert value >= 0, name


def test_printed_they_have_a_line_for_each_figure(store):
    store.update(dict.fromkeys(range(1234), "x" * 100))
    store.save()
    for figures in (store.stats(), store.memory_stats(), store.explain(7)):
        lines = dict((*line.split(maxsplit=1), "")[:2] for line in str(figures).splitlines())
        assert list(lines)[: len(figures)] == list(figures._fields)
        assert repr(figures).startswith(f"{type(figures).__name__}({figures._fields[0]}=")
    printed = str(store.stats()).splitlines()
    assert any(line.split() == ["records", "1,234"] for line in printed)
    assert any(line.split() == ["hit_ratio", "0.000"] for line in printed)
    assert "ttl_seconds    None" in str(store.explain(7))


@pytest.mark.parametrize(
    ("hits", "buffer_hits", "cold_hits", "ratio"),
    [(0, 0, 0, 0.0), (1, 0, 0, 1.0), (0, 0, 5, 0.0), (3, 1, 4, 0.5), (0, 1, 1, 0.5)],
)
def test_the_hit_ratio_is_the_share_of_reads_that_memory_answered(store, hits, buffer_hits, cold_hits, ratio):
    stats = store.stats()._replace(hits=hits, buffer_hits=buffer_hits, cold_hits=cold_hits)
    assert stats.hit_ratio == ratio


def test_reads_are_counted_by_the_tier_that_answered(opener):
    store = opener(stepwise=True)
    store["hot"] = 1
    assert store["hot"] == 1
    store._engine.hot.clear()
    assert store["hot"] == 1
    store.save()
    store._engine.hot.clear()
    assert store["hot"] == 1
    assert store["hot"] == 1
    assert "missing" not in store
    assert store.get("missing") is None
    stats = store.stats()
    assert (stats.hits, stats.buffer_hits, stats.cold_hits, stats.misses) == (2, 1, 1, 1)
    assert stats.hit_ratio == 0.75
    assert stats.promotions == 2
    assert (stats.records, stats.dirty_records, stats.hot_records, stats.checkpoints) == (1, 0, 1, 1)


def test_reading_many_counts_as_reading_each(opener):
    store = opener(stepwise=True)
    store.update(dict.fromkeys(range(10), "x"))
    store.save()
    store._engine.hot.clear()
    assert len(store.get_many(range(20))) == 10
    assert len(store.get_many(range(5))) == 5
    stats = store.stats()
    assert (stats.hits, stats.cold_hits, stats.misses, stats.promotions) == (5, 10, 10, 10)


def test_sequence_numbers_follow_writes_syncs_and_checkpoints(opener):
    store = opener(stepwise=True)
    before = store.stats().last_sequence
    store["a"] = 1
    store["b"] = 2
    stats = store.stats()
    assert stats.last_sequence == before + 2
    assert stats.applied_sequence <= stats.synced_sequence <= stats.last_sequence
    store.sync()
    assert store.stats().synced_sequence == before + 2
    store.save()
    stats = store.stats()
    assert stats.applied_sequence == stats.last_sequence


def test_memory_statistics_add_up(opener):
    store = opener(stepwise=True)
    for number in range(2000):
        store[number] = "x" * 200
    figures = store.memory_stats()
    assert figures.accounted_bytes == figures.hot_entry_bytes + figures.hot_table_bytes + figures.write_buffer_bytes
    assert figures.budget_bytes == 1 << 20
    assert figures.process_rss_anon_bytes > 1 << 20
    assert figures.bound


def test_bytes_on_disk_packed_and_stored_are_told_apart(opener):
    store = opener(stepwise=True)
    store.update(dict.fromkeys(range(500), "the same again and again " * 20))
    store.save()
    stats = store.stats()
    assert stats.packed_bytes == 500 * 500
    assert 0 < stats.stored_bytes < stats.packed_bytes / 3
    assert 0 < stats.disk_used_bytes <= stats.disk_bytes


def test_a_key_is_explained_by_tier_without_being_promoted(opener, clock):
    store = opener(stepwise=True, clock=clock)
    store.set("key", "again and again " * 10, ttl=60)
    assert store.explain("key").tiers == ("hot", "write buffer")
    assert store.explain("key").dirty
    store.save()
    found = store.explain("key")
    assert isinstance(found, Explanation)
    assert (found.tiers, found.dirty, found.ttl_seconds) == (("hot", "cold"), False, 60.0)
    assert (found.payload_bytes, found.compression) == (160, "zstd")
    assert 0 < found.stored_bytes < 160 < found.hot_bytes
    store._engine.hot.clear()
    assert store.explain("key").tiers == ("cold",)
    assert store.explain("key").tiers == ("cold",)
    assert store.explain("key").hot_bytes == 0
    clock.sleep(61)
    with pytest.raises(KeyError):
        store.explain("key")


def test_the_state_is_one_word(opener):
    store = opener(stepwise=True)
    store["key"] = 1
    assert store.stats().state == "open"
    store.close()
    reader = opener(flag="r", stepwise=True)
    assert reader.stats().state == "read-only"
    reader.close()
    store = opener(stepwise=True, disk=1)
    store["more"] = "x" * 1000
    store.save()
    assert store.stats().state == "full"
    store.config_set("disk", None)
    assert store.stats().state == "open"


def test_figures_of_the_process_are_those_of_the_system(tmp_path):
    assert process.rss_anon_bytes() > 1 << 20
    before = process.written_bytes()
    assert isinstance(before, int)
    process.trim_heap()
    assert process._field(str(tmp_path / "missing"), b"x") == 0
    (tmp_path / "fields").write_text("RssAnonymous: 3\nRssAnon:\t 5 kB\n")
    assert process._field(str(tmp_path / "fields"), b"RssAnon:") == 5
