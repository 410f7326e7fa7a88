"""Group commit: who waits shares a sync, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tiered.group_commit import GroupCommit


class Disk:
    """Records that are written, and synced up to some number; the first sync takes until it is let go."""

    def __init__(self) -> None:
        self.group = GroupCommit()
        self.written = self.synced = self.syncs = 0
        self.begun, self.go_on = threading.Event(), threading.Event()

    def sync(self) -> None:
        target = self.written
        self.syncs += 1
        self.begun.set()
        assert self.go_on.wait(10)
        self.synced = target

    def wait_for(self, number: int) -> None:
        self.group.run(lambda: self.synced >= number, self.sync)

    def thread(self, number: int) -> threading.Thread:
        thread = threading.Thread(target=self.wait_for, args=(number,))
        thread.start()
        return thread


def test_all_who_come_during_a_sync_share_the_next_one() -> None:
    disk = Disk()
    disk.written = 1
    threads = [disk.thread(1)]
    assert disk.begun.wait(10)
    disk.written = 8
    threads += [disk.thread(number) for number in range(1, 9)]
    time.sleep(0.05)
    disk.go_on.set()
    for thread in threads:
        thread.join(10)
    assert (disk.syncs, disk.synced) == (2, 8)


def test_what_is_synced_already_is_not_synced_again() -> None:
    disk = Disk()
    disk.synced = 5
    disk.wait_for(5)
    assert disk.syncs == 0


def test_an_error_is_raised_to_whoever_made_the_call_and_the_next_makes_its_own() -> None:
    group, calls = GroupCommit(), []

    def fail() -> None:
        calls.append(threading.get_ident())
        raise OSError("the disk said no")

    def run(raised: list[BaseException]) -> None:
        with pytest.raises(OSError, match="said no") as caught:
            group.run(lambda: False, fail)
        raised.append(caught.value)

    raised: list[BaseException] = []
    threads = [threading.Thread(target=run, args=(raised,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(raised) == len(calls) == len(set(map(id, raised))) == 4


def test_a_maker_that_never_says_it_is_over_is_not_waited_for_for_ever() -> None:
    disk = Disk()
    disk.go_on.set()
    disk.written = 1
    disk.group._maker = -1  # As an interrupt just before it could say so leaves it.
    disk.wait_for(1)
    assert (disk.synced, disk.group._maker) == (1, 0)


def test_a_signal_handler_in_the_middle_of_a_sync_makes_one_of_its_own() -> None:
    group, seen = GroupCommit(), []
    state: dict[str, Any] = {"synced": 0}

    def sync() -> None:
        seen.append("outer" if not seen else "inner")
        if len(seen) == 1:
            group.run(lambda: state["synced"] >= 1, sync)
        state["synced"] = 1

    group.run(lambda: state["synced"] >= 1, sync)
    assert seen == ["outer", "inner"]
