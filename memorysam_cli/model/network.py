"""MemorySAM: SAM2's video memory across the modalities of a scene; and which of its tensors are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from memorysam_cli.encoders.base import Encoder, Level
from memorysam_cli.encoders.products import linear, use_fast_linears
from memorysam_cli.model.backbone import set_grid
from memorysam_cli.model.fusion import Fusion, Mean, Output, Pass, open_logits, refuse_impossible
from memorysam_cli.model.memory import EncodedFrame, Notes, Step, Tree

NOTES = "notes."
"""Name of the additions to the memories."""
PROJECTION = "projection."
"""Name of the projection that joins the frames of a sensor."""

FRESH = (
    "sam.sam_mask_decoder.mask_tokens.",
    "sam.sam_mask_decoder.output_hypernetworks_mlps.",
    "sam.sam_mask_decoder.iou_prediction_head.",
    "fusion.",
    NOTES,
    PROJECTION,
)
"""Parts that are newly initialized: SAM2 has them for its own four masks instead of classes, or not at all."""

ENCODER = "sam.image_encoder."

MEMORY = (
    "sam.memory_attention.",
    "sam.memory_encoder.",
    "sam.maskmem_tpos_enc",
    "sam.no_obj_ptr",
    "sam.no_obj_embed_spatial",
    "sam.obj_ptr_tpos_proj.",
    NOTES,
)
"""Parts that work only between frames; with one modality they get no gradient and are frozen."""

FROZEN = (
    ENCODER,
    "sam.sam_prompt_encoder.",
    "sam.obj_ptr_proj.",
    "sam.sam_mask_decoder.iou_prediction_head.",
    "sam.sam_mask_decoder.pred_obj_score_head.",
    # They do not affect the result, so they get no gradient:
    "sam.sam_mask_decoder.output_hypernetworks_mlps.0.",
    "sam.mask_downsample.",
    "sam.no_mem_pos_enc",
)


class Projection(nn.Module):
    """Joins the frames of a sensor into one of three channels, by a learned 1×1 projection of all of them.

    It has no bias, so frames of zeros, which mean a missing sensor, stay zeros. Initially each channel is the mean of a
    third of the sensor's channels in their order, because neighboring bands and time bins are most similar.

    Args:
        sensors: the sensors in the order of the memory, each with the places of its frames among the recipe's
            modalities. If there are none, or each has one frame, nothing changes.
    """

    def __init__(self, sensors: Mapping[str, Sequence[int]] | None = None) -> None:
        super().__init__()
        places = {name: tuple(each) for name, each in (sensors or {}).items()}
        self.sensors = places if any(len(each) > 1 for each in places.values()) else {}
        self.frames = sum(map(len, self.sensors.values()))
        for name, each in self.sensors.items():
            if len(each) > 1:
                start = torch.eye(3).repeat_interleave(len(each), dim=1) / len(each)  # (3, 3n)
                self.register_parameter(_weight(name), nn.Parameter(start))

    def groups(self, sensors: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Group frames by sensor: the sensor's place in the memory's order, and the numbers of its frames.

        Args:
            sensors: for each frame its place among the recipe's modalities, as in :meth:`MemorySAM.encode`.
        """
        if not self.sensors:
            return [(place, [number]) for number, place in enumerate(sensors)]
        numbers = {place: number for number, place in enumerate(sensors)}
        found = [
            (sensor, [numbers[place] for place in places if place in numbers])
            for sensor, places in enumerate(self.sensors.values())
        ]
        return [(sensor, given) for sensor, given in found if given]

    def forward(self, frames: Sequence[Tensor], sensors: Sequence[int]) -> tuple[list[Tensor], list[int]]:
        """One frame of each sensor.

        Args:
            frames: (B, 3, H, W) each. If some frames of a sensor are missing, their channels are zeros.
            sensors: as in :meth:`groups`.

        Returns:
            (B, 3, H, W) for each sensor that has any frame, and its place in the memory's order.
        """
        groups = self.groups(sensors)
        if not self.sensors:
            return list(frames), list(sensors)
        names = list(self.sensors)
        joined = [
            self._join(names[sensor], {sensors[number]: frames[number] for number in given}) for sensor, given in groups
        ]
        return joined, [sensor for sensor, _ in groups]

    def _join(self, name: str, given: Mapping[int, Tensor]) -> Tensor:
        """Some frames of a sensor, (B, 3, H, W) each, -> (B, 3, H, W)."""
        places, (some, *_) = self.sensors[name], given.values()
        if len(places) == 1:
            return some
        channels = [given[place] if place in given else torch.zeros_like(some) for place in places]
        weight: Tensor = getattr(self, _weight(name))
        return F.conv2d(torch.cat(channels, dim=1), weight[:, :, None, None])  # (B, 3n, H, W) -> (B, 3, H, W)


