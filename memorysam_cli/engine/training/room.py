"""Whether a training finds room on its disk, before it begins."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from memorysam_cli.engine.training.learner import Learner
from memorysam_cli.errors import EnvironmentFault
from memorysam_cli.model.weights import own_tensors
from memorysam_cli.text import megabytes

MARGIN = 1.05
"""Folders, headers, logs and pictures, beside the checkpoints."""


def checkpoint_bytes(learner: Learner) -> int:
    """What a checkpoint takes: the tensors, two moments of each that is trained, and what the losses keep."""
    return _bytes(own_tensors(learner.network)) + 2 * _bytes(learner.parameters) + _bytes(learner.objective.state())


def refuse_small(folder: Path, *, checkpoint: int, keep: int, kept: int) -> None:
    """Refuse to begin what the disk cannot hold: the checkpoints that are kept, and the next one beside them.

    Args:
        folder: of the run; need not be there.
        checkpoint: its size in bytes.
        keep: how many are kept.
        kept: how many valid ones are there.

    Raises:
        EnvironmentFault: names needed and free space.
    """
    count = max(1, keep + 1 - kept)
    needed, free = int(count * checkpoint * MARGIN), _free(folder)
    if free is not None and free < needed:
        raise EnvironmentFault(
            f"{folder}: the disk is too full for this training: needs {megabytes(needed)} ({count} checkpoints of "
            f"{megabytes(checkpoint)}), free {megabytes(free)}; free some space or choose another --out, then run "
            "the same command again"
        )


def _free(folder: Path) -> int | None:
    """Bytes that can still be written where a folder is or will be; none where that cannot be asked."""
    for place in (folder.absolute(), *folder.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
