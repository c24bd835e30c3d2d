"""The results of ``memorysam evaluate --robustness``: the report, its files, and its table on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from memorysam_cli.engine.evaluate.results import csv_text
from memorysam_cli.engine.evaluate.robustness import PROBABILITIES, Cell, Robustness, Spread
from memorysam_cli.report import console, figures
from memorysam_cli.storage import atomic, documents
from memorysam_cli.text import counted

SCHEMA_VERSION = 1
TITLES = {
    "any": "any sensors",
    "emm": "entirely missing sensors",
    "rmm": "randomly missing elements",
    "nm": "noisy sensors",
}
FED = {
    "drop": "not fed",
    "zero": "fed as zeros after normalization",
    "both": "not fed (dropped), or fed as zeros after normalization (zeroed)",
}
LEVELS = {"any": "", "emm": "", "rmm": "r = ", "nm": ""}
"""Text before a level's name."""
MEANS = {
    "average": "the mean over the sets of missing sensors: from none to all but one, or those that were scored",
    "expected": "each sensor fails with probability p on its own; all at once is left out",
    "miou": "over all classes, an empty one counts 0; miou_present: over classes with ground truth",
    "std": "of the sample of repeats; null with one",
}


def describe(benchmark: Robustness, *, facts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The report: the content of ``robustness-<kind>.json`` and of ``memorysam evaluate --robustness KIND --json``.

    Args:
        benchmark: the benchmark's counts.
        facts: data, weights and settings, from :func:`memorysam_cli.engine.evaluate.evaluation.facts`.
        folder: the folder of the files.

    Returns:
        ``facts``, with ``missing`` replaced by what the benchmark did; ``robustness``, the kind; the settings of the
        random draws, None without draws; ``levels``, a list with the scores of each level, in %.
    """
    is_random, is_noise = benchmark.kind in ("rmm", "nm"), benchmark.kind == "nm"
    depends = is_noise and benchmark.noise_extremes == "batch"
    return {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "missing": None if is_random else "zero" if benchmark.kind == "emm" else benchmark.missing,
        "robustness": benchmark.kind,
        "subsets": ("all" if benchmark.has_all_sets else "some") if benchmark.has_sets else None,
        "protocol": benchmark.protocol,
        "seed": benchmark.seed if is_random else None,
        "repeats": benchmark.repeats,
        "noise_extremes": benchmark.noise_extremes if is_noise else None,
        "batch": benchmark.batch if depends else None,
        "processes": benchmark.processes if depends else None,
        "levels": [_level(benchmark, level) for level in benchmark.levels],
        "laws": benchmark.laws,
        "means": MEANS,
        "files": {key: str(folder / name) for key, name in names(benchmark).items()},
    }


def names(benchmark: Robustness) -> dict[str, str]:
    """Key in the report's ``files`` → file name; results of different meaning have different names."""
    words = ["robustness", benchmark.kind]
    words += [benchmark.missing] * (benchmark.kind == "any" and benchmark.missing != "both")
    words += ["scene"] * (benchmark.kind == "nm" and benchmark.noise_extremes == "scene")
    words += ["native"] * (benchmark.protocol == "native")
    stem = "-".join(words)
    return {"report": f"{stem}.json", "table": f"{stem}.csv", "figure": f"{stem}.png"}


def write(report: dict[str, Any], folder: Path) -> None:
    """Write a report's files: numbers as JSON and CSV, a figure as PNG.

    Args:
        report: from :func:`describe`.
        folder: its files of these names are replaced.

    Raises:
        EnvironmentFault: they cannot be written.
    """
    files = {key: Path(path).name for key, path in report["files"].items()}
    atomic.write_text(folder / files["table"], csv_text(_csv_rows(report)))
    atomic.write_bytes(folder / files["figure"], _figure(report))
    documents.write_json(folder / files["report"], report)  # last: if it exists, the others do


def show(report: dict[str, Any]) -> None:
    """Print a report's table on stdout, and notes on it on stderr."""
    for line in report.get("warnings", ()):
        console.warn(line)
    if report["batch"] is not None:
        console.note(
            "salt and pepper are a batch's extremes, as published, and so depend on what is in a batch: here "
            f"{counted(report['batch'], 'scene')} in {counted(report['processes'], 'process')}; --noise-extremes "
            "scene does not"
        )
    console.table(*_table(report), title=f"{report['dataset']} {report['split']}: {TITLES[report['robustness']]}")
    console.say(f"figures   mIoU in %, {report['protocol']} protocol{_drawn(report)}")
    if report["subsets"] == "some":
        console.say("sets      all sensors, each alone, and all but each; average is the mean of these")
    for letter, meaning in _letters(report):
        console.say(f"{letter:<8}  {meaning}")
    console.say(f"scenes    {report['scenes']} of {report['split']}, {', '.join(report['modalities'])}")
    console.say(f"weights   {report['weights']}")
    console.say(f"results   {Path(report['files']['report']).parent}")


def _level(benchmark: Robustness, level: str | None) -> dict[str, Any]:
    cells = [cell for cell in benchmark.cells if cell.level == level]
    expected = [{"p": p, **_spreads(*_both(benchmark.expected, level, p))} for p in PROBABILITIES]
    return {
        "level": level,
        "average": _spreads(*_both(benchmark.average, level)) if benchmark.has_sets else None,
        "expected": expected if benchmark.has_all_sets else [],
        "sets": [_set(benchmark, cell) for cell in cells],
    }


def _set(benchmark: Robustness, cell: Cell) -> dict[str, Any]:
    gone = benchmark.names(cell)
    return {
        "missing": list(gone),
        "available": [name for name in benchmark.modalities if name not in gone],
        **_spreads(*_both(benchmark.miou, cell)),
        "iou": dict(zip(benchmark.classes, benchmark.iou(cell), strict=True)),
    }


def _both(figure: Any, *arguments: Any) -> tuple[Spread, Spread]:
    """A score over all classes, and over those present."""
    return figure(*arguments), figure(*arguments, present=True)


def _spreads(every: Spread, present: Spread) -> dict[str, float | None]:
    return {
        "miou": every.mean,
        "miou_std": every.std,
        "miou_present": present.mean,
        "miou_present_std": present.std,
    }


def _averages(level: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The scores over all sets of a level, by their names."""
    if level["average"] is None:
        return []
    return [("average", level["average"])] + [(f"expected, p = {each['p']:g}", each) for each in level["expected"]]


def _table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the printed table."""
    levels = report["levels"]
    if report["robustness"] == "nm":
        sets = [(name, level["sets"][0]) for name, level in zip(_noises(levels), levels, strict=True)]
    elif len(levels) == 1:
        sets = [(_who(each), each) for each in levels[0]["sets"]] + _averages(levels[0])
    else:
        figures_of = [[(_who(each), each) for each in level["sets"]] + _averages(level) for level in levels]
        rows = [[each[0][0], *(_number(figure) for _, figure in each)] for each in zip(*figures_of, strict=True)]
        return ["missing", *(LEVELS[report["robustness"]] + level["level"] for level in levels)], rows
    first = "noise" if report["robustness"] == "nm" else "missing"
    return [first, "mIoU", "mIoU of present"], [
        [name, _number(each), _number(each, key="miou_present")] for name, each in sets
    ]


def _csv_rows(report: dict[str, Any]) -> Iterable[Sequence[object]]:
    keys = ("miou", "miou_std", "miou_present", "miou_present_std")
    classes = list(report["levels"][0]["sets"][0]["iou"])
    yield "level", "figure", "missing", *keys, *classes
    for level in report["levels"]:
        for each in level["sets"]:
            missing = "+".join(each["missing"])
            yield level["level"], "set", missing, *(each[key] for key in keys), *each["iou"].values()
        for name, each in _averages(level):
            yield level["level"], name, None, *(each[key] for key in keys), *[None] * len(classes)


def _figure(report: dict[str, Any]) -> bytes:
    levels, kind = report["levels"], report["robustness"]
    title = f"{report['dataset']} {report['split']}: {TITLES[kind]}, {report['protocol']} protocol"
    if kind == "nm":
        bars = {"": [(level["sets"][0]["miou"], level["sets"][0]["miou_std"]) for level in levels]}
        return figures.failure_bars(bars, labels=_noises(levels), what="noise", title=title)
    bars = {
        LEVELS[kind] + (level["level"] or ""): [(each["miou"], each["miou_std"]) for each in level["sets"]]
        for level in levels
    }
    means = [level["average"]["miou"] for level in levels]
    labels = [_who(each) for each in levels[0]["sets"]]
    return figures.failure_bars(bars, labels=labels, what="missing sensors", means=means, title=title)


def _drawn(report: dict[str, Any]) -> str:
    """The random draws of a report in words, if there are any."""
    if report["seed"] is None:
        return "" if report["missing"] is None else f"; a missing sensor is {FED[report['missing']]}"
    return f"; seed {report['seed']}, {counted(report['repeats'], 'draw')}"


def _letters(report: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """The meaning of the letters in the table."""
    if report["robustness"] == "rmm":
        yield "r", "share of a missing sensor's elements that are zero"
    if report["levels"][0]["expected"]:
        yield "p", "probability that a sensor is missing, each on its own and not all at once"


def _noises(levels: Sequence[dict[str, Any]]) -> list[str]:
    return [level["level"] or "none" for level in levels]


def _who(each: dict[str, Any]) -> str:
    return ", ".join(each["missing"]) or "none"


def _number(figure: dict[str, Any], *, key: str = "miou") -> str:
    std = figure[f"{key}_std"]
    return f"{figure[key]:.2f}" if std is None else f"{figure[key]:.2f} ± {std:.2f}"
