"""Our Linear gives what PyTorch's gives, whatever it is fed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memorysam_cli.encoders.products import Linear, _opaque_product, linear, product, use_fast_linears

from .plainly import without_onednn

SHAPES = [(200, 24), (2, 3, 50, 24), (5, 24), (24,), (0, 24), (2, 0, 24)]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def operands(shape: tuple[int, ...], generator: torch.Generator, *, out: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (shape, (out, shape[-1]), (out,))
    return tuple(torch.randn(s, generator=generator, requires_grad=True) for s in shapes)  # type: ignore[return-value]


def test_values_by_hand() -> None:
    tokens = torch.tensor([[1.0, 2.0]]).repeat(100, 1)
    result = linear(tokens, torch.tensor([[3.0, 4.0], [-5.0, 0.0]]), torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(result, torch.tensor([[11.5, -4.0]]).repeat(100, 1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("out", [40, 8], ids=["wide", "narrow"])
def test_results_and_gradients_equal_pytorch_s(shape: tuple[int, ...], out: int, generator: torch.Generator) -> None:
    given = operands(shape, generator, out=out)
    ours, theirs = linear(*given), F.linear(*given)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    back = torch.randn(theirs.shape, generator=generator)
    for one, other in zip(*(torch.autograd.grad(r, given, back) for r in (ours, theirs)), strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("learning", [True, False])
def test_an_activation_is_fused_or_follows(activation: str, learning: bool, generator: torch.Generator) -> None:
    given = operands((300, 24), generator)
    with torch.set_grad_enabled(learning):
        ours = linear(*given, activation=activation)  # type: ignore[arg-type]
    plain = F.linear(*given)
    torch.testing.assert_close(ours, F.gelu(plain) if activation == "gelu" else plain, rtol=1e-5, atol=1e-5)


def test_autocast_casts_as_pytorch_does(generator: torch.Generator) -> None:
    given = operands((300, 24), generator)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = linear(*given), F.linear(*given)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-7)  # a last bit of bfloat16
    for one, other in zip(*(torch.autograd.grad(r.sum(), given) for r in (ours, theirs)), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2**-7, atol=2**-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_are_left_to_pytorch(dtype: torch.dtype, generator: torch.Generator) -> None:
    given = tuple(t.detach().to(dtype) for t in operands((300, 24), generator))
    torch.testing.assert_close(linear(*given), F.linear(*given), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_autocast_leaves_alone_what_it_leaves_alone_in_pytorch(dtype: torch.dtype) -> None:
    given = torch.arange(300 * 24).view(300, 24).to(dtype), torch.arange(40 * 24).view(40, 24).to(dtype), None
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(*given), F.linear(*given))
        assert linear(*given).dtype == dtype


def test_strides_do_not_matter(generator: torch.Generator) -> None:
    tokens, weight, bias = operands((30, 24, 10), generator)
    weight = torch.randn(40, 24, generator=generator)
    turned = tokens.transpose(1, 2)
    bias = torch.randn(80, generator=generator)[::2]  # oneDNN itself reads its first 40
    torch.testing.assert_close(linear(turned, weight, bias), F.linear(turned, weight, bias), rtol=1e-5, atol=1e-5)
    back = torch.randn(300, 40, generator=generator)
    torch.testing.assert_close(product(back, weight.t()), back @ weight, rtol=1e-5, atol=1e-5)


def test_the_result_may_be_changed_in_place(generator: torch.Generator) -> None:
    """SAM2's rotary attention writes into a slice of what it projected."""
    tokens, weight, bias = operands((2, 100, 24), generator)
    result = linear(tokens, weight, bias)
    result[:, :7] = result[:, :7] * 2
    result.sum().backward()
    assert tokens.grad is not None
    torch.testing.assert_close(tokens.grad[:, 0], 2 * tokens.grad[:, 50])


def test_a_frozen_weight_keeps_no_input_and_gets_no_gradient(generator: torch.Generator) -> None:
    tokens, weight, bias = operands((300, 24), generator)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):  # type: ignore[func-returns-value]
        result = linear(tokens, weight.detach(), bias.detach())
    result.sum().backward()
    assert kept == [(40, 24)]
    assert tokens.grad is not None and weight.grad is None


def test_twice_is_the_same(generator: torch.Generator) -> None:
    given = operands((3000, 24), generator)
    assert torch.equal(linear(*given), linear(*given))


def test_onednn_is_used_only_where_it_is_on(generator: torch.Generator) -> None:
    given = tuple(t.detach() for t in operands((300, 24), generator))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as fast:
        linear(*given)
    with without_onednn(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as plain:
        linear(*given)
    used = ["mkldnn::_linear_pointwise" in {event.key for event in p.key_averages()} for p in (fast, plain)]
    assert used == [torch.backends.mkldnn.is_available(), False]


@pytest.mark.parametrize("shape", [(200, 24), (2, 100, 24)], ids=str)
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,), (1, 2)], ids=str)
def test_what_the_compiler_takes_has_the_gradients_of_pytorch_s(
    shape: tuple[int, ...], frozen: tuple[int, ...], generator: torch.Generator
) -> None:
    given = operands(shape, generator)
    for place in frozen:
        given[place].requires_grad_(False)
    ours, theirs = _opaque_product(*given), F.linear(*given)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    back, leaves = torch.randn(theirs.shape, generator=generator), [t for t in given if t.requires_grad]
    for one, other in zip(*(torch.autograd.grad(r, leaves, back) for r in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(200, 24), (2, 100, 24)], ids=str)
def test_what_the_compiler_takes_is_as_it_was_told(shape: tuple[int, ...], generator: torch.Generator) -> None:
    torch.library.opcheck(_opaque_product, operands(shape, generator))


def test_a_network_changes_its_linears_and_nothing_else() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 2, bias=False)))
    before = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    use_fast_linears(network)
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == before
    assert [type(module) for module in network.modules() if isinstance(module, nn.Linear)] == [Linear, Linear]
    assert network(torch.ones(100, 4)).shape == (100, 2)
