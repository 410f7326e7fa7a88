"""What a store promises apart from being a mapping: values, batches, settings, errors, looking inside."""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contracts import damage, evict, merge, set_aside, stored_bytes_of, upset_accounts

import tiered
from tiered import codec, keys


@pytest.fixture
def store(opener: Any) -> Any:
    return opener(stepwise=True)


def settled(store: Any) -> list[Callable[[], Any]]:
    """Steps that move records from tier to tier; what is read must not depend on them."""
    return [
        lambda: None,
        lambda: evict(store),
        lambda: (set_aside(store), evict(store)),
        lambda: (store.save(), evict(store)),
        lambda: (merge(store), evict(store)),
        lambda: (store.compact(), evict(store)),
    ]


# Values


def test_changing_a_value_after_writing_or_reading_it_changes_nothing_in_the_store(store: Any) -> None:
    value = {"list": [1, 2], "set": {3}}
    store["k"] = value
    value["list"].append(3)
    for step in settled(store):
        step()
        for read in (store["k"], store.get("k"), store.get_many(["k"])["k"], dict(store.items())["k"]):
            assert read == {"list": [1, 2], "set": {3}}
            read["list"].append(4)
    given: list[int] = []
    store.setdefault("default", given).append(1)
    assert given == []
    given.append(2)
    assert store["default"] == []


@pytest.mark.parametrize("value", [object(), lambda: 0, [object()], {"k": open}, {1: {2: object()}}, iter("ab")])
def test_a_value_that_cannot_be_kept_is_refused_when_written_and_changes_nothing(store: Any, value: Any) -> None:
    store["k"] = "old"
    before = store.stats().last_sequence
    for write in (
        lambda: store.__setitem__("k", value),
        lambda: store.set("k", value, ttl=5),
        lambda: store.setdefault("absent", value),
        lambda: store.set_many({"a": 1, "k": value}),
    ):
        with pytest.raises(TypeError):
            write()
    assert dict(store) == {"k": "old"}
    assert store.stats().last_sequence == before


@pytest.mark.parametrize("key", [None, 1.5, float("nan"), [1], {1}, ("a", None), ("a", [1]), object(), b"".join])
def test_what_is_no_key_is_a_type_error_everywhere(store: Any, key: Any) -> None:
    for use in (
        lambda: store[key],
        lambda: store.get(key),
        lambda: key in store,
        lambda: store.__setitem__(key, 1),
        lambda: store.__delitem__(key),
        lambda: store.pop(key, None),
        lambda: store.setdefault(key, 1),
        lambda: store.incr(key),
        lambda: store.touch(key, 1),
        lambda: store.persist(key),
        lambda: store.ttl(key),
        lambda: store.get_many(["a", key]),
        lambda: store.set_many([("a", 1), (key, 1)]),
        lambda: store.delete_many([key]),
        lambda: store.explain(key),
        lambda: store.keys(start=1.5 if key is None else key),
    ):
        with pytest.raises(TypeError):
            use()
    assert len(store) == 0


def test_the_default_of_get_may_be_named_and_the_key_may_not(store: Any) -> None:
    store["key"] = "value"
    get = store.get
    assert (get("key", default=1), get("no", default=1), get("no", 1), get("no")) == ("value", 1, 1, None)
    for arguments, named in (((), {}), ((), {"key": "key"}), (("key", 1, 2), {}), (("key",), {"other": 1})):
        with pytest.raises(TypeError):
            get(*arguments, **named)


def test_a_key_above_32_kib_is_refused_and_one_of_exactly_that_length_is_not(store: Any) -> None:
    longest = "k" * (keys.KEY_BYTES_MAX - 1)
    store[longest] = 1
    store.save()
    evict(store)
    assert store[longest] == 1
    assert list(store) == [longest]
    for use in (lambda: store[longest + "k"], lambda: store.set(longest + "k", 1)):
        with pytest.raises(tiered.KeyTooLongError):
            use()


def test_a_value_of_many_times_the_budget_is_kept_exactly(store: Any) -> None:
    large = bytes(range(256)) * 40_000
    store["large"] = large
    store["list"] = [large]
    for step in settled(store):
        step()
        assert store["large"] == large
        assert store["list"] == [large]


