from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memorysam_cli.data.loader import UnlabelledScene
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.engine.prediction import folder
from memorysam_cli.engine.prediction.folder import EXTRAS, LEDGER, Writer
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.report import overlays
from memorysam_cli.storage import documents, images

from ..stand_ins import CLASSES, MODALITIES, PALETTE, write_data

SIZE = (97, 131)


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    return write_data(tmp_path / "data")


def scenes(*names: str) -> list[Scene]:
    return [Scene(name, "all", None, None, {"img": (f"{name}.png",)}, None) for name in names]


def logits_of(seed: int = 0, *, classes: int = 4) -> Tensor:
    return torch.randn((classes, *SIZE), generator=torch.Generator().manual_seed(seed))


def found(scene: Scene, *, modalities: tuple[str, ...] = ("img", "depth")) -> UnlabelledScene:
    return UnlabelledScene(scene, [], modalities, *SIZE)


def writer_for(data: Manifest, out: Path, **options: Any) -> Writer:
    return Writer(out, root=data.root, info=data.info, modalities=MODALITIES, **options)


@pytest.mark.parametrize(
    "names",
    [
        ("a/1", "a/1"),
        ("a/x", "A/X"),
        ("é", unicodedata.normalize("NFD", "é")),
        ("a//x", "a/x"),
        ("./x", "x"),
        ("x", "x.png/y"),
    ],
    ids=ascii,
)
def test_scenes_that_would_share_a_file_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(DataError, match="1 pairs of scenes would share an output file"):
        folder.refuse_collisions(scenes(*names))


def test_of_many_collisions_ten_pairs_and_the_count_are_told() -> None:
    names = [f"frame{number}" for number in range(12)]
    with pytest.raises(DataError, match="12 pairs of") as refused:
        folder.refuse_collisions(scenes(*names, *(name.upper() for name in names)))
    assert str(refused.value).count("'FRAME") == 10 and "and 2 more" in str(refused.value)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "", ".", "a\0b"], ids=ascii)
def test_names_that_leave_the_output_folder_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="is no name for an output file"):
        folder.refuse_collisions(scenes(name))


@given(st.lists(st.from_regex(r"[a-c]{1,2}(/[a-c]{1,2}){0,2}", fullmatch=True), unique=True, max_size=12))
def test_names_that_differ_in_a_letter_are_all_welcome(names: list[str]) -> None:
    folder.refuse_collisions(scenes(*names))


def test_a_folder_that_holds_something_else_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is not empty and holds no predictions"):
        folder.refuse_foreign(tmp_path, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    folder.refuse_foreign(tmp_path, overwrite=True)


def test_empty_new_locked_and_own_folders_are_welcome(tmp_path: Path) -> None:
    folder.refuse_foreign(tmp_path / "new", overwrite=False)
    folder.refuse_foreign(tmp_path, overwrite=False)
    (tmp_path / ".lock").touch()
    folder.refuse_foreign(tmp_path, overwrite=False)
    (tmp_path / LEDGER).touch()
    (tmp_path / "masks").mkdir()
    folder.refuse_foreign(tmp_path, overwrite=False)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        folder.refuse_foreign(tmp_path / "file", overwrite=True)


def test_a_scene_leaves_a_mask_and_a_line(data: Manifest, tmp_path: Path) -> None:
    scene, logits = data.scenes[0], logits_of()
    writer = writer_for(data, tmp_path / "out")
    writer.write(found(scene), logits)
    mask = images.read(tmp_path / "out/masks/fog/val/a/000001.png")
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, logits.argmax(0).numpy())
    (line,) = documents.read_json_lines(tmp_path / "out" / LEDGER)
    assert line == {
        "id": "fog/val/a/000001",
        "status": "done",
        "mask": "masks/fog/val/a/000001.png",
        "size": [97, 131],
        "modalities": ["img", "depth"],
        "inputs": {"img": ["tiny/img/fog/val/a/000001.png"], "depth": ["tiny/depth/fog/val/a/000001.png"]},
        "classes": {str(index): int((mask == index).sum()) for index in range(4)},
    }


def test_classes_are_listed_with_number_name_and_colour(data: Manifest, tmp_path: Path) -> None:
    writer_for(data, tmp_path / "out")
    listed = documents.read_json(tmp_path / "out/classes.json")
    assert listed[2] == {"id": 2, "name": "pole", "color": [153, 153, 153]} and len(listed) == len(CLASSES)


def test_more_than_255_classes_are_written_in_16_bits_and_do_not_wrap(data: Manifest, tmp_path: Path) -> None:
    count = 300
    many: DatasetInfo = data.info.model_copy(
        update={"classes": tuple(f"c{index}" for index in range(count)), "palette": ((1, 2, 3),) * count}
    )
    logits = torch.zeros(count, *SIZE)
    logits[299] = 1
    Writer(tmp_path / "out", root=data.root, info=many, modalities=MODALITIES).write(found(data.scenes[0]), logits)
    mask = images.read(tmp_path / "out/masks/fog/val/a/000001.png")
    assert mask.dtype == np.uint16 and (mask == 299).all()


