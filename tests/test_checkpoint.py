"""Checkpoints: segments applied as a whole, merges and expiry in slices, compaction beside them."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiered
from tiered import checkpoint, cold_update, files, keys, record
from tiered.checkpoint import Applier
from tiered.cold import Cold
from tiered.cold_state import RUNS, deadline_key, run_name
from tiered.compression import Decompressor
from tiered.errors import CorruptionError
from tiered.journal import CLEAR, DELETE, PUT, SETTING, Journal, SegmentFile, record_bytes
from tiered.maintenance import MAINTENANCE

SHM = "/dev/shm" if os.path.isdir("/dev/shm") else None
NOW = 1_700_000_000_000


class Driven:
    """A cold tier, its applier, and a journal that feeds it."""

    def __init__(self, directory: Path, setting: str = "zstd:3") -> None:
        self.directory = directory
        files.write_current(directory, 1)
        self.cold = Cold(files.cold_path(directory, 1), create=True)
        self.applier = Applier(directory, self.cold, setting)
        self.journal = Journal(directory, 1, 1, 0)
        self.now = NOW

    def segment(self, *records, batch=False) -> SegmentFile:
        """A closed segment of `(kind, key, payload, deadline)` records."""
        size = sum(60 + len(key) + len(payload) for _, key, payload, _ in records)
        segment = self.journal.open_segment(size, 1 << 22)
        if batch:
            kinds, keys, payloads, deadlines = map(list, zip(*records, strict=True))
            written = sum(map(record_bytes, keys, payloads))
            self.journal.append_batch(kinds, keys, payloads, [0] * len(keys), deadlines, written)
        else:
            for kind, key, payload, deadline in records:
                self.journal.append(kind, 0, key, payload, 0, deadline)
        self.journal.close_segment(self.now)
        return SegmentFile(segment.path)

    def apply(self, *records) -> int:
        return self.applier.apply([self.segment(*records)], self.journal.last)

    def slices(self, most: int = 1000) -> None:
        for _ in range(most):
            if not self.applier.slice():
                return
        raise AssertionError("slices never end")

    def contents(self) -> dict[bytes, tuple[bytes, int]]:
        """Payload and deadline by full key, and a check of all counts."""
        found: dict[bytes, tuple[bytes, int]] = {}
        cold = self.applier.cold
        with cold.read() as reader:
            undo = Decompressor(reader.dictionary).decompress
            state = reader.state()
            records = stored = packed = 0
            index = set(reader.due(1 << 60))
            for stored_key, data in reader.scan():
                parts = record.unpack(stored_key, data)
                payload = undo(parts.compression, parts.dictionary, parts.body)
                found[parts.full_key or stored_key] = (payload, parts.deadline)
                records, stored, packed = records + 1, stored + len(data), packed + len(payload)
                if parts.deadline:
                    index.remove(deadline_key(parts.deadline, stored_key))
        assert not index, "no entry of the index without its record"
        assert (state.records, state.stored_bytes, state.packed_bytes) == (records, stored, packed)
        return found

    def close(self) -> None:
        self.applier.cold.close()
        del self.journal


@pytest.fixture
def driven(tmp_path):
    driven = Driven(tmp_path)
    yield driven
    driven.close()


def put(key, payload, deadline=0):
    return PUT, key, payload, deadline


def delete(key):
    return DELETE, key, b"", 0


def test_the_last_version_of_every_key_is_what_counts(driven):
    segments = [
        driven.segment(put(b"a", b"first"), put(b"b", b"first"), delete(b"c")),
        driven.segment(put(b"a", b"second"), delete(b"b"), put(b"c", b"again"), put(b"d", b"x"), delete(b"d")),
    ]
    assert driven.applier.apply(segments, driven.journal.last) == 4
    assert driven.contents() == {b"a": (b"second", 0), b"c": (b"again", 0)}
    state = driven.cold.state()
    assert (state.applied, state.time_ms) == (driven.journal.last, NOW)


def test_long_keys_keep_their_full_form(driven):
    long = [b"\x02" + b"x" * 600 + bytes((byte,)) for byte in b"abc"]
    driven.apply(*(put(key, b"value of " + key[-1:]) for key in long))
    assert driven.contents() == {key: (b"value of " + key[-1:], 0) for key in long}
    driven.apply(delete(long[1]))
    assert set(driven.contents()) == {long[0], long[2]}
    assert all(driven.cold.get(keys.stored(key)) for key in (long[0], long[2]))


def test_applying_the_same_segments_twice_changes_nothing(driven):
    segments = [driven.segment(put(b"a", b"x", NOW + 5), put(b"b", b"x")), driven.segment(delete(b"b"))]
    assert driven.applier.apply(segments, driven.journal.last) > 0
    before, content = driven.cold.state(), driven.contents()
    assert driven.applier.apply(segments, driven.journal.last) == 0
    assert driven.applier.apply(segments[1:], driven.journal.last) == 0
    assert (driven.cold.state(), driven.contents()) == (before, content)


def test_segments_are_applied_from_the_number_after_the_last_one_applied(driven):
    first = driven.segment(put(b"a", b"1"), put(b"b", b"1"))
    until = driven.journal.last
    driven.applier.apply([first], until - 1)
    second = driven.segment(put(b"a", b"2"))
    driven.applier.apply([first, second], driven.journal.last)
    assert driven.contents() == {b"a": (b"2", 0), b"b": (b"1", 0)}


def test_records_above_the_number_asked_for_are_left_alone(driven):
    segment = driven.segment(put(b"a", b"1"), put(b"b", b"1"), put(b"c", b"1"))
    driven.applier.apply([segment], 2)
    assert set(driven.contents()) == {b"a", b"b"}
    assert driven.cold.state().applied == 2


@pytest.mark.parametrize("missing", ["records", "segment", "all"])
def test_segments_that_do_not_reach_the_announced_number_are_damage_and_change_nothing(driven, missing):
    first, second = driven.segment(put(b"a", b"1"), put(b"b", b"1")), driven.segment(put(b"a", b"2"))
    segments = {"records": [first, second], "segment": [second], "all": []}[missing]
    if missing == "records":
        entry = list(first.entries())[1]
        with open(first.path, "r+b") as file:
            file.seek(entry.start)
            file.write(b"!")
    before = driven.cold.state()
    with pytest.raises(CorruptionError, match=r"records up to number \d where 5 was written"):
        driven.applier.apply(segments, driven.journal.last)
    assert driven.cold.state() == before
    assert driven.contents() == {}


def test_what_expired_by_the_time_of_the_segments_is_not_written_and_what_did_before_is_removed(driven):
    driven.apply(put(b"a", b"x", NOW + 10), put(b"b", b"x", NOW + 100), put(b"c", b"x"))
    driven.now = NOW + 50
    driven.apply(put(b"d", b"x", NOW + 50), put(b"e", b"x", NOW + 51))
    assert set(driven.contents()) == {b"b", b"c", b"e"}


def test_the_time_of_the_cold_tier_never_goes_backwards(driven):
    driven.apply(put(b"a", b"x"))
    driven.now = NOW - 1000
    driven.apply(put(b"b", b"x", NOW - 500))
    assert driven.cold.state().time_ms == NOW
    assert set(driven.contents()) == {b"a"}


@pytest.mark.parametrize("again", [(b"new", 0), (b"new", NOW + 99)])
def test_a_key_rewritten_in_the_same_segments_in_which_it_expires_stays(driven, again):
    driven.apply(put(b"a", b"old", NOW + 10))
    driven.now = NOW + 50
    driven.apply(put(b"a", *again))
    assert driven.contents() == {b"a": again}


def test_many_expired_records_go_in_bounded_slices(driven, monkeypatch):
    monkeypatch.setattr(checkpoint, "EXPIRE_RECORDS", 50)
    driven.apply(*(put(b"key %04d" % number, b"x", NOW + 1) for number in range(300)), put(b"stays", b"x"))
    driven.now = NOW + 10
    driven.apply(put(b"another", b"x"))
    assert driven.cold.state().records == 252
    steps = 0
    while driven.applier.slice():
        steps += 1
        driven.contents()
    assert steps >= 5
    assert set(driven.contents()) == {b"stays", b"another"}


def test_what_is_owed_before_the_next_apply_does_not_wait_for_what_expired(driven, monkeypatch):
    monkeypatch.setattr(checkpoint, "EXPIRE_RECORDS", 5)
    monkeypatch.setattr(checkpoint, "RUNS_RECORDS_MIN", 40)
    monkeypatch.setattr(checkpoint, "MERGE_RECORDS", 16)
    driven.apply(*(put(b"key %04d" % number, b"x", NOW + 1) for number in range(300)))
    driven.now = NOW + 10
    driven.apply(*(put(b"another %04d" % number, b"x") for number in range(60)))
    assert driven.applier.owes
    with driven.cold.read() as reader:
        due = sum(1 for _ in reader.due(driven.now))
    steps = 0
    while driven.applier.owes and driven.applier.slice():
        steps += 1
    assert steps > 2
    with driven.cold.read() as reader:
        assert sum(1 for _ in reader.due(driven.now)) == due > 200
    driven.slices()
    assert set(driven.contents()) == {b"another %04d" % number for number in range(60)}
    with driven.cold.read() as reader:
        assert not list(reader.due(driven.now))


def test_clearing_hides_all_before_it_and_nothing_after(driven):
    driven.apply(put(b"a", b"x", NOW + 5), put(b"b", b"x"))
    driven.apply(put(b"c", b"x"), (CLEAR, b"", b"", 0), put(b"b", b"after"))
    assert driven.contents() == {b"b": (b"after", 0)}


def test_settings_come_with_the_records_they_were_written_among(driven):
    driven.apply((SETTING, b"save", msgpack.packb([[900, 1]]), 0), (SETTING, b"disk", msgpack.packb(None), 0))
    driven.apply((SETTING, b"save", msgpack.packb([[60, 1]]), 0))
    with driven.cold.read() as reader:
        assert reader.settings() == {"save": [[60, 1]], "disk": None}


def test_a_failure_in_the_middle_changes_nothing_and_the_next_try_succeeds(driven, monkeypatch):
    driven.apply(put(b"a", b"old", NOW + 5))
    before, content = driven.cold.state(), driven.contents()
    segment = driven.segment(put(b"a", b"new"), put(b"b", b"new"), (SETTING, b"disk", msgpack.packb(5), 0))
    for name in ("write", "expire", "put_settings", "finish"):
        with monkeypatch.context() as patch:

            def fail(*arguments):
                raise MemoryError("as if there were none left")

            patch.setattr(f"tiered.cold_update.Update.{name}", fail)
            with pytest.raises(MemoryError):
                driven.applier.apply([segment], driven.journal.last)
        assert driven.cold.state() == before
        assert driven.contents() == content
    driven.applier.apply([segment], driven.journal.last)
    assert driven.contents() == {b"a": (b"new", 0), b"b": (b"new", 0)}


def test_a_merge_comes_when_runs_have_grown_and_goes_on_between_applies(driven, monkeypatch):
    monkeypatch.setattr(checkpoint, "RUNS_RECORDS_MIN", 40)
    monkeypatch.setattr(checkpoint, "MERGE_RECORDS", 16)
    uniform = random.Random(4)
    model: dict[bytes, tuple[bytes, int]] = {}
    for round_ in range(60):
        names = [b"key %04d" % uniform.randrange(2000) for _ in range(10)]
        records = [delete(name) if uniform.random() < 0.2 else put(name, b"%d" % round_) for name in names]
        for kind, name, payload, _ in records:
            if kind == PUT:
                model[name] = (payload, 0)
            else:
                model.pop(name, None)
        driven.apply(*records)
        while driven.applier.owes and driven.applier.slice():
            assert driven.contents() == model
        if round_ % 3 == 0:
            driven.applier.slice()
        assert driven.contents() == model
        with driven.cold.read() as reader:
            # One merge starts at as many as `records` has, and copies two for each that comes meanwhile.
            assert reader.entries(RUNS) <= 2 * max(40, reader.entries("records")), "it keeps pace with steady writes"
    driven.slices()
    assert driven.contents() == model
    with driven.cold.read() as reader:
        assert reader.entries("records") > 0


# Compaction

records = st.lists(
    st.tuples(
        st.sampled_from([PUT, PUT, PUT, DELETE]),
        st.integers(0, 30).map(lambda number: b"key %02d" % number),
        st.integers(0, 200).map(lambda size: b"payload " * (size // 8)),
        st.sampled_from([0, 0, NOW + 10, NOW + 1000]),
    ).map(lambda made: delete(made[1]) if made[0] == DELETE else made),
    min_size=1,
    max_size=12,
)
interleaved = st.lists(
    st.one_of(
        st.tuples(st.just("apply"), records),
        st.tuples(st.just("clear")),
        st.tuples(st.just("later"), st.sampled_from([5, 20])),
        st.tuples(st.just("slice")),
        st.tuples(st.just("step")),
        st.tuples(st.just("step")),
    ),
    max_size=14,
)


@given(records, interleaved)
@settings(max_examples=150, deadline=None)
def test_compaction_between_applies_gives_the_same_content(before, steps):
    with tempfile.TemporaryDirectory(dir=SHM) as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "COPY_RECORDS", 5)
        patch.setattr(checkpoint, "RUNS_RECORDS_MIN", 10)
        patch.setattr(checkpoint, "MERGE_RECORDS", 4)
        driven = Driven(Path(name))
        model: dict[bytes, tuple[bytes, int]] = {}

        def apply(made):
            driven.apply(*made)
            for kind, key, payload, deadline in made:
                if kind == CLEAR:
                    model.clear()
                elif kind == DELETE:
                    model.pop(key, None)
                else:
                    model[key] = (payload, deadline)
            for key in [key for key, (_, deadline) in model.items() if 0 < deadline <= driven.now]:
                del model[key]

        old = driven.cold
        try:
            apply(before)
            compaction = driven.applier.compaction()
            for step in steps:
                if step[0] == "apply":
                    apply(step[1])
                elif step[0] == "clear":
                    apply([(CLEAR, b"", b"", 0), put(b"after", b"clear")])
                elif step[0] == "later":
                    driven.now += step[1]
                elif step[0] == "slice":
                    driven.applier.slice()
                else:
                    next(compaction, None)
                assert driven.contents() == model
            for _ in compaction:
                pass
            expired = driven.contents().keys() - model.keys()
            assert not expired
            assert driven.contents() == model
            assert files.read_current(driven.directory) == 2
            assert driven.applier.cold is not old
            assert old.state().moved
            assert not driven.applier.cold.state().moved
            apply([put(b"more", b"x")])
            assert driven.contents() == model
            assert driven.applier.cold.state().applied == driven.journal.last
        finally:
            driven.close()
            if driven.applier.cold is not old:
                old.close()


def test_a_compacted_tier_has_all_records_in_one_tree_and_takes_less_disk(driven):
    uniform = random.Random(1)
    for _ in range(15):
        driven.apply(*(put(b"key %06d" % uniform.randrange(5000), uniform.randbytes(100)) for _ in range(1000)))
    driven.slices()
    expected, used = driven.contents(), (driven.directory / "cold-0001" / "data.mdb").stat().st_size
    for _ in driven.applier.compaction():
        pass
    assert driven.contents() == expected
    with driven.applier.cold.read() as reader:
        assert reader.entries(RUNS) == 0
        assert reader.entries("records") == len(expected)
    assert (driven.directory / "cold-0002" / "data.mdb").stat().st_size < 0.8 * used
    driven.cold.close()


def test_an_abandoned_compaction_leaves_the_store_as_it_was_and_the_next_one_works(driven):
    driven.apply(*(put(b"key %06d" % number, b"x" * 50) for number in range(10_000)))
    before = driven.contents()
    compaction = driven.applier.compaction()
    next(compaction)
    driven.apply(put(b"meanwhile", b"x"))
    compaction.close()
    assert files.read_current(driven.directory) == 1
    assert driven.contents() == before | {b"meanwhile": (b"x", 0)}
    assert not driven.cold.state().moved
    for _ in driven.applier.compaction():
        pass
    assert driven.contents() == before | {b"meanwhile": (b"x", 0)}
    driven.cold.close()


def test_a_segment_whose_name_is_gone_still_reaches_the_compacted_tier(driven):
    driven.apply(*(put(b"key %06d" % number, b"x" * 50) for number in range(10_000)))
    compaction = driven.applier.compaction()
    next(compaction)
    segment = driven.segment(put(b"meanwhile", b"x"))
    driven.applier.apply([segment], driven.journal.last)
    segment.path.unlink()
    for _ in compaction:
        pass
    assert driven.contents()[b"meanwhile"] == (b"x", 0)
    driven.cold.close()


def test_a_dictionary_trained_during_compaction_is_in_the_compacted_tier(driven):
    def document(number):
        return b'{"identifier": %d, "status": "active", "history": ["alpha", "bravo", "delta"]}' % (number * 7919)

    driven.apply(*(put(b"key %06d" % number, document(number)) for number in range(5000)))
    compaction = driven.applier.compaction()
    next(compaction)
    driven.slices()
    assert driven.cold.state().dictionary == 1
    driven.apply(put(b"meanwhile", document(1)))
    for _ in compaction:
        pass
    content = driven.contents()
    assert content[b"meanwhile"] == (document(1), 0)
    assert len(content) == 5001
    assert driven.applier.cold.state().dictionary == 1
    driven.apply(put(b"after", document(2)))
    assert driven.contents()[b"after"] == (document(2), 0)
    driven.cold.close()


def test_a_damaged_record_stops_compaction_by_name_and_the_old_tier_stays(driven):
    driven.apply(*(put(b"key %06d" % number, b"x" * 50) for number in range(100)))
    with driven.cold.update() as update:
        data = bytearray(update.newest(b"key %06d" % 50))
        data[-1] ^= 1
        update.txn.put(b"key %06d" % 50, bytes(data), db=driven.cold.databases[run_name(update.current.runs[0])])
    with pytest.raises(CorruptionError, match="key 000050"):
        for _ in driven.applier.compaction():
            pass
    assert files.read_current(driven.directory) == 1
    assert not driven.cold.state().moved


READER = """
import sys, time, tiered
store = tiered.open(sys.argv[1], flag="r", memory="1MB")
wanted = {"old": lambda: store["key"] == "old", "moved": lambda: store._engine.state.moved}
wanted["new"] = lambda: store["key"] == "new"
for line in sys.stdin:
    limit = time.monotonic() + 5
    while not wanted[line.strip()]() and time.monotonic() < limit:
        time.sleep(0.01)
    print(wanted[line.strip()](), flush=True)
