"""How time and memory grow: modalities, image size, batch, precision and memory saver, one axis at a time.

python benchmarks/sweep.py --out sweep [--backbone nano] [--size 128] [--batch 1] [--repeats 3] [--device auto]
                           [--axes modalities,size,batch,precision] [--tasks train,predict] [--against-plain]

Writes a line of JSON for each point into OUT/points.jsonl (points that are there already are not measured again) and
a picture for each axis. The defaults take some minutes on two CPU cores; for the paper's network give
--backbone sam2-hiera-base-plus --size 512 --sizes 256,512,1024.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from memorysam_cli.engine import runtime
from memorysam_cli.engine.measure.bench import measure
from memorysam_cli.engine.measure.workload import Workload
from memorysam_cli.errors import EnvironmentFault
from memorysam_cli.report import console
from memorysam_cli.report.figures import scaling
from memorysam_cli.storage import atomic, documents

AXES = {"modalities": "modalities", "size": "side of the image in pixels", "batch": "scenes per batch"}
"""Numbers on an axis, and what it is called; precision has words and bars of its own in the table."""
MIDDLE = ("backbone", "modalities", "size", "batch", "precision")
"""What stays as it is along an axis of something else."""
WORDS = {"predict": "prediction", "train off": "training", "train on": "training, memory saver"}


def main() -> None:
    """Measure what is not there yet, and draw all that is."""
    asked = arguments()
    asked.out.mkdir(parents=True, exist_ok=True)
    device = runtime.choose_device(asked.device)
    path = asked.out / "points.jsonl"
    done = documents.read_json_lines(path) if path.exists() else []
    known = {key_of(point) for point in done}
    for axis, point in points(asked, device):
        if (axis, *key_of_asked(point)) in known:
            continue
        console.note(f"{axis}: {point}, saver {point.saver}")
        found = {"axis": axis, **measured(point, device, against_plain=asked.against_plain, repeats=asked.repeats)}
        documents.append_json_line(path, found)
        known.add(key_of(found))
        done.append(found)
    for axis in AXES:
        panels = panels_of([point for point in done if point["axis"] == axis and belongs(point, asked, axis)], axis)
        if any(panels.values()):
            title = f"{asked.backbone}, {machine_of(done)}"
            atomic.write_bytes(asked.out / f"{axis}.png", scaling(panels, against=AXES[axis], title=title))
            console.say(str(asked.out / f"{axis}.png"))


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="nano")
    parser.add_argument("--modalities", type=int, default=4, help="where another axis is swept")
    parser.add_argument("--size", type=int, default=128, help="where another axis is swept")
    parser.add_argument("--batch", type=int, default=1, help="where another axis is swept")
    parser.add_argument("--precision", default="fp32", help="where another axis is swept")
    parser.add_argument("--axes", type=axes, default=["modalities", "size", "batch", "precision"])
    parser.add_argument("--tasks", type=words, default=["predict", "train"])
    parser.add_argument("--savers", type=words, default=["off", "on"])
    parser.add_argument("--counts", type=numbers, default=[1, 2, 3, 4, 6, 8], help="of modalities")
    parser.add_argument("--sizes", type=numbers, default=[64, 128, 256])
    parser.add_argument("--batches", type=numbers, default=[1, 2, 4])
    parser.add_argument("--precisions", type=words, default=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--against-plain", action="store_true")
    return parser.parse_args()


def points(asked: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Workload]]:
    """All that is to be measured, each with the axis it lies on."""
    values: Mapping[str, list[Any]] = {
        "modalities": asked.counts, "size": asked.sizes, "batch": asked.batches, "precision": asked.precisions,
    }  # fmt: skip
    for axis in asked.axes:
        for value in values[axis]:
            for task in asked.tasks:
                for saver in asked.savers if task == "train" else ["auto"]:
                    middle = Workload(
                        task=task, backbone=asked.backbone, modalities=asked.modalities, size=asked.size,
                        batch=asked.batch, precision=asked.precision, saver=saver,
                    )  # fmt: skip
                    if value == "tf32" and device.type != "cuda":
                        continue
                    yield axis, replace(middle, **{axis: value})


def measured(point: Workload, device: torch.device, *, against_plain: bool, repeats: int) -> dict[str, Any]:
    """The report of a point; one that does not fit has its reason."""
    try:
        return measure(point, device, against_plain=against_plain, repeats=repeats)
    except EnvironmentFault as fault:
        console.warn(str(fault))
        return {**vars(point), "fast": {"fits": False, "why": str(fault)}, "plain": None}


def panels_of(found: list[dict[str, Any]], axis: str) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Seconds and gigabytes of every kind of work, along an axis."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {"seconds per step": {}, "peak memory in GB": {}}
    for point in found:
        kind = point["task"] if point["task"] == "predict" else f"train {point['saver']}"
        for implementation, name in (("fast", WORDS.get(kind, kind)), ("plain", f"plain {point['task']}")):
            figures = point[implementation]
            if figures is None or not figures["fits"]:
                continue
            for cost, value in zip(panels, (figures["seconds"], figures["peak_bytes"] / 1e9), strict=True):
                line = panels[cost].setdefault(name, [])
                if point[axis] not in dict(line):  # the plain one is measured again beside every saver
                    line.append((point[axis], value))
    return panels


def belongs(point: Mapping[str, Any], asked: argparse.Namespace, axis: str) -> bool:
    """Whether a point lies on this call's axis: the folder may have those of another network, or size."""
    return all(point[name] == getattr(asked, name) for name in MIDDLE if name != axis)


def machine_of(done: list[dict[str, Any]]) -> str:
    """Where the points were measured."""
    machine = next((point["machine"] for point in done if "machine" in point), None)
    if machine is None:
        return "nothing fits"
    name = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    return f"{name}, torch {machine['versions']['torch']}"


def key_of(point: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells two points apart."""
    return (point["axis"], *(point[name] for name in vars(Workload())))


def key_of_asked(point: Workload) -> tuple[Any, ...]:
    """As :func:`key_of`, without the axis."""
    return tuple(vars(point).values())


def words(text: str) -> list[str]:
    """``a,b`` as a list."""
    return text.split(",")


def axes(text: str) -> list[str]:
    """As :func:`words`, of those that there are."""
    known = {*AXES, "precision"}
    if unknown := [word for word in words(text) if word not in known]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: is not an axis (known: {', '.join(sorted(known))})")
    return words(text)


def numbers(text: str) -> list[int]:
    """``1,2`` as a list."""
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    main()
