"""``memorysam plan`` and ``train --batch auto``: which settings of a recipe fit into a memory, by counting.

The ways to divide an update into batches are counted, each in seconds and for any GPU, until the best that fits is
known. On an existing device the proposal can be tried; if that fails, the next smaller one is tried.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from memorysam_cli import recipe as recipes
from memorysam_cli import registry
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import run_folder, runtime
from memorysam_cli.engine.measure import count, rates, trials, workload
from memorysam_cli.engine.measure.count import Count, Kind
from memorysam_cli.engine.measure.rates import Estimate
from memorysam_cli.engine.measure.trials import Outcome, Trial
from memorysam_cli.engine.measure.workload import Frames, Target
from memorysam_cli.engine.surroundings import Capacity
from memorysam_cli.engine.train import start
from memorysam_cli.errors import EnvironmentFault, MemorySamError, UsageError
from memorysam_cli.recipe import BACKBONES, Recipe, Train
from memorysam_cli.report import console
from memorysam_cli.text import command, counted, duration, size

MARGIN = 0.1
"""The share of memory that stays free: for a GPU's driver, uncounted memory, and data workers."""
MOST_AT_ONCE = 64
"""The largest batch for which prediction is counted."""
COLUMNS = ("batch", "accumulate", "saver", "peak", "activations", "backward", "validation", "left", "fits")
BEAT = 5.0
"""Seconds between two messages of the planning process to the others, which wait only for a limited time."""

Answer = TypeVar("Answer")
Try = Callable[[Trial], Outcome]


@dataclass(frozen=True)
class Candidate:
    """A way to divide an update; it sees ``batch`` × ``accumulate`` scenes in each process."""

    batch: int
    accumulate: int
    saver: Literal["on", "off"]

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with these values."""
        train = recipe.train.model_copy(update=vars(self))
        return recipe.model_copy(update={"train": train})

    def changes(self) -> list[str]:
        """The values in the form of ``--set``."""
        return [f"train.{name}={value}" for name, value in vars(self).items()]

    def __str__(self) -> str:
        return f"batch {self.batch} × {self.accumulate} accumulated, saver {self.saver}"


def candidates(train: Train) -> list[Candidate]:
    """All ways with the same number of scenes per update, the fastest first.

    The saver costs less time than halving the batch: exact accumulation computes every batch's forward pass once more,
    which is the most that the saver does. A saver that the recipe sets does not change.
    """
    scenes = train.batch * train.accumulate
    savers: list[Literal["on", "off"]] = ["off", "on"] if train.saver == "auto" else [train.saver]
    batches = [batch for batch in range(scenes, 0, -1) if scenes % batch == 0]
    return [Candidate(batch, scenes // batch, saver) for batch in batches for saver in savers]


@dataclass(frozen=True)
class Room:
    """The memory of a device.

    Attributes:
        device: PyTorch's name of it; it may be on another machine.
        total: bytes of the device.
        free: bytes that are free now.
        memory: bytes to plan for: the free memory, or the user's value.
        limit: bytes that a training run may use.
    """

    device: str
    total: int
    free: int
    memory: int
    limit: int

    @property
    def kind(self) -> Kind:
        """The kind of device to count for."""
        return "cpu" if self.device == "cpu" else "cuda"

    def __str__(self) -> str:
        return f"{size(self.limit)} ({size(self.memory)} less the {100 * MARGIN:g} % that stay free)"


def room(device: str, *, asked: int | None = None, share: int = 1, have: Capacity | None = None) -> Room:
    """The memory to plan for.

    Args:
        device: PyTorch's name of it.
        asked: bytes given by the user, for a device that may be on another machine; None: the free memory.
        share: number of processes that share the device.
        have: the device's memory; None: it is measured.
    """
    if asked is not None:
        return Room(device, asked, asked, asked // share, int(asked // share * (1 - MARGIN)))
    have = have or trials.capacity(device)
    free = have.free or have.total  # unknown on this machine
    return Room(device, have.total, free, free // share, int(free // share * (1 - MARGIN)))


def refuse_more_than_there_is(space: Room, have: Capacity) -> None:
    """Refuse to try more than this machine's device has.

    Raises:
        UsageError: more is requested than the device has.
        EnvironmentFault: less is free than may be used.
    """
    if space.memory > have.total:
        raise UsageError(
            f"--gpu-memory {size(space.memory)}: {space.device} has {size(have.total)} in all; leave --try "
            "out (counting needs no device), or try on the larger device"
        )
    if space.limit > (have.free or have.total):
        raise EnvironmentFault(
            f"--gpu-memory {size(space.memory)}: only {size(have.free)} of {space.device} are free now; end "
            "what uses it, plan for less, or leave --try out"
        )


@dataclass(frozen=True)
class Finding:
    """The counted memory of a candidate.

    Attributes:
        candidate: the candidate.
        training: an update.
        validation: one batch of the largest scenes.
        programs: bytes of the process itself, which on a CPU uses the same memory.
        limit: bytes that may be used.
    """

    candidate: Candidate
    training: Count
    validation: Count
    programs: int
    limit: int

    @property
    def peak(self) -> int:
        """Bytes."""
        return max(self.training.peak, self.validation.peak) + self.programs

    @property
    def fits(self) -> bool:
        """Whether the peak is within the limit."""
        return self.peak <= self.limit

    def to_json(self) -> dict[str, Any]:
        """The candidate, the peak and its parts."""
        parts = self.training.to_json()
        return {
            **vars(self.candidate), "fits": self.fits, "peak": self.peak, "training_peak": parts.pop("peak"),
            "validation_peak": self.validation.peak, "programs": self.programs, "parts": parts,
        }  # fmt: skip


@dataclass(frozen=True)
class Tried:
    """The result of a candidate's trial."""

    candidate: Candidate
    outcome: Outcome

    @property
    def seconds(self) -> float | None:
        """Seconds of an update, without the first slow ones; None if none finished."""
        return min(self.outcome.seconds, default=None)

    def to_json(self) -> dict[str, Any]:
        """The candidate and its outcome."""
        outcome = self.outcome
        names = ("fits", "why", "peak", "training_peak", "validation_peak", "free")
        return {
            **vars(self.candidate), **{name: getattr(outcome, name) for name in names}, "seconds": self.seconds,
        }  # fmt: skip


