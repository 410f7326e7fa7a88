"""Cold reads by the compiled part: what `Store._load` does, its twin in Python, and nothing else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
from conftest import without_background
from contracts import damage, evict, merge, set_aside

import tiered
from tiered import cold_update
from tiered.clock import ManualClock
from tiered.native import native

pytestmark = pytest.mark.skipif(native is None, reason="needs the compiled part: a C compiler, and no TIERED_PURE=1")

DOCUMENT = {"name": "a document", "numbers": list(range(30)), "text": "of some length " * 4}
VALUES: dict[str, Any] = {
    "a document": DOCUMENT,
    "a text": "text",
    "a long text": "text that compresses " * 20,
    "a text beyond ASCII": "Grüße aus Zürich " * 9,
    "lone surrogates": ["\ud800"],
    "bytes": bytes(range(256)),
    "a number": 1.5,
    "None": None,
    "nothing in it": b"",
}
KEYS: dict[str, Any] = {
    "text": "key",
    "text beyond ASCII": "Schlüssel",
    "bytes": b"key",
    "int": -(10**6),
    "tuple": ("user", 7, b"x"),
    "long": "k" * 700,
    "at the limit": "k" * 479,
    "beyond it": "k" * 480,
}
NEIGHBOURS = [f"neighbour {number}" for number in range(len(VALUES))]
Setup = Callable[[Any, Any, ManualClock], Any]


def cold(store: Any, key: Any, value: Any = DOCUMENT, ttl: float | None = None) -> None:
    store.set(key, value, ttl=ttl)
    store.save()
    evict(store)


def warm(store: Any) -> Any:
    """The store, once it has undone a compressed record: the first one is Python's."""
    cold(store, "another")
    assert store["another"] == DOCUMENT
    return store


def later(how: Callable[[Any, Any], Any], seconds: float) -> Setup:
    def setup(store: Any, key: Any, clock: ManualClock) -> None:
        how(store, key)
        clock.sleep(seconds)

    return setup


STATES: dict[str, Setup] = {
    "cold": lambda store, key, _: cold(store, key),
    "in the merged layer": lambda store, key, _: (cold(store, key), merge(store)),
    "newer in a run": lambda store, key, _: (cold(store, key, "older"), merge(store), cold(store, key)),
    "to expire": later(lambda store, key: cold(store, key, ttl=100), 99),
    "expired": later(lambda store, key: cold(store, key, ttl=100), 101),
    "hot and to expire": later(lambda store, key: store.set(key, DOCUMENT, ttl=100), 99),
    "hot and expired": later(lambda store, key: store.set(key, DOCUMENT, ttl=100), 101),
    "promoted and to expire": later(lambda store, key: (cold(store, key, ttl=100), store.get(key)), 99),
    "cold while others are to expire": lambda store, key, _: (cold(store, key), store.set("other", 1, ttl=100)),
    "absent": lambda store, key, _: None,
    "deleted": lambda store, key, _: (cold(store, key), merge(store), store.__delitem__(key), store.save()),
    "dirty": lambda store, key, _: (cold(store, key, "older"), store.set(key, DOCUMENT), evict(store)),
    "deleted and dirty": lambda store, key, _: (cold(store, key), store.__delitem__(key)),
    "cleared and dirty": lambda store, key, _: (cold(store, key), store.clear()),
    "set aside": lambda store, key, _: (store.set(key, DOCUMENT), set_aside(store), evict(store)),
    "damaged": lambda store, key, _: (cold(store, key), merge(store), damage(store, key)),
}


def counted(store: Any) -> dict[str, int]:
    stats = store.stats()
    return {name: getattr(stats, name) for name in ("hits", "buffer_hits", "cold_hits", "misses", "promotions")}


def outcome(store: Any, ask: Callable[..., Any], *arguments: Any) -> tuple[Any, dict[str, int], int]:
    """What a read gives or raises, what it adds to the counters, and how many records are hot then."""
    before = counted(store)
    try:
        came = ask(store, *arguments)
    except (KeyError, tiered.StoreError) as error:
        came = type(error), error.args[1:] if isinstance(error, tiered.StoreError) else error.args
    return came, {name: count - before[name] for name, count in counted(store).items()}, len(store._engine.hot)


def ask(store: Any, key: Any, *default: Any) -> Any:
    return store.get(key, *default) if default else store[key]


def ask_twin(store: Any, key: Any, *default: Any) -> Any:
    """The same by Python, but for what is hot and has no deadline."""
    return ask(store, key, *default) if store._engine.hot.deadline(key) == 0 else store._load(key, *default)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", KEYS)
