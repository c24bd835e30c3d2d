"""``memorysam evaluate --robustness`` on rendered mini-DELIVER, with weights that were never trained."""

from __future__ import annotations

import csv
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memorysam_cli.data import manifest as manifests
from memorysam_cli.engine import run_folder

from .trained import Ended, Program, answered, save_weights

MODALITIES = ("img", "depth", "event", "lidar")


@pytest.fixture(scope="module")
def template(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with ``data/``, two scenes to validate with, and a run's best weights for four modalities."""
    folder = tmp_path_factory.mktemp("template")
    shutil.copytree(rendered, folder / "data")
    data = manifests.read(folder / "data", "synthetic")
    info, few = data.info, data.of_split("val")[:2]
    manifests.write(data.root, info, few)
    save_weights(folder / "runs/small-1/checkpoints/best.safetensors", info, modalities=MODALITIES)
    (folder / "runs/small-1" / run_folder.RECIPE).write_text("{}")
    (folder / "runs/latest").symlink_to("small-1")
    return folder


@pytest.fixture
def evaluate(here: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    memorysam = Program(capsys)

    def run(*arguments: object) -> Ended:
        return memorysam("evaluate", "--workers", 0, *arguments)

    return run


@pytest.fixture(scope="module")
def told(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """The answer of ``evaluate`` with some options, which run once however many tests ask."""
    folder = tmp_path_factory.mktemp("told")
    shutil.copytree(template, folder, symlinks=True, dirs_exist_ok=True)
    return functools.cache(lambda *arguments: answered(folder, "evaluate", "--workers", 0, *arguments))


def test_emm_prints_the_15_sets_their_average_and_the_expected_values(evaluate: Any) -> None:
    ended = evaluate("--robustness", "emm")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert "synthetic val: entirely missing sensors" in lines[0]
    names = [line.rsplit(None, 2)[0].strip() for line in lines[3:22]]
    assert names[:6] == ["none", *MODALITIES, "img, depth"] and names[14] == "depth, event, lidar"
    assert names[15:] == ["average", "expected, p = 0.2", "expected, p = 0.1", "expected, p = 0.05"]
    assert "runs/small-1/evaluate/val" in ended.out


def test_the_first_figure_is_the_plain_evaluation(told: Any) -> None:
    plain = told()
    for kind in ("any", "emm"):
        found = told("--robustness", kind)["levels"][0]["sets"][0]
        assert found["missing"] == []
        assert found["miou"] == pytest.approx(plain["miou"], abs=0.05)
        assert found["miou_present"] == pytest.approx(plain["miou_present"], abs=0.05)


def test_a_dropped_sensor_is_what_evaluate_gives_without_it(told: Any) -> None:
    sets = told("--robustness", "any")["levels"][0]["sets"]
    alone = next(each for each in sets if each["available"] == ["img", "lidar"])
    assert alone["miou"] == pytest.approx(told("--modalities", "img,lidar")["miou"], abs=0.05)


def test_a_zeroed_sensor_is_what_evaluate_gives_with_zeros(told: Any) -> None:
    sets = told("--robustness", "emm")["levels"][0]["sets"]
    alone = next(each for each in sets if each["available"] == ["img", "lidar"])
    plain = told("--modalities", "img,lidar", "--missing", "zero")
    assert alone["miou"] == pytest.approx(plain["miou"], abs=0.05)
    both = told("--robustness", "any")
    assert [level["level"] for level in both["levels"]] == ["dropped", "zeroed"]
    assert [each["miou"] for each in both["levels"][1]["sets"]] == pytest.approx([each["miou"] for each in sets])


@pytest.mark.rendered
@pytest.mark.parametrize(("kind", "levels"), [("any", 2), ("emm", 1), ("rmm", 3), ("nm", 4)])
def test_every_kind_writes_its_files_and_says_on_what_it_rests(evaluate: Any, kind: str, levels: int) -> None:
    report = evaluate("--robustness", kind, "--json").answer
    folder = Path("runs/small-1/evaluate/val")
    assert report["files"] == {
        key: str(folder / f"robustness-{kind}.{suffix}")
        for key, suffix in (("report", "json"), ("table", "csv"), ("figure", "png"))
    }
    assert json.loads((folder / f"robustness-{kind}.json").read_text()) == report
    assert (report["robustness"], report["protocol"], len(report["levels"])) == (kind, "resized", levels)
    assert report["modalities"] == list(MODALITIES) and len(report["weights_sha256"]) == 64
    assert report["split_sha256"] and report["versions"]
    with (folder / f"robustness-{kind}.csv").open(newline="") as file:
        assert sum(row["figure"] == "set" for row in csv.DictReader(file)) == (4 if kind == "nm" else 15 * levels)
    assert (folder / f"robustness-{kind}.png").stat().st_size > 5000


def test_seeds_and_repeats_are_obeyed(evaluate: Any) -> None:
    arguments = ("--robustness", "rmm", "--json", "--modalities", "img,depth")
    first, again = (evaluate(*arguments, "--repeats", 2, "--seed", 1).answer for _ in range(2))
    other = evaluate(*arguments, "--seed", 2).answer
    assert first == again
    assert first["levels"][2]["average"]["miou_std"] is not None and other["levels"][2]["average"]["miou_std"] is None
    assert first["levels"][2]["sets"][1]["miou"] != other["levels"][2]["sets"][1]["miou"]


def test_native_labels_can_be_scored(told: Any) -> None:
    native = told("--robustness", "any", "--protocol", "native")
    assert native["protocol"] == "native"
    assert native["levels"][0]["sets"][0]["miou"] == pytest.approx(told()["protocols"]["native"]["miou"], abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("emm", "--repeats", 2), "--repeats 2: works only with --robustness rmm or nm"),
        (("nm", "--repeats", 0), "--repeats"),
        (("any", "--seed", 0), "--seed 0: works only with --robustness rmm or nm"),
        (("rmm", "--noise-extremes", "scene"), "--noise-extremes scene: works only with --robustness nm"),
        (("nm", "--tta"), "--tta"),
        (("emm", "--missing", "drop"), "--missing drop: 'emm' feeds zeros for a missing sensor; use --robustness any"),
        (("rmm", "--missing", "zero"), "--missing zero: 'rmm' decides itself how a missing sensor is fed; use"),
        (("nm", "--tile"), "--tile"),
        (("emn",), "emm"),
    ],
    ids=str,
)
def test_what_is_not_defined_is_refused_and_writes_nothing(
    here: Path, evaluate: Any, arguments: tuple[object, ...], words: str
) -> None:
    ended = evaluate("--robustness", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err and ended.err.count("\n") == 1
    assert not list((here / "runs/small-1").rglob("robustness-*"))
