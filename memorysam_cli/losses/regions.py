"""Dice, Lovász and focal: further terms beside OHEM, for classes of few pixels and for pixels that stay hard.

All three are exact: whatever the batches of an update and the processes, the value and the gradient are those of one
batch in one process. Dice and Lovász ask how well whole regions overlap. They look at cells (stride 4, where the
network's logits are; a cell's class is that of the pixel at its middle), which is a sixteenth of the work.
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
    """The cells of some batches, side by side.

    Attributes:
        probabilities: (K, N) float32, with their graph.
        classes: (N,) int64, 255 = ignored.
    """

    probabilities: Tensor
    classes: Tensor

    def are_of(self, number: int) -> Tensor:
        """(N,) bool: the cells of a class."""
        return self.classes == number


class DiceLoss(Loss):
    """1 − 2·|P ∩ G| / (|P| + |G|), the mean over the classes that an update has.

    P are a class's probabilities, G its cells, both added up over all scenes of the update, so that a class with a few
    cells in one scene does not count like one that fills it.

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
    """The Lovász extension of 1 − IoU, the mean over the classes that an update has: what mIoU counts, as a surface.

    A class's cells are put in the order of their errors, and each error weighs what it would add to 1 − IoU there. All
    scenes of the update make one order, which with several processes is that of all of them.

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
    """(1 − p)^γ × the cross entropy, the mean over all pixels that count, at full size.

    Source: Lin et al. (2017), without α; ``ohem.class_weights`` has weights of classes.
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
    """The class of the pixel in the middle of each cell: (B, H, W) -> (B, h, w)."""
    (height, width), (h, w) = label.shape[-2:], logits.shape[-2:]
    rows = (2 * torch.arange(h, device=label.device) + 1) * height // (2 * h)
    columns = (2 * torch.arange(w, device=label.device) + 1) * width // (2 * w)
    return label[:, rows][:, :, columns]


def lovasz_weights(errors: Tensor, is_class: Tensor) -> Tensor:
    """What each error weighs in the Lovász extension of one class's 1 − IoU, at its own place.

    Args:
        errors: (N,) float32 from 0 to 1; 0 where the cell is ignored, so that it comes last and adds nothing.
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
    """Values of all processes, without their graph: (N,) -> (processes, N), the same in each."""
    if exchange is None:
        return values.unsqueeze(0)
    places = values.new_zeros(exchange.world, len(values))
    places[exchange.rank] = values
    return exchange.sum(places).detach()


def _own(values: Tensor, exchange: Exchange | None) -> Tensor:
    """This process's of what was computed of :func:`gathered` values: (processes·N,) -> (N,)."""
    return values if exchange is None else values.view(exchange.world, -1)[exchange.rank]


def _mean_of_present(losses: Tensor, present: Tensor) -> Tensor:
    """The mean over the classes that are there; 0 without any."""
    # A product, no selection: a loss that is not a number shows, wherever it is.
    return (losses * present).sum() / present.sum().clamp(min=1)
