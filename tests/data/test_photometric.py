from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch

from memorysam_cli.data.transforms import Draw, blur, change_colors, jitter_colors, soften
from memorysam_cli.dataset import Modality
from memorysam_cli.recipe import Augment

RGB = Modality(name="img", kind="rgb", photometric=("jitter", "blur"))
LIDAR = Modality(name="lidar", kind="lidar")


def picture(dtype: type, *, height: int = 13, width: int = 17) -> np.ndarray:
    """The same random picture in any dtype."""
    values = np.random.Generator(np.random.PCG64(4)).integers(0, 256, (height, width, 3))
    scaled = {np.uint8: values, np.uint16: values * 257, np.float32: values / 255}[dtype]
    return scaled.astype(dtype)


DTYPES = [np.uint8, np.uint16, np.float32]


def to_unit(frame: np.ndarray) -> np.ndarray:
    return frame / {"uint8": 255, "uint16": 65535, "float32": 1}[frame.dtype.name]


@pytest.mark.parametrize("dtype", DTYPES)
def test_strength_0_is_the_identity_bit_for_bit(dtype: type) -> None:
    frame = picture(dtype)
    np.testing.assert_array_equal(jitter_colors(frame, brightness=1, contrast=1, saturation=1), frame)
    np.testing.assert_array_equal(blur(frame, sigma=0), frame)


def test_every_16_bit_value_survives_strength_0() -> None:
    frame = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(jitter_colors(frame, brightness=1, contrast=1, saturation=1), frame)


def test_brightness_contrast_saturation_by_hand() -> None:
    frame = np.zeros((1, 2, 3), np.uint8)
    frame[0, 0], frame[0, 1] = (100, 100, 100), (200, 200, 200)

    def red(**factors: float) -> list[int]:
        unchanged = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0}
        return jitter_colors(frame, **{**unchanged, **factors})[0, :, 0].tolist()

    assert red(brightness=0.5) == [50, 100]
    assert red(brightness=1.5) == [150, 255]
    assert red(contrast=0.5) == [125, 175]
    assert red(saturation=0.5) == [100, 200]
    color = np.array([[[255, 0, 0]]], np.uint8)
    np.testing.assert_array_equal(  # gray 0.2989 · 255 = 76.2; half way: 165.6, 38.1
        jitter_colors(color, brightness=1, contrast=1, saturation=0.5), [[[166, 38, 38]]]
    )


@pytest.mark.parametrize("brightness", [0.9, 1.1])
def test_mid_grey_is_not_clamped_to_nothing(brightness: float) -> None:
    frame = np.full((4, 4, 3), 128, np.uint8)
    changed = jitter_colors(frame, brightness=brightness, contrast=1, saturation=1)
    assert changed.min() >= 115 and changed.max() <= 141


def test_a_mid_grey_ramp_hardly_saturates() -> None:
    ramp = np.linspace(64, 160, 4096).round().astype(np.uint8).reshape(64, 64, 1).repeat(3, axis=2)
    changed = jitter_colors(ramp, brightness=1.5, contrast=1.5, saturation=1.5)
    assert np.isin(changed, (0, 255)).mean() < 0.25
    assert np.isin(jitter_colors(ramp, brightness=1.2, contrast=1.2, saturation=1.2), (0, 255)).mean() < 0.05


@pytest.mark.parametrize("factors", [(0.5, 1.3, 0.7), (1.5, 0.5, 1.5), (1.1, 1.5, 0.5)])
def test_all_dtypes_agree_within_one_step_of_8_bits(factors: tuple[float, float, float]) -> None:
    def both(dtype: type) -> np.ndarray:
        changed = jitter_colors(picture(dtype), brightness=factors[0], contrast=factors[1], saturation=factors[2])
        blurred = blur(changed, sigma=None)
        assert changed.dtype == blurred.dtype == dtype
        return to_unit(blurred)

    for dtype in (np.uint16, np.float32):
        np.testing.assert_allclose(both(np.uint8), both(dtype), atol=1 / 255)