def test_a_read_is_what_its_twin_in_python_is(tmp_path: Path, kind: str, state: str) -> None:
    key, outcomes = KEYS[kind], []
    for asking in (ask, ask_twin):
        clock = ManualClock()
        store = without_background(tiered.open(tmp_path / asking.__name__, memory="1MB", helper=False, clock=clock))
        STATES[state](store, key, clock)
        outcomes.append([outcome(store, asking, key, *default) for default in [(), (), (None,), (7,)]])
        store.close()
    assert outcomes[0] == outcomes[1]


def ask_many(store: Any, key: Any) -> Any:
    return store.get_many([NEIGHBOURS[0], key, *NEIGHBOURS[1:], "nowhere"])


def ask_many_twin(store: Any, key: Any) -> Any:
    store._loaded = lambda names, found: names
    return ask_many(store, key)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ["text", "tuple", "beyond it"])
def test_a_read_of_many_is_what_its_twin_in_python_is(tmp_path: Path, kind: str, state: str) -> None:
    key, outcomes = KEYS[kind], []
    for asking in (ask_many, ask_many_twin):
        clock = ManualClock()
        store = without_background(tiered.open(tmp_path / asking.__name__, memory="1MB", helper=False, clock=clock))
        store.set_many(zip(NEIGHBOURS, VALUES.values(), strict=True))
        STATES[state](store, key, clock)
        came = [outcome(store, asking, key) for _ in range(3)]
        # Where one is damaged, the others are read, counted and kept all the same.
        outcomes.append([first for first, *_ in came] if state == "damaged" else came)
        store.close()
    assert outcomes[0] == outcomes[1]


def test_many_cold_values_are_read_without_python_and_hot_from_then_on(opener: Any) -> None:
    store = warm(opener(stepwise=True))
    values = dict(zip(NEIGHBOURS, VALUES.values(), strict=True))
    store.set_many(values)
    store.save()
    evict(store)
    store._load_many = None
    before = counted(store)
    assert store.get_many([*NEIGHBOURS, "nowhere", NEIGHBOURS[0]]) == values
    assert list(store.get_many(reversed(NEIGHBOURS))) == NEIGHBOURS[::-1]
    after = counted(store)
    del store._load_many
    assert {name: after[name] - before[name] for name in after} == {
        "hits": len(values) + 1,  # One was asked for twice.
        "buffer_hits": 0,
        "cold_hits": len(values),
        "misses": 1,
        "promotions": len(values),
    }
    assert len(store._engine.hot) == len(values)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("step", ["layout_of", "admission", "promote_many"])
def test_what_is_written_while_many_are_read_is_not_covered_by_what_was_there(
    opener: Any, step: str, saved: bool
) -> None:
    store = warm(opener(stepwise=True))
    store.set_many(dict.fromkeys(NEIGHBOURS, "old"))
    store.save()
    evict(store)
    engine = store._engine

    class Meddling:
        """What the read takes on its way: somebody else writes just before."""

        def __init__(self, real: Any) -> None:
            self.real = real

        def __getattr__(self, name: str) -> Any:
            if name == "small_bytes":
                meddle()
                return -1 if step == "promote_many" else self.real.small_bytes
            return getattr(self.real, name)

    def meddle() -> None:
        engine.admission = admission
        store[NEIGHBOURS[0]] = "new"
        del store[NEIGHBOURS[1]]
        if saved:  # Then no write buffer knows.
            store.save()
            evict(store)

    admission = engine.admission
    if step == "layout_of":
        cold, layout_of = engine.cold, engine.cold.layout_of

        def meddling(txn: Any) -> Any:
            cold.layout_of = layout_of
            meddle()
            return layout_of(txn)

        cold._layout, cold.layout_of = cold._layout._replace(transaction=-1), meddling
    else:
        engine.admission = Meddling(admission)
    assert store.get_many(NEIGHBOURS) == dict.fromkeys(NEIGHBOURS, "old")
    assert store.get_many(NEIGHBOURS[:3]) == {NEIGHBOURS[0]: "new", NEIGHBOURS[2]: "old"}
    assert store.check() == []


def test_of_many_reads_one_that_is_damaged_is_told_by_its_key_and_the_others_are_read(opener: Any) -> None:
    store = warm(opener(stepwise=True))
    store.set_many(dict.fromkeys(NEIGHBOURS, DOCUMENT))
    store.save()
    merge(store)
    damage(store, NEIGHBOURS[3], at=20)
    evict(store)
    with pytest.raises(tiered.CorruptionError, match=NEIGHBOURS[3]):
        store.get_many(NEIGHBOURS)
    others = [name for name in NEIGHBOURS if name != NEIGHBOURS[3]]
    assert store.get_many(others) == dict.fromkeys(others, DOCUMENT)
    store.clear()
    store.save()


