"""The files of a prediction, their names, and how they are written and removed.

A prediction folder has ``masks/<scene id>.png`` (and ``color``, ``overlay``, ``confidence``, ``probabilities`` if
requested), ``classes.json``, the ledger ``predictions.jsonl`` with one line per scene, and, written last,
``_SUCCESS.json``. Until then, progress is recorded below ``.parts``; see :mod:`~memorysam_cli.engine.predict.parts`. A
scene's files and its line in the ledger are a pure function of the scene and the job.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memorysam_cli.data import listing
from memorysam_cli.data.decode import read_modality
from memorysam_cli.data.manifest import Scene
from memorysam_cli.data.transforms import resize_nearest
from memorysam_cli.dataset import IGNORE, DatasetInfo, Modality
from memorysam_cli.engine.infer.decision import PLAIN, Decision, Wanted
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.report import console, pictures
from memorysam_cli.storage import atomic, documents, images, lock
from memorysam_cli.text import counted

LEDGER = "predictions.jsonl"
CLASSES = "classes.json"
SUCCESS = "_SUCCESS.json"
LEGEND = "legend.png"
MASKS = "masks"
EXTRAS = ("color", "overlay", "confidence", "probabilities")
"""Extra outputs besides the masks, each in a folder of its own."""
SUFFIXES = {"probabilities": ".npz"}
"""Suffixes of the extra outputs that are not PNG."""
PARTS = ".parts"
"""The folder for the progress of parts; it exists only until the last part is done."""

FOREIGN = "is not empty and holds no predictions; give another folder, or --overwrite"
"""Why a foreign folder is left alone."""

LedgerLine = dict[str, Any]
"""A line of the ledger: ``id``, ``status`` and more."""

KEY_PX = 480
"""Width of the legend in pixels."""
SMALL_PX = 480
"""Overlays of smaller scenes are enlarged to about this size by an integer factor, so that the legend is not too
large."""


def refuse_collisions(scenes: Sequence[Scene]) -> None:
    """Refuse scenes whose outputs would be the same file, also on a file system that ignores case.

    Raises:
        DataError: as :func:`~memorysam_cli.data.listing.refuse_collisions`.
    """
    listing.refuse_collisions([scene.id for scene in scenes])


def refuse_out(out: Path, *, overwrite: bool = False) -> None:
    """Refuse an unusable output folder; it may not exist yet.

    Args:
        out: the output folder.
        overwrite: it may contain files that are not a prediction.

    Raises:
        UsageError: it is a file, or contains something that is not a prediction.
        EnvironmentFault: nothing can be written there.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file; give a folder")
    if not overwrite and is_foreign(out):
        raise UsageError(f"--out {out}: {FOREIGN}")
    atomic.refuse_unwritable(out)


def is_foreign(out: Path) -> bool:
    """Whether a folder contains something, but no prediction.

    The folder is listed once, so that files which another shard creates meanwhile are not mistaken for foreign ones. A
    lock's files alone do not count: refused weights leave them in an otherwise untouched folder.
    """
    names = {entry.name for entry in out.iterdir()} - {*lock.NAMES, lock.FAULTS} if out.is_dir() else set()
    return bool(names) and not names & {LEDGER, PARTS}


