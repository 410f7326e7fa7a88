"""What the killed program does, as a function of thread and step, so that the test can do it again on a dict."""

from __future__ import annotations

import random
from typing import Any

KEYS = 400
BATCH = 30

KINDS = ("set", "delete", "batch", "many", "incr", "persist", "transaction")

Operation = tuple[str, Any]


def value_of(thread: int, step: int, key: int) -> Any:
    """A value that says who wrote it when, of a size between 30 bytes and 3 KB, rarely 200 KB."""
    uniform = random.Random(f"{thread} {step} {key}")
    size = 200_000 if uniform.random() < 0.001 else int(30 * 100 ** uniform.random())
    text = f"{thread} {step} {key} ".ljust(size, uniform.choice("abcdefgh"))
    return text if uniform.random() < 0.5 else {"text": text, "step": step}


def operation(thread: int, step: int) -> Operation:
    """What a thread does in a step."""
    uniform = random.Random(f"{thread} {step}")
    kind = uniform.choices(KINDS, (60, 15, 6, 4, 12, 3, 8))[0]
    if kind == "batch":
        numbers = uniform.sample(range(KEYS), BATCH)
        return kind, {(thread, number): f"{thread} {step} {number} " * 5 for number in numbers}
    if kind == "transaction":
        numbers = uniform.sample(range(KEYS), BATCH)
        return kind, {(thread, number): number % 3 and f"{thread} {step} {number} " * 5 for number in numbers}
    if kind == "many":
        return kind, [(thread, number) for number in uniform.sample(range(KEYS), BATCH)]
    key = (thread, uniform.randrange(KEYS))
    if kind == "incr":
        return kind, (thread, "count", key[1] % 5)
    return kind, (key, value_of(thread, step, key[1])) if kind == "set" else key


def _exchange(mapping: Any, pairs: dict[Any, Any]) -> None:
    """Writes and deletions, and one value that depends on what was read."""
    mapping[next(iter(pairs))[0], "there"] = sum(key in mapping for key in pairs)
    for key, value in pairs.items():
        if value:
            mapping[key] = value
        else:
            mapping.pop(key, None)


def perform(store: Any, made: Operation) -> None:
    """Do it on a store."""
    kind, what = made
    if kind == "set":
        store[what[0]] = what[1]
    elif kind == "delete":
        store.pop(what, None)
    elif kind == "batch":
        store.set_many(what)
    elif kind == "many":
        store.delete_many(what)
    elif kind == "transaction":
        store.transact(lambda txn: _exchange(txn, what))
    elif kind == "incr":
        store.incr(what)
    elif kind == "persist":
        store.touch(what, 10_000_000)
        store.persist(what)


def imitate(model: dict[Any, Any], made: Operation) -> None:
    """Do the same on a dict."""
    kind, what = made
    if kind == "set":
        model[what[0]] = what[1]
    elif kind == "delete":
        model.pop(what, None)
    elif kind == "batch":
        model.update(what)
    elif kind == "many":
        for key in what:
            model.pop(key, None)
    elif kind == "transaction":
        _exchange(model, what)
    elif kind == "incr":
        model[what] = model.get(what, 0) + 1
