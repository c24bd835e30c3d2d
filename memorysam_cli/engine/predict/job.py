"""The job of a prediction: everything that affects its results, from the user's options; and how it is run.

No weights and no torch are loaded before :meth:`Job.load`. Only a few scenes are read, to compare their values with
those of training.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memorysam_cli import model as models
from memorysam_cli.data import decode, inputs
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Scene
from memorysam_cli.dataset import IGNORE, Layout, Modality
from memorysam_cli.engine import run_folder, surroundings
from memorysam_cli.engine.infer.decision import PLAIN, Share, Wanted
from memorysam_cli.engine.infer.inference import (
    Inference,
    by_frame,
    choose_modalities,
    frame_sizes,
    notes_on_sizes,
    tell_untrained,
    unlike_training,
    untrained_sets,
)
from memorysam_cli.engine.infer.views import View
from memorysam_cli.engine.predict.files import SceneFiles, refuse_collisions
from memorysam_cli.engine.surroundings import Shard
from memorysam_cli.errors import DataError, UsageError, WeightsError, did_you_mean
from memorysam_cli.model import WeightsCard, read_card
from memorysam_cli.report import console
from memorysam_cli.storage import documents, images, tensors
from memorysam_cli.text import shown

if TYPE_CHECKING:
    import torch

    from memorysam_cli.model import Segmenter


@dataclass(frozen=True)
class Job:
    """Which scenes to segment with which weights, and how."""

    weights: Path
    weights_sha256: str
    card: WeightsCard
    scenes: Sequence[Scene]
    root: Path
    """The folder to which the scenes' paths are relative."""
    source: str
    """The user's name of the scenes."""
    modalities: tuple[Modality, ...]
    """The modalities that the model may see, in the order of its memory."""
    extras: tuple[str, ...] = ()
    """Extra pictures besides the masks, from :data:`~memorysam_cli.engine.predict.files.EXTRAS`."""
    view: View = field(default_factory=View)
    batch: int = 4
    """The largest number of scenes in a forward pass."""
    precision: str = "fp32"
    is_compiled: bool = False
    wanted: Wanted = PLAIN
    """What is computed for each pixel, besides the extra pictures."""
    follows: bool = False
    """Whether the scenes arrive in a folder one by one; ``scenes`` are then those that are known so far."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Modality → its name in the files of a followed folder."""
    layout: Layout | None = None
    """The files of a followed folder and how they pair."""
    is_asked: bool = False
    """Whether the layout was given for this folder; otherwise it is the one stored in the weights."""

    @property
    def stride(self) -> int:
        """Number of consecutive scenes that stay together in every way of running, because another batch could change a
        last bit."""
        return self.inference("cpu").stride

    @cached_property
    def marks(self) -> dict[str, Any]:
        """The values that must be equal for two runs to be the same job, with descriptions for users."""
        return {
            "weights": self.weights_sha256,
            "scenes": "as they arrive" if self.follows else _digest(_scene_lines(self.scenes)),
            "modalities": [modality.name for modality in self.modalities],
            "pictures": list(self.extras),
            **self.view.to_json(size=self.card.image_size),
            "--batch": self.batch,
            "--precision": self.precision,
            "--compile": self.is_compiled,
            "versions": surroundings.versions(),
            # Left out if not requested, so that jobs of earlier versions stay equal.
            **{key: value for key, value in _decided(self).items() if value is not None},
        }

    @cached_property
    def untrained(self) -> dict[tuple[str, ...], int]:
        """The sets of sensors that the weights were never trained for, each with its number of scenes."""
        chosen = {modality.name for modality in self.modalities}
        return untrained_sets(self.card.recipe, self.scenes, self.view, chosen=chosen)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the marks."""
        return _digest([documents.to_json(self.marks)])

    def inference(self, device: torch.device | str, *, workers: int = 0) -> Inference:
        """The settings of inference, for a device and a number of worker processes."""
        return Inference(
            self.modalities, self.card.image_size, device, known=self.card.modalities, view=self.view,
            precision=self.precision, batch=self.batch, workers=workers,
        )  # fmt: skip

    def files(self, out: Path) -> SceneFiles:
        """The writer of the scenes' files into a folder."""
        return SceneFiles(out, self.root, self.card.dataset, self.modalities, self.extras, self.wanted)

    def of(self, scenes: Sequence[Scene]) -> Job:
        """The same job for known scenes, as if all had existed from the start."""
        return replace(self, scenes=tuple(scenes), follows=False, aliases=(), layout=None, is_asked=False)

    def load(self, device: torch.device) -> Segmenter:
        """The network, ready to predict.

        Raises:
            WeightsError: the weights are refused, or the file has changed since the job was planned.
        """
        network = models.load(self.weights, device=device)
        if tensors.sha256(self.weights) != self.weights_sha256:
            raise WeightsError(f"{self.weights}: has changed since this prediction began; run the same command again")
        if self.is_compiled:
            network.compile_blocks()
        return network

    def facts(self, devices: Iterable[str]) -> dict[str, Any]:
        """The part of a report that does not depend on pixels.

        Args:
            devices: names of the devices that took part, from :func:`device_name`, each once.
        """
        from memorysam_cli.engine import runtime

        return {
            "job": self.sha256,
            "inputs": self.source,
            "inputs_root": str(self.root.absolute()),
            "dataset": self.card.dataset.name,
            "modalities": [m.name for m in self.modalities if any(m.name in scene.files for scene in self.scenes)],
            "untrained": [{"modalities": list(names), "scenes": count} for names, count in self.untrained.items()],
            **self.view.to_json(size=self.card.image_size),
            **_decided(self),
            "image_size": self.card.image_size,
            "weights": str(self.weights),
            "weights_sha256": self.weights_sha256,
            **runtime.describe("cpu", self.precision),
            "device": " + ".join(devices),
        }


