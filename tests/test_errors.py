"""Bad input, damage, use after close and full disks: an error of this package each time, never a wrong value."""

from __future__ import annotations

import ast
import errno
import gc
import itertools
import os
import random
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import programs
import pytest
from programs import succeed, wait_until
from test_processes import NO_WRITES, OPERATIONS, fill, outcome

import tiered
from tiered import errors, files, keys
from tiered.checkpoint import Applier
from tiered.cold_reader import Reader
from tiered.moment import PAGE_RECORDS


def test_the_tree_in_the_docstring_is_the_tree_there_is() -> None:
    drawn = re.findall(r"^    ([│├└─ ]*)(\w+Error)\b", errors.__doc__ or "", re.MULTILINE)
    parents = {name: ("StoreError" if "│" in lines and len(lines) > 5 else "TieredError") for lines, name in drawn}
    defined = {
        name: kind.__mro__[1].__name__
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.TieredError)
    }
    assert set(parents) == set(defined)
    assert {name: parent for name, parent in defined.items() if name != "TieredError"} == {
        name: parent for name, parent in parents.items() if name != "TieredError"
    }
    assert all(getattr(tiered, name) is getattr(errors, name) for name in defined)


def test_store_errors_carry_path_and_message() -> None:
    error = tiered.CorruptionError(Path("/a/b"), "bad", 7)
    assert (error.path, error.message, error.offset, str(error)) == ("/a/b", "bad", 7, "/a/b: bad")
    for kind in (tiered.ConfigError, tiered.KeyTooLongError, tiered.ValueTooLargeError, tiered.BatchTooLargeError):
        assert issubclass(kind, ValueError)


# Bad arguments

BAD_KEYS = [1.5, None, ["a"], {"a"}, ("a", 1.5), ("a", None), object(), float("nan"), bytearray(b"a")]


@pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: repr(key).partition(" at ")[0])
def test_a_key_of_another_type_is_a_type_error_in_every_operation(opener: Any, key: Any) -> None:
    store = opener()
    for call in (
        lambda: store[key],
        lambda: store.get(key),
        lambda: key in store,
        lambda: store.set(key, 1),
        lambda: store.__setitem__(key, 1),
        lambda: store.__delitem__(key),
        lambda: store.pop(key, None),
        lambda: store.setdefault(key, 1),
        lambda: store.incr(key),
        lambda: store.touch(key, 1),
        lambda: store.persist(key),
        lambda: store.ttl(key),
        lambda: store.explain(key),
        lambda: store.get_many([key]),
        lambda: store.set_many([(key, 1)]),
        lambda: store.delete_many([key]),
    ):
        with pytest.raises(TypeError, match="keys are str, bytes, int or tuples of them"):
            call()
    assert len(store) == 0


def test_a_key_above_32_kib_is_named_and_one_of_32_kib_works(opener: Any) -> None:
    store = opener()
    store["k" * (keys.KEY_BYTES_MAX - 1)] = 1
    store.save()
    assert store["k" * (keys.KEY_BYTES_MAX - 1)] == 1
    for call in (lambda key: store.set(key, 1), store.get, store.pop, lambda key: store.get_many([key])):
        with pytest.raises(tiered.KeyTooLongError, match="32,768"):
            call("k" * keys.KEY_BYTES_MAX)


BAD_VALUES = [object(), lambda: None, range(3), iter([]), [object()], {"a": {1: object()}}, ...]


@pytest.mark.parametrize("value", BAD_VALUES, ids=lambda value: type(value).__name__)
def test_a_value_that_cannot_be_kept_is_a_type_error_when_written(opener: Any, value: Any) -> None:
    store = opener()
    store["a"] = "before"
    for call in (
        lambda: store.__setitem__("a", value),
        lambda: store.set_many({"b": 1, "a": value}),
        lambda: store.setdefault("new", value),
        lambda: store.update(a=value),
    ):
        with pytest.raises(TypeError):
            call()
    assert dict(store) == {"a": "before"}


