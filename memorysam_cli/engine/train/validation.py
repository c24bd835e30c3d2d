"""The visible results of a training run: its first batch, then the scores, curves and pictures of each validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from memorysam_cli.data.decode import read_sample
from memorysam_cli.data.loader import Batch
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.data.transforms import Sample, for_prediction, to_tensor
from memorysam_cli.dataset import DatasetInfo, Modality
from memorysam_cli.engine import runtime
from memorysam_cli.engine.evaluate.counts import Evaluation, SceneScore
from memorysam_cli.engine.evaluate.scoring import evaluate
from memorysam_cli.engine.infer.decision import own_size
from memorysam_cli.engine.infer.inference import Inference, inference_mode
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.train.checkpoints import Position
from memorysam_cli.model import Metric, Segmenter
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import figures, pictures
from memorysam_cli.report.pictures import Panel
from memorysam_cli.storage import atomic, images

HEADLINE = "resized"
"""The protocol that decides which checkpoint is best: the one of the papers."""
SAMPLES = 4
"""Number of scenes in a picture of a validation, spread evenly over the split."""
FIRST = "first-batch.png"
NEWEST, BEST, EARLIEST = "validation.png", "validation-best.png", "validation-first.png"


def draw_first_batch(batch: Batch, info: DatasetInfo, modalities: Sequence[Modality], folder: Path) -> None:
    """Write ``first-batch.png``: augmented scenes as the network sees them, so that a wrong mapping is visible.

    Args:
        batch: M × (B, 3, H, W), normalized; labels (B, H, W).
        info: classes and palette.
        modalities: of the frames.
        folder: the output folder.
    """
    assert batch.label is not None  # training batches have one
    labels = batch.label.cpu().numpy()
    rows = []
    for index, label in enumerate(labels[:SAMPLES]):
        panels = [
            Panel(modality.name, _seen(frames[index], modality))
            for modality, frames in zip(modalities, batch.frames, strict=True)
        ]
        rows.append([*panels, Panel("label", pictures.paint(label, info.palette))])
    entries = pictures.legend(list(labels[:SAMPLES]), classes=info.classes, palette=info.palette)
    images.write_png(
        folder / FIRST, pictures.sheet(rows, entries, captions=[scene.id for scene in batch.scenes[:SAMPLES]])
    )


def _seen(frame: Tensor, modality: Modality) -> pictures.Picture:
    """A normalized frame (3, H, W) as a picture with its original colors."""
    values = frame.float().cpu()
    if modality.mean is not None and modality.std is not None:
        values = values * torch.tensor(modality.std)[:, None, None] + torch.tensor(modality.mean)[:, None, None]
    array = values.permute(1, 2, 0).numpy()  # (3, H, W) -> (H, W, 3)
    if modality.kind == "rgb":
        shown: pictures.Picture = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
        return shown
    return pictures.as_picture(array)


class Validation:
    """Scores the selection split with the code of ``memorysam evaluate``.

    It always computes in float32, also with another ``train.precision``, so the scores equal those of an evaluation of
    the saved file.

    Args:
        network: in training; its mode is restored after scoring.
        manifest: of the data set.
        recipe: split, size, batch, worker processes.
        accelerator: device and processes, which share the scenes.
    """

    def __init__(self, network: Segmenter, manifest: Manifest, recipe: Recipe, *, accelerator: Accelerator) -> None:
        self.network, self.manifest, self.recipe, self.accelerator = network, manifest, recipe, accelerator
        self.scenes = manifest.of_split(recipe.data.selection_split)

    @property
    def share(self) -> int:
        """The largest number of scenes of one process."""
        share: int = math.ceil(len(self.scenes) / self.accelerator.num_processes)
        return share

    def score(self, advance: Callable[[int], object]) -> Evaluation:
        """The counts of all scenes, the same in every process.

        Args:
            advance: called with the number of scenes that this process has just scored.
        """
        with runtime.computing("fp32", self.accelerator.device):
            return evaluate(
                self.network,
                self.manifest,
                scenes=self.scenes,
                inference=Inference(
                    self.network.card.modalities,
                    self.recipe.data.image_size,
                    self.accelerator.device,
                    batch=self.recipe.train.batch,
                    workers=self.recipe.data.workers,
                ),
                accelerator=self.accelerator,
                advance=advance,
            )

    def judge(self, miou: float, position: Position, *, epoch: int) -> bool:
        """Record the score of the current weights; NaN is never the best and never prevents a later best.

        Args:
            miou: in %, of the protocol :data:`HEADLINE`.
            position: stores the score, and the best one.
            epoch: the finished epoch.

        Returns:
            Whether these are the best weights so far.
        """
        is_number = math.isfinite(miou)
        position.validation = {
            "miou": miou if is_number else None,  # JSON has no NaN
            "protocol": HEADLINE, "split": self.recipe.data.selection_split, "epoch": epoch, "step": position.step,
        }  # fmt: skip
        is_best = is_number and (position.best_miou is None or miou > position.best_miou)
        if is_best:
            position.best_miou, position.best_step = miou, position.step
        return is_best

    def draw(self, run: RunFolder, result: Evaluation, position: Position, *, is_best: bool) -> None:
        """Draw the curves so far, the confusion matrix, and the predictions for a few scenes; in one process.

        Args:
            run: the run's folder.
            result: of the newest validation.
            position: of the training.
            is_best: the weights are the best so far.
        """
        draw_curves(run, self.recipe.terms)
        miou = result.protocol(HEADLINE).miou
        title = f"{self.recipe.data.selection_split} after step {position.step}: mIoU {miou:.2f}"
        draw_confusion(run, result.confusion(HEADLINE), classes=result.classes, title=title)
        with runtime.computing("fp32", self.accelerator.device):
            # In the protocol that scores a label at its own size, because it is drawn so.
            scored = result.scene_scores("native")
            draw_samples(self.network, self.manifest, scored, run.samples, is_best=is_best)


def metric_of(position: Position) -> Metric | None:
    """The validation result of the current weights; None if they have not been validated, or the score is NaN."""
    last = position.validation
    return Metric(**last) if position.is_validated and last is not None and last["miou"] is not None else None


def draw_curves(run: RunFolder, terms: Sequence[str]) -> None:
    """Write ``plots/curves.png`` from the metrics so far; ``terms`` are the names of the losses."""
    atomic.write_bytes(run.plots / "curves.png", figures.curves(run.read_metrics(), terms=terms, title=run.path.name))


def draw_confusion(run: RunFolder, matrix: Tensor, *, classes: Sequence[str], title: str) -> None:
    """Write ``plots/confusion.png`` of the newest validation; (K, K) counts, rows the truth."""
    atomic.write_bytes(
        run.plots / "confusion.png", figures.confusion_matrix(matrix.numpy(), classes=classes, title=title)
    )


def draw_samples(
    network: Segmenter, manifest: Manifest, scored: Sequence[SceneScore], folder: Path, *, is_best: bool
) -> None:
    """Write ``validation.png``: modalities, label, prediction and errors of a fixed few scenes, with their mIoU.

    The sheets of the first and of the best validation are stored beside it for comparison.

    Args:
        network: the network in training.
        manifest: of the scenes.
        scored: the scenes of the split, each with its score.
        folder: the output folder.
        is_best: the weights are the best so far.
    """
    few = [scored[index * len(scored) // SAMPLES] for index in range(SAMPLES)] if len(scored) > SAMPLES else scored
    info = manifest.info
    rows, masks, captions = [], [], []
    for score in few:
        sample, prediction = _predict(network, manifest, score.scene)
        assert sample.label is not None
        rows.append(pictures.comparison(sample.frames, prediction, palette=info.palette, label=sample.label))
        masks += [sample.label, prediction]
        captions.append(f"{score.scene.id}   mIoU {score.miou_present:.1f}")
    entries = pictures.legend(masks, classes=info.classes, palette=info.palette)
    png = images.encode_png(pictures.sheet(rows, entries, captions=captions))
    names = [NEWEST] + [BEST] * is_best + [EARLIEST] * (not (folder / EARLIEST).exists())
    for name in names:
        atomic.write_bytes(folder / name, png)


def _predict(network: Segmenter, manifest: Manifest, scene: Scene) -> tuple[Sample, pictures.Mask]:
    """A scene as its files have it, and the class map of its own size."""
    info, modalities = manifest.info, network.card.modalities
    sample = read_sample(manifest.root, scene, modalities=modalities, labels=info)
    seen = for_prediction(sample, modalities=modalities, size=network.image_size)
    tensors = [to_tensor(seen.frames[m.name], m, invalid=seen.invalid.get(m.name)) for m in modalities]
    frames = [tensor.unsqueeze(0).to(network.device) for tensor in tensors]
    with inference_mode(network):
        logits = own_size(network.logits(frames)[0], height=sample.size[0], width=sample.size[1])
    return sample, logits.argmax(dim=0).cpu().numpy()
