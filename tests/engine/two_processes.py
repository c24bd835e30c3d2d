"""Run by torchrun in several processes; rank 0 saves what they found with PyTorch. The tests call the same functions.

torchrun --nproc-per-node 2 two_processes.py learn DATA_ROOT ANSWER.pt RUN_FOLDER
torchrun --nproc-per-node 2 two_processes.py lose DATA_ROOT - RUN_FOLDER
accelerate launch --num_processes 2 two_processes.py count DATA_ROOT ANSWER.pt WEIGHTS

``Forks("tests.engine.two_processes:run")`` does the same in processes that are forked from one that is warm, and
``Forks("tests.engine.two_processes:leave")`` is one of them that nobody launches.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from memorysam_cli import app
from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.loader import Batch
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import processes, runtime
from memorysam_cli.engine.evaluate.scoring import evaluate
from memorysam_cli.engine.infer.inference import Inference
from memorysam_cli.engine.train import loop, start
from memorysam_cli.engine.train.loop import Trainer
from memorysam_cli.engine.train.objective import Moment
from memorysam_cli.engine.train.update import Learner, StepResult
from memorysam_cli.errors import NetworkError
from memorysam_cli.losses.spmm import PrototypeMemory
from memorysam_cli.model import Segmenter, load
from memorysam_cli.model.weights import build_for_training
from memorysam_cli.recipe import Recipe
from tests import forked, sketches

SCENES = 4
"""Of one update, however many processes and batches it is cut into."""
UPDATES = 2
"""The second has prototypes to compare with, and an optimizer with a state."""
SPLITS = ("train", "val", "test")
NUMBERS = (1, 5)
"""Of scenes that are counted: fewer than processes, and more."""


def recipe_of(**ohem: object) -> Recipe:
    """Nano from random weights. Adam's eps is large: else it turns the rounding of a gradient of zero into a step."""
    return recipes.parse(
        {
            "name": "two",
            "data": {"dataset": "synthetic", "modalities": ["img", "depth"], "image_size": 64, "workers": 0},
            "model": {"backbone": "nano", "base_weights": "random", "object_gate": False},
            # The random weights' losses lie around ln 25: a share of the pixels is hard.
            "ohem": {"threshold": 0.025, **ohem},
            "spmm": {"variant": "paper", "weight": 10.0},
            "losses": {"dice": {}, "lovasz": {}, "focal": {}},
            "optim": {"lr": 1e-3, "eps": 1e-3, "ema": 0.5},
            "train": {"epochs": 1, "batch": 3, "seed": 5},
        },
        where="test",
    )


