"""The account of tensors: what is wanted is there in its shape, and nothing else is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from memorysam_cli.errors import WeightsError
from memorysam_cli.text import few, shown

Shapes = Mapping[str, tuple[int, ...]]

_NAMES_SHOWN = 3


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of named tensors."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def difference(given: Shapes, wanted: Shapes) -> str:
    """In what two accounts differ, in words such as ``2 missing (a, b)``; empty where they agree."""
    lists = {
        "missing": [name for name in wanted if name not in given],
        "unknown": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} is {given[name]}, not {shape}"
            for name, shape in wanted.items()
            if name in given and given[name] != shape
        ],
    }
    return "; ".join(f"{len(names)} {kind} ({named(names)})" for kind, names in lists.items() if names)


def fitting(given: Shapes, wanted: Shapes) -> int:
    """How many of the wanted tensors are there in their shape."""
    return sum(given.get(name) == shape for name, shape in wanted.items())


def copy(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, where: str, whose: str, remedy: str) -> None:
    """Copy tensors into a network's own, in place; all of them or none.

    Args:
        given: from a file.
        wanted: the network's.
        where: the file, for messages.
        whose: what the wanted tensors are, such as ``sam2-hiera-tiny``.
        remedy: what to do where they are others.

    Raises:
        WeightsError: a tensor is missing, unknown, of another shape, or holds whole numbers in place of weights.
    """
    there, needed = shapes(given), shapes(wanted)
    if found := difference(there, needed):
        raise WeightsError(
            f"{where}: does not hold the weights of {whose}: {fitting(there, needed)} of {len(needed)} tensors fit; "
            f"{found}; {remedy}"
        )
    # They would be converted without a word.
    if odd := [
        name for name, tensor in wanted.items() if given[name].is_floating_point() != tensor.is_floating_point()
    ]:
        kinds = f"{given[odd[0]].dtype}, not {wanted[odd[0]].dtype}"
        raise WeightsError(f"{where}: {len(odd)} tensors hold no weights ({named(odd)}: {kinds}); {remedy}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(given[name])


def named(names: list[str]) -> str:
    """The first of some tensors' names."""
    return few([shown(name[:120]) for name in names], _NAMES_SHOWN, is_counted=False)
