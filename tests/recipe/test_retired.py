"""A key that had one legal value is gone; what was stored with it still loads, and no other value is let through."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

from memorysam_cli import recipe as recipes
from memorysam_cli.data.datasets.deliver import DELIVER
from memorysam_cli.encoders.hiera import NANO_1_FILE
from memorysam_cli.engine.train import checkpoints
from memorysam_cli.errors import UsageError, WeightsError
from memorysam_cli.model import NANO_1_SHA256, read_card, weights
from memorysam_cli.model.weights import build_for_training
from memorysam_cli.storage import tensors
from tests.commands.trained import save_weights


def stored(value: str) -> str:
    """A recipe as a run of before has it in its folder."""
    return recipes.load("demo").to_yaml().replace("  blur: 0.2\n", f"  blur: 0.2\n  aolp_flip: {value}\n")


def test_a_stored_recipe_is_the_same_without_the_key(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(stored("reference"))
    assert "aolp_flip" in path.read_text()
    assert recipes.load(path) == recipes.load("demo")
    assert recipes.load(path, is_stored=True) == recipes.load("demo")
    assert "aolp_flip" not in recipes.load(path).to_yaml()


@pytest.mark.parametrize("value", ["physical", "null", "1"])
def test_any_other_value_is_an_unknown_key(value: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(stored(value))
    with pytest.raises(UsageError, match="augment: unknown key 'aolp_flip'"):
        recipes.load(path)


def test_weights_of_before_load(tmp_path: Path) -> None:
    path = save_weights(tmp_path / "best.safetensors", DELIVER.published_info)
    state, metadata = tensors.read(path)
    card = json.loads(metadata[weights.CARD])
    card["recipe"]["augment"]["aolp_flip"] = "reference"
    text = json.dumps(card)
    tensors.write(path, state, {weights.CARD: text, weights.SEAL: weights.seal_of(text)})
    found = read_card(path)
    assert found.recipe.augment.flip == 0.5 and "aolp_flip" not in found.model_dump_json()


def test_weights_on_the_first_nano_load_as_nano_1_though_they_call_it_nano(tmp_path: Path) -> None:
    """24 channels instead of 32; the card of before says nano, and which base weights they were."""
    path = tmp_path / "best.safetensors"
    recipe = recipes.load("demo", ["model.backbone=nano-1"])
    network = build_for_training(recipe, DELIVER.published_info)
    assert network.card.base.sha256 == NANO_1_SHA256 == hashlib.sha256(NANO_1_FILE.read_bytes()).hexdigest()
    weights.save(network, path)
    state, metadata = tensors.read(path)
    text = metadata[weights.CARD].replace('"nano-1"', '"nano"')
    assert text.count('"nano"') == 2
    tensors.write(path, state, {weights.CARD: text, weights.SEAL: weights.seal_of(text)})
    found = weights.load(path)
    assert found.card.recipe == recipe and found.sam.no_mem_embed.shape[-1] == 64
    for name, tensor in network.state_dict().items():
        if name in found.state_dict():  # LoRA's own are folded in
            torch.testing.assert_close(found.state_dict()[name], tensor, rtol=0, atol=0)
    text = text.replace(NANO_1_SHA256, "0" * 64)
    tensors.write(path, state, {weights.CARD: text, weights.SEAL: weights.seal_of(text)})
    with pytest.raises(WeightsError):
        weights.load(path)


def test_a_checkpoint_of_before_is_of_the_same_run() -> None:
    now = checkpoints.identity_of(recipes.load("demo"), dataset="a", base="b", initial=None)
    then = now | {"augment.aolp_flip": "reference"}
    checkpoints.refuse_other(then, now, worlds=(1, 1), where="step-00000001")
    with pytest.raises(UsageError, match=r"augment\.aolp_flip was physical, is None"):
        checkpoints.refuse_other(then | {"augment.aolp_flip": "physical"}, now, worlds=(1, 1), where="step-00000001")


@pytest.mark.parametrize("key", checkpoints.DEFAULTS_BEFORE)
def test_a_checkpoint_from_before_a_key_is_of_the_same_run_where_the_key_changes_nothing(key: str) -> None:
    now = checkpoints.identity_of(recipes.load("demo", ["model.order=recipe"]), dataset="a", base="b", initial=None)
    then = {name: value for name, value in now.items() if name != key}
    checkpoints.refuse_other(then, now, worlds=(1, 1), where="step-00000001")
    with pytest.raises(UsageError, match=re.escape(f"{key} was {now[key]}, is another")):
        checkpoints.refuse_other(then, now | {key: "another"}, worlds=(1, 1), where="step-00000001")
