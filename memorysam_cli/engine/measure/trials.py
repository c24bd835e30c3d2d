"""Trials: real work of a recipe's size in a separate process, so that running out of memory is a result, not a crash.

First the parent, then the child (:func:`main`). The child ends when its parent ends for any reason, and before the
machine's memory is used up: the parent checks the free memory many times a second. The child gets one line of JSON on
its stdin. It prints lines of JSON on its stdout and everything else on its stderr. Lines printed before it is killed
count.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any, Literal

import torch
from torch import Tensor

from memorysam_cli import recipe as recipes
from memorysam_cli.engine import runtime, surroundings
from memorysam_cli.engine.infer.decision import class_map
from memorysam_cli.engine.infer.inference import inference_mode
from memorysam_cli.engine.infer.views import Shown
from memorysam_cli.engine.measure.plain import Plain, PlainLearner
from memorysam_cli.engine.measure.rates import synchronize
from memorysam_cli.engine.measure.workload import Frames, made_up_batch, made_up_dataset
from memorysam_cli.engine.surroundings import Capacity
from memorysam_cli.engine.train.update import Learner
from memorysam_cli.errors import UsageError, is_out_of_memory, shortage
from memorysam_cli.model.lora import merge_lora
from memorysam_cli.model.weights import Segmenter, build_for_measuring
from memorysam_cli.recipe import Recipe
from memorysam_cli.storage import children
from memorysam_cli.text import size

PROCESS = __name__
"""Command of the child, which runs this module's ``main``."""
TIMEOUT = 3600.0
"""Seconds after which a trial counts as hung."""
_POLL = 0.02
"""Seconds between two checks of a child's memory."""
RESERVE = (2 * 10**8, 10**9)
"""Bytes of the machine that no trial may use: a thirtieth of its memory, within these limits."""
_LAST = 15
"""Lines of a failed child's stderr that are printed."""


@dataclass(frozen=True)
class Trial:
    """A trial.

    Attributes:
        recipe: with its modalities named; has sizes, batch, accumulation, saver and precision.
        classes: K.
        task: ``train``: updates with the optimizer and then, if ``frames`` are given, a validation; ``validate``: only
            the validation; ``predict``: segmenting with LoRA merged.
        device: PyTorch's name of it.
        implementation: ``plain``: the network as the reference runs it.
        steps: updates, or forward passes.
        frames: inputs of scoring or prediction; None: squares of ``data.image_size``.
        limit: bytes that it may use; None: all free memory.
        timeout: seconds.
    """

    recipe: Recipe
    classes: int
    task: Literal["train", "validate", "predict"] = "train"
    device: str = "cpu"
    implementation: Literal["fast", "plain"] = "fast"
    steps: int = 2
    frames: Frames | None = None
    limit: int | None = None
    timeout: float = TIMEOUT

    def to_json(self) -> str:
        """One line of JSON for :meth:`from_json`."""
        frames = None if self.frames is None else {"inputs": self.frames.inputs, "native": self.frames.native}
        return json.dumps(vars(self) | {"recipe": self.recipe.model_dump(mode="json"), "frames": frames})

    @staticmethod
    def from_json(text: str) -> Trial:
        """The trial of a line from :meth:`to_json`."""
        content = json.loads(text)
        content["recipe"] = recipes.parse(content["recipe"], where="trial")
        if content["frames"] is not None:
            height, width = content["frames"]["native"]
            inputs = tuple((rows, columns) for rows, columns in content["frames"]["inputs"])
            content["frames"] = Frames(inputs, (height, width))
        return Trial(**content)


