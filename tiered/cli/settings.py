"""Settings of a store: those in force in the program that has it open, or those that the store remembers."""

from __future__ import annotations

from typing import Any

import click

from tiered.cli import options, output, running
from tiered.cli.look import ask, holder
from tiered.cli.values import reading, writing


def shown(name: str, value: Any) -> str:
    """A setting's value as `config set` takes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(shown(name, part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


@click.group("config")
def config_command() -> None:
    """Read and change settings."""


@config_command.command("get")
@options.store
@click.argument("name", default="*")
@options.as_json
def get_command(store: str, name: str, as_json: bool) -> None:
    """Print the settings whose NAME matches; * and ? stand for anything. None named: all."""
    from tiered.config import SETTINGS
    from tiered.errors import LockedError, ReadOnlyError

    found: dict[str, Any] | None = None
    if holder(store) is not None:
        try:
            found = ask(store, "config_get", name=name)
        except (LockedError, ReadOnlyError) as error:
            running.complain(f"{error}; what the store remembers:")
    if found is None:
        with reading(store) as reader:
            # The others belong to the program that opens it.
            found = {key: value for key, value in reader.config_get(name).items() if SETTINGS[key].remembered}
    if as_json:
        output.document(found)
    else:
        output.figures([("", [(key, shown(key, value)) for key, value in found.items()])])


@config_command.command("set")
@options.store
@click.argument("name")
@click.argument("value")
def set_command(store: str, name: str, value: str) -> None:
    """Change a setting, also in the program that has the store open."""
    from tiered.config import SETTINGS, setting_named

    setting = setting_named(name)
    given = None if value.lower() == "none" and setting.default is None else value
    setting.parse(given)  # What is wrong is said before anything is opened.
    if holder(store) is not None:
        ask(store, "config_set", name=name, value=given)
        return
    if not SETTINGS[name].remembered:
        with reading(store):
            pass
        raise running.Failure(f"{name} belongs to the program that opens the store, and none has it open")
    with writing(store) as writer:
        writer.config_set(name, given)
