"""How fast a training goes, and what it takes: the figures that its log holds beside the losses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

import torch
from accelerate import Accelerator

from memorysam_cli.engine import memory
from memorysam_cli.engine.training.checkpoints import Position
from memorysam_cli.engine.training.learner import StepResult
from memorysam_cli.report import console
from memorysam_cli.report.live import Progress
from memorysam_cli.text import duration, size


class Pace:
    """Clocks updates.

    Args:
        device: where training takes place.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start_epoch()

    def start_epoch(self) -> None:
        """Clock from here, and look for the peak of memory from here."""
        self._scenes, self._seconds, self._data = 0, 0.0, 0.0
        memory.start_peak(self.device)
        self.restart()

    def restart(self) -> None:
        """Leave out what lay between: a checkpoint, say."""
        self._last = time.monotonic()

    def update(self, scenes: int, *, waited: float) -> dict[str, float]:
        """The figures of an update that has just ended.

        Args:
            scenes: of all processes.
            waited: seconds that its data took to come.

        Returns:
            ``scenes_per_second`` of all processes, data included; ``seconds_data``, as ``waited``; ``peak_memory_gb``
            of this process since the epoch began (10⁹ bytes; on CUDA what its allocator reserved).
        """
        seconds = max(time.monotonic() - self._last, 1e-9)
        self._scenes += scenes
        self._seconds += seconds
        self._data += waited
        self.restart()
        return {
            "scenes_per_second": scenes / seconds,
            "seconds_data": waited,
            "peak_memory_gb": memory.peak_bytes(self.device) / 1e9,
        }

    def epoch(self) -> str:
        """The epoch so far, in words."""
        seconds = max(self._seconds, 1e-9)
        return (
            f"{self._scenes} scenes in {duration(seconds)}, {self._scenes / seconds:.2f} scenes/s, "
            f"{100 * self._data / seconds:.0f} % of the time in the loader, "
            f"peak memory {size(memory.peak_bytes(self.device))}"
        )


def table_figures(
    result: StepResult, figures: Mapping[str, float], position: Position, *, epochs: int
) -> dict[str, str]:
    """What people see of an update: names and values of its progress.

    Args:
        result: of the update; the first term is most of the loss, so that the others are shown beside it.
        figures: of :meth:`Pace.update`, and ``lr``.
        position: after the update.
        epochs: of the run.
    """
    _, *further = result.terms
    return {
        "epoch": f"{position.epoch + 1}/{epochs}",
        "step": f"{position.step:,}",
        "loss": f"{result.loss:.3f}",
        **{name: f"{result.terms[name]:.4f}" for name in further},
        "lr": f"{figures['lr']:.2e}",
        "scenes/s": f"{figures['scenes_per_second']:.3g}",
        "memory": f"{figures['peak_memory_gb']:.1f} GB",
        "best mIoU": "–" if position.best_miou is None else f"{position.best_miou:.2f}",
    }


def display(
    accelerator: Accelerator, total: int, label: str, *, is_table: bool = False
) -> contextlib.AbstractContextManager[Progress]:
    """A progress display in the main process, nothing in the others; as of :func:`console.progress`."""
    return console.progress(total if accelerator.is_main_process else 0, label, is_table=is_table)
