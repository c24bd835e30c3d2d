"""Our weights in the layouts that other code reads, and the check that a weights file is what it claims to be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from memorysam_cli.errors import WeightsError
from memorysam_cli.model.lora import adapter_config, adapter_state, scale_of
from memorysam_cli.model.reference import to_reference
from memorysam_cli.model.weights import Segmenter, WeightsCard, load, load_unmerged, read_card
from memorysam_cli.recipe import BACKBONES
from memorysam_cli.registry import ENCODERS
from memorysam_cli.storage import atomic, documents, foreign, tensors
from memorysam_cli.text import shown

WeightsFormat = Literal["reference", "peft", "merged"]
UPSTREAM_TOKENS = 25
ADAPTER_FILE = "adapter_model.safetensors"
TEST_PX = 64
"""Side of the images that weights are checked with."""


@dataclass(frozen=True)
class ExportedWeights:
    """What was written."""

    tensors: int
    sha256: str
    """Of the file; of the adapter's tensors file for ``peft``."""
    notes: tuple[str, ...] = ()


def export(path: Path, out: Path, *, form: WeightsFormat) -> ExportedWeights:
    """Write weights in another layout.

    Args:
        path: a weights file of ours; one that needs its base gets it.
        out: a file whose suffix says the container, or a folder for ``peft``.
        form: ``reference`` is the upstream code's state dict; ``peft`` the LoRA alone; ``merged`` is a state dict in
            plain ``sam2``'s names, LoRA folded in, the decoder with the class tokens.

    Raises:
        WeightsError: the layout cannot hold these weights (says why and what can), or they are refused.
        EnvironmentFault: it cannot be written.
    """
    card = read_card(path)
    if form == "merged":
        state = {name.removeprefix("sam."): tensor for name, tensor in load(path).state_dict().items()}
        return ExportedWeights(len(state), _write(out, state))
    _refuse_without_lora(card, form=form, where=shown(path))
    if form == "reference":
        _refuse_other_networks(card, where=shown(path))
    network = load_unmerged(path)
    if form == "peft":
        return _write_adapter(network, out)
    try:
        state = to_reference(network.state_dict(), scale=_scale(card, where=shown(path)))
    except WeightsError as error:
        raise WeightsError(f"{shown(path)}: {error}") from None
    is_usual = card.tokens == UPSTREAM_TOKENS
    note = f"these weights have {card.tokens} class tokens; upstream's code builds {UPSTREAM_TOKENS}: change it there"
    return ExportedWeights(len(state), _write(out, state), notes=() if is_usual else (note,))


def _refuse_without_lora(card: WeightsCard, *, form: WeightsFormat, where: str) -> None:
    encoder = card.recipe.model.encoder
    if card.kind == "merged" and encoder == "lora":
        raise WeightsError(
            f"{where}: its LoRA is folded in; --format {form} needs the file that it was merged from, "
            "--format merged works"
        )
    if encoder != "lora":
        raise WeightsError(f"{where}: was trained with encoder '{encoder}', without LoRA; use --format merged")


def _refuse_other_networks(card: WeightsCard, *, where: str) -> None:
    """The upstream code builds SAM 2's Hiera and takes the mean of the frames."""
    model = card.recipe.model
    if model.backbone not in BACKBONES:
        raise WeightsError(
            f"{where}: its encoder is '{shown(model.backbone)}'; the upstream layout knows SAM 2's Hiera only; "
            "use --format merged"
        )
    if model.fusion != "mean":
        raise WeightsError(
            f"{where}: its fusion is '{shown(model.fusion)}'; the upstream code knows the mean only; "
            "use --format merged"
        )
    for key, paper in {"modality_embedding": False, "memory_mask": "best"}.items():
        if getattr(model, key) != paper:
            raise WeightsError(
                f"{where}: was trained with model.{key}; the upstream code has no place for it; use --format merged"
            )


def _scale(card: WeightsCard, *, where: str) -> float:
    """What LoRA's output is multiplied with; the upstream code has neither this nor other kinds of LoRA."""
    lora = card.recipe.model.lora
    if lora.dora or set(lora.targets) != {"q", "v"}:
        kind = "DoRA" if lora.dora else f"LoRA on {', '.join(lora.targets)}"
        raise WeightsError(f"{where}: has {kind}; the upstream layout knows LoRA on q and v only; use --format merged")
    return scale_of(lora)


def _write(out: Path, state: dict[str, Tensor]) -> str:
    if out.suffix == ".safetensors":
        return tensors.write(out, state, {"format": "pt"})
    return foreign.write_torch(out, state)


def _write_adapter(network: Segmenter, out: Path) -> ExportedWeights:
    """An adapter folder as PEFT writes it: ``PeftModel.from_pretrained`` loads it onto a split trunk."""
    model = network.card.recipe.model
    published = ENCODERS.get(model.backbone).published
    config = adapter_config(model.lora, network.encoder).to_dict()
    config |= {"inference_mode": True, "base_model_name_or_path": published.repository if published else None}
    state = adapter_state(network.encoder)
    with atomic.new_folder(out) as folder:
        digest = tensors.write(folder / ADAPTER_FILE, state, {"format": "pt"})
        documents.write_json(folder / "adapter_config.json", config)
    return ExportedWeights(len(state), digest)


def verify_weights(path: Path) -> dict[str, Any]:
    """Load weights with all their checks and run them once.

    Returns:
        ``tensors`` (how many the network has), ``base``, ``kind``, ``sha256`` of the file.

    Raises:
        WeightsError: any check fails, or the logits of a small test image are not finite.
    """
    network = load(path)
    frames = [torch.zeros(1, 3, TEST_PX, TEST_PX) for _ in network.card.modalities]
    with torch.inference_mode():
        logits = network.logits(frames)
    if not bool(torch.isfinite(logits).all()):
        raise WeightsError(f"{path}: loads, but gives logits that are not finite; do not use these weights")
    card = network.card
    return {
        "kind": card.kind,
        "tensors": len(network.state_dict()),
        "base": card.base.source,
        "sha256": tensors.sha256(path),
    }