def test_extras_lie_in_trees_of_their_own(data: Manifest, tmp_path: Path) -> None:
    scene, logits = data.scenes[0], logits_of()
    writer = writer_for(data, tmp_path / "out", extras=EXTRAS)
    writer.write(found(scene), logits)
    mask, color, overlay, confidence = (
        images.read(tmp_path / "out" / tree / f"{scene.id}.png") for tree in ("masks", *EXTRAS)
    )
    np.testing.assert_array_equal(color, np.asarray(PALETTE)[mask])
    assert confidence.shape == SIZE and confidence.dtype == np.uint8
    np.testing.assert_array_equal(confidence, (logits.softmax(0).amax(0) * 255).round().numpy())
    blend = overlays.overlay(images.read(data.root / scene.files["img"][0]), mask, PALETTE)
    top = (overlay == blend[0, 0]).all(-1)
    row, column = np.argwhere(top)[0]
    np.testing.assert_array_equal(overlay[row : row + SIZE[0], column : column + SIZE[1]], blend)
    (line,) = documents.read_json_lines(tmp_path / "out" / LEDGER)
    assert {extra: line[extra] for extra in EXTRAS} == {extra: f"{extra}/{scene.id}.png" for extra in EXTRAS}


def test_an_overlay_without_a_colour_image_uses_the_first_modality(data: Manifest, tmp_path: Path) -> None:
    writer = writer_for(data, tmp_path / "out", extras=["overlay"])
    writer.write(found(data.scenes[0], modalities=("depth",)), logits_of())
    assert images.shape(tmp_path / "out/overlay/fog/val/a/000001.png")[0] > SIZE[0]  # the legend is below


def test_a_name_that_looks_like_an_extra_meets_none(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", [(name, "val", None, None, SIZE) for name in ("x", "color/x", "masks/x")])
    writer = writer_for(data, tmp_path / "out", extras=EXTRAS)
    for scene in data.scenes:
        writer.write(found(scene), logits_of())
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3 * 4


def test_success_is_written_last_and_only_if_all_scenes_are_accounted_for(data: Manifest, tmp_path: Path) -> None:
    writer = writer_for(data, tmp_path / "out")
    writer.write(found(data.scenes[0]), logits_of())
    writer.leave_out(data.scenes[1], DataError("cut"))
    with pytest.raises(AssertionError):
        writer.finish({}, scenes=3)
    assert not (tmp_path / "out/_SUCCESS.json").exists()
    report = writer.finish({"weights": "w"}, scenes=2)
    assert documents.read_json(tmp_path / "out/_SUCCESS.json") == report
    assert {key: report[key] for key in ("schema_version", "weights", "scenes", "done", "failed", "failures")} == {
        "schema_version": 1, "weights": "w", "scenes": 2, "done": 1, "failed": 1,
        "failures": [{"id": data.scenes[1].id, "error": "cut"}],
    }  # fmt: skip
    assert {"classes", "out", "trees", "ledger", "success"} <= set(report)


def test_a_second_run_leaves_no_mask_of_the_first_and_no_other_file_harmed(
    data: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    writer = writer_for(data, out, extras=["color"])
    writer.write(found(data.scenes[0]), logits_of())
    writer.finish({}, scenes=1)
    (out / "masks/mine.png").write_bytes(b"mine")
    second = writer_for(data, out)
    assert "replaces the predictions of an earlier run (1 scenes)" in capsys.readouterr().err
    assert not (out / "_SUCCESS.json").exists()
    second.write(found(data.scenes[1]), logits_of())
    assert sorted(path.name for path in out.rglob("*.png")) == ["000002.png", "mine.png"]


def test_a_folder_is_known_as_ours_before_the_first_scene_is_done(data: Manifest, tmp_path: Path) -> None:
    writer_for(data, tmp_path / "out")
    folder.refuse_foreign(tmp_path / "out", overwrite=False)
    writer_for(data, tmp_path / "out")


def test_a_ledger_cannot_make_us_remove_files_outside(data: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("victim.png", "out/victim.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"precious")
    (out / "masks").mkdir()
    outside = ("masks/../../victim.png", "masks/../victim.png", "../victim.png", str(tmp_path / "victim.png"))
    for path in (*outside, "victim.png", "", 7):
        documents.append_json_line(out / LEDGER, {"id": "x", "mask": path})
    documents.append_json_line(out / LEDGER, ["masks/x.png"])
    writer_for(data, out)
    assert (tmp_path / "victim.png").read_bytes() == (out / "victim.png").read_bytes() == b"precious"