@pytest.mark.parametrize("factors", [(0.6, 1.4, 0.5), (1.4, 0.6, 1.5)])
def test_the_jitter_equals_its_definition_pixel_by_pixel(factors: tuple[float, float, float]) -> None:
    brightness, contrast, saturation = factors
    frame = picture(np.float32, height=3, width=4)
    pixels = [[min(max(value * brightness, 0), 1) for value in pixel] for pixel in frame.reshape(-1, 3).tolist()]
    mean = sum(0.2989 * red + 0.587 * green + 0.114 * blue for red, green, blue in pixels) / len(pixels)
    pixels = [[min(max(contrast * value + (1 - contrast) * mean, 0), 1) for value in pixel] for pixel in pixels]
    expected = []
    for red, green, blue in pixels:
        gray = 0.2989 * red + 0.587 * green + 0.114 * blue
        expected += [min(max(saturation * value + (1 - saturation) * gray, 0), 1) for value in (red, green, blue)]
    ours = jitter_colors(frame, brightness=brightness, contrast=contrast, saturation=saturation)
    np.testing.assert_allclose(ours.flatten(), expected, atol=1e-5)


def test_the_3_by_3_blur_has_sigma_0_8_and_mirrors_at_the_border() -> None:
    frame = picture(np.float32)
    weights = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * 0.8**2))
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    mirrored = torch.nn.functional.pad(
        torch.from_numpy(frame.transpose(2, 0, 1))[:, None], (1, 1, 1, 1), mode="reflect"
    )
    theirs = torch.nn.functional.conv2d(mirrored, kernel[None, None])[:, 0]
    ours = torch.from_numpy(blur(frame, sigma=None).transpose(2, 0, 1))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 50, 3)])
def test_thin_frames_can_be_blurred(shape: tuple[int, int, int]) -> None:
    np.testing.assert_array_equal(blur(np.full(shape, 9, np.uint8), sigma=1.0), np.full(shape, 9, np.uint8))


def test_a_wider_sigma_blurs_more() -> None:
    frame = np.zeros((21, 21, 3), np.float32)
    frame[10, 10] = 1
    peaks = [float(blur(frame, sigma=sigma)[10, 10, 0]) for sigma in (0.0, 0.3, 0.6, 1.0)]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 4


def test_floats_beyond_0_and_1_are_not_clamped() -> None:
    frame = np.array([[[-2.0, 3.0, 0.5]]], np.float32)
    assert jitter_colors(frame, brightness=1.5, contrast=1, saturation=1).tolist() == [[[-3.0, 4.5, 0.75]]]


def test_only_modalities_that_ask_for_it_change() -> None:
    frame = picture(np.uint8)
    draw = Draw(jitter=0, brightness=0, contrast=0, saturation=0, flip=0, blur=0, sigma=0, scale=0, top=0, left=0)
    always = Augment(jitter=1, blur=1)
    assert change_colors(frame, LIDAR, augment=always, draw=draw) is frame
    assert soften(frame, LIDAR, augment=always, draw=draw) is frame
    assert (change_colors(frame, RGB, augment=always, draw=draw) != frame).any()
    assert (soften(frame, RGB, augment=always, draw=draw) != frame).any()


def test_a_probability_of_0_never_hits_and_of_1_always() -> None:
    frame = picture(np.uint8)
    rng = np.random.Generator(np.random.PCG64(6))
    for draw in [Draw.by(rng) for _ in range(50)]:
        assert change_colors(frame, RGB, augment=Augment(jitter=0), draw=draw) is frame
        assert (change_colors(frame, RGB, augment=Augment(jitter=1), draw=draw) != frame).any()


def test_a_draw_takes_ten_numbers_whatever_they_are_used_for() -> None:
    rng, again = (np.random.Generator(np.random.PCG64(7)) for _ in range(2))
    assert list(astuple(Draw.by(rng))) == again.random(12).tolist()
    assert rng.random() == again.random()


TWELVE_BITS = Modality(name="img", kind="rgb", photometric=("jitter",), scale=1 / 4095)


def test_12_bits_are_clamped_to_12_bits() -> None:
    frame = np.array([[[4095, 2000, 0]]], np.uint16)
    np.testing.assert_array_equal(
        jitter_colors(frame, brightness=1.5, contrast=1, saturation=1, full=4095), [[[4095, 3000, 0]]]
    )
    draw = Draw.by(np.random.Generator(np.random.PCG64(1)))
    always = Augment(jitter=1)
    changed = change_colors(np.full((4, 4, 3), 4095, np.uint16), TWELVE_BITS, augment=always, draw=draw)
    assert changed.max() <= 4095


def test_values_beyond_1_are_kept_and_never_wrap() -> None:
    frame = np.array([[[60000, 2000, 0]]], np.uint16)
    np.testing.assert_array_equal(
        jitter_colors(frame, brightness=1.5, contrast=1, saturation=1, full=4095), [[[65535, 3000, 0]]]
    )
