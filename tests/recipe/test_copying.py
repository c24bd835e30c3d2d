"""A copy says the same as what it extends, key by key, until somebody takes a # away."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from memorysam_cli import recipe
from memorysam_cli.errors import UsageError
from memorysam_cli.recipe import comparing
from memorysam_cli.recipe.comparing import SCHEMA_FILE, keys, make_copy
from memorysam_cli.recipe.schema import Recipe


def written(folder: Path, name: str, overrides: list[str] | None = None, out: str = "mine.yaml") -> Path:
    path = folder / out
    path.write_text(make_copy(name, path, overrides=overrides or []).text, encoding="utf-8")
    return path


def uncommented(path: Path) -> None:
    """Take every # away that stands before a key."""
    path.write_text(re.sub(r"^( *)#(?=[^ #])", r"\1", path.read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.mark.parametrize("name", recipe.shipped())
def test_a_copy_is_the_recipe_with_and_without_its_comments(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    expected = recipe.load(name, ["name=mine", "about=''"])
    assert recipe.load(path) == expected
    uncommented(path)
    assert path.read_text().count("\n  lr: ") == 1, "nothing was uncommented"
    assert recipe.load(path) == expected


def test_a_copy_has_every_key_of_the_recipe_once_with_its_meaning(tmp_path: Path) -> None:
    path = written(tmp_path, "demo")
    text = path.read_text()
    words = " ".join(re.sub(r"^ *# ", "", text, flags=re.MULTILINE).split())
    for key in keys():
        if key.path.partition(".")[0] in Recipe.model_fields:
            margin, last = "  " * key.path.count("."), key.path.rpartition(".")[2]
            assert len(re.findall(rf"^{margin}#?{last}:", text, re.MULTILINE)) >= 1, key.path
            assert key.meaning.replace("`", "") in words, key.path
    assert max(map(len, text.splitlines())) <= 120


def test_changes_stand_in_a_copy_without_a_comment(tmp_path: Path) -> None:
    changes = ["train.epochs=50", "model.lora.rank=8", "name=trial", "about='a: b'"]
    path = written(tmp_path, "deliver", changes)
    assert recipe.load(path) == recipe.load("deliver", changes)
    active = [line.strip() for line in path.read_text().splitlines() if re.match(r" *[^# ].*: .", line)]
    assert active == ["extends: deliver", "name: trial", 'about: "a: b"', "rank: 8", "epochs: 50"]


def test_a_copy_of_a_file_extends_it_by_a_path_from_where_the_copy_lies(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(recipe.load("demo", ["train.epochs=5"]).to_yaml())
    (tmp_path / "below").mkdir()
    path = written(tmp_path / "below", str(base))
    assert "\nextends: ../base.yaml\n" in path.read_text()
    assert recipe.load(path).train.epochs == 5


def test_a_copy_in_a_linked_folder_finds_what_it_extends(tmp_path: Path) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far" / "away")
    base = tmp_path / "base.yaml"
    base.write_text(recipe.load("demo", ["train.epochs=5"]).to_yaml())
    assert recipe.load(written(tmp_path / "near", str(base))).train.epochs == 5


def test_a_copy_of_what_extends_a_recipe_extends_that_one_and_has_its_changes(tmp_path: Path) -> None:
    first = written(tmp_path, "deliver", ["train.epochs=50"], "first.yaml")
    second = written(tmp_path, str(first), ["optim.lr=1e-5"], "second.yaml")
    assert make_copy(str(first), second).extends == "deliver"
    wanted = recipe.load("deliver", ["train.epochs=50", "optim.lr=1e-5"])
    assert comparing.differences(recipe.load(second), wanted) == []


def test_editors_are_told_of_the_schema_where_there_is_one(tmp_path: Path) -> None:
    assert "$schema" not in make_copy("demo", tmp_path / "mine.yaml").text
    first = make_copy("demo", tmp_path / "mine.yaml", has_schema=True).text.partition("\n")[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA_FILE}"


@pytest.mark.parametrize("out", ["mine", "mine.json", "my recipe.yaml", "-x.yaml", ".yaml", "a\nb.yaml", "ü.yaml"])
def test_a_name_that_no_recipe_can_have_is_refused(out: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a name for a recipe; give letters"):
        make_copy("demo", tmp_path / out)


def test_what_is_not_there_cannot_be_copied(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'demo'"):
        make_copy("dmo", tmp_path / "mine.yaml")
