"""Measure what the demo claims, and choose its λ: the tables of docs/demo.md.

python scripts/demo_figures.py seeds --work /tmp/figures     # three seeds: all sensors, RGB alone, majority class
python scripts/demo_figures.py weights --work /tmp/figures   # the SPMM's λ from {0, 0.1, 1, 10}, on other scenes
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Annotated

import torch
import typer

from memorysam_cli import recipe as recipes
from memorysam_cli.engine.demo import RECIPE, DemoResult, prepare_scenes, run_demo, train_recipe
from memorysam_cli.errors import CheckFailedError
from memorysam_cli.report import console

SEEDS = (0, 1, 2)
ABLATION_SEEDS = (10, 11)
WEIGHTS = (0.0, 0.1, 1.0, 10.0)
ABOVE_MAJORITY, ABOVE_RGB = 10.0, 5.0
"""Points of mIoU that the demo promises on average."""

app = typer.Typer(help=__doc__, no_args_is_help=True)
Work = Annotated[Path, typer.Option(help="Folder for scenes and runs.")]


@app.command()
def seeds(work: Work) -> None:
    """Run the demo with three seeds and check its promise; exit code 10 if it does not hold."""
    cpu = torch.device("cpu")
    results = [run_demo(work / f"seed-{seed}", device=cpu, seed=seed) for seed in SEEDS]
    rows = [[str(seed), *_cells(result)] for seed, result in zip(SEEDS, results, strict=True)]
    majority = mean(result.miou - result.miou_majority for result in results)
    rgb = mean(result.miou - result.miou_rgb for result in results)
    console.table(["seed", "all sensors", "RGB alone", "majority class", "seconds"], rows)
    console.say(f"above the majority class: {majority:.2f} points, above RGB alone: {rgb:.2f} points")
    if majority < ABOVE_MAJORITY or rgb < ABOVE_RGB:
        raise CheckFailedError(f"the demo promises {ABOVE_MAJORITY} and {ABOVE_RGB} points")


@app.command()
def weights(work: Work) -> None:
    """Train the demo's recipe with each λ, on scenes that the demo does not use."""
    scores: dict[float, list[float]] = {weight: [] for weight in WEIGHTS}
    for seed in ABLATION_SEEDS:
        manifest, _ = prepare_scenes(work / f"ablation-{seed}" / "data", seed=seed)
        for weight in WEIGHTS:
            recipe = recipes.load(RECIPE, [f"spmm.weight={weight}", f"train.seed={3407 + seed}"])
            result = train_recipe(recipe, manifest, work / f"ablation-{seed}" / "runs", device=torch.device("cpu"))
            scores[weight].append(result.miou)
    rows = [
        [f"{weight:g}", *(f"{value:.2f}" for value in found), f"{mean(found):.2f}"] for weight, found in scores.items()
    ]
    console.table(["λ", *(f"seed {seed}" for seed in ABLATION_SEEDS), "mean"], rows)


def _cells(result: DemoResult) -> list[str]:
    return [f"{value:.2f}" for value in (result.miou, result.miou_rgb, result.miou_majority)] + [
        f"{result.seconds:.0f}"
    ]


if __name__ == "__main__":
    app()