def _weight(sensor: str) -> str:
    """Parameter name of a sensor's projection; the name has no dot."""
    return f"{sensor.replace('.', '_')}_weight"


class MemorySAM(nn.Module):
    """The network: M aligned images in, class logits out.

    Args:
        sam: a SAM2 network from :func:`memorysam_cli.model.backbone.build_sam2`.
        classes: K, the number of the decoder's class tokens that the data set uses (imported weights may have more).
        object_gate: whether SAM2's object score may exclude a frame (METHOD §1.5).
        fusion: how the frames' results become one; None: their mean, as in the paper.
        notes: additions to the memories; None: as in the paper.
        projection: which frames belong to one sensor; None: each frame is a separate sensor.

    Source: MemorySAM (arXiv 2503.06700), METHOD §1.
    """

    def __init__(
        self,
        sam: SAM2Base,
        *,
        classes: int,
        object_gate: bool = True,
        fusion: Fusion | None = None,
        notes: Notes | None = None,
        projection: Projection | None = None,
    ) -> None:
        super().__init__()
        use_fast_linears(sam)
        self.sam = sam
        self.fusion = Mean() if fusion is None else fusion
        self.notes = Notes(sam.mem_dim) if notes is None else notes
        self.projection = Projection() if projection is None else projection
        self.classes = classes
        self.object_gate = object_gate
        self.saver = False
        self._unit: Callable[..., Any] | None = None
        self._grid: tuple[int, int, torch.device] | None = None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = self.sam.no_mem_embed.device
        return device

    @property
    def encoder(self) -> Encoder:
        """The encoder, which turns a frame into features."""
        encoder: Encoder = self.sam.image_encoder.trunk
        return encoder

    def compile_blocks(self, *, mode: str | None = None) -> None:
        """Compile one function for each kind of the encoder's blocks with ``torch.compile``, at its first run.

        Frames are then encoded one modality at a time, so that the code compiled for a batch works for any number of
        modalities. A new batch or image size is compiled again.

        Args:
            mode: of ``torch.compile``; "reduce-overhead", CUDA graphs, is not measured.
        """
        # Hiera has eight kinds of blocks (stages, changes of stage, global ones), each with and without gradients.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        self._unit = torch.compile(self.encoder.unit(), mode=mode)

    def use_plain_encoder(self) -> None:
        """Make the encoder run its blocks without branches and in-place operations, as an export needs."""
        self._unit = self.encoder.unit()

    @overload
    def forward(self, frames: Sequence[Tensor], *, sensors: Sequence[int] | None = None) -> Output: ...

    @overload
    def forward(
        self, frames: Sequence[Tensor], passes: Sequence[Sequence[int]], alone: Sequence[int] = ()
    ) -> list[Pass]: ...

    def forward(
        self,
        frames: Sequence[Tensor],
        passes: Sequence[Sequence[int]] | None = None,
        alone: Sequence[int] = (),
        *,
        sensors: Sequence[int] | None = None,
    ) -> Output | list[Pass]:
        """Run the memory across the frames; once, or in several passes over the same encodings.

        Args:
            frames: M tensors (B, 3, H, W), normalized, in the order of the recipe; H and W divisible by 32.
            passes: for each pass, the places of the sensors that it sees, in their order. Without a projection these
                are places in ``frames``. M + N means a frame of zeros instead of sensor N of M. None: one pass over all
                sensors, in the order of the recipe.
            alone: the numbers of the passes for which the logits of each single frame are also returned.
            sensors: as in :meth:`encode`.

        Returns:
            The output of the only pass, or of each of several.

        Raises:
            ValueError: no frame, unequal shapes, a size that is not divisible by 32, or sensors that are not given and
                cannot be inferred.
        """
        pool = self.encode(frames, sensors=sensors)
        if passes is None:
            _, output = next(self.outputs(pool, [range(len(pool))]))
            return output
        count = len(pool)
        if any(place >= count for places in passes for place in places):
            (zero,) = self.encode([torch.zeros_like(frames[0][:1])], sensors=[0])
            pool = [*pool, *(zero.expand(len(frames[0]), sensor=frame.sensor) for frame in pool)]
        found = {
            number: Pass(self.fusion.join(steps), _last_looks(steps) if number in alone else [])
            for number, steps in self._walk(pool, passes)
        }
        return [found[number] for number in range(len(passes))]

    def encode(self, frames: Sequence[Tensor], *, sensors: Sequence[int] | None = None) -> list[EncodedFrame]:
        """Encode all frames at once; frames of one sensor are joined first. Encodings do not depend on each other.

        Args:
            frames: as in :meth:`forward`.
            sensors: the place of each frame's sensor in the recipe's ``data.modalities``; None: all of them in that
                order. A network that distinguishes sensors needs it if some are missing.

        Raises:
            ValueError: as in :meth:`forward`.
        """
        _check(frames)
        return self.encode_joined(*self.projection(frames, self._which(frames, sensors)))

    def encode_joined(self, frames: Sequence[Tensor], sensors: Sequence[int]) -> list[EncodedFrame]:
        """As :meth:`encode`, with one frame per sensor.

        Args:
            frames: (B, 3, H, W) each, from :class:`Projection`.
            sensors: their places in the memory's order.
        """
        batch = frames[0].shape[0]
        calls = frames if self._unit else [torch.cat(list(frames))]  # (M·B, 3, H, W)
        levels = zip(*(self._pyramid(call) for call in calls), strict=True)
        are_together = len(calls) < len(frames)
        fine, middle, coarse = (
            [piece for part in level for piece in (torch.split(part, batch) if are_together else [part])]
            for level in levels
        )
        position = self.sam.image_encoder.neck.position_encoding(coarse[0][:1]).to(coarse[0].dtype)
        positions = [position.expand(batch, -1, -1, -1)] * len(frames)
        return [EncodedFrame(*parts) for parts in zip(fine, middle, coarse, positions, sensors, strict=True)]

    def _which(self, frames: Sequence[Tensor], sensors: Sequence[int] | None) -> Sequence[int]:
        """The sensors of some frames; an error if they cannot be inferred."""
        known = self.projection.frames or (None if self.notes.sensors is None else len(self.notes.sensors))
        if sensors is None:
            if known not in {None, len(frames)}:
                raise ValueError(f"frames: {len(frames)} of {known} sensors; name them with sensors=")
            return range(len(frames))
        is_known = known is None or all(0 <= each < known for each in sensors)
        if len(sensors) != len(frames) or not is_known or (self.projection.frames and len({*sensors}) < len(sensors)):
            raise ValueError(f"sensors: {list(sensors)}; needs {len(frames)} places among {known or 'all'} sensors")
        return sensors

    def outputs(self, pool: Sequence[EncodedFrame], sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, Output]]:
        """Run the memory across many sequences of encoded frames.

        Args:
            pool: frames from :meth:`encode`, all of one batch size and image size.
            sequences: each lists places in ``pool``, from which the fusion makes its plan.

        Yields:
            A sequence's number and its output, as soon as it is known. The output equals that of :meth:`forward` on its
            frames. Common prefixes are computed once (with SAM 2.1, whose pointers depend on the number of frames, only
            between sequences of the same length).

        Raises:
            ValueError: a sequence is empty, or the fusion's plan is impossible.
        """
        for number, steps in self._walk(pool, sequences):
            yield number, self.fusion.join(steps)

    def _walk(
        self, pool: Sequence[EncodedFrame], sequences: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, list[Step]]]:
        """As :meth:`outputs`, but with the looks instead of their result."""
        if not all(sequences):
            raise ValueError("sequences: each needs at least one frame")
        plans = [self.fusion.plan(places) for places in sequences]
        for looks, places in zip(plans, sequences, strict=True):
            refuse_impossible(looks, places)
        grid = pool[0].coarse.shape[-2:]
        self._use_grid(*grid)
        # The gaussian matrix is a buffer that moves with the network; the embedding is a few thousand cosines.
        dense_position = self.sam.sam_prompt_encoder.pe_layer(grid).unsqueeze(0)
        tree = Tree(
            self.sam, self.notes, pool, plans, gate=self.object_gate, dense_position=dense_position, saver=self.saver
        )  # fmt: skip
        yield from tree.walk()

    def logits(self, frames: Sequence[Tensor], *, sensors: Sequence[int] | None = None) -> Tensor:
        """The class logits at the size of the frames.

        Args:
            frames: as in :meth:`forward`.
            sensors: as in :meth:`encode`.

        Returns:
            (B, K, H, W) float32.
        """
        return self.upsample(self(frames, sensors=sensors), size=(frames[0].shape[-2], frames[0].shape[-1]))

    def upsample(self, output: Output, *, size: tuple[int, int]) -> Tensor:
        """Upsample the logits of the data set's classes to pixels.

        Upsampling is linear and its weights add up to 1, so averaging the modalities first equals the reference's M
        upsamplings with 1/M of the memory. Only open frames are averaged, and the gate's constant is added last: added
        earlier, −1024 would cost the class logits precision.

        Args:
            output: from :meth:`forward`.
            size: H and W.

        Returns:
            (B, K, H, W) float32.

        Source: METHOD §1.
        """
        logits = output.logits[:, : self.classes]  # imported weights may have more tokens than classes
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False) + output.gate_shift

    def _pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, H, W) -> features at stride 4, 8, 16, the first two after ``conv_s0`` and ``conv_s1``.

        This is SAM2's neck without its position encodings: nothing reads those of stride 4 and 8, and they would need a
        third of a gigabyte for four images of 1024 pixels. Its 1×1 convolutions are computed as products of tokens. Two
        in a row are merged into one, so that the 256 channels between them are never computed.
        """
        neck, decoder = self.sam.image_encoder.neck, self.sam.sam_mask_decoder
        convolutions: list[list[nn.Conv2d]] = [[level.conv] for level in reversed(neck.convs)]
        convolutions[0].append(decoder.conv_s0)
        convolutions[1].append(decoder.conv_s1)
        levels = zip(self.encoder.levels(images, saver=self.saver, unit=self._unit), convolutions, strict=True)
        fine, middle, coarse, top = (_map(level, chain) for level, chain in levels)
        return fine, middle, coarse + F.interpolate(top.float(), scale_factor=2.0, mode=neck.fpn_interp_model)

    def _use_grid(self, height: int, width: int) -> None:
        """Rebuild SAM2's tables if the image size or the device changes."""
        grid = (height, width, self.device)
        if grid != self._grid:
            # SAM2 keeps the position encodings of every size it ever saw: gigabytes in a folder of mixed sizes.
            for encoding in (self.sam.image_encoder.neck.position_encoding, self.sam.memory_encoder.position_encoding):
                encoding.cache.clear()
            set_grid(self.sam, height, width)
            self._grid = grid


