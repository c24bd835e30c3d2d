"""Sharing the beginnings of sequences changes what is computed how often, never a result."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from memorysam_cli.encoders.hiera import NANO
from memorysam_cli.model import memory as module
from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.fusion import Output
from memorysam_cli.model.network import MemorySAM

NANO_21 = replace(NANO, head=replace(NANO.head, is_sam21=True))
"""No published variant, but has all that is new in SAM 2.1."""
SUBSETS = [list(places) for size in (1, 2, 3, 4) for places in combinations(range(4), size)]


def network(backbone: str, *, gate_bias: float | None = None) -> MemorySAM:
    """Random weights; SAM 2.1 in nano's size is not a published variant, but has all that is new in 2.1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = MemorySAM(
            build_sam2(NANO_21 if backbone == "sam2.1-hiera-nano" else backbone, tokens=4), classes=3
        ).eval()
    if gate_bias is not None:
        torch.nn.init.constant_(built.sam.sam_mask_decoder.pred_obj_score_head.layers[2].bias, gate_bias)
    return built.requires_grad_(False)


def scene(count: int = 4, *, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, 3, 64, 96, generator=generator) for _ in range(count)]


def assert_same(found: Output, wanted: Output) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-5 * max(1.0, float(theirs.abs().max()))


class Counter:
    """How often each part runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = dict.fromkeys(("condition", "decode", "remember"), 0)
        for name in self.calls:
            monkeypatch.setattr(module, name, self._counted(name, getattr(module, name)))

    def _counted(self, name: str, function: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.calls[name] += 1
            return function(*arguments, **options)

        return counted


@pytest.mark.parametrize(
    ("backbone", "gate_bias"),
    [
        ("nano", 9.0),
        ("sam2.1-hiera-nano", -9.0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("nano", -9.0), ("nano", 0.0), ("sam2.1-hiera-nano", 9.0), ("sam2.1-hiera-nano", 0.0))
        ),
    ],
)
def test_every_subset_equals_a_forward_pass_of_its_own(backbone: str, gate_bias: float) -> None:
    """The encoder comes before; that it sees each frame by itself is tested below."""
    model, frames = network(backbone, gate_bias=gate_bias), scene()
    pool = model.encode(frames)
    found = dict(model.outputs(pool, SUBSETS))
    assert sorted(found) == list(range(15))
    for number, places in enumerate(SUBSETS):
        ((_, wanted),) = model.outputs(pool, [places])
        assert_same(found[number], wanted)
    assert_same(found[14], model(frames))


@pytest.mark.parametrize("backbone", ["nano", "sam2.1-hiera-nano"])
def test_any_order_repetition_and_length_are_allowed(backbone: str) -> None:
    model, frames = network(backbone), scene(3)
    wanted = [*[list(order) for order in permutations(range(3))][1::2], [0, 0, 1], [2, 1, 0, 2, 1], [1], [2, 1], [1]]
    found = dict(model.outputs(model.encode(frames), wanted))
    for number, places in enumerate(wanted):
        assert_same(found[number], model([frames[place] for place in places]))


def test_sam_21_tells_sequences_of_unequal_length_apart() -> None:
    """Its pointers' positions are divided by the number of frames; sharing them would go unnoticed by SAM 2."""
    model, frames = network("sam2.1-hiera-nano"), scene(3)
    steps = []
    for count in (2, 3):
        tree = module.Tree(
            model.sam, model.notes, model.encode(frames), [module.in_turn(range(count))], gate=True,
            dense_position=model.sam.sam_prompt_encoder.pe_layer((4, 6)).unsqueeze(0),
        )  # fmt: skip
        model._use_grid(4, 6)
        steps.append(next(tree.walk())[1][1].decoded.logits)
    assert not torch.equal(*steps)


@pytest.mark.parametrize(
    ("backbone", "decoded", "remembered"), [("nano", 15, 7), ("sam2.1-hiera-nano", 4 + 6 + 3 + 4 + 3, 3 + 3 + 2)]
)
def test_what_sequences_begin_with_alike_is_computed_once(
    backbone: str, decoded: int, remembered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(backbone)
    pool = model.encode(scene(batch=1))
    counter = Counter(monkeypatch)
    list(model.outputs(pool, SUBSETS))
    assert counter.calls == {"condition": decoded, "decode": decoded, "remember": remembered}
    counter.calls = dict.fromkeys(counter.calls, 0)
    for places in SUBSETS:
        list(model.outputs(pool, [places]))
    assert counter.calls == {"condition": 32, "decode": 32, "remember": 17}


def test_results_come_one_by_one_before_the_next_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("nano")
    pool = model.encode(scene(batch=1))
    counter = Counter(monkeypatch)
    next(model.outputs(pool, SUBSETS))
    assert counter.calls["decode"] == 1


def test_encoding_gives_the_features_of_sam2s_own_image_encoder() -> None:
    model, frames = network("nano"), scene(2)
    frame = model.encode(frames)[1]
    theirs = model.sam.forward_image(frames[1])
    for ours, wanted in zip((frame.fine, frame.middle, frame.coarse), theirs["backbone_fpn"], strict=True):
        torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(frame.position, theirs["vision_pos_enc"][-1], rtol=0, atol=0)


def test_a_frame_is_encoded_alike_alone_and_in_company() -> None:
    model, frames = network("nano"), scene(3)
    together, alone = model.encode(frames)[2], model.encode(frames[2:])[0]
    torch.testing.assert_close(together.coarse, alone.coarse, rtol=1e-5, atol=1e-5)


def test_gradients_flow_through_a_shared_beginning() -> None:
    frames = scene(3, batch=1)
    gradients = []
    for shares in (True, False):
        model = network("nano").requires_grad_(True)
        wanted = [[0, 1], [0, 1, 2]]
        if shares:
            outputs = [output for _, output in model.outputs(model.encode(frames), wanted)]
        else:
            outputs = [model([frames[place] for place in places]) for places in wanted]
        sum(output.logits.square().mean() for output in outputs).backward()
        gradients.append(model.sam.memory_encoder.out_proj.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_an_empty_sequence_is_refused() -> None:
    model = network("nano")
    with pytest.raises(ValueError, match="at least one frame"):
        list(model.outputs(model.encode(scene(1)), [[0], []]))
