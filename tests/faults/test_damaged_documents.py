"""Every document that a command reads back, mutated field by field: the command ends with 0 or a documented code.

The files are those that a training, an evaluation and a prediction have left. In each one every field in turn is taken
away, or becomes something else; the commands that read it must answer with one line, whatever they find.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from memorysam_cli import app
from memorysam_cli.errors import EXIT_CODES
from tests.faults import jobs_bad_inputs
from tests.faults.conftest import Figures

Keys = tuple[str | int, ...]
DEEP = "\0deep\0"
"""What stands for 100,000 nested lists until the text is written."""
VALUES: dict[str, Any] = {
    "null": None, "true": True, "text": "x\u202e\x1b[31m", "empty": "", "list": [], "object": {}, "negative": -1,
    "half": 0.5, "huge": 10**300, "whole": 10**18, "nan": float("nan"), "infinite": float("inf"),
    "half a pair": "\ud800", "nul": "a\0b", "outside": "../../etc/passwd", "nested": [[{"a": [None]}]], "deep": DEEP,
}  # fmt: skip
"""What a field becomes; NaN and infinity are written as Python does, which is no JSON."""
GONE, UNKNOWN = "gone", "unknown key"
ALL_AT_ONCE = os.environ.get("MEMORYSAM_SOAK") == "1"


def places(value: Any, keys: Keys = ()) -> Iterator[Keys]:
    """The way to each value of a document; of a list the first two, for the others are alike."""
    yield keys
    pairs: Sequence[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value[:2]))
    for key, child in pairs:
        yield from places(child, (*keys, key))


def mutated(document: Any, keys: Keys, what: str) -> Any:
    """A copy with one field changed."""
    copy = json.loads(json.dumps(document))
    if not keys:
        return {} if what == GONE else [copy] if what == UNKNOWN else VALUES[what]
    *parents, last = keys
    place = copy
    for key in parents:
        place = place[key]
    if what == GONE:
        del place[last]
    elif what == UNKNOWN:
        place = place[last] if isinstance(place[last], dict) else copy
        if isinstance(place, dict):
            place["splitt"] = 1
    else:
        place[last] = VALUES[what]
    return copy


def written(document: Any) -> bytes:
    """A mutated document as JSON, or as near to it as it can be."""
    text = json.dumps(document).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000)
    return text.encode()


def mutations(document: Any, rng: random.Random, *, most: int) -> list[tuple[Keys, str]]:
    """So many ways to change a document: every field first, then further values for some."""
    found = [(keys, what) for keys in places(document) for what in (GONE, UNKNOWN, *VALUES)]
    if ALL_AT_ONCE:
        return found
    rng.shuffle(found)
    once = {keys: (keys, what) for keys, what in found}  # one way for each field
    first = rng.sample(sorted(once.values(), key=str), min(most, len(once)))
    return [*first, *found[: max(0, most - len(first))]]


# How the document is taken out of its file, and put back; beside JSON.


def read_lines(data: bytes) -> Any:
    return json.loads(data.splitlines()[0])


def write_lines(document: Any, before: bytes) -> bytes:
    return b"\n".join([written(document), *before.splitlines()[1:]]) + b"\n"


def read_yaml(data: bytes) -> Any:
    return yaml.safe_load(data)


def write_yaml(document: Any, _before: bytes) -> bytes:
    return written(document)  # YAML's flow style: what is JSON is YAML, too


def read_whole(data: bytes) -> Any:
    return json.loads(data)


def write_whole(document: Any, _before: bytes) -> bytes:
    return written(document)


@dataclass(frozen=True)
class Kind:
    """A document and the commands that read it."""

    file: str
    commands: tuple[str, ...]
    most: int
    """Mutations that are tried in a usual run."""
    read: Callable[[bytes], Any] = read_whole
    write: Callable[[Any, bytes], bytes] = write_whole
    sign: Callable[[Path], None] | None = None
    """What an attacker would do besides, so that the content is looked at and not only its sum."""


def sign_manifest(folder: Path) -> None:
    about = json.loads((folder / "dataset.json").read_bytes())
    about["content_hash"] = hashlib.sha256((folder / "scenes.jsonl").read_bytes()).hexdigest()
    (folder / "dataset.json").write_text(json.dumps(about))


PREDICT = "predict photos --map img=rgb --workers 0 -q -o masks"
WEIGHTS = "runs/small/checkpoints/best.safetensors"
RUN, SCORED, MASKS = "runs/small", "runs/small/evaluate/val", "masks"
KINDS = {
    "recipe of a run": Kind(
        f"{RUN}/recipe.yaml", (f"watch {RUN} --once", f"report {RUN} -o out.html"), 25, read_yaml, write_yaml
    ),
    "metrics": Kind(
        f"{RUN}/metrics.jsonl", (f"watch {RUN} --once", f"report {RUN} -o out.html"), 16, read_lines, write_lines
    ),
    "extent": Kind(f"{RUN}/extent.json", (f"watch {RUN} --json",), 30),
    "result": Kind(f"{RUN}/result.json", (f"report {RUN} -o out.html",), 15),
    "environment": Kind(f"{RUN}/environment.json", (f"report {RUN} -o out.html", f"report {RUN} {RUN} -o o.html"), 10),
    "owner of a folder": Kind(f"{RUN}/.lock", (f"watch {RUN} --once",), 30),
    "scores": Kind(
        f"{SCORED}/metrics.json",
        (f"report {SCORED} -o out.html", f"report {SCORED} {SCORED} -o o.html", f"card {WEIGHTS}"),
        40,
    ),
    "gallery": Kind(f"{SCORED}/gallery/gallery.json", (f"report {SCORED} -o out.html",), 25),
    "finished prediction": Kind(
        f"{MASKS}/_SUCCESS.json", (f"report {MASKS} -o out.html", PREDICT), 12
    ),
    "ledger": Kind(f"{MASKS}/predictions.jsonl", (f"report {MASKS} -o out.html",), 25, read_lines, write_lines),
    "prediction's classes": Kind(f"{MASKS}/classes.json", (f"report {MASKS} -o out.html",), 10),
    "list of scenes": Kind(
        "data/memorysam/tiny/scenes.jsonl",
        ("check data --headers-only -o checked", "plan -r tiny.yaml -d data --gpu-memory 8GB"),
        25, read_lines, write_lines, sign_manifest,
    ),
    "data set": Kind(
        "data/memorysam/tiny/dataset.json",
        ("check data --headers-only -o checked", "plan -r tiny.yaml -d data --gpu-memory 8GB"),
        30,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(base: Path) -> Path:
    """What a training, an evaluation and a prediction have left, not to be written to."""
    jobs_bad_inputs.warm(str(base / "made"))
    return base / "made"


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def refuse_other_endings(arguments: str, capsys: pytest.CaptureFixture[str], *, how: object) -> int:
    """Run a command; it ends with a documented code, and with one line if it is none of success."""
    code = app.run(arguments.split())
    said = capsys.readouterr()
    assert code in EXIT_CODES and code != 1, f"{arguments}, {how}: {said.err}"
    assert "Traceback" not in said.err, f"{arguments}, {how}: {said.err}"
    lines = [line for line in said.err.splitlines() if line.startswith("memorysam: error")]
    assert len(lines) == (code != 0), f"{arguments}, {how}: {said.err}"
    return code


@pytest.mark.parametrize("name", KINDS)
def test_a_document_that_is_mutated_ends_a_command_with_a_documented_code(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], rng: random.Random, figures: Figures
) -> None:
    kind = KINDS[name]
    path = folder / kind.file
    before = path.read_bytes()
    document = kind.read(before)
    for command in kind.commands:
        assert refuse_other_endings(command, capsys, how="as it was") == 0
    tried = refused = 0
    for keys, what in mutations(document, rng, most=kind.most):
        for command in kind.commands:
            path.write_bytes(kind.write(mutated(document, keys, what), before))
            if kind.sign is not None:
                kind.sign(path.parent)
            tried += 1
            refused += refuse_other_endings(command, capsys, how=(keys, what)) != 0
    assert refused, "otherwise nothing was read"
    figures("R", documents=tried, refused=refused, lost=0)
    for data in (b"", b"\xff\xfe{}", b"[", before[: len(before) // 2]):
        path.write_bytes(data)
        for command in kind.commands:
            refuse_other_endings(command, capsys, how=data[:20])
