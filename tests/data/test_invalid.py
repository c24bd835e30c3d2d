"""Pixels without a measurement (NaN, declared, by a file's tag) count nowhere and are 0 after normalization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from memorysam_cli.data import decode, statistics, transforms
from memorysam_cli.data.findings import shared_far_out
from memorysam_cli.data.manifest import Scene
from memorysam_cli.data.transforms import Sample, to_tensor
from memorysam_cli.dataset import IMAGENET, Modality
from memorysam_cli.errors import DataError
from memorysam_cli.recipe import Augment
from memorysam_cli.storage import images

from .tiffs import tiff

DEM = Modality(name="dem", kind="thermal", mean=(10.0,) * 3, std=(2.0,) * 3)
"""Resized bilinearly."""
NEAREST = DEM.model_copy(update={"interpolation": "nearest", "kind": "depth"})
PHOTO = Modality(name="rgb", kind="rgb", photometric=("jitter", "blur"), **IMAGENET)
VALUES = np.array([[10, 12, 14, 16]] * 4, np.float32)


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def with_gap(gap: float, dtype: type = np.float32) -> np.ndarray:
    """VALUES, whose first row is not a measurement."""
    array = VALUES.astype(dtype)
    array[0] = gap
    return array


LOWEST = float(np.finfo(np.float32).min)
SAID = {
    "a tag": (tiff(with_gap(-9999), nodata="-9999"), ()),
    "a tag with a space": (tiff(with_gap(-9999), nodata="-9999.0 "), ()),
    "a tag of few letters": (tiff(with_gap(0), nodata="0"), ()),
    "a tag rounded to 15 digits": (tiff(with_gap(LOWEST), nodata="-3.40282346638529e+38"), ()),
    "a tag of whole numbers": (tiff(with_gap(65535, np.uint16), nodata="65535"), ()),
    "a tag of signed whole numbers": (tiff(with_gap(-9999, np.int16), nodata="-9999"), ()),
    "a tag of NaN": (tiff(with_gap(np.nan), nodata="nan"), ()),
    "declared": (tiff(with_gap(77)), (77.0,)),
    "declared of several": (tiff(with_gap(77)), (0.0, 77.0)),
    "infinity": (tiff(with_gap(-np.inf)), ()),
}


def test_a_type_that_holds_no_number_is_refused_with_nodata_as_without(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npy", np.zeros((4, 4), bool))
    for nodata in ((), (0.0, 65535.0)):
        with pytest.raises(DataError, match="holds bool; allowed are uint8"):
            decode.read_frame([path], DEM.model_copy(update={"nodata": nodata}))


@pytest.mark.parametrize("how", SAID)
def test_a_row_without_a_measurement_is_0_after_normalization_and_in_no_statistic(how: str, tmp_path: Path) -> None:
    data, nodata = SAID[how]
    (tmp_path / "x.tif").write_bytes(data)
    modality = DEM.model_copy(update={"nodata": nodata, "scale": 1.0})
    frame, invalid = decode.read_frame([tmp_path / "x.tif"], modality)
    assert invalid is not None and invalid[0].all() and not invalid[1:].any()
    tensor = to_tensor(frame, modality, invalid=invalid)
    expected = torch.tensor([[0.0, 0, 0, 0]] + [[0.0, 1, 2, 3]] * 3)  # (x - 10) / 2
    torch.testing.assert_close(tensor, expected.expand(3, 4, 4))
    moments = statistics.Moments.of(frame, modality, invalid=invalid)
    # 10, 12, 14, 16: mean 13, squares 9 + 1 + 1 + 9 in each of three rows
    assert (moments.count, moments.invalid, moments.low, moments.high) == (12, 4, 10.0, 16.0)
    assert moments.mean == pytest.approx((13.0,) * 3) and moments.squares == pytest.approx((60.0,) * 3)


@pytest.mark.parametrize("tag", ["-9999", "0.5", "1e400"])
def test_a_tag_that_no_whole_number_can_be_changes_nothing(tag: str, tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(tiff(VALUES.astype(np.uint16), nodata=tag))
    assert decode.read_frame([tmp_path / "x.tif"], DEM)[1] is None


def test_a_tag_that_is_no_number_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(tiff(VALUES, nodata="none"))
    with pytest.raises(DataError, match=r"nodata tag \(42113\) says 'none', which is not a number; .*gdal_edit"):
        images.header(tmp_path / "x.tif")


def test_a_whole_file_without_a_measurement_is_all_0_and_counts_nowhere(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npy", np.full((4, 4), np.nan))
    frame, invalid = decode.read_frame([path], DEM)
    assert not to_tensor(frame, DEM, invalid=invalid).any()
    empty, full = statistics.Moments.of(frame, DEM, invalid=invalid), statistics.Moments.of(np.ones((2, 2, 3)), DEM)
    merged = statistics.merge([empty, full])
    assert (merged.count, merged.invalid, merged.mean, merged.low) == (4, 16, (1.0,) * 3, 1.0)
    assert statistics.merge([empty]).mean == (0.0,) * 3
    assert statistics.value_range([[path]], DEM) is None


def test_black_is_a_color_and_bands_fail_one_by_one(tmp_path: Path) -> None:
    pixels = np.array([[[0, 0, 0], [200, 0, 0]]], np.uint8)
    path = saved(tmp_path / "x.npy", pixels)
    photo = PHOTO.model_copy(update={"nodata": (0.0,)})
    found = decode.read_frame([path], photo)[1]
    assert found is not None and found.tolist() == [[[True] * 3, [False] * 3]]
    bands = decode.read_frame([path], Modality(name="ms", kind="thermal", nodata=(0.0,)))[1]
    assert bands is not None and bands.tolist() == [[[True] * 3, [False, True, True]]]


def test_half_an_angle_is_invalid_in_its_own_channels(tmp_path: Path) -> None:
    sine = saved(tmp_path / "s.npy", np.array([[np.nan, 0.5]], np.float32))
    cosine = saved(tmp_path / "c.npy", np.array([[0.5, 0.5]], np.float32))
    found = decode.read_frame([sine, cosine], Modality(name="aolp", kind="angle"))[1]
    assert found is not None and found.tolist() == [[[True, False, True], [False] * 3]]


def sample(modality: Modality, frame: np.ndarray, invalid: np.ndarray) -> Sample:
    three = [np.repeat(array[..., None], 3, axis=2) for array in (frame, invalid)]
    return Sample({modality.name: three[0]}, np.zeros(frame.shape, np.uint8), {modality.name: three[1]})


def gap_of(height: int, width: int) -> np.ndarray:
    """Left half invalid."""
    invalid = np.zeros((height, width), bool)
    invalid[:, : width // 2] = True
    return invalid


@pytest.mark.parametrize("modality", [DEM, NEAREST], ids=["bilinear", "nearest"])
@pytest.mark.parametrize("size", [32, 96, 224])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_no_size_blends_what_was_measured_with_what_was_not(modality: Modality, size: int, dtype: type) -> None:
    """All that was measured is 1000: any other value but 0 would be a blend with the 0 that stands in the gap."""
    frame = np.where(gap_of(60, 80), 0, 1000).astype(dtype)
    whole = transforms.for_prediction(sample(modality, frame, gap_of(60, 80)), modalities=[modality], size=size)
    found, invalid = whole.frames["dem"], whole.invalid["dem"]
    assert found.dtype == dtype and (found[invalid] == 0).all()
    np.testing.assert_allclose(found[~invalid], 1000, rtol=1e-6)
    # The border is where it was, but for two roundings to whole pixels.
    assert invalid[..., 0].mean() == pytest.approx(0.5, abs=2 / invalid.shape[1])


@pytest.mark.parametrize("kind", ["DEM", "PHOTO"])
def test_augmentation_blends_nothing_either(kind: str) -> None:
    """Crop, flip and blur, and jitter's mean gray: every measured pixel stays alike, every gap is 0 in the tensor."""
    modality = {"DEM": DEM, "PHOTO": PHOTO}[kind]
    frame = np.where(gap_of(48, 64), 0, 100).astype(np.uint8)
    always = Augment(jitter=1.0, flip=0.5, blur=1.0, scale=(0.5, 2.0))
    seen = set()
    for seed in range(20):
        rng = np.random.Generator(np.random.PCG64(seed))
        made = transforms.augment(
            sample(modality, frame, gap_of(48, 64)), modalities=[modality], augment=always, size=40, rng=rng
        )
        gaps = made.invalid.get(modality.name)
        tensor = to_tensor(made.frames[modality.name], modality, invalid=gaps)
        inside = made.label == 0
        assert gaps is not None
        measured = tensor[0].numpy()[inside & ~gaps[..., 0]]
        assert len(np.unique(measured)) <= 1, seed
        assert not tensor.numpy()[gaps.transpose(2, 0, 1)].any()
        seen.add((bool(measured.size), bool(gaps[..., 0][inside].any())))
    assert (True, True) in seen


