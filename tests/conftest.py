"""Fixtures: stores that are checked and closed after every test, and a watch over what tests leave behind."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import tiered
from tiered.clock import ManualClock
from tiered.maintenance import MAINTENANCE


def _descriptors() -> set[str]:
    """What this process has open, apart from what the interpreter and pytest keep."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("/") and not target.startswith(("/dev/", "/proc/")):
            found.add(f"{name} {target}")
    return found


def _children() -> set[str]:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(path.read_text().split()) if path.exists() else set()


def pytest_configure() -> None:
    """Heed Ctrl-C, in programs started by tests as well, where a shell that put them into the background ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> None:
    """Spare collections of garbage what pytest keeps of thousands of tests: one took longer than most of these."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a thread, an open file or a child process behind."""
    threads, descriptors, children = set(threading.enumerate()), _descriptors(), _children()
    yield
    deadline = time.monotonic() + 5
    while True:
        left: list[object] = [thread for thread in threading.enumerate() if thread not in threads]
        left += sorted(_descriptors() - descriptors)
        left += sorted(_children() - children)
        if not left or time.monotonic() > deadline:
            break
        gc.collect()  # Only now: most tests leave nothing, and a collection takes longer than they do.
        time.sleep(0.02)
    assert not left, f"left behind: {left}"


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A directory in memory where the system has one, for tests whose many syncs prove nothing."""
    with TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture
def clock() -> ManualClock:
    """A clock that moves only when told to."""
    return ManualClock()


Opener = Callable[..., "tiered.Store[Any, Any]"]


def without_background(store: tiered.Store[Any, Any]) -> tiered.Store[Any, Any]:
    """Keep the maintenance thread away from a store: only the test's own calls do anything."""
    MAINTENANCE.dismiss(store._engine._number)
    store._engine._number = -1
    return store


@pytest.fixture
def opener(tmp_path: Path) -> Iterator[Opener]:
    """Open stores (by default `store.tiered`, 1 MB, inline checkpoints); each is checked and closed afterwards.

    `stepwise=True` keeps the background thread away as well.
    """
    opened: list[tiered.Store[Any, Any]] = []

    def open_store(
        path: str | Path = "store.tiered", flag: str = "c", stepwise: bool = False, **settings: Any
    ) -> tiered.Store[Any, Any]:
        settings.setdefault("memory", "1MB")
        settings.setdefault("helper", False)
        with pytest.MonkeyPatch.context() as patch:
            if stepwise:
                patch.setattr(MAINTENANCE, "serve", lambda engine: -1)
            store = tiered.open(tmp_path / path, flag, **settings)
        opened.append(store)
        return without_background(store) if stepwise else store

    yield open_store
    findings = []
    for store in opened:
        if not store._engine.closed:
            findings += store.check()
            store.close()
    assert findings == []


@pytest.fixture
def store(opener: Opener) -> tiered.Store[Any, Any]:
    """A small store with inline checkpoints."""
    return opener()
