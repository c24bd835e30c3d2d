from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from memorysam_cli.losses.loss import Exchange, LossInputs, Task
from memorysam_cli.losses.spmm import PrototypeMemory, SpmmLoss, class_sums, resize_label
from memorysam_cli.recipe import Spmm

GOLDEN = Path(__file__).parent.parent / "golden"


def batch(label: list[list[int]], features: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """One row of pixels: features (1, 1, 1, n) and a label of the same size."""
    return torch.tensor(features)[None, None], torch.tensor(label)[None]


def test_five_steps_give_the_reference_losses() -> None:
    wanted = json.loads((GOLDEN / "training.json").read_text())["spmm"]
    memory = PrototypeMemory(wanted["classes"], width=wanted["dim"], variant="reference")
    with np.load(GOLDEN / "parts.npz") as parts:
        losses = [
            memory(torch.from_numpy(parts[f"spmm_features_{i}"]), torch.from_numpy(parts[f"spmm_labels_{i}"]).long())
            for i in range(5)
        ]
    torch.testing.assert_close(torch.stack(losses), torch.tensor(wanted["losses"]), rtol=1e-4, atol=0)


def test_reference_divides_twice_and_pulls_absent_classes_to_zero() -> None:
    memory = PrototypeMemory(2, width=1, variant="reference")
    features, label = batch([[0, 0]], [[2.0, 4.0]])
    loss = memory(features, label)
    local = 3.0 / 2  # the mean 3, divided by its two pixels once more
    torch.testing.assert_close(memory.prototypes, torch.tensor([[0.2 * local], [0.0]]))
    torch.testing.assert_close(loss, torch.tensor(((0.8 * local) ** 2 + 0) / 2))
    memory(*batch([[1, 1]], [[1.0, 1.0]]))
    torch.testing.assert_close(memory.prototypes[0], torch.tensor([0.8 * 0.2 * local]))


@pytest.mark.parametrize("classes", [2, 20, 25, 30])
def test_the_reference_divides_by_25_classes_on_every_data_set(classes: int) -> None:
    task = Task(tuple(f"c{number}" for number in range(classes)), ("img",), width=2, device=torch.device("cpu"))
    loss = SpmmLoss(Spmm(variant="reference", weight=1), task)
    features = torch.tensor([[[[3.0]], [[1.0]]]])  # one pixel of class 1, so that dividing twice changes nothing
    inputs = LossInputs([torch.zeros(1, classes, 1, 1)], [features], [torch.tensor([[[1]]])], [], task)
    # G = 0.2·p, so that p − G = 0.8·p: (2.4² + 0.8²) over 25 classes × 2 channels; the other classes give 0
    assert float(loss(inputs)) == pytest.approx(6.4 / (25 * 2))


def test_paper_compares_with_the_prototypes_of_before_and_leaves_absent_classes_alone() -> None:
    memory = PrototypeMemory(3, width=1, variant="paper")
    first = memory(*batch([[0, 0, 1]], [[2.0, 4.0, 1.0]]))
    assert first.item() == 0  # a class first seen sets its own prototype
    torch.testing.assert_close(memory.prototypes, torch.tensor([[3.0], [1.0], [0.0]]))
    second = memory(*batch([[0, 0, 255]], [[5.0, 5.0, 9.0]]))
    torch.testing.assert_close(second, torch.tensor((5.0 - 3.0) ** 2))
    torch.testing.assert_close(memory.prototypes, torch.tensor([[0.8 * 3 + 0.2 * 5], [1.0], [0.0]]))
    assert memory.seen.tolist() == [True, True, False]


@pytest.mark.parametrize("variant", ["reference", "paper"])
def test_gradient_flows_through_the_local_prototypes_only(variant: str) -> None:
    memory = PrototypeMemory(2, width=1, variant=variant)  # type: ignore[arg-type]
    memory(*batch([[0, 1]], [[1.0, 2.0]]))
    features, label = batch([[0, 1]], [[3.0, 5.0]])
    memory(features.requires_grad_(), label).backward()
    assert features.grad is not None and torch.count_nonzero(features.grad) == 2
    assert not memory.prototypes.requires_grad


@pytest.mark.parametrize("variant", ["reference", "paper"])
def test_an_ignored_batch_gives_no_loss_of_its_own_and_stays_finite(variant: str) -> None:
    memory = PrototypeMemory(2, width=1, variant=variant)  # type: ignore[arg-type]
    loss = memory(*batch([[255, 255]], [[1.0, 2.0]]))
    assert loss.item() == 0
    assert torch.isfinite(memory.prototypes).all()


def test_class_sums_equal_a_loop_over_classes() -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2, 4, 5, 6, generator=generator)
    label = torch.randint(0, 4, (2, 5, 6), generator=generator)
    label[label == 3] = 255
    sums, counts = class_sums(features, label, 3)
    for index in range(3):
        mask = label == index
        torch.testing.assert_close(sums[index], features.permute(0, 2, 3, 1)[mask].sum(0))
        assert counts[index] == mask.sum()