# Numbers


@pytest.mark.parametrize(
    ("first", "by", "total"),
    [(1, 2, 3), (1, -5, -4), (2**64, 2**64, 2**65), (0.5, 1, 1.5), (1, 0.25, 1.25), (10**40, 1, 10**40 + 1)],
)
def test_incr_adds_wherever_the_number_is(store: Any, first: Any, by: Any, total: Any) -> None:
    for step in settled(store):
        store["k"] = first
        step()
        assert store.incr("k", by) == total
        assert store["k"] == total
        assert type(store["k"]) is type(total)
        store["other"] = 1  # So that the next step has something to do.


@pytest.mark.parametrize("value", ["1", b"1", None, True, [1], 1j])
def test_incr_of_what_is_no_number_is_a_type_error_and_changes_nothing(store: Any, value: Any) -> None:
    store["k"] = value
    with pytest.raises(TypeError, match="incr"):
        store.incr("k")
    with pytest.raises(TypeError, match="incr"):
        store.incr("absent", value)
    assert dict(store) == {"k": value}


# Batches


def test_set_many_takes_endless_iterators_in_chunks_each_of_them_whole(store: Any) -> None:
    def endless() -> Any:
        number = 0
        while True:
            if number == 3500:
                raise RuntimeError("enough")
            yield number, str(number)
            number += 1

    with pytest.raises(RuntimeError, match="enough"):
        store.set_many(endless())
    assert dict(store) == {number: str(number) for number in range(len(store))}
    assert len(store) == 3000


def test_a_batch_that_fails_to_encode_leaves_whole_chunks_only(store: Any) -> None:
    with pytest.raises(TypeError):
        store.set_many((number, object() if number == 1500 else number) for number in range(3000))
    assert len(store) == 1000


def test_the_last_of_equal_keys_in_a_batch_wins(store: Any) -> None:
    store.set_many([("k", 1), (1, "int"), ("k", 2), (True, "bool"), ("k", 3)])
    assert dict(store) == {"k": 3, 1: "bool"}
    store.save()
    evict(store)
    assert dict(store) == {"k": 3, 1: "bool"}


def test_get_many_returns_existing_keys_in_the_order_asked_for_each_once(store: Any) -> None:
    store.update({number: [number] for number in range(30)})
    store.save()
    evict(store)
    store.update({number: [number] for number in range(0, 30, 3)})
    wanted = [7, 100, 3, 7, 0, 29, "no", 3]
    found = store.get_many(wanted)
    assert list(found.items()) == [(7, [7]), (3, [3]), (0, [0]), (29, [29])]
    assert store.get_many([]) == {}
    assert store.get_many(iter([1])) == {1: [1]}


def test_delete_many_counts_each_existing_key_once(store: Any) -> None:
    store.update({number: number for number in range(2500)})
    store.save()
    assert store.delete_many([*range(0, 2500, 2), 0, 1.0, 5000, *range(10)]) == 1250 + 5
    assert len(store) == 1245
    assert store.delete_many(range(2500)) == 1245
    assert store.delete_many([]) == store.delete_many([1]) == 0


# Damage


def test_every_single_byte_of_a_cold_record_is_guarded(store: Any) -> None:
    value = {"name": "value" * 40, "number": 5}
    for key in ("k", ("long", "x" * 600)):
        store.set(key, value, ttl=1000)
        store.save()
        evict(store)
        (data,) = stored_bytes_of(store, key).values()
        for at in range(len(data)):
            damage(store, key, at)
            for read in (store.__getitem__, store.get, store.__contains__, store.ttl, store.explain):
                with pytest.raises(tiered.CorruptionError, match="damaged"):
                    read(key)
            damage(store, key, at)
        assert store[key] == value


def test_a_record_damaged_into_one_that_looks_expired_is_not_passed_over_in_silence(store: Any) -> None:
    store["k"] = "\1" + "\0" * 8
    store["other"] = 1
    store.save()
    evict(store)
    damage(store, "k", 7)  # The flag for a deadline: what follows would be one, long passed.
    for read in (lambda: list(store), lambda: list(store.keys(reverse=True)), lambda: store["k"]):
        with pytest.raises(tiered.CorruptionError):
            read()
    store.close()


