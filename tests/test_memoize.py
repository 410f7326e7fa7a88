"""Memoized functions: results kept in the store, computed by one caller while the others wait."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import ROOT, succeed, wait_until

import tiered
from tiered import aio
from tiered.calls import told_apart


def test_a_result_is_computed_once_and_survives_a_restart(opener: Any) -> None:
    calls = []

    def square(number: int, shift: int = 0) -> int:
        """Squares."""
        calls.append(number)
        return number * number + shift

    with opener() as store:
        memoized = store.memoize(name="square")(square)
        assert [memoized(3), memoized(3), memoized(number=3), memoized(3, 0), memoized(3, shift=0)] == [9] * 5
        assert memoized(3, 1) == 10
        assert calls == [3, 3]
        assert memoized.cache_info() == (4, 2, 0, 0)
        assert (memoized.__doc__, memoized.__wrapped__) == ("Squares.", square)
    store = opener()
    assert store.memoize(name="square")(square)(3) == 9
    assert calls == [3, 3]


def test_results_that_are_none_or_false_are_kept(store: Any) -> None:
    calls = []

    @store.memoize(name="nothing")
    def nothing(what: Any) -> Any:
        calls.append(what)
        return what

    for value in (None, False, 0, "", [], {}):
        assert nothing(value) == nothing(value) == value
    assert len(calls) == 6


def test_types_are_told_apart_and_order_makes_no_difference_where_there_is_none(store: Any) -> None:
    different = [
        1,
        True,
        1.0,
        "1",
        b"1",
        (1,),
        [1],
        {1},
        frozenset({1}),
        {1: 1},
        None,
        int,
        [[1]],
        [1, 1],
        ["1"],
        1 + 0j,
    ]
    assert len({told_apart(value) for value in different}) == len(different)
    assert told_apart({"a": 1, "b": [2]}) == told_apart({"b": [2], "a": 1})
    assert told_apart({"a", "b", "c"}) == told_apart({"c", "b", "a"})
    assert told_apart([["a"], "b"]) != told_apart([["a", "b"]])

    @store.memoize(name="kind")
    def kind(value: Any, *rest: Any, **named: Any) -> str:
        return f"{type(value).__name__} {rest} {sorted(named)}"

    for value in (1, True, 1.0, [1], "x" * 1000, "x" * 1001):
        assert kind(value).startswith(type(value).__name__)
    assert kind(1, 2) == "int (2,) []"
    assert kind(1, a=2) == kind(1, a=2) == "int () ['a']"
    assert len(store) == 8


def test_the_key_of_a_call_is_the_same_in_every_program(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        import dataclasses, enum, typing, tiered
        from tiered.calls import told_apart

        @tiered.register("query")
        @dataclasses.dataclass(frozen=True)
        class Query:
            tags: frozenset
            more: object = None

        @tiered.register("pair")
        class Pair(typing.NamedTuple):
            one: object
            two: object

        @tiered.register("color")
        class Color(enum.Enum):
            RED = 1

        @tiered.register("bag", pack=lambda bag: bag.held, unpack=lambda held: Bag())
        class Bag:
            held = {"x", "y", "z", "u", "v"}

        tags = frozenset(["a", "b", "c", "d", ("e", frozenset("fgh"))])
        print(told_apart((tags, Query(tags, {Color.RED: [Pair(tags, Bag())]}), {Query(tags)})).hex())
    """
    keys = set()
    for seed in "123":
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        keys.add(succeed(code))
    assert len(keys) == 1


def test_registered_objects_are_told_apart_by_class_and_state(store: Any) -> None:
    @tiered.register("memoize one")
    @dataclasses.dataclass
    class One:
        held: Any

    @tiered.register("memoize two")
    @dataclasses.dataclass
    class Two:
        held: Any

    def refusing(value: Any) -> Any:
        raise OSError("no")

    @tiered.register("memoize three", pack=refusing, unpack=refusing)
    class Three:
        pass

    different = [One(1), One(True), Two(1), One([1]), One({1}), One(One(1)), {"held": 1}, ["memoize one", {"held": 1}]]
    assert len({told_apart(value) for value in different}) == len(different)
    more = One(1)
    more.other = 2  # type: ignore[attr-defined]
    for wrong in (more, One(more), One(object())):
        with pytest.raises(TypeError, match="key="):
            store.memoize(name="f")(lambda one: 1)(wrong)
    with pytest.raises(OSError, match="no"):
        told_apart([Three()])


