"""The commands as one of click's groups: in families, each of them a module that is imported when it is needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from tiered import __version__
from tiered.cli import running

FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "Keys and values": ("tiered.cli.values", ("get", "set", "del", "keys", "scan", "ttl", "expire", "type")),
    "Many records": ("tiered.cli.transfer", ("load", "dump")),
    "Back up and repair": ("tiered.cli.operate", ("snapshot", "restore", "verify", "repair")),
}
"""Title of a family, its module, and its commands in the order in which they are shown."""


class Families(click.Group):
    """A group whose commands are found in the modules of `FAMILIES`, under the attribute `NAME_command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for _, names in FAMILIES.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for module, names in FAMILIES.values():
            if cmd_name in names:
                found: click.Command = getattr(import_module(module), f"{cmd_name}_command")
                return found
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, (_, names) in FAMILIES.items():
            found = [(name, self.get_command(ctx, name)) for name in names]
            rows = [(name, command.get_short_help_str(60)) for name, command in found if command is not None]
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(cls=Families, context_settings={"help_option_names": ["-h", "--help"]}, epilog=running.STATUS)
@click.version_option(__version__, prog_name="tiered")
@click.option("--import", "modules", multiple=True, metavar="MODULE", help="Import what registers types of values.")
def group(modules: tuple[str, ...]) -> None:
    """Look into stores of tiered, and look after them."""
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise running.Failure(f"--import {module}: {error}") from None


def run(arguments: list[str]) -> int:
    """The exit status of the command that the arguments name."""
    return running.run(lambda: _called(arguments or ["--help"]))


def _called(arguments: list[str]) -> Any:
    try:
        return group.main(arguments, prog_name="tiered-cli", standalone_mode=False)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "tiered-cli"
        raise running.Failure(f"{error.format_message()} See '{path} --help'.", running.USAGE) from None
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        raise running.Failure(error.format_message()) from None
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "rich":
            raise
        raise running.Failure(running.MISSING.format("rich")) from None
