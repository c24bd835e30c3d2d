"""The saver holds less for a backward pass and changes nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves

from memorysam_cli.encoders.base import saving
from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.network import MemorySAM
from memorysam_cli.model.weights import prepare_training
from memorysam_cli.recipe import Model


def build(backbone: str = "nano") -> MemorySAM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MemorySAM(build_sam2(backbone, tokens=5), classes=5, object_gate=False)  # which chance may close
        prepare_training(network, Model(backbone=backbone), modalities=3)  # type: ignore[arg-type]
    return network.train()


@pytest.fixture
def frames() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 64, 96, generator=generator) for _ in range(3)]


def loss(network: MemorySAM, frames: list[Tensor]) -> Tensor:
    output = network(frames)
    return output.logits.square().mean() + output.features.square().mean()


def train(network: MemorySAM, frames: list[Tensor], *, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss and its gradients, with dropout drawn from one seed."""
    network.zero_grad()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = loss(network, frames)
        value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def kept_bytes(run: Callable[[], Tensor]) -> int:
    """What autograd holds between the passes."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backbone", ["nano", pytest.param("sam2.1-hiera-tiny", marks=pytest.mark.slow)])
def test_no_bit_of_a_step_depends_on_it(backbone: str, dtype: torch.dtype, frames: list[Tensor]) -> None:
    network = build(backbone)
    off, wanted = train(network, frames, dtype=dtype)
    network.saver = True
    on, found = train(network, frames, dtype=dtype)
    assert torch.equal(on, off)
    assert wanted.keys() == found.keys() and len(found) > 100
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def test_dropout_is_at_work_in_what_was_compared(frames: list[Tensor]) -> None:
    network = build()
    with torch.no_grad():
        first, second = network(frames).logits, network.eval()(frames).logits
    assert not torch.equal(first, second)


def test_it_keeps_less_than_the_default_and_that_less_than_sam2(frames: list[Tensor]) -> None:
    network = build()
    trunk, images = network.sam.image_encoder.trunk, torch.cat(frames)

    def whole() -> Tensor:
        return loss(network, frames)

    off = kept_bytes(whole)
    encoder_off = kept_bytes(lambda: network.encode(frames)[0].coarse)
    plain = kept_bytes(lambda: trunk(images)[-1])
    network.saver = True
    on = kept_bytes(whole)
    encoder_on = kept_bytes(lambda: network.encode(frames)[0].coarse)
    assert on < 0.5 * off
    assert encoder_on < encoder_off < 0.6 * plain


def test_without_gradients_it_does_nothing(frames: list[Tensor]) -> None:
    network = build().eval()
    network.saver = True
    with torch.no_grad():
        output = network(frames)
        assert saving(True, network.forward) == network.forward
        network.saver = False
        torch.testing.assert_close(network(frames).logits, output.logits, rtol=0, atol=0)


def test_a_function_runs_again_for_its_gradient_alone() -> None:
    calls = []

    def square(x: Tensor) -> Tensor:
        calls.append(1)
        return x.square()

    x = torch.tensor([3.0], requires_grad=True)
    result = saving(True, square)(x)
    assert len(calls) == 1
    result.backward()
    assert len(calls) == 2 and x.grad is not None and x.grad.item() == 6
    saving(False, square)(x).backward()
    assert len(calls) == 3


def test_the_device_whose_random_state_is_kept_is_found_among_named_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch looks for it among positional ones alone: dropout on CUDA would be drawn anew in the backward pass."""
    seen = []
    real = checkpoint._infer_device_type

    def spy(*arguments: object) -> str:
        seen.extend(leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor))
        return str(real(*arguments))

    monkeypatch.setattr(checkpoint, "_infer_device_type", spy)
    named = torch.ones(2, requires_grad=True)
    saving(True, lambda *, tensor: tensor.sin())(tensor=named).sum().backward()
    assert any(tensor is named for tensor in seen) and torch.equal(named.grad, torch.ones(2).cos())
