"""Our pipeline against ``sam2``'s own ``track_step`` on SAM2's own published configurations, with random weights."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch
from hydra import compose
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.network import MemorySAM
from memorysam_cli.recipe import BACKBONES

SHORT = {"tiny": "t", "small": "s", "base-plus": "b+", "large": "l"}
ALWAYS = ("sam2.1-hiera-tiny", 128)
"""The others walk the same code; sam2-hiera-tiny is also compared by test_parity and test_against_upstream."""
VARIANTS = [ALWAYS, *(pytest.param(name, 256, marks=pytest.mark.slow) for name in BACKBONES if name != "nano")]


def published_sam2(backbone: str, size: int) -> SAM2Base:
    """The network of SAM2's own configuration file, for pictures of so many pixels on each side."""
    version, _, name = backbone.partition("-hiera-")
    config = compose(
        config_name=f"configs/{version}/{version}_hiera_{SHORT[name]}.yaml", overrides=[f"++model.image_size={size}"]
    )
    OmegaConf.resolve(config)
    network = instantiate(config.model, _recursive_=True)
    assert isinstance(network, SAM2Base)
    return network.eval()


def random_state(network: torch.nn.Module) -> dict[str, Tensor]:
    """Values drawn from names, of a scale that keeps activations tame."""
    state = {}
    for name, tensor in network.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        scale = 0.7 / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 0.02
        state[name] = drawn * scale + float(tensor.ndim == 1 and name.endswith(("weight", "gamma")))
    return state


@torch.no_grad()
def track(sam: SAM2Base, frames: list[Tensor], encoded: dict[int, Any] | None = None) -> Tensor:
    """SAM2's own way through the frames, each stored as a conditioning frame; the mean of all mask logits.

    Args:
        encoded: keeps what the encoder makes of each of these frames, for a further call with the same encoder.
    """
    heard: list[Tensor] = []
    encoded = {} if encoded is None else encoded
    heads = sam._forward_sam_heads

    def listen(*args: Any, **kwargs: Any) -> Any:
        result = heads(*args, **kwargs)
        heard.append(result[0])
        return result

    sam._forward_sam_heads = listen
    try:
        outputs: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        for index, frame in enumerate(frames):
            if id(frame) not in encoded:
                encoded[id(frame)] = sam.forward_image(frame)
            _, features, positions, sizes = sam._prepare_backbone_features(encoded[id(frame)])
            outputs["cond_frame_outputs"][index] = sam.track_step(
                frame_idx=index, is_init_cond_frame=index == 0, current_vision_feats=features,
                current_vision_pos_embeds=positions, feat_sizes=sizes, point_inputs=None, mask_inputs=None,
                output_dict=outputs, num_frames=len(frames),
            )  # fmt: skip
    finally:
        del sam._forward_sam_heads
    return torch.stack(heard).mean(0)


@pytest.mark.parametrize(("backbone", "size"), VARIANTS)
def test_equals_track_step_for_one_to_four_frames_with_open_and_closed_gates(backbone: str, size: int) -> None:
    theirs = published_sam2(backbone, size)
    ours = MemorySAM(build_sam2(backbone, tokens=3), classes=3).eval()
    state = random_state(theirs)
    generator = torch.Generator().manual_seed(5)
    scene = [torch.randn(1, 3, size, size, generator=generator) for _ in range(4)]
    encoded: dict[int, Any] = {}  # the gate comes after the encoder
    ours.sam.load_state_dict(state)  # the same names and shapes, nothing missing and nothing extra
    with torch.no_grad():
        pool = ours.encode(scene)
    for is_open in (True, False):
        state["sam_mask_decoder.pred_obj_score_head.layers.2.bias"].fill_(9.0 if is_open else -9.0)
        theirs.load_state_dict(state)
        ours.sam.load_state_dict(state)
        for count in range(1, 5):
            with torch.no_grad():
                ((_, output),) = ours.outputs(pool, [range(count)])
            wanted = track(theirs, scene[:count], encoded)
            found = output.logits + output.gate_shift
            assert bool((output.gate_shift == 0).all()) == is_open
            error = (found - wanted).abs().max() / wanted.abs().max()
            assert error < 1e-5, f"{count} frames, gate {'open' if is_open else 'closed'}"


def test_without_the_object_gate_every_score_counts_as_positive() -> None:
    ours = MemorySAM(build_sam2("sam2.1-hiera-tiny", tokens=3), classes=3).eval()
    state = random_state(ours.sam)
    generator = torch.Generator().manual_seed(7)
    scene = [torch.randn(1, 3, 128, 128, generator=generator) for _ in range(3)]
    ours.sam.load_state_dict(state)
    with torch.no_grad():
        pool = ours.encode(scene)
    outputs = []
    for gate, bias in ((True, 99.0), (False, -99.0), (True, -99.0)):
        state["sam_mask_decoder.pred_obj_score_head.layers.2.bias"].fill_(bias)
        ours.sam.load_state_dict(state)
        ours.object_gate = gate
        with torch.no_grad():
            outputs.extend(output for _, output in ours.outputs(pool, [range(3)]))
    torch.testing.assert_close(tuple(outputs[0]), tuple(outputs[1]), rtol=0, atol=0)
    assert float(outputs[2].gate_shift) == -1024


def test_a_half_closed_gate_reaches_pointer_and_spatial_embedding() -> None:
    """Two samples, one gated: memories of gated frames must differ as SAM 2.1 wants it."""
    theirs = published_sam2(*ALWAYS)
    ours = MemorySAM(build_sam2("sam2.1-hiera-tiny", tokens=3), classes=3).eval()
    state = random_state(theirs)
    theirs.load_state_dict(state)
    generator = torch.Generator().manual_seed(6)
    scene = [torch.randn(2, 3, 128, 128, generator=generator) for _ in range(3)]
    scores, encoded = [], {}
    hook = theirs.sam_mask_decoder.pred_obj_score_head.register_forward_hook(lambda *call: scores.append(call[2]))
    track(theirs, scene, encoded)
    hook.remove()
    # Shift the score so that the first frame opens for one sample and stays shut for the other.
    state["sam_mask_decoder.pred_obj_score_head.layers.2.bias"] -= scores[0].mean()
    theirs.load_state_dict(state)
    ours.sam.load_state_dict(state)
    with torch.no_grad():
        output = ours(scene)
    shares = output.gate_shift.flatten() / -1024
    assert len(set(shares.tolist())) == 2, "the gate must differ between the samples"
    wanted = track(theirs, scene, encoded)
    assert ((output.logits + output.gate_shift) - wanted).abs().max() / wanted.abs().max() < 1e-5
