"""``memorysam recipes``: list, show, check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memorysam_cli import app, recipe


def test_list_names_every_recipe_with_what_one_chooses_by(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["recipes", "list"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    words = out.replace(",", "").split()
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
    assert set(answer) == {"schema_version", "recipe"}
    assert recipe.parse(answer["recipe"], where="answer") == recipe.load("demo")


@pytest.mark.parametrize("name", recipe.shipped())
def test_check_accepts_every_shipped_recipe(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["recipes", "check", name]) == 0
    assert capsys.readouterr() == ("ok\n", "")


def test_check_as_json_says_which_recipe_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["recipes", "check", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "name": "demo", "ok": True}


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_check_refuses_with_2_and_says_what_is_wrong(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["recipes", "check", "demo", "--set", "model.lora.rnak=4", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "memorysam: error [2]: --set model.lora.rnak=4: model.lora: unknown key 'rnak'; did you mean 'rank'? "
        "(known: rank, alpha, dropout, targets, dora, rslora)\n"
    )


@pytest.mark.parametrize("command", ["show", "check"])
def test_an_unknown_name_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["recipes", command, "mcube"]) == 2
    assert "did you mean 'mcubes'?" in capsys.readouterr().err