def prototype_gradient(variant: str, *, rank: int, world: int) -> dict[str, object]:
    """Loss and averaged gradient of a linear layer whose output feeds the SPMM; each rank has half of the batch."""
    generator = torch.Generator().manual_seed(8)
    pixels = torch.randn(4, 6, 5, 5, generator=generator)
    label = torch.randint(0, 4, (4, 5, 5), generator=generator)
    layer = nn.Conv2d(6, 3, 1, bias=False)
    nn.init.constant_(layer.weight, 0.5)
    model = DistributedDataParallel(layer) if world > 1 else layer
    memory = PrototypeMemory(4, width=3, variant=variant)  # type: ignore[arg-type]
    exchange = processes.AllProcesses(world, rank) if world > 1 else None
    losses = []
    for step in range(2):  # the second step has prototypes to compare with
        part = slice(rank * 4 // world, (rank + 1) * 4 // world)
        loss = memory(model(pixels[part] * (step + 1)), label[part], exchange=exchange)
        layer.zero_grad()
        loss.backward()
        losses.append(loss.item())
    assert layer.weight.grad is not None
    return {"losses": losses, "gradient": layer.weight.grad.flatten().tolist(), "G": memory.prototypes.tolist()}


def scenes(step: int) -> tuple[list[Tensor], Tensor]:
    """Random frames; three scenes of random labels that grow easier, and one with hardly any label."""
    generator = torch.Generator().manual_seed(step)
    frames = [torch.randn(SCENES, 3, 64, 64, generator=generator) for _ in range(2)]
    label = torch.randint(0, 25, (SCENES, 64, 64), generator=generator)
    label[1, :40] = 3
    label[2, :, 10:] = 255
    return frames, label


def batches_of(step: int, *, rank: int, world: int, accumulate: int) -> list[Batch]:
    """One process's batches of an update, cut as the loader cuts an epoch."""
    frames, label = scenes(step)
    size = SCENES // world // accumulate
    places = [slice(number * size, (number + 1) * size) for number in range(rank, world * accumulate, world)]
    return [Batch([frame[place] for frame in frames], label[place], ()) for place in places]


def network_of(recipe: Recipe, manifest: Manifest) -> Segmenter:
    """In training without dropout, so that parts can be compared with a whole."""
    network = build_for_training(recipe, manifest.info)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_p"):
            module.dropout_p = 0.0
    return network


def robust_recipe() -> Recipe:
    """With all that training for failing sensors adds."""
    robust = {"subset": {"weight": 0.5, "zeroed": 0.5, "ramp_epochs": 2.0}}
    content = recipe_of(selection="global").model_dump(mode="json") | {"robust": robust}
    return recipes.parse(content | {"losses": {"single": {"weight": 0.3}}}, where="test")


def moment_of(step: int) -> Moment:
    """Moments at which :func:`robust_recipe` draws the first image, zeros and the second, and the second."""
    return Moment(0, 3 * step, epochs=(step + 1) / 2)


def learned(
    manifest: Manifest, accelerator: Accelerator, *, accumulate: int, selection: str = "global", rate: float = 1e-3,
    recipe: Recipe | None = None, updates: int = UPDATES,
) -> dict[str, Any]:  # fmt: skip
    """Some updates: losses, the gradient before the first, and weights and prototypes afterwards."""
    terms = {"class_weights": [1 + number % 3 for number in range(25)], "label_smoothing": 0.1}
    recipe = recipe or recipe_of(selection=selection, **(terms if selection == "global" else {}))
    learner = Learner(network_of(recipe, manifest), recipe, accelerator=accelerator)
    rank, world = accelerator.process_index, accelerator.num_processes
    steps, gradients = [], []

    def look() -> None:
        gradients.append({n: p.grad.clone() for n, p in learner.parameters.items() if p.grad is not None})

    for step in range(updates):
        batches = batches_of(step, rank=rank, world=world, accumulate=accumulate)
        result = learner.learn(batches, rate=rate, moment=moment_of(step), meanwhile=look)
        steps.append([*result.terms.values(), result.gradient_norm])
    return {
        "steps": steps,
        "gradients": gradients[0],
        "weights": {name: value.detach().clone() for name, value in learner.parameters.items()},
        "averages": {name: value.clone() for name, value in learner.average.tensors.items()},
        "prototypes": learner.objective.state()["spmm/prototypes"].clone(),
    }


def rehearsed(manifest: Manifest, accelerator: Accelerator) -> list[Any]:
    """Whether the saver is on in each process after the last one alone ran out of memory, and the loss then."""
    recipe = recipe_of()
    learner = Learner(network_of(recipe, manifest), recipe, accelerator=accelerator)
    if accelerator.process_index == accelerator.num_processes - 1:
        learner.network.forward = hungry(learner.network.forward, learner.network)  # type: ignore[method-assign]
    learner._is_rehearsed = False  # as on CUDA
    batches = batches_of(0, rank=accelerator.process_index, world=accelerator.num_processes, accumulate=1)
    result = learner.learn(batches, rate=1e-3)
    savers = accelerator.reduce(torch.tensor(int(learner.network.saver)))
    return [int(savers), result.terms["ohem"]]


def hungry(honest: Callable[..., Any], network: Segmenter) -> Callable[..., Any]:
    """A forward pass that is out of memory until the saver is on."""

    def forward(*arguments: Any, **options: Any) -> Any:
        if not network.saver:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return honest(*arguments, **options)

    return forward


def confusions(
    manifest: Manifest, model: Segmenter, *, count: int, batch: int, accelerator: Accelerator | None
) -> list[Any]:
    """The confusion matrices of the first scenes of a data set."""
    known = [scene for split in SPLITS for scene in manifest.of_split(split)]
    found = evaluate(
        model, manifest, scenes=known[:count], accelerator=accelerator,
        inference=Inference(model.card.modalities, 64, "cpu", batch=batch, workers=0),
    )  # fmt: skip
    whole: list[Any] = found.confusions.tolist()
    return whole


def learn(manifest: Manifest, run: Path, accelerator: Accelerator) -> dict[str, Any]:
    """What several processes learn; then a short training by the loop."""
    rank, world = accelerator.process_index, accelerator.num_processes
    answer: dict[str, Any] = {
        "spmm": {variant: prototype_gradient(variant, rank=rank, world=world) for variant in ("reference", "paper")},
        "accumulated": learned(manifest, accelerator, accumulate=2),
        "robust": learned(manifest, accelerator, accumulate=1, recipe=robust_recipe(), updates=3),
        "each its own": learned(manifest, accelerator, accumulate=1, selection="process", rate=0.0)["steps"],
        "rehearsed": rehearsed(manifest, accelerator),
    }
    recipe = recipe_of()
    planned = start.plan(recipe, out=run, resume=None)
    training = Trainer(recipe, manifest, accelerator=accelerator)  # all meet: none begins before all have planned
    with start.begin(planned, accelerator) as folder:
        result = training.fit(folder)
    counted = confusions(manifest, load(result.last), count=5, batch=2, accelerator=accelerator)
    return answer | {"steps": result.steps, "last": str(result.last), "confusions": counted}


def lose(manifest: Manifest, run: Path, accelerator: Accelerator) -> None:
    """Train, and kill the last process in its second update; does not return."""
    recipe = recipe_of()
    recipe = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"batch": 1, "checkpoint_minutes": 1e-9})}
    )
    planned = start.plan(recipe, out=run, resume=None)  # before anything that all processes meet in, as the program
    training = Trainer(recipe, manifest, accelerator=accelerator)
    honest = training.learner.learn

    def learn_or_die(*arguments: Any, **options: Any) -> StepResult:
        if training.position.step == 1 and accelerator.process_index == accelerator.num_processes - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(*arguments, **options)

    training.learner.learn = learn_or_die  # type: ignore[method-assign]
    with start.begin(planned, accelerator) as folder:
        training.fit(folder)


