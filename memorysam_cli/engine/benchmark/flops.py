"""How much arithmetic a network asks for: matrix products and convolutions, a multiplication and an addition each.

Counted by ``torch.utils.flop_counter`` on the plain twin and on the ``meta`` device: nothing is computed, and neither
the device nor the way in which a network is run changes the count. Training is counted as what its backward pass
needs: gradients of activations from the first adapted block on, and of the weights that are trained; nothing that is
recomputed, and neither losses nor optimiser, which multiply no matrices.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from memorysam_cli.engine.benchmark.plain import Plain
from memorysam_cli.model.network import MemorySAM


@dataclass(frozen=True)
class Flops:
    """Floating point operations of one batch: of a prediction, and of a training step (its forward pass included)."""

    prediction: int
    training: int


def count(network: MemorySAM, *, backbone: str, modalities: int, batch: int, size: int) -> Flops:
    """Count one batch of a network.

    Args:
        network: set up for training; LoRA counts as it is, merged or beside the weights it adapts.
        backbone: what it was built as.
        modalities: M.
        batch: B.
        size: side of the images in pixels.
    """
    return count_calls(
        Plain(network, backbone=backbone), [torch.empty(batch, 3, size, size, device="meta")] * modalities
    )


def count_calls(module: nn.Module, *inputs: Any) -> Flops:
    """Count one call of any module, and a backward pass from its outputs to whatever in it is trained.

    Args:
        module: gives a tensor or a tuple of tensors.
        inputs: tensors and lists of tensors, whose values do not matter.
    """
    empty = [[_shape_of(each) for each in given] if isinstance(given, list) else _shape_of(given) for given in inputs]
    twin = on_meta(module)
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        output = twin(*empty)
        prediction = counter.get_total_flops()
        ends = [end for end in (output if isinstance(output, tuple) else (output,)) if end.requires_grad]
        if ends:
            torch.stack([end.sum() for end in ends]).sum().backward()  # type: ignore[no-untyped-call]
    return Flops(prediction, counter.get_total_flops())


def on_meta(module: nn.Module) -> Any:
    """A copy of a module whose tensors have shapes and no values."""
    tensors = [*module.parameters(), *module.buffers()]
    known: dict[int, Any] = {id(tensor): _shape_of(tensor) for tensor in tensors}
    return copy.deepcopy(module, known)


def _shape_of(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
