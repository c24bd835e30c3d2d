"""Who does a prediction's job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memorysam_cli.engine.prediction.shares import Share

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Manner:
    """Who does a job, and how carefully; decides no byte of its results."""

    device: str = "auto"
    workers: int = 2
    """Processes (on Ray: threads) that read ahead."""
    skip_bad: bool = False
    """List scenes that cannot be read and go on; otherwise the first one ends the work."""
    shard: Share | None = None
    engine: Engine = "local"
    overwrite: bool = False
    """Begin anew: also in a folder that holds something else, or an unfinished prediction of another job."""
    resume: bool = False
    """Go on or begin; replace no prediction, not even a finished one."""