def test_a_damaged_record_is_no_reason_to_lose_or_refuse_others(store: Any) -> None:
    store.update({key: key * 20 for key in "abc"})
    store.save()
    evict(store)
    damage(store, "b")
    assert store["a"] == "a" * 20
    with pytest.raises(tiered.CorruptionError):
        list(store.values())
    with pytest.raises(tiered.CorruptionError):
        store.get_many([*"abc"])
    assert [*store.keys(stop="b"), *store.keys(start="c")] == ["a", "c"]
    store["d"] = 1
    store.save()
    assert [finding.what for finding in store.check()] == ["damaged record"]
    store["b"] = "cured"
    store.save()
    assert store["b"] == "cured"
    assert store.check() == []


@pytest.mark.parametrize("at", range(32))
def test_overwriting_or_deleting_by_clear_cures_any_damage_and_poisons_nothing(store: Any, at: int) -> None:
    store["k"] = "text " * 300
    store.save()
    evict(store)
    damage(store, "k", at)
    store["k"] = "new"
    store.save()
    evict(store)
    assert store["k"] == "new"
    store["other"] = 1
    store.save()
    assert store.stats().state == "open"
    assert dict(store) == {"k": "new", "other": 1}


def test_a_checkpoint_of_other_keys_goes_on_beside_a_damaged_one_with_a_deadline(opener: Any, clock: Any) -> None:
    store = opener(stepwise=True, clock=clock)
    for at in (7, 8, 10, 14, -1):
        store.set("k", "text " * 300, ttl=10)
        store.save()
        evict(store)
        damage(store, "k", at)
        clock.sleep(20)
        for _ in range(5):
            store.tick()
            clock.sleep(2)
        store["k"] = "kept"
        store.save()
        evict(store)
        assert dict(store) == {"k": "kept"}
    assert store.stats().state == "open"


# Interrupts


def interrupted_at(point: int, call: Callable[[], Any]) -> bool:
    """Call with Ctrl-C pressed at the n-th point where CPython looks; False if it did not get that far.

    It looks where functions begin, after calls, and when loops go back.
    """
    here, left, pressed = str(Path(tiered.__file__).parent), point, False

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal left, pressed
        if event != "c_call" and frame.f_code.co_filename.startswith(here):
            left -= 1
            if left < 0:
                pressed = True
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return pressed


INTERRUPTED: dict[str, tuple[Callable[[Any], Any], dict[Any, Any]]] = {
    "set": (lambda store: store.set("a", "new"), {"a": "new", "b": "old"}),
    "set with ttl": (lambda store: store.set("a", "new", ttl=5000), {"a": "new", "b": "old"}),
    "set_many": (lambda store: store.set_many({"a": "new", "b": "new", "c": 1}), {"a": "new", "b": "new", "c": 1}),
    "del": (lambda store: store.__delitem__("a"), {"b": "old"}),
    "delete_many": (lambda store: store.delete_many(["a", "b"]), {}),
    "touch": (lambda store: store.touch("a", 5000), {"a": "old", "b": "old"}),
}


@pytest.mark.parametrize("what", INTERRUPTED)
def test_an_interrupt_anywhere_in_a_write_leaves_it_in_or_out_in_every_tier(
    opener: Any, quick_path: Path, what: str
) -> None:
    call, after = INTERRUPTED[what]
    before = {"a": "old", "b": "old"}
    wrong, point = [], 0
    while True:
        path = quick_path / str(point)
        store = opener(path, stepwise=True)
        store["a"] = 1
        store.save()
        store.update(before)
        pressed = interrupted_at(point, lambda store=store: call(store))
        states = []
        try:
            assert not store._engine.lock._is_owned(), "the lock is still held"
            states.append(dict(store))
            states.append({key: store[key] for key in store})
            assert store.check() == []
            store["z"] = 1
            states.append({key: value for key, value in store.items() if key != "z"})
            shutil.copytree(path, quick_path / f"{point}-killed")
            store.save()
            evict(store)
            states.append({key: value for key, value in store.items() if key != "z"})
            store.close()
            for left in (path, quick_path / f"{point}-killed"):
                again = opener(left, stepwise=True)
                states.append({key: value for key, value in again.items() if key != "z"})
                assert again["z"] == 1
                again.close()
            assert states[0] in (before, after)
            assert all(state == states[0] for state in states), states
        except (Exception, AssertionError) as error:
            wrong.append((point, repr(error)[:300]))
        if not pressed:
            break
        point += 1
    assert point > 10
    assert wrong == []


