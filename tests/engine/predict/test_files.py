from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.engine.infer.decision import Wanted, decide
from memorysam_cli.engine.predict.files import EXTRAS, LedgerLine, SceneFiles
from memorysam_cli.errors import DataError, EnvironmentFault
from memorysam_cli.report import pictures
from memorysam_cli.storage import images

from ..stand_ins import CLASSES, MODALITIES, PALETTE, write_data

SIZE = (97, 131)


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    return write_data(tmp_path / "data")


def logits_of(seed: int = 0) -> Tensor:
    return torch.randn((4, *SIZE), generator=torch.Generator().manual_seed(seed))


def write(
    data: Manifest, out: Path, scene: Scene, logits: Tensor, *, modalities: tuple[str, ...] = ("img", "depth"),
    extras: tuple[str, ...] = (), info: Any = None,
) -> LedgerLine:  # fmt: skip
    info = info or data.info
    kinds = (torch.uint8 if "confidence" in extras else None, torch.uint8 if "probabilities" in extras else None)
    (decision,) = decide(logits[None], [SIZE], classes=len(info.classes), wanted=Wanted(*kinds))
    files = SceneFiles(out, data.root, info, MODALITIES, extras)
    return files.write(scene, decision, modalities=modalities)


def test_a_scene_leaves_a_mask_and_a_line(data: Manifest, tmp_path: Path) -> None:
    logits = logits_of()
    line = write(data, tmp_path / "out", data.scenes[0], logits)
    mask = images.read(tmp_path / "out/masks/fog/val/a/000001.png")
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, logits.argmax(0).numpy())
    assert line == {
        "id": "fog/val/a/000001",
        "status": "done",
        "mask": "masks/fog/val/a/000001.png",
        "size": [97, 131],
        "modalities": ["img", "depth"],
        "inputs": {"img": ["tiny/img/fog/val/a/000001.png"], "depth": ["tiny/depth/fog/val/a/000001.png"]},
        "stamp": line["stamp"],
        "classes": {str(index): int((mask == index).sum()) for index in range(4)},
    }


def test_more_than_255_classes_are_written_in_16_bits_and_do_not_wrap(data: Manifest, tmp_path: Path) -> None:
    count = 300
    many = data.info.model_copy(
        update={"classes": tuple(f"c{index}" for index in range(count)), "palette": ((1, 2, 3),) * count}
    )
    logits = torch.zeros(count, *SIZE)
    logits[299] = 1
    line = write(data, tmp_path / "out", data.scenes[0], logits, info=many)
    mask = images.read(tmp_path / "out/masks/fog/val/a/000001.png")
    assert mask.dtype == np.uint16 and (mask == 299).all() and line["classes"] == {"299": 97 * 131}


def test_extras_lie_in_trees_of_their_own(data: Manifest, tmp_path: Path) -> None:
    scene, logits = data.scenes[0], logits_of()
    line = write(data, tmp_path / "out", scene, logits, extras=EXTRAS)
    mask, color, overlay, confidence = (
        images.read(tmp_path / "out" / tree / f"{scene.id}.png") for tree in ("masks", *EXTRAS[:3])
    )
    np.testing.assert_array_equal(color, np.asarray(PALETTE)[mask])
    assert confidence.shape == SIZE and confidence.dtype == np.uint8
    np.testing.assert_array_equal(confidence, (logits.softmax(0).amax(0) * 255).round().numpy())
    blend = pictures.overlay(images.read(data.root / scene.files["img"][0]), mask, PALETTE)
    top = (overlay == blend[0, 0]).all(-1)
    row, column = np.argwhere(top)[0]
    # 131 pixels: four times as many are nearest to 480.
    enlarged = np.repeat(np.repeat(blend, 4, axis=0), 4, axis=1)
    np.testing.assert_array_equal(overlay[row : row + 4 * SIZE[0], column : column + 4 * SIZE[1]], enlarged)
    with np.load(tmp_path / "out" / line["probabilities"]) as archive:
        assert archive["classes"].tolist() == list(CLASSES)
        np.testing.assert_array_equal(archive["probabilities"], (logits.softmax(0) * 255).round().numpy())
    suffixes = {"color": "png", "overlay": "png", "confidence": "png", "probabilities": "npz"}
    assert {extra: line[extra] for extra in EXTRAS} == {
        extra: f"{extra}/{scene.id}.{suffix}" for extra, suffix in suffixes.items()
    }


