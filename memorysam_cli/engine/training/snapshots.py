"""The whole state of a run, taken from what learns and put back into it."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import gather_object

from memorysam_cli.engine.runtime import rng_state, set_rng_state
from memorysam_cli.engine.training import identity as identities
from memorysam_cli.engine.training.checkpoints import Position, State
from memorysam_cli.engine.training.learner import Learner
from memorysam_cli.errors import DivergedError, WeightsError
from memorysam_cli.model import base_weights
from memorysam_cli.model.weights import fill_own, own_tensors

UPDATES = "updates"
"""The optimiser's tensor that keeps its file from being empty before the first update."""


def take(learner: Learner, position: Position, *, identity: dict[str, Any], scenes_since: int) -> State:
    """The state of all processes; every process must call this.

    Args:
        learner: what learns.
        position: where the run stands; its scenes are brought up to date.
        identity: of :func:`memorysam_cli.engine.training.identity.identity_of`.
        scenes_since: scenes of this process since the last time.

    Raises:
        DivergedError: an update has left something that is not finite, in every process.
    """
    accelerator = learner.accelerator
    own = rng_state(accelerator.device)
    rng = gather_object([own]) if accelerator.num_processes > 1 else [own]
    position.scenes += int(accelerator.reduce(torch.tensor(scenes_since, device=accelerator.device)))
    position.scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
    model, optimizer = own_tensors(learner.network), {UPDATES: torch.tensor([position.step]), **learner.state()}
    if odd := [name for name, value in {**model, **optimizer}.items() if not bool(torch.isfinite(value).all())]:
        raise DivergedError(
            f"step {position.step}: the update, whose gradient was finite, left {len(odd)} tensors that are not "
            f"({base_weights.few_names(odd)}); the checkpoint before it is kept; try a lower optim.lr"
        )
    return State(
        position=position,
        model=model,
        optimizer=optimizer,
        rng={f"{rank}/{name}": value for rank, states in enumerate(rng) for name, value in states.items()},
        identity=identity,
        made_by=identities.conditions(accelerator),
    )


def put_back(state: State, learner: Learner, *, where: str) -> Position:
    """Make everything as it was when a state was taken; returns where the run stood.

    Raises:
        WeightsError: the tensors are not of this network, or there is no state of the random numbers.
    """
    accelerator = learner.accelerator
    random = _random(state, learner, where=where)
    fill_own(learner.network, state.model, where=where)
    _restore(state, learner, where=where)
    if accelerator.scaler is not None and state.position.scaler:
        accelerator.scaler.load_state_dict(state.position.scaler)
    try:
        set_rng_state(random, accelerator.device)
    except (RuntimeError, TypeError) as fault:
        reason = str(fault).splitlines()[0]
        raise WeightsError(f"{where}: its state of the random numbers is none ({reason}); take another") from fault
    return state.position


def _random(state: State, learner: Learner, *, where: str) -> dict[str, torch.Tensor]:
    """The state of this process's random numbers. Without it, a run that goes on would be another one."""
    accelerator = learner.accelerator
    prefix = f"{accelerator.process_index}/"
    own = {name.removeprefix(prefix): value for name, value in state.rng.items() if name.startswith(prefix)}
    if missing := sorted(rng_state(accelerator.device).keys() - own.keys()):
        raise WeightsError(
            f"{where}: has no state of the random numbers of process {prefix[:-1]} ({', '.join(missing)}), so that the "
            "run could not go on as it was; take another checkpoint, or the device that the run began on"
        )
    return own


def _restore(state: State, learner: Learner, *, where: str) -> None:
    """Put optimiser and losses back; all that the checkpoint has, and no more."""
    saved = {name: value for name, value in state.optimizer.items() if name != UPDATES}
    try:
        learner.restore(saved)
    except (KeyError, RuntimeError) as fault:
        reason = str(fault).splitlines()[0][:200]
        raise WeightsError(f"{where}: its optimiser is not of this network ({reason}); take another") from fault
    if found := base_weights.difference(base_weights.shapes_of(saved), base_weights.shapes_of(learner.state())):
        raise WeightsError(f"{where}: its optimiser is not of this network: {found}; take another checkpoint")
