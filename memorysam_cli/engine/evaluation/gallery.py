"""The worst and the best scenes of an evaluation as pictures, for the report's gallery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from memorysam_cli.data.decode import read_sample
from memorysam_cli.data.loader import ScoredScene, scored_scenes
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.dataset import Modality
from memorysam_cli.engine.evaluation.counts import SceneScore
from memorysam_cli.engine.evaluation.scoring import Network, own_rows, scoring
from memorysam_cli.report import galleries, overlays
from memorysam_cli.report.galleries import Gallery, GalleryScene, Rank
from memorysam_cli.storage import atomic

EACH = 4
"""Scenes from either end."""


def extremes(scores: Sequence[SceneScore], *, each: int) -> list[tuple[SceneScore, Rank]]:
    """The worst scenes, then the best ones, by the mean IoU of the classes that their labels have.

    Args:
        scores: of all scenes.
        each: how many from either end, at most; a scene stands once, and one without a label's pixel not at all.
    """
    ranked = sorted((score for score in scores if score.pixels), key=lambda score: score.miou_present)
    worst = ranked[: min(each, (len(ranked) + 1) // 2)]
    best = ranked[len(worst) :][-each:][::-1] if each else []
    return [(score, "worst") for score in worst] + [(score, "best") for score in best]


def write(
    folder: Path,
    chosen: Sequence[tuple[SceneScore, Rank]],
    manifest: Manifest,
    *,
    model: Network,
    small: Network,
    modalities: Sequence[Modality],
    image_size: int,
    device: torch.device,
    tile: bool,
    advance: Callable[[int], object] | None = None,
) -> None:
    """Segment scenes again, as they were scored at the labels' own size, and store what was seen and found.

    Args:
        folder: the gallery's; one that is there is replaced.
        chosen: of :func:`extremes`.
        manifest: the data set of the scenes.
        model: sees the frames that keep their own resolution.
        small: sees the others.
        modalities: what the networks are shown, in the order of their memory.
        image_size: short side in pixels.
        device: where the networks are.
        tile: whether large frames keep their own resolution.
        advance: told after each scene.

    Raises:
        DataError: a file cannot be used any more.
        EnvironmentFault: the pictures cannot be written.
    """
    info, stored = manifest.info, []
    galleries.clear(folder)
    atomic.make_folder(folder)
    scenes = [score.scene for score, _ in chosen]
    source = scored_scenes(manifest, scenes=scenes, modalities=modalities, size=image_size, workers=0, tile=tile)
    for number, ((score, rank), seen) in enumerate(zip(chosen, source, strict=True)):
        scene = score.scene
        prediction, confidence = _decide(model if seen.is_large else small, seen, device=device)
        sample = read_sample(
            manifest.root, scene, modalities=modalities, rule=info.label, classes=len(info.classes),
            palette=info.palette,
        )  # fmt: skip
        layers = galleries.pictures(
            sample.frames, prediction, palette=info.palette, label=sample.label, confidence=confidence
        )
        stored.append(
            GalleryScene(
                scene.id, scene.split, scene.condition, scene.case, rank, score.miou_present, score.accuracy,
                sample.size, galleries.store(folder, number, layers),
            )
        )  # fmt: skip
        if advance is not None:
            advance(1)
    galleries.write(folder, Gallery(info.classes, tuple(info.palette), tuple(stored)))


def _decide(model: Network, seen: ScoredScene, *, device: torch.device) -> tuple[overlays.Mask, galleries.Share]:
    """The class of each pixel of the scene's own size, and its probability."""
    label = seen.whole.label
    assert label is not None  # scored scenes have one
    height, width = label.shape[-2:]
    classes = torch.empty(height, width, dtype=torch.uint8)
    shares = torch.empty(height, width)
    with scoring(model):
        logits = model.logits([frame.to(device) for frame in seen.whole.frames]).float()[0]
        for rows, some in own_rows(logits, height=height, width=width):
            best = some.softmax(0).max(0)
            classes[rows], shares[rows] = best.indices.cpu().byte(), best.values.cpu()
    return classes.numpy(), shares.numpy()
