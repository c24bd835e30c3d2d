from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memorysam_cli.data import decode
from memorysam_cli.data.own import folder
from memorysam_cli.data.own.classes import ClassList, read_classes
from memorysam_cli.data.own.folder import FolderRequest, survey
from memorysam_cli.data.own.patterns import Pattern
from memorysam_cli.dataset import LabelRule
from memorysam_cli.errors import DataError, LawBroken, UsageError
from memorysam_cli.storage import images

from ..own_sensors import write_sensors


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_sensors(tmp_path / "own")


def classes(root: Path, text: str | None = None) -> ClassList:
    if text is not None:
        (root / "classes.txt").write_text(text)
    return read_classes(root / "classes.txt")


def plan(root: Path, **changes: object) -> FolderRequest:
    made = FolderRequest(
        name="own",
        modalities={"rgb": (Pattern("images/**/*.jpg"),), "depth": (Pattern("depth/**/*_depth.png"),)},
        labels=Pattern("masks/**/*.png"),
        classes=classes(root),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_files_pair_by_what_the_wildcards_stand_for(root: Path) -> None:
    found = survey(root, plan(root)).manifest
    scene = {scene.id: scene for scene in found.scenes}["cam1/0003"]
    assert scene.files == {"rgb": ("images/cam1/0003.jpg",), "depth": ("depth/cam1/0003_depth.png",)}
    assert scene.label == "masks/cam1/0003.png"
    assert (found.info.name, found.info.classes, found.info.root) == ("own", ("ground", "car", "box"), ".")


def test_names_that_carry_the_sensor_pair_too(root: Path) -> None:
    names = {"a": (Pattern("x/*.png"),), "b": (Pattern("y/*.png"),)}
    for name in ("1", "2"):
        images.write_png(root / f"x/{name}_left.png", np.zeros((4, 4), np.uint8))
        images.write_png(root / f"y/{name}_right.png", np.zeros((4, 4), np.uint8))
    ids = [
        scene.id
        for scene in survey(root, FolderRequest("own", names, kinds={"a": "gray", "b": "gray"})).manifest.scenes
    ]
    assert ids == ["1_left", "2_left"]


def test_files_that_do_not_pair_are_refused_with_the_remedy(root: Path) -> None:
    strange = {"rgb": (Pattern("images/**/*.jpg"),), "depth": (Pattern("depth/cam0/*.png"),)}
    images.write_png(root / "depth/cam0/x_y_z.png", np.zeros((4, 4), np.uint16))
    with pytest.raises(
        DataError, match=r"'depth' pairs with nothing: .* goes by the name '0000_depth', and .* of 'rgb' by 'cam0/0000'"
    ):
        survey(root, plan(root, modalities=strange))


def pictures(root: Path, *paths: str) -> None:
    for path in paths:
        images.write_png(root / path, np.zeros((4, 4), np.uint8), fsync=False)


def request(**patterns: str) -> FolderRequest:
    labels = patterns.pop("labels", None)
    return FolderRequest(
        "own",
        {name: (Pattern(text),) for name, text in patterns.items()},
        labels=None if labels is None else Pattern(labels),
        classes=None if labels is None else ClassList(("a", "b"), ((0, 0, 0), (1, 1, 1)), has_colors=False, mapping=()),
    )


STEMS = {"rgb": "rgb/*.png", "depth": "depth/*.png", "ir": "ir/*.png", "labels": "labels/*.png"}


def test_names_that_differ_pair_by_their_numbers_if_these_are_the_same_in_all_folders(tmp_path: Path) -> None:
    for number in range(12):
        pictures(
            tmp_path, f"rgb/rgb_{number:04}.png", f"depth/d-{number:04}.png", f"ir/cam2 frame{number}.png",
            f"labels/{number:04}_label.png",
        )  # fmt: skip
    found = survey(tmp_path, request(**STEMS))
    assert len(found.manifest.scenes) == 12
    for scene in found.manifest.scenes:
        number = int(scene.id.removeprefix("rgb_"))
        assert scene.files == {
            "rgb": (f"rgb/rgb_{number:04}.png",),
            "depth": (f"depth/d-{number:04}.png",),
            "ir": (f"ir/cam2 frame{number}.png",),
        }
        assert scene.label == f"labels/{number:04}_label.png"
    said = "rgb/rgb_0000.png, depth/d-0000.png, ir/cam2 frame0.png, labels/0000_label.png"
    assert f"files pair by their numbers, which are the same in all folders: {said}" in found.notes


@pytest.mark.parametrize(
    "ir",
    [
        range(1, 13),  # counted from 1: each would be a scene off
        range(11),  # one is missing: nobody knows which
    ],
)
def test_numbers_that_are_not_one_to_one_pair_nothing_and_the_patterns_to_type_are_printed(
    tmp_path: Path, ir: range
) -> None:
    for number in range(12):
        pictures(tmp_path, f"rgb/rgb_{number:04}.png", f"labels/{number:04}_label.png")
    pictures(tmp_path, *(f"ir/frame{number:04}.png" for number in ir))
    asked = {name: text for name, text in STEMS.items() if name != "depth"}
    with pytest.raises(DataError) as caught:
        survey(tmp_path, request(**asked))
    typed = str(caught.value).partition("type: ")[2]
    assert typed == "--modality 'rgb=rgb/rgb_*.png' --modality 'ir=ir/frame*.png' --labels 'labels/*_label.png'"
    # What was printed works as typed.
    again = survey(tmp_path, request(rgb="rgb/rgb_*.png", ir="ir/frame*.png", labels="labels/*_label.png"))
    whole = [scene for scene in again.manifest.scenes if all((tmp_path / path).is_file() for path in scene.paths)]
    assert len(whole) == 11


def test_the_folder_that_pairs_with_none_is_named(tmp_path: Path) -> None:
    # rgb pairs with depth, depth with ir, and the labels with none.
    pictures(tmp_path, "rgb/1.png", "rgb/2.png", "depth/2.png", "depth/3.png", "ir/3.png", "labels/a.png")
    with pytest.raises(DataError, match=r"'--labels' pairs with nothing: labels/a.png .* rgb/1.png of 'rgb'.*; give"):
        survey(tmp_path, request(**STEMS))


def test_what_lies_beside_is_said_by_suffix_and_count_and_suffixes_match_in_any_case(tmp_path: Path) -> None:
    pictures(tmp_path, *(f"{place}/{number}.png" for place in ("rgb", "depth", "labels") for number in range(3)))
    for place in ("rgb", "depth", "labels"):
        (tmp_path / place / "2.png").rename(tmp_path / place / "2.PNG")
    pictures(tmp_path, "rgb/IMG_7.png")
    for name in ("a.gif", "b.gif", "Thumbs.db", "README"):
        (tmp_path / "rgb" / name).write_bytes(b"x")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    found = survey(tmp_path, request(rgb="rgb/?.png", depth="depth/*.png", labels="labels/*.png"))
    assert len(found.manifest.scenes) == 3
    assert found.notes[0] == (
        "rgb/: 5 files are not taken (2 .gif, 1 .db, 1 .png, 1 without suffix), such as rgb/IMG_7.png"
    )
    pictures(tmp_path, "ir/IMG_0.png", "ir/IMG_1.png", "ir/img_2.png")
    found = survey(tmp_path, request(rgb="rgb/?.png", ir="ir/img_*.png"))
    said = "ir/: 2 files are not taken (2 .png); 2 would match but for upper and lower case, such as ir/IMG_0.png"
    assert said in found.notes


def test_shares_are_drawn_by_the_seed_and_every_split_has_a_scene(root: Path) -> None:
    first = survey(root, plan(root)).manifest
    assert set(Counter(scene.split for scene in first.scenes)) == {"train", "val", "test"}
    assert survey(root, plan(root)).manifest == first
    assert survey(root, plan(root, seed=1)).manifest != first
    assert [scene.split for scene in first.scenes] == sorted(
        (scene.split for scene in first.scenes), key=("train", "val", "test").index
    )


def test_lists_divide_and_leave_out_what_they_do_not_name(root: Path) -> None:
    (root / "train.txt").write_text("cam0/0000\nimages/cam1/0001.jpg\n")
    (root / "val.txt").write_text("0002\n")
    found = survey(root, plan(root, split={"train": root / "train.txt", "val": root / "val.txt"}))
    assert {scene.id: scene.split for scene in found.manifest.scenes} == {
        "cam0/0000": "train", "cam1/0001": "train", "cam0/0002": "val",
    }  # fmt: skip
    assert "7 of 10 scenes are in no list and left out" in found.notes
    (root / "train.txt").write_text("\n")
    with pytest.raises(DataError, match="names no scene for 'train'"):
        survey(root, plan(root, split={"train": root / "train.txt"}))


def test_the_split_may_stand_in_the_path_and_one_without_labels_is_to_be_predicted(root: Path) -> None:
    for split, names in {"train": "ab", "test": "a"}.items():
        for name in names:
            images.write_png(root / f"x/{split}/{name}.png", np.zeros((4, 4), np.uint8))
    images.write_png(root / "y/train/a.png", np.zeros((4, 4), np.uint8))
    asked = plan(root, modalities={"rgb": (Pattern("x/{split}/*.png"),)}, labels=Pattern("y/{split}/*.png"))
    found = survey(root, asked)
    assert [(scene.id, scene.split, scene.label) for scene in found.manifest.scenes] == [
        ("train/a", "train", "y/train/a.png"),
        ("train/b", "train", "y/train/b.png"),  # expected: the check finds it missing
        ("test/a", "test", None),
    ]
    assert found.manifest.info.unlabeled == ("test",)
    assert "split test: has no label at all; its scenes can be predicted, not scored" in found.notes
    with pytest.raises(UsageError, match="already defines the splits"):
        survey(root, replace(asked, split=(0.8, 0.1, 0.1)))
    with pytest.raises(UsageError, match=r"has no {split}, but 'x/{split}/\*.png' has"):
        survey(root, replace(asked, labels=Pattern("y/train/*.png")))


def test_a_file_that_is_missing_is_named_as_it_was_expected(root: Path) -> None:
    (root / "depth/cam1/0003_depth.png").unlink()
    (root / "images/cam0/0004.jpg").unlink()
    scenes = {scene.id: scene for scene in survey(root, plan(root)).manifest.scenes}
    assert scenes["cam1/0003"].files["depth"] == ("depth/cam1/0003_depth.png",)
    assert scenes["cam0/0004"].files["rgb"] == ("images/cam0/0004.jpg",)


def test_without_labels_the_scenes_can_only_be_predicted(root: Path) -> None:
    found = survey(root, plan(root, labels=None, classes=None)).manifest
    assert {scene.split for scene in found.scenes} == {"test"} and found.info.unlabeled == ("test",)
    assert all(scene.label is None for scene in found.scenes)


def test_an_angle_has_two_patterns(root: Path) -> None:
    both = (Pattern("aolp/sin/**/*.npy"), Pattern("aolp/cos/**/*.npy"))
    found = survey(root, plan(root, modalities={"rgb": (Pattern("images/**/*.jpg"),), "pol": both})).manifest
    assert found.info.modality("pol").kind == "angle"
    scene = found.scenes[0]
    assert scene.files["pol"] == (f"aolp/sin/{scene.id}.npy", f"aolp/cos/{scene.id}.npy")
    frame = decode.read_modality([root / path for path in scene.files["pol"]], found.info.modality("pol"))
    assert frame.shape == (40, 56, 3)
    with pytest.raises(UsageError, match="an angle has two patterns, of its sine and of its cosine"):
        survey(root, plan(root, modalities={"aolp": both[:1]}))
    two = {"aolp": (Pattern("ms/**/*.npy"),)}
    assert (
        survey(root, plan(root, modalities=two, channels={"aolp": (0, 1, 0)})).manifest.info.modalities[0].kind
        == "angle"
    )
    with pytest.raises(UsageError, match=r"here: 2 for kind 'depth'"):
        survey(root, plan(root, modalities={"x": both}, kinds={"x": "depth"}))


def test_what_was_guessed_is_said(root: Path) -> None:
    more = {"ir": (Pattern("ir/**/*.tiff"),), "depth": (Pattern("depth/**/*_depth.png"),)}
    notes = survey(root, plan(root, modalities=more)).notes
    assert "'ir' is treated as kind 'thermal'; --kind ir=… overrides this" in notes
    assert not any("'depth' is taken" in note for note in notes)
    assert survey(root, plan(root, modalities=more, kinds={"ir": "gray"})).manifest.info.modality("ir").kind == "gray"


def test_odd_ranges_are_said_with_a_remedy(root: Path) -> None:
    def said(**changes: object) -> str:
        return "\n".join(survey(root, plan(root, **changes)).notes)

    # 1000, 1900 or 2800 mm; 2800 / 65535 = 4.3 %; 0.0004 · 2800 = 1.1
    stored = said(measured="none")
    assert "'depth': uint16 1000 to 2800 (1–99 %) in the first files use only 4.3 % of the range" in stored
    assert "--scale depth=0.0004" in stored
    assert "'depth'" not in said(scale={"depth": 0.0004}, measured="none")
    assert "'depth'" not in said() and "'depth'" not in said(measured="all")
    far = said(scale={"depth": 1.0}, measured="none")
    assert "become values up to 2800, the network is used to about 1" in far


def test_photos_of_another_range_are_said_too(root: Path) -> None:
    for number in range(3):
        images.write_png(root / f"raw/{number}.png", np.full((4, 4, 3), 4095, np.uint16))  # 12 bits in 16
        (root / "float").mkdir(exist_ok=True)
        np.save(root / f"float/{number}.npy", np.full((4, 4, 3), 255.0, np.float32))
    raw, floating = {"rgb": (Pattern("raw/*.png"),)}, {"rgb": (Pattern("float/*.npy"),)}
    assert "--scale rgb=0.0002" in survey(root, FolderRequest("own", raw)).notes[0]
    assert "become values up to 255" in survey(root, FolderRequest("own", floating)).notes[0]


def test_a_fourth_channel_is_said_to_be_dropped(root: Path) -> None:
    for number in range(3):
        images.write_png(root / f"rgba/{number}.png", np.zeros((4, 4, 4), np.uint8))
    rgba = {"rgb": (Pattern("rgba/*.png"),)}
    assert "is treated as alpha and dropped" in survey(root, FolderRequest("own", rgba)).notes[0]
    assert not survey(root, FolderRequest("own", rgba, channels={"rgb": (3, 1, 0)})).notes


def test_labels_become_classes_by_the_list(root: Path) -> None:
    assert survey(root, plan(root)).manifest.info.label == LabelRule()
    shifted = survey(root, plan(root, label_shift=-1, ignore=(0, 255))).manifest.info.label
    assert shifted == LabelRule(shift=-1, ignore=(0, 255))
    mapped = plan(root, classes=classes(root, "0: a\n128: b\n255: c\n"))
    assert survey(root, mapped).manifest.info.label == LabelRule(mapping=((0, 0), (128, 1), (255, 2)), ignore=())
    with pytest.raises(UsageError, match="the class list gives the values already"):
        survey(root, replace(mapped, label_shift=-1))
    with pytest.raises(UsageError, match="--ignore 128: is the value of a class"):
        survey(root, replace(mapped, ignore=(255, 128)))


def test_labels_in_color_need_the_colors(root: Path) -> None:
    for path in (root / "masks").rglob("*.png"):
        images.write_png(path, np.full((40, 56, 3), (10, 20, 30), np.uint8))
    with pytest.raises(UsageError, match="is in color; give each class its color in the class list"):
        survey(root, plan(root))
    colored = plan(root, classes=classes(root, "a 10 20 30\nb #ff0000\n"))
    found = survey(root, colored).manifest.info
    assert found.label.colors and found.palette == ((10, 20, 30), (255, 0, 0))


def with_alpha(picture: np.ndarray) -> np.ndarray:
    return np.concatenate([picture, np.full((*picture.shape[:2], 1), 255, np.uint8)], axis=-1)


@pytest.mark.parametrize("channels", [3, 4])
def test_labels_in_color_are_refused_whichever_file_shows_it(root: Path, channels: int) -> None:
    first, *others = sorted((root / "masks").rglob("*.png"))
    images.write_png(first, with_alpha(np.zeros((40, 56, 3), np.uint8)))  # black is a color, and may be class 0
    for path in others:
        picture = np.full((40, 56, 3), (0, 200, 0), np.uint8)
        images.write_png(path, with_alpha(picture) if channels == 4 else picture)
    with pytest.raises(UsageError, match="is in color; give each class its color in the class list"):
        survey(root, plan(root))


def test_indexed_labels_are_numbers_unless_their_colors_are_the_classes(root: Path) -> None:
    for path in (root / "masks").rglob("*.png"):
        picture = Image.fromarray(images.read(path), "L")
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])  # as PASCAL VOC
        picture.save(path)
    assert survey(root, plan(root)).manifest.info.label == LabelRule()
    other = plan(root, classes=classes(root, "a 1 1 1\nb 2 2 2\nc 3 3 3\n"))
    assert survey(root, other).manifest.info.label == LabelRule()
    same = plan(root, classes=classes(root, "a 0 0 0\nb 128 0 0\nc 0 128 0\n"))
    assert survey(root, same).manifest.info.label.colors