def test_pixels_of_no_class_are_counted_apart(data: Manifest, tmp_path: Path) -> None:
    logits = logits_of()
    best = logits.softmax(0).amax(0)
    for unsure in (255, 2):
        wanted = Wanted(thresholds=(0.5, 0.5, 0, 0.5), unsure=unsure)
        (decision,) = decide(logits[None], [SIZE], classes=4, wanted=wanted)
        files = SceneFiles(tmp_path / "out", data.root, data.info, MODALITIES, wanted=wanted)
        line = files.write(data.scenes[0], decision, modalities=["img", "depth"])
        expected = torch.where((best < 0.5) & (logits.argmax(0) != 2), unsure, logits.argmax(0)).numpy()
        mask = images.read(tmp_path / "out" / line["mask"])
        np.testing.assert_array_equal(mask, expected)
        assert line["unsure"] == int((expected == 255).sum())
        assert line["classes"] == {str(index): int((expected == index).sum()) for index in range(4)}
        assert files.is_done(data.scenes[0], line)
        for wrong in ({"unsure": line["unsure"] + 1}, {"unsure": None}, {"unsure": -1}, {"unsure": True}):
            assert not files.is_done(data.scenes[0], {**line, **wrong})
        assert not files.is_done(data.scenes[0], {key: value for key, value in line.items() if key != "unsure"})


def test_an_overlay_without_a_color_image_uses_the_first_modality(data: Manifest, tmp_path: Path) -> None:
    write(data, tmp_path / "out", data.scenes[0], logits_of(), modalities=("depth",), extras=("overlay",))
    assert images.shape(tmp_path / "out/overlay/fog/val/a/000001.png")[0] > SIZE[0]  # the legend is below


def test_a_name_that_looks_like_an_extra_meets_none(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", [(name, "val", None, None, SIZE) for name in ("x", "color/x", "masks/x")])
    for scene in data.scenes:
        write(data, tmp_path / "out", scene, logits_of(), extras=EXTRAS)
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 3 * 5


def test_a_scene_that_cannot_be_written_whole_leaves_nothing(data: Manifest, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/overlay").touch()  # a file where a folder must be
    with pytest.raises(EnvironmentFault, match="overlay"):
        write(data, tmp_path / "out", data.scenes[0], logits_of(), extras=EXTRAS)
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["overlay"]


def test_writing_a_scene_again_gives_the_same_bytes_and_line(data: Manifest, tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        line = write(data, tmp_path / "out", data.scenes[1], logits_of(3), extras=EXTRAS)
        found.append((line, {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}))
    assert found[0] == found[1] and len(found[0][1]) == 5


def test_a_scene_that_is_left_out_is_told_with_its_inputs_and_a_missing_file_as_missing(data: Manifest) -> None:
    scene, files = data.scenes[0], SceneFiles(data.root / "out", data.root, data.info, MODALITIES)
    line = {
        "id": "fog/val/a/000001", "status": "failed", "error": "cut",
        "inputs": {"img": ["tiny/img/fog/val/a/000001.png"], "depth": ["tiny/depth/fog/val/a/000001.png"]},
    }  # fmt: skip
    assert files.left_out(scene, DataError("cut")) == line
    (data.root / "tiny/img/fog/val/a/000001.png").unlink()
    assert files.left_out(scene, DataError("cut")) == {**line, "status": "missing"}
    depth_alone = SceneFiles(data.root / "out", data.root, data.info, MODALITIES[1:])
    assert depth_alone.left_out(scene, DataError("cut"))["status"] == "failed"
