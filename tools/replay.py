"""Replays a trace: hit ratios by eviction policy and capacity, beside the optimum (Belady).

    python tools/replay.py trace.oracleGeneral.zst --sizes 64MB 256MB --plot ratios.svg
    python tools/replay.py zipf --policies lru sieve

TRACE is a file (formats: tools/traces.py) or `zipf`, `scan`, `loop`, which are made up.  Policies are those of the
store (`eviction=`), run as its hot tier does on the heap; sizes are what the trace says, without what the store adds
for each record.  Capacities are bytes, or numbers of objects where all have size 1; by default 1/64 to 1/2 of all.
"""

from __future__ import annotations

import argparse
import sys
from collections import OrderedDict
from collections.abc import Sequence
from html import escape
from pathlib import Path

from traces import Trace, belady_misses, read, synthetic

from tiered.config import parse_size
from tiered.errors import ConfigError
from tiered.eviction import POLICIES, policy_named
from tiered.eviction.order import Line, Queues

OPTIMUM = "belady"
SEEDED = ("lfu", "random", "largest", "smallest", "ttl", "wtinylfu")
COLOURS = [
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
    "#393b79",
    "#000000",
]
WIDTH, HEIGHT, MARGIN = 720, 440, 60


class Simulated(Queues):
    """Queues that remember all hits, and whose policy may remember as much as it wants: no memory is to be kept to."""

    ghost_bytes = sys.maxsize
    hits_max = None


def misses(name: str, trace: Trace, capacity: int, seed: int = 1) -> int:
    """How many requests of a trace a policy misses."""
    if name == OPTIMUM:
        return belady_misses(trace, capacity)
    policy = policy_named(name, **({"seed": seed} if name in SEEDED else {}))
    held: OrderedDict[int, int] = OrderedDict()
    order = Simulated(policy, held, capacity, seed) if policy.asked else Line(policy, held)
    note, used, missed = order.note, 0, 0
    for key, size in zip(trace.keys, trace.sizes, strict=True):
        if key in held:
            note(key)
            continue
        missed += 1
        if size > capacity:
            continue
        order.admit(key, size)
        while used + size > capacity:
            used -= sum(entry for _, entry in order.leave())
        order.insert(key, size, size, 0)
        used += size
    return missed


def table(names: Sequence[str], capacities: Sequence[int], ratios: dict[tuple[str, int], float]) -> str:
    """A row for each policy, a column for each capacity."""
    lines = [f"{'hit ratio in %':<14}" + "".join(f"{capacity:>14,}" for capacity in capacities)]
    for name in names:
        lines.append(f"{name:<14}" + "".join(f"{100 * ratios[name, capacity]:>14.2f}" for capacity in capacities))
    return "\n".join(lines)


def plot(title: str, names: Sequence[str], capacities: Sequence[int], ratios: dict[tuple[str, int], float]) -> str:
    """The table as a picture (SVG): capacities in equal steps."""
    top = max(ratios.values()) or 1
    step = (WIDTH - 3 * MARGIN) / max(len(capacities) - 1, 1)
    scale = (HEIGHT - 2 * MARGIN) / top
    text = '<text x="{:.0f}" y="{:.0f}" text-anchor="{}" fill="{}">{}</text>'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text.format(MARGIN, MARGIN / 2, "start", "black", escape(title)),
    ]
    for number in range(5):
        ratio = top * number / 4
        y = HEIGHT - MARGIN - ratio * scale
        parts.append(f'<path d="M{MARGIN} {y:.1f}H{WIDTH - 2 * MARGIN}" stroke="#ddd"/>')
        parts.append(text.format(MARGIN - 6, y + 4, "end", "black", f"{100 * ratio:.0f} %"))
    for number, capacity in enumerate(capacities):
        parts.append(text.format(MARGIN + number * step, HEIGHT - MARGIN + 18, "middle", "black", f"{capacity:,}"))
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(
            f"{MARGIN + at * step:.1f},{HEIGHT - MARGIN - ratios[name, capacity] * scale:.1f}"
            for at, capacity in enumerate(capacities)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(text.format(WIDTH - 2 * MARGIN + 12, MARGIN + 16 * number, "start", colour, escape(name)))
    return "\n".join([*parts, "</svg>\n"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", help="a file, or zipf, scan, loop")
    parser.add_argument(
        "--policies", nargs="+", default=[*POLICIES, OPTIMUM], choices=[*POLICIES, OPTIMUM], metavar="NAME"
    )
    parser.add_argument("--sizes", nargs="+", help="capacities: bytes, as 64MB; or objects")
    parser.add_argument("--unit", action="store_true", help="every object counts as one")
    parser.add_argument("--requests", type=int, help="no more than so many")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the table, too")
    options = parser.parse_args(arguments)
    try:
        if options.trace in ("zipf", "scan", "loop"):
            trace = synthetic(options.trace, 5_000, 100_000)
        else:
            trace = read(Path(options.trace), options.unit)
        capacities = [parse_size(size) for size in options.sizes or ()]
    except (OSError, ValueError, ConfigError) as error:
        parser.error(str(error))
    if options.requests:
        trace = Trace(trace.keys[: options.requests], trace.sizes[: options.requests])
    whole = trace.whole_bytes()
    capacities = capacities or [max(whole >> shift, 1) for shift in range(6, 0, -1)]
    objects = "objects" if trace.unit else f"objects of {whole:,} bytes"
    print(f"{options.trace}: {len(trace.keys):,} requests of {len(set(trace.keys)):,} {objects}\n")
    ratios = {
        (name, capacity): 1 - misses(name, trace, capacity) / len(trace.keys)
        for name in options.policies
        for capacity in capacities
    }
    print(table(options.policies, capacities, ratios))
    if options.plot:
        options.plot.write_text(plot(options.trace, options.policies, capacities, ratios))


if __name__ == "__main__":
    main()
