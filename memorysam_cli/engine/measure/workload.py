"""The work to measure: a recipe with its modalities, classes and frames, and random data of these sizes.

First the target of a plan: open values of the recipe are completed from prepared data, published data sets or the
user's options, and so are the largest frames of validation; all of that without torch. Then random data sets, batches
and networks, which need no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from memorysam_cli import recipe as recipes
from memorysam_cli.data import DATASETS, decode, layout_of, transforms
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.data.transforms import Sample
from memorysam_cli.dataset import IGNORE, Crop, DatasetInfo, Modality
from memorysam_cli.engine.train import start
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.recipe import ALL, Recipe
from memorysam_cli.storage import images
from memorysam_cli.text import counted

if TYPE_CHECKING:
    import torch

    from memorysam_cli.data.loader import Batch
    from memorysam_cli.model import Segmenter

LOOKED_AT = 200
"""Number of scenes, spread over a split, whose sizes are read."""
SQUARES = "squares of data.image_size, because no data set is known"


@dataclass(frozen=True)
class Frames:
    """The frames of scoring, and the size at which classes are decided.

    Attributes:
        inputs: (height, width) of the frames of each forward pass, one or two: data sets with a crop need both.
        native: (height, width) of the scene's own pixels.
    """

    inputs: tuple[tuple[int, int], ...]
    native: tuple[int, int]


@dataclass(frozen=True)
class Target:
    """The recipe to plan for."""

    recipe: Recipe
    """A recipe with all modalities named."""
    classes: int
    frames: Frames
    """The largest frames of validation."""
    source: str
    """The source of these sizes."""
    scenes: int | None = None
    """Number of scenes in the training split; None if unknown."""

    @property
    def updates(self) -> int | None:
        """Number of updates of a whole training run in one process; None if unknown."""
        train = self.recipe.train
        if self.scenes is None or self.scenes < train.batch * train.accumulate:
            return None
        return start.extent_of(self.recipe, scenes=self.scenes, processes=1, dataset=self.recipe.data.dataset).last_step


def find_target(recipe: Recipe, root: Path, *, classes: int | None = None, modalities: int | None = None) -> Target:
    """Complete a recipe from prepared data, from the published data set, or from the user's options.

    Args:
        recipe: any.
        root: the data root; may have no prepared data.
        classes: K; None: the data set's.
        modalities: number of modalities, if nothing names them.

    Raises:
        UsageError: several data sets are possible; a number is missing, or contradicts what is known.
        DataError: the data set is prepared but lacks a modality or a split, or has a file that cannot be read.
    """
    name, size = recipe.data.dataset, recipe.data.image_size
    prepared = manifests.prepared(root)
    if name in prepared or (name == recipes.AUTO and prepared):
        _refuse_count(modalities)
        recipe = start.resolve(recipe, root)
        return target_of(recipe, manifests.read(root, recipe.data.dataset), classes=classes)
    if name in DATASETS:
        _refuse_count(modalities)
        layout, info = layout_of(name), layout_of(name).published_info
        recipe = recipe.for_dataset(name, [modality.name for modality in info.modalities])
        scenes = layout.published_counts.get(recipe.data.train_split)
        if layout.native_size is None:
            return Target(recipe, classes or len(info.classes), _squares(size), SQUARES, scenes)
        frames = scored_frames([layout.native_size], size=size, crop=info.crop)
        return Target(recipe, classes or len(info.classes), frames, f"the published size of {info.title}", scenes)
    needs_count = recipe.data.modalities == (recipes.ALL,)
    if needs_count and modalities is None:
        raise UsageError(
            f"recipe {recipe.name}: takes all modalities of its data set, and none is prepared below {root}; give "
            "their number with --modalities N, or --data ROOT, or name them with --set data.modalities=[…]"
        )
    if classes is None:
        raise UsageError(f"recipe {recipe.name}: no data set is prepared below {root}; give --classes N or --data ROOT")
    if not needs_count:
        _refuse_count(modalities)
    recipe = recipe.for_dataset(name, [f"sensor-{number + 1}" for number in range(modalities or 0)])
    return Target(recipe, classes, _squares(size), SQUARES)


def target_of(recipe: Recipe, manifest: Manifest, *, classes: int | None = None) -> Target:
    """The target of a recipe whose data set is prepared.

    Raises:
        DataError: as :func:`find_target`.
    """
    modalities = manifests.modalities_of(manifest.info, recipe.data.modalities, antialias=recipe.data.antialias)
    split = recipe.data.selection_split
    scenes = manifest.of_split(split)
    some = scenes[:: -(-len(scenes) // LOOKED_AT)]
    sizes = sorted({_size(manifest.root, scene, modalities) for scene in some})
    frames = scored_frames(sizes, size=recipe.data.image_size, crop=manifest.info.crop)
    source = f"the largest of {len(some)} of {counted(len(scenes), 'scene')} of split {split}"
    to_learn = sum(scene.split == recipe.data.train_split for scene in manifest.scenes)
    return Target(recipe, classes or len(manifest.info.classes), frames, source, to_learn or None)


def scored_frames(sizes: Sequence[tuple[int, int]], *, size: int, crop: Crop | None) -> Frames:
    """The frames of scoring for scenes of several sizes: the most pixels of each kind, over all scenes.

    Args:
        sizes: (height, width) of scenes.
        size: ``data.image_size``.
        crop: the data set's; with one, both the published part and the whole frame are scored.
    """
    modality = Modality(name="any", kind="rgb")
    whole, published = [], []
    for height, width in sizes:
        # The transforms themselves compute the sizes, on a frame of zeros.
        sample = Sample({modality.name: np.zeros((height, width, 3), np.uint8)}, None)
        whole.append(transforms.for_prediction(sample, modalities=[modality], size=size).size)
        published.append(transforms.for_scoring(sample, modalities=[modality], size=size, crop=crop).size)
    inputs = (_most(whole),) if crop is None else (_most(published), _most(whole))
    return Frames(inputs, _most(sizes))


def _size(root: Path, scene: Scene, modalities: Sequence[Modality]) -> tuple[int, int]:
    """A scene's height and width, from its headers; its sensors may have different resolutions."""
    known = [modality for modality in modalities if modality.name in scene.files]
    if not known:
        raise DataError(f"scene {scene.id}: has none of the recipe's modalities (it has: {', '.join(scene.files)})")
    sizes = {modality.name: images.shape(root / scene.files[modality.name][0])[:2] for modality in known}
    kinds = {modality.name: modality.kind for modality in known}
    return decode.frame_size(sizes, kinds=kinds, label=None) or _most(list(sizes.values()))


