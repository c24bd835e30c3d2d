from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from memorysam_cli.engine.evaluate import robustness_results as results
from memorysam_cli.engine.evaluate.counts import ProtocolName
from memorysam_cli.engine.evaluate.robustness import BenchmarkKind, Protocols, Robustness, plan_of
from memorysam_cli.engine.infer.corruption import Extremes
from memorysam_cli.errors import LawBroken
from memorysam_cli.report import console
from memorysam_cli.storage import images

pytestmark = pytest.mark.rendered

FACTS = {
    "dataset": "tiny", "split": "val", "scenes": 7, "modalities": ["x", "y"], "missing": "drop",
    "weights": "w.safetensors", "warnings": ["'val' also chose these weights"],
}  # fmt: skip


def benchmark(
    kind: BenchmarkKind,
    *,
    repeats: int = 1,
    missing: Protocols = "both",
    modalities: int = 2,
    extremes: Extremes = "batch",
    protocol: ProtocolName = "resized",
) -> Robustness:
    """Counts of two classes; figure n of repeat r has an mIoU of 40 - n + r %."""
    cells = tuple(plan_of(kind, modalities=modalities, missing=missing))
    hits = [round(1000 * (40 - n + r) / 50) for r in range(repeats) for n in range(len(cells))]
    matrices = torch.tensor([[[each, 1000 - each], [0, 0]] for each in hits])
    return Robustness(
        kind=kind, classes=("road", "sky"), modalities=tuple("xyzabcd"[:modalities]), missing=missing,
        protocol=protocol, scenes=7, seed=4, noise_extremes=extremes, batch=3, processes=2, cells=cells,
        confusions=matrices.view(repeats, len(cells), 2, 2),
    )  # fmt: skip


def report(kind: BenchmarkKind, **options: Any) -> dict[str, Any]:
    return results.describe(benchmark(kind, **options), facts=FACTS, folder=Path("there"))


def test_a_report_has_each_set_and_the_figures_over_them() -> None:
    found = report("emm")
    (level,) = found["levels"]
    assert [each["missing"] for each in level["sets"]] == [[], ["x"], ["y"]]
    assert [each["available"] for each in level["sets"]] == [["x", "y"], ["y"], ["x"]]
    assert [each["miou"] for each in level["sets"]] == pytest.approx([40, 39, 38])
    assert [each["miou_present"] for each in level["sets"]] == pytest.approx([80, 78, 76])
    assert level["sets"][1]["iou"] == pytest.approx({"road": 78, "sky": 0})
    assert level["average"]["miou"] == pytest.approx(39)
    assert [each["p"] for each in level["expected"]] == [0.2, 0.1, 0.05]
    assert level["expected"][0]["miou"] == pytest.approx((0.64 * 40 + 0.16 * 39 + 0.16 * 38) / 0.96)
    assert found["files"]["report"] == "there/robustness-emm.json"


def test_of_some_sets_there_is_a_mean_and_nothing_is_expected() -> None:
    (level,) = report("any", missing="drop", modalities=7)["levels"]
    assert len(level["sets"]) == 15 and level["expected"] == []
    assert level["average"]["miou"] == pytest.approx(33)  # 40, 39, …, 26


def test_a_set_of_sensors_that_scored_other_pixels_is_a_broken_law() -> None:
    assert report("any")["laws"]["pixels of each class, in any set of sensors = in any other"]["holds"]
    found = benchmark("any")
    found.confusions[0, 1, 0, 1] += 1
    with pytest.raises(LawBroken, match="in any set of sensors = in any other': 1,000 ≠ 1,001"):
        results.describe(found, facts=FACTS, folder=Path("there"))


@pytest.mark.parametrize(
    ("kind", "options", "wanted"),
    [
        (
            "any",
            {},
            {
                "missing": "both",
                "subsets": "all",
                "seed": None,
                "noise_extremes": None,
                "batch": None,
                "processes": None,
            },
        ),
        ("any", {"missing": "drop"}, {"missing": "drop"}),
        ("any", {"missing": "zero"}, {"missing": "zero"}),
        ("any", {"modalities": 7}, {"subsets": "some"}),
        ("emm", {}, {"missing": "zero", "seed": None, "repeats": 1}),
        ("rmm", {"repeats": 2}, {"missing": None, "seed": 4, "repeats": 2, "noise_extremes": None, "batch": None}),
        (
            "nm",
            {},
            {"missing": None, "subsets": None, "seed": 4, "noise_extremes": "batch", "batch": 3, "processes": 2},
        ),
        ("nm", {"extremes": "scene"}, {"noise_extremes": "scene", "batch": None, "processes": None}),
    ],
)
def test_a_report_says_what_its_figures_depend_on_and_nothing_else(
    kind: BenchmarkKind, options: dict[str, Any], wanted: dict[str, Any]
) -> None:
    found = report(kind, **options)
    assert {key: found[key] for key in wanted} == wanted


