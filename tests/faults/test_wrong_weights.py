"""Weights that are whole and valid, but not those that were requested: refused by name, and nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.errors import WeightsError
from memorysam_cli.model import weights
from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.base_weights import load_base
from memorysam_cli.model.network import MemorySAM
from memorysam_cli.storage import tensors
from tests.commands.trained import save_weights
from tests.engine.stand_ins import write_data
from tests.faults.conftest import Figures
from tests.faults.naive import loading

State = dict[str, Tensor]
MLP = "image_encoder.trunk.blocks.0.mlp.layers.0.weight"


def renamed(rename: Callable[[str], str]) -> Callable[[State], State]:
    return lambda state: {rename(name): tensor for name, tensor in state.items()}


def only(keep: Callable[[str], bool]) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if keep(name)}


def plus(**more: Tensor) -> Callable[[State], State]:
    return lambda state: state | more


BASES: dict[str, tuple[Callable[[State], State], str]] = {
    "a prefix": (renamed(lambda name: f"module.{name}"), "its names begin with 'module.'"),
    "our own prefix": (renamed(lambda name: f"sam.{name}"), "its names begin with 'sam.'"),
    "another prefix": (renamed(lambda name: f"net.{name}"), "its names begin with 'net.'"),
    "names in capitals": (renamed(str.upper), "it does not look like any of SAM 2's"),
    "transposed": (lambda s: s | {MLP: s[MLP].T}, "is (32, 128), not (128, 32)"),
    "flattened": (lambda s: s | {MLP: s[MLP].flatten()}, "is (4096,), not (128, 32)"),
    "one tensor is missing": (only(lambda name: name != "no_mem_embed"), "1 missing (no_mem_embed)"),
    "one tensor is extra": (plus(surprise=torch.zeros(1)), "1 unknown (surprise)"),
    "three tensors": (only(lambda name: name.startswith("no_")), "missing"),
    "no encoder": (only(lambda name: not name.startswith("image_encoder.")), "missing (image_encoder."),
    "the decoder's fresh parts alone": (only(lambda name: "mask_tokens" in name), "0 of 287"),
    "another variant": (lambda _: published("sam2-hiera-tiny"), "this looks like sam2-hiera-tiny"),
    "whole numbers": (lambda s: s | {MLP: s[MLP].long()}, "torch.int64, not torch.float32"),
    "infinity": (lambda s: s | {MLP: s[MLP] / 0}, "NaN or infinity in 1 tensor"),
    "with LoRA": (plus(**{"image_encoder.x.linear_a_q.weight": torch.ones(4, 4)}), "memorysam weights import"),
    "something else": (lambda _: {"fc.weight": torch.ones(3)}, "it does not look like any of SAM 2's"),
}


def published(backbone: str = "nano") -> State:
    """What a file for a backbone holds."""
    with torch.random.fork_rng():
        torch.manual_seed(9)
        return dict(build_sam2(backbone, tokens=3).state_dict())


def write(path: Path, state: State, metadata: dict[str, str]) -> None:
    """Write what is wrong as it were right; what is not finite gets past our own writer."""
    if all(bool(tensor.isfinite().all()) for tensor in state.values()):
        tensors.write(path, state, metadata)
    else:
        safetensors.torch.save_file(state, path, metadata)


@pytest.mark.parametrize("name", BASES)
def test_a_wrong_base_is_refused_and_nothing_of_it_is_loaded(name: str, tmp_path: Path, figures: Figures) -> None:
    change, words = BASES[name]
    write(tmp_path / "base.safetensors", change(published()), {"format": "pt"})
    network = MemorySAM(build_sam2("nano", tokens=4), classes=4)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_base(network, "nano", source=str(tmp_path / "base.safetensors"), seed=0)
    figures("W", wrong=1, accepted=0)
    assert caught.value.exit_code == 5 and words in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_the_naive_loader_takes_nearly_all_of_them(figures: Figures) -> None:
    taken = 0
    for change, _ in BASES.values():
        network = build_sam2("nano", tokens=3)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        loading.fill(network, change(published()))
        names = [key for key in before if key.startswith("image_encoder.")]
        taken += any(torch.equal(network.state_dict()[key], before[key]) for key in names)
    figures("W", naive_accepted=taken)
    assert taken > 10, "this proves nothing: everything was loaded after all"


# --- weights of ours, with a digest and a seal that agree ---

Trained = Callable[[State, dict[str, Any]], object]
NEXT = "sam.memory_attention.layers.0.linear1.weight"
LORA = "sam.image_encoder.trunk.blocks.0.attn.qkv.q.lora_A.default.weight"


def other(*path: str, to: object) -> Trained:
    """A card that says something else."""

    def change(_: State, card: dict[str, Any]) -> None:
        place = card
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return change


def more_classes(_: State, card: dict[str, Any]) -> None:
    card["dataset"]["classes"].append("moon")
    card["dataset"]["palette"].append([1, 2, 3])
    card["tokens"] += 1


TRAINED: dict[str, tuple[Trained, str]] = {
    "one tensor is missing": (lambda s, _: s.pop(NEXT), f"1 missing ({NEXT})"),
    "one tensor is extra": (lambda s, _: s.update(x=torch.zeros(1)), "1 unknown (x)"),
    "transposed": (lambda s, _: s.update({NEXT: s[NEXT].T}), "1 of another shape"),
    "whole numbers": (lambda s, _: s.update({NEXT: s[NEXT].short()}), "torch.int16, not torch.float32"),
    "NaN": (lambda s, _: s.update({NEXT: s[NEXT] * float("nan")}), "NaN or infinity in 1 tensor"),
    "LoRA of another rank": (lambda s, _: s.update({LORA: torch.ones(7, 32)}), "is (7, 32), not (4, 32)"),
    "no LoRA": (lambda s, _: [s.pop(name) for name in list(s) if ".lora_" in name], "missing (sam.image_encoder"),
    "LoRA on another base": (other("base", "sha256", to="0" * 64), "was trained on base weights with SHA-256 000000"),
    "a base that is not there": (other("base", "source", to="file:/nowhere.pt"), "needs its base weights /nowhere.pt"),
    "another seed for its base": (other("recipe", "train", "seed", to=12), "was trained on base weights"),
    "another rank in the card": (other("recipe", "model", "lora", "rank", to=8), "of another shape"),
    "no LoRA in the card": (other("recipe", "model", "encoder", to="frozen"), "unknown (sam.image_encoder"),
    "another backbone in the card": (
        other("recipe", "model", "backbone", to="sam2-hiera-tiny"),
        "for the backbone nano only",
    ),
    "more classes": (more_classes, "was trained on base weights"),  # its random base is drawn after them
    "fewer tokens than classes": (other("tokens", to=2), "2 tokens are too few for 4 classes"),
    "more tokens": (other("tokens", to=9), "was trained on base weights"),
    "complete by its own word": (other("kind", to="complete"), "missing"),
    "merged by its own word": (other("kind", to="merged"), "missing"),
    "of a later version": (other("format_version", to=2), "its card is not readable by this version"),
}


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return write_data(tmp_path_factory.mktemp("data")).info


@pytest.fixture(scope="module")
def trained(info: DatasetInfo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "w.safetensors", info)


@pytest.mark.parametrize("name", TRAINED)
def test_wrong_weights_of_ours_are_refused(name: str, trained: Path, tmp_path: Path, figures: Figures) -> None:
    change, words = TRAINED[name]
    state, metadata = tensors.read(trained)
    card = json.loads(metadata[weights.CARD])
    change(state, card)
    card["tensors_sha256"] = tensors.digest(state)
    text = json.dumps(card)
    write(tmp_path / "w.safetensors", state, {weights.CARD: text, weights.SEAL: weights.seal_of(text)})
    with pytest.raises(WeightsError) as caught:
        weights.load(tmp_path / "w.safetensors")
    figures("W", wrong=1, accepted=0)
    assert caught.value.exit_code == 5 and words in str(caught.value) and "\n" not in str(caught.value)


def test_the_tensors_of_one_file_under_the_card_of_another_are_refused(
    trained: Path, tmp_path: Path, figures: Figures
) -> None:
    state, metadata = tensors.read(trained)
    first, second = "sam.memory_attention.layers.0.norm1.bias", "sam.memory_attention.layers.0.norm2.bias"
    state[first], state[second] = state[second], state[first] + 1
    tensors.write(tmp_path / "w.safetensors", state, metadata)
    with pytest.raises(WeightsError, match="changed after writing"):
        weights.load(tmp_path / "w.safetensors")
    figures("W", wrong=1, accepted=0)
    assert weights.load(trained).card.kind == "trained", "the file that all of them were made of is good"