def _squares(size: int) -> Frames:
    return Frames(((size, size),), (size, size))


def _most(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size with the most pixels."""
    return max(sizes, key=lambda size: size[0] * size[1])


def _refuse_count(modalities: int | None) -> None:
    if modalities is not None:
        raise UsageError(
            f"--modalities {modalities}: the recipe's data set defines them; leave it out, or choose some "
            "with --set data.modalities=[A,B]"
        )


CELL = 32
"""Side in pixels of the blocks of one class."""
IGNORED = 0.05
"""Share of the blocks that are ignored."""


def made_up_dataset(recipe: Recipe, *, classes: int) -> DatasetInfo:
    """A data set with a recipe's modalities and ``classes`` classes, without files."""
    assert recipe.data.modalities != (ALL,)
    return DatasetInfo(
        name="made-up",
        title="made up to measure with",
        classes=tuple(f"class-{index}" for index in range(classes)),
        palette=tuple((index, index, index) for index in range(classes)),
        modalities=tuple(Modality(name=name, kind="rgb") for name in recipe.data.modalities),
        class_pixels={recipe.data.train_split: (1,) * classes},
    )


def made_up_batch(recipe: Recipe, *, classes: int, seed: int = 0, device: torch.device | str = "cpu") -> Batch:
    """A random training batch of a recipe's size, with labels in blocks.

    Args:
        recipe: has the number of scenes, modalities and pixels.
        classes: of the labels; a few blocks are ignored.
        seed: of all values.
        device: of the batch.
    """
    import torch

    from memorysam_cli.data.loader import Batch

    random = torch.Generator().manual_seed(seed)
    size, scenes = recipe.data.image_size, recipe.train.batch
    frames = [torch.randn(scenes, 3, size, size, generator=random) for _ in recipe.data.modalities]
    cells = torch.randint(classes, (scenes, size // CELL, size // CELL), generator=random)
    cells[torch.rand(cells.shape, generator=random) < IGNORED] = IGNORE
    label = cells.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)  # (B, h, w) -> (B, H, W)
    return Batch(frames, label, ()).to(device)


def of_demo() -> dict[str, Any]:
    """Backbone, size and batch of the recipe ``demo``, which any machine can measure in seconds."""
    demo = recipes.load("demo")
    return {"backbone": demo.model.backbone, "size": demo.data.image_size, "batch": demo.train.batch}


OPEN = 5.0
"""An object score that keeps all gates open: random weights would close some, and a gated frame trains nothing."""


@dataclass(frozen=True)
class Workload:
    """The work of a benchmark.

    Attributes:
        task: a training step, or a prediction.
        backbone: one of ``memorysam_cli.recipe.BACKBONES``.
        modalities: M.
        size: side of the images in pixels.
        batch: scenes per batch.
        classes: K.
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``; of our implementation; the plain one is float32.
        saver: the memory saver of training: ``auto``, ``on`` or ``off``.
        compile: compile the encoder's blocks.
    """

    task: Literal["train", "predict"] = "train"
    backbone: str = "sam2-hiera-base-plus"
    modalities: int = 4
    size: int = 1024
    batch: int = 4
    classes: int = 25
    precision: str = "fp32"
    saver: str = "auto"
    compile: bool = False

    def recipe(self) -> Recipe:
        """The paper's recipe with these values.

        Raises:
            UsageError: unknown backbone, or an impossible size.
        """
        names = ", ".join(f"sensor-{number + 1}" for number in range(self.modalities))
        compiled = str(self.compile).lower()
        return recipes.load(
            "deliver",
            [
                f"data.modalities=[{names}]", f"data.image_size={self.size}", f"model.backbone={self.backbone}",
                f"train.batch={self.batch}", f'train.saver="{self.saver}"', f"train.precision={self.precision}",
                f"train.compile={compiled}",
            ],
        )  # fmt: skip

    def network(self, recipe: Recipe) -> Segmenter:
        """The network with random weights and open gates."""
        import torch

        from memorysam_cli.model.weights import build_for_measuring

        network = build_for_measuring(recipe, made_up_dataset(recipe, classes=self.classes))
        with torch.no_grad():
            network.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(OPEN)
        return network

    def levers(self) -> str:
        """Options of the command that need less memory and are not used yet."""
        ways = [
            *["--saver on"] * (self.task == "train" and self.saver != "on"),
            *["--precision bf16"] * (self.precision in {"fp32", "tf32"}),
            *["a smaller --batch"] * (self.batch > 1),
            *["fewer --modalities"] * (self.modalities > 1),
        ]
        return f"try {', '.join([*ways, 'a smaller --size'])}{', or a smaller --backbone' * (self.backbone != 'nano')}"

    def __str__(self) -> str:
        """A line for the user."""
        return (
            f"{self.task} {self.backbone}, {self.size}×{self.size} pixels, {counted(self.modalities, 'modality')}, "
            f"batch {self.batch}, {self.precision}{', compiled' * self.compile}"
        )