def _decided(job: Job) -> dict[str, Any]:
    """What is computed for each pixel besides its class: three keys of a report."""
    needed, kind = job.wanted.thresholds, job.wanted.probabilities
    named = dict(zip(job.card.dataset.classes, needed, strict=True)) if needed else {}
    return {
        "probabilities": kind,
        "thresholds": {name: share for name, share in named.items() if share} or None,
        "unsure": job.wanted.unsure if needed else None,
    }


def device_name(device: torch.device) -> str:
    """The name of a device in a report."""
    from memorysam_cli.engine import runtime

    return str(runtime.describe(device)["device"])


Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class RunOptions:
    """How a job is run; does not affect its results."""

    device: str = "auto"
    workers: int = 2
    """Number of worker processes that load data (with Ray: threads)."""
    skip_bad: bool = False
    """List unreadable scenes and continue; otherwise the first one ends the run."""
    shard: Shard | None = None
    engine: Engine = "local"
    overwrite: bool = False
    """Start over, also in a folder with other files, or with an unfinished prediction of another job."""
    resume: bool = False
    """Continue or start; never replace a prediction, even a finished one."""

    def refuse(self, *, precision: str, follows: bool = False) -> None:
        """Refuse options that do not fit the machine or each other, before anything is read.

        Args:
            precision: of the computing.
            follows: whether scenes are taken from a folder as they arrive.

        Raises:
            UsageError: the message names the option; or Ray is not installed.
            EnvironmentFault: the device is missing.
        """
        surroundings.refuse_malformed()
        is_on_ray, is_shared = self.engine == "ray", self.shard is not None or surroundings.world() > 1
        if follows and (is_on_ray or is_shared):
            raise UsageError("--follow: is the work of one process; leave --shard, --engine ray and torchrun out")
        if not is_on_ray:
            surroundings.refuse_device(self.device, precision=precision)
            return
        if is_shared:
            raise UsageError("--engine ray: divides the scenes itself; leave --shard and torchrun out")
        surroundings.refuse_missing_extra("ray", option="--engine ray")
        if self.device not in {"auto", "cpu", "cuda"}:
            raise UsageError(
                f"--device {self.device}: on Ray it must be auto, cpu or cuda; Ray gives each actor its GPU"
            )


