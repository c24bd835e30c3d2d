"""Weights on disk: what is saved is what is loaded, and everything else is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.errors import WeightsError
from memorysam_cli.model import CARD, SEAL, Metric, read_card, seal_of
from memorysam_cli.model.fusion import Mean
from memorysam_cli.model.lora import merge_lora
from memorysam_cli.model.weights import (
    Segmenter,
    build_for_training,
    load,
    load_unmerged,
    own_tensors,
    save,
    save_merged,
)
from memorysam_cli.recipe import Recipe
from memorysam_cli.storage import tensors
from tests import forked


@pytest.fixture
def frames() -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(2, 3, 64, 64, generator=generator) for _ in range(2)]


@pytest.fixture(scope="module")
def network(recipe: Recipe, dataset: DatasetInfo) -> Segmenter:
    """A network whose trained tensors have moved away from their start; for reading only."""
    network = build_for_training(recipe, dataset)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return network.eval()


@pytest.fixture(scope="module")
def saved(network: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "w.safetensors"
    save(network, path)
    return path


@pytest.fixture
def path(saved: Path, tmp_path: Path) -> Path:
    """A file of one's own of that network."""
    return Path(shutil.copy(saved, tmp_path))


def test_save_and_load_give_the_same_logits(network: Segmenter, frames: list[Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save(network, path, metric=Metric(miou=12.5, protocol="resized", split="val", epoch=1, step=7))
    loaded = load(path)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert loaded.card.metric is not None and loaded.card.metric.miou == 12.5
    assert [modality.name for modality in loaded.card.modalities] == ["img", "depth"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.logits(frames), network.logits(frames), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"modality_embedding": True, "memory_mask": "classes"},
        {"encoder": "full"},
    ],
)
def test_every_value_of_a_loaded_network_comes_from_files(
    change: dict[str, object], recipe: Recipe, dataset: DatasetInfo, tmp_path: Path
) -> None:
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=change | {"base_weights": "published"})})
    network = build_for_training(recipe, dataset).eval()
    trained, merged = tmp_path / "w.safetensors", tmp_path / "merged.safetensors"
    save(network, trained)
    try:
        torch.use_deterministic_algorithms(True)  # new tensors hold NaN until they are filled
        assert torch.empty(3).isnan().all()
        save_merged(load(trained), merged)
        for loaded in (load(trained), load_unmerged(trained), load(merged)):
            assert not [name for name, tensor in loaded.state_dict().items() if tensor.isnan().any()]
    finally:
        torch.use_deterministic_algorithms(False)
    found = load_unmerged(trained).state_dict()
    assert found.keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in network.state_dict().items())


def test_a_file_holds_what_is_trained_or_fresh_and_nothing_of_the_base(network: Segmenter, path: Path) -> None:
    stored = tensors.read(path)[0]
    assert stored.keys() == own_tensors(network).keys()
    assert not [n for n in stored if n.startswith("sam.image_encoder.") and ".lora_" not in n]
    assert [n for n in stored if "iou_prediction_head" in n], "frozen, but not in the base"
    assert [n for n in stored if n.startswith("sam.memory_attention.")]


def test_merged_weights_need_no_base_and_give_the_same_logits(path: Path, frames: list[Tensor], tmp_path: Path) -> None:
    merged, loaded = tmp_path / "full.safetensors", load(path)
    save_merged(loaded, merged)
    assert read_card(merged).kind == "merged"
    stored = tensors.read(merged)[0]
    assert "sam.image_encoder.trunk.blocks.0.attn.qkv.weight" in stored
    with torch.no_grad():
        torch.testing.assert_close(load(merged).logits(frames), loaded.logits(frames), rtol=0, atol=0)


def test_image_size_can_be_overridden(path: Path) -> None:
    assert load(path).image_size == 64
    assert load(path, image_size=96).image_size == 96
    with pytest.raises(WeightsError, match="multiple of 32"):
        load(path, image_size=100)


def test_the_same_seed_gives_the_same_network_and_another_seed_another(recipe: Recipe, dataset: DatasetInfo) -> None:
    first, second = (build_for_training(recipe, dataset).state_dict() for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    reseeded = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 4})})
    other = build_for_training(reseeded, dataset).state_dict()
    assert not torch.equal(
        first["sam.sam_mask_decoder.mask_tokens.weight"], other["sam.sam_mask_decoder.mask_tokens.weight"]
    )


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> None:
    """Change a file as its own writer would have written it, with a digest that fits."""
    state, metadata = tensors.read(path)
    change(state, metadata)
    if CARD in metadata:
        other_card(metadata, tensors_sha256=tensors.digest(state))
        metadata[SEAL] = seal_of(metadata[CARD])
    tensors.write(path, state, metadata)


