"""What a store goes through under the seam: steps that change it, the same on a dict, and steps that must not show.

A step is a name and what it needs.  `Run` runs them, and keeps what the store may hold after a crash.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import without_background
from contracts import merge, set_aside

import tiered
from tiered import checkpoint
from tiered.clock import ManualClock

EPOCH_MS = 1_700_000_000_000
State = dict[Any, tuple[Any, "float | None"]]
"""Of each key: its value, and how long it has to live."""
Step = tuple[Any, ...]
checkpoint.RUNS_RECORDS_MIN = 8  # So that small stores merge, too.

SCENARIOS: dict[str, list[Step]] = {
    "create": [("set", "a", 1), ("anew",), ("set", "b", 2), ("close",)],
    "segments": [
        ("set", "a", "first"),
        ("sync",),
        ("batch", 0, 30),
        ("set", "b", "x" * 2000),
        ("delete", "a"),
        ("rotate",),
        ("incr", "count"),
        ("batch", 10, 20),
        ("rotate",),
        ("set", "a", "second"),
        ("prepare",),
        ("sync",),
        ("transaction", 5, 25),
        ("large", "big", 100_000),
        ("set", "after", 1),
        ("close",),
    ],
    "checkpoints": [
        ("batch", 0, 40),
        ("ttl", "expiring", 500),
        ("save",),
        ("delete", 3),
        ("set", 4, "changed"),
        ("save",),
        ("ttl", "later", 1000),
        ("setting", "default_ttl", 5000),
        ("set", "lives", "for a while"),
        ("tick",),
        ("merge",),
        ("delete_many", 5, 15),
        ("save",),
        ("clear",),
        ("set", "after", "clear"),
        ("reopen",),
        ("batch", 20, 30),
        ("close",),
    ],
    "compaction": [
        ("batch", 0, 60),
        ("save",),
        ("delete_many", 0, 30),
        ("compact",),
        ("set", "a", 1),
        ("compact",),
        ("incr", "a"),
        ("reopen",),
        ("set", "b", 2),
        ("close",),
    ],
}
QUIET = {"sync", "save", "rotate", "prepare", "tick", "merge", "compact", "reopen", "close"}
"""Steps that change nothing a user sees."""


def random_steps(seed: int, count: int = 25) -> list[Step]:
    """A scenario that nobody thought of."""
    uniform = random.Random(seed)
    steps: list[Step] = []
    for number in range(count):
        first = uniform.randrange(30)
        steps.append(
            uniform.choice(
                [
                    ("set", uniform.randrange(20), f"{number} " * uniform.randrange(400)),
                    ("set", uniform.randrange(20), number),
                    ("delete", uniform.randrange(20)),
                    ("batch", first, first + uniform.randrange(1, 30)),
                    ("transaction", first, first + uniform.randrange(1, 30)),
                    ("delete_many", first, first + 5),
                    ("ttl", uniform.randrange(20), uniform.randrange(100, 1000)),
                    ("incr", "count"),
                    ("clear",) if uniform.random() < 0.3 else ("set", "b", number),
                    ("large", "big", uniform.randrange(70_000, 200_000)),
                    *((name,) for name in sorted(QUIET - {"close"})),
                ]
            )
        )
    return [*steps, ("close",)]


def perform(store: Any, step: Step, number: int) -> None:
    """A step that users see, on a store."""
    kind, *what = step
    if kind == "set":
        store[what[0]] = what[1]
    elif kind == "delete":
        store.pop(what[0], None)
    elif kind == "batch":
        store.set_many({key: f"{number} {key} " * 9 for key in range(*what)})
    elif kind == "delete_many":
        store.delete_many(range(*what))
    elif kind == "transaction":
        with store.transaction() as txn:
            for key in range(*what):
                if key % 3:
                    txn[key] = f"{number} {key} " * 9
                else:
                    txn.pop(key, None)
    elif kind == "ttl":
        store.set(what[0], number, ttl=what[1])
    elif kind == "incr":
        store.incr(what[0])
    elif kind == "clear":
        store.clear()
    elif kind == "large":
        store[what[0]] = random.Random(number).randbytes(what[1])
    elif kind == "setting":
        store.config_set(*what)
    else:
        raise AssertionError(kind)


def imitate(model: State, step: Step, number: int, default_ttl: float | None) -> State:
    """The same on a dict; a new one."""
    kind, *what = step
    model = dict(model)
    if kind == "set":
        model[what[0]] = what[1], default_ttl
    elif kind == "delete":
        model.pop(what[0], None)
    elif kind == "batch":
        model.update({key: (f"{number} {key} " * 9, default_ttl) for key in range(*what)})
    elif kind in ("delete_many", "transaction"):
        for key in range(*what):
            if key % 3 and kind == "transaction":
                model[key] = f"{number} {key} " * 9, default_ttl
            else:
                model.pop(key, None)
    elif kind == "ttl":
        model[what[0]] = number, float(what[1])
    elif kind == "incr":
        value, ttl = model.get(what[0], (0, default_ttl))
        model[what[0]] = value + 1, ttl
    elif kind == "clear":
        model.clear()
    elif kind == "large":
        model[what[0]] = random.Random(number).randbytes(what[1]), default_ttl
    return model


def state_of(store: Any) -> State:
    """What a store holds, and for how long."""
    return {key: (value, store.ttl(key)) for key, value in store.items()}


class Run:
    """One store going through a scenario, and what it holds after each step."""

    def __init__(self, path: Path, durability: str, **settings: Any) -> None:
        self.path = path
        self.clock = ManualClock(EPOCH_MS)
        self.settings = {"durability": durability, "memory": "1MB", "helper": False, **settings}
        self.default_ttl: float | None = None
        self.states: list[State] = [{}]
        self.acknowledged = 0
        self.durable = 0
        self.store: Any = None

    def open(self, path: Path | None = None, flag: str = "c") -> Any:
        """Open the store, or a copy of it; only the caller does anything then."""
        return without_background(tiered.open(path or self.path, flag, clock=self.clock, **self.settings))

    def do(self, step: Step) -> None:
        """Do a step; the state it may lead to is noted before, what is acknowledged and on the disk for sure after."""
        kind = step[0]
        if kind == "anew":
            self.states.append({})
            self.store.close()
            self.store = self.open(flag="n")
            self.acknowledged = self.durable = len(self.states) - 1
            return
        if kind not in QUIET:
            self.states.append(imitate(self.states[-1], step, len(self.states), self.default_ttl))
            perform(self.store, step, len(self.states) - 1)
            if kind == "setting":
                self.default_ttl = step[2]
            self.acknowledged = len(self.states) - 1
            if self.settings["durability"] == "always":
                self.durable = self.acknowledged
            return
        quiet: dict[str, Callable[[], object]] = {
            "sync": lambda: self.store.sync(),
            "save": lambda: self.store.save(),
            "rotate": lambda: set_aside(self.store),
            "prepare": lambda: self.store._engine.journal.prepare(),
            "tick": self._tick,
            "merge": lambda: merge(self.store),
            "compact": lambda: self.store.compact(),
            "reopen": self._reopen,
            "close": lambda: self.store.close(),
        }
        if not (kind in ("rotate", "merge") and self.store._engine.poisoned):  # Which only tests would do.
            quiet[kind]()
        if kind in ("sync", "save", "reopen", "close"):
            self.durable = self.acknowledged

    def _tick(self) -> None:
        for _ in range(3):
            self.store._engine.tick_guarded()

    def _reopen(self) -> None:
        try:
            self.store.close()
        finally:
            self.store = self.open()
