from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from memorysam_cli.engine.metrics import confusion, scores

GOLDEN = Path(__file__).parent.parent / "golden"


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