@dataclass(frozen=True)
class Outcome:
    """The result of a trial.

    Attributes:
        fits: it ended within the memory.
        why: why not, such as ``needs more than 24.0 GB``.
        seconds: of each step; the first ones may be slow.
        peak: the peak memory, in bytes; if the trial does not fit, its memory until then.
        total: the device's memory.
        free: the free part of it before the trial.
        training_peak: of the updates; 0 if there was none.
        validation_peak: of the validation; 0 if there was none.
    """

    fits: bool
    why: str = ""
    seconds: tuple[float, ...] = ()
    peak: int = 0
    total: int = 0
    free: int = 0
    training_peak: int = 0
    validation_peak: int = 0


def run(trial: Trial) -> Outcome:
    """Run a trial in a child process and wait for it.

    Raises:
        UsageError: the device does not support the recipe's precision.
        RuntimeError: the child failed for another reason than missing memory; has its last lines.
    """
    # In case it ends before it reports this.
    before = {} if trial.device.startswith("cuda") else asdict(capacity(trial.device))
    with tempfile.TemporaryFile("w+") as complained, _child(trial, complained) as process:
        ended_by_us, seen = _watch(process, trial)
        _end(process)
        told = before | _told(process)
        known = {key: told.get(key, 0) for key in ("total", "free", "training_peak", "validation_peak")}
        seconds, peak = tuple(told.get("seconds", ())), max(told.get("peak", 0), seen)
        if not ended_by_us and process.returncode not in {0, -signal.SIGKILL}:
            raise RuntimeError(f"a trial ended with {process.returncode}:\n{_last_lines(complained)}")
    if "refused" in told:
        raise UsageError(told["refused"])
    why = ended_by_us or told.get("why", "")
    if not why and process.returncode:
        why = "out of memory (the system killed it)"
    if not why and trial.limit is not None and peak > trial.limit:
        why = _over(trial.limit)  # between two looks
    if why and trial.frames is not None and told.get("training_peak"):
        why += ", in validation"
    return Outcome(not why, why, seconds, peak, **known)


def capacity(device: str) -> Capacity:
    """The memory of a device, measured in a child process (a CUDA context needs half a gigabyte)."""
    if not device.startswith("cuda"):
        return runtime.capacity(torch.device(device))
    with tempfile.TemporaryFile("w+") as complained:
        process = children.start(PROCESS, "--capacity", device, environment=_alone(), errors_to=complained)
        try:
            told, code = _told(process), process.wait()
        finally:
            children.end(process)
        if code:
            raise RuntimeError(f"asking for the memory of {device} ended with {code}:\n{_last_lines(complained)}")
        return Capacity(**told)


