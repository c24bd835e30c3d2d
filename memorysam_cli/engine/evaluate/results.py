"""The results of ``memorysam evaluate``: the report, its files, pictures of scenes, and tables on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memorysam_cli.data.decode import read_sample
from memorysam_cli.data.loader import ScoredScene, scored_scenes
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.evaluate.counts import PROTOCOLS, Evaluation, SceneScore, scores
from memorysam_cli.engine.evaluate.result_files import GALLERY, NAMES
from memorysam_cli.engine.infer.decision import own_rows
from memorysam_cli.engine.infer.inference import Inference, inference_mode
from memorysam_cli.engine.infer.views import Network
from memorysam_cli.report import console, figures, pictures
from memorysam_cli.report.pictures import Gallery, GalleryScene, Rank
from memorysam_cli.storage import atomic, documents
from memorysam_cli.text import shown

SCHEMA_VERSION = 1
SHOWN_SCENES = 5
PICTURED = 4
"""Number of worst, and of best, scenes in the gallery."""
FORMULA_LETTERS = ("=", "+", "-", "@", "\t")
"""First characters that a spreadsheet takes for a formula."""


def describe(evaluation: Evaluation, *, protocol: str, facts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The report: the content of ``metrics.json`` and of ``memorysam evaluate --json``, as docs/json.md lists it.

    Args:
        evaluation: the counts.
        protocol: the protocol of the scores at the top level.
        facts: data, weights and settings.
        folder: the folder of the files.
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
        report: from :func:`describe`.
        evaluation: the evaluation of the report.
        folder: its files of these names are replaced.

    Raises:
        EnvironmentFault: they cannot be written.
    """
    names = [each["name"] for each in report["classes"]]
    title = f"{report['dataset']} {report['split']}, {report['protocol']} protocol: mIoU {report['miou']:.2f}"
    iou, pixels = ([each[key] for each in report["classes"]] for key in ("iou", "pixels"))
    bars = figures.per_class_bars(iou, classes=names, pixels=pixels, mean=report["miou"], title=title)
    atomic.write_text(folder / NAMES["per_class"], csv_text(_per_class_rows(report)))
    atomic.write_text(folder / NAMES["breakdown"], csv_text(_breakdown_rows(evaluation)))
    atomic.write_text(folder / NAMES["scenes"], csv_text(_scene_rows(evaluation)))
    for protocol in PROTOCOLS:
        rows = _confusion_rows(evaluation.confusion(protocol), names)
        atomic.write_text(folder / NAMES[f"confusion_{protocol}"], csv_text(rows))
    matrix = evaluation.confusion(report["protocol"]).numpy()
    atomic.write_bytes(folder / NAMES["confusion_figure"], figures.confusion_matrix(matrix, classes=names, title=title))
    atomic.write_bytes(folder / NAMES["per_class_figure"], bars)
    documents.write_json(folder / NAMES["metrics"], report)  # last: if it exists, the others do


def _per_class_rows(report: dict[str, Any]) -> Iterable[Sequence[object]]:
    yield "protocol", "class", "iou", "f1", "accuracy", "pixels"
    for protocol, part in report["protocols"].items():
        for each in part["classes"]:
            yield protocol, each["name"], each["iou"], each["f1"], each["accuracy"], each["pixels"]
        yield protocol, "mean", part["miou"], part["mf1"], part["macc"], part["pixels"]["scored"]