def test_jitter_takes_its_mean_from_measured_pixels() -> None:
    frame = np.full((2, 2, 3), 100, np.uint8)
    invalid = np.zeros((2, 2, 3), bool)
    frame[0], invalid[0] = 0, True
    found = transforms.jitter_colors(frame, brightness=1, contrast=0.5, saturation=1, invalid=invalid)
    assert (found[1] == 100).all()  # 0.5 · 100 + 0.5 · 100; with the gap's 0 it would be 75


def test_flips_of_an_angle_keep_gaps_at_0() -> None:
    modality = Modality(name="dem", kind="angle", flip="negate_sine")
    frame = np.where(gap_of(8, 8), 0, 0.5).astype(np.float32)
    made = transforms.augment(
        sample(modality, frame, gap_of(8, 8)), modalities=[modality], size=8,
        augment=Augment(jitter=0, flip=1.0, blur=0, scale=(1.0, 1.0)), rng=np.random.Generator(np.random.PCG64(0)),
    )  # fmt: skip
    tensor = to_tensor(made.frames["dem"], modality, invalid=made.invalid["dem"])
    assert (tensor[0, :, 4:] == 0).all() and (tensor[0, :, :4] == -0.5).all() and (tensor[1, :, :4] == 0.5).all()


@pytest.mark.parametrize(
    ("modality", "padding"),
    [
        (DEM, 0.0),
        (PHOTO.model_copy(update={"photometric": ()}), -0.485 / 0.229),
        (Modality(name="lidar", kind="lidar", mean=(4.0,) * 3, std=(2.0,) * 3), -2.0),
        (Modality(name="raw", kind="thermal"), 0.0),
    ],
)
def test_padding_is_no_measurement_of_a_sensor_with_its_own_mean(modality: Modality, padding: float) -> None:
    """The reference pads photos with black; a thermal camera that saw 300 K would get -65 deviations."""
    frame = np.full((8, 8), 200, np.uint8)
    made = transforms.augment(
        Sample({modality.name: np.repeat(frame[..., None], 3, axis=2)}, frame * 0), modalities=[modality], size=16,
        augment=Augment(jitter=0, flip=0, blur=0, scale=(0.5, 0.5)), rng=np.random.Generator(np.random.PCG64(0)),
    )  # fmt: skip
    tensor = to_tensor(made.frames[modality.name], modality, invalid=made.invalid.get(modality.name))
    assert tensor[0, 15, 15] == pytest.approx(padding, abs=1e-6) and (made.label == 255).sum() == 16 * 16 - 8 * 8


