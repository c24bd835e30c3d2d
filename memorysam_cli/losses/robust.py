"""Losses for training with missing sensors: on single frames, on prefixes of the sensors, and with a teacher."""

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
    """The mean cross entropy of each frame's own logits, over all labeled pixels and all frames.

    A frame sees the memories of the frames before it, so only the first frame is independent of the others. With one
    sensor the loss is 0, because its frame's logits are already those of the scene.

    Source: after MLE-SAM's single-modality losses; weight and form are ours.
    """

    reads_alone = True

    def __call__(self, inputs: LossInputs) -> Tensor:
        return _mean(inputs, lambda frames: frames)


class PrefixLoss(Loss):
    """The mean cross entropy of the prefixes of the sensors: the first one, two, …, all but the last.

    A frame sees only the memories of the frames before it, so the mean logits of the first k frames are exactly the
    network's output for those k sensors. In random order (``model.order: shuffled``), every subset of the sensors
    occurs as a prefix, in every order. Only the cross entropies cost time; nothing is encoded, remembered or decoded
    twice. With a fusion of two passes, the frames of a prefix have also seen the other frames, so prefixes are not
    subsets. With one sensor the loss is 0.

    Source: ours.
    """

    reads_alone = True

    def __call__(self, inputs: LossInputs) -> Tensor:
        return _mean(inputs, _beginnings)


class TeacherLoss(Loss):
    """The mean over all labeled pixels of KL(teacher ‖ logits) · T², where T is the temperature.

    Each pixel has the divergence of its cell at stride 4, so nothing is upsampled.

    Source: Hinton, Vinyals and Dean, arXiv 1503.02531; the factor T² keeps the size of the gradient for any T.
    """

    Settings = Teacher
    settings: Teacher

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The divergence of ``inputs.logits`` from ``inputs.teacher``."""
        sums, counts = [], []
        for logits, teacher, label in zip(inputs.logits, inputs.teacher, inputs.labels, strict=True):
            cells = (logits.shape[-2], logits.shape[-1])
            share = F.adaptive_avg_pool2d((label != inputs.ignored).float(), cells)  # (B, H, W) -> (B, h, w)
            # A product instead of a selection, so that NaN at any place is visible in the sum.
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
    """The mean logits of the first 1, 2, …, M − 1 frames."""
    sums = itertools.accumulate(frames[:-1])
    return [total / (number + 1) for number, total in enumerate(sums)]


def _mean(inputs: LossInputs, judged: Callable[[Sequence[Tensor]], Sequence[Tensor]]) -> Tensor:
    """The cross entropy of logits that are computed from the frames of each batch; the mean over pixels and logits."""
    if len(inputs.task.modalities) == 1:
        return torch.zeros((), device=inputs.task.device)
    losses = [
        pixel_losses(logits, label).sum()
        for frames, label in zip(inputs.alone, inputs.labels, strict=True)
        for logits in judged(frames)
    ]
    valid = torch.stack([(label != inputs.ignored).sum() for label in inputs.labels]).sum()
    # Sums over all processes, because one may have more labeled pixels than another.
    pixels = inputs.total(valid).clamp(min=1) * len(losses) // len(inputs.labels)
    return inputs.total(torch.stack(losses).sum()) / pixels
