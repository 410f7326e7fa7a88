"""Sub-stores: every key leads to its own place and back, and all the rest is the store's."""

from __future__ import annotations

import shelve
import threading
from pathlib import Path
from typing import Any

import pytest
from contracts import evict
from test_threads import Crowd

import tiered
from tiered import ClosedError, ConflictError, ReadOnlyError, ViewExpiredError
from tiered.clock import ManualClock

KEYS: list[Any] = ["", "a", "a\0b", "é", b"", b"a\0", 0, -5, 2**70, (), ("a", 1), ("a", "b", b"c"), (1, (2, 3))]
KEYS += [(("a", 1),), ((),), ((("a",),),), (("a", 1), 2), ((), ()), "long" * 200, ("x", b"y" * 600)]


@pytest.fixture
def store(opener: Any) -> tiered.Store[Any, Any]:
    """A store in which only the test's own calls do anything."""
    return opener(stepwise=True)


@pytest.mark.parametrize("prefix", [("users",), (1,), ("a", "b"), (("nested", 1),), ((),), (b"x", 0, "")])
def test_every_key_comes_back_as_it_was_given(store: Any, prefix: tuple[Any, ...]) -> None:
    sub = store.sub(*prefix)
    for number, key in enumerate(KEYS):
        sub[key] = number
    for move in (lambda: None, lambda: (store.save(), evict(store))):
        move()
        assert set(sub) == set(KEYS)
        assert dict(sub) == {key: number for number, key in enumerate(KEYS)}
        assert [sub[key] for key in KEYS] == list(range(len(KEYS)))
        assert len(sub) == len(store) == len(KEYS)
        assert all(key in sub and key in sub.keys() for key in KEYS)  # noqa: SIM118
    for key in KEYS:
        del sub[key]
    assert not sub
    assert len(store) == 0


def test_what_is_where_in_the_store(store: Any) -> None:
    sub = store.sub("users")
    sub[42] = "a"
    sub[42, "name"] = "b"
    sub[("a", 1),] = "c"
    sub[()] = "d"
    assert dict(store) == {
        ("users", 42): "a",
        ("users", 42, "name"): "b",
        ("users", ("a", 1)): "c",
        ("users",): "d",
    }
    # A tuple of one element that is no tuple is another name of that element.
    sub[("x",)] = "e"
    assert sub["x"] == store["users", "x"] == "e"
    assert "x" in list(sub)


def test_keys_beside_the_prefix_are_not_in_it(store: Any) -> None:
    others = {("user",): 1, ("users\0", 1): 2, ("userss", 1): 3, "users": 4, (("users", 1),): 5, ("v", "users"): 6}
    store.update(others)
    sub = store.sub("users")
    assert not sub
    assert list(sub) == []
    sub[1] = 1
    assert dict(sub) == {1: 1}
    sub.clear()
    assert dict(store) == others


def test_ranges_and_prefixes_are_of_its_own_keys(store: Any) -> None:
    sub = store.sub("s")
    sub.update({number: number for number in range(300)})
    sub.update({"a": 1, "ab": 2, "b": 3, ("a", 1): 4, ("a", 2): 5, b"a": 6, ("ab", 1): 7})
    store["s"] = store["t", 1] = store["r", 1] = 0
    store.save()
    assert list(sub.keys(start=10, stop=13)) == [10, 11, 12]
    assert list(sub.keys(start=297)) == [297, 298, 299]
    assert list(sub.keys(start=10, stop=13, reverse=True)) == [12, 11, 10]
    assert list(sub.items(prefix=("a",))) == [("a", 1), (("a", 1), 4), (("a", 2), 5)]
    assert list(sub.keys(prefix="a")) == ["a", ("a", 1), ("a", 2), "ab", ("ab", 1)]
    assert list(sub.keys(prefix="ab", reverse=True)) == [("ab", 1), "ab"]
    assert list(sub.keys(prefix=b"")) == [b"a"]
    assert list(sub.keys(start="b", stop=0)) == ["b"]
    assert list(reversed(sub)) == list(sub)[::-1]
    assert list(reversed(sub.keys(prefix=("a",)))) == [("a", 2), ("a", 1), "a"]
    assert len(sub.keys(start=10, stop=13)) == 3
    assert 11 in sub.keys(start=10, stop=13)
    assert 13 not in sub.keys(start=10, stop=13)
    assert ("a", 1) in sub.keys(prefix=("a",))
    assert "b" not in sub.keys(prefix=("a",))
    with pytest.raises(TypeError, match="prefix"):
        sub.keys(prefix=1)