store.close()
"""


def test_a_reader_that_looked_just_before_current_was_replaced_is_not_left_behind(opener, monkeypatch):
    writer = opener(stepwise=True)
    writer["key"] = "old"
    writer.save()
    with subprocess.Popen(
        [sys.executable, "-c", READER, writer.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:

        def sees(what):
            reader.stdin.write(what + "\n")
            reader.stdin.flush()
            return reader.stdout.readline() == "True\n"

        assert sees("old")
        write_current = files.write_current

        def late(directory, number):
            assert sees("moved"), "the old tier says that it moved; CURRENT does not say where yet"
            write_current(directory, number)

        with monkeypatch.context() as patch:
            patch.setattr(files, "write_current", late)
            writer.compact()
        writer["key"] = "new"
        writer.save()
        assert sees("new")
        reader.stdin.close()
        assert reader.wait(10) == 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_after_a_failure_no_other_work_is_tried_before_something_is_handed_over(
    opener: Any, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """On a full disk merging would fail again at once, and for ever."""
    store = opener(stepwise=True, save="")
    store["a"] = 1
    store.save()
    tried = 0

    def fail(applier: Applier) -> bool:
        nonlocal tried
        tried += 1
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(Applier, "slice", fail)
        for _ in range(5):
            store.tick()
    assert tried == 1
    if code == errno.ENOSPC:
        store["b"] = 2
        store.save()
        assert store.check() == []
    else:
        with pytest.raises(tiered.PoisonedError):
            store["b"] = 2


# Runs


def test_runs_stay_few_and_records_are_copied_a_few_times_only(driven, monkeypatch):
    monkeypatch.setattr(checkpoint, "RUNS_RECORDS_MIN", 1 << 30)
    monkeypatch.setattr(cold_update, "SMALL_RUN_RECORDS", 0)
    copied, most = 0, 0
    fold = cold_update.Update.fold

    def counted(self, *arguments):
        nonlocal copied
        moved = fold(self, *arguments)
        copied += moved
        return moved

    monkeypatch.setattr(cold_update.Update, "fold", counted)
    for round_ in range(64):
        driven.apply(*(put(b"key %04d" % (number * 64 + round_), b"x") for number in range(10)))
        driven.slices()
        most = max(most, len(driven.cold.state().runs))
    assert most <= 5, "each is larger than those before it together"
    assert copied <= 64 * 10 * 6
    assert len(driven.contents()) == 640


def test_a_quiet_time_leaves_one_run_and_then_nothing_more_is_written(driven, monkeypatch):
    monkeypatch.setattr(cold_update, "SMALL_RUN_RECORDS", 0)
    for count in (70, 20, 5):
        driven.apply(*(put(b"key %04d" % number, b"%d" % count) for number in range(count)))
        driven.slices()
    assert len(driven.cold.state().runs) == 3
    while driven.applier.settle():
        pass
    assert len(driven.cold.state().runs) == 1
    assert driven.contents() == {b"key %04d" % n: (b"5" if n < 5 else b"20" if n < 20 else b"70", 0) for n in range(70)}
    before = driven.cold.get_at(b"key")[1]
    assert not driven.applier.slice()
    assert not driven.applier.settle()
    assert driven.cold.get_at(b"key")[1] == before


def test_what_was_deleted_gives_its_room_back_without_many_writes_after_it(driven):
    for _ in range(3):
        driven.apply(*(put(b"key %04d" % number, os.urandom(500)) for number in range(1000)))
    driven.slices()
    used = driven.cold.used_bytes()
    driven.apply(*(delete(b"key %04d" % number) for number in range(0, 1000, 2)))
    driven.slices()
    assert driven.cold.used_bytes() < 0.6 * used
    assert len(driven.contents()) == 500
    driven.apply(*(delete(b"key %04d" % number) for number in range(1000)))
    driven.slices()
    with driven.cold.read() as reader:
        assert reader.entries(RUNS) == reader.entries("records") == 0


def test_without_a_helper_a_checkpoint_gives_its_memory_back_and_the_bound_says_so(opener, monkeypatch):
    trims = []
    monkeypatch.setattr("tiered.process.trim_heap", lambda: trims.append(True))
    with opener(helper=False) as store:
        store["k"] = "v"
        store.save()
        assert trims
        assert "checkpoints, which this process makes itself" in store.memory_stats().bound
    with opener(helper=True) as store:
        assert "checkpoints" not in store.memory_stats().bound
    monkeypatch.setattr(MAINTENANCE, "process", lambda: None)  # No helper can be started.
    with opener(helper=True) as store:
        store["k"] = "w"
        store.save()
        bound = store.memory_stats().bound
        assert bound.startswith("real" if store.memory_stats().hot_tier == "arena" else "accounted")
        assert "checkpoints, which this process makes itself" in bound
