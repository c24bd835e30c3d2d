"""What a run may do beyond the paper's training, and still resume bit for bit: weights of classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memorysam_cli import recipe as recipes
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.train import checkpoints
from memorysam_cli.model.weights import read_card
from memorysam_cli.recipe import Recipe

from .test_trainer import changed, start, state_of, without_clock


@pytest.fixture
def rich(small: Recipe) -> Recipe:
    """The small recipe with weights of classes that are counted, smoothing and all further losses."""
    content = small.model_dump(mode="json")
    content["ohem"] |= {"class_weights": "inverse", "label_smoothing": 0.1}
    return recipes.parse(content | {"losses": {"dice": {}, "lovasz": {}, "focal": {}}}, where="test")


def test_a_resumed_run_ends_bit_for_bit_the_same(rich: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    whole = start(rich, rendered, tmp_path / "whole")
    start(changed(rich, "train", max_steps=3), rendered, tmp_path / "run")
    path, _ = checkpoints.newest_valid(tmp_path / "run" / "checkpoints")
    torch.rand(17)
    start(rich, rendered, tmp_path / "run", resume=path)
    torch.testing.assert_close(state_of(tmp_path / "run"), state_of(whole.run), rtol=0, atol=0)
    rows = [without_clock(RunFolder(each)) for each in (tmp_path / "run", whole.run)]
    validations = [[row for row in each if "miou" not in row] for each in rows]
    assert validations[0] == validations[1]


def test_weights_are_counted_once_and_stored_with_what_was_trained(
    rich: Recipe, rendered: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = start(changed(rich, "train", max_steps=1), rendered, tmp_path / "run")
    pixels = read_card(result.last).dataset.class_pixels["train"]
    assert sum(pixels) <= len(rendered.of_split("train")) * 72**2 and max(pixels) > 0
    path, _ = checkpoints.newest_valid(tmp_path / "run" / "checkpoints")
    assert path is not None
    stored = checkpoints.read(path).optimizer["ohem/class_weights"]
    raw = torch.tensor([1 / each if each else 0 for each in pixels], dtype=torch.float64)
    torch.testing.assert_close(stored, (raw * (raw > 0).sum() / raw.sum()).float())
    assert f"class weights: {rendered.info.classes[0]} {float(stored[0]):.3g}, " in capsys.readouterr().err
