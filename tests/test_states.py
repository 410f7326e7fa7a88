"""Every operation × every state of a key, by one table.

A state is how a key came to be where it is, and what the world may see of it: `Live`,
`ABSENT` or `DAMAGED`.  An operation is what it does to a store, what it returns, and
what the world sees afterwards: the oracle, which knows nothing of tiers.  Each cell is looked at again after
a checkpoint, after an eviction and after a restart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from contracts import damage, evict, merge, set_aside

import tiered
from tiered.clock import ManualClock


class Live(NamedTuple):
    value: Any
    ttl: float | None


ABSENT, DAMAGED = "absent", "damaged"
NEIGHBOUR, LAST = "a neighbour", "~last"
KEYS = {"short key": "k", "long key": "k" * 700}
OLD, NEW, TTL, LATER = 41, [7, "new"], 100.0, 1000.0


def written(store: Any, key: Any, ttl: float | None = None) -> None:
    store.set(key, OLD, ttl=ttl)


def cold(store: Any, key: Any, ttl: float | None = None, value: Any = OLD) -> None:
    store.set(key, value, ttl=ttl)
    store.save()
    evict(store)


def behind(store: Any, key: Any, ttl: float | None = None) -> None:
    cold(store, key, ttl)
    merge(store)


def aside(store: Any, key: Any, ttl: float | None = None) -> None:
    store.set(key, OLD, ttl=ttl)
    set_aside(store)


def hot_clean(store: Any, key: Any, ttl: float | None = None) -> None:
    store.set(key, OLD, ttl=ttl)
    store.save()


def promoted(store: Any, key: Any, ttl: float | None = None) -> None:
    cold(store, key, ttl)
    assert store[key] == OLD


def deleted_over(how: Callable[..., None]) -> Callable[..., None]:
    def setup(store: Any, key: Any) -> None:
        how(store, key, TTL)
        del store[key]

    return setup


def rewritten_over(how: Callable[..., None], value: Any = "older") -> Callable[..., None]:
    def setup(store: Any, key: Any) -> None:
        cold(store, key, TTL, value)
        how(store, key)

    return setup


def expired(how: Callable[..., None]) -> Callable[..., None]:
    def setup(store: Any, key: Any) -> None:
        how(store, key, TTL)
        store._engine.clock.sleep(TTL + 1)

    return setup


def then(*steps: Callable[..., Any]) -> Callable[..., None]:
    def setup(store: Any, key: Any) -> None:
        for step in steps:
            step(store, key)

    return setup


def removed(store: Any, key: Any) -> None:
    del store[key]


def cleared(store: Any, key: Any) -> None:
    store.clear()
    store[NEIGHBOUR] = store[LAST] = "here"


def all_aside(store: Any, key: Any) -> None:
    set_aside(store)


def saved(store: Any, key: Any) -> None:
    store.save()


def damaged_cold(store: Any, key: Any) -> None:
    cold(store, key)
    damage(store, key)


def damaged_behind(store: Any, key: Any) -> None:
    behind(store, key)
    damage(store, key)


PLACES = {
    "hot dirty": written,
    "hot clean": hot_clean,
    "promoted": promoted,
    "being checkpointed": aside,
    "being checkpointed, evicted": lambda store, key, ttl=None: (aside(store, key, ttl), evict(store)),
    "dirty, evicted": lambda store, key, ttl=None: (written(store, key, ttl), evict(store)),
    "cold": cold,
    "cold behind": behind,
}
STATES: dict[str, tuple[Callable[..., Any], Any]] = {
    "absent": (lambda store, key: None, ABSENT),
    **{name: (how, Live(OLD, None)) for name, how in PLACES.items()},
    **{
        f"{name}, with ttl": (lambda store, key, how=how: how(store, key, TTL), Live(OLD, TTL))
        for name, how in PLACES.items()
    },
    **{f"expired {name}": (expired(how), ABSENT) for name, how in PLACES.items()},
    **{f"deleted dirty over {name}": (deleted_over(how), ABSENT) for name, how in PLACES.items()},
    **{
        f"{name} over an older cold one": (rewritten_over(how), Live(OLD, None))
        for name, how in PLACES.items()
        if how is not cold
    },
    "deletion being checkpointed over cold": (then(cold, removed, all_aside), ABSENT),
    "deletion being checkpointed over cold behind": (then(behind, removed, all_aside), ABSENT),
    "deleted cold": (then(cold, removed, saved), ABSENT),
    "deleted cold behind": (then(behind, removed, saved), ABSENT),
    "written again after a cold deletion": (then(behind, removed, saved, written), Live(OLD, None)),
    "dirty over a deletion being checkpointed": (then(behind, removed, all_aside, written), Live(OLD, None)),
    "dirty over dirty being checkpointed": (
        lambda store, key: (store.set(key, "older", ttl=TTL), set_aside(store), written(store, key)),
        Live(OLD, None),
    ),
    "cleared while cold": (then(cold, cleared), ABSENT),
    "cleared while being checkpointed": (then(aside, cleared), ABSENT),
    "clearing being checkpointed": (then(cold, cleared, all_aside), ABSENT),
    "dirty after clearing cold": (then(behind, cleared, written), Live(OLD, None)),
    "damaged cold": (damaged_cold, DAMAGED),
    "damaged cold behind": (damaged_behind, DAMAGED),
    "dirty over damaged cold": (then(damaged_cold, written), Live(OLD, None)),
    "deletion by clear over damaged cold": (then(damaged_cold, cleared), ABSENT),
}


class Op(NamedTuple):
    """What to do, what it returns where the key is live and where it is not, and what is there afterwards."""

    do: Callable[[Any, Any], Any]
    found: Callable[[Live], Any]
    missing: Any
    after: Callable[[Any], Any]
    damaged: Any = tiered.CorruptionError


def unchanged(seen: Any) -> Any:
    return seen


def gone(seen: Any) -> Any:
    return ABSENT


def becomes(value: Any, ttl: float | None) -> Callable[[Any], Any]:
    return lambda seen: Live(value, ttl)


def incremented(seen: Any) -> Any:
    return Live(OLD + 1, seen.ttl) if isinstance(seen, Live) else Live(1, None)


def retimed(ttl: float | None) -> Callable[[Any], Any]:
    return lambda seen: seen._replace(ttl=ttl) if isinstance(seen, Live) else ABSENT


def kept_or(value: Any) -> Callable[[Any], Any]:
    return lambda seen: seen if isinstance(seen, Live) else Live(value, None)


def always(value: Any) -> Callable[[Any], Any]:
    return lambda seen: value


def the_value(seen: Live) -> Any:
    return seen.value


def explained(store: Any, key: Any) -> Any:
    explanation = store.explain(key)
    assert explanation.tiers
    assert explanation.dirty == ("write buffer" in explanation.tiers)
    return explanation.ttl_seconds


def pop_last(store: Any, key: Any) -> Any:
    """`popitem`, which takes the last key: here the key in question, if it is there."""
    del store[LAST]
    return store.popitem()


OPERATIONS = {
    "get": Op(lambda s, k: s.get(k), the_value, None, unchanged),
    "get default": Op(lambda s, k: s.get(k, 5), the_value, 5, unchanged),
    "subscript": Op(lambda s, k: s[k], the_value, KeyError, unchanged),
    "in": Op(lambda s, k: k in s, always(True), False, unchanged),
    "set": Op(lambda s, k: s.__setitem__(k, NEW), always(None), None, becomes(NEW, None), None),
    "set with ttl": Op(lambda s, k: s.set(k, NEW, ttl=LATER), always(None), None, becomes(NEW, LATER), None),
    "del": Op(lambda s, k: s.__delitem__(k), always(None), KeyError, gone),
    "pop": Op(lambda s, k: s.pop(k), the_value, KeyError, gone),
    "pop default": Op(lambda s, k: s.pop(k, 5), the_value, 5, gone),
    "setdefault": Op(lambda s, k: s.setdefault(k, NEW), the_value, NEW, kept_or(NEW)),
    "incr": Op(lambda s, k: s.incr(k), lambda seen: seen.value + 1, 1, incremented),
    "touch": Op(lambda s, k: s.touch(k, LATER), always(True), False, retimed(LATER)),
    "touch for ever": Op(lambda s, k: s.touch(k, None), always(True), False, retimed(None)),
    "persist": Op(lambda s, k: s.persist(k), lambda seen: seen.ttl is not None, False, retimed(None)),
    "ttl": Op(lambda s, k: s.ttl(k), lambda seen: seen.ttl, KeyError, unchanged),
    "get_many": Op(
        lambda s, k: s.get_many([NEIGHBOUR, k, "no"]),
        lambda seen: [(NEIGHBOUR, "here"), ("KEY", seen.value)],
        [(NEIGHBOUR, "here")],
        unchanged,
    ),
    "set_many": Op(lambda s, k: s.set_many({k: NEW}), always(None), None, becomes(NEW, None), None),
    "set_many with ttl": Op(
        lambda s, k: s.set_many([(k, OLD), (k, NEW)], ttl=LATER), always(None), None, becomes(NEW, LATER), None
    ),
    "update": Op(lambda s, k: s.update([(k, NEW)]), always(None), None, becomes(NEW, None), None),
    "delete_many": Op(lambda s, k: s.delete_many([k, "no", k]), always(1), 0, gone),
    "explain": Op(explained, lambda seen: seen.ttl, KeyError, unchanged),
    "items": Op(
        lambda s, k: list(s.items(stop=LAST)),
        lambda seen: [(NEIGHBOUR, "here"), ("KEY", seen.value)],
        [(NEIGHBOUR, "here")],
        unchanged,
    ),
    "items backwards": Op(
        lambda s, k: list(reversed(s.items(stop=LAST))),
        lambda seen: [("KEY", seen.value), (NEIGHBOUR, "here")],
        [(NEIGHBOUR, "here")],
        unchanged,
    ),
    "values": Op(lambda s, k: list(s.values(start="b")), lambda seen: [seen.value, "end"], ["end"], unchanged),
    "keys": Op(lambda s, k: list(s.keys(stop=LAST)), always([NEIGHBOUR, "KEY"]), [NEIGHBOUR], unchanged),
    "len": Op(lambda s, k: len(s), always(3), 2, unchanged, 3),
    "popitem": Op(pop_last, lambda seen: ("KEY", seen.value), (NEIGHBOUR, "here"), gone),
    "clear": Op(lambda s, k: s.clear(), always(None), None, gone, None),
}


def outcome(call: Callable[[], Any], key: Any) -> Any:
    """What a call returned, with the key's name in place of the key, or the type of its error."""
    try:
        result = call()
    except (KeyError, tiered.CorruptionError) as error:
        return type(error)
    if isinstance(result, dict):
        result = list(result.items())
    if isinstance(result, list):
        return [plain(item, key) for item in result]
    return plain(result, key)


