"""Settings: what they accept, what they refuse, which value wins, and what a store remembers."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from programs import wait_until

import tiered
from tiered.config import (
    SETTINGS,
    Settings,
    parse_compression,
    parse_save,
    parse_size,
    parse_ttl,
    setting_named,
)
from tiered.errors import ConfigError
from tiered.native import native

MB = 1 << 20


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (0, 0),
        (12_345, 12_345),
        ("512MiB", 512 << 20),
        ("1GiB", 1 << 30),
        ("1.5 kib", 1536),
        ("2TiB", 2 << 40),
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("1K", 1024),
        ("1KB", 1024),
        ("1kb", 1024),
        ("64MB", 64 * MB),
        ("64 MB", 64 * MB),
        ("  64mb  ", 64 * MB),
        ("1.5GB", 3 << 29),
        ("1.5GiB", 3 << 29),
        ("2 kib", 2048),
        ("0.5k", 512),
        ("2G", 2 << 30),
        ("1TB", 1 << 40),
    ],
)
def test_a_size_is_bytes_or_text_with_a_unit_of_1024(given, size):
    assert parse_size(given) == size


@pytest.mark.parametrize(
    "given",
    [
        *(
            "",
            "MB",
            "64XB",
            "1iB",
            "-1",
            "1e6",
            "1,000",
            "64 MB MB",
            "0x10",
            "nan",
            "inf",
            -1,
            1.5,
            True,
            None,
            [],
            b"64MB",
        ),
        *(10**30, "9" * 400, "9999999999TB", f"{1 << 63}"),
    ],
    ids=lambda given: repr(given)[:20],
)
def test_what_is_no_size_is_refused(given):
    with pytest.raises(ConfigError, match="size"):
        parse_size(given)


@pytest.mark.parametrize(
    ("given", "points"),
    [
        ("", ()),
        ([], ()),
        ((), ()),
        ("3600 1", ((3600, 1),)),
        ("3600 1 300 100 60 10000", ((3600, 1), (300, 100), (60, 10_000))),
        ("  900   1\n", ((900, 1),)),
        ([(900, 1), (60, 5)], ((900, 1), (60, 5))),
        ([[900, 1]], ((900, 1),)),
        ("0 1", ((0, 1),)),
    ],
)
def test_save_points_are_pairs_of_seconds_and_changes(given, points):
    assert parse_save(given) == points


@pytest.mark.parametrize(
    "given",
    [
        *("900", "900 1 60", "a b", "-1 1", "900 0", "1.5 1", None, 5, [900, 1], [(900,)], [(900, 1, 2)], [(-1, 1)]),
        *([(1, 0)], [(None, 1)], [(float("inf"), 1)], [(float("nan"), 1)], f"{1 << 64} 1", [(1, 1 << 64)]),
    ],
    ids=lambda given: repr(given)[:20],
)
def test_what_are_no_save_points_is_refused(given):
    with pytest.raises(ConfigError, match="save"):
        parse_save(given)


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("zstd", "zstd:3"),
        ("zstd:1", "zstd:1"),
        ("zstd:22", "zstd:22"),
        ("zstd:-7", "zstd:-7"),
        ("zlib", "zlib:6"),
        ("zlib:0", "zlib:0"),
        ("zlib:9", "zlib:9"),
        ("none", "none"),
    ],
)
def test_compression_is_a_method_and_a_level(given, normal):
    assert parse_compression(given) == normal
    assert parse_compression(normal) == normal


@pytest.mark.parametrize(
    "given",
    ["", "gzip", "zstd:23", "zstd:-8", "zlib:10", "zlib:-1", "none:1", "zstd:x", "zstd:3:3", "zstd: 3", 3, None],
)
def test_what_is_no_compression_is_refused(given):
    with pytest.raises(ConfigError, match="compression"):
        parse_compression(given)


@pytest.mark.parametrize("given", [None, 1, 0.001, 60, 86_400.5, 10**10])
def test_a_ttl_is_a_number_of_seconds_or_none(given):
    assert parse_ttl(given) == given


@pytest.mark.parametrize(
    "given",
    [0, -1, -0.5, float("nan"), float("inf"), 10**10 + 1, "60", True, False, [], 10**400],
    ids=lambda g: repr(g)[:9],
)
def test_what_is_no_ttl_is_refused(given):
    with pytest.raises(ConfigError, match="ttl"):
        parse_ttl(given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory", "1023KB"),
        ("memory", 0),
        ("eviction", "mru"),
        ("eviction", None),
        ("durability", "never"),
        ("durability", ["always"]),
        ("disk", -1),
        ("disk", "much"),
        ("helper", 1),
        ("helper", None),
        ("default_ttl", 0),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_open_before_anything_is_created(tmp_path, name, value):
    with pytest.raises(ConfigError):
        tiered.open(tmp_path / "store", **{name: value})
    assert not (tmp_path / "store").exists()


def test_a_setting_that_does_not_exist_is_refused_and_the_error_names_those_that_do(tmp_path):
    with pytest.raises(ConfigError, match=r"no setting 'memroy'.*memory"):
        tiered.open(tmp_path / "store", memroy=1)
    assert not (tmp_path / "store").exists()
    with pytest.raises(ConfigError, match="no setting"):
        setting_named("path")


def test_every_setting_has_a_default_that_parses_and_a_line_of_help():
    assert [setting.name for setting in SETTINGS.values()] == list(SETTINGS)
    assert list(Settings.__annotations__) == list(SETTINGS)
    for setting in SETTINGS.values():
        setting.parse(setting.default)
        assert len(setting.help) > 10, setting.name


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_setting_is_kept_as_parses_to_itself(name):
    setting = SETTINGS[name]
    kept = setting.parse(setting.default)
    assert setting.parse(kept) == kept


OTHERS = {
    "memory": ("2MB", 2 * MB),
    "spill": ("no", False),
    "low_watermark": ("50% 60%", (0.5, 0.6)),
    "hot_value_share": (0.1, (0.1, 0.1)),
    "promotion": ("second", "second"),
    "warm_start": ("no", False),
    "advisor": ("yes", True),
    "cycle_seconds": ("1 5", (1.0, 5.0)),
    "eviction": ("s3fifo", "s3fifo"),
    "object_share": ("0.25", 0.25),
    "object_entries_max": ("100", 100),
    "object_value_bytes_max": ("64", 64),
    "durability": ("always", "always"),
    "save": ("900 1", ((900, 1),)),
    "compression": ("zlib", "zlib:6"),
    "default_ttl": (60, 60),
    "disk": ("10GB", 10 << 30),
    "disk_full": ("evict", "evict"),
    "snapshot_save": ("7200 1000", ((7200, 1000),)),
    "snapshot_dir": ("/tmp/snapshots", "/tmp/snapshots"),
    "snapshot_keep": (3, 3),
    "helper": (False, False),
}


def test_an_explicit_argument_beats_the_remembered_value_which_beats_the_default():
    assert set(OTHERS) == set(SETTINGS)
    for name, (given, parsed) in OTHERS.items():
        default = SETTINGS[name].parse(SETTINGS[name].default)
        assert getattr(Settings.resolve({}, {}), name) == default
        assert getattr(Settings.resolve({}, {name: given}), name) == parsed
        assert getattr(Settings.resolve({name: SETTINGS[name].default}, {name: given}), name) == default
        assert getattr(Settings.resolve({name: given}, {}), name) == parsed


def test_a_setting_remembered_by_a_newer_version_is_ignored():
    assert Settings.resolve({}, {"arena": True}) == Settings.resolve({}, {})


def test_all_settings_but_memory_and_helper_are_remembered():
    assert {name for name, setting in SETTINGS.items() if not setting.remembered} == {"memory", "helper"}
    assert set(Settings.resolve({}, {}).remembered()) == set(SETTINGS) - {"memory", "helper"}


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "helper"])
def test_what_open_was_given_is_in_force_again_after_reopening_without_it(opener, name):
    given, parsed = OTHERS[name]
    opener(**{name: given}).close()
    remembered = opener(memory="1MB").config_get(name)[name]
    default = SETTINGS[name].parse(SETTINGS[name].default)
    assert _plain(remembered) == _plain(MB if name == "memory" else parsed)
    if name != "memory":
        assert _plain(remembered) != _plain(default)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ("helper", "memory")])
def test_what_reopening_was_given_is_remembered_too(opener, name):
    given, parsed = OTHERS[name]
    opener().close()
    opener(**{name: given}).close()
    assert _plain(opener().config_get(name)[name]) == _plain(parsed)


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.runtime])
def test_a_setting_changed_at_run_time_is_in_force_at_once_and_after_reopening(opener, name):
    given, parsed = OTHERS[name]
    store = opener()
    store.config_set(name, given)
    assert _plain(store.config_get(name)[name]) == _plain(parsed)
    store["key"] = "value"
    store.close()
    again = opener()
    assert _plain(again.config_get(name)[name]) == _plain(MB if name == "memory" else parsed)
    assert again["key"] == "value"


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if not setting.runtime])
def test_a_setting_that_cannot_change_at_run_time_says_how_to_change_it(store, name):
    with pytest.raises(ConfigError, match=f"open it with {name}="):
        store.config_set(name, OTHERS[name][0])


@pytest.mark.parametrize(
    ("name", "text", "parsed"),
    [
        ("memory", "128mb", 128 * MB),
        ("disk", "10gb", 10 << 30),
        ("snapshot_keep", "3", 3),
        ("object_share", "0", 0.0),
        ("save", "900 1", ((900, 1),)),
    ],
)
def test_values_at_run_time_may_be_text_as_in_redis(store, name, text, parsed):
    store.config_set(name, text)
    assert store.config_get(name)[name] == parsed


def test_yes_and_no_are_true_and_false_and_other_words_are_refused(opener):
    assert opener(helper="no").config_get("helper") == {"helper": False}
    assert SETTINGS["helper"].parse("yes") is True
    for bad in ("maybe", "YES ", 1):
        with pytest.raises(ConfigError, match="'yes' or 'no'"):
            SETTINGS["helper"].parse(bad)
    for bad in ("0", "-1", "1.5", "", "²", "9" * 10):
        with pytest.raises(ConfigError, match="snapshot_keep"):
            SETTINGS["snapshot_keep"].parse(bad)
    for bad in ("0.3", "-1", "much", "nan", "0.1 0.2", (0.1, 0.2), True, None):
        with pytest.raises(ConfigError, match="object_share"):
            SETTINGS["object_share"].parse(bad)
    for bad in ("-1", "1.5", -1, 1.5, True, None):
        with pytest.raises(ConfigError, match="object_entries_max"):
            SETTINGS["object_entries_max"].parse(bad)


# Every setting, changed at run time with a value as Redis takes them


def memory_is_less(store, clock):
    assert store.memory_stats().budget_bytes == 2 * MB
    store.update((("filling", number), "x" * 1000) for number in range(4000))
    assert store.memory_stats().accounted_bytes <= 2.2 * MB


def nothing_spills(store, clock):
    store.clear()
    with pytest.raises(tiered.MemoryFullError):
        store.update((("filling", number), "x" * 1000) for number in range(8000))


def eviction_goes_far_down(store, clock):
    store.update((("filling", number), "x" * 1000) for number in range(6000))
    store.save()
    for number in range(6000):
        assert store["filling", number] == "x" * 1000
    clock.sleep(3)
    for _ in range(100):
        store.tick()
        clock.sleep(0.01)
    assert 0.4 < store._engine.hot.used_bytes / store._engine.hot.budget_bytes <= 0.6


def no_large_value_stays_hot(store, clock):
    store["large"] = "x" * 100_000
    store.save()
    store._engine.hot.clear()
    assert store["large"]
    assert "hot" not in store.explain("large").tiers


def the_second_read_promotes(store, clock):
    store["k"] = ["text"]
    store.save()
    store._engine.hot.clear()
    for tiers in (("cold",), ("hot", "cold")):
        assert store["k"]
        assert store.explain("k").tiers == tiers


def no_list_of_hot_keys_is_kept(store, clock):
    store["k"] = 1
    store._engine._note_hot_keys()
    assert not (Path(store.path) / "HOT").exists()
    assert store._engine.warming is None


def reads_are_sampled(store, clock):
    store["k"] = 1
    before = store.advise().reads
    assert store["k"] == 1
    assert store.advise().reads == before + 1


def the_next_cycle_is_soon(store, clock):
    assert 19 <= store._engine._cycle_at - clock.monotonic() <= 30


def what_was_written_first_leaves(store, clock):
    store["first"] = "x" * 1000
    for number in range(6000):
        store["filling", number] = "x" * 1000
        if number < 500:
            store.get("first")
    hot = list(store._engine.hot)
    assert hot == [("filling", number) for number in range(6000 - len(hot), 6000)]


DOCUMENT = {"name": "Ada", "tags": ["a", "b"], "text": "x" * 30}


def documents_kept(store, clock, document=DOCUMENT):
    store["document"] = document
    store.save()
    for _ in range(9):
        assert store["document"] == document
    return store.stats().object_hits


def no_document_is_kept_decoded(store, clock):
    assert documents_kept(store, clock) == 0


def small_documents_only_are(store, clock):
    assert documents_kept(store, clock) == 0
    assert (documents_kept(store, clock, {"a": 1}) > 0) is (native is not None)


def a_write_is_synced(store, clock):
    store["k"] = 1
    assert store.stats().synced_sequence == store.stats().last_sequence


def a_checkpoint_comes_after_so_many_seconds(store, clock):
    store.save()
    store["k"] = 1
    checkpoints = store.stats().checkpoints
    clock.sleep(890)
    store.tick()
    assert store.stats().checkpoints == checkpoints
    clock.sleep(20)
    store.tick()
    store.tick()
    assert store.stats().checkpoints == checkpoints + 1


def records_are_compressed_by_zlib(store, clock):
    store["text"] = ["text"] * 200
    store.save()
    assert store.explain("text").compression == "zlib"


def keys_live_a_minute(store, clock):
    store["k"] = 1
    assert store.ttl("k") == 60


def the_cap_is_near(store, clock):
    with pytest.raises(tiered.StoreFullError, match="cap"):
        store.update((("random", number), random.Random(number).randbytes(1000)) for number in range(9000))


def the_cap_evicts(store, clock):
    store.config_set("disk", "4mb")
    store.update((("random", number), random.Random(number).randbytes(1000)) for number in range(9000))
    assert store.stats().disk_evictions > 1000


def snapshots_are_made(store, clock):
    store["k"] = store.get("k", 0) + 1
    clock.sleep(8000)
    for _ in range(20):
        store.tick()
    wait_until(lambda: store.tick() >= 0 and store.stats().snapshots >= 1)


def snapshots_go_there(store, clock):
    store.config_set("snapshot_save", "7200 1")
    snapshots_are_made(store, clock)
    assert store.stats().snapshot_last.startswith(store.config_get("snapshot_dir")["snapshot_dir"])


def few_snapshots_stay(store, clock):
    store.config_set("snapshot_save", "7200 1")
    for made in range(1, 6):
        store["k"] = store.get("k", 0) + 1
        clock.sleep(8000)
        wait_until(lambda made=made: store.tick() >= 0 and store.stats().snapshots >= made)
    assert len(list(Path(store.stats().snapshot_last).parent.glob("*.tsnap"))) == 3


IN_FORCE = {
    "memory": ("2mb", memory_is_less),
    "spill": ("no", nothing_spills),
    "low_watermark": ("50% 60%", eviction_goes_far_down),
    "hot_value_share": ("0", no_large_value_stays_hot),
    "promotion": ("second", the_second_read_promotes),
    "warm_start": ("no", no_list_of_hot_keys_is_kept),
    "advisor": ("yes", reads_are_sampled),
    "cycle_seconds": ("20 30", the_next_cycle_is_soon),
    "eviction": ("fifo", what_was_written_first_leaves),
    "object_share": ("0", no_document_is_kept_decoded),
    "object_entries_max": ("4", small_documents_only_are),
    "object_value_bytes_max": ("20", small_documents_only_are),
    "durability": ("always", a_write_is_synced),
    "save": ("900 1", a_checkpoint_comes_after_so_many_seconds),
    "compression": ("zlib", records_are_compressed_by_zlib),
    "default_ttl": ("60", keys_live_a_minute),
    "disk": ("4mb", the_cap_is_near),
    "disk_full": ("evict", the_cap_evicts),
    "snapshot_save": ("7200 1", snapshots_are_made),
    "snapshot_dir": ("DIRECTORY", snapshots_go_there),
    "snapshot_keep": ("3", few_snapshots_stay),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_takes_a_text_at_run_time_is_in_force_at_once_and_after_reopening_or_says_why_not(
    opener, clock, tmp_path, name
):
    if name not in IN_FORCE:
        with pytest.raises(
            ConfigError, match=rf"{name} cannot change while the store is open: \w+.*; close it and open"
        ):
            opener().config_set(name, "no")
        return
    text, in_force = IN_FORCE[name]
    store = opener(memory="4MB", clock=clock, stepwise=True)
    store.config_set(name, str(tmp_path / "kept") if text == "DIRECTORY" else text)
    in_force(store, clock)
    store.config_set("spill", True)
    store.config_set(name, str(tmp_path / "kept") if text == "DIRECTORY" else text)
    store.close()
    kept = {"memory": "2MB"} if name == "memory" else {"memory": "4MB"}
    in_force(opener(clock=clock, stepwise=True, **kept), clock)


# The three situations of the memory-management samples


def test_situation_an_lru_limit_set_at_run_time_keeps_memory_and_loses_nothing(opener):
    """`maxmemory 2mb`, `maxmemory-policy allkeys-lru`, and many small collections, which are kept packed."""
    store = opener(memory="64MB")
    small = {
        ("user", number): {"id": number, "tags": ["a", "b"], "at": (1, 2), "bio": "x" * 100} for number in range(20_000)
    }
    store.update(small)
    store.config_set("memory", "2mb")
    store.config_set("eviction", "lru")
    for _ in range(3):
        assert all(store["user", number] == small["user", number] for number in range(100))
        for number in range(100, 20_000, 37):
            assert store["user", number] == small["user", number]
        stats = store.memory_stats()
        assert stats.accounted_bytes <= 1.1 * stats.budget_bytes
    assert store.stats().evictions > 0
    store["user", 1] = small["user", 1]
    assert "hot" in store.explain(("user", 1)).tiers
    assert store.explain(("user", 1)).hot_bytes < 250, "packed: a dict of Python objects takes more than 700"
    assert len(store) == 20_000


def test_situation_save_points_and_zlib_set_at_run_time_are_heeded(opener, clock):
    """`save 900 1`, `rdbcompression yes`."""
    store = opener(clock=clock, stepwise=True, save="", compression="none")
    store["before"] = ["text"] * 200
    store.save()
    store.config_set("save", "900 1")
    store.config_set("compression", "zlib")
    store["after"] = ["text"] * 200
    checkpoints = store.stats().checkpoints
    clock.sleep(890)
    store.tick()
    assert store.stats().checkpoints == checkpoints
    clock.sleep(11)
    while store.tick() == 0.0:
        pass
    assert store.stats().checkpoints == checkpoints + 1
    assert store.explain("after").compression == "zlib"
    assert store.explain("before").compression == "none"
    assert store.explain("after").stored_bytes * 4 < store.explain("before").stored_bytes
    assert store["before"] == store["after"]
    assert store.config_get("save") == {"save": ((900, 1),)}


def test_situation_virtual_memory_with_a_size_keeps_what_does_not_fit_on_disk_up_to_it(opener):
    """`vm-enabled no`, then `yes`, `vm-max-memory 1mb`, and a limit to the swap file, here `disk`."""
    store = opener(memory="1MB", compression="none", spill=False)
    with pytest.raises(tiered.MemoryFullError):
        store.update((number, "x" * 1000) for number in range(16_000))
    assert 500 < len(store) < 1000
    store.config_set("spill", "yes")
    store.config_set("disk", "8mb")
    with pytest.raises(tiered.StoreFullError, match="cap"):
        store.update((number, "x" * 1000) for number in range(16_000))
    assert 8 * MB < store.stats().disk_used_bytes < 10 * MB
    assert len(store) > 4000
    assert store[0] == store[len(store) - 1] == "x" * 1000, "reads go on"
    store.config_set("disk", "64mb")
    store["more"] = "fits"
    assert store["more"] == "fits"


def test_a_bad_value_at_run_time_changes_nothing(store):
    before = store.config_get()
    for name, value in (("memory", "1KB"), ("save", "1"), ("compression", "gzip"), ("disk", 10**30), ("nothing", 1)):
        with pytest.raises(ConfigError):
            store.config_set(name, value)
    assert store.config_get() == before


def test_config_get_takes_wildcards_and_refuses_names_that_match_nothing(store):
    assert list(store.config_get()) == sorted(SETTINGS)
    assert list(store.config_get("*i*")) == sorted(name for name in SETTINGS if "i" in name)
    assert store.config_get("memory") == {"memory": MB}
    with pytest.raises(ConfigError, match="no setting 'arena'"):
        store.config_get("arena")


def test_a_memory_budget_changed_at_run_time_is_kept_to(store):
    store.config_set("memory", "4MB")
    for number in range(2000):
        store[number] = "x" * 1000
    assert store.memory_stats().accounted_bytes > 1 * MB
    store.config_set("memory", "1MB")
    store["one more"] = 1
    # Dirty records are taken off the hot tier's share in steps of a few KB, which shows at the smallest budget.
    assert store.memory_stats().accounted_bytes <= 1.1 * MB
    assert all(store[number] == "x" * 1000 for number in range(2000))


LITTLE_ADDRESS_SPACE = """
import resource, sys, tiered
store = tiered.open(sys.argv[1], memory="8MB")
store.update((number, "x" * 100) for number in range(50_000))
there = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (there + (64 << 20), resource.RLIM_INFINITY))
try:
    store.config_set("memory", "8GB")
except tiered.ConfigError as error:
    assert "address space" in str(error)
else:
    raise AssertionError("no error")
assert store.config_get("memory") == {"memory": 8 << 20}
store.update((number, "y" * 100) for number in range(50_000))
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
assert set(store.values()) == {"y" * 100}
assert store.check() == []
store.close()
"""


@pytest.mark.skipif(native is None, reason="the heap reserves no address space")
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS")
def test_more_memory_than_there_is_address_space_is_refused_and_changes_nothing(tmp_path):
    program = [sys.executable, "-c", LITTLE_ADDRESS_SPACE, str(tmp_path / "store")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(ConfigError, match="address space"):
        tiered.open(tmp_path / "other", memory=1 << 50)


def _plain(value):
    """Remembered tuples come back as lists."""
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_wrong_value_is_refused_by_the_name_of_its_setting(name: str) -> None:
    if name == "snapshot_dir":
        wrong: object = 3
    else:
        wrong = ("no", "such", "value")
    with pytest.raises(ConfigError, match=f"^{name}="):
        SETTINGS[name].parse(wrong)