def _last_looks(steps: Sequence[Step]) -> list[Tensor]:
    """The logits of each frame at its last look: (B, tokens, h, w), 0 where gated.

    In the order of the first looks at the frames.
    """
    last = {id(step.frame): step for step in steps}
    return open_logits(list(last.values()))[1]


def _map(level: Level, chain: Sequence[nn.Conv2d]) -> Tensor:
    """One or two 1×1 convolutions on the tokens of frames: (T, C) -> (N, C', h, w)."""
    tokens, order = level
    weight, bias = chain[0].weight.flatten(1), chain[0].bias
    with torch.autocast(tokens.device.type, enabled=False):  # weights are multiplied once, in their own type
        for layer in chain[1:]:
            outer = layer.weight.flatten(1)
            weight, bias = outer @ weight, F.linear(bias, outer, layer.bias)  # type: ignore[arg-type]
    return order.join(linear(tokens, weight, bias)).permute(0, 3, 1, 2).contiguous()


def _check(frames: Sequence[Tensor]) -> None:
    """Refuse frames that the network would silently process wrongly."""
    if not frames:
        raise ValueError("frames: needs at least one modality")
    shape = frames[0].shape
    for index, frame in enumerate(frames):
        if frame.ndim != 4 or frame.shape[1] != 3:
            raise ValueError(f"frames[{index}]: shape {tuple(frame.shape)}; needs (B, 3, H, W)")
        if frame.shape != shape:
            raise ValueError(f"frames[{index}]: shape {tuple(frame.shape)} differs from frames[0]'s {tuple(shape)}")
    if shape[-2] % 32 or shape[-1] % 32:
        raise ValueError(f"frames: {shape[-2]}×{shape[-1]} pixels; height and width must be divisible by 32")


def is_fresh(name: str) -> bool:
    """Whether a tensor of the network is newly initialized instead of loaded from SAM2's checkpoint."""
    return name.startswith(FRESH)


def start_fresh(network: MemorySAM) -> None:
    """Initialize the IoU head: Kaiming normal (fan_in, relu), bias 0. Other new parts keep PyTorch's initial values."""
    for module in network.sam.sam_mask_decoder.iou_prediction_head.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(module.bias)


def set_trainable(network: MemorySAM, *, encoder: Literal["lora", "full", "frozen"], modalities: int) -> list[str]:
    """Set which parameters are trained, by METHOD §2's table, in place.

    Returns:
        The names of the trainable parameters.
    """
    frozen = FROZEN if modalities > 1 else FROZEN + MEMORY
    never = tuple(f"{ENCODER}trunk.{name}" for name in network.encoder.frozen)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
        if name.startswith(ENCODER):
            learns = encoder == "full" and not name.startswith(never)
            parameter.requires_grad_(learns or (encoder == "lora" and ".lora_" in name))
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def count(parameters: Iterable[torch.Tensor]) -> int:
    """The number of scalars."""
    return sum(parameter.numel() for parameter in parameters)