# Settings


def test_settings_changed_at_run_time_are_in_force_at_once_and_remembered_but_memory(opener: Any) -> None:
    store = opener(stepwise=True)
    store.config_set("save", [(900, 1)])
    store.config_set("compression", "zlib:5")
    store.config_set("durability", "always")
    store.config_set("memory", "2MB")
    assert store.config_get("memory") == {"memory": 2 << 20}
    expected = store.config_get() | {"memory": 1 << 20}
    assert expected["save"] == ((900, 1),)
    store.close()
    assert opener(stepwise=True).config_get() == expected


def test_config_refuses_what_it_does_not_know_and_what_cannot_change(store: Any) -> None:
    before = store.config_get()
    for name, value in [("nonsense", 1), ("helper", False), ("memory", "1KB"), ("save", "5"), ("durability", "no")]:
        with pytest.raises(tiered.ConfigError):
            store.config_set(name, value)
    with pytest.raises(tiered.ConfigError, match="memory"):
        store.config_get("memroy")
    assert store.config_get() == before
    assert set(store.config_get("d*")) == {"default_ttl", "disk", "disk_full", "durability"}


def test_records_of_every_compression_stay_readable_after_it_changes(store: Any) -> None:
    expected = {}
    for compression in ("zstd:3", "zlib:6", "none", "zstd:-5", "zstd:19"):
        store.config_set("compression", compression)
        store[compression] = expected[compression] = "words of one kind " * 100
        store.save()
        evict(store)
        method = compression.partition(":")[0]
        assert store.explain(compression).compression == method
    assert dict(store) == expected
    store.compact()
    assert dict(store) == expected


# Looking inside


def test_explain_says_where_a_record_is_and_promotes_nothing(store: Any) -> None:
    store.set("k", "x" * 500, ttl=50)
    assert store.explain("k").tiers == ("hot", "write buffer")
    assert store.explain("k").dirty
    evict(store)
    assert store.explain("k").tiers == ("write buffer",)
    store.save()
    explained = store.explain("k")
    assert (explained.tiers, explained.dirty, explained.hot_bytes) == (("cold",), False, 0)
    assert 0 < explained.stored_bytes < explained.payload_bytes
    assert store.stats().hot_records == 0
    assert store["k"]
    assert store.explain("k").tiers == ("hot", "cold")
    assert store.explain("k").hot_bytes > 500


def test_stats_count_reads_by_the_tier_that_answered(store: Any) -> None:
    store["k"] = 1
    assert store["k"] == 1
    evict(store)
    assert store["k"] == 1
    store.save()
    evict(store)
    assert store["k"] == 1
    assert store.get("absent") is None
    stats = store.stats()
    assert (stats.hits, stats.buffer_hits, stats.cold_hits, stats.misses) == (1, 1, 1, 1)
    assert (stats.records, stats.dirty_records, stats.checkpoints) == (1, 0, 1)


def test_memory_accounted_stays_within_the_budget_whatever_is_written(store: Any) -> None:
    for step in range(3000):
        store[step % 700, "key"] = b"x" * (step * 7919 % 9000)
        if not step % 50:
            assert store.memory_stats().accounted_bytes <= 1.05 * (1 << 20)


def test_repr_names_path_and_state_and_no_values(store: Any) -> None:
    store["k"] = "secret"
    assert store.path in repr(store)
    assert "1 dirty" in repr(store)
    assert "secret" not in repr(store) + repr(store.items()) + repr(store.keys())
    store.close()
    assert "closed" in repr(store)


