"""The files of one scene, and its line in the ledger: a pure function of the scene and what was decided."""

from __future__ import annotations

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
from memorysam_cli.engine.prediction.folder import MASKS, Line, remove
from memorysam_cli.errors import DataError
from memorysam_cli.report import overlays
from memorysam_cli.storage import images

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
            "classes": {str(index): int(count) for index, count in enumerate(pixels) if count},
        }

    def _save(self, tree: str, scene: Scene, pixels: NDArray[Any]) -> str:
        """Write a PNG; returns its path in the output folder."""
        path = f"{tree}/{PurePosixPath(scene.id)}.png"
        images.write_png(self.out / path, pixels)
        return path

    def _picture(self, extra: str, scene: Scene, modalities: Sequence[str], *, mask: NDArray[Any]) -> overlays.Picture:
        if extra == "color":
            return overlays.colour(mask, self.info.palette)
        height, width = mask.shape
        blend = overlays.overlay(self._image(scene, modalities, mask=mask), mask, self.info.palette)
        entries = overlays.legend([mask], classes=self.info.classes, palette=self.info.palette)
        panel_px = height * max(1, SMALL_PX // max(height, width))
        return overlays.sheet([[overlays.Panel(scene.id, blend)]], entries, panel_px=panel_px)

    def _image(self, scene: Scene, modalities: Sequence[str], *, mask: NDArray[Any]) -> overlays.Picture:
        """The picture under an overlay: the RGB one, or that of the first modality."""
        present = [modality for modality in self.modalities if modality.name in modalities]
        shown = next((modality for modality in present if modality.kind == "rgb"), present[0])
        frame = read_modality([self.root / path for path in scene.files[shown.name]], shown)
        return overlays.as_picture(resize_nearest(frame, height=mask.shape[0], width=mask.shape[1]))


def left_out(scene: Scene, fault: DataError) -> Line:
    """The line of a scene that cannot be read."""
    inputs = {name: list(paths) for name, paths in scene.files.items()}
    return {"id": scene.id, "status": "failed", "error": str(fault), "inputs": inputs}
