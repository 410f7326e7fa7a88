"""Pictures made by hand, lines as SVG and bars as HTML.  They need no package and no network.

Colours are those of the text around them (`currentColor`) and one accent, the CSS variable `--accent` where it is set:
so a picture is light or dark as its page is.  A picture is as wide as its place allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 440, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 30, 12, 44
ACCENT = "var(--accent, #2563eb)"
STYLE = "font:13px system-ui,sans-serif;width:100%;max-width:640px;height:auto"
Point = tuple[float, float]
Shown = Callable[[float], str]


class Axis(NamedTuple):
    """What an axis is of, how its numbers are shown, and whether each step doubles."""

    title: str
    shown: Shown
    doubling: bool = False


def percent(share: float) -> str:
    """A share as people write it."""
    return f"{share:.0%}"


def lines(points: Sequence[Point], across: Axis, up: Axis, mark: float | None = None, marked: str = "") -> str:
    """A line through points whose heights are shares from 0 to 1; `mark` is a place to be pointed out."""
    place = math.log2 if across.doubling else float
    least, most = place(points[0][0]), place(points[-1][0])
    span = (most - least) or 1.0

    def x_of(value: float) -> float:
        return LEFT + (place(value) - least) / span * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return TOP + (1 - value) * (HEIGHT - TOP - BOTTOM)

    parts = [_grid(y_of, up)]
    for value in _ticks(points, across):
        parts.append(_text(x_of(value), HEIGHT - BOTTOM + 18, across.shown(value), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, across.title, "middle"))
    if mark is not None and points[0][0] <= mark <= points[-1][0]:
        x = x_of(mark)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="currentColor" '
            'stroke-dasharray="4 4" opacity=".6"/>'
        )
        right = x > WIDTH * 0.7
        parts.append(_text(x - 6 if right else x + 6, HEIGHT - BOTTOM - 8, marked, "end" if right else "start"))
    path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
    parts.append(
        f'<polyline points="{path}" fill="none" stroke="{ACCENT}" stroke-width="2.5" stroke-linejoin="round"/>'
    )
    for x, y in points if len(points) <= 40 else ():
        parts.append(
            f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3.5" fill="{ACCENT}">'
            f"<title>{escape(across.shown(x))}: {escape(up.shown(y))}</title></circle>"
        )
    return _svg("".join(parts), HEIGHT, f"{up.title} by {across.title}")


def _grid(y_of: Callable[[float], float], up: Axis) -> str:
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = y_of(share)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity=".15"/>'
        )
        parts.append(_text(LEFT - 8, y + 4, up.shown(share), "end"))
    return "".join(parts)


def _ticks(points: Sequence[Point], across: Axis) -> list[float]:
    places = [x for x, _ in points]
    if across.doubling:
        return places if len(places) <= 8 else places[:: math.ceil(len(places) / 8)]
    step = (places[-1] - places[0]) / 4
    return [places[0] + step * number for number in range(5)] if step else places[:1]


def bars(rows: Sequence[tuple[str, float]], shown: Shown) -> str:
    """A bar for each row, in its order, with its number: as HTML, which wraps where the page is narrow."""
    most = max((value for _, value in rows), default=0) or 1
    parts = [
        f'<div class="bar"><span>{escape(name)}</span><span>{escape(shown(value))}</span>'
        f'<i style="width:{max(100 * value / most, 0.3):.1f}%"></i></div>'
        for name, value in rows
    ]
    return f'<div class="bars">{"".join(parts)}</div>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{escape(text)}</text>'


def _svg(inside: str, height: float, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" style="{STYLE}" '
        f'aria-label="{escape(title, quote=True)}">{inside}</svg>'
    )
