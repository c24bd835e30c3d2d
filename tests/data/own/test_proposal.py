"""``prepare folder DIR`` without patterns: what each tree means, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.data.own.proposal import Proposal, propose
from memorysam_cli.dataset import word_of
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.storage import images

FORMS = {
    "photo": np.zeros((4, 4, 3), np.uint8),
    "label": np.zeros((4, 4), np.uint8),
    "deep": np.full((4, 4), 900, np.uint16),
    "bands": np.zeros((4, 4, 6), np.float32),
}


def write(root: Path, **files: str) -> None:
    """form → paths, separated by blanks; ``#`` is 1, 2 and 3, ``_`` in a path stays, ``~`` is a blank."""
    for form, text in files.items():
        for path in text.split():
            for number in "123" if "#" in path else "1":
                place = root / path.replace("#", number).replace("~", " ")
                if place.suffix == ".npy":
                    place.parent.mkdir(parents=True, exist_ok=True)
                    np.save(place, FORMS[form])
                else:
                    images.write_png(place, FORMS[form], fsync=False)


def found(root: Path) -> tuple[dict[str, str], str | None]:
    proposal = propose(root)
    return proposal.modalities, proposal.labels


TREES = {
    "a folder each": (
        {"photo": "images/#.png", "deep": "depth/#.png", "label": "masks/#.png"},
        ({"rgb": "images/*.png", "depth": "depth/*.png"}, "masks/*.png"),
    ),
    "deeper, with generic folders above or below": (
        {"photo": "images/rgb/a/#.png images/rgb/b/#.png", "deep": "images/depth/cam/#.png", "label": "gt/#.png"},
        ({"rgb": "images/rgb/*/*.png", "depth": "images/depth/cam/*.png"}, "gt/*.png"),
    ),
    "splits above": (
        {
            "photo": "train/rgb/#.png val/rgb/#.png",
            "deep": "train/ir/#.png val/ir/#.png",
            "label": "train/labels/#.png val/labels/#.png",
        },
        ({"rgb": "{split}/rgb/*.png", "ir": "{split}/ir/*.png"}, "{split}/labels/*.png"),
    ),
    "splits below, labels in one of them only": (
        {"photo": "img/train/#.png img/val/#.png", "label": "label/train/#.png"},
        ({"rgb": "img/{split}/*.png"}, "label/{split}/*.png"),
    ),
    "a folder per scene": (
        {"photo": "s#/rgb.png", "deep": "s#/thermal.png", "label": "s#/label.png"},
        ({"rgb": "*/rgb.png", "thermal": "*/thermal.png"}, "*/label.png"),
    ),
    "one folder, names that tell": (
        {"photo": "all/#_rgb.png", "deep": "all/#_depth.png", "label": "all/#_label.png"},
        ({"rgb": "all/*_rgb.png", "depth": "all/*_depth.png"}, "all/*_label.png"),
    ),
    "names in folders that tell them, too": (
        {"photo": "rgb/rgb_#.png", "deep": "thermal~camera/frame#.png", "label": "labels/#_label.png"},
        ({"rgb": "rgb/*.png", "thermal-camera": "thermal camera/*.png"}, "labels/*.png"),
    ),
    "labels beside the photos": (
        {"photo": "photos/#.png", "label": "photos/#_mask.png"},
        None,  # no pattern takes the photos and leaves the masks
    ),
    "an angle": (
        {"photo": "rgb/#.png", "label": "aolp/sin/#.png aolp/cos/#.png"},
        ({"rgb": "rgb/*.png", "aolp": "aolp/sin/*.png+aolp/cos/*.png"}, None),
    ),
    "one sensor, no labels": ({"photo": "holiday/#.png"}, ({"holiday": "holiday/*.png"}, None)),
    "pictures alone": ({"photo": "#.png"}, ({"rgb": "*.png"}, None)),
    "recordings": (
        {"photo": "run1/rgb/#.png run2/rgb/#.png", "deep": "run1/depth/#.png run2/depth/#.png"},
        ({"rgb": "*/rgb/*.png", "depth": "*/depth/*.png"}, None),
    ),
    "two cameras": (
        {"photo": "cam1/#.png cam2/#.png"},
        ({"rgb": "cam1/*.png", "cam2": "cam2/*.png"}, None),
    ),
    "a picture of the rig in the root": (
        {"photo": "rgb/#.png rig.png", "deep": "depth/#.png"},
        ({"rgb": "rgb/*.png", "depth": "depth/*.png"}, None),
    ),
}


