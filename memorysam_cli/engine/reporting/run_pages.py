"""From folders to one HTML file; and the content of the report of a run and of a comparison.

First the file; then the page of a training run, which includes its newest evaluation
(:mod:`~memorysam_cli.engine.reporting.result_pages`); then the page of a comparison of two folders.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memorysam_cli import recipe as recipes
from memorysam_cli.engine.evaluate.result_files import NAMES
from memorysam_cli.engine.reporting import folders, result_pages
from memorysam_cli.engine.reporting.folders import Facts
from memorysam_cli.engine.run_folder import RECIPE, RunFolder, resume_command
from memorysam_cli.errors import UsageError
from memorysam_cli.recipe import Recipe, comparing
from memorysam_cli.report import console, figures, pages, pictures
from memorysam_cli.report.pages import Chart, Series
from memorysam_cli.storage import atomic, documents, images
from memorysam_cli.text import command, counted, duration, megabytes

NAME = "report.html"
MEANS = {"miou": "mIoU", "miou_present": "mIoU of present", "mf1": "mF1", "macc": "mAcc"}
SAME = {"dataset": "data set", "split": "split", "protocol": "protocol", "split_sha256": "list of scenes"}
"""Values that must be equal for two evaluations to be comparable, and their names."""
LONGEST_WORD = 60
"""Largest number of letters of a value in a sentence: more than a name, less than a checksum."""
FULL_BAR = 25.0
"""Smallest number of points of IoU for half a bar."""


@dataclass(frozen=True)
class WrittenReport:
    """A written page."""

    kind: str
    out: Path
    size: int
    """Bytes."""


def write(folder: Sequence[Path], *, out: Path | None = None) -> WrittenReport:
    """Write the report of a folder, or of two that are compared.

    Args:
        folder: one or two.
        out: the file; None for ``report.html`` in the folder, or ``report.html`` in the current folder for two.

    Raises:
        UsageError: not a folder of ours, more than two, or ``out`` is a folder.
        DataError: a file is damaged, or was written by another version.
        EnvironmentFault: the page cannot be written.
    """
    if len(folder) > 2:
        raise UsageError(f"report: compares two folders at most, not {len(folder)}; give one or two")
    path = out or (folder[0] / NAME if len(folder) == 1 else Path(NAME))
    if path.is_dir():
        raise UsageError(f"--out {path}: is a folder; give a file, such as {path / NAME}")
    gather = GATHER[folders.kind(folder[0])] if len(folder) == 1 else gather_comparison
    atomic.refuse_unwritable(path.parent)
    with documents.understood(folder[0]):  # any other wrong form of a value
        facts = gather(*folder)
        text = pages.render(facts["kind"], **facts)
    if facts["kind"] == "comparison":
        for line in facts["warnings"]:
            console.warn(line)
    size = len(text.encode())
    if size > pages.MOST_BYTES:
        console.warn(
            f"{path}: has {megabytes(size, decimals=0)}, because it has very many classes; mail and CI may refuse it"
        )
    atomic.write_text(path, text)
    return WrittenReport(facts["kind"], path, size)


ChartPlan = tuple[str, str, str, tuple[str, ...]]
"""Name, title, unit, and values from ``metrics.jsonl`` of a chart."""
CHARTS: tuple[ChartPlan, ...] = (
    ("miou", "Validation", "%", ("miou", "miou_native", "mf1", "macc")),
    ("lr", "Learning rate", "", ("lr",)),
    ("gradient", "Gradient norm", "", ("gradient_norm",)),
    ("throughput", "Throughput", "scenes per second", ("scenes_per_second",)),
    ("memory", "Peak memory", "GB", ("peak_memory_gb",)),
)
"""The charts besides those of the losses."""
VALUE_NAMES = {"miou": "mIoU", "miou_native": "mIoU, native", "mf1": "mF1", "macc": "mAcc", "lr": "learning rate"}
"""Values whose names differ from their keys."""
PLAIN = {"miou", "lr", "memory"}
"""Charts whose values are not noisy; the others are smoothed."""
FROM_ZERO = {"throughput", "memory", "miou"}
PICTURE_SIDE = 1600
"""Width in pixels at which scenes side by side have readable text."""
PICTURE_ROOM = 2_400_000
"""Characters for all pictures; an evaluation's scenes and the curves have their own space."""
PICTURES = {
    "First batch, as the network saw it": "first-batch.png",
    "Validation scenes": "validation.png",
    "The same after the first validation": "validation-first.png",
}


