"""Segmentation metrics from one confusion matrix (METHOD §5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memorysam_cli.dataset import IGNORE

AT_ONCE = 2**22
"""Pixels that are counted at once: each takes some 40 bytes meanwhile."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Per-class values and their means, all in percent and not rounded.

    ``miou``, ``mf1`` and ``macc`` are means over all K classes, where an empty class counts 0.
    Those with ``_present`` are means over the classes that have ground truth (0 if there is none).
    """

    iou: tuple[float, ...]
    f1: tuple[float, ...]
    accuracy: tuple[float, ...]
    pixels: tuple[int, ...]
    """Ground-truth pixels per class."""
    miou: float
    mf1: float
    macc: float
    miou_present: float
    mf1_present: float
    macc_present: float

    def means(self) -> dict[str, float]:
        """All means by name, as reports give them."""
        return {
            "miou": self.miou, "macc": self.macc, "mf1": self.mf1, "miou_present": self.miou_present,
            "macc_present": self.macc_present, "mf1_present": self.mf1_present,
        }  # fmt: skip


def confusion(prediction: Tensor, label: Tensor, classes: int) -> Tensor:
    """Count the pixels of each (truth, prediction) pair.

    Args:
        prediction: any shape, integers in 0..K-1.
        label: the same shape, integers in 0..K-1 or 255, which counts nowhere.
        classes: K.

    Returns:
        (K, K) int64 on the prediction's device; rows are the truth, columns the prediction.

    Raises:
        ValueError: shapes differ, or a value is outside its range.

    Source: METHOD §5. int64: float32 loses units above 2**24, which Road and Sky pass on DELIVER's val.
    """
    if prediction.shape != label.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in shape")
    total = torch.zeros(classes * classes, dtype=torch.int64, device=prediction.device)
    parts = (torch.split(values.flatten(), AT_ONCE) for values in (prediction, label))
    for guesses, truths in zip(*parts, strict=True):
        counted = truths != IGNORE
        truth, guess = truths[counted].long(), guesses[counted].long()
        for name, values in (("label", truth), ("prediction", guess)):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < classes:
                raise ValueError(f"{name}: values {int(values.min())}..{int(values.max())}, allowed 0..{classes - 1}")
        total += torch.bincount(truth * classes + guess, minlength=classes * classes)
    return total.reshape(classes, classes)


def scores(matrix: Tensor) -> Scores:
    """IoU, F1 and accuracy (recall) of each class, and their means.

    Args:
        matrix: (K, K) int64 counts as of :func:`confusion`.

    Returns:
        Percentages. A class with an empty union, or for accuracy one without ground truth, has 0.

    Source: METHOD §5; DATASETS §1.4 (the reference turns NaN into 0 before the mean over all classes).
    """
    counts = matrix.cpu().double()  # exact up to 2**53 pixels
    hits, truth, guessed = counts.diagonal(), counts.sum(1), counts.sum(0)
    iou = _percent(hits, truth + guessed - hits)
    f1 = _percent(2 * hits, truth + guessed)
    accuracy = _percent(hits, truth)
    present = truth > 0

    def mean_of_present(values: Tensor) -> float:
        return float(values[present].mean()) if present.any() else 0.0

    return Scores(
        iou=tuple(iou.tolist()),
        f1=tuple(f1.tolist()),
        accuracy=tuple(accuracy.tolist()),
        pixels=tuple(int(count) for count in truth.tolist()),
        miou=float(iou.mean()),
        mf1=float(f1.mean()),
        macc=float(accuracy.mean()),
        miou_present=mean_of_present(iou),
        mf1_present=mean_of_present(f1),
        macc_present=mean_of_present(accuracy),
    )


def _percent(part: Tensor, whole: Tensor) -> Tensor:
    """100 · part / whole, 0 where the whole is empty."""
    return torch.where(whole > 0, 100 * part / whole.clamp(min=1), 0.0)
