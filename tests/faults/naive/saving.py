"""Masks and weights as most programs save them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch


def write_mask(path: Path, mask: np.ndarray) -> None:
    cv2.imwrite(str(path), mask)


def write_weights(path: Path, weights: torch.Tensor) -> None:
    torch.save(weights, path)
