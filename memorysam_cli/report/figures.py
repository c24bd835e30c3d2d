"""Figures as PNG bytes: confusion matrix, per-class bars, training curves, and costs over a size.

Matplotlib is imported only when a figure is drawn, without pyplot, so that no window system and no global state is
used. Colors are Okabe and Ito's, and a single-hue map; both are safe for color blindness.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, cycle, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memorysam_cli.text import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, ORANGE, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7"
GRAY = "#8c8c8c"
LONGEST_NAME = 28
"""Letters of a class's name on an axis."""
SKEWED = 50
"""Ratio of the most common to the rarest class from which the axis is logarithmic."""
FEW = 30
"""Number of points below which each one is marked."""
MOST_WITH_TEXT = 40
"""Number of classes up to which the cells of a confusion matrix show their percentage."""
WIDEST_MATRIX = 28.0
"""Inches: 3,360 pixels. 255 classes at the scale of 40 would need gigabytes."""
AXIS_ENDS = (15, 30, 45, 60, 80, 108)
"""Possible ends of an axis of percentages, after the longest bar and its number."""
TALLEST = 240.0
"""Largest height of a figure in inches: 28,800 pixels; Matplotlib refuses 65,536."""

TERM_COLORS = (ORANGE, PURPLE, VERMILION, GREEN, GRAY)
"""Colors of the losses, in their order; with more losses they repeat."""
SMOOTH_SHARE = 20
"""A smoothed line averages over this share of a run's steps around each step."""
PALE = 0.3
"""Opacity of the values behind their smoothed line."""
TERM_TITLES = {"spmm": ("SPMM loss", "before its weight")}
"""Title and note of losses whose values in ``metrics.jsonl`` differ from those in the sum."""
Panels = dict[str, dict[str, tuple[str, str]]]
"""Titles of panels → key of a row → the name and color of its line."""
CURVES: Panels = {
    "Validation mIoU, %": {"miou": ("mIoU", GREEN), "miou_native": ("mIoU, native", GRAY)},
    "Learning rate": {"lr": ("learning rate", VERMILION)},
}
"""The panels of :func:`curves` below those of the losses."""


def term_title(name: str) -> tuple[str, str]:
    """The title of a loss's panel or chart, and a note; the note may be empty."""
    words = name.replace("_", " ").removesuffix(" loss")
    return TERM_TITLES.get(name, (f"{words[:1].upper()}{words[1:]} loss", ""))


