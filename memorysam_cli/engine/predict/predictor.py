"""Prediction from Python: arrays in, class maps out, with the code of ``memorysam predict``.

A scene's arrays replace the files that would contain them; everything after that is the same. A :class:`Predictor` has
one network. Any thread may call it; only the network processes one call at a time.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray

from memorysam_cli.data.decode import ALLOWED
from memorysam_cli.data.loader import unlabeled_scenes
from memorysam_cli.data.manifest import Scene
from memorysam_cli.engine import runtime
from memorysam_cli.engine.infer.decision import probabilities
from memorysam_cli.engine.infer.inference import (
    COMPARED,
    by_frame,
    choose_modalities,
    inference_mode,
    tell_untrained,
    unlike_training,
)
from memorysam_cli.engine.infer.views import OVERLAP, Missing, View
from memorysam_cli.engine.predict.files import SceneFiles
from memorysam_cli.engine.predict.job import Job, what_is_wanted
from memorysam_cli.engine.predict.segment import Seen, look
from memorysam_cli.errors import DataError, UsageError, WeightsError, did_you_mean
from memorysam_cli.model import read_card
from memorysam_cli.storage import tensors
from memorysam_cli.storage.images import InMemory, Stored
from memorysam_cli.text import counted, shown

Sensor = NDArray[Any] | torch.Tensor | str | os.PathLike[str]
"""An array (H, W) or (H, W, C) with the values that a file would have, or the path of such a file."""
SceneInput = Mapping[str, "Sensor | Sequence[Sensor] | None"]
"""Modality → its array or path; a pair (sine, cosine) for an angle; None, or left out, if it is missing."""
Item = TypeVar("Item")
_HERE = Path()
"""The folder to which paths are relative."""
_SCENE = "give a mapping, sensor to array: {'rgb': rgb, 'depth': depth}"
_LEVERS = "use a smaller batch, fewer sensors, no scales, or a device with more memory"


class UnlikeTraining(UserWarning):
    """Warning: a scene differs from those in training, by a sensor's type or range, or by its set of sensors."""


@dataclass(frozen=True)
class GivenScene(Scene):
    """A scene given as arrays or paths."""

    given: Mapping[str, Sequence[Stored]]

    def sources(self, root: Path, modality: str) -> Sequence[Stored]:  # noqa: ARG002  (nothing is below a root)
        """The given values."""
        return self.given[modality]


class Result:
    """The result for one scene, at the scene's own size.

    Attributes:
        classes: (H, W) uint8, the class of each pixel; 255 (or ``unsure``) below a class's threshold.
        confidence: (H, W) float32, the probability of that class.
        class_names: K names, by class number.
        palette: K colors (red, green, blue).
        modalities: the sensors that the network saw, in the order of the memory.
    """

    def __init__(self, seen: Seen, scene: Scene, files: SceneFiles) -> None:
        mask, confidence, _ = seen.decision.arrays()
        assert confidence is not None  # a predictor always wants it
        self.classes: NDArray[np.uint8] = mask
        self.confidence: NDArray[np.float32] = confidence
        self.class_names, self.palette = files.info.classes, files.info.palette
        self.modalities = seen.scene.modalities
        self._logits: torch.Tensor | None = seen.logits
        self._scene, self._files = scene, files

    def __repr__(self) -> str:
        height, width = self.classes.shape
        return (
            f"<Result {height}×{width}, {counted(len(self.class_names), 'class')}, from {', '.join(self.modalities)}>"
        )

    def probabilities(self) -> NDArray[np.float32]:
        """The probability of every class in every pixel: (K, H, W) float32; computed again at each call.

        Raises:
            UsageError: after :meth:`free`.
        """
        if self._logits is None:
            raise UsageError("this result's probabilities were freed; take them before")
        height, width = self.classes.shape
        with torch.inference_mode():
            return probabilities(self._logits, height=height, width=width).cpu().numpy()

    def overlay(self) -> NDArray[np.uint8]:
        """The classes' colors over the RGB picture, or over the first sensor's: (H, W, 3) uint8, RGB.

        Raises:
            DataError: the scene was given as paths, and the file is missing or has changed.
        """
        return self._files.overlay(self._scene, self.modalities, mask=self.classes)

    def free(self) -> None:
        """Free the memory that :meth:`probabilities` needs: K·h·w·4 bytes on the device, h·w at the network's size."""
        self._logits = None


