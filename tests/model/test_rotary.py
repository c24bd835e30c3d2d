"""Our rotary attention gives what SAM2's own gives, forward and backward."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from sam2.modeling.sam.transformer import RoPEAttention
from torch import Tensor, nn

from memorysam_cli.encoders.products import use_fast_linears
from memorysam_cli.model.backbone import RotaryAttention, build_sam2, set_grid
from memorysam_cli.model.network import MemorySAM

WIDTH, MEMORY_WIDTH = 64, 16


@dataclass(frozen=True)
class Case:
    """A grid of queries, and how many memories and pointers they attend to; without a memory, to themselves."""

    height: int
    width: int
    memories: int = 0
    pointers: int = 0
    heads: int = 1

    @property
    def keys(self) -> int:
        return self.height * self.width * self.memories + self.pointers


CASES = {
    "self": Case(4, 4),
    "self, rectangle": Case(3, 8),
    "self, heads": Case(4, 4, heads=4),
    "self, long": Case(24, 24),
    "one memory": Case(4, 6, memories=1),
    "three memories and pointers": Case(4, 6, memories=3, pointers=5),
    "pointers alone": Case(4, 4, pointers=3),
    "heads, memories and pointers": Case(4, 4, memories=2, pointers=4, heads=2),
    "long, memories and pointers": Case(20, 30, memories=2, pointers=4),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def both(case: Case, *, dropout: float = 0.0) -> tuple[RoPEAttention, RotaryAttention]:
    """SAM2's attention and ours with the same parameters and a table for the case's grid."""
    options = {} if case.memories + case.pointers == 0 else {"rope_k_repeat": True, "kv_in_dim": MEMORY_WIDTH}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs, ours = (
            kind(embedding_dim=WIDTH, num_heads=case.heads, dropout=dropout, feat_sizes=(4, 4), **options)
            for kind in (RoPEAttention, RotaryAttention)
        )
    for layer in (theirs, ours):
        layer.freqs_cis = layer.compute_cis(end_x=case.width, end_y=case.height)
    ours.load_state_dict(theirs.state_dict())
    use_fast_linears(ours)
    return theirs.eval(), ours.eval()


def operands(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of two samples; not contiguous, as the memory attention has them."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(case.height * case.width, 2, WIDTH, generator=generator).transpose(0, 1)
    if not case.keys:
        return query, query, query + 0.1
    key, value = (torch.randn(case.keys, 2, MEMORY_WIDTH, generator=generator).transpose(0, 1) for _ in "kv")
    return query, key, value


@pytest.mark.parametrize("learning", [False, True])
def test_float32_equals_sam2_s(case: Case, learning: bool) -> None:
    theirs, ours = both(case)
    given = operands(case)
    before = [part.clone() for part in given]
    with torch.set_grad_enabled(learning):
        wanted = theirs(*given, num_k_exclude_rope=case.pointers)
        found = ours(*given, num_k_exclude_rope=case.pointers)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(part, was) for part, was in zip(given, before, strict=True))


@pytest.mark.parametrize("learning", [False, True])
def test_bfloat16_is_as_near_to_float32_as_sam2_s_own(case: Case, learning: bool) -> None:
    theirs, ours = both(case)
    given = operands(case)
    with torch.set_grad_enabled(learning):
        exact = theirs(*given, num_k_exclude_rope=case.pointers)
        with torch.autocast("cpu", torch.bfloat16):
            other, found = (layer(*given, num_k_exclude_rope=case.pointers) for layer in (theirs, ours))
    exact, other, found = exact.detach(), other.detach(), found.detach()
    assert found.dtype == other.dtype == torch.bfloat16
    assert float((found - exact).norm() / exact.norm()) < 0.01
    assert float((found - exact).norm()) < 1.3 * float((other - exact).norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_equal_sam2_s(case: Case, dtype: torch.dtype) -> None:
    found = []
    for layer in both(case):
        given = [part.detach().requires_grad_() for part in operands(case)]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            result = layer(*given, num_k_exclude_rope=case.pointers)
        weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(2))
        leaves = [*given, *layer.parameters()]
        found.append(torch.autograd.grad((result.float() * weights).sum(), leaves))
    largest = max(float(wanted.abs().max()) for wanted in found[0])  # a key's bias has a gradient of rounding only
    for wanted, ours in zip(*found, strict=True):
        assert ours.dtype == torch.float32
        tolerance = 1e-5 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(ours / largest, wanted / largest, rtol=tolerance, atol=tolerance)


def test_dropout_is_drawn_as_by_sam2_and_in_training_only() -> None:
    case = CASES["three memories and pointers"]
    given, results = operands(case), []
    for layer in both(case, dropout=0.4):
        for training in (True, False):
            with torch.random.fork_rng():
                torch.manual_seed(7)
                results.append(layer.train(training)(*given, num_k_exclude_rope=case.pointers))
    torch.testing.assert_close(results[2:], results[:2], rtol=1e-6, atol=1e-6)
    assert float((results[2] - results[3]).detach().abs().max()) > 0.01


def test_pointers_have_no_place_and_memories_do() -> None:
    case = CASES["three memories and pointers"]
    _, ours = both(case)
    query, key, value = operands(case)
    with torch.no_grad():
        wanted = ours(query, key, value, num_k_exclude_rope=case.pointers)
        places = case.keys - case.pointers
        for first, last, is_same in ((places, case.keys, True), (0, places, False)):
            order = torch.arange(case.keys)
            order[first:last] = order[first:last].flip(0)
            found = ours(query, key[:, order], value[:, order], num_k_exclude_rope=case.pointers)
            assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5) == is_same


@pytest.mark.parametrize("cells", [(4, 5), (2, 4), (1, 1)], ids=str)
def test_a_table_of_another_length_is_refused_and_not_replaced(cells: tuple[int, int]) -> None:
    """SAM2 would make one for a square; which rectangle is meant nothing here can know."""
    _, ours = both(CASES["self"])
    table = ours.freqs_cis = ours.compute_cis(end_x=cells[0], end_y=cells[1])
    with pytest.raises(AssertionError):
        ours(*operands(CASES["self"]))
    assert ours.freqs_cis is table


def test_two_runs_are_equal(case: Case) -> None:
    _, ours = both(case)
    with torch.no_grad():
        first, again = (ours(*operands(case), num_k_exclude_rope=case.pointers) for _ in range(2))
    assert torch.equal(first, again)


@pytest.fixture
def network() -> MemorySAM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MemorySAM(build_sam2("nano", tokens=3), classes=3).eval()


@pytest.fixture
def frames() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, 3, 64, 96, generator=generator) for _ in range(3)]


def test_a_network_gets_it_everywhere_and_keeps_its_names(network: MemorySAM) -> None:
    found = [module for module in network.modules() if isinstance(module, RoPEAttention)]
    assert len(found) == 2 * len(network.sam.memory_attention.layers)
    assert all(type(module) is RotaryAttention for module in found)
    with torch.random.fork_rng():
        plain: nn.Module = build_sam2("nano", tokens=3)
    assert list(network.sam.state_dict()) == list(plain.state_dict())


def test_a_copied_and_a_stored_network_compute_the_same_and_keep_tables_of_their_own(
    network: MemorySAM, frames: list[Tensor]
) -> None:
    with torch.no_grad():
        wanted = network.logits(frames)
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(other.logits(frames), wanted)
            other.logits([frame.transpose(2, 3) for frame in frames])  # as many cells, in another shape
            assert torch.equal(network.logits(frames), wanted)


def test_every_table_fits_the_images_that_came_last(network: MemorySAM, frames: list[Tensor]) -> None:
    modules = [module for module in network.modules() if isinstance(module, RotaryAttention)]
    for height, width in ((64, 96), (96, 64), (64, 64)):
        with torch.no_grad():
            network.logits([torch.zeros(1, 3, height, width)] * 2)
        for module in modules:
            wanted = module.compute_cis(end_x=width // 16, end_y=height // 16)
            assert torch.equal(module.freqs_cis, wanted)


def test_tables_made_in_inference_mode_serve_training(network: MemorySAM) -> None:
    with torch.inference_mode():
        set_grid(network.sam, 4, 4)
    attention = network.sam.memory_attention.layers[0].self_attn
    assert not attention.freqs_cis.is_inference()
    tokens = torch.randn(2, 16, network.sam.hidden_dim)
    attention(tokens, tokens, tokens).sum().backward()
    assert attention.q_proj.weight.grad is not None
