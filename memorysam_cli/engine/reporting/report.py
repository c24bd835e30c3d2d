"""From folders to one HTML file: the report of one, and what the report of two that are compared says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memorysam_cli import recipe as recipes
from memorysam_cli.engine.evaluate.result_files import NAMES
from memorysam_cli.engine.reporting import folders, result_pages, run_page
from memorysam_cli.engine.reporting.folders import Facts
from memorysam_cli.engine.run_folder import RECIPE, RunFolder, resume_command
from memorysam_cli.errors import UsageError
from memorysam_cli.report import console, pages
from memorysam_cli.storage import atomic, documents
from memorysam_cli.text import command, megabytes

NAME = "report.html"
GATHER = {
    "training": run_page.gather,
    "evaluation": result_pages.gather_evaluation,
    "prediction": result_pages.gather_prediction,
}
MEANS = {"miou": "mIoU", "miou_present": "mIoU of present", "mf1": "mF1", "macc": "mAcc"}
SAME = {"dataset": "data set", "split": "split", "protocol": "protocol", "split_sha256": "list of scenes"}
"""What two evaluations must share for their figures to compare, and its name."""
LONGEST_WORD = 60
"""Letters of a value that a sentence can hold: more than a name, less than a sum."""
FULL_BAR = 25.0
"""Points of IoU that fill half a bar, at least."""


@dataclass(frozen=True)
class WrittenReport:
    """A page that was written."""

    kind: str
    out: Path
    size: int
    """Bytes."""


def write(folder: Sequence[Path], *, out: Path | None = None) -> WrittenReport:
    """Write the report of a folder, or of two that are compared.

    Args:
        folder: one or two.
        out: the file; none for ``report.html`` in the folder, or ``report.html`` here for two.

    Raises:
        UsageError: no folder of ours, more than two, or ``out`` is a folder.
        DataError: a file is damaged, or was written by another version.
        EnvironmentFault: the page cannot be written.
    """
    if len(folder) > 2:
        raise UsageError(f"report: compares two folders at most, not {len(folder)}; give one or two")
    path = out or (folder[0] / NAME if len(folder) == 1 else Path(NAME))
    if path.is_dir():
        raise UsageError(f"--out {path}: is a folder; give a file, such as {path / NAME}")
    atomic.refuse_unwritable(path.parent)
    gather = GATHER[folders.kind(folder[0])] if len(folder) == 1 else gather_comparison
    with documents.understood(folder[0]):  # what no closer look has found, up to what the page makes of a value
        facts = gather(*folder)
        text = pages.render(facts["kind"], **facts)
    if facts["kind"] == "comparison":
        for line in facts["warnings"]:
            console.warn(line)
    size = len(text.encode())
    if size > pages.MOST_BYTES:
        console.warn(
            f"{path}: has {megabytes(size, decimals=0)}, for it has very many classes; mail and CI may refuse it"
        )
    atomic.write_text(path, text)
    return WrittenReport(facts["kind"], path, size)


def gather_comparison(first: Path, second: Path) -> Facts:
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
    runs = [RunFolder(each) for each in folder if RunFolder(each).holds_run()]
    sensors = _sensors(folder, protocol=a["protocol"] if a and not note else None)
    if note and len(runs) < 2 and not sensors["groups"]:
        raise UsageError(f"{first} and {second} do not compare: {sensors['note'] or note}")
    apart = _trained_apart(*runs) if len(runs) == 2 else ""
    names = [each.resolve().name for each in folder] if len(runs) == 2 else [str(each) for each in folder]
    rows = [] if note else _rows(a, b)
    charts = []
    if len(runs) == 2:
        rows_of_runs = [("A", runs[0].read_metrics()), ("B", runs[1].read_metrics())]
        terms = [name for run in runs for name in recipes.load(run.path / RECIPE, is_stored=True).terms]
        charts = run_page.draw_all(rows_of_runs, tuple(dict.fromkeys(terms)))
        charts = [each for each in charts if not (apart and each.name == "miou")]
    sections = [("headline", "Headline"), ("classes", "Classes")] + [("sensors", "Sensors")] * bool(sensors["groups"])
    sections += [("curves", "Curves")] * bool(charts)
    return {
        "kind": "comparison",
        "title": f"{names[0]} against {names[1]}",
        "subtitle": "" if note else f"{a['dataset']} · {a['split']} · {result_pages.headline(a)}",
        "warnings": _warnings(apart, note if a and b else "", sensors["note"]),
        "sections": [*sections, ("differences", "What differs")],
        "names": names,
        "headline": _headline(a, b, runs, compared=not note, is_apart=bool(apart)),
        "rows": rows,
        "rows_note": f"There is nothing to compare class by class: {note}.",
        "sensors": sensors,
        "charts": charts,
        "differences": _differences(folder, *((a, b) if not note else sensors["between"])),
    }


def _evaluation(folder: Path) -> Facts:
    """The report of an evaluation, or of a run's newest one; empty if there is none."""
    place = folders.newest_evaluation(folder) if RunFolder(folder).holds_run() else folder
    return {} if place is None else folders.read(place / NAMES["metrics"])


def _why_not(a: Facts, b: Facts, folder: tuple[Path, Path]) -> str:
    """Why two evaluations do not compare; empty if they do."""
    for report, each in zip((a, b), folder, strict=True):
        if not report:
            return f"{each} has no evaluation yet; {_evaluation_line(RunFolder(each))}"
    for key, name in SAME.items():
        if a.get(key) != b.get(key) and None not in (a.get(key), b.get(key)):
            return _differ(name, a[key], b[key])
    if [each["name"] for each in a["classes"]] != [each["name"] for each in b["classes"]]:
        return "their classes differ"
    return ""


