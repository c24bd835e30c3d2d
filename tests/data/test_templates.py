from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorysam_cli.data.listing import Template, Tree

DELIVER = Template("img/{condition}/{split:train|val}/{sequence}/{frame}_rgb_front.png")
NAMES = st.text(st.characters(blacklist_characters="/\\\0", blacklist_categories=("Cs",)), min_size=1).filter(
    lambda name: name not in {".", ".."}
)


def write(folder: Path, *paths: str) -> Tree:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
    return Tree(folder)


def test_fields_come_from_whole_components_by_hand() -> None:
    fields = {"condition": "fog", "split": "val", "sequence": "MAP_1_point2", "frame": "000050"}
    assert DELIVER.fields == tuple(fields)
    assert DELIVER.match("img/fog/val/MAP_1_point2/000050_rgb_front.png") == fields
    assert DELIVER.fill(fields) == "img/fog/val/MAP_1_point2/000050_rgb_front.png"
    assert DELIVER.shown == "img/<condition>/{train,val}/<sequence>/<frame>_rgb_front.png"


@pytest.mark.parametrize(
    "path",
    [
        "img/fog/val/MAP_1_point2/000050_rgb_rear.png",
        "img/fog/test/MAP_1_point2/000050_rgb_front.png",
        "img/fog/val/000050_rgb_front.png",
        "img/fog/val/a/b/000050_rgb_front.png",
        "x/img/fog/val/MAP_1_point2/000050_rgb_front.png",
        "img/../val/MAP_1_point2/000050_rgb_front.png",
        "img/fog/val/MAP\\1/000050_rgb_front.png",
        "img/fog/val/MAP_1_point2/_rgb_front.png",
    ],
)
def test_other_paths_do_not_match(path: str) -> None:
    assert DELIVER.match(path) is None


@given(st.tuples(NAMES, NAMES, NAMES))
def test_a_filled_template_gives_its_fields_back(names: tuple[str, str, str]) -> None:
    fields = dict(zip(("a", "b", "c"), names, strict=True))
    template = Template("x/{a}/{b}/{c}.png")
    assert template.match(template.fill(fields)) == fields


def test_a_folder_gives_all_fields_that_it_has_a_file_for(tmp_path: Path) -> None:
    tree = write(
        tmp_path,
        "img/fog/val/s/1_rgb_front.png", "img/sun/train/s/1_rgb_front.png", "img/sun/train/s/.2_rgb_front.png",
        "img/sun/train/3_rgb_front.png", "img/sun/other/s/4_rgb_front.png", "hha/sun/train/s/5_rgb_front.png",
    )  # fmt: skip
    found = sorted((fields["condition"], fields["split"], fields["frame"]) for fields in DELIVER.found_in(tree))
    assert found == [("fog", "val", "1"), ("sun", "train", "1")]
    assert sorted(DELIVER.folders_in(tree)) == ["img/fog/val/s", "img/sun/train/s"]


@pytest.mark.parametrize(
    ("text", "is_there"),
    [("img", True), ("img/{c:fog|sun}", True), ("img/{c:rain}", False), ("img/{c}/a.png", True), ("hha", False)],
)
def test_a_sign_is_a_file_or_a_folder(tmp_path: Path, text: str, is_there: bool) -> None:
    assert Template(text).is_in(write(tmp_path, "img/fog/a.png")) is is_there


def test_a_missing_folder_has_nothing(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "nowhere")
    assert not list(DELIVER.found_in(tree)) and not DELIVER.is_in(tree) and not tree.has("a.png")
