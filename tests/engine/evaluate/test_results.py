from __future__ import annotations

import csv
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from memorysam_cli.data.manifest import Scene
from memorysam_cli.engine.evaluate import results
from memorysam_cli.engine.evaluate.counts import Evaluation, group_of
from memorysam_cli.engine.evaluate.result_files import folder_for, refuse_foreign
from memorysam_cli.engine.infer.views import View
from memorysam_cli.errors import UsageError
from memorysam_cli.storage import documents

from ..stand_ins import MODALITIES

CARD: Any = SimpleNamespace(modalities=MODALITIES)
WEIGHTS = Path("runs/a/checkpoints/best.safetensors")
DIGEST = "0123456789abcdef" * 4
FACTS = {
    "dataset": "tiny",
    "split": "val",
    "selection_split": "val",
    "scenes": 1,
    "modalities": ["img"],
    "weights": "w",
    "warnings": [],
}


def outcome(classes: tuple[str, ...] = ("a", "b")) -> Evaluation:
    matrices = torch.tensor([[[[3, 1], [2, 4]]], [[[5, 0], [0, 5]]]])  # resized, native; one group
    each = torch.stack([matrices.diagonal(dim1=2, dim2=3), matrices.sum(3), matrices.sum(2)], 2)
    scene = Scene("s", "val", None, None, {}, "label.png")
    return Evaluation(classes, (scene,), (group_of(scene),), matrices, each, torch.tensor([7, 0]))


def report_of(found: Evaluation, folder: Path, *, protocol: str = "resized") -> dict[str, Any]:
    return results.describe(found, protocol=protocol, facts=FACTS, folder=folder)


def test_results_lie_in_the_run_or_here_under_the_weights_name() -> None:
    both: dict[str, Any] = {"digest": DIGEST, "split": "val", "card": CARD, "modalities": MODALITIES}
    assert folder_for(WEIGHTS, run=Path("runs/a"), **both) == Path("runs/a/evaluate/val")
    assert folder_for(Path.cwd() / WEIGHTS, run=Path.cwd() / "runs/a", **both) == Path("runs/a/evaluate/val")
    assert folder_for(Path("x/mine.safetensors"), run=None, **both) == Path("evaluate/mine-01234567/val")


def test_other_weights_of_one_name_or_of_one_run_never_replace_a_result() -> None:
    both: dict[str, Any] = {"split": "val", "card": CARD, "modalities": MODALITIES}
    here = {
        folder_for(path, run=run, digest=digest, **both)
        for path, run, digest in (
            (WEIGHTS, Path("runs/a"), DIGEST),
            (WEIGHTS.with_name("last.safetensors"), Path("runs/a"), DIGEST),
            (Path("a/mine.safetensors"), None, DIGEST),
            (Path("b/mine.safetensors"), None, DIGEST[::-1]),
        )
    }
    assert len(here) == 4 and Path("runs/a/evaluate/last/val") in here


@pytest.mark.parametrize("name", ["scenes.csv", "metrics.json", "confusion.png"])
def test_files_that_no_evaluation_wrote_are_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"loss": 3}')
    with pytest.raises(UsageError, match=f"holds {name}, which no evaluation wrote"):
        refuse_foreign(tmp_path)


def test_results_of_an_evaluation_whole_or_torn_may_be_replaced(tmp_path: Path) -> None:
    refuse_foreign(tmp_path / "new")
    (tmp_path / "notes.txt").touch()
    refuse_foreign(tmp_path)
    (tmp_path / "scenes.csv").touch()
    documents.write_json(tmp_path / "metrics.json", {"weights_sha256": DIGEST})
    refuse_foreign(tmp_path)
    (tmp_path / "metrics.json").unlink()
    (tmp_path / ".lock").touch()
    refuse_foreign(tmp_path)


def test_a_part_of_the_modalities_has_a_folder_of_its_own() -> None:
    found = folder_for(WEIGHTS, run=Path("r"), digest=DIGEST, split="val", card=CARD, modalities=MODALITIES[1:])
    assert found == Path("r/evaluate/val/depth")


@pytest.mark.parametrize(
    ("view", "chosen", "folder"),
    [
        (View(), MODALITIES, "val"),
        (View(missing="zero"), MODALITIES, "val"),  # nothing is missing
        (View(missing="zero"), MODALITIES[:1], "val/img-zero"),
        (View(scales=(0.5, 0.75, 1, 1.25, 1.5, 1.75)), MODALITIES, "val/tta"),
        (View(scales=(0.75, 1)), MODALITIES, "val/tta-0.75-1"),
        (View(tile=True), MODALITIES, "val/tile"),
        (View(scales=(1,), tile=True, overlap=0.5), MODALITIES[:1], "val/img/tta-1-tile-0.5"),
    ],
    ids=str,
)
def test_a_view_never_replaces_the_plain_result(view: View, chosen: tuple[Any, ...], folder: str) -> None:
    found = folder_for(WEIGHTS, run=Path("r"), digest=DIGEST, split="val", card=CARD, modalities=chosen, view=view)
    assert found == Path("r/evaluate") / folder


@pytest.mark.parametrize(("protocol", "miou", "ignored"), [("resized", (300 / 6 + 400 / 7) / 2, 7), ("native", 100, 0)])
def test_the_asked_protocol_stands_at_the_top_and_both_below(protocol: str, miou: float, ignored: int) -> None:
    report = report_of(outcome(), Path("there"), protocol=protocol)
    assert report["miou"] == pytest.approx(miou) == pytest.approx(report["protocols"][protocol]["miou"])
    assert report["pixels"] == {"scored": 10, "ignored": ignored}
    assert set(report["protocols"]) == {"resized", "native"}
    assert "over all 2 classes" in report["means"]
    assert report["files"]["confusion"] == f"there/confusion-{protocol}.csv"
    assert report["files"]["scenes"] == "there/scenes.csv"


def test_no_name_is_a_formula_to_a_spreadsheet_and_numbers_stay_numbers() -> None:
    names = ["=HYPERLINK(1)", "+1", "-a", "@SUM(1)", "\tx", "\r\x1b[2J\udcff", "a=b", "", "road"]
    (row,) = csv.reader(io.StringIO(results.csv_text([[*names, -1.5, None]]), newline=""))
    words = ["'=HYPERLINK(1)", "'+1", "'-a", "'@SUM(1)", "'\tx", "\\r\\x1b[2J\\udcff", "a=b", "", "road"]
    assert row == [*words, "-1.5", ""]


def test_class_names_with_commas_quotes_and_newlines_survive_the_csv(tmp_path: Path) -> None:
    names = ('road, wet "or" dry', "two\nlines")
    found = outcome(names)
    report = report_of(found, tmp_path)
    results.write(report, found, tmp_path)
    with (tmp_path / "confusion-resized.csv").open(newline="") as stream:
        header, *rows = list(csv.reader(stream))
    assert tuple(header[1:]) == names
    assert rows == [[names[0], "3", "1"], [names[1], "2", "4"]]
    assert documents.read_json(tmp_path / "metrics.json") == report


def test_the_report_is_complete_on_disk_before_its_numbers_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(documents, "write_json", full_disk)
    found = outcome()
    with pytest.raises(OSError, match="full"):
        results.write(report_of(found, tmp_path), found, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "breakdown.csv", "confusion-native.csv", "confusion-resized.csv", "confusion.png", "per_class.csv",
        "per_class.png", "scenes.csv",
    ]  # fmt: skip