def test_methods_need_a_key_where_the_object_cannot_be_kept(store: Any) -> None:
    class Reader:
        def __init__(self, number: int) -> None:
            self.number, self.calls = number, 0

        @store.memoize(key=lambda self, page: (self.number, page), name="page")
        def page(self, page: int) -> str:
            self.calls += 1
            return f"{self.number}/{page}"

        @store.memoize(name="bare")
        def bare(self) -> int:
            return 1

    one, two = Reader(1), Reader(2)
    assert [one.page(5), one.page(5), two.page(5), one.page(page=6)] == ["1/5", "1/5", "2/5", "1/6"]
    assert (one.calls, two.calls) == (2, 1)
    assert ("memoize", "page", (1, 5)) in store
    assert Reader.page.cache_key(one, 5) == ("memoize", "page", (1, 5))
    with pytest.raises(TypeError, match="key="):
        one.bare()


def test_functions_that_others_may_be_called_like_need_a_name(store: Any) -> None:
    with pytest.raises(TypeError, match="name="):
        store.memoize()(lambda: 1)
    assert store.memoize()(told_apart).name == "tiered.calls.told_apart"
    with pytest.raises(TypeError, match=r"functools.partial.*name="):
        store.memoize()(functools.partial(pow, 2))
    assert store.memoize(name="power")(functools.partial(pow, 2))(5) == 32


def test_what_memoize_cannot_do_is_refused_before_there_is_a_function(store: Any) -> None:
    for wrong in ({"jitter": 1.0}, {"jitter": -0.1}, {"early": -1.0}):
        with pytest.raises(tiered.ConfigError, match="jitter"):
            store.memoize(**wrong)
    for ttl in ("60", 0, -1, True):
        with pytest.raises(tiered.ConfigError, match="ttl="):
            store.memoize(ttl=ttl)
        with pytest.raises(tiered.ConfigError, match="ttl="):
            aio.AsyncStore(store).memoize(ttl=ttl)
    with pytest.raises(TypeError, match=r"write @store.memoize\(\)"):

        @store.memoize
        def bare() -> int:
            return 1

    assert store.memoize(ttl=timedelta(seconds=60), name="f")(lambda: 1)() == 1
    assert 54 <= store.ttl(("memoize", "f", told_apart(()))) <= 60


def test_the_module_of_a_script_is_its_file_as_where_it_is_imported(tmp_path: Path) -> None:
    script = """
import tiered, sys

def compute(number):
    return __file__.endswith("one.py")

with tiered.open("shared.tiered", helper=False) as store:
    memoized = store.memoize()(compute)
    print(memoized.name, memoized(5), memoized.cache_info().misses)
"""
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(script)
    said = [
        subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": ROOT},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.strip()
        for command in (["one.py"], ["two.py"], ["-m", "two"], ["-c", "import one"])
    ]
    assert said == ["one.compute True 1", "two.compute False 1", "two.compute False 0", "one.compute True 0"]
    unnamed = "import tiered\ndef f(): pass\nwith tiered.open() as store: print(store.memoize()(f).name)"
    assert succeed(unnamed) == "__main__.f"


def test_a_name_that_another_function_has_is_refused_and_one_defined_anew_replaces_itself(opener: Any) -> None:
    def define() -> Any:
        def f() -> int:
            return 1

        return f

    def g() -> int:
        return 2

    store = opener()
    assert store.memoize(name="f")(define())() == store.memoize(name="f", ttl=5)(define())() == 1
    with pytest.raises(tiered.ConfigError, match=r"define.<locals>.f are kept as 'f'.*another name="):
        store.memoize(name="f")(g)
    with pytest.raises(tiered.ConfigError, match="another name="):
        aio.AsyncStore(store).memoize(name="f")(asyncio.sleep)
    assert store.memoize(name="g")(g)() == 2
    store.close()
    assert opener().memoize(name="g")(define())() == 2  # As where a function has moved since the last time.


