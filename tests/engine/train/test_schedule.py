from __future__ import annotations

import json
from pathlib import Path

import pytest

from memorysam_cli.engine.train.update import learning_rate
from memorysam_cli.recipe import Optim

WANTED = json.loads((Path(__file__).parents[2] / "golden" / "training.json").read_text())["schedule"]


@pytest.mark.parametrize("step", [int(step) for step in WANTED["lr"]])
def test_equals_the_reference(step: int) -> None:
    found = learning_rate(
        step,
        optim=Optim(lr=6e-4),
        steps_per_epoch=WANTED["iterations_per_epoch"],
        epochs=WANTED["epochs"],
    )
    assert found == pytest.approx(WANTED["lr"][str(step)], rel=1e-9)


def test_is_positive_to_the_last_step_and_highest_when_the_warmup_ends() -> None:
    optim = Optim(lr=1.0, warmup_epochs=2)
    rates = [learning_rate(step, optim=optim, steps_per_epoch=5, epochs=6) for step in range(30)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] > 0


def test_no_warmup_starts_at_the_full_rate() -> None:
    assert learning_rate(0, optim=Optim(lr=0.5, warmup_epochs=0), steps_per_epoch=3, epochs=2) == 0.5
