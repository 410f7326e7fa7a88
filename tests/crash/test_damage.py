"""Files changed by no power cut: a named error or the right value, never a wrong one; and what salvage makes of it."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contracts import set_aside
from test_recovery import Written, assert_prefix, crashed, recovered

import tiered
from tiered import CorruptionError, files, recovery
from tiered.cold import Cold
from tiered.journal import SegmentFile

BRANCH_PAGE = 1  # LMDB's flag.


def small_journal(directory: Path, synced: bool) -> Written:
    """A dozen records in three segments; if synced, all but the last, which carries the mark."""
    directory.mkdir()
    written = Written(directory, capacity=420)
    for number in range(4):
        written.put(b"key %d" % number, b"value %d" % number)
        written.batch([(b"a", b"%d" % number * 3), (b"b", b"")])
    if synced:
        written.sync()
    written.put(b"after", b"it")
    return written


def look(written: Written, path: Path, data: bytes, synced: int) -> None:
    """With these bytes in a segment: a named error, or a prefix with all that was synced."""
    path.write_bytes(data)
    try:
        plan, found = recovered(written.directory)
    except CorruptionError as error:
        assert error.path.startswith(str(written.directory))  # noqa: PT017
        assert "tiered.salvage" in error.message  # noqa: PT017
        return
    assert_prefix(written, plan, found)
    assert plan.until >= synced


@pytest.mark.parametrize("synced", [True, False])
def test_a_journal_truncated_at_or_flipped_in_any_byte_gives_an_error_or_a_prefix(tmp_path: Path, synced: bool) -> None:
    written = small_journal(tmp_path / "journal", synced)
    must = written.journal.synced
    contents = written.contents()
    assert len(contents) == 3
    for path, data in contents.items():
        used = len(data.rstrip(b"\0")) + 8
        for at in [*range(used), *range(used, len(data), 50)]:
            changed = bytearray(data)
            changed[at] ^= 1 << at % 8
            look(written, path, bytes(changed), must)
        for size in [*range(used), *range(used, len(data), 50)]:
            # Cut in the last segment, what is gone may carry the only mark.
            look(written, path, data[:size], must if path != max(contents) else 0)
        path.write_bytes(data)


def test_random_bytes_of_large_journals_give_an_error_or_a_prefix(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    written = Written(tmp_path / "journal", capacity=30_000)
    uniform = random.Random(5)
    for number in range(300):
        written.put(b"key %d" % number, uniform.randbytes(uniform.randrange(600)))
        if number == 250:
            written.sync()
            must = written.journal.last
    for path, data in written.contents().items():
        for _ in range(40):
            changed = bytearray(data)
            for _ in range(uniform.choice((1, 1, 5, 200))):
                changed[uniform.randrange(len(data))] = uniform.randrange(256)
            look(written, path, bytes(changed), must if path != max(written.contents()) else 0)
        path.write_bytes(data)


@pytest.mark.parametrize("synced", [True, False])
def test_records_that_changed_places_give_an_error_or_a_prefix(tmp_path: Path, synced: bool) -> None:
    written = small_journal(tmp_path / "journal", synced)
    must = written.journal.synced
    swaps = 0
    for path, data in written.contents().items():
        spans = [(entry.start - len(entry.key) - 40, entry.end) for entry in SegmentFile(path).entries()]
        for first in range(len(spans)):
            for second in range(first + 1, len(spans)):
                (a, b), (c, d) = spans[first], spans[second]
                look(written, path, data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:], must)
                swaps += 1
        path.write_bytes(data)
    assert swaps > 10


@pytest.mark.parametrize("synced", [True, False])
def test_a_segment_under_another_ones_name_is_damage(tmp_path: Path, synced: bool) -> None:
    written = small_journal(tmp_path / "journal", synced)
    contents = written.contents()
    paths = sorted(contents)
    for path in [*paths, files.segment_path(tmp_path / "journal", 4)]:
        for other in paths:
            if other == path:
                continue
            path.write_bytes(contents[other])
            with pytest.raises(CorruptionError, match="under another name"):
                recovery.plan(tmp_path / "journal", 0)
        path.unlink()
        if path in contents:
            path.write_bytes(contents[path])
    plan, _ = recovered(tmp_path / "journal")
    assert plan.until == written.journal.last


def test_a_segment_of_another_store_is_found_out_unless_its_numbers_fit(tmp_path: Path) -> None:
    written = small_journal(tmp_path / "journal", True)
    (tmp_path / "other").mkdir()
    other = Written(tmp_path / "other", capacity=700)
    for number in range(30):
        other.put(b"foreign", b"%d" % number)
    contents = written.contents()
    for path, data in contents.items():
        foreign = (tmp_path / "other" / path.name).read_bytes()
        if path != min(contents):  # Its number and its first record are those of any store's first segment.
            look(written, path, foreign, written.journal.synced if path != max(contents) else 0)
        path.write_bytes(data)


# Salvage


@pytest.fixture
def damaged(opener: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., tuple[Path, dict[Any, Any]]]]:
    """A store that was killed, 20 records in its cold tier, then 20 synced ones and one more in its journal."""

    def make(segments: int = 1) -> tuple[Path, dict[Any, Any]]:
        store = opener("whole", stepwise=True, compression="none", save="")
        for number in range(20):
            store[number] = f"cold {number} " * 5
        store.save()
        for number in range(10, 30):
            store[number] = f"journaled {number} " * 5
        store.sync()
        if segments == 2:
            store._engine.acknowledged = lambda sequence: None  # Nothing is applied until the store is closed.
            set_aside(store)
        store["last"] = 1
        items = dict(store)
        left = crashed(store, tmp_path / "left")
        store.close()
        return left, items

    return make


def flip(path: Path, what: bytes, offset: int = 2) -> None:
    """Change a byte of a file, near where these are."""
    data = bytearray(path.read_bytes())
    data[data.index(what) + offset] ^= 0x20
    path.write_bytes(data)


def contents(path: Path) -> dict[str, bytes]:
    """All files below a path but for locks."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in ("LOCK", "APPLY", "lock.mdb")
    }


