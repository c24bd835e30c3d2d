"""A whole run that several modules compare others with."""

from __future__ import annotations

import pytest
import torch

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import run_folder, runtime
from memorysam_cli.engine.train import loop
from memorysam_cli.engine.train.endings import TrainingResult
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console
from tests import sketches

SLOW = "0.9 scenes/s, less than a tenth of this run's best 13.1: …"


@pytest.fixture(scope="session")
def often(small: Recipe) -> Recipe:
    """The small recipe, with a checkpoint after each update."""
    train = small.train.model_copy(update={"checkpoint_steps": 1, "keep_checkpoints": 3})
    return small.model_copy(update={"train": train})


@pytest.fixture(scope="session")
def watched(
    often: Recipe, rendered: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingResult, list[str]]:
    """A whole run, for reading only, with its log and with figures rendered, on a machine that once becomes slow; and
    what its progress showed."""
    seen: list[str] = []
    notes = iter([SLOW])
    with pytest.MonkeyPatch.context() as patch, sketches.drawn_by(sketches.REAL):
        for name in ("advance", "show"):
            patch.setattr(
                loop.Progress, name,
                lambda _self, *given, figures=None, name=name: seen.append(name + str((given or (figures,))[-1])),
            )  # fmt: skip
        patch.setattr(loop.Slowdown, "add", lambda _self, _scenes, *, seconds: next(notes, None) if seconds else None)
        run = run_folder.create(often, tmp_path_factory.mktemp("watched") / "whole")
        accelerator = runtime.make_accelerator(torch.device("cpu"), precision="fp32")
        with console.log_to(run.log):
            return loop.Trainer(often, rendered, accelerator=accelerator).fit(run), seen


@pytest.fixture
def finished(watched: tuple[TrainingResult, list[str]]) -> TrainingResult:
    return watched[0]
