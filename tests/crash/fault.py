"""A scenario in which the first, the second, … system call fails, until it comes to its end without having met one.

Arguments: scenario (a name, or a seed of a random one), durability, "mapped" or "pwrite", seed, and how many of the
calls to try, 0 for all.

Each of them fails with EIO and with ENOSPC, once, and from then on until the scenario has ended.  Whatever an
operation raises is an error of this package, and the operation is done or not done as a whole.  Reads are right all
the time.  The store takes writes again, or is poisoned and takes none.  Closed and opened again, killed and opened
again, or after a power cut, it holds a right state.
"""

from __future__ import annotations

import errno
import faulthandler
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

from scenarios import QUIET, SCENARIOS, Run, State, Step, random_steps, state_of
from seam import KINDS, Call, Disk, left_by_kill, left_by_power_cut, scratch, watched

import tiered
from tiered import files

PASSES = 1 << 30


class Faulty:
    """The call that fails, and what the disk has by then."""

    def __init__(self, disk: Disk, number: int, code: int, lasting: bool) -> None:
        self.disk, self.number, self.code, self.lasting = disk, number, code, lasting
        self.calls = 0
        self.failed = ""
        self.over = False

    def told(self, call: Call, after: bool) -> int:
        if not after and not self.over:
            self.calls += 1
            # What lasts is that nothing can be written; reading what is there goes on.
            if self.calls == self.number or (self.lasting and self.calls > self.number and call.kind in "wsratud"):
                self.failed = self.failed or f"{KINDS[call.kind]} {Path(call.path).name}"
                self.disk.failed(call)
                return self.code
        self.disk.told(call, after)
        return 0


class Trial:
    """One run of a scenario with one fault in it."""

    def __init__(self, run: Run, faulty: Faulty) -> None:
        self.run, self.faulty = run, faulty
        self.possible: list[State] = [{}]
        """What may be found when the store is opened again."""

    def open(self) -> None:
        """Open the store; where that fails it is an error of this package, and later it works."""
        for _ in range(3):
            try:
                self.run.store = self.run.open()
                break
            except tiered.CorruptionError:
                raise
            except tiered.TieredError:
                self.run.store = None
        else:
            self.faulty.over = True
            try:
                self.run.store = self.run.open()
            except tiered.TieredError as error:
                raise AssertionError(f"cannot be opened when all is well again: {error}") from error
        found = state_of(self.run.store)
        assert found in self.possible, "opened with another state"
        self.run.default_ttl = self.run.store.config_get("default_ttl")["default_ttl"]
        self.possible = [found]
        self.run.states[-1] = found

    def do(self, step: Step) -> None:
        run, before = self.run, self.run.states[-1]
        poisoned = run.store._engine.poisoned
        try:
            if step[0] == "reopen":
                try:
                    run.store.close()
                finally:
                    self.open()
            else:
                run.do(step)
            failed = None
            if step[0] == "anew":
                self.possible = [{}]
        except tiered.TieredError as error:
            failed = error
            if step[0] == "anew":
                poisoned = ""
                self.possible = [before, {}]
                self.open()
        except OSError as error:
            assert step[0] == "prepare", "an error of the system leaves the package"
            failed = error
        if step[0] == "close":
            return
        if step[0] == "setting" and failed:
            run.default_ttl = run.store.config_get(step[1])[step[1]]
        found = self.read()
        after = run.states[-1]
        if failed is None:
            assert found == after, "another state than written"
            assert not poisoned or step[0] in QUIET, "a poisoned store takes writes"
            if step[0] not in QUIET:
                self.possible = [found]
            return
        assert found in ((before,) if step[0] in QUIET or poisoned else (before, after)), f"half done, then {failed!r}"
        if not poisoned:
            self.possible = [found, before, after]
        run.states[-1] = found

    def read(self) -> State:
        """What the store holds; an error kept from the background is told once."""
        try:
            return state_of(self.run.store)
        except tiered.CorruptionError:
            raise
        except tiered.StoreError:
            return state_of(self.run.store)

    def end(self, root: Path, uniform: random.Random) -> str:
        """The fault is over: the store is poisoned or fine, and right when it is opened again."""
        run = self.run
        self.faulty.over = True
        image = self.faulty.disk.image()
        engine = run.store._engine
        poisoned = not engine.closed and engine.poisoned
        if not engine.closed and not poisoned:
            run.clock.sleep(5)
            run.do(("tick",))
            found = self.read()
            assert not engine.poisoned, "poisoned when all was well again"
            run.store["again"] = 1
            self.possible = [found | {"again": (1, run.default_ttl)}]
            run.store.save()
            assert run.store.check() == []
        try:
            run.store.close()
        except tiered.PoisonedError:
            assert poisoned
        store = run.open()
        found = state_of(store)
        now = run.clock.now_ms()
        assert any(self.same(state, found, now) for state in self.possible), "another state after opening again"
        assert store.check() == []
        store["more"] = 1
        store.close()
        self.crash(root, image, uniform)
        return "poisoned" if poisoned else "fine"

    @staticmethod
    def same(state: State, found: State, now_ms: int) -> bool:
        """Equal but for the time that has passed."""
        return {key: value for key, (value, _) in state.items()} == {key: value for key, (value, _) in found.items()}

    def crash(self, root: Path, image: object, uniform: random.Random) -> None:
        """Instead of being closed, the program may have been killed, or the power cut, before the fault was over."""
        run = self.run
        for name in ("killed", "power cut"):
            left = root / "left"
            shutil.rmtree(left, ignore_errors=True)
            if name == "killed":
                left_by_kill(self.faulty.disk, image, left)
            else:
                left_by_power_cut(self.faulty.disk, image, left, uniform)
            store = run.open(left / "store")
            found = state_of(store)
            states = self.before if name == "killed" else [*run.states[run.durable :], *self.before]
            assert any(self.same(state, found, 0) for state in states), f"another state after it was {name}"
            assert store.check() == []
            store.close()