@dataclass(frozen=True)
class Looking:
    """The counted memory of prediction: bytes for a batch of one scene, and the largest batch that fits (0: none)."""

    single: int
    batch: int
    peak: int


@dataclass(frozen=True)
class Plan:
    """What was counted and tried, and the proposal.

    Attributes:
        target: the recipe.
        room: the memory.
        findings: counted candidates, the fastest first.
        tried: trials in their order; empty if none was requested.
        looking: prediction; None if not requested.
        estimates: the estimated time of the recipe.
    """

    target: Target
    room: Room
    findings: tuple[Finding, ...]
    tried: tuple[Tried, ...] = ()
    looking: Looking | None = None
    estimates: tuple[Estimate, ...] = ()

    @property
    def proposal(self) -> Candidate | None:
        """The fastest candidate that fits; if some were tried, of those."""
        if self.tried:
            return next((each.candidate for each in self.tried if each.outcome.fits), None)
        return next((each.candidate for each in self.findings if each.fits), None)

    def refusal(self) -> EnvironmentFault:
        """Why there is no proposal, and what to change."""
        if self.tried:
            last, why = self.tried[-1].candidate, self.tried[-1].outcome.why
        else:
            last, why = self.findings[-1].candidate, f"needs {size(self.findings[-1].peak)}"
        return EnvironmentFault(
            f"{self.room.device}: nothing fits into {self.room}; {last}: {why}; "
            f"{levers(self.target)}, or a device with more memory"
        )

    def to_json(self) -> dict[str, Any]:
        """The keys of ``memorysam plan --json``, without ``schema_version`` and the command."""
        recipe, frames = self.target.recipe, self.target.frames
        train = recipe.train
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
            "counts": [each.to_json() for each in self.findings],
            "not_counted": list(count.NOT_COUNTED[self.room.kind]),
            "trials": [each.to_json() for each in self.tried],
            "proposal": None if self.proposal is None else vars(self.proposal),
            "prediction": None if self.looking is None else vars(self.looking),
            "updates": self.target.updates,
            "estimates": [vars(each) for each in self.estimates],
        }