def test_results_expire_with_jitter(opener: Any, clock: Any) -> None:
    store = opener(clock=clock, stepwise=True)
    calls = []

    @store.memoize(ttl=100, name="f")
    def f(number: int) -> int:
        calls.append(number)
        return number

    for number in range(200):
        f(number)
    left = [store.ttl(f.cache_key(number)) for number in range(200)]
    assert 90 <= min(left) < 92
    assert 98 < max(left) <= 100
    assert store.memoize(ttl=100, jitter=0, name="g")(told_apart)(1)
    assert store.ttl(("memoize", "g", told_apart((1,)))) == 100
    clock.sleep(100)
    f(1)
    assert len(calls) == 201


def test_one_caller_computes_and_the_others_wait_for_it(store: Any) -> None:
    calls, begun, go = [], threading.Event(), threading.Event()

    @store.memoize(name="slow")
    def slow(number: int) -> int:
        calls.append(number)
        begun.set()
        assert go.wait(10)
        return number

    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(slow, 1) for _ in range(8)]
        assert begun.wait(10)
        flight = next(iter(slow._flights.values()))
        assert not flight.done.is_set()
        go.set()
        assert [result.result(10) for result in results] == [1] * 8
    assert calls == [1]
    hits, misses, waits, _ = slow.cache_info()
    assert (misses, hits + waits) == (1, 7)
    assert slow._flights == {}


def test_what_another_has_computed_since_the_look_is_not_computed_again(store: Any, monkeypatch: Any) -> None:
    calls = []

    @store.memoize(name="f")
    def f() -> int:
        calls.append(1)
        return len(calls)

    board = f._board

    def late(key: Any, fresh: Any) -> Any:
        monkeypatch.undo()
        assert f() == 1
        return board(key, fresh)

    monkeypatch.setattr(f, "_board", late)
    assert f() == 1
    assert calls == [1]


def waited_for(memoized: Any) -> threading.Event:
    """Set as soon as somebody waits for a result that another computes."""
    waiting, awaited = threading.Event(), memoized._awaited
    memoized._awaited = lambda key, flight: (waiting.set(), awaited(key, flight))[1]
    return waiting


def test_who_computed_and_who_waited_have_each_a_result_of_their_own(store: Any) -> None:
    begun, go, made = threading.Event(), threading.Event(), []

    @store.memoize(name="f")
    def f() -> Any:
        begun.set()
        assert go.wait(10)
        made.append({"items": []})
        return made[0]

    waiting = waited_for(f)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(f)
        assert begun.wait(10)
        second = pool.submit(f)
        assert waiting.wait(10)
        go.set()
        results = [first.result(10), second.result(10), f()]
    assert f.cache_info() == (1, 1, 1, 0)
    for number, result in enumerate([*made, *results]):
        result["items"].append(number)
    assert [result["items"] for result in results] == [[1], [2], [3]]


def test_tasks_that_waited_have_each_a_result_of_their_own(store: Any) -> None:
    @store.memoize(name="f")
    async def f() -> list[int]:
        await asyncio.sleep(0.01)
        return []

    async def run() -> None:
        results = await asyncio.gather(f(), f(), f())
        for number, result in enumerate(results):
            result.append(number)
        assert results == [[0], [1], [2]]

    asyncio.run(run())
    assert f.cache_info().waits > 0


def test_who_computed_gets_what_a_read_gives(store: Any) -> None:
    zeros = store.memoize(name="zeros")(lambda: np.zeros(3))
    assert [zeros().flags.writeable for _ in range(3)] == [False] * 3


def test_an_exception_is_given_to_all_who_wait_and_not_kept(store: Any) -> None:
    calls, go = [], threading.Event()

    @store.memoize(name="failing")
    def failing() -> int:
        calls.append(1)
        assert go.wait(10)
        if len(calls) == 1:
            raise OSError("no")
        return 5

    waiting = waited_for(failing)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(failing)
        wait_until(lambda: bool(calls))
        second = pool.submit(failing)
        assert waiting.wait(10)
        go.set()
        for result in (first, second):
            with pytest.raises(OSError, match="no"):
                result.result(10)
    assert failing() == 5
    assert len(calls) == 2


def test_who_waits_computes_where_the_caller_ends_itself(store: Any) -> None:
    calls, go = [], threading.Event()

    @store.memoize(name="stopped")
    def stopped() -> int:
        calls.append(1)
        assert go.wait(10)
        if len(calls) == 1:
            raise SystemExit
        return 5

    waiting = waited_for(stopped)

    def call() -> None:
        with pytest.raises(SystemExit):
            stopped()

    first = threading.Thread(target=call)
    first.start()
    wait_until(lambda: bool(calls))
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(stopped)
        assert waiting.wait(10)
        go.set()
        assert second.result(10) == 5
    first.join()


