"""The README's reference of settings, errors and commands says what the code says.

The table of commands is made from `click`: `python tests/test_reference.py` writes it anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tiered import errors
from tiered.cli import running
from tiered.cli.program import group
from tiered.config import SETTINGS

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- commands -->\n", "<!-- /commands -->\n"


def text() -> str:
    return README.read_text(encoding="utf-8")


def section(title: str) -> str:
    return text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def cells(table: str) -> dict[str, list[str]]:
    """The rows of the first table in a text, by what is in their first cell, without its marks."""
    rows = re.findall(r"^\|(.*)\|$", table, re.MULTILINE)
    split = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)] for row in rows]
    return {row[0].strip("`"): row[1:] for row in split if row[0].startswith("`")}


# Commands


def commands(of: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, those of groups included."""
    context = click.Context(of)
    for name in of.list_commands(context):
        command = of.get_command(context, name)
        assert command is not None, name
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")
        else:
            yield above + name, command


def shown(parameter: click.Parameter) -> str:
    """An argument or option as in a synopsis."""
    if isinstance(parameter, click.Argument):
        name = parameter.make_metavar(click.Context(click.Command("")))
        return name if parameter.required or name.startswith("[") else f"[{name}]"
    assert isinstance(parameter, click.Option)
    name = max(parameter.opts, key=len)
    if parameter.secondary_opts:
        name = f"{name}|{max(parameter.secondary_opts, key=len)}"
    if not parameter.is_flag:
        if isinstance(parameter.type, click.Choice):
            name += " " + "|".join(map(str, parameter.type.choices))
        else:
            name += f" {parameter.metavar or (parameter.name or '').upper()}"
    return name if parameter.required else f"[{name}]"


def hidden(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and parameter.hidden


def table() -> str:
    made = ["| `tiered-cli` … | What it does |", "|---|---|"]
    for name, command in commands(group):
        synopsis = " ".join([name, *(shown(parameter) for parameter in command.params if not hidden(parameter))])
        said = " ".join((command.help or "").split("\n\n")[0].split())
        made.append("| `{}` | {} |".format(synopsis.replace("|", "\\|"), said.replace("|", "\\|")))
    return "\n".join(made) + "\n"


def test_the_table_of_commands_is_what_the_commands_say() -> None:
    found = text().partition(BEGIN)[2].partition(END)[0].strip()
    assert found == table().strip(), f"run: python {Path(__file__).name}"


def test_every_command_and_option_says_what_it_does() -> None:
    for name, command in commands(group):
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts}"


def test_the_exit_statuses_are_in_the_readme() -> None:
    statuses = running.STATUS.removeprefix("Exit status: ").rstrip(".").split(", ")
    shown_there = section("Command line")
    for status in statuses:
        number, _, meaning = status.partition(" ")
        assert f"| {number} | {meaning}" in shown_there, status


# Settings and errors


@pytest.mark.parametrize("name", SETTINGS)
def test_the_table_of_settings_says_what_the_code_says(name: str) -> None:
    setting = SETTINGS[name]
    assert cells(section("Settings"))[name] == [
        f"`{setting.default!r}`",
        "yes" if setting.runtime else "no",
        setting.help,
    ]


def test_the_tables_name_nothing_that_is_not_there() -> None:
    assert set(cells(section("Settings"))) == set(SETTINGS)
    classes = {
        name
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, errors.TieredError)
    }
    assert set(cells(section("Errors"))) == classes


def test_every_error_says_what_to_do() -> None:
    for name, (when, what) in cells(section("Errors")).items():
        assert when, name
        assert what or name == "TieredError", name


# What else is to be found there


def test_the_guarantees_are_said_for_each_durability() -> None:
    choices = re.findall(r'^\| `"(\w+)"`', text(), re.MULTILINE)
    assert choices == ["always", "everysec", "checkpoint"]


def test_the_map_of_the_code_names_every_module_once() -> None:
    listed = re.findall(
        r"`([a-z_]+)/?`", "\n".join(re.findall(r"^\|([^|]*)\|", section("The code in five minutes"), re.M))
    )
    package = README.parent / "tiered"
    there = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    there |= {path.parent.name for path in package.glob("*/__init__.py")} | {"compiled"}
    assert sorted(listed) == sorted(there)


if __name__ == "__main__":
    before, _, rest = text().partition(BEGIN)
    README.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")
