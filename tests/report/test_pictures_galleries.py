from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.errors import DataError
from memorysam_cli.report import pictures
from memorysam_cli.report.pictures import Gallery, GalleryScene
from memorysam_cli.storage import images

PALETTE = ((128, 64, 128), (70, 130, 180))
RED = np.zeros((90, 1200, 3), np.uint8)
RED[..., 0] = 255
MASK = np.zeros((90, 1200), np.uint8)
MASK[:, 600:] = 1


def stored(folder: Path) -> Gallery:
    layers = pictures.gallery_layers(
        {"img": RED}, MASK, palette=PALETTE, label=MASK, confidence=np.full(MASK.shape, 0.5, np.float32)
    )
    scene = GalleryScene(
        "a/1", "val", None, "fog", "worst", 12.5, 50.0, (90, 1200), pictures.store_layers(folder, 0, layers)
    )
    return Gallery(("road", "sky"), PALETTE, (scene,))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    gallery = stored(tmp_path)
    pictures.write_gallery(tmp_path, gallery)
    assert pictures.read_gallery(tmp_path) == gallery


def test_layers_come_in_order_are_small_and_keep_their_colors(tmp_path: Path) -> None:
    layers = {layer.key: images.read(tmp_path / layer.file) for layer in stored(tmp_path).scenes[0].layers}
    assert list(layers) == ["img", "label", "prediction", "error", "confidence"]
    assert all(picture.shape == (36, 480, 3) for picture in layers.values())
    red, green, blue = layers["img"].reshape(-1, 3).mean(0)
    assert red > 250 and green < 5 and blue < 5
    assert tuple(layers["prediction"][0, 0]) == PALETTE[0] and tuple(layers["prediction"][0, -1]) == PALETTE[1]


def test_without_a_label_there_are_no_errors() -> None:
    assert list(pictures.gallery_layers({"img": RED}, MASK, palette=PALETTE)) == ["img", "prediction"]


def test_errors_are_red_where_the_prediction_is_wrong() -> None:
    label = MASK.copy()
    label[:, :300] = 1
    error = pictures.gallery_layers({"img": RED}, MASK, palette=PALETTE, label=label)["error"]
    assert tuple(error[0, 0]) == (214, 39, 40) and tuple(error[0, -1]) != (214, 39, 40)


def test_surer_is_lighter() -> None:
    share = np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(4, 0)
    light = pictures.heat(share)[0].astype(int).sum(-1)
    assert light[0] < light[80] < light[160] < light[255]


def test_a_gallery_that_is_replaced_is_gone_first_and_other_folders_are_left(tmp_path: Path) -> None:
    pictures.write_gallery(tmp_path / "gallery", stored(tmp_path / "gallery"))
    pictures.clear_gallery(tmp_path / "gallery")
    assert not (tmp_path / "gallery").exists()
    (tmp_path / "mine").mkdir()
    pictures.clear_gallery(tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()
    assert pictures.read_gallery(tmp_path / "mine") is None


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"scenes": [{}]}, {"scenes": None}, {"palette": [[1]]}])
def test_another_document_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    pictures.write_gallery(tmp_path, stored(tmp_path))
    found = json.loads((tmp_path / pictures.GALLERY_FILE).read_text())
    (tmp_path / pictures.GALLERY_FILE).write_text(json.dumps({**found, **change}))
    with pytest.raises(DataError, match="is not a gallery of this version"):
        pictures.read_gallery(tmp_path)


def test_pictures_outside_the_folder_are_refused(tmp_path: Path) -> None:
    pictures.write_gallery(tmp_path, stored(tmp_path))
    text = (tmp_path / pictures.GALLERY_FILE).read_text()
    (tmp_path / pictures.GALLERY_FILE).write_text(text.replace("000-0-img.jpg", "../../secret.png"))
    with pytest.raises(DataError, match="is not a gallery"):
        pictures.read_gallery(tmp_path)
