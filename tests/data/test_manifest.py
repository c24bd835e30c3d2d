from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.errors import DataError


def test_what_is_written_is_read_back(prepared: Manifest) -> None:
    again = manifests.read(prepared.root, "deliver")
    assert again == prepared
    assert again.info.counts == {"train": 7, "val": 2}


def test_writing_twice_gives_the_same_bytes(prepared: Manifest) -> None:
    place = manifests.folder(prepared.root, "deliver")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    manifests.write(prepared.root, prepared.info, prepared.scenes)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert set(before) == {"scenes.jsonl", "dataset.json"}


def test_the_content_hash_follows_the_files_sizes(prepared: Manifest) -> None:
    with (prepared.root / prepared.scenes[0].files["img"][0]).open("ab") as stream:
        stream.write(b"x")
    changed = manifests.write(prepared.root, prepared.info, prepared.scenes)
    assert changed.info.content_hash != prepared.info.content_hash


def test_an_unprepared_data_set_names_what_is_there_and_the_line_to_type(prepared: Manifest) -> None:
    with pytest.raises(DataError) as caught:
        manifests.read(prepared.root, "synthetic-mcubes")
    assert "prepared there: deliver" in str(caught.value)
    assert f"memorysam prepare synthetic {prepared.root} --layout mcubes" in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "line"),
    [
        ("synthetic", "memorysam prepare synthetic D"),
        ("deliver", "memorysam prepare deliver D"),
        (
            "mine",
            "memorysam prepare folder D --name mine",
        ),
    ],
)
def test_every_data_set_has_its_prepare_line(dataset: str, line: str) -> None:
    assert manifests.prepare_line(Path("D"), dataset) == line


def test_a_changed_scene_list_is_refused(prepared: Manifest) -> None:
    path = manifests.folder(prepared.root, "deliver") / "scenes.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="prepare it again: memorysam prepare deliver"):
        manifests.read(prepared.root, "deliver")


def test_a_hand_edited_scene_list_names_the_line_that_signs_it(prepared: Manifest) -> None:
    path = manifests.folder(prepared.root, "deliver") / "scenes.jsonl"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(DataError, match=f"memorysam prepare manifest {prepared.root} deliver"):
        manifests.read(prepared.root, "deliver")


def edit(prepared: Manifest, **changes: object) -> None:
    path = manifests.folder(prepared.root, "deliver") / "scenes.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = json.dumps({key: value for key, value in (json.loads(lines[1]) | changes).items() if value != "-"})
    path.write_text("\n".join(lines) + "\n")


def sign(prepared: Manifest) -> None:
    """Give ``dataset.json`` the hash of the scenes as they are."""
    place = manifests.folder(prepared.root, "deliver")
    about = json.loads((place / "dataset.json").read_text())
    about["content_hash"] = hashlib.sha256((place / "scenes.jsonl").read_bytes()).hexdigest()
    (place / "dataset.json").write_text(json.dumps(about))


def test_an_edited_manifest_can_be_read_unsigned_and_signed_anew(prepared: Manifest) -> None:
    edit(prepared, split="val", bytes="-", condition=None)
    found = manifests.read_unsigned(prepared.root, "deliver")
    assert found.scenes[1] == replace(prepared.scenes[1], split="val", condition=None)
    assert (found.scenes[0], len(found.scenes)) == (prepared.scenes[0], len(prepared.scenes))
    manifests.write(prepared.root, found.info, found.scenes)
    assert manifests.read(prepared.root, "deliver").info.counts == {"train": 6, "val": 3}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"splitt": "x"}, "splitt"),
        ({"split": "-"}, "split: Field required"),
        ({"split": 3}, "split"),
        ({"label": "../secret.png"}, "not a path below the data root"),
        ({"label": "/etc/passwd"}, "not a path below the data root"),
        ({"id": "a//b"}, "not a path below the data root"),
        ({"id": f"val/{'é' * 126}"}, "has a name of 256 bytes with the .png of its outputs, and file systems take 255"),
        ({"label": f"{'b' * 256}/x.png"}, f"label: '{'b' * 62}…' has a name of 256 bytes, and file systems take 255"),
        ({"files": {"img": ["a.png"]}}, "has no 'depth'"),
        (
            {"files": {name: ["C:/a.png"] for name in ("img", "depth", "event", "lidar")}},
            "not a path below the data root",
        ),
        ({"files": {name: ["a.png"] for name in ("img", "depth", "event", "lidar", "more")}}, "has 'more'"),
        ({"files": {name: [] for name in ("img", "depth", "event", "lidar")}}, "files.img"),
    ],
)
def test_an_edited_line_that_is_no_scene_is_refused_with_its_number(
    prepared: Manifest, changes: dict[str, object], reason: str
) -> None:
    edit(prepared, **changes)
    sign(prepared)  # the hash is no proof of who wrote the line: what every command reads obeys the same rules
    for read in (manifests.read_unsigned, manifests.read):
        with pytest.raises(DataError, match=r"scenes\.jsonl:2: ") as caught:
            read(prepared.root, "deliver")
        assert reason in str(caught.value)


