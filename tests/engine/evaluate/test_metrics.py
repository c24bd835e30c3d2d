from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memorysam_cli.engine.evaluate import counts
from memorysam_cli.engine.evaluate.counts import confusion, scores
from memorysam_cli.model.lora import peft

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def torchmetrics() -> Iterator[Any]:
    """The independent implementation.

    It imports torchvision wherever that is installed, also one whose build does not match torch; that one is
    declared absent, as for PEFT.
    """
    peft()
    imports = importlib.import_module("lightning_utilities.core.imports")
    found = imports._version

    def version(name: str) -> str:
        if name == "torchvision" and sys.modules.get(name, imports) is None:
            raise PackageNotFoundError(name)
        return str(found(name))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imports, "_version", version)
        yield importlib.import_module("torchmetrics")


def random_maps(seed: int, *, classes: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randint(classes, shape, generator=generator)
    label = torch.randint(classes + 1, shape, generator=generator)
    return prediction, torch.where(label == classes, 255, label)


def test_a_matrix_by_hand_has_truth_in_rows() -> None:
    prediction = torch.tensor([0, 1, 1, 2, 0])
    label = torch.tensor([0, 0, 1, 255, 255])
    expected = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    torch.testing.assert_close(confusion(prediction, label, 3), expected, rtol=0, atol=0)


def test_scores_by_hand() -> None:
    found = scores(torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]]))
    assert found.iou == pytest.approx((50.0, 400 / 7, 0.0))
    assert found.f1 == pytest.approx((600 / 9, 800 / 11, 0.0))
    assert found.accuracy == pytest.approx((75.0, 400 / 6, 0.0))
    assert found.pixels == (4, 6, 0)
    assert found.miou == pytest.approx((50 + 400 / 7) / 3)
    assert found.miou_present == pytest.approx((50 + 400 / 7) / 2)


def test_a_class_that_is_only_guessed_has_iou_and_accuracy_zero_and_lowers_no_present_mean() -> None:
    found = scores(torch.tensor([[8, 2], [0, 0]]))
    assert (found.iou[1], found.f1[1], found.accuracy[1]) == (0, 0, 0)
    assert found.miou == pytest.approx(40)
    assert found.miou_present == pytest.approx(80)


def test_scores_match_the_reference_to_its_rounding() -> None:
    parts = np.load(GOLDEN / "parts.npz")
    golden = json.loads((GOLDEN / "training.json").read_text())["metrics"]
    prediction = torch.from_numpy(parts["metric_logits"]).argmax(1)
    found = scores(confusion(prediction, torch.from_numpy(parts["metric_labels"]), 5))
    for per_class, mean, (golden_classes, golden_mean) in (
        (found.iou, found.miou, golden["ious"]),
        (found.f1, found.mf1, golden["f1"]),
        (found.accuracy, found.macc, golden["acc"]),
    ):
        assert [round(value, 2) for value in per_class] == pytest.approx(golden_classes, abs=1e-6)
        assert round(mean, 2) == pytest.approx(golden_mean, abs=1e-6)


def test_counted_and_ignored_pixels_add_up_to_all() -> None:
    prediction, label = random_maps(0, classes=25, shape=(97, 131))
    matrix = confusion(prediction, label, 25)
    assert int(matrix.sum()) + int((label == 255).sum()) == 97 * 131


def test_the_matrix_of_parts_is_the_matrix_of_the_whole() -> None:
    prediction, label = random_maps(1, classes=7, shape=(10, 31, 17))
    whole = confusion(prediction, label, 7)
    parts = sum(confusion(prediction[i], label[i], 7) for i in range(10))
    assert isinstance(parts, torch.Tensor)
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)


def test_counts_above_two_to_the_24_stay_exact() -> None:
    one = confusion(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.uint8), 2)
    many = torch.tensor([[2**24, 0], [0, 0]])
    total = many + one
    assert total.dtype == torch.int64
    assert scores(total).pixels[0] == 2**24 + 1
    assert scores(torch.tensor([[2**40 + 1, 0], [0, 3]])).pixels == (2**40 + 1, 3)