def make_plan(
    target: Target, here: torch.device, *, amount: int | None, is_named: bool, tries: bool, timeout: float
) -> Plan:
    """The result of ``memorysam plan``.

    Args:
        target: the recipe.
        here: the device of this machine.
        amount: bytes to plan for; None: the free memory of that device.
        is_named: whether the user chose the device; otherwise an amount means a GPU, even if there is none.
        tries: whether to run the proposal.
        timeout: seconds for each trial.

    Raises:
        UsageError: more is to be tried than the device has.
        EnvironmentFault: less is free than is to be tried.
    """
    is_absent = amount is not None and not is_named and not tries and here.type != "cuda"
    space = room("cuda" if is_absent else str(here), asked=amount)
    if tries and amount is not None:
        refuse_more_than_there_is(space, trials.capacity(space.device))
    found = search(target, space, attempt=trials.run if tries else None, timeout=timeout)
    return dataclasses.replace(
        found, looking=looking(target, space),
        estimates=tuple(estimates(target, space, here=here if amount is None else None)),
    )  # fmt: skip


def search(
    target: Target, space: Room, *, attempt: Try | None = None, timeout: float = trials.TIMEOUT, steps: int = 2
) -> Plan:
    """Count a recipe's candidates until the best that fits is known, and try it if requested.

    A smaller batch never needs more memory, nor does the saver, so the largest batch that fits is found by halving.

    Args:
        target: the recipe.
        space: the memory.
        attempt: runs a trial of the proposal, and of the next ones if it fails; None: no trials.
        timeout: seconds for each trial.
        steps: updates of each.
    """
    ways = candidates(target.recipe.train)
    programs = runtime.resident_bytes() if space.kind == "cpu" else 0
    found: dict[Candidate, Finding] = {}
    validations: dict[int, Count] = {}  # by batch: without gradients the saver has nothing to save

    def fits(way: Candidate) -> bool:
        if way not in found:
            found[way] = _count(way, target, space, programs=programs, validations=validations)
        return found[way].fits

    batches = sorted({way.batch for way in ways}, reverse=True)
    frugal = {way.batch: way for way in ways}  # the last one of a batch needs the least memory
    low, high = 0, len(batches) - 1
    while low <= high:  # the largest one first: it is the usual answer
        middle = 0 if high == len(batches) - 1 and low == 0 else (low + high) // 2
        low, high = (low, middle - 1) if fits(frugal[batches[middle]]) else (middle + 1, high)
    if low < len(batches):
        any(fits(way) for way in ways if way.batch == batches[low])
    plan = Plan(target, space, tuple(found[way] for way in ways if way in found))
    if attempt is None or plan.proposal is None:
        return plan
    rest = ways[ways.index(plan.proposal) :]
    return dataclasses.replace(plan, tried=tuple(_attempts(rest, target, space, attempt, timeout, steps)))