def test_salvage_applies_a_damaged_journal_up_to_the_damage_and_keeps_its_files(
    damaged: Any, caplog: pytest.LogCaptureFixture
) -> None:
    left, items = damaged()
    (segment,) = left.glob("journal-0*.log")
    flip(segment, b"journaled 15")
    before = segment.read_bytes()
    for _ in range(2):
        with pytest.raises(CorruptionError, match=r"tiered\.salvage"):
            tiered.open(left)
    with caplog.at_level(logging.WARNING, "tiered"):
        report = tiered.salvage(left)
    assert "salvage: journal-00000002.log: bad record at byte" in caplog.text
    assert (report.path, report.records, len(report.damage)) == (str(left), 20, 1)
    assert report.kept_in == str(left / "damaged-0001")
    assert (report.lost_records, report.lost_keys, report.lost_all_known) == (0, (), True)
    assert report.dropped_bytes > 1000
    assert contents(left / "damaged-0001") == {segment.name: before}
    expected = {number: items[number] if number < 15 else f"cold {number} " * 5 for number in range(20)}
    with caplog.at_level(logging.WARNING, "tiered"), tiered.open(left, helper=False) as store:
        assert dict(store) == expected
        assert store.check() == []
        assert store.stats().damaged_bytes >= len(before)
        store["new"] = 1
    assert "damaged-0001: holds damaged files" in caplog.text
    assert tiered.salvage(left).damage == (), "what is whole is left alone"
    with tiered.open(left, "n") as store:
        assert len(store) == 0


def test_salvage_leaves_out_damaged_records_of_the_cold_tier_and_names_their_keys(damaged: Any) -> None:
    left, items = damaged()
    flip(left / "cold-0001" / "data.mdb", b"cold 7 cold 7")
    flip(left / "cold-0001" / "data.mdb", b"cold 15 cold 15")
    before = contents(left)
    report = tiered.salvage(left)
    assert (report.lost_records, report.lost_keys, report.lost_all_known) == (2, (7, 15), True)
    assert "the record of 7 cannot be read" in report.damage[0]
    assert contents(left / "damaged-0001") == {"cold-0001/data.mdb": before["cold-0001/data.mdb"]}
    del items[7]  # That of 15 is in the journal.
    with tiered.open(left, helper=False) as store:
        assert dict(store) == items
        assert store.check() == []
        assert store.config_get("compression") == {"compression": "none"}