def gather_training(folder: Path) -> Facts:
    """The values of the template ``training`` for a run.

    Raises:
        DataError, UsageError: a file is damaged, or was written by another version.
    """
    run = RunFolder(folder)
    trained = recipes.load(folder / RECIPE, is_stored=True)
    rows = run.read_metrics()
    scored = folders.newest_evaluation(folder)
    shown = None
    if scored is not None:
        with documents.understood(scored / NAMES["metrics"]):
            shown = result_pages.section(scored, folders.read(scored / NAMES["metrics"]))
    parent, changes = against_parent(trained)
    pictures = _pictures(run)
    sections = [("curves", "Curves")] + [("pictures", "Pictures")] * bool(pictures)
    sections += result_pages.sections(shown) if shown else []
    return {
        "kind": "training",
        "title": folder.resolve().name,
        "subtitle": trained.about,
        "warnings": _run_warnings(run),
        "sections": [*sections, ("recipe", "Recipe"), ("environment", "Environment")],
        "tiles": _tiles(run, rows, trained),
        "charts": draw_all([("", rows)], trained.terms),
        "pictures": pictures,
        "evaluation": shown,
        "parent": parent,
        "changes": changes,
        "recipe": trained.to_yaml(),
        "environment": environment(run),
    }


def charts_of(terms: Sequence[str]) -> list[ChartPlan]:
    """All charts of a run, by the names of its losses.

    The first loss is drawn with the sum, because it is most of it; each other loss has a chart of its own.
    """
    first, *further = terms
    losses: list[ChartPlan] = [("loss", "Loss", "", ("loss", first))]
    losses += [(name, *figures.term_title(name), (name,)) for name in further]
    return [*losses, *CHARTS]


def draw_all(runs: Sequence[tuple[str, Sequence[Facts]]], terms: Sequence[str]) -> list[Chart]:
    """The charts of :func:`charts_of` with values; ``runs`` are name and rows of each."""
    return [chart for each in charts_of(terms) if (chart := draw(each, runs)) is not None]


def draw(what: ChartPlan, runs: Sequence[tuple[str, Sequence[Facts]]]) -> Chart | None:
    """One chart.

    Args:
        what: the chart.
        runs: name and rows of each; of several runs only the first value is compared, under their names.
    """
    name, title, unit, keys = what
    keys = keys if len(runs) == 1 else keys[:1]
    series = [
        Series(
            label or VALUE_NAMES.get(key, key.replace("_", " ")),
            points,
            is_main=index == 0 or len(runs) > 1,
            course=() if name in PLAIN else smoothed(points),
        )
        for label, rows in runs
        for index, key in enumerate(keys)
        if (points := [(row["step"], row[key]) for row in rows if key in row])
    ]
    return pages.line_chart(name, title, series, unit=unit, zero=name in FROM_ZERO)


