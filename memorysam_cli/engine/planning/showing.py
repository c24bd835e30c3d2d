"""A plan for people: the table of trials, and the line to type next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from memorysam_cli.engine.measuring.memory import gigabytes
from memorysam_cli.engine.planning.search import Finding, Plan
from memorysam_cli.report import console

COLUMNS = ("batch", "accumulate", "saver", "peak", "left", "s per update", "fits")


def show(plan: Plan, line: str | None) -> None:
    """Print what was tried and what is proposed on stdout.

    Args:
        plan: any.
        line: of :func:`train_line`.
    """
    recipe, room = plan.target.recipe, plan.room
    (height, width), (rows, columns) = plan.target.frames.inputs[-1], plan.target.frames.native
    size, names = recipe.data.image_size, ", ".join(recipe.data.modalities)
    console.say(f"{recipe.name}: {recipe.model.backbone}, {recipe.train.precision}, {names}, {size}×{size} pixels")
    console.say(f"validation at {height}×{width} for {rows}×{columns}: {plan.target.source}")
    console.say(f"{room.device}: {gigabytes(room.free)} of {gigabytes(room.total)} free; to be used: {room}")
    console.table(COLUMNS, [_row(plan, finding) for finding in plan.findings])
    if plan.proposal is not None and line is not None:
        candidate = plan.proposal.candidate
        scenes = candidate.batch * candidate.accumulate
        console.say(f"fits: {candidate}; {scenes} scenes per update, as in the recipe")
        console.say(line)


def train_line(
    plan: Plan, *, recipe: str, data: Path | None = None, overrides: Sequence[str] = (), device: str = "auto"
) -> str | None:
    """The training that was found to fit, ready to be typed; none where nothing fits.

    Args:
        plan: any.
        recipe: as the user named it.
        data: likewise.
        overrides: likewise; the plan's values come last and win.
        device: likewise.
    """
    if plan.proposal is None:
        return None
    words = ["memorysam", "train", "--recipe", recipe]
    words += [] if data is None else ["--data", str(data)]
    words += [] if device == "auto" else ["--device", device]
    return shlex.join(words + [word for change in _changes(plan.proposal, overrides) for word in ("--set", change)])


def _changes(proposal: Finding, overrides: Sequence[str]) -> list[str]:
    """The user's overrides and the proposal's, each key once."""
    ours = proposal.candidate.changes()
    keys = {change.partition("=")[0] for change in ours}
    return [change for change in overrides if change.partition("=")[0] not in keys] + ours


def _row(plan: Plan, finding: Finding) -> tuple[object, ...]:
    outcome, candidate = finding.outcome, finding.candidate
    place = (candidate.batch, candidate.accumulate, candidate.saver)
    if not outcome.fits:
        return (*place, "–", "–", "–", f"no: {outcome.why}")
    left = gigabytes(max(plan.room.memory - outcome.peak, 0))
    return (*place, gigabytes(outcome.peak), left, f"{finding.seconds or 0:.2f}", "yes")
