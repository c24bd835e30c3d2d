"""Training with what goes beyond the paper: exact over a stop, in other words when it resumes, and over batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.train import checkpoints
from memorysam_cli.recipe import Recipe

from .test_learner import batch_of, gradients_of, learner_of, part
from .test_trainer import changed, start, state_of

BEYOND: dict[str, Any] = {"fusion": "two_pass", "order": "shuffled"}


@pytest.fixture
def beyond(small: Recipe) -> Recipe:
    return changed(small, "model", **BEYOND)


def test_a_resumed_run_ends_bit_for_bit_the_same(beyond: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    whole = start(beyond, rendered, tmp_path / "whole")
    start(changed(beyond, "train", max_steps=3), rendered, tmp_path / "run")
    path, _ = checkpoints.newest_valid(RunFolder(tmp_path / "run").checkpoints)
    torch.rand(17)  # whatever the process did before must not matter
    start(beyond, rendered, tmp_path / "run", resume=path)
    torch.testing.assert_close(state_of(tmp_path / "run"), state_of(whole.run), rtol=0, atol=0)


def test_accumulated_batches_are_one_large_batch(beyond: Recipe, rendered: Manifest) -> None:
    """In one order: batches draw their own, as they do their dropout."""
    recipe, whole = changed(beyond, "model", order="recipe"), batch_of(4)
    parts = [part(whole, slice(*pair)) for pair in ((0, 1), (1, 4))]
    wanted, found = (gradients_of(learner_of(recipe, rendered), batches) for batches in ([whole], parts))
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * scale + 1e-8, msg=name)


@pytest.mark.parametrize("saver", ["on", "off"])
def test_an_accumulated_batch_is_seen_in_the_same_order_both_times(
    saver: str, beyond: Recipe, rendered: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(changed(beyond, "train", saver=saver), rendered, has_dropout=True)
    orders: list[list[int]] = []
    honest = learner.network.fusion.plan

    def plan(places: Any) -> Any:
        orders.append(list(places))
        return honest(places)

    monkeypatch.setattr(learner.network.fusion, "plan", plan)
    torch.manual_seed(0)  # draws both orders of two sensors in six batches
    batches = [batch_of(1, seed=seed) for seed in range(6)]
    learner.learn(batches, rate=1e-3)
    assert orders[:5] == orders[:5:-1] and {tuple(order) for order in orders} == {(0, 1), (1, 0)}
