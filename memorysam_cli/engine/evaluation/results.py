"""What ``memorysam evaluate`` hands out: the report, its files, and its tables on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from memorysam_cli.dataset import Modality
from memorysam_cli.engine import run_folder
from memorysam_cli.engine.evaluation.counts import Evaluation
from memorysam_cli.engine.evaluation.files import NAMES
from memorysam_cli.engine.evaluation.metrics import scores
from memorysam_cli.engine.evaluation.tally import PROTOCOLS
from memorysam_cli.engine.evaluation.views import View
from memorysam_cli.errors import MemorySamError, UsageError
from memorysam_cli.model.weights import WeightsCard
from memorysam_cli.report import console, figures
from memorysam_cli.storage import atomic, documents, lock

SCHEMA_VERSION = 1
SHOWN_SCENES = 5


def folder_for(
    weights: Path,
    *,
    run: Path | None,
    digest: str,
    split: str,
    card: WeightsCard,
    modalities: Sequence[Modality],
    view: View | None = None,
) -> Path:
    """Where results go: ``<run>/evaluate/<split>``, or ``<run>/evaluate/<name>/<split>`` for other than the best.

    Weights outside a run have ``evaluate/<name>-<the SHA-256's first digits>/<split>`` here: names such as ``best`` are
    many. A part of the modalities, and a view that is not the plain one, have a folder of their own inside, so that
    they never replace the full result.
    """
    if run is None:
        folder = Path("evaluate") / f"{weights.stem}-{digest[:8]}" / split
    else:
        is_best = weights.name == run_folder.RunFolder(run).best.name
        folder = run / "evaluate" / ("." if is_best else weights.stem) / split
    view = view or View()
    if len(modalities) < len(card.modalities):
        zeros = "-zero" if view.missing == "zero" else ""
        folder /= "+".join(modality.name for modality in modalities) + zeros
    if view.scales or view.tile:
        folder /= view.name
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder whose files would be replaced though no evaluation wrote them.

    Raises:
        UsageError: it holds such files, and neither a report nor the trace of a lock.
    """
    found = [name for name in NAMES.values() if (folder / name).exists()]
    if found and not (folder / lock.NAME).exists() and not _is_report(folder / NAMES["metrics"]):
        raise UsageError(f"--out {folder}: holds {found[0]}, which no evaluation wrote; give another folder")


