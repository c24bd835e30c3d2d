"""Fusions: the order in which the frames of a scene are processed, what each sees, and how the results become one.

Training, evaluation, robustness, prediction and exports all call :meth:`MemorySAM.outputs
<memorysam_cli.model.network.MemorySAM.outputs>`, which calls the network's fusion. A recipe names the fusion as
``model.fusion``; docs/extending.md shows how to add one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from memorysam_cli.model.memory import GATED, Look, Step, in_turn


class Output(NamedTuple):
    """The result of a forward pass.

    Attributes:
        logits: (B, tokens, H/4, W/4) float32, the weighted sum of the open frames' class logits. For the mean each
            weight is 1/M.
        gate_shift: (B, 1, 1, 1) float32, −1024 × the share of gated frames: the same for every class and pixel.
        features: (B, C/8, H/4, W/4) the same weighted sum of the frames' stride-4 feature maps, for the prototypes.
    """

    logits: Tensor
    gate_shift: Tensor
    features: Tensor


class Pass(NamedTuple):
    """One of several passes over the same encoded frames.

    Attributes:
        output: the result of the pass.
        frames: (B, tokens, H/4, W/4) each, the class logits of a frame at its last look, 0 where its gate is closed;
            empty if not requested.
    """

    output: Output
    frames: list[Tensor]


class Fusion(nn.Module):
    """Base class of fusions. A subclass implements :meth:`join`, and :meth:`plan` for another order of looks.

    Its parameters, if it has any, are trained and stored with the weights.
    """

    def plan(self, places: Sequence[int]) -> Sequence[Look]:
        """The looks at a scene: which frame is processed when, and which earlier looks it sees.

        Sequences that begin with the same looks share their results, so a look may depend on nothing else.

        Args:
            places: the places of the scene's frames among the encoded frames, in their order. If this method draws
                random numbers, it must use PyTorch's, which training replays and checkpoints store.

        Returns:
            Looks; each sees only earlier looks. A frame may have several looks.
        """
        return in_turn(places)

    def join(self, steps: Sequence[Step]) -> Output:
        """The result of a scene.

        Args:
            steps: the results of :meth:`plan`'s looks, in its order.
        """
        raise NotImplementedError


class Mean(Fusion):
    """The mean over the frames.

    Source: MemorySAM (arXiv 2503.06700), METHOD §1.
    """

    def join(self, steps: Sequence[Step]) -> Output:
        """The mean, with equal weights."""
        gates, logits = open_logits(steps)
        return Output(
            logits=torch.stack(logits).mean(dim=0),  # (M, B, tokens, h, w) -> (B, tokens, h, w)
            gate_shift=GATED * (1 - torch.stack(gates).mean(dim=0)),
            features=torch.stack([step.frame.fine for step in steps]).mean(dim=0),
        )


class TwoPass(Mean):
    """Two passes. In the second, every frame sees the memories of all others; the result is its mean.

    The first pass is the paper's: frame i sees the memories of the frames before it. The second pass uses only its
    memories. Both share the encodings, so the second pass costs only memory attention and decoder. A single frame has
    no other frames to see; the result is then its first look.
    """

    def plan(self, places: Sequence[int]) -> Sequence[Look]:
        """All frames once, then all once more; a single frame once."""
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
    """Like :class:`TwoPass`, but in the first pass every frame sees no memory.

    Then no memory depends on another sensor or on the order of the frames, and a bad sensor affects only its own
    memory. The first pass has no memory attention, so both passes together cost little more than the paper's.
    """

    def first(self, places: Sequence[int]) -> Sequence[Look]:
        """Each frame without any memory."""
        return [Look(place, ()) for place in places]


def weighted_sum(steps: Sequence[Step], weights: Sequence[float] | Tensor) -> Output:
    """The weighted sum of the frames' results.

    Args:
        steps: the steps of a scene.
        weights: one number per step; their sum is 1. A (steps,) tensor may carry a gradient.
    """
    gates, logits = open_logits(steps)
    shares = torch.as_tensor(weights, dtype=torch.float32, device=logits[0].device)

    def summed(parts: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(parts))  # (M, B, …)
        return (stacked * shares.view(-1, *[1] * (stacked.ndim - 1)).to(stacked.dtype)).sum(dim=0)

    return Output(summed(logits), GATED * (1 - summed(gates)), summed([step.frame.fine for step in steps]))


def refuse_impossible(looks: Sequence[Look], places: Sequence[int]) -> None:
    """Refuse an impossible plan.

    Raises:
        ValueError: no look, a frame that is not in the scene, or a look that sees itself or a later one.
    """
    if not looks:
        raise ValueError("fusion: plan gives no look")
    for number, look in enumerate(looks):
        if look.frame not in places:
            raise ValueError(f"fusion: look {number} is at frame {look.frame}, which is none of {list(places)}")
        if any(not 0 <= seen < number for seen in look.sees):
            raise ValueError(f"fusion: look {number} sees {look.sees}; it can see earlier looks only")


def open_logits(steps: Sequence[Step]) -> tuple[list[Tensor], list[Tensor]]:
    """Each frame's gate (B, 1, 1, 1), and its logits, zero where the gate is closed."""
    gates = [step.decoded.is_open[:, :, None, None] for step in steps]  # (B, 1) -> (B, 1, 1, 1)
    logits = [torch.where(gate > 0, step.decoded.logits, 0.0) for gate, step in zip(gates, steps, strict=True)]
    return gates, logits
