"""What the report of an evaluation says."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memorysam_cli.engine.evaluate import folder as files
from memorysam_cli.engine.reporting import documents, scenes
from memorysam_cli.report import pages

Facts = dict[str, Any]
PARTS = {"conditions": "Condition", "cases": "Failure", "splits": "Split"}
GREY = [128, 128, 128]


def gather(folder: Path) -> Facts:
    """Everything that the template ``evaluation`` shows of a folder of results.

    Raises:
        DataError: a file is damaged, or was written by another version.
    """
    path = folder / files.NAMES["metrics"]
    report = documents.read(path)
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
            "provenance": _provenance(report),
        }


def section(folder: Path, report: Facts) -> Facts:
    """The evaluation's part of a page: classes, confusion, conditions, sensors and scenes."""
    classes = class_rows(report)
    found, note = scenes.of_evaluation(folder / files.GALLERY)
    return {
        "headline": headline(report),
        "miou": report["miou"],
        "classes": classes,
        "matrix": _matrix(folder, report),
        "parts": _parts(report),
        "heat": _heat(report),
        "sensors": _sensors(folder, report),
        "scenes": found,
        "scenes_note": note,
        "legend": classes,
        "worst": report["worst"] if report["scenes"] > 1 else [],
    }


def sections(shown: Facts) -> list[tuple[str, str]]:
    """Ids and names of the sections that :func:`section` fills."""
    found = [("classes", "Classes"), ("confusion", "Confusion")]
    found += [("conditions", "Conditions")] * bool(shown["parts"]) + [("sensors", "Sensors")] * bool(shown["sensors"])
    return [*found, ("scenes", "Scenes")]


def headline(report: Facts) -> str:
    """What the figures are of, in a line."""
    words = [f"{report['protocol']} protocol", f"{report['scenes']:,} scenes", ", ".join(report["modalities"])]
    words += ["test-time augmentation"] if report["tta"] else []
    words += ["tiled"] if report["tile"] else []
    words += ["missing modalities as zeros"] if report["missing"] == "zero" else []
    return " · ".join(words)


def tiles(report: Facts) -> list[tuple[str, str, str]]:
    """The headline's figures: name, value, small print."""
    other = "native" if report["protocol"] == "resized" else "resized"
    second = report["protocols"][other]
    absent = sum(1 for each in report["classes"] if not each["pixels"])
    small = (
        f"{report['miou_present']:.2f} over those with ground truth"
        if absent
        else f"over {len(report['classes'])} class{'es' * (len(report['classes']) > 1)}"
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
    """The classes with their colours and shares of the pixels; percent."""
    scored = max(1, report["pixels"]["scored"])
    colours = report.get("palette") or [GREY] * len(report["classes"])
    return [
        {**each, "color": list(map(int, colour)), "share": 100 * each["pixels"] / scored}
        for each, colour in zip(report["classes"], colours, strict=True)
    ]


def _matrix(folder: Path, report: Facts) -> Any:
    path = folder / files.NAMES[f"confusion_{report['protocol']}"]
    if not path.is_file():
        return None
    with documents.understood(path), path.open(encoding="utf-8", newline="") as stream:
        counts = [[int(value) for value in row[1:]] for row in list(csv.reader(stream))[1:]]
        names = [each["name"] for each in report["classes"]]
        if [len(row) for row in counts] != [len(names)] * len(names):
            raise ValueError(f"not {len(names)} rows and columns")
    return pages.matrix_layout(counts, names=names)


def _parts(report: Facts) -> list[Facts]:
    """Tables of conditions, failures and splits; a single split is the whole."""
    return [
        {"name": name, "rows": [{"name": label, **part} for label, part in report[key].items()]}
        for key, name in PARTS.items()
        if len(report[key]) > (key == "splits")
    ]


def _heat(report: Facts) -> Facts | None:
    """mIoU of each condition under each failure."""
    rows = [
        {"name": condition, "cells": [_heat_cell(found.get(case)) for case in report["cases"]]}
        for condition, found in report["condition_cases"].items()
    ]
    return {"columns": list(report["cases"]), "rows": rows} if rows else None


def _heat_cell(part: Mapping[str, Any] | None) -> Facts | None:
    if part is None:
        return None
    return {"miou": part["miou"], "scenes": part["scenes"], "level": min(9, int(part["miou"] // 10))}


def _sensors(folder: Path, report: Facts) -> list[Facts]:
    """Bars of the mIoU with parts of the sensors: evaluations of such parts inside the folder, and the benchmarks."""
    rows = [{"name": "+".join(report["modalities"]), "value": report["miou"]}]
    for path in sorted(folder.glob(f"*/{files.NAMES['metrics']}")):
        part = documents.read(path)
        # A result of other weights that stayed in the folder compares with nothing here.
        if part["weights_sha256"] == report["weights_sha256"] and part["protocol"] == report["protocol"]:
            zeros = " (others as zeros)" if part["missing"] == "zero" else ""
            rows.append({"name": "+".join(part["modalities"]) + zeros, "value": part["miou"]})
    groups = [{"title": "Parts of the modalities", "note": "", "rows": _descending(rows)}] if len(rows) > 1 else []
    return groups + _benchmarks(folder, digest=report["weights_sha256"])


def _benchmarks(folder: Path, *, digest: str | None) -> list[Facts]:
    """The robustness benchmarks of a folder, a group for each level."""
    groups = []
    for path in sorted(folder.glob("robustness-*.json")):
        found = documents.read(path)
        with documents.understood(path):
            if digest not in (None, found["weights_sha256"]):
                continue
            for level in found["levels"]:
                name = " · ".join(word for word in (_TITLES[found["robustness"]], level["level"]) if word)
                mean = f"Average {level['average']['miou']:.2f}." if level["average"] else ""
                rows = [
                    {"name": _set_name(each, kind=found["robustness"]), "value": each["miou"]} for each in level["sets"]
                ]
                groups.append(
                    {
                        "title": name,
                        "note": f"mIoU in per cent, {found['protocol']} protocol. {mean}",
                        "rows": _descending(rows),
                    }
                )
    return groups


_TITLES = {
    "any": "Any sensors",
    "emm": "Entirely missing sensors",
    "rmm": "Randomly missing elements",
    "nm": "Noisy sensors",
}


def _set_name(found: Mapping[str, Any], *, kind: str) -> str:
    """Which sensors a row of a benchmark is about: those that are fed, or those that fail."""
    if kind in ("any", "emm") or not found["missing"]:
        return "+".join(found["available"])
    return f"failing: {', '.join(found['missing'])}"


def _descending(rows: Iterable[Facts]) -> list[Facts]:
    return sorted(rows, key=lambda row: -row["value"])


def _of_robustness(folder: Path) -> Facts:
    """A folder that holds benchmarks alone."""
    path = min(folder.glob("robustness-*.json"))
    report = documents.read(path)
    with documents.understood(path):
        return {
            "kind": "robustness",
            "title": f"{report['dataset']} · {report['split']}",
            "subtitle": f"{report['scenes']:,} scenes · {', '.join(report['modalities'])}",
            "warnings": report["warnings"],
            "sections": [("sensors", "Sensors"), ("provenance", "Provenance")],
            "groups": _benchmarks(folder, digest=None),
            "provenance": _provenance(report),
        }


def _provenance(report: Facts) -> Sequence[tuple[str, str]]:
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
