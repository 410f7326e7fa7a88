"""What arguments of commands have in common, for `click`."""

from __future__ import annotations

import math
import re
from typing import Any

import click

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

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


def seconds_of(context: click.Context, parameter: click.Parameter, given: str | None) -> float | None:
    """The seconds above zero that 90, 15m, 2h, or 7d stand for, None where nothing was given."""
    if given is None:
        return None
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smhd]?)", given)
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not 0 < seconds < math.inf:
        wrong = f"{given!r} is not seconds above zero, such as 90, or with a unit: 15m, 2h, 7d"
        raise click.BadParameter(wrong, context, parameter)
    return seconds


def lifetime_of(context: click.Context, parameter: click.Parameter, given: str) -> float:
    """The same, infinite for "never"."""
    return math.inf if given == "never" else seconds_of(context, parameter, given) or 0.0