def looking(target: Target, space: Room) -> Looking:
    """Count ``memorysam predict``: one scene, and the largest batch that fits."""
    frames = Frames(target.frames.inputs[-1:], target.frames.native)
    programs = runtime.resident_bytes() if space.kind == "cpu" else 0
    known: dict[int, int] = {}

    def peak(batch: int) -> int:
        if batch not in known:
            recipe = Candidate(batch, 1, "on").apply(target.recipe)
            counted = count.prediction(recipe, classes=target.classes, frames=frames, kind=space.kind)
            known[batch] = counted.peak + programs
        return known[batch]

    single, each = peak(1), peak(2) - peak(1)
    batch = min(MOST_AT_ONCE, 1 + (space.limit - single) // max(each, 1)) if single <= space.limit else 0
    while batch and peak(batch) > space.limit:  # a line through two points is only an approximation
        batch -= 1
    return Looking(single, batch, peak(batch) if batch else 0)


def estimates(target: Target, space: Room, *, here: torch.device | None) -> list[Estimate]:
    """The estimated time of the recipe.

    Args:
        target: the recipe, and the number of scenes.
        space: its memory selects the GPUs of the table if there is none here.
        here: this machine's device, whose rate is measured; None: use the table of GPUs.
    """
    train = target.recipe.train
    scenes = train.batch * train.accumulate
    flops = scenes * count.training_flops(target.recipe, classes=target.classes)
    if here is not None or space.kind == "cpu":
        here = here or torch.device("cpu")
        return rates.estimate_here(here, flops=flops, updates=target.updates)
    apart = {name: abs(card.memory * 10**9 - space.total) for name, card in rates.CARDS.items()}
    cards = [name for name, bytes_apart in apart.items() if bytes_apart == min(apart.values())]
    return [
        each for card in cards for each in rates.estimate_on_card(card, flops=flops, updates=target.updates)
    ]  # fmt: skip


def levers(target: Target) -> str:
    """Settings that need less memory than all counted ones; another plan computes how much less."""
    recipe = target.recipe
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


def show(plan: Plan, line: str | None) -> None:
    """Print the counted, tried and proposed settings on stdout.

    Args:
        plan: any.
        line: from :func:`train_line`.
    """
    recipe, space = plan.target.recipe, plan.room
    (height, width), (rows, columns) = plan.target.frames.inputs[-1], plan.target.frames.native
    side, names = recipe.data.image_size, ", ".join(recipe.data.modalities)
    console.say(f"{recipe.name}: {recipe.model.backbone}, {recipe.train.precision}, {names}, {side}×{side} pixels")
    console.say(f"validation at {height}×{width} for {rows}×{columns}: {plan.target.source}")
    console.say(f"{space.device}: {size(space.free)} of {size(space.total)} free; to be used: {space}")
    console.table(COLUMNS, [_row(finding) for finding in plan.findings], title="counted")
    if plan.tried:
        console.table(TRIED, [_tried_row(tried, space) for tried in plan.tried], title="tried on the device")
    console.say(f"not counted: {', '.join(count.NOT_COUNTED[space.kind])}")
    if plan.looking is not None:
        single, batch = size(plan.looking.single), plan.looking.batch
        fit = f"batches of up to {batch} fit ({size(plan.looking.peak)})" if batch else "does not fit"
        console.say(f"prediction: {single} for one scene; {fit}")
    if plan.estimates:
        console.table(ESTIMATED, [_estimate_row(each) for each in plan.estimates], title="time, an estimate")
    if plan.proposal is not None and line is not None:
        scenes = plan.proposal.batch * plan.proposal.accumulate
        console.say(f"fits: {plan.proposal}; {counted(scenes, 'scene')} per update, as in the recipe")
        console.say(line)


TRIED = ("batch", "accumulate", "saver", "peak", "left", "s per update", "fits")
LEAST_SECONDS = 0.01
"""Seconds of an update below which starting the kernels takes longer than computing."""
ESTIMATED = ("device", "precision", "s per update", "whole recipe", "at")


def train_line(
    plan: Plan, *, recipe: str, data: Path | None = None, overrides: Sequence[str] = (), device: str = "auto"
) -> str | None:
    """The training command that fits; None if nothing fits.

    Args:
        plan: any.
        recipe: the user's name of it.
        data: the user's value.
        overrides: the user's values; the plan's values come last and override them.
        device: the user's value.
    """
    if plan.proposal is None:
        return None
    words = [*registry.options(), "train", "--recipe", recipe]
    words += [] if data is None else ["--data", str(data)]
    words += [] if device == "auto" else ["--device", device]
    return command(*words, *(word for change in _changes(plan.proposal, overrides) for word in ("--set", change)))


def _changes(proposal: Candidate, overrides: Sequence[str]) -> list[str]:
    """The user's overrides and the proposal's, each key once."""
    ours = proposal.changes()
    keys = {change.partition("=")[0] for change in ours}
    return [change for change in overrides if change.partition("=")[0] not in keys] + ours


def settle(planned: start.RunStart, manifest: Manifest, accelerator: Accelerator) -> start.RunStart:
    """Let the plan decide the batch of a new training run.

    A resumed run keeps its own batch, so that one command line can start and continue it.

    Args:
        planned: from :func:`memorysam_cli.engine.train.start.plan`.
        manifest: the data set.
        accelerator: every process gets the result of the main one.

    Raises:
        EnvironmentFault: nothing fits.
    """
    recipe = planned.recipe
    if planned.run is not None:
        own = recipes.load(planned.run.path / run_folder.RECIPE).train
        saver = own.saver if recipe.train.saver == "auto" else recipe.train.saver
        kept = {"batch": own.batch, "accumulate": own.accumulate, "saver": saver}
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=kept)})
        note = f"--batch auto: the run keeps its batch {own.batch} × {own.accumulate} accumulated"
        return dataclasses.replace(planned, recipe=recipe, notes=(*planned.notes, note))
    chosen = told_by_main(lambda: _choose(recipe, manifest, accelerator), accelerator)
    return dataclasses.replace(planned, recipe=chosen.apply(recipe))


