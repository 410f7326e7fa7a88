"""`top`: a store at work, second by second, as the program says that has it open."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from tiered.cli import options, output, running
from tiered.cli.look import ask, figure, holder
from tiered.cli.values import reading

if TYPE_CHECKING:
    from rich.table import Table

_RATES = {
    "reads_per_second": ("hits", "buffer_hits", "cold_hits", "misses"),
    "cold_reads_per_second": ("cold_hits",),
    "writes_per_second": ("last_sequence",),
    "promotions_per_second": ("promotions",),
    "evictions_per_second": ("evictions",),
}
_SHOWN = ("reads_per_second", "writes_per_second", "hit_ratio", "memory_share", "dirty_records", "checkpoints")


@click.command("top")
@options.store
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=1.0, help="Seconds between two looks.")
@click.option("-n", "--count", type=click.IntRange(min=1), help="So many looks; else until Ctrl-C.")
@options.as_json
def top_command(store: str, interval: float, count: int | None, as_json: bool) -> None:
    """A store at work, second by second."""
    if holder(store) is None:
        with reading(store):
            pass  # What is wrong with the path is said first.
        raise running.Failure(f"{store}: no program has it open for writing, so nothing happens in it")
    looks = islice(_looks(store, interval), count)
    try:
        if as_json:
            for look in looks:
                output.line(look)
                sys.stdout.flush()
        elif sys.stdout.isatty():
            _live(looks)
        else:
            _lines(looks)
    except KeyboardInterrupt:
        return  # The way to end it.


def _looks(store: str, interval: float) -> Iterator[dict[str, Any]]:
    """What happened between each two looks."""
    parent = os.getppid()
    before, began = ask(store, "stats", count=False), time.monotonic()
    while os.getppid() == parent:  # Else whoever waits for this process was killed.
        time.sleep(max(0.0, began + interval - time.monotonic()))
        found, now = ask(store, "stats", count=False), time.monotonic()
        # By the writer's clock, since an answer may take a while.
        yield between(before, found)
        before, began = found, now


def between(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Rates, ratios and figures of the time between two answers."""
    old, new, memory = before["stats"], found["stats"], found["memory"]
    seconds = max(1e-9, found["open_seconds"] - before["open_seconds"])
    rates = {name: sum(new[field] - old[field] for field in fields) / seconds for name, fields in _RATES.items()}
    hits, cold = (
        sum(new[field] - old[field] for field in fields) for fields in (("hits", "buffer_hits"), ("cold_hits",))
    )
    return {
        "time": time.time(),
        "pid": found["pid"],
        "state": new["state"],
        **rates,
        "hit_ratio": hits / (hits + cold) if hits + cold else None,
        "checkpointed_records": new["records"],
        "hot_records": new["hot_records"],
        "hot_bytes": new["hot_bytes"],
        "dirty_records": new["dirty_records"],
        "write_buffer_bytes": new["write_buffer_bytes"],
        "memory_bytes": memory["accounted_bytes"],
        "memory_budget_bytes": memory["budget_bytes"],
        "memory_share": memory["accounted_bytes"] / memory["budget_bytes"],
        "checkpoints": new["checkpoints"],
        "wait_seconds": new["wait_seconds"] - old["wait_seconds"],
        "disk_bytes": new["disk_bytes"],
    }


def _text(name: str, value: Any) -> str:
    if name.endswith(("_ratio", "_share")):
        return "–" if value is None else f"{value:.1%}"
    return f"{value:,.0f}" if name.endswith("_per_second") else figure(name, value)


def _title(name: str) -> str:
    return name.replace("_per_second", "/s").removesuffix("_bytes").replace("_", " ")


def _lines(looks: Iterator[dict[str, Any]]) -> None:
    print("  ".join(f"{_title(name):>13}" for name in _SHOWN))
    for look in looks:
        print("  ".join(f"{_text(name, look[name]):>13}" for name in _SHOWN), flush=True)


def _live(looks: Iterator[dict[str, Any]]) -> None:
    from rich.live import Live

    with Live(console=output.console(), screen=False, auto_refresh=False) as live:
        for look in looks:
            live.update(_table(look), refresh=True)


def _table(look: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 3))
    rows = [(_title(name), _text(name, value)) for name, value in look.items() if name != "time"]
    half = (len(rows) + 1) // 2
    for left, right in zip(rows[:half], [*rows[half:], ("", "")], strict=False):
        cells = [Text(left[0], style="dim"), Text(left[1]), Text(right[0], style="dim"), Text(right[1])]
        grid.add_row(*cells)
    return grid
