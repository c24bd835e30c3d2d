"""Every command says which sensors its frames are of, and takes weights that have all that goes beyond the paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data import preparation
from memorysam_cli.model import load
from memorysam_cli.model.memory import EncodedFrame
from memorysam_cli.model.network import MemorySAM
from memorysam_cli.model.weights import build_for_training, save

from .trained import Program, traced_by

SENSORS = ("img", "depth", "event")
PAIR = (1, 2)
"""Depth and event are there: the memory that is read is depth's, the second of the recipe's and the first given."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of three sensors, and weights whose notes are large."""
    folder = tmp_path_factory.mktemp("template")
    preparation.render_synthetic(folder / "data", layout="deliver", scenes=20, size=72, seed=0)
    preparation.check_and_write(preparation.survey_synthetic(folder / "data", layout="deliver"))
    changes = {
        "data.modalities": f"[{','.join(SENSORS)}]", "data.image_size": 32, "model.backbone": "nano",
        "model.base_weights": "random", "model.object_gate": "false", "model.fusion": "two_pass",
        "model.order": "shuffled", "model.modality_embedding": "true", "model.memory_mask": "classes",
    }  # fmt: skip
    recipe = recipes.load("demo", [f"{key}={value}" for key, value in changes.items()])
    info = manifests.read(folder / "data", "synthetic").info
    network = build_for_training(recipe.for_dataset(info.name, SENSORS), info)
    with torch.no_grad():
        for tensor in network.notes.parameters():
            tensor.normal_(generator=torch.Generator().manual_seed(1)).mul_(30)
    save(network, folder / "w.safetensors")
    return folder


TWO = ("--modalities", "depth,event")
DATA = ("--weights", "w.safetensors", "--split", "val", "--data", "data", "--workers", 0)
LOOKS: dict[str, tuple[object, ...]] = {
    "evaluate": ("evaluate", *DATA, "--json", *TWO),
    "predict": ("predict", *DATA, "--json", "--out", "out", *TWO),
    "export": ("export", "w.safetensors", "--format", "torch-export", "--json", "--out", "m.pt2", *TWO),
    "export to ONNX": ("export", "w.safetensors", "--format", "onnx", "--json", "--out", "m.onnx", *TWO),
}
SLOW = {"export", "export to ONNX"}  # tracing takes half a minute, rewriting the graph as much again


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, ...]]:
    """The sensors of whatever frames a network is shown."""
    found: set[tuple[int, ...]] = set()
    honest = MemorySAM.outputs

    def outputs(self: MemorySAM, pool: Sequence[EncodedFrame], sequences: Sequence[Sequence[int]]) -> Any:
        found.update(tuple(pool[place].sensor for place in places) for places in sequences)
        return honest(self, pool, sequences)

    monkeypatch.setattr(MemorySAM, "outputs", outputs)
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in LOOKS]
)
def test_every_command_says_which_sensors_are_there(
    name: str, here: Path, memorysam: Program, seen: set[tuple[int, ...]]
) -> None:
    """What an export writes is compared with PyTorch by the command itself."""
    ended = memorysam(*LOOKS[name])
    assert ended.code == 0, ended.err
    assert seen == {PAIR}


def test_what_an_export_traces_is_the_network_with_those_sensors(
    here: Path, memorysam: Program, seen: set[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command as far as tracing; that a traced graph computes the same is the promise of test_portable.py."""
    compared = traced_by(memorysam, LOOKS["export"], monkeypatch)
    assert seen == {PAIR}
    torch.testing.assert_close(*compared, rtol=1e-4, atol=1e-4)


def test_what_other_code_has_no_place_for_is_refused(here: Path, memorysam: Program) -> None:
    for form in ("reference", "merged"):
        card = memorysam("weights", "export", "w.safetensors", "--format", form, "--out", "r.pth")
        assert card.code == 5 and "was trained with model.fusion" in card.err and not Path("r.pth").exists()
    ended = memorysam("weights", "merge", "w.safetensors", "--out", "m.safetensors")
    assert ended.code == 0, ended.err
    merged, before = load("m.safetensors"), load("w.safetensors")
    for name, tensor in before.notes.state_dict().items():
        assert torch.equal(merged.notes.state_dict()[name], tensor)
