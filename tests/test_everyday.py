"""What everyday Python expects of a store, a test for each sentence; the depths are in the tests of the modules."""

from __future__ import annotations

import asyncio
import copy
import enum
import gc
import inspect
import os
import pickle
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from contracts import upset_accounts

import tiered
from tiered import codec
from tiered.cold_reader import Reader
from tiered.moment import PAGE_RECORDS, Moment


def test_a_store_is_generic_and_open_gives_one_of_any() -> None:
    assert tiered.Store[str, int].__args__ == (str, int)
    assert str(get_type_hints(tiered.open)["return"]) == "tiered.store.Store[typing.Any, typing.Any]"


def test_what_is_for_users_is_there_when_asked_for_and_completed_without_the_rest() -> None:
    code = """
        import sys, tiered
        before = set(sys.modules)
        shown = set(dir(tiered))
        assert {*tiered.__all__, "aio", "migrate", "__version__"} <= shown, shown
        assert not {"engine", "journal"} & shown, shown
        assert not {"tiered.aio", "tiered.migrate"} & before
        tiered.aio.open, tiered.migrate.from_shelve
        try:
            tiered.nonsense
        except AttributeError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("module 'tiered' has no attribute 'nonsense'\n", "")


def test_signatures_show_defaults_that_say_something() -> None:
    signatures = [str(inspect.signature(tiered.open))]
    for kind in (tiered.Store, tiered.Sub, tiered.Transaction, tiered.View):
        names = [name for name in dir(kind) if not name.startswith("_") and inspect.isfunction(getattr(kind, name))]
        signatures += [f"{name}{inspect.signature(getattr(kind, name))}" for name in names]
    assert "<a temporary directory>" in signatures[0]
    assert [text for text in signatures if "<object object" in text] == []


def test_open_without_a_path_is_a_temporary_store_removed_on_close() -> None:
    with tiered.open() as store:
        store["k"] = 1
        path = Path(store.path)
        assert path.is_dir()
    assert not path.exists()


def test_an_empty_path_is_refused_and_makes_no_store_of_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(tiered.ConfigError, match="names no directory"):
        tiered.open("")
    assert not list(tmp_path.iterdir())


def test_sync_waits_until_all_that_was_written_is_on_disk(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opener(durability="checkpoint", stepwise=True)
    store["k"] = 1
    assert store.stats().synced_sequence < store.stats().last_sequence
    synced: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (real(fd), synced.append(fd))[0])
    store.sync()
    assert synced
    assert store.stats().synced_sequence == store.stats().last_sequence


def test_repr_shows_path_records_hot_bytes_and_state_never_values_never_a_scan(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(stepwise=True)
    store.update(dict.fromkeys(range(300), "secret"))
    store.save()
    for name in ("get", "read", "begin"):
        monkeypatch.setattr(type(store._engine.cold), name, None)
    shown = repr(store)
    monkeypatch.undo()
    assert store.path in shown
    assert " open: 300 records checkpointed, 0 dirty" in shown
    assert f"{store._engine.hot.used_bytes:,} bytes hot" in shown
    assert "secret" not in shown


def test_completions_in_a_notebook_are_capped_at_100(opener: Any) -> None:
    store = opener()
    store.update(dict.fromkeys(range(500)))
    assert store._ipython_key_completions_() == list(range(100))


def test_equality_compares_lengths_then_streams(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opener(stepwise=True)
    store.update({"a": 1, "b": [2]})
    assert store == {"b": [2], "a": 1}
    assert store != {"a": 1}
    assert store != {"a": 1, "b": [3]}

    class Longer(dict[Any, Any]):
        def __getitem__(self, key: Any) -> Any:
            raise AssertionError("looked at, though it is longer")

    assert store != Longer({"a": 1, "b": 2, "c": 3})

    same = {number: number for number in range(10 * PAGE_RECORDS)}
    store.clear()
    store.update(same)
    pages: list[int] = []
    real = Moment.page

    def page(self: Moment, *bounds: Any) -> Any:
        found = real(self, *bounds)
        pages.append(len(found[0]))
        return found

    monkeypatch.setattr(Moment, "page", page)
    assert store == same
    assert (len(pages), max(pages)) == (10, PAGE_RECORDS)
    pages.clear()
    assert store != {**same, 7: "another"}
    assert len(pages) == 1


def test_in_place_or_popitem_and_atomic_pop_and_setdefault(opener: Any) -> None:
    store = opener()
    store |= {"a": 1, "b": 2}
    assert store.popitem() == ("b", 2)
    assert (store.pop("a"), store.pop("a", None), store.setdefault("c", 3), store.setdefault("c", 4)) == (1, None, 3, 3)
    won: list[Any] = []

    def race() -> None:
        for number in range(200):
            if store.setdefault(("first", number), threading.get_ident()) == threading.get_ident():
                won.append(number)
            if store.pop(("first", number), None) is not None:
                won.append(-number - 1)

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Each that was put there was taken by one thread, and each that was taken had been put there.
    assert sorted(number for number in won if number >= 0) == sorted(-number - 1 for number in won if number < 0)
    assert set(range(200)) <= set(won)
    assert not list(store.keys(prefix=("first",)))


def test_what_would_make_a_dict_of_all_the_store_is_refused_with_what_to_write(opener: Any) -> None:
    store = opener()
    store["a"] = 1
    with store.view() as view:
        for one, other in ((store, {"b": 2}), ({"b": 2}, store), (store, store), (view, {}), (store.sub("a"), {})):
            with pytest.raises(TypeError, match=r"write `dict\(store\) \| other`"):
                one | other
    assert dict(store) | {"b": 2} == {"a": 1, "b": 2}
    assert list(reversed(store)) == ["a"]


def test_a_with_block_of_a_closed_store_raises_at_its_beginning(opener: Any) -> None:
    with opener() as store:
        store["a"] = 1
    with pytest.raises(tiered.ClosedError), store:
        raise AssertionError("entered")


def test_the_class_takes_what_open_takes(tmp_path: Path) -> None:
    with tiered.Store[str, int](tmp_path / "s", memory="1MB", helper=False, default_ttl=5) as store:
        store["a"] = 1
        assert store.config_get("default_ttl") == {"default_ttl": 5.0}
    with tiered.Store(tmp_path / "s", "r", lock_timeout=1) as store:
        assert store["a"] == 1
    with pytest.raises(tiered.ConfigError, match="no setting 'memori'"):
        tiered.Store(tmp_path / "s", memori="1MB")


def test_copies_are_read_only_handles_on_the_same_store(opener: Any) -> None:
    store = opener()
    store["a"] = [1]
    for copied in (copy.copy(store), copy.deepcopy(store), copy.deepcopy({"in": [store]})["in"][0]):
        assert copied["a"] == [1]
        store["a"] = [1]
        assert copied["a"] == [1]
        with pytest.raises(tiered.ReadOnlyError):
            copied["a"] = 2
        copied.close()


@pytest.mark.parametrize("text", ["ab", b"ab"])
def test_one_text_is_no_iterable_of_keys(opener: Any, text: Any) -> None:
    store = opener()
    store.update({"a": 1, "b": 2})
    with store.transaction() as txn, store.view() as view:
        for mapping in (store, txn, view, store.sub("part"), view.sub("part")):
            for name in ("get_many", "delete_many"):
                if hasattr(mapping, name):
                    with pytest.raises(TypeError, match="is one key: put it into a list"):
                        getattr(mapping, name)(text)
    assert dict(store) == {"a": 1, "b": 2}


def test_len_equals_what_iteration_yields_expired_keys_excluded(opener: Any, clock: Any) -> None:
    store = opener(clock=clock, stepwise=True)
    store.update(dict.fromkeys(range(10)))
    store.set_many(dict.fromkeys("abc"), ttl=5)
    store.save()
    store.set("d", 1, ttl=5)
    assert len(store) == len(list(store)) == 14
    clock.sleep(6)
    assert len(store) == len(list(store)) == 10


def test_writes_never_look_in_the_cold_tier_for_its_sake(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opener(stepwise=True)
    store["k"] = 1
    store.save()
    for name in ("get", "read", "begin"):
        monkeypatch.setattr(type(store._engine.cold), name, None)
    store["k"] = 2
    store["new"] = 3
    store.set_many({"k": 4, "newer": 5})
    monkeypatch.undo()
    assert len(store) == 3


def test_len_costs_a_look_into_the_cold_tier_for_each_dirty_key_and_no_more(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(stepwise=True)
    store.update(dict.fromkeys(range(1000)))
    store.save()
    store.update(dict.fromkeys(range(990, 1020)))
    looks: list[bytes] = []
    real = Reader.newest
    monkeypatch.setattr(Reader, "newest", lambda self, key: (looks.append(key), real(self, key))[1])
    monkeypatch.setattr(Reader, "scan", None)
    assert len(store) == 1020
    assert len(looks) == 30


def test_an_omitted_ttl_is_the_default_and_none_is_never(opener: Any) -> None:
    store = opener(default_ttl=100)
    store["default"] = 1
    store.set("never", 1, ttl=None)
    assert (99 < store.ttl("default") <= 100, store.ttl("never")) == (True, None)


def test_assignment_replaces_the_ttl_and_incr_and_edit_keep_it(opener: Any) -> None:
    store = opener()
    store.set("n", 1, ttl=100)
    store.set("list", [], ttl=100)
    store.incr("n")
    with store.edit("list") as value:
        value.append(1)
    assert 99 < store.ttl("n") <= 100
    assert 99 < store.ttl("list") <= 100
    store["n"] = 5
    assert store.ttl("n") is None


def test_ttl_gives_seconds_or_none_and_a_key_error_if_the_key_is_absent(opener: Any, clock: Any) -> None:
    store = opener(clock=clock)
    store.set("some", 1, ttl=100)
    store["always"] = 1
    clock.sleep(0.25)
    assert (store.ttl("some"), store.ttl("always")) == (99.75, None)
    with pytest.raises(KeyError, match="absent"):
        store.ttl("absent")
    clock.sleep(100)
    with pytest.raises(KeyError, match="some"):
        store.ttl("some")


@dataclass
class Point:
    x: int


class Pair(NamedTuple):
    left: int


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize("value", [Point(1), Pair(1), Colour.RED], ids=lambda value: type(value).__name__)
def test_an_unregistered_dataclass_namedtuple_or_enum_is_told_the_line_that_registers_it(
    opener: Any, value: Any
) -> None:
    with pytest.raises(TypeError, match=rf'@tiered\.register\("{type(value).__name__}"\)'):
        opener()["k"] = value


def test_registering_makes_a_dataclass_a_namedtuple_and_an_enum_value_types(opener: Any) -> None:
    @tiered.register("everyday.place")
    @dataclass
    class Place:
        name: str

    @tiered.register("everyday.span")
    class Span(NamedTuple):
        first: int
        last: int

    @tiered.register("everyday.size")
    class Size(enum.Enum):
        BIG = "big"

    value = [Place("Bonn"), Span(1, 2), Size.BIG]
    opener()["k"] = value
    opener().save()
    found = opener()["k"]
    assert found == value
    assert [type(one) for one in found] == [Place, Span, Size]


def test_a_registered_type_unknown_at_read_is_named(opener: Any, tmp_path: Path) -> None:
    program = """
        import dataclasses, sys, tiered
        @tiered.register("everyday.box")
        @dataclasses.dataclass
        class Box:
            size: int
        with tiered.open(sys.argv[1]) as store:
            store["box"] = Box(3)
            assert store["box"] == Box(3)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "store.tiered")], check=True)
    with pytest.raises(tiered.UnknownTypeError, match=r"everyday\.box"):
        opener()["box"]


