"""DELIVER's folders and file names."""

from __future__ import annotations

from pathlib import Path

from memorysam_cli.data.datasets.deliver import DELIVER
from memorysam_cli.data.synthetic.plan import PlannedScene
from memorysam_cli.data.synthetic.scene import deliver_pictures
from memorysam_cli.storage import images

FRAME_STEP = 50
"""Frames are numbered 000050, 000100 …, in every sequence anew."""


def place_of(scene: PlannedScene) -> tuple[tuple[str, str, str], str]:
    """Where a scene's files lie: (condition, split, sequence) and the frame's name."""
    case = f"_{scene.case}" if scene.case else ""
    sequence = f"MAP_{scene.map}_point{scene.point}{case}"
    return (scene.condition, scene.split, sequence), f"{(scene.frame + 1) * FRAME_STEP:06d}"


def write(root: Path, scene: PlannedScene, *, size: int, seed: int) -> None:
    """Render one scene and write its six files below ``root``.

    Raises:
        EnvironmentFault: a file cannot be written.
    """
    pictures = deliver_pictures(scene, size=size, seed=seed)
    (condition, split, sequence), frame = place_of(scene)
    for name in (*(sensor.modality.name for sensor in DELIVER.sensors), "label"):
        path = DELIVER.path(name, condition=condition, split=split, sequence=sequence, frame=frame)
        # A power loss is mended by rendering again; syncing 1440 small files would cost more than drawing them.
        images.write_png(root / path, pictures[path.partition("/")[0]], fsync=False)