def test_a_thread_that_is_gone_leaves_nobody_waiting(store: Any) -> None:
    from tiered.memoize import Flight

    @store.memoize(name="f")
    def f() -> int:
        return 5

    gone: list[Flight] = []
    thread = threading.Thread(target=lambda: gone.append(Flight()))
    thread.start()
    thread.join()
    f._flights[f.cache_key()] = gone[0]
    assert f() == 5


@pytest.mark.parametrize("closed", [False, True])
def test_an_event_loop_that_stopped_half_way_leaves_nobody_waiting(store: Any, closed: bool) -> None:
    calls: list[int] = []

    @store.memoize(name="f")
    async def f(number: int) -> int:
        calls.append(number)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return number

    loop = asyncio.new_event_loop()
    task = loop.create_task(f(1))

    async def begun() -> None:
        while not calls:
            await asyncio.sleep(0.001)

    loop.run_until_complete(begun())
    if closed:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    assert asyncio.run(asyncio.wait_for(f(1), 10)) == 1
    assert calls == [1, 1]
    if closed:
        del task
        gc.collect()
    else:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    assert asyncio.run(f(1)) == 1
    assert f._flights == {}


def test_who_waits_for_a_loop_that_stops_then_computes(store: Any) -> None:
    calls: list[int] = []

    @store.memoize(name="f")
    async def f() -> int:
        calls.append(1)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return 5

    async def until_somebody_waits() -> None:
        leading = asyncio.ensure_future(f())
        while not leading.done() and not any(flight.futures for flight in f._flights.values()):
            if calls:
                begun.set()
            await asyncio.sleep(0.001)

    begun = threading.Event()
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(2) as pool:
        stopping = pool.submit(loop.run_until_complete, until_somebody_waits())
        assert begun.wait(10)
        assert pool.submit(asyncio.run, asyncio.wait_for(f(), 10)).result(20) == 5
        stopping.result(10)  # Its thread lives on, as that of a notebook does.
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_recursion_and_functions_that_wait_for_each_other_come_to_an_end(store: Any) -> None:
    @store.memoize(name="fibonacci")
    def fibonacci(number: int) -> int:
        return number if number < 2 else fibonacci(number - 1) + fibonacci(number - 2)

    assert fibonacci(30) == 832_040

    depth: list[int] = []

    @store.memoize(name="itself")
    def itself() -> int:
        depth.append(1)
        return 1 if len(depth) > 3 else itself() + 1

    assert itself() == 4

    both = threading.Barrier(2, timeout=10)
    inner = threading.local()

    @store.memoize(name="one")
    def one() -> str:
        if not getattr(inner, "met", False):
            inner.met = True
            both.wait()
            return f"one {two()}"
        return "one"

    @store.memoize(name="two")
    def two() -> str:
        if not getattr(inner, "met", False):
            inner.met = True
            both.wait()
            return f"two {one()}"
        return "two"

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(one), pool.submit(two)]
        assert all(result.result(20) for result in results)


def test_clearing_deletes_what_is_kept_and_what_is_being_computed_is_not_kept(store: Any) -> None:
    values = iter(range(100))

    @store.memoize(name="f")
    def f(clear: bool) -> int:
        if clear:
            f.cache_clear()
        return next(values)

    store["other"] = 1
    assert [f(False), f(False)] == [0, 0]
    assert f(True) == 1
    assert f(False) == 2
    assert f(True) == 3
    f.cache_clear()
    assert list(store) == ["other"]


def test_early_one_caller_computes_before_a_result_expires(opener: Any, clock: Any, monkeypatch: Any) -> None:
    store = opener(clock=clock, stepwise=True)
    calls = []

    @store.memoize(ttl=100, jitter=0, early=1.0, name="f")
    def f() -> int:
        calls.append(1)
        return len(calls)

    assert [f(), f()] == [1, 1]
    key = f.cache_key()
    store.set(key, f._packed(1, 10.0), 100)  # As if it had taken ten seconds.
    assert not any(f._is_due(100.0, 0.001) for _ in range(1000))
    due = sum(f._is_due(10.0, 10.0) for _ in range(4000)) / 4000
    assert 0.32 < due < 0.42, "e to the power of -1"
    monkeypatch.setattr(f, "_is_due", lambda left, seconds: left < 50)
    assert f() == 1
    clock.sleep(60)
    assert f() == 2
    assert f.cache_info().early == 1


