"""What is measured: made-up data sets, batches and networks of a recipe's sizes, without any file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from memorysam_cli import recipe as recipes
from memorysam_cli.data.loader import Batch
from memorysam_cli.dataset import IGNORE, DatasetInfo, Modality
from memorysam_cli.errors import UsageError, did_you_mean
from memorysam_cli.model.weights import Segmenter, build_for_measuring
from memorysam_cli.recipe import ALL, BACKBONES, Recipe

CELL = 32
"""Side in pixels of the blocks of one class."""
IGNORED = 0.05
"""Share of the blocks that count nowhere."""


def made_up_dataset(recipe: Recipe, *, classes: int) -> DatasetInfo:
    """A data set with a recipe's modalities and ``classes`` classes; nothing is on disk."""
    assert recipe.data.modalities != (ALL,)
    return DatasetInfo(
        name="made-up",
        title="made up to measure with",
        classes=tuple(f"class-{index}" for index in range(classes)),
        palette=tuple((index, index, index) for index in range(classes)),
        modalities=tuple(Modality(name=name, kind="rgb") for name in recipe.data.modalities),
        class_pixels={recipe.data.train_split: (1,) * classes},
    )


def made_up_batch(recipe: Recipe, *, classes: int, seed: int = 0, device: torch.device | str = "cpu") -> Batch:
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


OPEN = 5.0
"""An object score: random weights would close some gates, and a gated frame teaches nothing."""


@dataclass(frozen=True)
class Workload:
    """The work of a benchmark.

    Attributes:
        task: a training step, or a prediction.
        backbone: one of ``memorysam_cli.recipe.BACKBONES``.
        modalities: M.
        size: side of the images in pixels.
        batch: scenes at once.
        classes: K.
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``; of our way, the plain one is float32.
        saver: the memory saver of training: ``auto``, ``on`` or ``off``.
        compile: compile the encoder's blocks.
    """

    task: Literal["train", "predict"] = "train"
    backbone: str = "sam2-hiera-base-plus"
    modalities: int = 4
    size: int = 1024
    batch: int = 4
    classes: int = 25
    precision: str = "fp32"
    saver: str = "auto"
    compile: bool = False

    def recipe(self) -> Recipe:
        """The recipe of the paper with all of this in it.

        Raises:
            UsageError: no such backbone, or an impossible size.
        """
        if self.backbone not in BACKBONES:
            raise UsageError(f"--backbone {self.backbone}: is unknown{did_you_mean(self.backbone, BACKBONES)}")
        if self.size <= 0 or self.size % 32:
            raise UsageError(f"--size {self.size}: must be a positive multiple of 32, such as 256 or 1024")
        names = ", ".join(f"sensor-{number + 1}" for number in range(self.modalities))
        compiled = str(self.compile).lower()
        return recipes.load(
            "deliver",
            [
                f"data.modalities=[{names}]", f"data.image_size={self.size}", f"model.backbone={self.backbone}",
                f"train.batch={self.batch}", f'train.saver="{self.saver}"', f"train.precision={self.precision}",
                f"train.compile={compiled}",
            ],
        )  # fmt: skip

    def network(self, recipe: Recipe) -> Segmenter:
        """The network on random weights, with its gates open."""
        network = build_for_measuring(recipe, made_up_dataset(recipe, classes=self.classes))
        with torch.no_grad():
            network.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(OPEN)
        return network

    def levers(self) -> str:
        """What makes the work smaller, in the command's own options: those that are not pulled yet."""
        ways = [
            *["--saver on"] * (self.task == "train" and self.saver != "on"),
            *["--precision bf16"] * (self.precision in {"fp32", "tf32"}),
            *["a smaller --batch"] * (self.batch > 1),
            *["fewer --modalities"] * (self.modalities > 1),
        ]
        return f"try {', '.join([*ways, 'a smaller --size'])}{', or a smaller --backbone' * (self.backbone != 'nano')}"

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.task} {self.backbone}, {self.size}×{self.size} pixels, {self.modalities} modalities, "
            f"batch {self.batch}, {self.precision}{', compiled' * self.compile}"
        )
