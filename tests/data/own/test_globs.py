from __future__ import annotations

from pathlib import Path

import pytest

from memorysam_cli.data.own.patterns import Pattern
from memorysam_cli.errors import DataError, UsageError


def plant(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def keys(root: Path, pattern: str) -> dict[str, str]:
    return {match.path: match.key for match in Pattern(pattern).find(root)}


def test_a_star_matches_one_name_and_is_the_key(tmp_path: Path) -> None:
    plant(tmp_path, "rgb/a.png", "rgb/b.png", "rgb/deep/c.png", "rgb/d.jpg", "rgb/.hidden.png")
    assert keys(tmp_path, "rgb/*.png") == {"rgb/a.png": "a", "rgb/b.png": "b"}


def test_two_stars_match_any_folders_or_none(tmp_path: Path) -> None:
    plant(tmp_path, "rgb/a.png", "rgb/x/y/a_rgb.png", "rgb/x/b_rgb.png")
    assert keys(tmp_path, "rgb/**/*_rgb.png") == {"rgb/x/b_rgb.png": "x/b", "rgb/x/y/a_rgb.png": "x/y/a"}
    assert keys(tmp_path, "**/*.png") == {
        "rgb/a.png": "rgb/a", "rgb/x/b_rgb.png": "rgb/x/b_rgb", "rgb/x/y/a_rgb.png": "rgb/x/y/a_rgb",
    }  # fmt: skip


def test_a_question_mark_matches_one_letter_and_other_signs_stand_for_themselves(tmp_path: Path) -> None:
    plant(tmp_path, "a+(1)/f1.png", "a+(1)/f12.png", "aa1/f1.png")
    assert keys(tmp_path, "a+(1)/f?.png") == {"a+(1)/f1.png": "1"}


def test_the_split_is_told_apart_from_the_key(tmp_path: Path) -> None:
    plant(tmp_path, "train/s1/rgb.png", "val/s1/rgb.png")
    found = Pattern("{split}/*/rgb.png").find(tmp_path)
    assert [(match.split, match.key, match.parts) for match in found] == [
        ("train", "s1", ("s1",)),
        ("val", "s1", ("s1",)),
    ]


def test_a_split_that_stands_twice_must_be_the_same_word(tmp_path: Path) -> None:
    plant(tmp_path, "train/train_1.png", "train/val_1.png")
    assert keys(tmp_path, "{split}/{split}_*.png") == {"train/train_1.png": "1"}


def test_a_suffix_that_a_star_matched_is_no_part_of_the_key_and_other_files_are_no_images(tmp_path: Path) -> None:
    plant(tmp_path, "rgb/a.b.png", "rgb/c.JPG", "rgb/notes.txt")
    assert keys(tmp_path, "rgb/*") == {"rgb/a.b.png": "a.b", "rgb/c.JPG": "c"}


def test_the_folder_of_the_manifests_is_never_data(tmp_path: Path) -> None:
    plant(tmp_path, "memorysam/own/a.png", "rgb/a.png")
    assert keys(tmp_path, "**/*.png") == {"rgb/a.png": "rgb/a"}


def test_the_expected_path_of_a_sibling_is_filled_in(tmp_path: Path) -> None:
    (match,) = Pattern("rgb/{split}/**/*.png").find(plant(tmp_path, "rgb/train/x/1.png"))
    assert Pattern("depth/**/{split}/*_d.npy").filled(match.parts, match.split) == "depth/x/train/1_d.npy"
    assert Pattern("depth/*.npy").filled(match.parts, match.split) == "depth/*.npy"


@pytest.mark.parametrize("text", ["", "/a/*.png", "../a/*.png", "a//*.png", "a/./*.png", "a\\*.png"])
def test_a_pattern_cannot_lead_out_of_the_root(text: str) -> None:
    with pytest.raises(UsageError, match="must be a path below ROOT"):
        Pattern(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [("a/b.png", "has no \\* to tell"), ("a**/x.png", "'\\*\\*' stands for whole folders"), ("a/**", "whole folders")],
)
def test_an_impossible_pattern_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Pattern(text)


def test_without_a_match_the_pattern_and_what_is_there_are_said(tmp_path: Path) -> None:
    plant(tmp_path, "rgb/a.tga", "rgb/b.tga", "rgb/c.tga")
    with pytest.raises(DataError, match=r"no file matches 'rgb/\*.png' \(saw in rgb/: a.tga, b.tga\)"):
        Pattern("rgb/*.png").find(tmp_path)
    with pytest.raises(DataError, match=r"saw in RGB/: no such folder"):
        Pattern("RGB/*.png").find(tmp_path)


def test_two_files_of_one_key_are_refused(tmp_path: Path) -> None:
    plant(tmp_path, "rgb/a.png", "rgb/a.jpg")
    with pytest.raises(DataError, match=r"matches rgb/a.jpg and rgb/a.png, which would be one scene 'a'"):
        Pattern("rgb/*").find(tmp_path)


def test_neighbouring_wildcards_stand_for_one_text(tmp_path: Path) -> None:
    plant(tmp_path, "rgb/0012.png", "rgb/12.png", "d/0012.PNG", "d/a.b.npy")
    assert keys(tmp_path, "rgb/????.png") == {"rgb/0012.png": "0012"}
    assert keys(tmp_path, "rgb/??*.png") == {"rgb/0012.png": "0012", "rgb/12.png": "12"}
    assert keys(tmp_path, "d/*.*") == {"d/0012.PNG": "0012", "d/a.b.npy": "a.b"}
    (match,) = Pattern("rgb/????.png").find(tmp_path)
    assert Pattern("depth/*.npy").filled(match.parts, match.split) == "depth/0012.npy"
