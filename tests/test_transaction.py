"""Transactions: one moment or none; conflicts where something read was changed, and nowhere else; one journal unit."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import evict, merge, set_aside
from test_threads import Crowd

import tiered
from tiered import BatchTooLargeError, ClosedError, ConflictError, ReadOnlyError, ReentrantError, ViewExpiredError
from tiered.clock import ManualClock

MOVES: dict[str, Callable[[Any], Any]] = {
    "hot": lambda store: None,
    "in the write buffer": evict,
    "set aside": lambda store: (set_aside(store), evict(store)),
    "checkpointed and hot": lambda store: store.save(),
    "cold": lambda store: (store.save(), evict(store)),
    "behind": lambda store: (store.save(), merge(store), evict(store)),
    "compacted": lambda store: (store.compact(), evict(store)),
}
in_every_tier = pytest.mark.parametrize("move", MOVES)
SHRUNK = set(range(1000))
for number in range(1000):
    if number not in (1, 8, 16):
        SHRUNK.discard(number)
assert list(SHRUNK) != list(set(SHRUNK)), "in the order of a larger table"
LONG = ["h" * 500 + str(number) for number in range(12)]


@pytest.fixture
def store(opener: Any) -> tiered.Store[Any, Any]:
    """A store in which only the test's own calls do anything."""
    return opener(stepwise=True)


def fails(txn: Any) -> str:
    """The transaction must not commit; what the conflict says."""
    with pytest.raises(ConflictError) as caught:
        txn.commit()
    return caught.value.message


def suppressed(error: type[Exception], function: Callable[[Any], Any], argument: Any) -> None:
    with pytest.raises(error):
        function(argument)


# Visibility


@in_every_tier
def test_own_writes_are_seen_within_at_once_and_by_others_at_the_end(store: Any, move: str) -> None:
    store.update({"a": 1, "b": [2], "c": 3})
    MOVES[move](store)
    with store.transaction() as txn:
        txn["a"] = 10
        txn["d"] = {"new": 4}
        del txn["b"]
        assert (txn["a"], txn["c"], txn["d"]) == (10, 3, {"new": 4})
        assert "b" not in txn
        assert txn.get("b", "none") == "none"
        assert txn.get_many(["d", "b", "a", "c", "z"]) == {"d": {"new": 4}, "a": 10, "c": 3}
        assert len(txn) == 3
        assert dict(txn) == dict(txn.items()) == {"a": 10, "c": 3, "d": {"new": 4}}
        assert list(txn.items(reverse=True)) == [("d", {"new": 4}), ("c", 3), ("a", 10)]
        assert dict(store) == {"a": 1, "b": [2], "c": 3}
        assert store.get("d") is None
    assert dict(store) == {"a": 10, "c": 3, "d": {"new": 4}}
    assert [store[key] for key in "acd"] == [10, 3, {"new": 4}]
    assert len(store) == 3


@in_every_tier
def test_an_exception_leaves_the_store_as_it_was(store: Any, move: str) -> None:
    store.update({"a": 1, "b": 2})
    MOVES[move](store)
    with pytest.raises(ZeroDivisionError), store.transaction() as txn:  # noqa: PT012
        txn["a"] = 5
        txn["new"] = 1
        del txn["b"]
        1 / 0  # noqa: B018
    assert dict(store) == {"a": 1, "b": 2}


def test_ranges_hold_own_writes_in_their_place(store: Any) -> None:
    store.update({("user", number): number for number in range(0, 600, 2)})
    store.save()
    expected = {("user", number): number for number in range(0, 600, 2)}
    with store.transaction() as txn:
        for number in (1, 299, 599, 700):
            txn[("user", number)] = expected[("user", number)] = -number
        for number in (0, 2, 598, 300):
            del txn[("user", number)]
            del expected[("user", number)]
        txn[("user", 4)] = expected[("user", 4)] = "again"
        assert list(txn.items(prefix=("user",))) == sorted(expected.items())
        assert list(txn.items(prefix=("user",), reverse=True)) == sorted(expected.items())[::-1]
        assert list(reversed(txn.keys())) == sorted(expected)[::-1]
        part = sorted((key, value) for key, value in expected.items() if ("user", 290) <= key < ("user", 310))
        assert list(txn.items(start=("user", 290), stop=("user", 310))) == part
        assert len(txn.keys(start=("user", 290), stop=("user", 310))) == len(part)
        assert list(txn.keys(prefix="none")) == []
        assert len(txn) == len(expected)
    assert dict(store) == expected


@pytest.mark.parametrize("reverse", [False, True])
def test_long_keys_come_once_each_from_the_store_and_from_the_transaction(store: Any, reverse: bool) -> None:
    store.update(dict.fromkeys(LONG, "old"))
    store.save()
    with store.transaction() as txn:
        for key in LONG[::2]:
            txn[key] = "new"
        txn["h" * 500 + "another"] = "new"
        del txn[LONG[0]]
        found = list(txn.items(reverse=reverse))
        assert len(found) == len(dict(found)) == len(txn) == 12
        assert dict(found) == {
            **dict.fromkeys(LONG[1:], "old"),
            **dict.fromkeys(LONG[2::2], "new"),
            "h" * 500 + "another": "new",
        }
        assert set(txn.keys(start=LONG[3], stop=LONG[9])) == {key for key in LONG if LONG[3] <= key < LONG[9]}
    assert len(store) == 12


