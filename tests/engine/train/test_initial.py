"""A run that begins from trained weights: all of them, or a refusal that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.train import initial
from memorysam_cli.errors import WeightsError
from memorysam_cli.model.lora import merge_lora
from memorysam_cli.model.weights import (
    Segmenter,
    build_for_training,
    own_tensors,
    read,
    save,
    save_complete,
    save_merged,
)
from memorysam_cli.recipe import Recipe

from .test_trainer import changed


def network_of(recipe: Recipe, manifest: Manifest) -> Segmenter:
    return build_for_training(recipe, manifest.info)


def moved(recipe: Recipe, manifest: Manifest, path: Path) -> Path:
    """Weights that are nobody's initial values."""
    network = network_of(recipe, manifest)
    with torch.no_grad():
        for tensor in own_tensors(network).values():
            tensor.add_(0.5)
    save(network, path)
    return path


@pytest.fixture(scope="module")
def trained(small: Recipe, rendered: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to begin from, for reading only."""
    return moved(small, rendered, tmp_path_factory.mktemp("trained") / "trained.safetensors")


def test_every_tensor_of_ours_is_taken(trained: Path, small: Recipe, rendered: Manifest) -> None:
    network, plain = network_of(small, rendered), network_of(small, rendered)
    assert initial.load_initial(network, str(trained)) == initial.Initial(len(own_tensors(network)))
    wanted = own_tensors(plain)
    for name, tensor in own_tensors(network).items():
        torch.testing.assert_close(tensor, wanted[name] + 0.5, rtol=0, atol=0)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "base": ({"train": {"seed": 6}}, r"its base weights are random:5 \(\w+…\), this run's random:6"),
    "rank": ({"model.lora": {"rank": 8}}, r"model\.lora\.rank was 4, is 8"),
    "alpha": ({"model.lora": {"alpha": 9.0}}, r"model\.lora\.alpha was 4, is 9\.0"),
    "targets": ({"model.lora": {"targets": ("q",)}}, r"model\.lora\.targets was"),
    "encoder": ({"model": {"encoder": "frozen"}}, r"model\.encoder was lora, is frozen"),
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
        initial.load_initial(network, str(trained))
    assert fault.value.exit_code == 5 and "--init" in str(fault.value) and "begin without" in str(fault.value)
    torch.testing.assert_close(own_tensors(network), before, rtol=0, atol=0)


HEAD = "sam.sam_mask_decoder."


def test_classes_keep_the_head_of_their_name_and_others_begin_fresh(
    small: Recipe, rendered: Manifest, tmp_path: Path
) -> None:
    """A data set of three classes, two of which the weights know, in another order; token 0 is not a class's.

    On nano's own base: a random one is drawn anew for another number of classes.
    """
    small = changed(small, "model", base_weights="published")
    trained = moved(small, rendered, tmp_path / "published.safetensors")
    names = (rendered.info.classes[7].upper(), "Unicorn", rendered.info.classes[2])
    info = rendered.info.model_copy(update={"classes": names, "palette": rendered.info.palette[:3]})
    network, plain = build_for_training(small, info), own_tensors(build_for_training(small, info))
    found = initial.load_initial(network, str(trained))
    state, own = read(trained)[0], own_tensors(network)
    for row, there in {0: 0, 1: 8, 3: 3}.items():
        tokens = f"{HEAD}mask_tokens.weight"
        torch.testing.assert_close(own[tokens][row], state[tokens][there], rtol=0, atol=0)
        head = [f"{HEAD}output_hypernetworks_mlps.{number}.layers.0.weight" for number in (row, there)]
        torch.testing.assert_close(own[head[0]], state[head[1]], rtol=0, atol=0)
        score = f"{HEAD}iou_prediction_head.layers.2.weight"
        torch.testing.assert_close(own[score][row], state[score][there], rtol=0, atol=0)
    fresh = f"{HEAD}output_hypernetworks_mlps.2.layers.0.weight"
    for name, rows in ((fresh, slice(None)), (f"{HEAD}mask_tokens.weight", 2)):
        torch.testing.assert_close(own[name][rows], plain[name][rows], rtol=0, atol=0)
    shared = [name for name in own if "hypernetworks" not in name and own[name].shape == state[name].shape]
    for name in shared:
        torch.testing.assert_close(own[name], state[name], rtol=0, atol=0)
    assert found.fresh == sum(name.startswith(f"{HEAD}output_hypernetworks_mlps.2.") for name in own)
    assert found.taken + found.fresh == len(own) and len(shared) > 50
    kept, new, lost = found.notes
    assert kept == f"--init {trained}: 2 classes keep the head of that name: {names[0]}, {names[2]}"
    assert new == f"--init {trained}: 1 class begins fresh: Unicorn"
    assert lost.startswith(f"--init {trained}: 23 classes are not here: ")


def test_the_same_classes_in_another_order_keep_their_heads(trained: Path, small: Recipe, rendered: Manifest) -> None:
    turned = rendered.info.model_copy(update={"classes": rendered.info.classes[::-1]})
    network = build_for_training(small, turned)
    found = initial.load_initial(network, str(trained))
    name = f"{HEAD}mask_tokens.weight"
    wanted, own = read(trained)[0][name], own_tensors(network)[name]
    torch.testing.assert_close(own, torch.cat([wanted[:1], wanted[1:].flip(0)]), rtol=0, atol=0)
    assert found.fresh == 0 and len(found.notes) == 1


def test_one_sensor_more_or_less(trained: Path, small: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    """One alone has no memory to give: that begins as in the base. Of several, it leaves the memory out."""
    alone = changed(small, "data", modalities=("img",))
    network, state = network_of(alone, rendered), read(trained)[0]
    found = initial.load_initial(network, str(trained))
    for name, tensor in own_tensors(network).items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
    told = " ".join(found.notes)
    assert found.fresh == 0 and "was trained on img, depth, continues with img" in told
    assert "tensors are not used here: maskmem_tpos_enc, memory_attention, memory_encoder, no_obj_ptr" in told
    save(network, tmp_path / "alone.safetensors")
    several, plain = network_of(small, rendered), own_tensors(network_of(small, rendered))
    found = initial.load_initial(several, str(tmp_path / "alone.safetensors"))
    memory = plain.keys() - own_tensors(network).keys()
    for name, tensor in own_tensors(several).items():
        torch.testing.assert_close(tensor, plain[name] if name in memory else state[name], rtol=0, atol=0)
    assert found.fresh == len(memory) > 10
    assert f"{found.fresh} tensors start as in the base, or fresh: maskmem_tpos_enc, memory_" in " ".join(found.notes)


def test_other_modalities_of_a_like_number_are_taken_and_told(trained: Path, small: Recipe, rendered: Manifest) -> None:
    found = initial.load_initial(
        network_of(changed(small, "data", modalities=("img", "event")), rendered), str(trained)
    )
    assert found.notes == (f"--init {trained}: was trained on img, depth, continues with img, event",)


def test_settings_of_the_same_sensors_that_changed_are_told(trained: Path, small: Recipe, rendered: Manifest) -> None:
    (told,) = initial.load_initial(network_of(changed(small, "data", antialias=True), rendered), str(trained)).notes
    assert "was trained on other settings of sensors: 'img' antialias was False, is True, 'depth' antialias was" in told


def test_a_complete_file_counts_where_its_base_is_this_run_s(small: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    network = network_of(small, rendered)
    state = dict(network.state_dict())
    save_complete(network.card, state, tmp_path / "complete.safetensors")
    assert initial.load_initial(network_of(small, rendered), str(tmp_path / "complete.safetensors")).taken
    alone = network_of(changed(small, "data", modalities=("img",)), rendered)  # has no memory that could be another
    for name, tensor in state.items():
        if name.startswith("sam.memory_attention."):
            tensor.add_(1)
    save_complete(network.card, state, tmp_path / "memory.safetensors")
    assert initial.load_initial(alone, str(tmp_path / "memory.safetensors")).taken
    other = network_of(changed(small, "train", seed=6), rendered)
    with pytest.raises(WeightsError, match=r"its base weights are not this run's: \d+ of \d+ tensors differ"):
        initial.load_initial(other, str(tmp_path / "complete.safetensors"))


def test_merged_weights_and_missing_ones_are_refused(small: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    network = network_of(small, rendered)
    merge_lora(network.sam.image_encoder.trunk)
    save_merged(network, tmp_path / "merged.safetensors")
    with pytest.raises(WeightsError, match="its LoRA is merged into the base"):
        initial.load_initial(network_of(small, rendered), str(tmp_path / "merged.safetensors"))
    with pytest.raises(WeightsError, match="does not exist"):
        initial.initial_sha256(changed(small, "model", init=str(tmp_path / "none")))


def test_a_file_that_is_gone_counts_as_the_one_that_a_run_began_with(small: Recipe, tmp_path: Path) -> None:
    recipe = changed(small, "model", init=str(tmp_path / "none"))
    assert initial.initial_sha256(recipe, "abc") == "abc"
    assert initial.initial_sha256(small, "abc") is None
