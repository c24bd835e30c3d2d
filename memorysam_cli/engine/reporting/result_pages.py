"""The content of reports on results: an evaluation, robustness benchmarks alone, and a prediction."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memorysam_cli.data.decode import find_invalid
from memorysam_cli.dataset import Modality, is_inside
from memorysam_cli.engine.evaluate.result_files import GALLERY, NAMES
from memorysam_cli.engine.predict import files as predictions
from memorysam_cli.engine.reporting import folders
from memorysam_cli.engine.reporting.folders import Facts
from memorysam_cli.errors import MemorySamError
from memorysam_cli.report import pages, pictures
from memorysam_cli.storage import documents, images
from memorysam_cli.text import counted

PARTS = {"conditions": "Condition", "cases": "Failure", "splits": "Split"}
BENCHMARKS = {
    "any": "Any sensors",
    "emm": "Entirely missing sensors",
    "rmm": "Randomly missing elements",
    "nm": "Noisy sensors",
}
LEVEL_OF = {"drop": "dropped", "zero": "zeroed"}
"""The name of the single level of a benchmark ``any``, by how a missing sensor was replaced."""
ANY = Modality(name="any", kind="depth")
"""Stands for the modality of a file whose meaning is unknown; only the file's own nodata values count."""
GRAY = [128, 128, 128]
SHOWN_SCENES = 12
"""Number of scenes in the gallery, spread evenly over the prediction."""
SHOWN_FAILURES = 200
PREDICTION_SECTIONS = (
    ("scenes", "Scenes"),
    ("classes", "Class shares"),
    ("left-out", "Left out"),
    ("provenance", "Provenance"),
)


def gather_evaluation(folder: Path) -> Facts:
    """The values of the template ``evaluation`` for a folder of results.

    Raises:
        DataError: a file is damaged, or was written by another version.
    """
    path = folder / NAMES["metrics"]
    report = folders.read(path)
    if not report:
        return _of_robustness(folder)
    with documents.understood(path):
        shown = section(folder, report)
        return {
            "kind": "evaluation",
            "title": f"{report['dataset']} · {report['split']}",
            "subtitle": shown["headline"],
            "warnings": report["warnings"],
            "sections": [*sections(shown), ("provenance", "Provenance")],
            "tiles": tiles(report),
            "evaluation": shown,
            "provenance": _evaluation_provenance(report),
        }


def _of_robustness(folder: Path) -> Facts:
    """A folder that has only benchmarks."""
    path = min(folder.glob("robustness-*.json"))
    report = folders.read(path)
    with documents.understood(path):
        return {
            "kind": "robustness",
            "title": f"{report['dataset']} · {report['split']}",
            "subtitle": f"{counted(report['scenes'], 'scene')} · {', '.join(report['modalities'])}",
            "warnings": report["warnings"],
            "sections": [("sensors", "Sensors"), ("provenance", "Provenance")],
            "groups": _benchmarks(folder, digest=None),
            "provenance": _evaluation_provenance(report),
        }


def section(folder: Path, report: Facts) -> Facts:
    """The evaluation's part of a page: classes, confusion, conditions, sensors and scenes."""
    classes = class_rows(report)
    scenes, note = folders.gallery_scenes(folder / GALLERY)
    return {
        "headline": headline(report),
        "miou": report["miou"],
        "classes": classes,
        "matrix": _matrix(folder, report),
        "parts": _parts(report),
        "heat": _heat(report),
        "sensors": _sensors(folder, report),
        "scenes": scenes,
        "scenes_note": note,
        "legend": classes,
        "worst": report["worst"] if report["scenes"] > 1 else [],
    }


def sections(shown: Facts) -> list[tuple[str, str]]:
    """Ids and names of the sections of :func:`section`."""
    names = [("classes", "Classes"), ("confusion", "Confusion")]
    names += [("conditions", "Conditions")] * bool(shown["parts"]) + [("sensors", "Sensors")] * bool(shown["sensors"])
    return [*names, ("scenes", "Scenes")]


def headline(report: Facts) -> str:
    """The subject of the scores, in a line."""
    words = [f"{report['protocol']} protocol", counted(report["scenes"], "scene"), ", ".join(report["modalities"])]
    return " · ".join([*words, *way_of_looking(report, "missing modalities as zeros")])