def smoothed(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """The smoothed curve of many values, as in ``curves.png``; none for few values."""
    if len(points) < figures.FEW:
        return []
    values = [math.nan if value is None else value for _, value in points]
    means = figures.smoothed(values, window=len(points) // figures.SMOOTH_SHARE)
    return [(step, float(mean)) for (step, _), mean in zip(points, means, strict=True)]


def against_parent(trained: Recipe) -> tuple[str, list[tuple[str, str, str]]]:
    """The changes of a recipe relative to the shipped one of its name, or else to the most similar shipped one.

    Returns:
        The name of that recipe, and the keys that differ, with both values.
    """
    if trained.name in recipes.shipped():
        parent, words = recipes.load(trained.name), f"the shipped recipe '{trained.name}'"
    else:
        parent = min(map(recipes.load, recipes.shipped()), key=lambda each: len(comparing.differences(each, trained)))
        words = f"the shipped recipe '{parent.name}', the nearest one"
    changes = comparing.differences(parent, trained)
    return words, [(each.key, _cell(each.a), _cell(each.b)) for each in changes]


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Dotted keys whose values differ, and both values; ``–`` if one has none."""
    a, b = (dict(comparing.leaves(each)) for each in (first, second))
    return [(key, _cell(a.get(key)), _cell(b.get(key))) for key in {**a, **b} if a.get(key) != b.get(key)]


def environment(run: RunFolder) -> list[tuple[str, str]]:
    """Machine and versions of a run."""
    facts = dict(comparing.leaves(folders.read(run.path / "environment.json")))
    rows = [(key, _cell(value)) for key, value in facts.items() if value not in (None, [], "")]
    rows += [("data root", run.stored_data()["root"])] if run.stored_data() else []
    typed = run.path / "command.txt"
    return rows + ([("command", documents.read_text(typed).strip())] if typed.exists() else [])


def best_row(rows: Iterable[Facts]) -> Facts | None:
    """The row of the best validation."""
    scored = [row for row in rows if row.get("miou") is not None]
    return max(scored, key=lambda row: float(row["miou"])) if scored else None


def _tiles(run: RunFolder, rows: Sequence[Facts], trained: Recipe) -> list[tuple[str, str, str]]:
    top, steps = best_row(rows), [row for row in rows if "loss" in row]
    result = folders.read(run.result)
    tiles = (
        [("Best mIoU", f"{top['miou']:.2f}", f"step {top['step']:,}, on {trained.data.selection_split}")] if top else []
    )
    if steps:
        last = steps[-1]
        tiles.append(("Steps", f"{last['step']:,}", f"epoch {last['epoch'] + 1} of {trained.train.epochs}"))
        tiles.append(("Last loss", "–" if last["loss"] is None else f"{last['loss']:.3f}", ""))
        memory = [row["peak_memory_gb"] for row in steps if row.get("peak_memory_gb")]
        tiles += [("Peak memory", f"{max(memory):.2f} GB", "")] if memory else []
    if result:
        with documents.understood(run.result):
            tiles.append(("Time", duration(result["seconds"]), counted(result["scenes"], "scene")))
    tiles.append(("Data set", trained.data.dataset, ", ".join(trained.data.modalities)))
    tiles.append(("Backbone", trained.model.backbone, f"{trained.model.encoder}, {trained.train.precision}"))
    return tiles


def _run_warnings(run: RunFolder) -> list[str]:
    """Warnings for the reader: how the run ended, left-out scenes, resumes."""
    lines = [] if run.result.is_file() else [f"This run has not finished; continue with: {resume_command(run.path)}"]
    if run.diverged.is_file():
        lines.append("This run diverged; diverged.json names the scenes of that update.")
    for path, words in (
        (run.quarantine, "scenes could not be read and were left out"),
        (run.resumes, "times it was resumed"),
    ):
        if path.is_file() and (count := len(documents.read_json_lines(path))):
            lines.append(f"{count} {words} ({path.name}).")
    return lines


def _pictures(run: RunFolder) -> list[Facts]:
    """The run's samples, as far as there is space; for others the page shows the path (``src`` is empty)."""
    places = [(title, run.samples / name) for title, name in PICTURES.items()]
    entries: list[Facts] = []
    for title, path in places:
        if path.is_file():
            smaller = pictures.shrunk(pictures.as_picture(images.read(path)), smooth=True, long_side=PICTURE_SIDE)
            src = pages.data_uri(images.encode_jpeg(smaller, quality=pictures.QUALITY), kind="jpeg")
            has_room = sum(len(each["src"]) for each in entries) + len(src) <= PICTURE_ROOM
            entries.append({"title": title, "src": src if has_room else "", "file": f"{run.samples.name}/{path.name}"})
    return entries


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def gather_comparison(first: Path, second: Path) -> Facts:
    """The values of the template ``comparison``.

    Raises:
        UsageError: a prediction, or evaluations that cannot be compared.
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
    rows = [] if note else _class_rows(a, b)
    charts = []
    if len(runs) == 2:
        rows_of_runs = [("A", runs[0].read_metrics()), ("B", runs[1].read_metrics())]
        terms = [name for run in runs for name in recipes.load(run.path / RECIPE, is_stored=True).terms]
        charts = draw_all(rows_of_runs, tuple(dict.fromkeys(terms)))
        charts = [each for each in charts if not (apart and each.name == "miou")]
    sections = [("headline", "Headline"), ("classes", "Classes")] + [("sensors", "Sensors")] * bool(sensors["groups"])
    sections += [("curves", "Curves")] * bool(charts)
    return {
        "kind": "comparison",
        "title": f"{names[0]} against {names[1]}",
        "subtitle": "" if note else f"{a['dataset']} · {a['split']} · {result_pages.headline(a)}",
        "warnings": _comparison_warnings(apart, note if a and b else "", sensors["note"]),
        "sections": [*sections, ("differences", "What differs")],
        "names": names,
        "headline": _comparison_headline(a, b, runs, compared=not note, is_apart=bool(apart)),
        "rows": rows,
        "rows_note": f"There is nothing to compare class by class: {note}.",
        "sensors": sensors,
        "charts": charts,
        "differences": _what_differs(folder, *((a, b) if not note else sensors["between"])),
    }


def _evaluation(folder: Path) -> Facts:
    """The report of an evaluation, or of a run's newest one; empty if there is none."""
    place = folders.newest_evaluation(folder) if RunFolder(folder).holds_run() else folder
    return {} if place is None else folders.read(place / NAMES["metrics"])


def _why_not(a: Facts, b: Facts, folder: tuple[Path, Path]) -> str:
    """Why two evaluations cannot be compared; empty if they can."""
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
    """A message that two things have different subjects."""
    if isinstance(a, str) and isinstance(b, str) and len(a) < LONGEST_WORD:
        return f"the one is of {name} {a}, the other of {b}"
    return f"the one is of another {name} than the other"


def _evaluation_line(run: RunFolder) -> str:
    """The command that evaluates a run."""
    if not run.best.is_file():
        return f"it has no weights either, continue with: {resume_command(run.path)}"
    return f"type: {command('evaluate', '--weights', run.best)}"


def _trained_apart(first: RunFolder, second: RunFolder) -> str:
    """Why the validations of two runs cannot be compared; empty if they can."""
    data = [recipes.load(each.path / RECIPE, is_stored=True).data for each in (first, second)]
    stored = [each.stored_data().get("content_hash", "") for each in (first, second)]
    if data[0].dataset != data[1].dataset:
        return _differ("data set", data[0].dataset, data[1].dataset)
    if all(stored) and stored[0] != stored[1]:
        return _differ(f"content of data set {data[0].dataset}", *stored)
    if data[0].selection_split != data[1].selection_split:
        return _differ("selection split", data[0].selection_split, data[1].selection_split)
    return ""


def _comparison_warnings(apart: str, note: str, of_sensors: str) -> list[str]:
    """Warnings for the reader of a comparison."""
    lines = [f"These two runs do not compare: {apart}."] if apart else []
    lines += [f"Their evaluations do not compare: {note}."] * bool(note)
    return lines + [f"Their sets of sensors do not compare: {of_sensors}."] * bool(of_sensors)


def _sensors(folder: tuple[Path, Path], *, protocol: str | None) -> Facts:
    """The scores of both with missing sensors, if both have the benchmark ``any``.

    Args:
        folder: both.
        protocol: of the compared evaluations; None: that of the benchmarks.

    Returns:
        ``groups``, one for each way of replacing missing sensors (empty: nothing to compare); ``note``: why they are
        not compared, if both have the benchmark.
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
    """The folder of the benchmarks: for a run, its newest evaluation that has one."""
    if not RunFolder(folder).holds_run():
        return folder
    return folders.newest_evaluation(folder, name="robustness-any.json") or folder


def _group(name: str, a: Facts, b: Facts) -> Facts:
    """The sets of sensors of two models: the most important ones, and all."""
    pairs = list(zip(a["sets"], b["sets"], strict=True))
    worst = [min(each["sets"], key=lambda one: float(one["miou"])) for each in (a, b)]
    names = ["+".join(each["available"]) for each in worst]
    whose = names[0] if names[0] == names[1] else f"A: {names[0]}, B: {names[1]}"
    rows = [
        ("All sensors", a["sets"][0], b["sets"][0]),
        (f"Mean of {counted(len(pairs), 'set')}", a["average"], b["average"]),
        (f"Worst set ({whose})", *worst),
        # Sets are ordered by the missing sensors, so the first set with one sensor has the last sensor.
        *((f"{one['available'][0]} alone", one, other) for one, other in pairs[::-1] if len(one["available"]) == 1),
    ]
    widest = max(1.0, *(float(each["miou"]) for pair in pairs for each in pair))
    return {
        "title": f"Missing sensors are {'not fed' if name == 'dropped' else 'zeros'}",
        "rows": [
            {"name": what, "a": one["miou"], "b": other["miou"], "delta": other["miou"] - one["miou"]}
            for what, one, other in rows
        ],
        "bars": [{"name": "+".join(one["available"]), "a": one["miou"], "b": other["miou"]} for one, other in pairs],
        "scale": 100 / widest,
    }


def _class_rows(a: Facts, b: Facts) -> list[Facts]:
    """Class by class: both IoU and their difference; the largest loss first."""
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


def _comparison_headline(a: Facts, b: Facts, runs: list[RunFolder], *, compared: bool, is_apart: bool) -> list[Facts]:
    rows = []
    if compared:
        for key, name in MEANS.items():
            rows.append({"name": name, "a": f"{a[key]:.2f}", "b": f"{b[key]:.2f}", "delta": b[key] - a[key]})
        words = [", ".join(each["modalities"]) for each in (a, b)]
        rows.append({"name": "Modalities", "a": words[0], "b": words[1], "delta": None})
    if len(runs) == 2:
        best = [best_row(run.read_metrics()) for run in runs]
        cells = ["–" if each is None else f"{each['miou']:.2f} (step {each['step']:,})" for each in best]
        delta = best[1]["miou"] - best[0]["miou"] if best[0] and best[1] and not is_apart else None
        rows.append({"name": "Best validation mIoU", "a": cells[0], "b": cells[1], "delta": delta})
    return rows


def _what_differs(folder: tuple[Path, Path], a: Facts, b: Facts) -> list[tuple[str, str, str]]:
    """Values of the recipes and environments that differ."""
    if all(RunFolder(each).holds_run() for each in folder):
        first, second = (recipes.load(each / RECIPE, is_stored=True).model_dump(mode="json") for each in folder)
        around = [folders.read(each / "environment.json") for each in folder]
        return differences(first, second) + differences(around[0], around[1])
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
    return differences({key: a.get(key) for key in keys}, {key: b.get(key) for key in keys})


GATHER = {
    "training": gather_training,
    "evaluation": result_pages.gather_evaluation,
    "prediction": result_pages.gather_prediction,
}