def test_sub_stores_of_sub_stores_views_and_transactions(store: Any) -> None:
    store.update({("a", "b", number): number for number in range(3)})
    inner = store.sub("a").sub("b")
    assert inner == store.sub("a", "b") == {0: 0, 1: 1, 2: 2}
    with store.view() as view:
        inner[0] = 9
        assert view.sub("a").sub("b") == view.sub("a", "b") == {0: 0, 1: 1, 2: 2}
        with pytest.raises(TypeError):
            view.sub("a")["b", 0] = 1
    with store.transaction() as txn:
        part = txn.sub("a").sub("b")
        part[3] = 3
        del part[1]
        assert part == {0: 9, 2: 2, 3: 3}
        assert inner == {0: 9, 1: 1, 2: 2}
    assert inner == {0: 9, 2: 2, 3: 3}
    with pytest.raises(ClosedError):
        part[0]
    with pytest.raises(ClosedError):
        view.sub("a")["b", 0]


def test_its_own_transactions_views_and_edits(store: Any) -> None:
    users = store.sub("users")
    users.update({1: {"name": "Ada"}, "count": 1})
    with users.transaction() as txn:
        txn[2] = {"name": "Bob"}
        txn.incr("count")
        assert (len(txn), len(users)) == (3, 2)
    assert users["count"] == 2
    with users.view() as view:
        users.clear()
        assert view == {1: {"name": "Ada"}, 2: {"name": "Bob"}, "count": 2}
    assert not users
    with users.edit("list", []) as value:
        value.append(1)
    assert users == {"list": [1]}
    calls = []

    def run(txn: Any) -> str:
        calls.append(txn["list"])
        if len(calls) < 3:
            users["list"] = [len(calls)]
        txn["sum"] = len(calls)
        return "done"

    assert users.transact(run) == "done"
    assert calls == [[1], [1], [2]]
    assert users["sum"] == 3
    with pytest.raises(ConflictError):
        users.transact(lambda txn: (txn.get("x"), users.set("x", 1), txn.set("y", 1)), 2)
    with pytest.raises(ZeroDivisionError), users.transaction() as txn:
        txn["gone"] = 1 / 0
    assert store._engine.watchers == set()


def test_a_view_of_a_sub_store_takes_an_age(opener: Any, clock: ManualClock) -> None:
    store = opener(stepwise=True, clock=clock)
    store.sub("a")[1] = 1
    with store.sub("a").view(5) as view:
        clock.sleep(6)
        with pytest.raises(ViewExpiredError):
            view[1]


def test_disjoint_sub_stores_do_not_conflict(store: Any) -> None:
    one, other = store.sub("one"), store.sub("other")
    with one.transaction() as txn:
        assert len(txn) == 0
        assert list(txn) == []
        other["a"] = 1
        store["one"] = 1
        txn["a"] = 1
    assert one == {"a": 1}
    with pytest.raises(ConflictError), one.transaction() as txn:  # noqa: PT012
        assert len(txn) == 1
        one["b"] = txn["c"] = 1


def test_times_to_live_numbers_and_many_keys(opener: Any, clock: ManualClock) -> None:
    store = opener(stepwise=True, clock=clock)
    sub = store.sub("s")
    sub.set("a", 1, ttl=10)
    assert (sub.ttl("a"), store.ttl(("s", "a"))) == (10, 10)
    assert sub.incr("a", 4) == 5
    assert sub.touch("a", 20)
    assert sub.ttl("a") == 20
    assert sub.persist("a")
    assert not sub.touch("none", 1)
    assert sub.ttl("a") is None
    with pytest.raises(KeyError):
        sub.ttl("none")
    sub.set_many([("b", 2), (("c", 1), 3)], ttl=5)
    assert sub.ttl(("c", 1)) == 5
    assert sub.get_many([("c", 1), "none", "a"]) == {("c", 1): 3, "a": 5}
    assert list(sub.get_many(["b", "a"])) == ["b", "a"]
    assert sub.delete_many(["a", "none", ("c", 1)]) == 2
    clock.sleep(6)
    assert sub == {}


def test_equality_union_and_what_a_dict_does(store: Any) -> None:
    sub, other = store.sub("a"), store.sub("b")
    sub |= {"x": 1, "y": [2]}
    sub.update(z=3)
    other.update(sub)
    assert sub == other == {"x": 1, "y": [2], "z": 3}
    assert sub != {"x": 1}
    other["x"] = 5
    assert sub != other
    assert sub.popitem() == ("z", 3)
    assert sub.pop("x") == 1
    assert sub.pop("x", "none") == "none"
    with pytest.raises(KeyError, match="'x'"):
        sub.pop("x")
    with pytest.raises(KeyError, match=r"^'x'$"):
        sub["x"]
    with pytest.raises(KeyError, match=r"^'x'$"):
        del sub["x"]
    assert sub.setdefault("y", 1) == [2]
    assert sub.setdefault("w", 1) == 1
    sub.clear()
    assert not sub
    with pytest.raises(KeyError):
        sub.popitem()
    assert len(other) == 3


