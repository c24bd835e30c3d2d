"""``memorysam`` without a command: five steps, what is there, and what comes next; whatever lies in the folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memorysam_cli import recipe
from memorysam_cli.commands import overview
from memorysam_cli.data import DATASETS, layout_of
from memorysam_cli.data.layout import MARKER

from ..data.trees import write_tree
from .trained import Program


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMORYSAM_DATA", raising=False)
    return tmp_path


def write(path: str, value: object = "") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(value if isinstance(value, str) else json.dumps(value))


def test_each_step_that_is_done_leads_to_the_next(memorysam: Program) -> None:
    following = []

    def look() -> None:
        ended = memorysam("--json")
        assert ended.code == 0 and ended.err == ""
        following.append(ended.answer["next"])

    look()
    Path("data").mkdir()
    look()
    write("data/memorysam/rig/dataset.json", {"counts": {"train": 8, "val": 2}})
    look()
    write("runs/rig-1/recipe.yaml")
    look()  # not finished: nothing to evaluate
    write("runs/rig-1/result.json", {"miou": 41.5})
    look()
    Path("runs/rig-1/evaluate").mkdir()
    look()
    write("masks/_SUCCESS.json", "{}")
    look()
    assert following == [
        "memorysam prepare synthetic data", "memorysam prepare folder data", "memorysam train --data data",
        "memorysam train --data data", "memorysam evaluate", "memorysam predict data --out masks", "memorysam report",
    ]  # fmt: skip
    ended = memorysam()
    assert ended.code == 0
    assert [line[:12].strip() for line in ended.out.splitlines() if line[:1].isdigit()] == [
        "1  prepare", "2  check", "3  train", "4  evaluate", "5  predict",
    ]  # fmt: skip
    assert "  rig: 10 scenes\n" in ended.out and "  runs/rig-1: val mIoU 41.50\n" in ended.out


def test_what_is_prepared_in_a_folder_of_the_present_one_is_found_without_an_option(memorysam: Program) -> None:
    write("old rig/memorysam/old/dataset.json", {"counts": {"train": 1}})
    write("rig/memorysam/rig/dataset.json", {"counts": {"train": 4, "val": 2}})
    os.utime("old rig/memorysam", (1, 1))
    os.utime("rig/memorysam", (2, 2))
    Path("link").symlink_to("rig")
    ended = memorysam()
    assert "  rig: 6 scenes, in rig\n" in ended.out and "  old: 1 scene, in old rig\n" in ended.out
    assert "\nnext          memorysam train --data rig\n" in ended.out
    found = memorysam("--json").answer
    assert found["root"] == "rig" and [each["root"] for each in found["prepared"]] == ["rig", "old rig"]
    write("data/memorysam/own/dataset.json", {"counts": {"train": 3}})
    assert memorysam("--json").answer["next"] == "memorysam train --data data"  # the data root comes first
    assert "  own: 3 scenes\n" in memorysam().out


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["synthetic"], "--recipe demo"), (["deliver", "rig"], "--recipe deliver"),
        (["back yard", "rig"], "--set 'data.dataset=back yard'"),
    ],
)  # fmt: skip
def test_training_takes_the_recipe_of_the_data_set_and_names_it_among_several(
    names: list[str], words: str, memorysam: Program
) -> None:
    for name in names:
        write(f"data/memorysam/{name}/dataset.json", {"counts": {"train": 4}})
    assert memorysam("--json").answer["next"] == f"memorysam train {words} --data data"


def test_every_data_set_with_a_recipe_of_its_own_is_trained_by_one() -> None:
    made_for = {name: recipe.load(name).data.dataset for name in recipe.shipped()}
    assert overview.RECIPES.keys() == set(made_for.values()) - {recipe.AUTO}
    assert all(made_for[name] == dataset for dataset, name in overview.RECIPES.items())


def test_inside_the_data_root_it_is_called_by_a_dot(memorysam: Program) -> None:
    write("memorysam/rig/dataset.json", {"counts": {"train": 4}})
    assert memorysam("--json").answer["next"] == "memorysam train --data ."


def test_with_a_run_but_its_data_elsewhere_it_continues_with_the_run(memorysam: Program) -> None:
    write("runs/rig-1/recipe.yaml")
    write("runs/rig-1/result.json", {"miou": 41.5})
    assert memorysam("--json").answer["next"] == "memorysam evaluate"
    Path("runs/rig-1/evaluate").mkdir()
    assert memorysam("--json").answer["next"] == "memorysam predict --out masks"


def test_whatever_lies_there_is_looked_at_in_bounds_and_never_opened_when_it_is_no_file(memorysam: Program) -> None:
    write("data/memorysam/bad/dataset.json", "{" * 100_000)
    write("data/memorysam/odd\x1b[2J/dataset.json", {"counts": {"train": "many"}})
    write("data/memorysam/list/dataset.json", "[1]")
    Path("data/memorysam/pipe").mkdir()
    os.mkfifo("data/memorysam/pipe/dataset.json")
    Path("runs").mkdir()
    Path("runs/latest").symlink_to("latest")
    for number in range(7):
        write(f"runs/r{number}/recipe.yaml")
    write("runs/r0/result.json", {"miou": None})
    ended = memorysam()
    assert ended.code == 0 and ended.err == "" and "\x1b" not in ended.out
    assert ended.out.count(": unreadable\n") == 3 and "and 2 more\n" in ended.out
    assert [each["name"] for each in memorysam("--json").answer["prepared"]] == ["bad", "list", "odd\x1b[2J"]
    assert memorysam("--json", "recipes", "list").code == 2


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from memorysam_cli import app; code = app.run([])\n"
        "sys.exit(str({'torch', 'numpy', 'cv2', 'matplotlib', 'accelerate'} & set(sys.modules) or code))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == "0\n"


@pytest.mark.parametrize("name", DATASETS)
def test_a_published_data_set_is_prepared_by_its_name_wherever_it_lies_and_packed(
    name: str, memorysam: Program
) -> None:
    """Those whose folders may be anyone's own (``rgb``, ``labels``) are looked at as sensors of one's own."""
    layout = layout_of(name)
    line = "prepare folder data" if layout.is_plain else f"prepare {name} data"
    write_tree(name, Path("data/unpacked/again") / layout.folder, scenes={"train": 1, "val": 1, "test": 1})
    assert memorysam("--json").answer["steps"]["prepare"] == f"memorysam {line}"
    refused = memorysam("prepare", "folder", "data")
    assert layout.is_plain or (refused.code == 2 and f"is {layout.title}; type: memorysam {line} " in refused.err)
    shutil.rmtree("data")
    write(f"data/{name.upper()}_v1.zip")
    assert memorysam("--json").answer["next"] == f"memorysam prepare {name} data/{name.upper()}_v1.zip"
    write(f"data/memorysam/{name}/dataset.json", {"counts": {"train": 1}})
    assert memorysam("--json").answer["steps"]["prepare"] == f"memorysam prepare {name} data"


def test_rendered_scenes_are_not_taken_for_the_published_ones(memorysam: Program) -> None:
    write_tree("deliver", Path("data/mini-deliver"), scenes={"train": 1})
    write(f"data/mini-deliver/{MARKER}")
    assert memorysam("--json").answer["next"] == "memorysam prepare folder data"
