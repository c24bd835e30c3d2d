"""What is wrong with a command line is told before torch is loaded, which takes seconds: in every command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from memorysam_cli.recipe import LossSettings
from memorysam_cli.recipe.reading import LIGHT, settings_of
from memorysam_cli.registry import LOSSES

from ..engine.stand_ins import write_data
from ..faults.forks import Forks
from ..faults.search_lines import COMMANDS
from .light import LOADED
from .trained import save_weights

RECIPE = """\
data: {dataset: tiny, modalities: [img], image_size: 64}
model: {backbone: nano}
spmm: {variant: paper, weight: 1}
optim: {lr: 1e-4}
train: {epochs: 1}
"""
FURTHER = "losses: {dice: {}, lovasz: {weight: 2}, focal: {gamma: 1}, single: {}}\n"
ON = "-w w.safetensors -d data"
LINES = {
    "prepare synthetic": {"prepare synthetic out --layout nosuch": 2, "prepare synthetic out --scenes none": 2},
    "prepare folder": {"prepare folder nosuch": 3, "prepare folder data -m rgb=nosuch/*.png": 3},
    "prepare manifest": {"prepare manifest nosuch tiny": 3, "prepare manifest data nosuch": 3},
    "prepare hha": {"prepare hha data --depth x/*.png --camera 1,2 --out out": 2},
    **{
        f"prepare {name}": {f"prepare {name} nosuch": 3, f"prepare {name} empty --nosuch": 2}
        for name in ("deliver", "mcubes", "mfnet", "fmb", "pst900", "nyu", "kitti360", "urbanlf", "muses")
    },
    "check": {"check nosuch": 3, "check data --dataset nosuch": 3},
    "convert": {
        "convert nosuch --to masks --out out": 3, "convert data --to nosuch --out out": 2,
        "convert data --to coco --out out": 2, "convert data --to masks --out empty": 2,
        "convert data --to coco --out out.json --prefix x": 2,
    },
    "plan": {
        "plan -r nosuch": 2, "plan -r nosuch.yaml": 2, "plan -r tiny.yaml -d nosuch": 3,
        "plan -r tiny.yaml --set optim.lr=x": 2, "plan -r further.yaml --set losses.focal.gamma=x": 2,
        "plan -r tiny.yaml --gpu-memory 24XB": 2, "plan -r tiny.yaml --device gpu": 2,
        "plan -r tiny.yaml --timeout x": 2,
    },
    "train": {
        "train -r nosuch": 2, "train -r tiny.yaml -d nosuch": 3, "train -r tiny.yaml -d empty": 3,
        "train -d empty": 3, "train -r tiny.yaml -d data --set data.dataset=nosuch": 3,
        "train -r tiny.yaml --set train.epochs=x": 2, "train -r further.yaml --set losses.dice.wieght=1": 2,
        "train -r tiny.yaml -d data --device cuda:x": 2, "train -r tiny.yaml -d data --size 33": 2,
        "train -r tiny.yaml -d data --batch x": 2, "train -r tiny.yaml -d data --track nosuch": 2,
        "train -r tiny.yaml -d data --init nosuch.safetensors": 5, "train --resume nosuch": 5,
    },
    "watch": {"watch nosuch": 2, "watch": 2},
    "evaluate": {
        "evaluate": 5, "evaluate -w nosuch.safetensors": 5, "evaluate -w w.safetensors -d nosuch": 3,
        f"evaluate {ON} --device gpu": 2, f"evaluate {ON} -m img,,depth": 2, f"evaluate {ON} --tta-scales x": 2,
        f"evaluate {ON} --robustness emm --tta": 2, f"evaluate {ON} --repeats 3": 2, f"evaluate {ON} --batch 0": 2,
    },
    "predict": {
        "predict": 5, "predict nosuch -w w.safetensors": 3, "predict data -w nosuch.safetensors": 5,
        "predict -w w.safetensors -d nosuch": 3, "predict data -w w.safetensors --device gpu": 2,
        "predict data -w w.safetensors --shard 4/4": 2, "predict data -w w.safetensors --shard half": 2,
        "predict data -w w.safetensors --resume --overwrite": 2, "predict data -w w.safetensors --bands a=1": 2,
        "predict data -w w.safetensors -d data": 2, "predict data -w w.safetensors --poll 2": 2,
        "predict data -w w.safetensors --follow --batch 3": 2, "predict data -w w.safetensors -m img,": 2,
    },
    "report": {"report nosuch": 2},
    "demo": {"demo --device gpu": 2, "demo --set train.epochs=x": 2, "demo --scenes 3": 2},
    "recipes list": {"recipes list --nosuch": 2},
    "recipes show": {"recipes show nosuch": 2, "recipes show further.yaml --set losses.nosuch.weight=1": 2},
    "recipes copy": {"recipes copy nosuch out.yaml": 2, "recipes copy demo tiny.yaml": 2},
    "recipes check": {"recipes check nosuch.yaml": 2, "recipes check further.yaml": 0},
    "recipes diff": {"recipes diff demo nosuch": 2, "recipes diff tiny.yaml further.yaml": 0},
    "recipes schema": {"recipes schema --nosuch": 2},
    "weights info": {"weights info nosuch": 5},
    "weights verify": {"weights verify nosuch": 10},
    "weights merge": {"weights merge nosuch --out out.safetensors": 5},
    "weights import": {
        "weights import nosuch --out out.safetensors": 5, "weights import tiny.yaml --out out.pth": 2,
        "weights import tiny.yaml --out out.safetensors -d nosuch": 3,
    },
    "weights export": {
        "weights export nosuch --format peft --out out": 5,
        "weights export w.safetensors --format reference --out out.bin": 2,
        "weights export w.safetensors --format peft --out out.pth": 2,
    },
    "weights fetch": {"weights fetch": 2, "weights fetch nosuch": 2},
    "weights push": {"weights push alice/demo nosuch": 5, "weights push no-owner w.safetensors": 2},
    "export": {
        "export nosuch --format onnx": 5, "export w.safetensors --format onnx --out out.pt2": 2,
        "export w.safetensors --format onnx --size 33": 2,
    },
    "card": {"card nosuch": 5, "card w.safetensors --out w.safetensors": 2},
    "bench": {
        "bench --backbone nosuch": 2, "bench --size 100": 2, "bench --device gpu": 2,
        "bench --mode predict --saver on": 2, "bench --mode data --against plain": 2,
    },
    "doctor": {"doctor --nosuch": 2},
}  # fmt: skip
"""Command → its lines with a wrong path, option or value (and two that are right and need nothing), and their codes."""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the lines name: prepared data, weights, recipes; no line writes anything."""
    folder = tmp_path_factory.mktemp("here")
    save_weights(folder / "w.safetensors", write_data(folder / "data").info)
    (folder / "empty").mkdir()
    (folder / "tiny.yaml").write_text(RECIPE)
    (folder / "further.yaml").write_text(RECIPE + FURTHER)
    return folder


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks("tests.commands.light:attempt") as server:
        yield server


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("command", LINES)
def test_a_wrong_word_is_told_before_torch_is_loaded(command: str, here: Path, forks: Forks) -> None:
    before = names(here)
    for line, code in LINES[command].items():
        ended = forks.run(str(here), shlex.split(line))
        *said, loaded = ended.said.splitlines()
        assert ended.code == code, (line, said)
        assert loaded == LOADED, (line, loaded)
        assert not code or said[-1].startswith(f"memorysam: error [{code}]: "), (line, said)
    assert names(here) == before


def test_every_command_is_tried() -> None:
    assert set(LINES) == set(COMMANDS)


@pytest.mark.parametrize("name", LIGHT)
def test_keys_of_losses_that_are_read_without_torch_are_the_losses_own(name: str) -> None:
    assert settings_of(name) is LOSSES.get(name).Settings
    assert issubclass(LIGHT[name], LossSettings)


def test_every_further_loss_is_read_without_torch() -> None:
    assert set(LIGHT) == set(LOSSES.built_in) - {"ohem", "spmm", "teacher"}