class Predictor:
    """A trained network that segments scenes in memory, with the same bits as ``memorysam predict``.

    Threads may share a predictor; only the network processes one call at a time. A context manager, which closes it.

    Args:
        weights: a ``.safetensors`` file of memorysam.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; a missing device is an error.
        modalities: use only these; None: all modalities of the weights.
        batch: the largest number of scenes of one call in a forward pass, if they have the same size and sensors.
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.
        missing: missing sensors are left out (``drop``) or replaced by zeros (``zero``).
        scales: of test-time augmentation, each also mirrored; none: no augmentation.
        tile: process large frames at their own resolution, in windows.
        tile_overlap: the least overlap, as a share of the side of neighboring windows.
        thresholds: class → the probability below which a pixel that it wins gets the value ``unsure``.
        unsure: the value of pixels below it: 255, or a class by name or number.
        compiled: compile the network first.
        strict: refuse sensors whose type or range differs from training, instead of a warning.
        warm_up: run the network once now; None: on every device but a CPU, where it has no benefit.

    Raises:
        WeightsError: the weights are missing or refused.
        UsageError: an unknown device, sensor, class or precision.
        EnvironmentFault: the device does not exist, or has not enough memory.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        device: str = "auto",
        modalities: Sequence[str] | None = None,
        batch: int = 4,
        precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32",
        missing: Missing = "drop",
        scales: Sequence[float] = (),
        tile: bool = False,
        tile_overlap: float = OVERLAP,
        thresholds: Mapping[str, float] | None = None,
        unsure: int | str | None = None,
        compiled: bool = False,
        strict: bool = False,
        warm_up: bool | None = None,
    ) -> None:
        path = Path(weights)
        if not path.is_file():
            raise WeightsError(
                f"{shown(path)}: {'is not a file' if path.exists() else 'does not exist'}; check the path"
            )
        if batch < 1:
            raise UsageError(f"batch={batch}: must be 1 or more")
        card = read_card(path)
        wanted = what_is_wanted(
            card.dataset.classes, thresholds or {}, unsure=None if unsure is None else str(unsure)
        )  # fmt: skip
        self._device = runtime.choose_device(device)
        runtime.refuse_precision(precision, self._device)
        self._job = Job(
            path, tensors.sha256(path), card, (), _HERE, "arrays", choose_modalities(card.modalities, modalities),
            view=View(missing, tuple(scales), tile, tile_overlap), batch=batch, precision=precision,
            is_compiled=compiled, wanted=replace(wanted, sureness="float32"),
        )  # fmt: skip
        self._strict, self._judged, self._sets = strict, Counter[tuple[str, str]](), set[tuple[str, ...]]()
        self._turn, self._words = threading.Lock(), threading.Lock()
        with runtime.explained(self._device, levers=_LEVERS):
            self._network: Any = self._job.load(self._device).eval()
        if warm_up or (warm_up is None and (self._device.type != "cpu" or compiled)):
            self._warm_up()

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names, by class number."""
        return self._job.card.dataset.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """K colors (red, green, blue)."""
        return self._job.card.dataset.palette

    @property
    def modalities(self) -> tuple[str, ...]:
        """The sensors that a scene may have, in the order of the memory."""
        return tuple(modality.name for modality in self._job.modalities)

    @overload
    def __call__(self, scenes: SceneInput) -> Result: ...

    @overload
    def __call__(self, scenes: Sequence[SceneInput]) -> list[Result]: ...

    def __call__(self, scenes: SceneInput | Sequence[SceneInput]) -> Result | list[Result]:
        """Segment a scene, or several.

        Args:
            scenes: modality → (H, W) or (H, W, C) array, tensor or path, with the values and the channel order (RGB) of
                files; arrays are copied. A sensor with several frames (``ms-1``, ``ms-2``) may have its own name
                (``ms``). A list is a batch, of any sizes.

        Returns:
            A result, or one for each scene, in their order.

        Raises:
            DataError: any problem in a scene, as one line; a call segments all its scenes or none.
            EnvironmentFault: not enough memory.
            UsageError: the predictor is closed.
        """
        if isinstance(scenes, Mapping):
            return self._segment([self._given(scenes, "given")])[0]
        if isinstance(scenes, str | bytes) or not isinstance(scenes, Sequence):
            raise DataError(f"a scene is of type '{type(scenes).__name__}'; {_SCENE}")
        return self._segment([self._given(scene, str(number)) for number, scene in enumerate(scenes)])

    def close(self) -> None:
        """Free the network's memory; results stay usable. Closing twice is fine."""
        with self._turn:
            self._network = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _segment(self, scenes: Sequence[GivenScene]) -> list[Result]:
        """The results of scenes; the same scenes share a forward pass as in ``memorysam predict``."""
        if not scenes:
            return []
        self._compare(scenes)
        job = self._job
        inference, files = job.inference(self._device), job.files(_HERE)
        source = unlabeled_scenes(
            _HERE, scenes=scenes, modalities=job.modalities, size=job.card.image_size, workers=0, tile=job.view.tile
        )  # fmt: skip
        read = [_readable(scene) for scene in source]  # before waiting for the network, so that other threads can read
        with self._turn, runtime.explained(self._device, levers=_LEVERS):
            if self._network is None:
                raise UsageError("this predictor is closed; make another one")
            with inference_mode(self._network):
                seen = [
                    _readable(each)
                    for each in look(
                        self._network, iter(read), inference, classes=len(self.class_names), wanted=job.wanted
                    )
                ]
                if len(seen) > 1:  # a stored result must not keep the other scenes' logits in memory
                    seen = [replace(each, logits=each.logits.clone()) for each in seen]
        return [Result(each, scene, files) for each, scene in zip(seen, scenes, strict=True)]

    def _given(self, scene: SceneInput, name: str) -> GivenScene:
        """A scene of the user in the form that can be read."""
        where = f"scene {name}"
        if not isinstance(scene, Mapping):
            raise DataError(f"{where}: is of type '{type(scene).__name__}'; {_SCENE}")
        known = [modality.name for modality in self._job.card.modalities]
        scene = by_frame(scene, known)
        for key in scene:
            if key not in known:
                hint = did_you_mean(str(key), known)
                raise DataError(f"{where}: the weights know no modality '{shown(key)}'{hint}")
        given = {
            modality: [_stored(part, f"{where}: '{modality}'") for part in _parts(scene[modality])]
            for modality in self.modalities
            if scene.get(modality) is not None
        }
        if not given:
            raise DataError(f"{where}: has none of the modalities {', '.join(self.modalities)}; give one at least")
        files = {modality: tuple(map(str, parts)) for modality, parts in given.items()}
        return GivenScene(name, "", None, None, files, None, given)

    def _compare(self, scenes: Sequence[GivenScene]) -> None:
        """Warn of differences from training: once for each sensor and type, and for each set of sensors."""
        with self._words:
            lines = self._strange(scenes)
            sets = {tuple(scene.given) for scene in scenes} - self._sets
            new = self._job.of([scene for scene in scenes if tuple(scene.given) in sets])
            lines += tell_untrained(new.card.recipe, new.untrained, new.view, of=len(new.scenes))
            self._sets |= sets
        for line in lines:
            warnings.warn(line, UnlikeTraining, stacklevel=4)

    def _strange(self, scenes: Sequence[GivenScene]) -> list[str]:
        """The sensors whose values differ from training.

        A type of a sensor is no longer checked after a warning, or after its first :data:`COMPARED` calls without one,
        because checking every scene of a stream would cost too much. With ``strict``, every scene is checked.
        """
        lines = []
        for modality in self._job.modalities:
            given = [scene for scene in scenes if modality.name in scene.given]
            types = {(modality.name, _type(scene.given[modality.name][0])) for scene in given}
            if self._strict:
                for scene in given:
                    unlike_training(self._job.card.dataset, _HERE, [scene], [modality], strict=True)
            elif any(self._judged[each] < COMPARED for each in types):
                said = unlike_training(self._job.card.dataset, _HERE, given, [modality], strict=False)
                self._judged.update(dict.fromkeys(types, COMPARED if said else 1))
                lines += said
        return lines

    def _warm_up(self) -> None:
        """Run the network once on a scene of zeros with all sensors."""
        job = self._job
        frames = [torch.zeros(1, 3, job.card.image_size, job.card.image_size) for _ in job.modalities]
        inference = job.inference(self._device)
        with (
            runtime.explained(self._device, levers=_LEVERS), inference_mode(self._network), inference.computing()
        ):  # fmt: skip
            inference.logits(inference.shown(self._network), [frames]).cpu()


