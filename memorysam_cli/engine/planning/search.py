"""The search: candidates are tried for real, one after the other, until one fits. Nothing is extrapolated."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memorysam_cli.engine.measuring import trials
from memorysam_cli.engine.measuring.memory import Capacity, gigabytes
from memorysam_cli.engine.measuring.trials import Outcome, Trial
from memorysam_cli.engine.planning.candidates import Candidate, candidates
from memorysam_cli.engine.planning.targets import Target
from memorysam_cli.errors import EnvironmentFault, UsageError
from memorysam_cli.recipe import BACKBONES
from memorysam_cli.report import console
from memorysam_cli.report.progress import duration

MARGIN = 0.1
"""The share of memory that a trial leaves free: for a GPU's driver, other programs, workers that read ahead."""

Try = Callable[[Trial], Outcome]


@dataclass(frozen=True)
class Room:
    """The memory that there is.

    Attributes:
        device: as PyTorch calls it.
        total: bytes of the device.
        free: of them, free now.
        memory: what is planned for: the free memory, or what the user said.
        limit: what a trial may take of it.
    """

    device: str
    total: int
    free: int
    memory: int
    limit: int

    def __str__(self) -> str:
        return f"{gigabytes(self.limit)} ({gigabytes(self.memory)} less the {100 * MARGIN:g} % that stay free)"


@dataclass(frozen=True)
class Finding:
    """What a candidate's trial gave."""

    candidate: Candidate
    outcome: Outcome

    @property
    def seconds(self) -> float | None:
        """Of one update, the first ones being slow; none if there was none."""
        return min(self.outcome.seconds, default=None)


@dataclass(frozen=True)
class Plan:
    """What was tried, and what is proposed: the last candidate, or nothing."""

    target: Target
    room: Room
    findings: tuple[Finding, ...]

    @property
    def proposal(self) -> Finding | None:
        """The candidate that fits."""
        return next((finding for finding in self.findings if finding.outcome.fits), None)

    def refusal(self) -> EnvironmentFault:
        """Why nothing is proposed, and what would change that."""
        last = self.findings[-1]
        return EnvironmentFault(
            f"{self.room.device}: nothing fits into {self.room}; {last.candidate}: {last.outcome.why}; "
            f"{levers(self)}, or a device with more memory"
        )

    def to_json(self) -> dict[str, Any]:
        """The keys of ``memorysam plan --json``, without ``schema_version`` and the command."""
        recipe, frames = self.target.recipe, self.target.frames
        train, found = recipe.train, self.proposal
        return {
            "recipe": recipe.name,
            "dataset": recipe.data.dataset,
            "modalities": list(recipe.data.modalities),
            "classes": self.target.classes,
            "backbone": recipe.model.backbone,
            "precision": train.precision,
            "image_size": recipe.data.image_size,
            "validation": {"inputs": frames.inputs, "native": frames.native, "source": self.target.source},
            **dataclasses.asdict(self.room),
            "margin": MARGIN,
            "effective_batch": train.batch * train.accumulate,
            "trials": [_row(finding) for finding in self.findings],
            "proposal": None if found is None else vars(found.candidate),
        }


def room(device: str, *, asked: int | None = None, share: int = 1, have: Capacity | None = None) -> Room:
    """The memory to plan for.

    Args:
        device: as PyTorch calls it.
        asked: bytes that are to suffice; none: what is free now.
        share: processes that share the device.
        have: the device's memory; none: it is asked for it.

    Raises:
        UsageError: more is asked for than the device has.
        EnvironmentFault: less is free than may be taken.
    """
    have = have or trials.capacity(device)
    if asked is not None and asked > have.total:
        raise UsageError(
            f"--gpu-memory {gigabytes(asked)}: {device} has {gigabytes(have.total)} in all, and what was not run is "
            "not foretold; leave it out, or plan on the larger device"
        )
    free = have.free or have.total  # a machine that does not say
    memory = (asked or free) // share
    limit = int(memory * (1 - MARGIN))
    if limit * share > free:
        raise EnvironmentFault(
            f"--gpu-memory {gigabytes(memory)}: only {gigabytes(free)} of {device} are free now; end what uses "
            "it, or plan for less"
        )
    return Room(device, have.total, free, memory, limit)


def search(
    target: Target, space: Room, *, attempt: Try | None = None, timeout: float = trials.TIMEOUT, steps: int = 2
) -> Plan:
    """Try a recipe's candidates until one fits.

    Args:
        target: what is to fit.
        space: where.
        attempt: does a trial; none: :func:`~memorysam_cli.engine.measuring.trials.run`.
        timeout: seconds for each.
        steps: updates of each.
    """
    findings = []
    for candidate in candidates(target.recipe.train):
        console.note(f"trying {candidate}: {steps} updates, then validation")
        start = time.monotonic()
        outcome = (attempt or trials.run)(
            Trial(
                candidate.apply(target.recipe), target.classes, device=space.device, steps=steps, frames=target.frames,
                limit=space.limit, timeout=timeout,
            )
        )  # fmt: skip
        spent = duration(time.monotonic() - start)
        said = f"fits, peak {gigabytes(outcome.peak)}" if outcome.fits else outcome.why
        console.note(f"{candidate}: {said} ({spent})")
        findings.append(Finding(candidate, outcome))
        if outcome.fits:
            break
    return Plan(target, space, tuple(findings))


def levers(plan: Plan) -> str:
    """What takes less memory than anything that was tried; how much less, a next plan tells."""
    recipe = plan.target.recipe
    ways = []
    if recipe.train.saver == "off":
        ways.append("--set train.saver=on")
    if recipe.train.precision in {"fp32", "tf32"}:
        ways.append("--set train.precision=bf16")
    smaller = recipe.data.image_size * 3 // 4 // 32 * 32
    if smaller:
        ways.append(f"--set data.image_size={smaller}")
    if len(recipe.data.modalities) > 1:
        ways.append(f"fewer modalities than {len(recipe.data.modalities)}")
    names = [name for name in BACKBONES if name.split("-")[0] == recipe.model.backbone.split("-")[0]]
    if recipe.model.backbone in names[1:]:
        ways.append(f"a smaller backbone, such as --set model.backbone={names[0]}")
    return f"plan again with {', '.join(ways)}" if ways else "this recipe is as small as it gets"


def _row(finding: Finding) -> dict[str, Any]:
    outcome = finding.outcome
    return {
        **vars(finding.candidate),
        "fits": outcome.fits,
        "why": outcome.why,
        "peak": outcome.peak,
        "training_peak": outcome.training_peak,
        "validation_peak": outcome.validation_peak,
        "free": outcome.free,
        "seconds": finding.seconds,
    }
