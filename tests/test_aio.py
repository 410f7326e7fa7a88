"""`tiered.aio`: the store's operations awaited, what cancellation leaves, and what is answered without a thread."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import without_background
from contracts import evict

import tiered
from tiered import aio

Opened = Callable[..., Any]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """Open a store in `async with`; it is checked at the end."""

    @asynccontextmanager
    async def open_store(**settings: Any) -> AsyncIterator[aio.AsyncStore[Any, Any]]:
        settings = {"memory": "1MB", "helper": False, **settings}
        async with aio.open(tmp_path / "store.tiered", **settings) as store:
            yield store
            assert await store.check() == []

    return open_store


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was handed to threads."""
    calls: list[Any] = []
    original = asyncio.BaseEventLoop.run_in_executor

    def run(loop: Any, executor: Any, call: Any, *args: Any) -> Any:
        calls.append(call)
        return original(loop, executor, call, *args)

    monkeypatch.setattr(asyncio.BaseEventLoop, "run_in_executor", run)
    return calls


def lock_is_free(store: aio.AsyncStore[Any, Any]) -> bool:
    """Whether another thread can have the store's lock."""
    taken: list[bool] = []

    def take() -> None:
        taken.append(store._store._engine.lock.acquire(timeout=10))
        store._store._engine.lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return taken == [True]


async def all_of(source: Any) -> list[Any]:
    return [item async for item in source]


def with_block(store: Any) -> None:
    with store:
        raise AssertionError("entered")


NOT_AWAITED: dict[str, Callable[[Any], Any]] = {
    r"await store\.contains\(key\)": lambda store: "k" in store,
    "async for": list,
    r"await store\.count\(\)": len,
    r"await store\.set\(key, value\)": lambda store: store.__setitem__("k", 2),
    r"await store\.delete\(key\)": lambda store: store.__delitem__("k"),
    r"await store\.update\(other\)": lambda store: store.__ior__({"k": 2}),
}


@pytest.mark.parametrize("what", NOT_AWAITED)
def test_what_cannot_be_awaited_is_refused_with_what_can(opened: Opened, what: str) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.set("k", 1)
            for mapping in (store, store.sub("part")):
                with pytest.raises(TypeError, match=what):
                    NOT_AWAITED[what](mapping)
                assert mapping  # As any object.
            with pytest.raises(TypeError, match="use `async with`"):
                with_block(store)
            assert await store.get("k") == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    "use",
    [with_block, lambda opening: opening["k"], lambda opening: opening.__setitem__("k", 1),
     lambda opening: opening.__delitem__("k"), lambda opening: "k" in opening, list],
)  # fmt: skip
def test_a_store_that_was_not_awaited_says_what_to_write(tmp_path: Path, use: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"`async with tiered\.aio\.open\(…\) as store:`, or `store = await tiered"):
        use(aio.open(tmp_path / "s"))

    async def over_it() -> None:
        async for _ in aio.open(tmp_path / "s"):  # type: ignore[attr-defined]
            raise AssertionError

    with pytest.raises(TypeError, match="`async with tiered"):
        asyncio.run(over_it())
    assert not (tmp_path / "s").exists()


def test_importing_tiered_does_not_bring_the_facade() -> None:
    assert not hasattr(tiered, "AsyncStore")
    assert "aio" not in tiered.__all__


# Each operation


