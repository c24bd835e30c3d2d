from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memorysam_cli.losses import ohem
from memorysam_cli.losses.ohem import pixel_losses


def plain(logits: Tensor, label: Tensor) -> Tensor:
    """Every pixel's class logits at once."""
    upsampled = F.interpolate(logits, size=label.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(upsampled, label, ignore_index=255, reduction="none")


def made_up(*shape: int, stride: int, ignored: float = 0.3, classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits (B, K, h, w) and a label of ``classes`` ≤ K classes, of which a share is ignored."""
    generator = torch.Generator().manual_seed(sum(shape) + stride)
    batch, tokens, h, w = shape
    logits = 4 * torch.randn(shape, generator=generator)
    label = torch.randint(0, classes or tokens, (batch, h * stride, w * stride), generator=generator)
    return logits, label.where(torch.rand(label.shape, generator=generator) >= ignored, 255)


def both(logits: Tensor, label: Tensor, weights: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Losses and gradient, ours and the plain ones."""
    found = []
    for function in (pixel_losses, plain):
        leaf = logits.clone().requires_grad_()
        losses = function(leaf, label)
        given = torch.linspace(-1, 2, label.numel()).view(label.shape) if weights is None else weights
        losses.backward(given)
        assert leaf.grad is not None
        found.append([losses.detach(), leaf.grad])
    return found[0], found[1]


def assert_equal_to_plain(logits: Tensor, label: Tensor, weights: Tensor | None = None) -> None:
    (losses, gradient), (wanted, wanted_gradient) = both(logits, label, weights)
    # A stride that is not a power of two is not exact in float32, and a slab counts its rows from its own first one.
    stride = label.shape[-1] // logits.shape[-1]
    exact = stride in {1, 2, 4}
    torch.testing.assert_close(losses, wanted, rtol=1e-6, atol=2e-6 if exact else 3e-5)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-5, atol=5e-6 if exact else 3e-5)


@pytest.fixture(params=[1, 6000, 2**23], ids=["row", "few", "all"])
def slab_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Slabs of one row of cells, of some, and of all."""
    monkeypatch.setitem(ohem.SLAB_BYTES, "cpu", request.param)
    size: int = request.param
    return size


def test_losses_by_hand() -> None:
    logits = torch.tensor([[[[0.0, 4.0]], [[0.0, 0.0]]]])  # class 0 leads class 1 by 0, then by 4
    label = torch.tensor([[[0, 0, 0, 255], [0, 1, 0, 0]]])
    losses = pixel_losses(logits, label)
    lead = [0.0, 1.0, 3.0, 4.0]  # at a quarter and three quarters of the way, and level beyond the centers
    wanted = [[math.log1p(math.exp(-x)) for x in lead], [math.log1p(math.exp(-x)) for x in lead]]
    wanted[0][3], wanted[1][1] = 0.0, math.log1p(math.exp(1.0))
    torch.testing.assert_close(losses, torch.tensor([wanted]))


@pytest.mark.usefixtures("slab_bytes")
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(1, 5, 3, 5), (3, 4, 7, 2), (2, 25, 1, 1), (1, 2, 1, 6)])
def test_losses_and_gradient_are_those_of_all_pixels_at_once(shape: tuple[int, ...], stride: int) -> None:
    assert_equal_to_plain(*made_up(*shape, stride=stride))


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    stride=st.integers(1, 5),
    rows=st.integers(1, 9),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_any_shape_is_equal_to_plain(shape: tuple[int, ...], stride: int, rows: int, ignored: float) -> None:
    batch, tokens, _, w = shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ohem.SLAB_BYTES, "cpu", rows * batch * tokens * w * stride**2 * 4)
        assert_equal_to_plain(*made_up(*shape, stride=stride, ignored=ignored))


@pytest.mark.parametrize("stride", [2, 4])
def test_slabs_give_the_numbers_of_the_whole_bit_for_bit(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, label = made_up(2, 25, 11, 6, stride=stride)
    upsampled = F.interpolate(
        logits.contiguous(memory_format=torch.channels_last), size=label.shape[-2:], mode="bilinear"
    )
    log_p = upsampled.permute(0, 2, 3, 1).log_softmax(dim=-1).permute(0, 3, 1, 2)
    whole = F.nll_loss(log_p, label, ignore_index=255, reduction="none")
    row = 2 * 25 * 6 * stride**2 * 4
    for rows in (1, 2, 3, 5, 10, 11):
        monkeypatch.setitem(ohem.SLAB_BYTES, "cpu", rows * row)
        assert torch.equal(pixel_losses(logits, label), whole)


def test_more_tokens_than_classes_take_part_in_the_softmax_only() -> None:
    assert_equal_to_plain(*made_up(2, 9, 4, 3, stride=4, classes=4))


def test_a_view_of_more_tokens_gets_its_gradient() -> None:
    logits, label = made_up(2, 9, 4, 3, stride=4, classes=4)
    leaf = logits.requires_grad_()
    pixel_losses(leaf[:, :4], label).sum().backward()
    _, (_, wanted) = both(logits.detach()[:, :4], label, torch.ones(label.shape))
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad[:, :4], wanted, rtol=1e-5, atol=1e-5)
    assert torch.count_nonzero(leaf.grad[:, 4:]) == 0


@pytest.mark.usefixtures("slab_bytes")
@pytest.mark.parametrize("pixel", [(0, 0, 0), (1, 15, 19), (1, 7, 3), (0, 4, 16)])
def test_one_weighted_pixel_reaches_its_cells_only(pixel: tuple[int, int, int]) -> None:
    logits, label = made_up(2, 3, 4, 5, stride=4, ignored=0.0)
    weights = torch.zeros(label.shape)
    weights[pixel] = 1.0
    assert_equal_to_plain(logits, label, weights)
    (_, gradient), _ = both(logits, label, weights)
    assert torch.count_nonzero(gradient.sum(dim=1).abs() + gradient.abs().sum(dim=1)) <= 4


def test_ignored_pixels_have_no_loss_and_no_gradient() -> None:
    logits, label = made_up(1, 3, 4, 4, stride=4, ignored=1.0)
    (losses, gradient), _ = both(logits, label)
    assert torch.count_nonzero(losses) == 0
    assert torch.count_nonzero(gradient) == 0


def test_a_logit_that_is_no_number_shows() -> None:
    logits, label = made_up(1, 3, 4, 4, stride=4, ignored=0.0)
    logits[0, 0, 0, 0] = math.nan
    (losses, gradient), _ = both(logits, label)
    assert losses.isnan().any()
    assert gradient.isnan().any()


def test_two_runs_are_equal() -> None:
    logits, label = made_up(2, 7, 9, 5, stride=4)
    (first, gradient), (again, gradient_again) = (both(logits, label)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(gradient, gradient_again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_is_float32_under_autocast_and_for_shorter_logits(dtype: torch.dtype) -> None:
    logits, label = made_up(2, 7, 5, 4, stride=4)
    short = logits.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (losses, gradient), _ = both(short, label)
    (wanted, wanted_gradient), _ = both(short.float(), label)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, wanted)
    assert torch.equal(gradient, wanted_gradient.to(dtype))


def test_a_second_derivative_is_refused() -> None:
    logits, label = made_up(1, 3, 2, 2, stride=2)
    leaf = logits.requires_grad_()
    (gradient,) = torch.autograd.grad(pixel_losses(leaf, label).square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("size", [(7, 8), (8, 12), (2, 4), (9, 9)])
def test_a_ratio_that_is_not_whole_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]}×{size[1]} pixels for 4×4 cells"):
        pixel_losses(torch.zeros(1, 3, 4, 4), torch.zeros(1, *size, dtype=torch.int64))


@pytest.mark.parametrize("value", [3, 254, -1])
def test_an_unknown_class_is_refused(value: int) -> None:
    label = torch.zeros(1, 8, 8, dtype=torch.int64)
    label[0, 5, 2] = value
    with pytest.raises(IndexError, match=f"Target {value} is out of bounds"):
        pixel_losses(torch.zeros(1, 3, 4, 4), label)


def test_class_logits_of_all_pixels_never_come_about(largest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, label = made_up(2, 25, 32, 32, stride=4)
    whole = 2 * 25 * 128 * 128 * 4
    monkeypatch.setitem(ohem.SLAB_BYTES, "cpu", whole // 16)
    with largest:
        pixel_losses(logits.requires_grad_(), label).sum().backward()
    assert largest.bytes <= whole // 16 * 2  # the slab is two rows of cells, and two more are their neighbors
    with largest:
        plain(logits, label)
    assert largest.bytes == whole


def test_off_the_cpu_no_value_is_looked_at(largest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for a device without values
    logits = torch.empty(4, 25, 256, 256, device="meta", dtype=torch.bfloat16, requires_grad=True)
    with largest:
        pixel_losses(logits, torch.empty(4, 1024, 1024, device="meta", dtype=torch.int64)).sum().backward()
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16
    assert largest.bytes <= 1.2 * ohem.SLAB_BYTES["cuda"]
