"""MCubeS' folders and file names (in progress)."""

from __future__ import annotations

from pathlib import Path

from memorysam_cli.data.synthetic.plan import PlannedScene


def write(root: Path, scene: PlannedScene, *, size: int, seed: int) -> None:
    """Not there yet."""
    raise NotImplementedError


def write_lists(root: Path, scenes: list[PlannedScene]) -> None:
    """Not there yet."""
    raise NotImplementedError