def plan(
    weights: Path,
    *,
    scenes: Path | None = None,
    data: Path | None = None,
    split: str | None = None,
    modalities: Sequence[str] | None = None,
    renames: Sequence[str] | None = None,
    layout: Layout | None = None,
    limit: int | None = None,
    view: View | None = None,
    extras: Sequence[str] = (),
    batch: int = 4,
    precision: str = "fp32",
    is_compiled: bool = False,
    strict: bool = False,
    probabilities: Share | None = None,
    thresholds: Sequence[str] = (),
    unsure: str | None = None,
    follows: bool = False,
) -> Job:
    """Find the scenes, and report what is unusual about them.

    Args:
        weights: a weights file.
        scenes: the argument SCENES, if given.
        data: the data root, if given; used if SCENES is not given.
        split: only this split of a prepared data set.
        modalities: names, if some were chosen.
        renames: from ``--map``.
        layout: the files of these scenes and how they pair; None: as stored in the weights, if they have it.
        limit: only the first scenes, up to this number.
        view: scales, flips and tiles.
        extras: extra pictures besides the masks.
        batch: the largest number of scenes in a forward pass.
        precision: of the computation.
        is_compiled: whether the network's blocks are compiled.
        strict: refuse scenes whose values differ from those in training, instead of a warning.
        probabilities: ``float16`` or ``uint8`` to write the probabilities of all classes.
        thresholds: from ``--threshold``.
        unsure: from ``--unsure``.
        follows: the scenes will arrive later.

    Raises:
        WeightsError: the weights are refused.
        UsageError: an unknown modality or class, a wrong ``--map`` or ``--threshold``, or a split of scenes that are
            not prepared.
        DataError: no scenes, an ambiguous tree, scenes whose outputs would be the same file, or different values with
            ``strict``.
    """
    card = read_card(weights)
    chosen = choose_modalities(card.modalities, modalities)
    names = [modality.name for modality in chosen]
    classes = card.dataset.classes
    wanted = what_is_wanted(
        classes, read_thresholds(thresholds, classes), unsure=unsure, probabilities=probabilities
    )  # fmt: skip
    extras = (*extras, *(["probabilities"] if probabilities else []))
    aliases = read_aliases(renames, names)
    where = scenes or manifests.prepared_root(
        run_folder.data_root(run_folder.run_of(weights), data), dataset=card.dataset.name
    )
    if layout is not None:
        layout = layout.model_copy(update={"modalities": by_frame(layout.modalities, names)})
        _refuse_unknown_sensors(layout, names)
    if follows:
        _refuse_following(where, split=split, dataset=card.dataset.name)
        source = inputs.PredictionInputs(where, (), ())
    else:
        source = inputs.discover(
            where, modalities=names, aliases=aliases, split=split, dataset=card.dataset.name,
            layout=layout or card.dataset.layout, is_asked=layout is not None,
        )  # fmt: skip
    found = source.scenes[:limit]
    refuse_collisions(found)
    if scenes is None and data is None:
        console.note(f"scenes of {shown(where)}; others are given as SCENES, or by --data")
    for text in source.notes:
        console.note(text)
    job = Job(
        weights, tensors.sha256(weights), card, found, source.root, str(where), chosen, tuple(extras), view or View(),
        batch, precision, is_compiled, wanted, follows, tuple(aliases.items()) if follows else (),
        layout=(layout or card.dataset.layout) if follows else None, is_asked=follows and layout is not None,
    )  # fmt: skip
    remark(job, strict=strict)
    return job


def remark(job: Job, *, strict: bool) -> None:
    """Report what is unusual about a job's scenes.

    Raises:
        DataError: their values differ from those in training, and ``strict``.
    """
    sizes = frame_sizes(job.scenes, root=job.root, modalities=job.modalities)
    for text in (
        *doubts(job.scenes, root=job.root, modalities=job.modalities),
        *notes_on_sizes(sizes, size=job.card.image_size, tile=job.view.tile),
    ):
        console.note(text)
    for text in (
        *unlike_training(job.card.dataset, job.root, job.scenes, job.modalities, strict=strict),
        *tell_untrained(job.card.recipe, job.untrained, job.view, of=len(job.scenes)),
    ):
        if surroundings.rank() == 0:
            console.warn(text)


def _refuse_following(where: Path, *, split: str | None, dataset: str) -> None:
    """Refuse to follow a prepared data set or a file.

    Raises:
        UsageError: a prepared data set, or a split of one.
        DataError: a file.
    """
    if not where.is_dir():
        raise DataError(f"{where}: is a file; SCENES must be a folder")
    if split is not None or inputs.is_prepared(where, dataset=dataset):
        raise UsageError(f"--follow: {where} is a prepared data set, which does not grow; leave --follow out")


