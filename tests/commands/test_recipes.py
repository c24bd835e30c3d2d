"""``memorysam recipes``: list, show, copy, check, diff, schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from memorysam_cli import app, recipe


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert app.run(["recipes", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_list_names_every_recipe_with_what_one_chooses_by(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["recipes", "list"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    words = re.sub("[,()]", "", out).split()
    for name in recipe.shipped():
        assert name in words
    assert {"deliver", "event", "lidar", "nano", "sam2-hiera-base-plus", "500", "65.38"} <= set(words)


def test_list_as_json_has_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["recipes", "list", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    answer = json.loads(out)
    assert set(answer) == {"schema_version", "recipes"}
    assert answer["schema_version"] == 1
    assert [row["name"] for row in answer["recipes"]] == list(recipe.shipped())
    assert next(row for row in answer["recipes"] if row["name"] == "deliver") == {
        "name": "deliver",
        "dataset": "deliver",
        "modalities": ["img", "depth", "event", "lidar"],
        "backbone": "sam2-hiera-base-plus",
        "epochs": 200,
        "reported": {
            "miou": 65.38,
            "split": "val",
            "epoch": 95,
            "protocol": "resized",
            "source": "arXiv 2503.06700 and its public code",
        },
        "measured": None,
        "about": recipe.load("deliver").about,
    }


def test_what_show_prints_is_a_recipe_that_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["recipes", "show", "mcubes", "--set", "optim.lr=1e-5", "--set", "train.batch=2"]) == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out)
    assert recipe.load(path) == recipe.load("mcubes", ["optim.lr=1e-5", "train.batch=2"])


def test_show_as_json_holds_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["recipes", "show", "demo", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"schema_version", "recipe", "extends"} and answer["extends"] is None
    assert recipe.parse(answer["recipe"], where="answer") == recipe.load("demo")


@pytest.mark.parametrize("name", recipe.shipped())
def test_check_accepts_every_shipped_recipe(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["recipes", "check", name]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err.partition(" ")[0]) == ("ok\n", "extends" if recipe.read(name).parent else "")


def test_check_as_json_says_which_recipe_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["recipes", "check", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "name": "demo", "ok": True}


def test_check_says_what_a_recipe_changes_of_another_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("extends: deliver\ntrain: {epochs: 50}\n")
    assert app.run(["recipes", "check", "mine.yaml", "--set", "optim.lr=1e-3"]) == 0
    assert capsys.readouterr() == ("ok\n", "extends deliver, changes optim.lr, train.epochs\n")
    Path("mine.yaml").write_text("extends: deliver\ntrain:\n  #epochs: 50\n")
    assert app.run(["recipes", "check", "mine.yaml"]) == 0
    assert capsys.readouterr().err == "extends deliver, changes nothing yet\n"


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_check_refuses_with_2_and_says_what_is_wrong(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["recipes", "check", "demo", "--set", "model.lora.rnak=4", *flags]) == 2
    out, err = capsys.readouterr()
    assert bool(out) == bool(flags)
    assert err == (
        "memorysam: error [2]: --set model.lora.rnak=4: model.lora: unknown key 'rnak'; did you mean 'rank'? "
        "(known: rank, alpha, dropout, targets, dora, rslora)\n"
    )


@pytest.mark.parametrize("command", ["show", "check"])
def test_an_unknown_name_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["recipes", command, "mcube"]) == 2
    assert "did you mean 'mcubes'?" in capsys.readouterr().err


def test_a_copy_can_be_checked_and_says_what_it_was_made_of(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = answer_of(capsys, "copy", "deliver", "mine.yaml", "--set", "train.epochs=50")
    assert answer == {"schema_version": 1, "out": "mine.yaml", "extends": "deliver", "changes": 1, "schema": None}
    assert [path.name for path in here.iterdir()] == ["mine.yaml"]
    assert app.run(["recipes", "check", "mine.yaml"]) == 0
    assert recipe.load("mine.yaml") == recipe.load("deliver", ["train.epochs=50", "name=mine", "about=''"])


def test_a_copy_says_its_name_on_stdout_and_what_to_do_next_on_stderr(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["recipes", "copy", "demo", "mine.yaml"]) == 0
    out, err = capsys.readouterr()
    assert out == "mine.yaml\n" and "memorysam recipes check mine.yaml" in err
    assert app.run(["recipes", "copy", "demo", "other.yaml", "-q"]) == 0
    assert capsys.readouterr() == ("other.yaml\n", "")


@pytest.mark.parametrize("word", ["--overwrite", "--force"])
def test_a_file_that_exists_is_replaced_only_when_asked(
    word: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text("precious\n")
    assert app.run(["recipes", "copy", "demo", "mine.yaml"]) == 2
    assert "mine.yaml: exists already; give another name, or --overwrite" in capsys.readouterr().err
    assert Path("mine.yaml").read_text() == "precious\n"
    assert app.run(["recipes", "copy", "demo", "mine.yaml", word]) == 0
    assert recipe.load("mine.yaml").model == recipe.load("demo").model


def test_a_recipe_is_not_copied_onto_itself(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = recipe.load("demo").to_yaml()
    Path("mine.yaml").write_text(text)
    assert app.run(["recipes", "copy", "mine.yaml", "mine.yaml", "--overwrite"]) == 2
    assert "is the recipe that is read" in capsys.readouterr().err
    assert Path("mine.yaml").read_text() == text


def test_the_schema_lies_beside_a_copy_that_names_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer_of(capsys, "copy", "demo", "mine.yaml", "--schema")["schema"] == "recipe.schema.json"
    assert Path("mine.yaml").read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    assert app.run(["recipes", "schema"]) == 0
    assert Path("recipe.schema.json").read_text() == capsys.readouterr().out
    assert app.run(["recipes", "copy", "demo", "second.yaml", "--schema"]) == 0, "the same schema serves several"


def test_another_schema_beside_a_copy_stays(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.schema.json").write_text("{}")
    assert app.run(["recipes", "copy", "demo", "mine.yaml", "--schema"]) == 2
    assert "recipe.schema.json: exists already with other content" in capsys.readouterr().err
    assert Path("recipe.schema.json").read_text() == "{}" and not Path("mine.yaml").exists()


def test_show_changes_prints_what_differs_and_no_more(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("extends: deliver\ntrain: {epochs: 50, batch: 4}\n")
    assert app.run(["recipes", "show", "mine.yaml", "--changes", "--set", "optim.lr=1e-3"]) == 0
    assert capsys.readouterr().out == "extends: deliver\nname: mine\noptim:\n  lr: 0.001\ntrain:\n  epochs: 50\n"
    answer = answer_of(capsys, "show", "mine.yaml", "--changes")
    assert answer == {"schema_version": 1, "extends": "deliver", "changes": {"train.epochs": 50}}
    assert answer_of(capsys, "show", "mine.yaml")["extends"] == "deliver"


def test_show_changes_of_what_extends_nothing_is_a_short_file_to_begin_with(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["recipes", "show", "deliver", "--changes", "--set", "train.epochs=50"]) == 0
    assert capsys.readouterr() == ("extends: deliver\ntrain:\n  epochs: 50\n", "")
    assert app.run(["recipes", "show", "deliver", "--changes"]) == 0
    assert capsys.readouterr() == ("extends: deliver\n", "nothing differs from deliver\n")


def test_diff_shows_both_sides_and_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["recipes", "diff", "deliver", "deliver-rgbd"]) == 0
    lines = [line.split("   ") for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["key", "deliver", "deliver-rgbd"]
    assert cells[2] == ["data.modalities", "[img, depth, event, lidar]", "[img, depth]"]
    assert cells[3] == ["optim.lr", "0.0006", "0.00045"]
    answer = answer_of(capsys, "diff", "deliver", "deliver-rgbd")
    assert answer["differences"][1] == {"key": "optim.lr", "a": 6e-4, "b": 4.5e-4}
    assert (answer["a"], answer["b"], len(answer["differences"])) == ("deliver", "deliver-rgbd", 2)


def test_diff_says_so_where_nothing_differs(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["recipes", "diff", "demo", "demo"]) == 0
    assert capsys.readouterr() == ("no difference\n", "")
    assert answer_of(capsys, "diff", "demo", "demo")["differences"] == []


@pytest.mark.parametrize(
    "arguments", [["diff", "demo", "mcube"], ["copy", "mcube", "mine.yaml"], ["diff", "mcube", "demo"]]
)
def test_an_unknown_name_is_refused_wherever_it_stands(
    arguments: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["recipes", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "did you mean 'mcubes'?" in err and not list(here.iterdir())


def test_a_folder_that_cannot_be_written_is_the_machine_s_fault(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert app.run(["recipes", "copy", "demo", "file/mine.yaml"]) == 6
    assert capsys.readouterr().out == ""
