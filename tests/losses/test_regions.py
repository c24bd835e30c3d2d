"""Dice, Lovász and focal: values by hand, against plain implementations written here, and exact in any parts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from memorysam_cli.losses.loss import Exchange, Loss, LossInputs, Task
from memorysam_cli.losses.regions import lovasz_weights
from memorysam_cli.recipe import LossSettings
from memorysam_cli.registry import LOSSES

Together = Callable[[Sequence[Callable[[Exchange], Any]]], list[Any]]
NAMES = ["dice", "lovasz", "focal"]


def loss_of(name: str, *, classes: int, **settings: Any) -> tuple[Loss, Task]:
    task = Task(tuple(f"c{each}" for each in range(classes)), ("img",), width=2, device=torch.device("cpu"))
    kind = LOSSES.get(name)
    return kind(kind.Settings(**settings), task), task


def value(name: str, logits: Tensor, label: Tensor, **settings: Any) -> Tensor:
    """The loss of one batch."""
    loss, task = loss_of(name, classes=logits.shape[1], **settings)
    return loss(LossInputs([logits], [torch.zeros(1)], [label], [[]], task))


def cells(probabilities: list[list[float]], classes: list[int]) -> tuple[Tensor, Tensor]:
    """One row of cells with these probabilities; all 16 pixels of a cell are of its class."""
    logits = torch.tensor(probabilities).log().T[None, :, None]  # (n, K) -> (1, K, 1, n)
    label = torch.tensor(classes)[None, None].repeat_interleave(4, 1).repeat_interleave(4, 2)
    return logits, label


def made_up(scenes: int = 4, *, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and labels, a third of which count nowhere; the last class never occurs, one scene has no label."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(scenes, classes, 6, 5, generator=random)
    label = torch.randint(0, classes - 1, (scenes, 24, 20), generator=random)
    label[torch.rand(label.shape, generator=random) < 0.3] = 255
    label[0] = 255
    return logits, label


def test_dice_of_three_cells_by_hand() -> None:
    """Class 0: 2·0.8 / (0.8 + 0.4 + 0.1 + 1); class 1: 2·(0.6 + 0.9) / (0.2 + 0.6 + 0.9 + 2); the last cell is out."""
    logits, label = cells([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9], [0.5, 0.5]], [0, 1, 1, 255])
    wanted = ((1 - 1.6 / 2.3) + (1 - 3.0 / 3.7)) / 2
    torch.testing.assert_close(value("dice", logits, label), torch.tensor(wanted))


def test_lovasz_of_three_cells_by_hand() -> None:
    """Both classes' errors are 0.2, 0.4, 0.1 in the order of the cells, of the classes 0, 1, 1.

    Class 0 has one cell, which is second in the order 0.4, 0.2, 0.1. 1 − IoU with the worst wrong: 1 − 1/2; with the
    two worst: 1 − 0/2; then all. Its steps are 1/2, 1/2, 0: 0.4/2 + 0.2/2 = 0.3. Class 1 has two: 1 − 1/2,
    1 − 1/3, 1; steps 1/2, 1/6, 1/3: 0.2 + 0.2/6 + 0.1/3.
    """
    logits, label = cells([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9], [0.5, 0.5]], [0, 1, 1, 255])
    wanted = (0.3 + (0.2 + 0.2 / 6 + 0.1 / 3)) / 2
    torch.testing.assert_close(value("lovasz", logits, label), torch.tensor(wanted))
    found = lovasz_weights(torch.tensor([0.2, 0.4, 0.1]), torch.tensor([True, False, False]))
    torch.testing.assert_close(found, torch.tensor([1 / 2, 1 / 2, 0]))


def test_focal_by_hand() -> None:
    """One cell: its 16 pixels have its probabilities, 0.75 for the class."""
    logits, label = cells([[0.75, 0.25]], [0])
    torch.testing.assert_close(value("focal", logits, label), torch.tensor(-(0.25**2) * math.log(0.75)))
    torch.testing.assert_close(value("focal", logits, label, gamma=0.5), torch.tensor(-0.5 * math.log(0.75)))
    torch.testing.assert_close(value("focal", logits, label, gamma=0), torch.tensor(-math.log(0.75)))


def plain_lovasz(logits: Tensor, label: Tensor) -> Tensor:
    """As its authors wrote it: the valid cells alone, one class after the other, 1 − IoU by counting sets."""
    is_valid = label != 255
    p = logits.softmax(1).movedim(1, -1)[is_valid]
    losses = []
    for number in label[is_valid].unique().tolist():
        is_class = label[is_valid] == number
        errors = torch.where(is_class, 1 - p[:, number], p[:, number])
        order = errors.detach().argsort(descending=True)
        wrong, before, loss = set(), 0.0, torch.zeros(())
        true = set(is_class.nonzero().flatten().tolist())
        for place in order.tolist():
            wrong.add(place)
            after = 1 - len(true - wrong) / len(true | wrong)
            loss = loss + errors[place] * (after - before)
            before = after
        losses.append(loss)
    return torch.stack(losses).mean()


def plain_dice(logits: Tensor, label: Tensor) -> Tensor:
    is_valid = label != 255
    p = logits.softmax(1).movedim(1, -1)[is_valid]
    truth = F.one_hot(label[is_valid], p.shape[1]).float()
    scores = 2 * (p * truth).sum(0) / (p.sum(0) + truth.sum(0))
    return (1 - scores)[truth.sum(0) > 0].mean()


def plain_focal(logits: Tensor, label: Tensor) -> Tensor:
    full = F.interpolate(logits, size=label.shape[-2:], mode="bilinear", align_corners=False)
    p = full.softmax(1).movedim(1, -1)[label != 255].gather(1, label[label != 255][:, None])
    return ((1 - p).square() * -p.log()).mean()


@pytest.mark.parametrize(("name", "plain"), [("dice", plain_dice), ("lovasz", plain_lovasz), ("focal", plain_focal)])
def test_values_and_gradients_are_those_of_a_plain_implementation(name: str, plain: Callable[..., Tensor]) -> None:
    logits, label = made_up()
    # The pixel in the middle of a cell of 4 × 4 is its third; focal looks at every pixel.
    seen = label if name == "focal" else label[:, 2::4, 2::4]
    found = []
    for function in (lambda leaf: value(name, leaf, label), lambda leaf: plain(leaf, seen)):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf)
        found.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_right_and_certain_is_zero_and_nothing_labeled_is_zero_too(name: str) -> None:
    logits, label = cells([[1.0, 1e-30], [1e-30, 1.0]], [0, 1])
    assert float(value(name, logits, label)) == pytest.approx(0, abs=1e-6)
    leaf = logits.clone().requires_grad_()
    loss = value(name, leaf, torch.full_like(label, 255))
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.item() == 0 and not gradient.any()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_pixel_that_is_quite_right_has_a_finite_gradient(gamma: float) -> None:
    logits, label = cells([[1.0, 1e-38], [0.5, 0.5]], [0, 255])
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value("focal", leaf, label, gamma=gamma), leaf)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_any_size_and_processes_are_one_batch(name: str, together: Together) -> None:
    logits, label = made_up()
    loss, task = loss_of(name, classes=5)

    def of(cuts: Sequence[int], exchange: Exchange | None = None) -> tuple[Tensor, Tensor]:
        leaf = logits.clone().requires_grad_()
        rows = [slice(*pair) for pair in itertools.pairwise(cuts)]
        batches = [leaf[each] for each in rows]
        found = loss(
            LossInputs(batches, [torch.zeros(1)] * len(rows), [label[each] for each in rows], [], task, exchange)
        )
        (gradient,) = torch.autograd.grad(found, leaf)
        return found.detach(), gradient

    wanted, gradient = of((0, 4))
    torch.testing.assert_close(of((0, 1, 2, 4)), (wanted, gradient))
    halves = together([lambda exchange: of((0, 1, 2), exchange), lambda exchange: of((2, 4), exchange)])
    torch.testing.assert_close((halves[0][0] + halves[1][0]) / 2, wanted)  # the mean over processes
    torch.testing.assert_close((halves[0][1] + halves[1][1]) / 2, gradient)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_device(name: str) -> None:
    """A value that had to be read would raise here."""
    loss, task = loss_of(name, classes=5)
    with FakeTensorMode() as mode:
        logits, label = (mode.from_tensor(each) for each in made_up())
        loss(LossInputs([logits.half()], [logits], [label], [[]], task))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_a_number_shows(name: str) -> None:
    logits, label = made_up()
    logits[1, 0, 2, 2] = math.nan
    label[1] = 1
    assert math.isnan(value(name, logits, label))


def test_settings_are_what_they_say() -> None:
    for name in NAMES:
        settings = LOSSES.get(name).Settings
        assert issubclass(settings, LossSettings)
        assert set(settings.model_fields) == {"weight"} | ({"gamma"} if name == "focal" else set())
