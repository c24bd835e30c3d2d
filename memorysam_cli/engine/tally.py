"""Pixels that are being counted, in both evaluation protocols (METHOD §5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from memorysam_cli.data.manifest import Scene
from memorysam_cli.dataset import IGNORE
from memorysam_cli.engine.metrics import confusion

ProtocolName = Literal["resized", "native"]
PROTOCOLS: tuple[ProtocolName, ...] = ("resized", "native")


class Tally:
    """Counts that are being added up: int64, because float32 loses units above 2**24."""

    def __init__(self, groups: Sequence[tuple[str | None, str | None]], *, classes: int) -> None:
        self.groups = {group: index for index, group in enumerate(groups)}
        self.confusions = torch.zeros(len(PROTOCOLS), len(groups), classes, classes, dtype=torch.int64)
        self.ignored = torch.zeros(len(PROTOCOLS), dtype=torch.int64)
        self.pixels = torch.zeros(len(PROTOCOLS), dtype=torch.int64)
        self.classes = classes

    def add(self, protocol: ProtocolName, scene: Scene, *, prediction: Tensor, label: Tensor) -> None:
        """Count one scene: (H, W) class indices against its (H, W) label."""
        place, group = protocol_index(protocol), self.groups[scene.condition, scene.case]
        self.confusions[place, group] += confusion(prediction, label, self.classes).cpu()
        self.ignored[place] += int((label == IGNORE).sum())
        self.pixels[place] += label.numel()

    def add_up(self, accelerator: Accelerator) -> None:
        """Sum over all processes."""
        parts = [self.confusions, self.ignored, self.pixels]
        flat = torch.cat([part.flatten() for part in parts]).to(accelerator.device)
        summed = accelerator.reduce(flat, reduction="sum").cpu().split([part.numel() for part in parts])
        self.confusions, self.ignored, self.pixels = (
            whole.view_as(part) for whole, part in zip(summed, parts, strict=True)
        )

    def check(self) -> None:
        """Every pixel of every label was counted once: in a matrix, or as ignored."""
        assert torch.equal(self.confusions.sum((1, 2, 3)) + self.ignored, self.pixels)


def protocol_index(protocol: str) -> int:
    """The place of a protocol in a tally's tensors; ``ValueError`` if there is none of that name."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol '{protocol}': known are {', '.join(PROTOCOLS)}")
    return PROTOCOLS.index(protocol)
