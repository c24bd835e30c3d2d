"""The whole state of a run, taken from what learns and put back into it."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import gather_object

from memorysam_cli.engine.runtime import rng_state, set_rng_state
from memorysam_cli.engine.training.checkpoints import Position, State
from memorysam_cli.engine.training.learner import Learner
from memorysam_cli.errors import UsageError
from memorysam_cli.model.weights import fill_own, own_tensors


def take(learner: Learner, position: Position, *, identity: dict[str, Any]) -> State:
    """The state of all processes; every process must call this.

    Args:
        position: where the run stands.
        identity: of :func:`memorysam_cli.engine.training.checkpoints.identity_of`.
    """
    accelerator = learner.accelerator
    own = rng_state(accelerator.device)
    rng = gather_object([own]) if accelerator.num_processes > 1 else [own]
    position.scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
    return State(
        position=position,
        model=own_tensors(learner.network),
        # The count keeps the file from being empty before the first update.
        optimizer={"updates": torch.tensor([position.step]), **learner.state()},
        rng={f"{rank}/{name}": value for rank, states in enumerate(rng) for name, value in states.items()},
        identity=identity,
    )


def refuse_other(position: Position, then: dict[str, Any], *, identity: dict[str, Any], world: int, where: str) -> None:
    """Refuse to go on from a checkpoint of another run.

    Args:
        position: of the checkpoint.
        then: its identity.
        identity: of the run that wants to go on.
        world: its number of processes.
        where: the checkpoint, for messages.

    Raises:
        UsageError: the run would compute something else, or has another number of processes.
    """
    keys = [key for key in identity | then if identity.get(key) != then.get(key)]
    if keys:
        differing = "; ".join(f"{key} was {then.get(key)}, is {identity.get(key)}" for key in keys)
        raise UsageError(
            f"{where}: cannot be resumed, for it began otherwise: {differing}; start a new run, or undo the change"
        )
    if position.world != world:
        raise UsageError(
            f"{where}: was trained by {position.world} processes and cannot be resumed by {world}; start as many"
        )


def put_back(state: State, learner: Learner, *, where: str) -> Position:
    """Make everything as it was when a state was taken; returns where the run stood.

    Raises:
        WeightsError: the tensors are not of this network.
    """
    accelerator = learner.accelerator
    fill_own(learner.network, state.model, where=where)
    learner.restore(state.optimizer)
    if accelerator.scaler is not None and state.position.scaler:
        accelerator.scaler.load_state_dict(state.position.scaler)
    prefix = f"{accelerator.process_index}/"
    own = {name.removeprefix(prefix): value for name, value in state.rng.items() if name.startswith(prefix)}
    set_rng_state(own, accelerator.device)
    return state.position