def attempt(
    root: Path, steps: list[Step], durability: str, faulty: tuple[int, int, bool], seed: int
) -> tuple[str, Faulty]:
    """Run the scenario once; what became of the store."""
    shutil.rmtree(root, ignore_errors=True)
    work = root / "work"
    work.mkdir(parents=True)
    run = Run(work / "store", durability)
    made = Faulty(Disk(work), *faulty)
    trial = Trial(run, made)
    faulthandler.dump_traceback_later(20, exit=True)
    with watched(work, made.told):
        step: Step = ("open",)
        try:
            trial.open()
            for step in steps:
                trial.do(step)
            step = ("the end",)
            trial.before = list(trial.possible)
            return trial.end(root, random.Random(seed)), made
        except Exception as error:
            code = errno.errorcode[faulty[1]]
            how = "from there on" if faulty[2] else "once"
            raise AssertionError(
                f"call {faulty[0]} ({made.failed}) fails with {code} {how}; at {step}: {error}"
            ) from error


def main() -> None:
    name, durability, mapped, seed, count = sys.argv[1:]
    steps = SCENARIOS[name] if name in SCENARIOS else random_steps(int(name))
    if mapped == "pwrite":
        files.reserves_space = lambda path: False
    uniform = random.Random(int(seed))
    ends: Counter[str] = Counter()
    with scratch() as root:
        _, free = attempt(root / "0", steps, durability, (PASSES, errno.EIO, False), 0)
        # Where the fault does not come as late as the last close, the store is still open when it is over.
        open_at_the_end = [step for step in steps if step != ("close",)]
        _, before_close = attempt(root / "0", open_at_the_end, durability, (PASSES, errno.EIO, False), 0)
        numbers: list[int] = list(range(1, free.calls + 1))
        for number in sorted(uniform.sample(numbers, int(count))) if int(count) else numbers:
            variants = [(code, lasting) for code in (errno.EIO, errno.ENOSPC) for lasting in (False, True)]
            for code, lasting in [uniform.choice(variants)] if int(count) else variants:
                until = open_at_the_end if number <= before_close.calls else steps
                end, made = attempt(root / "0", until, durability, (number, code, lasting), number)
                assert made.failed, "the call did not come"
                ends[end] += 1
    print(f"{free.calls} calls, {sum(ends.values())} runs with a fault: {dict(ends)}")


if __name__ == "__main__":
    main()