@contextlib.contextmanager
def _child(trial: Trial, complained: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The running child; afterwards it and its own children are ended."""
    # A separate session: Ctrl-C in the terminal reaches only this process, which then ends the child.
    process = children.start(PROCESS, environment=_alone(), errors_to=complained, own_session=True)
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended at once; its exit code shows why
            process.stdin.write(trial.to_json().encode() + b"\n")
            process.stdin.flush()
        yield process
    finally:
        if process.returncode is None:
            _end(process)
        children.end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Make sure that a child and its own children are ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _watch(process: subprocess.Popen[bytes], trial: Trial) -> tuple[str, int]:
    """Wait for the child's end, or for a reason to end it.

    Returns:
        The reason, if there was one, and the peak resident memory if it is limited.
    """
    end, seen = time.monotonic() + trial.timeout, 0
    # On CUDA the allocator enforces the limit. Not rlimit, which limits address space, not memory.
    is_watched = trial.limit is not None and not trial.device.startswith("cuda")
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL)
            return "", seen
        if is_watched:
            seen = max(seen, runtime.resident_peak(process.pid))
            if trial.limit is not None and seen > trial.limit:
                return _over(trial.limit), seen
        if why := _shortage():
            return why, max(seen, runtime.resident_peak(process.pid))
        if time.monotonic() > end:
            return f"did not end within {trial.timeout:g} s", seen


def _shortage() -> str:
    """Whether the memory of the machine, or of its control group, is nearly used up, in words."""
    have = surroundings.memory()
    least, most = RESERVE
    reserve = min(max(have.total // 30, least), most)
    if sys.platform != "linux" or have.free >= reserve:
        return ""
    left = f"{size(have.free)} of {size(have.total)}"
    return f"out of memory (the machine had {left} left; it was ended before that was gone)"


def _over(limit: int) -> str:
    return f"needs more than {size(limit)}"


def _alone() -> dict[str, str]:
    """The environment without the variables of several processes."""
    return surroundings.environment_alone()


def _told(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The child's values, line by line until its end; later ones override earlier ones, and an incomplete line is
    dropped."""
    assert process.stdout is not None
    told: dict[str, Any] = {}
    for line in process.stdout.read().splitlines(keepends=True):
        if line.endswith(b"\n"):
            told |= json.loads(line)
    return told


def _last_lines(complained: IO[str]) -> str:
    complained.seek(0)
    return "\n".join(complained.read().splitlines()[-_LAST:])


Tell = Callable[..., None]

MOST_SKIPPED = 20
"""Updates that fp16's gradient scaler may skip before it has found its scale."""


def main(arguments: Sequence[str]) -> None:
    """Run the trial from stdin, or answer ``--capacity DEVICE``."""
    answers = children.claim_stdout()  # output of libraries must not mix with our lines

    def tell(**values: object) -> None:
        answers.write(json.dumps(values).encode() + b"\n")
        answers.flush()

    if arguments:
        tell(**asdict(runtime.capacity(torch.device(arguments[1]))))
        return
    trial = Trial.from_json(sys.stdin.readline())
    children.watch_parent(lambda: os._exit(1))
    children.tell_kernel("oom_score_adj", "1000")  # if memory runs out, this process should be killed, not its parent
    perform(trial, tell)


def perform(trial: Trial, tell: Tell) -> None:
    """Run a trial in this process.

    Args:
        trial: the trial.
        tell: called with values as soon as they are known: ``total``, ``free``, ``seconds``, ``peak``,
            ``training_peak``, ``validation_peak``; ``why``, if memory ran out; ``refused``, if the user must act.
    """
    device = torch.device(trial.device)
    have = runtime.capacity(device)
    tell(total=have.total, free=have.free)
    if device.type == "cuda" and trial.limit is not None:
        # By its number, because this function of torch does not accept a device without one (`cuda`).
        torch.cuda.set_per_process_memory_fraction(min(1.0, trial.limit / have.total), device.index)
    try:
        _WORK[trial.task](trial, device, tell)
    except UsageError as fault:
        tell(refused=str(fault))
    except Exception as fault:
        if not is_out_of_memory(fault):
            raise
        tell(why=f"out of memory ({shortage(fault)})", peak=runtime.peak_bytes(device))


def _train(trial: Trial, device: torch.device, tell: Tell) -> None:
    """Updates, then a validation if the trial has frames for it."""
    network = _network(trial)
    update = (_plain_updates if trial.implementation == "plain" else _updates)(trial, network, device)
    runtime.start_peak(device)
    seconds = _timed(update, steps=trial.steps, device=device)
    peak = runtime.peak_bytes(device)
    tell(seconds=seconds, training_peak=peak, peak=peak)
    if trial.frames is not None:
        runtime.start_peak(device)
        with inference_mode(network):
            _score(network, trial, trial.frames, device=device)
        validation_peak = runtime.peak_bytes(device)
        tell(validation_peak=validation_peak, peak=max(peak, validation_peak))


def _updates(trial: Trial, network: Segmenter, device: torch.device) -> Callable[[], bool]:
    """A function for one update; it returns whether the weights changed, because fp16's scaler skips some updates."""
    recipe = trial.recipe
    learner = Learner(
        network, recipe, accelerator=runtime.make_accelerator(device, precision=recipe.train.precision)
    )  # fmt: skip
    # The first one is already on the device, as in the training loop.
    batches = [
        made_up_batch(recipe, classes=trial.classes, seed=seed, device="cpu" if seed else device)
        for seed in range(recipe.train.accumulate)
    ]

    def update() -> bool:
        result = learner.learn(batches, rate=recipe.optim.lr)
        if not result.is_finite:
            raise RuntimeError(f"made-up batches gave the loss {result.loss}, gradient norm {result.gradient_norm}")
        return math.isfinite(result.gradient_norm)

    return update


def _plain_updates(trial: Trial, network: Segmenter, device: torch.device) -> Callable[[], bool]:
    """As :func:`_updates`, with the reference's implementation, one batch per update."""
    recipe = trial.recipe
    learner = PlainLearner(Plain(network.to(device), backbone=recipe.model.backbone), recipe)
    batch = made_up_batch(recipe, classes=trial.classes, device=device)

    def update() -> bool:
        return math.isfinite(learner.learn(batch, rate=recipe.optim.lr).loss)

    return update


def _validate(trial: Trial, device: torch.device, tell: Tell) -> None:
    """Only scoring, LoRA not merged, as within a training run."""
    network = _network(trial).to(device)
    _look(network, trial, device=device, tell=tell, name="validation_peak")


def _predict(trial: Trial, device: torch.device, tell: Tell) -> None:
    """Segmenting as ``memorysam predict`` does: LoRA merged, the recipe's precision; or as the reference does."""
    network = _network(trial).requires_grad_(False).to(device)
    if trial.implementation == "plain":
        with runtime.computing("fp32", device):
            _look(Plain(network, backbone=trial.recipe.model.backbone), trial, device=device, tell=tell, name="peak")
        return
    merge_lora(network.sam.image_encoder.trunk)
    network.to(device)  # merging makes new layers
    with runtime.computing(trial.recipe.train.precision, device):
        _look(network, trial, device=device, tell=tell, name="peak")


def _look(network: Shown, trial: Trial, *, device: torch.device, tell: Tell, name: str) -> None:
    """Forward passes with the decision."""
    size = trial.recipe.data.image_size
    frames = trial.frames or Frames(((size, size),), (size, size))

    def look() -> bool:
        _score(network, trial, frames, device=device)
        return True

    runtime.start_peak(device)
    with inference_mode(network):
        seconds = _timed(look, steps=trial.steps, device=device)
    peak = runtime.peak_bytes(device)
    tell(seconds=seconds, **{"peak": peak, name: peak})


def _network(trial: Trial) -> Segmenter:
    return build_for_measuring(trial.recipe, made_up_dataset(trial.recipe, classes=trial.classes))


def _score(network: Shown, trial: Trial, frames: Frames, *, device: torch.device) -> None:
    """One batch of the largest scenes, with the memory of scoring."""
    seen = [network.logits(_frames(trial, *size, device=device)) for size in frames.inputs]
    for scenes in zip(*seen, strict=True):
        for logits in scenes:
            class_map(logits, height=frames.native[0], width=frames.native[1])


def _frames(trial: Trial, height: int, width: int, *, device: torch.device) -> list[Tensor]:
    """M × (B, 3, H, W) of noise."""
    random = torch.Generator().manual_seed(0)
    shape = (trial.recipe.train.batch, 3, height, width)
    return [torch.randn(shape, generator=random).to(device) for _ in trial.recipe.data.modalities]


def _timed(work: Callable[[], bool], *, steps: int, device: torch.device) -> list[float]:
    """The seconds of each measured step; a step that returned False is repeated."""
    seconds: list[float] = []
    for _ in range(steps + MOST_SKIPPED):
        start = time.perf_counter()
        counts = work()
        synchronize(device)
        if counts:
            seconds.append(time.perf_counter() - start)
        if len(seconds) == steps:
            return seconds
    raise RuntimeError(f"only {len(seconds)} of {steps + MOST_SKIPPED} updates were finite")


_WORK = {"train": _train, "validate": _validate, "predict": _predict}
