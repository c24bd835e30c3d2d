from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.data import check, manifest
from memorysam_cli.data.manifest import Scene
from memorysam_cli.report import figures
from memorysam_cli.storage import images

from ..engine.stand_ins import PALETTE, write_data
from .trained import Program

pytestmark = pytest.mark.rendered


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data")
    return tmp_path / "data"


def test_a_sound_data_set_is_shown(data: Path, memorysam: Program) -> None:
    before = {path: path.read_bytes() for path in (data / "memorysam" / "tiny").glob("*.json*")}
    ended = memorysam("check", data, "--json")
    assert ended.code == 0
    folder = data.parent / "check-tiny"
    assert json.loads((folder / "report.json").read_text()) == ended.answer
    assert {path.name for path in folder.iterdir()} == {"report.json", "sheet.png", "labels.png"}
    sheet = images.read(folder / "sheet.png")
    assert (sheet == PALETTE[0]).all(-1).any()  # RGB, not BGR
    assert all(
        path.read_bytes() == content
        for path, content in before.items()
        if path.name in {"scenes.jsonl", "dataset.json"}
    )


def test_problems_end_with_3_and_leave_the_pictures_of_what_can_be_read(data: Path, memorysam: Program) -> None:
    (data / "tiny/depth/fog/val/a/000001.png").unlink()
    images.write_png(data / "tiny/label/rain/val/b/000001.png", np.full((64, 64), 77, np.uint8))
    ended = memorysam("check", data, "--out", "looked")
    assert ended.code == 3
    assert "fog/val/a/000001" in ended.err and "77" in ended.err
    report = json.loads((data.parent / "looked/report.json").read_text())
    assert {each["kind"] for each in report["problems"]} == {"missing depth", "label"}
    assert (data.parent / "looked/sheet.png").is_file()


def test_nothing_is_read_before_the_folder_can_be_written(data: Path, memorysam: Program) -> None:
    (data.parent / "file").write_text("x")
    ended = memorysam("check", data, "--out", "file")
    assert ended.code in {2, 6} and "file" in ended.err


def test_groups_are_conditions_with_failures_and_splits_where_there_are_none() -> None:
    def scene(name: str, condition: str | None, case: str | None) -> Scene:
        return Scene(id=name, split="val", condition=condition, case=case, files={}, label=None)

    found = check.sheet_groups([scene("1", "fog", None), scene("2", "fog", "blur"), scene("3", None, None)])
    assert {name: [each.id for each in scenes] for name, scenes in found.items()} == {
        "fog": ["1"], "fog blur": ["2"], "val": ["3"],
    }  # fmt: skip
    many = [scene(f"{index}", f"c{index:02d}", None) for index in range(30)]
    assert len(check.sheet_groups(many)) == check.ROWS


def test_splits_are_listed_as_train_val_test_and_then_by_name() -> None:
    def scene(split: str, condition: str | None = None) -> Scene:
        return Scene(id=split, split=split, condition=condition, case=None, files={}, label=None)

    mixed = [scene(split) for split in ("test", "extra", "val", "test", "train", "another")]
    in_order = ["train", "val", "test", "another", "extra"]
    assert list(check.sheet_groups(mixed)) == list(manifest.count_splits(mixed)) == in_order
    assert list(check.sheet_groups([scene("val", "fog"), scene("train", "rain")])) == ["rain", "fog"]


@pytest.mark.parametrize("values", [[50.0, 50.0], [99.99, 0.01], [100.0, 0.0], [0.0, 0.0]])
def test_a_histogram_of_any_shares_is_drawn(values: list[float], tmp_path: Path) -> None:
    png = figures.class_histogram({"train": values, "val": values[::-1]}, classes=["a", "b"], title="t")
    (tmp_path / "h.png").write_bytes(png)
    assert images.read(tmp_path / "h.png").std() > 10
