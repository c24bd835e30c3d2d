"""The table and the plot of missing.py: from the reports of ``evaluate --robustness`` to Markdown and pictures."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from memorysam_cli.errors import UsageError
from memorysam_cli.report.figures import BLUE, GREEN, ORANGE, VERMILION

KINDS = ("any", "rmm", "nm")
"""Of ``evaluate --robustness``, that a run's figures are from."""
FULL, DROPPED, ZEROED, WORST, RMM = "full set", "mean, dropped", "mean, zeroed", "worst", "RMM"
MAIN = (FULL, DROPPED, ZEROED, WORST, RMM)
"""Figures of the first table; each sensor alone and the levels of noise have the second one."""
MARKS = {FULL: "o", DROPPED: "s", ZEROED: "D", WORST: "v"}
"""What the plot shows, and by which mark."""
THEMES = {
    "light": ("white", "#222222", (BLUE, GREEN, ORANGE, VERMILION)),
    "dark": ("#1e2129", "#e6e6e6", ("#56b4e9", "#2fc79a", ORANGE, "#ff8a60")),
}
"""Ground, ink, and a color for each mark."""
BEGIN, END = "<!-- missing:begin -->", "<!-- missing:end -->"
Report = Mapping[str, Any]


def figures_of(reports: Mapping[str, Report]) -> dict[str, float]:
    """The figures of one run, all mIoU in percent.

    Args:
        reports: those of ``evaluate --robustness`` by kind.

    Returns:
        By name: of all sensors; the mean over all sets with the others dropped, and zeroed; of the worst set (dropped);
        RMM, the mean over all sets and levels; of each sensor alone (dropped); with noise of each level.
    """
    dropped, zeroed = reports["any"]["levels"]
    alone = {tuple(each["available"]): each["miou"] for each in dropped["sets"]}
    return {
        FULL: next(each["miou"] for each in dropped["sets"] if not each["missing"]),
        DROPPED: dropped["average"]["miou"],
        ZEROED: zeroed["average"]["miou"],
        WORST: min(each["miou"] for each in dropped["sets"]),
        RMM: statistics.fmean(level["average"]["miou"] for level in reports["rmm"]["levels"]),
        **{f"{name} alone": alone[(name,)] for name in reports["any"]["modalities"]},
        **{f"NM {each['level']}": each["sets"][0]["miou"] for each in reports["nm"]["levels"] if each["level"]},
    }


def line_of(seeds: Mapping[int, Mapping[str, Report]]) -> dict[str, Any]:
    """What a variant's runs came to.

    Args:
        seeds: the reports of each seed by kind; at least one seed.

    Returns:
        ``figures``, each with ``mean`` and ``std`` over the seeds; ``per_seed``, those of each; ``worst_set``, the
        sensors of the worst set of each; how many ``scenes`` of which ``split`` were scored.
    """
    per_seed = {seed: figures_of(reports) for seed, reports in seeds.items()}
    one, names = next(iter(seeds.values()))["any"], next(iter(per_seed.values()))
    return {
        "seeds": list(seeds),
        "split": one["split"],
        "scenes": one["scenes"],
        "figures": {name: spread([each[name] for each in per_seed.values()]) for name in names},
        "per_seed": per_seed,
        "worst_set": {seed: worst_of(reports["any"]) for seed, reports in seeds.items()},
    }


def worst_of(report: Report) -> list[str]:
    """The sensors of the set that scores least when the others are dropped."""
    return list(min(report["levels"][0]["sets"], key=lambda each: each["miou"])["available"])


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, and standard deviation of the sample; None of a single one."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def cell(figure: Mapping[str, float | None] | None, decimals: int = 2) -> str:
    """A figure for people."""
    if figure is None:
        return "–"
    mean, std = (None if each is None else f"{each:.{decimals}f}" for each in (figure["mean"], figure["std"]))
    return f"{mean} ± {std}" if std is not None else str(mean)


def text_of(found: Sequence[Mapping[str, Any]]) -> str:
    """What was compared, and the tables, as Markdown.

    Args:
        found: a line for each variant: as of :func:`line_of`, with ``variant``, ``about``, ``set`` (its recipe values),
            ``seconds`` and ``ratio`` (None where they were not measured).
    """
    if not found:
        return "Nothing is finished yet.\n"
    whole, looks = by_seeds(found)
    others, first = [name for name in found[0]["figures"] if name not in MAIN], found[0]
    about = [
        f"mIoU in % over all classes on {first['split']} ({first['scenes']} scenes), mean ± standard deviation over "
        f"seeds {', '.join(map(str, whole[0]['seeds']))}; the epoch is chosen on val.",
        "",
        *(f"- `{each['variant']}`: {each['about']}{values_of(each)}" for each in whole),
    ]
    times = {
        "s per update": [cell(each["seconds"], 3) for each in whole],
        "ratio": [cell(each["ratio"]) for each in whole],
    }
    parts = ["\n".join(about), markdown(whole, list(MAIN), times), markdown(whole, others)]
    if looks:
        parts += first_looks(looks, whole[0])
    return "\n\n".join(parts) + "\n"


