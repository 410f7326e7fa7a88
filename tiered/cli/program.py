"""The commands as one of click's groups: in families, each of them a module that is imported when it is needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from tiered import __version__
from tiered.cli import running

FAMILIES: dict[str, dict[str, str]] = {
    "Look inside": {
        "inspect": "inspection",
        "stats": "look",
        "top": "top",
        "memory": "look",
        "explain": "look",
        "doctor": "look",
        "check": "look",
    },
    "Keys and values": dict.fromkeys(("get", "set", "del", "keys", "scan", "ttl", "expire", "type"), "values"),
    "Many records": {"load": "transfer", "dump": "transfer"},
    "Operate": {
        **dict.fromkeys(("save", "compact", "snapshot", "restore", "verify", "repair"), "operate"),
        "config": "settings",
    },
    "Measure": {"advise": "advice", "report": "report", "bench": "benchmark"},
    "Begin": {"demo": "demo", "completion": "completion"},
}
"""Title of a family; its commands in the order in which they are shown, with the modules where they are."""


class Families(click.Group):
    """A group whose commands are found in the modules of `FAMILIES`, under the name NAME_command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for family in FAMILIES.values() for name in family]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = next((family[cmd_name] for family in FAMILIES.values() if cmd_name in family), None)
        if module is None:
            return None
        found: click.Command = getattr(import_module(f"tiered.cli.{module}"), f"{cmd_name}_command")
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # Of which click would make a failure.
            raise running.Enough from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, family in FAMILIES.items():
            found = [(name, self.get_command(ctx, name)) for name in family]
            rows = [(name, command.get_short_help_str(70)) for name, command in found if command is not None]
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
