"""What takes too long for every change: thousands of kills, power cuts and faults, interrupts at every line.

    .venv/bin/python tools/torture.py --minutes 30                # everything, in turn, for half an hour
    .venv/bin/python tools/torture.py --minutes 5 cut fault       # only these

cut         random scenarios, stopped and cut off from power at every system call (tests/crash/cut.py)
fault       random scenarios, in which every system call fails once and for good (tests/crash/fault.py)
helper      every system call of the helper process fails once (tests/crash/fault_helper.py)
kill        programs, helpers and both killed at random moments (tests/crash/test_kill.py)
interrupts  interrupts and signal handlers at every line (tests/test_interrupts.py)
handles     ten thousand stores opened, shared and closed (tests/test_handles.py)
machines    random operations and interleavings, ten times as many (tests/test_stateful.py, tests/test_serial.py)

The minutes are shared; interrupts, handles and machines take as long as they take, and come first.  Ends with
status 1 at the first failure, having said how to do the same again.  `tools/test.sh` makes the environment in .venv.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPEATED = ("cut", "fault", "helper", "kill")
KINDS = ("interrupts", "handles", "machines", *REPEATED)
KILL_ROUNDS = 160


def ran(command: list[str], **environment: str) -> bool:
    """Run a command in the project; whether it ended well.  What it says is shown if not."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    shown = " ".join([f"{name}={value}" for name, value in environment.items()] + command)
    if done.returncode:
        print(f"{done.stdout}\nfailed with {done.returncode}: {shown}", flush=True)
    else:
        print((done.stdout.strip().splitlines() or ["nothing said"])[-1], flush=True)
    return not done.returncode


def tested(path: str, **environment: str) -> bool:
    """Run tests of the suite, with more of everything."""
    options = ["-q", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=1800"]
    return ran([sys.executable, "-m", "pytest", *options, path], **environment)


def seam_program(library: Path, program: str, *arguments: object) -> bool:
    """Run one of the programs under the seam."""
    command = [sys.executable, f"tests/crash/{program}.py", *map(str, arguments)]
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return ran(command, PYTHONPATH=paths, LD_PRELOAD=str(library), SEAM_LIBRARY=str(library))


def once(kind: str, library: Path | None, seed: int) -> bool:
    """One round of a kind."""
    print(f"{time.strftime('%H:%M:%S')} {kind} {seed}: ", end="", flush=True)
    if kind == "interrupts":
        return tested("tests/test_interrupts.py", TIERED_INTERRUPT_STRIDE="1")
    if kind == "handles":
        return tested("tests/test_handles.py", TIERED_HANDLE_CYCLES="10000")
    if kind == "machines":
        return all(tested(f"tests/test_{name}.py", TIERED_EXAMPLES="10") for name in ("stateful", "serial"))
    if kind == "kill":
        return tested("tests/crash/test_kill.py", TIERED_KILL_ROUNDS=str(KILL_ROUNDS), TIERED_KILL_SEED=str(8 * seed))
    assert library is not None
    if kind == "helper":
        return seam_program(library, "fault_helper", seed, 0)
    uniform = random.Random(seed)  # Which makes a scenario, and says how it is run.
    durability, journal = uniform.choice(("always", "everysec", "checkpoint")), uniform.choice(("mapped", "pwrite"))
    return seam_program(library, kind, seed, durability, journal, seed, *(("2", "0") if kind == "cut" else ("0",)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first round; the next have the next")
    arguments = parser.parse_args()
    kinds = arguments.kinds or list(KINDS)
    if strange := set(kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(strange))}")
    limit = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as folder:
        library = None
        if {"cut", "fault", "helper"} & set(kinds):
            sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "crash")]
            library = importlib.import_module("seam").compiled(Path(folder))
            if library is None:
                parser.error("cut, fault and helper need a C compiler, and Linux")
        for kind in ("interrupts", "handles", "machines"):
            if kind in kinds and not once(kind, library, 0):
                return 1
        seed, rounds = arguments.seed, dict.fromkeys(REPEATED, 0)
        while time.monotonic() < limit and (repeated := [kind for kind in REPEATED if kind in kinds]):
            for kind in repeated:
                if not once(kind, library, seed):
                    return 1
                rounds[kind] += KILL_ROUNDS if kind == "kill" else 1
            seed += 1
        print(", ".join(f"{kind}: {count:,} rounds" for kind, count in rounds.items() if count))
    return 0


if __name__ == "__main__":
    sys.exit(main())