BAD_SETTINGS: list[tuple[str, Any]] = [
    *(("memory", value) for value in (0, -1, 1.5, "1KB", "many", None, True, "9" * 400 + "GB", b"1MB", 1 << 80)),
    *(("eviction", value) for value in ("", "mru", None, 1)),
    *(("durability", value) for value in ("", "never", None, True)),
    *(("save", value) for value in ("1", "a b", "-1 5", "5 0", 5, None, [(1,)], [(float("inf"), 1)], {"a": 1})),
    *(("compression", value) for value in ("", "zstd:99", "zlib:-1", "lz4", None, 3)),
    *(("default_ttl", value) for value in (0, -1, float("nan"), float("inf"), "5s", True)),
    *(("spill", value) for value in (None, 1, "maybe")),
    *((name, "0.9 0.8") for name in ("low_watermark", "hot_value_share", "cycle_seconds")),
    *(("disk", value) for value in (-1, "much", 1.5, True)),
    *(("helper", value) for value in (None, 1, "maybe")),
    ("nonsense", 1),
]


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS, ids=lambda value: repr(value)[:24])
def test_a_bad_setting_is_a_config_error_at_open_and_at_run_time(opener: Any, name: str, value: Any) -> None:
    with pytest.raises(tiered.ConfigError):
        opener(**{name: value})
    store = opener()
    with pytest.raises(tiered.ConfigError):
        store.config_set(name, value)
    store["a"] = 1


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), "5", True, 10**11, [5]])
def test_a_bad_time_to_live_is_a_named_error_and_writes_nothing(opener: Any, ttl: Any) -> None:
    store = opener()
    store["a"] = 1
    for call in (
        lambda: store.set("a", 2, ttl=ttl),
        lambda: store.set_many({"a": 2}, ttl=ttl),
        lambda: store.touch("a", ttl),
    ):
        with pytest.raises((tiered.ConfigError, TypeError), match="ttl"):
            call()
    assert (store["a"], store.ttl("a")) == (1, None)


def test_incr_of_what_is_no_number_is_a_type_error_and_changes_nothing(opener: Any) -> None:
    store = opener()
    store.set_many({"text": "1", "flag": True, "list": [1]})
    for key in ("text", "flag", "list"):
        with pytest.raises(TypeError, match="int or float"):
            store.incr(key)
    for by in ("1", None, True, 1j):
        with pytest.raises(TypeError):
            store.incr("new", by)
    assert dict(store) == {"text": "1", "flag": True, "list": [1]}


# Use after close


@pytest.mark.parametrize("flag", ["c", "r"])
def test_every_operation_after_close_is_a_closed_error(opener: Any, flag: str) -> None:
    with opener() as store:
        fill(store)
    store = opener(flag=flag)
    store["hot"]
    views = {"keys": store.keys(), "values": store.values(), "items": store.items()}
    started = iter(store)
    store.close()
    assert {name: outcome(call, store) for name, call in OPERATIONS.items()} == dict.fromkeys(OPERATIONS, "ClosedError")
    for view in views.values():
        with pytest.raises(tiered.ClosedError):
            list(view)
    with pytest.raises(tiered.ClosedError):
        list(started)
    store.close()
    assert "closed" in repr(store)


def test_no_write_is_taken_by_a_closed_store(opener: Any) -> None:
    with opener() as store:
        fill(store)
    for name, call in OPERATIONS.items():
        if name not in NO_WRITES:
            outcome(call, store)
    assert dict(opener(flag="r")) == {"hot": 1, "cold": "c" * 100, "count": 1}


# Damage


def test_a_damaged_value_is_a_corruption_error_wherever_it_is_read_and_the_rest_is_readable(opener: Any) -> None:
    with opener(compression="none") as store:
        store.update((number, f"value {number} " * 20) for number in range(1000))
        path = store._engine.cold.path
    data = bytearray(path.read_bytes())
    at = data.index(b"value 700 value 700")
    data[at + 8] ^= 1
    path.write_bytes(data)
    store = opener(flag="w")
    for call in (
        lambda: store[700],
        lambda: store.get(700),
        lambda: store.get_many([1, 700]),
        lambda: 700 in store,
        lambda: list(store.values()),
        lambda: store.pop(700),
        lambda: store.explain(700),
        lambda: store.setdefault(700, 1),
    ):
        with pytest.raises(tiered.CorruptionError, match=r"data\.mdb.*checksum mismatch"):
            call()
    assert [finding.what for finding in store.check()] == ["damaged record"]
    assert [store[number] for number in (0, 699, 701)] == [f"value {number} " * 20 for number in (0, 699, 701)]
    store[700] = "written again"
    store.save()
    assert store[700] == "written again"
    assert store.check() == []


