"""What ``memorysam evaluate`` hands out: the report, its files, and its tables on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.dataset import Modality
from memorysam_cli.engine.evaluation import Evaluation
from memorysam_cli.model.weights import WeightsCard
from memorysam_cli.report import console, figures
from memorysam_cli.storage import atomic, documents, tensors

SCHEMA_VERSION = 1
NAMES = {
    "metrics": "metrics.json",
    "per_class": "per_class.csv",
    "confusion": "confusion.csv",
    "confusion_figure": "confusion.png",
    "per_class_figure": "per_class.png",
}
"""Key in the report's ``files`` → file name."""


def folder_for(
    weights: Path, *, run: Path | None, split: str, card: WeightsCard, modalities: Sequence[Modality]
) -> Path:
    """Where results go: ``<run>/evaluate/<split>``; weights outside a run have ``evaluate/<name>/<split>`` here.

    A part of the modalities gets a folder of its own inside, so that it never replaces the full result.
    """
    folder = (Path("evaluate") / weights.stem if run is None else run / "evaluate") / split
    if len(modalities) < len(card.modalities):
        folder /= "+".join(modality.name for modality in modalities)
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def facts(
    card: WeightsCard, *, weights: Path, manifest: Manifest, split: str, scenes: int, modalities: Sequence[Modality]
) -> dict[str, Any]:
    """What was scored on what: the part of a report that no pixel decides."""
    return {
        "dataset": manifest.info.name,
        "dataset_hash": manifest.info.content_hash,
        "split": split,
        "selection_split": card.recipe.data.selection_split,
        "scenes": scenes,
        "modalities": [modality.name for modality in modalities],
        "image_size": card.image_size,
        "weights": str(weights),
        "weights_sha256": tensors.sha256(weights),
    }


def describe(evaluation: Evaluation, *, protocol: str, facts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The report: the content of ``metrics.json`` and of ``memorysam evaluate --json``.

    Keys: ``schema_version``; those of :func:`facts`; ``protocol``, the one whose ``miou``, ``macc``, ``mf1``,
    ``miou_present`` (percent), ``classes``, ``conditions``, ``cases`` and ``pixels`` stand at the top level;
    ``protocols``, the same keys for each protocol; ``means``, the rule of the means in words; ``files``.
    """
    both = evaluation.to_json()
    count = len(evaluation.classes)
    return {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "protocol": protocol,
        **both[protocol],
        "protocols": both,
        "means": f"over all {count} classes, an empty one counts 0; miou_present: over classes with ground truth",
        "files": {key: str(folder / name) for key, name in NAMES.items()},
    }


def write(report: dict[str, Any], confusion: Tensor, folder: Path) -> None:
    """Write a report's files: numbers as JSON and CSV, figures as PNG.

    Args:
        report: as of :func:`describe`.
        confusion: (K, K) counts of the report's protocol.
        folder: where; its files of these names are replaced.

    Raises:
        EnvironmentFault: they cannot be written.
    """
    names = [each["name"] for each in report["classes"]]
    title = f"{report['dataset']} {report['split']}, {report['protocol']} protocol: mIoU {report['miou']:.2f}"
    iou, pixels = ([each[key] for each in report["classes"]] for key in ("iou", "pixels"))
    bars = figures.per_class_bars(iou, classes=names, pixels=pixels, mean=report["miou"], title=title)
    atomic.write_text(folder / NAMES["per_class"], _csv(_per_class_rows(report)))
    atomic.write_text(folder / NAMES["confusion"], _csv(_confusion_rows(confusion, names)))
    atomic.write_bytes(
        folder / NAMES["confusion_figure"], figures.confusion_matrix(confusion.numpy(), classes=names, title=title)
    )
    atomic.write_bytes(folder / NAMES["per_class_figure"], bars)
    documents.write_json(folder / NAMES["metrics"], report)  # last: who finds it finds the others


def show(report: dict[str, Any]) -> None:
    """Print a report's tables and headline on stdout, and on stderr what flatters it."""
    if report["split"] == report["selection_split"]:
        console.note(
            f"'{report['split']}' also chose these weights among the epochs, which flatters them; "
            "a split that training never saw gives the unbiased figure"
        )
    scored = max(1, report["pixels"]["scored"])
    rows = [
        [each["name"], *_two(each, "iou", "f1", "accuracy"), f"{100 * each['pixels'] / scored:.2f}"]
        for each in report["classes"]
    ]
    rows.append(["mean", *_two(report, "miou", "mf1", "macc"), "100.00"])
    title = f"{report['dataset']} {report['split']}: per cent, {report['protocol']} protocol"
    console.table(["class", "IoU", "F1", "accuracy", "pixels %"], rows, title=title)
    for label in ("conditions", "cases"):
        if report[label]:
            groups = [
                [name, part["scenes"], *_two(part, "miou", "miou_present", "mf1", "macc")]
                for name, part in report[label].items()
            ]
            console.table([label, "scenes", "mIoU", "mIoU of present", "mF1", "mAcc"], groups)
    for name, part in sorted(report["protocols"].items(), key=lambda item: item[0] != report["protocol"]):
        console.say(
            f"{name:<8}  mIoU {part['miou']:.2f}  mF1 {part['mf1']:.2f}  mAcc {part['macc']:.2f}  "
            f"(mIoU of the classes with ground truth {part['miou_present']:.2f})"
        )
    console.say(f"scenes    {report['scenes']} of {report['split']}, {', '.join(report['modalities'])}")
    console.say(f"weights   {report['weights']}")
    console.say(f"results   {Path(report['files']['metrics']).parent}")


def _two(values: dict[str, Any], *keys: str) -> list[str]:
    return [f"{values[key]:.2f}" for key in keys]


def _per_class_rows(report: dict[str, Any]) -> Iterable[Sequence[object]]:
    yield "protocol", "class", "iou", "f1", "accuracy", "pixels"
    for protocol, part in report["protocols"].items():
        for each in part["classes"]:
            yield protocol, each["name"], each["iou"], each["f1"], each["accuracy"], each["pixels"]
        yield protocol, "mean", part["miou"], part["mf1"], part["macc"], part["pixels"]["scored"]


def _confusion_rows(confusion: Tensor, names: Sequence[str]) -> Iterable[Sequence[object]]:
    yield "truth \\ prediction", *names
    for name, counts in zip(names, confusion.tolist(), strict=True):
        yield name, *counts


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
