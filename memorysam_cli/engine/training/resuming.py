"""What a run that goes on says of itself, and what it must not believe."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.training import identity
from memorysam_cli.engine.training.checkpoints import Position
from memorysam_cli.errors import MemorySamError
from memorysam_cli.model.weights import read
from memorysam_cli.report import console
from memorysam_cli.storage import documents


def record(run: RunFolder, position: Position, *, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Note in the run's folder that it goes on, warn where it does so under other conditions, and tidy its metrics.

    Args:
        run: the folder.
        position: where it goes on.
        then: the conditions of the checkpoint (:func:`memorysam_cli.engine.training.identity.conditions`).
        now: those of this process.
    """
    changed = identity.changed(then, now)
    if changed:
        differences = ", ".join(f"{key} was {was}, is {now}" for key, (was, now) in changed.items())
        console.warn(
            f"{run.path}: goes on under other conditions ({differences}): its last bits may differ from here on"
        )
    time = datetime.now().astimezone().isoformat(timespec="seconds")
    documents.append_json_line(
        run.resumes, {"step": position.step, "time": time, "conditions": now, "changed": changed}
    )
    run.forget_metrics_after(position.step, validated=position.is_validated)


def forget_lost_best(run: RunFolder, position: Position) -> bool:
    """Let the next validation be the best where the best weights so far are not on disk.

    They are not where a later validation replaced them before the kill, or where the file was lost or damaged.

    Returns:
        Whether they were lost and not only replaced.
    """
    if position.best_step is None:
        return False
    try:
        metric = read(run.best)[1].metric
    except (MemorySamError, OSError) as fault:
        console.warn(
            f"{run.best}: the best weights so far cannot be used ({fault}); the next validation counts as best"
        )
        position.best_miou = position.best_step = None
        return True
    if metric is None or (metric.step, metric.miou) != (position.best_step, position.best_miou):
        position.best_miou = position.best_step = None
    return False
