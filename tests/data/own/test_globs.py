from __future__ import annotations

from pathlib import Path

import pytest

from memorysam_cli.data.own.patterns import Pattern, not_taken
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
    with pytest.raises(DataError, match=r"\(RGB/: no such folder; did you mean 'rgb'"):
        Pattern("RGB/*.png").find(tmp_path)
    with pytest.raises(DataError, match=r"\(3 .tga would, but only these are read: .png, .*; save them as PNG"):
        Pattern("rgb/*.tga").find(tmp_path)
    plant(tmp_path, "d/IMG_1.png", "d/IMG_2.png")
    with pytest.raises(DataError, match=r"\(2 would but for upper and lower case, such as d/IMG_1.png"):
        Pattern("d/img_*.png").find(tmp_path)


def test_a_suffix_matches_in_any_case_and_nothing_else_does(tmp_path: Path) -> None:
    plant(
        tmp_path, "rgb/a_RGB.png", "rgb/b_rgb.PNG", "rgb/c_rgb.Png", "RGB/d_rgb.png", "rgb/e_rgb.tif", "rgb/f_rgb.TIFF"
    )
    assert keys(tmp_path, "rgb/*_rgb.png") == {"rgb/b_rgb.PNG": "b", "rgb/c_rgb.Png": "c"}
    assert keys(tmp_path, "rgb/*.tif*") == {"rgb/e_rgb.tif": "e_rgb", "rgb/f_rgb.TIFF": "f_rgb"}


def test_files_that_were_not_taken_are_those_of_the_patterns_own_folders(tmp_path: Path) -> None:
    plant(
        tmp_path, "a/1.png", "a/1.bmp", "a/deep/1.png", "b/x/2.png", "b/x/notes.txt", "c/3.png", "memorysam/own/x.png",
        "classes.txt", "photo.gif",
    )  # fmt: skip

    def others(*patterns: str, taken: set[str]) -> dict[str, list[str]]:
        return not_taken(tmp_path, [Pattern(text) for text in patterns], taken)

    assert others("a/*.png", taken={"a/1.png"}) == {"a": ["a/1.bmp"]}
    assert others("a/**/*.png", taken={"a/1.png"}) == {"a": ["a/1.bmp", "a/deep/1.png"]}
    assert others("b/*/*.png", "c/*.png", taken={"b/x/2.png", "c/3.png"}) == {"b": ["b/x/notes.txt"]}
    # In the root itself texts are expected.
    assert others("*.png", taken=set()) == {"": ["photo.gif"]}


@pytest.mark.parametrize(
    ("pattern", "paths", "narrowed"),
    [
        ("ir/*.tif", ["ir/frame1.tif", "ir/frame12.tif"], "ir/frame*.tif"),
        ("ir/**/*.tif", ["ir/x/001_ir.tif", "ir/002_ir.tif"], "ir/**/*_ir.tif"),
        ("ir/*.tif", ["ir/a_1_b.tif", "ir/a_12_b.tif"], "ir/a_*_b.tif"),
        ("ir/*.tif", ["ir/001.tif", "ir/002.tif"], None),  # 00 tells nothing of a sensor
        ("ir/*", ["ir/f1.tif", "ir/f2.tif"], None),
        ("ir/*_*.tif", ["ir/a_1.tif", "ir/a_2.tif"], None),
        ("ir/*.tif", ["ir/a.tif"], None),
    ],
)
def test_what_all_names_share_is_written_into_the_pattern(
    pattern: str, paths: list[str], narrowed: str | None, tmp_path: Path
) -> None:
    plant(tmp_path, *paths)
    found = Pattern(pattern).narrowed(Pattern(pattern).find(tmp_path))
    assert (None if found is None else found.text) == narrowed


def test_two_files_of_one_key_are_refused(tmp_path: Path) -> None:
    plant(tmp_path, "rgb/a.png", "rgb/a.jpg")
    with pytest.raises(DataError, match=r"matches rgb/a.jpg and rgb/a.png, which would be one scene 'a'"):
        Pattern("rgb/*").find(tmp_path)
    assert keys(tmp_path, "rgb/*.png") == {"rgb/a.png": "a"}  # as the message says
    plant(tmp_path, "d/a.png", "d/a.PNG")
    with pytest.raises(DataError, match=r"would be one scene 'a'; move one$"):
        Pattern("d/*.png").find(tmp_path)


def test_neighboring_wildcards_stand_for_one_text(tmp_path: Path) -> None:
    plant(tmp_path, "rgb/0012.png", "rgb/12.png", "d/0012.PNG", "d/a.b.npy")
    assert keys(tmp_path, "rgb/????.png") == {"rgb/0012.png": "0012"}
    assert keys(tmp_path, "rgb/??*.png") == {"rgb/0012.png": "0012", "rgb/12.png": "12"}
    assert keys(tmp_path, "d/*.*") == {"d/0012.PNG": "0012", "d/a.b.npy": "a.b"}
    (match,) = Pattern("rgb/????.png").find(tmp_path)
    assert Pattern("depth/*.npy").filled(match.parts, match.split) == "depth/0012.npy"