def _differ(name: str, a: Any, b: Any) -> str:
    """That two things are not of the same."""
    if isinstance(a, str) and isinstance(b, str) and len(a) < LONGEST_WORD:
        return f"the one is of {name} {a}, the other of {b}"
    return f"the one is of another {name} than the other"


def _evaluation_line(run: RunFolder) -> str:
    """What to type so that a run has an evaluation."""
    if not run.best.is_file():
        return f"it has no weights either, continue with: {resume_command(run.path)}"
    return f"type: {command('evaluate', '--weights', run.best)}"


def _trained_apart(first: RunFolder, second: RunFolder) -> str:
    """Why the validations of two runs do not compare; empty if they do."""
    data = [recipes.load(each.path / RECIPE, is_stored=True).data for each in (first, second)]
    stored = [each.stored_data().get("content_hash", "") for each in (first, second)]
    if data[0].dataset != data[1].dataset:
        return _differ("data set", data[0].dataset, data[1].dataset)
    if all(stored) and stored[0] != stored[1]:
        return _differ(f"content of data set {data[0].dataset}", *stored)
    if data[0].selection_split != data[1].selection_split:
        return _differ("selection split", data[0].selection_split, data[1].selection_split)
    return ""


def _warnings(apart: str, note: str, of_sensors: str) -> list[str]:
    """What a reader of a comparison must know first."""
    lines = [f"These two runs do not compare: {apart}."] if apart else []
    lines += [f"Their evaluations do not compare: {note}."] * bool(note)
    return lines + [f"Their sets of sensors do not compare: {of_sensors}."] * bool(of_sensors)


def _sensors(folder: tuple[Path, Path], *, protocol: str | None) -> Facts:
    """What is left of both when sensors are missing, where both have the benchmark ``any``.

    Args:
        folder: both.
        protocol: of the evaluations that are compared; None: that of the benchmarks.

    Returns:
        ``groups``, one for each manner of missing (none: nothing to compare); ``note``, why not, though both have it.
    """
    (a, of_a), (b, of_b) = (result_pages.subset_levels(_subsets(each), protocol=protocol) for each in folder)
    nothing: Facts = {"groups": [], "note": "", "between": (a, b)}
    if not a or not b:
        return nothing
    for key, name in {**SAME, "modalities": "modalities"}.items():
        if a[key] != b[key]:
            return {**nothing, "note": _differ(name, a[key], b[key])}
    groups = [_group(name, of_a[name], of_b[name]) for name in ("dropped", "zeroed") if name in of_a and name in of_b]
    return {**nothing, "groups": groups}


def _subsets(folder: Path) -> Path:
    """Where the benchmarks of a folder are: of a run, with its newest evaluation that has one."""
    if not RunFolder(folder).holds_run():
        return folder
    return folders.newest_evaluation(folder, name="robustness-any.json") or folder


def _group(name: str, a: Facts, b: Facts) -> Facts:
    """The sets of sensors of two models: what is looked at first, and every one."""
    pairs = list(zip(a["sets"], b["sets"], strict=True))
    worst = [min(each["sets"], key=lambda one: float(one["miou"])) for each in (a, b)]
    names = ["+".join(each["available"]) for each in worst]
    whose = names[0] if names[0] == names[1] else f"A: {names[0]}, B: {names[1]}"
    rows = [
        ("All sensors", a["sets"][0], b["sets"][0]),
        (f"Mean of {len(pairs)} sets", a["average"], b["average"]),
        (f"Worst set ({whose})", *worst),
        *((f"{one['available'][0]} alone", one, other) for one, other in pairs if len(one["available"]) == 1),
    ]
    return {
        "title": f"Missing sensors are {'not fed' if name == 'dropped' else 'zeros'}",
        "rows": [
            {"name": what, "a": one["miou"], "b": other["miou"], "delta": other["miou"] - one["miou"]}
            for what, one, other in rows
        ],
        "bars": [{"name": "+".join(one["available"]), "a": one["miou"], "b": other["miou"]} for one, other in pairs],
    }


def _rows(a: Facts, b: Facts) -> list[Facts]:
    """Class by class: both IoU and how far they lie apart; the greatest loss first."""
    pairs = list(zip(result_pages.class_rows(a), result_pages.class_rows(b), strict=True))
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


def _headline(a: Facts, b: Facts, runs: list[RunFolder], *, compared: bool, is_apart: bool) -> list[Facts]:
    rows = []
    if compared:
        for key, name in MEANS.items():
            rows.append({"name": name, "a": f"{a[key]:.2f}", "b": f"{b[key]:.2f}", "delta": b[key] - a[key]})
        words = [", ".join(each["modalities"]) for each in (a, b)]
        rows.append({"name": "Modalities", "a": words[0], "b": words[1], "delta": None})
    if len(runs) == 2:
        best = [run_page.best(run.read_metrics()) for run in runs]
        cells = ["–" if each is None else f"{each['miou']:.2f} (step {each['step']:,})" for each in best]
        delta = best[1]["miou"] - best[0]["miou"] if best[0] and best[1] and not is_apart else None
        rows.append({"name": "Best validation mIoU", "a": cells[0], "b": cells[1], "delta": delta})
    return rows


def _differences(folder: tuple[Path, Path], a: Facts, b: Facts) -> list[tuple[str, str, str]]:
    """Values of the recipes and facts of the environments that are not the same."""
    if all(RunFolder(each).holds_run() for each in folder):
        first, second = (recipes.load(each / RECIPE, is_stored=True).model_dump(mode="json") for each in folder)
        around = [folders.read(each / "environment.json") for each in folder]
        return run_page.differences(first, second) + run_page.differences(around[0], around[1])
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
    return run_page.differences({key: a.get(key) for key in keys}, {key: b.get(key) for key in keys})
