from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from memorysam_cli.losses.spmm import PrototypeMemory, class_sums, resize_label

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
