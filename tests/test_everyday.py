"""What everyday Python expects of a store, a test for each sentence; the depths are in the tests of the modules."""

from __future__ import annotations

import asyncio
import enum
import gc
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pytest
from contracts import upset_accounts

import tiered


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


def test_equality_compares_lengths_then_streams(opener: Any) -> None:
    store = opener()
    store.update({"a": 1, "b": [2]})
    assert store == {"b": [2], "a": 1}
    assert store != {"a": 1}
    assert store != {"a": 1, "b": [3]}

    class Longer(dict[Any, Any]):
        def __getitem__(self, key: Any) -> Any:
            raise AssertionError("looked at, though it is longer")

    assert store != Longer({"a": 1, "b": 2, "c": 3})


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
    # As many were put there as were taken.
    assert sum(number >= 0 for number in won) >= 200
    assert not list(store.keys(prefix=("first",)))


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
    with pytest.raises(KeyError):
        store.ttl("absent")


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
    assert "tiered.open(" in said or "open" in said
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


def test_settings_changed_at_run_time_travel_through_the_journal(opener: Any) -> None:
    store = opener(stepwise=True, save="")
    store.config_set("default_ttl", 9)
    assert store.stats().last_sequence == 1
    store.close()
    assert opener().config_get("default_ttl") == {"default_ttl": 9}


def test_flag_n_refuses_a_directory_that_is_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("text")
    with pytest.raises(tiered.NotAStoreError):
        tiered.open(tmp_path, "n")
    assert (tmp_path / "precious").read_text() == "text"


def test_a_store_collected_unclosed_warns_and_loses_nothing(tmp_path: Path) -> None:
    store = tiered.open(tmp_path / "store.tiered", helper=False)
    store["k"] = 1
    with pytest.warns(ResourceWarning, match="unclosed store"):
        del store
        gc.collect()
    with tiered.open(tmp_path / "store.tiered") as store:
        assert store["k"] == 1


def test_the_calls_that_may_take_long_work_in_another_thread_of_an_event_loop(opener: Any) -> None:
    store = opener()

    async def work() -> None:
        for number in range(20):
            store[number] = number
        for call in (store.save, store.sync, store.compact, store.check, store.stats, lambda: len(store)):
            await asyncio.to_thread(call)
        await asyncio.to_thread(store.close)

    asyncio.run(work())
    assert dict(opener()) == {number: number for number in range(20)}


def test_check_tests_the_invariants_of_an_open_store(opener: Any) -> None:
    store = opener()
    store["k"] = 1
    assert store.check() == []
    with upset_accounts(store._engine.hot):
        assert [finding.what for finding in store.check()] == ["accounting drift"]


def test_get_has_a_signature_that_help_shows() -> None:
    parameters = list(inspect.signature(tiered.Store.get).parameters.values())
    assert [parameter.name for parameter in parameters] == ["self", "key", "default"]
    assert [parameter.kind for parameter in parameters[1:]] == [
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
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
