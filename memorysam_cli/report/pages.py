"""Reports as single HTML files: style, script, data and pictures are inside.

First the geometry of drawings (charts and confusion matrices, which the templates draw as SVG), then the page. Its
policy forbids all network access and all scripts but its own, whose hash is in its head. Text from files (names of
scenes, classes, recipes) is escaped by Jinja2. ``engine.reporting`` collects the content.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from memorysam_cli import __version__
from memorysam_cli.text import number, shown

TEMPLATES = Path(__file__).parent / "templates"
MOST_BYTES = 10_000_000
"""Largest size of a report, for mail and CI artifacts."""

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 26
"""Margins around the plot, in SVG units."""
MOST_POINTS = 600
"""Largest number of points of a line: more than its pixels."""
MOST_ROWS = 60
"""Rows of a chart's table."""

LONGEST_NAME = 22
"""Letters of a class's name beside the matrix; a tooltip shows the whole name."""
MOST_WITH_TEXT = 40
"""Number of classes up to which each cell shows its percentage."""
CARD_PX = 1054
"""Pixels inside the card of a matrix on a wide screen, for all cells."""
LARGEST_CELL, SMALLEST_CELL = 48, 11
MANY_CLASSES = 15
"""Number of classes up to which a narrow window shows the whole matrix; a larger one scrolls."""
SHOWN_CONFUSIONS = 12
"""Number of confusions in the list."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line: its name, and (x, y) with increasing x; a y that is None or not finite leaves a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]
    is_main: bool = True
    """Whether it is drawn thick."""
    course: Sequence[tuple[float, float | None]] = ()
    """The smoothed values: they become the line, with the values pale behind it."""


@dataclass(frozen=True)
class ChartLine:
    """A series in SVG form."""

    name: str
    path: str
    """Of an SVG ``path``."""
    marks: tuple[Point, ...]
    """Points drawn as dots: all of them if they are few."""
    hover: tuple[tuple[float, float, float, float], ...]
    """x, y, and their place in the SVG."""
    is_main: bool
    under: str = ""
    """The path of the values behind a smoothed line."""


@dataclass(frozen=True)
class Chart:
    """A chart of lines over steps."""

    name: str
    """For the ids in the HTML."""
    title: str
    unit: str
    lines: tuple[ChartLine, ...]
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
        title: of the chart.
        series: the lines; those without a finite value are left out.
        unit: of the values.
        zero: the axis begins at zero.

    Returns:
        None if no line has a value.
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
        path, course = (
            _path([(across(x), up(y)) if y is not None and _is_value(y) else None for x, y in some])
            for some in (points, thinned(each.course, most=MOST_POINTS))
        )
        lines.append(ChartLine(each.name, course or path, marks, tuple(placed), each.is_main, path if course else ""))
    return Chart(
        name, title, unit, tuple(lines),
        tuple((round(across(x), 1), number(x)) for x in x_steps),
        tuple((round(up(y), 1), number(y)) for y in y_steps),
        _rows(kept),
    )  # fmt: skip


def thinned(points: Sequence[tuple[float, float | None]], *, most: int) -> list[tuple[float, float | None]]:
    """A smaller number of points that look the same: the smallest and the largest value of each interval.

    Args:
        points: with increasing x.
        most: at least 4.
    """
    if len(points) <= most:
        return list(points)
    stretch = -(-len(points) // (most // 2))
    kept: list[tuple[float, float | None]] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        known = [point for point in part if _is_value(point[1])]
        # An interval without any value stays a gap.
        ends = {min(known, key=_height), max(known, key=_height)} if known else {part[0]}
        kept += sorted(ends, key=lambda point: point[0])
    return kept


def ticks(low: float, high: float, *, most: int = 6, whole: bool = False) -> list[float]:
    """Round numbers over a range: with steps of 1, 2 or 5 times a power of ten; at least one.

    Args:
        low: the smallest value.
        high: the largest value.
        most: approximate number.
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
    """Evenly chosen rows, including the last one."""
    values = [dict(each.points) for each in series]
    xs = sorted({x for each in values for x in each})
    stride = max(1, -(-len(xs) // MOST_ROWS))
    chosen = xs[::-1][::stride][::-1]
    return tuple((number(x), *(_cell(each.get(x)) for each in values)) for x in chosen)


def _cell(value: float | None) -> str:
    return f"{value:.5g}" if value is not None and math.isfinite(value) else "–"


def _path(places: Sequence[Point | None]) -> str:
    """An SVG path; None leaves a gap."""
    words, is_down = [], False
    for place in places:
        if place is not None:
            words.append(f"{'L' if is_down else 'M'}{place[0]:.1f} {place[1]:.1f}")
        is_down = place is not None
    return "".join(words)


@dataclass(frozen=True)
class _Linear:
    """Maps low..high to start..end; a single value is in the middle."""

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


def matrix_layout(counts: Sequence[Sequence[int]], *, names: Sequence[str]) -> dict[str, Any]:
    """The data of the macro ``matrix``.

    Args:
        counts: (K, K) pixels, rows the truth.
        names: K classes.
    """
    size = len(names)
    short = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}…{name[-8:]}" for name in names]
    has_text = size <= MOST_WITH_TEXT
    margin = 14 + round(7.2 * max(map(len, ["predicted →", *short])))
    cell = min(LARGEST_CELL, max(SMALLEST_CELL, (CARD_PX - margin - 10) // size)) if has_text else SMALLEST_CELL
    truth = [sum(row) for row in counts]
    cells = [
        [
            {"x": margin + column * cell, "y": margin + row * cell, "share": count / max(1, truth[row])}
            for column, count in enumerate(counts[row])
        ]
        for row in range(size)
    ]
    labels = [
        {"text": text, "full": name, "x": margin + (index + 0.5) * cell + 4, "y": margin + (index + 0.5) * cell + 4}
        for index, (text, name) in enumerate(zip(short, names, strict=True))
    ]
    return {
        "name": "",
        "amount": "few" if size <= MANY_CLASSES else "some" if has_text else "many",
        "width": margin + size * cell + 10,
        "height": margin + size * cell + 10,
        "left": margin,
        "top": margin,
        "side": size * cell,
        "cell": cell,
        "cells": cells,
        "labels": labels,
        "has_text": has_text,
        "confusions": most_frequent_confusions(counts, names=names),
        "data": {
            "counts": [list(row) for row in counts],
            "names": list(names),
            "cell": cell,
            "left": margin,
            "top": margin,
            "hasText": has_text,
        },
    }


def most_frequent_confusions(counts: Sequence[Sequence[int]], *, names: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs of classes with the most confused pixels.

    Returns:
        ``true``, ``predicted``, ``pixels`` and their ``share`` of the true class in %; the largest first.
    """
    wrong = [
        {
            "true": names[row],
            "predicted": names[column],
            "pixels": count,
            "share": 100 * count / max(1, sum(counts[row])),
        }
        for row in range(len(names))
        for column, count in enumerate(counts[row])
        if row != column and count
    ]
    return sorted(wrong, key=lambda each: -int(str(each["pixels"])))[:SHOWN_CONFUSIONS]


def render(template: str, **facts: Any) -> str:
    """Fill a template.

    Args:
        template: the name of one of ``templates/``, without its suffix.
        facts: its values.

    Raises:
        LookupError: a name is missing.
    """
    style, script = (_embedded(name) for name in ("style.css", "script.js"))
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src {_sum(style)}",
            f"script-src {_sum(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    page = _environment().get_template(f"{template}.html.j2")
    try:
        return page.render(**facts, style=Markup(style), script=Markup(script), policy=policy, version=__version__)
    except jinja2.UndefinedError as error:
        raise LookupError(str(error)) from error


def data_uri(data: bytes, *, kind: str) -> str:
    """Bytes as a ``data:`` URI.

    Args:
        data: of a picture.
        kind: ``png`` or ``jpeg``.
    """
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: "–" if value is None else f"{value:.2f}"
    environment.filters["breakable"] = _breakable
    environment.filters["layers"] = _layers
    environment.filters["known_in"] = _known_in
    environment.filters["count"] = lambda value: f"{value:,}"
    return environment


def _escaped(value: Any) -> Any:
    """Text for a page, without control characters and invalid bytes; Jinja2 then escapes it as HTML."""
    return shown(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(name: str) -> Markup:
    """A path that may wrap after each of its parts."""
    return Markup("<wbr>").join(escape(shown(part)) for part in re.split(r"(?<=[/_+])", name))


def _known_in(columns: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The columns (key and name) of a table with a value in any row."""
    return [column for column in columns if any(row[column[0]] for row in rows)]


def _layers(scenes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The layers of all scenes in a gallery; single scenes may lack a sensor."""
    by_key: dict[str, Mapping[str, Any]] = {}
    for scene in sorted(scenes, key=lambda scene: -len(scene["layers"])):
        for layer in scene["layers"]:
            by_key.setdefault(layer["key"], layer)
    return list(by_key.values())


def _embedded(name: str) -> str:
    """One of our files, in the form in which it is embedded."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _sum(text: str) -> str:
    """A Content-Security-Policy source that allows exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
