"""Pixels that are being counted, in both evaluation protocols (METHOD §5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from memorysam_cli import laws
from memorysam_cli.data.manifest import Scene
from memorysam_cli.dataset import IGNORE
from memorysam_cli.engine.evaluation.metrics import confusion
from memorysam_cli.engine.processes import wait_for_all

ProtocolName = Literal["resized", "native"]
PROTOCOLS: tuple[ProtocolName, ...] = ("resized", "native")
NORMAL = "normal"
"""What a scene without a sensor failure is called in results, and may be called in a manifest."""


class Group(NamedTuple):
    """Scenes that no breakdown tells apart."""

    split: str
    condition: str | None
    case: str | None


def group_of(scene: Scene) -> Group:
    """The group that a scene belongs to; empty names are none."""
    case = None if scene.case == NORMAL else scene.case or None
    return Group(scene.split, scene.condition or None, case)


class Tally:
    """Counts that are being added up: int64, because float32 loses units above 2**24.

    Args:
        scenes: all that are scored, in every process alike.
        classes: K.
    """

    def __init__(self, scenes: Sequence[Scene], *, classes: int) -> None:
        self.groups = tuple(sorted({group_of(scene) for scene in scenes}, key=str))
        self.confusions = torch.zeros(len(PROTOCOLS), len(self.groups), classes, classes, dtype=torch.int64)
        self.per_scene = torch.zeros(len(PROTOCOLS), len(scenes), 3, classes, dtype=torch.int64)
        self.ignored = torch.zeros(len(PROTOCOLS), dtype=torch.int64)
        self.pixels = torch.zeros(len(PROTOCOLS), dtype=torch.int64)
        self.scored = torch.zeros(len(PROTOCOLS), dtype=torch.int64)
        self.classes = classes
        self._group_places = {group: index for index, group in enumerate(self.groups)}
        self._scene_places = {scene.id: index for index, scene in enumerate(scenes)}

    def add(
        self, protocol: ProtocolName, scene: Scene, *, prediction: Tensor, label: Tensor, pixels: int | None = None
    ) -> None:
        """Count one scene.

        Args:
            protocol: the one that it is shown in.
            scene: one of those that are scored.
            prediction: (H, W) class indices.
            label: (H, W).
            pixels: how many there should be, as the label's file says; none: as many as the label has.
        """
        place = protocol_index(protocol)
        counted = confusion(prediction, label, self.classes).cpu()
        self.confusions[place, self._group_places[group_of(scene)]] += counted
        each = torch.stack([counted.diagonal(), counted.sum(1), counted.sum(0)])  # hits, truth, guessed: (3, K)
        self.per_scene[place, self._scene_places[scene.id]] += each
        self.ignored[place] += int((label == IGNORE).sum())
        self.pixels[place] += label.numel() if pixels is None else pixels
        self.scored[place] += 1

    def add_up(self, accelerator: Accelerator) -> None:
        """Sum over all processes."""
        wait_for_all(accelerator)  # one may have had the larger scenes
        parts = [self.confusions, self.ignored, self.pixels, self.scored, self.per_scene]
        flat = torch.cat([part.flatten() for part in parts]).to(accelerator.device)
        summed = accelerator.reduce(flat, reduction="sum").cpu().split([part.numel() for part in parts])
        self.confusions, self.ignored, self.pixels, self.scored, self.per_scene = (
            whole.view_as(part) for whole, part in zip(summed, parts, strict=True)
        )

    def check(self) -> laws.Report:
        """Every scene was scored once, and every pixel of its label: in a matrix, or as ignored.

        Raises:
            LawBroken: a scene or a pixel was lost, or counted twice.
        """
        sums: dict[str, tuple[int, int]] = {}
        for place, name in enumerate(PROTOCOLS):
            counted = int(self.confusions[place].sum())
            what = "height × width of the label files" if name == "native" else "pixels of the labels"
            sums |= {
                f"{name}: scenes asked = scored + left out": (self.per_scene.shape[1], int(self.scored[place])),
                f"{name}: {what} = confusion + ignored": (
                    int(self.pixels[place]),
                    counted + int(self.ignored[place]),
                ),
                f"{name}: confusion = pixels of the scenes": (counted, int(self.per_scene[place, :, 1].sum())),
            }
        return laws.check(sums)


def protocol_index(protocol: str) -> int:
    """The place of a protocol in a tally's tensors; ``ValueError`` if there is none of that name."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol '{protocol}': known are {', '.join(PROTOCOLS)}")
    return PROTOCOLS.index(protocol)