def test_a_large_sub_store_is_cleared_in_chunks_and_nothing_else_is(store: Any) -> None:
    sub = store.sub("a")
    sub.update((number, number) for number in range(3500))
    store.sub("b")[1] = 1
    sub.clear()
    assert dict(store) == {("b", 1): 1}


def test_what_is_no_prefix_is_refused_when_it_is_made(store: Any) -> None:
    for prefix in ((), (1.5,), (None,), ([],), ("a", {})):
        with pytest.raises(TypeError):
            store.sub(*prefix)
    with pytest.raises(tiered.KeyTooLongError):
        store.sub("x" * 40_000)
    with pytest.raises(TypeError):
        store.sub("a").sub()


def test_a_sub_store_of_a_reader_or_of_a_closed_store_says_so(opener: Any) -> None:
    store = opener()
    store.sub("a")[1] = 1
    store.close()
    with pytest.raises(ClosedError):
        store.sub("a")[1]
    reader = opener(flag="r")
    assert reader.sub("a") == {1: 1}
    with pytest.raises(ReadOnlyError):
        reader.sub("a")[1] = 2


def test_its_repr_shows_prefix_and_store_and_no_values(store: Any) -> None:
    sub = store.sub("users", 1)
    sub["secret"] = "secret"
    assert "('users', 1)" in repr(sub)
    assert store.path in repr(sub)
    assert "secret" not in repr(sub)
    with store.view() as view:
        assert "SubView" in repr(view.sub("users"))


# The mapping itself, under threads and for shelve


def test_each_key_is_popped_by_one_thread_only(opener: Any) -> None:
    store = opener(memory="4MB")
    numbers = range(2000)
    for mapping in (store, store.sub("s")):
        mapping.update(dict.fromkeys(numbers, 1))
        popped: list[int] = []

        def pop(mapping: Any = mapping, popped: list[int] = popped) -> None:
            for number in numbers:
                if mapping.pop(number, None) is not None:
                    popped.append(number)

        def popitem(mapping: Any = mapping, popped: list[int] = popped) -> None:
            while True:
                try:
                    popped.append(mapping.popitem()[0])
                except KeyError:
                    return

        threads = [threading.Thread(target=work) for work in (pop, pop, popitem)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(popped) == list(numbers)
        assert not mapping


def test_setdefault_gives_all_threads_the_same_value(opener: Any) -> None:
    store = opener(memory="4MB")
    for mapping in (store, store.sub("s")):
        given: list[list[int]] = [[], [], []]

        def ask(thread: int, mapping: Any = mapping, given: Any = given) -> None:
            for number in range(500):
                given[thread].append(mapping.setdefault(number, thread))

        crowd = Crowd()
        for thread in range(3):
            crowd.add(ask, thread)
        with crowd.running(None):
            pass
        assert given[0] == given[1] == given[2] == [mapping[number] for number in range(500)]


def test_a_shelf_over_a_store_is_a_shelf(tmp_path: Path) -> None:
    path = tmp_path / "shelf"
    with shelve.Shelf(tiered.open(path, helper=False)) as shelf:
        shelf["a"] = {"list": [1, object]}
        shelf["b"] = 2
        del shelf["b"]
        shelf.sync()
        assert list(shelf) == ["a"]
    with shelve.Shelf(tiered.open(path, helper=False), writeback=True) as shelf:
        assert shelf["a"] == {"list": [1, object]}
        shelf["a"]["list"].append(2)
    with shelve.Shelf(tiered.open(path, helper=False)) as shelf:
        assert shelf["a"] == {"list": [1, object, 2]}
        assert len(shelf) == 1


def test_a_stores_repr_shows_path_records_bytes_and_state_and_never_values(opener: Any) -> None:
    store = opener(stepwise=True)
    store.update({"secret key": "secret value", "other": "secret"})
    store.save()
    store["third"] = "secret"
    shown = repr(store)
    assert store.path in shown
    assert "open" in shown
    assert "2 records checkpointed" in shown
    assert "1 dirty" in shown
    assert f"{store.stats().hot_bytes:,} bytes hot" in shown
    assert "secret" not in shown
    assert "secret" not in repr(store.items())
    store.close()
    assert "closed" in repr(store)


def test_transact_and_view_of_a_sub_store_take_what_those_of_the_store_take(store: Any) -> None:
    sub, tries = store.sub("users"), list[int]()

    def losing(txn: Any) -> None:
        tries.append(1)
        raise ConflictError(store.path, "lost")

    with pytest.raises(ConflictError):
        sub.transact(losing, attempts=3)
    assert len(tries) == 3
    with sub.view(max_age=3) as view:
        assert dict(view) == {}
    with pytest.raises(TypeError):
        sub.view(3, 4)
