"""Block N: what is not finite - in a picture, the loss or a gradient - reaches no weight, nor does it count as best."""

from __future__ import annotations

import itertools
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.loader import Batch
from memorysam_cli.engine.train import checkpoints
from memorysam_cli.engine.train.checkpoints import Position
from memorysam_cli.engine.train.update import Learner
from memorysam_cli.engine.train.validation import Validation
from memorysam_cli.losses import ohem
from memorysam_cli.model.weights import build_for_training
from memorysam_cli.storage import documents, tensors
from tests.faults import jobs_running
from tests.faults.conftest import Figures
from tests.faults.jobs_running import KINDS, line, spoil
from tests.faults.naive import judging, updating
from tests.faults.scale import amount
from tests.forks import Forks

FORKS = "tests.faults.jobs_running:run"

STEPS = 4
SEEDS = 5
DIVERGED = re.compile(r"error \[8\]: step (\d+): loss (\S+), gradient norm (\S+), lr \S+, scenes (.+);")


@pytest.fixture(scope="module")
def honest(base: Path, forks: Forks) -> Path:
    """A run that meets nothing, and keeps a checkpoint of each update."""
    run = base / "honest"
    ended = forks.run("poisoned", saving(base, run), "image", "nan", 10**6, 0)
    assert ended.code == 0, ended.said
    return run


def saving(base: Path, run: Path) -> list[str]:
    return line(base, run, f"train.max_steps={STEPS}", "train.checkpoint_steps=1")


def is_finite(path: Path) -> bool:
    return all(bool(value.isfinite().all()) for value in tensors.read(path)[0].values() if value.is_floating_point())


@pytest.mark.parametrize(("kind", "value"), list(itertools.product(KINDS, ("nan", "inf"))))
def test_a_training_ends_with_8_and_keeps_the_weights_of_the_update_before(
    kind: str, value: str, base: Path, forks: Forks, honest: Path, rng: random.Random, figures: Figures
) -> None:
    step, run = rng.randrange(1, STEPS), base / f"{kind}-{value}"
    ended = forks.run("poisoned", saving(base, run), kind, value, step, rng.randrange(2**31))
    assert ended.code == 8 and "Traceback" not in ended.said, ended.said
    told = DIVERGED.search(ended.said)
    assert told is not None and int(told[1]) == step + 1, ended.said
    newest, damaged = checkpoints.newest_valid(run / "checkpoints")
    assert newest is not None and newest.name == f"step-{step:08d}" and not damaged
    for name in ("model.safetensors", "optimizer.safetensors", "rng.safetensors"):
        assert tensors.sha256(newest / name) == tensors.sha256(honest / "checkpoints" / newest.name / name), name
    assert all(is_finite(path) for path in (run / "checkpoints").rglob("*.safetensors"))
    kept = documents.read_json(run / "diverged.json")
    assert kept["step"] == step + 1 and len(kept["scenes"]) == 1
    figures("N", divergences=1, weights_changed=0)


class Taught:
    """A learner with what it holds; what is done to it is undone afterwards."""

    def __init__(self, learner: Any, state: Any) -> None:
        self.learner, self.state = learner, state

    def held(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.state().items()}


@pytest.fixture(scope="module")
def ours(base: Path, honest: Path) -> Taught:
    recipe = jobs_running.recipe_of()
    network = build_for_training(recipe, manifests.read(base / "data", "tiny").info)
    learner = Learner(network, recipe, accelerator=Accelerator(cpu=True))

    def state() -> dict[str, Tensor]:
        return {**network.state_dict(), **learner.state(), "random": torch.get_rng_state()}

    return Taught(learner, state)


@pytest.fixture
def naive() -> Taught:
    learner = updating.Learner(6, 4)
    return Taught(learner, learner.network.state_dict)


def batch_of(rng: random.Random) -> Batch:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    frames = [torch.randn(2, 3, 32, 32, generator=generator) for _ in range(2)]
    label = torch.randint(0, 4, (2, 32, 32), generator=generator)
    label[:, ::5] = 255
    return Batch(frames, label, ())


