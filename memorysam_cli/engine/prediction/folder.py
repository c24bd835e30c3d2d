"""The folder that predictions are written into.

It holds ``masks/<scene id>.png`` (and ``color``, ``overlay``, ``confidence`` where asked), ``classes.json``, the
ledger ``predictions.jsonl`` with one line per scene, and, written last, ``_SUCCESS.json``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memorysam_cli.data.decode import read_modality
from memorysam_cli.data.loader import UnlabelledScene
from memorysam_cli.data.manifest import Scene
from memorysam_cli.data.resizing import resize_nearest
from memorysam_cli.dataset import DatasetInfo, Modality
from memorysam_cli.engine.evaluation.scoring import own_rows
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.report import console, overlays
from memorysam_cli.storage import atomic, documents, images, lock

SCHEMA_VERSION = 1
LEDGER = "predictions.jsonl"
CLASSES = "classes.json"
SUCCESS = "_SUCCESS.json"
MASKS = "masks"
EXTRAS = ("color", "overlay", "confidence")
"""What can be written beside the masks, each in a tree of its own."""

SHOWN_COLLISIONS = 10
SMALL_PX = 256
"""Overlays whose sides are shorter are enlarged, so that their legend does not dwarf them."""


def refuse_collisions(scenes: Sequence[Scene]) -> None:
    """Refuse scenes whose outputs would meet in one file, also on a file system that ignores case.

    Raises:
        DataError: the first ten pairs and how many there are; or an id that would leave the output folder.
    """
    owners: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    for scene in scenes:
        path = PurePosixPath(scene.id)
        if path.is_absolute() or ".." in path.parts or not path.name or "\0" in scene.id:
            raise DataError(f"scene {scene.id!r}: is no name for an output file; rename the scene")
        key = _key(f"{path}.png")
        if key in owners:
            pairs.append((owners[key], scene.id))
        owners.setdefault(key, scene.id)
    for scene in scenes:  # `a` is written as a.png, and so `a.png/b` cannot be a file in a folder of that name
        for parent in PurePosixPath(scene.id).parents:
            if _key(str(parent)) in owners:
                pairs.append((owners[_key(str(parent))], scene.id))
    if pairs:
        listed = ", ".join(f"{first!r} and {second!r}" for first, second in pairs[:SHOWN_COLLISIONS])
        more = f" and {len(pairs) - SHOWN_COLLISIONS} more" if len(pairs) > SHOWN_COLLISIONS else ""
        raise DataError(f"{len(pairs)} pairs of scenes would share an output file: {listed}{more}; rename them")


def refuse_foreign(out: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that holds something else than earlier predictions.

    Raises:
        UsageError: it is a file, or it is not empty and has no ledger.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file; give a folder")
    is_ours = (out / LEDGER).is_file()
    # Weights that are refused leave these two in an otherwise untouched folder.
    foreign = [] if not out.is_dir() else [entry for entry in out.iterdir() if entry.name not in {".lock", lock.FAULTS}]
    if foreign and not is_ours and not overwrite:
        raise UsageError(f"--out {out}: is not empty and holds no predictions; give another folder, or --overwrite")


class Writer:
    """Writes each scene's files, and then its line in the ledger.

    Args:
        out: the output folder, locked by the caller; what an earlier prediction wrote there is removed.
        root: what the scenes' paths are relative to.
        info: classes and palette.
        modalities: those that the model may be shown, in the order of its memory.
        extras: names of :data:`EXTRAS`.
    """

    def __init__(
        self, out: Path, *, root: Path, info: DatasetInfo, modalities: Sequence[Modality], extras: Sequence[str] = ()
    ) -> None:
        self.out, self.root, self.info, self.modalities, self.extras = out, root, info, modalities, extras
        self.done = 0
        self.failures: list[dict[str, str]] = []
        self.pixels = np.zeros(len(info.classes), np.int64)
        _clear(out)
        atomic.write_text(out / LEDGER, "")  # from now on the folder is known as ours, whatever happens
        documents.write_json(out / CLASSES, _classes(info))

    def write(self, found: UnlabelledScene, logits: Tensor) -> None:
        """Write one scene: (K, h, w) logits of any size, which are brought to the scene's own."""
        mask, sureness = self._decide(found, logits)
        files = {"mask": self._save(MASKS, found.scene, mask)}
        for extra in self.extras:
            picture = sureness if extra == "confidence" else self._picture(extra, found, mask=mask)
            files[extra] = self._save(extra, found.scene, picture)
        pixels = np.bincount(mask.ravel(), minlength=len(self.info.classes))
        documents.append_json_line(
            self.out / LEDGER,
            {
                "id": found.scene.id,
                "status": "done",
                **files,
                "size": list(mask.shape),
                "modalities": list(found.modalities),
                "inputs": {name: list(found.scene.files[name]) for name in found.modalities},
                "classes": {str(index): int(count) for index, count in enumerate(pixels) if count},
            },
        )
        self.pixels += pixels
        self.done += 1

    def leave_out(self, scene: Scene, fault: DataError) -> None:
        """Note a scene that cannot be read."""
        self.failures.append({"id": scene.id, "error": str(fault)})
        inputs = {name: list(paths) for name, paths in scene.files.items()}
        line = {"id": scene.id, "status": "failed", "error": str(fault), "inputs": inputs}
        documents.append_json_line(self.out / LEDGER, line)

    def finish(self, facts: dict[str, Any], *, scenes: int) -> dict[str, Any]:
        """Write ``_SUCCESS.json``, once every scene is either done or listed as left out.

        Returns:
            Its content, and that of ``memorysam predict --json``: ``schema_version``, ``facts``, ``scenes`` = ``done``
            + ``failed``, ``failures`` (``id`` and ``error``), ``classes`` (with predicted ``pixels``), and the paths
            ``out``, ``trees``, ``ledger``, ``success``.

        Raises:
            DataError: no scene could be read.
        """
        assert self.done + len(self.failures) == scenes
        if not self.done:
            raise DataError(f"none of {scenes} scenes could be read; the first: {self.failures[0]['error']}")
        counted = zip(_classes(self.info), self.pixels.tolist(), strict=True)
        report = {
            "schema_version": SCHEMA_VERSION,
            **facts,
            "scenes": scenes,
            "done": self.done,
            "failed": len(self.failures),
            "failures": self.failures,
            "classes": [{**each, "pixels": count} for each, count in counted],
            "out": str(self.out),
            "trees": {tree: str(self.out / tree) for tree in (MASKS, *self.extras)},
            "ledger": str(self.out / LEDGER),
            "success": str(self.out / SUCCESS),
        }
        documents.write_json(self.out / SUCCESS, report)
        return report

    def _save(self, tree: str, scene: Scene, pixels: NDArray[Any]) -> str:
        """Write a PNG; returns its path in the output folder."""
        path = f"{tree}/{PurePosixPath(scene.id)}.png"
        images.write_png(self.out / path, pixels)
        return path

    def _decide(self, found: UnlabelledScene, logits: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        """The class of each pixel, and its probability × 255 where that is asked for (else zeros)."""
        size = (found.height, found.width)
        mask = np.empty(size, np.uint8 if len(self.info.classes) <= 255 else np.uint16)
        sureness = np.zeros(size, np.uint8)
        for rows, some in own_rows(logits, height=found.height, width=found.width):
            mask[rows] = some.max(0).indices.cpu().numpy()
            if "confidence" in self.extras:
                best = some.float().softmax(0).amax(0)
                sureness[rows] = (best * 255).round().to(torch.uint8).cpu().numpy()
        return mask, sureness

    def _picture(self, extra: str, found: UnlabelledScene, *, mask: NDArray[Any]) -> NDArray[Any]:
        if extra == "color":
            return overlays.colour(mask, self.info.palette)
        blend = overlays.overlay(self._image(found), mask, self.info.palette)
        entries = overlays.legend([mask], classes=self.info.classes, palette=self.info.palette)
        panel_px = found.height * max(1, SMALL_PX // max(found.height, found.width))
        return overlays.sheet([[overlays.Panel(found.scene.id, blend)]], entries, panel_px=panel_px)

    def _image(self, found: UnlabelledScene) -> overlays.Picture:
        """The picture under an overlay: the RGB one, or that of the first modality."""
        present = [modality for modality in self.modalities if modality.name in found.modalities]
        shown = next((modality for modality in present if modality.kind == "rgb"), present[0])
        frame = read_modality([self.root / path for path in found.scene.files[shown.name]], shown)
        return overlays.as_picture(resize_nearest(frame, height=found.height, width=found.width))


def _clear(out: Path) -> None:
    """Remove what an earlier prediction wrote, so that none of its masks passes for a new one."""
    (out / SUCCESS).unlink(missing_ok=True)
    ledger = out / LEDGER
    if not ledger.is_file():
        return
    lines = documents.read_json_lines(ledger)
    if lines:
        console.note(f"{out}: replaces the predictions of an earlier run ({len(lines)} scenes)")
    for line in lines:
        for key in ("mask", *EXTRAS):
            path = PurePosixPath(str(line.get(key, "") if isinstance(line, dict) else ""))
            if path.parts and path.parts[0] in (MASKS, *EXTRAS) and ".." not in path.parts:
                (out / path).unlink(missing_ok=True)


def _classes(info: DatasetInfo) -> list[dict[str, Any]]:
    """The content of ``classes.json``."""
    named = zip(info.classes, info.palette, strict=True)
    return [{"id": index, "name": name, "color": list(shade)} for index, (name, shade) in enumerate(named)]


def _key(path: str) -> str:
    """Equal for paths that are one file on a file system that ignores case and Unicode form."""
    return unicodedata.normalize("NFC", path).casefold()
