"""`tiered-cli`, also as `python -m tiered`: the commands of `commands`, by `click`, from the extra `tiered[cli]`.

A command is a function below that says what its arguments are and calls one of `commands`, which
do the work and give the exit status.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tiered import __version__, commands

if TYPE_CHECKING:
    import click

MISSING = "tiered-cli needs click: pip install 'tiered[cli]'"


def main() -> None:
    """Run the command that the arguments name, and exit with its status."""
    try:
        group = program()
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print(MISSING, file=sys.stderr)
        sys.exit(commands.FAILED)
    group.main(prog_name="tiered-cli")


def program() -> click.Group:
    """All commands, as one of click's groups."""
    import click

    @click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=commands.STATUS)
    @click.version_option(__version__, prog_name="tiered")
    def group() -> None:
        """Look after stores of tiered."""

    quiet = click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
    verify = click.option("--verify", is_flag=True, help="Read everything again afterwards.")

    @group.command()
    @click.argument("store", type=click.Path())
    @click.argument("file", type=click.Path())
    @verify
    @quiet
    def snapshot(store: str, file: str, verify: bool, quiet: bool) -> None:
        """Write the whole STORE into one FILE, while programs use it."""
        sys.exit(commands.snapshot(store, file, verify, quiet))

    @group.command()
    @click.argument("file", type=click.Path())
    @click.argument("store", type=click.Path())
    @click.option("--force", is_flag=True, help="Replace the store that is there.")
    @click.option("--prefix", metavar="TEXT", help="Only keys that are texts beginning so.")
    @verify
    @quiet
    def restore(file: str, store: str, force: bool, prefix: str | None, verify: bool, quiet: bool) -> None:
        """Make a STORE from the snapshot in FILE."""
        sys.exit(commands.restore(file, store, force, prefix, verify, quiet))

    @group.command("verify")
    @click.argument("path", type=click.Path())
    @quiet
    def verify_(path: str, quiet: bool) -> None:
        """Read every byte of a store or snapshot at PATH; a line for each thing that is wrong."""
        sys.exit(commands.verify(path, quiet))

    @group.command()
    @click.argument("store", type=click.Path())
    @quiet
    def salvage(store: str, quiet: bool) -> None:
        """Make a damaged STORE one that opens, and say what is lost. Copy its directory first."""
        sys.exit(commands.salvage(store, quiet))

    return group