def harm(
    taught: Taught, kind: str, value: str, rng: random.Random, monkeypatch: pytest.MonkeyPatch, module: Any
) -> tuple[bool, bool]:
    """Whether an update that meets something not finite changes anything, and whether anything is not finite then."""
    batch = batch_of(rng)
    taught.learner.learn([batch], rate=1e-3)
    before = taught.held()
    with monkeypatch.context() as patch:
        # What spoil() replaces for good is put back at the end of the block.
        patch.setattr(module, "pixel_losses", module.pixel_losses)
        kept = type(taught.learner)
        patch.setattr(kept, "learn", kept.learn)
        patch.setattr(kept, "_report", kept._report)
        spoil(kind, value, step=0, seed=rng.randrange(2**31), module=module, learner=kept)
        taught.learner.learn([batch], rate=1e-3)
    after = taught.held()
    is_changed = any(not torch.equal(after[name], before[name]) for name in before) or after.keys() != before.keys()
    is_lost = any(not bool(each.isfinite().all()) for each in after.values() if each.is_floating_point())
    return is_changed, is_lost


CASES = [*itertools.product(KINDS, ("nan", "inf", "-inf", "huge")), ("label", "all ignored")]


@pytest.mark.parametrize(("kind", "value"), CASES)
def test_an_update_that_is_not_finite_changes_nothing(
    kind: str, value: str, ours: Taught, rng: random.Random, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    tries = amount(SEEDS, soak=200, few=1)
    for _ in range(tries):
        is_changed, is_lost = harm(ours, kind, value, rng, monkeypatch, ohem)
        assert not is_lost
        # Without a label the loss is 0, and the update decays weights as any other; what is huge may be made normal, or
        # belong to an ignored pixel, unless it is a gradient.
        assert not is_changed or kind == "label" or (value == "huge" and kind != "gradient")
    figures("N", injections=tries, weights_poisoned=0)


@pytest.mark.parametrize(("kind", "value"), [case for case in CASES if case[1] not in {"huge"}])
def test_an_update_that_nobody_looks_at_is_caught(
    kind: str, value: str, naive: Taught, rng: random.Random, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    _, is_lost = harm(naive, kind, value, rng, monkeypatch, updating)
    figures("N", naive_injections=1, naive_weights_poisoned=int(is_lost))
    assert is_lost


def test_scenes_without_a_label_are_counted_and_the_training_goes_on(
    base: Path, forks: Forks, figures: Figures
) -> None:
    run = base / "unlabeled"
    ended = forks.run("poisoned", saving(base, run), "label", "all ignored", 1, 0)
    assert ended.code == 0, ended.said
    rows = documents.read_json_lines(run / "metrics.jsonl")
    losses = {row["step"]: row for row in rows if "loss" in row}
    assert losses[2]["ohem"] == 0 and all(math.isfinite(row["loss"]) for row in losses.values())
    assert "1 batch" in ended.said and all(is_finite(path) for path in (run / "checkpoints").rglob("*.safetensors"))
    figures("N", unlabeled=1)


SCORES = (float("nan"), None, 0.3)


def best_by(judge: Any, scores: tuple[float | None, ...]) -> float | None:
    """The best of scores that come one after another; None is an epoch that was not validated."""
    position = Position()
    for step, score in enumerate(scores):
        position.step = step + 1
        if score is not None:
            judge(score, position)
    return position.best_miou


@pytest.mark.parametrize("scores", list(itertools.permutations(SCORES)))
def test_a_score_that_is_no_number_is_never_the_best_and_blocks_none(
    scores: tuple[float | None, ...], ours: Taught, base: Path, figures: Figures
) -> None:
    validation = Validation(
        ours.learner.network, manifests.read(base / "data", "tiny"), jobs_running.recipe_of(),
        accelerator=Accelerator(cpu=True),
    )  # fmt: skip
    assert best_by(lambda score, position: validation.judge(score, position, epoch=1), scores) == 0.3
    figures("N", orders=1)


def test_the_largest_of_all_is_caught_as_no_judge(figures: Figures) -> None:
    found = [best_by(judging.judge, scores) for scores in itertools.permutations(SCORES)]
    wrong = sum(best != 0.3 for best in found)
    figures("N", naive_orders=len(found), naive_wrong=wrong)
    assert wrong
