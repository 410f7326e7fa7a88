"""Programs that tests run in processes of their own, and what can be seen of a process from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiered

ROOT = str(Path(tiered.__file__).resolve().parents[1])


def _command(code: str, arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": ROOT, "PYTHONUNBUFFERED": "1"}


def run(code: str, *arguments: object, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        _command(code, arguments), env=_environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def succeed(code: str, *arguments: object, timeout: float = 60.0) -> str:
    """Run a program which must end well and say nothing on stderr; what it printed."""
    done = run(code, *arguments, timeout=timeout)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.strip()


@contextmanager
def running(code: str, *arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A program that runs beside the test, and is killed with the block if it has not ended."""
    with subprocess.Popen(
        _command(code, arguments),
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line a program prints; fails with its errors if it ended instead."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        assert process.stderr is not None
        raise AssertionError(f"the program ended: {process.stderr.read()}")
    return line.strip()


def tell(process: subprocess.Popen[str], line: str = "go") -> None:
    """Send a line to a program."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def wait_until(condition: Callable[[], object], seconds: float = 10.0, what: str = "") -> None:
    """Return when a condition holds; fail if it does not within `seconds`."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, what or "waited in vain"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """Processes that the threads of a process started."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def helper_pid(store: tiered.Store[Any, Any]) -> int:
    """The helper process of a store that has one."""
    return int(store._engine.checkpointer.process.pid)  # type: ignore[union-attr]
