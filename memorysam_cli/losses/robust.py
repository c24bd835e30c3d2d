"""The losses of training for failing sensors."""

from __future__ import annotations

import torch
from torch import Tensor

from memorysam_cli.losses.loss import Loss, LossInputs
from memorysam_cli.losses.ohem import pixel_losses


class SingleLoss(Loss):
    """The mean cross entropy of what each sensor's frame says by itself, over all labelled pixels and all frames.

    A frame sees the memories of those before it, so only the first stands quite alone. With one sensor the loss is 0:
    its frame's logits are those of the scene already.

    Source: after MLE-SAM's single-modality terms; weight and form are ours.
    """

    reads_alone = True

    def __call__(self, inputs: LossInputs) -> Tensor:
        if len(self.task.modalities) == 1:
            return torch.zeros((), device=self.task.device)
        losses = [
            pixel_losses(logits, label).sum()
            for frames, label in zip(inputs.alone, inputs.labels, strict=True)
            for logits in frames
        ]
        frames = len(inputs.alone[0])
        valid = torch.stack([(label != inputs.ignored).sum() for label in inputs.labels]).sum()
        # Sums over all processes, as those of a process may have more labelled pixels than those of another.
        pixels = inputs.total(valid).clamp(min=1) * frames
        return inputs.total(torch.stack(losses).sum()) / pixels
