from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from memorysam_cli.errors import UsageError
from memorysam_cli.losses.loss import Exchange, LossInputs, Task
from memorysam_cli.losses.ohem import OhemLoss, class_weights, ohem_mean, pixel_losses
from memorysam_cli.recipe import Ohem

GOLDEN = Path(__file__).parent.parent / "golden"
Together = Callable[[Sequence[Callable[[Exchange], Any]]], list[Any]]


def by_sorting(losses: Tensor, label: Tensor, *, threshold: float = 0.7, min_kept: float = 1 / 16) -> Tensor:
    """What METHOD §3 says, with a sort of everything."""
    losses = losses.flatten()
    least = int(int((label != 255).sum()) * min_kept)
    hard = losses[losses > -math.log(threshold)]
    if len(hard) < least:
        hard = losses.sort(descending=True).values[:least]
    return hard.mean() if len(hard) else losses.sum() * 0


def losses_of(probabilities: list[float], label: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """Losses of pixels whose class has these probabilities, and their label."""
    classes = torch.tensor(label if label is not None else [0] * len(probabilities))
    return torch.tensor([-math.log(p) for p in probabilities]).where(classes != 255, 0.0), classes


def made_up(*shape: int, scale: float, seed: int = 0, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    """Losses whose mean is ``scale``, and a label of which a share is ignored."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.where(torch.rand(shape, generator=generator) < ignored, 255, 0)
    return torch.empty(shape).exponential_(1 / scale, generator=generator).where(label != 255, 0.0), label


def with_gradient(losses: Tensor, label: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
    leaf = losses.clone().requires_grad_()
    loss = ohem_mean(leaf, label, **settings)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def test_only_pixels_below_the_threshold_count() -> None:
    loss, gradient = with_gradient(*losses_of([0.9, 0.8, 0.5, 0.2]))
    torch.testing.assert_close(loss, torch.tensor(-(math.log(0.5) + math.log(0.2)) / 2))
    assert gradient.tolist() == [0, 0, 0.5, 0.5]


def test_too_few_hard_pixels_are_filled_up_with_the_largest_losses() -> None:
    loss, gradient = with_gradient(*losses_of([0.99, 0.9, 0.8, 0.75]), min_kept=0.5)
    torch.testing.assert_close(loss, torch.tensor(-(math.log(0.8) + math.log(0.75)) / 2))
    assert gradient.tolist() == [0, 0, 0.5, 0.5]


def test_the_least_number_comes_from_valid_pixels_only() -> None:
    loss = ohem_mean(*losses_of([0.9, 0.8, 0.1, 0.1], [0, 0, 255, 255]), min_kept=0.5)
    torch.testing.assert_close(loss, torch.tensor(-math.log(0.8)))


def test_all_pixels_can_be_kept() -> None:
    losses, label = made_up(3, 5, 7, scale=0.05)
    loss, gradient = with_gradient(losses, label, min_kept=1.0)
    torch.testing.assert_close(loss, losses[label != 255].mean())
    assert torch.equal(gradient > 0, label != 255)


def test_no_valid_pixel_gives_zero_and_a_zero_gradient() -> None:
    loss, gradient = with_gradient(torch.zeros(2, 4, 4), torch.full((2, 4, 4), 255))
    assert loss.item() == 0
    assert torch.count_nonzero(gradient) == 0


@pytest.mark.parametrize("value", [0.0, 0.2, 3.0])
def test_one_valid_pixel_counts_where_it_is_hard(value: float) -> None:
    label = torch.tensor([[255, 0, 255]])
    loss = ohem_mean(torch.tensor([[0.0, value, 0.0]]), label)
    torch.testing.assert_close(loss, torch.tensor(value if value > -math.log(0.7) else 0.0))


def test_ties_for_the_last_places_share_them() -> None:
    losses = torch.tensor([0.1, 0.3, 0.2, 0.2, 0.2, 0.0])
    loss, gradient = with_gradient(losses, torch.zeros(6, dtype=torch.int64), min_kept=0.5)
    torch.testing.assert_close(loss, torch.tensor((0.3 + 0.2 + 0.2) / 3))
    torch.testing.assert_close(gradient, torch.tensor([0, 3, 2, 2, 2, 0]) / 9)


def test_ignored_pixels_share_nothing_where_all_losses_are_zero() -> None:
    _, gradient = with_gradient(torch.zeros(4), torch.tensor([0, 255, 0, 255]), min_kept=0.5)
    assert gradient.tolist() == [0.5, 0, 0.5, 0]


def test_the_order_of_pixels_does_not_matter() -> None:
    losses, label = made_up(400, scale=0.1)
    losses = (losses * 20).round() / 20  # many ties
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    loss, gradient = with_gradient(losses, label, min_kept=0.3)
    shuffled, shuffled_gradient = with_gradient(losses[order], label[order], min_kept=0.3)
    torch.testing.assert_close(shuffled, loss, rtol=1e-6, atol=0)
    assert torch.equal(shuffled_gradient, gradient[order])


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
    scale=st.sampled_from([1e-30, 0.01, 0.1, 1.0, 1e30]),
    min_kept=st.sampled_from([1 / 16, 0.25, 0.5, 1.0]),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_a_sort(
    shape: tuple[int, ...], scale: float, min_kept: float, ignored: float, seed: int
) -> None:
    losses, label = made_up(*shape, scale=scale, seed=seed, ignored=ignored)
    leaf = losses.clone().requires_grad_()
    wanted = by_sorting(leaf, label, min_kept=min_kept)
    (wanted_gradient,) = torch.autograd.grad(wanted, leaf)
    loss, gradient = with_gradient(losses, label, min_kept=min_kept)
    torch.testing.assert_close(loss, wanted.detach(), rtol=2e-6, atol=0)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize("min_kept", [0.25, 1.0])
def test_logits_at_stride_four_give_the_loss_and_gradient_of_all_pixels(min_kept: float) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(2, 6, 5, 7, generator=generator)
    label = torch.randint(0, 6, (2, 20, 28), generator=generator)
    label[0, :9] = 255
    found = []
    for is_plain in (False, True):
        leaf = logits.clone().requires_grad_()
        if is_plain:
            upsampled = F.interpolate(leaf, size=(20, 28), mode="bilinear", align_corners=False)
            losses = F.cross_entropy(upsampled, label, ignore_index=255, reduction="none")
            loss = by_sorting(losses, label, min_kept=min_kept, threshold=1e-6)
        else:
            loss = ohem_mean(pixel_losses(leaf, label), label, min_kept=min_kept, threshold=1e-6)
        found.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def test_the_reference_value_comes_out() -> None:
    wanted = json.loads((GOLDEN / "training.json").read_text())["ohem"]
    with np.load(GOLDEN / "parts.npz") as parts:
        logits, label = torch.from_numpy(parts["ohem_logits"]), torch.from_numpy(parts["ohem_labels"]).long()
    torch.testing.assert_close(ohem_mean(pixel_losses(logits, label), label).item(), wanted["hard"], rtol=1e-6, atol=0)


def test_a_loss_that_is_no_number_shows() -> None:
    losses, label = made_up(50, scale=1.0, ignored=0.0)
    losses[7] = math.nan
    assert ohem_mean(losses, label).isnan()


def test_no_count_is_read() -> None:
    with FakeTensorMode():  # its tensors have no values: reading one is an error
        losses = torch.empty(2, 8, 8, requires_grad=True)
        ohem_mean(losses, torch.empty(2, 8, 8, dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]
        assert losses.grad is not None


def test_nothing_larger_than_the_losses_comes_about(largest: Any) -> None:
    losses, label = made_up(2, 64, 64, scale=0.1)
    with largest:
        with_gradient(losses, label)
    assert largest.bytes == losses.numel() * 4


@pytest.mark.parametrize("scale", [0.05, 2.0], ids=["filled up", "enough"])
@pytest.mark.parametrize("cuts", [[4], [1, 5], [0, 4], [3, 4]], ids=str)
def test_parts_that_exchange_are_the_whole(cuts: list[int], scale: float, together: Together) -> None:
    losses, label = made_up(6, 9, 11, scale=scale)
    losses = (losses * 50).round() / 50  # ties across the parts
    label[:3][losses[:3] > scale] = 255  # fewer valid pixels there, and with the easier ones a smaller threshold
    label[4] = 255  # for the last cuts, a part without a valid pixel
    losses = losses.where(label != 255, 0.0)
    wanted, wanted_gradient = with_gradient(losses, label, min_kept=0.25)
    pieces = list(zip(torch.tensor_split(losses, cuts), torch.tensor_split(label, cuts), strict=True))
    found = together(
        [lambda exchange, piece=piece: with_gradient(*piece, min_kept=0.25, exchange=exchange) for piece in pieces]
    )
    torch.testing.assert_close(torch.stack([loss for loss, _ in found]).mean(), wanted, rtol=1e-6, atol=0)
    gradient = torch.cat([gradient for _, gradient in found]) / len(pieces)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-6, atol=0)


def test_parts_without_any_valid_pixel_give_zero(together: Together) -> None:
    label = torch.full((2, 3), 255)
    found = together([lambda exchange: with_gradient(torch.zeros(2, 3), label, exchange=exchange)] * 2)
    assert all(loss.item() == 0 and torch.count_nonzero(gradient) == 0 for loss, gradient in found)


def ohem_of(**settings: Any) -> OhemLoss:
    """For three classes, of which the training split has 100, 10 and 1000 pixels."""
    task = Task(("a", "b", "c"), ("img",), width=2, device=torch.device("cpu"), class_pixels=(100, 10, 1000))
    return OhemLoss(Ohem(**settings), task)


def loss_and_gradient(loss: OhemLoss, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    found = loss(LossInputs([leaf], [leaf], [label], [], loss.task))
    (gradient,) = torch.autograd.grad(found, leaf)
    return found.detach(), gradient


def test_weights_of_classes_by_hand() -> None:
    """inverse: 1/100 : 1/10 : 1/1000 with the mean 1. effective: N = 100, the median, so that common classes differ by
    1 − 0.99ⁿ alone: 0.634, 0.0956, 0.99996."""
    assert ohem_of().class_weights is None
    given = ohem_of(class_weights=(1.0, 0.0, 2.0)).class_weights
    assert given is not None and given.tolist() == [1, 0, 2]
    inverse = ohem_of(class_weights="inverse").class_weights
    assert inverse is not None
    torch.testing.assert_close(inverse, torch.tensor([10.0, 100, 1]) * 3 / 111)
    effective = ohem_of(class_weights="effective").class_weights
    raw = torch.tensor([1 / (1 - 0.99**n) for n in (100, 10, 1000)], dtype=torch.float64)
    assert effective is not None
    torch.testing.assert_close(effective, (raw * 3 / raw.sum()).float())


def test_a_class_without_a_pixel_weighs_nothing_and_changes_no_other_weight() -> None:
    task = Task(("a", "b", "c", "d"), ("img",), width=2, device=torch.device("cpu"), class_pixels=(100, 10, 0, 1000))
    for wanted in ("inverse", "effective"):
        found, others = class_weights(wanted, task), ohem_of(class_weights=wanted).class_weights
        assert found is not None and others is not None
        assert found[2] == 0
        torch.testing.assert_close(found[[0, 1, 3]], others)


def test_a_list_has_one_number_for_each_class() -> None:
    with pytest.raises(UsageError, match=r"has 2 numbers, the data set 3 classes; give one for each, .*: a, b, c$"):
        ohem_of(class_weights=(1.0, 2.0))


def test_weights_and_smoothing_are_those_of_pytorch_where_all_pixels_are_kept() -> None:
    """PyTorch divides by the weights' sum too; with both at once it weighs the smoothed part otherwise."""
    generator = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(2, 3, 5, 7, generator=generator)
    label = torch.randint(0, 3, (2, 20, 28), generator=generator)
    label[0, :9] = 255
    for settings in ({"class_weights": (1.0, 0.5, 3.0)}, {"label_smoothing": 0.2}):
        found = loss_and_gradient(ohem_of(min_kept=1.0, threshold=1e-9, **settings), logits, label)
        leaf = logits.clone().requires_grad_()
        upsampled = F.interpolate(leaf, size=(20, 28), mode="bilinear", align_corners=False)
        weight = torch.tensor(settings["class_weights"]) if "class_weights" in settings else None
        wanted = F.cross_entropy(
            upsampled, label, ignore_index=255, weight=weight, label_smoothing=float(settings.get("label_smoothing", 0))
        )
        torch.testing.assert_close(found, (wanted.detach(), *torch.autograd.grad(wanted, leaf)), rtol=1e-5, atol=1e-7)


def test_weights_and_smoothing_do_not_decide_which_pixels_are_hard() -> None:
    """Of two cells the second is hard at 0.7 (p = 0.6); its loss with ε = 0.3 is 0.7·−ln 0.6 + 0.1·−Σ ln p."""
    logits = torch.tensor([[[[0.9, 0.6]], [[0.05, 0.2]], [[0.05, 0.2]]]]).log()
    label = torch.tensor([0, 0])[None, None].repeat_interleave(4, 1).repeat_interleave(4, 2)
    apart = torch.cat([logits[..., :1].expand(-1, -1, 1, 3), logits[..., 1:].expand(-1, -1, 1, 3)], dim=3)
    labels = torch.cat([label[..., :4]] * 6, dim=2)
    labels[:, :, 8:16] = 255  # where one cell passes into the other
    found, gradient = loss_and_gradient(ohem_of(label_smoothing=0.3, class_weights=(5.0, 1, 1)), apart, labels)
    logs = [math.log(p) for p in (0.6, 0.2, 0.2)]
    torch.testing.assert_close(found, torch.tensor(-0.7 * logs[0] - 0.1 * sum(logs)))
    assert not gradient[..., :2].any()


def test_a_run_goes_on_with_the_weights_that_it_began_with() -> None:
    first, second = ohem_of(class_weights="inverse"), ohem_of(class_weights="effective")
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second.class_weights, first.class_weights, rtol=0, atol=0)
    assert ohem_of().state_dict() == {}
    with pytest.raises(KeyError, match="keeps no state"):
        ohem_of().load_state_dict(first.state_dict())
