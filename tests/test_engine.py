"""What only the engine itself can show: a write that is interrupted half-way is in every tier or in none."""

from __future__ import annotations

from typing import Any

import pytest


class Interrupt(BaseException):
    """As KeyboardInterrupt, at a place of the test's choosing."""


def interrupting(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool, calls: int = 1) -> None:
    """Interrupt the n-th call of a method, before it does anything or when it is done."""
    original, left = getattr(owner, name), [calls]

    def interrupted(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0]:
            return original(*arguments)
        if after:
            original(*arguments)
        raise Interrupt

    monkeypatch.setattr(owner, name, interrupted)


PLACES = [
    (place, after)
    for place in ("journal.append", "journal.append_batch", "_active.put", "hot.put", "hot.discard")
    for after in (False, True)
]
WRITES = {
    "set": lambda store: store.set("b", "new"),
    "set_many": lambda store: store.set_many([("a", "new"), ("b", "new"), ("c", "new")]),
    "del": lambda store: store.pop("b"),
    "delete_many": lambda store: store.delete_many(["a", "b", "c"]),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("place", "after"), PLACES)
def test_an_interrupted_write_is_old_or_new_in_every_tier(
    opener: Any, monkeypatch: pytest.MonkeyPatch, write: str, place: str, after: bool
) -> None:
    store = opener(memory="1MB")
    store.update(dict.fromkeys("abc", "old"))
    engine = store._engine
    owner = engine
    *path, name = place.split(".")
    for step in path:
        owner = getattr(owner, step)
    calls = 2 if write.endswith("many") and name in ("put", "discard") else 1
    with monkeypatch.context() as patch:
        interrupting(patch, owner, name, after, calls)
        try:
            WRITES[write](store)
        except Interrupt:
            pass
    gone = "del" in write
    seen = {key: store.get(key) for key in "abc"}
    keys = "abc" if write.endswith("many") else "b"
    assert [seen[key] for key in keys] in ([None if gone else "new"] * len(keys), ["old"] * len(keys))
    assert store.check() == []
    store.save()
    engine.hot.clear()
    assert {key: store.get(key) for key in "abc"} == seen