def test_salvage_of_a_page_put_over_another_keeps_what_is_left_and_says_that_it_is_less(
    opener: Any, tmp_path: Path
) -> None:
    """Each page is whole in itself, so that no record fails, but there are others than were written."""
    items = {number: f"{number} " * 40 for number in range(3000)}
    with opener("origin", save="", compression="none") as store:
        store.update(items)
    origin = tmp_path / "origin"
    (data_file,) = origin.glob("cold-*/data.mdb")
    data = data_file.read_bytes()
    pages = [at for at in range(0, len(data), 4096) if b" 2" in data[at : at + 4096]]
    told = 0
    for source, target in zip(pages[5::12], pages[::12], strict=False):
        left = tmp_path / f"over {target}"
        shutil.copytree(origin, left)
        changed = bytearray(data)
        changed[target : target + 4096] = data[source : source + 4096]
        (left / data_file.relative_to(origin)).write_bytes(changed)
        whole = tiered.verify(left) == []  # A page that is not in use.
        report = tiered.salvage(left)
        assert whole == (report.damage == ())
        if whole:
            continue
        told += 1
        assert not report.lost_all_known
        assert report.records + report.lost_records == len(items)
        assert 0 < report.lost_records < 60
        assert tiered.verify(left) == []
        with tiered.open(left, helper=False) as store:
            assert len(store) == report.records
            assert dict(store).items() <= items.items()
    assert told > 2


