"""What the report of a training run says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from memorysam_cli import recipe as recipes
from memorysam_cli.engine.evaluate.result_files import NAMES
from memorysam_cli.engine.reporting import folders, result_pages
from memorysam_cli.engine.reporting.folders import Facts
from memorysam_cli.engine.run_folder import RECIPE, RunFolder, resume_command
from memorysam_cli.recipe import Recipe, comparing
from memorysam_cli.report import pages, pictures
from memorysam_cli.report.pages import Chart, Series
from memorysam_cli.storage import documents
from memorysam_cli.storage import images
from memorysam_cli.text import duration

ChartPlan = tuple[str, str, str, tuple[str, ...]]
"""Name, title, unit, and which values of ``metrics.jsonl`` a chart shows."""
TERMS = {"spmm": ("SPMM loss", "before its weight")}
"""Losses whose charts have another title than their name, and a unit."""
CHARTS: tuple[ChartPlan, ...] = (
    ("miou", "Validation", "per cent", ("miou", "miou_native", "mf1", "macc")),
    ("lr", "Learning rate", "", ("lr",)),
    ("gradient", "Gradient norm", "", ("gradient_norm",)),
    ("throughput", "Throughput", "scenes per second", ("scenes_per_second",)),
    ("memory", "Peak memory", "GB", ("peak_memory_gb",)),
)
"""The charts beside those of the losses."""
VALUE_NAMES = {"miou": "mIoU", "miou_native": "mIoU, native", "mf1": "mF1", "macc": "mAcc", "lr": "learning rate"}
"""Values by other names than their keys."""
FROM_ZERO = {"throughput", "memory", "miou"}
PICTURE_SIDE = 1600
"""Pixels: scenes side by side, with words that can be read."""
PICTURE_ROOM = 2_400_000
"""Characters for all pictures; an evaluation's scenes and the curves have room of their own."""
PICTURES = {
    "First batch, as the network saw it": "first-batch.png",
    "Validation scenes": "validation.png",
    "The same after the first validation": "validation-first.png",
}


def gather(folder: Path) -> Facts:
    """Everything that the template ``training`` shows of a run.

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
        "warnings": _warnings(run),
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

    The first loss is drawn with the sum, of which it is most; each other one has a chart of its own.
    """
    first, *further = terms
    losses: list[ChartPlan] = [("loss", "Loss", "", ("loss", first))]
    losses += [(name, *TERMS.get(name, (f"{name} loss", "")), (name,)) for name in further]
    return [*losses, *CHARTS]


def draw_all(runs: Sequence[tuple[str, Sequence[Facts]]], terms: Sequence[str]) -> list[Chart]:
    """Those of :func:`charts_of` that have a value; ``runs`` are name and rows of each."""
    return [chart for each in charts_of(terms) if (chart := draw(each, runs)) is not None]


def draw(what: ChartPlan, runs: Sequence[tuple[str, Sequence[Facts]]]) -> Chart | None:
    """One chart.

    Args:
        what: which.
        runs: name and rows of each; of several runs the first value alone is compared, under their names.
    """
    name, title, unit, keys = what
    keys = keys if len(runs) == 1 else keys[:1]
    series = [
        Series(label or VALUE_NAMES.get(key, key.replace("_", " ")), points, is_main=index == 0 or len(runs) > 1)
        for label, rows in runs
        for index, key in enumerate(keys)
        if (points := [(row["step"], row[key]) for row in rows if key in row])
    ]
    return pages.line_chart(name, title, series, unit=unit, zero=name in FROM_ZERO)


def against_parent(trained: Recipe) -> tuple[str, list[tuple[str, str, str]]]:
    """What a recipe changes against the shipped one of its name, or else against the shipped one that is nearest.

    Returns:
        Which one that is, and the keys that differ, with the parent's value and its own.
    """
    if trained.name in recipes.shipped():
        parent, words = recipes.load(trained.name), f"the shipped recipe '{trained.name}'"
    else:
        parent = min(map(recipes.load, recipes.shipped()), key=lambda each: len(comparing.differences(each, trained)))
        words = f"the shipped recipe '{parent.name}', the nearest one"
    changes = comparing.differences(parent, trained)
    return words, [(each.key, _cell(each.a), _cell(each.b)) for each in changes]


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Dotted keys whose values differ, and both values; ``–`` where one has none."""
    a, b = (dict(comparing.leaves(each)) for each in (first, second))
    return [(key, _cell(a.get(key)), _cell(b.get(key))) for key in {**a, **b} if a.get(key) != b.get(key)]


def environment(run: RunFolder) -> list[tuple[str, str]]:
    """Where and with what a run was made."""
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
            tiles.append(("Time", duration(result["seconds"]), f"{result['scenes']:,} scenes"))
    tiles.append(("Data set", trained.data.dataset, ", ".join(trained.data.modalities)))
    tiles.append(("Backbone", trained.model.backbone, f"{trained.model.encoder}, {trained.train.precision}"))
    return tiles


def _warnings(run: RunFolder) -> list[str]:
    """What a reader must know: how the run ended, what it left out, and that it was resumed."""
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
    """The run's samples, as far as there is room: of others the page says where they lie (``src`` is empty)."""
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
