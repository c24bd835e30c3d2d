"""Segmenting scenes: from their files to one class map each."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memorysam_cli import model as models
from memorysam_cli.data.loader import UnlabelledScene, unlabelled_scenes
from memorysam_cli.data.manifest import Scene
from memorysam_cli.dataset import Modality
from memorysam_cli.engine import runtime
from memorysam_cli.engine.evaluation.scoring import Network, batches, scoring
from memorysam_cli.engine.evaluation.views import View, show
from memorysam_cli.engine.prediction.folder import Writer
from memorysam_cli.errors import DataError, UsageError, did_you_mean
from memorysam_cli.report import console
from memorysam_cli.storage import images, lock, tensors


def read_aliases(texts: Sequence[str] | None, known: Sequence[str]) -> dict[str, str]:
    """What the user's files call the modalities, from ``--map MODALITY=NAME``.

    Raises:
        UsageError: no ``=``, a modality that is not wanted, one that is mapped twice, or two that share a name.
    """
    aliases: dict[str, str] = {}
    for text in texts or ():
        modality, equals, name = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise UsageError(f"--map {text}: must be MODALITY=NAME, for example {known[0]}=rgb")
        if modality not in known:
            turned = f"; did you mean --map {name}={modality}?" if name in known else did_you_mean(modality, known)
            raise UsageError(f"--map {text}: the weights know no modality '{modality}'{turned}")
        if modality in aliases:
            raise UsageError(f"--map {text}: '{modality}' is mapped to '{aliases[modality]}' already")
        aliases[modality] = name
    owners: dict[str, str] = {}
    for modality in known:
        name = aliases.get(modality, modality)
        other = owners.setdefault(name.casefold(), modality)
        if other != modality:
            raise UsageError(
                f"--map: '{name}' would be both '{other}' and '{modality}'; map each to a name of its own, or leave "
                "one out with --modalities"
            )
    return aliases


def doubts(scenes: Sequence[Scene], *, root: Path, modalities: Sequence[Modality]) -> list[str]:
    """What can be read and yet may not be what the weights were trained on; looks at the first scene's headers.

    Args:
        scenes: what is to be segmented.
        root: what the scenes' paths are relative to.
        modalities: those that the model may be shown.
    """
    found = []
    for modality in modalities:
        path = next((scene.files[modality.name][0] for scene in scenes if modality.name in scene.files), None)
        if modality.kind != "hha" or path is None:
            continue
        with contextlib.suppress(DataError):  # reading the scene will say what is wrong with it
            if images.header(root / path).channels == 1:
                found.append(
                    f"{path}: has one channel, and the weights' '{modality.name}' is depth encoded as HHA, which has "
                    "three; expect poor masks, or make HHA with memorysam prepare hha"
                )
    return found


def segment(
    weights: Path,
    out: Path,
    *,
    scenes: Sequence[Scene],
    root: Path,
    source: str,
    modalities: Sequence[Modality],
    device: torch.device,
    extras: Sequence[str] = (),
    batch: int = 4,
    workers: int = 2,
    skip_bad: bool = False,
    view: View | None = None,
) -> dict[str, Any]:
    """Segment scenes with weights from a file into a folder, with its ledger and, last, ``_SUCCESS.json``.

    Args:
        weights: a weights file.
        out: the output folder; it is locked meanwhile.
        scenes: what to segment.
        root: what the scenes' paths are relative to.
        source: what the user called the scenes.
        modalities: those that the model may be shown, in the order of its memory.
        device: where to compute.
        extras: pictures beside the masks, of :data:`~memorysam_cli.engine.prediction.folder.EXTRAS`.
        batch: as in :func:`predict`.
        workers: as in :func:`predict`.
        skip_bad: as in :func:`predict`.
        view: as in :func:`predict`.

    Returns:
        The content of ``_SUCCESS.json``.

    Raises:
        WeightsError: the weights are refused.
        FolderInUseError: another prediction writes there.
        DataError: as in :func:`predict`, or no scene could be read.
    """
    view = view or View()
    with lock.hold(out), console.progress(len(scenes), "predict") as progress:
        digest = tensors.sha256(weights)  # before it is loaded: a training may replace it meanwhile
        model = models.load(weights, device=device)
        card = model.card
        writer = Writer(out, root=root, info=card.dataset, modalities=modalities, extras=extras)
        predict(
            model, writer, scenes=scenes, image_size=card.image_size, device=device, batch=batch, workers=workers,
            skip_bad=skip_bad, view=view, known=card.modalities, advance=progress.advance,
        )  # fmt: skip
        facts = {
            "inputs": source,
            "dataset": card.dataset.name,
            "modalities": [m.name for m in modalities if any(m.name in scene.files for scene in scenes)],
            **view.to_json(size=card.image_size),
            "image_size": card.image_size,
            "weights": str(weights),
            "weights_sha256": digest,
            **runtime.describe(device),
        }
        return writer.finish(facts, scenes=len(scenes))


def predict(
    model: Network,
    writer: Writer,
    *,
    scenes: Sequence[Scene],
    image_size: int,
    device: torch.device | str,
    batch: int = 4,
    workers: int = 2,
    skip_bad: bool = False,
    view: View | None = None,
    known: Sequence[Modality] | None = None,
    advance: Callable[[int], object] | None = None,
) -> None:
    """Segment scenes and write each result as it comes; one batch is in memory at a time.

    Args:
        model: gives the logits of the data set's K classes.
        writer: says where the scenes are, which modalities count, and takes the results.
        scenes: may lack modalities, not all; labels are not looked at.
        image_size: short side in pixels, a multiple of 32.
        device: where the model is.
        batch: consecutive scenes of one size and with the same modalities that share a forward pass, at most.
        workers: processes that read ahead.
        skip_bad: list scenes that cannot be read and go on; otherwise the first one ends the work.
        view: how scenes are shown to the model; none: as they are.
        known: all modalities that the model was trained with, in the order of its memory; none: those of ``writer``.
        advance: told how many scenes have just been dealt with.

    Raises:
        DataError: a scene cannot be read and ``skip_bad`` is off.
        EnvironmentFault: a result cannot be written.

    Source: METHOD §5, ``native``: the logits are brought to the scene's own size before the argmax.
    """
    tell, view = advance or (lambda _count: None), view or View()
    modalities = {modality.name: modality for modality in writer.modalities}

    def leave_out(scene: Scene, fault: DataError) -> None:
        if not skip_bad:
            raise DataError(f"{fault}; mend the file, or go on without such scenes: --on-error skip") from fault
        writer.leave_out(scene, fault)
        tell(1)

    source = _readable(writer, scenes, size=image_size, workers=workers, tile=view.tile, on_fault=leave_out)
    with scoring(model):
        # Large frames at their own resolution one at a time: their logits are gigabytes.
        for together in batches(source, most=1 if view.tile else batch, key=_frame_shapes):
            given = [modalities[name] for name in together[0].modalities]
            how = dataclasses.replace(view, tile=together[0].is_large)
            seen = show(model, how, modalities=given, known=known or writer.modalities, size=image_size)
            logits = _logits(seen, together, device=device)
            for one, scene in zip(logits, together, strict=True):
                writer.write(scene, one)
            tell(len(together))


def _readable(
    writer: Writer,
    scenes: Sequence[Scene],
    *,
    size: int,
    workers: int,
    tile: bool,
    on_fault: Callable[[Scene, DataError], None],
) -> Iterator[UnlabelledScene]:
    """The scenes in order; one that cannot be read is handed to ``on_fault``, and the next one follows."""
    place = 0
    while place < len(scenes):
        source = unlabelled_scenes(
            writer.root, scenes=scenes[place:], modalities=writer.modalities, size=size, workers=workers,
            tile=tile,
        )  # fmt: skip
        try:
            for found in source:
                place += 1
                yield found
        except DataError as fault:
            on_fault(scenes[place], fault)
            place += 1


def _frame_shapes(scene: UnlabelledScene) -> Hashable:
    """What must agree for scenes to share a forward pass."""
    return scene.modalities, scene.frames[0].shape


def _logits(model: Network, together: Sequence[UnlabelledScene], *, device: torch.device | str) -> Tensor:
    """B scenes of M × (1, 3, H, W) -> (B, K, H, W)."""
    frames = zip(*(scene.frames for scene in together), strict=True)
    return model.logits([torch.cat(parts).to(device, non_blocking=True) for parts in frames])