def test_a_scene_may_be_called_as_long_as_its_mask_can_be(prepared: Manifest) -> None:
    edit(prepared, id=f"val/{'a' * 251}/{'é' * 125}")  # 250 bytes, and .png
    sign(prepared)
    assert manifests.read(prepared.root, "deliver").scenes[1].id.endswith("é")


def test_a_broken_last_line_is_refused_though_it_is_signed(prepared: Manifest) -> None:
    path = manifests.folder(prepared.root, "deliver") / "scenes.jsonl"
    path.write_bytes(path.read_bytes() + b'{"id": "a')
    sign(prepared)
    for read in (manifests.read_unsigned, manifests.read):
        with pytest.raises(DataError, match=r"scenes\.jsonl:10: not valid JSON"):
            read(prepared.root, "deliver")


def test_a_scene_that_is_listed_twice_is_refused_though_it_is_signed(prepared: Manifest) -> None:
    edit(prepared, id=prepared.scenes[0].id)
    sign(prepared)
    with pytest.raises(DataError, match=r"scenes\.jsonl: scenes .* would share one output file"):
        manifests.read(prepared.root, "deliver")
    assert len(manifests.read_unsigned(prepared.root, "deliver").scenes) == 9, "the check lists all of them"


def test_splits_are_counted_in_the_lines(prepared: Manifest) -> None:
    path = manifests.folder(prepared.root, "deliver") / "dataset.json"
    path.write_text(path.read_text().replace('"val": 2', '"vall": 7'))
    assert manifests.read(prepared.root, "deliver").info.counts == {"train": 7, "val": 2}


def test_a_dataset_json_of_another_version_is_refused(prepared: Manifest) -> None:
    path = manifests.folder(prepared.root, "deliver") / "dataset.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(DataError, match="schema_version"):
        manifests.read(prepared.root, "deliver")


def test_an_unknown_split_names_the_known_ones(prepared: Manifest) -> None:
    assert [scene.split for scene in prepared.of_split("val")] == ["val", "val"]
    with pytest.raises(DataError, match=r"no scene in split 'test' \(known: train \(7\), val \(2\)\)"):
        prepared.of_split("test")


def scene(name: str) -> Scene:
    return Scene(id=name, split="train", condition=None, case=None, files={"img": (f"{name}.png",)}, label=None)


@pytest.mark.parametrize(("first", "second"), [("a/b", "a/b"), ("a/B", "a/b"), ("caf\u00e9", "cafe\u0301")])
def test_ids_that_would_share_an_output_are_refused(first: str, second: str) -> None:
    with pytest.raises(DataError, match="share one output"):
        manifests.refuse_shared_ids([scene(first), scene("other"), scene(second)])


def test_same_names_in_different_folders_are_different_ids() -> None:
    manifests.refuse_shared_ids([scene("fog/000050"), scene("sun/000050")])


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(DataError, match="not valid UTF-8"):
        manifests.refuse_shared_ids([replace(scene("a"), id="a\udcff")])


def test_the_data_root_is_the_option_then_the_environment_then_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMORYSAM_DATA", raising=False)
    assert manifests.data_root(None) == Path("data")
    monkeypatch.setenv("MEMORYSAM_DATA", "/elsewhere")
    assert manifests.data_root(None) == Path("/elsewhere")
    assert manifests.data_root(Path("mine")) == Path("mine")