def _type(source: Stored) -> str:
    """Type of a sensor's values; unknown for a file that was not read."""
    return str(source.array.dtype) if isinstance(source, InMemory) else "file"


def _parts(value: Any) -> Sequence[Any]:
    """Sine and cosine of an angle; otherwise the value alone."""
    return value if isinstance(value, list | tuple) and value else [value]


def _stored(value: Any, name: str) -> Stored:
    """A sensor's values in a form that can be read like a file; arrays are copied, so that the caller may reuse
    them."""
    if isinstance(value, str | os.PathLike):
        return Path(value)
    if isinstance(value, torch.Tensor):
        try:
            value = value.detach().cpu().numpy()
        except (TypeError, RuntimeError) as error:  # bfloat16, sparse
            raise DataError(f"{name}: is a tensor of {value.dtype} that NumPy cannot hold; {ALLOWED}") from error
    if isinstance(value, np.ma.MaskedArray):
        raise DataError(f"{name}: is a masked array; fill it with the value that is not a measurement: array.filled(0)")
    if not isinstance(value, np.ndarray):
        kind = type(value).__name__
        raise DataError(f"{name}: is of type '{kind}'; give an array (H, W) or (H, W, C), a tensor or a path")
    return InMemory(name, np.array(value))


def _readable(found: Item | DataError) -> Item:
    """The value, if it can be read.

    Raises:
        DataError: it cannot.
    """
    if isinstance(found, DataError):
        raise found
    return found