def what_is_wanted(
    classes: Sequence[str],
    thresholds: Mapping[str, float],
    *,
    unsure: str | None = None,
    probabilities: Share | None = None,
) -> Wanted:
    """What is computed for each pixel.

    Args:
        classes: of the weights.
        thresholds: class → the probability (0 to 1) below which a pixel that it wins gets the value ``unsure``.
        unsure: the value of pixels below it: a class by name or number, or 255 (None).
        probabilities: ``float16`` or ``uint8`` to write the probabilities of all classes.

    Raises:
        UsageError: an unknown class, or a threshold that is not a probability.
    """
    for name, share in thresholds.items():
        if name not in classes:
            hint = did_you_mean(str(name), classes)
            raise UsageError(f"--threshold {name}={share}: the weights know no class '{name}'{hint}")
        if not isinstance(share, numbers.Real) or not 0 <= share <= 1:  # also for NumPy's integers
            raise UsageError(f"--threshold {name}={share}: must be a probability from 0 to 1, such as 0.7")
    if unsure is not None and not thresholds:
        raise UsageError(f"--unsure {unsure}: is for pixels below a threshold; give one with --threshold CLASS=0.7")
    value = classes.index(unsure) if unsure in classes else IGNORE if unsure is None else _number(unsure)
    if value != IGNORE and not 0 <= value < len(classes):
        allowed = f"{IGNORE}, or a class by name or number (0 to {len(classes) - 1})"
        raise UsageError(f"--unsure {unsure}: must be {allowed}{did_you_mean(str(unsure), classes)}")
    needed = tuple(float(thresholds.get(name, 0)) for name in classes) if thresholds else ()
    return Wanted(None, probabilities, needed, value)


def _number(text: str) -> int:
    """An integer from text, or -1."""
    return int(text) if text.isascii() and text.isdigit() else -1


def read_thresholds(texts: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
    """Class → probability, from ``--threshold CLASS=P``.

    Raises:
        UsageError: no ``=``, no number, or a class that has one already.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, share = (part.strip() for part in text.rpartition("="))  # a class may have = in its name
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        if not name or math.isnan(value):
            raise UsageError(f"--threshold {text}: must be CLASS=PROBABILITY, for example '{classes[0]}=0.7'")
        if name in found:
            raise UsageError(f"--threshold {text}: '{name}' has {found[name]:g} already; give one")
        found[name] = value
    return found


def _refuse_unknown_sensors(layout: Layout, known: Sequence[str]) -> None:
    """Refuse patterns for sensors that are not used.

    Raises:
        UsageError: there is one.
    """
    for name in layout.modalities:
        if name not in known:
            raise UsageError(f"--modality {name}=…: '{name}' is not a modality in use{did_you_mean(name, known)}")


def read_aliases(texts: Sequence[str] | None, known: Sequence[str]) -> dict[str, str]:
    """The user's names of the modalities, from ``--map MODALITY=NAME``.

    Raises:
        UsageError: no ``=``, an unused modality, one that is mapped twice, or two with the same name.
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
                f"--map: '{name}' would be both '{other}' and '{modality}'; map each to its own name, or leave "
                "one out with --modalities"
            )
    return aliases


def doubts(scenes: Sequence[Scene], *, root: Path, modalities: Sequence[Modality]) -> list[str]:
    """Differences from training that can be seen in the first scene's headers.

    Args:
        scenes: the scenes to segment.
        root: the folder to which the scenes' paths are relative.
        modalities: the modalities that the model may see.
    """
    notes = []
    first = next((scene for scene in scenes if all(each.name in scene.files for each in modalities)), None)
    if first is not None:
        notes += _resampling(first, root=root, modalities=modalities)
    for modality in modalities:
        path = next((scene.files[modality.name][0] for scene in scenes if modality.name in scene.files), None)
        if modality.kind != "hha" or path is None:
            continue
        with contextlib.suppress(DataError):  # reading the scene reports the problem
            if images.header(root / path).channels == 1:
                notes.append(
                    f"{path}: has one channel, and the weights' '{modality.name}' is depth encoded as HHA, which has "
                    "three; expect poor masks, or make HHA with memorysam prepare hha"
                )
    return notes


def _resampling(scene: Scene, *, root: Path, modalities: Sequence[Modality]) -> list[str]:
    """A line for each sensor of a scene whose resolution differs from the mask's."""
    with contextlib.suppress(DataError):  # reading the scene reports the problem
        sizes = {each.name: images.shape(root / scene.files[each.name][0])[:2] for each in modalities}
        frame = decode.frame_size(sizes, kinds={each.name: each.kind for each in modalities}, label=None)
        if frame is not None:
            return [
                decode.resampling(each, sizes[each.name], frame) for each in modalities if sizes[each.name] != frame
            ]
    return []


def _scene_lines(scenes: Sequence[Scene]) -> Iterator[str]:
    """A line per scene: its name, and its files."""
    for scene in scenes:
        yield documents.to_json([scene.id, {name: list(paths) for name, paths in sorted(scene.files.items())}])


def _digest(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