def test_masks_of_0_and_255_get_a_hint(root: Path) -> None:
    for path in (root / "masks").rglob("*.png"):
        images.write_png(path, (images.read(path) > 0).astype(np.uint8) * 255)
    two = plan(root, classes=classes(root, "background\ncrack\n"))
    (hint,) = [note for note in survey(root, two).notes if "labels hold" in note]
    assert "0 and 255 only, and 255 counts as 'ignored'" in hint and "'0: background' and '255: crack'" in hint
    mapped = replace(two, classes=classes(root, "0: background\n255: crack\n"))
    assert not [note for note in survey(root, mapped).notes if "labels hold" in note]


def test_labels_in_color_with_alpha_are_told_from_class_numbers_in_the_first_of_four_channels(root: Path) -> None:
    colors = np.array([(2, 0, 30), (0, 255, 0), (1, 20, 30)], np.uint8)
    colored = plan(root, classes=classes(root, "a 2 0 30\nb 0 255 0\nc 1 20 30\n"))
    for path in (root / "masks").rglob("*.png"):
        label = images.read(path)
        alpha = np.full((*label.shape, 1), 255, np.uint8)
        images.write_png(path, np.concatenate([colors[label], alpha], axis=-1))
    assert survey(root, colored).manifest.info.label.colors
    for path in (root / "masks").rglob("*.png"):
        first = np.zeros((40, 56, 4), np.uint8)
        first[10:, :, 0], first[30:, :, 0] = 1, 2
        images.write_png(path, first)
    assert not survey(root, colored).manifest.info.label.colors


