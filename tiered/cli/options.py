"""What arguments of commands have in common, for `click`."""

from __future__ import annotations

from typing import Any

import click

as_json = click.option("--json", "as_json", is_flag=True, help="As JSON, with field names that stay.")
quiet = click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
store = click.argument("store", type=click.Path())
verify = click.option("--verify", is_flag=True, help="Read everything again afterwards.")


def keys_of(context: click.Context, parameter: click.Parameter, given: Any) -> Any:
    """The key, or the tuple of keys, that arguments stand for in the notation of `notation`."""
    from tiered.cli import notation  # Not at the top: for `--help` nothing of the store is imported.

    try:
        return tuple(map(notation.parse_key, given)) if isinstance(given, tuple) else notation.parse_key(given)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def key_of(context: click.Context, parameter: click.Parameter, given: Any) -> Any:
    """The key that an option stands for, None where it was not given."""
    return None if given is None else keys_of(context, parameter, given)


key = click.argument("key", callback=keys_of)
