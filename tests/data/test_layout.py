"""The engine, on a small made-up declaration."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from memorysam_cli.data.layout import DataNotFound, DatasetLayout, Lists, place, sensor
from memorysam_cli.dataset import LabelRule, Modality
from memorysam_cli.errors import DataError, EnvironmentFault

BY_FOLDER = DatasetLayout(
    name="made-up",
    title="Made Up",
    published_at="https://example.org",
    published_counts={"train": 2, "val": 1},
    folder="MU",
    signs=(("cam",), ("heat", "gt")),
    sensors=(
        sensor(Modality(name="img", kind="rgb"), "cam/{split}/{name}.png", place("photo/{split}/{name}.jpg")),
        sensor(
            Modality(name="thermal", kind="thermal"),
            "heat/{split}/{name}.png",
            place("cam/{split}/{name}_t.png", channels=(3, 3, 3), scale=0.5),
        ),
        sensor(Modality(name="more", kind="gray"), "more/{split}/{name}.png", is_optional=True),
    ),
    labels=(
        place("gt/{split}/{name}.png"),
        place("gt/{split}/{name}.npy", rule=LabelRule(shift=-1), counts={"train": 7}),
    ),
    classes={"a": (0, 0, 0), "b": (1, 1, 1)},
    id="{split}/{name}",
    unlabeled=("test",),
)
BY_LIST = replace(
    BY_FOLDER,
    signs=(("cam",), ("train.txt", "val.txt")),
    sensors=(sensor(Modality(name="img", kind="rgb"), "cam/{name}.png"),),
    labels=(place("gt/{name}.png"),),
    id="{name}",
    lists=Lists(splits=("train", "val"), lines=("{name}", "cam/{name}.png"), has_columns=True),
)


def write(folder: Path, *paths: str, text: str = "") -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def full(folder: Path) -> Path:
    return write(folder, *(f"{kind}/{scene}.png" for kind in ("cam", "heat", "gt") for scene in ("train/1", "val/2")))


def test_a_scene_is_listed_as_soon_as_one_of_its_files_exists(tmp_path: Path) -> None:
    write(full(tmp_path / "D"), "gt/train/3.png", "heat/val/4.png")
    scenes = BY_FOLDER.survey(tmp_path / "D", tmp_path)
    assert [scene.id for scene in scenes] == ["train/1", "train/3", "val/2", "val/4"]
    assert scenes[1].files == {"img": ("D/cam/train/3.png",), "thermal": ("D/heat/train/3.png",)}
    assert (scenes[1].split, scenes[1].label) == ("train", "D/gt/train/3.png")


def test_a_modality_without_any_file_is_left_out_and_said(tmp_path: Path) -> None:
    shutil.rmtree(full(tmp_path) / "heat")
    scenes = BY_FOLDER.survey(tmp_path, tmp_path)
    assert [modality.name for modality in BY_FOLDER.info(tmp_path).modalities] == ["img"]
    assert all(set(scene.files) == {"img"} for scene in scenes)
    assert (
        "no 'thermal' (looked for heat/<split>/<name>.png or cam/<split>/<name>_t.png): prepared without it"
        in BY_FOLDER.remarks(scenes)
    )
    assert not any("'more'" in remark for remark in BY_FOLDER.remarks(scenes))


def test_with_one_file_every_scene_must_have_the_modality(tmp_path: Path) -> None:
    write(full(tmp_path), "more/val/2.png")
    assert all(set(scene.files) == {"img", "thermal", "more"} for scene in BY_FOLDER.survey(tmp_path, tmp_path))


def test_the_first_modality_is_never_left_out(tmp_path: Path) -> None:
    shutil.rmtree(full(tmp_path) / "cam")
    assert BY_FOLDER.info(tmp_path).modalities[0].name == "img"
    assert BY_FOLDER.survey(tmp_path, tmp_path)[0].files["img"] == ("cam/train/1.png",)


def test_files_in_another_place_are_read_as_that_place_says(tmp_path: Path) -> None:
    folder = full(tmp_path)
    for name in ("train/1", "val/2"):
        (folder / f"heat/{name}.png").rename(folder / f"cam/{name}_t.png")
        (folder / f"gt/{name}.png").rename(folder / f"gt/{name}.npy")
    info, scenes = BY_FOLDER.info(folder), BY_FOLDER.survey(folder, folder)
    assert (info.modality("thermal").channels, info.modality("thermal").scale) == ((3, 3, 3), 0.5)
    assert info.label.shift == -1
    assert scenes[0].files["thermal"] == ("cam/train/1_t.png",) and scenes[0].label == "gt/train/1.npy"
    assert BY_FOLDER.published(scenes) == {"train": 7}
    assert BY_FOLDER.published_info.label.shift == 0


def test_hidden_labels_may_be_missing_in_their_split_alone(tmp_path: Path) -> None:
    folder = write(full(tmp_path), "cam/test/5.png", "cam/test/6.png", "gt/test/6.png", "cam/train/7.png")
    labels = {scene.id: scene.label for scene in BY_FOLDER.survey(folder, folder)}
    assert labels["test/5"] is None
    assert labels["test/6"] == "gt/test/6.png"
    assert labels["train/7"] == "gt/train/7.png"  # missing, which the check tells


def test_strays_are_files_of_ours_that_belong_to_no_scene(tmp_path: Path) -> None:
    folder = write(full(tmp_path / "D"), "cam/train/x.gif", "cam/y.png", "gt/train/deep/z.png", "else/a.png", "b.txt")
    write(folder, "gt/train/.hidden.png")
    scenes = BY_FOLDER.survey(folder, tmp_path)
    assert BY_FOLDER.strays(folder, scenes) == ["cam/train/x.gif", "cam/y.png", "gt/train/deep/z.png"]
    assert BY_FOLDER.strays(folder, scenes[1:])[1] == "cam/train/x.gif"  # train/1's own are first


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    folder = full(tmp_path)
    (folder / "cam" / "again").symlink_to(folder / "cam", target_is_directory=True)
    (folder / "cam" / "train" / "up").symlink_to(folder, target_is_directory=True)
    scenes = BY_FOLDER.survey(folder, folder)
    assert "cam/train/1.png" not in BY_FOLDER.strays(folder, scenes)


def test_the_tree_that_is_expected_names_every_place() -> None:
    lines = BY_FOLDER.expected_tree.splitlines()
    assert lines[0] == "MU/"
    assert lines[1].startswith("├── cam/<split>/<name>.png") and lines[1].endswith('(modality "img")')
    assert lines[2].startswith("├── photo/<split>/<name>.jpg") and lines[2].endswith('(or modality "img")')
    assert lines[-1].startswith("└── gt/<split>/<name>.npy")


def test_an_empty_folder_says_what_is_looked_for_and_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"no Made Up here .*published at https://example.org: unpack it there"):
        BY_FOLDER.find(tmp_path)
    write(tmp_path, "cam/a.png", "gt/b.png")
    with pytest.raises(DataNotFound, match=r"saw cam/a.png, gt/b.png; looked for cam/<split>/<name>.png"):
        BY_FOLDER.survey(BY_FOLDER.find(tmp_path), tmp_path)


@pytest.mark.parametrize(
    "text", ["1\n2\n", "﻿1\r\n2\r\n", "  1  \n\n\n2", "1 ignored\n2\tignored more", "cam/1.png\n2\n"]
)
def test_lists_are_read_however_they_were_saved(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path, "train.txt", text="9")
    (folder / "train.txt").write_bytes(text.encode())
    assert [(scene.id, scene.split) for scene in BY_LIST.scenes(folder, folder)] == [("1", "train"), ("2", "train")]


@pytest.mark.parametrize("name", ["../1", "/etc/1", "..", ".", "a\\1", "other/1.png", "cam/../1.png", "cam/.png"])
def test_a_line_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, "val.txt", text=f"1\n{name}\n")
    with pytest.raises(DataError, match=r"val\.txt, line 2: .* is not a scene's name \(allowed: <name> or cam/<name>"):
        BY_LIST.scenes(tmp_path, tmp_path)


def test_a_name_in_two_lists_stays_in_both(tmp_path: Path) -> None:
    write(tmp_path, "train.txt", "val.txt", text="1\n")
    assert [(scene.id, scene.split) for scene in BY_LIST.scenes(tmp_path, tmp_path)] == [("1", "train"), ("1", "val")]


def test_a_file_that_no_list_names_is_a_stray(tmp_path: Path) -> None:
    write(tmp_path, "cam/1.png", "cam/2.png", "gt/1.png")
    write(tmp_path, "train.txt", text="1\n")
    assert BY_LIST.strays(tmp_path, BY_LIST.survey(tmp_path, tmp_path)) == ["cam/2.png"]


def test_without_a_list_there_is_no_split(tmp_path: Path) -> None:
    write(tmp_path, "cam/1.png")
    with pytest.raises(DataError, match=r"has no train\.txt or val\.txt; unpack the lists too"):
        BY_LIST.scenes(tmp_path, tmp_path)


def test_what_macos_leaves_beside_an_archives_content_is_no_second_data_set(tmp_path: Path) -> None:
    full(tmp_path / "MU")
    full(tmp_path / "__MACOSX" / "MU")
    assert BY_FOLDER.find(tmp_path) == tmp_path / "MU"


def test_where_nothing_is_found_two_files_that_were_seen_are_named(tmp_path: Path) -> None:
    write(tmp_path, "pictures/one.png", "pictures/two.png", "pictures/three.png")
    with pytest.raises(DataNotFound, match=r"saw pictures/one.png, pictures/three.png; looked for cam/<split>"):
        BY_FOLDER.find(tmp_path)


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_absent_sensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "heat":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    full(tmp_path)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(EnvironmentFault, match=r"heat: cannot be listed \(Permission denied\); allow reading there"):
        BY_FOLDER.info(tmp_path)


@pytest.mark.parametrize(("name", "why"), [("nowhere.zip", "does not exist"), ("notes.txt", "is not a folder")])
def test_a_root_that_is_none_is_called_what_it_is(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataNotFound, match=f"{name}: {why}"):
        BY_FOLDER.find(tmp_path / name)
