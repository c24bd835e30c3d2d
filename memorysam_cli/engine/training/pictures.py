"""What a run shows of itself: its curves, and how it sees a few scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memorysam_cli.data.decode import read_sample
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.data.sample import Sample
from memorysam_cli.data.transforms import for_prediction, to_tensor
from memorysam_cli.engine.evaluation.scoring import own_size, scoring
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.model import Segmenter
from memorysam_cli.report import figures, overlays
from memorysam_cli.storage import atomic, documents, images

SAMPLES = 4
"""Scenes on the sheet, spread evenly over the split."""


def draw_curves(run: RunFolder) -> None:
    """Write ``plots/curves.png`` from the metrics so far."""
    rows = documents.read_json_lines(run.metrics)
    atomic.write_bytes(run.plots / "curves.png", figures.curves(rows, title=run.path.name))


def draw_samples(network: Segmenter, manifest: Manifest, scenes: Sequence[Scene], folder: Path) -> None:
    """Write ``validation.png``: modalities, label, prediction and errors of a fixed few scenes."""
    chosen = [scenes[index * len(scenes) // SAMPLES] for index in range(SAMPLES)] if len(scenes) > SAMPLES else scenes
    info = manifest.info
    rows, masks = [], []
    for scene in chosen:
        sample, prediction = _predict(network, manifest, scene)
        assert sample.label is not None
        rows.append(overlays.comparison(sample.frames, prediction, palette=info.palette, label=sample.label))
        masks += [sample.label, prediction]
    entries = overlays.legend(masks, classes=info.classes, palette=info.palette)
    images.write_png(folder / "validation.png", overlays.sheet(rows, entries))


def _predict(network: Segmenter, manifest: Manifest, scene: Scene) -> tuple[Sample, overlays.Mask]:
    """A scene as its files have it, and the class map of its own size."""
    info, modalities = manifest.info, network.card.modalities
    sample = read_sample(
        manifest.root,
        scene,
        modalities=modalities,
        rule=info.label,
        classes=len(info.classes),
        palette=info.palette,
    )
    seen = for_prediction(sample, modalities=modalities, size=network.image_size)
    frames = [to_tensor(seen.frames[m.name], m).unsqueeze(0).to(network.device) for m in modalities]
    with scoring(network):
        logits = own_size(network.logits(frames)[0], height=sample.size[0], width=sample.size[1])
    return sample, logits.argmax(dim=0).cpu().numpy()