def test_repeats_have_a_deviation() -> None:
    found = report("rmm", repeats=2)
    assert [level["level"] for level in found["levels"]] == ["0.25", "0.5", "0.75"]
    first = found["levels"][0]["sets"][0]
    assert (first["miou"], first["miou_std"]) == pytest.approx((40.5, 0.5**0.5))
    assert found["levels"][0]["average"]["miou_std"] == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("kind", ["any", "emm", "rmm", "nm"])
def test_the_files_say_what_the_report_says(kind: BenchmarkKind, tmp_path: Path) -> None:
    found = report(kind)
    results.write(found, tmp_path)
    assert json.loads((tmp_path / f"robustness-{kind}.json").read_text()) == found
    with (tmp_path / f"robustness-{kind}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    sets = [(row["level"], row["missing"], float(row["miou"]), float(row["road"])) for row in rows if row["road"]]
    assert sets == [
        (level["level"] or "", "+".join(each["missing"]), each["miou"], each["iou"]["road"])
        for level in found["levels"]
        for each in level["sets"]
    ]
    averages = [row["figure"] for row in rows if not row["road"]]
    one = ["average", "expected, p = 0.2", "expected, p = 0.1", "expected, p = 0.05"]
    assert averages == {"any": one * 2, "rmm": one * 3, "nm": []}.get(kind, one)
    picture = images.read(tmp_path / f"robustness-{kind}.png")
    assert picture.shape[0] > 100 and picture.std() > 5


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        results.write(report("rmm", repeats=2), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("kind", "options", "lines"),
    [
        ("emm", {}, [["missing", "mIoU", "mIoU", "of", "present"], ["none", "40.00", "80.00"], ["x", "39.00", "78.00"],
                     ["average", "39.00", "78.00"], ["expected,", "p", "=", "0.2", "39.50", "79.00"]]),
        ("rmm", {}, [["missing", "r", "=", "0.25", "r", "=", "0.5", "r", "=", "0.75"],
                     ["x", "39.00", "36.00", "33.00"]]),
        ("rmm", {"repeats": 2}, [["x", "39.50", "±", "0.71", "36.50", "±", "0.71", "33.50", "±", "0.71"]]),
        ("any", {}, [["missing", "dropped", "zeroed"], ["none", "40.00", "37.00"], ["average", "39.00", "36.00"]]),
        ("nm", {}, [["none", "40.00", "80.00"], ["high", "37.00", "74.00"]]),
    ],
)  # fmt: skip
def test_people_get_a_table(
    kind: BenchmarkKind, options: dict[str, Any], lines: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    console.setup()
    results.show(report(kind, **options))
    said = capsys.readouterr()
    printed = [line.split() for line in said.out.splitlines()]
    assert all(line in printed for line in lines), said.out
    assert "'val' also chose these weights" in said.err


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("any", {}, "a missing sensor is not fed (dropped), or fed as zeros"),
        ("any", {"missing": "drop"}, "a missing sensor is not fed"),
        ("any", {"modalities": 7}, "all sensors, each alone, and all but each"),
        ("emm", {}, "a missing sensor is fed as zeros"),
        ("rmm", {"repeats": 2}, "seed 4, 2 draws"),
        ("nm", {}, "seed 4, 1 draw"),
    ],
)
def test_the_table_says_how_it_came_about(
    kind: BenchmarkKind, options: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    console.setup()
    results.show(report(kind, **options))
    said = capsys.readouterr()
    assert says in said.out
    assert ("3 scenes in 2 processes" in said.err) == (kind == "nm")


@pytest.mark.parametrize(("kind", "letters"), [("any", "p"), ("emm", "p"), ("rmm", "rp"), ("nm", "")])
def test_the_letters_of_the_table_are_explained(
    kind: BenchmarkKind, letters: str, capsys: pytest.CaptureFixture[str]
) -> None:
    console.setup()
    results.show(report(kind))
    said = capsys.readouterr().out.splitlines()
    assert [line[0] for line in said if line[1:10] == " " * 9 and line[10:].islower()] == list(letters)


def test_figures_of_another_meaning_never_replace_each_other() -> None:
    made = [
        ("any", {}), ("any", {"missing": "zero"}), ("any", {"protocol": "native"}), ("any", {"missing": "drop"}),
        ("emm", {}),
        ("emm", {"protocol": "native"}), ("nm", {}), ("nm", {"extremes": "scene"}), ("rmm", {"repeats": 2}),
    ]  # fmt: skip
    files = [report(kind, **options)["files"]["report"] for kind, options in made]  # type: ignore[arg-type]
    assert len(set(files)) == len(made)
    names = ("any", "any-zero", "any-native", "any-drop")
    assert files[:4] == [f"there/robustness-{name}.json" for name in names]
    assert report("emm", missing="zero")["files"] == report("emm")["files"]  # emm means zeros always


def test_what_flatters_the_weights_is_said_even_to_the_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup(verbosity=console.QUIET)
    results.show(report("emm"))
    assert "memorysam: warning: 'val' also chose these weights" in capsys.readouterr().err
