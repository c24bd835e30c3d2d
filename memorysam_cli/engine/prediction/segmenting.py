"""Segmenting scenes: from their files to one class map each."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from memorysam_cli.data.loader import UnlabelledScene, unlabelled_scenes
from memorysam_cli.data.manifest import Scene
from memorysam_cli.dataset import Modality
from memorysam_cli.engine import memory, runtime
from memorysam_cli.engine.evaluation.scoring import Network, batches, scoring
from memorysam_cli.engine.evaluation.views import View, show
from memorysam_cli.engine.prediction.deciding import decide
from memorysam_cli.engine.prediction.folder import Line, remove
from memorysam_cli.engine.prediction.job import Job
from memorysam_cli.engine.prediction.scene_files import SceneFiles
from memorysam_cli.engine.prediction.write_behind import WriteBehind
from memorysam_cli.errors import DataError

BYTES_PER_PIXEL = {"color": 4, "overlay": 16, "confidence": 2}
"""What a picture's making holds; a mask alone, and its PNG, 3."""


def do(
    job: Job,
    network: Network,
    out: Path,
    *,
    scenes: Sequence[Scene],
    device: torch.device,
    tell: Callable[[Line], object],
    workers: int,
    skip_bad: bool,
    in_threads: bool = False,
) -> None:
    """Do a job, or some of its scenes, here; see :func:`predict`."""
    predict(
        network, job.files(out), scenes=scenes, image_size=job.card.image_size, device=device, tell=tell,
        batch=job.batch, workers=workers, in_threads=in_threads, skip_bad=skip_bad, view=job.view,
        known=job.card.modalities, precision=job.precision,
    )  # fmt: skip


def predict(
    model: Network,
    files: SceneFiles,
    *,
    scenes: Sequence[Scene],
    image_size: int,
    device: torch.device | str,
    tell: Callable[[Line], object],
    batch: int = 4,
    workers: int = 2,
    in_threads: bool = False,
    skip_bad: bool = False,
    view: View | None = None,
    known: Sequence[Modality] | None = None,
    precision: str = "fp32",
) -> None:
    """Segment scenes, and write each one's files behind the computing of the next; memory does not grow with them.

    Args:
        model: gives the logits of the data set's K classes.
        files: says where the scenes are and which modalities count, and writes the results.
        scenes: may lack modalities, not all; labels are not looked at.
        image_size: short side in pixels, a multiple of 32.
        device: where the model is.
        tell: takes each scene's line for the ledger, in the order of the scenes, once its files are written.
        batch: scenes of one size and with the same modalities that share a forward pass, at most. They are never taken
            across a multiple of ``batch``, so that a run over any of these groups computes the same.
        workers: processes that read ahead.
        in_threads: threads read ahead, not processes.
        skip_bad: list scenes that cannot be read and go on; otherwise the first one ends the work.
        view: how scenes are shown to the model; none: as they are.
        known: all modalities that the model was trained with, in the order of its memory; none: those of ``files``.
        precision: of :func:`~memorysam_cli.engine.runtime.computing`.

    Raises:
        DataError: a scene cannot be read and ``skip_bad`` is off; those before it are written and told.
        EnvironmentFault: a result cannot be written.
    """
    view, place = view or View(), torch.device(device)
    modalities = {modality.name: modality for modality in files.modalities}
    source = unlabelled_scenes(
        files.root, scenes=scenes, modalities=files.modalities, size=image_size, workers=workers, tile=view.tile,
        in_threads=in_threads,
    )  # fmt: skip
    order = iter(scenes)
    with (
        memory.explained(place, levers=memory.LOOKING),
        scoring(model),
        WriteBehind(tell, undo=functools.partial(remove, files.out)) as writing,
    ):
        for together in _groups(source, most=1 if view.tile else batch):
            if isinstance(together, DataError):
                if not skip_bad:
                    advice = "mend the file, or go on without such scenes: --on-error skip"
                    raise DataError(f"{together}; {advice}") from together
                writing.add(functools.partial(files.left_out, next(order), together))
                continue
            given = [modalities[name] for name in together[0].modalities]
            how = dataclasses.replace(view, tile=together[0].is_large)
            seen = show(model, how, modalities=given, known=known or files.modalities, size=image_size)
            with runtime.computing(precision, place):
                logits = _logits(seen, together, device=place)
            decisions = decide(
                logits, [(scene.height, scene.width) for scene in together], classes=len(files.info.classes),
                with_sureness="confidence" in files.extras,
            )  # fmt: skip
            for found, decision in zip(together, decisions, strict=True):
                work = functools.partial(files.write, next(order), decision, modalities=found.modalities)
                pixel_bytes = 3 + sum(BYTES_PER_PIXEL[extra] for extra in files.extras)
                writing.add(work, needed_bytes=found.height * found.width * pixel_bytes)


def _groups(source: Iterator[UnlabelledScene | DataError], *, most: int) -> Iterator[list[UnlabelledScene] | DataError]:
    """Scenes that share a forward pass, and the faults between them, in order."""
    while chunk := list(itertools.islice(source, most)):
        for together in batches(chunk, most=most, key=_company):
            yield from (each for each in together if isinstance(each, DataError))
            scenes = [each for each in together if isinstance(each, UnlabelledScene)]
            if scenes:
                yield scenes


def _company(found: UnlabelledScene | DataError) -> Hashable:
    """What must agree for scenes to share a forward pass."""
    return None if isinstance(found, DataError) else (found.modalities, found.frames[0].shape)


def _logits(model: Network, together: Sequence[UnlabelledScene], *, device: torch.device) -> Tensor:
    """B scenes of M × (1, 3, H, W) -> (B, K, H, W)."""
    frames = zip(*(scene.frames for scene in together), strict=True)
    # Moved before they are joined: only what the loader has pinned travels while the device computes.
    return model.logits([torch.cat([part.to(device, non_blocking=True) for part in parts]) for parts in frames])