def leave(rank: int, port: str, data: str, recipe: str, out: str) -> int:
    """Train as typed, but the last process cannot have its base weights; gives the exit code."""
    alike = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {**alike, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    if rank == 1:
        loop.build_for_training = _no_weights
    return app.run(["train", "-r", recipe, "--data", data, "--out", out, "--device", "cpu"])


def _no_weights(*_: object) -> Segmenter:
    raise NetworkError("the Hub cannot be reached")


def count(manifest: Manifest, weights: Path, accelerator: Accelerator | None) -> dict[str, Any]:
    """The counts of few and of more scenes, in small and larger batches."""
    model = load(weights)
    return {
        f"{number} {batch}": confusions(manifest, model, count=number, batch=batch, accelerator=accelerator)
        for number in NUMBERS
        for batch in (1, 2)
    }


def run(folder: str, launcher: str, *arguments: str) -> None:
    """Start a launcher by its module in a folder; its processes render no figures."""
    os.chdir(folder)
    sketches.use()
    forked.launch(launcher, arguments)


def main(task: str, data: str, answer: str, path: str) -> None:
    accelerator = runtime.make_accelerator(torch.device("cpu"), precision="fp32")
    manifest = manifests.read(Path(data), "synthetic")
    if task == "lose":
        lose(manifest, Path(path), accelerator)
    found = {"learn": learn, "count": count}[task](manifest, Path(path), accelerator)
    if accelerator.is_main_process:
        torch.save(found | {"world": accelerator.num_processes}, answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