def way_of_looking(report: Facts, zeros: str) -> list[str]:
    """How an evaluation differs from the default settings; empty if it does not.

    Args:
        report: of an evaluation.
        zeros: the words for missing modalities that are replaced by zeros.
    """
    words = ["test-time augmentation"] if report["tta"] else []
    words += ["tiled"] if report["tile"] else []
    words += [zeros] if report["missing"] == "zero" else []
    return words + ([report["precision"]] if report.get("precision", "fp32") != "fp32" else [])


def tiles(report: Facts) -> list[tuple[str, str, str]]:
    """The main scores: name, value, small print."""
    other = "native" if report["protocol"] == "resized" else "resized"
    second = report["protocols"][other]
    absent = sum(1 for each in report["classes"] if not each["pixels"])
    small = (
        f"{report['miou_present']:.2f} over those with ground truth"
        if absent
        else f"over {counted(len(report['classes']), 'class')}"
    )
    return [
        ("mIoU", f"{report['miou']:.2f}", small),
        ("mF1", f"{report['mf1']:.2f}", ""),
        ("mAcc", f"{report['macc']:.2f}", ""),
        (f"mIoU, {other} protocol", f"{second['miou']:.2f}", ""),
        ("Scenes", f"{report['scenes']:,}", f"of {report['split']}"),
        ("Pixels scored", f"{report['pixels']['scored']:,}", f"{report['pixels']['ignored']:,} ignored"),
    ]


def class_rows(report: Facts) -> list[Facts]:
    """The classes with their colors and shares of the pixels, in %."""
    scored = max(1, report["pixels"]["scored"])
    colors = report.get("palette") or [GRAY] * len(report["classes"])
    return [
        {**each, "color": list(map(int, color)), "share": 100 * each["pixels"] / scored}
        for each, color in zip(report["classes"], colors, strict=True)
    ]


def _matrix(folder: Path, report: Facts) -> Any:
    path = folder / NAMES[f"confusion_{report['protocol']}"]
    if not path.is_file():
        return None
    with documents.understood(path):
        text = io.StringIO(documents.read_text(path, limit=documents.MAX_JSON_BYTES), newline="")
        try:
            counts = [[int(value) for value in row[1:]] for row in list(csv.reader(text))[1:]]
        except csv.Error as error:
            raise ValueError(str(error)) from error
        names = [each["name"] for each in report["classes"]]
        if [len(row) for row in counts] != [len(names)] * len(names):
            raise ValueError(f"not {len(names)} rows and columns")
    return pages.matrix_layout(counts, names=names)


def _parts(report: Facts) -> list[Facts]:
    """Tables of conditions, failures and splits; without that of a single split."""
    return [
        {"name": name, "rows": [{"name": label, **part} for label, part in report[key].items()]}
        for key, name in PARTS.items()
        if len(report[key]) > (key == "splits")
    ]


def _heat(report: Facts) -> Facts | None:
    """mIoU of each condition under each failure."""
    rows = [
        {"name": condition, "cells": [_heat_cell(by_case.get(case)) for case in report["cases"]]}
        for condition, by_case in report["condition_cases"].items()
    ]
    return {"columns": list(report["cases"]), "rows": rows} if rows else None


