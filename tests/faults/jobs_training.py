"""One training in a warm child, killed and begun again by the same call: ours, and three that were quickly written."""

from __future__ import annotations

import contextlib
import resource
import signal
from pathlib import Path

import torch
from accelerate import Accelerator

from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import runtime
from memorysam_cli.engine.train import loop as trainers
from memorysam_cli.engine.train import start
from memorysam_cli.engine.train.loop import Trainer
from memorysam_cli.model import Segmenter
from memorysam_cli.model.weights import build_for_training
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console
from tests.engine.stand_ins import Plan, write_data
from tests.faults import bare
from tests.faults.naive import training as naive

UPDATES, STEPS = 2, 3
"""Updates of an epoch, and in all: the run ends within its second epoch."""
_PLANS: list[Plan] = [(f"t/{number}", "train", None, None, (40, 48)) for number in range(UPDATES)]
_PLANS += [("v/0", "val", None, None, (40, 48))]
_networks: list[Segmenter] = []
"""A network on its base weights, for a child to take instead of making the same once more."""


def recipe_of(*, workers: int) -> Recipe:
    """All that draws random numbers and all that is kept between updates, as small as can be."""
    return recipes.parse(
        {
            "name": "small",
            "data": {"dataset": "tiny", "modalities": ["img", "depth"], "image_size": 32, "workers": workers},
            "augment": {"flip": 0.5, "jitter": 0.5, "blur": 0.5},
            "model": {
                "backbone": "nano", "base_weights": "random", "object_gate": False, "lora": {"rank": 2, "dropout": 0.3},
            },
            "spmm": {"variant": "paper", "weight": 1.0},
            "optim": {"lr": 1e-3, "warmup_epochs": 1},
            "train": {"epochs": 2, "max_steps": STEPS, "batch": 1, "seed": 5, "checkpoint_steps": 1},
        },
        where="test",
    )  # fmt: skip


def warm(base: str) -> None:
    """Write the data and run whole trainings once, so that a child has nothing left to import."""
    torch.set_num_threads(1)
    bare.draw_nothing()
    write_data(Path(base) / "data", _PLANS)
    console.setup(verbosity=console.QUIET)
    for way in ("ours", "naive"):
        run(way, base, str(Path(base) / f"warm-{way}"), 0, None)
    manifest = manifests.read(Path(base) / "data", "tiny")
    _networks.append(build_for_training(recipe_of(workers=0), manifest.info))
    trainers.build_for_training = naive.build_for_training = lambda *_: _networks[0]


def run(way: str, base: str, out: str, workers: int, most_bytes: int | None) -> None:
    """Begin the training in a folder, or continue where it stood there.

    Args:
        way: ``ours``, or one of :func:`tests.faults.naive.training.train`.
        base: has the data.
        out: the run's folder.
        workers: processes that read ahead.
        most_bytes: where the kernel kills the process that writes on in a file; none: nowhere.
    """
    if most_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    console.setup(verbosity=console.QUIET)
    manifest = manifests.read(Path(base) / "data", "tiny")
    recipe = recipe_of(workers=workers)
    accelerator = runtime.make_accelerator(torch.device("cpu"), precision="fp32")
    if way == "ours":
        ours(recipe, manifest, Path(out), accelerator)
    else:
        naive.train(recipe, manifest, Path(out), accelerator, way=way)


def ours(recipe: Recipe, manifest: Manifest, out: Path, accelerator: Accelerator) -> None:
    """What ``engine.train.training`` does for ``train --out OUT --resume auto``, on the network that is at hand.

    Block P, the ranks of block L and the slow tests of ``train`` are killed as they were typed, from the parsing on.
    """
    planned = start.plan(recipe, out=out, resume=start.AUTO)
    trainer = Trainer(recipe, manifest, accelerator=accelerator, is_resumed=planned.checkpoint is not None)
    if planned.checkpoint is not None:
        trainer.refuse_other(planned.checkpoint)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(
            start.begin(planned, accelerator, checkpoint_bytes=start.checkpoint_bytes(trainer.learner))
        )
        trainer.fit(run, resume=planned.checkpoint)