def test_every_operation_does_what_the_store_does(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            assert await store.get("k") is None
            assert await store.get("k", 7) == 7
            await store.set("k", {"a": [1]})
            assert await store.get("k") == await store["k"] == {"a": [1]}
            await store.set("k", 1, ttl=100)
            assert 99 < (await store.ttl("k") or 0) <= 100
            assert await store.touch("k", 50)
            assert (await store.ttl("k") or 0) <= 50
            assert await store.persist("k")
            assert await store.ttl("k") is None
            assert (await store.incr("k"), await store.incr("k", 5)) == (2, 7)
            assert (await store.contains("k"), await store.contains("none")) == (True, False)
            assert (await store.pop("k"), await store.pop("k", None)) == (7, None)
            assert (await store.setdefault("k", 1), await store.setdefault("k", 2)) == (1, 1)
            await store.delete("k")
            assert await store.count() == 0
            await store.set_many({"a": 1, "b": 2})
            await store.set_many([("c", 3)], ttl=100)
            await store.update({"d": 4}, e=5)
            assert await store.get_many(["e", "none", "a"]) == {"e": 5, "a": 1}
            assert await store.popitem() == ("e", 5)
            assert await store.delete_many(["a", "none"]) == 1
            assert await all_of(store) == ["b", "c", "d"]
            await store.clear()
            assert await store.count() == 0

    asyncio.run(main())


def test_what_maintains_and_looks_inside_is_there_too(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.set_many((n, "x" * 100) for n in range(1000))
            await store.sync()
            await store.save()
            await store.compact()
            assert (await store.snapshot(f"{store.path}.tsnap")).records == 1000
            await store.refresh()
            assert (await store.stats()).records == 1000
            assert (await store.memory_stats()).accounted_bytes > 0
            assert (await store.doctor(), await store.reclaim() >= 0) == ([], True)
            assert "cold" in (await store.explain(1)).tiers
            await store.config_set("save", "60 1")
            assert await store.config_get("save") == {"save": store._store.config_get("save")["save"]}
            assert store.path.endswith("store.tiered")
            assert "store.tiered" in repr(store)

    asyncio.run(main())


def test_iteration_gives_ranges_in_key_order_whatever_the_number_of_pages(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.set_many((f"{n:05d}", n) for n in range(3000))
            assert await all_of(store.values()) == list(range(3000))
            assert await all_of(store.keys(prefix="0000", reverse=True)) == [f"0000{n}" for n in reversed(range(10))]
            assert await all_of(store.items(start="02998")) == [("02998", 2998), ("02999", 2999)]
            assert await all_of(store.keys(stop="00001")) == ["00000"]
            assert [key async for key in store] == await all_of(store.keys())

    asyncio.run(main())


def test_iteration_over_large_values_does_not_pile_them_up(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            for n in range(60):
                await store.set(n, [str(n)] * 100_000)
            ahead: list[int] = []
            given = 0
            original = store._store._iterate

            def counting(*args: Any) -> Any:
                for number, item in enumerate(original(*args), 1):
                    ahead.append(number - given)
                    yield item

            store._store._iterate = counting  # type: ignore[method-assign]
            async for _ in store.values():
                given += 1
            assert given == 60
            assert max(ahead) < 30

    asyncio.run(main())


def test_a_sub_store_leaves_its_beginning_out_of_the_keys(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            users = store.sub("users")
            await users.set("ada", 1)
            await users.set(("bob", "mail"), 2)
            await users.update({"carl": 3})
            assert await store.get(("users", "ada")) == await users.get("ada") == 1
            assert await all_of(users.keys()) == ["ada", ("bob", "mail"), "carl"]
            assert await users.sub("bob").get("mail") == 2
            await users.sub("bob").set("phone", 4)
            assert await users.pop(("bob", "phone")) == 4
            async with users.edit("list", []) as value:
                value.append(1)
            async with store.transaction() as txn:
                await txn.sub("users").set("ada", 10)
                assert await txn.sub("users").get("ada") == 10
                assert await users.get("ada") == 1
            assert await users.get_many(["ada", "list"]) == {"ada": 10, "list": [1]}
            await users.clear()
            assert await store.count() == 0

    asyncio.run(main())


def test_a_view_stays_as_it_was(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.set(("a", 1), "old")
            async with store.view() as view:
                await store.set(("a", 1), "new")
                await store.set("b", 1)
                assert (await view.get(("a", 1)), await view.count()) == ("old", 1)
                assert await view.contains(("a", 1))
                assert await all_of(view.items()) == [(("a", 1), "old")]
                assert await view.sub("a").get(1) == "old"
            with pytest.raises(tiered.ClosedError):
                await view.get(("a", 1))
            assert store._store._engine.open_views() == []

    asyncio.run(main())


def test_edit_writes_back_at_the_end_and_nothing_after_an_error(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            async with store.edit("k", []) as value:
                value.append(1)
            with pytest.raises(ZeroDivisionError):  # noqa: PT012
                async with store.edit("k") as value:
                    value.append(2)
                    raise ZeroDivisionError
            assert await store.get("k") == [1]
            with pytest.raises(KeyError):
                async with store.edit("none"):
                    pass
            with pytest.raises(tiered.ConflictError):  # noqa: PT012
                async with store.edit("k") as value:
                    value.append(3)
                    await store.set("k", [0])
            assert await store.get("k") == [0]

    asyncio.run(main())


def test_a_store_is_opened_by_await_or_by_async_with_and_one_at_hand_can_be_wrapped(tmp_path: Path) -> None:
    async def main() -> None:
        store = await aio.open(tmp_path / "s", helper=False)
        async with store:
            await store.set("k", 1)
        with tiered.open(tmp_path / "s", "r") as plain:
            assert await aio.AsyncStore(plain).get("k") == 1

    asyncio.run(main())


# Errors


def test_errors_come_through_as_they_are(opened: Opened, tmp_path: Path) -> None:
    async def main() -> None:
        async with opened() as store:
            missing: list[Callable[[], Awaitable[Any]]] = [
                lambda: store["none"],
                lambda: store.pop("none"),
                lambda: store.delete("none"),
                lambda: store.ttl("none"),
                lambda: store.explain("none"),
                lambda: store.popitem(),
            ]
            for call in missing:
                with pytest.raises(KeyError):
                    await call()
            for wrong in (lambda: store.set("k", object()), lambda: store.set(1.5, 1), lambda: store.get({})):
                with pytest.raises(TypeError):
                    await wrong()
            with pytest.raises(tiered.ConfigError):
                await store.config_set("memory", "nonsense")
        for call in (lambda: store.get("k"), lambda: store.set("k", 1), lambda: store.save(), lambda: store.count()):
            with pytest.raises(tiered.ClosedError):
                await call()
        with pytest.raises(tiered.ClosedError):
            await all_of(store.keys())
        (tmp_path / "file").write_text("")
        with pytest.raises(tiered.NotAStoreError):
            await aio.open(tmp_path / "file")
        with pytest.raises(tiered.NotAStoreError):
            async with aio.open(tmp_path / "file"):
                pass

    asyncio.run(main())


# Transactions


def test_a_transaction_is_written_at_its_end_and_not_at_all_after_an_error(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            async with store.transaction() as txn:
                await txn.set("a", 1)
                await txn.update({"b": 2})
                assert (await txn.get("a"), await txn.pop("b"), await txn.incr("a")) == (1, 2, 2)
                assert await store.count() == 0
                assert (await txn.count(), await all_of(txn.items())) == (1, [("a", 2)])
            assert await store.get("a") == 2
            with pytest.raises(ZeroDivisionError):  # noqa: PT012
                async with store.transaction() as txn:
                    await txn.set("a", 3)
                    raise ZeroDivisionError
            with pytest.raises(tiered.ClosedError):
                await txn.set("a", 4)
            with pytest.raises(tiered.ClosedError, match="transaction has ended"):  # noqa: PT012
                async with store.transaction() as txn:
                    await txn.set("a", 5)
                    txn.rollback()
            assert await store.get("a") == 2

    asyncio.run(main())


def test_transactions_of_two_tasks_do_not_mix(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.set_many({"a": 0, "b": 0})
            turns = [asyncio.Event() for _ in range(4)]

            async def one() -> None:
                async with store.transaction() as txn:
                    await txn.set("a", "one")
                    turns[0].set()
                    await turns[1].wait()
                    assert (await txn.get("a"), await txn.get("b")) == ("one", 0)
                turns[2].set()

            async def two() -> None:
                await turns[0].wait()
                async with store.transaction() as txn:
                    assert (await txn.get("a"), await txn.contains("c")) == (0, False)
                    await txn.set("c", "two")
                    turns[1].set()
                    await turns[2].wait()

            assert [type(ended) for ended in await asyncio.gather(one(), two(), return_exceptions=True)] == [
                type(None),
                tiered.ConflictError,
            ]
            assert await store.get_many([*"abc"]) == {"a": "one", "b": 0}

    asyncio.run(main())


def test_transact_runs_again_after_each_conflict_for_async_and_for_plain_functions(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.set("n", 0)

            async def increase(txn: aio.AsyncTransaction[Any, Any]) -> int:
                number = await txn["n"]
                await asyncio.sleep(0)
                await txn.set("n", number + 1)
                return int(number)

            def increase_in_thread(txn: tiered.Transaction[Any, Any]) -> int:
                txn["n"] += 1
                return int(txn["n"])

            jobs: list[Coroutine[Any, Any, int]] = [store.transact(increase) for _ in range(20)]
            jobs += [store.transact(increase_in_thread) for _ in range(20)]
            await asyncio.gather(*jobs)
            assert await store.get("n") == 40

            async def hopeless(txn: aio.AsyncTransaction[Any, Any]) -> None:
                await txn.set("m", await txn["n"])
                await store.incr("n")

            with pytest.raises(tiered.ConflictError):
                await store.transact(hopeless, attempts=3)
            assert await store.get("n") == 43
            with pytest.raises(tiered.ConfigError, match="attempts=0"):
                await store.transact(hopeless, attempts=0)

    asyncio.run(main())


def test_hundreds_of_tasks_that_change_one_key_all_succeed_after_few_attempts(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            runs = 0

            async def count_up(txn: aio.AsyncTransaction[Any, Any]) -> None:
                nonlocal runs
                runs += 1
                await txn.incr("count")

            await asyncio.gather(*(store.transact(count_up) for _ in range(500)))
            assert await store.get("count") == 500
            assert runs < 500 * 12
            assert store._rivals == 0

    asyncio.run(main())


def test_transact_refuses_a_plain_function_that_returns_a_coroutine(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:

            async def write(txn: Any) -> None:
                await txn.set("k", 1)

            with pytest.raises(TypeError, match="async function itself"):
                await store.transact(lambda txn: write(txn))
            assert not await store.contains("k")

    asyncio.run(main())


# What needs no thread


def test_hits_and_writes_that_find_room_use_no_thread(opened: Opened, in_threads: list[Any]) -> None:
    async def main() -> None:
        async with opened(memory="16MB") as store:
            without_background(store._store)  # The maintenance thread has the lock now and then.
            await store.set("first", 1)  # Begins a segment.
            values = {"str": "x", "bytes": b"x", "int": 1, "float": 0.5, "bool": True, "none": None, "doc": {"a": [1]}}
            in_threads.clear()
            for key, value in values.items():
                await store.set(key, value)
            await store.set("expiring", [1], ttl=100)
            for key, value in values.items():
                assert await store.get(key, "missing") == await store[key] == value
                assert await store.contains(key)
                assert await store.setdefault(key, 2) == value
            assert await store.get("expiring") == [1]
            assert in_threads == []
            async with store.transaction() as txn:
                await txn.set("t", 1)
                assert (await txn.get("t"), await txn.get("str")) == (1, "x")
                assert in_threads == []

    asyncio.run(main())


def test_a_cold_read_and_a_write_without_room_use_a_thread(opened: Opened, in_threads: list[Any]) -> None:
    async def main() -> None:
        async with opened(memory="16MB") as store:
            await store.set("k", 1)
            assert len(in_threads) == 2  # The opening, and the first segment.
            await store.save()
            evict(store._store)
            in_threads.clear()
            assert await store.get("k") == 1
            assert len(in_threads) == 1
            assert await store.get("k") == 1
            assert len(in_threads) == 1
            await store.config_set("durability", "always")
            in_threads.clear()
            await store.set("k", 2)
            await store.set("k", 3)  # There is room, but it waits for the disk.
            assert len(in_threads) == 2

    asyncio.run(main())


def test_a_write_does_not_wait_in_the_loop_for_a_lock_that_another_thread_has(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.set("k", 1)
            lock, held, let_go = store._store._engine.lock, threading.Event(), threading.Event()

            def hold() -> None:
                with lock:
                    held.set()
                    let_go.wait(30)

            holder = threading.Thread(target=hold)
            holder.start()
            held.wait()
            try:
                writes = [asyncio.ensure_future(store.set("k", 2)), asyncio.ensure_future(store.incr("n"))]
                async with store.transaction() as txn:
                    reading = asyncio.ensure_future(txn.get("k"))
                    await asyncio.sleep(0.02)
                    assert await store.get("k") == 1  # A hit needs no lock.
                    assert not any(task.done() for task in (*writes, reading))
                    let_go.set()
                    await asyncio.wait([*writes, reading])
            finally:
                let_go.set()
                holder.join()
            assert await store.get_many(["k", "n"]) == {"k": 2, "n": 1}

    asyncio.run(main())


def test_what_has_expired_is_no_hit(opened: Opened, clock: Any) -> None:
    async def main() -> None:
        async with opened(clock=clock) as store:
            await store.set("k", 1, ttl=1)
            assert await store.get("k") == 1
            clock.sleep(2)
            assert await store.get("k") is None
            assert not await store.contains("k")

    asyncio.run(main())


def test_hits_count_in_the_stats(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.set("k", 1)
            before = (await store.stats()).hits
            for _ in range(3):
                await store.get("k")
            assert (await store.stats()).hits == before + 3

    asyncio.run(main())


def test_threads_see_the_context_variables_of_their_task(opened: Opened) -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")

    async def main() -> None:
        async with opened() as store:
            who.set("main")
            await store.set_many((key, who.get()) for key in "ab")
            async with store.transaction() as txn:
                await txn.set_many((key, who.get()) for key in "cd")
            assert await store.get_many([*"abcd"]) == dict.fromkeys("abcd", "main")

    asyncio.run(main())


# Many at once, and cancellation


def test_many_tasks_at_once_see_each_others_writes_whole(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:

            async def work(number: int) -> None:
                rng = random.Random(number)
                for step in range(60):
                    key = (number, rng.randrange(20))
                    value = {"by": number, "step": step, "text": "x" * rng.randrange(500)}
                    await store.set(key, value)
                    assert await store.get(key) == value
                    await store.incr("total")

            await asyncio.gather(*(work(number) for number in range(20)))
            assert await store.get("total") == 1200

    asyncio.run(main())


def test_cancelling_at_random_moments_leaves_every_operation_done_or_not_whole(opened: Opened) -> None:
    async def main() -> None:
        rng = random.Random(1)
        asyncio.get_running_loop().set_default_executor(threads := ThreadPoolExecutor(8))
        async with opened(helper=True) as store:
            accounts = {("account", n): 100 for n in range(10)}
            await store.set_many(accounts)

            async def move(txn: aio.AsyncTransaction[Any, Any]) -> None:
                one, other = rng.sample(sorted(accounts), 2)
                await txn.set(one, await txn[one] - 1)
                await txn.set(other, await txn[other] + 1)

            async def pair(number: int, step: int) -> None:
                await store.set_many({("pair", number): step, ("pair", -number): step})

            async def look() -> None:
                async for _ in store.items():
                    await asyncio.sleep(0)
                async with store.view() as view:
                    assert sum(await all_of(view.values(prefix=("account",)))) == 1000

            async def work(number: int) -> None:
                for step in range(10_000):
                    await store.set((number, step % 50), rng.randbytes(rng.randrange(4000)))
                    await store.transact(move, attempts=1000)
                    await pair(number, step)
                    await look()
                    async with store.edit(("list", number), []) as value:
                        value.append(step)
                    if step % 7 == 0:
                        await store.save()

            tasks = {n: asyncio.ensure_future(work(n)) for n in range(1, 9)}
            until = time.monotonic() + 4
            cancelled = 0
            while time.monotonic() < until:
                await asyncio.sleep(rng.uniform(0, 0.01))
                number = rng.choice(sorted(tasks))
                tasks[number].cancel()
                with suppress(asyncio.CancelledError):
                    await tasks[number]
                cancelled += 1
                tasks[number] = asyncio.ensure_future(work(number))
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            assert cancelled > 20
            threads.shutdown()  # What was cancelled may still be under way there.
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
            assert lock_is_free(store)
            assert store._store._engine.open_views() == []
            assert sum(await all_of(store.values(prefix=("account",)))) == 1000
            for number in tasks:
                assert await store.get(("pair", number)) == await store.get(("pair", -number))
            assert await store.check() == []

    asyncio.run(main())


def test_transactions_of_cancelled_tasks_watch_the_store_no_more(opened: Opened) -> None:
    async def main() -> None:
        rng = random.Random(2)
        asyncio.get_running_loop().set_default_executor(threads := ThreadPoolExecutor(8))
        async with opened() as store:
            watchers = store._store._engine.watchers
            accounts = [("account", n) for n in range(6)]
            await store.set_many((account, 100) for account in accounts)
            await store.save()
            most = 0

            async def move(txn: Any) -> None:
                nonlocal most
                one, other = rng.sample(accounts, 2)
                balance = await txn[one]
                most = max(most, len(watchers))
                await asyncio.sleep(rng.choice([0, 0, 0.002]))
                await txn.set(one, balance - 1)
                await txn.incr(other)
                assert await txn.count() >= len(accounts)

            def moved(txn: Any) -> None:
                one, other = rng.sample(accounts, 2)
                txn[one] -= 1
                txn[other] += 1

            async def work(number: int) -> None:
                while True:
                    if number % 3 == 0:
                        await store.transact(move, attempts=1000)
                    elif number % 3 == 1:
                        await store.transact(moved, attempts=1000)
                    else:
                        with suppress(tiered.ConflictError):
                            async with store.transaction() as txn:
                                await move(txn)
                    if number % 4 == 0:
                        evict(store._store)

            for _ in range(40):
                tasks = [asyncio.ensure_future(work(number)) for number in range(12)]
                await asyncio.sleep(rng.uniform(0, 0.02))
                for task in rng.sample(tasks, len(tasks)):
                    task.cancel()
                    await asyncio.sleep(0)
                results = await asyncio.gather(*tasks, return_exceptions=True)
                assert {type(result) for result in results} == {asyncio.CancelledError}
                del tasks, results, task
            assert most > 1
            threads.shutdown()  # Plain functions may still run there.
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
            assert watchers == set()  # None waits for the garbage collector, which is off here.
            assert sum(store._store.values(prefix=("account",))) == 600

    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_nobody_hears_of_what_a_cancelled_operation_failed_with(opened: Opened) -> None:
    complaints: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        async with opened() as store:
            begun, let_go = threading.Event(), threading.Event()

            def failing() -> Any:
                begun.set()
                let_go.wait(30)
                raise ZeroDivisionError
                yield

            async def work() -> None:
                async with store.transaction() as txn:
                    await txn.set_many(failing())

            task = asyncio.ensure_future(work())
            await cancelled_in(begun, task)
            let_go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
            gc.collect()

    asyncio.run(main())
    assert complaints == []


async def cancelled_in(moment: threading.Event, task: asyncio.Task[Any]) -> None:
    """Cancel a task once a thread has come to a point."""
    while not moment.is_set():
        await asyncio.sleep(0.001)
    task.cancel()


def test_a_cancelled_read_of_a_transaction_has_ended_before_the_task_goes_on(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            begun, let_go = threading.Event(), threading.Event()

            def slowly() -> Any:
                for number in range(3):
                    begun.set()
                    let_go.wait(30)
                    yield number, number

            async def work() -> None:
                async with store.transaction() as txn:
                    with suppress(asyncio.CancelledError):
                        await txn.set_many(slowly())

            task = asyncio.ensure_future(work())
            await cancelled_in(begun, task)
            await asyncio.sleep(0.02)
            assert not task.done()
            task.cancel()  # Again does not hurry it.
            await asyncio.sleep(0.02)
            assert not task.done()
            let_go.set()
            await task
            assert await store.count() == 3

    asyncio.run(main())


def test_a_store_whose_opening_was_cancelled_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, let_go = threading.Event(), threading.Event()
    stores: list[Any] = []
    original = tiered.store.open

    def slow_open(*args: Any, **named: Any) -> Any:
        begun.set()
        let_go.wait(30)
        stores.append(original(*args, **named))
        return stores[-1]

    monkeypatch.setattr(tiered.store, "open", slow_open)

    async def main() -> None:
        task = asyncio.ensure_future(aio.open(tmp_path / "s", helper=False)._open())
        await cancelled_in(begun, task)
        with pytest.raises(asyncio.CancelledError):
            await task  # At once: opening may wait for a lock.
        let_go.set()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
    assert [store._engine.closed for store in stores] == [True]


def test_a_cancelled_opening_that_had_just_ended_is_closed_again(tmp_path: Path) -> None:
    made: list[Any] = []

    def make() -> Any:
        made.append(tiered.open(tmp_path / "s", helper=False))
        return made[0]

    async def main() -> None:
        task = asyncio.ensure_future(aio._handed_over(make, tiered.Store.close))
        await asyncio.sleep(0)
        while not made:
            time.sleep(0.001)  # The loop does not learn of it.
        time.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert made[0]._engine.closed


def test_a_cancelled_close_has_closed(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        begun, let_go = threading.Event(), threading.Event()
        async with opened() as store:
            await store.set("k", 1)
            close = store._store.close

            def slow_close() -> None:
                begun.set()
                let_go.wait(30)
                close()

            monkeypatch.setattr(store._store, "close", slow_close)
            task = asyncio.ensure_future(store.close())
            await cancelled_in(begun, task)
            await asyncio.sleep(0.02)
            assert not task.done()
            let_go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert store._store._engine.closed
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


def test_a_cancelled_commit_is_whole(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.set("a", 0)
            lock, held, let_go = store._store._engine.lock, threading.Event(), threading.Event()

            def hold() -> None:
                with lock:
                    held.set()
                    let_go.wait(30)

            async def work() -> None:
                async with store.transaction() as txn:
                    await txn.set_many({"a": 1, "b": 1})
                    threading.Thread(target=hold).start()
                    held.wait()

            task = asyncio.ensure_future(work())
            while not held.is_set():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.sleep(0.02)
            assert not task.done()
            let_go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await store.get_many([*"ab"]) == {"a": 1, "b": 1}

    asyncio.run(main())


def test_an_iteration_left_half_way_leaves_nothing_open(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.set_many((n, "x" * 100) for n in range(5000))
            await store.save()
            for source in (store.keys(), store.values(), store.items()):
                async for _ in source:
                    break
            source = store.items()
            await anext(source)
            assert lock_is_free(store)
            await source.aclose()  # type: ignore[attr-defined]
            async with store.transaction() as txn:
                async for key in txn.keys():
                    await txn.set(key, 0)
                    break
            slots = store._store._engine.cold._env.readers().splitlines()[1:]
            assert all(line.split()[2] == "-" for line in slots), slots  # No read transaction is open.
            assert await store.get(0) == 0

    asyncio.run(main())


def test_a_closed_handle_answers_nothing_though_another_is_open(tmp_path: Path) -> None:
    async def main() -> None:
        with tiered.open(tmp_path / "store.tiered", helper=False) as other:
            store = await aio.open(tmp_path / "store.tiered")
            await store.set("k", 1)
            assert await store.get("k") == 1
            await store.close()
            for call in (store.get("k"), store.set("k", 2), store.delete("k"), store.contains("k")):
                with pytest.raises(tiered.ClosedError):
                    await call
            assert other["k"] == 1

    asyncio.run(main())


class Busy:
    """Packing and unpacking one writes to the store."""


def test_no_lock_is_held_while_functions_of_registered_types_run(opened: Opened) -> None:
    async def main() -> None:
        async with opened() as store:
            plain = store._store

            def unpack(state: int) -> Busy:
                plain["unpacked"] = state
                return Busy()

            def pack(value: Busy) -> int:
                plain["packed"] = 1
                return 7

            tiered.register("busy", Busy, pack=pack, unpack=unpack)
            await store.set("k", Busy())
            assert isinstance(await store.get("k"), Busy)
            async with store.transaction() as txn:
                assert isinstance(await txn.get("k"), Busy)
                await txn.set("other", Busy())
            assert (plain["packed"], plain["unpacked"]) == (1, 7)

    asyncio.run(main())


def test_without_a_path_it_is_a_temporary_store() -> None:
    async def main() -> Path:
        async with aio.open(memory="1MB") as store:
            await store.set("k", 1)
            assert Path(store.path).is_dir()
            return Path(store.path)

    assert not asyncio.run(main()).exists()


def test_events_are_told_in_the_event_loop(opened: Opened) -> None:
    async def main() -> list[tuple[str, bool]]:
        told: list[tuple[str, bool]] = []
        here = threading.get_ident()
        arrived = asyncio.Event()

        def callback(event: Any) -> None:
            told.append((event.kind, threading.get_ident() == here))
            arrived.set()

        async with opened() as store:
            end = store.on("checkpoint", callback)
            await store.set("k", 1)
            await store.save()
            await asyncio.wait_for(arrived.wait(), 30)
            end()
            await store.set("k", 2)
            await store.save()
        return told

    assert asyncio.run(main()) == [("checkpoint", True)]
