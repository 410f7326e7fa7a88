"""`tiered-cli`, called as a shell calls it, without the time that each interpreter takes to start.

One process imports the package and then forks for every call: the child has files of its own for its output, its
arguments in `sys.argv`, and calls the entry point, `tiered.cli.main`, whose exit status is that of the process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from programs import ROOT

import tiered

_SERVER = """
import json, os, sys, tempfile
import click, tiered, tiered.cli, tiered.cli.program, tiered.cli.inspection, tiered.cli.backup, tiered.cli.census
import tiered.cli.notation, tiered.cli.top, tiered.cli.operate, tiered.cli.settings, tiered.cli.demo
import tiered.cli.transfer, tiered.cli.formats, tiered.cli.report, tiered.cli.benchmark, tiered.migrate
import tiered.salvaging, tiered.verification, tiered.restoration, tiered.store, tiered.doctor
replies = os.fdopen(os.dup(1), "w", closefd=False)
for line in sys.stdin:
    call = json.loads(line)
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(call["stdin"].encode("latin-1"))
        given.seek(0)
        child = os.fork()
        if not child:
            for number, file in enumerate((given, out, err)):
                os.dup2(file.fileno(), number)
            os.chdir(call["cwd"])
            os.environ.update(call["environment"])
            sys.argv = ["tiered-cli", *call["arguments"]]
            try:
                tiered.cli.main()
            except SystemExit as leaving:
                sys.stdout.flush()
                os._exit(leaving.code or 0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            os._exit(99)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (out, err):
            file.seek(0)
        said = [file.read().decode("latin-1") for file in (out, err)]
        print(json.dumps([status, *said]), file=replies, flush=True)
"""


class Called(NamedTuple):
    """What a call came to."""

    status: int
    out: str
    errors: str

    def json(self) -> Any:
        """The document that it printed, after it ended well."""
        assert (self.status, self.errors) == (0, ""), self
        return json.loads(self.out)

    def lines(self) -> list[Any]:
        """The documents that it printed, one a line."""
        assert (self.status, self.errors) == (0, ""), self
        return [json.loads(line) for line in self.out.splitlines()]


class CommandLine:
    """Calls `tiered-cli`."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": ROOT},
            text=True,
        )

    def __call__(self, *arguments: object, stdin: bytes = b"", cwd: Path | None = None, **environment: str) -> Called:
        status, out, errors = self.raw(*arguments, stdin=stdin, cwd=cwd, **environment)
        return Called(status, out.decode(), errors)

    def raw(
        self, *arguments: object, stdin: bytes = b"", cwd: Path | None = None, **environment: str
    ) -> tuple[int, bytes, str]:
        """Status, stdout as bytes, and stderr."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        call = {
            "arguments": list(map(str, arguments)),
            "stdin": stdin.decode("latin-1"),
            "cwd": str(cwd or os.getcwd()),
            "environment": environment,
        }
        self._server.stdin.write(json.dumps(call) + "\n")
        self._server.stdin.flush()
        status, out, errors = json.loads(self._server.stdout.readline())
        return status, out.encode("latin-1"), errors.encode("latin-1").decode()

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


_calling: list[CommandLine] = []


@contextmanager
def calling() -> Iterator[None]:
    """Have `call` at hand, for the tests of a module."""
    _calling.append(CommandLine())
    try:
        yield
    finally:
        _calling.pop().close()


def call(*arguments: object, given: bytes = b"") -> tuple[int, bytes, str]:
    """Status, stdout and stderr of `tiered-cli …`."""
    return _calling[-1].raw(*arguments, stdin=given)


def made(path: Path, values: dict[Any, Any]) -> Path:
    """A closed store with these values."""
    with tiered.open(path, helper=False) as store:
        store.update(values)
    return path
