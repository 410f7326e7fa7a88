"""Views: one moment of all tiers, whatever happens afterwards; what they keep is counted, bounded and given back."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from contracts import evict, merge, set_aside
from programs import succeed
from test_threads import Crowd

import tiered
from tiered import ClosedError, ConfigError, ForkedError, ReentrantError, ViewExpiredError, cold
from tiered.clock import ManualClock
from tiered.moment import Moment
from tiered.tiers import PINNED_SHARE
from tiered.view import View

CHANGES: dict[str, Callable[[Any], Any]] = {
    "set": lambda store: [store.set(key, "changed") for key in KEYS],
    "set many times": lambda store: [store.set(key, number) for number in range(3) for key in KEYS],
    "set_many": lambda store: store.set_many(dict.fromkeys(KEYS, "changed")),
    "set_many twice the same key": lambda store: store.set_many([(key, number) for key in KEYS for number in (1, 2)]),
    "set with a ttl": lambda store: [store.set(key, "changed", ttl=1) for key in KEYS],
    "touch": lambda store: [store.touch(key, 1) for key in KEYS],
    "delete": lambda store: [store.pop(key) for key in KEYS],
    "delete_many": lambda store: store.delete_many(KEYS),
    "delete and set": lambda store: [(store.pop(key), store.set(key, "again")) for key in KEYS],
    "clear": lambda store: store.clear(),
    "clear and set": lambda store: (store.clear(), store.update(dict.fromkeys(KEYS, "again"))),
    "transaction": lambda store: store.transact(
        lambda txn: (txn.update(dict.fromkeys(KEYS[5:], "changed")), txn.delete_many(KEYS[:5]))
    ),
    "new keys": lambda store: store.update({("new", number): number for number in range(50)}),
    "nothing": lambda store: None,
}
AFTERWARDS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda store: None,
    "eviction": evict,
    "set aside": set_aside,
    "checkpoint": lambda store: store.save(),
    "merge": lambda store: (store.save(), merge(store)),
    "compaction": lambda store: store.compact(),
    "checkpoint, again, checkpoint": lambda store: (store.save(), store.update(dict.fromkeys(KEYS, 0)), store.save()),
}
KEYS = [*range(12), "a", b"a", ("a", 1), "long" * 200, "long" * 200 + "!"]


def spread(store: Any) -> dict[Any, Any]:
    """Keys with versions in every tier; what a reader finds."""
    expected = {key: ["value", repr(key)] for key in KEYS}
    for moved, move in enumerate((lambda: (store.save(), merge(store)), store.save, lambda: set_aside(store))):
        for key in KEYS[moved::2]:
            store[key] = "older"
        store["deleted"] = 1
        move()
    for number, key in enumerate(KEYS):
        store[key] = expected[key]
        if number == 3:
            store.save()
            merge(store)
        elif number == 7:
            store.save()
        elif number == 10:
            set_aside(store)
    del store["deleted"]
    evict(store)
    return expected


def shows(view: Any, expected: dict[Any, Any]) -> None:
    """Every way of looking at a view gives the same."""
    assert len(view) == len(expected)
    assert dict(view.items()) == expected
    assert view == expected
    assert list(view.keys(reverse=True)) == list(reversed(view)) == list(view)[::-1]
    assert set(view) == expected.keys()
    for key in [*KEYS, "deleted", ("new", 1), "none"]:
        assert (key in view) == (key in expected)
        assert view.get(key, "none") == expected.get(key, "none")
    assert view.get_many([*KEYS, "none"]) == {key: expected[key] for key in KEYS if key in expected}
    assert dict(view.items(start=3, stop=7)) == {key: expected[key] for key in range(3, 7) if key in expected}
    assert list(view.keys(prefix=("a",))) == [key for key in [("a", 1)] if key in expected]
    assert list(view.values(start=9, reverse=True)) == [expected[key] for key in (11, 10, 9) if key in expected]


@pytest.mark.parametrize("afterwards", AFTERWARDS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_view_stays_as_it_was(opener: Any, clock: ManualClock, change: str, afterwards: str) -> None:
    store = opener(stepwise=True, clock=clock)
    expected = spread(store)
    with store.view() as view:
        CHANGES[change](store)
        if change != "nothing" and afterwards == "nothing":
            shows(view, expected)
        AFTERWARDS[afterwards](store)
        store.tick()
        clock.sleep(2)
        store.tick()
        shows(view, expected)
        CHANGES["set"](store)
        shows(view, expected)
    assert all(buffer.pins == set() and buffer.replaced == {} for buffer in store._engine.buffers)


def test_views_of_several_moments_are_open_at_once(opener: Any) -> None:
    store = opener(stepwise=True, memory="8MB")
    uniform, model = random.Random(3), dict[Any, Any]()
    views: list[tuple[Any, dict[Any, Any]]] = []
    for step in range(400):
        key, what = uniform.randrange(20), uniform.randrange(30)
        if what < 18:
            store[key] = model[key] = step
        elif what < 22:
            assert store.pop(key, None) == model.pop(key, None)
        elif what < 24:
            pairs = {uniform.randrange(20): (step, number) for number in range(4)}
            store.update(pairs)
            model.update(pairs)
        elif what == 24:
            set_aside(store)
        elif what == 25:
            store.save()
        elif what == 26 and step % 3 == 0:
            store.clear()
            model.clear()
        elif what == 27 and views:
            view, _ = views.pop(uniform.randrange(len(views)))
            view.close()
        else:
            views.append((store.view(), dict(model)))
        for view, expected in uniform.sample(views, min(len(views), 2)):
            assert dict(view.items()) == expected
            assert len(view) == len(expected)
            assert view.get(key, "none") == expected.get(key, "none")
    assert len(views) > 5
    for view, expected in views:
        assert dict(view) == expected
        view.close()


def test_time_stands_still_in_a_view(opener: Any, clock: ManualClock) -> None:
    store = opener(stepwise=True, clock=clock)
    for key, ttl in (("cold", 10), ("buffer", 10), ("gone", 1)):
        store.set(key, key, ttl=ttl)
        if key == "cold":
            store.save()
    clock.sleep(2)
    expected = {"cold": "cold", "buffer": "buffer"}
    with store.view() as view:
        assert dict(view) == expected
        for seconds in (5, 5, 1000):
            clock.sleep(seconds / 1000 if seconds == 1000 else seconds)
            store.tick()
            assert dict(view) == expected
            assert len(view) == 2
            assert view.ttl("cold") == view.ttl("buffer") == 8
        assert "gone" not in view
        with pytest.raises(KeyError):
            view.ttl("gone")
        store.persist("cold")
        assert dict(store) == {}
    store["ever"] = 1
    with store.view() as view:
        assert view.ttl("ever") is None


def test_a_view_is_read_only_and_lists_what_a_mapping_has(store: Any) -> None:
    store.update({("users", 1): "a", ("users", 2): "b", "x": 1})
    with store.view() as view:
        with pytest.raises(TypeError):
            view["a"] = 1
        assert view.sub("users") == {1: "a", 2: "b"}
        assert view == store
        assert view
        with pytest.raises(KeyError, match="no"):
            view["no"]
        assert "secret" not in repr(view)
        assert store.path in repr(view)


def test_values_read_from_a_view_are_copies(store: Any) -> None:
    store["k"] = [1]
    with store.view() as view:
        view["k"].append(2)
        assert view["k"] == [1]


def test_reading_a_view_leaves_the_hot_tier_as_it_is(opener: Any) -> None:
    store = opener(stepwise=True)
    store.update({number: [number] for number in range(20)})
    store.save()
    evict(store)
    with store.view() as view:
        assert len(dict(view)) == 20
        assert view[3] == [3]
        assert store.stats().hot_records == 0
        assert store.stats().promotions == 0


# The end


def test_a_closed_view_raises_closed_error(store: Any) -> None:
    store["k"] = 1
    with store.view() as view:
        iterator = iter(view.items())
        assert next(iterator) == ("k", 1)
    view.close()
    uses: list[Callable[[], Any]] = [
        lambda: view["k"],
        lambda: view.get("k"),
        lambda: "k" in view,
        lambda: len(view),
        lambda: list(view),
        lambda: view.get_many(["k"]),
        lambda: view.ttl("k"),
    ]
    for use in uses:
        with pytest.raises(ClosedError, match="view is closed"):
            use()
    assert "closed" in repr(view)


def test_closing_the_store_ends_its_views(opener: Any) -> None:
    store = opener(stepwise=True)
    store["k"] = 1
    view = store.view()
    store.close()
    assert view.buffers == ()
    for use in (lambda: view["k"], lambda: len(view), lambda: list(view), store.view):
        with pytest.raises(ClosedError):
            use()
    view.close()


def test_an_iteration_over_an_ended_view_raises_at_its_next_page(store: Any) -> None:
    store.update({number: number for number in range(1000)})
    view = store.view()
    found = []
    with pytest.raises(ClosedError):  # noqa: PT012
        for key in view:
            found.append(key)
            view.close()
    assert found == list(range(len(found)))
    assert 0 < len(found) < 1000


def test_a_view_past_its_age_raises_and_a_tick_lets_go_of_what_it_keeps(opener: Any, clock: ManualClock) -> None:
    store = opener(stepwise=True, clock=clock)
    store["k"] = 1
    view = store.view(max_age=10)
    assert view.age_seconds == 0
    clock.sleep(10)
    assert view["k"] == 1
    store.save()
    assert view.buffers
    clock.sleep(0.5)
    for use in (lambda: view["k"], lambda: len(view), lambda: list(view)):
        with pytest.raises(ViewExpiredError, match="max_age"):
            use()
    assert store.stats().view_count == 1
    store.tick()
    assert view.buffers == ()
    assert store.stats().view_count == 0
    assert store._engine.cold.readers() == 0
    with pytest.raises(ViewExpiredError, match="max_age"):
        view["k"]
    view.close()
    with store.view() as fresh:
        clock.sleep(599)
        assert fresh["k"] == 1
        clock.sleep(2)
        with pytest.raises(ViewExpiredError):
            fresh["k"]


def test_a_view_of_a_read_only_store_shows_its_moment_and_is_ended_by_age_as_well(
    opener: Any, clock: ManualClock
) -> None:
    program = """
        import sys, tiered
        with tiered.open(sys.argv[1], flag="w", helper=False) as store:
            store["k"] = int(sys.argv[2])
            store.save()
            if sys.argv[3:]:
                store.compact()
    """
    store = opener()
    store["k"] = 1
    store.close()
    reader = opener(flag="r", clock=clock, stepwise=True)
    with reader.view(max_age=5) as view:
        succeed(program, reader.path, 2)
        reader.tick()
        assert (view["k"], reader["k"], dict(view)) == (1, 2, {"k": 1})
        succeed(program, reader.path, 3, "compact")
        reader.tick()
        assert (view["k"], reader["k"], dict(view)) == (1, 3, {"k": 1})
        clock.sleep(6)
        reader.tick()
        assert reader.stats().view_count == 0
        with pytest.raises(ViewExpiredError):
            view["k"]


def test_a_poisoned_store_still_ends_old_views(opener: Any, clock: ManualClock) -> None:
    store = opener(stepwise=True, clock=clock)
    store["k"] = 1
    view = store.view(max_age=5)
    store._engine.poison("by a test")
    assert dict(view) == {"k": 1}
    clock.sleep(6)
    store.tick()
    assert view.buffers == ()
    with pytest.raises(tiered.PoisonedError):
        store.close()


@pytest.mark.parametrize("age", [0, -1, float("nan"), "10", None, True])
def test_an_age_that_is_no_number_above_zero_is_a_config_error(store: Any, age: Any) -> None:
    with pytest.raises(ConfigError, match="max_age"):
        store.view(max_age=age)


def test_a_view_cannot_begin_in_the_middle_of_another_operation(store: Any) -> None:
    with store._engine.lock, pytest.raises(ReentrantError):
        store.view()


# What it keeps


def test_what_a_view_keeps_counts_against_the_budget(opener: Any) -> None:
    store = opener(stepwise=True, memory="4MB")
    store.update({number: bytes(1000) for number in range(800)})
    held = store.stats().write_buffer_bytes
    assert held > 100_000
    assert store.stats().view_bytes == 0
    before = store._engine.hot.budget_bytes
    view = store.view()
    assert store.stats().view_bytes == 0, "what the store itself still has is counted there"
    store.save()
    store["k"] = 1
    kept = store.stats().view_bytes
    assert kept >= held
    assert store.memory_stats().view_bytes == kept
    assert store._engine.hot.budget_bytes <= store.config_get("memory")["memory"] - kept
    assert store.memory_stats().accounted_bytes <= 4 << 20
    second = store.view()
    assert store.stats().view_bytes == kept
    assert store.stats().view_count == 2
    view.close()
    assert store.stats().view_bytes == 0
    store.save()
    second.close()
    store["k"] = 2
    assert store._engine.hot.budget_bytes >= before
    assert store.stats().view_count == 0


def test_a_buffer_that_two_views_keep_counts_once(opener: Any) -> None:
    store = opener(stepwise=True, memory="4MB")
    store.update({number: bytes(1000) for number in range(300)})
    held = store.stats().write_buffer_bytes
    assert held > 50_000
    with store.view(), store.view():
        store.save()
        assert held <= store.stats().view_bytes < held * 1.5


def test_positions_kept_for_a_view_are_counted_and_let_go_of(opener: Any) -> None:
    store = opener(stepwise=True, memory="16MB")
    store.update({number: number for number in range(500)})
    buffer = store._engine._active
    with store.view() as view:
        for _ in range(3):
            store.update({number: number for number in range(500)})
        kept = buffer.used_bytes()
        assert len(buffer.replaced) == 500
        assert dict(view) == {number: number for number in range(500)}
    assert buffer.replaced == {}
    assert buffer.used_bytes() < kept - 500 * 100


def test_the_keys_in_order_that_only_a_view_keeps_are_counted(opener: Any) -> None:
    store = opener(stepwise=True, memory="16MB")
    with store.view():
        pass
    views = []
    for step in range(5):
        store.update({(step, number): 1 for number in range(500)})
        views.append(store.view())
        assert len(list(views[-1])) == 500 * (step + 1)
        list(store)
    kept = {id(buffer): buffer for view in views for buffer in view.buffers if buffer not in store._engine.buffers}
    orders = store.stats().view_bytes - sum(buffer.used_bytes() for buffer in kept.values())
    assert orders == sum(view.order_bytes for view in views) >= 2 * 500 * 8
    for view in views:
        view.close()
    assert store.stats().view_bytes == 0


def test_past_its_share_of_the_memory_the_oldest_view_ends(opener: Any) -> None:
    store = opener(stepwise=True, memory="1MB")
    views: list[Any] = []
    highest = 0
    for step in range(40):
        store.update({number: random.Random(step).randbytes(500) for number in range(100)})
        views.append(store.view())
        store.save()
        store["k"] = step
        highest = max(highest, store.stats().view_bytes)
        assert store.memory_stats().accounted_bytes <= 1 << 20
    ended = 0
    for view in views:
        try:
            assert len(view) in (100, 101)
        except ViewExpiredError as error:
            ended += 1
            assert "share of the memory" in str(error)  # noqa: PT017
    assert 10 < ended < 40
    assert highest <= PINNED_SHARE * (1 << 20) + 70_000
    assert [view.buffers == () for view in views] == [True] * ended + [False] * (40 - ended), "the oldest go first"
    for view in views:
        view.close()


def test_views_collected_unclosed_let_go_of_everything(opener: Any, clock: ManualClock) -> None:
    store = opener(stepwise=True, clock=clock, memory="4MB")
    store.update({number: bytes(100) for number in range(100)})
    buffer = store._engine._active
    for _ in range(20):
        view = store.view()
        assert view[1] == bytes(100)
        assert len(list(view)) == 100
    assert len(store._engine.views) <= 3, "a program that closes none must not keep one for each"
    assert len(buffer.pins) == 1
    store.update(dict.fromkeys(range(100), b""))
    del view
    gc.collect()
    assert buffer.pins == set()
    assert store._engine.open_views() == []
    assert store._engine.cold.readers() == 0
    store.save()
    assert store.stats().view_bytes == 0
    assert not os.path.exists(buffer.segment.path)


def test_what_was_kept_for_a_collected_view_does_not_disturb_the_next(opener: Any) -> None:
    store = opener(stepwise=True)
    store.update(a=1, b=1)
    first = store.view()
    store["a"] = 2
    assert first["a"] == 1
    del first
    gc.collect()
    store["a"] = 3
    store["b"] = 3
    with store.view() as second:
        store.update(a=4, b=4, c=4)
        assert dict(second) == {"a": 3, "b": 3}
    assert store._engine._active.replaced == {}


@pytest.mark.parametrize("helper", [False, True], ids=["inline", "helper"])
def test_ten_checkpoints_under_a_view_grow_the_file_and_the_space_is_used_again(opener: Any, helper: bool) -> None:
    store = opener(helper=helper, memory="4MB", save="", compression="none")
    uniform = random.Random(1)

    def load() -> None:
        store.update({number: uniform.randbytes(1000) for number in range(1000)})
        store.save()

    for _ in range(3):
        load()
    quiet = store.stats()
    with store.view() as view:
        expected = dict(view)
        for _ in range(10):
            load()
        grown = store.stats()
        assert grown.view_count == 1
        assert grown.view_seconds > 0
        assert grown.disk_bytes > quiet.disk_bytes + 1_000_000, "what the view sees is not written over"
        # Every page is in use, or free and reported so.
        assert abs(grown.disk_used_bytes + grown.disk_free_bytes - store._engine.cold.file_bytes()) < 1 << 16
        assert grown.disk_free_bytes > quiet.disk_free_bytes
        assert dict(view) == expected
    for _ in range(10):
        load()
    after = store.stats()
    assert after.view_count == 0
    # Ten more checkpoints of a megabyte each; a journal segment or two come and go beside them.
    assert after.disk_bytes <= grown.disk_bytes + (3 << 20), "what the view kept is used again"
    store.compact()
    assert store.stats().disk_bytes < grown.disk_bytes / 2


def test_a_view_survives_compactions_with_other_dictionaries(opener: Any) -> None:
    store = opener(stepwise=True, memory="2MB")
    store.update({number: {"name": f"user {number}", "bio": "reads many books " * 3} for number in range(3000)})
    for _ in range(4):
        store.save()
        store.tick()
    assert store.stats().dictionary_count
    with store.view() as view:
        for _ in range(2):
            store.clear()
            store.update({number: {"other": f"{number}", "text": "something else " * 4} for number in range(3000)})
            store.save()
            for _ in range(4):
                store.tick()
            store.compact()
        store._engine.decompressor.__init__(store._engine._load_dictionary)  # As if none was ever loaded.
        assert view[7] == {"name": "user 7", "bio": "reads many books " * 3}
        assert len(dict(view)) == 3000


# Threads and processes


@pytest.mark.parametrize("helper", [False, True], ids=["inline", "helper"])
def test_many_threads_read_one_view_while_others_write(opener: Any, helper: bool) -> None:
    store = opener(helper=helper, memory="8MB")
    store.update(dict.fromkeys(range(1000), 0))
    crowd = Crowd()
    view = store.view()

    def read() -> None:
        while not crowd.stop.is_set():
            assert set(view.values()) == {0}
            assert len(view) == 1000
            assert view.get_many(range(0, 1000, 100)) == dict.fromkeys(range(0, 1000, 100), 0)

    def write(first: int) -> None:
        step = 0
        while not crowd.stop.is_set():
            step += 1
            store.update(dict.fromkeys(range(first, 1000, 2), step))
            store.update({("new", first, step % 100, number): 1 for number in range(10)})
            if step % 20 == 0:
                store.save()

    for work, arguments in ((read, ()), (read, ()), (write, (0,)), (write, (1,))):
        crowd.add(work, *arguments)
    with crowd.running(2):
        pass
    view.close()


def test_views_opened_beside_writers_always_show_a_whole_batch(opener: Any) -> None:
    store = opener(memory="4MB")
    crowd = Crowd()
    store.set_many(dict.fromkeys(range(50), 0))

    def write() -> None:
        step = 0
        while not crowd.stop.is_set():
            step += 1
            store.set_many(dict.fromkeys(range(50), step))

    def look() -> None:
        while not crowd.stop.is_set():
            with store.view() as view:
                first = set(view.values())
                assert len(first) == 1
                assert {view[number] for number in range(50)} == first

    for work in (write, look, look):
        crowd.add(work)
    with crowd.running(1.5):
        pass


def test_closing_a_view_while_a_thread_reads_it_gives_closed_error_and_no_crash(opener: Any) -> None:
    store = opener(memory="4MB")
    store.update({number: [number] for number in range(2000)})
    store.save()
    for _ in range(20):
        view = store.view()
        begun = threading.Event()
        errors: list[BaseException] = []

        def read(view: Any = view, begun: Any = begun, errors: Any = errors) -> None:
            try:
                while True:
                    for key, value in view.items():
                        assert value == [key]
                        begun.set()
            except BaseException as error:
                errors.append(error)  # noqa: B023

        thread = threading.Thread(target=read)
        thread.start()
        begun.wait(5)
        view.close()
        thread.join(5)
        assert [type(error) for error in errors] == [ClosedError]


def test_a_forked_child_cannot_use_the_view_and_leaves_the_parents_unharmed(tmp_path: Any) -> None:
    program = """
        import gc, os, sys, tiered
        store = tiered.open(sys.argv[1], memory="4MB", helper=False)
        store.update({number: [number] for number in range(500)})
        store.save()
        store.update({number: ["dirty", number] for number in range(0, 500, 2)})
        view = store.view()
        collected = store.view()
        assert store._engine.cold.readers() == 2
        expected = dict(view)
        pid = os.fork()
        if not pid:
            for use in (lambda: view[1], lambda: len(view), lambda: list(view), store.view, lambda: "a" in view,
                        lambda: view.ttl(1), lambda: view.get_many([1]), store.transaction):
                try:
                    use()
                except tiered.ForkedError:
                    continue
                os._exit(1)
            view.close()
            del collected
            gc.collect()
            del view
            gc.collect()
            reader = tiered.open(sys.argv[1], flag="r")
            if len(reader) != 500 or len(reader.view()) != 500:
                os._exit(2)
            reader.close()
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert store._engine.cold.readers() == 2
        for _ in range(5):
            store.update({number: b"x" * 500 for number in range(500)})
            store.save()
        assert dict(view) == expected
        collected.close()
        view.close()
        assert store._engine.cold.readers() == 0
        store.close()
        print("well")
    """
    assert succeed(program, tmp_path / "store") == "well"


def test_a_fork_while_a_thread_reads_a_view_leaves_the_child_free(tmp_path: Any) -> None:
    program = """
        import os, sys, threading, tiered
        store = tiered.open(sys.argv[1], memory="4MB", helper=False)
        store.update({number: [number] for number in range(500)})
        store.save()
        view = store.view()
        view._lock.acquire()
        ready, stop = threading.Event(), threading.Event()
        def hold():
            with store._engine.lock:
                ready.set()
                stop.wait()
        view._lock.release()
        thread = threading.Thread(target=hold)
        thread.start()
        ready.wait()
        pid = os.fork()
        if not pid:
            try:
                view[1]
            except tiered.ForkedError:
                view.close()
                os._exit(0)
            os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        stop.set()
        thread.join()
        store.close()
        print(status)
    """
    assert succeed(program, tmp_path / "store", timeout=20) == "0"


def test_a_view_left_open_at_the_end_of_the_program_does_no_harm(tmp_path: Any) -> None:
    program = """
        import sys, tiered
        store = tiered.open(sys.argv[1])
        store["k"] = 1
        view = store.view()
        txn = store.transaction()
        txn["k"], txn["mine"] = 2, 3
        iterator = iter(view)
        next(iterator)
    """
    succeed(program, tmp_path / "store")
    with tiered.open(tmp_path / "store") as store:
        assert dict(store) == {"k": 1}


def test_forked_error_is_what_a_child_gets_even_from_an_ended_view(store: Any) -> None:
    view = store.view()
    view.close()
    pid = os.fork()
    if not pid:
        try:
            len(view)
        except ForkedError:
            os._exit(0)
        except BaseException:
            os._exit(1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_a_closed_or_collected_view_kept_is_given_back_to_the_hot_tier_by_the_next_tick(opener: Any) -> None:
    store = opener(memory="8MB", stepwise=True, save="")
    engine = store._engine
    for end in ("close", "collect"):
        views = [store.view()]
        store.update(dict.fromkeys(range(50), "v" * 400))
        views.append(store.view())
        store.update(dict.fromkeys(range(50), "w" * 400))
        assert engine._active.replaced
        if end == "close":
            while views:
                views.pop().close()
        views.clear()
        gc.collect()
        store.tick()
        assert not engine._active.replaced
        store.save()
        store.tick()
        assert (store.stats().view_bytes, engine.hot.budget_bytes) == (0, 8 << 20)


def test_a_view_is_over_when_its_handle_is_closed_and_keeps_nothing_though_another_is_open(opener: Any) -> None:
    store, other = opener(), opener()
    store["a"] = "old"
    mine, view = store.view(), other.view()
    started = iter(view.sub("x"))
    assert view["a"] == "old"
    other.close()
    for call in (
        lambda: view["a"],
        lambda: len(view),
        lambda: list(view),
        lambda: next(started),
        lambda: view.ttl("a"),
    ):
        with pytest.raises(tiered.ClosedError):
            call()
    assert view.buffers == ()
    assert store._engine.open_views() == [mine]
    store["a"] = "new"
    assert mine["a"] == "old"
    mine.close()


@pytest.mark.parametrize("size", [5, 1000, 20_000])
@pytest.mark.parametrize("ttl", [None, 1000])
def test_what_is_accounted_for_stays_within_the_budget_with_views_open(
    opener: Any, size: int, ttl: float | None
) -> None:
    store = opener(stepwise=True, memory="2MB", save="")
    uniform, views, highest = random.Random(size), [], 0
    engine = store._engine
    for number in range(12_000 if size < 1000 else 2_500):
        store.set(uniform.randrange(8_000), "x" * uniform.randrange(size * 2), ttl=ttl)
        if not number % 500:
            views.append(store.view())
            with suppress(tiered.ViewExpiredError):
                next(iter(views[0]), None)
        if not number % 1500:
            views.pop(0).close()
        if not number % 5:
            highest = max(highest, engine.hot.used_bytes + engine.buffer_bytes + engine.pinned_bytes())
    for view in views:
        view.close()
    assert 0.5 < highest / (2 << 20) < 1.01


ENDED: dict[str, Callable[[Any, Any], object]] = {
    "the view": lambda store, view: view.close(),
    "the store": lambda store, view: store.close(),
}


@pytest.fixture
def impatient() -> Iterator[None]:
    """A close does not wait long for who is reading: it is this very thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cold, "CLOSE_WAIT_SECONDS", 0.02)
        yield


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("place", ["put_in_order", "_gathered", "find", "count"])
@pytest.mark.parametrize("end", ENDED)
@pytest.mark.parametrize("first", [True, False])
def test_a_view_that_is_ended_in_the_middle_of_its_own_read(
    opener: Any, monkeypatch: pytest.MonkeyPatch, first: bool, end: str, place: str
) -> None:
    """As by a handler of signals, or a finalizer: the read comes to its end, or raises that it is closed."""
    store = opener(stepwise=True)
    expected = {number: [number] for number in range(700)}
    store.update(expected)
    store.save()
    store.update({number: [number] for number in range(0, 700, 5)})
    view = store.view()
    real = getattr(Moment, place)

    def ending(moment: Any, *args: Any) -> Any:
        monkeypatch.undo()
        result = None if first else real(moment, *args)
        with suppress(ReentrantError):
            ENDED[end](store, view)
        return real(moment, *args) if first else result

    reads: dict[str, Callable[[], object]] = {
        "find": lambda: (view[5], view[6]),
        "count": lambda: len(view),
    }
    monkeypatch.setattr(Moment, place, ending)
    with suppress(ClosedError, ViewExpiredError):
        result = reads.get(place, lambda: dict(view.items()))()
        assert result in ((expected[5], expected[6]), 700, expected)
    with pytest.raises((ClosedError, ViewExpiredError)):
        view[5]
    store.close()
    again = opener(stepwise=True)  # Though the view is still referred to.
    assert dict(again.items()) == expected
    assert again.stats().view_count == 0


def test_a_view_that_is_closed_when_it_was_found_open_just_now(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opener(stepwise=True)
    store.update({number: [number] for number in range(700)})
    store.save()
    for read in (lambda view: view[5], len, lambda view: list(view)):
        view = store.view()

        def closing(view: View[Any, Any]) -> None:
            monkeypatch.undo()
            view._check()
            view.close()

        monkeypatch.setattr(View, "_check", closing)
        with suppress(ClosedError):
            assert read(view) in ([5], 700, list(range(700)))
        with pytest.raises(ClosedError):
            read(view)


@pytest.mark.usefixtures("impatient")
def test_a_store_that_is_closed_in_the_middle_of_an_iteration_opens_again(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(stepwise=True)
    store.update({number: [number] for number in range(700)})
    store.save()
    view = store.view()
    real = Moment._gathered

    def closing(moment: Any, *args: Any) -> Any:
        monkeypatch.undo()
        store.close()
        return real(moment, *args)

    monkeypatch.setattr(Moment, "_gathered", closing)
    iterator = iter(store.items())
    with suppress(ClosedError):
        list(iterator)
    again = opener(stepwise=True)
    assert len(again) == 700
    with pytest.raises(ClosedError):
        view[5]