@pytest.mark.parametrize("result", [["a", "b"], 2, None, "text", [2.5, 1.5], ["tiered.memoize", 1.0, "own"]])
def test_what_was_kept_stays_right_where_early_comes_or_goes(store: Any, result: Any) -> None:
    calls: list[int] = []

    def f(number: int) -> Any:
        calls.append(number)
        return result

    plain, early = store.memoize(name="f"), store.memoize(name="f", ttl=600, early=1.0)
    for number, (before, after) in enumerate([(plain, early), (early, plain), (plain, plain), (early, early)]):
        assert [before(f)(number), after(f)(number)] == [result, result]
    assert calls == [0, 1, 2, 3]


def test_a_list_of_arrays_is_a_result_like_any_other(store: Any) -> None:
    @store.memoize(name="f")
    def f() -> Any:
        return [np.zeros(2), 1, 2]

    assert [repr(f()) for _ in range(2)] == ["[array([0., 0.]), 1, 2]"] * 2


def test_async_functions_are_memoized_and_tasks_wait_for_one(opener: Any) -> None:
    calls: list[int] = []

    async def run() -> None:
        async with aio.AsyncStore(opener()) as store:

            @store.memoize(ttl=60, name="slow")
            async def slow(number: int) -> int:
                calls.append(number)
                await asyncio.sleep(0.02)
                if number < 0:
                    raise ValueError(number)
                return number

            assert await asyncio.gather(*(slow(1) for _ in range(20))) == [1] * 20
            assert calls == [1]
            failed = await asyncio.gather(*(slow(-1) for _ in range(5)), return_exceptions=True)
            assert {type(error) for error in failed} == {ValueError}
            assert calls == [1, -1]
            first = asyncio.ensure_future(slow(2))
            while 2 not in calls:
                await asyncio.sleep(0)
            second = asyncio.ensure_future(slow(2))
            await asyncio.sleep(0.005)
            first.cancel()
            assert await second == 2
            assert calls == [1, -1, 2, 2]

            @store.memoize(name="around")
            async def around(depth: int) -> int:
                return depth and sum(await asyncio.gather(around(0), around(0)))

            assert await asyncio.wait_for(around(1), 10) == 0

            @store.memoize(name="itself")
            async def itself() -> int:
                calls.append(0)
                return 1 if calls.count(0) > 2 else 1 + (await asyncio.gather(itself()))[0]

            assert await asyncio.wait_for(itself(), 10) == 3
            await slow.cache_clear()
            assert await slow(1) == 1
            assert calls.count(1) == 2
            with pytest.raises(TypeError, match="async"):
                store.memoize(name="f")(told_apart)

    asyncio.run(run())


def test_a_plain_store_memoizes_async_functions_too(store: Any) -> None:
    calls = []

    @store.memoize(name="f")
    async def f(number: int) -> int:
        calls.append(number)
        return number

    async def run() -> None:
        assert [await f(1), await f(1), await f(2)] == [1, 1, 2]
        await f.cache_clear()
        assert await f(1) == 1

    asyncio.run(run())
    assert calls == [1, 2, 1]


def test_objects_with_an_async_call_and_partials_of_async_functions_are_async(opener: Any) -> None:
    calls = []

    class Doubling:
        async def __call__(self, number: int) -> int:
            calls.append(number)
            return 2 * number

    async def times(factor: int, number: int) -> int:
        return await Doubling()(number * factor)

    async def run() -> None:
        store = opener()
        async with aio.AsyncStore(store) as awaited:
            for each in (store, awaited):
                doubling = each.memoize(name="doubling")(Doubling())
                assert [await doubling(2), await doubling(2)] == [4, 4]
                partly = each.memoize(name="partly")(functools.partial(times, 3))
                assert [await partly(2), await partly(2)] == [12, 12]
                again = each.memoize(name="again")(functools.partial(Doubling()))
                assert [await again(5), await again(5)] == [10, 10]

    asyncio.run(run())
    assert calls == [2, 6, 5]


def test_a_handle_that_cannot_write_says_so(opener: Any) -> None:
    opener()
    reader = opener(flag="r")
    with pytest.raises(tiered.ReadOnlyError):
        reader.memoize(name="f")(told_apart)(1)
