"""Every command that the program tells people to type works as it stands; all are collected from the source."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import memorysam_cli
from memorysam_cli import model, registry, text
from memorysam_cli.data import DATASETS, manifest
from memorysam_cli.engine import run_folder

from .test_app import ALL

PACKAGE = Path(memorysam_cli.__file__).parent
ODD = Path("some where/it's here")
"""A path that only a quoted word names."""
WHOLE = re.compile(rf"memorysam ((?:{'|'.join(ALL['memorysam'].commands)})\b[^;()`,'\"]*)")
"""A command within a sentence, up to what ends it there."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what the lines name is there: a path that does not exist is refused by the parser already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model, "read_card", lambda _: None)  # weights are read by the parser, too
    for path in (ODD, Path("SCENES")):
        path.mkdir(parents=True)


@functools.cache
def sources() -> list[tuple[str, ast.Module]]:
    found = sorted(PACKAGE.rglob("*.py"))
    return [(str(path.relative_to(PACKAGE)), ast.parse(path.read_text(encoding="utf-8"))) for path in found]


def docstrings(tree: ast.Module) -> set[int]:
    """Ids of the texts that stand alone: they are for readers of the source and for --help."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def sentences() -> Iterator[tuple[str, str]]:
    """Where and what: every text of the source that holds a command, but for docstrings; ``{}`` where a value comes."""
    for where, tree in sources():
        alone = docstrings(tree)
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            words = ""
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone | inside:
                words = node.value
            elif isinstance(node, ast.JoinedStr):
                words = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield from ((f"{where}:{node.lineno}", found) for found in WHOLE.findall(words))


def calls() -> Iterator[tuple[str, list[str]]]:
    """Where and what: the words of every line that ``text.command`` and ``resume_command`` make; paths are odd ones."""
    for where, tree in sources():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or where == "data/manifest.py":
                continue  # the lines that prepare a data set are tried below, with their values
            words = [str(word.value) if isinstance(word, ast.Constant) else str(ODD) for word in node.args]
            if words[:2] == ["prepare", str(ODD)]:
                words[1] = "deliver"  # a data set's name, which is the command's
            if node.func.id == "command" and not any(isinstance(word, ast.Starred) for word in node.args):
                yield f"{where}:{node.lineno}", words
            elif node.func.id == "resume_command":
                yield f"{where}:{node.lineno}", ["train", "--resume", *words]


def refuse_unknown(line: str) -> None:
    """Have the program's own parser read a line as a shell would hand it over."""
    program, *words = shlex.split(line)
    assert program == "memorysam"
    path = "memorysam"
    while words and words[0] != "--help" and hasattr(ALL[path], "commands"):
        if words[0] == "--extend":
            del words[:2]
            continue
        path = f"{path} {words.pop(0)}"
    if "--help" not in words and not hasattr(ALL[path], "commands"):
        ALL[path].make_context(path, words)  # an unknown option, a missing value or one word too many raises


def test_a_command_in_a_sentence_is_one_and_holds_no_bare_value() -> None:
    found = list(sentences())
    assert found
    for where, sentence in found:
        assert "{}" not in sentence, f"{where}: a value in a line to type is quoted by text.command"
        words = sentence.split()
        path = "memorysam"
        while words and f"{path} {words[0]}" in ALL:
            path = f"{path} {words.pop(0)}"
        options = [word for word in words if word.startswith("--")]
        known = {name for parameter in ALL[path].params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert set(options) <= known | {"--help"}, where


def test_a_line_that_is_made_to_be_typed_is_read_by_its_command() -> None:
    found = list(calls())
    assert found
    for where, words in found:
        try:
            refuse_unknown(text.command(*words))
        except Exception as error:
            error.add_note(where)
            raise


@pytest.mark.parametrize("dataset", ["synthetic", "synthetic-mcubes", "mine", *DATASETS])
def test_the_line_that_prepares_a_data_set_is_read_by_its_command(dataset: str) -> None:
    for line in (manifest.prepare_line(ODD, dataset), manifest.own_line(ODD), manifest.sign_line(ODD, dataset)):
        refuse_unknown(line.partition(" (see ")[0])
        assert shlex.quote(str(ODD)) in line


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_is_continued_by_the_line_that_is_told(
    world: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the user's own code, without which it could not be, and by as many processes."""
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("MEMORYSAM_EXTEND", "")
    monkeypatch.setattr(registry, "_given", [])
    (tmp_path / "my own.py").touch()
    registry.add_files([tmp_path / "my own.py"], where="--extend")
    line = run_folder.resume_command(ODD, "--saver", "on")
    extended = f"--extend {shlex.quote(str(tmp_path / 'my own.py'))} train --resume {shlex.quote(str(ODD))} --saver on"
    assert line == {1: "memorysam ", 2: "torchrun --nproc-per-node 2 -m memorysam_cli "}[world] + extended
    refuse_unknown(f"memorysam {extended}")