def test_check_finds_what_was_damaged_by_hand(store: Any) -> None:
    store.set("k", "value", ttl=100)
    store.save()
    engine = store._engine
    assert store.check() == []
    with upset_accounts(engine.hot):
        assert [finding.what for finding in store.check()] == ["accounting drift"]
    with engine.cold.update() as update:
        update.current.records += 1
        update.txn.drop(engine.cold.expiry, delete=False)
    assert {finding.what for finding in store.check()} == {"count", "expiry index"}
    store.close()


# Closing


def test_every_operation_on_a_closed_store_is_a_closed_error(store: Any) -> None:
    store["k"] = 1
    store.close()
    store.close()
    for use in (
        lambda: store["k"],
        lambda: store.get("k"),
        lambda: "k" in store,
        lambda: store.__setitem__("k", 1),
        lambda: store.__delitem__("k"),
        lambda: store.pop("k"),
        lambda: store.popitem(),
        lambda: store.setdefault("k"),
        lambda: store.incr("k"),
        lambda: store.touch("k", 1),
        lambda: store.persist("k"),
        lambda: store.ttl("k"),
        lambda: store.get_many(["k"]),
        lambda: store.set_many({"k": 1}),
        lambda: store.delete_many(["k"]),
        lambda: store.clear(),
        lambda: len(store),
        lambda: bool(store),
        lambda: list(store),
        lambda: list(store.items()),
        lambda: store.save(),
        lambda: store.sync(),
        lambda: store.compact(),
        lambda: store.stats(),
        lambda: store.memory_stats(),
        lambda: store.doctor(),
        lambda: store.reclaim(),
        lambda: store.explain("k"),
        lambda: store.check(),
        lambda: store.config_set("memory", "2MB"),
        lambda: store.config_set("save", ""),
        lambda: store.tick(),
    ):
        with pytest.raises(tiered.ClosedError):
            use()


def test_a_with_block_closes_and_what_was_written_is_there_afterwards(opener: Any) -> None:
    with opener() as store:
        store["k"] = [1]
    with pytest.raises(tiered.ClosedError):
        store["k"]
    assert opener()["k"] == [1]


def test_a_store_collected_unclosed_warns_and_loses_nothing(opener: Any, tmp_path: Path) -> None:
    def use() -> None:
        tiered.open(tmp_path / "s", memory="1MB", helper=False)["k"] = 1
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed store"):
        use()
    assert opener("s")["k"] == 1


@pytest.mark.parametrize("value", ["text", 1.5, 2**70, 10**5000, [1, 2], ["\ud800"], {"a": (1,)}, b"x"], ids=type)
def test_check_finds_a_hot_value_that_is_not_the_record_below(store: Any, value: Any) -> None:
    hot = store._engine.hot
    store.update({"k": value, "other": [1, 3], "text": "another"})
    for wrong in ([1, 3], "another", 1, True):
        assert store.check() == []
        hot.put("k", *codec.encode(wrong), 0)
        assert [(found.what, found.where) for found in store.check()] == [("hot differs", "'k'")]
        hot.put("k", *codec.encode(value), 0)


class Fickle(str):
    """Equals its text as often as it has patience, and nothing from then on."""

    patience = 0

    def __eq__(self, other: object) -> bool:
        self.patience -= 1
        return self.patience >= 0 and str.__eq__(self, other)

    def __hash__(self) -> int:
        return str.__hash__(self)


@pytest.mark.parametrize("patience", range(5))
@pytest.mark.parametrize("how", ["del", "pop", "delete_many"])
def test_a_key_that_changes_its_mind_is_removed_or_refused_never_half(store: Any, how: str, patience: int) -> None:
    remove = {"del": store.__delitem__, "pop": store.pop, "delete_many": lambda key: store.delete_many([key])}[how]
    key = Fickle("k")
    store["k"], key.patience = 1, patience
    try:
        remove(key)
    except TypeError:
        assert store["k"] == dict(store)["k"] == 1
    else:
        assert "k" not in store
        assert store.get("k") is None


def test_a_store_is_no_key(store: Any) -> None:
    with pytest.raises(TypeError):
        hash(store)
