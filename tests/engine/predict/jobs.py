"""A small job on a data set written by hand, with weights that were never trained."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.predict.job import Job
from memorysam_cli.model import read_card
from memorysam_cli.storage import tensors

from ...commands.trained import save_weights

SAVED: dict[str, bytes] = {}
"""Weights by the data set that they are for."""
INPUTS = re.compile(rb'"inputs_root": "[^"]*",\s*')


def job_of(data: Manifest, **changes: Any) -> Job:
    """All scenes of a data set, two at a time; the weights lie beside its root."""
    weights = data.root.parent / "weights.safetensors"
    if not weights.exists():
        info = data.info.model_dump_json()
        if info not in SAVED:
            SAVED[info] = save_weights(weights, data.info).read_bytes()
        weights.write_bytes(SAVED[info])
    card = read_card(weights)
    job = Job(
        weights, tensors.sha256(weights), card, data.scenes, data.root, str(data.root), card.modalities, batch=2
    )  # fmt: skip
    return dataclasses.replace(job, **changes)


def tree(out: Path) -> dict[str, bytes]:
    """Every file below a folder but its lock; where the inputs lie is not told, so that places can be compared."""
    return {
        str(path.relative_to(out)): INPUTS.sub(b"", path.read_bytes()) if path.suffix == ".json" else path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


class Killed(BaseException):
    """What a kill looks like from inside."""


class Steps:
    """Counts the calls of the functions that it wraps; the one after the last allowed one is a kill."""

    def __init__(self, allowed: int) -> None:
        self.allowed, self.count = allowed, 0
        self.is_through = False
        """Whether what is behind the last step was reached."""

    def kill(self, *_: object, **__: object) -> None:
        """End behind the last step."""
        self.is_through = True
        raise Killed

    def __call__(self, real: Any) -> Any:
        def stepping(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count > self.allowed:
                raise Killed
            return real(*arguments, **options)

        return stepping