@dataclass(frozen=True)
class SceneFiles:
    """Where and how to write scenes. Several threads, processes and machines may do so at the same time."""

    out: Path
    root: Path
    """The folder to which the scenes' paths are relative."""
    info: DatasetInfo
    """Classes and palette."""
    modalities: tuple[Modality, ...]
    """The modalities that the model may see, in the order of its memory."""
    extras: tuple[str, ...] = ()
    """Extra outputs, from :data:`EXTRAS`."""
    wanted: Wanted = PLAIN
    """What is computed for each pixel, besides the extra outputs."""

    def write(self, scene: Scene, decision: Decision, *, modalities: Sequence[str]) -> LedgerLine:
        """Write a scene's files, all or nothing: if one fails, the others are removed.

        Args:
            scene: the segmented scene.
            decision: at the scene's own size.
            modalities: the modalities that the network saw.

        Returns:
            The scene's line for the ledger.

        Raises:
            EnvironmentFault: a file cannot be written.
            DataError: the picture under an overlay can no longer be read.
        """
        mask, sureness, probabilities = decision.arrays()
        decided = {"confidence": sureness, "probabilities": probabilities}
        files: dict[str, str] = {}
        try:
            files["mask"] = self._save(MASKS, scene, mask)
            for extra in self.extras:
                values = decided[extra] if extra in decided else self._picture(extra, scene, modalities, mask=mask)
                assert values is not None  # it was computed if requested
                files[extra] = self._save(extra, scene, values)
        except BaseException:
            remove(self.out, files)
            raise
        known = len(self.info.classes)
        pixels = np.bincount(mask.ravel(), minlength=max(known, IGNORE + 1))
        unsure = {"unsure": int(pixels[IGNORE])} if self.wanted.thresholds else {}
        return {
            "id": scene.id,
            "status": "done",
            **files,
            "size": list(mask.shape),
            "modalities": list(modalities),
            "inputs": {name: list(scene.files[name]) for name in modalities},
            "stamp": self.stamp(scene, modalities),
            "classes": {str(index): int(count) for index, count in enumerate(pixels[:known]) if count},
            **unsure,
        }

    def left_out(self, scene: Scene, error: DataError) -> LedgerLine:
        """The line of an unreadable scene: ``missing`` if a file no longer exists, else ``failed``."""
        wanted = [path for each in self.modalities for path in scene.files.get(each.name, ())]
        status = "failed" if all((self.root / path).exists() for path in wanted) else "missing"
        inputs = {name: list(paths) for name, paths in scene.files.items()}
        return {"id": scene.id, "status": status, "error": str(error), "inputs": inputs}

    def paths(self, scene: Scene) -> dict[str, str]:
        """A scene's files in the output folder, as in its line: by ``mask`` and the names of the extra outputs."""
        trees = {"mask": MASKS, **{extra: extra for extra in self.extras}}
        return {key: file_of(tree, scene.id) for key, tree in trees.items()}

    def present(self, scene: Scene) -> list[str]:
        """The files of a scene that exist: regular files that are not empty."""
        return [path for path in self.paths(scene).values() if _is_filled(self.out / path)]

    def is_done(self, scene: Scene, line: LedgerLine, *, may_be_gone: bool = False) -> bool:
        """Whether a line is what :meth:`write` would return, the scene's files exist and its inputs are unchanged.

        Args:
            scene: the segmented scene.
            line: of a ledger.
            may_be_gone: missing inputs count as unchanged.
        """
        stamp = self.stamp(scene, self._names(scene))
        is_current = line.get("stamp") == stamp if stamp else may_be_gone
        return is_current and self.fits(scene, line) and len(self.present(scene)) == len(self.paths(scene))

    def fits(self, scene: Scene, line: LedgerLine) -> bool:
        """Whether a line belongs to this scene; everything that can be known without the line is checked."""
        names = self._names(scene)
        expected = {
            "id": scene.id, "status": "done", **self.paths(scene), "size": line.get("size"), "modalities": names,
            "inputs": {name: list(scene.files[name]) for name in names}, "stamp": str(line.get("stamp")),
            "classes": line.get("classes"), **({"unsure": line.get("unsure")} if self.wanted.thresholds else {}),
        }  # fmt: skip
        unsure = line.get("unsure", 0)
        return line == expected and _add_up(line["size"], line["classes"], unsure, classes=len(self.info.classes))

    def _names(self, scene: Scene) -> list[str]:
        """The modalities of a scene that the network will see."""
        return [modality.name for modality in self.modalities if modality.name in scene.files]

    def stamp(self, scene: Scene, modalities: Sequence[str]) -> str:
        """A hash that changes with the size or the time of any input; empty if an input is missing."""
        digest = hashlib.sha256()
        try:
            for path in (self.root / path for name in modalities for path in scene.files[name]):
                facts = path.stat()
                digest.update(f"{facts.st_size} {facts.st_mtime_ns}\n".encode())
        except OSError:  # removed after it was read
            return ""
        return digest.hexdigest()[:16]

    def _save(self, tree: str, scene: Scene, values: NDArray[Any]) -> str:
        """Write a PNG, or probabilities with the classes' names; returns the path in the output folder."""
        path = file_of(tree, scene.id)
        if tree == "probabilities":
            images.write_npz(self.out / path, {"classes": np.array(self.info.classes), "probabilities": values})
        else:
            images.write_png(self.out / path, values)
        return path

    def _picture(self, extra: str, scene: Scene, modalities: Sequence[str], *, mask: NDArray[Any]) -> pictures.Picture:
        if extra == "color":
            return pictures.paint(mask, self.info.palette)
        height, width = mask.shape
        blend = self.overlay(scene, modalities, mask=mask)
        entries = pictures.legend([mask], classes=self.info.classes, palette=self.info.palette)
        panel_px = height * max(1, round(SMALL_PX / max(height, width)))
        return pictures.sheet([[pictures.Panel(scene.id, blend)]], entries, panel_px=panel_px)

    def overlay(self, scene: Scene, modalities: Sequence[str], *, mask: NDArray[Any]) -> pictures.Picture:
        """A mask's colors over a scene's RGB picture, or over that of its first modality: (H, W, 3).

        Args:
            scene: the segmented scene.
            modalities: the modalities that the network saw.
            mask: (H, W), at the scene's own size.

        Raises:
            DataError: the picture can no longer be read.
        """
        present = [modality for modality in self.modalities if modality.name in modalities]
        shown = next((modality for modality in present if modality.kind == "rgb"), present[0])
        frame = read_modality(scene.sources(self.root, shown.name), shown)
        image = pictures.as_picture(resize_nearest(frame, height=mask.shape[0], width=mask.shape[1]))
        return pictures.overlay(image, mask, self.info.palette)


