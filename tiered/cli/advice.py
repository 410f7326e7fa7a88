"""`advise`: how much memory is enough, as the program that has the store open has found out from its reads."""

from __future__ import annotations

from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import click

from tiered.cli import options, output, pictures, running
from tiered.cli.look import ask, holder
from tiered.cli.pictures import Axis
from tiered.cli.transfer import written

READS_MIN = 10_000
NEEDS_MATPLOTLIB = "a .png needs matplotlib: pip install 'tiered[plot]'; an .svg or .html needs nothing"
MISSING = (
    "no program has it open for writing, and the advisor looks at the reads of a program at work; "
    "open it with advisor=True there, and ask again"
)


@click.command("advise")
@options.store
@click.option("--plot", type=click.Path(dir_okay=False), metavar="FILE", help="Draw the curve: .svg, .html or .png.")
@options.as_json
def advise_command(store: str, plot: str | None, as_json: bool) -> None:
    """Say which hit ratio more or less memory would give.

    Asks the program that has the store open, whose advisor is to be on: 'tiered-cli config set STORE advisor yes', or
    advisor=True when it opens it.
    """
    target = None if plot is None else Path(plot)
    if target is not None and target.suffix not in (".svg", ".html", ".png"):
        raise running.Failure(f"{plot}: a plot is an .svg, an .html or a .png file", running.USAGE)
    if holder(store) is None:
        raise running.Failure(f"{store}: {MISSING}")
    found = advised(store)
    if target is not None:
        if not found["reads"]:
            raise running.Failure(f"{store}: there is nothing to draw: no reads were seen yet")
        written(target, [painted(found) if target.suffix == ".png" else drawn(found, target.suffix).encode()])
    if as_json:
        output.document(found)
    else:
        _print(found)


def advised(store: str) -> dict[str, Any]:
    """What the advisor of the program that has the store open says.  Raises `ConfigError` where it is off."""
    answer: dict[str, Any] = ask(store, "advise")
    return answer


def _print(found: dict[str, Any]) -> None:
    if not found["reads"]:
        output.write("no reads were seen yet")
        return
    rows = [
        (
            output.size(each["memory_bytes"]),
            f"{each['hit_ratio']:.1%}",
            "now" if each["memory_bytes"] == found["memory_bytes"] else "",
        )
        for each in found["curve"]
    ]
    output.table(("memory", "hit ratio", ""), rows, right=("memory", "hit ratio"))
    enough = found["enough"]
    output.write(
        f"{output.size(enough['memory_bytes'])} are enough: a hit ratio of {enough['hit_ratio']:.1%}, "
        "within a hundredth of the best."
    )
    guess = "; that is few, so take it as a guess" if found["reads"] < READS_MIN else ""
    output.write(f"From {found['reads']:,} reads{guess}.")


def curve(found: dict[str, Any]) -> str:
    """The hit ratio against memory, as a picture."""
    points = [(float(each["memory_bytes"]), each["hit_ratio"]) for each in found["curve"]]
    memory = Axis("memory", lambda size: output.size(size).replace(".0 ", " "), doubling=True)
    return pictures.lines(points, memory, Axis("hit ratio", pictures.percent), found["memory_bytes"], "now")


def drawn(found: dict[str, Any], suffix: str) -> str:
    """The picture as a file of that kind."""
    picture = curve(found)
    if suffix == ".svg":
        # Not every program that shows pictures knows variables.
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + picture.replace(pictures.ACCENT, "#2563eb") + "\n"
    enough = escape(output.size(found["enough"]["memory_bytes"]))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>tiered: hit ratio by memory</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<style>:root { color-scheme: light dark; } body { max-width: 40rem; margin: auto; padding: 1rem; }</style>"
        f"</head><body>{picture}<p>{enough} are enough.</p></body></html>\n"
    )


def painted(found: dict[str, Any]) -> bytes:
    """The picture as a PNG, by matplotlib.  `Failure` without it."""
    try:
        from matplotlib.figure import Figure  # By itself it needs no screen.
    except ModuleNotFoundError as error:
        raise running.Failure(f"{NEEDS_MATPLOTLIB} ({error.name} is missing)") from None
    figure = Figure(figsize=(6.4, 3.6), dpi=150, layout="constrained")
    axes = figure.add_subplot(xlabel="memory", ylabel="hit ratio", ylim=(0, 1))
    sizes = [each["memory_bytes"] for each in found["curve"]]
    axes.semilogx(sizes, [each["hit_ratio"] for each in found["curve"]], "o-", color="#2563eb", base=2)
    axes.set_xticks(sizes, [output.size(size) for size in sizes], fontsize=8)
    axes.yaxis.set_major_formatter(lambda share, _: pictures.percent(share))
    axes.axvline(found["memory_bytes"], color="gray", linestyle="--")
    axes.annotate("now", (found["memory_bytes"], 0.03))
    axes.grid(alpha=0.2)
    picture = BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
