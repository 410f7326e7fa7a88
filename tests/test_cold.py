"""The cold tier: exact counts, reads right at every step of a merge, atomic updates, damage told by name."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiered import cold_state, cold_update, compression, filters, record
from tiered.cold import Cold
from tiered.cold_reader import Reader
from tiered.cold_state import RUNS, SLOTS, State, deadline_key, filter_name, key_size, run_name, sealed
from tiered.compression import Compressor, Decompressor
from tiered.errors import CorruptionError, FormatError, LockedError, StoreFullError

SHM = "/dev/shm" if os.path.isdir("/dev/shm") else None
KEYS = [b"a", b"a\0", b"ab", b"b", b"c", b"d", b"e" * 480, b"f" * 503, b"zz"]
COMPRESSOR = Compressor("zstd:3")
DECOMPRESSOR = Decompressor({}.__getitem__)


def made(key: bytes, payload: bytes, deadline: int = 0):
    kind, dictionary, body = COMPRESSOR.compress(payload)
    data = record.pack(key, 0, kind, dictionary, deadline, b"full" * 130 if len(key) == 503 else b"", body)
    return key, data, deadline, len(payload)


def write(cold: Cold, changes: dict[bytes, tuple[bytes, int] | None]) -> None:
    """Put `key: (payload, deadline)` and delete `key: None` in one transaction."""
    with cold.update() as update:
        update.write([(key, None, 0, 0) if new is None else made(key, *new) for key, new in sorted(changes.items())])


def contents(cold: Cold, start: bytes = b"", stop: bytes | None = None, reverse: bool = False):
    found = []
    with cold.read() as reader:
        for key, data in reader.scan(start, stop, reverse):
            parts = record.unpack(key, data)
            payload = DECOMPRESSOR.decompress(parts.compression, parts.dictionary, parts.body)
            found.append((key, (payload, parts.deadline)))
    return found


def sliced(reader: Reader, reverse: bool = False):
    """As `Reader.scan`, in slices of three."""
    found, start, stop = [], b"", None
    while True:
        some = reader.slice(start, stop, reverse, 3, 1 << 20)
        assert not some.damaged
        found += zip(some.keys, some.datas, strict=True)
        if some.last is None:
            return found
        start, stop = (start, some.last) if reverse else (some.last + b"\0", stop)


def assert_holds(cold: Cold, model: dict[bytes, tuple[bytes, int]]) -> None:
    """Scans, single reads, counts and the expiry index all agree with `model`."""
    expected = sorted(model.items())
    assert contents(cold) == expected
    assert contents(cold, reverse=True) == expected[::-1]
    for key in KEYS:
        data = cold.get(key)
        assert (data is None) is (key not in model)
        with cold.read() as reader:
            assert reader.newest(key) == data
    with cold.read() as reader:
        state = reader.state()
        datas = [data for _, data in reader.scan()]
        assert [data for _, data in sliced(reader)] == [data for _, data in sliced(reader, True)][::-1] == datas
        index = list(reader.due(1 << 60))
    assert state.records == len(model)
    assert state.packed_bytes == sum(len(payload) for payload, _ in model.values())
    assert state.stored_bytes == sum(map(len, datas))
    assert state.key_bytes == sum(key_size(key, data) for key, data in zip(sorted(model), datas, strict=True))
    assert index == sorted(deadline_key(deadline, key) for key, (_, deadline) in model.items() if deadline)
    assert_filters_hold(cold)


def assert_filters_hold(cold: Cold) -> None:
    """Those that are kept are those that the state names, and no run has a key that its filter does not know."""
    with cold.read() as reader:
        state = reader.state()
        with reader.txn.cursor(cold.databases["meta"]) as cursor:
            kept = {key for key in cursor.iternext(values=False) if key.startswith(b"filter-")}
        assert kept == {filter_name(slot) for slot in range(SLOTS) if state.filters[slot]}
        assert {slot for slot in range(SLOTS) if state.filters[slot]} <= {*state.runs, state.fold_slot}
        for slot in (*state.runs, *[state.fold_slot] * bool(state.folding)):
            if state.filters[slot]:
                bits = reader.filter(slot)
                with reader.txn.cursor(cold.databases[run_name(slot)]) as cursor:
                    assert all(filters.has(bits, key) for key in cursor.iternext(values=False))


@pytest.fixture
def cold(tmp_path):
    cold = Cold(tmp_path / "cold-0001", create=True)
    yield cold
    cold.close()


payloads = st.one_of(st.binary(max_size=30), st.integers(30, 400).map(lambda size: b"again " * (size // 6)))
deadlines = st.sampled_from([0, 0, 10, 20, 30, 1_700_000_000_000])
changes = st.dictionaries(st.sampled_from(KEYS), st.one_of(st.none(), st.tuples(payloads, deadlines)), max_size=6)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), changes),
        st.tuples(st.just("write"), changes),
        st.tuples(st.just("merge"), st.integers(1, 4)),
        st.tuples(st.just("fold"), st.integers(1, 4)),
        st.tuples(st.just("merge all")),
        st.tuples(st.just("expire"), st.sampled_from([5, 10, 25, 30]), st.integers(1, 10)),
        st.tuples(st.just("clear")),
        st.tuples(st.just("reopen")),
    ),
    max_size=25,
)


@given(steps, st.sampled_from([0, 3, 1024]), st.sampled_from([0, 2, 1024]))
@settings(max_examples=200, deadline=None)
def test_content_counts_and_expiry_index_are_exact_after_any_steps(steps, small, filtered):
    with tempfile.TemporaryDirectory(dir=SHM) as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(cold_update, "SMALL_RUN_RECORDS", small)
        patch.setattr(cold_update, "_CHUNK_RECORDS", 2)
        patch.setattr(cold_update, "FILTERED_RECORDS_MIN", max(1, filtered))
        cold = Cold(Path(name) / "cold-0001", create=True)
        cold.filter_bytes_max = 150 if filtered else 0
        model: dict[bytes, tuple[bytes, int]] = {}
        try:
            for step in steps:
                if step[0] == "write":
                    write(cold, step[1])
                    model |= step[1]
                    model = {key: new for key, new in model.items() if new is not None}
                elif step[0] == "merge":
                    with cold.update() as update:
                        update.merge(step[1])
                elif step[0] == "fold":
                    with cold.update() as update:
                        update.fold(step[1])
                elif step[0] == "merge all":
                    with cold.update() as update:
                        while update.current.runs:
                            update.merge(1000)
                elif step[0] == "expire":
                    due = sorted((new[1], key) for key, new in model.items() if 0 < new[1] <= step[1])
                    with cold.update() as update:
                        assert update.expire(step[1], step[2]) == min(step[2], len(due))
                    for _, key in due[: step[2]]:
                        del model[key]
                elif step[0] == "clear":
                    with cold.update() as update:
                        update.clear()
                    model.clear()
                else:
                    cold.close()
                    cold = Cold(Path(name) / "cold-0001")
                    cold.filter_bytes_max = 1000
                assert_holds(cold, model)
        finally:
            cold.close()


bounds = st.one_of(st.just(b""), st.sampled_from(KEYS), st.binary(max_size=2))


@given(changes, changes, changes, st.integers(1, 5), bounds, st.one_of(st.none(), bounds), st.booleans())
@settings(max_examples=200, deadline=None)
def test_scans_of_any_bounds_agree_with_brute_force(first, then, last, moved, start, stop, reverse):
    with tempfile.TemporaryDirectory(dir=SHM) as name:
        cold = Cold(Path(name) / "cold-0001", create=True)
        try:
            write(cold, first)
            with cold.update() as update:
                update.merge(1000)
            write(cold, then)
            with cold.update() as update:
                update.merge(moved)
            write(cold, last)
            model = sorted((key, new) for key, new in (first | then | last).items() if new is not None)
            expected = [item for item in model if item[0] >= start and (stop is None or item[0] < stop)]
            assert contents(cold, start, stop, reverse) == (expected[::-1] if reverse else expected)
        finally:
            cold.close()


def test_a_merge_in_slices_leaves_every_read_right_and_counts_untouched(cold):
    model = {b"key %03d" % number: (b"old", 0) for number in range(0, 100, 2)}
    write(cold, model)
    with cold.update() as update:
        update.merge(1000)
    changed = {b"key %03d" % number: (b"new", number) for number in range(0, 100, 3)}
    changed |= {b"key %03d" % number: None for number in range(0, 100, 4)}
    write(cold, changed)
    model = {key: new for key, new in (model | changed).items() if new is not None}
    before, slices = cold.state(), 0
    while cold.state().runs:
        with cold.update() as update:
            assert update.merge(7) <= 7
        slices += 1
        assert contents(cold) == sorted(model.items())
        after = cold.state()
        for name in ("applied", "records", "stored_bytes", "packed_bytes", "key_bytes"):
            assert getattr(after, name) == getattr(before, name)
    assert slices > 5
    with cold.read() as reader:
        assert reader.entries(RUNS) == 0
        assert reader.entries("records") == len(model)


def test_writes_between_the_slices_of_a_merge_are_not_lost(cold):
    model = {b"key %03d" % number: (b"old", 0) for number in range(50)}
    write(cold, model)
    for round_ in range(20):
        with cold.update() as update:
            update.merge(5)
        new = {b"key %03d" % ((round_ * 7) % 50): (b"round %d" % round_, 0), b"key %03d" % ((round_ * 3) % 50): None}
        write(cold, new)
        model = {key: value for key, value in (model | new).items() if value is not None}
        assert contents(cold) == sorted(model.items())
        assert cold.state().records == len(model)


def test_a_deletion_leaves_a_marker_only_over_something(cold):
    write(cold, {b"a": (b"x", 0), b"b": (b"x", 0)})
    write(cold, {b"a": None, b"never there": None})
    with cold.read() as reader:
        assert reader.entries(RUNS) == 2, "a marker over what is there, none over what is not"
    with cold.update() as update:
        update.merge(100)
    write(cold, {b"b": None})
    with cold.read() as reader:
        assert (reader.entries(RUNS), reader.entries("records")) == (1, 1)
    with cold.update() as update:
        update.merge(100)
    with cold.read() as reader:
        assert (reader.entries(RUNS), reader.entries("records")) == (0, 0)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("again", [(b"rewritten", 0), (b"rewritten", 500), (b"rewritten", 100)])
def test_expiry_never_removes_a_key_that_was_rewritten(cold, merged, again):
    write(cold, {b"a": (b"old", 100), b"b": (b"stays", 0), b"c": (b"goes", 50)})
    if merged:
        with cold.update() as update:
            update.merge(100)
    write(cold, {b"a": again})
    with cold.update() as update:
        update.expire(99, 100)
    assert_holds(cold, {b"a": again, b"b": (b"stays", 0)})
    with cold.update() as update:
        update.expire(200, 100)
    assert_holds(cold, {b"b": (b"stays", 0)} | ({} if again[1] == 100 else {b"a": again}))


def test_an_expired_record_does_not_uncover_an_older_one_behind_it(cold):
    write(cold, {b"a": (b"oldest", 0)})
    with cold.update() as update:
        update.merge(100)
    write(cold, {b"a": (b"newer", 100)})
    with cold.update() as update:
        update.expire(100, 10)
    assert_holds(cold, {})


def test_an_entry_of_the_index_that_is_not_that_of_the_record_removes_nothing(cold):
    """Such entries are left where a damaged record was replaced."""
    write(cold, {b"a": (b"stays", 0), b"b": (b"stays", 900)})
    with cold.update() as update:
        for key in (b"a", b"b", b"never there"):
            update.txn.put(deadline_key(50, key), b"", db=cold.expiry)
    with cold.update() as update:
        assert update.expire(100, 10) == 3
    assert_holds(cold, {b"a": (b"stays", 0), b"b": (b"stays", 900)})


def test_expiry_is_bounded_by_its_limit_and_goes_by_deadline(cold):
    write(cold, {b"key %02d" % number: (b"x", 100 - number) for number in range(20)})
    with cold.update() as update:
        assert update.expire(100, 5) == 5
    assert [key for key, _ in contents(cold)] == [b"key %02d" % number for number in range(15)]
    with cold.update() as update:
        assert update.expire(95, 100) == 10
        assert update.expire(95, 100) == 0


def test_an_update_reads_what_it_has_written(cold):
    write(cold, {b"%03d" % number: (b"old", 0) for number in range(500)})
    with cold.update() as update:
        update.write([made(b"%03d" % number, b"new") for number in range(0, 500, 2)])
        newer = [made(b"%03d" % number, b"old" if number % 2 else b"new")[:2] for number in range(500)]
        assert sliced(update) == newer
        assert update.newest(b"100") == newer[100][1]
    assert contents(cold)[100] == (b"100", (b"new", 0))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_an_update_in_which_an_exception_is_raised_changes_nothing(cold, error):
    write(cold, {b"a": (b"x", 5)})
    before, content = cold.state(), contents(cold)
    with pytest.raises(error), cold.update() as update:  # noqa: PT012 - the block is what is tried
        update.write([made(b"a", b"changed"), made(b"b", b"new", 7)])
        update.put_settings({"save": "1 1"})
        update.put_dictionary(1, b"dictionary")
        update.expire(100, 10)
        update.merge(100)
        update.current.applied = 99
        raise error
    assert cold.state() == before
    assert contents(cold) == content
    with cold.read() as reader:
        assert reader.settings() == {}
        assert reader.dictionary_numbers() == []
        assert reader.has_deadline(deadline_key(5, b"a"))


def test_a_read_transaction_sees_one_moment(cold):
    write(cold, {b"a": (b"old", 0)})
    with cold.read() as reader:
        old = reader.newest(b"a")
        write(cold, {b"a": (b"new", 0), b"b": (b"new", 0)})
        assert reader.newest(b"a") == old
        assert reader.newest(b"b") is None
        assert reader.state().records == 1
        assert cold.readers() == 1
    assert cold.state().records == 2
    assert cold.readers() == 0


def test_settings_and_dictionaries_are_kept(tmp_path):
    cold = Cold(tmp_path / "cold-0001", create=True)
    with cold.update() as update:
        update.put_settings({"save": [[900, 1]], "disk": None})
        update.put_dictionary(7, b"dictionary seven")
        update.put_dictionary(300, b"x" * 40_000)
    cold.close()
    cold = Cold(tmp_path / "cold-0001")
    with cold.read() as reader:
        assert reader.settings() == {"save": [[900, 1]], "disk": None}
        assert reader.dictionary_numbers() == [7, 300]
        assert reader.dictionary(7) == b"dictionary seven"
        assert reader.dictionary(300) == b"x" * 40_000
        with pytest.raises(KeyError):
            reader.dictionary(8)
    cold.close()


def test_a_dictionary_unknown_to_a_reader_is_loaded_when_its_first_record_is_met(cold):
    data = bytes(range(256)) * 20
    loads = []

    def load(number):
        loads.append(number)
        with cold.read() as reader:
            return reader.dictionary(number)

    reading = Decompressor(load)
    text = data[100:400]
    with cold.update() as update:
        update.put_dictionary(1, data)
        kind, number, body = Compressor("zstd:3", compression.Dictionary(1, data)).compress(text)
        assert number == 1
        update.write([(b"a", record.pack(b"a", 0, kind, number, 0, b"", body), 0, len(text))])
    parts = record.unpack(b"a", cold.get(b"a"))
    for _ in range(3):
        assert reading.decompress(parts.compression, parts.dictionary, parts.body) == text
    assert loads == [1]


def test_records_appended_to_a_fresh_tier_are_counted(cold):
    items = [made(key, b"again and again " * 10, at * 10)[:2] for at, key in enumerate(KEYS)]
    with cold.update() as update:
        update.append_records(items[:4])
    with cold.update() as update:
        update.append_records(items[4:])
    assert_holds(cold, {key: (b"again and again " * 10, at * 10) for at, key in enumerate(KEYS)})


# Damage and other formats


def damaged(cold: Cold, database: str, key: bytes, data: bytes) -> None:
    with cold.update() as update:
        update.txn.put(key, data, db=cold.databases[database])
        update.finish = lambda: None


def test_a_newer_format_is_refused_by_name(cold):
    damaged(cold, "meta", b"state", sealed({"format": 2, "applied": 5}))
    with pytest.raises(FormatError, match="format 2; this version knows 1"):
        cold.state()


def test_a_field_of_the_state_that_is_not_known_is_ignored(cold):
    damaged(cold, "meta", b"state", sealed({"format": 1, "applied": 5, "blocks": 7}))
    assert cold.state() == State(applied=5)


@pytest.mark.parametrize("name", [b"state", b"settings"])
@pytest.mark.parametrize("data", [b"", b"abc", b"\0" * 40])
def test_damaged_state_and_settings_are_told_by_name(cold, name, data):
    damaged(cold, "meta", name, data)
    with cold.read() as reader, pytest.raises(CorruptionError) as caught:
        reader.state() if name == b"state" else reader.settings()
    assert caught.value.path == str(cold.path)


@pytest.mark.parametrize("data", [b"", b"abc", b"\1\2\3\4dictionary"])
def test_a_damaged_dictionary_is_told_by_name(cold, data):
    damaged(cold, "dictionaries", (1).to_bytes(2, "big"), data)
    with cold.read() as reader, pytest.raises(CorruptionError, match="dictionary 1"):
        reader.dictionary(1)


@pytest.mark.parametrize(
    "garbage", [b"x", b"\xff" * 9, b"\xff" * 40, b"\0" * 200, b"\0\0\0\0\1\0\1\1\0\0" + b"\xff" * 6]
)
def test_a_damaged_record_can_be_replaced_and_deleted(cold, garbage):
    """Only reading it is an error: who writes a key anew repairs it."""
    write(cold, {b"a": (b"x", 0), b"b": (b"x", 0)})
    newest = run_name(cold.state().runs[0])
    damaged(cold, newest, b"a", garbage)
    damaged(cold, newest, b"b", garbage)
    write(cold, {b"a": (b"repaired", 9), b"b": None})
    assert contents(cold) == [(b"a", (b"repaired", 9))]
    assert cold.state().records == 1


def test_a_truncated_file_is_damage_and_not_a_crash(tmp_path):
    cold = Cold(tmp_path / "cold-0001", create=True)
    write(cold, {b"key %05d" % number: (os.urandom(100), 0) for number in range(2000)})
    cold.close()
    path = tmp_path / "cold-0001" / "data.mdb"
    whole = path.stat().st_size
    for size in (whole - 4096, whole // 2, 3 * 4096, 2 * 4096):
        os.truncate(path, size)
        with pytest.raises(CorruptionError, match="truncated") as caught:
            Cold(tmp_path / "cold-0001")
        assert caught.value.path == str(path)


@pytest.mark.parametrize("content", [b"not a database", b"\0" * 8192, b"\xff" * 40_000])
def test_a_file_that_is_no_database_is_damage(tmp_path, content):
    Cold(tmp_path / "cold-0001", create=True).close()
    (tmp_path / "cold-0001" / "data.mdb").write_bytes(content)
    with pytest.raises(CorruptionError):
        Cold(tmp_path / "cold-0001")
    assert (tmp_path / "cold-0001" / "data.mdb").read_bytes() == content, "left as it was found"


def test_a_missing_or_empty_file_is_damage_and_not_an_empty_store(tmp_path):
    with pytest.raises(CorruptionError, match="missing"):
        Cold(tmp_path / "cold-0001")
    assert not (tmp_path / "cold-0001").exists()
    Cold(tmp_path / "cold-0002", create=True).close()
    os.truncate(tmp_path / "cold-0002" / "data.mdb", 0)
    with pytest.raises(CorruptionError):
        Cold(tmp_path / "cold-0002")


def test_a_full_map_is_told_as_a_full_store(tmp_path, monkeypatch):
    monkeypatch.setattr("tiered.environment.MAP_BYTES_MAX", 1 << 20)
    cold = Cold(tmp_path / "cold-0001", create=True)
    write(cold, {b"a": (b"x", 0)})
    before = cold.state()
    with pytest.raises(StoreFullError):
        write(cold, {b"b%d" % number: (os.urandom(200_000), 0) for number in range(10)})
    assert cold.state() == before
    assert cold.get(b"b0") is None
    cold.close()


def test_files_are_private(tmp_path):
    cold = Cold(tmp_path / "cold-0001", create=True)
    assert (tmp_path / "cold-0001").stat().st_mode & 0o777 == 0o700
    for name in ("data.mdb", "lock.mdb"):
        assert (tmp_path / "cold-0001" / name).stat().st_mode & 0o777 == 0o600
    cold.close()


# Runs


def layers_of(cold: Cold) -> list[list[bytes]]:
    """The keys in each layer, newest first."""
    with cold.read() as reader:
        return [[key for key, _ in reader.txn.cursor(database)] for database in reader.layers]


def test_a_small_run_takes_what_comes_next_and_a_large_one_does_not(cold, monkeypatch):
    monkeypatch.setattr(cold_update, "SMALL_RUN_RECORDS", 2)
    write(cold, {b"b": (b"x", 0)})
    write(cold, {b"a": (b"x", 0), b"b": (b"y", 0)})
    assert layers_of(cold) == [[b"a", b"b"], []]
    write(cold, {b"b": (b"z", 0)})
    assert layers_of(cold) == [[b"b"], [a_b := b"a", b"b"], []]
    assert contents(cold) == [(a_b, (b"x", 0)), (b"b", (b"z", 0))]


def test_runs_never_run_out_of_slots_however_slowly_they_are_folded_and_merged(cold, monkeypatch):
    monkeypatch.setattr(cold_update, "SMALL_RUN_RECORDS", 0)
    uniform, model = random.Random(3), {}
    for round_ in range(120):
        new = dict.fromkeys(uniform.sample(KEYS, 4), (b"round %d" % round_, 0))
        write(cold, new)
        model |= new
        with cold.update() as update:
            # Now and then; each goes on where it was.
            if uniform.random() < 0.3:
                update.fold(1)
            if not update.current.folding and uniform.random() < 0.2:
                update.merge(1)
        assert contents(cold) == sorted(model.items())
        state = cold.state()
        assert len({*state.runs, state.fold_slot} - {-1}) <= SLOTS - 1
    assert_holds(cold, model)


def test_what_expires_while_its_run_is_being_folded_does_not_come_back(cold, monkeypatch):
    monkeypatch.setattr(cold_update, "SMALL_RUN_RECORDS", 0)
    write(cold, {b"a": (b"goes", 10), b"b": (b"x", 0)})
    write(cold, {b"c": (b"x", 0), b"d": (b"x", 0)})
    with cold.update() as update:
        assert update.fold(1)
        assert update.current.folding, "it goes on"
        assert update.expire(10, 10) == 1
        while update.current.folding:
            update.fold(1)
    assert len(cold.state().runs) == 1
    assert_holds(cold, {b"b": (b"x", 0), b"c": (b"x", 0), b"d": (b"x", 0)})


@pytest.mark.parametrize("copy", ["fold", "merge"])
def test_a_run_that_is_being_copied_takes_nothing_more(cold, monkeypatch, copy):
    monkeypatch.setattr(cold_update, "SMALL_RUN_RECORDS", 0)
    write(cold, {b"a": (b"x", 0), b"b": (b"x", 0)})
    write(cold, {b"c": (b"x", 0), b"d": (b"old", 0)})
    monkeypatch.setattr(cold_update, "SMALL_RUN_RECORDS", 1024)
    with cold.update() as update:
        getattr(update, copy)(2)
    write(cold, {b"a": (b"new", 0), b"d": None})
    with cold.update() as update:
        while update.current.folding or update.current.merging:
            getattr(update, copy)(2)
    assert contents(cold) == [(b"a", (b"new", 0)), (b"b", (b"x", 0)), (b"c", (b"x", 0))]


def test_of_runs_that_are_folded_the_newest_version_of_a_key_stays(cold, monkeypatch):
    monkeypatch.setattr(cold_update, "SMALL_RUN_RECORDS", 0)
    for round_ in range(3):
        write(cold, dict.fromkeys(KEYS[round_ : round_ + 4], (b"round %d" % round_, 0)))
    with cold.update() as update:
        update.fold(100)
    assert_holds(cold, {key: (b"round %d" % min(at, 2), 0) for at, key in enumerate(KEYS[:6])})


def test_a_read_passes_over_a_run_as_far_as_it_is_merged(cold):
    write(cold, dict.fromkeys(KEYS, (b"x", 0)))
    with cold.update() as update:
        update.merge(4)
    (slot,) = cold.state().runs
    with cold.update() as update:  # As if to see where it looks.
        for key in KEYS:
            update.txn.put(key, record.pack_marker(key), db=cold.databases[run_name(slot)])
    assert [cold.get(key) is not None for key in KEYS] == [True] * 4 + [False] * (len(KEYS) - 4)
    with cold.update() as update:
        update.clear()


def test_large_records_are_merged_a_few_at_a_time(cold, monkeypatch):
    monkeypatch.setattr(cold_update, "SMALL_RUN_RECORDS", 0)
    monkeypatch.setattr(cold_update, "_SLICE_BYTES", 100_000)
    model = {b"key %03d" % number: (os.urandom(10_000), 0) for number in range(60)}
    write(cold, dict(list(model.items())[:40]))
    write(cold, dict(list(model.items())[20:]))
    moved = []
    while cold.state().runs:
        with cold.update() as update:
            moved.append(update.merge(1000))
    assert max(moved) <= 40
    assert len(moved) >= 3
    assert contents(cold) == sorted(model.items())


def test_the_docstring_describes_everything_that_the_state_holds() -> None:
    assert [name for name in State.__annotations__ if name not in (cold_state.__doc__ or "")] == []


def read_of(cold: Cold) -> None:
    with cold.read() as reader:
        reader.state()


def stayed(cold: Cold) -> None:
    cold.end(cold.begin())


def updated(cold: Cold) -> None:
    with cold.update() as update:
        update.current.moved = False


@pytest.mark.parametrize("use", [lambda cold: cold.get(b"a"), read_of, stayed, updated, Cold.file_bytes], ids=range(5))
def test_an_interrupt_at_any_step_of_a_use_leaves_nothing_that_closing_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Cold], object]
) -> None:
    Cold(tmp_path, create=True).close()
    kept: list[BaseException] = []  # As the interpreter keeps the last one, and its frames with it.

    def interrupted(at: int) -> Cold | None:
        """A cold tier whose use was interrupted at that line, here or in `contextlib`; None if it has fewer."""
        cold, seen = Cold(tmp_path), 0

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal seen
            if not frame.f_code.co_filename.endswith(("cold.py", "contextlib.py")):
                return None
            # When the tracer comes to a line of `end`, the transaction has an owner who will call it again.
            if event == "line" and frame.f_code.co_name != "end":
                seen += 1
                if seen == at:
                    raise KeyboardInterrupt(f"{frame.f_code.co_name}:{frame.f_lineno}")
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            use(cold)
        except KeyboardInterrupt as error:
            kept.append(error)
            return cold
        finally:
            sys.settrace(before)
        cold.close()
        return None

    def waits(seconds: float) -> None:
        raise AssertionError(f"closing waits: {kept[-1]}")

    monkeypatch.setattr("tiered.cold.time.sleep", waits)
    at = 1
    while (cold := interrupted(at)) is not None:
        cold.close()
        at += 1
    assert len(kept) > 5


# Filters


@pytest.fixture
def filtered(cold: Cold, monkeypatch: pytest.MonkeyPatch) -> Cold:
    """Two runs with filters: the newer one has the first keys."""
    monkeypatch.setattr(cold_update, "SMALL_RUN_RECORDS", 0)
    monkeypatch.setattr(cold_update, "FILTERED_RECORDS_MIN", 1)
    cold.filter_bytes_max = 1000
    write(cold, dict.fromkeys(KEYS, (b"old", 0)))
    write(cold, dict.fromkeys(KEYS[:3], (b"new", 0)))
    return cold


def without_keys(cold: Cold, slot: int) -> None:
    """Let the filter of a run deny all it has: as if to see who asks it."""
    with cold.update() as update:
        update._put_filter(slot, bytearray(64))


def test_a_run_is_searched_only_for_keys_that_its_filter_knows(filtered: Cold) -> None:
    newer, older = filtered.state().runs
    before = list(map(filtered.get, KEYS))
    without_keys(filtered, newer)
    assert [filtered.get(key) == data for key, data in zip(KEYS, before, strict=True)] == [False] * 3 + [True] * 6
    without_keys(filtered, older)
    assert list(map(filtered.get, KEYS)) == [None] * len(KEYS)


def test_filters_beyond_the_memory_for_them_are_not_read(filtered: Cold) -> None:
    for most, read in ((63, 0), (64, 64), (127, 64), (128, 128)):
        filtered.filter_bytes_max = most
        write(filtered, {b"another": None})  # Another moment, with another layout.
        assert all(filtered.get(key) for key in KEYS)
        assert filtered.filter_bytes == read


def test_a_filter_is_read_once_for_all_moments_that_have_it(filtered: Cold, monkeypatch: pytest.MonkeyPatch) -> None:
    filtered.get(KEYS[0])
    monkeypatch.setattr(Reader, "filter", lambda reader, slot: pytest.fail("read again"))
    with filtered.update() as update:
        update.current.applied += 1
    assert filtered.get(KEYS[0])
    assert filtered.filter_bytes == 128


@pytest.mark.parametrize("small", [0, 1024])
def test_a_run_that_takes_more_keys_has_another_filter_if_it_was_small_and_none_else(
    filtered: Cold, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(cold_update, "SMALL_RUN_RECORDS", small)
    monkeypatch.setattr(cold_update, "RUNS_MAX", 1)
    newest = filtered.state().runs[0]
    before = filtered.state().filters[newest]
    assert before
    write(filtered, {b"zzz": (b"x", 0)})
    assert filtered.state().runs[0] == newest
    assert bool(filtered.state().filters[newest]) is bool(small)
    assert filtered.state().filters[newest] != before
    assert filtered.get(b"zzz")
    assert_filters_hold(filtered)


@pytest.mark.parametrize(
    "data", [None, b"", b"abc", b"\0\0\0\0" + b"x" * 64, sealed(7), sealed(b""), sealed(b"x" * 63)]
)
def test_a_damaged_filter_is_told_by_name_and_reads_do_without_it(filtered: Cold, data: bytes | None) -> None:
    newest = filtered.state().runs[0]
    with filtered.update() as update:
        if data is None:
            update.txn.delete(filter_name(newest), db=filtered.databases["meta"])
        else:
            update.txn.put(filter_name(newest), data, db=filtered.databases["meta"])
        update.current.filters[newest] = update.number
    assert all(filtered.get(key) for key in KEYS)
    with filtered.read() as reader, pytest.raises(CorruptionError, match=f"filter of run {newest}"):
        reader.filter(newest)
    with filtered.update() as update:
        while update.current.runs:
            update.merge(1000)
    assert all(filtered.get(key) for key in KEYS)


def test_a_fold_that_a_merge_takes_over_leaves_no_filter(filtered: Cold) -> None:
    with filtered.update() as update:
        update.fold(1, times=9)
        assert update.current.folding
        assert update.current.filters[update.current.fold_slot]
    assert_filters_hold(filtered)
    with filtered.update() as update:
        update.merge(1)
    assert_filters_hold(filtered)


def test_a_fold_goes_on_without_a_filter_that_was_damaged_meanwhile(filtered: Cold) -> None:
    with filtered.update() as update:
        update.fold(1, times=9)
        slot = update.current.fold_slot
        update.txn.put(filter_name(slot), b"nonsense", db=filtered.databases["meta"])
    with filtered.update() as update:
        while update.current.folding:
            update.fold(3, times=9)
    assert filtered.state().runs == [slot]
    assert not filtered.state().filters[slot]
    assert all(filtered.get(key) for key in KEYS)
    assert_filters_hold(filtered)


def test_a_new_file_with_the_number_of_one_that_is_being_closed_is_opened_a_little_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = lmdb.open, 0

    def refusing(*arguments: Any, **options: Any) -> lmdb.Environment:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise lmdb.Error("The environment is already open in this process.")
        return real(*arguments, **options)

    monkeypatch.setattr(lmdb, "open", refusing)
    cold = Cold(tmp_path / "new", create=True)
    assert (calls, cold.state().records) == (4, 0)
    calls = 0
    with pytest.raises(LockedError):
        Cold(tmp_path / "new")
    assert calls == 1, "a file that was there is open, and would be for long"
    cold.close()


def test_a_reader_that_stays_makes_its_layout_once_and_keeps_no_filter(
    cold: Cold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold_update, "FILTERED_RECORDS_MIN", 1)
    cold.filter_bytes_max = 1 << 20
    write(cold, {b"a": (b"old", 0)})
    calls, layout_of = list[Any](), cold.layout_of
    reader = cold.begin()
    try:
        write(cold, {b"a": (b"new", 0), b"b": (b"new", 0)})
        monkeypatch.setattr(Cold, "layout_of", lambda self, txn: calls.append(txn) or layout_of(txn))
        for _ in range(3):
            assert cold.get(b"b") is not None
            assert reader.newest_many([b"a", b"b"]) == [made(b"a", b"old")[1], None]
            assert reader.newest(b"a") == made(b"a", b"old")[1]
        assert calls.count(reader.txn) == 1
        assert [layer.filter for layer in reader.layout.layers] == [None] * len(reader.layers)
    finally:
        cold.end(reader)
