"""What a check shows: a scene of each condition with all its sensors, and how often each class occurs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from memorysam_cli.data.checking.report import Report
from memorysam_cli.data.decode import read_sample
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.data.sample import Sample
from memorysam_cli.errors import DataError
from memorysam_cli.report import figures, pictures
from memorysam_cli.report.pictures import Panel
from memorysam_cli.storage import atomic, images

SHEET, LABELS = "sheet.png", "labels.png"
ROWS = 12
"""Scenes on the sheet."""
TRIES = 5
"""Scenes of a condition that are tried until one can be read."""


def draw(manifest: Manifest, report: Report, folder: Path) -> list[Path]:
    """Write the sheet of scenes, and the histogram of classes where there are labels.

    Args:
        manifest: all scenes.
        report: what their check found.
        folder: where to.

    Returns:
        The files; without a scene that can be read there is no sheet.

    Raises:
        EnvironmentFault: they cannot be written.
    """
    written = []
    rows, masks = [], []
    for title, sample in _samples(manifest):
        row = [
            Panel(f"{title}: {name}" if index == 0 else name, pictures.as_picture(frame))
            for index, (name, frame) in enumerate(sample.frames.items())
        ]
        if sample.label is not None:
            row.append(Panel("label", pictures.colour(sample.label, manifest.info.palette)))
            masks.append(sample.label)
        rows.append(row)
    if rows:
        entries = pictures.legend(masks, classes=manifest.info.classes, palette=manifest.info.palette)
        images.write_png(folder / SHEET, pictures.sheet(rows, entries))
        written.append(folder / SHEET)
    shares = {split: _shares(counts) for split, counts in report.pixels.items() if sum(counts[:-1])}
    if shares:
        title = f"{report.dataset}: share of the labelled pixels"
        atomic.write_bytes(folder / LABELS, figures.class_histogram(shares, classes=report.classes, title=title))
        written.append(folder / LABELS)
    return written


def groups(scenes: Sequence[Scene]) -> dict[str, list[Scene]]:
    """Scenes by condition and failure, by split where there is neither; at most :data:`ROWS`, the commonest first."""
    found: dict[str, list[Scene]] = {}
    for scene in scenes:
        name = " ".join(word for word in (scene.condition, scene.case) if word) or scene.split
        found.setdefault(name, []).append(scene)
    kept = sorted(found, key=lambda name: -len(found[name]))[:ROWS]
    return {name: found[name] for name in sorted(kept)}


def _samples(manifest: Manifest) -> Iterator[tuple[str, Sample]]:
    """A scene of each group that can be read; what cannot is in the check's report."""
    info = manifest.info
    for name, scenes in groups(manifest.scenes).items():
        middle = len(scenes) // 2  # the first frames of a drive often stand still
        for scene in (scenes[middle:] + scenes[:middle])[:TRIES]:
            try:
                modalities = [modality for modality in info.modalities if modality.name in scene.files]
                yield name, read_sample(
                    manifest.root, scene, modalities=modalities, classes=len(info.classes), palette=info.palette,
                    rule=None if scene.label is None else info.label,
                )  # fmt: skip
                break
            except (DataError, OSError):
                continue


def _shares(counts: Sequence[int]) -> list[float]:
    """Percentages of the classes; the last count is of ignored pixels."""
    total = sum(counts[:-1])
    return [100 * count / total for count in counts[:-1]]
