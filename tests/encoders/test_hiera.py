"""Our way through Hiera gives what SAM2's own forward pass gives, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sam2.modeling.backbones.hieradet import Hiera
from torch import Tensor, nn

from memorysam_cli.encoders import hiera
from memorysam_cli.encoders.products import use_fast_linears
from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.lora import add_lora
from memorysam_cli.recipe import Lora

from .plainly import without_onednn

SIZES = [(64, 64), (128, 96), (32, 160)]
KINDS = {
    "plain": Lora(),
    "every-target": Lora(rank=2, alpha=8, targets=("q", "k", "v", "proj")),
    "rslora": Lora(rslora=True, rank=8),
    "dora": Lora(dora=True),
}


def some_of(*kinds: str, telling: set[str]) -> list[Any]:
    """Those that tell are always tried; the others take the same ways."""
    return [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in telling)) for kind in kinds]


def build(backbone: str = "nano") -> Hiera:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = build_sam2(backbone, tokens=3).image_encoder.trunk
        for parameter in trunk.parameters():  # norms and biases that can be told from none
            if parameter.ndim == 1:
                nn.init.normal_(parameter, mean=float(bool(parameter.mean() > 0.5)), std=0.3)
        for table in (trunk.pos_embed, trunk.pos_embed_window):
            nn.init.normal_(table)
    return trunk


def adapted(settings: Lora) -> Hiera:
    trunk = build().train()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        add_lora(trunk, settings)
        for name, parameter in trunk.named_parameters():
            if ".lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    return trunk


def images(frames: int, height: int, width: int) -> Tensor:
    return torch.randn(frames, 3, height, width, generator=torch.Generator().manual_seed(1))


def ours(trunk: Hiera, frames: Tensor, *, saver: bool = False) -> list[Tensor]:
    return [layout.join(tokens).permute(0, 3, 1, 2) for tokens, layout in hiera.stages(trunk, frames, saver=saver)]


def gradients(trunk: Hiera, outputs: Sequence[Tensor]) -> dict[str, Tensor]:
    trunk.zero_grad()
    generator = torch.Generator().manual_seed(3)
    sum((output.float() * torch.randn(output.shape, generator=generator)).sum() for output in outputs).backward()  # type: ignore[union-attr]
    return {name: p.grad.clone() for name, p in trunk.named_parameters() if p.grad is not None}


@pytest.fixture(autouse=True)
def many_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few tokens to a share that every block has several."""
    monkeypatch.setattr(hiera, "CACHED", 70)


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        *(("nano", size) for size in SIZES),
        *(pytest.param("sam2-hiera-tiny", size, marks=[pytest.mark.slow] * (size != SIZES[2])) for size in SIZES),
    ],
    ids=str,
)
@torch.no_grad()
def test_every_stage_equals_sam2_s(backbone: str, size: tuple[int, int]) -> None:
    trunk, frames = build(backbone), images(2, *size)
    wanted = trunk(frames)
    use_fast_linears(trunk)
    torch.testing.assert_close(ours(trunk, frames), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["sam2-hiera-base-plus", "sam2-hiera-large"])
