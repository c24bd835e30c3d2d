"""A run that begins from trained weights: all of them, or a refusal that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.train import start
from memorysam_cli.errors import WeightsError
from memorysam_cli.model.lora import merge_lora
from memorysam_cli.model.weights import Segmenter, build_for_training, own_tensors, save, save_complete, save_merged
from memorysam_cli.recipe import Recipe

from .test_trainer import changed


def network_of(recipe: Recipe, manifest: Manifest, *, drop_class: bool = False) -> Segmenter:
    info = manifest.info
    if drop_class:
        info = info.model_copy(update={"classes": info.classes[:-1], "palette": info.palette[:-1]})
    return build_for_training(recipe, info)


@pytest.fixture
def trained(small: Recipe, rendered: Manifest, tmp_path: Path) -> Path:
    """Weights that are nobody's initial values."""
    network = network_of(small, rendered)
    with torch.no_grad():
        for tensor in own_tensors(network).values():
            tensor.add_(0.5)
    save(network, tmp_path / "trained.safetensors")
    return tmp_path / "trained.safetensors"


def test_every_tensor_of_ours_is_taken(trained: Path, small: Recipe, rendered: Manifest) -> None:
    network, plain = network_of(small, rendered), network_of(small, rendered)
    assert start.load_initial(network, str(trained)) == len(own_tensors(network))
    wanted = own_tensors(plain)
    for name, tensor in own_tensors(network).items():
        torch.testing.assert_close(tensor, wanted[name] + 0.5, rtol=0, atol=0)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "base": ({"train": {"seed": 6}}, r"its base weights are random:5 \(\w+…\), this run's random:6"),
    "rank": ({"model.lora": {"rank": 8}}, r"model\.lora\.rank was 4, is 8"),
    "alpha": ({"model.lora": {"alpha": 9.0}}, r"model\.lora\.alpha was 4, is 9\.0"),
    "targets": ({"model.lora": {"targets": ("q",)}}, r"model\.lora\.targets was"),
    "encoder": ({"model": {"encoder": "frozen"}}, r"model\.encoder was lora, is frozen"),
    "one modality": ({"data": {"modalities": ("img",)}}, r"trained on 2 modalities, this run has 1"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_weights_of_another_run_are_refused_with_the_reason(
    kind: str, trained: Path, small: Recipe, rendered: Manifest
) -> None:
    changes, said = OTHERS[kind]
    recipe = small
    for section, values in changes.items():
        if section == "model.lora":
            recipe = changed(recipe, "model", lora=recipe.model.lora.model_copy(update=values))
        else:
            recipe = changed(recipe, section, **values)
    network = network_of(recipe, rendered)
    before = {name: tensor.clone() for name, tensor in own_tensors(network).items()}
    with pytest.raises(WeightsError, match=said) as fault:
        start.load_initial(network, str(trained))
    assert fault.value.exit_code == 5 and "--init" in str(fault.value) and "begin without" in str(fault.value)
    torch.testing.assert_close(own_tensors(network), before, rtol=0, atol=0)


def test_another_number_of_classes_is_never_filled_up(trained: Path, small: Recipe, rendered: Manifest) -> None:
    with pytest.raises(WeightsError, match="it has 25 classes, this data set 24: a head is not cut or filled up"):
        start.load_initial(network_of(small, rendered, drop_class=True), str(trained))


def test_other_modalities_of_a_like_number_are_taken_and_told(
    trained: Path, small: Recipe, rendered: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    start.load_initial(network_of(changed(small, "data", modalities=("img", "event")), rendered), str(trained))
    assert "was trained on img, depth, goes on with img, event" in capsys.readouterr().err


def test_settings_of_the_same_sensors_that_changed_are_told(
    trained: Path, small: Recipe, rendered: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    start.load_initial(network_of(changed(small, "data", antialias=True), rendered), str(trained))
    told = "was trained on other settings of sensors: 'img' antialias was False, is True, 'depth' antialias was False"
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_complete_file_counts_where_its_base_is_this_run_s(small: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    network = network_of(small, rendered)
    state = dict(network.state_dict())
    save_complete(network.card, state, tmp_path / "complete.safetensors")
    assert start.load_initial(network_of(small, rendered), str(tmp_path / "complete.safetensors"))
    other = network_of(changed(small, "train", seed=6), rendered)
    with pytest.raises(WeightsError, match=r"its base weights are not this run's: \d+ of \d+ tensors differ"):
        start.load_initial(other, str(tmp_path / "complete.safetensors"))


def test_merged_weights_and_missing_ones_are_refused(small: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    network = network_of(small, rendered)
    merge_lora(network.sam.image_encoder.trunk)
    save_merged(network, tmp_path / "merged.safetensors")
    with pytest.raises(WeightsError, match="its LoRA is merged into the base"):
        start.load_initial(network_of(small, rendered), str(tmp_path / "merged.safetensors"))
    with pytest.raises(WeightsError, match="does not exist"):
        start.initial_sha256(changed(small, "model", init=str(tmp_path / "none")))


def test_a_file_that_is_gone_counts_as_the_one_that_a_run_began_with(small: Recipe, tmp_path: Path) -> None:
    recipe = changed(small, "model", init=str(tmp_path / "none"))
    assert start.initial_sha256(recipe, "abc") == "abc"
    assert start.initial_sha256(small, "abc") is None
