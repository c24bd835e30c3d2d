from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch

from memorysam_cli.losses.ohem import ohem_cross_entropy

GOLDEN = Path(__file__).parent.parent / "golden"


def logits_of(probabilities: list[float]) -> torch.Tensor:
    """Two-class logits (1, 2, 1, n) whose class 0 has these probabilities."""
    p = torch.tensor(probabilities)
    return torch.stack([p.log(), (1 - p).log()])[None, :, None]


def test_only_pixels_below_the_threshold_count() -> None:
    label = torch.zeros(1, 1, 4, dtype=torch.int64)
    loss = ohem_cross_entropy(logits_of([0.9, 0.8, 0.5, 0.2]), label)
    torch.testing.assert_close(loss, torch.tensor(-(math.log(0.5) + math.log(0.2)) / 2))


def test_too_few_hard_pixels_are_filled_up_with_the_largest_losses() -> None:
    label = torch.zeros(1, 1, 4, dtype=torch.int64)
    loss = ohem_cross_entropy(logits_of([0.99, 0.9, 0.8, 0.75]), label, min_kept=0.5)
    torch.testing.assert_close(loss, torch.tensor(-(math.log(0.8) + math.log(0.75)) / 2))


def test_the_least_number_comes_from_valid_pixels_only() -> None:
    label = torch.tensor([[[0, 0, 255, 255]]])
    loss = ohem_cross_entropy(logits_of([0.9, 0.8, 0.1, 0.1]), label, min_kept=0.5)
    torch.testing.assert_close(loss, torch.tensor(-math.log(0.8)))


def test_no_valid_pixel_gives_zero_and_a_zero_gradient() -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = ohem_cross_entropy(logits, torch.full((2, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and torch.count_nonzero(logits.grad) == 0


def test_the_reference_value_comes_out() -> None:
    wanted = json.loads((GOLDEN / "training.json").read_text())["ohem"]
    with np.load(GOLDEN / "parts.npz") as parts:
        logits, label = torch.from_numpy(parts["ohem_logits"]), torch.from_numpy(parts["ohem_labels"]).long()
    torch.testing.assert_close(ohem_cross_entropy(logits, label).item(), wanted["hard"], rtol=1e-6, atol=0)
