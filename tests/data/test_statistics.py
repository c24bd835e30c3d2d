from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.data import decode, statistics
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.data.statistics import Moments, measure, merge, with_class_pixels, with_statistics
from memorysam_cli.data.transforms import to_tensor
from memorysam_cli.dataset import DatasetInfo, Modality
from memorysam_cli.errors import DataError
from memorysam_cli.storage import images

RGB, DEPTH = Modality(name="rgb", kind="rgb"), Modality(name="depth", kind="depth", scale=0.001, offset=-0.5)


def write(root: Path, *, scenes: int = 5, modalities: tuple[Modality, ...] = (RGB, DEPTH)) -> Manifest:
    """Scenes of different sizes; the last is of split val."""
    found = []
    for number in range(scenes):
        rng = np.random.Generator(np.random.PCG64(number))
        size = (8 + number, 10 + 3 * number)
        images.write_png(root / f"rgb/{number}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8), fsync=False)
        images.write_png(root / f"depth/{number}.png", rng.integers(0, 9000, size, dtype=np.uint16), fsync=False)
        files = {modality.name: (f"{modality.name}/{number}.png",) for modality in modalities}
        split = "val" if number == scenes - 1 else "train"
        found.append(Scene(id=str(number), split=split, condition=None, case=None, files=files, label=None))
    info = DatasetInfo(
        name="own", title="own", classes=("a",), palette=((1, 2, 3),), modalities=modalities,
        unlabeled=("train", "val"),
    )  # fmt: skip
    return manifests.write(root, info, found)


def test_a_value_by_hand() -> None:
    frame = np.array([[[0, 10, 20], [100, 10, 40]]], np.uint8)
    found = Moments.of(frame, Modality(name="m", kind="gray", scale=0.1, offset=1.0))
    assert found.count == 2
    assert found.mean == pytest.approx((6.0, 2.0, 4.0)) and found.squares == pytest.approx((50.0, 0.0, 2.0))
    assert (found.low, found.high) == (1.0, 11.0)


@pytest.mark.parametrize(("dtype", "full"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_without_a_scale_values_count_by_their_dtype(dtype: type, full: int) -> None:
    found = Moments.of(np.full((2, 2, 3), full, dtype), Modality(name="m", kind="gray"))
    assert found.mean == (1.0, 1.0, 1.0) and found.high == 1.0


def test_the_whole_split_at_once_gives_the_same(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    found = measure(manifest)
    for modality in (RGB, DEPTH):
        frames = [
            decode.read_modality([tmp_path / scene.files[modality.name][0]], modality)
            for scene in manifest.of_split("train")
        ]
        scale = {"rgb": 1 / 255, "depth": 0.001}[modality.name]
        values = np.concatenate([frame.reshape(-1, 3) for frame in frames]).astype(np.float64) * scale + modality.offset
        measured = found[modality.name]
        np.testing.assert_allclose(measured.mean, values.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(measured.std, values.std(axis=0), rtol=1e-12)
        assert (measured.low, measured.high) == (values.min(), values.max())
        assert (measured.split, measured.scenes) == ("train", 4)


def test_small_deviations_of_large_values_are_exact() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    frames = [(1e6 + rng.standard_normal((20, 20, 3)) / 64).astype(np.float32) for _ in range(4)]
    modality = Modality(name="m", kind="gray")
    found = merge([Moments.of(frame, modality) for frame in frames])
    std = np.concatenate(frames).astype(np.float64).reshape(-1, 3).std(axis=0)
    np.testing.assert_allclose(np.sqrt(np.array(found.squares) / found.count), std, rtol=1e-9)


def test_the_order_and_the_number_of_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write(tmp_path)
    turned = Manifest(root=tmp_path, info=manifest.info, scenes=tuple(reversed(manifest.scenes)))
    first = measure(manifest)
    monkeypatch.setattr(statistics, "THREADS", 1)
    assert measure(turned) == first == measure(manifest)


def test_normalized_by_them_the_tensors_have_mean_0_and_deviation_1(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    info = with_statistics(manifest.info, measure(manifest), normalize=True)
    for modality in info.modalities:
        tensors = [
            to_tensor(decode.read_modality([tmp_path / scene.files[modality.name][0]], modality), modality).flatten(1)
            for scene in manifest.of_split("train")
        ]
        values = np.concatenate([tensor.numpy() for tensor in tensors], axis=1).astype(np.float64)
        np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-5)
        np.testing.assert_allclose(values.std(axis=1), 1, atol=1e-5)


def test_published_normalization_stays_when_they_are_only_stored(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    info = with_statistics(manifest.info, measure(manifest), normalize=False)
    assert info.modalities == manifest.info.modalities and set(info.statistics) == {"rgb", "depth"}


def test_a_constant_channel_is_not_divided_by_0() -> None:
    info = DatasetInfo(name="o", title="o", classes=("a",), palette=((1, 2, 3),), modalities=(RGB,))
    constant = statistics.Statistics(
        split="train", scenes=1, mean=(0.5, 0.5, 0.5), std=(0.0, 0.1, 0.0), low=0.5, high=0.6
    )  # fmt: skip
    found = with_statistics(info, {"rgb": constant}, normalize=True)
    assert found.modalities[0].std == (1.0, 0.1, 1.0) and found.statistics["rgb"].std == (0.0, 0.1, 0.0)


def test_without_the_split_all_scenes_count(tmp_path: Path) -> None:
    found = measure(write(tmp_path), split="trainval")
    assert (found["rgb"].split, found["rgb"].scenes) == ("all", 5)


def test_each_scene_is_reported_and_a_missing_file_refused(tmp_path: Path) -> None:
    manifest, seen = write(tmp_path), []
    measure(manifest, advance=lambda: seen.append(1))
    assert len(seen) == 4
    (tmp_path / "rgb/2.png").unlink()
    with pytest.raises(DataError, match=r"rgb/2\.png: no such file"):
        measure(manifest)


def test_rounding_is_no_deviation(tmp_path: Path) -> None:
    """12345 · 0.001 summed up has a deviation of 1e-13; divided by it, rounding would fill the frames."""
    manifest = write(tmp_path)
    for scene in manifest.scenes:
        images.write_png(tmp_path / scene.files["depth"][0], np.full((40, 56), 12345, np.uint16))
    found = measure(manifest)
    assert 0 < found["depth"].std[0] < 1e-12
    depth = with_statistics(manifest.info, found, normalize=True).modality("depth")
    assert depth.std == (1.0, 1.0, 1.0)
    tensor = to_tensor(np.full((4, 4, 3), 12345, np.uint16), depth)
    np.testing.assert_allclose(tensor.numpy(), 0, atol=1e-5)


def test_pixels_of_each_class_in_one_split(tmp_path: Path) -> None:
    """Two scenes to train on, of 2 × 3 pixels: classes 0, 0, 1, 1, 1, none, and 1 alone; that of val does not count.

    A label that is gone is passed over: training will name it.
    """
    labels, scenes = [[[0, 0, 1], [1, 1, 255]], [[1, 1, 1], [1, 1, 1]], [[2, 2, 2], [2, 2, 2]]], []
    for number, label in enumerate(labels):
        images.write_png(tmp_path / f"rgb/{number}.png", np.zeros((2, 3, 3), np.uint8), fsync=False)
        images.write_png(tmp_path / f"label/{number}.png", np.array(label, np.uint8), fsync=False)
        split, files = "val" if number == 2 else "train", {"rgb": (f"rgb/{number}.png",)}
        scenes.append(Scene(str(number), split, None, None, files, label=f"label/{number}.png"))
    palette = ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    info = DatasetInfo(name="own", title="own", classes=("a", "b", "c"), palette=palette, modalities=(RGB,))
    manifest = manifests.write(tmp_path, info, scenes)
    assert with_class_pixels(manifest, split="train").info.class_pixels == {"train": (2, 9, 0)}
    (tmp_path / "label/1.png").unlink()
    assert with_class_pixels(manifest, split="train").info.class_pixels == {"train": (2, 3, 0)}
