from __future__ import annotations

import numpy as np
import pytest
import torch

from memorysam_cli.data.transforms import Sample, augment, mirror, to_tensor
from memorysam_cli.dataset import Modality
from memorysam_cli.errors import DataError
from memorysam_cli.recipe import Augment


def angle(flip: str, **others: object) -> Modality:
    return Modality.model_validate({"name": "aolp", "kind": "angle", "flip": flip, **others})


def frames(dtype: type, *, shape: tuple[int, int] = (5, 7)) -> np.ndarray:
    values = np.random.Generator(np.random.PCG64(4)).random((*shape, 3))
    return (2 * values - 1).astype(dtype) if dtype is np.float32 else (values * np.iinfo(dtype).max).astype(dtype)


SYMMETRIC = [
    (np.float32, {}),
    (np.float32, {"scale": 0.5, "offset": 0.25}),
    (np.uint8, {"scale": 2 / 255, "offset": -1.0}),
    (np.uint8, {"offset": -0.5}),
    (np.uint16, {"scale": 2 / 65535, "offset": -1.0}),
]


@pytest.mark.parametrize(("dtype", "values"), SYMMETRIC)
@pytest.mark.parametrize(("flip", "sign"), [("negate_sine", (-1, 1, -1)), ("negate_cosine", (1, -1, 1))])
def test_the_sign_changes_in_the_values_that_the_network_sees(
    dtype: type, values: dict[str, float], flip: str, sign: tuple[int, int, int]
) -> None:
    modality, frame = angle(flip, **values), frames(dtype)
    turned = to_tensor(mirror(frame, modality), modality)
    torch.testing.assert_close(turned, to_tensor(frame, modality).flip(-1) * torch.tensor(sign)[:, None, None])


def test_the_sign_by_hand() -> None:
    frame = np.array([[[0, 10, 255], [100, 20, 7]]], np.uint8)
    modality = angle("negate_sine", scale=2 / 255, offset=-1.0)
    np.testing.assert_array_equal(mirror(frame, modality), [[[155, 20, 248], [255, 10, 0]]])


@pytest.mark.parametrize("flip", ["mirror", "negate_sine", "negate_cosine"])
@pytest.mark.parametrize(("dtype", "values"), SYMMETRIC)
def test_flipped_twice_is_what_it_was(dtype: type, values: dict[str, float], flip: str) -> None:
    frame, modality = frames(dtype), angle(flip, **values)
    before = frame.copy()
    twice = mirror(mirror(frame, modality), modality)
    assert twice.dtype == dtype
    np.testing.assert_allclose(twice, before, atol=1e-6)
    np.testing.assert_array_equal(frame, before)  # nothing is changed in place


def test_one_value_beyond_minus_one_is_clamped_and_never_wraps() -> None:
    frame = np.array([[[0, 5, 128]]], np.uint8)
    turned = mirror(frame, angle("negate_sine", scale=1 / 128, offset=-1.0))
    np.testing.assert_array_equal(turned, [[[255, 5, 128]]])


@pytest.mark.parametrize(("dtype", "values"), [(np.uint8, {}), (np.uint16, {"scale": 1 / 255, "offset": -1.0})])
def test_a_range_that_is_not_symmetric_is_refused(dtype: type, values: dict[str, float]) -> None:
    with pytest.raises(
        DataError, match=r"modality 'aolp': flip negate_sine needs uint(8|16) values whose range is symm"
    ):
        mirror(frames(dtype), angle("negate_sine", **values))


def test_training_flips_as_the_modality_says() -> None:
    frame = frames(np.float32, shape=(32, 32))
    always = Augment(flip=1, jitter=0, blur=0, scale=(1, 1))
    sample = Sample({"aolp": frame, "plain": frame}, None)
    modalities = [angle("negate_cosine"), Modality(name="plain", kind="angle")]
    result = augment(
        sample, modalities=modalities, augment=always, size=32, rng=np.random.Generator(np.random.PCG64(0))
    )
    np.testing.assert_array_equal(result.frames["plain"], frame[:, ::-1])
    np.testing.assert_array_equal(result.frames["aolp"], frame[:, ::-1] * np.array([1, -1, 1], np.float32))
