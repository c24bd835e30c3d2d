"""Run by torchrun in two processes: the prototypes' loss, a short training, and an evaluation; rank 0 writes JSON.

torchrun --nproc-per-node 2 two_processes.py DATA_ROOT RUN_FOLDER ANSWER.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.loader import Batch
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import runtime
from memorysam_cli.engine.evaluation.scoring import evaluate
from memorysam_cli.engine.training import starting
from memorysam_cli.engine.training.learner import Learner
from memorysam_cli.engine.training.trainer import Trainer
from memorysam_cli.losses.spmm import PrototypeMemory
from memorysam_cli.model import load
from memorysam_cli.model.weights import build_for_training

RECIPE = recipes.parse(
    {
        "name": "two",
        "data": {"dataset": "synthetic", "modalities": ["img", "depth"], "image_size": 64, "workers": 0},
        "model": {"backbone": "nano", "base_weights": "random", "object_gate": False},
        "spmm": {"variant": "paper", "weight": 1.0},
        "optim": {"lr": 1e-3},
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
    reduce = runtime.sum_over_processes if world > 1 else None
    losses = []
    for step in range(2):  # the second step has prototypes to compare with
        part = slice(rank * 4 // world, (rank + 1) * 4 // world)
        loss = memory(model(pixels[part] * (step + 1)), label[part], reduce=reduce)
        layer.zero_grad()
        loss.backward()
        losses.append(loss.item())
    assert layer.weight.grad is not None
    return {"losses": losses, "gradient": layer.weight.grad.flatten().tolist(), "G": memory.prototypes.tolist()}


def lessons(manifest: Manifest, accelerator: Accelerator) -> list[list[float]]:
    """Losses and gradient norm of two updates of the whole network; each rank has half of the batch.

    Dropout is off, and with labels that nobody can guess every pixel is hard: OHEM's mean is then the batch's.
    """
    recipe = RECIPE.model_copy(update={"spmm": RECIPE.spmm.model_copy(update={"weight": 10.0})})
    network = build_for_training(recipe, manifest.info)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_p"):
            module.dropout_p = 0.0
    learner = Learner(network, recipe, accelerator=accelerator)
    generator = torch.Generator().manual_seed(0)
    frames = [torch.randn(4, 3, 64, 64, generator=generator) for _ in range(2)]
    label = torch.randint(0, 25, (4, 64, 64), generator=generator)
    rank, world = accelerator.process_index, accelerator.num_processes
    part = slice(rank * 4 // world, (rank + 1) * 4 // world)
    found = []
    for step in (1, 2):
        lesson = learner.learn(Batch([frame[part] * step for frame in frames], label[part], ()), rate=1e-3)
        found.append([lesson.loss, lesson.spmm, lesson.gradient_norm])
    return found


def main(data: Path, run: Path, answer: Path) -> None:
    accelerator = runtime.make_accelerator(torch.device("cpu"), precision="fp32")
    rank, world = accelerator.process_index, accelerator.num_processes
    found = {variant: prototype_gradient(variant, rank=rank, world=world) for variant in ("reference", "paper")}
    manifest = manifests.read(data, "synthetic")
    learned = lessons(manifest, accelerator)
    planned = starting.plan(RECIPE, out=run, resume=None)
    trainer = Trainer(RECIPE, manifest, accelerator=accelerator)
    with starting.begin(planned, accelerator) as folder:
        result = trainer.fit(folder)
    model = load(result.last)
    scores = evaluate(
        model, manifest, scenes=manifest.of_split("val"), modalities=model.card.modalities,
        image_size=64, device="cpu", batch=2, workers=0, accelerator=accelerator,
    )  # fmt: skip
    if accelerator.is_main_process:
        whole = {
            "spmm": found,
            "lessons": learned,
            "steps": result.steps,
            "world": world,
            "confusion": scores.confusions.tolist(),
        }
        answer.write_text(json.dumps(whole))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
