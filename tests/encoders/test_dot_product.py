"""Our attention gives what PyTorch's gives, and is PyTorch's where a gradient may be wanted."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from memorysam_cli.encoders import products
from memorysam_cli.encoders.products import LONG, scaled_dot_product

SIZES = {
    "short": (3, 2, 64, 64, 24),
    "long": (1, 2, LONG, LONG, 24),
    "more keys than queries": (2, 1, 600, 1300, 16),
    "fewer keys than queries": (2, 2, 600, 7, 24),
    "one key": (1, 2, 600, 1, 24),
    "one query": (2, 2, 1, 600, 24),
}
Operands = tuple[Tensor, Tensor, Tensor]


def operands(samples: int, heads: int, queries: int, keys: int, width: int, dtype: torch.dtype) -> Operands:
    """As a fused projection leaves them: heads side by side, so that nothing is contiguous."""
    generator = torch.Generator().manual_seed(queries + keys)

    def part(length: int) -> Tensor:
        tokens = torch.randn(samples, length, 3 * heads * width, generator=generator).to(dtype)
        return tokens.chunk(3, dim=-1)[1].view(samples, length, heads, width).transpose(1, 2)

    return part(queries), part(keys), part(keys)


@pytest.fixture(params=[8 << 20, 20_000], ids=["at once", "in steps"])
def scores_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SCORES_BYTES", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_value_by_hand(dtype: torch.dtype) -> None:
    query = torch.ones(1, 1, LONG, 4, dtype=dtype)
    key = torch.tensor([[0.0] * 4, [math.log(3) / 2] * 4])[None, None].to(dtype)  # scores 0 and ln 3
    value = torch.tensor([[4.0] * 4, [8.0] * 4])[None, None].to(dtype)
    found = scaled_dot_product(query, key, value, learning=False)
    torch.testing.assert_close(
        found, torch.full_like(query, 7.0), rtol=2**-7 if dtype == torch.bfloat16 else 1e-6, atol=0
    )


@pytest.mark.usefixtures("scores_bytes")
@pytest.mark.parametrize("size", SIZES)
def test_float32_equals_pytorch_s(size: str) -> None:
    given = operands(*SIZES[size], torch.float32)
    before = [part.clone() for part in given]
    found = scaled_dot_product(*given, learning=False)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(*given), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(part, was) for part, was in zip(given, before, strict=True))


@pytest.mark.usefixtures("scores_bytes")
@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_is_nearly_as_exact_as_pytorch_s(size: str) -> None:
    given = operands(*SIZES[size], torch.bfloat16)
    exact = F.scaled_dot_product_attention(*(part.double() for part in given))
    found = scaled_dot_product(*given, learning=False)
    assert found.dtype == torch.bfloat16
    assert float((found - exact).norm() / exact.norm()) < 0.01


@pytest.mark.usefixtures("scores_bytes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_equal(dtype: torch.dtype) -> None:
    given = operands(*SIZES["long"], dtype)
    first, again = (scaled_dot_product(*given, learning=False) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("size", ["short", "long"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_where_a_gradient_may_be_wanted_it_is_pytorch_s(size: str, dtype: torch.dtype) -> None:
    given = tuple(part.detach().requires_grad_() for part in operands(*SIZES[size], dtype))
    found, wanted = scaled_dot_product(*given, learning=True), F.scaled_dot_product_attention(*given)
    assert torch.equal(found, wanted)
    pairs = zip(*(torch.autograd.grad(result.sum(), given) for result in (found, wanted)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_types_are_left_to_pytorch(dtype: torch.dtype) -> None:
    given = operands(*SIZES["long"], dtype)
    assert torch.equal(scaled_dot_product(*given, learning=False), F.scaled_dot_product_attention(*given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(0, 2, 600, 600, 24), (2, 2, 600, 0, 24), (2, 2, 0, 600, 24)], ids=str)
def test_nothing_to_attend_to_is_no_error(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    given = operands(*shape, dtype)
    assert torch.equal(scaled_dot_product(*given, learning=False), F.scaled_dot_product_attention(*given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keys_and_values_of_unequal_number_are_refused(dtype: torch.dtype) -> None:
    query, key, value = operands(*SIZES["long"], dtype)
    with pytest.raises(RuntimeError):
        scaled_dot_product(query, key, value[:, :, 1:], learning=False)
