"""Ctrl-C and lack of memory at every line of every operation: old or new, no lock held, nothing inconsistent."""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import linecache
import operator
import os
import pickle
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import tiered
import tiered.memoize

PACKAGE = str(Path(tiered.__file__).parent)
STRIDE = int(os.environ.get("TIERED_INTERRUPT_STRIDE", "25"))
"""Every so many lines; 1 for each of them, which takes half an hour."""


@functools.cache
def ends_of_with_blocks(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions that begin to leave a `with` block.

    A tracer may raise there, before `__exit__` is called; the interpreter itself looks for
    signals only after that call.  The same for the NOP that a `try` inside a block begins with.  What a tracer raises
    where a loop begins anew is not handled by the block around it since Python 3.12; a signal's exception is.
    """
    found = list(dis.get_instructions(code))
    names = [instruction.opname for instruction in found]
    return frozenset(
        instruction.offset
        for at, instruction in enumerate(found)
        if names[at] in ("NOP", "PUSH_EXC_INFO", "WITH_EXCEPT_START", "POP_BLOCK")
        or (names[at] == "JUMP_BACKWARD" and sys.version_info >= (3, 12))
        or names[at : at + 3] == ["LOAD_CONST"] * 3
        or names[at : at + 4] == ["SWAP", *["LOAD_CONST"] * 3]
    )


def leaves(frame: FrameType) -> bool:
    """Whether the line does nothing but let go of something, in one call that signals wait for."""
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return line.startswith("os.close(") or frame.f_lasti in ends_of_with_blocks(frame.f_code)


class Interrupter:
    """Raises, or calls a handler, at the n-th line that runs inside the package."""

    def __init__(self, error: type[BaseException], handler: Callable[[], object] | None = None) -> None:
        self.error = error
        self.handler = handler
        self.at = 0
        self.seen = 0
        self.place = ""

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        # What is raised inside a finalizer is shown and ignored: it interrupts nothing.
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        within: FrameType | None = frame
        while within is not None and within.f_code.co_filename.startswith(PACKAGE):
            if within.f_code.co_name == "__del__":
                return None
            within = within.f_back
        if event == "line" and not leaves(frame):
            self.seen += 1
            if self.seen == self.at:
                self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"
                if self.handler is None:
                    raise self.error(f"at {self.place}")
                self.handler()
        return self._trace

    def run(self, operation: Callable[[], object], at: int) -> bool:
        """Run it, with an interrupt at that line; whether the line was reached."""
        self.at, self.seen, self.place = at, 0, ""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            operation()
        except (self.error, tiered.StoreError):
            pass
        finally:
            sys.settrace(before)
        return bool(self.place)


def free(lock: Any) -> bool:
    """Whether another thread could take it."""
    taken: list[bool] = []

    def take() -> None:
        taken.append(lock.acquire(timeout=2))
        if taken[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return taken[0]


def evict(store: Any) -> None:
    store.save()
    store._engine.hot.clear()


def no_op(store: Any) -> None:
    pass


def iterated(store: Any) -> None:
    for _ in store.items():
        pass


def edited(store: Any) -> None:
    with store.edit("list") as found:
        found.append(1)


def transacted(store: Any) -> None:
    with store.transaction() as txn:
        txn["k"] = "new"
        txn["k2"] = "new"
        del txn["list"]


def viewed(store: Any) -> None:
    with store.view() as view:
        store["k"] = "new"
        assert view["k"] == "old"
        assert len(list(view)) == len(view)


def read_in_transaction(store: Any) -> None:
    with store.transaction() as txn:
        txn.get("k")
        list(txn.items())
        len(txn)


def ranged(store: Any) -> None:
    list(store.keys(prefix="k"))
    list(store.values(start="k", reverse=True))
    next(reversed(store))


def another_handle(store: Any) -> None:
    with pickle.loads(pickle.dumps(store)) as arrived, tiered.open(store.path) as other:
        assert arrived["k2"] == other["k2"] == "old"


def advised(store: Any) -> None:
    with contextlib.suppress(tiered.ConfigError):  # It is off.
        store.advise()


def memoized(store: Any) -> None:
    assert store.memoize(key=str, name="f")(len)("k") == 1


OLD = {"k": "old", "k2": "old", "list": [0], "n": 1, ("a", 1): 1}
OPERATIONS: dict[str, tuple[Callable[[Any], object], dict[Any, Any] | None]] = {
    # name: operation, what the store holds when it is done (None: unchanged)
    "set": (lambda store: store.set("k", "new"), {**OLD, "k": "new"}),
    "set with ttl": (lambda store: store.set("k", "new", ttl=100), {**OLD, "k": "new"}),
    "set a document": (lambda store: store.set("k", {"new": [1.5]}), {**OLD, "k": {"new": [1.5]}}),
    "delete": (lambda store: store.__delitem__("k"), {key: OLD[key] for key in OLD if key != "k"}),
    "pop": (lambda store: store.pop("k"), {key: OLD[key] for key in OLD if key != "k"}),
    "popitem": (lambda store: store.popitem(), {key: OLD[key] for key in OLD if key != ("a", 1)}),
    "setdefault": (lambda store: store.setdefault("d", 5), {**OLD, "d": 5}),
    "incr": (lambda store: store.incr("n"), {**OLD, "n": 2}),
    "touch": (lambda store: store.touch("k", 50), None),
    "persist": (lambda store: store.persist("k"), None),
    "get": (lambda store: store.get("k"), None),
    "get_many": (lambda store: store.get_many(["k", "list", "missing"]), None),
    "set_many": (lambda store: store.set_many({"k": "new", "k2": "new"}), {**OLD, "k": "new", "k2": "new"}),
    "set_many with ttl": (
        lambda store: store.set_many({"k": "new", "k2": "new"}, ttl=9),
        {**OLD, "k": "new", "k2": "new"},
    ),
    "delete_many": (
        lambda store: store.delete_many(["k", "k2"]),
        {key: OLD[key] for key in OLD if key not in ("k", "k2")},
    ),
    "clear": (lambda store: store.clear(), {}),
    "iterate": (iterated, None),
    "len": (len, None),
    "in": (lambda store: "k" in store, None),
    "ttl": (lambda store: store.ttl("k"), None),
    "save": (lambda store: store.save(), None),
    "sync": (lambda store: store.sync(), None),
    "tick": (lambda store: store.tick(), None),
    "config_set": (lambda store: store.config_set("default_ttl", None), None),
    "config_set memory": (lambda store: store.config_set("memory", "1MB"), None),
    "stats": (lambda store: (store.stats(), store.memory_stats(), store.explain("k"), repr(store)), None),
    "check": (lambda store: store.check(), None),
    "edit": (edited, {**OLD, "list": [0, 1]}),
    "transaction": (transacted, {"k": "new", "k2": "new", "n": 1, ("a", 1): 1}),
    "transaction reads": (read_in_transaction, None),
    "view": (viewed, {**OLD, "k": "new"}),
    "sub": (lambda store: store.sub("a").set(1, 2), {**OLD, ("a", 1): 2}),
    "compact": (lambda store: store.compact(), None),
    "update": (lambda store: store.update({"k": "new", "k2": "new"}), {**OLD, "k": "new", "k2": "new"}),
    "in-place or": (lambda store: operator.ior(store, {"k": "new", "k2": "new"}), {**OLD, "k": "new", "k2": "new"}),
    "equality": (lambda store: store == OLD, None),
    "ranges": (ranged, None),
    "transact": (lambda store: store.transact(lambda txn: txn.incr("n")), {**OLD, "n": 2}),
    "clear a sub-store": (lambda store: store.sub("a").clear(), {key: OLD[key] for key in OLD if key != ("a", 1)}),
    "refresh": (lambda store: store.refresh(), None),
    "reclaim": (lambda store: store.reclaim(), None),
    "doctor": (lambda store: (store.doctor(), store.config_get("m*")), None),
    "advise": (advised, None),
    "memoize": (memoized, {**OLD, ("memoize", "f", "k"): 1}),
    "on": (lambda store: store.on("checkpoint", id)(), None),
    "snapshot": (lambda store: store.snapshot(store.path + ".tsnap"), None),
    "another handle": (another_handle, None),
}
STATES = {"dirty": no_op, "clean": lambda store: store.save(), "cold": evict}


def reset(store: Any) -> None:
    for key in list(store):
        if key not in OLD:
            del store[key]
    store.update(OLD)


def first_line(interrupter: Interrupter, store: Any, state: str, operation: Callable[[Any], object], case: str) -> int:
    """Where to begin: it differs, so that together the cases come to every line; and the operation has so many."""
    reset(store)
    STATES[state](store)
    interrupter.run(lambda: operation(store), 0)
    # A hit in the arena has no lines: it is C.
    return 1 + sum(map(ord, case)) % max(1, min(STRIDE, interrupter.seen))


def test_every_public_operation_of_a_store_is_among_those_interrupted(opener: Any) -> None:
    called: set[str] = set()
    store = opener(stepwise=True)
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, argument: called.add(frame.f_code.co_name) if event == "call" else None)
    try:
        for operation, _ in OPERATIONS.values():
            reset(store)
            operation(store)
    finally:
        sys.setprofile(before)
    public = {name for name in dir(tiered.Store) if not name.startswith("_")}
    # `get` is C where it is compiled; opening and closing have a test of their own.
    assert public - called - {"get"} == set()
    assert "close" in called


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Of other handles, whose `with` was interrupted.
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_interrupt_at_any_line_leaves_old_or_new_and_no_lock_held(
    quick_path: Path, opener: Any, name: str, state: str, error: type[BaseException]
) -> None:
    operation, done = OPERATIONS[name]
    store = opener(quick_path / "store.tiered", stepwise=True, save="")
    interrupter = Interrupter(error)
    allowed = [OLD, OLD if done is None else done]
    at = first_line(interrupter, store, state, operation, name + state + error.__name__)
    while True:
        reset(store)
        STATES[state](store)
        reached = interrupter.run(lambda: operation(store), at)
        if not reached:
            assert dict(store) == allowed[1]
            break
        where = f"{name} of a {state} key, interrupted at {interrupter.place}"
        assert not store._engine.owned(), where
        assert not store._engine.journal._prepare_lock._is_owned(), where
        assert not store._engine.journal._group.lock._is_owned(), where
        assert not store._engine.journal._group._mutex._is_owned(), where
        assert free(store._engine.lock), where
        assert not store._engine.poisoned, where
        assert dict(store) in allowed, where
        assert store.check() == [], where
        assert not store._engine.watchers, where
        if store._engine.full:  # For want of memory; there is nobody here who tries again every second.
            store.save()
        # Lines of one loop are alike: the further in, the larger the steps.
        at += STRIDE if at < 400 else STRIDE + at // 100


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_signal_handler_at_any_line_does_what_it_says_or_is_refused(
    quick_path: Path, opener: Any, name: str, state: str
) -> None:
    operation, done = OPERATIONS[name]
    store = opener(quick_path / "store.tiered", stepwise=True, save="")
    written = refused = 0
    last: Any = None

    def handler() -> None:
        nonlocal written, refused, last
        assert store.get("k2") in ("old", "new", None)
        len(list(store.items()))
        for write in (
            lambda: store.set("handler", interrupter.at),
            lambda: store.set_many({"handler": interrupter.at}),
            lambda: store.transact(lambda txn: txn.set("handler", interrupter.at), 1),
        ):
            try:
                write()
            except (tiered.ReentrantError, tiered.ConflictError):
                refused += 1
            else:
                written += 1
                last = interrupter.at
        for call in (store.sync, store.save, lambda: store.pop("handler2", None), lambda: store.view().close()):
            with contextlib.suppress(tiered.ReentrantError):
                call()

    interrupter = Interrupter(KeyboardInterrupt, handler)
    at = first_line(interrupter, store, state, operation, name + state)
    while True:
        reset(store)
        STATES[state](store)
        last = None
        reached = interrupter.run(lambda: operation(store), at)
        where = f"{name} of a {state} key, a handler at {interrupter.place}"
        found = dict(store)
        assert found.pop("handler", None) in ((last, None) if name in ("clear", "popitem") else (last,)), where
        # What met a conflict, or an iteration that a handler's key came into, is not judged by it.
        assert found in (OLD, OLD if done is None else done) or name == "popitem", where
        assert store.check() == [], where
        assert free(store._engine.lock), where
        if not reached:
            break
        at += STRIDE if at < 400 else STRIDE + at // 100
    assert written + refused or (name in ("get", "in") and not interrupter.seen)


def test_an_iterator_left_half_way_and_collected_in_another_thread_keeps_nothing_open(opener: Any) -> None:
    store = opener(stepwise=True)
    store.update(dict.fromkeys(range(2000), "x" * 100))
    store.save()
    view = store.view()
    with store.transaction() as txn:
        left = [iter(mapping.items()) for mapping in (store, view, txn, store.sub("a"), view.sub("a"))]
        for iterator in left:
            next(iterator, None)
        thread = threading.Thread(target=left.clear)
        thread.start()
        thread.join()
    view.close()
    assert store._engine.cold.readers() == 0
    assert free(store._engine.lock)
    store[1] = "new"
    assert store.check() == []


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("what", ["open", "open with a journal", "close", "close and tell", "with"])
def test_an_interrupt_while_opening_or_closing_leaves_a_store_that_opens_and_holds_everything(
    quick_path: Path, what: str, error: type[BaseException]
) -> None:
    path, left = quick_path / "store.tiered", quick_path / "left"
    with tiered.open(path, helper=False) as store:
        store.update(OLD)
        shutil.copytree(path, left)
    interrupter = Interrupter(error)
    at = 1 + sum(map(ord, what + error.__name__)) % STRIDE

    def opened_and_closed() -> None:
        with tiered.open(path, helper=False) as store:
            store["k"] = "old"

    while True:
        if what == "open with a journal":
            shutil.rmtree(path)
            shutil.copytree(left, path)
        if what == "with":
            reached = interrupter.run(opened_and_closed, at)
        elif what in ("close", "close and tell"):
            store = tiered.open(path, helper=False)
            if what == "close and tell":
                store.on("checkpoint", lambda event, store=store: store.get("k"))
            store["k"] = "old"
            reached = interrupter.run(store.close, at)
            store.close()
            with pytest.raises(tiered.ClosedError):
                store.get("k")
        else:
            reached = interrupter.run(lambda: tiered.open(path, helper=False).close(), at)
        gc.collect()
        # The background thread may be in the middle of a look at the store that was left.
        with tiered.open(path, helper=False, lock_timeout=5) as store:
            assert dict(store) == OLD, f"{what}, interrupted at {interrupter.place}"
            assert store.check() == []
        if not reached:
            break
        at += STRIDE if at < 400 else STRIDE + at // 100
