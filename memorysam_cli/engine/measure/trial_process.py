"""The child process of a trial: one line of JSON in on stdin, lines of JSON out on stdout, all else on stderr.

``python -m memorysam_cli.engine.measure.trial_process``; what it says first also counts if it is killed later.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from memorysam_cli.engine import runtime
from memorysam_cli.engine.infer.decision import class_map
from memorysam_cli.engine.infer.inference import inference_mode
from memorysam_cli.engine.infer.views import Network
from memorysam_cli.engine.measure.plain import Plain, PlainLearner
from memorysam_cli.engine.measure.rates import synchronize
from memorysam_cli.engine.measure.trials import Frames, Trial
from memorysam_cli.engine.measure.workload import made_up_batch, made_up_dataset
from memorysam_cli.engine.train.update import Learner
from memorysam_cli.errors import UsageError, is_out_of_memory, shortage
from memorysam_cli.model.lora import merge_lora
from memorysam_cli.model.weights import Segmenter, build_for_measuring
from memorysam_cli.storage import children

Tell = Callable[..., None]

MOST_SKIPPED = 20
"""Updates that fp16's gradient scaler may skip before it has found its scale."""


def main(arguments: Sequence[str]) -> None:
    """Do the trial that stdin describes, or answer ``--capacity DEVICE``."""
    answers = children.claim_stdout()  # what a library prints must not stand between our lines

    def tell(**values: object) -> None:
        answers.write(json.dumps(values).encode() + b"\n")
        answers.flush()

    if arguments:
        tell(**asdict(runtime.capacity(torch.device(arguments[1]))))
        return
    trial = Trial.from_json(sys.stdin.readline())
    children.watch_parent(lambda: os._exit(1))
    children.tell_kernel("oom_score_adj", "1000")  # where memory ends, this process is to be killed, not its parent
    perform(trial, tell)


def perform(trial: Trial, tell: Tell) -> None:
    """Do a trial's work here.

    Args:
        trial: what to do.
        tell: takes what is known, as soon as it is: ``total``, ``free``, ``seconds``, ``peak``, ``training_peak``,
            ``validation_peak``; ``why``, where memory did not suffice; ``refused``, where the user is to act.
    """
    device = torch.device(trial.device)
    have = runtime.capacity(device)
    tell(total=have.total, free=have.free)
    if device.type == "cuda" and trial.limit is not None:
        # By its number: of a device without one (`cuda`), this function of torch's alone wants to hear nothing.
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
    update = (_plain_updates if trial.manner == "plain" else _updates)(trial, network, device)
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
    """What does one update; tells whether the weights moved: fp16's scaler skips some."""
    recipe = trial.recipe
    learner = Learner(
        network, recipe, accelerator=runtime.make_accelerator(device, precision=recipe.train.precision)
    )  # fmt: skip
    # The first one is on the device beforehand, as the loop fetches them.
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
    """As :func:`_updates`, in the reference's manner, one batch an update."""
    recipe = trial.recipe
    learner = PlainLearner(Plain(network.to(device), backbone=recipe.model.backbone), recipe)
    batch = made_up_batch(recipe, classes=trial.classes, device=device)

    def update() -> bool:
        return math.isfinite(learner.learn(batch, rate=recipe.optim.lr).loss)

    return update


def _validate(trial: Trial, device: torch.device, tell: Tell) -> None:
    """Scoring alone, LoRA not merged, as within a training."""
    network = _network(trial).to(device)
    _look(network, trial, device=device, tell=tell, name="validation_peak")


def _predict(trial: Trial, device: torch.device, tell: Tell) -> None:
    """Segmenting as ``memorysam predict`` does it: LoRA merged, the recipe's precision; or as the reference does."""
    network = _network(trial).requires_grad_(False).to(device)
    if trial.manner == "plain":
        with runtime.computing("fp32", device):
            _look(Plain(network, backbone=trial.recipe.model.backbone), trial, device=device, tell=tell, name="peak")
        return
    merge_lora(network.sam.image_encoder.trunk)
    network.to(device)  # merging makes new layers
    with runtime.computing(trial.recipe.train.precision, device):
        _look(network, trial, device=device, tell=tell, name="peak")


def _look(network: Network, trial: Trial, *, device: torch.device, tell: Tell, name: str) -> None:
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


def _score(network: Network, trial: Trial, frames: Frames, *, device: torch.device) -> None:
    """One batch of the largest scenes, held as scoring holds them."""
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
    """The seconds of each step that counts; one that does not gave False, and is done again."""
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

if __name__ == "__main__":
    main(sys.argv[1:])
