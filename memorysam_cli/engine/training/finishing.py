"""What a finished run came to, and the conservation laws that say that nothing was lost on its way."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memorysam_cli import laws
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.training.checkpoints import Position
from memorysam_cli.engine.training.learner import Learner
from memorysam_cli.engine.training.quarantine import Quarantine
from memorysam_cli.errors import DivergedError
from memorysam_cli.model.base_weights import base_shapes
from memorysam_cli.model.network import is_fresh
from memorysam_cli.report import console
from memorysam_cli.storage import documents, tensors


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run came to; ``miou`` is the best validation in percent, and NaN never.

    All but ``seconds`` and ``resumed`` are those of the whole run, however often it was resumed.
    """

    run: Path
    best: Path
    last: Path
    miou: float
    best_step: int
    steps: int
    seconds: float
    """Of this process."""
    scenes: int = 0
    """That were learnt from, each as often as it came."""
    left_out: int = 0
    """Scenes that could not be read, for which others stood in."""
    resumed: bool = False
    laws: laws.Report = field(default_factory=dict)
    """In the main process."""

    def to_json(self) -> dict[str, Any]:
        """The keys of ``memorysam train --json``, without its ``schema_version``."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


def finish(
    run: RunFolder, learner: Learner, position: Position, quarantine: Quarantine, *, scenes: int, seconds: float,
    resumed: bool,
) -> TrainingResult:  # fmt: skip
    """Check what came of a training and write it into the run's folder.

    Args:
        run: the folder.
        learner: what was trained.
        position: where it ended.
        quarantine: the scenes that could not be read.
        scenes: of one update, in all processes.
        seconds: that this process trained for.
        resumed: whether it went on from a checkpoint.

    Raises:
        DivergedError: there are no best weights.
        LawBroken: something was lost or counted twice.
    """
    if position.all_ignored:
        console.warn(f"{position.all_ignored} batches had no labelled pixel and taught nothing")
    if len(quarantine):
        console.warn(
            f"{len(quarantine)} training scenes cannot be read, others stood in for them; {run.quarantine} lists them"
        )
    if position.best_miou is None or position.best_step is None:
        raise DivergedError(f"{run.path}: no validation gave a finite mIoU; there are no best weights")
    is_main = learner.accelerator.is_main_process
    result = TrainingResult(
        run=run.path, best=run.best, last=run.last, miou=position.best_miou, best_step=position.best_step,
        steps=position.step, seconds=seconds, scenes=position.scenes, left_out=len(quarantine), resumed=resumed,
        laws=_checked(learner, position, expected=position.step * scenes, last=run.last) if is_main else {},
    )  # fmt: skip
    if is_main:
        documents.write_json(run.result, {"schema_version": 1, **result.to_json()})
        run.diverged.unlink(missing_ok=True)
    return result


def _checked(learner: Learner, position: Position, *, expected: int, last: Path) -> laws.Report:
    """The laws, each of whose sides is counted by itself.

    Args:
        learner: what was trained.
        position: has the scenes that were learnt from, counted as they came over all processes and resumes.
        expected: steps × batch × accumulate × processes.
        last: the newest weights, which are read back.
    """
    network = learner.network
    state = network.state_dict()
    new = [name for name in state if is_fresh(name) or ".lora_" in name]
    trained = [parameter for group in learner.optimizer.param_groups for parameter in group["params"]]
    frozen = [name for name in new if name not in learner.parameters]
    saved = len(tensors.read(last)[0])
    # LoRA cuts the base's fused projections into three: tensors do not stay as many, their values do.
    base = sum(math.prod(shape) for shape in base_shapes(network.card.base.backbone).values())
    found = {
        "scenes learnt from = steps × batch × accumulate × processes": (position.scenes, expected),
        "values of the base + values of new tensors = values of the model": (
            base + sum(state[name].numel() for name in new),
            sum(tensor.numel() for tensor in state.values()),
        ),
        "tensors trained + new ones that are not = tensors saved": (len(trained) + len(frozen), saved),
    }
    if position.initial:
        found["tensors of the initial weights = tensors saved"] = (position.initial, saved)
    return laws.check(found)