def test_labels_are_resized_by_floor_nearest() -> None:
    label = torch.arange(10).reshape(1, 1, 10)
    assert resize_label(label, (1, 4))[0, 0].tolist() == [0, 2, 5, 7]


def test_class_sums_have_the_gradient_of_a_loop_over_classes() -> None:
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(2, 4, 5, 6, generator=generator, requires_grad=True)
    label = torch.randint(0, 4, (2, 5, 6), generator=generator)
    label[label == 3] = 255
    weights = torch.randn(3, 4, generator=generator)
    sums, _ = class_sums(features, label, 3)
    (gradient,) = torch.autograd.grad((sums * weights).sum(), features)
    wanted = torch.cat([weights, torch.zeros(253, 4)])[label].permute(0, 3, 1, 2)
    torch.testing.assert_close(gradient, wanted)


def test_class_sums_are_float32_under_autocast() -> None:
    features = 1 + torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    label = torch.zeros(1, 8, 8, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums, counts = class_sums(features, label, 2)
    assert sums.dtype == counts.dtype == torch.float32
    torch.testing.assert_close(sums[0], features.sum(dim=(0, 2, 3)), rtol=1e-6, atol=0)


def test_no_value_is_read() -> None:
    with FakeTensorMode():  # its tensors have no values: reading one is an error
        memory = PrototypeMemory(5, width=3, variant="paper")
        features = torch.empty(2, 3, 4, 4, requires_grad=True)
        memory(features, torch.empty(2, 16, 16, dtype=torch.int64)).backward()
        assert features.grad is not None


@pytest.mark.parametrize("variant", ["reference", "paper"])
@pytest.mark.parametrize("cuts", [[4], [1, 4], [3, 4]], ids=str)
def test_parts_that_exchange_are_the_whole(
    variant: str, cuts: list[int], together: Callable[[Sequence[Callable[[Exchange], Any]]], list[Any]]
) -> None:
    generator = torch.Generator().manual_seed(6)
    batches = [
        (torch.randn(6, 3, 4, 5, generator=generator), torch.randint(0, 5, (6, 8, 10), generator=generator))
        for _ in range(2)  # the second one has prototypes to compare with
    ]
    for _, label in batches:
        label[0, 2:] = 255
        label[3] = 255  # for the last cuts, a part without a valid pixel

    def learn(part: int | None, exchange: Exchange | None) -> tuple[Tensor, Tensor, Tensor]:
        memory = PrototypeMemory(6, width=3, variant=variant)  # type: ignore[arg-type]
        for features, label in batches:
            piece = slice(None) if part is None else slice([0, *cuts][part], [*cuts, 6][part])
            leaf = features[piece].clone().requires_grad_()
            loss = memory(leaf, label[piece], exchange=exchange)
            (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient, memory.prototypes

    wanted, wanted_gradient, wanted_prototypes = learn(None, None)
    assert wanted > 0
    parts = len(cuts) + 1
    found = together([lambda exchange, part=part: learn(part, exchange) for part in range(parts)])
    for loss, _, prototypes in found:
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
        torch.testing.assert_close(prototypes, wanted_prototypes, rtol=1e-5, atol=1e-7)
    # The mean over processes, which DDP takes.
    gradient = torch.cat([gradient for _, gradient, _ in found]) / parts
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-8)
