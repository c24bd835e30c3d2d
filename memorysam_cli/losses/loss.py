"""What a loss is: what it is built from, what it sees of an update, and how it meets the other processes."""

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
    """Several processes that compute one loss together; every one of them makes the same calls in the same order.

    Attributes:
        world: the number of processes.
        rank: of this one, from 0.
    """

    @property
    def world(self) -> int: ...

    @property
    def rank(self) -> int: ...

    def sum(self, values: Tensor) -> Tensor:
        """Add a tensor up over all processes.

        Args:
            values: of one shape and type everywhere: float32, differentiable (the backward pass adds the processes'
                gradients up too), or int64.

        Returns:
            The sum, the same in every process; ``values`` itself stays as it is.
        """
        ...


@dataclass(frozen=True)
class Task:
    """What a network is trained for; known before the first update.

    Attributes:
        classes: K names, in the order of their ids.
        modalities: M names, in the order in which the memory sees them.
        width: channels of the network's features.
        device: where the losses are computed.
        class_pixels: how many pixels each class has in the training split; none where nothing asks for them.
    """

    classes: tuple[str, ...]
    modalities: tuple[str, ...]
    width: int
    device: torch.device
    class_pixels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class LossInputs:
    """What the losses see of one update in this process: each sequence has an entry for each of its batches.

    A loss must take all batches together, so that an update of several is that of one batch as large as all of them.

    Attributes:
        logits: (B, K, h, w) float, at stride 4; gradients flow from here into the network.
        features: (B, C, h, w) float, the mean over frames of the stride-4 feature map; gradients flow likewise.
        labels: (B, H, W) int64 classes on the losses' device, :attr:`ignored` where there is none.
        frames: M × (B, 3, H, W), as the network saw them, on any device.
        task: class names and other things that do not change.
        exchange: the other processes; none where there are none.
        ignored: the label of an ignored pixel.
        alone: (B, K, h, w) of each frame of a batch, what it says by itself, as ``logits``, in the order in which
            the frames are looked at; empty unless one of the losses :attr:`~Loss.reads_alone`.
        subset: (B, K, h, w), as ``logits``, of the update's second pass over some of the sensors; empty unless the
            recipe has one (``robust.subset``).
        teacher: (B, K, h, w), what that pass should say, without a graph; empty unless the recipe has a teacher.
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
        """A sum of this process, added up over all processes; as of :meth:`Exchange.sum`."""
        return values if self.exchange is None else self.exchange.sum(values)


class Loss:
    """One term of what training minimizes; ``register`` a class of this kind, and a recipe can name it.

    With several processes the gradients and the reported values are averaged over them. So a loss is exact either as a
    mean over its own process's scenes, of which each has as many, or where it is made of sums that
    :meth:`LossInputs.total` has added up. Parameters of its own are not trained.

    Args:
        settings: the recipe's, of the class :attr:`Settings`.
        task: what the network is trained for.
    """

    Settings: ClassVar[type[Section]] = LossSettings
    """The keys that a recipe may give; of a further loss a subclass of :class:`LossSettings`, which has ``weight``."""
    reads_alone: ClassVar[bool] = False
    """Whether it needs :attr:`LossInputs.alone`, which takes memory."""

    def __init__(self, settings: Any, task: Task) -> None:
        self.settings, self.task = settings, task

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The loss of an update.

        Returns:
            A float32 scalar with its graph, not yet weighted.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        """What must be in a checkpoint, beside the settings; an update that fails is undone by it too."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> object:
        """Put back what :meth:`state_dict` gave.

        Raises:
            KeyError: this loss keeps no such state.
        """
        if state:
            raise KeyError(f"{next(iter(state))}: {type(self).__name__} keeps no state")
        return None