@pytest.mark.parametrize("tree", TREES)
def test_a_tree_is_understood_as_people_lay_them_out(tree: str, tmp_path: Path) -> None:
    files, meant = TREES[tree]
    write(tmp_path, **files)
    if meant is None:
        with pytest.raises(UsageError, match="no pattern can separate these files; give the patterns"):
            propose(tmp_path)
    else:
        assert found(tmp_path) == meant


@pytest.mark.parametrize(
    "folder", ["label", "masks", "gt", "annotations", "SegmentationClass", "ground_truth", "labelIds"]
)
def test_labels_are_never_a_sensor(folder: str, tmp_path: Path) -> None:
    write(tmp_path, photo="rgb/#.png", label=f"{folder}/#.png")
    assert found(tmp_path) == ({"rgb": "rgb/*.png"}, f"{folder}/*.png")


def refusal(root: Path, **given: str) -> str:
    with pytest.raises(UsageError) as caught:
        propose(root, **given)  # type: ignore[arg-type]
    return str(caught.value)


def test_two_folders_that_could_be_labels_are_refused_with_what_to_type(tmp_path: Path) -> None:
    write(tmp_path, photo="rgb/#.png", label="labels/#.png masks/#.png")
    said = refusal(tmp_path)
    assert "2 kinds of files may be the labels; choose one: --labels 'labels/*.png' or --labels 'masks/*.png'" in said
    proposal = propose(tmp_path, labels="masks/*.png")
    assert (proposal.modalities, proposal.labels) == ({"rgb": "rgb/*.png"}, "masks/*.png")
    assert "'labels/*.png' may be labels, too, and is left out" in proposal.notes


def test_what_neither_name_nor_content_tells_is_refused(tmp_path: Path) -> None:
    write(tmp_path, photo="rgb/#.png", deep="device/#.png")
    said = refusal(tmp_path)
    assert "device/1.png: holds 1 channel of uint16, and its name means no kind of sensor" in said
    assert propose(tmp_path, kinds={"device": "depth"}).modalities["device"] == "device/*.png"
    write(tmp_path / "only", label="labels/#.png")
    assert "3 pictures look like labels" in refusal(tmp_path / "only")
    with pytest.raises(DataError, match=r"no picture below it \(saw no file at all"):
        propose(tmp_path / "nothing")


def options(proposal: Proposal) -> list[str]:
    return proposal.words()


def test_names_classes_and_channels_are_made_and_said(tmp_path: Path) -> None:
    write(tmp_path, photo="Wärmebild~links/#.png", bands="ms/#.npy", label="Masken/mask_#.png")
    (tmp_path / "classes.txt").write_text("a\n")
    proposal = propose(tmp_path)
    assert proposal.modalities == {"ms": "ms/*.npy", "Waermebild-links": "Wärmebild links/*.png"}
    assert proposal.labels == "Masken/*.png" and proposal.classes == tmp_path / "classes.txt"
    assert proposal.channels == {"ms": "0-5"} and not proposal.kinds  # "Waermebild" tells thermal
    assert any("'Wärmebild links' is renamed to 'Waermebild-links'" in line for line in proposal.notes)
    assert any("'ms' has 6 channels; --channels ms=0-5 is used" in line for line in proposal.notes)
    assert options(proposal)[-2:] == ["--classes", str(tmp_path / "classes.txt")]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Wärmebild Kamera", "Waermebild-Kamera"),
        ("Stra\u00dfe", "Strasse"),
        ("a\u0308", "ae"),  # as macOS writes ä
        ("caméra №1", "camera-No1"),
        ("(raw) data_1", "raw-data_1"),
        ("雨", ""),
    ],
)
def test_words_are_made_of_any_name(text: str, word: str) -> None:
    assert word_of(text) == word
