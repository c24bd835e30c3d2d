"""Dice, Lovász and focal: further losses besides OHEM, for classes with few pixels and for pixels that stay hard.

All three are exact: value and gradient equal those of one batch in one process, for any batches and processes. Dice and
Lovász measure the overlap of whole regions. They use cells at stride 4, where the network's logits are, which is a
sixteenth of the work. A cell has the class of the pixel at its center.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from memorysam_cli.dataset import IGNORE
from memorysam_cli.losses.loss import Exchange, Loss, LossInputs
from memorysam_cli.losses.ohem import pixel_losses
from memorysam_cli.recipe import Focal


class Cells(NamedTuple):
    """The cells of some batches, concatenated.

    Attributes:
        probabilities: (K, N) float32, with their graph.
        classes: (N,) int64, 255 = ignored.
    """

    probabilities: Tensor
    classes: Tensor

    def are_of(self, number: int) -> Tensor:
        """(N,) bool: whether each cell has the class."""
        return self.classes == number


class DiceLoss(Loss):
    """1 − 2·|P ∩ G| / (|P| + |G|), the mean over the classes that occur in the update.

    P are a class's probabilities and G its cells, both summed over all scenes of the update. So a class with a few
    cells in one scene does not have the same influence as a class that fills it.

    Source: V-Net (Milletari et al., 2016), with plain sums in the denominator.
    """

    def __call__(self, inputs: LossInputs) -> Tensor:
        cells = cells_of(inputs.logits, inputs.labels)
        number = len(cells.probabilities)
        are = torch.stack([cells.are_of(each) for each in range(number)])  # (K, N)
        common = (cells.probabilities * are).sum(dim=1)
        predicted = (cells.probabilities * (cells.classes != IGNORE)).sum(dim=1)
        common, predicted = inputs.total(torch.stack([common, predicted]))  # one exchange for both
        true = inputs.total(are.sum(dim=1)).float()
        dice = 2 * common / (predicted + true).clamp(min=1e-6)
        return _mean_of_present(1 - dice, true > 0)


class LovaszLoss(Loss):
    """The Lovász extension of 1 − IoU, the mean over the classes in the update: a differentiable mIoU.

    The cells are sorted by their error for the class. The weight of each error is the amount by which it increases 1 −
    IoU in this order. All scenes of the update are sorted together, with several processes those of all processes.

    Source: Berman, Triki and Blaschko (2018), "Lovász-softmax", classes "present", per_image false.
    """

    def __call__(self, inputs: LossInputs) -> Tensor:
        cells = cells_of(inputs.logits, inputs.labels)
        is_valid = cells.classes != IGNORE
        everyone = gathered(cells.classes, inputs.exchange)
        losses, present = [], []
        for number, probabilities in enumerate(cells.probabilities):
            errors = (cells.are_of(number).float() - probabilities).abs().where(is_valid, 0.0)
            is_class = everyone == number
            weights = lovasz_weights(gathered(errors.detach(), inputs.exchange).flatten(), is_class.flatten())
            losses.append((errors * _own(weights, inputs.exchange)).sum())
            present.append(is_class.any())
        loss = _mean_of_present(torch.stack(losses), torch.stack(present))
        # Each process has its own cells' share: the mean over the processes is that of one process with all cells.
        return loss if inputs.exchange is None else loss * inputs.exchange.world


class FocalLoss(Loss):
    """(1 − p)^γ × the cross entropy, the mean over all labeled pixels, at full size.

    Source: Lin et al. (2017), without α; for class weights use ``ohem.class_weights``.
    """

    Settings = Focal
    settings: Focal

    def __call__(self, inputs: LossInputs) -> Tensor:
        sums, counts = [], []
        for logits, label in zip(inputs.logits, inputs.labels, strict=True):
            losses = pixel_losses(logits, label)
            # 1 − p; never quite 0, where the slope of a power below 1 is infinite.
            missed = (-torch.expm1(-losses)).clamp(min=torch.finfo(torch.float32).tiny)
            sums.append((losses * missed**self.settings.gamma).sum())
            counts.append((label != IGNORE).sum())
        number = inputs.total(torch.stack(counts).sum())
        return inputs.total(torch.stack(sums).sum()) / number.clamp(min=1)


def cells_of(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Cells:
    """The cells of an update's batches.

    Args:
        logits: (B, K, h, w) of any float type, one for each batch.
        labels: (B, H, W) int64 classes, 255 = ignored.
    """
    with torch.autocast(logits[0].device.type, enabled=False):
        probabilities = [batch.float().softmax(dim=1).transpose(0, 1).flatten(1) for batch in logits]  # -> (K, B·h·w)
    classes = [_at_cells(label, batch).flatten() for label, batch in zip(labels, logits, strict=True)]
    return Cells(torch.cat(probabilities, dim=1), torch.cat(classes))


def _at_cells(label: Tensor, logits: Tensor) -> Tensor:
    """The class of the pixel at the center of each cell: (B, H, W) -> (B, h, w)."""
    (height, width), (h, w) = label.shape[-2:], logits.shape[-2:]
    rows = (2 * torch.arange(h, device=label.device) + 1) * height // (2 * h)
    columns = (2 * torch.arange(w, device=label.device) + 1) * width // (2 * w)
    return label[:, rows][:, :, columns]


def lovasz_weights(errors: Tensor, is_class: Tensor) -> Tensor:
    """The weight of each error in the Lovász extension of a class's 1 − IoU, in the order of the arguments.

    Args:
        errors: (N,) float32 from 0 to 1; 0 for ignored cells, so that they come last and add nothing.
        is_class: (N,) bool.
    """
    order = errors.argsort(descending=True, stable=True)
    hits = is_class[order].cumsum(0, dtype=torch.int32)  # integers: float32 would lose units above 2**24 cells
    seen = torch.arange(1, len(order) + 1, device=order.device, dtype=torch.int32)
    total = hits[-1]
    lost = 1 - (total - hits) / (total + seen - hits)  # 1 − IoU where all cells so far are wrong
    steps = torch.cat([lost[:1], lost[1:] - lost[:-1]])
    return torch.zeros_like(errors).scatter_(0, order, steps)


def gathered(values: Tensor, exchange: Exchange | None) -> Tensor:
    """Values of all processes, without their graph: (N,) -> (processes, N), the same in each process."""
    if exchange is None:
        return values.unsqueeze(0)
    places = values.new_zeros(exchange.world, len(values))
    places[exchange.rank] = values
    return exchange.sum(places).detach()


def _own(values: Tensor, exchange: Exchange | None) -> Tensor:
    """The part of this process in a result computed from :func:`gathered` values: (processes·N,) -> (N,)."""
    return values if exchange is None else values.view(exchange.world, -1)[exchange.rank]


def _mean_of_present(losses: Tensor, present: Tensor) -> Tensor:
    """The mean over the classes that occur; 0 if none does."""
    # A product instead of a selection, so that NaN at any place is visible in the sum.
    return (losses * present).sum() / present.sum().clamp(min=1)
