"""What the report of two runs, or of two evaluations, says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memorysam_cli import recipe as recipes
from memorysam_cli.engine.evaluate import folder as files
from memorysam_cli.engine.reporting import documents, evaluation, folders, training
from memorysam_cli.engine.run_folder import RECIPE, RunFolder
from memorysam_cli.errors import UsageError

Facts = dict[str, Any]
MEANS = {"miou": "mIoU", "miou_present": "mIoU of present", "mf1": "mF1", "macc": "mAcc"}
SAME = ("dataset", "split", "protocol")
"""What two evaluations must share for their figures to compare."""
FULL_BAR = 25.0
"""Points of IoU that fill half a bar, at least."""


def gather(first: Path, second: Path) -> Facts:
    """Everything that the template ``comparison`` shows.

    Raises:
        UsageError: a prediction, or evaluations that do not compare.
        DataError: a file is damaged, or was written by another version.
    """
    folder = (first, second)
    for each in folder:
        if folders.kind(each) == "prediction":
            raise UsageError(f"{each}: is a prediction; compare two runs, two evaluations, or one with the other")
    a, b = (_evaluation(each) for each in folder)
    note = _why_not(a, b, folder)
    if note and not all(RunFolder(each).holds_run() for each in folder):
        raise UsageError(f"{first} and {second}: {note}")
    runs = [RunFolder(each) for each in folder if RunFolder(each).holds_run()]
    names = [each.resolve().name for each in folder] if len(runs) == 2 else [str(each) for each in folder]
    rows = [] if note else _rows(a, b)
    charts = []
    if len(runs) == 2:
        told = [("A", training.metrics(runs[0])), ("B", training.metrics(runs[1]))]
        terms = [name for run in runs for name in recipes.load(run.path / RECIPE, is_stored=True).terms]
        charts = training.draw_all(told, tuple(dict.fromkeys(terms)))
    sections = [("headline", "Headline"), ("classes", "Classes")] + [("curves", "Curves")] * bool(charts)
    return {
        "kind": "comparison",
        "title": f"{names[0]} against {names[1]}",
        "subtitle": "" if note else f"{a['dataset']} · {a['split']} · {evaluation.headline(a)}",
        "warnings": [],
        "sections": [*sections, ("differences", "What differs")],
        "names": names,
        "headline": _headline(a, b, runs, compared=not note),
        "rows": rows,
        "rows_note": f"There is nothing to compare class by class: {note}.",
        "charts": charts,
        "differences": _differences(folder, a, b),
    }


def _evaluation(folder: Path) -> Facts:
    """The report of an evaluation, or of a run's newest one; empty if there is none."""
    place = folders.newest_evaluation(folder) if RunFolder(folder).holds_run() else folder
    return {} if place is None else documents.read(place / files.NAMES["metrics"])


def _why_not(a: Facts, b: Facts, folder: tuple[Path, Path]) -> str:
    """Why two evaluations do not compare; empty if they do."""
    for report, each in zip((a, b), folder, strict=True):
        if not report:
            return f"{each} has no evaluation yet; run memorysam evaluate --weights {RunFolder(each).best}"
    for key in SAME:
        if a[key] != b[key]:
            return f"the one is of {key} {a[key]}, the other of {b[key]}"
    if [each["name"] for each in a["classes"]] != [each["name"] for each in b["classes"]]:
        return "their classes differ"
    return ""


def _rows(a: Facts, b: Facts) -> list[Facts]:
    """Class by class: both IoU and how far they lie apart; the greatest loss first."""
    pairs = list(zip(evaluation.class_rows(a), evaluation.class_rows(b), strict=True))
    widest = max(FULL_BAR, *(abs(after["iou"] - before["iou"]) for before, after in pairs))
    rows = [
        {
            "name": before["name"], "color": before["color"], "a": before["iou"], "b": after["iou"],
            "delta": after["iou"] - before["iou"], "bar": 50 * (after["iou"] - before["iou"]) / widest,
            "share": before["share"],
        }
        for before, after in pairs
    ]  # fmt: skip
    return sorted(rows, key=lambda row: float(row["delta"]))


def _headline(a: Facts, b: Facts, runs: list[RunFolder], *, compared: bool) -> list[Facts]:
    rows = []
    if compared:
        for key, name in MEANS.items():
            rows.append({"name": name, "a": f"{a[key]:.2f}", "b": f"{b[key]:.2f}", "delta": b[key] - a[key]})
        words = [", ".join(each["modalities"]) for each in (a, b)]
        rows.append({"name": "Modalities", "a": words[0], "b": words[1], "delta": None})
    if len(runs) == 2:
        found = [training.best(training.metrics(run)) for run in runs]
        told = ["–" if each is None else f"{each['miou']:.2f} (step {each['step']:,})" for each in found]
        delta = found[1]["miou"] - found[0]["miou"] if found[0] and found[1] else None
        rows.append({"name": "Best validation mIoU", "a": told[0], "b": told[1], "delta": delta})
    return rows


def _differences(folder: tuple[Path, Path], a: Facts, b: Facts) -> list[tuple[str, str, str]]:
    """Values of the recipes and facts of the environments that are not the same."""
    if all(RunFolder(each).holds_run() for each in folder):
        first, second = (recipes.load(each / RECIPE, is_stored=True).model_dump(mode="json") for each in folder)
        around = [documents.read(each / "environment.json") for each in folder]
        return training.differences(first, second) + training.differences(around[0], around[1])
    keys = (
        "weights",
        "weights_sha256",
        "modalities",
        "missing",
        "tta",
        "tile",
        "image_size",
        "device",
        "precision",
        "versions",
    )
    return training.differences({key: a.get(key) for key in keys}, {key: b.get(key) for key in keys})
