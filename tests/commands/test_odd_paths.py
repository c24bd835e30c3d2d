"""Folders whose names are no UTF-8, and have spaces and quotes: everything works there.

The data lie where no command looks by itself: what comes after the training finds them by the run.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from memorysam_cli import app
from memorysam_cli.engine.run_folder import RunFolder

from ..engine.stand_ins import write_data
from .trained import Ended, Program

RECIPE = """
name: small
data: {dataset: tiny, modalities: [img, depth], image_size: 32, workers: 0}
model: {backbone: nano, base_weights: random, object_gate: false}
spmm: {variant: "off", weight: 0}
optim: {lr: 0.0001}
train: {epochs: 2, batch: 1, max_steps: 1, seed: 11}
"""
WALK = [
    *("check {2} --out {0}/check", "train --recipe small.yaml --data {2} --out {0}/run"),
    *("train --resume {0}/run --set train.max_steps=2", "watch {0}/run"),
    *("evaluate -w {1} --workers 0 --batch 1 --gallery 1", "evaluate -w {1} --workers 0 --robustness emm"),
    *("predict -w {1} --out {0}/masks --workers 0 --overlay --legend", "report {0}/masks", "report {0}/run"),
    *("report {0}/run {0}/run --out {0}/both.html", "weights info {1}", "weights verify {1}", "card {1}"),
    *("card {1} --out {0}/card.md", "weights merge {1} --out {0}/full.safetensors"),
    *("weights export {1} --format merged --out {0}/merged.pth", "weights export {1} --format peft --out {0}/peft"),
    *("recipes check {0}/small.yaml", "recipes show {0}/small.yaml", "recipes copy {0}/small.yaml {0}/mine.yaml"),
]
REFUSED = {
    "train --data {2} --recipe small.yaml --init {1}": 2,
    "train --data {2} --recipe small.yaml --set data.dataset={0}": 2,
    "prepare folder {2} --name own --modality img=none/*.png": 3,
    "weights import {1} --out {0}/imported.safetensors": 5,
    "evaluate -w {0}/none.safetensors": 5,
    "watch {0}/none": 2,
    "predict {0}/none -w {1}": 3,
    "recipes show {0}": 2,
    "{0}": 2,
    "--extend {0}/none.py doctor": 2,
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """How each command ended, all typed in one folder of an odd name, with absolute paths through it."""
    import contextlib
    import io

    here = tmp_path_factory.mktemp("odd") / "it's \udcff here"
    write_data(here / "my data")
    (here / "small.yaml").write_text(RECIPE)
    found: dict[str, Any] = {}
    with contextlib.chdir(here), pytest.MonkeyPatch.context() as patch:
        for line in (*WALK, *REFUSED):
            words = [
                word.format(here, here / "run/checkpoints/best.safetensors", here / "my data") for word in line.split()
            ]
            patch.setattr(sys, "argv", ["memorysam", *words, "--json"])
            out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = app.run([*words, "--json"])
            found[line] = Ended(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]
    return found


def test_the_line_that_an_interrupted_run_ends_with_continues_it_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memorysam: Program
) -> None:
    """Typed in the same folder, of the run and the data root of the command before, with spaces and a quote in both."""
    monkeypatch.chdir(tmp_path)
    write_data(Path("my data"))
    Path("small.yaml").write_text(RECIPE.replace("max_steps: 1", "max_steps: 2"))
    log_metrics = RunFolder.log_metrics

    def interrupted(run: RunFolder, place: Mapping[str, int], values: Mapping[str, float]) -> None:
        log_metrics(run, place, values)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log_metrics", interrupted)
        ended = memorysam("train", "--recipe", "small.yaml", "--data", "my data", "--out", "it's mine/run")
    assert ended.code == 143
    line = ended.err.rstrip("\n").rpartition("continue with: ")[2]
    assert shlex.split(line) == ["memorysam", "train", "--resume", "it's mine/run"]
    went_on = memorysam(*shlex.split(line)[1:], "--json")
    assert went_on.code == 0 and went_on.answer["steps"] == 2 and went_on.answer["resumed"]
    Path("my data").rename("moved")
    lost = memorysam("evaluate", "--weights", "it's mine/run/checkpoints/best.safetensors")
    assert lost.code == 3 and f"below {tmp_path / 'my data'}, which no longer exists" in lost.err
    assert lost.err.rstrip().endswith("give its place with --data ROOT")


@pytest.mark.parametrize("line", WALK)
def test_a_folder_whose_name_is_no_utf8_is_a_folder_like_any_other(line: str, ended: dict[str, Ended]) -> None:
    assert ended[line].code == 0, ended[line].err
    assert ended[line].out.rstrip("\n").isprintable() and isinstance(json.loads(ended[line].out), dict)
    assert ended[line].err.replace("\n", "").isprintable()


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_is_refused_by_the_escaped_name(line: str, ended: dict[str, Ended]) -> None:
    assert ended[line].code == REFUSED[line], ended[line].err
    last = ended[line].err.splitlines()[-1]
    assert last.startswith(f"memorysam: error [{REFUSED[line]}]: ") and "\\udcff" in last.lower()
    assert json.loads(ended[line].out)["error"]["code"] == REFUSED[line]
