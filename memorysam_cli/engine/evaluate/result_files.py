"""The folder of an evaluation's results: its place and its files. This module needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memorysam_cli.dataset import Modality
from memorysam_cli.engine import run_folder
from memorysam_cli.errors import MemorySamError, UsageError
from memorysam_cli.storage import documents, lock

if TYPE_CHECKING:
    from memorysam_cli.engine.infer.views import View
    from memorysam_cli.model import WeightsCard

NAMES = {
    "metrics": "metrics.json",
    "per_class": "per_class.csv",
    "breakdown": "breakdown.csv",
    "scenes": "scenes.csv",
    "confusion_resized": "confusion-resized.csv",
    "confusion_native": "confusion-native.csv",
    "confusion_figure": "confusion.png",
    "per_class_figure": "per_class.png",
}
"""Key in the report's ``files`` → file name; ``confusion`` is that of the report's protocol."""
GALLERY = "gallery"
"""The folder of pictures of the worst and best scenes."""


def folder_for(
    weights: Path,
    *,
    run: Path | None,
    digest: str,
    split: str,
    card: WeightsCard,
    modalities: Sequence[Modality],
    view: View | None = None,
) -> Path:
    """The folder of results: ``<run>/evaluate/<split>``; for weights other than the best with their name between.

    For weights outside a run it is ``evaluate/<name>-<start of the SHA-256>/<split>`` in the current folder, because
    names such as ``best`` are common. For some of the modalities, or another view than the default, a folder inside is
    used, so that these results never replace the full result.
    """
    if run is None:
        folder = Path("evaluate") / f"{weights.stem}-{digest[:8]}" / split
    else:
        is_best = weights.name == run_folder.RunFolder(run).best.name
        folder = run / "evaluate" / ("." if is_best else weights.stem) / split
    if len(modalities) < len(card.modalities):
        zeros = "-zero" if view is not None and view.missing == "zero" else ""
        folder /= "+".join(modality.name for modality in modalities) + zeros
    if view is not None:
        folder /= view.name
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder whose files would be replaced although no evaluation wrote them.

    Raises:
        UsageError: it has such files, and neither a report nor a lock's record.
    """
    present = [name for name in NAMES.values() if (folder / name).exists()]
    if present and not (folder / lock.NAME).exists() and not _is_report(folder / NAMES["metrics"]):
        raise UsageError(f"--out {folder}: holds {present[0]}, which no evaluation wrote; give another folder")


def _is_report(path: Path) -> bool:
    """Whether a file is the report of an evaluation."""
    try:
        document = documents.read_json(path)
    except (MemorySamError, OSError):
        return False
    return isinstance(document, dict) and "weights_sha256" in document
