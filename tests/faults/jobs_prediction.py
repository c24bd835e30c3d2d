"""Prediction of a thousand tiny scenes, in children that are killed; the engine is the product's, the network is not.

Nano's forward pass costs more than all that the kills are about, and its weights decide nothing here.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from memorysam_cli.data.loader import unlabeled_scenes
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.engine.predict import run as running
from memorysam_cli.engine.predict import segment
from memorysam_cli.engine.predict.files import SceneFiles
from memorysam_cli.engine.predict.job import Job, RunOptions
from memorysam_cli.engine.predict.parts import PredictionFolder
from memorysam_cli.model import read_card
from memorysam_cli.storage import tensors
from tests.commands.trained import save_weights
from tests.engine.stand_ins import Brightness, Plan, write_data
from tests.faults.naive import prediction as naive

SIZE_PX = 32
NAIVE_SCENES = 800
LARGE_PX = 384
BATCH = 4
BAD = range(50, 500, 99)
"""Scenes whose picture is cut, by their number."""

_state: dict[str, Any] = {}


def warm(base: str, scenes: str) -> None:
    """Data, weights and every import; once, before any fork."""
    torch.set_num_threads(1)
    place = Path(base)
    plans: list[Plan] = [
        (f"{number // 100}/{number:04}", "val", None, None, (SIZE_PX, SIZE_PX)) for number in range(int(scenes))
    ]
    data = write_data(place / "data", plans)
    for number in BAD:
        path = place / "data" / data.scenes[number].files["img"][0]
        path.write_bytes(path.read_bytes()[:80])
    _state["job"] = job_of(data, save_weights(place / "w.safetensors", data.info))


def job_of(data: Manifest, weights: Path) -> Job:
    card = read_card(weights)
    return Job(
        weights, tensors.sha256(weights), card, data.scenes, data.root, str(data.root), card.modalities, batch=BATCH
    )  # fmt: skip


def do(what: str, *arguments: Any) -> int:
    """One of the functions below, by its name."""
    jobs: dict[str, Callable[..., int]] = {"run": run, "run_naive": run_naive, "peak": peak}
    return jobs[what](*arguments)


def run(place: str, log: str, until: str = "") -> int:
    """Predict into ``place/out``; ``log`` gets a line per scene that is computed. ``until="merge"``: no further."""
    os.chdir(place)
    note, write = _log(log), SceneFiles.write
    Job.load = lambda self, device: Brightness()  # type: ignore[assignment,method-assign,return-value]

    def noted(self: SceneFiles, scene: Scene, *arguments: Any, **options: Any) -> Any:
        note(scene.id)
        return write(self, scene, *arguments, **options)

    SceneFiles.write = noted  # type: ignore[method-assign]
    if until == "merge":
        PredictionFolder.finish = lambda _: os._exit(0)  # type: ignore[method-assign]
    report = running.run(_state["job"], Path("out"), RunOptions("cpu", workers=0, skip_bad=True))
    assert report is not None
    return 4 if report["failed"] else 0


def run_naive(place: str, log: str) -> int:
    """The naive twin, on some of the same scenes."""
    os.chdir(place)
    job: Job = dataclasses.replace(_state["job"], scenes=_state["job"].scenes[:NAIVE_SCENES])
    network, note = Brightness(), _log(log)
    source = unlabeled_scenes(
        job.root, scenes=job.scenes, modalities=job.modalities, size=job.card.image_size, workers=0
    )  # fmt: skip

    def segment(scene: Scene, found: Any) -> Any:
        note(scene.id)
        with torch.inference_mode():
            return network.logits(found.frames)[0].argmax(0).to(torch.uint8).numpy()

    pairs = ((scene, found) for scene, found in zip(job.scenes, source, strict=True) if hasattr(found, "frames"))
    naive.predict(Path("out"), ((scene.id, functools.partial(segment, scene, found)) for scene, found in pairs))
    return 0


def peak(place: str, count: int, hoards: bool) -> int:
    """Predict ``count`` larger scenes with nano itself, and note this process's peak memory in ``peak.json``.

    Args:
        place: the working folder.
        count: how many scenes.
        hoards: whether the naive twin keeps what it has decided from.
    """
    os.chdir(place)
    job: Job = _state["job"]
    data = write_data(Path("large"), [("s", "val", None, None, (LARGE_PX, LARGE_PX))])
    scenes = [dataclasses.replace(data.scenes[0], id=f"{number:04}") for number in range(count)]
    if hoards:
        segment.decide = naive.hoarding(segment.decide)
    job = dataclasses.replace(job, scenes=scenes, root=data.root)
    running.run(job, Path("out"), RunOptions("cpu", workers=0))
    Path("peak.json").write_text(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    return 0


def _log(path: str) -> Callable[[str], object]:
    """Adds a line to a file, whatever happens to this process a moment later."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return lambda text: os.write(descriptor, f"{text}\n".encode())