def test_an_iteration_goes_on_while_its_body_writes_and_deletes(store: Any) -> None:
    store.update({number: number for number in range(600)})
    with store.transaction() as txn:
        seen = []
        for key, value in txn.items():
            seen.append(key)
            assert value == (key if key % 3 else -1) or key % 3 == 0
            if key + 3 < 600 and key % 3 == 0:
                txn[key + 3] = -1
            if key % 5 == 0:
                del txn[key]
        assert seen == list(range(600))
        assert len(txn) == 480
    assert len(store) == 480


def test_a_transaction_reads_deadlines_and_keeps_and_gives_them(opener: Any, clock: ManualClock) -> None:
    store = opener(stepwise=True, clock=clock)
    store.set("a", 1, ttl=100)
    store.set("gone", 1, ttl=1)
    clock.sleep(2)
    with store.transaction() as txn:
        assert txn.ttl("a") == 98
        assert "gone" not in txn
        with pytest.raises(KeyError):
            txn.ttl("gone")
        assert txn.incr("a", 5) == 6
        txn.set("b", 1, ttl=10)
        txn["c"] = 1
        assert txn.touch("c", 7)
        assert not txn.touch("none", 7)
        assert not txn.persist("none")
        assert (txn.ttl("a"), txn.ttl("b"), txn.ttl("c")) == (98, 10, 7)
        txn.set("d", 1, ttl=5)
        assert txn.persist("d")
        assert not txn.persist("d")
        clock.sleep(8)
        assert "c" not in txn
    assert (store.ttl("a"), store.ttl("b"), store.ttl("d")) == (90, 2, None)
    assert "c" not in store
    assert store["a"] == 6


def test_deleting_what_is_not_there_is_a_key_error_and_deleting_twice_as_well(store: Any) -> None:
    store["a"] = 1
    with store.transaction() as txn:
        with pytest.raises(KeyError, match="no"):
            del txn["no"]
        del txn["a"]
        with pytest.raises(KeyError):
            del txn["a"]
        txn["a"] = 2
        assert txn.delete_many(["a", "a", "no"]) == 1
    assert "a" not in store


def test_two_transactions_in_one_thread_do_not_mix(store: Any) -> None:
    one, other = store.transaction(), store.transaction()
    one["a"] = 1
    other["b"] = 2
    store["c"] = 3
    assert dict(one.items(stop="b")) == {"a": 1}
    assert dict(other.items(start="b")) == {"b": 2, "c": 3}
    other.commit()
    assert dict(store) == {"b": 2, "c": 3}
    one.rollback()
    assert dict(store) == {"b": 2, "c": 3}


def test_transactions_of_asyncio_tasks_do_not_mix(store: Any) -> None:
    async def transfer(number: int) -> None:
        while True:
            try:
                with store.transaction() as txn:
                    value = txn.get("sum", 0)
                    await asyncio.sleep(0)
                    txn["sum"] = value + number
                    txn[number] = number
                return
            except ConflictError:
                continue

    async def all_of_them() -> None:
        await asyncio.gather(*map(transfer, range(20)))

    asyncio.run(all_of_them())
    assert store["sum"] == sum(range(20))
    assert len(store) == 21


def test_no_reader_sees_a_part_of_a_transaction(store: Any) -> None:
    store.update(dict.fromkeys(range(20), 0))
    crowd = Crowd()

    def write() -> None:
        version = 0
        while not crowd.stop.is_set():
            version += 1
            with store.transaction() as txn:
                txn.update((number, version) for number in range(20))
            if version % 7 == 0:
                evict(store)

    def read() -> None:
        while not crowd.stop.is_set():
            versions = [store[number] for number in range(20)]
            assert versions == sorted(versions), "an older value was read after a newer one of the same transaction"
            with store.view() as view:
                assert len(set(view.values())) == 1
            with store.transaction() as txn:
                try:
                    assert len({txn[number] for number in range(20)}) == 1
                except ConflictError:
                    continue

    for _ in range(2):
        crowd.add(read)
    crowd.add(write)
    with crowd.running(2):
        pass


