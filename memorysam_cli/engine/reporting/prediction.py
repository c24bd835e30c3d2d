"""What the report of a prediction says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memorysam_cli.engine.prediction import folder as predictions
from memorysam_cli.engine.reporting import documents, scenes
from memorysam_cli.errors import MemorySamError
from memorysam_cli.report import galleries, overlays, pages
from memorysam_cli.storage import documents as files
from memorysam_cli.storage import images

Facts = dict[str, Any]
SCENES = 12
"""Of the gallery, spread evenly over the prediction."""
SHOWN_FAILURES = 200
SECTIONS = (
    ("scenes", "Scenes"),
    ("classes", "Class shares"),
    ("left-out", "Left out"),
    ("provenance", "Provenance"),
)


def gather(folder: Path) -> Facts:
    """Everything that the template ``prediction`` shows of a folder of masks.

    Raises:
        DataError: a file is damaged, or was written by another version.
    """
    path = folder / predictions.SUCCESS
    report = documents.read(path)
    ledger = folder / predictions.LEDGER
    with documents.understood(ledger):
        done, failed, failures, chosen = _read(ledger)
    with documents.understood(path if report else folder / predictions.CLASSES):
        classes = report.get("classes") or files.read_json(folder / predictions.CLASSES)
        shares = _shares(classes)
        legend = [{"name": each["name"], "color": each["color"]} for each in classes]
        palette = [tuple(each["color"]) for each in classes]
        found, note = scenes.fitting([_scene(folder, line, report, palette=palette) for line in chosen])
        return {
            "kind": "prediction",
            "title": str(report.get("dataset") or folder.resolve().name),
            "subtitle": ", ".join(report.get("modalities", [])),
            "warnings": [] if report else ["This prediction is not complete: it has no _SUCCESS.json."],
            "sections": SECTIONS,
            "tiles": [
                ("Scenes done", f"{done:,}", ""),
                ("Left out", f"{failed:,}", ""),
                ("Classes found", str(sum(1 for each in shares if each["pixels"])), f"of {len(classes)}"),
                ("Pixels", f"{sum(each['pixels'] for each in shares):,}", ""),
            ],
            "scenes": found,
            "scenes_note": note or ("" if found else "No scene was predicted."),
            "legend": legend,
            "shares": shares if report else [],
            "failures": failures,
            "failures_more": max(0, failed - len(failures)),
            "provenance": _provenance(report),
        }


def _read(ledger: Path) -> tuple[int, int, list[Facts], list[Facts]]:
    """How many scenes are done and left out, the first of these, and those of the gallery; in bounded memory."""
    done = sum(1 for line in _lines(ledger) if line["status"] == "done")
    wanted = {index * done // SCENES for index in range(SCENES)}
    chosen: list[Facts] = []
    failures: list[Facts] = []
    place = failed = 0
    for line in _lines(ledger):
        if line["status"] == "done":
            chosen += [line] * (place in wanted)
            place += 1
        else:
            failed += 1
            failures += [{"id": line["id"], "error": line["error"]}] * (len(failures) < SHOWN_FAILURES)
    return done, failed, failures, chosen


def _lines(ledger: Path) -> Iterator[Facts]:
    return files.each_json_line(ledger) if ledger.is_file() else iter(())


def _shares(classes: Sequence[Facts]) -> list[Facts]:
    total = max(1, sum(each.get("pixels", 0) for each in classes))
    return [{**each, "pixels": each.get("pixels", 0), "share": 100 * each.get("pixels", 0) / total} for each in classes]


def _scene(folder: Path, line: Facts, report: Facts, *, palette: Sequence[overlays.Colour]) -> Facts:
    """A scene's sensors as far as their files are still there, its mask, and its confidence if that was kept."""
    layers = []
    for name, paths in line["inputs"].items():
        shown = _frame(Path(report.get("inputs", ".")) / paths[0])
        layers += [] if shown is None else [_layer(name, name, shown, kind="jpeg")]
    mask = images.read(folder / line["mask"])
    layers.append(_layer("prediction", "Prediction", overlays.colour(galleries.shrunk(mask), palette), kind="png"))
    if "confidence" in line:
        sure = galleries.shrunk(images.read(folder / line["confidence"]))
        layers.append(_layer("confidence", "Confidence", galleries.heat((sure / 255).astype(np.float32)), kind="png"))
    missing = [] if len(layers) > 1 else ["its sensors' files are not there any more"]
    size = f"{line['size'][1]} × {line['size'][0]}"
    return scenes.scene(line["id"], [size, *missing], layers)


def _frame(path: Path) -> overlays.Picture | None:
    """A sensor's file as a small picture; None where it is gone, or cannot be read any more."""
    try:
        return galleries.shrunk(overlays.as_picture(images.read(path)), smooth=True)
    except (MemorySamError, OSError):
        return None


def _layer(key: str, title: str, picture: overlays.Picture, *, kind: str) -> dict[str, str]:
    data = images.encode_png(picture) if kind == "png" else images.encode_jpeg(picture, quality=galleries.QUALITY)
    return {"key": key, "title": title, "src": pages.data_uri(data, kind=kind)}


def _provenance(report: Facts) -> list[tuple[str, str]]:
    if not report:
        return []
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    return [
        ("Scenes", str(report["inputs"])),
        ("Weights", str(report["weights"])),
        ("SHA-256 of the weights", report["weights_sha256"]),
        ("Image size", f"{report['image_size']} pixels, short side"),
        ("Device and precision", f"{report['device']}, {report['precision']}"),
        ("Versions", versions),
    ]
