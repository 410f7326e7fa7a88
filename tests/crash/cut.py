"""A scenario stopped before and after each of its system calls in turn, by a kill and by power cuts.

Arguments: scenario (a name, or a seed of a random one), durability, "mapped" or "pwrite", seed, power cuts per call,
and how many of the calls to look at, 0 for all.

A kill leaves what was written until then, which is what a copy of the files made inside the call holds: nothing
else of the program runs meanwhile.  After every stop the store is opened, compared with the states that it may have,
checked, written to, and opened once more.  Opening is such a scenario itself, and is stopped likewise now and then.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from scenarios import SCENARIOS, Run, State, random_steps, state_of
from seam import Call, Disk, Image, left_by_kill, left_by_power_cut, scratch, watched

from tiered import files


class Moment(NamedTuple):
    """Where the scenario was stopped, what is on the disk then, and which states are right afterwards."""

    where: str
    image: Image
    durable: int
    acknowledged: int
    begun: int


class Stops:
    """All moments of a scenario at which a system call is made, or has just been made."""

    def __init__(self, run: Run, disk: Disk) -> None:
        self.run = run
        self.disk = disk
        self.step = "opening"
        self.moments: list[Moment] = []
        self.calls = 0
        self._last: Image | None = None

    def told(self, call: Call, after: bool) -> int:
        if not after:
            self.calls += 1
            self.stop(f"{self.step}, before call {self.calls}: {call.kind} {Path(call.path).name}")
        self.disk.told(call, after)
        return 0

    def stop(self, where: str) -> None:
        """Note this moment, unless it is like the last one."""
        image = self.disk.image()
        run, last = self.run, self.moments[-1] if self.moments else None
        moment = Moment(where, image, run.durable, run.acknowledged, len(run.states) - 1)
        if last is None or moment[1:] != last[1:]:
            self.moments.append(moment)


@contextmanager
def placed(root: Path) -> Iterator[Path]:
    """A place for a store that a crash left."""
    shutil.rmtree(root / "left", ignore_errors=True)
    yield root / "left"


def verify(run: Run, path: Path, states: list[State], where: str) -> None:
    """What is there is one of these states; it stays so, and can be written to."""
    store = run.open(path)
    found = state_of(store)
    right = [state for state in states if state == found]
    if not right:
        wrong = {key for key in states[0].keys() | found.keys() if states[0].get(key) != found.get(key)}
        raise AssertionError(
            f"{where}: {len(states)} states are right, and it is none of them: {sorted(map(str, wrong))}"
        )
    assert store.check() == [], where
    store["more"] = "x"
    store.close()
    store = run.open(path)
    assert store.pop("more") == "x", where
    found.pop("more", None)
    assert state_of(store) == found, f"{where}: another state after one more opening"
    store.close()


def recover_in_steps(run: Run, root: Path, states: list[State], where: str, uniform: random.Random) -> int:
    """Stop the opening of what a crash left, at some of its calls."""
    path = root / "left" / "store"
    again = Run(path, run.settings["durability"])
    disk = Disk(root / "left")
    stops = Stops(again, disk)
    with watched(root / "left", stops.told):
        again.open().close()
        stops.stop("opened")
    for moment in uniform.sample(stops.moments, min(4, len(stops.moments))):
        shutil.rmtree(root / "left")
        left_by_power_cut(disk, moment.image, root / "left", uniform)
        verify(run, path, states, f"{where}; then {moment.where}")
    return len(stops.moments)


def main() -> None:
    name, durability, mapped, seed, cuts, count = sys.argv[1:]
    steps = SCENARIOS[name] if name in SCENARIOS else random_steps(int(name))
    if mapped == "pwrite":
        files.reserves_space = lambda path: False
    uniform = random.Random(int(seed))
    with scratch() as root:
        work = root / "work"
        work.mkdir()
        run = Run(work / "store", durability)
        disk = Disk(work)
        stops = Stops(run, disk)
        with watched(work, stops.told):
            run.store = run.open()
            for step in steps:
                stops.step = " ".join(map(str, step))[:40]
                run.do(step)
                stops.stop(f"{stops.step}, done")
        kills = power_cuts = recoveries = 0
        moments = stops.moments
        for moment in uniform.sample(moments, min(int(count), len(moments))) if int(count) else moments:
            with placed(root) as left:
                left_by_kill(disk, moment.image, left)
                verify(
                    run, left / "store", run.states[moment.acknowledged : moment.begun + 1], f"killed: {moment.where}"
                )
                kills += 1
            for _ in range(int(cuts)):
                with placed(root) as left:
                    left_by_power_cut(disk, moment.image, left, uniform)
                    states = run.states[moment.durable : moment.begun + 1]
                    where = f"power cut: {moment.where}"
                    if uniform.random() < 0.1:
                        recover_in_steps(run, root, states, where, uniform)
                        recoveries += 1
                    else:
                        verify(run, left / "store", states, where)
                    power_cuts += 1
    print(f"{stops.calls} calls, {kills} kills, {power_cuts} power cuts, {recoveries} of them recovered from in steps")


if __name__ == "__main__":
    main()
