"""Block O: the 44 bad inputs of RELIABILITY §4, met by the program as it is typed; rows 39 to 42 in test_company."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memorysam_cli.errors import EXIT_CODES
from tests import imported
from tests.faults import bad_archives, bad_environment, bad_images, bad_recipes, bad_weights
from tests.faults.bad_inputs import PROGRAM, Arguments, Case, Ended, Place, forked, place_for, really, tree, violations
from tests.faults.conftest import Commands, Figures
from tests.faults.scale import SLOW as IS_SLOW
from tests.faults.scale import SOAK
from tests.forks import ROOT, Forks

Run = Callable[[Case, Place, Arguments], Ended]

NAIVE = ROOT / "tests/faults/naive/command_line.py"
MODULES = (bad_archives, bad_images, bad_weights, bad_environment, bad_recipes)
CASES: list[Case] = [case for module in MODULES for case in module.CASES]
FIRST = {case.row: case for case in reversed(CASES)}
"""Of each row the case that is run as a process of its own."""
SLOW = sorted(row for row in FIRST if row in range(10, 13) or row in range(14, 37) or row in {38, 43})
"""Rows whose command has to import torch, which takes seconds."""
EVERY_ROW = SOAK or IS_SLOW
DRAWN = SLOW if EVERY_ROW else random.Random(os.environ["MEMORYSAM_FAULT_SEED"]).sample(SLOW, 2)
"""Those of them that are run so: all in CI and in a soak, else some that the seed draws; the others are forks."""
REAL = {FIRST[row] for row in FIRST if row not in SLOW or row in DRAWN} | set(bad_recipes.CASES)
ELSEWHERE = {
    1: "tests/test_app.py::test_anything_else_is_our_bug_with_its_traceback",
    7: "tests/faults/test_company.py::test_a_hub_that_does_not_deliver_ends_with_7",
    9: "tests/faults/test_company.py::test_a_second_run_in_a_folder_ends_with_9",
    10: "tests/commands/test_evaluate.py::test_a_miou_below_the_asked_one_ends_with_10_after_everything_is_written",
    130: "tests/faults/test_company.py::test_a_training_that_is_interrupted_says_how_to_go_on",
    141: "tests/test_app.py::test_a_reader_that_goes_away_ends_it_quietly_with_141",
    **dict.fromkeys(
        (129, 131, 140, 142, 152), "tests/engine/train/test_signals.py::test_each_signal_has_the_code_that_is_published"
    ),
    143: "tests/faults/test_company.py::test_a_reader_of_scenes_that_is_killed_is_replaced_until_the_end",
}
"""Exit codes that no input alone brings about, and the test that does."""


@pytest.fixture(scope="module")
def template(commands: Commands) -> Path:
    return commands.template


@pytest.fixture(scope="module")
def forks(commands: Commands) -> Forks:
    return commands.server


def attempt(case: Case, folder: Path, template: Path, run: Run) -> list[str]:
    """Run a case: what is wrong with how it ended, and how it did."""
    place = place_for(folder, template)
    arguments = case.make(place)
    before = tree(place.root)
    ended = run(case, place, arguments)
    found = violations(case, ended, before, tree(place.root), place.root)
    return [*found, str(ended)] if found else []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_bad_input_ends_as_promised(
    case: Case, tmp_path: Path, template: Path, forks: Forks, figures: Figures
) -> None:
    is_real = case in REAL

    def run(case: Case, place: Place, arguments: Arguments) -> Ended:
        return really(case, place, arguments) if is_real else forked(case, place, arguments, forks)

    wrong = attempt(case, tmp_path, template, run)
    figures("O", inputs=1, processes=int(is_real), violations=int(bool(wrong)))
    assert not wrong


@pytest.mark.parametrize("case", [case for case in CASES if case.row == 37], ids=str)
def test_where_the_disk_was_full_the_same_command_goes_on(
    case: Case, tmp_path: Path, template: Path, forks: Forks
) -> None:
    place = place_for(tmp_path, template)
    arguments = case.make(place)
    checkpoints = place.here / "runs/small/checkpoints"
    kept = tree(checkpoints)
    assert forked(case, place, arguments, forks).code == 6
    assert kept.items() <= tree(checkpoints).items(), "the last checkpoint is not as it was"
    again = Case(37, "room again", case.make, 0)
    ended = forked(again, place, arguments, forks)
    is_archive = arguments[0] == "prepare"  # of a data set that it is not: unpacked whole, and then refused
    assert ended.code == (3 if is_archive else 0), ended.err
    assert not is_archive or (place.here / "x/b/large.bin").stat().st_size == 102_400


FAMILIES = {
    "archives": {FIRST[1]: "changed: here/x/evil.png", FIRST[3]: "changed: here/x/a/x.png", FIRST[8]: "a traceback"},
    "images": {FIRST[14]: "exit code 0, not 3", FIRST[15]: "a traceback"},
    "weights": {FIRST[27]: "changed: here/canary"},
    "environment": {FIRST[38]: "exit code 1, not 6"},
    "recipes": {
        case: "exit code 0, not 2" for case in bad_recipes.CASES if case.name in {"text", "key twice", "mistyped key"}
    },
}
"""What a program without our care does with some inputs of each kind."""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_inputs_find_a_naive_program_out(
    family: str, tmp_path: Path, template: Path, forks: Forks, figures: Figures
) -> None:
    def run(case: Case, place: Place, arguments: Arguments) -> Ended:
        return really(case, place, arguments, program=(sys.executable, str(NAIVE)))

    for number, (case, harm) in enumerate(FAMILIES[family].items()):
        wrong = attempt(case, tmp_path / str(number), template, run)
        assert any(text.startswith(harm) for text in wrong), (str(case), wrong)
        figures("O", naive=1, naive_caught=1)


def test_all_44_rows_are_tried() -> None:
    company = (ROOT / "tests/faults/test_company.py").read_text()
    others = {row for row in range(39, 43) if re.search(rf"rows? (\d+ and )?{row}\b", company)}
    assert set(FIRST) | others == set(range(1, 45))


def test_every_exit_code_is_produced_by_a_test() -> None:
    for code, where in ELSEWHERE.items():
        path, _, name = where.partition("::")
        text = (ROOT / path).read_text()
        assert f"def {name}(" in text and str(code) in text, where
    assert {case.code for case in CASES} | set(ELSEWHERE) == set(EXIT_CODES)


def test_one_in_exponent_form_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(bad_recipes.GOOD)
    command = [*PROGRAM, "recipes", "show", str(tmp_path / "mine.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "") and "\n  lr: 0.0001\n" in done.stdout


def test_recipes_are_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    files = []
    for number, (old, new, _) in enumerate(bad_recipes.WRONG.values()):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(bad_recipes.GOOD.replace(old, new))
    codes, said, packages = imported.run([f"train --recipe {path}" for path in files], tmp_path)
    assert codes == [2] * len(files)
    assert said.count("memorysam: error [2]: ") == len(files) == said.count("\n")
    assert packages == {"typer", "pyyaml", "pydantic"}


MEMORY = (
    "import sys; from pathlib import Path; from memorysam_cli import app; code = app.run(sys.argv[1:])\n"
    "status = Path('/proc/self/status').read_text()\n"
    "print(int(status.split('VmHWM:')[1].split()[0]) // 1024, end='')\n"
    "sys.exit(code)"
)


@pytest.mark.parametrize(("row", "most_mb"), [(6, 200), (16, 300)])
def test_what_claims_to_be_huge_costs_no_memory(row: int, most_mb: int, tmp_path: Path, template: Path) -> None:
    """Row 16's limit holds Python, NumPy and OpenCV, some 110 MB; the picture alone would take 10,800 MB."""
    if sys.platform != "linux":
        pytest.skip("peak memory is read from /proc, which is Linux's")
    place = place_for(tmp_path, template)
    case = FIRST[row]
    command = [sys.executable, "-c", MEMORY, *case.make(place), "-q", *(["--json"] if row == 16 else [])]
    if row == 16 and not (place.here / "DELIVER").exists():
        shutil.copytree(template / "DELIVER", place.here / "DELIVER")
    done = subprocess.run(command, cwd=place.here, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert int(done.stdout.rpartition("}")[2]) < most_mb