def describe(evaluation: Evaluation, *, protocol: str, facts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The report: the content of ``metrics.json`` and of ``memorysam evaluate --json``, as docs/json.md lists it.

    Args:
        evaluation: the counts.
        protocol: the one whose scores stand at the top level.
        facts: what was scored on what, and how.
        folder: where the files will be.
    """
    both = evaluation.to_json()
    count = len(evaluation.classes)
    files = {key: str(folder / name) for key, name in NAMES.items()}
    return {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "protocol": protocol,
        **both[protocol],
        "protocols": both,
        "means": f"over all {count} classes, an empty one counts 0; …_present: over classes with ground truth",
        "laws": evaluation.laws,
        "files": {**files, "confusion": files[f"confusion_{protocol}"]},
    }


def write(report: dict[str, Any], evaluation: Evaluation, folder: Path) -> None:
    """Write a report's files: numbers as JSON and CSV, figures as PNG.

    Args:
        report: as of :func:`describe`.
        evaluation: what the report describes.
        folder: where; its files of these names are replaced.

    Raises:
        EnvironmentFault: they cannot be written.
    """
    names = [each["name"] for each in report["classes"]]
    title = f"{report['dataset']} {report['split']}, {report['protocol']} protocol: mIoU {report['miou']:.2f}"
    iou, pixels = ([each[key] for each in report["classes"]] for key in ("iou", "pixels"))
    bars = figures.per_class_bars(iou, classes=names, pixels=pixels, mean=report["miou"], title=title)
    atomic.write_text(folder / NAMES["per_class"], table(_per_class_rows(report)))
    atomic.write_text(folder / NAMES["breakdown"], table(_breakdown_rows(evaluation)))
    atomic.write_text(folder / NAMES["scenes"], table(_scene_rows(evaluation)))
    for protocol in PROTOCOLS:
        rows = _confusion_rows(evaluation.confusion(protocol), names)
        atomic.write_text(folder / NAMES[f"confusion_{protocol}"], table(rows))
    matrix = evaluation.confusion(report["protocol"]).numpy()
    atomic.write_bytes(folder / NAMES["confusion_figure"], figures.confusion_matrix(matrix, classes=names, title=title))
    atomic.write_bytes(folder / NAMES["per_class_figure"], bars)
    documents.write_json(folder / NAMES["metrics"], report)  # last: who finds it finds the others


def table(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def show(report: dict[str, Any]) -> None:
    """Print a report's tables and headline on stdout, and on stderr what flatters it."""
    for line in report["warnings"]:
        console.warn(line)
    scored = max(1, report["pixels"]["scored"])
    rows = [
        [each["name"], *_two(each, "iou", "f1", "accuracy"), f"{100 * each['pixels'] / scored:.2f}"]
        for each in report["classes"]
    ]
    rows.append(["mean", *_two(report, "miou", "mf1", "macc"), "100.00"])
    title = f"{report['dataset']} {report['split']}: per cent, {report['protocol']} protocol"
    console.table(["class", "IoU", "F1", "accuracy", "pixels %"], rows, title=title)
    _show_parts(report)
    _show_worst(report)
    for name, part in sorted(report["protocols"].items(), key=lambda item: item[0] != report["protocol"]):
        console.say(
            f"{name:<8}  mIoU {part['miou']:.2f}  mF1 {part['mf1']:.2f}  mAcc {part['macc']:.2f}  "
            f"(mIoU of the classes with ground truth {part['miou_present']:.2f})"
        )
    console.say(f"scenes    {report['scenes']} of {report['split']}, {', '.join(report['modalities'])}{_seen(report)}")
    console.say(f"weights   {report['weights']}")
    console.say(f"results   {Path(report['files']['metrics']).parent}")


def _is_report(path: Path) -> bool:
    """Whether a file is the report of an evaluation."""
    try:
        found = documents.read_json(path)
    except (MemorySamError, OSError):
        return False
    return isinstance(found, dict) and "weights_sha256" in found


def _seen(report: dict[str, Any]) -> str:
    """How the scenes were shown, where that is not the plain way."""
    words = ["others as zeros"] * (report["missing"] == "zero")
    if report["tta"]:
        words.append(f"scales {', '.join(f'{scale:g}' for scale in report['tta']['scales'])}, each also mirrored")
    if report["tile"]:
        words.append(f"windows of {report['tile']['window']} pixels")
    return f" ({'; '.join(words)})" if words else ""


def _show_parts(report: dict[str, Any]) -> None:
    """The breakdowns: a table each, and one of conditions against cases."""
    for label in ("splits", "conditions", "cases"):
        if len(report[label]) > (label == "splits"):  # a single split is the whole
            parts = [
                [name, part["scenes"], *_two(part, "miou", "miou_present", "mf1", "macc")]
                for name, part in report[label].items()
            ]
            console.table([label, "scenes", "mIoU", "mIoU of present", "mF1", "mAcc"], parts)
    if report["condition_cases"]:
        rows = [
            [condition, *(f"{cases[name]['miou']:.2f}" if name in cases else "–" for name in report["cases"])]
            for condition, cases in report["condition_cases"].items()
        ]
        console.table(["mIoU", *report["cases"]], rows)


def _show_worst(report: dict[str, Any]) -> None:
    """The scenes with the lowest scores."""
    if report["scenes"] > 1:
        rows = [
            [
                each["scene"],
                *(each[key] or "–" for key in ("condition", "case")),
                *_two(each, "miou_present", "accuracy"),
            ]
            for each in report["worst"][:SHOWN_SCENES]
        ]
        console.table(["worst scenes", "condition", "case", "mIoU of present", "accuracy"], rows)


def _two(values: dict[str, Any], *keys: str) -> list[str]:
    return [f"{values[key]:.2f}" for key in keys]


def _per_class_rows(report: dict[str, Any]) -> Iterable[Sequence[object]]:
    yield "protocol", "class", "iou", "f1", "accuracy", "pixels"
    for protocol, part in report["protocols"].items():
        for each in part["classes"]:
            yield protocol, each["name"], each["iou"], each["f1"], each["accuracy"], each["pixels"]
        yield protocol, "mean", part["miou"], part["mf1"], part["macc"], part["pixels"]["scored"]


def _breakdown_rows(evaluation: Evaluation) -> Iterable[Sequence[object]]:
    """The whole, then every part; an empty cell of split, condition or case means all; classes without union too."""
    means = ("miou", "miou_present", "mf1", "mf1_present", "macc", "macc_present")
    classes = [f"IoU {name}" for name in evaluation.classes]
    yield "protocol", "split", "condition", "case", "scenes", "pixels", *means, *classes
    for protocol in PROTOCOLS:
        for part in evaluation.parts():
            matrix = evaluation.confusion(protocol, **part._asdict())
            found = scores(matrix)
            is_empty = (matrix.sum(0) + matrix.sum(1) == 0).tolist()
            iou = [None if empty else value for value, empty in zip(found.iou, is_empty, strict=True)]
            told = found.means()
            yield (
                *(protocol, *part, evaluation.count(part), sum(found.pixels)),
                *(told[name] for name in means),
                *iou,
            )


def _scene_rows(evaluation: Evaluation) -> Iterable[Sequence[object]]:
    """A line per protocol and scene, in the order of the data set."""
    classes = [f"IoU {name}" for name in evaluation.classes]
    yield "protocol", "scene", "split", "condition", "case", "pixels", "accuracy", "miou_present", *classes
    for protocol in PROTOCOLS:
        for each in evaluation.scene_scores(protocol):
            scene = each.scene
            place = (protocol, scene.id, scene.split, scene.condition, scene.case)
            yield *place, each.pixels, each.accuracy, each.miou_present, *each.iou


def _confusion_rows(confusion: Tensor, names: Sequence[str]) -> Iterable[Sequence[object]]:
    yield "truth \\ prediction", *names
    for name, counts in zip(names, confusion.tolist(), strict=True):
        yield name, *counts
