"""What commands print: JSON for programs, lines for pipes, tables for people.

A command makes one document of plain names and values and prints it with `document` for `--json`; that of a
command that goes through many records is a line for each (`line`).  For people there are `figures` and `table`, made by
`rich`, which knows terminals, widths and NO_COLOR; in a pipe nothing is cut off, wrapped or coloured.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

UNITS = ("B", "KB", "MB", "GB", "TB")
PIPE_WIDTH = 10_000


def write(text: str) -> None:
    """A line on stdout; what its encoding lacks is escaped."""
    try:
        print(text)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        print(text.encode(encoding, "backslashreplace").decode(encoding))


def document(tree: Any) -> None:
    """One JSON document."""
    from tiered.cli import notation  # Not at the top: for `--help` nothing of the store is imported.

    write(notation.dumps(tree, indent=2))


def line(tree: Any) -> None:
    """One JSON document on one line."""
    from tiered.cli import notation

    write(notation.dumps(tree))


def console() -> Console:
    """Where tables go: stdout."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def figures(sections: Iterable[tuple[str, Sequence[tuple[str, str]]]]) -> None:
    """Names and values in two columns, under a title for each section; those without any are left out."""
    shown = [(title, rows) for title, rows in sections if rows]
    width = max((len(name) for _, rows in shown for name, _ in rows), default=0)
    if not sys.stdout.isatty():
        for number, (title, rows) in enumerate(shown):
            if title:
                write(("\n" if number else "") + title)
            for name, value in rows:
                write(f"{name:<{width}}  {value}".rstrip())
        return
    from rich.table import Table
    from rich.text import Text

    out = console()
    for number, (title, rows) in enumerate(shown):
        if title:
            out.print(Text(("\n" if number else "") + title, style="bold"))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(min_width=width, style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in rows:
            grid.add_row(Text(name), Text(value))
        out.print(grid)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Rows under headings; columns named in `right` hold numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    console().print(made)


def size(count: float) -> str:
    """Bytes for people: 1 KB is 1024."""
    number, unit = float(count), 0
    while abs(number) >= 1023.95 and unit < len(UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:,.1f} {UNITS[unit]}" if unit else f"{int(count)} B"


def seconds(number: float) -> str:
    """A span of time for people, in its two largest units."""
    if number < 1:
        return f"{number * 1000:.0f} ms"
    if number < 60:
        return f"{number:.1f} s"
    whole, parts = round(number), list[str]()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if whole >= length or parts:
            parts.append(f"{whole // length} {unit}")
            whole %= length
    return " ".join(parts[:2])
