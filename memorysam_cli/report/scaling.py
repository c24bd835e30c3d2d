"""How a cost grows with a size, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memorysam_cli.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, drawing

SHADES = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, GREY)

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Name → (size, cost) points."""


def scaling(panels: Mapping[str, Series], *, against: str, title: str = "") -> bytes:
    """Lines over one axis, a panel for each cost; a series has one colour in all panels.

    Args:
        panels: what a cost is called, with its unit → its series; every cost is 0 at the least.
        against: what the common axis is called.
        title: the line above.

    Returns:
        A PNG.
    """
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    with drawing(width=1.0 + 4.2 * len(panels), height=3.9) as (figure, png):
        figure.suptitle(title, wrap=True)
        for axes, (cost, series) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            for name, points in series.items():
                shade = SHADES[names.index(name) % len(SHADES)]
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