def test_whole_samples_are_as_they_were_without_gaps(tmp_path: Path) -> None:
    saved(tmp_path / "x.npy", VALUES)
    scene = Scene(id="a", split="val", condition=None, case=None, files={"dem": ("x.npy",)}, label=None)
    assert decode.read_sample(tmp_path, scene, modalities=[DEM]).invalid == {}


RNG = np.random.Generator(np.random.PCG64(3))
DEPTH = RNG.integers(800, 4000, (100, 100)).astype(np.uint16)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda array: array, {}),
        (lambda array: np.where(gap_of(100, 100), 65535, array), {65535.0: 5000}),
        # 3 pixels of 10,000 are too few to mean anything
        (lambda array: np.where(np.arange(10_000).reshape(100, 100) < 3, 65535, array), {}),
        # near the others: 4000 + 500 is closer than half of 3200
        (lambda array: np.where(gap_of(100, 100), 4500, array), {}),
        (lambda array: np.where(gap_of(100, 100), 0, array + 5000), {0.0: 5000}),
        # both ends, of which each alone would be within half of what is between the other and the rest
        (lambda array: np.where(gap_of(100, 100), [0, 65535] * 50, array + 20000), {0.0: 2500, 65535.0: 2500}),
        (lambda array: np.where(gap_of(100, 100), 0, 255), {}),  # a mask
    ],
)
def test_values_that_many_share_far_from_all_others_are_pointed_at(change: object, expected: dict[float, int]) -> None:
    found = shared_far_out(change(DEPTH), Modality(name="depth", kind="depth"))  # type: ignore[operator]
    assert found == expected
    assert shared_far_out(change(DEPTH), Modality(name="rgb", kind="rgb")) == {}  # type: ignore[operator]
