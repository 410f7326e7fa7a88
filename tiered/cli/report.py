"""`report`: what `inspect`, `stats` and `doctor` say, and its pictures, as one page that needs nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import click

from tiered.cli import options, output, pictures, running
from tiered.cli.advice import advised, curve
from tiered.cli.inspection import inspected
from tiered.cli.look import ask, diagnoses, gathered, holder, rows
from tiered.cli.pictures import Axis
from tiered.cli.settings import shown
from tiered.cli.transfer import written

PREFIXES_MAX, DEPTH_MAX = 40, 3
READS_MIN = 100
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2430; --soft: #5b6675; --line: #d8dee6; --accent: #2563eb; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #12161c; --ink: #e6eaf0; --soft: #9aa5b4; --line: #2c3440; --accent: #7aa7ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: .5rem 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
p.soft, figcaption { color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .75rem; margin: 1rem 0; }
dl div { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .75rem; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-size: 1.15rem; font-weight: 600; }
figure { margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td { border-bottom: 1px solid var(--line); padding: .25rem .5rem .25rem 0; vertical-align: top; }
td:last-child { text-align: right; }
.bars { margin: .75rem 0; }
.bar { display: grid; grid-template-columns: 1fr auto; gap: 0 1rem; margin-bottom: .4rem; font-size: .9rem; }
.bar i { grid-column: 1 / 3; height: .5rem; border-radius: .2rem; background: var(--accent); }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@click.command("report")
@options.store
@click.option("--html", "file", type=click.Path(dir_okay=False), required=True, help="The page to write.")
@click.option("--exact", is_flag=True, help="Look at every record, however many there are.")
@click.option("--force", is_flag=True, help="Replace it if it is there.")
def report_command(store: str, file: str, exact: bool, force: bool) -> None:
    """Write all about a store, with pictures, as a page that opens offline."""
    target = Path(file)
    if target.exists() and not force:
        raise running.Failure(f"{file}: is there already; --force replaces it")
    found = inspected(store, exact)
    page = html_of(found, gathered(store), diagnoses(store), history(store), *curve_of(store))
    written(target, [page.encode("utf-8", "backslashreplace")])
    output.write(f"{file}: {len(page):,} bytes; open it in a browser")


def history(store: str) -> list[dict[str, Any]]:
    """What the program that has the store open remembers of the last hour; [] where there is none, or nothing yet."""
    from tiered.errors import StoreError

    if holder(store) is None:
        return []
    try:
        answer: list[dict[str, Any]] = ask(store, "history")
    except StoreError:
        return []
    return answer


def curve_of(store: str) -> tuple[str, str]:
    """The picture of the hit ratio against memory, or "", and why there is none."""
    from tiered.errors import TieredError

    if holder(store) is None:
        return "", "no program has the store open for writing"
    try:
        advice = advised(store)
    except TieredError as error:
        return "", str(error)
    return (curve(advice), "") if advice["reads"] else ("", "no reads were seen yet")


def html_of(
    found: dict[str, Any],
    now: dict[str, Any],
    advice: Sequence[dict[str, str]],
    samples: Sequence[dict[str, Any]],
    picture: str,
    why: str,
) -> str:
    """The page.  `picture` is of the hit ratio against memory, "" where nobody knows it, and `why`."""
    title = f"tiered: {found['path']}"
    body = "".join(
        (
            f"<h1>{escape(found['path'])}</h1>",
            f'<p class="soft">as of {_moment(found["as_of"])} · {escape(found["health"])}</p>',
            _tiles(found, now),
            _findings(advice),
            _section("Sizes", _sizes(found)),
            _section("Hit ratio over time", _ratios(samples, now)),
            _section("Hit ratio by memory", picture or _none(why)),
            _section("Keys", _prefixes(found["census"])),
            _section("Values", _values(found["census"])),
            _section("Times to live, up to", _counted(found["census"]["ttls"])),
            _section("Settings", _table([(name, shown(name, value)) for name, value in found["settings"].items()])),
            _section("Figures", _table(rows(now["stats"]))),
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY, quote=True)}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>{body}</body></html>\n"
    )


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>\n"


def _none(why: str) -> str:
    return f'<p class="soft">None: {escape(why)}.</p>'


def _table(pairs: Sequence[tuple[str, str]]) -> str:
    return (
        "<table>"
        + "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in pairs)
        + "</table>"
    )


def _tiles(found: dict[str, Any], now: dict[str, Any]) -> str:
    ratio, memory = found["compression_ratio"], now["memory"]
    tiles = [
        ("records", f"{found['records']:,}"),
        ("keys and values", output.size(found["logical_bytes"])),
        ("files", output.size(found["file_bytes"])),
        ("compression", f"{ratio:.2f} : 1" if ratio else "–"),
        ("not checkpointed", f"{found['journal']['records']:,}"),
        ("open for writing by", str(found["writer"]["pid"]) if found["writer"] else "nobody"),
    ]
    if now["source"] == "writer":
        tiles.append(("memory", f"{output.size(memory['accounted_bytes'])} of {output.size(memory['budget_bytes'])}"))
        tiles.append(("hit ratio", f"{now['stats']['hit_ratio']:.1%}"))
    return (
        "<dl>"
        + "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles)
        + "</dl>"
    )


def _findings(advice: Sequence[dict[str, str]]) -> str:
    if not advice:
        return ""
    lines = "".join(
        f"<li><b>{escape(each['what'])}</b>: {escape(each['evidence'])}; {escape(each['advice'])}</li>"
        for each in advice
    )
    return _section("What will hurt", f"<ul>{lines}</ul>")


def _sizes(found: dict[str, Any]) -> str:
    named = (
        ("keys and values", "logical_bytes"),
        ("values, packed", "packed_bytes"),
        ("compressed", "stored_bytes"),
        ("files", "file_bytes"),
        ("in use in them", "used_bytes"),
        ("free pages", "free_bytes"),
    )
    return pictures.bars([(name, found[field]) for name, field in named], output.size)


def _ratios(samples: Sequence[dict[str, Any]], now: dict[str, Any]) -> str:
    points = []
    before = samples[0] if samples else {}
    for after in samples[1:]:
        reads, hits = after["reads"] - before["reads"], after["hits"] - before["hits"]
        if 0 <= reads < READS_MIN:
            continue  # Too few to say anything: together with the next ones.
        if 0 <= hits <= reads:  # A handle that was closed takes its hits with it.
            points.append((-after["seconds_ago"] / 60, hits / reads))
        before = after
    if len(points) < 2:
        alone = now["source"] != "writer"
        why = "no program has the store open for writing" if alone else "it was not read for long enough"
        return _none(f"{why}; a sample is taken every half minute, for an hour")
    return pictures.lines(
        points, Axis("minutes", lambda minutes: f"{minutes:.0f}"), Axis("hit ratio", pictures.percent)
    )


def _prefixes(census: dict[str, Any]) -> str:
    walked = list(_walk(census["keys"], 0, ""))
    if not walked:
        return _none("there are no keys")
    unreadable = f"; {census['unreadable']:,} cannot be read" if census["unreadable"] else ""
    looked = f"{census['method']}, {census['counted']:,} records looked at; bytes of keys and values{unreadable}"
    note = f'<p class="soft">{looked}</p>'
    more = len(walked) - PREFIXES_MAX
    tail = f'<p class="soft">and {more:,} more</p>' if more > 0 else ""
    return note + pictures.bars(walked[:PREFIXES_MAX], output.size) + tail


def _walk(nodes: Sequence[dict[str, Any]], depth: int, above: str) -> Iterator[tuple[str, float]]:
    for node in nodes:
        name = f"{above}{node['prefix']}"
        yield f"{name} ({node['count']:,})", node["bytes"]
        if depth + 1 < DEPTH_MAX:
            yield from _walk(node["children"], depth + 1, f"{name} › ")


def _values(census: dict[str, Any]) -> str:
    from tiered.cli.census import histogram_label  # Not at the top: `--help` is to be quick.

    sizes = {histogram_label(each["bytes_max"]): each["count"] for each in census["value_sizes"]}
    return _counted(census["value_types"]) + '<p class="soft">by size when packed</p>' + _counted(sizes)


def _counted(counts: dict[str, int]) -> str:
    rows = [(name, count) for name, count in counts.items() if count]
    return _none("there are no records") if not rows else pictures.bars(rows, "{:,.0f}".format)
