"""How the frames of a scene become one result: which is looked at when, what each look sees, and how they are joined.

Training, evaluation, robustness, prediction and exports all go through :meth:`MemorySAM.outputs
<memorysam_cli.model.network.MemorySAM.outputs>`, which asks the network's fusion and nobody else. A recipe names it as
``model.fusion``; docs/extending.md shows how to add one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from memorysam_cli.model.memory import GATED, Look, Step, in_turn


class Output(NamedTuple):
    """What one forward pass gives.

    Attributes:
        logits: (B, tokens, H/4, W/4) float32, the open frames' class logits, each times its weight, added up. The mean
            divides by M.
        gate_shift: (B, 1, 1, 1) float32, −1024 × the share of gated frames: the same for every class and pixel.
        features: (B, C/8, H/4, W/4) the same sum of the frames' stride-4 feature maps, for the prototypes.
    """

    logits: Tensor
    gate_shift: Tensor
    features: Tensor


class Pass(NamedTuple):
    """One of several passes over the same encoded frames.

    Attributes:
        output: what the frames come to together.
        frames: (B, tokens, H/4, W/4) of each, the class logits at the last look at it, 0 where its gate is closed;
            empty where nobody asked.
    """

    output: Output
    frames: list[Tensor]


class Fusion(nn.Module):
    """How frames come together. A subclass gives :meth:`join`, and :meth:`plan` if its frames do not come in turn.

    Its parameters, if it has any, are trained and stored with the weights.
    """

    def plan(self, places: Sequence[int]) -> Sequence[Look]:
        """Which frame is looked at when, and which earlier looks it sees.

        Sequences that begin with the same looks share their results, so a look may depend on nothing else.

        Args:
            places: the scene's frames by their place among the encoded ones, in the order of the recipe. What is drawn
                here is drawn from PyTorch's random numbers, which training replays and checkpoints store.

        Returns:
            Looks; each sees earlier ones only. A frame may be looked at more than once.
        """
        return in_turn(places)

    def join(self, steps: Sequence[Step]) -> Output:
        """What the looks at a scene come to.

        Args:
            steps: the results of :meth:`plan`'s looks, in its order.
        """
        raise NotImplementedError


class Mean(Fusion):
    """The mean over the frames.

    Source: MemorySAM (arXiv 2503.06700), METHOD §1.
    """

    def join(self, steps: Sequence[Step]) -> Output:
        """Every frame counts alike."""
        gates, logits = open_logits(steps)
        return Output(
            logits=torch.stack(logits).mean(dim=0),  # (M, B, tokens, h, w) -> (B, tokens, h, w)
            gate_shift=GATED * (1 - torch.stack(gates).mean(dim=0)),
            features=torch.stack([step.frame.fine for step in steps]).mean(dim=0),
        )


def weighted_sum(steps: Sequence[Step], weights: Sequence[float] | Tensor) -> Output:
    """The frames' results, each times a weight.

    Args:
        steps: of a scene.
        weights: one number for each step; they add up to 1. A (steps,) tensor may carry a gradient.
    """
    gates, logits = open_logits(steps)
    shares = torch.as_tensor(weights, dtype=torch.float32, device=logits[0].device)

    def summed(parts: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(parts))  # (M, B, …)
        return (stacked * shares.view(-1, *[1] * (stacked.ndim - 1)).to(stacked.dtype)).sum(dim=0)

    return Output(summed(logits), GATED * (1 - summed(gates)), summed([step.frame.fine for step in steps]))


def refuse_impossible(looks: Sequence[Look], places: Sequence[int]) -> None:
    """Refuse a plan that nothing could follow.

    Raises:
        ValueError: no look, a frame that is not the scene's, or a look that sees itself or a later one.
    """
    if not looks:
        raise ValueError("fusion: plan gives no look")
    for number, look in enumerate(looks):
        if look.frame not in places:
            raise ValueError(f"fusion: look {number} is at frame {look.frame}, which is none of {list(places)}")
        if any(not 0 <= seen < number for seen in look.sees):
            raise ValueError(f"fusion: look {number} sees {look.sees}; it can see earlier looks only")


def open_logits(steps: Sequence[Step]) -> tuple[list[Tensor], list[Tensor]]:
    """Each frame's gate (B, 1, 1, 1), and its logits, zero where it is closed."""
    gates = [step.decoded.is_open[:, :, None, None] for step in steps]  # (B, 1) -> (B, 1, 1, 1)
    logits = [torch.where(gate > 0, step.decoded.logits, 0.0) for gate, step in zip(gates, steps, strict=True)]
    return gates, logits