def plain(item: Any, key: Any) -> Any:
    if item == key:
        return "KEY"
    return ("KEY", item[1]) if isinstance(item, tuple) and item[0] == key else item


def seen(store: Any, key: Any) -> Any:
    """What the world sees of a key, by every way of looking, which must agree."""
    listed = outcome(lambda: list(store.keys()), key)
    there = listed is tiered.CorruptionError or "KEY" in listed
    if outcome(lambda: store.ttl(key), key) is tiered.CorruptionError:
        for read in (
            store.get,
            store.__getitem__,
            store.__contains__,
            store.explain,
            lambda key: store.get_many([key]),
        ):
            with pytest.raises(tiered.CorruptionError, match="damaged"):
                read(key)
        assert there
        return DAMAGED
    assert len(store) == len(list(store))
    if key not in store:
        assert not there
        assert store.get(key) is None
        return ABSENT
    assert there
    assert dict(store.items())[key] == store.get_many([key])[key] == store[key]
    return Live(store[key], store.ttl(key))


def cell(opener: Any, clock: ManualClock, path: Path, key: Any, state: str, operation: str) -> None:
    """One operation in one state, in a store of its own."""
    setup, before = STATES[state]
    do, found, missing, after, damaged = OPERATIONS[operation]
    store = opener(path, stepwise=True, clock=clock)
    store[NEIGHBOUR], store[LAST] = "here", "end"
    setup(store, key)
    store[LAST] = "end"

    if before is ABSENT:
        expected, afterwards = missing, after(ABSENT)
    elif before is DAMAGED:
        # An operation that needs the record fails and changes nothing; one that does not, cures it.
        expected = damaged
        afterwards = DAMAGED if damaged is tiered.CorruptionError else after(DAMAGED)
    else:
        expected, afterwards = found(before), after(before)

    assert outcome(lambda: do(store, key), key) == expected
    assert seen(store, key) == afterwards
    set_aside(store)
    assert seen(store, key) == afterwards, "being checkpointed"
    store.save()
    assert seen(store, key) == afterwards, "checkpointed"
    evict(store)
    assert seen(store, key) == afterwards, "evicted"
    store.close()
    store = opener(path, stepwise=True, clock=clock)
    assert seen(store, key) == afterwards, "reopened"
    neighbours = operation != "clear" and not (operation == "popitem" and before is ABSENT)
    assert (store.get(NEIGHBOUR) == "here") == neighbours
    findings = store.check()
    store.close()
    assert [finding.what for finding in findings] == (["damaged record"] if afterwards is DAMAGED else [])


CELLS = [("short key", state) for state in STATES]
CELLS += [("long key", state) for state in STATES if state in PLACES or state.startswith(("absent", "exp", "damaged"))]


# The neighbours surround either key in key order.
@pytest.mark.parametrize(("kind", "state"), CELLS)
def test_every_operation_does_in_every_state_of_a_key_what_it_does_in_a_dict(
    quick_path: Path, opener: Any, clock: ManualClock, kind: str, state: str
) -> None:
    wrong = {}
    for operation in OPERATIONS:
        try:
            cell(opener, clock, quick_path / operation, KEYS[kind], state, operation)
        except AssertionError as error:
            wrong[operation] = str(error).strip()[:500]
        except Exception as error:
            wrong[operation] = repr(error)
    assert wrong == {}
