"""The losses of training for failing sensors: what each sensor says by itself, and what a teacher says instead."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from memorysam_cli.losses.loss import Loss, LossInputs
from memorysam_cli.losses.ohem import pixel_losses
from memorysam_cli.recipe import Teacher


class SingleLoss(Loss):
    """The mean cross entropy of what each sensor's frame says by itself, over all labeled pixels and all frames.

    A frame sees the memories of those before it, so only the first stands quite alone. With one sensor the loss is 0:
    its frame's logits are those of the scene already.

    Source: after MLE-SAM's single-modality terms; weight and form are ours.
    """

    reads_alone = True

    def __call__(self, inputs: LossInputs) -> Tensor:
        return _mean(inputs, lambda frames: frames)


class PrefixLoss(Loss):
    """The mean cross entropy of what the first sensors say together: one, two, …, all but the last.

    A frame sees the memories of those before it and no others, so the mean of the first k frames is exactly the
    network's answer for those k sensors. In random order (``model.order: shuffled``) every subset of the sensors comes
    to be a beginning, in every order, at the price of the cross entropies alone: nothing is encoded, remembered or
    decoded twice. With a fusion that looks at frames again the beginnings saw the others' memories too, and are no
    subsets. With one sensor the loss is 0.

    Source: ours.
    """

    reads_alone = True

    def __call__(self, inputs: LossInputs) -> Tensor:
        return _mean(inputs, _beginnings)


class TeacherLoss(Loss):
    """The mean over all labeled pixels of KL(teacher ‖ logits) · T², T being the temperature.

    A pixel has the divergence of its cell at stride 4, so that nothing is upsampled.

    Source: Hinton, Vinyals and Dean, arXiv 1503.02531, whose factor T² keeps the gradient's size for any T.
    """

    Settings = Teacher
    settings: Teacher

    def __call__(self, inputs: LossInputs) -> Tensor:
        """``inputs.logits`` learn from ``inputs.teacher``."""
        sums, counts = [], []
        for logits, teacher, label in zip(inputs.logits, inputs.teacher, inputs.labels, strict=True):
            cells = (logits.shape[-2], logits.shape[-1])
            share = F.adaptive_avg_pool2d((label != inputs.ignored).float(), cells)  # (B, H, W) -> (B, h, w)
            # A product, no selection: what is not a number shows, wherever it is.
            sums.append((self._divergence(logits.float(), teacher.float()) * share).sum())
            counts.append(share.sum())
        count = inputs.total(torch.stack(counts).sum())
        return inputs.total(torch.stack(sums).sum()) / torch.where(count > 0, count, 1.0)

    def _divergence(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """(B, K, h, w) twice -> (B, h, w)."""
        temperature = self.settings.temperature
        ours, theirs = ((each / temperature).log_softmax(dim=1) for each in (logits, teacher))
        return (theirs.exp() * (theirs - ours)).sum(dim=1) * temperature**2


def _beginnings(frames: Sequence[Tensor]) -> list[Tensor]:
    """The means of the first 1, 2, …, M − 1 frames' logits."""
    sums = itertools.accumulate(frames[:-1])
    return [total / (number + 1) for number, total in enumerate(sums)]


def _mean(inputs: LossInputs, judged: Callable[[Sequence[Tensor]], Sequence[Tensor]]) -> Tensor:
    """The cross entropy of some logits of every batch, made of what its frames say; its mean over pixels and logits."""
    if len(inputs.task.modalities) == 1:
        return torch.zeros((), device=inputs.task.device)
    losses = [
        pixel_losses(logits, label).sum()
        for frames, label in zip(inputs.alone, inputs.labels, strict=True)
        for logits in judged(frames)
    ]
    valid = torch.stack([(label != inputs.ignored).sum() for label in inputs.labels]).sum()
    # Sums over all processes, as those of a process may have more labeled pixels than those of another.
    pixels = inputs.total(valid).clamp(min=1) * len(losses) // len(inputs.labels)
    return inputs.total(torch.stack(losses).sum()) / pixels