def told_by_main(work: Callable[[], Answer], accelerator: Accelerator) -> Answer:
    """The result of the main process, in all processes; its ``MemorySamError`` is raised in all of them."""
    if accelerator.num_processes == 1:
        return work()
    future: Future[Answer] = Future()
    if accelerator.is_main_process:
        # A daemon thread, so that Ctrl-C does not wait for it. Meanwhile the main thread sends the others messages: a
        # collective may not wait longer than its timeout, and a plan may.
        threading.Thread(target=_fulfil, args=(future, work), daemon=True).start()
    while True:
        word = [_word(future, accelerator)]
        broadcast_object_list(word)
        is_over, answer = word[0]
        if not is_over:
            continue
        if isinstance(answer, MemorySamError):
            raise answer
        return answer  # type: ignore[return-value]


def _word(future: Future[Answer], accelerator: Accelerator) -> tuple[bool, Answer | MemorySamError | None]:
    """Whether the main process has its result, and the result."""
    if not accelerator.is_main_process:
        return False, None
    if not wait([future], timeout=BEAT).done:
        return False, None
    try:
        return True, future.result()
    except MemorySamError as fault:
        return True, fault


def _fulfil(future: Future[Answer], work: Callable[[], Answer]) -> None:
    try:
        future.set_result(work())
    except BaseException as fault:  # whoever asks for the result gets it
        future.set_exception(fault)


def _choose(recipe: Recipe, manifest: Manifest, accelerator: Accelerator) -> Candidate:
    """The plan for one process of those that share the device; its proposal has run one real update and a
    validation."""
    device = accelerator.device
    share = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)) if device.type == "cpu" else 1
    name = str(device) if device.type == "cuda" else device.type  # accelerate uses cpu:0
    found = search(workload.target_of(recipe, manifest), room(name, share=share), attempt=trials.run, steps=1)
    if found.proposal is None:
        raise found.refusal()
    console.note(f"--batch auto: {found.proposal}; as many scenes per update as the recipe has")
    return found.proposal


def _count(way: Candidate, target: Target, space: Room, *, programs: int, validations: dict[int, Count]) -> Finding:
    """Count a candidate, and its batch's validation unless that is known."""
    start, recipe = time.monotonic(), way.apply(target.recipe)
    training = count.training(recipe, classes=target.classes, kind=space.kind)
    if way.batch not in validations:
        validations[way.batch] = count.validation(recipe, classes=target.classes, frames=target.frames, kind=space.kind)
    finding = Finding(way, training, validations[way.batch], programs, space.limit)
    console.detail(f"counted {way}: {size(finding.peak)} ({duration(time.monotonic() - start)})")
    return finding


def _attempts(
    ways: Sequence[Candidate], target: Target, space: Room, attempt: Try, timeout: float, steps: int
) -> Iterator[Tried]:
    """Try candidates until one fits."""
    for way in ways:
        console.note(f"trying {way}: {counted(steps, 'update')}, then validation")
        start = time.monotonic()
        outcome = attempt(
            Trial(
                way.apply(target.recipe), target.classes, device=space.device, steps=steps, frames=target.frames,
                limit=space.limit, timeout=timeout,
            )
        )  # fmt: skip
        said = f"fits, peak {size(outcome.peak)}" if outcome.fits else outcome.why
        console.note(f"{way}: {said} ({duration(time.monotonic() - start)})")
        yield Tried(way, outcome)
        if outcome.fits:
            return


def _row(finding: Finding) -> tuple[object, ...]:
    candidate, training = finding.candidate, finding.training
    left = size(finding.limit - finding.peak) if finding.fits else "–"
    sizes = (finding.peak, training.activations, training.backward, finding.validation.peak)
    place = (candidate.batch, candidate.accumulate, candidate.saver)
    return (*place, *map(size, sizes), left, "yes" if finding.fits else "no")


def _tried_row(tried: Tried, space: Room) -> tuple[object, ...]:
    outcome, candidate = tried.outcome, tried.candidate
    place = (candidate.batch, candidate.accumulate, candidate.saver)
    if not outcome.fits:
        return (*place, "–", "–", "–", f"no: {outcome.why}")
    left = size(max(space.memory - outcome.peak, 0))
    return (*place, size(outcome.peak), left, f"{tried.seconds or 0:.2f}", "yes")


def _estimate_row(each: Estimate) -> tuple[object, ...]:
    """The times as text; below the threshold only that they are small."""
    hours = "–" if each.hours is None else duration(3600 * each.hours) if each.hours >= 1 / 60 else "< 1 min"
    seconds = f"{each.seconds:.3g}" if each.seconds >= LEAST_SECONDS else f"< {LEAST_SECONDS}"
    return (each.device, each.precision, seconds, hours, each.source)