@torch.no_grad()
def test_every_stage_of_the_large_sizes_equals_sam2_s(backbone: str) -> None:
    trunk, frames = build(backbone), images(1, 192, 256)
    wanted = trunk(frames)
    use_fast_linears(trunk)
    torch.testing.assert_close(ours(trunk, frames), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_division_into_shares_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk, frames = build(), images(3, 128, 96)
    use_fast_linears(trunk)
    divided = ours(trunk, frames)
    monkeypatch.setattr(hiera, "CACHED", 1 << 20)
    torch.testing.assert_close(ours(trunk, frames), divided, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_stages_that_are_given_out_stay_as_they_are() -> None:
    """A block without gradients works in its tokens' own memory."""
    trunk, frames = build(), images(1, 64, 64)
    kept, seen = [], []
    for tokens, _ in hiera.stages(trunk, frames):
        kept.append(tokens)
        seen.append(tokens.clone())
    assert all(torch.equal(one, other) for one, other in zip(kept, seen, strict=True))


@torch.no_grad()
def test_bfloat16_is_as_near_to_float32_as_sam2_s_own() -> None:
    trunk, frames = build("sam2-hiera-tiny"), images(2, 128, 96)
    exact = trunk(frames)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = trunk(frames)
        use_fast_linears(trunk)
        mine = ours(trunk, frames)
    for one, other, wanted in zip(mine, theirs, exact, strict=True):
        assert float((one - wanted).norm() / wanted.norm()) < 0.02
        assert float((one - wanted).norm()) < 1.3 * float((other - wanted).norm())


@pytest.mark.parametrize("size", SIZES[:2], ids=str)
@pytest.mark.parametrize("kind", some_of(*KINDS, telling={"plain", "dora"}))
def test_gradients_equal_sam2_s(kind: str, size: tuple[int, int]) -> None:
    trunk, frames = adapted(KINDS[kind]), images(2, *size)
    with without_onednn():
        outputs = trunk(frames)
        wanted = gradients(trunk, outputs)
    mine = ours(trunk, frames)
    torch.testing.assert_close([t.detach() for t in mine], [t.detach() for t in outputs], rtol=1e-5, atol=1e-5)
    found = gradients(trunk, mine)
    assert found.keys() == wanted.keys() and len(found) >= 24
    for name, gradient in found.items():
        scale = float(wanted[name].abs().max())
        torch.testing.assert_close(gradient / scale, wanted[name] / scale, rtol=1e-4, atol=1e-4, msg=name)


def test_gradients_of_a_trunk_that_is_trained_in_full_equal_sam2_s() -> None:
    trunk, frames = build(), images(2, 64, 96)
    outputs = trunk(frames)
    wanted = gradients(trunk, outputs)
    use_fast_linears(trunk)
    for saver in (False, True):
        found = gradients(trunk, ours(trunk, frames, saver=saver))
        assert found.keys() == wanted.keys() == dict(trunk.named_parameters()).keys()
        for name, gradient in found.items():
            scale = float(wanted[name].abs().max())
            torch.testing.assert_close(gradient / scale, wanted[name] / scale, rtol=1e-4, atol=1e-4, msg=name)


def test_gradients_reach_the_images() -> None:
    trunk, frames = build().requires_grad_(False), images(1, 64, 64).requires_grad_()
    wanted = torch.autograd.grad(sum(t.sum() for t in trunk(frames)), frames)[0]
    for saver in (False, True):
        found = torch.autograd.grad(sum(t.sum() for t in ours(trunk, frames, saver=saver)), frames)[0]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", some_of(*KINDS, "dropout", telling={"dora", "dropout"}))
def test_the_saver_changes_no_bit(kind: str) -> None:
    trunk, frames = adapted(KINDS.get(kind, Lora(dropout=0.3))), images(2, 128, 96)
    results = []
    for saver in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(9)
            outputs = ours(trunk, frames, saver=saver)
            results.append((outputs, gradients(trunk, outputs)))
    (kept, wanted), (again, found) = results
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def test_the_saver_changes_no_bit_of_bfloat16() -> None:
    trunk, frames = adapted(Lora()), images(2, 64, 96)
    found = []
    for saver in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = ours(trunk, frames, saver=saver)
        found.append(gradients(trunk, outputs))
    assert [name for name in found[0] if not torch.equal(found[0][name], found[1][name])] == []


def test_a_frozen_trunk_keeps_nothing_in_training() -> None:
    trunk, frames = build().requires_grad_(False).train(), images(1, 64, 64)
    use_fast_linears(trunk)
    assert not any(output.requires_grad for output in ours(trunk, frames))


@pytest.mark.slow
@pytest.mark.parametrize("saver", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # read by the tracer
@torch._dynamo.config.patch(recompile_limit=64)
def test_what_is_compiled_gives_the_same(dtype: torch.dtype, saver: bool) -> None:
    """Traced and differentiated as by ``torch.compile``; only its code generator is left out."""
    trunk, frames = adapted(Lora()), images(2, 64, 96)
    compiled, results = torch.compile(hiera.whole, backend="aot_eager"), []
    for block, precision in ((None, torch.float32), (None, dtype), (compiled, dtype)):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            ends = hiera.stages(trunk, frames, saver=saver, compiled=block)
            outputs = [layout.join(tokens).permute(0, 3, 1, 2) for tokens, layout in ends]
        results.append(gradients(trunk, outputs))
    exact, plain, found = results
    assert found.keys() == exact.keys() and len(found) >= 24
    # Of all gradients, each at its own scale: PEFT's forward pass, which is compiled, rounds in other places than ours.
    error, allowed = (
        torch.stack([(one[name] - wanted).norm() / wanted.norm() for name, wanted in exact.items()]).square().mean()
        ** 0.5
        for one in (found, plain)
    )
    assert error < 1e-5 + 1.5 * allowed
