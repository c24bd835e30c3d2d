from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from memorysam_cli.engine.infer import decision
from memorysam_cli.engine.infer.decision import Wanted, decide


def test_a_decision_by_hand() -> None:
    logits = torch.tensor([[[[0.0, 2.0]], [[0.0, 0.0]], [[np.log(2), 0.0]]]])  # (1, 3, 1, 2)
    (found,) = decide(logits, [(1, 2)], classes=3, wanted=Wanted(sureness="uint8"))
    mask, sureness, _ = found.arrays()
    assert mask.tolist() == [[2, 0]] and mask.dtype == np.uint8
    # 2 / (1 + 1 + 2), and e² / (e² + 2)
    assert sureness is not None and sureness.tolist() == [[128, round(255 * np.e**2 / (np.e**2 + 2))]]


def test_equal_logits_go_to_the_first_class() -> None:
    (found,) = decide(torch.zeros(1, 5, 3, 4), [(3, 4)], classes=5)
    assert not found.arrays()[0].any() and found.arrays()[1] is None


def test_each_scene_of_a_batch_gets_its_own_size() -> None:
    logits = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = decide(logits, [(16, 24), (8, 8)], classes=4)
    assert [each.arrays()[0].shape for each in found] == [(16, 24), (8, 8)]
    np.testing.assert_array_equal(found[1].arrays()[0], logits[1].argmax(0).numpy())
    larger = torch.nn.functional.interpolate(logits[:1], (16, 24), mode="bilinear")
    np.testing.assert_array_equal(found[0].arrays()[0], larger[0].argmax(0).numpy())


def test_half_precision_is_enlarged_in_float32() -> None:
    """Otherwise what lies between two values would be rounded to steps, and their ties decided by the first class."""
    logits = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    (half,), (whole,) = (decide(each, [(64, 64)], classes=4) for each in (logits, logits.float()))
    np.testing.assert_array_equal(half.arrays()[0], whole.arrays()[0])


@pytest.mark.parametrize(("classes", "dtype"), [(255, np.uint8), (256, np.uint16)])
def test_no_class_number_wraps(classes: int, dtype: type) -> None:
    logits = torch.zeros(1, classes, 2, 2)
    logits[:, -1] = 1
    mask, *_ = decide(logits, [(2, 2)], classes=classes)[0].arrays()
    assert mask.dtype == dtype and (mask == classes - 1).all()


def test_rows_at_a_time_decide_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    whole = decide(logits, [(50, 40)], classes=4)[0].arrays()[0]
    monkeypatch.setattr(decision, "AT_ONCE", 4 * 40 * 7)
    np.testing.assert_array_equal(decide(logits, [(50, 40)], classes=4)[0].arrays()[0], whole)


@pytest.mark.gpu
def test_what_comes_from_a_gpu_is_what_is_decided_there() -> None:
    logits = torch.randn(3, 4, 64, 64, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    found = decide(logits, [(64, 64)] * 3, classes=4, wanted=Wanted(sureness="uint8"))
    assert all(each.classes.is_pinned() and each.arrival is found[0].arrival for each in found)
    for each, one in zip(found, logits, strict=True):
        np.testing.assert_array_equal(each.arrays()[0], one.argmax(0).cpu().numpy())


def test_thresholds_and_probabilities_by_hand() -> None:
    # Two pixels of two classes: 3 : 1 and 1 : 1, of which the first one wins.
    logits = torch.tensor([[[[math.log(3), 0.0]], [[0.0, 0.0]]]])  # (1, 2, 1, 2)
    whole, half, byte = (
        decide(logits, [(1, 2)], classes=2, wanted=Wanted(kind, kind, (0.75, 0.0), unsure))[0].arrays()
        for kind, unsure in (("float32", 255), ("float16", 1), ("uint8", 0))
    )
    assert whole[0].tolist() == [[0, 255]] and half[0].tolist() == [[0, 1]] and byte[0].tolist() == [[0, 0]]
    np.testing.assert_allclose(whole[1], [[0.75, 0.5]], atol=1e-6)
    np.testing.assert_allclose(whole[2], [[[0.75, 0.5]], [[0.25, 0.5]]], atol=1e-6)
    assert half[2].dtype == np.float16 and byte[2].dtype == np.uint8
    assert byte[1].tolist() == [[191, 128]] and byte[2].tolist() == [[[191, 128]], [[64, 128]]]


def test_probabilities_and_thresholds_are_the_same_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    wanted = Wanted("float32", "float16", (0.4, 0.5, 0.6, 0.7))
    whole = decide(logits, [(50, 40)], classes=4, wanted=wanted)[0].arrays()
    monkeypatch.setattr(decision, "AT_ONCE", 4 * 40 * 7)
    rows = decide(logits, [(50, 40)], classes=4, wanted=wanted)[0].arrays()
    assert (whole[0] == 255).any() and (whole[0] != 255).any()
    np.testing.assert_array_equal(rows[0], whole[0])
    for one, other in zip(rows[1:], whole[1:], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