def test_a_single_flipped_bit_is_seen(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="changed after writing"):
        load(path)


def test_a_single_changed_letter_of_the_card_is_seen(path: Path) -> None:
    content = path.read_bytes()
    assert content.count(b"0.485") == 1
    path.write_bytes(content.replace(b"0.485", b"0.486"))
    for read in (load, read_card):
        with pytest.raises(WeightsError, match="its card was changed after writing"):
            read(path)
    state, metadata = tensors.read(path)
    del metadata[SEAL]  # as in files of before it
    tensors.write(path, state, metadata)
    assert read_card(path).modalities[0].mean == (0.486, 0.456, 0.406)


def other_card(metadata: dict[str, str], **changes: object) -> None:
    metadata[CARD] = json.dumps(json.loads(metadata[CARD]) | changes)


def another_base(metadata: dict[str, str]) -> None:
    card = json.loads(metadata[CARD])
    other_card(metadata, base=card["base"] | {"sha256": "0" * 64})


MUTATIONS: dict[str, tuple[Callable[[dict[str, Tensor], dict[str, str]], object], str]] = {
    "a tensor is missing": (lambda state, _: state.pop("sam.no_mem_embed"), "1 missing (sam.no_mem_embed)"),
    "a tensor is extra": (lambda state, _: state.update({"x": torch.zeros(1)}), "1 unknown (x)"),
    "a tensor has another shape": (
        lambda state, _: state.update({"sam.no_mem_embed": torch.zeros(1, 1, 8)}),
        "1 of another shape (sam.no_mem_embed is (1, 1, 8), not ",
    ),
    "there is no card": (lambda _, metadata: metadata.pop(CARD), "not a memorysam weights file"),
    "the card is of a later format": (lambda _, m: other_card(m, format_version=99), "format_version"),
    "the card has an unknown key": (lambda _, m: other_card(m, surprise=1), "surprise"),
    "the base is another one": (lambda _, metadata: another_base(metadata), "was trained on base weights"),
    "there are fewer tokens than classes": (lambda _, m: other_card(m, tokens=2), "too few for 3 classes"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_weights_that_are_not_what_they_say_are_refused(mutation: str, path: Path) -> None:
    change, said = MUTATIONS[mutation]
    rewrite(path, change)
    with pytest.raises(WeightsError) as fault:
        load(path)
    assert said in str(fault.value) and "\n" not in str(fault.value)


def test_a_base_file_that_is_gone_is_named(recipe: Recipe, dataset: DatasetInfo, tmp_path: Path) -> None:
    base = tmp_path / "base.pt"
    plain = recipe.model_copy(update={"model": recipe.model.model_copy(update={"encoder": "frozen"})})
    torch.save({"model": build_for_training(plain, dataset).sam.state_dict()}, base)
    on_file = plain.model_copy(update={"model": plain.model.model_copy(update={"base_weights": str(base)})})
    path = tmp_path / "w.safetensors"
    save(build_for_training(on_file, dataset), path)
    assert load(path).card.base.source == f"file:{base.resolve()}"
    base.unlink()
    with pytest.raises(WeightsError, match="needs its base weights"):
        load(path)


def test_loading_for_use_gives_what_peft_s_merge_gives_bit_for_bit(path: Path) -> None:
    apart = load_unmerged(path)
    merge_lora(apart.encoder)
    torch.testing.assert_close(load(path).state_dict(), apart.state_dict(), rtol=0, atol=0)


def test_loading_for_use_waits_for_no_peft(path: Path) -> None:
    """It, and what it imports, take seconds and a quarter of a gigabyte."""
    script = (
        "import sys; from memorysam_cli.model import load; load(sys.argv[1]); "
        "print(sorted({'peft', 'transformers', 'torch._dynamo', 'sympy'} & set(sys.modules)))"
    )
    ended = forked.python(script, str(path), environment=os.environ)
    assert ended.stdout == "[]\n", ended.stderr


def test_a_card_of_before_a_key_of_the_model_means_the_paper_s_network(path: Path) -> None:
    state, metadata = tensors.read(path)
    card = json.loads(metadata[CARD])
    assert "extensions" not in card["recipe"]
    later = {"fusion": "mean", "order": "recipe", "modality_embedding": False, "memory_mask": "best"}
    assert {key: card["recipe"]["model"].pop(key) for key in later} == later
    text = json.dumps(card)
    tensors.write(path, state, {CARD: text, SEAL: seal_of(text)})
    found = load(path)
    assert (
        type(found.fusion) is Mean
        and found.card.recipe.model.order == "recipe"
        and not dict(found.notes.named_parameters())
    )
