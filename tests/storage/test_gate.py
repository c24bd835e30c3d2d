"""Calls that lose or falsify data stay inside ``storage``: read from the code itself, so that nothing slips by."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import memorysam_cli

PACKAGE = Path(memorysam_cli.__file__).parent
BANNED_CALLS = {
    "torch.load",
    "torch.save",
    "cv2.imread",
    "cv2.imreadmulti",
    "cv2.imwrite",
    "cv2.imwritemulti",
    "yaml.load",
    "yaml.safe_load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "shutil.move",
    "shutil.unpack_archive",
}
BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib"}
BANNED_METHODS = {"extractall"}
WRITING_METHODS = {"write_text", "write_bytes"}
OUR_WRITERS = {"atomic", "documents"}


def offences(source: str) -> Iterator[str]:
    """``line: what`` of every banned thing in a module outside storage."""
    tree = ast.parse(source)
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {name.asname: name.name for name in node.names if name.asname}
            yield from (f"{node.lineno}: import {n.name}" for n in node.names if n.name.split(".")[0] in BANNED_MODULES)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = {f"{node.module}.{name.name}" for name in node.names}
            if (node.module or "").split(".")[0] in BANNED_MODULES or names & BANNED_CALLS:
                yield f"{node.lineno}: from {node.module} import"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _dotted(node, aliases) in BANNED_CALLS:
            yield f"{node.lineno}: {_dotted(node, aliases)}"
        if isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {what}" for what in _bad_call(node))


def _dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, aliases)}.{node.attr}"
    return aliases.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


def _bad_call(call: ast.Call) -> Iterator[str]:
    keywords = {word.arg: word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)}
    constants = [argument.value if isinstance(argument, ast.Constant) else None for argument in call.args]
    method = call.func.attr if isinstance(call.func, ast.Attribute) else None
    receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
    if method in BANNED_METHODS:
        yield method
    if method == "load_state_dict" and (keywords.get("strict") is False or constants[1:2] == [False]):
        yield "load_state_dict(strict=False)"
    if method in WRITING_METHODS and not (isinstance(receiver, ast.Name) and receiver.id in OUR_WRITERS):
        yield method
    is_builtin_open = (isinstance(call.func, ast.Name) and call.func.id == "open") or (
        method == "open" and isinstance(receiver, ast.Name) and receiver.id in {"io", "builtins"}
    )
    if is_builtin_open or method == "open":
        mode = keywords.get("mode", next(iter(constants[1:] if is_builtin_open else constants), None))
        if isinstance(mode, str) and set(mode) & set("wax+") and set(mode) <= set("rwaxbt+"):
            yield f"open(mode={mode!r})"


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "storage" not in path.relative_to(PACKAGE).parts[:1]]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_outside_storage_reads_or_writes_behind_its_back(path: Path) -> None:
    assert list(offences(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "snippet",
    [
        "import torch\ntorch.load('x')",
        "import torch as t\nt.save({}, 'x')",
        "from torch import load",
        "import cv2\nimage = cv2.imread('x')",
        "from cv2 import imwrite",
        "read = __import__\nimport cv2\nreader = cv2.imread",
        "import pickle",
        "from pickle import loads",
        "def f():\n    import pickle as p",
        "import yaml\nyaml.load('a')",
        "from yaml import safe_load",
        "import zipfile\nzipfile.ZipFile('x').extractall('y')",
        "import shutil\nshutil.move('a', 'b')",
        "from shutil import move",
        "model.load_state_dict(state, strict=False)",
        "model.load_state_dict(state, False)",
        "open('x', 'w')",
        "open('x', mode='ab')",
        "with open('x', 'r+b') as f: pass",
        "import io\nio.open('x', 'w')",
        "path.open('wb')",
        "path.open(mode='x')",
        "(a / 'b').write_text('c')",
        "path.write_bytes(b'c')",
    ],
)
def test_the_gate_sees_each_of_the_bad_ways(snippet: str) -> None:
    assert list(offences(snippet))


@pytest.mark.parametrize(
    "snippet",
    [
        "open('x')",
        "open('x', 'rb')",
        "path.open('rb')",
        "path.open()",
        "zip(a, b, strict=False)",
        "model.load_state_dict(state)",
        "model.load_state_dict(state, strict=True)",
        "from memorysam_cli.storage import atomic\natomic.write_text(path, 'a')",
        "from memorysam_cli.storage.documents import read_yaml\nread_yaml('x')",
        "image.save(stream)",
        "import yaml\nyaml.dump({})",
        "webbrowser.open('page.html')",
    ],
)
def test_the_gate_lets_honest_code_pass(snippet: str) -> None:
    assert list(offences(snippet)) == []


def test_the_gate_looks_at_the_whole_package() -> None:
    found = {str(path.relative_to(PACKAGE)) for path in modules()}
    assert {"errors.py", "dataset.py"} <= found
    assert not any(name.startswith("storage") for name in found)
