"""`completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import click

from tiered.cli import output


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print what makes a SHELL complete commands.

    Put eval "$(tiered-cli completion bash)" into ~/.bashrc.
    """
    from click.shell_completion import get_completion_class

    root = context.find_root().command
    kind = get_completion_class(shell)
    assert kind is not None
    output.write(kind(root, {}, "tiered-cli", "_TIERED_CLI_COMPLETE").source())
