"""Make nano's base weights: render, train from noise, export what is SAM2's in bfloat16.

    python scripts/pretrain_nano.py --work .pretrain --out memorysam_cli/model/nano.safetensors

Everything is drawn from seeds. The demo and the tests render with seeds below 1000; this uses 1000. An interrupted
training goes on where it was by the same command; with more ``--updates`` it goes on beyond.

As SAM 2 saw single images before it saw videos, nano sees each sensor alone, and any set of them in any order: an
update takes the sensors in a random order, and every beginning of that order is a subset whose own result must be
right. The four beginnings cost one forward pass, for a frame sees those before it and no others.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data import preparation
from memorysam_cli.data.loader import Batch, batches_per_epoch, modalities_of, training_batches
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.dataset import IGNORE
from memorysam_cli.engine.evaluate.scoring import evaluate
from memorysam_cli.engine.infer.inference import Inference
from memorysam_cli.losses.ohem import pixel_losses
from memorysam_cli.model import Segmenter
from memorysam_cli.model.network import is_fresh
from memorysam_cli.model.weights import build_for_training
from memorysam_cli.recipe import Recipe
from memorysam_cli.storage import tensors

RECIPE = Path(__file__).with_suffix(".yaml")
SEED = 1000
OPEN = 10.0
SIZES = (96, 128, 128, 160)
"""Image sizes in pixels, epoch by epoch in turn."""
WARMUP, DECAY, AVERAGE = 200, 0.3, 0.998
"""Updates of the linear warm-up, share of all updates in which the rate falls to zero, decay of the average."""
MOST = 8.0
"""The weight of the rarest class, over that of a mean pixel, at most."""
EVERY = 250
"""Updates between two checkpoints."""
HELD_OUT = 60
"""Scenes to validate with; all others are trained on."""


def main(
    work: Annotated[Path, typer.Option(help="Folder for scenes and checkpoint; an interrupted training continues.")],
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    scenes: Annotated[int, typer.Option(help="Scenes to render.")] = 4000,
    updates: Annotated[int, typer.Option(help="Updates in all.")] = 8000,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Recipe values to change.")] = None,
) -> None:
    """Render, train, export."""
    data = work / "data"
    if not (data / "memorysam").is_dir():
        preparation.render_synthetic(data, layout="deliver", scenes=scenes, size=160, seed=SEED)
        preparation.check_and_write(preparation.survey_synthetic(data, layout="deliver"))
    recipe = recipes.load(RECIPE, overrides or [])
    training = Pretraining(recipe, manifests.read(data, recipe.data.dataset), work / "checkpoint.safetensors")
    training.run(updates)
    network = training.averaged()
    export(network, out)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.2f} MB after {training.step} updates; {training.scores(network)}")


class Pretraining:
    """A network that learns every subset of the sensors, in every order.

    Args:
        recipe: what is trained, with which values.
        manifest: the rendered scenes.
        checkpoint: where weights, their average and the optimizer's moments are kept.
    """

    def __init__(self, recipe: Recipe, manifest: Manifest, checkpoint: Path) -> None:
        self.recipe, self.manifest, self.checkpoint = recipe, manifest, checkpoint
        self.held_out = manifest.of_split(recipe.data.selection_split)[:HELD_OUT]
        kept = {scene.id for scene in self.held_out}
        self.scenes = [scene for scene in manifest.scenes if scene.id not in kept]
        self.network = build_for_training(recipe, manifest.info).train()
        self.parameters = {name: each for name, each in self.network.named_parameters() if each.requires_grad}
        self.average = {name: each.detach().clone() for name, each in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [each for each in self.parameters.values() if each.ndim > 1]},
                {"params": [each for each in self.parameters.values() if each.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=recipe.optim.lr,
            weight_decay=recipe.optim.weight_decay,
        )
        self.step = 0
        if checkpoint.exists():
            self._restore()

    def run(self, updates: int) -> None:
        """Learn until that many updates are made."""
        balance = self._balance()
        for batch in self._batches():
            if self.step >= updates:
                break
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.optim.lr * _share(self.step, updates)
            loss = self._learn(batch, balance)
            self.step += 1
            if self.step % 50 == 0:
                typer.echo(f"{self.step}/{updates} loss {loss:.3f}")
            if self.step % EVERY == 0 or self.step == updates:
                self._save()
            if self.step % (4 * EVERY) == 0:
                typer.echo(f"{self.step}/{updates} {self.scores(self.averaged())}")

    def averaged(self) -> Segmenter:
        """The network with the averaged weights, for use."""
        network = build_for_training(self.recipe, self.manifest.info)
        state = dict(self.network.state_dict()) | self.average
        network.load_state_dict(state)
        return network.eval()

    def scores(self, network: Segmenter) -> str:
        """mIoU of all sensors and of each alone."""
        names = self.recipe.data.modalities
        found = {"all": self._score(network, names)} | {name: self._score(network, (name,)) for name in names}
        return ", ".join(f"{name} {score:.2f}" for name, score in found.items())

    def _score(self, network: Segmenter, modalities: Sequence[str]) -> float:
        inference = Inference(
            modalities=modalities_of(self.manifest.info, modalities),
            known=modalities_of(self.manifest.info, self.recipe.data.modalities),
            image_size=self.recipe.data.image_size,
            device="cpu",
            batch=8,
            workers=0,
        )
        result = evaluate(network, self.manifest, scenes=self.held_out, inference=inference)
        return result.protocol("resized").miou

    def _learn(self, batch: Batch, balance: Tensor) -> float:
        """One update: the mean over the beginnings of a random order of the balanced cross entropy."""
        assert batch.label is not None
        order = random.Random(f"{SEED} {self.step}").sample(range(len(batch.frames)), len(batch.frames))
        beginnings = [tuple(order[:length]) for length in range(1, len(order) + 1)]
        weight = torch.where(batch.label == IGNORE, 0.0, balance[batch.label.clamp(max=len(balance) - 1)])
        pool = self.network.encode(batch.frames)
        results = [output.logits for _, output in self.network.outputs(pool, beginnings)]
        losses = [(pixel_losses(logits, batch.label) * weight).sum() / weight.sum() for logits in results]
        loss = torch.stack(losses).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(AVERAGE, (1 + self.step) / (10 + self.step))
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.detach(), 1 - decay)
        return loss.item()

    def _batches(self) -> Iterator[Batch]:
        """The batches from update :attr:`step` on."""
        size = batches_per_epoch(len(self.scenes), batch=self.recipe.train.batch)
        for epoch in itertools.count(self.step // size):
            pixels = SIZES[epoch % len(SIZES)]
            recipe = self.recipe.model_copy(update={"data": self.recipe.data.model_copy(update={"image_size": pixels})})
            start = self.step % size
            yield from training_batches(self.manifest, scenes=self.scenes, recipe=recipe, epoch=epoch, start=start)

    def _balance(self) -> Tensor:
        """(K,) each class's weight in the cross entropy: one over the root of its share of the pixels, mean 1."""
        classes = len(self.manifest.info.classes)
        counts = torch.ones(classes)
        chosen: list[Scene] = self.scenes[:: max(1, len(self.scenes) // 200)]
        for batch in training_batches(self.manifest, scenes=chosen, recipe=self.recipe, epoch=0):
            assert batch.label is not None
            counts += torch.bincount(batch.label[batch.label != IGNORE], minlength=classes)
        share = counts / counts.sum()
        weight = share.rsqrt()
        return (weight / (weight * share).sum()).clamp(max=MOST)

    def _save(self) -> None:
        """Weights, their average and the optimizer's moments, in one file."""
        moments = {
            f"{key}/{name}": self.optimizer.state[parameter][key]
            for name, parameter in self.parameters.items()
            for key in ("exp_avg", "exp_avg_sq")
            if key in self.optimizer.state[parameter]
        }
        state = (
            {f"weights/{name}": each.detach() for name, each in self.parameters.items()}
            | {f"average/{name}": each for name, each in self.average.items()}
            | moments
        )
        tensors.write(self.checkpoint, state, {"step": str(self.step)})

    def _restore(self) -> None:
        state, metadata = tensors.read(self.checkpoint)
        self.step = int(metadata["step"])
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[f"weights/{name}"])
                self.average[name].copy_(state[f"average/{name}"])
                if f"exp_avg/{name}" in state:
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(float(self.step)),
                        "exp_avg": state[f"exp_avg/{name}"].clone(),
                        "exp_avg_sq": state[f"exp_avg_sq/{name}"].clone(),
                    }


def _share(step: int, updates: int) -> float:
    """The rate of an update over the highest: warm-up, constant, and a fall to zero that no resumed run has begun."""
    rest = (updates - step) / (DECAY * updates)
    return min((step + 1) / WARMUP, 1.0, 0.5 * (1 - math.cos(math.pi * min(1.0, rest))))


def export(network: Segmenter, out: Path) -> None:
    """Write the parts that a published SAM2 checkpoint would hold, named as there.

    The object-score head learns nothing while the gate is off. SAM2's own says "something is there" of any street
    scene; so does ours, by its bias, and the object gate starts open.
    """
    with torch.no_grad():
        network.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].weight.zero_()
        network.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(OPEN)
    state = {
        name.removeprefix("sam."): tensor.to(torch.bfloat16)
        for name, tensor in network.state_dict().items()
        if not is_fresh(name)
    }
    card = network.card
    made = {"recipe": card.recipe.model_dump(mode="json"), "data": card.dataset.content_hash, "seed": SEED}
    tensors.write(out, state, {"memorysam-nano": json.dumps(made | {"versions": card.versions})})


if __name__ == "__main__":
    typer.run(main)
