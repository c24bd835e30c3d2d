"""Made-up data sets and batches: of the right sizes, and without any file."""

from __future__ import annotations

import torch

from memorysam_cli.data.loader import Batch
from memorysam_cli.dataset import IGNORE, DatasetInfo, Modality
from memorysam_cli.recipe import ALL, Recipe

CELL = 32
"""Side in pixels of the blocks of one class."""
IGNORED = 0.05
"""Share of the blocks that count nowhere."""


def dataset(recipe: Recipe, *, classes: int) -> DatasetInfo:
    """A data set with a recipe's modalities and ``classes`` classes; nothing is on disk."""
    assert recipe.data.modalities != (ALL,)
    return DatasetInfo(
        name="made-up",
        title="made up to measure with",
        classes=tuple(f"class-{index}" for index in range(classes)),
        palette=tuple((index, index, index) for index in range(classes)),
        modalities=tuple(Modality(name=name, kind="rgb") for name in recipe.data.modalities),
    )


def batch(recipe: Recipe, *, classes: int, seed: int = 0, device: torch.device | str = "cpu") -> Batch:
    """One training batch of a recipe's size: noise, with labels in blocks.

    Args:
        recipe: says how many scenes, modalities and pixels.
        classes: of the labels; a few blocks are ignored.
        seed: of everything.
        device: where it is wanted.
    """
    random = torch.Generator().manual_seed(seed)
    size, scenes = recipe.data.image_size, recipe.train.batch
    frames = [torch.randn(scenes, 3, size, size, generator=random) for _ in recipe.data.modalities]
    cells = torch.randint(classes, (scenes, size // CELL, size // CELL), generator=random)
    cells[torch.rand(cells.shape, generator=random) < IGNORED] = IGNORE
    label = cells.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)  # (B, h, w) -> (B, H, W)
    return Batch(frames, label, ()).to(device)