@pytest.mark.parametrize("promote", [True, False])
def test_a_key_asked_for_twice_is_read_once_and_keeps_its_place(opener: Any, promote: bool) -> None:
    store = opener(stepwise=True)

    class Box:
        pass

    def unpack(packed: object) -> Box:
        store["twice"] = 1  # After it was found to be absent, and before it is asked for again.
        return Box()

    tiered.register("tests.loads.Box", Box, pack=lambda box: 0, unpack=unpack)
    numbers = [f"number {number}" for number in range(1500)]
    store.set_many(dict.fromkeys(numbers, "text"))
    store["box"] = Box()
    store.save()
    evict(store)
    names = ["twice", "box", *numbers[:1200], "twice", *numbers[1200:]]
    found = list(store.get_many(names, promote=promote))
    assert found == [name for name in dict.fromkeys(names) if name in found]
    assert len(found) >= 1501
    evict(store)
    before = counted(store)["cold_hits"]
    assert list(store.get_many(["nowhere", *numbers[:3], "nowhere", *numbers[:3]], promote=promote)) == numbers[:3]
    assert counted(store)["cold_hits"] == before + 3


@pytest.mark.parametrize("many", [False, True])
def test_a_store_closed_by_a_handler_in_the_middle_of_a_read_is_closed(opener: Any, many: bool) -> None:
    store = warm(opener(stepwise=True))
    store.set_many(dict.fromkeys(NEIGHBOURS, DOCUMENT))
    store.save()
    evict(store)
    cold_tier = store._engine.cold
    layout_of = cold_tier.layout_of

    def closing(txn: Any) -> Any:
        layout = layout_of(txn)
        cold_tier.close()  # As `close` does, called by a handler of signals while Python runs here.
        return layout

    cold_tier._layout, cold_tier.layout_of = cold_tier._layout._replace(transaction=-1), closing
    with pytest.raises(tiered.ClosedError):
        store.get_many(NEIGHBOURS) if many else store[NEIGHBOURS[0]]
    cold_tier.layout_of = layout_of
    cold_tier._barred = cold_tier._closed = False
    with contextlib.ExitStack() as undo:
        cold_tier._open(False, undo)
        undo.pop_all()
    assert store.get_many(NEIGHBOURS) == dict.fromkeys(NEIGHBOURS, DOCUMENT)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", [TimeoutError, KeyboardInterrupt, RuntimeError])
def test_what_a_handler_raises_in_the_middle_of_a_read_is_raised(
    tmp_path: Path, kind: type[BaseException], many: bool
) -> None:
    class Interrupting(ManualClock):
        raising = False

        def now_ms(self) -> int:
            if self.raising:
                self.raising = False  # It comes once.
                raise kind
            return super().now_ms()

    clock = Interrupting()
    with without_background(tiered.open(tmp_path / "s", memory="1MB", helper=False, clock=clock)) as store:
        store.set_many(dict.fromkeys(NEIGHBOURS, DOCUMENT), ttl=100)
        store.save()
        evict(store)
        clock.raising = True
        with pytest.raises(kind):
            store.get_many(NEIGHBOURS) if many else store[NEIGHBOURS[0]]
        assert store._engine.cold._users == {}
        assert store.get_many(NEIGHBOURS) == dict.fromkeys(NEIGHBOURS, DOCUMENT)


def test_a_batch_that_fails_in_the_middle_has_no_place_for_absent_keys(tmp_path: Path) -> None:
    class Failing(ManualClock):
        failing = 0

        def now_ms(self) -> int:
            self.failing -= 1
            if self.failing == 0:
                raise ValueError("once")
            return super().now_ms()

    clock = Failing()
    with without_background(tiered.open(tmp_path / "s", memory="1MB", helper=False, clock=clock)) as store:
        store.set_many(dict.fromkeys(NEIGHBOURS, DOCUMENT), ttl=100)
        store.save()
        for calls in range(1, 12):
            evict(store)
            clock.failing = calls
            with contextlib.suppress(ValueError):  # Where Python itself has asked for the time.
                assert store.get_many(["absent", *NEIGHBOURS, "zz absent"]) == dict.fromkeys(NEIGHBOURS, DOCUMENT)


