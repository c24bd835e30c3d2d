"""The program's ``train`` as typed, in a warm child, with something that is not finite or with signals on its way."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memorysam_cli import app
from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.loader import Batch
from memorysam_cli.engine.train import checkpoints, loop
from memorysam_cli.engine.train.endings import StopRequest
from memorysam_cli.engine.train.update import Learner
from memorysam_cli.losses import ohem
from memorysam_cli.model.weights import build_for_training
from memorysam_cli.recipe import Recipe
from memorysam_cli.storage import documents
from tests.engine.stand_ins import Plan, write_data
from tests.faults import bare
from tests.faults.naive import stopping
from tests.faults.scale import SOAK

EPOCH = 3
"""Updates of an epoch."""
_PLANS: list[Plan] = [(f"t/{number}", "train", None, None, (40, 48)) for number in range(EPOCH)]
_PLANS += [("v/0", "val", None, None, (40, 48))]
NOT_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf"), "huge": 1e25, "all ignored": 255}
"""What is put in. The square of what is huge is not finite; nor is, with torch's own loss, the mean of no pixel."""
KINDS = ("image", "loss", "gradient")
"""Where it is put in; and the label may be all ignored."""


def recipe_of() -> Recipe:
    """Dropout, prototypes, a warm-up; nothing is saved between the first checkpoint and the last."""
    return recipes.parse(
        {
            "name": "small",
            "data": {"dataset": "tiny", "modalities": ["img", "depth"], "image_size": 32, "workers": 0},
            "model": {
                "backbone": "nano", "base_weights": "random", "object_gate": False, "lora": {"rank": 2, "dropout": 0.3},
            },
            "spmm": {"variant": "paper", "weight": 1.0},
            "optim": {"lr": 1e-3, "warmup_epochs": 1},
            "train": {"epochs": 400, "batch": 1, "seed": 5, "keep_checkpoints": 99, "validate_every": 1000},
        },
        where="test",
    )  # fmt: skip


def line(base: Path, run: Path, *sets: str) -> list[str]:
    """The command that begins a run, or continues."""
    words = [word for change in sets for word in ("--set", change)]
    return [
        "train", "-r", str(base / "small.yaml"), "--data", str(base / "data"), "--out", str(run), "--resume", "auto",
        "--device", "cpu", "-q", *words,
    ]  # fmt: skip


def warm(base: str) -> None:
    """Data, a recipe, all imports, and a network that a child takes instead of making the same again."""
    torch.set_num_threads(1)
    bare.draw_nothing(unless=SOAK)  # which kills there, too
    place = Path(base)
    write_data(place / "data", _PLANS)
    (place / "small.yaml").write_text(recipe_of().to_yaml())
    assert app.run(line(place, place / "warm", "train.max_steps=1")) == 0
    made = build_for_training(recipe_of(), manifests.read(place / "data", "tiny").info)
    loop.build_for_training = lambda *_: made


def run(work: str, *arguments: Any) -> None:
    """One of the functions below, by its name: a warm server is for all of them."""
    globals()[work](*arguments)


def signalled(words: list[str], signals: list[tuple[float, int]], way: str) -> None:
    """The program, which gets signals so many seconds after its training loop has begun.

    Args:
        words: the command.
        signals: when, and which. The later ones are sent so long after the one before was taken note of.
        way: ``ours``, ``deaf`` (does not take note of a signal), or ``in place`` (writes checkpoints file by file).
    """
    honest = loop.catch_stop if way != "deaf" else stopping.catch_stop
    if way == "in place":
        checkpoints.write = stopping.write  # type: ignore[assignment]

    @contextlib.contextmanager
    def caught() -> Iterator[StopRequest]:
        with honest() as stop:
            threading.Thread(target=_send, args=(signals,), daemon=True).start()
            yield stop

    loop.catch_stop = caught
    typed(words)


def _send(signals: Sequence[tuple[float, int]]) -> None:
    for number, (seconds, which) in enumerate(signals):
        while number and getattr(signal.getsignal(which), "__qualname__", "").startswith("catch_stop"):
            time.sleep(0.0005)  # the first is still on its way
        time.sleep(seconds)
        os.kill(os.getpid(), which)


def poisoned(words: list[str], kind: str, value: str, step: int, seed: int) -> None:
    """The program, whose update ``step`` (from 0) meets something that is not finite."""
    spoil(kind, value, step=step, seed=seed)
    typed(words)


def unread(words: list[str]) -> None:
    """The program, whose answer nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    sys.stdout = os.fdopen(writing, "w")
    typed(words)


def unheard(words: list[str]) -> None:
    """The program, whose notes nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 2)
    typed(words)


def typed(words: list[str]) -> None:
    """The program."""
    sys.argv = ["memorysam", *words]
    app.main()


def spoil(kind: str, value: str, *, step: int, seed: int, module: Any = ohem, learner: type[Any] = Learner) -> None:
    """Let one update of this process meet something that is not finite, once.

    Args:
        kind: of :data:`KINDS`, or ``label``.
        value: of :data:`NOT_FINITE`.
        step: which update, from 0.
        seed: decides which number of which picture, loss or gradient it is.
        module: whose ``pixel_losses`` are the losses.
        learner: whose ``learn`` is an update, and whose ``_report`` comes between the gradients and their use.
    """
    bad, generator = NOT_FINITE[value], torch.Generator().manual_seed(seed)

    def anywhere(tensor: Tensor) -> Tensor:
        """The same, but for one number."""
        flat = tensor.detach().clone().flatten()
        flat[int(torch.randint(flat.numel(), (), generator=generator))] = bad
        return flat.view(tensor.shape)

    def spoil_gradient(mine: Any, *_: Any) -> None:
        found = [each for each in mine.parameters.values() if each.grad is not None]
        chosen = found[int(torch.randint(len(found), (), generator=generator))]
        chosen.grad = anywhere(chosen.grad)

    def spoil_image(_mine: Any, batches: Sequence[Batch]) -> None:
        batches[0].frames[0] = anywhere(batches[0].frames[0])

    if kind == "image":
        _before(learner, "learn", step, spoil_image)
    elif kind == "label":
        _before(learner, "learn", step, lambda _, batches: [batch.label.fill_(255) for batch in batches])
    elif kind == "gradient":
        _before(learner, "_report", step, spoil_gradient)
    else:
        honest, numbers = module.pixel_losses, itertools.count()

        def pixel_losses(*arguments: Any) -> Tensor:
            losses: Tensor = honest(*arguments)
            return losses * anywhere(torch.ones_like(losses)) if next(numbers) == step else losses

        module.pixel_losses = pixel_losses


def _before(kind: type[Any], name: str, step: int, change: Callable[..., object]) -> None:
    """Let something happen before the call ``step`` (from 0) of a method."""
    honest, numbers = getattr(kind, name), itertools.count()

    def changed(mine: Any, *arguments: Any, **options: Any) -> Any:
        if next(numbers) == step:
            change(mine, *arguments)
        return honest(mine, *arguments, **options)

    setattr(kind, name, changed)


def steps_done(run: Path) -> int:
    """The last update that the run's metrics know of."""
    path = run / "metrics.jsonl"
    rows = documents.read_json_lines(path) if path.exists() else []
    return max((int(row["step"]) for row in rows), default=0)
