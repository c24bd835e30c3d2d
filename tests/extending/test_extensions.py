"""Files of the user's own: what they may do, and what is said where one is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .conftest import Run

WRONG = {
    "syntax": ("def", ":1: SyntaxError: "),
    "raises": ("import os\nos.nowhere()\n", ":2: AttributeError: module 'os' has no attribute 'nowhere'"),
    "leaves": ("raise SystemExit(0)\n", ":1: SystemExit: 0"),
    "nothing": ("x = 1\n", ": registers nothing"),
    "taken": (
        "from memorysam_cli.registry import FUSIONS\nFUSIONS.register('mean', 1)\n",
        ":2: ValueError: fusion 'mean' is registered already (known: mean, two_pass, two_pass_alone)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_ends_with_2_and_one_line(name: str, run: Run, place: Path) -> None:
    code, said = WRONG[name]
    (place / "wrong.py").write_text(code)
    first, again = run([["--extend", "wrong.py", "recipes", "check", "demo"]] * 2)
    assert first.code == 2 and first.err.count("\n") == 1
    assert f"{place / 'wrong.py'}{said}" in first.err
    assert again == first, "the second time it is refused as well"


def test_a_missing_file_is_told_before_anything_runs(run: Run) -> None:
    missing, listed = run([["--extend", "none.py", "train"], ["recipes", "list"]])
    assert missing.code == 2 and "--extend none.py: does not exist" in missing.err and missing.err.count("\n") == 1
    assert listed.code == 0


def test_a_recipe_that_names_a_missing_file_says_its_line(run: Run, place: Path) -> None:
    (place / "lost.yaml").write_text("extends: demo\nextensions: [none.py]\n")
    (ended,) = run([["train", "--recipe", "lost.yaml"]])
    assert ended.code == 2 and "lost.yaml:2: extensions: " in ended.err and "none.py: does not exist" in ended.err


def test_only_what_is_given_to_recipe_is_run(run: Run, place: Path) -> None:
    """Not what another recipe extends, not --set, not a recipe that is only looked at."""
    (place / "shout.py").write_text("raise RuntimeError('was run')\n")
    (place / "parent.yaml").write_text(
        "extends: demo\nextensions: [shout.py]\n".replace(
            "extends: demo\n", (Path(__file__).parent.parent.parent / "recipes" / "demo.yaml").read_text()
        )
    )
    (place / "child.yaml").write_text("extends: parent.yaml\n")
    (place / "nowhere").mkdir()
    ended = run(
        [
            ["recipes", "check", "parent.yaml"],
            ["recipes", "show", "child.yaml"],
            ["train", "--recipe", "child.yaml", "--data", "nowhere"],
            ["train", "--recipe", "demo", "--set", "extensions=[shout.py]"],
            ["train", "--recipe", "parent.yaml", "--data", "nowhere"],
        ]
    )
    assert not any("was run" in each.err for each in ended[:4]), ended
    assert ended[3].code == 2 and "'extensions' can only be written in a recipe's file" in ended[3].err
    assert ended[4].code == 2 and "RuntimeError: was run" in ended[4].err


LIGHT = """
import sys
assert not {"torch", "numpy", "peft"} & set(sys.modules), "help is heavy"
import os
print(os.environ["MEMORYSAM_EXTEND"])
"""


def test_help_runs_no_extension_and_children_inherit_the_paths(run: Run, place: Path) -> None:
    (place / "heavy.py").write_text("import torch\n")
    (place / "other.py").write_text("import torch\n")
    helped, looked = run([["--extend", "heavy.py", "--extend", "other.py", "train", "--help"], ["-c", LIGHT]])
    assert helped.code == 0 and looked.code == 0, looked.err
    assert looked.out.strip() == os.pathsep.join(str(place / name) for name in ("heavy.py", "other.py"))