@pytest.mark.parametrize("kind", VALUES)
def test_a_cold_value_is_read_without_python_and_hot_from_then_on(opener: Any, kind: str) -> None:
    store = opener(stepwise=True)
    value = VALUES[kind]
    assert warm(store)
    for _ in range(3):
        cold(store, "key", value)
        store._load = None  # What is out of the ordinary would call it.
        for hits in (0, 1):
            before = counted(store)
            assert store["key"] == value
            assert counted(store)["hits"] - before["hits"] == hits
            assert counted(store)["cold_hits"] - before["cold_hits"] == 1 - hits
        del store._load


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_what_user_code_raises_while_a_cold_value_is_decoded_is_raised(opener: Any, kind: type[BaseException]) -> None:
    class Moody:
        pass

    def unpack(packed: Any) -> Any:
        if kind not in raised or kind is RuntimeError:  # An interrupt comes once.
            raised.append(kind)
            raise kind

    raised = list[type[BaseException]]()
    tiered.register("tests.loads.Moody", Moody, pack=lambda moody: 0, unpack=unpack)
    store = opener(stepwise=True)
    cold(store, "key", Moody())
    with pytest.raises(kind):
        store["key"]
    assert len(store._engine.hot) == 0
    assert not store._engine.owned()
    assert store._engine.cold._users == {}


def test_while_layers_are_merged_each_key_is_found_where_it_is(opener: Any) -> None:
    store = warm(opener(stepwise=True))
    names = [f"key {number}" for number in range(20)]
    store.set_many(dict.fromkeys(names, "older"))
    store.save()
    merge(store)
    store.set_many({name: f"{name} " * 20 for name in names})
    store.save()
    with store._engine.cold.update() as update:
        update.merge(7)
        assert update.current.merging
        assert names[0].encode() < update.current.merged_to[1:] < names[-1].encode()
    evict(store)
    store._load = None
    assert {name: store[name] for name in names} == {name: f"{name} " * 20 for name in names}
    del store._load


def test_a_run_is_not_searched_for_keys_that_its_filter_does_not_know(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold_update, "FILTERED_RECORDS_MIN", 1)
    store = warm(opener(stepwise=True))
    store.set_many(dict.fromkeys("abc", "older"))
    store.save()
    merge(store)
    store.set_many(dict.fromkeys("bcd", "newer"))
    store.save()
    evict(store)
    store._load = None
    expected = {"a": "older", "b": "newer", "c": "newer", "d": "newer"}
    assert {name: store[name] for name in "abcd"} == expected
    evict(store)
    assert store.get_many(list("abcde")) == expected
    assert store.memory_stats().filter_bytes == 64
    assert store.check() == []
    with store._engine.cold.update() as update:  # As if to see who asks it.
        update._put_filter(update.current.runs[0], bytearray(64))
    for read in (lambda: {name: store.get(name) for name in "abcd"}, lambda: store.get_many(list("abcd"))):
        evict(store)
        assert read() in ({"a": "older", "b": "older", "c": "older", "d": None}, dict.fromkeys("abc", "older"))
    del store._load
    assert [finding.what for finding in store.check() if finding.what == "filter"] == ["filter"] * 3
    merge(store)
    evict(store)


def test_a_read_that_lmdb_refuses_says_why(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opener(stepwise=True)
    cold(store, "key")
    cold_tier = store._engine.cold

    class Refusing:
        def begin(self) -> None:
            raise lmdb.ReadersFullError("MDB_READERS_FULL")

    with monkeypatch.context() as patch:
        patch.setattr(cold_tier, "_env", Refusing())
        with pytest.raises(tiered.StoreError, match="readers; close some"):
            store["key"]
    assert cold_tier._users == {}
    assert store["key"] == DOCUMENT


def test_a_read_notes_itself_among_the_users_of_the_cold_tier(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = warm(opener(stepwise=True))
    cold(store, "key")
    cold_tier, noted = store._engine.cold, list[dict[Any, int]]()
    env = cold_tier._env

    class Watching:
        def begin(self) -> Any:
            noted.append(dict(cold_tier._users))
            return env.begin()

        def __getattr__(self, name: str) -> Any:
            return getattr(env, name)

    monkeypatch.setattr(cold_tier, "_env", Watching())
    assert store["key"] == DOCUMENT
    assert [list(users.values()) for users in noted] == [[threading.get_ident()]]
    assert cold_tier._users == {}
    monkeypatch.undo()
    assert cold_tier.readers() == 0


ASKED = {
    "store": "_engine",
    "engine": "_aside _background _number admission buffers clock closed cold counters decompressor direct generation",
    "engine too": "lock owned",
    "cold": "_barred _env _layout _users",
    "counters": "cold_hits misses promotions",
    "decompressor": "_pools",
    "admission": "small_bytes",
    "buffer": "cleared positions",
}


def test_what_a_cold_read_asks_for_lies_in_slots(opener: Any) -> None:
    store = warm(opener(stepwise=True))
    store["dirty"] = 1
    engine = store._engine
    things = {"store": store, "engine": engine, "engine too": engine, "buffer": engine.buffers[0]}
    for thing, names in ASKED.items():
        kind = type(things[thing] if thing in things else getattr(engine, thing))
        for name in names.split():
            assert type(getattr(kind, name)).__name__ == "member_descriptor", (thing, name)
