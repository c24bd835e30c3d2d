"""Our numbers are the reference's: logits, features and class maps for 2, 3 (gated) and 4 modalities."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memorysam_cli.model.fusion import Output
from memorysam_cli.model.lora import merge_lora
from memorysam_cli.model.reference import from_reference

CASES = [("tiny_m2", 1), ("tiny_m3_b2_gate", 2), pytest.param("tiny_m4_b2", 2, marks=pytest.mark.slow)]
"""Four modalities are always compared with SAM 2's own code, by test_against_upstream."""


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(("tag", "batch"), CASES)
def test_logits_features_and_classes_equal_the_reference(
    golden: Any, tag: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = golden.case(tag)
    network = golden.network(float(case["object_score_bias"]))
    frames = golden.frames(tag, modalities=int(case["modalities"]), batch=batch)
    seen: list[Output] = []
    honest = network.forward
    monkeypatch.setattr(network, "forward", lambda *given, **more: seen.append(honest(*given, **more)) or seen[-1])
    with torch.no_grad():
        logits = network.logits(frames)
    (output,) = seen
    features = output.features
    if tag == "tiny_m3_b2_gate":  # it really closes gates
        torch.testing.assert_close(output.gate_shift.flatten(), torch.full((2,), -1024 * 2 / 3))
    assert relative_error(logits[:, :, ::8, ::8], torch.from_numpy(case["logits"])) < 1e-5
    assert relative_error(features[:, :, ::4, ::4], torch.from_numpy(case["features"])) < 1e-5
    assert float((logits.argmax(1) == torch.from_numpy(case["classes"])).float().mean()) >= 0.999


def test_merged_lora_gives_the_same_logits(golden: Any) -> None:
    case = golden.case("tiny_m2")
    network, frames = golden.network(5.0), golden.frames("tiny_m2", modalities=2, batch=1)
    merge_lora(network.sam.image_encoder.trunk)
    assert not [name for name, _ in network.named_parameters() if "lora" in name]
    with torch.no_grad():
        logits = network.logits(frames)
    assert relative_error(logits[:, :, ::8, ::8], torch.from_numpy(case["logits"])) < 1e-5


def test_every_reference_tensor_has_its_place(golden: Any) -> None:
    translated, own = from_reference(golden.state(5.0)), golden.empty().state_dict()
    assert translated.keys() == own.keys()
    assert all(translated[name].shape == tensor.shape for name, tensor in own.items())
