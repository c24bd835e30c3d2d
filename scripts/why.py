"""Draw docs/images/why.png, README's first picture, and put its figures into README.

    memorysam demo --out .demo
    python scripts/why.py --demo .demo

Both of the demo's networks, that with all sensors and that with RGB alone, are scored on its test split. The picture
shows two scenes in bad light or weather: of each of two conditions the one where the other sensors help most. What
README has between ``<!-- why: NAME -->`` and ``<!-- /why -->`` is written anew: the figures, and the three
commands with the end of what they print.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer

from memorysam_cli import Predictor
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.loader import scored_scenes
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.engine.demo import DATASET, RGB
from memorysam_cli.engine.evaluate import scoring
from memorysam_cli.engine.evaluate.counts import Evaluation
from memorysam_cli.engine.infer.inference import Inference
from memorysam_cli.errors import EnvironmentFault, UsageError
from memorysam_cli.model import load
from memorysam_cli.report import console, pictures
from memorysam_cli.report.pictures import Picture
from memorysam_cli.storage import atomic, images

ROOT = Path(__file__).parent.parent
SPLIT, PROTOCOL = "test", "resized"
ROWS = 2
INK = "#7d8590"
"""Of the letters: read on white and on GitHub's black alike, as the paper is transparent."""
EASY = {"sun", "eventlowres", "lidarjitter"}
"""Conditions and sensor failures in which RGB is at its best, or another sensor at its worst."""
OTHERS = {"depth": "depth", "event": "events", "lidar": "LiDAR"}
LINES = ("resized", "scenes")
"""Beginnings of the lines of ``evaluate`` that README has."""
TITLES = ("RGB", "other sensors", "label", "from RGB alone", "from all sensors")
COLUMN_INCHES, DPI = 2.1, 150

Demo = Annotated[Path, typer.Option(help="What `memorysam demo --out` made.")]
Out = Annotated[Path, typer.Option(help="The picture.")]
Readme = Annotated[Path, typer.Option(help="The page whose figures are written anew.")]


@dataclass(frozen=True)
class Network:
    """One of the demo's networks, scored on the test split."""

    weights: Path
    evaluation: Evaluation

    @property
    def miou(self) -> float:
        """In percent, over all classes."""
        return self.evaluation.protocol(PROTOCOL).miou

    def of_scene(self, scene: Scene) -> float:
        """Percent over the classes that the scene has."""
        found = {each.scene.id: each.miou_present for each in self.evaluation.scene_scores(PROTOCOL)}
        return float(found[scene.id] or 0.0)


def main(
    demo: Demo = Path(".demo"), out: Out = ROOT / "docs/images/why.png", readme: Readme = ROOT / "README.md"
) -> None:
    """Write the picture and the figures."""
    data = manifests.read(demo / "data", DATASET)
    alone, together = (scored(demo, data, is_rgb=is_rgb) for is_rgb in (True, False))
    scenes = telling(data, alone, together)
    atomic.write_bytes(out, drawn(data, scenes, alone, together))
    texts = {
        "figures": f"mIoU over {len(data.info.classes)} classes on {len(data.of_split(SPLIT))} unseen scenes: "
        f"**{alone.miou:.2f} % with RGB alone, {together.miou:.2f} % with all four sensors**. The scenes are\n"
        "rendered; the demo's small network was pre-trained for hours on other rendered scenes, then trained for "
        "minutes on two CPU\ncores ([how it was measured](docs/demo.md)). Above: of two conditions the scenes in which "
        "the other sensors help most.",
        "commands": "\n".join(["```console", *commands(together.weights.parents[1], demo / "data"), "```"]),
    }
    page = readme.read_text(encoding="utf-8")
    for name, text in texts.items():
        head, tail = f"<!-- why: {name} -->\n", "\n<!-- /why -->"
        page = re.sub(f"{head}.*?{tail}", (head + text + tail).replace("\\", r"\\"), page, flags=re.DOTALL)
    atomic.write_bytes(readme, page.encode())
    console.say(f"{out}: {', '.join(scene.id for scene in scenes)}")
    console.say(texts["figures"])


def scored(demo: Path, data: Manifest, *, is_rgb: bool) -> Network:
    """The newest finished run of the demo, with RGB alone or with all sensors, and its scores."""
    runs = [path.parent for path in sorted(demo.glob("runs/demo-*/result.json"), key=lambda path: path.stat().st_mtime)]
    runs = [run for run in runs if ("-rgb-" in run.name) == is_rgb]
    if not runs:
        raise UsageError(f"--demo {demo}: holds no finished demo; make one: memorysam demo --out {demo}")
    weights = runs[-1] / "checkpoints/best.safetensors"
    model = load(weights)
    inference = Inference(model.card.modalities, model.image_size, torch.device("cpu"), batch=8, workers=0)
    return Network(weights, scoring.evaluate(model, data, scenes=data.of_split(SPLIT), inference=inference))


