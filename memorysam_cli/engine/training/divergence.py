"""What is kept of an update whose loss or gradient was not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from accelerate import Accelerator
from accelerate.utils import gather_object

from memorysam_cli.data.loader import Batch
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.training.checkpoints import Position
from memorysam_cli.engine.training.learner import StepResult
from memorysam_cli.errors import DivergedError
from memorysam_cli.storage import documents
from memorysam_cli.text import few, shown

_SHOWN = 4


def describe(
    result: StepResult, batches: Sequence[Batch], position: Position, *, rate: float, accelerator: Accelerator
) -> dict[str, Any]:
    """All that is known of the update, as JSON; every process must call this.

    Args:
        result: what it would have done.
        batches: of this process.
        position: before it.
        rate: the learning rate.
        accelerator: the processes, whose scenes are all listed.
    """
    own = [
        {
            "process": accelerator.process_index,
            "batch": number,
            "id": scene.id,
            "files": [
                *(path for paths in scene.files.values() for path in paths),
                *([scene.label] * bool(scene.label)),
            ],
        }
        for number, batch in enumerate(batches)
        for scene in batch.scenes
    ]
    scenes = gather_object(own) if accelerator.num_processes > 1 else own
    figures = {"loss": result.loss, **result.terms, "gradient_norm": result.gradient_norm}
    finite = {name: value if math.isfinite(value) else str(value) for name, value in figures.items()}
    return {"step": position.step + 1, "epoch": position.epoch, **finite, "lr": rate, "scenes": scenes}


def sentence(record: dict[str, Any]) -> str:
    """The same in a line, with the first files."""
    scenes = record["scenes"]
    names = [shown(scene["files"][0] if scene["files"] else scene["id"]) for scene in scenes]
    return (
        f"step {record['step']}: loss {_figure(record['loss'])}, gradient norm {_figure(record['gradient_norm'])}, "
        f"lr {record['lr']:.3g}, scenes {few(names, _SHOWN)}"
    )


def end(record: dict[str, Any], run: RunFolder, *, save: Callable[[], object], is_main: bool) -> NoReturn:
    """End a run with the weights of before the update; a fault of the disk meanwhile does not hide why.

    Args:
        record: of :func:`describe`.
        run: whose ``diverged.json`` keeps it.
        save: saves the weights as they are.
        is_main: whether this is the main process.

    Raises:
        DivergedError: always.
    """
    try:
        raise DivergedError(sentence(record))
    except DivergedError as fault:
        if is_main:
            documents.write_json(run.diverged, record)
        save()
        raise DivergedError(
            f"{fault}; the weights of step {record['step'] - 1} are in {run.last}, the batch in {run.diverged}; "
            "try a lower optim.lr"
        ) from None


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
