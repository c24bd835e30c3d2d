"""The files of one scene, and its line in the ledger: a pure function of the scene and what was decided."""

from __future__ import annotations

import contextlib
import hashlib
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memorysam_cli.data.decode import read_modality
from memorysam_cli.data.manifest import Scene
from memorysam_cli.data.resizing import resize_nearest
from memorysam_cli.dataset import DatasetInfo, Modality
from memorysam_cli.engine.prediction.deciding import Decision
from memorysam_cli.engine.prediction.folder import LEGEND, MASKS, Line, remove
from memorysam_cli.errors import DataError
from memorysam_cli.report import pictures
from memorysam_cli.storage import images

KEY_PX = 480
"""Width of the legend."""
SMALL_PX = 256
"""Overlays whose sides are shorter are enlarged, so that their legend does not dwarf them."""


@dataclass(frozen=True)
class SceneFiles:
    """Where and how scenes are written; several threads, processes and machines may do so at once."""

    out: Path
    root: Path
    """What the scenes' paths are relative to."""
    info: DatasetInfo
    """Classes and palette."""
    modalities: tuple[Modality, ...]
    """Those that the model may be shown, in the order of its memory."""
    extras: tuple[str, ...] = ()
    """Of :data:`~memorysam_cli.engine.prediction.folder.EXTRAS`."""

    def write(self, scene: Scene, decision: Decision, *, modalities: Sequence[str]) -> Line:
        """Write a scene's files, each all or nothing; what was written goes away again if one of them fails.

        Args:
            scene: what was segmented.
            decision: at the scene's own size.
            modalities: those that were seen.

        Returns:
            The scene's line for the ledger.

        Raises:
            EnvironmentFault: a file cannot be written.
            DataError: the picture under an overlay cannot be read any more.
        """
        mask, sureness = decision.arrays()
        files: dict[str, str] = {}
        try:
            files["mask"] = self._save(MASKS, scene, mask)
            for extra in self.extras:
                picture = sureness if extra == "confidence" else self._picture(extra, scene, modalities, mask=mask)
                assert picture is not None  # whoever asks for a confidence has it decided
                files[extra] = self._save(extra, scene, picture)
        except BaseException:
            remove(self.out, files)
            raise
        pixels = np.bincount(mask.ravel(), minlength=len(self.info.classes))
        return {
            "id": scene.id,
            "status": "done",
            **files,
            "size": list(mask.shape),
            "modalities": list(modalities),
            "inputs": {name: list(scene.files[name]) for name in modalities},
            "stamp": self.stamp(scene, modalities),
            "classes": {str(index): int(count) for index, count in enumerate(pixels) if count},
        }

    def left_out(self, scene: Scene, fault: DataError) -> Line:
        """The line of a scene that cannot be read: ``missing`` where a file is not there any more, else ``failed``."""
        wanted = [path for each in self.modalities for path in scene.files.get(each.name, ())]
        status = "failed" if all((self.root / path).exists() for path in wanted) else "missing"
        inputs = {name: list(paths) for name, paths in scene.files.items()}
        return {"id": scene.id, "status": status, "error": str(fault), "inputs": inputs}

    def paths(self, scene: Scene) -> dict[str, str]:
        """A scene's files in the output folder, as its line has them: by ``mask`` and the extras' names."""
        trees = {"mask": MASKS, **{extra: extra for extra in self.extras}}
        return {key: _path(tree, scene) for key, tree in trees.items()}

    def present(self, scene: Scene) -> list[str]:
        """Those of a scene's files that are there: regular files that are not empty."""
        return [path for path in self.paths(scene).values() if _is_filled(self.out / path)]

    def is_done(self, scene: Scene, line: Line) -> bool:
        """Whether a line is what :meth:`write` would say of a scene, its files are there and its inputs unchanged."""
        stamp = self.stamp(scene, self._names(scene))
        is_current = bool(stamp) and line.get("stamp") == stamp
        return is_current and self.fits(scene, line) and len(self.present(scene)) == len(self.paths(scene))

    def fits(self, scene: Scene, line: Line) -> bool:
        """Whether a line is one of this scene's; believes nothing of it that can be known without it."""
        names = self._names(scene)
        expected = {
            "id": scene.id, "status": "done", **self.paths(scene), "size": line.get("size"), "modalities": names,
            "inputs": {name: list(scene.files[name]) for name in names}, "stamp": str(line.get("stamp")),
            "classes": line.get("classes"),
        }  # fmt: skip
        return line == expected and _add_up(line["size"], line["classes"], classes=len(self.info.classes))

    def _names(self, scene: Scene) -> list[str]:
        """The modalities that a scene is segmented from."""
        return [modality.name for modality in self.modalities if modality.name in scene.files]

    def stamp(self, scene: Scene, modalities: Sequence[str]) -> str:
        """A word that is another one when the size or the time of an input is; empty where one is missing."""
        found = hashlib.sha256()
        try:
            for path in (self.root / path for name in modalities for path in scene.files[name]):
                facts = path.stat()
                found.update(f"{facts.st_size} {facts.st_mtime_ns}\n".encode())
        except OSError:  # gone since it was read
            return ""
        return found.hexdigest()[:16]

    def _save(self, tree: str, scene: Scene, pixels: NDArray[Any]) -> str:
        """Write a PNG; returns its path in the output folder."""
        path = _path(tree, scene)
        images.write_png(self.out / path, pixels)
        return path

    def _picture(self, extra: str, scene: Scene, modalities: Sequence[str], *, mask: NDArray[Any]) -> pictures.Picture:
        if extra == "color":
            return pictures.colour(mask, self.info.palette)
        height, width = mask.shape
        blend = pictures.overlay(self._image(scene, modalities, mask=mask), mask, self.info.palette)
        entries = pictures.legend([mask], classes=self.info.classes, palette=self.info.palette)
        panel_px = height * max(1, SMALL_PX // max(height, width))
        return pictures.sheet([[pictures.Panel(scene.id, blend)]], entries, panel_px=panel_px)

    def _image(self, scene: Scene, modalities: Sequence[str], *, mask: NDArray[Any]) -> pictures.Picture:
        """The picture under an overlay: the RGB one, or that of the first modality."""
        present = [modality for modality in self.modalities if modality.name in modalities]
        shown = next((modality for modality in present if modality.kind == "rgb"), present[0])
        frame = read_modality([self.root / path for path in scene.files[shown.name]], shown)
        return pictures.as_picture(resize_nearest(frame, height=mask.shape[0], width=mask.shape[1]))


def write_legend(out: Path, info: DatasetInfo) -> None:
    """Write ``legend.png`` beside ``classes.json``: every class and its colour.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    images.write_png(out / LEGEND, pictures.key(list(zip(info.classes, info.palette, strict=True)), width=KEY_PX))


def is_left_out(line: Line) -> bool:
    """Whether a line says why a scene could not be read."""
    return line.get("status") in {"failed", "missing"} and isinstance(line.get("error"), str)


def _path(tree: str, scene: Scene) -> str:
    return f"{tree}/{PurePosixPath(scene.id)}.png"


def _is_filled(path: Path) -> bool:
    """A symlink is none of ours: we rename whole files into place."""
    with contextlib.suppress(OSError):
        facts = path.lstat()
        return stat.S_ISREG(facts.st_mode) and facts.st_size > 0
    return False


def _add_up(size: Any, pixels: Any, *, classes: int) -> bool:
    """Whether a line's pixels per class are those of a mask of its size."""
    if not isinstance(size, list) or not isinstance(pixels, dict):
        return False
    numbers = [*size, *pixels.values()]
    return (
        len(size) == 2
        and all(type(number) is int and number > 0 for number in numbers)
        and all(name.isascii() and name.isdigit() and int(name) < classes for name in pixels)
        and sum(pixels.values()) == size[0] * size[1]
    )