@pytest.mark.parametrize("compression", ["none", "zstd:3", "zlib:6"])
def test_bytes_flipped_anywhere_in_records_give_the_right_value_or_a_corruption_error(
    opener: Any, compression: str
) -> None:
    expected = {f"key {number}": {"name": f"user {number}", "tags": ["a", "b"] * 5} for number in range(400)}
    with opener(compression=compression) as store:
        store.update(expected)
        store.save()
        with store._engine.cold.read() as reader:
            records = [data for _, data in reader.scan()]
        path = store._engine.cold.path
    original = path.read_bytes()
    places = [at for record in records if (at := original.find(record)) >= 0]
    assert len(places) > 300
    uniform = random.Random(3)
    wrong = damaged = 0
    for _ in range(25):
        data = bytearray(original)
        for place, record in zip(places, records, strict=False):
            if uniform.random() < 0.1:
                data[place + uniform.randrange(len(record))] ^= 1 << uniform.randrange(8)
        path.write_bytes(data)
        with opener(flag="r") as store:
            for key, value in expected.items():
                try:
                    wrong += store[key] != value
                except tiered.CorruptionError:
                    damaged += 1
    assert wrong == 0
    assert damaged > 100


DAMAGED = """
    import random, resource, sys, tiered
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    wrong = 0
    try:
        with tiered.open(sys.argv[1], "r", memory="1MB") as store:
            for number in range(600):
                try:
                    wrong += store[number] != f"value {number} " * 10
                except (KeyError, tiered.StoreError):
                    pass
            try:
                for number, value in store.items():
                    wrong += value != f"value {number} " * 10
                len(store), store.check(), store.stats()
            except tiered.StoreError:
                pass
    except tiered.StoreError:
        pass
    print("wrong", wrong)
"""


def test_bytes_flipped_anywhere_in_the_file_never_give_a_wrong_value_or_a_foreign_exception(
    opener: Any, tmp_path: Path
) -> None:
    """LMDB has no checksums over its own pages, so a damaged one may end the process; nothing else may happen."""
    with opener() as store:
        store.update((number, f"value {number} " * 10) for number in range(600))
        path = store._engine.cold.path
    original = path.read_bytes()
    uniform = random.Random(9)
    crashed = 0
    for _ in range(25):
        data = bytearray(original)
        for _ in range(uniform.choice((1, 20))):
            data[uniform.randrange(len(data))] ^= 1 << uniform.randrange(8)
        path.write_bytes(data)
        done = programs.run(DAMAGED, tmp_path / "store.tiered", timeout=20)
        if done.returncode < 0:
            crashed += 1
            continue
        assert (done.stdout, done.stderr) == ("wrong 0\n", "")
    assert crashed <= 5


@pytest.mark.parametrize("change", ["a byte", "shorter", "zeros"])
def test_a_damaged_key_is_a_corruption_error_in_every_iteration_and_no_key_that_never_was(
    opener: Any, change: str
) -> None:
    with opener(compression="none") as store:
        store.update((("k", number), [number, "text"]) for number in range(1500))
        path = store._engine.cold.path
    data = bytearray(path.read_bytes())
    key = keys.encode(("k", 716))
    at, length = data.index(key), len(key)
    if change == "a byte":
        data[at + length - 2] = 0x92
    elif change == "shorter":
        data[at - 2 : at] = (length - 1).to_bytes(2, "little")  # LMDB's length of it, which moves its record, too.
    else:
        data[at - 8 : at + length] = bytes(8 + length)
    path.write_bytes(data)
    store, right = opener(flag="w"), {("k", number) for number in range(1500)}
    for iteration in (
        lambda: iter(store),
        lambda: reversed(store),
        store.values,
        store.items,
        lambda: store.keys(prefix=("k",)),
        lambda: store.view(),
        lambda: store.view().records(),
        lambda: store.transaction(),
        lambda: store.sub("k"),
    ):
        found: list[Any] = []
        with pytest.raises(tiered.CorruptionError, match=r"data\.mdb: damaged (record|page).*backup"):
            found.extend(iteration())
        assert all(thing in right for thing in found if type(thing) is tuple and thing[0] == "k")
    with pytest.raises(tiered.CorruptionError):
        dict(store)
    assert {finding.what for finding in store.check()} >= {"damaged record"}
    assert store["k", 3] == [3, "text"]
    store.close()