def test_a_label_that_is_a_sensor_s_file_too_is_refused(root: Path) -> None:
    everything = {"rgb": (Pattern("images/**/*.jpg"),), "gray": (Pattern("**/*.png"),)}
    with pytest.raises(DataError, match=r"masks/cam0/0000.png: is matched by 'gray' and by --labels"):
        survey(root, plan(root, modalities=everything))


def test_labels_that_count_from_1_get_a_hint(root: Path) -> None:
    for path in (root / "masks").rglob("*.png"):
        images.write_png(path, images.read(path) + np.uint8(1))
    (hint,) = [note for note in survey(root, plan(root)).notes if "labels hold" in note]
    assert "hold 1 to 3" in hint and "--label-shift -1" in hint
    assert not [note for note in survey(root, plan(root, label_shift=-1)).notes if "labels hold" in note]


def test_no_matched_file_is_passed_over_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("rgb", "depth"):
        (tmp_path / place).mkdir()
        for name in "abc":
            images.write_png(tmp_path / place / f"{name}.png", np.ones((4, 4), np.uint8), fsync=False)
    plan = FolderRequest(name="own", modalities={"rgb": (Pattern("rgb/*.png"),), "depth": (Pattern("depth/*.png"),)})
    assert folder.survey(tmp_path, plan).laws == {
        "files matched = files of scenes": {"left": 6, "right": 6, "holds": True},
    }
    paired = folder._paired
    monkeypatch.setattr(folder, "_paired", lambda *given: replace(paired(*given), rows=paired(*given).rows[1:]))
    with pytest.raises(LawBroken, match="'files matched = files of scenes': 6 ≠ 4"):
        folder.survey(tmp_path, plan)
