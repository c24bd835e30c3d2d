"""Weights of a nano network that was never trained, and the way to call a command."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from memorysam_cli import app
from memorysam_cli import recipe as recipes
from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.model import weights


def save_weights(path: Path, info: DatasetInfo, *, modalities: tuple[str, ...] = ("img", "depth")) -> Path:
    """Weights for a data set, with the values that training begins with."""
    recipe = recipes.parse(
        {
            "name": "small",
            "data": {"dataset": info.name, "modalities": list(modalities), "image_size": 32, "workers": 0},
            "model": {"backbone": "nano", "base_weights": "random", "object_gate": False},
            "spmm": {"variant": "off", "weight": 0},
            "optim": {"lr": 1e-4},
            "train": {"epochs": 1, "seed": 11},
        },
        where="test",
    )
    metric = weights.Metric(miou=12.5, protocol="resized", split="val", epoch=1, step=2)
    weights.save(weights.build_for_training(recipe, info), path, metric=metric)
    return path


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        found = json.loads(self.out)
        assert isinstance(found, dict) and self.out.count("\n") == 1
        return found


class Program:
    """The ``memorysam`` program, within this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Ended:
        self.capsys.readouterr()
        code = app.run([str(argument) for argument in arguments])
        said = self.capsys.readouterr()
        assert "Traceback" not in said.err, said.err
        return Ended(code, said.out, said.err)
