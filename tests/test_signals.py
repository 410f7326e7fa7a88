"""Exceptions that a handler of signals raises, as timeouts do: they come out as they are, not as others."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contracts import evict

from tiered import checkpoint, codec, files, keys, record, removal
from tiered.process import by_handler

SIGNAL = signal.SIGUSR1
CODES = {key: {"number": key, "text": "of some length " * 9} for key in range(300)}


class Timeout:
    """A handler that raises, once it is armed, and what has it run in the middle of a function."""

    def __init__(self, kind: type[Exception]) -> None:
        self.kind = kind
        self.raised = 0

    def __call__(self, *_: object) -> None:
        self.raised += 1
        raise self.kind("too long")

    def within(self, patch: pytest.MonkeyPatch, place: Any, name: str, nth: int = 1) -> None:
        """The signal comes in the nth call of a function, when that has done its work."""
        real, calls = getattr(place, name), 0

        def interrupted(*args: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            result = real(*args, **named)
            if calls == nth:
                signal.raise_signal(SIGNAL)
            return result

        patch.setattr(place, name, interrupted)


@pytest.fixture
def timeout(request: pytest.FixtureRequest) -> Iterator[Timeout]:
    handler = Timeout(getattr(request, "param", TimeoutError))
    before = signal.signal(SIGNAL, handler)
    yield handler
    signal.signal(SIGNAL, before)


class Decoding:
    document = staticmethod(codec.DECODERS[3])


OF_ANY_KIND = pytest.mark.parametrize(
    "timeout", [ValueError, KeyError, TimeoutError, OSError, RuntimeError], indirect=True
)


def raising(*_: object) -> None:
    raise ValueError("of a handler")


class Handlers:
    def method(self, *_: object) -> None:
        raise ValueError("of a handler")

    @staticmethod
    def static(number: int, _: object) -> None:
        int("of what a handler calls")


@pytest.mark.parametrize(
    "handler",
    [raising, Handlers().method, Handlers.static, functools.partial(raising, 1), Timeout(ValueError)],
    ids=["function", "method", "static", "partial", "object"],
)
def test_what_a_handler_raises_is_told_from_other_errors(handler: Callable[..., None]) -> None:
    before = signal.signal(SIGNAL, handler)
    try:
        with pytest.raises(ValueError) as caught:
            signal.raise_signal(SIGNAL)
        assert by_handler(caught.value)
        with pytest.raises(ValueError, match="invalid literal") as other:
            int("no number")
        assert not by_handler(other.value)
        assert not by_handler(ValueError("raised by nobody"))
    finally:
        signal.signal(SIGNAL, before)
    assert not by_handler(caught.value)


@OF_ANY_KIND
@pytest.mark.parametrize("cold", [True, False])
def test_in_a_read(opener: Any, monkeypatch: pytest.MonkeyPatch, timeout: Timeout, cold: bool) -> None:
    store = opener(stepwise=True)
    for key, value in CODES.items():
        store.set(key, value, ttl=1000)
    store.save()
    if cold:
        evict(store)
    reads: list[Callable[[], object]] = [
        lambda: store[7],
        lambda: store.get(8),
        lambda: store.get_many([9, 10]),
        lambda: 11 in store,
        lambda: store.ttl(12),
    ]
    for read in reads:
        timeout.raised = 0
        with monkeypatch.context() as patch:
            timeout.within(patch, type(store._engine.clock), "now_ms")
            with pytest.raises(timeout.kind, match="too long"):
                read()
        assert timeout.raised == 1
    assert store.get_many(CODES) == CODES
    assert store.check() == []


@OF_ANY_KIND
@pytest.mark.parametrize(
    "place", [(record, "unpack"), (Decoding, "document"), (keys, "decode")], ids=["record", "value", "key"]
)
def test_in_an_iteration_or_a_view(
    opener: Any, monkeypatch: pytest.MonkeyPatch, timeout: Timeout, place: tuple[Any, str]
) -> None:
    store = opener(stepwise=True, compression="zlib:6")  # Which only Python undoes.
    store.update(CODES)
    store.save()
    evict(store)
    monkeypatch.setitem(codec.DECODERS, 3, lambda payload: Decoding.document(payload))
    with store.view() as view:
        for iteration in (store.items, lambda: store.items(reverse=True), view.items, lambda: [view[7], *view.keys()]):
            with monkeypatch.context() as patch:
                timeout.within(patch, *place)
                with pytest.raises(timeout.kind, match="too long"):
                    list(iteration())
        assert dict(view.items()) == CODES
    assert store.check() == []


@OF_ANY_KIND
@pytest.mark.parametrize(
    ("place", "operation"),
    [
        ((checkpoint.Applier, "apply"), lambda store: store.save()),
        ((files, "sync_data"), lambda store: store.sync()),
        ((Path, "unlink"), lambda store: store.save()),
        ((checkpoint.Applier, "_copy"), lambda store: store.compact()),
        ((files, "write_current"), lambda store: store.compact()),
    ],
    ids=["checkpoint", "sync", "removal", "compaction", "switch"],
)
def test_where_files_are_written(
    opener: Any,
    monkeypatch: pytest.MonkeyPatch,
    timeout: Timeout,
    place: tuple[Any, str],
    operation: Callable[[Any], object],
) -> None:
    store = opener(stepwise=True)
    store.update(CODES)
    store.save()
    for turn in range(3):
        store.update({key: [turn, key] for key in range(0, 300, turn + 1)})
        with monkeypatch.context() as patch:
            timeout.within(patch, *place)
            with pytest.raises(timeout.kind, match="too long"):
                operation(store)
        assert store.stats().state == "open"
        operation(store)
        assert store[0] == [turn, 0]
    expected = dict(store.items())
    store.close()
    store = opener(stepwise=True)
    assert dict(store.items()) == expected
    assert store.check() == []


def test_a_switch_that_was_interrupted_when_it_was_done_is_made_whole(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real, named = opener(stepwise=True), files.write_current, list[int]()
    store.update(CODES)
    store.save()

    def interrupted(directory: Path, number: int) -> None:
        real(directory, number)
        named.append(number)
        if len(named) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_current", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.compact()
    assert named == [2, 2]  # With its directory synced for certain.
    store.compact()
    assert dict(store.items()) == CODES


def test_in_the_removal_of_a_directory_an_interrupt_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/b/c", "a/b/d", "a/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name in ("unlink", "rmdir"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                removal.remove_tree(tmp_path / "a", ignore_errors=True)
    removal.remove_tree(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    removal.remove_tree(tmp_path / "a", ignore_errors=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"")
    (tmp_path / "removed").mkdir()
    for name in ("link", "removed/link"):
        (tmp_path / name).symlink_to(tmp_path / "kept")
        removal.remove_tree(tmp_path / name.partition("/")[0])
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "file"]  # What links lead to stays.
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", lambda path: os.rmdir(path))
        removal.remove_tree(tmp_path / "kept", ignore_errors=True)
        with pytest.raises(OSError, match="file"):
            removal.remove_tree(tmp_path / "kept")
