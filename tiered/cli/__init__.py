"""`tiered-cli`, also as `python -m tiered`: looking after stores, with `click` and `rich` from the extra `tiered[cli]`.

    running    exit status, errors as one line, a process of its own
    notation   values and keys as JSON without loss
    output     JSON, tables, figures
    options    arguments that commands have in common
    program    the group: which module has which command
    the rest   commands, a module for each family; imported when one of them is called

A command is a function that takes its arguments from `click` and returns its status, or None for 0; whatever it
raises that is an error of this package, of the system, or a `running.Failure`, becomes one line on stderr.
It reads a store with `tiered.open(store, "r")`, which changes nothing; only one that says so opens it for writing.
"""

from __future__ import annotations

import sys

from tiered.cli import running


def main() -> None:
    """Run the command that the arguments name, and exit with its status."""
    try:
        import click  # noqa: F401 - The rest is not even looked at without it.

        from tiered.cli import program
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        running.complain(running.MISSING.format("click"))
        sys.exit(running.FAILED)
    sys.exit(program.run(sys.argv[1:]))
