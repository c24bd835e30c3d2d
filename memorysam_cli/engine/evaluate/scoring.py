"""Scoring: one pass over labeled scenes gives both protocols, every condition and every failure case.

Validation in training and ``memorysam evaluate`` both call :func:`evaluate`, so their scores are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from memorysam_cli.data.loader import ScoredScene, scored_scenes
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.engine.evaluate.counts import Evaluation, ProtocolName, Tally
from memorysam_cli.engine.infer.decision import class_map
from memorysam_cli.engine.infer.inference import Inference, batches, inference_mode
from memorysam_cli.engine.infer.views import Network
from memorysam_cli.errors import DataError
from memorysam_cli.storage import images


def evaluate(
    network: Network,
    manifest: Manifest,
    *,
    scenes: Sequence[Scene],
    inference: Inference,
    accelerator: Accelerator | None = None,
    advance: Callable[[int], object] | None = None,
) -> Evaluation:
    """Score a network on labeled scenes.

    Args:
        network: gives the logits of the data set's K classes; its mode (train or eval) is restored afterwards.
        manifest: the data set of the scenes.
        scenes: all scenes, the same in every process; each process scores its share.
        inference: the settings of inference.
        accelerator: sums the counts of several processes; None for a single one.
        advance: called with the number of scenes that this process has just scored.

    Returns:
        The same evaluation in every process, and for any number of processes.

    Raises:
        DataError: no scenes, a scene without a label or a modality, or a file that cannot be used.

    Source: METHOD §5. Both protocols share a forward pass if they see the same frames.
    """
    if not scenes:
        raise DataError(f"{manifest.info.name}: no scenes to evaluate")
    tally = Tally(scenes, classes=len(manifest.info.classes))
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    share = scenes[rank::world]  # no padding: a scene counted twice would change the result
    source = scored_scenes(
        manifest, scenes=share, modalities=inference.modalities, size=inference.image_size, workers=inference.workers,
        tile=inference.view.tile,
    )  # fmt: skip
    with inference_mode(network), inference.computing():
        for together in batches(source, most=inference.stride, key=_frame_shapes):
            _score(together, network, inference, tally=tally, root=manifest.root)
            if advance is not None:
                advance(len(together))
    if accelerator is not None:
        tally.add_up(accelerator)
    laws = tally.check()
    return Evaluation(
        manifest.info.classes, tuple(scenes), tally.groups, tally.confusions, tally.per_scene, tally.ignored, laws
    )  # fmt: skip


def _frame_shapes(scored: ScoredScene) -> Hashable:
    """The shapes that must be equal for scenes in the same forward pass."""
    return scored.resized.frames[0].shape, scored.whole.frames[0].shape, scored.shares_frames


def _score(
    together: Sequence[ScoredScene], network: Network, inference: Inference, *, tally: Tally, root: Path
) -> None:
    """Score scenes whose frames have the same shapes; only whole frames are processed in windows."""
    is_shared = together[0].shares_frames
    plain, whole = inference.shown(network), inference.shown(network, is_large=together[0].is_large)
    published = inference.logits(whole if is_shared else plain, [scene.resized.frames for scene in together])
    native = published if is_shared else inference.logits(whole, [scene.whole.frames for scene in together])
    for index, scored in enumerate(together):
        seen: tuple[tuple[ProtocolName, Tensor, Tensor | None, int | None], ...] = (
            ("resized", published[index], scored.resized.label, None),
            ("native", native[index], scored.whole.label, _file_pixels(root, scored.scene)),
        )
        for protocol, logits, label_or_none, pixels in seen:
            label = _label(label_or_none, inference.device)
            # float32, which distinguishes values that are equal in half precision.
            prediction = class_map(logits.float(), height=label.shape[0], width=label.shape[1])
            tally.add(protocol, scored.scene, prediction=prediction, label=label, pixels=pixels)


def _file_pixels(root: Path, scene: Scene) -> int:
    """Height × width of a scene's label, from its file's header."""
    assert scene.label is not None  # the loader refuses scenes without one
    height, width, _, _ = images.shape(root / scene.label)
    return height * width


def _label(label: Tensor | None, device: torch.device | str) -> Tensor:
    """(1, H, W) -> (H, W)."""
    assert label is not None  # the loader refuses scenes without one
    return label[0].to(device, non_blocking=True)
