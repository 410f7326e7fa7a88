"""Programs and helpers killed at random moments: nothing acknowledged is lost, batches are whole.

Each thread of the program has keys of its own and does a known sequence of operations,
so what is found after a kill must be the state after the last acknowledged one, or
after the one that was under way.  A program that only reads runs beside them all the time; a snapshot
that a killed program leaves is whole.  Some leave a forked
child behind, which must be in nobody's way.  `TIERED_KILL_ROUNDS` sets how often in all.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import programs
import pytest

import tiered

sys.path.insert(0, str(Path(__file__).parent))
import operations

ROUNDS = int(os.environ.get("TIERED_KILL_ROUNDS", "240"))
SEED = int(os.environ.get("TIERED_KILL_SEED", "1"))
SCENARIOS = 8
THREADS = 3
ENVIRONMENT = {**os.environ, "PYTHONPATH": programs.ROOT}


def noted(path: Path) -> tuple[int, int]:
    """The last step begun and the last one acknowledged in a thread's notes, -1 for none."""
    begun = done = -1
    if path.exists():
        for line in path.read_text().splitlines():
            begun, done = (int(line[1:]), done) if line[0] == "i" else (begun, int(line[1:]))
    return begun, done


def helpers_of(pid: int) -> list[int]:
    """The helper of a program, as a list; a forked child has its parent's command."""
    found = []
    for child in programs.children(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"helper.serve" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


class Scenario:
    """A store that programs write into one after the other, and what must be in it."""

    def __init__(self, tmp_path: Path, seed: int) -> None:
        self.uniform = random.Random(seed)
        self.path = tmp_path / "store.tiered"
        self.notes = tmp_path / "notes"
        self.notes.mkdir()
        self.models: list[dict[Any, Any]] = [{} for _ in range(THREADS)]
        self.steps = [0] * THREADS
        self.under_way = self.snapshots = 0
        self.orphans: list[int] = []

    def run_and_kill(self) -> None:
        """One program's life: it is killed, or its helper and then it, or both at once."""
        uniform = self.uniform
        durability = uniform.choice(("everysec", "everysec", "always", "checkpoint"))
        beside = uniform.choice(("h", "h", "hs", "hsc", "hc", "hy", "", "s", "c", "hf", "hsf", "f", "hp", "hsp", "p"))
        command = [sys.executable, str(Path(__file__).with_name("writer.py")), str(self.path), str(self.notes)]
        command += [",".join(map(str, self.steps)), durability, beside]
        with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == b"opening\n"
            time.sleep(0.8 * uniform.random() ** 2)
            helpers = helpers_of(program.pid)
            victims = uniform.choice(("program", "program", "helper", "both"))
            for helper in helpers if victims != "program" else ():
                os.kill(helper, signal.SIGKILL)
            if victims == "helper":
                time.sleep(0.4 * uniform.random())
                helpers += helpers_of(program.pid)
            died = program.poll()
            program.kill()
            self.orphans = [int(line) for line in program.stdout.read().split()]
            assert program.stderr is not None
            errors = [line for line in program.stderr.read().decode().splitlines() if "starting another" not in line]
            assert (died, errors) == (None, []), "\n".join(errors)
        for helper in helpers:
            programs.wait_until(lambda pid=helper: not programs.alive(pid), 10, "the helper outlives its program")

    def end_orphans(self) -> None:
        """Kill the children that programs left behind."""
        for orphan in self.orphans:
            assert programs.alive(orphan), "the child ended by itself"
            os.kill(orphan, signal.SIGKILL)
        self.orphans = []

    def verify(self) -> None:
        """Open, and compare every key with what was acknowledged.

        A child that was being forked when its parent died holds the lock until it comes to close it.
        """
        with tiered.open(self.path, memory="1MB", helper=self.uniform.random() < 0.5, lock_timeout=5) as store:
            assert store.check() == []
            found: list[dict[Any, Any]] = [{} for _ in range(THREADS)]
            for key, value in store.items():
                found[key[0]][key] = value
            for thread in range(THREADS):
                self._verify_thread(thread, found[thread])
            key = self.uniform.choice(list(self.models[0]) or [(0, 0)])
            assert store.get(key) == self.models[0].get(key)
        snapshot = self.path.with_name(f"{self.path.name}.tsnap")
        if snapshot.exists():
            assert tiered.verify(snapshot) == []
            self.snapshots += 1

    def _verify_thread(self, thread: int, found: dict[Any, Any]) -> None:
        notes = self.notes / str(thread)
        begun, done = noted(notes)
        notes.unlink(missing_ok=True)
        model = self.models[thread]
        while self.steps[thread] <= done:
            operations.imitate(model, operations.operation(thread, self.steps[thread]))
            self.steps[thread] += 1
        if found != model and begun > done:
            operations.imitate(model, operations.operation(thread, begun))
            self.steps[thread] = begun + 1
            self.under_way += 1
        if found != model:
            wrong = {key for key in found.keys() | model.keys() if found.get(key) != model.get(key)}
            raise AssertionError(
                f"thread {thread}, step {done} acknowledged, {begun} begun: differs in {sorted(wrong)}"
            )


@pytest.mark.parametrize("seed", range(SEED, SEED + SCENARIOS))
def test_whatever_is_killed_when_every_acknowledged_write_is_there_and_batches_are_whole(
    tmp_path: Path, seed: int
) -> None:
    scenario = Scenario(tmp_path, seed)
    reader = [sys.executable, "-W", "error", str(Path(__file__).with_name("reader.py")), str(scenario.path)]
    with subprocess.Popen(
        reader, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as reading:
        for _ in range(ROUNDS // SCENARIOS):
            scenario.run_and_kill()
            scenario.verify()
            scenario.end_orphans()
            assert reading.poll() is None, "the reader has ended"
        said, errors = reading.communicate(timeout=30)
    assert errors == ""
    assert said.startswith("reading\n"), said
    assert sum(scenario.steps) > 20 * ROUNDS // SCENARIOS
    left = set(os.listdir(scenario.path)) - {"CURRENT", "HOT", "LOCK", "APPLY"}
    assert len(left) == 1, f"left behind: {left}"