def test_pages_that_lead_nowhere_cost_what_is_behind_them_and_check_tells_them(opener: Any, tmp_path: Path) -> None:
    with opener("store", save="", compression="none") as store:
        store.update({number: f"{number} " * 40 for number in range(3000)})
    (data_file,) = (tmp_path / "store").glob("cold-*/data.mdb")
    data = bytearray(data_file.read_bytes())
    branches = []
    for at in range(8192, len(data), 4096):
        number, _, flags, lower = struct.unpack_from("<QHHH", data, at)
        if number * 4096 == at and flags == BRANCH_PAGE:
            branches.append(((lower - 16) // 2, at))
    children, at = max(branches)  # Others are of older trees.
    for child in (children // 5, children // 2, children // 2 + 1, children - 3):
        (node,) = struct.unpack_from("<H", data, at + 16 + child * 2)
        data[at + node + 3] ^= 0x40  # Of its number: a page far behind the end.
    data_file.write_bytes(data)
    with opener("store") as store:
        assert store.get(0) == "0 " * 40
        assert "MDB_PAGE_NOTFOUND" in store.check()[-1].detail
    report = tiered.salvage(tmp_path / "store")
    assert 0 < report.lost_records < 4 * 4096 / 40
    assert (report.records + report.lost_records, report.lost_all_known) == (3000, False)
    with opener("store") as store:
        assert (len(store), store.check()) == (report.records, [])


def test_salvage_says_that_old_values_may_be_back_where_other_records_are_read_than_were_kept(
    opener: Any, tmp_path: Path
) -> None:
    with opener("store", save="") as store:
        store.update(dict.fromkeys(range(20), "kept"))
    for more, lost in ((3, 3), (-3, 0)):
        with contextlib.closing(Cold(*(tmp_path / "store").glob("cold-*"))) as cold, cold.update() as update:
            update.current.records += more  # As if a page were another.
        report = tiered.salvage(tmp_path / "store")
        assert (report.records, report.lost_records, report.lost_all_known) == (20, lost, False)
        assert len([line for line in report.damage if "may be back" in line]) == 1
        assert tiered.salvage(tmp_path / "store").damage == ()


def test_salvage_of_a_whole_store_changes_nothing_and_of_an_open_one_is_refused(
    damaged: Any, opener: Any, tmp_path: Path
) -> None:
    left, items = damaged()
    before = contents(left)
    report = tiered.salvage(left)
    assert (report.damage, report.kept_in, report.records) == ((), "", 20)
    assert contents(left) == before
    store = opener("left")
    with pytest.raises(tiered.LockedError):
        tiered.salvage(left)
    assert dict(store) == items
    (tmp_path / "folder").mkdir()
    for path in ("nothing", "folder"):
        with pytest.raises(tiered.NotAStoreError):
            tiered.salvage(tmp_path / path)


@pytest.mark.parametrize("text", [None, "", "cold-\n", "\0" * 10])
def test_salvage_names_the_cold_tier_that_is_complete(damaged: Any, text: str | None) -> None:
    """Not the newest: a compaction that was stopped leaves one that is not."""
    left, items = damaged()
    shutil.copytree(left / "cold-0001", left / "cold-0002")
    with contextlib.closing(Cold(left / "cold-0002")) as cold, cold.update() as update:
        update.clear()
    (left / "CURRENT").unlink()
    if text is not None:
        (left / "CURRENT").write_text(text)
    with pytest.raises(CorruptionError, match=r"tiered\.salvage"):
        tiered.open(left)
    report = tiered.salvage(left)
    assert report.damage == ("CURRENT named no cold tier, and now names cold-0001",)
    with tiered.open(left, helper=False) as store:
        assert dict(store) == items


def test_salvage_names_the_new_cold_tier_where_the_old_one_is_marked_as_moved(damaged: Any) -> None:
    left, items = damaged()
    shutil.copytree(left / "cold-0001", left / "cold-0002")
    with contextlib.closing(Cold(left / "cold-0001")) as cold, cold.update() as update:
        update.clear()
        update.current.moved = True
    (left / "CURRENT").unlink()
    assert tiered.salvage(left).damage == ("CURRENT named no cold tier, and now names cold-0002",)
    with tiered.open(left, helper=False) as store:
        assert dict(store) == items


def test_salvage_stopped_at_any_renaming_leaves_a_store_that_is_damaged_or_salvaged(
    damaged: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Never one that opens with less than salvage would have kept, or as if nothing had happened."""
    left, _ = damaged(segments=2)
    segment, _ = sorted(left.glob("journal-0*.log"))
    flip(segment, b"journaled 15")
    flip(left / "cold-0001" / "data.mdb", b"cold 7 cold 7")
    template = shutil.copytree(left, tmp_path / "template")
    whole = tiered.salvage(left)
    with tiered.open(left, helper=False) as store:
        expected = dict(store)
    assert (whole.lost_keys, 7 in expected) == ((7,), False)
    for stop in range(20):
        shutil.rmtree(left)
        shutil.copytree(template, left)
        calls = 0

        def counted(old: Path, new: Path, real: Any = files.rename, stop: int = stop) -> Path:
            nonlocal calls
            calls += 1
            if calls > stop:
                raise OSError(5, "Input/output error")
            return real(old, new)

        with monkeypatch.context() as patch:
            patch.setattr(files, "rename", counted)
            try:
                tiered.salvage(left)
                break
            except tiered.StoreError:
                pass
        with pytest.raises(CorruptionError):
            tiered.open(left)
        tiered.salvage(left)
        with tiered.open(left, helper=False) as store:
            assert dict(store) == expected
    assert stop == 3


def test_salvage_of_pages_damaged_in_any_way_gives_right_values_only(damaged: Any, tmp_path: Path) -> None:
    """LMDB may take a damaged page for anything, and end the process: so in one of its own."""
    import programs

    code = """
        import sys, tiered
        try:
            tiered.salvage(sys.argv[1])
            with tiered.open(sys.argv[1], helper=False) as store:
                for key, value in store.items():
                    assert key == "last" or value in (f"cold {key} " * 5, f"journaled {key} " * 5), (key, value)
                assert store.check() == []
        except tiered.StoreError:
            pass
    """
    left, _ = damaged()
    template = (left / "cold-0001" / "data.mdb").read_bytes()
    uniform = random.Random(4)
    died = 0
    for number in range(5):
        copy = shutil.copytree(left, tmp_path / f"copy {number}")
        data = bytearray(template)
        for _ in range(uniform.choice((1, 30))):
            data[uniform.randrange(8192, len(data))] ^= 1 << uniform.randrange(8)
        (copy / "cold-0001" / "data.mdb").write_bytes(data)
        done = programs.run(code, copy, timeout=30)
        died += done.returncode < 0
        assert done.returncode <= 0, done.stderr
    assert died <= 1


def test_salvage_of_a_truncated_cold_tier_keeps_what_is_there(damaged: Any, tmp_path: Path) -> None:
    import programs

    left, items = damaged()
    path = left / "cold-0001" / "data.mdb"
    whole = path.stat().st_size
    for size in (2 * 4096, whole // 2, whole - 4096):
        copy = shutil.copytree(left, tmp_path / str(size))
        os.truncate(copy / "cold-0001" / "data.mdb", size)
        with pytest.raises(CorruptionError, match=r"truncated.*tiered\.salvage"):
            tiered.open(copy)
        code = """
            import sys, tiered
            try:
                print(tiered.salvage(sys.argv[1]).records)
                with tiered.open(sys.argv[1], helper=False) as store:
                    for key, value in store.items():
                        assert key == "last" or value in (f"cold {key} " * 5, f"journaled {key} " * 5), (key, value)
                    assert store.check() == []
            except tiered.CorruptionError:
                print("nothing")
        """
        done = programs.run(code, copy)
        assert done.returncode == 0, done.stderr
