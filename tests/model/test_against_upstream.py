"""Imported weights against the upstream method run by ``sam2``'s own code, for each released size.

The goldens prove Hiera tiny at 256 pixels. Here SAM2's published configurations, with LoRA as METHOD §2 words it,
stand in for the upstream code at other sizes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from memorysam_cli import recipe as recipes
from memorysam_cli.engine.weights.exchange import import_reference
from memorysam_cli.model import load

from .test_against_sam2 import SHORT, track
from .upstream import Upstream, drawn

MODALITIES = ("img", "depth", "event", "lidar")
CASES = [
    (backbone, size)
    for backbone, sizes in {
        "sam2-hiera-tiny": (128, 256, 512),
        "sam2-hiera-small": (256, 512),
        "sam2-hiera-base-plus": (256, 512),
        "sam2.1-hiera-small": (256,),
    }.items()
    for size in sizes
]


def upstream(backbone: str, size: int) -> tuple[Upstream, dict[str, Tensor]]:
    """The network, and its weights."""
    version, _, name = backbone.partition("-hiera-")
    config = compose(
        config_name=f"configs/{version}/{version}_hiera_{SHORT[name]}.yaml", overrides=[f"++model.image_size={size}"]
    )
    OmegaConf.resolve(config)
    network = Upstream(instantiate(config.model, _recursive_=True), tokens=25, rank=4).eval()
    state = drawn({name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})
    network.load_state_dict(state)
    return network, state


@pytest.fixture(scope="module")
def tiny() -> tuple[Upstream, dict[str, Tensor]]:
    """For reading only."""
    return upstream("sam2-hiera-tiny", 128)


@pytest.mark.slow  # plain runs compare imported weights with the reference's numbers: commands/test_weights_import.py
@pytest.mark.parametrize(("backbone", "size"), CASES)
def test_imported_weights_give_what_sam2_s_own_code_gives(
    backbone: str, size: int, tiny: tuple[Upstream, dict[str, Tensor]], tmp_path: Path
) -> None:
    theirs, state = tiny if (backbone, size) == ("sam2-hiera-tiny", 128) else upstream(backbone, size)
    torch.save(state, tmp_path / "x.pth")
    imported = import_reference(tmp_path / "x.pth", tmp_path / "w.safetensors", recipe="deliver")
    assert imported.card.recipe.model.backbone == backbone and imported.tensors == len(state)
    ours = load(tmp_path / "w.safetensors")
    generator = torch.Generator().manual_seed(8)
    scene = [torch.randn(1, 3, size, size, generator=generator) for _ in MODALITIES]
    encoded: dict[int, Any] = {}
    with torch.no_grad():
        pool = ours.encode(scene)
    for count in range(1, 5):
        with torch.no_grad():
            ((_, output),) = ours.outputs(pool, [range(count)])
            wanted = track(theirs.sam, scene[:count], encoded)
        assert wanted.shape == (1, 25, size // 4, size // 4) and not bool(output.gate_shift.any())
        error = (output.logits - wanted).abs().max() / wanted.abs().max()
        assert error < 1e-5, f"{count} modalities: {error}"


def test_lora_moves_the_result(tiny: tuple[Upstream, dict[str, Tensor]]) -> None:
    """Else the comparison above would prove nothing of it."""
    theirs, state = tiny
    scene = [torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(9))]
    with torch.no_grad():
        found = track(theirs.sam, scene)
        for name, parameter in theirs.named_parameters():
            if "linear_b_" in name:
                parameter.zero_()
        without = track(theirs.sam, scene)
        theirs.load_state_dict(state)
    assert (found - without).abs().max() / found.abs().max() > 1e-2
    assert recipes.load("deliver").data.modalities == MODALITIES
