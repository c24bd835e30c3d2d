"""The interface of a loss: its settings, its inputs, and the exchange with other processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from memorysam_cli.dataset import IGNORE
from memorysam_cli.recipe import LossSettings, Section

__all__ = ["Exchange", "Loss", "LossInputs", "LossSettings", "Task"]


class Exchange(Protocol):
    """Several processes that compute a loss together. Every process must make the same calls in the same order.

    Attributes:
        world: the number of processes.
        rank: the number of this process, from 0.
    """

    @property
    def world(self) -> int: ...

    @property
    def rank(self) -> int: ...

    def sum(self, values: Tensor) -> Tensor:
        """Add a tensor up over all processes.

        Args:
            values: of the same shape and type in every process: float32 (differentiable; the backward pass adds up the
                gradients of all processes), or int64.

        Returns:
            The sum, the same in every process; ``values`` itself does not change.
        """
        ...


@dataclass(frozen=True)
class Task:
    """The training task, known before the first update.

    Attributes:
        classes: K names, in the order of their ids.
        modalities: M names, in the order in which the memory sees them.
        width: channels of the network's features.
        device: the device of the losses.
        class_pixels: number of pixels of each class in the training split; empty if no setting needs it.
    """

    classes: tuple[str, ...]
    modalities: tuple[str, ...]
    width: int
    device: torch.device
    class_pixels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class LossInputs:
    """The inputs of the losses for one update in this process. Each sequence has an entry per batch.

    A loss must use all batches together, so that an update of several batches equals that of one batch with all scenes.

    Attributes:
        logits: (B, K, h, w) float, at stride 4; gradients flow into the network.
        features: (B, C, h, w) float, the mean over frames of the stride-4 feature map; gradients flow into the network.
        labels: (B, H, W) int64 classes on the losses' device, :attr:`ignored` where there is none.
        frames: M × (B, 3, H, W), as the network saw them, on any device.
        task: class names and other constants.
        exchange: the other processes; None if there are none.
        ignored: the label of an ignored pixel.
        alone: M × (B, K, h, w), the logits of each single frame, in the order in which the frames are processed; empty
            unless a loss has :attr:`~Loss.reads_alone`.
        subset: (B, K, h, w), like ``logits``, of the update's second pass over some of the sensors; empty unless the
            recipe has one (``robust.subset``).
        teacher: (B, K, h, w), the target logits of that pass, without a graph; empty unless the recipe has a teacher.
    """

    logits: Sequence[Tensor]
    features: Sequence[Tensor]
    labels: Sequence[Tensor]
    frames: Sequence[Sequence[Tensor]]
    task: Task
    exchange: Exchange | None = None
    ignored: int = IGNORE
    alone: Sequence[Sequence[Tensor]] = ()
    subset: Sequence[Tensor] = ()
    teacher: Sequence[Tensor] = ()

    def total(self, values: Tensor) -> Tensor:
        """A sum of this process, added up over all processes; see :meth:`Exchange.sum`."""
        return values if self.exchange is None else self.exchange.sum(values)


class Loss:
    """A training loss. ``register`` a subclass, and a recipe can name it.

    With several processes, gradients and reported values are averaged over them. A loss is therefore exact in two
    cases: it is a mean over the scenes of its own process (every process has the same number of scenes), or it is
    computed from sums that :meth:`LossInputs.total` has added up. Parameters of a loss are not trained.

    Args:
        settings: from the recipe, an instance of :attr:`Settings`.
        task: the training task.
    """

    Settings: ClassVar[type[Section]] = LossSettings
    """The keys in a recipe. For a further loss, a subclass of :class:`LossSettings`, which has ``weight``."""
    reads_alone: ClassVar[bool] = False
    """Whether the loss needs :attr:`LossInputs.alone`, which costs memory."""

    def __init__(self, settings: Any, task: Task) -> None:
        self.settings, self.task = settings, task

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The loss of an update.

        Returns:
            A float32 scalar with its graph, without the weight.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        """State to store in a checkpoint, besides the settings. It is also used to undo an update that failed."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> object:
        """Restore the state from :meth:`state_dict`.

        Raises:
            KeyError: this loss has no such state.
        """
        if state:
            raise KeyError(f"{next(iter(state))}: {type(self).__name__} keeps no state")
        return None
