"""Weights of a nano network that was never trained, and the way to call a command."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from memorysam_cli import app
from memorysam_cli import recipe as recipes
from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.engine.measure import count
from memorysam_cli.engine.weights import portable
from memorysam_cli.errors import CheckFailedError
from memorysam_cli.model import load, weights


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


def answered(folder: Path, *arguments: object) -> dict[str, Any]:
    """The JSON answer of a command that runs in a folder, for all tests that ask for it."""
    out = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        assert app.run([*map(str, arguments), "--json", "-q"]) == 0
    found = json.loads(out.getvalue())
    assert isinstance(found, dict)
    return found


def stand_in(out: Path, shape: portable.GraphShape) -> portable.PortableFile:
    """What an export returns, without one: tracing takes seconds."""
    out.write_bytes(b"x")
    near = portable.Likeness(relative=3e-7, difference=4e-6, agreement=100.0, is_silent=False)
    return portable.PortableFile(out, out.with_suffix(".json"), "ab", shape, near, ((shape, near),))


def uncounted(patch: pytest.MonkeyPatch) -> None:
    """A plan's counts are made up, of a few MB each: honest ones take half a second each, and plans make a dozen."""
    made = count.Count(10**6, 10**6, 10**6, 10**6, activations=10**6, forward=10**7, backward=10**7)
    for name in ("training", "validation", "prediction"):
        patch.setattr(count, name, lambda *_, **__: made)
    patch.setattr(count, "training_flops", lambda *_, **__: 10**9)


def traced_by(
    memorysam: Program, export: Sequence[object], monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the command would trace, and the network itself, both shown the same frames: their logits.

    Args:
        memorysam: the program.
        export: its words, of which the second is the weights file.
        monkeypatch: ends the command where tracing begins.
    """
    shapes: list[portable.GraphShape] = []

    def trace(_network: object, shape: portable.GraphShape) -> Any:
        shapes.append(shape)
        raise CheckFailedError("far enough")

    monkeypatch.setattr(portable, "trace", trace)
    ended = memorysam(*export)
    assert "far enough" in ended.err, ended.err
    (shape,) = shapes
    frames = torch.randn(shape.frames, generator=torch.Generator().manual_seed(1))
    path = Path(str(export[1]))
    network = load(path)
    with torch.inference_mode():
        expected = network(list(frames.unbind(1)), sensors=shape.sensors or None).logits[:, : network.classes]
        found = portable.Traceable(load(path), shape.sensors).eval()(frames)[0]
    return found, expected
