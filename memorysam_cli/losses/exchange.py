"""What the losses ask of the other processes, so that they know of no process group themselves."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Exchange(Protocol):
    """Several processes that compute one loss together; every one of them makes the same calls in the same order.

    Attributes:
        world: the number of processes.
    """

    @property
    def world(self) -> int: ...

    def sum(self, values: Tensor) -> Tensor:
        """Add a tensor up over all processes.

        Args:
            values: of one shape and type everywhere: float32, differentiable (the backward pass adds the processes'
                gradients up too), or int64.

        Returns:
            The sum, the same in every process; ``values`` itself stays as it is.
        """
        ...