def test_pages_of_lmdb_in_the_wrong_order_end_an_iteration_by_an_error(store: Any, monkeypatch: Any) -> None:
    store.update((number, number) for number in range(600))
    store.save()
    whole = Reader.scan

    def swapped(reader: Reader, start: bytes, stop: bytes | None, reverse: bool) -> Any:
        """What a page that is whole, and stands in the place of another, gives; in the compiled part: test_pages."""
        yield from itertools.islice(whole(reader, start, stop, reverse), PAGE_RECORDS - 1)
        yield from whole(reader, stop if reverse and stop else b"", None, reverse)

    monkeypatch.setattr(Reader, "scan", swapped)
    monkeypatch.setattr(Reader, "_slice_of_pages", lambda *args: None)
    for reverse in (False, True):
        with pytest.raises(tiered.CorruptionError, match="damaged page"):
            list(store.keys(start=100, stop=400, reverse=reverse))
    monkeypatch.undo()


def test_a_damaged_dictionary_is_a_corruption_error(opener: Any) -> None:
    store = opener()
    document = {"name": "somebody", "mail": "somebody@example.org", "groups": ["readers", "writers"]}
    store.update((number, {**document, "number": number}) for number in range(4000))
    store.save()
    wait_until(lambda: store.tick() > 0 and store.stats().dictionary_count)
    store.update((number, {**document, "number": -number}) for number in range(4000))
    store.save()
    with store._engine.cold.read() as reader:
        dictionary = reader.dictionary(1)
        path = store._engine.cold.path
    store.close()
    data = bytearray(path.read_bytes())
    data[data.index(dictionary[:3000]) + 100] ^= 1
    path.write_bytes(data)
    with tiered.open(path.parents[1], "r") as reader, pytest.raises(tiered.CorruptionError, match="dictionary 1"):
        reader[5]


