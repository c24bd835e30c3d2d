"""The geometry of charts in reports: where lines, ticks and bars lie; the templates draw them as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from memorysam_cli.text import number

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 26
"""Margins around the plot, in the units of the SVG."""
MOST_POINTS = 600
"""Of a line: more than the pixels that it has."""
MOST_ROWS = 60
"""Of a chart's table."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line: its name, and (x, y) in rising x; a y that is None or not finite leaves a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]
    is_main: bool = True
    """Drawn strongly."""


@dataclass(frozen=True)
class Line:
    """A series as the SVG draws it."""

    name: str
    path: str
    """Of an SVG ``path``."""
    marks: tuple[Point, ...]
    """Points that are drawn as dots: all of them where they are few."""
    hover: tuple[tuple[float, float, float, float], ...]
    """x, y, and where that lies in the SVG."""
    is_main: bool


@dataclass(frozen=True)
class Chart:
    """A chart of lines over steps."""

    name: str
    """For the HTML's ids."""
    title: str
    unit: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    """Place and text."""
    y_ticks: tuple[tuple[float, str], ...]
    rows: tuple[tuple[str, ...], ...]
    """The same as a table: x, and the value of each line."""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def line_chart(name: str, title: str, series: Sequence[Series], *, unit: str = "", zero: bool = False) -> Chart | None:
    """Lay out lines over steps.

    Args:
        name: for ids; letters and hyphens.
        title: for people.
        series: the lines; those without a finite value are left out.
        unit: of the values.
        zero: the axis begins at zero.

    Returns:
        None where no line has a value.
    """
    kept = [each for each in series if any(_is_value(y) for _, y in each.points)]
    if not kept:
        return None
    xs = [x for each in kept for x, _ in each.points]
    ys = [y for each in kept for _, y in each.points if y is not None and math.isfinite(y)]
    x_steps = ticks(min(xs), max(xs), most=9, whole=True)
    y_steps = ticks(min(0.0, *ys) if zero else min(ys), max(ys))
    across = _Linear(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    low, high = min(y_steps[0], *ys), max(y_steps[-1], *ys)
    up = _Linear(low, high, HEIGHT - BOTTOM, TOP)
    lines = []
    for each in kept:
        points = thinned(each.points, most=MOST_POINTS)
        placed = [(x, y, round(across(x), 1), round(up(y), 1)) for x, y in points if y is not None and _is_value(y)]
        marks = tuple((px, py) for *_, px, py in placed) if len(placed) <= 40 else ()
        path = _path([(across(x), up(y)) if y is not None and _is_value(y) else None for x, y in points])
        lines.append(Line(each.name, path, marks, tuple(placed), each.is_main))
    return Chart(
        name, title, unit, tuple(lines),
        tuple((round(across(x), 1), number(x)) for x in x_steps),
        tuple((round(up(y), 1), number(y)) for y in y_steps),
        _rows(kept),
    )  # fmt: skip


def thinned(points: Sequence[tuple[float, float | None]], *, most: int) -> list[tuple[float, float | None]]:
    """At most so many points that look the same: of each stretch its least and its greatest value.

    Args:
        points: in rising x.
        most: at least 4.
    """
    if len(points) <= most:
        return list(points)
    stretch = -(-len(points) // (most // 2))
    kept: list[tuple[float, float | None]] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        known = [point for point in part if _is_value(point[1])]
        # A stretch without any value stays a gap.
        ends = {min(known, key=_height), max(known, key=_height)} if known else {part[0]}
        kept += sorted(ends, key=lambda point: point[0])
    return kept


def ticks(low: float, high: float, *, most: int = 6, whole: bool = False) -> list[float]:
    """Round numbers over a range: 1, 2 or 5 times a power of ten apart; at least one.

    Args:
        low: the least value.
        high: the greatest.
        most: how many, about.
        whole: only integers.
    """
    span = high - low
    if span <= 0:
        return [low]
    rough = span / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough * 0.999)
    step = max(1.0, step) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)] or [low]


def _rows(series: Sequence[Series]) -> tuple[tuple[str, ...], ...]:
    """Evenly chosen rows, the last one among them."""
    values = [dict(each.points) for each in series]
    xs = sorted({x for each in values for x in each})
    stride = max(1, -(-len(xs) // MOST_ROWS))
    chosen = xs[::-1][::stride][::-1]
    return tuple((number(x), *(_cell(each.get(x)) for each in values)) for x in chosen)


def _cell(value: float | None) -> str:
    return f"{value:.5g}" if value is not None and math.isfinite(value) else "–"


def _path(places: Sequence[Point | None]) -> str:
    """An SVG path; a None lifts the pen."""
    words, is_down = [], False
    for place in places:
        if place is not None:
            words.append(f"{'L' if is_down else 'M'}{place[0]:.1f} {place[1]:.1f}")
        is_down = place is not None
    return "".join(words)


@dataclass(frozen=True)
class _Linear:
    """Maps low..high to start..end; a single value lies in the middle."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)


def _is_value(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _height(point: tuple[float, float | None]) -> float:
    assert point[1] is not None
    return point[1]
