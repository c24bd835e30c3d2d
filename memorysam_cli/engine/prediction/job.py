"""A prediction's job: all that decides a byte of its results, and what tells it from another one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from memorysam_cli import model as models
from memorysam_cli.data.manifest import Scene
from memorysam_cli.dataset import Modality
from memorysam_cli.engine import runtime
from memorysam_cli.engine.infer.views import View
from memorysam_cli.engine.prediction.scene_files import SceneFiles
from memorysam_cli.errors import WeightsError
from memorysam_cli.model.weights import Segmenter, WeightsCard
from memorysam_cli.storage import documents, tensors


@dataclass(frozen=True)
class Job:
    """Which scenes are segmented with which weights, and how."""

    weights: Path
    weights_sha256: str
    card: WeightsCard
    scenes: Sequence[Scene]
    root: Path
    """What the scenes' paths are relative to."""
    source: str
    """What the user called the scenes."""
    modalities: tuple[Modality, ...]
    """Those that the model may be shown, in the order of its memory."""
    extras: tuple[str, ...] = ()
    """Pictures beside the masks, of :data:`~memorysam_cli.engine.prediction.folder.EXTRAS`."""
    view: View = field(default_factory=View)
    batch: int = 4
    """Scenes that share a forward pass, at most."""
    precision: str = "fp32"
    is_compiled: bool = False

    @property
    def stride(self) -> int:
        """So many consecutive scenes stay together, whoever segments them: other company could change a last bit.

        Large frames at their own resolution come one at a time: their logits are gigabytes.
        """
        return 1 if self.view.tile else self.batch

    @cached_property
    def marks(self) -> dict[str, Any]:
        """What must agree for two runs to be the same job, in words for people."""
        return {
            "weights": self.weights_sha256,
            "scenes": _digest(_scene_lines(self.scenes)),
            "modalities": [modality.name for modality in self.modalities],
            "pictures": list(self.extras),
            **self.view.to_json(size=self.card.image_size),
            "--batch": self.batch,
            "--precision": self.precision,
            "--compile": self.is_compiled,
            "versions": runtime.describe("cpu", self.precision)["versions"],
        }

    @cached_property
    def sha256(self) -> str:
        """Of the marks."""
        return _digest([documents.to_json(self.marks)])

    def files(self, out: Path) -> SceneFiles:
        """What writes the scenes' files into a folder."""
        return SceneFiles(out, self.root, self.card.dataset, self.modalities, self.extras)

    def load(self, device: torch.device) -> Segmenter:
        """The network, ready to predict.

        Raises:
            WeightsError: the weights are refused, or the file is another than the one that was planned with.
        """
        network = models.load(self.weights, device=device)
        if tensors.sha256(self.weights) != self.weights_sha256:
            raise WeightsError(f"{self.weights}: has changed since this prediction began; run the same command again")
        if self.is_compiled:
            network.compile_blocks()
        return network

    def facts(self, devices: Iterable[str]) -> dict[str, Any]:
        """What is computed with what: the part of a report that no pixel decides.

        Args:
            devices: names of those that computed it, as of :func:`device_name`, each once.
        """
        return {
            "job": self.sha256,
            "inputs": self.source,
            "dataset": self.card.dataset.name,
            "modalities": [m.name for m in self.modalities if any(m.name in scene.files for scene in self.scenes)],
            **self.view.to_json(size=self.card.image_size),
            "image_size": self.card.image_size,
            "weights": str(self.weights),
            "weights_sha256": self.weights_sha256,
            **runtime.describe("cpu", self.precision),
            "device": " + ".join(devices),
        }


def device_name(device: torch.device) -> str:
    """What a report calls a device."""
    return str(runtime.describe(device)["device"])


def _scene_lines(scenes: Sequence[Scene]) -> Iterator[str]:
    """A line per scene: its name, and the files that it is read from."""
    for scene in scenes:
        yield documents.to_json([scene.id, {name: list(paths) for name, paths in sorted(scene.files.items())}])


def _digest(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text."""
    found = hashlib.sha256()
    for line in lines:
        found.update(line.encode() + b"\n")
    return found.hexdigest()