def test_only_errors_of_this_package_are_raised_by_name() -> None:
    """No module raises a foreign exception on purpose, but for the few that callers translate."""
    foreign = {"lmdb", "zstandard", "msgpack", "struct"}
    for path in Path(tiered.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                assert ast.unparse(node.exc.func).partition(".")[0] not in foreign, (path, node.lineno)


# Full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("may not mount here")
    yield path
    gc.collect()
    if subprocess.run(["umount", path], capture_output=True).returncode:
        subprocess.run(["umount", "-l", path], check=True)


def write_until_full(store: tiered.Store[Any, Any]) -> dict[int, str]:
    """Write until refused; what was acknowledged."""
    uniform, acknowledged = random.Random(1), {}
    for number in range(100_000):
        value = uniform.randbytes(500).hex()
        try:
            store[number] = value
        except tiered.StoreFullError:
            return acknowledged
        acknowledged[number] = value
    raise AssertionError("the disk never got full")


@pytest.mark.parametrize("helper", [False, True])
def test_a_full_disk_refuses_writes_keeps_what_was_acknowledged_and_recovers_when_there_is_room(
    small_disk: Path, helper: bool
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(3 << 20))
    store = tiered.open(small_disk / "store", memory="1MB", helper=helper)
    acknowledged = write_until_full(store)
    assert len(acknowledged) > 1000
    assert store.stats().state in ("open", "full")
    assert dict(store) == acknowledged
    for number in list(acknowledged)[::50]:
        assert store[number] == acknowledged[number]
    # In the background room may have been made since, by a checkpoint that went through: then it takes more to fill it.
    refused, more = [lambda: outcome(lambda store: store.save(), store)], itertools.count()
    refused.append(lambda: outcome(lambda store: store.set(f"more {next(more)}", "x" * 4000), store))
    wait_until(lambda: any(attempt() == "StoreFullError" for attempt in refused), 60)
    ballast.unlink()
    wait_until(
        lambda: outcome(lambda store: store.set("again", 1), store) == "no error", 10, "never takes writes again"
    )
    wait_until(lambda: outcome(lambda store: store.save(), store) == "no error", 10, "never saves again")
    kept = {key: value for key, value in store.items() if key in acknowledged}
    assert kept == acknowledged
    assert (store.check(), store.stats().state) == ([], "open")
    store.close()
    with tiered.open(small_disk / "store", "w", memory="1MB") as store:
        assert {key: value for key, value in store.items() if key in acknowledged} == acknowledged
        assert store["again"] == 1


def test_a_checkpoint_that_lacks_memory_is_called_that_and_tried_again(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(stepwise=True, save="")
    store["a"] = 1

    def lacking(*_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(Applier, "apply", lacking)
    for _ in range(2):
        with pytest.raises(tiered.StoreError, match="not enough memory") as raised:
            store.save()
        assert not isinstance(raised.value, tiered.StoreFullError)
    assert store.stats().state == "held up"
    with pytest.raises(tiered.StoreError, match="not enough memory") as raised:  # noqa: PT012
        for number in range(1000):
            store[number] = "x" * 1000
    assert not isinstance(raised.value, tiered.StoreFullError)
    assert store["a"] == 1
    written = dict(store)
    monkeypatch.undo()
    store.save()
    assert (store.stats().state, dict(store) == written) == ("open", True)


def test_a_segment_that_cannot_be_made_ahead_is_made_when_it_is_needed(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(stepwise=True, save="")
    engine = store._engine

    def lacking() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(engine.journal, "prepare", lacking)
    for number in range(200):
        store[number] = "x" * 1000
        store.tick()
    assert not engine.journal.prepared
    assert len(store) == 200


@pytest.mark.parametrize("helper", [False, True])
def test_closing_on_a_full_disk_loses_nothing_and_says_so_where_there_is_no_room_for_a_last_checkpoint(
    small_disk: Path, helper: bool
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(5 << 20))
    store = tiered.open(small_disk / "store", memory="2MB", helper=helper, save="")
    acknowledged = write_until_full(store)
    with (small_disk / "rest").open("wb", buffering=0) as rest:
        while True:
            try:
                rest.write(bytes(4096))
            except OSError:
                break
    try:
        store.close()  # What LMDB has not given back may be room enough.
    except tiered.StoreFullError:
        with pytest.raises(tiered.StoreFullError):
            tiered.open(small_disk / "store", "w", memory="2MB", helper=helper)
    ballast.unlink()
    with tiered.open(small_disk / "store", "w", memory="2MB", helper=helper) as store:
        assert {key: store[key] for key in acknowledged} == acknowledged
        assert store.check() == []


def test_closing_without_room_for_the_last_checkpoint_raises_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tiered.open(tmp_path / "store", memory="1MB", helper=False, save="")
    store.update(dict.fromkeys(range(100), "value"))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Applier, "apply", full)
        with pytest.raises(tiered.StoreFullError, match="journal keeps"):
            store.close()
        with pytest.raises(tiered.StoreFullError):
            tiered.open(tmp_path / "store", "w", memory="1MB", helper=False)
    with tiered.open(tmp_path / "store", "w", memory="1MB", helper=False) as store:
        assert dict(store) == dict.fromkeys(range(100), "value")


def test_a_compaction_without_room_gives_its_room_back_and_loses_nothing(small_disk: Path) -> None:
    for helper in (False, True):
        path = small_disk / "store"
        with tiered.open(path, "n", memory="1MB", helper=helper) as store:
            values = {number: os.urandom(250).hex() for number in range(6000)}
            store.update(values)
            store.save()
            numbers, room = files.cold_numbers(path), os.statvfs(small_disk)
            assert len(numbers) == 1
            ballast = small_disk / "ballast"
            ballast.write_bytes(bytes(room.f_bavail * room.f_frsize - (1 << 20)))
            with pytest.raises(tiered.StoreFullError):
                store.compact()
            assert files.cold_numbers(path) == numbers
            wait_until(lambda store=store: outcome(lambda store: store.set("after", 1), store) == "no error")
            store.save()
            assert {**values, "after": 1} == dict(store)
            ballast.unlink()
            store.compact()
            assert {**values, "after": 1} == dict(store)


def test_many_readers_on_a_full_disk_do_not_end_the_process(small_disk: Path) -> None:
    code = """
        import sys, threading, tiered
        store = tiered.open(sys.argv[1], memory="1MB", helper=False)
        store["a"] = 1
        store.save()
        with open(sys.argv[1] + "/../rest", "wb", buffering=0) as rest:
            try:
                while True:
                    rest.write(bytes(4096))
            except OSError:
                pass
        from contextlib import ExitStack
        with ExitStack() as readers:
            for _ in range(1000):
                readers.enter_context(store._engine.cold.read())
            print(store["a"])
        store.close()
    """
    assert succeed(code, small_disk / "store") == "1"


def test_a_store_cannot_be_made_on_a_full_disk_and_can_when_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((8 << 20) - 40_960))
    for _ in range(2):
        with pytest.raises(tiered.StoreFullError):
            tiered.open(small_disk / "store", memory="1MB")
    ballast.unlink()
    with tiered.open(small_disk / "store", memory="1MB") as store:
        store["a"] = 1


def test_a_journal_write_that_meets_a_full_disk_is_refused_and_repeated_later(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where space cannot be reserved the journal is written with `pwrite`, any of which may fail, in part too."""
    monkeypatch.setattr(files, "reserves_space", lambda path: False)
    store = opener(save="")
    store["a"] = 1
    real = os.pwrite
    for call in (
        lambda: store.set("b", "b" * 100),
        lambda: store.set_many({"c": 1, "d": 2}),
        lambda: store.incr("a"),
        lambda: store.pop("a"),
    ):
        begun: list[int] = []

        def half(fd: int, data: Any, offset: int, done: list[int] = begun) -> int:
            if done:
                raise OSError(errno.ENOSPC, "No space left on device")
            done.append(1)
            return real(fd, bytes(data)[:10], offset)

        monkeypatch.setattr(os, "pwrite", half)
        with pytest.raises(tiered.StoreFullError):
            call()
        assert dict(store) == {"a": 1}
    monkeypatch.setattr(os, "pwrite", real)
    store.set_many({"b": 2, "c": 3})
    assert (dict(store), store.check()) == ({"a": 1, "b": 2, "c": 3}, [])
    store.close()
    assert dict(opener(flag="w")) == {"a": 1, "b": 2, "c": 3}


def test_a_journal_write_that_fails_otherwise_poisons(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "reserves_space", lambda path: False)
    store = opener(save="")
    store["a"] = 1

    def pwrite(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(tiered.StoreError, match="Input/output error"):
            store["b"] = 2
    with pytest.raises(tiered.PoisonedError, match="Input/output error"):
        store["b"] = 2
    assert dict(store) == {"a": 1}
    with pytest.raises(tiered.PoisonedError):
        store.close()
    assert dict(opener(flag="w")) == {"a": 1}


def test_a_failed_start_of_a_segment_leaves_nothing_in_the_way(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opener(save="")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(files, "rename", fail)
        with pytest.raises(tiered.StoreError, match="Input/output error"):
            store["a"] = 1
    store["a"] = 1
    store.save()
    assert store.check() == []


# The cap on the cold tier


def test_above_the_disk_cap_writes_are_refused_deletions_allowed_and_more_room_or_less_data_helps(opener: Any) -> None:
    store = opener(disk="1MB", save="0 200")
    write_until_full(store)
    with pytest.raises(tiered.StoreFullError, match="cap of 1,048,576 bytes"):
        store.update((number, "v" * 500) for number in range(3000, 3500))
    assert store.stats().state == "full"
    kept = len(store)
    assert 500 < kept < 3000
    with pytest.raises(tiered.StoreFullError):
        store.set_many((("more", number), "m" * 1000) for number in range(100))
    store.config_set("disk", "2MB")
    store["more"] = 1
    store.config_set("disk", "1MB")
    store.save()
    assert store.delete_many(range(400)) == 400
    del store[401]
    assert store.pop(402) is not None
    store.save()
    wait_until(lambda: outcome(lambda store: store.set("again", 1), store) == "no error", 3)
    assert len(store) >= kept - 402
    store.config_set("disk", None)
    store.update((number, "v" * 1000) for number in range(3000))


def test_a_thread_that_waits_for_room_is_told_when_the_disk_is_full(small_disk: Path) -> None:
    store = tiered.open(small_disk / "store", memory="1MB")
    (small_disk / "ballast").write_bytes(bytes(4 << 20))
    got: list[str] = []

    def write(thread: int) -> None:
        try:
            for number in range(100_000):
                store[thread, number] = os.urandom(300).hex()
        except Exception as error:
            got.append(type(error).__name__)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "waits for ever"
    assert got == ["StoreFullError"] * 3
    (small_disk / "ballast").unlink()
    wait_until(lambda: outcome(lambda store: store.save(), store) == "no error")
    store.close()
