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
            places: the scene's frames by their place among the encoded ones, in the order in which they come. What is
                drawn here is drawn from PyTorch's random numbers, which training replays and checkpoints store.

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


class TwoPass(Mean):
    """The mean over second looks: every frame is looked at again with the memories of all other frames.

    The first pass is the paper's: frame i sees the memories of the frames before it. What its looks remember is all
    that the second pass reads; encodings are those of the first, so that it costs memory attention and decoder only.
    The first look at one of M frames decides nothing but its memory. A frame alone has no others to see: its second
    look would repeat the first, which is the result.
    """

    def plan(self, places: Sequence[int]) -> Sequence[Look]:
        """All frames once, then all once more; a frame alone once."""
        others = [tuple(n for n in range(len(places)) if n != own) for own in range(len(places))]
        second = [Look(place, sees) for place, sees in zip(places, others, strict=True) if sees]
        return [*self.first(places), *second]

    def first(self, places: Sequence[int]) -> Sequence[Look]:
        """The first pass: a look at each place, in order."""
        return in_turn(places)

    def join(self, steps: Sequence[Step]) -> Output:
        """The mean over the last look at each frame."""
        return super().join(steps[len(steps) // 2 :])  # M first and M second looks, or a single one


class TwoPassAlone(TwoPass):
    """As :class:`TwoPass`, but in the first pass every frame is looked at alone.

    No memory then depends on another sensor or on the order of the frames: a failing sensor spoils its own memory and
    no other's. The first pass has no memory attention, so that both together have little more than the paper's.
    """

    def first(self, places: Sequence[int]) -> Sequence[Look]:
        """Each frame without any memory."""
        return [Look(place, ()) for place in places]


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
