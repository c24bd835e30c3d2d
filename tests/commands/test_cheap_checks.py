"""What is wrong with a command line is told before torch is loaded, which takes seconds: in every command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from memorysam_cli.engine.train.tracking import TRACKERS
from memorysam_cli.model import CARD
from memorysam_cli.recipe import LossSettings
from memorysam_cli.recipe.reading import LIGHT, settings_of
from memorysam_cli.registry import LOSSES
from memorysam_cli.storage import tensors

from ..engine.stand_ins import CLASSES, write_data
from ..faults.search_lines import COMMANDS
from ..forks import Forks
from ..storage.geotiffs import noise, write_geotiff
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
AT = "predict data -w w.safetensors"
RASTER = "predict scene.tif -w w.safetensors"
NO_WEIGHTS = ("text", "bare.safetensors")
"""Files that are there: no safetensors, and one without a card."""
NO_FOLDER = ("text", "text/below")
"""Where no folder can be made: a file, and below one."""
CARDS: dict[str, dict[str, object]] = {
    "merged": {}, "frozen": {"encoder": "frozen"}, "fused": {"fusion": "two_pass"}, "dora": {"lora": {"dora": True}},
}  # fmt: skip
"""Weights whose card alone says that some layouts cannot hold them → what the recipe's section ``model`` says."""
NO_LAYOUT = {
    "reference": ("merged", "frozen", "fused", "dora"), "peft": ("merged", "frozen"), "merged": ("fused",),
}  # fmt: skip
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
        "plan -r tiny.yaml --timeout x": 2, "plan -r tiny.yaml -d data --modalities 3": 2,
        "plan -r tiny.yaml -d empty": 2,
        "plan -r tiny.yaml -d data --set data.modalities=[nosuch]": 3, "plan -d empty": 2,
        "plan -r tiny.yaml -d data --set data.selection_split=nosuch": 3, "plan -r tiny.yaml --device cuda": 6,
    },
    "train": {
        "train -r nosuch": 2, "train -r tiny.yaml -d nosuch": 3, "train -r tiny.yaml -d empty": 3,
        "train -d empty": 3, "train -r tiny.yaml -d data --set data.dataset=nosuch": 3,
        "train -r tiny.yaml --set train.epochs=x": 2, "train -r further.yaml --set losses.dice.wieght=1": 2,
        "train -r tiny.yaml -d data --device cuda:x": 2, "train -r tiny.yaml -d data --size 33": 2,
        "train -r tiny.yaml -d data --batch x": 2, "train -r tiny.yaml -d data --track nosuch": 2,
        "train -r tiny.yaml -d data --init nosuch.safetensors": 5, "train --resume nosuch": 5,
        "train --resume empty": 5, "train --resume data": 5, "train --resume text": 5,
        "train -r tiny.yaml -d data --resume empty": 5,
        **{f"train -r tiny.yaml -d data --init {file}": 5 for file in NO_WEIGHTS},
        "train -r tiny.yaml -d data --out text": 2, "train -r tiny.yaml -d data --out text/below": 6,
        "train -r tiny.yaml -d data --out data": 2, "train --resume run": 5, "train -r tiny.yaml -d data --batch 2": 3,
        "train -r tiny.yaml -d data --set data.modalities=[nosuch]": 3,
        "train -r tiny.yaml -d data --set data.train_split=nosuch": 3,
        "train -r tiny.yaml -d data --set data.selection_split=nosuch": 3,
        "train -r tiny.yaml -d data --device cuda": 6, "train -r tiny.yaml -d data --precision tf32": 2,
        **{f"without-{name} train -r tiny.yaml -d data --track {name}": 2 for name in TRACKERS},
    },
    "watch": {"watch nosuch": 2, "watch": 2, "watch empty": 2, "watch text": 2},
    "evaluate": {
        "evaluate": 5, "evaluate -w nosuch.safetensors": 5, "evaluate -w w.safetensors -d nosuch": 3,
        f"evaluate {ON} --device gpu": 2, f"evaluate {ON} -m img,,depth": 2, f"evaluate {ON} --tta-scales x": 2,
        f"evaluate {ON} --robustness emm --tta": 2, f"evaluate {ON} --repeats 3": 2, f"evaluate {ON} --batch 0": 2,
        **{f"evaluate -d data -w {file}": 5 for file in NO_WEIGHTS},
        f"evaluate {ON} -m nosuch": 2, f"evaluate {ON} --split nosuch": 3, f"evaluate {ON} --split val,": 2,
        **{f"evaluate {ON} --out {path}": 6 for path in NO_FOLDER},
        f"evaluate {ON} --out taken": 2, "evaluate -w w.safetensors -d empty": 3,
        "evaluate -w other.safetensors -d data": 5,
        f"evaluate {ON} --device cuda:1": 6, f"evaluate {ON} --precision fp16": 2,
    },
    "predict": {
        "predict": 5, "predict nosuch -w w.safetensors": 3, "predict data -w nosuch.safetensors": 5,
        "predict -w w.safetensors -d nosuch": 3, "predict data -w w.safetensors --device gpu": 2,
        "predict data -w w.safetensors --shard 4/4": 2, "predict data -w w.safetensors --shard half": 2,
        "predict data -w w.safetensors --resume --overwrite": 2, "predict data -w w.safetensors --bands a=1": 2,
        "predict data -w w.safetensors -d data": 2, "predict data -w w.safetensors --poll 2": 2,
        "predict data -w w.safetensors --follow --batch 3": 2, "predict data -w w.safetensors -m img,": 2,
        **{f"predict data -w {file}": 5 for file in NO_WEIGHTS},
        f"{AT} --out text": 2, f"{AT} --out text/below": 6,
        f"{AT} --out taken": 2, f"{AT} --out taken --resume": 2, f"{AT} -m nosuch": 2, f"{AT} --split nosuch": 3,
        f"{AT} --map nosuch=rgb": 2, f"{AT} --map img": 2,
        f"{AT} --map img=depth": 2, f"{AT} --threshold nosuch=0.5": 2, f"{AT} --threshold road=2": 2,
        f"{AT} --threshold road": 2, f"{AT} --unsure sky": 2, f"{AT} --threshold road=0.5 --unsure nosuch": 2,
        f"{AT} --probabilities uint8 --threshold road=0.5 --unsure 9": 2, f"{AT} --modality nosuch=x/*.png": 2,
        f"{AT} --modality img=nosuch/*.png": 3, f"{AT} --modality img": 2, f"{AT} --pair clock": 2,
        f"{AT} --tta-scales 9": 2, f"{AT} --follow": 2, "predict empty -w w.safetensors": 3,
        "predict text -w w.safetensors": 3,
        "predict empty -w w.safetensors --split val": 2, "predict -w w.safetensors -d empty": 3,
        "predict -w w.safetensors --modality img=nosuch.tif": 3,
        "predict -w w.safetensors --modality nosuch=scene.tif": 2,
        f"{RASTER} --out out.tif --bands nosuch=1": 2, f"{RASTER} --out out.tif --bands img=x,y": 2,
        f"{RASTER} --out out.tif --bands img": 2,
        f"{RASTER} --out out.png": 2, f"{RASTER} --out empty": 2, f"{RASTER} --out scene.tif -m img": 2,
        f"{RASTER} --color": 2,
        f"{AT} --device cuda": 6, f"{AT} --precision fp16": 2, f"{AT} --device cpu --precision tf32": 2,
        f"without-ray {AT} --engine ray": 2, f"{AT} --engine ray --shard 0/2": 2, f"{AT} --engine ray --device mps": 2,
        f"{AT} --out begun": 2, f"{AT} --out shards": 2, f"{AT} --out shards --shard 0/2": 2,
        f"{AT} --out done --resume": 2, "predict empty -w w.safetensors --follow --shard 0/2": 2,
        "predict empty -w w.safetensors --follow --out begun": 2,
        f"without-geo {RASTER} --out out.tif -m img": 2, f"{RASTER} --out out.tif -m img --device cuda": 6,
        f"{RASTER} --out out.tif -m nosuch": 2, f"{RASTER} --out text/below.tif -m img": 6,
    },
    "report": {
        "report nosuch": 2, "report": 2, "report empty": 2, "report data": 2, "report text": 2, "report taken empty": 2,
    },
    "demo": {
        "demo --device gpu": 2, "demo --device cuda": 6, "demo --set train.epochs=x": 2, "demo --scenes 3": 2,
        **{f"demo --out {path}": 6 for path in NO_FOLDER},
    },
    "recipes list": {"recipes list --nosuch": 2},
    "recipes show": {"recipes show nosuch": 2, "recipes show further.yaml --set losses.nosuch.weight=1": 2},
    "recipes copy": {"recipes copy nosuch out.yaml": 2, "recipes copy demo tiny.yaml": 2},
    "recipes check": {"recipes check nosuch.yaml": 2, "recipes check further.yaml": 0},
    "recipes diff": {"recipes diff demo nosuch": 2, "recipes diff tiny.yaml further.yaml": 0},
    "recipes schema": {"recipes schema --nosuch": 2},
    "weights info": {"weights info nosuch": 5, **{f"weights info {file}": 5 for file in NO_WEIGHTS}},
    "weights verify": {"weights verify nosuch": 10, **{f"weights verify {file}": 10 for file in NO_WEIGHTS}},
    "weights merge": {
        "weights merge nosuch --out out.safetensors": 5, "weights merge w.safetensors --out w.safetensors": 2,
        "weights merge w.safetensors --out w.safetensors --overwrite": 2,
        "weights merge w.safetensors --out text/below.safetensors": 6,
        **{f"weights merge {file} --out out.safetensors": 5 for file in NO_WEIGHTS},
    },
    "weights import": {
        "weights import nosuch --out out.safetensors": 5, "weights import tiny.yaml --out out.pth": 2,
        "weights import tiny.yaml --out out.safetensors -d nosuch": 3,
        "weights import text --out out.safetensors --recipe nosuch": 2,
        "weights import text --out out.safetensors --recipe nosuch.yaml": 2,
        "weights import text --out out.safetensors -m img,": 2, "weights import w.safetensors --out w.safetensors": 2,
        "weights import text --out text/below.safetensors": 6,
        "weights import w.safetensors --out out.safetensors": 5,
        "weights import text --out out.safetensors --recipe deliver -m nosuch": 2,
        "weights import text --out out.safetensors -m nosuch": 2,
        "weights import RGBD.pth --out out.safetensors -m img,lidar": 2,
        "weights import text --out out.safetensors --recipe tiny.yaml -d empty": 3,
        "weights import text --out out.safetensors --recipe tiny.yaml -d data -m depth,nosuch": 2,
        "weights import text --out out.safetensors --recipe deliver -d data": 3,
    },
    "weights export": {
        "weights export nosuch --format peft --out out": 5,
        "weights export w.safetensors --format reference --out out.bin": 2,
        "weights export w.safetensors --format peft --out out.pth": 2,
        "weights export w.safetensors --format merged --out w.safetensors": 2,
        "weights export w.safetensors --format nosuch --out out": 2,
        "weights export w.safetensors --format peft --out taken": 2,
        "weights export w.safetensors --format peft --out text/below": 6,
        **{f"weights export {file} --format peft --out out": 5 for file in NO_WEIGHTS},
        **{
            f"weights export {name}.safetensors --format {form} --out {'out' if form == 'peft' else 'out.pth'}": 5
            for form, names in NO_LAYOUT.items()
            for name in names
        },
    },
    "weights fetch": {"weights fetch": 2, "weights fetch nosuch": 2},
    "weights push": {"weights push alice/demo nosuch": 5, "weights push no-owner w.safetensors": 2,
        **{f"weights push alice/demo {file}": 5 for file in NO_WEIGHTS},
    },
    "export": {
        "export nosuch --format onnx": 5, "export w.safetensors --format onnx --out out.pt2": 2,
        "export w.safetensors --format onnx --size 33": 2, "without-onnx export w.safetensors --format onnx": 2,
        **{f"export {file} --format onnx": 5 for file in NO_WEIGHTS},
        "export w.safetensors --format onnx -m nosuch": 2, "export w.safetensors --format onnx --dynamic x": 2,
        "export w.safetensors --format torch-export --half": 2,
        "export w.safetensors --format torch-export --dynamic size": 2,
        "export w.safetensors --format onnx --out text/below.onnx": 6, "export w.safetensors --format nosuch": 2,
    },
    "card": {"card nosuch": 5, "card w.safetensors --out w.safetensors": 2,
        "card w.safetensors --out text/below.md": 6, **{f"card {file}": 5 for file in NO_WEIGHTS},
    },
    "bench": {
        "bench --backbone nosuch": 2, "bench --size 100": 2, "bench --device gpu": 2,
        "bench --mode predict --saver on": 2, "bench --classes 1": 2, "bench --mode nosuch": 2,
        "bench --mode data --against plain": 2, "bench --device cuda": 6, "bench --precision fp16": 2,
    },
    "doctor": {"doctor --nosuch": 2},
}  # fmt: skip
"""Command → its lines with a wrong path, option or value (and two that are right and need nothing), and their codes."""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the lines name: prepared data, weights, recipes; no line writes anything."""
    folder = tmp_path_factory.mktemp("here")
    info = write_data(folder / "data").info
    save_weights(folder / "w.safetensors", info)
    (folder / "empty").mkdir()
    (folder / "text").write_text("no weights, no folder")
    tensors.write(folder / "bare.safetensors", {"x": torch.zeros(1)}, {})
    save_weights(folder / "other.safetensors", info.model_copy(update={"classes": (*CLASSES[:-1], "lamp")}))
    (folder / "taken").mkdir()
    (folder / "taken" / "metrics.json").write_text("{}")
    (folder / "RGBD.pth").write_text("a name, and no weights")
    card = json.loads(tensors.read_metadata(folder / "w.safetensors")[CARD])
    for name, model in CARDS.items():
        recipe = card["recipe"] | {"model": card["recipe"]["model"] | model}
        changed = card | {"recipe": recipe, "kind": "merged" if name == "merged" else card["kind"]}
        tensors.write(folder / f"{name}.safetensors", {"x": torch.zeros(1)}, {CARD: json.dumps(changed)})
    for name, parts in (("begun", 1), ("shards", 3)):
        whole = folder / name / ".parts" / f"0-of-{parts}"
        whole.mkdir(parents=True)
        (whole / "predictions.jsonl").write_text('{"id": "a", "status": "done"}\n')
        note = {"schema_version": 1, "parts": parts, "marks": {}, "ready": True}
        (whole.parent / "job.json").write_text(json.dumps(note))
    (folder / "done").mkdir()
    (folder / "done" / "predictions.jsonl").write_text("")
    report = {"done": 0, "scenes": 0, "failed": 0, "ledger": "", "modalities": [], "trees": {}}
    (folder / "done" / "_SUCCESS.json").write_text(json.dumps(report))
    (folder / "run").mkdir()
    (folder / "run" / "recipe.yaml").write_text(RECIPE)
    write_geotiff(folder / "scene.tif", noise(4, 64, 64))
    (folder / "tiny.yaml").write_text(RECIPE)
    (folder / "further.yaml").write_text(RECIPE + FURTHER)
    return folder


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks("tests.commands.light:attempt", is_light=True) as server:
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