def is_left_out(line: LedgerLine) -> bool:
    """Whether a line states why a scene could not be read."""
    return line.get("status") in {"failed", "missing"} and isinstance(line.get("error"), str)


def clear_earlier(out: Path, info: DatasetInfo) -> None:
    """Remove the files of an earlier prediction, so that no old mask is mistaken for a new one, and write the classes.

    Args:
        out: the output folder, locked by the caller.
        info: classes and palette.
    """
    (out / SUCCESS).unlink(missing_ok=True)
    (out / LEGEND).unlink(missing_ok=True)  # perhaps for other classes
    count = clear(out / LEDGER, out)
    if count:
        console.note(f"{out}: replaces the predictions of an earlier run ({counted(count, 'scene')})")
    documents.write_json(out / CLASSES, class_list(info))


def clear(ledger: Path, out: Path) -> int:
    """Remove the files in a ledger, and then the ledger; returns its number of lines."""
    count = 0
    for count, line in enumerate(lines(ledger), 1):  # noqa: B007
        remove(out, line)
    ledger.unlink(missing_ok=True)
    return count


def lines(ledger: Path) -> Iterator[LedgerLine]:
    """The lines of a ledger that are JSON objects; other lines are skipped."""
    if not ledger.is_file():
        return
    with atomic.faults(ledger), ledger.open("rb") as stream:
        for text in stream:
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict):
                    yield line


def remove(out: Path, line: LedgerLine) -> None:
    """Remove the files in a line of a ledger. Nothing outside the output trees is touched, whatever the line contains.

    Args:
        out: the prediction folder.
        line: its keys ``mask`` and those of :data:`EXTRAS` are used.
    """
    for key in ("mask", *EXTRAS):
        path = PurePosixPath(str(line.get(key, "")))
        if len(path.parts) > 1 and path.parts[0] in (MASKS, *EXTRAS) and ".." not in path.parts:
            remove_file(out / path, tree=out / path.parts[0])


def remove_file(path: Path, *, tree: Path) -> None:
    """Remove a file of a tree, if it exists; never a folder, and never through a link that leads out of the tree.

    Raises:
        EnvironmentFault: it exists and cannot be removed.
    """
    try:
        is_ours = not stat.S_ISDIR(path.lstat().st_mode) and path.parent.resolve().is_relative_to(tree.resolve())
    except (OSError, ValueError):  # missing, or not a valid file name
        return
    if is_ours:
        with atomic.faults(path):
            path.unlink(missing_ok=True)


def sweep(out: Path) -> int:
    """Remove temporary files of killed writers; returns their number.

    Args:
        out: the output folder, locked by the caller, of a prediction that no process works on.
    """
    count = 0
    with atomic.faults(out):
        for name in (LEDGER, SUCCESS, CLASSES):
            for path in out.glob(f".{name}.tmp-*"):
                path.unlink(missing_ok=True)
                count += 1
        for tree in (MASKS, *EXTRAS):
            for place, _, names in os.walk(out / tree):  # does not follow links
                for name in filter(atomic.is_temporary, names):
                    Path(place, name).unlink(missing_ok=True)
                    count += 1
    return count


def class_list(info: DatasetInfo) -> list[dict[str, Any]]:
    """The content of ``classes.json``."""
    named = zip(info.classes, info.palette, strict=True)
    return [{"id": index, "name": name, "color": list(shade)} for index, (name, shade) in enumerate(named)]


def write_legend(out: Path, info: DatasetInfo) -> None:
    """Write ``legend.png`` beside ``classes.json``: every class and its color.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    images.write_png(out / LEGEND, pictures.key(list(zip(info.classes, info.palette, strict=True)), width=KEY_PX))


def file_of(tree: str, name: str | PurePosixPath) -> str:
    """A scene's file in a tree, relative to the output folder."""
    return f"{tree}/{PurePosixPath(name)}{SUFFIXES.get(tree, '.png')}"


def _is_filled(path: Path) -> bool:
    """Whether a file is a regular file that is not empty. A symlink is never ours, because we rename whole files into
    place."""
    with contextlib.suppress(OSError):
        facts = path.lstat()
        return stat.S_ISREG(facts.st_mode) and facts.st_size > 0
    return False


def _add_up(size: Any, pixels: Any, unsure: Any, *, classes: int) -> bool:
    """Whether the pixels of all classes, and of none, add up to the mask's size."""
    if not isinstance(size, list) or not isinstance(pixels, dict) or type(unsure) is not int or unsure < 0:
        return False
    numbers = [*size, *pixels.values()]
    return (
        len(size) == 2
        and all(type(number) is int and number > 0 for number in numbers)
        and all(name.isascii() and name.isdigit() and int(name) < classes for name in pixels)
        and sum(pixels.values()) + unsure == size[0] * size[1]
    )