def telling(data: Manifest, alone: Network, together: Network) -> list[Scene]:
    """The scene with the largest gain of each condition; of these the two with the largest."""
    best: dict[str, tuple[float, Scene]] = {}
    for scene in data.of_split(SPLIT):
        if {scene.condition, scene.case} & EASY:
            continue
        gain = together.of_scene(scene) - alone.of_scene(scene)
        if gain > best.get(str(scene.condition), (-1.0, scene))[0]:
            best[str(scene.condition)] = (gain, scene)
    return [scene for _, scene in sorted(best.values(), key=lambda each: -each[0])[:ROWS]]


def drawn(data: Manifest, scenes: list[Scene], alone: Network, together: Network) -> bytes:
    """The PNG: a row per scene, on transparent paper."""
    import io

    from matplotlib import pyplot

    pyplot.rcParams.update({"text.color": INK, "font.size": 15})
    figure, grid = pyplot.subplots(
        len(scenes), len(TITLES), figsize=(COLUMN_INCHES * len(TITLES), (COLUMN_INCHES + 0.2) * len(scenes) + 0.42),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    with Predictor(alone.weights, device="cpu") as first, Predictor(together.weights, device="cpu") as second:
        for row, scene in zip(grid, scenes, strict=True):
            below = (
                ", ".join(filter(None, (scene.condition, scene.case))), ", ".join(OTHERS.values()), "",
                *(f"mIoU {network.of_scene(scene):.0f} %" for network in (alone, together)),
            )  # fmt: skip
            for axes, picture, words in zip(row, panels(data, scene, first, second), below, strict=True):
                show(axes, picture, words)
    for axes, title in zip(grid[0], TITLES, strict=True):
        axes.set_title(title, fontsize=16, fontweight="bold", color=INK)
    stored = io.BytesIO()
    figure.savefig(stored, format="png", dpi=DPI, transparent=True)
    return stored.getvalue()


def show(axes: Any, picture: Picture, words: str) -> None:
    """One picture without axes, and a line below it."""
    axes.imshow(picture, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(words, color=INK, fontsize=14)
    for side in axes.spines.values():
        side.set_visible(False)


def panels(data: Manifest, scene: Scene, alone: Predictor, together: Predictor) -> list[Picture]:
    """The pictures of a row."""
    files = {name: data.root / paths[0] for name, paths in scene.files.items()}
    sensors = {name: pictures.as_picture(images.read(files[name])) for name in (RGB, *OTHERS)}
    (read,) = scored_scenes(data, scenes=[scene], modalities=data.info.modalities[:1], size=32, workers=0)
    assert read.whole.label is not None
    masks = [predictor({name: files[name] for name in predictor.modalities}).classes for predictor in (alone, together)]
    palette = data.info.palette
    height, width = sensors[RGB].shape[:2]
    others = [cv2.resize(sensors[name], (width, height), interpolation=cv2.INTER_NEAREST) for name in OTHERS]
    return [
        sensors[RGB], strips(others),
        *(pictures.paint(mask, palette) for mask in (read.whole.label[0].numpy(), *masks)),
    ]  # fmt: skip


def strips(views: list[Picture]) -> Picture:
    """One picture of which each sensor shows its share, from left to right."""
    width = views[0].shape[1]
    edges = [round(width * number / len(views)) for number in range(len(views) + 1)]
    parts = [view[:, left:right].copy() for view, left, right in zip(views, edges, edges[1:], strict=False)]
    for part in parts[1:]:
        part[:, 0] = 255
    return np.concatenate(parts, axis=1)


def commands(run: Path, data: Path) -> list[str]:
    """README's three commands, with the end of what each prints: of training from its log, of evaluation anew."""
    validated = re.findall(r"note: (step \d+: val mIoU .*)", (run / "train.log").read_text(encoding="utf-8"))
    return [
        "$ memorysam prepare synthetic ./data",
        "$ memorysam train --recipe demo",
        *validated[-2:],
        "$ memorysam evaluate --split test",
        *answer(run / "checkpoints/best.safetensors", data),
    ]


def answer(weights: Path, data: Path) -> list[str]:
    """The last lines that ``memorysam evaluate --split test`` prints."""
    words = ["evaluate", "--weights", str(weights), "--data", str(data), "--split", SPLIT, "--gallery", "0", "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "memorysam_cli", *words, "--workers", "0", "--out", f"{folder}/out"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise EnvironmentFault(f"memorysam evaluate: {done.stderr.strip()}")
    return [line.split("  (")[0] for line in done.stdout.splitlines() if line.split(" ")[0] in LINES]


if __name__ == "__main__":
    typer.run(main)
