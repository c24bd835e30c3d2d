"""Procedurally rendered street scenes in the layouts of DELIVER and MCubeS: no download, a seed decides all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal


def render(
    root: Path,
    *,
    layout: Literal["deliver", "mcubes"] = "deliver",
    scenes: int = 240,
    size: int = 160,
    seed: int = 0,
    advance: Callable[[], None] | None = None,
) -> None:
    """Write a data set below ``root``.

    The same ``layout``, ``scenes``, ``size`` and ``seed`` give the same files, bit by bit, on one machine.

    Args:
        root: the data set's folder; files that are there already are replaced.
        layout: whose folders, file names and encodings to use.
        scenes: how many scenes over all splits (about 60 % train, 25 % val, 15 % test).
        size: height of the pictures in pixels; DELIVER's are square, MCubeS' 1224/1024 times as wide.
        seed: another seed, other worlds; not negative.
        advance: called after each scene.

    Raises:
        EnvironmentFault: a file cannot be written.
        ValueError: ``scenes`` below 1, ``size`` below 32 or a negative ``seed``.
    """
    if scenes < 1 or size < 32 or seed < 0:
        raise ValueError(f"scenes={scenes}, size={size}, seed={seed}: at least 1, 32 and 0 are needed")
    # OpenCV and NumPy are needed only from here on.
    from memorysam_cli.data.synthetic import deliver_files, mcubes_files
    from memorysam_cli.data.synthetic.plan import plan

    planned = plan(scenes)
    write = {"deliver": deliver_files.write, "mcubes": mcubes_files.write}[layout]
    for scene in planned:
        write(root, scene, size=size, seed=seed)
        if advance is not None:
            advance()
    if layout == "mcubes":
        mcubes_files.write_lists(root, planned)
