"""What the fork server does for the bad inputs: write good inputs once, then run the program in each child."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import numpy as np

RECIPE = """\
data: {dataset: tiny, modalities: [img, depth], image_size: 32, workers: 0}
model: {backbone: nano, base_weights: random}
spmm: {variant: paper, weight: 1}
optim: {lr: 1e-3, warmup_epochs: 0}
train: {epochs: 3, batch: 1, checkpoint_minutes: 1e-6, validate_every: 3}
"""
"""Three updates of one scene each, a checkpoint after each; one validation."""
PHOTOS = {"kitchen/a": (41, 57), "cellar/a": (64, 48)}
"""Scenes that nobody has prepared: place and size."""


def warm(template: str) -> None:
    """Write the inputs that the cases copy and spoil, and import whatever the program needs."""
    from memorysam_cli import app
    from memorysam_cli.storage import images
    from tests import sketches
    from tests.data.trees import write_tree
    from tests.engine.stand_ins import PLANS, write_data

    folder = Path(template)
    write_data(folder / "data", [*PLANS, ("rain/train/b/000001", "train", "rain", None, (64, 64))])
    write_tree("deliver", folder / "DELIVER")
    rng = np.random.Generator(np.random.PCG64(3))
    for place, size in PHOTOS.items():
        images.write_png(folder / "photos" / place / "rgb.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        images.write_png(folder / "photos" / place / "depth.png", rng.integers(0, 65536, size, dtype=np.uint16))
    (folder / "tiny.yaml").write_text(RECIPE)
    before = Path.cwd()
    os.chdir(folder)
    for arguments in (
        ["train", "-r", "tiny.yaml", "--out", "runs/small", "-q"],
        ["predict", "photos", "--map", "img=rgb", "--workers", "0", "-q"],
        ["evaluate", "--workers", "0", "-q"],
    ):
        with sketches.drawn_by(sketches.blank):
            code = app.run(arguments)
        if code:
            raise RuntimeError(f"{arguments}: ended with {code}")
    os.chdir(before)


def run(folder: str, stdout: str, variables: dict[str, str], arguments: list[str], file_limit: int) -> int:
    """The program, in a child: as ``main`` does it, with a stdout of its own."""
    from memorysam_cli import app
    from tests import sketches

    sketches.use()
    os.environ.update(variables)
    os.chdir(folder)
    os.dup2(os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.argv = ["memorysam", *arguments]
    app.main()
    return 0
