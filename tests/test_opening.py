"""Opening: what is there, what must not be touched, what each flag does."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import tiered
from tiered import files, opening


def picture(path: Path) -> dict[str, bytes]:
    """All bytes of a store, but for who has it open."""
    skipped = {"LOCK", "APPLY", "lock.mdb"}
    return {
        str(found.relative_to(path)): found.read_bytes()
        for found in path.rglob("*")
        if found.is_file() and found.name not in skipped
    }


def test_the_flags_are_those_of_dbm(opener: Any) -> None:
    for flag in "rw":
        with pytest.raises(tiered.NotAStoreError, match="flag='c'"):
            opener(flag=flag)
    with opener(flag="c") as store:
        store["a"] = 1
    with opener(flag="c") as store:
        assert dict(store) == {"a": 1}
    with opener(flag="w") as store:
        assert dict(store) == {"a": 1}
    with opener(flag="r") as store:
        assert dict(store) == {"a": 1}
    with opener(flag="n") as store:
        assert dict(store) == {}
    with opener(flag="n", path="fresh") as store:
        assert dict(store) == {}


@pytest.mark.parametrize("flag", ["x", "", "rw", None, 1])
def test_another_flag_is_a_config_error(opener: Any, flag: Any) -> None:
    with pytest.raises(tiered.ConfigError, match="read-only"):
        opener(flag=flag)


@pytest.mark.parametrize("flag", list("crwn"))
def test_a_file_is_not_a_store_and_stays_as_it_is(opener: Any, tmp_path: Path, flag: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"kept")
    with pytest.raises(tiered.NotAStoreError, match="a file"):
        opener(path, flag)
    assert path.read_bytes() == b"kept"
    with pytest.raises(tiered.StoreError):
        opener(path / "below", flag)


@pytest.mark.parametrize("flag", list("crwn"))
def test_a_directory_with_other_files_is_not_a_store_and_stays_as_it_is(opener: Any, tmp_path: Path, flag: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("kept")
    with pytest.raises(tiered.NotAStoreError, match=r"thesis\.tex"):
        opener("mine", flag)
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"]


def test_an_empty_directory_becomes_a_store(opener: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    opener("empty")["a"] = 1


def test_missing_parents_are_made_and_nobody_else_may_read_a_store(opener: Any, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = opener("a/b/c")
        store["a"] = 1
        store.save()
    finally:
        os.umask(before)
    assert (tmp_path / "a/b/c").stat().st_mode & 0o777 == 0o700
    for found in (tmp_path / "a/b/c").rglob("*"):
        assert found.stat().st_mode & 0o077 == 0, found


@pytest.mark.parametrize("flag", list("crw"))
def test_a_store_that_lost_current_is_refused_and_not_emptied(opener: Any, tmp_path: Path, flag: str) -> None:
    path = tmp_path / "store.tiered"
    with opener() as store:
        store["a"] = 1
    (path / "CURRENT").unlink()
    before = picture(path)
    with pytest.raises((tiered.CorruptionError, tiered.NotAStoreError)):
        opener(flag=flag)
    assert picture(path) == before
    (path / "CURRENT").write_text("cold-0001\n")
    assert opener()["a"] == 1


def test_a_store_that_lost_current_with_only_a_journal_is_refused_too(opener: Any, tmp_path: Path) -> None:
    path = tmp_path / "store.tiered"
    store = opener(save="")
    store["a"] = 1
    shutil.copytree(path, tmp_path / "copy")
    (tmp_path / "copy" / "CURRENT").unlink()
    with pytest.raises(tiered.CorruptionError, match="CURRENT"):
        opener("copy")
    (tmp_path / "copy" / "CURRENT").write_text("cold-0001\n")
    assert opener("copy")["a"] == 1


@pytest.mark.parametrize("step", range(6))
def test_creation_that_was_cut_short_is_done_again(
    opener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    path = tmp_path / "store.tiered"
    calls = []

    def fail(name: str, real: Any) -> Any:
        def maybe(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            if len(calls) == step + 1:
                raise RuntimeError("the power is cut")
            return real(*arguments, **named)

        return maybe

    with monkeypatch.context() as patch:
        patch.setattr(opening.Cold, "update", fail("update", opening.Cold.update))
        for name in ("write_current", "sync_directory", "sync_data", "reserve"):
            patch.setattr(files, name, fail(name, getattr(files, name)))
        with pytest.raises(RuntimeError):
            opener()
    store = opener()
    store["a"] = 1
    store.save()
    assert sorted(os.listdir(path)) == ["APPLY", "CURRENT", "LOCK", "SYNCED", "cold-0001"]


@pytest.mark.parametrize("text", ["", "cold-1", "cold-0001x", "../cold-0001", "\x00" * 10, "ö" * 9])
def test_a_damaged_current_is_a_corruption_error_and_nothing_is_touched(opener: Any, tmp_path: Path, text: str) -> None:
    path = tmp_path / "store.tiered"
    with opener() as store:
        store["a"] = 1
    (path / "CURRENT").write_text(text)
    before = picture(path)
    for flag in "crw":
        with pytest.raises(tiered.CorruptionError, match="CURRENT"):
            opener(flag=flag)
    assert picture(path) == before


def test_a_current_that_is_a_directory_is_a_named_error(opener: Any, tmp_path: Path) -> None:
    opener().close()
    (tmp_path / "store.tiered" / "CURRENT").unlink()
    (tmp_path / "store.tiered" / "CURRENT").mkdir()
    for flag in "crwn":
        with pytest.raises(tiered.StoreError):
            opener(flag=flag)


@pytest.mark.parametrize("damage", ["no cold tier", "no data.mdb", "nothing", "one page", "half", "garbage", "zeros"])
def test_a_damaged_data_file_is_a_corruption_error_and_stays_as_it_is(opener: Any, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "store.tiered"
    with opener() as store:
        store.update((number, "v" * 100) for number in range(3000))
    data = path / "cold-0001" / "data.mdb"
    size = data.stat().st_size
    if damage == "no cold tier":
        shutil.rmtree(path / "cold-0001")
    elif damage == "no data.mdb":
        data.unlink()
    elif damage in ("garbage", "zeros"):
        data.write_bytes(os.urandom(size) if damage == "garbage" else bytes(size))
    else:
        os.truncate(data, {"nothing": 0, "one page": 4096, "half": size // 2}[damage])
    before = picture(path)
    for flag in "crw":
        with pytest.raises(tiered.CorruptionError, match=r"data\.mdb") as caught:
            opener(flag=flag)
        assert "restore" in str(caught.value)
    assert picture(path) == before
    with opener(flag="n") as store:
        assert len(store) == 0


def test_a_data_file_that_lmdb_left_shorter_than_its_page_count_is_no_damage(opener: Any) -> None:
    store = opener()
    with store._engine.cold.update() as update:
        for number in range(300):
            update.txn.put(b"%d" % number, b"v" * 20_000, db=store._engine.cold.records)
        for number in range(300):
            update.txn.delete(b"%d" % number, db=store._engine.cold.records)
    store["a"] = 1
    store.save()
    store.close()
    assert opener(flag="w")["a"] == 1


def test_a_store_of_a_newer_format_is_refused_by_name_and_stays_as_it_is(opener: Any, tmp_path: Path) -> None:
    path = tmp_path / "store.tiered"
    with opener() as store:
        store["a"] = 1
        store.save()
        with store._engine.cold.update() as update:
            update.current.format = 2
    before = picture(path)
    for flag in "crw":
        with pytest.raises(tiered.FormatError, match="format 2; this version knows 1"):
            opener(flag=flag)
    assert picture(path) == before


def test_a_journal_of_a_newer_format_is_refused_by_name_and_stays_as_it_is(
    opener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiered import journal

    store = opener(save="")
    monkeypatch.setattr(journal, "_VERSION", 2)
    store["a"] = 1
    shutil.copytree(store.path, tmp_path / "copy")
    monkeypatch.undo()
    before = picture(tmp_path / "copy")
    with pytest.raises(tiered.FormatError, match="journal format 2; this version knows 1"):
        opener("copy")
    assert picture(tmp_path / "copy") == before
    with pytest.raises(tiered.PoisonedError, match="journal format 2"):
        store.close()  # Its own segment, which is that of another version by now.


@pytest.mark.parametrize("timeout", [-1, float("nan"), None, "1", True])
def test_a_lock_timeout_that_is_none_is_a_config_error(opener: Any, timeout: Any) -> None:
    with pytest.raises(tiered.ConfigError, match="lock_timeout"):
        opener(lock_timeout=timeout)


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "x/" * 3000])
def test_a_path_that_cannot_be_one_is_a_named_error(path: str) -> None:
    with pytest.raises(tiered.StoreError):
        tiered.open(path)


@pytest.mark.parametrize("path", [1.5, None, ["a"], {}])
def test_what_is_no_path_is_a_type_error(path: Any) -> None:
    with pytest.raises(TypeError):
        tiered.open(path)


def test_a_path_may_be_bytes_or_a_path(tmp_path: Path) -> None:
    with tiered.open(os.fsencode(tmp_path / "store"), memory="1MB", helper=False) as store:
        store["a"] = 1
    with tiered.open(tmp_path / "store", helper=False) as store:
        assert store["a"] == 1


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_network_file_systems_are_refused_unless_allowed(
    opener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(files, "filesystem_type", lambda path: kind)
    with pytest.raises(tiered.UnsupportedError, match=f"{kind}.*allow_network=True"):
        opener()
    assert os.listdir(tmp_path) == []
    opener(allow_network=True)["a"] = 1


def test_windows_is_refused_by_name(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening.sys, "platform", "win32")
    with pytest.raises(tiered.UnsupportedError, match="Windows"):
        opener()


def test_bad_settings_are_refused_before_anything_is_touched(opener: Any, tmp_path: Path) -> None:
    for settings in ({"memory": "1KB"}, {"nonsense": 1}, {"durability": "never"}):
        with pytest.raises(tiered.ConfigError):
            opener(flag="n", **settings)
    assert os.listdir(tmp_path) == []


def test_a_failed_open_leaves_the_store_unlocked(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opener().close()

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(opening.recovery, "plan", fail)
        with pytest.raises(tiered.StoreError, match="Input/output error"):
            opener()
    opener()["a"] = 1


def test_explicit_settings_beat_remembered_ones_which_beat_defaults(opener: Any) -> None:
    with opener(durability="always", save="900 7") as store:
        assert store.config_get("durability") == {"durability": "always"}
    with opener(durability="checkpoint", memory="3MB") as store:
        assert store.config_get("durability")["durability"] == "checkpoint"
        assert store.config_get("save")["save"] == ((900, 7),)
    with opener() as store:
        assert store.config_get("durability")["durability"] == "checkpoint"
        assert store.config_get("memory")["memory"] == 1 << 20


def test_leftovers_of_programs_that_were_killed_are_removed(opener: Any, tmp_path: Path) -> None:
    path = tmp_path / "store.tiered"
    with opener() as store:
        store["a"] = 1
        shutil.copytree(path / "cold-0001", path / "cold-0002")
        shutil.copytree(path / "cold-0001", path / "cold-0007")
    (path / files.PREPARED).write_bytes(bytes(1000))
    (path / "CURRENT.new").write_text("cold-")
    store = opener()
    assert store["a"] == 1
    store["b"] = 2
    store.save()
    assert files.cold_numbers(path) == [1]
    assert not (path / files.PREPARED).exists()
    assert not (path / "CURRENT.new").exists()


def test_an_empty_store_is_small_opens_fast_and_starts_nothing(opener: Any, tmp_path: Path) -> None:
    opener(helper=True).close()
    assert files.disk_bytes(tmp_path / "store.tiered") <= 1 << 20
    best = 1.0
    for _ in range(5):
        began = time.process_time()
        store = opener(helper=True)
        best = min(best, time.process_time() - began)
        assert store.stats().checkpointer == "none"
        store.close()
    assert best < 0.03, "meant to be under 10 ms"


def test_opening_waits_for_the_helper_of_a_killed_program_up_to_a_limit(
    opener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opener().close()
    monkeypatch.setattr(opening, "APPLY_WAIT_SECONDS", 0.2)
    lock = files.FileLock(tmp_path / "store.tiered" / files.APPLY)
    lock.acquire()
    try:
        with pytest.raises(tiered.LockedError, match="helper of a program that is gone"):
            opener()
    finally:
        lock.release()
    opener()["a"] = 1


def test_a_store_on_a_file_system_without_reserved_space_works(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "reserves_space", lambda path: False)
    with opener() as store:
        store.update((number, "v" * 300) for number in range(5000))
        store["last"] = 1
        assert store._engine.journal.mapped is False
        del store[0]
    with opener(flag="w") as store:
        assert (len(store), store["last"], store.check()) == (5000, 1, [])


def test_a_copy_of_a_closed_store_is_a_store(opener: Any, tmp_path: Path) -> None:
    with opener() as store:
        store.update((number, number) for number in range(1000))
    subprocess.run(["cp", "-r", tmp_path / "store.tiered", tmp_path / "copy"], check=True)
    with opener("copy") as copy, opener() as store:
        assert dict(copy) == dict(store)


def test_who_opens_a_store_whose_making_failed_with_its_last_sync_syncs_its_names_first(
    opener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CURRENT is there, but a power cut would take it away, and leave what was written since without it."""
    real, synced = files.sync_directory, []

    def fails_at_the_end(directory: Path) -> None:
        if directory.name == "store.tiered" and files.CURRENT in os.listdir(directory):
            raise OSError(5, "Input/output error")
        real(directory)

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_directory", fails_at_the_end)
        with pytest.raises(tiered.StoreError, match="Input/output error"):
            opener()
    assert files.read_current(tmp_path / "store.tiered") == 1
    monkeypatch.setattr(files, "sync_directory", lambda directory: synced.append(directory) or real(directory))
    opener()
    assert tmp_path / "store.tiered" in synced


def test_always_new_leaves_nothing_of_what_was_there(opener: Any, tmp_path: Path) -> None:
    with opener() as store:
        store["a"] = 1
    path = tmp_path / "store.tiered"
    (path / "damaged-0001").mkdir()
    with opener(flag="n") as store:
        assert len(store) == 0
        assert {name for name in os.listdir(path) if not name.startswith("journal")} == {
            "CURRENT",
            "LOCK",
            "cold-0002",
        } | ({"APPLY"} & set(os.listdir(path)))