def test_uint8_labels_do_not_wrap_with_many_classes() -> None:
    matrix = confusion(torch.tensor([200], dtype=torch.uint8), torch.tensor([201], dtype=torch.uint8), 250)
    assert int(matrix[201, 200]) == 1 and int(matrix.sum()) == 1


def test_an_all_ignored_label_counts_nothing_and_scores_zero_not_nan() -> None:
    matrix = confusion(torch.zeros(4, dtype=torch.int64), torch.full((4,), 255), 3)
    found = scores(matrix)
    assert (int(matrix.sum()), found.miou, found.miou_present) == (0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("prediction", "label", "words"),
    [
        ([0, 1], [0], "differ in shape"),
        ([0, 3], [0, 1], r"prediction: values 0\.\.3, allowed 0\.\.2"),
        ([0, 1], [0, 254], r"label: values 0\.\.254, allowed 0\.\.2"),
        ([0, 1], [0, -1], r"label: values -1\.\.0, allowed 0\.\.2"),
    ],
)
def test_values_outside_the_classes_are_refused(prediction: list[int], label: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        confusion(torch.tensor(prediction), torch.tensor(label), 3)


@pytest.mark.parametrize(
    ("classes", "absent"),
    [(2, ()), (5, ()), (25, (2, 7)), (25, tuple(range(1, 25)))],
    ids=["two", "five", "two absent", "one present"],
)
@pytest.mark.parametrize("seed", range(3))
def test_scores_agree_with_an_independent_implementation(
    torchmetrics: Any, classes: int, absent: tuple[int, ...], seed: int
) -> None:
    """torchmetrics skips classes that are neither in the label nor predicted; we count them 0, as the paper."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (2, 40, 50), generator=generator)
    guess = torch.where(torch.rand(label.shape, generator=generator) < 0.6, label, label.roll(3, dims=-1))
    for number in absent:
        label[label == number] = 0
        guess[guess == number] = 0
    label[torch.rand(label.shape, generator=generator) < 0.1] = 255
    matrix = confusion(guess, label, classes)
    shared = {"task": "multiclass", "num_classes": classes, "ignore_index": 255}
    torch.testing.assert_close(torchmetrics.ConfusionMatrix(**shared)(guess, label), matrix, rtol=0, atol=0)
    found = scores(matrix)
    for ours, theirs in (
        (found.iou, torchmetrics.JaccardIndex(**shared, average="none")),
        (found.f1, torchmetrics.F1Score(**shared, average="none")),
        (found.accuracy, torchmetrics.Accuracy(**shared, average="none")),
    ):
        torch.testing.assert_close(torch.tensor(ours), 100 * theirs(guess, label), rtol=1e-5, atol=1e-4)
    present = classes - len(absent)
    assert found.miou == pytest.approx(sum(found.iou) / classes)
    assert found.miou * classes == pytest.approx(found.miou_present * present)
    theirs_mean = 100 * float(torchmetrics.JaccardIndex(**shared, average="macro")(guess, label))
    assert found.miou_present == pytest.approx(theirs_mean, abs=1e-3)


def test_the_means_of_present_classes_leave_out_what_the_label_does_not_have() -> None:
    found = scores(torch.tensor([[6, 2, 0], [0, 0, 0], [1, 1, 2]]))  # class 1 is only guessed
    assert found.macc_present == pytest.approx((75 + 50) / 2)
    assert found.mf1_present == pytest.approx((1200 / 15 + 400 / 6) / 2)
    assert found.miou_present == pytest.approx((600 / 9 + 50) / 2)
    assert list(found.means()) == ["miou", "macc", "mf1", "miou_present", "macc_present", "mf1_present"]


def test_large_maps_are_counted_in_parts_and_no_pixel_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    label, prediction = (torch.randint(0, 4, (37, 41), generator=generator) for _ in range(2))
    label[::5] = 255
    whole = confusion(prediction, label, 4)
    monkeypatch.setattr(counts, "AT_ONCE", 100)
    assert torch.equal(confusion(prediction, label, 4), whole)
    assert int(whole.sum()) == int((label != 255).sum())
