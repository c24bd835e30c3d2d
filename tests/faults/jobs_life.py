"""The program as typed, in a warm child: for the machine that trains, kills, damages, fills and resumes at random."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from memorysam_cli import app
from memorysam_cli.engine.train import checkpoints
from tests.faults import bare, disks
from tests.faults.scale import SOAK

STEPS = 4
SETS = (
    "model.backbone=nano", "model.base_weights=random", "data.image_size=32", "data.workers=0", "train.batch=2",
    "train.checkpoint_minutes=1e-9", "train.validate_every=1", "model.lora.dropout=0.1",
)  # fmt: skip


def training(base: Path, run: Path, *more: str, steps: int = STEPS) -> list[str]:
    """The line that begins or continues a run, up to ``steps`` updates."""
    sets = [word for change in (*SETS, f"train.max_steps={steps}", *more) for word in ("--set", change)]
    line = ["train", "-r", "demo", "--data", str(base / "data"), "--out", str(run), "--resume", "auto", "-q"]
    return [*line, *sets]


def predicting(base: Path, out: Path, run: str = "reference") -> list[str]:
    """The line that predicts all scenes with the weights of a run."""
    weights = base / run / "checkpoints" / "best.safetensors"
    return ["predict", str(base / "data" / "mini-deliver"), "-w", str(weights), "--out", str(out), "--workers", "0"]


def warm(base: str) -> None:
    """Data, and whatever training and predicting import."""
    torch.set_num_threads(1)
    bare.draw_nothing(unless=SOAK)  # which kills there, too
    place = Path(base)
    assert app.run(["prepare", "synthetic", str(place / "data"), "--scenes", "10", "--size", "64", "-q"]) == 0
    assert app.run(training(place, place / "warm", steps=1)) == 0
    assert app.run(predicting(place, place / "warm-out", run="warm")) == 0


def run(line: list[str], most_bytes: int | None, is_trusting: bool = False) -> None:
    """The program; its files cannot grow beyond ``most_bytes``.

    ``is_trusting``: as if it believed that whatever has a checkpoint's name is one.
    """
    if is_trusting:
        checkpoints.is_valid = lambda path: (path / "model.safetensors").is_file()
    if most_bytes is not None:
        disks.limit_files(most_bytes)
    sys.argv = ["memorysam", *line]
    app.main()