def by_seeds(found: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The lines of variants that have all seeds, and those of the others."""
    most = max(len(each["seeds"]) for each in found)
    return [each for each in found if len(each["seeds"]) == most], [each for each in found if len(each["seeds"]) < most]


def first_looks(looks: Sequence[Mapping[str, Any]], reference: Mapping[str, Any]) -> list[str]:
    """Variants that lack seeds, as what they differ from the reference by on the seeds that they have."""
    about = [
        "Variants with fewer seeds, as points that they are above or below "
        f"`{reference['variant']}` of the same seeds:",
        "",
        *(f"- `{each['variant']}`: {each['about']}{values_of(each)}" for each in looks),
    ]
    columns = [*MAIN, *(name for name in reference["figures"] if name not in MAIN)]
    rows = [
        [
            each["variant"],
            ", ".join(map(str, each["seeds"])),
            *(f"{above(each, reference, name):+.2f}" for name in columns),
        ]
        for each in looks
    ]
    heads, rule = ["variant", "seeds", *columns], ["---", "---"] + ["---:"] * len(columns)
    return ["\n".join(about), "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))]


def above(line: Mapping[str, Any], reference: Mapping[str, Any], name: str) -> float:
    """A figure's mean difference from the reference's, seed by seed."""
    return statistics.fmean(line["per_seed"][seed][name] - reference["per_seed"][seed][name] for seed in line["seeds"])


def values_of(line: Mapping[str, Any]) -> str:
    """The recipe values of a variant, in brackets."""
    return f" (`{' '.join(line['set'])}`)" if line["set"] else ""


def markdown(
    found: Sequence[Mapping[str, Any]], names: Sequence[str], more: Mapping[str, Sequence[str]] | None = None
) -> str:
    """A row for each variant, a column for each figure."""
    more = more or {}
    header = ["variant", *names, *more]
    rows = [[each["variant"], *(cell(each["figures"][name]) for name in names)] for each in found]
    rows = [[*row, *(column[place] for column in more.values())] for place, row in enumerate(rows)]
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def into(page: str, found: Sequence[Mapping[str, Any]], *, where: str) -> str:
    """A page with the plot and the tables between its markers.

    Args:
        page: Markdown.
        found: as of :func:`text_of`.
        where: its name, for the message.

    Raises:
        UsageError: the markers are not there.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"{where}: has no {BEGIN} and {END} to write between")
    shown = "".join(
        f"![Full set, means and worst set of every variant](images/missing-{theme}.svg#only-{theme})\n"
        for theme in THEMES
    )
    return f"{before}{BEGIN}\n{shown}\n{text_of(found)}{END}{after}"


def plots(found: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The plot by file name, for light and dark pages: a row for each variant, a mark for each figure of :data:`MARKS`.

    Args:
        found: as of :func:`text_of`; not empty.
    """
    made = {}
    for theme, (ground, ink, colors) in THEMES.items():
        inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        fixed = {"text.parse_math": False, "font.size": 9, "svg.hashsalt": "memorysam", "svg.fonttype": "none"}
        with matplotlib.rc_context(fixed | dict.fromkeys(inked, ink)):  # type: ignore[arg-type]
            figure = plot(by_seeds(found)[0], ground=ground, colors=colors)
            for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=suffix, metadata=metadata, bbox_inches="tight", pad_inches=0.1)
                made[f"missing-{theme}.{suffix}"] = buffer.getvalue()
    return made


def plot(found: Sequence[Mapping[str, Any]], *, ground: str, colors: Sequence[str]) -> Figure:
    """One figure; its text and axes are in the colors of the context."""
    figure = Figure(figsize=(8, 1.4 + 0.42 * len(found)), dpi=120, layout="constrained", facecolor=ground)
    axes = figure.add_subplot(facecolor=ground)
    for number, ((name, mark), color) in enumerate(zip(MARKS.items(), colors, strict=True)):
        places = [place + 0.16 * (number - 1.5) for place in range(len(found))]
        means, stds = ([each["figures"][name][key] or 0.0 for each in found] for key in ("mean", "std"))
        axes.errorbar(means, places, xerr=stds, fmt=mark, color=color, label=name, markersize=5, capsize=2)
    axes.set_yticks(range(len(found)), [each["variant"] for each in found])
    axes.set_ylim(len(found) - 0.5, -0.5)  # the first variant on top
    axes.set_xlim(left=0)
    axes.set_xlabel(f"mIoU in % on {found[0]['split']}, mean and standard deviation over seeds")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", frameon=False, ncols=len(MARKS))
    return figure