def _breakdown_rows(evaluation: Evaluation) -> Iterable[Sequence[object]]:
    """The whole, then every subset. An empty cell of split, condition or case means all. Classes without union are
    included."""
    means = ("miou", "miou_present", "mf1", "mf1_present", "macc", "macc_present")
    classes = [f"IoU {name}" for name in evaluation.classes]
    yield "protocol", "split", "condition", "case", "scenes", "pixels", *means, *classes
    for protocol in PROTOCOLS:
        for subset in evaluation.subsets():
            matrix = evaluation.confusion(protocol, **subset._asdict())
            values = scores(matrix)
            is_empty = (matrix.sum(0) + matrix.sum(1) == 0).tolist()
            iou = [None if empty else value for value, empty in zip(values.iou, is_empty, strict=True)]
            by_name = values.means()
            yield (
                *(protocol, *subset, evaluation.count(subset), sum(values.pixels)),
                *(by_name[name] for name in means),
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


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV. None is an empty cell. Names are escaped, so that none is a formula in a spreadsheet or controls a
    terminal."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_harmless(cell) for cell in row] for row in rows)
    return text.getvalue()


def _harmless(cell: object) -> object:
    """A cell; text that a spreadsheet would compute gets an apostrophe in front."""
    if not isinstance(cell, str):
        return cell
    words = shown(cell, keep="\n\t")
    return f"'{words}" if words.startswith(FORMULA_LETTERS) else words


def write_pictures(
    folder: Path,
    evaluation: Evaluation,
    manifest: Manifest,
    *,
    protocol: str,
    each: int,
    network: Network,
    inference: Inference,
) -> None:
    """Segment the worst and best scenes again, at their labels' own size, and store the frames and the predictions.

    Args:
        folder: of the results; an existing gallery is replaced or removed, because it belongs to other weights.
        evaluation: has the scores of the scenes.
        manifest: the data set of the scenes.
        protocol: whose scores rank the scenes.
        each: number of worst, and of best, scenes; 0: no gallery.
        network: as in the evaluation.
        inference: as in the evaluation.

    Raises:
        DataError: a file can no longer be used.
        EnvironmentFault: the pictures cannot be written.
    """
    chosen, place = extremes(evaluation.scene_scores(protocol), each=each), folder / GALLERY
    pictures.clear_gallery(place)
    if not chosen:
        return
    atomic.make_folder(place)
    source = scored_scenes(
        manifest, scenes=[score.scene for score, _ in chosen], modalities=inference.modalities,
        size=inference.image_size, workers=0, tile=inference.view.tile,
    )  # fmt: skip
    info, stored = manifest.info, []
    for number, ((score, rank), seen) in enumerate(zip(chosen, source, strict=True)):
        scene = score.scene
        prediction, confidence = _predict(network, seen, inference)
        sample = read_sample(manifest.root, scene, modalities=inference.modalities, labels=info)
        layers = pictures.gallery_layers(
            sample.frames, prediction, palette=info.palette, label=sample.label, confidence=confidence
        )
        stored.append(
            GalleryScene(
                scene.id, scene.split, scene.condition, scene.case, rank, score.miou_present, score.accuracy,
                sample.size, pictures.store_layers(place, number, layers),
            )
        )  # fmt: skip
    pictures.write_gallery(place, Gallery(info.classes, tuple(info.palette), tuple(stored)))


def extremes(scene_scores: Sequence[SceneScore], *, each: int) -> list[tuple[SceneScore, Rank]]:
    """The worst scenes, then the best ones, by the mean IoU of the classes in their labels.

    Args:
        scene_scores: of all scenes.
        each: largest number of worst, and of best, scenes. No scene occurs twice; scenes without a labeled pixel are
            left out.
    """
    ranked = sorted((score for score in scene_scores if score.pixels), key=lambda score: score.miou_present)
    worst = ranked[: min(each, (len(ranked) + 1) // 2)]
    best = ranked[len(worst) :][-each:][::-1] if each else []
    return [(score, "worst") for score in worst] + [(score, "best") for score in best]


def _predict(network: Network, seen: ScoredScene, inference: Inference) -> tuple[pictures.Mask, pictures.Confidence]:
    """The class of each pixel at the scene's own size, and its probability."""
    label = seen.whole.label
    assert label is not None  # scored scenes have one
    height, width = label.shape[-2:]
    classes = torch.empty(height, width, dtype=torch.uint8)
    shares = torch.empty(height, width)
    with inference_mode(network), inference.computing():
        shown = inference.shown(network, is_large=seen.is_large)
        logits = inference.logits(shown, [seen.whole.frames]).float()[0]
        for rows, some in own_rows(logits, height=height, width=width):
            best = some.softmax(0).max(0)
            classes[rows], shares[rows] = best.indices.cpu().byte(), best.values.cpu()
    return classes.numpy(), shares.numpy()


def show(report: dict[str, Any]) -> None:
    """Print a report's tables and main scores on stdout, and warnings about too optimistic scores on stderr."""
    for line in report["warnings"]:
        console.warn(line)
    if not report["pixels"]["scored"]:
        console.warn(f"no labeled pixel in '{report['split']}': every score is 0 and means nothing")
    scored = max(1, report["pixels"]["scored"])
    rows = [
        [each["name"], *_two_decimals(each, "iou", "f1", "accuracy"), f"{100 * each['pixels'] / scored:.2f}"]
        for each in report["classes"]
    ]
    rows.append(["mean", *_two_decimals(report, "miou", "mf1", "macc"), "100.00"])
    title = f"{report['dataset']} {report['split']}: %, {report['protocol']} protocol"
    console.table(["class", "IoU", "F1", "accuracy", "pixels %"], rows, title=title)
    _show_parts(report)
    _show_worst(report)
    for name, part in sorted(report["protocols"].items(), key=lambda item: item[0] != report["protocol"]):
        present = f"{part['miou_present']:.2f}"  # equal if each class is present
        console.say(
            f"{name:<8}  mIoU {part['miou']:.2f}  mF1 {part['mf1']:.2f}  mAcc {part['macc']:.2f}"
            + (f"  (mIoU of present classes {present})" if present != f"{part['miou']:.2f}" else "")
        )
    console.say(f"scenes    {report['scenes']} of {report['split']}, {', '.join(report['modalities'])}{_seen(report)}")
    console.say(f"weights   {report['weights']}")
    console.say(f"results   {Path(report['files']['metrics']).parent}")


def _seen(report: dict[str, Any]) -> str:
    """How the scenes were shown, if not in the default way."""
    words = ["others as zeros"] * (report["missing"] == "zero")
    if report["tta"]:
        words.append(f"scales {', '.join(f'{scale:g}' for scale in report['tta']['scales'])}, each also mirrored")
    if report["tile"]:
        words.append(f"windows of {report['tile']['window']} pixels")
    return f" ({'; '.join(words)})" if words else ""


def _show_parts(report: dict[str, Any]) -> None:
    """Print the breakdowns: a table each, and one of conditions against cases."""
    for label in ("splits", "conditions", "cases"):
        if len(report[label]) > (label == "splits"):  # a single split is the same as the whole
            parts = [
                [name, part["scenes"], *_two_decimals(part, "miou", "miou_present", "mf1", "macc")]
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
    """Print the scenes with the lowest scores."""
    if report["scenes"] > 1:
        rows = [
            [
                each["scene"],
                *(each[key] or "–" for key in ("condition", "case")),
                *_two_decimals(each, "miou_present", "accuracy"),
            ]
            for each in report["worst"][:SHOWN_SCENES]
        ]
        console.table(["worst scenes", "condition", "case", "mIoU of present", "accuracy"], rows)


def _two_decimals(values: dict[str, Any], *keys: str) -> list[str]:
    return [f"{values[key]:.2f}" for key in keys]