def test_between_any_two_steps_of_the_end_nobody_finds_an_old_value_after_a_new_one(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.update(a=1, b=[1], c=1, gone=1)
    store.save()
    store.update(b=[1], c=1)
    engine = store._engine
    found: list[list[Any]] = []

    def look(*_: Any) -> None:
        for keys in ("abcde", "edcba"):
            found.append([str(store.get("gone" if key == "e" else key, None)) for key in keys])

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            look()
            done = original(*arguments)
            look()
            return done

        monkeypatch.setattr(owner, name, watched)

    with store.transaction() as txn:
        txn.update(a=2, b=[2], c=2, d=2)
        del txn["gone"]
        watch(engine.journal, "append_batch")
        watch(engine._active, "put_many")
        watch(engine.hot, "put")
        watch(engine.hot, "discard")
        watch(engine, "tell")
    monkeypatch.undo()
    old, new = ["1", "[1]", "1", "None", "1"], ["2", "[2]", "2", "2", "None"]
    states = [values if number % 2 == 0 else values[::-1] for number, values in enumerate(found)]
    assert [state for at, state in enumerate(states) if at == 0 or state != states[at - 1]] == [old, new]


# Conflicts

READS: dict[str, Callable[[Any], Any]] = {
    "a value": lambda txn: txn["k"],
    "get": lambda txn: txn.get("k"),
    "in": lambda txn: "k" in txn,
    "get_many": lambda txn: txn.get_many(["j", "k"]),
    "ttl": lambda txn: txn.ttl("k"),
    "a range": lambda txn: list(txn.keys(start="k", stop="l")),
    "a prefix": lambda txn: list(txn.items(prefix="k")),
    "a reversed range": lambda txn: list(txn.values(reverse=True)),
    "len": len,
    "delete": lambda txn: txn.pop("k"),
    "incr": lambda txn: txn.incr("k"),
    "touch": lambda txn: txn.touch("k", 50),
}
CHANGES: dict[str, Callable[[Any], Any]] = {
    "set": lambda store: store.set("k", 2),
    "the same value": lambda store: store.set("k", 1),
    "delete": lambda store: store.pop("k"),
    "set_many": lambda store: store.set_many({"k": 3, "x": 1}),
    "delete_many": lambda store: store.delete_many(["k"]),
    "incr": lambda store: store.incr("k"),
    "touch": lambda store: store.touch("k", 5),
    "persist": lambda store: (store.touch("k", 5), store.persist("k")),
    "clear": lambda store: store.clear(),
    "transaction": lambda store: store.transact(lambda txn: txn.set("k", 9)),
    "sub-store": lambda store: (store.set("k", 7), store.sub("s").update(k=8)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("move", ["hot", "cold"])
def test_what_was_read_and_then_changed_is_a_conflict(store: Any, read: str, change: str, move: str) -> None:
    store.update({"k": 1, "j": 0})
    MOVES[move](store)
    txn = store.transaction()
    READS[read](txn)
    txn["written"] = 1
    CHANGES[change](store)
    before = dict(store)
    sequence = store.stats().last_sequence
    with pytest.raises(ConflictError, match="run it again"):
        txn.get("other")
    fails(txn)
    assert dict(store) == before
    assert "written" not in store
    assert store.stats().last_sequence == sequence


@pytest.mark.parametrize(
    ("key", "shown"),
    [(("user", 7), r"key \('user', 7\) was"), ("k" * 470, "key 'kkk.*k... was"), ("k" * 600, "a long key that begins")],
    ids=["short", "wide", "long"],
)
def test_a_conflict_names_the_key_as_the_program_knows_it(store: Any, key: Any, shown: str) -> None:
    store[key] = 1
    txn = store.transaction()
    txn.get(key)
    store[key] = 2
    with pytest.raises(ConflictError, match=shown):
        txn.get(key)
    txn.rollback()


ABSENCES: dict[str, Callable[[Any], Any]] = {
    "get": lambda txn: txn.get("k"),
    "in": lambda txn: "k" in txn,
    "a missing key": lambda txn: suppressed(KeyError, txn.__getitem__, "k"),
    "setdefault": lambda txn: txn.setdefault("k", 5),
    "a missing key popped": lambda txn: txn.pop("k", None),
    "an empty range": lambda txn: list(txn.keys(start="j", stop="l")),
    "an empty prefix": lambda txn: list(txn.keys(prefix="k", reverse=True)),
    "a range around it": lambda txn: list(txn.items()),
    "len": len,
}


@pytest.mark.parametrize("read", ABSENCES)
def test_what_was_absent_and_then_written_is_a_conflict(store: Any, read: str) -> None:
    store.update({"a": 1, "z": 2})
    txn = store.transaction()
    ABSENCES[read](txn)
    txn["written"] = 1
    store["k"] = 1
    fails(txn)
    assert dict(store) == {"a": 1, "k": 1, "z": 2}


def test_a_key_that_appears_in_a_range_that_was_read_is_a_conflict_over_many_pages(store: Any) -> None:
    store.update({number: number for number in range(0, 4000, 2)})
    store.save()
    for reverse in (False, True):
        for new in (1, 1999, 3997):
            txn = store.transaction()
            assert len(list(txn.keys(start=0, stop=3998, reverse=reverse))) == 1999
            txn["sum"] = 1
            store[new] = 0
            fails(txn)
            del store[new]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_range_read_half_way_covers_what_was_seen_and_no_more(store: Any, reverse: bool) -> None:
    store.update({number: number for number in range(0, 100, 2)})

    def half_way() -> Any:
        txn = store.transaction()
        for key in txn.keys(start=10, stop=90, reverse=reverse):
            if key == 50:
                break
        txn["written"] = 1
        return txn

    unseen, seen = ((8, 9, 10, 48, 49, 90), (50, 51, 88, 89)) if reverse else ((8, 51, 52, 89, 90), (10, 11, 49, 50))
    for key in unseen:
        txn = half_way()
        store[key] = -1
        txn.commit()
    for key in seen:
        txn = half_way()
        store[key] = -1
        fails(txn)


def test_a_first_or_last_key_covers_the_range_up_to_it_and_no_more(store: Any) -> None:
    store.update({number: number for number in range(10, 20)})
    txn = store.transaction()
    assert next(iter(txn)) == 10
    assert txn
    assert txn.popitem() == (19, 19)
    store[15] = "another"
    txn.commit()
    txn = store.transaction()
    assert txn.popitem() == (18, 18)
    store[40] = "later"
    fails(txn)


def test_a_key_that_expires_after_it_was_read_is_a_conflict(opener: Any, clock: ManualClock) -> None:
    store = opener(stepwise=True, clock=clock)
    reads: list[Callable[[Any], Any]] = [
        lambda txn: txn["k"],
        lambda txn: "k" in txn,
        lambda txn: list(txn.items(prefix="k")),
        len,
        lambda txn: txn.touch("k", None),
    ]
    for move in (lambda store: None, evict, lambda store: (store.save(), evict(store))):
        for read in reads:
            store.set("k", 1, ttl=10)
            store.set("other", 1, ttl=1000)
            move(store)
            txn = store.transaction()
            read(txn)
            txn["written"] = 1
            clock.sleep(11)
            assert "expired" in fails(txn)
            assert "written" not in store


def test_a_key_that_expires_unread_is_no_conflict(opener: Any, clock: ManualClock) -> None:
    store = opener(stepwise=True, clock=clock)
    store.set("k", 1, ttl=10)
    store["other"] = 1
    with store.transaction() as txn:
        assert txn["other"] == 1
        txn["k"] = 2
        clock.sleep(11)
        txn["written"] = 1
    assert (store["k"], store.ttl("k")) == (2, None)


def test_reading_ones_own_writes_is_no_conflict(store: Any) -> None:
    store["k"] = 1
    with store.transaction() as txn:
        txn["k"] = 2
        assert txn["k"] == 2
        assert txn.incr("k") == 3
        assert txn.pop("k") == 3
        store["k"] = 9
        assert "k" not in txn
    assert "k" not in store


def test_writing_without_reading_is_no_conflict_and_the_last_wins(store: Any) -> None:
    one, other = store.transaction(), store.transaction()
    one["k"] = 1
    other["k"] = 2
    other.commit()
    assert store["k"] == 2
    one.commit()
    assert store["k"] == 1


def test_a_transaction_that_only_read_never_fails_at_its_end(store: Any) -> None:
    store["k"] = 1
    with store.transaction() as txn:
        assert txn["k"] == 1
        assert len(txn) == 1
        store["k"] = 2
    sequence = store.stats().last_sequence
    with store.transaction():
        pass
    assert store.stats().last_sequence == sequence


def test_reads_after_a_change_fail_rather_than_show_two_moments(store: Any) -> None:
    store.update(a=1, b=1)
    with pytest.raises(ConflictError), store.transaction() as txn:  # noqa: PT012
        assert txn["a"] == 1
        store.update(a=2, b=2)
        pytest.fail(f"read {txn['b']}")
    with pytest.raises(ConflictError), store.transaction() as txn:  # noqa: PT012
        for _ in txn.items():
            store.update(a=3, b=3)
            list(txn.items())
            pytest.fail("read two moments")


def test_disjoint_keys_and_ranges_are_no_conflict(store: Any) -> None:
    store.update({("user", number): number for number in range(50)} | {("other", 1): 1, "a": 0, "k" * 600: 1})
    store.save()
    evict(store)
    with store.transaction() as txn:
        assert txn[("user", 7)] == 7
        assert "missing" not in txn
        assert list(txn.keys(prefix=("user",), start=("user", 40)))
        assert txn["k" * 600] == 1
        store["missing2"] = 1
        store["k" * 600 + "!"] = 1
        store[("user", 39)] = 0
        store[("user", 8)] = 0
        store[("users", 8)] = 0
        store.pop("a")
        store.incr(("other", 1))
        txn["done"] = True
    assert store["done"]


def test_checkpoints_merges_compaction_and_eviction_in_between_are_no_conflict(store: Any) -> None:
    store.update({number: [number] for number in range(300)})
    with store.transaction() as txn:
        for number, move in enumerate(MOVES.values()):
            assert txn[number] == [number]
            txn[number] = ["new", number]
            assert len(list(txn.items())) == 300
            move(store)
            store.tick()
        assert len(txn) == 300
    assert [store[number] for number in range(7)] == [["new", number] for number in range(7)]
    store.save()
    evict(store)
    assert [store[number] for number in range(8)] == [*(["new", number] for number in range(7)), [7]]


@pytest.mark.parametrize("helper", [False, True], ids=["inline", "helper"])
def test_transfers_by_many_threads_keep_the_sum_and_lose_none(opener: Any, helper: bool) -> None:
    store = opener(helper=helper)
    store.update(dict.fromkeys(range(8), 100))
    crowd = Crowd()
    done = [0] * 3

    def transfer(thread: int) -> None:
        step = thread
        while not crowd.stop.is_set():
            step = step * 31 + 7 & 0xFFFF

            def move(txn: Any, step: int = step) -> None:
                txn[step % 8] -= 1
                txn[step // 8 % 8] += 1
                txn.incr("count")
                txn["filling", step] = bytes(2000)

            store.transact(move, 1000)
            done[thread] += 1

    def look() -> None:
        while not crowd.stop.is_set():
            with suppress(ViewExpiredError), store.view() as view:  # It keeps much of so little memory.
                assert sum(view.values(start=0, stop=8)) == 800
            assert sum(store.transact(lambda txn: list(txn.values(start=0, stop=8)), 1000)) == 800

    for thread in range(3):
        crowd.add(transfer, thread)
    crowd.add(look)
    with crowd.running(2):
        pass
    assert store["count"] == sum(done) > 10
    assert sum(store[number] for number in range(8)) == 800
    assert store._engine.watchers == set()


# The end


def test_an_ended_transaction_raises_closed_error(store: Any) -> None:
    store["k"] = 1
    for end in ("commit", "rollback"):
        txn = store.transaction()
        txn["mine"] = 1
        getattr(txn, end)()
        uses: list[Callable[[Any], Any]] = [
            lambda txn: txn["k"],
            lambda txn: txn["mine"],
            lambda txn: "k" in txn,
            lambda txn: len(txn),
            lambda txn: list(txn),
            lambda txn: txn.set("k", 2),
            lambda txn: txn.__delitem__("k"),
            lambda txn: txn.get_many(["k"]),
            lambda txn: txn.incr("k"),
            lambda txn: txn.ttl("k"),
            lambda txn: txn.clear(),
            lambda txn: txn.commit(),
        ]
        for use in uses:
            with pytest.raises(ClosedError, match="ended"):
                use(txn)
        txn.rollback()
        assert "ended" in repr(txn)
        assert not txn._pending, "its memory is let go of, even while somebody keeps it"
    assert store["k"] == 1


def test_a_closed_store_ends_its_transactions(opener: Any) -> None:
    store = opener(stepwise=True)
    txn = store.transaction()
    txn["a"] = 1
    store.close()
    for use in (lambda: txn["b"], txn.commit):
        with pytest.raises(ClosedError):
            use()
    assert dict(opener()) == {}


def test_a_read_only_store_refuses_a_transaction_when_it_begins(opener: Any) -> None:
    opener().close()
    reader = opener(flag="r")
    for begin in (reader.transaction, lambda: reader.transact(lambda txn: 1), reader.edit("k", []).__enter__):
        with pytest.raises(ReadOnlyError):
            begin()


def test_a_transaction_above_the_write_buffer_is_refused_and_changes_nothing(store: Any) -> None:
    store["k"] = 1
    value = bytes(10_000)
    with pytest.raises(BatchTooLargeError, match="262,144"), store.transaction() as txn:  # noqa: PT012
        txn["k"] = 2
        for number in range(100):
            txn[number] = value
    assert dict(store) == {"k": 1}
    with store.transaction() as txn:
        for number in range(20):
            txn[number] = value
        with pytest.raises(BatchTooLargeError):
            txn.update((number, value) for number in range(20, 30))
        for number in range(20):
            txn[number] = b""  # What is replaced takes nothing.
        for number in range(10, 30):
            txn[number] = value
    assert len(store) == 31


def test_transactions_as_large_as_allowed_fit_whatever_is_in_the_buffer(store: Any) -> None:
    for step in range(12):
        with store.transaction() as txn:
            for number in range(25):
                txn[number] = bytes([step]) * 10_000
        store[("between", step)] = bytes(30_000)
    assert {store[number][0] for number in range(25)} == {11}
    assert store.stats().checkpoints > 3


def test_an_abandoned_transaction_leaves_nothing_and_warns_of_the_writes_that_are_lost(store: Any) -> None:
    store["k"] = 1
    with pytest.warns(
        ResourceWarning, match=r"1 writes are lost; use it in a `with` block, or call commit\(\)"
    ) as told:
        for _ in range(5):
            txn = store.transaction()
            assert txn["k"] == 1
            txn["mine"] = 1
            iterator = iter(txn)
            next(iterator)
        assert len(store._engine.watchers) == 1
        del txn, iterator
        gc.collect()
    assert len(told) == 5
    store.transaction().get("k")  # Without a write there is nothing to warn of, nor after its end.
    ended = store.transaction()
    ended["mine"] = 1
    ended.rollback()
    del ended
    assert store._engine.watchers == set()
    assert dict(store) == {"k": 1}
    with pytest.raises(ConflictError) as kept, store.transaction() as txn:  # noqa: PT012
        txn["k"]
        store["k"] = txn["x"] = 2
    assert store._engine.watchers == set(), f"though there is {kept.value!r}, with its traceback"


@pytest.mark.parametrize("cut", ["between records", "inside the last"])
def test_a_transaction_is_one_unit_of_the_journal(opener: Any, tmp_path: Path, cut: str) -> None:
    store = opener(stepwise=True)
    store.update(a=1, b=1, c=1)
    segment = store._engine._active.segment
    before = segment.position
    with store.transaction() as txn:
        txn.update(a=2, d=2)
        del txn["b"]
    end = segment.position
    ends = [position for position, *_ in segment.heads(before)][1:]
    assert len(ends) == 2
    for number, at in enumerate((*ends, end) if cut == "between records" else (end - 1,)):
        left = tmp_path / f"left-{number}"
        shutil.copytree(store.path, left)
        journal = left / segment.path.name
        data = bytearray(journal.read_bytes())
        data[at:] = bytes(len(data) - at)
        journal.write_bytes(data)
        with tiered.open(left, helper=False) as again:
            whole = {"a": 2, "c": 1, "d": 2}
            assert dict(again) == (whole if at == end else {"a": 1, "b": 1, "c": 1})
            assert again.check() == []


def test_an_interrupt_in_the_middle_of_the_end_leaves_all_or_nothing(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.update(a=1, b=1)
    engine = store._engine
    for owner, name, written in (
        (engine.journal, "append_batch", False),
        (engine._active, "put_many", True),
        (engine.hot, "put", True),
        (engine.hot, "discard", True),
    ):
        original = getattr(owner, name)

        def interrupted(*arguments: Any, original: Any = original) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt), store.transaction() as txn:  # noqa: PT012
            txn.update(a=name, c=name)
            del txn["b"]
        monkeypatch.undo()
        expected = {"a": name, "c": name} if written else {"a": 1, "b": 1}
        assert dict(store) == expected
        assert [store.get(key) for key in "abc"] == [expected.get(key) for key in "abc"]
        assert store.check() == []
        store["b"] = 1


def test_a_transaction_cannot_end_in_the_middle_of_another_operation(store: Any) -> None:
    txn = store.transaction()
    txn["a"] = 1
    with store._engine.lock, pytest.raises(ReentrantError):
        txn.commit()
    assert dict(store) == {}


def test_a_deadline_is_journaled_with_each_key_of_a_transaction(opener: Any, clock: ManualClock) -> None:
    store = opener(stepwise=True, clock=clock)
    with store.transaction() as txn:
        txn.set("short", 1, ttl=5)
        txn.set("long", 1, ttl=500)
        txn["ever"] = 1
        txn.set("shortest", 1, ttl=1)
    clock.sleep(2)
    assert len(store) == 3
    store.set("short", 1, ttl=5)
    store.set("long", 1, ttl=500)
    store.close()
    store = opener(stepwise=True, clock=clock)
    assert (store.ttl("short"), store.ttl("long"), store.ttl("ever")) == (5, 500, None)
    clock.sleep(6)
    assert set(store) == {"long", "ever"}


def test_the_default_ttl_holds_in_transactions(opener: Any, clock: ManualClock) -> None:
    store = opener(stepwise=True, clock=clock, default_ttl=20)
    with store.transaction() as txn:
        txn["a"] = 1
        txn.set("b", 1, ttl=None)
        txn.incr("c")
    assert [store.ttl(key) for key in "abc"] == [20, None, 20]


# transact


def test_transact_returns_what_the_function_returns_and_runs_it_again_after_a_conflict(store: Any) -> None:
    store["k"] = 0
    calls = []

    def run(txn: Any) -> str:
        value = txn["k"]
        calls.append(value)
        if len(calls) < 4:
            store["k"] = value + 10
        txn["k"] = value + 1
        return "done"

    assert store.transact(run) == "done"
    assert calls == [0, 10, 20, 30]
    assert store["k"] == 31


def test_transact_gives_up_after_so_many_attempts(store: Any) -> None:
    calls = []

    def run(txn: Any) -> None:
        calls.append(txn.get("k"))
        store["k"] = len(calls)
        txn["mine"] = 1

    with pytest.raises(ConflictError):
        store.transact(run, attempts=3)
    assert len(calls) == 3
    assert "mine" not in store
    with pytest.raises(tiered.ConfigError, match="attempts"):
        store.transact(run, attempts=0)


def test_transact_passes_other_errors_on_at_once_and_rolls_back(store: Any) -> None:
    calls = []

    def run(txn: Any) -> None:
        calls.append(1)
        txn["k"] = 1
        raise LookupError("mine")

    with pytest.raises(LookupError):
        store.transact(run)
    assert (calls, dict(store)) == ([1], {})


# edit


@in_every_tier
def test_edit_changes_a_value_in_place(store: Any, move: str) -> None:
    store.update(list=[1], dict={"a": [1]}, set={1}, array=np.arange(6).reshape(2, 3), inside={"x": [np.zeros(2)]})
    MOVES[move](store)
    with store.edit("list") as value:
        value.append(2)
        assert store["list"] == [1]
    with store.edit("dict") as value:
        value["a"].append(2)
    with store.edit("set") as value:
        value.add(2)
    with store.edit("array") as value:
        value[0, 0] = 9
    with store.edit("inside") as value:
        value["x"][0][1] = 5
    assert (store["list"], store["dict"], store["set"]) == ([1, 2], {"a": [1, 2]}, {1, 2})
    assert store["array"].tolist() == [[9, 1, 2], [3, 4, 5]]
    assert store["inside"]["x"][0].tolist() == [0, 5]


def test_edit_keeps_the_time_to_live(opener: Any, clock: ManualClock) -> None:
    store = opener(stepwise=True, clock=clock, default_ttl=7)
    store.set("k", [1], ttl=100)
    store.set("ever", [1], ttl=None)
    clock.sleep(10)
    for key in ("k", "ever"):
        with store.edit(key) as value:
            value.append(2)
    with store.edit("new", []) as value:
        value.append(1)
    assert (store.ttl("k"), store.ttl("ever"), store.ttl("new")) == (90, None, 7)


@pytest.mark.parametrize(
    "value", [5, "text", b"x", None, True, 1.5, (1, []), frozenset({1}), 1j, Decimal(1), date(2020, 1, 1), np.int64(3)]
)
def test_edit_of_what_cannot_be_changed_in_place_is_a_type_error(store: Any, value: Any) -> None:
    store["k"] = value
    sequence = store.stats().last_sequence
    with pytest.raises(TypeError, match="assign"), store.edit("k"):
        pytest.fail("given")
    with pytest.raises(TypeError, match="assign"), store.edit("new", value):
        pytest.fail("given")
    assert store.stats().last_sequence == sequence


def test_edit_of_a_missing_key_is_a_key_error_or_stores_the_default(store: Any) -> None:
    with pytest.raises(KeyError, match="no"), store.edit("no"):
        pytest.fail("given")
    default: list[int] = []
    with store.edit("k", default) as value:
        value.append(1)
    assert (store["k"], default) == ([1], [])
    with store.edit("unchanged", {}):
        pass
    assert store["unchanged"] == {}


@pytest.mark.parametrize(
    "value",
    [
        [1, {"a": 2}],
        set(range(50)) | {"a", "b", "c", (1, 2)},
        {"s": {"x", "y", "z", 0.5}},
        SHRUNK,
        np.asfortranarray(np.ones((3, 4))),
        [np.ones((3, 4)).T, np.float32(1)],
        {},
    ],
)
def test_edit_writes_nothing_when_nothing_was_changed(opener: Any, value: Any) -> None:
    store = opener(stepwise=True)
    store["k"] = value
    store.close()
    store = opener(stepwise=True)
    sequence = store.stats().last_sequence
    with store.edit("k") as found:
        assert type(found) is type(value)
    assert store.stats().last_sequence == sequence


def test_edit_while_another_writes_the_key_is_a_conflict_and_leaves_the_others_value(store: Any) -> None:
    store["k"] = [1]
    with pytest.raises(ConflictError), store.edit("k") as value:  # noqa: PT012
        value.append(2)
        store["k"] = ["other"]
    assert store["k"] == ["other"]
    with pytest.raises(ConflictError), store.edit("new", []) as value:
        store["new"] = 1
    assert store["new"] == 1


def test_an_exception_in_edit_writes_nothing(store: Any) -> None:
    store["k"] = [1]
    with pytest.raises(ZeroDivisionError), store.edit("k") as value:
        value.append(1 / 0)
    with pytest.raises(TypeError), store.edit("k") as value:
        value.append(object())
    assert store["k"] == [1]
    assert store._engine.watchers == set()


def test_edit_of_a_value_larger_than_a_batch_is_as_good_as_an_assignment(store: Any) -> None:
    store["k"] = [bytes(300_000)]
    with store.edit("k") as value:
        value.append(bytes(500_000))
    assert store["k"] == [bytes(300_000), bytes(500_000)]


def test_edit_within_a_transaction_belongs_to_it(store: Any) -> None:
    store["k"] = [1]
    with store.transaction() as txn:
        with txn.edit("k") as value:
            value.append(2)
        assert txn["k"] == [1, 2]
        assert store["k"] == [1]
        with txn.edit("new", {}) as value:
            value["a"] = 1
    assert (store["k"], store["new"]) == ([1, 2], {"a": 1})


def test_no_edit_of_many_threads_is_lost(store: Any) -> None:
    store["k"] = []

    def add(number: int) -> None:
        for step in range(30):
            while True:
                try:
                    with store.edit("k") as value:
                        value.append((number, step))
                    break
                except ConflictError:
                    continue

    threads = [threading.Thread(target=add, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(store["k"]) == [(number, step) for number in range(3) for step in range(30)]


def test_a_transaction_shows_its_path_and_never_its_values(store: Any) -> None:
    with store.transaction() as txn:
        txn["secret key"] = "secret value"
        assert "1 write" in repr(txn)
        assert store.path in repr(txn)
        assert "secret" not in repr(txn)


def test_len_is_no_conflict_when_only_a_deadline_passes_that_was_replaced(
    opener: Any, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener(stepwise=True, clock=clock)
    store.set("cold", 1, ttl=10)
    store.set("aside", 1, ttl=10)
    store.set("dirty", 1, ttl=10)
    store.save()
    store.set("aside", 2, ttl=15)
    set_aside(store)
    monkeypatch.setattr(store._engine.checkpointer, "run", lambda slices=False: False)
    for key in ("cold", "aside", "dirty"):
        store.set(key, 3, ttl=None)
    with store.transaction() as txn:
        assert len(txn) == 3
        txn["w"] = 1
        clock.sleep(20)
    monkeypatch.undo()
    store.set("soon", 1, ttl=10)
    txn = store.transaction()
    assert len(txn) == 5
    txn["w"] = 2
    clock.sleep(20)
    assert "expired" in fails(txn)


@pytest.mark.parametrize("settle", [lambda store: None, set_aside, evict])
def test_a_deadline_passes_without_conflict_where_the_transaction_has_written_the_key_itself(
    opener: Any, clock: ManualClock, settle: Any
) -> None:
    store = opener(stepwise=True, clock=clock)
    store.update({"a": 1, "z": 1})
    store.set("k", 1, ttl=10)
    settle(store)
    for look in (len, list, lambda txn: list(txn.items(reverse=True))):
        store.set("k", 1, ttl=10)
        settle(store)
        with store.transaction() as txn:
            txn["k"] = 2
            looked = look(txn)
            assert (looked if look is len else len(looked)) == 3
            clock.sleep(20)
        assert store["k"] == 2


@pytest.mark.parametrize("reverse", [False, True])
def test_a_deadline_of_what_a_range_left_half_way_did_not_come_to_is_no_conflict(
    opener: Any, clock: ManualClock, reverse: bool
) -> None:
    store = opener(stepwise=True, clock=clock)
    store.set("a", 1, ttl=10 if reverse else None)
    store.set("z", 1, ttl=None if reverse else 10)
    with store.transaction() as txn:
        assert next(iter(txn.keys(reverse=reverse))) == ("z" if reverse else "a")
        txn["w"] = 1
        clock.sleep(20)
    assert store["w"] == 1
    store.set("z", 1, ttl=10)
    txn = store.transaction()
    for _ in txn.keys(reverse=reverse):
        pass
    txn["w"] = 2
    clock.sleep(20)
    assert "expired" in fails(txn)


def test_a_transaction_is_over_when_its_handle_is_closed_though_another_is_open(opener: Any) -> None:
    store, other = opener(), opener()
    store["a"] = 1
    txn = other.transaction()
    assert txn["a"] == 1
    txn["b"] = 2
    other.close()
    for call in (lambda: txn["a"], lambda: len(txn), lambda: list(txn), txn.commit):
        with pytest.raises(tiered.ClosedError):
            call()
    assert dict(store) == {"a": 1}


def test_two_edits_of_one_key_at_once_lose_none_silently(store: Any) -> None:
    store["list"] = []

    def nested(txn: Any) -> None:
        with txn.edit("list") as outer:
            with txn.edit("list") as inner:
                inner.append("inner")
            outer.append("outer")

    with pytest.raises(ConflictError, match=r"edit\(\)"):
        store.transact(nested, 1)
    assert store["list"] == []
    with store.transaction() as txn:
        for word in ("one", "two"):
            with txn.edit("list") as value:
                value.append(word)
    assert store["list"] == ["one", "two"]


def test_a_transaction_may_be_ended_inside_its_block(store: Any) -> None:
    with store.transaction() as txn:
        txn["a"] = 1
        txn.commit()
    with store.transaction() as txn:
        txn["b"] = 1
        txn.rollback()
    assert dict(store) == {"a": 1}


def test_transact_refuses_what_has_yet_to_run(store: Any) -> None:
    async def coroutine(txn: Any) -> None:
        txn["a"] = 1

    def generator(txn: Any) -> Any:
        txn["a"] = 1
        yield

    def written_and_awaitable(txn: Any) -> Any:
        txn["a"] = 1
        return generator(txn)

    with pytest.warns(RuntimeWarning, match="never awaited"), pytest.raises(TypeError, match=r"tiered\.aio"):
        store.transact(coroutine)
    for run in (generator, written_and_awaitable):
        with pytest.raises(TypeError, match="ordinary function"):
            store.transact(run)
    assert dict(store) == {}
