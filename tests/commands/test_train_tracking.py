"""``memorysam train --track``: with a real tracker in its own process, from the command line to its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from memorysam_cli.data import preparation
from memorysam_cli.storage import documents

from .trained import Program

SMALL = ("--recipe", "demo", "--set", "data.image_size=32", "--set", "data.workers=0", "--set", "train.batch=4",
         "--set", "model.base_weights=random", "--set", "data.modalities=[img]")  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    preparation.render_synthetic(folder / "data", layout="deliver", scenes=20, size=72, seed=0)
    preparation.check_and_write(preparation.survey_synthetic(folder / "data", layout="deliver"))
    return folder


@pytest.mark.filterwarnings("ignore")  # TensorBoard's own reader
def test_tensorboard_has_every_value_of_the_metrics_and_a_resumed_run_goes_on_untracked_or_not(
    here: Path, memorysam: Program
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = memorysam("train", *SMALL, "--set", "train.max_steps=2", "--out", "run", "--track", "tensorboard")
    assert first.code == 0 and "--track tensorboard: " in first.err and "warning" not in first.err
    again = memorysam("train", *SMALL, "--set", "train.max_steps=3", "--out", "run", "--resume", "auto",
                      "--track", "tensorboard")  # fmt: skip
    assert again.code == 0, again.err
    found = EventAccumulator(str(here / "run" / "trackers" / "tensorboard")).Reload()
    rows = [row for row in documents.read_json_lines(here / "run" / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [(each.step, each.value) for each in found.Scalars("train/loss")] == [
        (row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows
    ]
    assert {"validation/miou", "validation/iou/Road"} <= set(found.Tags()["scalars"])
    assert memorysam("train", *SMALL, "--set", "train.max_steps=4", "--out", "run", "--resume", "auto").code == 0


@pytest.mark.parametrize("given", ["tensorbord", "tensorboard,", "comet"])
def test_an_unknown_tracker_ends_it_before_anything_begins(given: str, here: Path, memorysam: Program) -> None:
    ended = memorysam("train", *SMALL, "--out", "run", "--track", given)
    assert ended.code == 2 and "known: tensorboard, wandb, mlflow, trackio" in ended.err
    assert not Path("run").exists()
