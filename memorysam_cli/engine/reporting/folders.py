"""The content of folders: a training run, an evaluation or a prediction, its documents, and its scenes for a gallery.

The error for a damaged file names it; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from memorysam_cli.engine.evaluate.result_files import NAMES
from memorysam_cli.engine.predict import files as predictions
from memorysam_cli.engine.run_folder import LATEST, RECIPE, RUNS, RunFolder
from memorysam_cli.errors import UsageError
from memorysam_cli.report import pages, pictures
from memorysam_cli.storage import documents
from memorysam_cli.text import command, counted

FolderKind = Literal["training", "evaluation", "prediction"]
Facts = dict[str, Any]
"""Values for a page's template, or the content of one of our documents."""
PICTURE_KINDS = {".png": "png", ".jpg": "jpeg"}
ROOM = pages.MOST_BYTES * 2 // 3
"""Characters for pictures; the rest is for curves, tables and the recipe."""


def latest() -> Path:
    """The newest run.

    Raises:
        UsageError: there is no run.
    """
    folder = RUNS / LATEST
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no run here to report on; name a folder: memorysam report FOLDER")
    return folder


def kind(folder: Path) -> FolderKind:
    """The kind of a folder, by its files.

    Raises:
        UsageError: there is nothing to report on; the message names what was expected.
    """
    if RunFolder(folder).holds_run():
        return "training"
    if _metrics(folder).is_file() or any(folder.glob("robustness-*.json")):
        return "evaluation"
    if any((folder / name).is_file() for name in (predictions.SUCCESS, predictions.LEDGER)):
        return "prediction"
    looked = f"a run ({RECIPE}), an evaluation ({NAMES['metrics']}), predictions ({predictions.LEDGER})"
    what = "nothing to report on" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
    if (folder / predictions.PARTS).is_dir():
        raise UsageError(f"{folder}: holds predictions that are not done; run their command again first")
    raise UsageError(f"{folder}: {what}; expected {looked}")


def newest_evaluation(run: Path, *, name: str = NAMES["metrics"]) -> Path | None:
    """The newest evaluation inside a run's folder, of all its modalities if there is one.

    Args:
        run: the run's folder.
        name: name of the file to find.
    """
    scored = [path.parent for path in (run / "evaluate").rglob(name)]
    # The shallowest folder: results of some modalities and of other views are inside the default result.
    return min(scored, key=lambda path: (len(path.parts), -(path / name).stat().st_mtime_ns)) if scored else None


def _metrics(folder: Path) -> Path:
    return folder / NAMES["metrics"]


def read(path: Path) -> Facts:
    """A JSON object of ours; empty if the file does not exist.

    Raises:
        DataError: it is damaged, or of another version.
    """
    return documents.read_object(path) if path.exists() else {}


def gallery_scenes(folder: Path) -> tuple[list[Facts], str]:
    """The scenes of a stored gallery, and a note for the reader.

    Raises:
        DataError: the gallery is damaged.
    """
    gallery = pictures.read_gallery(folder)
    if gallery is None:
        return [], f"No pictures were kept; {command('evaluate', '--gallery', 4)} keeps the worst and best scenes."
    scenes = []
    for each in gallery.scenes:
        words = [each.rank, each.condition, each.case]
        words += [f"mIoU {each.miou_present:.1f}"] if each.miou_present is not None else []
        with documents.understood(folder / pictures.GALLERY_FILE):
            layers = [layer(stored.key, stored.title, folder / stored.file) for stored in each.layers]
        scenes.append(scene(each.scene, words, layers))
    return fitting(scenes)


def scene(name: str, words: Iterable[str | None], layers: Sequence[Mapping[str, str]]) -> Facts:
    """A scene in the form of the templates."""
    return {"name": name, "caption": " · ".join(word for word in words if word), "layers": list(layers)}


def layer(key: str, title: str, path: Path) -> dict[str, str]:
    """A layer from a picture file."""
    return {
        "key": key,
        "title": title,
        "src": pages.data_uri(documents.read_bytes(path), kind=PICTURE_KINDS[path.suffix]),
    }


def fitting(scenes: list[Facts], *, room: int = ROOM) -> tuple[list[Facts], str]:
    """The first scenes that fit into the page, and a note if some do not.

    A picture is in the page twice: for the viewer, and the first one for the list.
    """
    first, size = [], 0
    for each in scenes:
        size += sum(len(layer["src"]) for layer in each["layers"]) + len(each["layers"][0]["src"])
        if size > room:
            break
        first.append(each)
    if len(first) == len(scenes):
        return first, ""
    return (
        first,
        f"{len(scenes) - len(first)} of {counted(len(scenes), 'scene', 'is')} left out, so that this file stays small.",
    )
