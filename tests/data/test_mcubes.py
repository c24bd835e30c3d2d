from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.data import decode
from memorysam_cli.data.datasets.mcubes import MCUBES
from memorysam_cli.errors import DataError

from .conftest import write_mcubes


def test_the_lists_decide_the_splits(tmp_path: Path) -> None:
    folder = write_mcubes(tmp_path / "multimodal_dataset", {"train": ["b", "a"], "test": ["outscene1208_2_0000000150"]})
    found = MCUBES.scenes(MCUBES.find(tmp_path), tmp_path)
    assert folder == MCUBES.find(tmp_path)
    assert [(scene.id, scene.split) for scene in found] == [
        ("b", "train"), ("a", "train"), ("outscene1208_2_0000000150", "test"),
    ]  # fmt: skip
    assert found[1].files == {
        "image": ("multimodal_dataset/polL_color/a.png",),
        "aolp": ("multimodal_dataset/polL_aolp_sin/a.npy", "multimodal_dataset/polL_aolp_cos/a.npy"),
        "dolp": ("multimodal_dataset/polL_dolp/a.npy",),
        "nir": ("multimodal_dataset/NIR_warped/a.png",),
    }
    assert (found[1].label, found[1].condition, found[1].case) == ("multimodal_dataset/GT/a.png", None, None)


def test_a_scene_decodes_as_published(tmp_path: Path) -> None:
    folder = write_mcubes(tmp_path, {"train": ["a"]})
    info = MCUBES.info(folder)
    (scene,) = MCUBES.scenes(folder, tmp_path)
    sample = decode.read_sample(tmp_path, scene, modalities=info.modalities, labels=info)
    assert {name: frame.dtype for name, frame in sample.frames.items()} == {
        "image": np.uint16, "aolp": np.float32, "dolp": np.float32, "nir": np.uint16,
    }  # fmt: skip
    aolp = sample.frames["aolp"]
    np.testing.assert_array_equal(aolp[..., 0], aolp[..., 2])
    np.testing.assert_array_equal(aolp[..., 1], np.load(folder / "polL_aolp_cos/a.npy").astype(np.float32))


def test_the_published_crop_and_classes() -> None:
    info = MCUBES.info(Path("nowhere"))
    assert (len(info.classes), info.classes[0], info.classes[19]) == (20, "asphalt", "sky")
    assert len(set(info.palette)) == 20
    assert info.crop is not None
    assert (info.crop.left, info.crop.of_height, info.crop.square) == (192, 1024, True)
    assert (info.label.shift, info.label.ignore) == (0, (255,))
    assert not any(modality.antialias for modality in info.modalities)


@pytest.mark.parametrize("name", ["../a", "x/y", ".."])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_mcubes(tmp_path, {"train": ["a"]})
    (folder / "list_folder" / "val.txt").write_text(f"\n{name}\n")
    with pytest.raises(DataError, match=r"val.txt, line 2"):
        MCUBES.scenes(folder, tmp_path)


def test_missing_or_binary_lists_are_refused(tmp_path: Path) -> None:
    folder = write_mcubes(tmp_path, {})
    with pytest.raises(DataError, match=r"has no train\.txt, val\.txt or test\.txt"):
        MCUBES.scenes(folder, tmp_path)
    (folder / "list_folder" / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"train\.txt:1: not UTF-8 text"):
        MCUBES.scenes(folder, tmp_path)