def confusion_matrix(matrix: ArrayLike, *, classes: Sequence[str], title: str = "") -> bytes:
    """A heat map in which each row (a true class) is divided by its pixels.

    Args:
        matrix: (K, K) counts, rows the truth.
        classes: K names.
        title: the title.

    Returns:
        A PNG of bounded size. Cells from 1 % on show their percentage, up to :data:`MOST_WITH_TEXT` classes; a class
        without ground truth is gray.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    truth = counts.sum(1, keepdims=True)
    percent = np.divide(100 * counts, truth, out=np.full_like(counts, np.nan), where=truth > 0)
    names = [_short(name) for name in classes]
    margin = 2.2 + 0.07 * max(map(len, names), default=0)
    side = min(WIDEST_MATRIX, max(4.5, 0.42 * len(names) + margin))
    points = min(9.0, 0.8 * 72 * (side - margin) / max(1, len(names)))  # of a name, which has a row's height
    with drawing(width=side + 0.8, height=side) as (figure, png):
        axes = figure.add_subplot()
        axes.set_facecolor("#dddddd")
        heat = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
        if len(names) <= MOST_WITH_TEXT:
            _write_cells(axes, percent)
        ticks = range(len(names))
        axes.set_xticks(ticks, names, rotation=90, fontsize=points)
        axes.set_yticks(ticks, names, fontsize=points)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        figure.suptitle(title, wrap=True)
        figure.colorbar(heat, ax=axes, fraction=0.04, pad=0.02, label="% of the true class")
    return png.getvalue()


def per_class_bars(
    iou: Sequence[float], *, classes: Sequence[str], pixels: Sequence[int], mean: float, title: str = ""
) -> bytes:
    """Horizontal bars of each class's IoU, with the mean as a line.

    Args:
        iou: K values, in %.
        classes: K names.
        pixels: ground-truth pixels per class; a class without any is marked.
        mean: mIoU in %.
        title: the title.

    Returns:
        A PNG.
    """
    with drawing(width=8, height=1.6 + 0.26 * len(classes)) as (figure, png):
        axes = figure.add_subplot()
        places = range(len(classes))
        axes.barh(places, iou, color=BLUE, height=0.72)
        for place, value, support in zip(places, iou, pixels, strict=True):
            text = f"{value:.1f}" if support else f"{value:.1f} (no ground truth)"
            axes.text(value + 0.8, place, text, va="center", fontsize=8, color="black" if support else GRAY)
        axes.axvline(mean, color=VERMILION, linestyle="--", linewidth=1.2, label=f"mean of all classes {mean:.2f}")
        axes.set_yticks(places, [_short(name) for name in classes], fontsize=8)
        axes.set_ylim(len(classes) - 0.4, -0.6)  # the first class on top
        axes.set_xlim(0, 108)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("IoU, %")
        figure.suptitle(title, wrap=True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", frameon=False)
    return png.getvalue()


def failure_bars(
    bars: Mapping[str, Sequence[tuple[float, float | None]]],
    *,
    labels: Sequence[str],
    what: str,
    means: Sequence[float] = (),
    title: str = "",
) -> bytes:
    """Horizontal bars of the mIoU under each sensor failure, one color per level.

    Args:
        bars: level → the mIoU in % of each failure and its standard deviation, if it has one.
        labels: of the failures.
        what: the kind of failure, such as ``missing``.
        means: the average of each level, drawn as a dashed line; or none.
        title: the title.

    Returns:
        A PNG.
    """
    thick = 0.8 / len(bars)
    shades = (BLUE, ORANGE, GREEN, PURPLE)
    with drawing(width=8, height=1.6 + len(labels) * max(0.26, 0.16 * len(bars))) as (figure, png):
        axes = figure.add_subplot()
        for index, (level, values) in enumerate(bars.items()):
            places = np.arange(len(labels)) + (index - (len(bars) - 1) / 2) * thick
            widths, shade = [mean for mean, _ in values], shades[index % len(shades)]
            errors = [std or 0.0 for _, std in values] if any(std is not None for _, std in values) else None
            label = f"{level}, average {means[index]:.2f}" if means else level
            axes.barh(places, widths, color=shade, height=0.9 * thick, xerr=errors, label=label if level else None)
            for place, (value, std) in zip(places, values, strict=True):
                axes.text(value + (std or 0.0) + 0.8, place, f"{value:.1f}", va="center", fontsize=7)
        for index, (level, mean) in enumerate(zip(bars, means, strict=False)):
            shade = VERMILION if len(bars) == 1 else shades[index % len(shades)]
            text = None if level else f"average {mean:.2f}"
            axes.axvline(mean, color=shade, linestyle="--", linewidth=1.2, label=text)
        axes.set_yticks(range(len(labels)), list(map(shown, labels)), fontsize=8)
        axes.set_ylim(len(labels) - 0.4, -0.6)  # the first failure on top
        axes.set_ylabel(what)
        most = max([*means, *(value for values in bars.values() for value, _ in values)], default=0.0)
        axes.set_xlim(0, next(end for end in AXIS_ENDS if end == AXIS_ENDS[-1] or 1.15 * most <= end))
        axes.set_xlabel("mIoU, %")
        figure.suptitle(title, wrap=True)
        axes.spines[["top", "right"]].set_visible(False)
        if means or len(bars) > 1:
            figure.legend(loc="outside lower center", frameon=False, ncols=3)
    return png.getvalue()


def class_histogram(shares: Mapping[str, Sequence[float]], *, classes: Sequence[str], title: str = "") -> bytes:
    """Horizontal bars of the share of each class in each split, one color per split.

    Args:
        shares: split → K percentages.
        classes: K names.
        title: the title.

    Returns:
        A PNG. The axis is logarithmic if the rarest class is much rarer than the most common one; classes without a
        pixel are marked as absent.
    """
    positive = [value for values in shares.values() for value in values if value > 0]
    is_skewed = bool(positive) and max(positive) > SKEWED * min(positive)
    least = 10 ** np.floor(np.log10(min(positive))) if is_skewed else 0.0
    thick = 0.8 / max(1, len(shares))
    shades = (BLUE, ORANGE, GREEN, PURPLE)
    with drawing(width=8, height=1.8 + len(classes) * max(0.28, 0.17 * len(shares))) as (figure, png):
        axes = figure.add_subplot()
        for index, (split, values) in enumerate(shares.items()):
            places = np.arange(len(classes)) + (index - (len(shares) - 1) / 2) * thick
            axes.barh(places, values, color=shades[index % len(shades)], height=0.9 * thick, label=split)
            for place, value in zip(places, values, strict=True):
                if value <= 0:
                    axes.text(
                        0.01, place, "absent", va="center", fontsize=7, color=GRAY, transform=axes.get_yaxis_transform()
                    )
        if is_skewed:
            axes.set_xscale("log")
            axes.set_xlim(least, 150)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")  # 0.01, not ten to the power of -2
        else:
            axes.set_xlim(0, max([*positive, 1.0]) * 1.08)
        axes.set_yticks(range(len(classes)), [_short(name) for name in classes], fontsize=8)
        axes.set_ylim(len(classes) - 0.4, -0.6)  # the first class on top
        axes.set_xlabel("% of the labeled pixels" + (", logarithmic" if is_skewed else ""))
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle(title, wrap=True)
        figure.legend(loc="outside lower center", frameon=False, ncols=4)
    return png.getvalue()


def offsets_histogram(offsets: Mapping[str, Sequence[float]], *, title: str = "") -> bytes:
    """How far apart in time the files of a scene are, a panel per sensor.

    Args:
        offsets: sensor → milliseconds behind the first sensor, one per scene.
        title: the title.

    Returns:
        A PNG; all panels share their axis.
    """
    widest = max((abs(each) for found in offsets.values() for each in found), default=0) or 1.0
    with drawing(width=8, height=1.2 + 1.5 * len(offsets)) as (figure, png):
        panels = figure.subplots(len(offsets), sharex=True, squeeze=False)[:, 0]
        for axes, (name, found) in zip(panels, offsets.items(), strict=True):
            axes.hist(found, bins=np.linspace(-widest, widest, 42), color=BLUE)
            axes.axvline(0, color=GRAY, linewidth=0.8)
            axes.set_ylabel(_short(name), fontsize=8)
            axes.spines[["top", "right"]].set_visible(False)
        panels[-1].set_xlabel("offset in ms")
        figure.suptitle(title, wrap=True)
    return png.getvalue()


def curves(rows: Sequence[Mapping[str, Any]], *, terms: Sequence[str] = ("ohem", "spmm"), title: str = "") -> bytes:
    """The curves of a training run: smoothed losses over their pale values; panels without values are left out.

    Args:
        rows: from ``metrics.jsonl``: each has ``step``, and any of ``loss``, the losses and the keys of :data:`CURVES`.
            Values that are not finite leave a gap.
        terms: names of the losses in the sum ``loss``. The first is most of it and shares its axis. Each other one may
            be a thousandth of it, and has an axis of its own.
        title: the title.

    Returns:
        A PNG.
    """
    shades = dict(zip(terms, cycle(TERM_COLORS), strict=False))
    losses: Panels = {"Loss": {"loss": ("loss", BLUE), **{name: (name, shades[name]) for name in terms[:1]}}}
    losses |= {", ".join(filter(None, term_title(name))): {name: (name, shades[name])} for name in terms[1:]}
    found = {
        panel: kept
        for panel, lines in (losses | CURVES).items()
        if (kept := {key: line for key, line in lines.items() if _points(rows, key)[0].size})
    }
    panels = found or {"no values yet": {}}
    with drawing(width=8, height=0.6 + 2.1 * len(panels)) as (figure, png):
        figure.suptitle(title)
        places = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (name, lines) in zip(places, panels.items(), strict=True):
            for (key, (label, shade)), width in zip(lines.items(), chain([2.4], repeat(1.2)), strict=False):
                _draw_line(axes, *_points(rows, key), shade=shade, label=label, width=width, is_smooth=name in losses)
            axes.set_title(name, fontsize=10, loc="left")
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            if len(lines) > 1:
                axes.legend(frameon=False)
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
    return png.getvalue()


def _draw_line(
    axes: Axes,
    steps: NDArray[np.float64],
    values: NDArray[np.float64],
    *,
    shade: str,
    label: str,
    width: float,
    is_smooth: bool,
) -> None:
    """Draw a key's values; if they are many and noisy, with a smoothed line in front."""
    if steps.size < FEW:  # few points (validations) would be invisible without marks
        axes.plot(steps, values, color=shade, label=label, linewidth=width, marker="o", markersize=3)
    elif is_smooth:
        axes.plot(steps, values, color=shade, linewidth=0.8, alpha=PALE)
        axes.plot(steps, smoothed(values, window=steps.size // SMOOTH_SHARE), color=shade, label=label, linewidth=width)
    else:
        axes.plot(steps, values, color=shade, label=label, linewidth=width)


def smoothed(values: ArrayLike, *, window: int) -> NDArray[np.float64]:
    """The mean of the values around each one.

    Args:
        values: (N,); values that are not finite are ignored and stay gaps.
        window: number of values in each mean, half of them on each side; fewer at the ends.

    Returns:
        (N,).
    """
    array = np.asarray(values, np.float64)
    known, half = np.isfinite(array), window // 2
    ends = np.arange(array.size)
    low, high = np.maximum(ends - half, 0), np.minimum(ends + half + 1, array.size)
    sums = np.concatenate([[0.0], np.where(known, array, 0.0).cumsum()])
    counts = np.concatenate([[0], known.cumsum()])
    means = (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1)
    return np.where(known, means, np.nan)


Costs = Mapping[str, Sequence[tuple[float, float]]]
"""Name → (size, cost) points."""
COST_SHADES = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, GRAY)


def scaling(panels: Mapping[str, Costs], *, against: str, title: str = "") -> bytes:
    """Lines over a common axis, a panel for each cost; a series has the same color in all panels.

    Args:
        panels: name and unit of a cost → its series; every axis of a cost begins at 0.
        against: name of the common axis.
        title: the title.

    Returns:
        A PNG.
    """
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    with drawing(width=1.0 + 4.2 * len(panels), height=3.9) as (figure, png):
        figure.suptitle(title, wrap=True)
        for axes, (cost, series) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            for name, points in series.items():
                shade = COST_SHADES[names.index(name) % len(COST_SHADES)]
                sizes, costs = zip(*sorted(points), strict=True)
                axes.plot(sizes, costs, color=shade, label=name, marker="o", markersize=4, linewidth=1.4)
            axes.set_xticks(sorted({size for points in series.values() for size, _ in points}))
            axes.set_ylim(bottom=0)
            axes.set_xlabel(against)
            axes.set_title(cost, fontsize=10, loc="left")
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        handles = {str(line.get_label()): line for axes in figure.axes for line in axes.lines}
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", frameon=False, ncols=3)
    return png.getvalue()


@contextmanager
def drawing(*, width: float, height: float) -> Iterator[tuple[Figure, io.BytesIO]]:
    """A figure of this size in inches, and the buffer that has its PNG when the block ends."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    buffer = io.BytesIO()
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(width, min(height, TALLEST)), dpi=120, layout="constrained")
        yield figure, buffer
        for text in figure.findobj(Text):  # names come from files; those of ticks are escaped where they are set
            assert isinstance(text, Text)
            text.set_text(shown(text.get_text(), keep="\n"))
        # Tight: the layout forgets the axis label of a square heat map with long tick names.
        figure.savefig(buffer, format="png", metadata={"Software": None}, bbox_inches="tight", pad_inches=0.15)


def _short(name: str) -> str:
    """A name for an axis: of a long one only the two ends, where names usually differ."""
    half, name = LONGEST_NAME // 2, shown(name)
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[1 - half :]}"


def _write_cells(axes: Axes, percent: NDArray[np.float64]) -> None:
    """Write each percentage from 1 on in its cell, white on dark cells."""
    for row, column in zip(*np.nonzero(np.nan_to_num(percent) >= 1), strict=True):
        value = percent[row, column]
        shade = "white" if value > 55 else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=shade)


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of the rows with this key; None becomes a gap."""
    having = [row for row in rows if key in row and "step" in row]
    values = [float("nan") if row[key] is None else float(row[key]) for row in having]
    return np.array([row["step"] for row in having], np.float64), np.array(values, np.float64)