def test_handles_pickle_as_path_and_settings_and_arrive_read_only(opener: Any) -> None:
    store = opener()
    store["k"] = [1]
    with pickle.loads(pickle.dumps(store)) as arrived:
        assert (arrived.path, arrived["k"]) == (store.path, [1])
        with pytest.raises(tiered.ReadOnlyError):
            arrived["k"] = 2


def in_child(step: Any) -> str:
    """What `step` returns in a forked child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            said = repr(step())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as lines:
        said = lines.read()
    os.waitpid(pid, 0)
    return said


def test_a_read_only_handle_reopens_itself_after_fork(opener: Any) -> None:
    opener()["k"] = 1
    reader = opener(flag="r")
    opener().save()
    assert in_child(lambda: reader["k"]) == "1"
    assert reader["k"] == 1


def test_a_writing_handle_raises_forked_error_with_the_fix(opener: Any) -> None:
    store = opener()
    store["k"] = 1
    said = in_child(lambda: store["k"])
    assert said.startswith("ForkedError")
    assert "in the child, open it again with tiered.open(path, flag='r')" in said
    assert store["k"] == 1


def test_opening_a_path_already_open_gives_another_handle_on_the_same_engine_counted(opener: Any) -> None:
    first = opener()
    second = tiered.open(first.path)
    second["k"] = 1
    assert first["k"] == 1
    second.close()
    assert first["k"] == 1


def test_differing_settings_raise(opener: Any) -> None:
    store = opener(memory="2MB")
    with pytest.raises(tiered.ConfigError, match="memory"):
        tiered.open(store.path, memory="3MB")
    tiered.open(store.path, memory="2MB").close()


def test_open_can_wait_for_the_lock_and_locked_error_names_host_pid_command_since_when(tmp_path: Path) -> None:
    path = str(tmp_path / "store.tiered")
    program = "import sys, time, tiered; s = tiered.open(sys.argv[1]); print(1, flush=True); time.sleep(0.7); s.close()"
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(tiered.LockedError) as caught:
            tiered.open(path)
        for part in (os.uname().nodename, str(other.pid), "time.sleep", " since "):
            assert part in str(caught.value)
        tiered.open(path, lock_timeout=20).close()


def test_an_explicit_argument_beats_a_remembered_setting_beats_the_default_and_memory_is_not_remembered(
    opener: Any,
) -> None:
    opener(compression="none", default_ttl=5, memory="2MB").close()
    store = opener(default_ttl=7, memory="3MB")
    found = store.config_get()
    assert (found["compression"], found["default_ttl"], found["durability"]) == ("none", 7, "everysec")
    assert found["memory"] == 3 << 20


def test_settings_changed_at_run_time_travel_through_the_journal(opener: Any, tmp_path: Path) -> None:
    store = opener(stepwise=True, save="")
    store.config_set("default_ttl", 9)
    assert store.stats().last_sequence == 1
    # As a program leaves it that is killed now: no checkpoint was made.
    shutil.copytree(store.path, tmp_path / "killed")
    assert store.stats().checkpoints == 0
    with tiered.open(tmp_path / "killed", helper=False) as killed:
        assert killed.config_get("default_ttl") == {"default_ttl": 9}
    with tiered.open(store.path, "r") as reader:
        assert reader.config_get("default_ttl") == {"default_ttl": 9}


def test_flag_n_and_force_refuse_a_directory_that_is_not_a_store(opener: Any, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("text")
    opener().snapshot(tmp_path / "some.tsnap")
    for replace in (
        lambda: tiered.open(tmp_path / "other", "n"),
        lambda: tiered.restore(tmp_path / "some.tsnap", tmp_path / "other", force=True),
    ):
        with pytest.raises(tiered.NotAStoreError):
            replace()
    assert [(path.name, path.read_text()) for path in (tmp_path / "other").iterdir()] == [("precious", "text")]


def test_a_store_collected_unclosed_warns_and_loses_nothing(tmp_path: Path) -> None:
    store = tiered.open(tmp_path / "store.tiered", helper=False)
    store["k"] = 1
    with pytest.warns(ResourceWarning, match="unclosed store"):
        del store
        gc.collect()
    with tiered.open(tmp_path / "store.tiered") as store:
        assert store["k"] == 1


def test_calls_wait_for_no_disk_and_no_other_process_so_they_are_short_enough_for_an_event_loop(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(helper=True)
    store.update((number, {"n": [number]}) for number in range(5000))
    store.save()
    store.set("list", [0], ttl=100)
    store["n"] = 1
    waits: list[str] = []

    def watched(module: Any, name: str) -> None:
        real = getattr(module, name)

        def called(*args: Any, **named: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                waits.append(name)
            return real(*args, **named)

        monkeypatch.setattr(module, name, called)

    for module, name in ((os, "fdatasync"), (os, "fsync"), (time, "sleep"), (threading.Condition, "wait")):
        watched(module, name)

    async def work() -> None:
        for number in range(0, 5000, 50):
            assert store[number] == {"n": [number]}
            store[number] = number
            store.set(number, number, ttl=50)
            assert (number in store, store.get(number), store.ttl(number) <= 50) == (True, number, True)
            assert store.pop(number) == number
            store.setdefault(number, 1)
            store.incr(number, 2)
            del store[number]
        store.touch("list", 50)
        store.persist("list")
        with store.edit("list") as value:
            value.append(1)
        with store.transaction() as txn:
            txn["n"] += 1
        store.transact(lambda txn: txn.incr("n"))
        with store.view() as view:
            assert view["n"] == 3
        store.set_many({1: 1, 2: 2})
        store.update({3: 3})
        assert store.get_many([1, 2, 3]) == {1: 1, 2: 2, 3: 3}
        assert store.delete_many([1, 2]) == 2
        assert next(iter(store.keys(prefix="l"))) == "list"
        store.sub("part")["a"] = 1
        store.explain("n"), store.config_get(), repr(store), store.memory_stats()

    asyncio.run(work())
    assert waits == []
    store.sync()
    assert waits  # One of the few that wait.


def test_the_calls_that_may_take_long_work_in_another_thread_of_an_event_loop(opener: Any, tmp_path: Path) -> None:
    store = opener()

    async def work() -> None:
        for number in range(20):
            store[number] = number
        for call in (store.save, store.sync, store.compact, store.check, store.stats, store.reclaim, store.refresh):
            await asyncio.to_thread(call)
        assert await asyncio.to_thread(len, store) == 20
        await asyncio.to_thread(store.snapshot, tmp_path / "one.tsnap")
        assert await asyncio.to_thread(tiered.verify, tmp_path / "one.tsnap") == []
        assert (await asyncio.to_thread(tiered.restore, tmp_path / "one.tsnap", tmp_path / "restored")).records == 20
        await asyncio.to_thread(store.clear)
        await asyncio.to_thread(store.update, {number: number for number in range(20)})
        await asyncio.to_thread(store.close)

    asyncio.run(work())
    assert dict(opener()) == {number: number for number in range(20)}


def test_verify_reads_all_bytes_of_a_file_or_store(opener: Any, tmp_path: Path) -> None:
    values = {number: random.Random(number).randbytes(300) for number in range(40)}
    store = opener(compression="none")
    store.update(values)
    store.snapshot(tmp_path / "one.tsnap")
    path = Path(store.path)
    store.close()
    data = next(path.glob("cold-*/data.mdb"))
    for file, subject in ((data, path), (tmp_path / "one.tsnap", tmp_path / "one.tsnap")):
        assert tiered.verify(subject) == []
        whole = file.read_bytes()
        for number, value in values.items():
            at = whole.index(value) + 7 * number
            with open(file, "r+b") as damaged:
                damaged.seek(at)
                damaged.write(bytes([whole[at] ^ 1]))
            assert tiered.verify(subject) != [], (file, number)
            file.write_bytes(whole)
        assert tiered.verify(subject) == []


def test_check_tests_the_invariants_of_an_open_store(opener: Any) -> None:
    store = opener()
    store["k"] = 1
    assert store.check() == []
    with upset_accounts(store._engine.hot):
        assert [finding.what for finding in store.check()] == ["accounting drift"]


def test_get_has_a_signature_that_help_shows() -> None:
    parameters = list(inspect.signature(tiered.Store.get).parameters.values())
    assert [parameter.name for parameter in parameters] == ["self", "key", "default", "promote"]
    assert [parameter.kind for parameter in parameters[1:]] == [
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    ]
    assert parameters[2].default is None


def test_a_time_to_live_may_be_a_timedelta_wherever_one_is_given(opener: Any) -> None:
    store, hour = opener(stepwise=True, default_ttl=timedelta(days=2)), timedelta(hours=1)
    store["default"] = 1
    assert 172_000 < store.ttl("default") <= 172_800
    assert store.config_get("default_ttl") == {"default_ttl": 172_800}
    store.set("set", 1, ttl=hour)
    store.set_many({"many": 1}, ttl=hour)
    store.sub("a").set("sub", 1, ttl=hour)
    with store.transaction() as txn:
        txn.set("txn", 1, ttl=hour)
    store["touched"] = 1
    store.touch("touched", hour)
    for key in ("set", "many", ("a", "sub"), "txn", "touched"):
        assert 3500 < store.ttl(key) <= 3600, key
    with pytest.raises(tiered.ConfigError):
        store.set("set", 1, ttl=timedelta(0))


def test_an_asynchronous_store_used_before_it_was_awaited_says_how_to_open_it(quick_path: Path) -> None:
    with pytest.raises(AttributeError, match=r"no .get. before the store is open: await tiered\.aio\.open"):
        tiered.aio.open(quick_path / "store.tiered").get("key")  # type: ignore[attr-defined]


def test_a_value_of_an_unsupported_type_is_refused_in_words_that_name_register(opener: Any) -> None:
    class Point:
        pass

    with pytest.raises(TypeError, match=r"Point cannot be kept.*types registered with tiered\.register"):
        opener().set("key", Point())


# Keys


def test_keys_are_str_bytes_int_and_tuples_of_them_and_iterate_in_the_order_of_their_bytes(opener: Any) -> None:
    store = opener()
    expected = [b"", b"a", b"a\0", b"b", "", "a", "b", "é", (), ("user",), ("user", 7), ("user", 42, "name"), ("v",)]
    expected += [-(2**70), -256, -1, 0, 1, 9, 10, 255, 256, 2**70]
    store.update({key: repr(key) for key in random.Random(1).sample(expected, len(expected))})
    assert list(store) == expected
    store.save()
    assert list(store.items()) == [(key, repr(key)) for key in expected]
    assert [type(key) for key in store] == [type(key) for key in expected]


def test_keys_of_up_to_480_bytes_are_in_exact_order_and_longer_ones_in_that_of_their_first_bytes(opener: Any) -> None:
    store = opener()
    exact = ["x" * 478, "x" * 478 + "a", "x" * 478 + "b", "x" * 479]  # Encoded, one byte more.
    url = "https://example.org/" + "path/" * 200
    longer = [url + str(number) for number in range(10)]
    store.update({key: key for key in [*longer, *reversed(exact), "http", "https~", "y" * 20_000]})
    for _ in range(2):
        assert [key for key in store if key[0] == "x"] == exact
        assert [key for key in store if not key.startswith(url)] == ["http", "https~", *exact, "y" * 20_000]
        assert list(store)[1:11] != longer  # Alike in their first bytes: together, in an order of their own.
        assert sorted(list(store)[1:11]) == longer
        assert store.get_many(longer) == {key: key for key in longer}
        store.save()


@pytest.mark.parametrize("place", ["hot", "dirty", "cold"])
def test_a_longer_key_is_compared_in_full_when_it_is_read(
    opener: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    import hashlib

    real = hashlib.blake2b
    # The same digest for every key.
    monkeypatch.setattr(hashlib, "blake2b", lambda data=b"", *, digest_size: real(b"", digest_size=digest_size))
    one, other = "k" * 600 + "one", "k" * 600 + "other"
    store = opener(stepwise=True)
    store[one] = 1
    if place == "cold":
        store.save()
    if place != "hot":
        store._engine.hot.clear()
    assert other not in store
    assert store[one] == 1
    assert store.get(other) is None
    assert store.get_many([other, one]) == {one: 1}
    with pytest.raises(KeyError), store.view() as view:
        view[other]
    with pytest.raises(KeyError):
        del store[other]
    with pytest.raises(KeyError):
        store.pop(other)
    assert dict(store) == {one: 1}
    store.close()


@pytest.mark.parametrize(
    "key",
    [None, 1.5, ["a"], {"a"}, object(), ("a", None), float("nan"), bytearray(b"a")],
    ids=lambda key: type(key).__name__,
)
def test_a_key_of_another_type_is_a_clear_error_when_it_is_used(opener: Any, key: Any) -> None:
    store = opener()
    for use in (
        lambda: store.__setitem__(key, 1),
        lambda: store[key],
        lambda: key in store,
        lambda: store.get(key),
        lambda: store.pop(key, None),
        lambda: store.get_many([key]),
        lambda: store.set_many([(key, 1)]),
        lambda: list(store.keys(start=key)) if key is not None else store.ttl(key),
    ):
        with pytest.raises(TypeError, match=r"keys are str, bytes, int or tuples of them"):
            use()


# Values


VALUES: list[Any] = [
    None, True, 0, -(2**200), 0.1, float("inf"), -0.0, "", "text\ud800", b"\0", [1, [None]], (1, (2,)), {1, "a"},
    frozenset({(1, 2)}), {"a": 1, 2: b"b", (3,): None, None: 4, 1.5: 5, frozenset({6}): 6, Decimal(7): 7},
    datetime(2024, 2, 29, 12, 30, 1, 5, ZoneInfo("Europe/Berlin"), fold=1), datetime(1, 1, 1), date(9999, 12, 31),
    time_of_day(23, 59, 59, 999999, timezone(timedelta(hours=-3))), timedelta(days=-1, microseconds=1), Decimal("1.50"),
    UUID(int=7), 1.5 - 2j, np.float32(1.5), np.datetime64("2024-01-01"), np.arange(12, dtype=">i2").reshape(3, 4).T,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_equal_and_of_its_type_from_every_tier_and_after_a_restart(opener: Any, value: Any) -> None:
    def look(store: Any) -> None:
        with store.view() as view, store.transaction() as txn:
            for mapping in (store, view, txn, dict(store.items()), store.get_many(["k", "in"])):
                for found in (mapping["k"], mapping["in"]["list"][0], mapping["in"]["tuple"][0]):
                    assert type(found) is type(value)
                    assert repr(found) == repr(value)  # Also signs of zero, zones, order and scale.
                    assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value

    store = opener(stepwise=True)
    store["k"] = value
    store["in"] = {"list": [value], "tuple": (value,)}
    look(store)
    store._engine.hot.clear()
    assert store.explain("k").tiers == ("write buffer",)
    look(store)
    store.save()
    store._engine.hot.clear()
    assert store.explain("k").tiers == ("cold",)
    look(store)
    store.close()
    look(opener(stepwise=True))


def test_arrays_come_back_read_only_without_a_copy_and_those_of_objects_are_refused(opener: Any) -> None:
    store = opener(stepwise=True)
    with pytest.raises(TypeError, match="refers to Python objects"):
        store["objects"] = np.array([object()])
    store["k"] = np.arange(1000.0)
    for settle in (lambda: None, store._engine.hot.clear, store.save, store._engine.hot.clear):
        settle()
        found = store["k"]
        with pytest.raises(ValueError, match="read-only"):
            found[0] = 1
        below = found
        while isinstance(below, np.ndarray):
            below = below.base
        # What it lies on are the bytes that were read.
        assert isinstance(below, (bytes, memoryview))
        assert np.shares_memory(np.frombuffer(below, "u1"), found)
        assert np.array_equal(found, np.arange(1000.0))


class Word(str):
    __slots__ = ()


class Number(int):
    pass


class Table(dict[Any, Any]):
    pass


class Row(list[Any]):
    pass


@pytest.mark.parametrize("value", [Word("a"), Number(1), Table(a=1), Row([1])], ids=lambda value: type(value).__name__)
def test_a_subclass_is_kept_exactly_or_refused_and_never_flattened(opener: Any, value: Any) -> None:
    store = opener()
    store["k"] = "before"
    kind = type(value)
    for tried in (value, [value], {"a": (value,)}):
        with pytest.raises(TypeError, match=rf"{kind.__name__} cannot be kept .*register"):
            store["k"] = tried
    assert store["k"] == "before"
    base = kind.__mro__[1]
    tiered.register(f"everyday.{kind.__name__}", kind, pack=base, unpack=kind)
    store["k"] = [value]
    store.save()
    store._engine.hot.clear()
    assert (type(store["k"][0]), store["k"]) == (kind, [value])


def test_a_value_above_1_gib_is_refused_by_name(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert codec.VALUE_BYTES_MAX == 1 << 30
    store = opener()
    value = bytes((1 << 30) + 1)  # Of pages that are not there before they are written.
    with pytest.raises(tiered.ValueTooLargeError, match=r"1 GiB|1,073,741,824"):
        store["k"] = value
    assert "k" not in store


# Iteration


def test_iteration_reads_in_pages_with_short_transactions_and_view_is_for_a_fixed_moment(opener: Any) -> None:
    store = opener(stepwise=True)
    store.update(dict.fromkeys(range(2000), "old"))
    store.save()
    with store.view() as view:
        found = []
        for number, (key, _) in enumerate(store.items()):
            found.append(key)
            assert store._engine.cold.readers() == 1  # The view's.
            if number % 100 == 0:
                store[number + 1000] = "new"
                del store[5000 if 5000 in store else 1999 - number // 100]
                store[5000] = "new"
        assert found == sorted(set(found))
        assert {key for key in range(2000) if store.get(key) is not None} <= set(found)
        assert dict(view) == dict.fromkeys(range(2000), "old")
    assert store._engine.cold.readers() == 0
