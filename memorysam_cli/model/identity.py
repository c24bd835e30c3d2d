"""Which network a reference checkpoint is of, read off its tensors; and whether it is all of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from memorysam_cli.errors import WeightsError
from memorysam_cli.model import ledger
from memorysam_cli.model.ledger import Shapes
from memorysam_cli.model.reference import reference_shapes
from memorysam_cli.recipe import BACKBONES
from memorysam_cli.text import shown

_TOKENS = "sam.sam_mask_decoder.mask_tokens.weight"
_LORA_A = ".attn.qkv.linear_a_q.weight"
_PARALLEL = "module."
"""What ``DistributedDataParallel`` puts before every name."""


@dataclass(frozen=True)
class Identity:
    """What the tensors of a checkpoint say."""

    backbone: str
    """One of ``memorysam_cli.recipe.BACKBONES``."""
    rank: int
    """Of its LoRA."""
    tokens: int
    """Class tokens of its decoder."""


def unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state without the prefix that data-parallel training leaves."""
    if all(name.startswith(_PARALLEL) for name in state):
        return {name.removeprefix(_PARALLEL): tensor for name, tensor in state.items()}
    return state


def identify(state: dict[str, Tensor], *, where: str) -> Identity:
    """Find the network that a reference ``state_dict`` is of; every tensor is accounted for.

    Args:
        state: names as in :mod:`memorysam_cli.model.reference`, without a ``module.`` prefix.
        where: the file, for messages.

    Raises:
        WeightsError: tensors are missing, extra, of another shape or not floating point (the first of each are
            named, with the backbone that most of them fit), or it is no MemorySAM checkpoint at all.
    """
    given = ledger.shapes(state)
    _refuse_other_models(given, where=where)
    tokens, rank = _tokens(given), _rank(given)
    candidates = {name: reference_shapes(name, tokens=tokens, rank=rank) for name in BACKBONES}
    backbone = max(candidates, key=lambda name: _agreement(given, candidates[name]))
    wanted = candidates[backbone]
    if found := ledger.difference(given, wanted):
        raise WeightsError(
            f"{where}: {ledger.fitting(given, wanted)} of the {len(wanted)} tensors of MemorySAM on {backbone}, which "
            f"it resembles most, fit; {found}; give the state_dict of the whole model"
        )
    numbers = [name for name, tensor in state.items() if not tensor.is_floating_point()]
    if numbers:
        raise WeightsError(
            f"{where}: {ledger.named(numbers)} hold whole numbers, not weights; export the state_dict again"
        )
    return Identity(backbone=backbone, rank=rank, tokens=tokens)


def _refuse_other_models(given: Shapes, *, where: str) -> None:
    """Say what it is, where it is none of ours."""
    if any(name.startswith("sam.image_encoder.") for name in given):
        return
    example = f"for example '{shown(next(iter(given))[:80])}'"
    if not any(name.startswith("image_encoder.trunk.") for name in given):
        raise WeightsError(
            f"{where}: none of its {len(given)} tensors is of a MemorySAM checkpoint ({example}); "
            "its names begin with 'sam.image_encoder.'"
        )
    if any(_LORA_A in name for name in given):
        raise WeightsError(
            f"{where}: its names lack the prefix 'sam.' ({example}); save the state_dict of the whole model"
        )
    raise WeightsError(
        f"{where}: these are SAM 2's own weights, without MemorySAM's LoRA; give them to training: "
        f"--set model.base_weights={where}"
    )


def _tokens(given: Shapes) -> int:
    """Class tokens; SAM2's own first token is one more. Without any, the number of the released weights."""
    shape = given.get(_TOKENS, ())
    return max(shape[0] - 1, 1) if len(shape) == 2 else 25


def _rank(given: Shapes) -> int:
    """Of the first block that has LoRA. Without any, that of the released weights."""
    found = [shape[0] for name, shape in given.items() if name.endswith(_LORA_A) and len(shape) == 2]
    return max(found[0], 1) if found else 4


def _agreement(given: Shapes, wanted: Shapes) -> tuple[int, int]:
    """How many tensors fit, then how few are left over."""
    return ledger.fitting(given, wanted), -len(wanted.keys() ^ given.keys())
