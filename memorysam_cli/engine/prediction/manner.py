"""Who does a prediction's job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memorysam_cli.engine.prediction.parts import Share

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
    """Also into a folder that holds something else, or parts of another prediction."""