def _heat_cell(part: Mapping[str, Any] | None) -> Facts | None:
    if part is None:
        return None
    return {"miou": part["miou"], "scenes": part["scenes"], "level": min(9, int(part["miou"] // 10))}


def _sensors(folder: Path, report: Facts) -> list[Facts]:
    """Bars of the mIoU with some of the sensors: from evaluations inside the folder, and from the benchmarks."""
    rows = [{"name": _look_name(report), "value": report["miou"]}]
    for path in sorted(folder.glob(f"*/{NAMES['metrics']}")):
        part = folders.read(path)
        with documents.understood(path):
            row = {"name": _look_name(part), "value": float(part["miou"])}
        # Old results of other weights or scenes in the folder cannot be compared.
        if all(part.get(key) == report.get(key) for key in ("weights_sha256", "split_sha256", "protocol")):
            rows.append(row)
    groups = [{"title": "Sensors and settings", "note": "", "rows": _descending(rows)}] if len(rows) > 1 else []
    return groups + _benchmarks(folder, digest=report["weights_sha256"])


def _look_name(report: Facts) -> str:
    """The sensors of an evaluation, and its settings if they are not the default."""
    words = way_of_looking(report, "others as zeros")
    return "+".join(report["modalities"]) + (f" ({', '.join(words)})" if words else "")


def _benchmarks(folder: Path, *, digest: str | None) -> list[Facts]:
    """The robustness benchmarks of a folder, a group for each level."""
    groups = []
    for path in sorted(folder.glob("robustness-*.json")):
        benchmark = folders.read(path)
        with documents.understood(path):
            if digest not in (None, benchmark["weights_sha256"]):
                continue
            for level in benchmark["levels"]:
                name = " · ".join(word for word in (BENCHMARKS[benchmark["robustness"]], level["level"]) if word)
                mean = f"Average {level['average']['miou']:.2f}." if level["average"] else ""
                rows = [
                    {"name": _set_name(each, kind=benchmark["robustness"]), "value": each["miou"]}
                    for each in level["sets"]
                ]
                groups.append(
                    {
                        "title": name,
                        "note": f"mIoU in %, {benchmark['protocol']} protocol. {mean}",
                        "rows": _descending(rows),
                    }
                )
    return groups


def subset_levels(folder: Path, *, protocol: str | None = None) -> tuple[Facts, dict[str, Facts]]:
    """The benchmark ``any`` of a folder: its report, and its levels ``dropped`` and ``zeroed``, if it has them.

    Args:
        folder: of results.
        protocol: of the scores; None: that of the first benchmark.

    Raises:
        DataError: a file is damaged, or was written by another version.
    """
    found: Facts = {}
    levels: dict[str, Facts] = {}
    for path in sorted(folder.glob("robustness-any*.json")):
        benchmark = folders.read(path)
        with documents.understood(path):
            if benchmark["protocol"] != (protocol or benchmark["protocol"]):
                continue
            found = found or benchmark
            if any(benchmark[key] != found[key] for key in ("weights_sha256", "split_sha256", "protocol")):
                continue  # old results of other weights
            for level in benchmark["levels"]:  # without a name in earlier versions, and if only one was requested
                levels.setdefault(level["level"] or LEVEL_OF[benchmark["missing"]], level)
    return found, levels


def _set_name(sensors: Mapping[str, Any], *, kind: str) -> str:
    """The sensors of a benchmark's row: those that are fed, or those that fail."""
    if kind in ("any", "emm") or not sensors["missing"]:
        return "+".join(sensors["available"])
    return f"failing: {', '.join(sensors['missing'])}"


def _descending(rows: Iterable[Facts]) -> list[Facts]:
    return sorted(rows, key=lambda row: -row["value"])


def _evaluation_provenance(report: Facts) -> Sequence[tuple[str, str]]:
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    splits = ", ".join(f"{name} {digest[:12]}" for name, digest in report["split_sha256"].items())
    return [
        ("Weights", str(report["weights"])),
        ("SHA-256 of the weights", report["weights_sha256"]),
        ("Data set", f"{report['dataset']}, content {report['dataset_hash'][:12]}, scenes {splits}"),
        ("Image size", f"{report['image_size']} pixels, short side"),
        ("Device and precision", f"{report['device']}, {report['precision']}"),
        ("Versions", versions),
    ]


def gather_prediction(folder: Path) -> Facts:
    """The values of the template ``prediction`` for a folder of masks.

    Raises:
        DataError: a file is damaged, or was written by another version.
    """
    path = folder / predictions.SUCCESS
    report = folders.read(path)
    ledger = folder / predictions.LEDGER
    with documents.understood(ledger):
        done, failed, failures, chosen = _ledger(ledger)
    with documents.understood(path if report else folder / predictions.CLASSES):
        classes = report.get("classes") or documents.read_json(folder / predictions.CLASSES)
        shares = _shares(classes, others=report.get("unsure_pixels", 0))
        legend = [{"name": each["name"], "color": each["color"]} for each in classes]
        palette = [tuple(each["color"]) for each in classes]
        with documents.understood(ledger):
            shown = [_prediction_scene(folder, line, report, palette=palette) for line in chosen]
        scenes, note = folders.fitting(shown)
        return {
            "kind": "prediction",
            "title": str(report.get("dataset") or folder.resolve().name),
            "subtitle": ", ".join(report.get("modalities", [])),
            "warnings": [] if report else ["This prediction is not complete: it has no _SUCCESS.json."],
            "sections": PREDICTION_SECTIONS,
            "tiles": [
                ("Scenes done", f"{done:,}", ""),
                ("Left out", f"{failed:,}", ""),
                ("Classes found", str(sum(1 for each in shares if each["pixels"])), f"of {len(classes)}"),
                ("Pixels", f"{sum(each['pixels'] for each in shares):,}", ""),
            ],
            "scenes": scenes,
            "scenes_note": note or ("" if scenes else "No scene was predicted."),
            "legend": legend,
            "shares": shares if report else [],
            "failures": failures,
            "failures_more": max(0, failed - len(failures)),
            "provenance": _prediction_provenance(report),
        }


def _ledger(ledger: Path) -> tuple[int, int, list[Facts], list[Facts]]:
    """The numbers of done and left-out scenes, the first left-out ones, and the scenes of the gallery; in bounded
    memory."""
    done = sum(1 for line in _lines(ledger) if line["status"] == "done")
    wanted = {index * done // SHOWN_SCENES for index in range(SHOWN_SCENES)}
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
    return documents.each_json_line(ledger) if ledger.is_file() else iter(())


def _shares(classes: Sequence[Facts], *, others: int) -> list[Facts]:
    """The classes with their shares of all pixels, including pixels without a class."""
    total = max(1, others + sum(each.get("pixels", 0) for each in classes))
    return [{**each, "pixels": each.get("pixels", 0), "share": 100 * each.get("pixels", 0) / total} for each in classes]


def _prediction_scene(folder: Path, line: Facts, report: Facts, *, palette: Sequence[pictures.Color]) -> Facts:
    """A scene's sensors, as far as their files still exist, its mask, and its confidence if it was stored."""
    layers, root = [], _inputs_root(report)
    for name, paths in line["inputs"].items():
        shown = _frame(root / _inside(paths[0]))
        layers += [] if shown is None else [_layer(name, name, shown, kind="jpeg")]
    mask = _map(folder / _inside(line["mask"]))
    layers.append(_layer("prediction", "Prediction", pictures.paint(pictures.shrunk(mask), palette), kind="png"))
    if "confidence" in line:
        sure = pictures.shrunk(_map(folder / _inside(line["confidence"])))
        layers.append(_layer("confidence", "Confidence", pictures.heat((sure / 255).astype(np.float32)), kind="png"))
    missing = [] if len(layers) > 1 else ["its sensors' files no longer exist"]
    size = f"{line['size'][1]} × {line['size'][0]}"
    return folders.scene(line["id"], [size, *missing], layers)


def _map(path: Path) -> NDArray[Any]:
    """A mask or a confidence as stored: (H, W) integers."""
    array = images.read(path)
    if array.ndim != 2 or array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path.name} is an array of {array.dtype} with {array.ndim} axes")
    return array


def _inputs_root(report: Facts) -> Path:
    """The folder of the scenes; a report of an earlier version has only the path that the user gave."""
    return Path(report.get("inputs_root") or report.get("inputs", "."))


def _inside(path: str) -> str:
    """A path of a ledger, if it stays inside its folder, because a page must not include other files.

    Raises:
        ValueError: it is absolute, or leads out of the folder.
    """
    if not is_inside(path):
        raise ValueError(f"{path!r} leads out of its folder")
    return path


def _frame(path: Path) -> pictures.Picture | None:
    """A sensor's file as a small picture; None if it does not exist or cannot be read any more."""
    try:
        header, frame = images.load(path)
        invalid = find_invalid(frame, ANY, tag=header.nodata)
        if invalid is not None:
            frame[invalid] = 0
        return pictures.shrunk(pictures.as_picture(frame), smooth=True)
    except (MemorySamError, OSError):
        return None


def _layer(key: str, title: str, picture: pictures.Picture, *, kind: str) -> dict[str, str]:
    data = images.encode_png(picture) if kind == "png" else images.encode_jpeg(picture, quality=pictures.QUALITY)
    return {"key": key, "title": title, "src": pages.data_uri(data, kind=kind)}


def _prediction_provenance(report: Facts) -> list[tuple[str, str]]:
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
