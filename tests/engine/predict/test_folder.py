from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.engine.predict import files as folder
from memorysam_cli.engine.predict.files import LEDGER
from memorysam_cli.errors import DataError
from memorysam_cli.storage import documents

from ..stand_ins import CLASSES, write_data


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    return write_data(tmp_path / "data")


def scenes(*names: str) -> list[Scene]:
    return [Scene(name, "all", None, None, {"img": (f"{name}.png",)}, None) for name in names]


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
    with pytest.raises(DataError, match="1 pair of scenes would share an output file"):
        folder.refuse_collisions(scenes(*names))


def test_of_many_collisions_ten_pairs_and_the_count_are_told() -> None:
    names = [f"frame{number}" for number in range(12)]
    with pytest.raises(DataError, match="12 pairs of") as refused:
        folder.refuse_collisions(scenes(*names, *(name.upper() for name in names)))
    assert str(refused.value).count("'FRAME") == 10 and "and 2 more" in str(refused.value)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "", ".", "a\0b"], ids=ascii)
def test_names_that_leave_the_output_folder_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="is not a name for an output file"):
        folder.refuse_collisions(scenes(name))


@given(st.lists(st.from_regex(r"[a-c]{1,2}(/[a-c]{1,2}){0,2}", fullmatch=True), unique=True, max_size=12))
def test_names_that_differ_in_a_letter_are_all_welcome(names: list[str]) -> None:
    folder.refuse_collisions(scenes(*names))


def test_classes_are_listed_with_number_name_and_color(data: Manifest, tmp_path: Path) -> None:
    folder.clear_earlier(tmp_path / "out", data.info)
    listed = documents.read_json(tmp_path / "out/classes.json")
    assert listed[2] == {"id": 2, "name": "pole", "color": [153, 153, 153]} and len(listed) == len(CLASSES)


def test_what_an_earlier_run_wrote_goes_and_no_other_file_is_harmed(
    data: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for name in ("masks/a.png", "color/a.png", "masks/mine.png", folder.SUCCESS):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    documents.append_json_line(out / LEDGER, {"id": "a", "mask": "masks/a.png", "color": "color/a.png"})
    folder.clear_earlier(out, data.info)
    assert "replaces the predictions of an earlier run (1 scene)" in capsys.readouterr().err
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == ["classes.json", "mine.png"]
    folder.clear_earlier(out, data.info)
    assert capsys.readouterr().err == ""


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
    folder.clear_earlier(out, data.info)
    assert (tmp_path / "victim.png").read_bytes() == (out / "victim.png").read_bytes() == b"precious"
