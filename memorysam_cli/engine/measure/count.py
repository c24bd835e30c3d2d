"""Memory by counting: the real learner and network run on tensors without values, and their sizes are added up.

A whole update takes a few seconds and almost no memory, on any machine and for any GPU. Three things make this
possible:

* Tensors of the ``meta`` device have sizes and no values. Code that checks for a CPU takes the GPU's path.
* :class:`Tracker` sees every operation below autograd. It knows when each storage is created and freed.
* A few functions are replaced while counting (:func:`_standing_in`): autocast does not support ``meta``, attention
  would store its scores there, and a tensor without values cannot be read.

Not counted: :data:`NOT_COUNTED`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from unittest import mock

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from memorysam_cli.data.loader import Batch
from memorysam_cli.encoders import hiera
from memorysam_cli.engine.infer.decision import class_map
from memorysam_cli.engine.infer.inference import inference_mode
from memorysam_cli.engine.measure import rates
from memorysam_cli.engine.measure.plain import Plain
from memorysam_cli.engine.measure.workload import Frames, made_up_dataset
from memorysam_cli.engine.train import objective
from memorysam_cli.engine.train.objective import Moment, draw, teacher_file
from memorysam_cli.engine.train.update import Learner
from memorysam_cli.losses import ohem
from memorysam_cli.model import Segmenter, WeightsCard, read_card
from memorysam_cli.model.memory import Look, in_turn
from memorysam_cli.model.weights import build_for_measuring
from memorysam_cli.recipe import Recipe

Kind = Literal["cuda", "cpu"]
"""The kind of device: a GPU, or a CPU, whose code uses smaller chunks (without the saver its memory differs by up to a
tenth)."""

NOT_COUNTED = {
    "cuda": (
        "the CUDA context (0.3 to 0.6 GB)", "free blocks that the allocator holds",
        "workspaces of cuDNN and cuBLAS", "buffers that torch.compile plans", "DDP's buckets",
    ),
    "cpu": ("oneDNN's scratch memory", "what malloc keeps", "worker processes that read ahead"),
}  # fmt: skip
"""For each device: memory that a run needs in addition to the count."""

META = torch.device("meta")
_BLOCK = {"cuda": 512, "cpu": 64}
"""Multiple of bytes to which an allocation is rounded up: by CUDA's caching allocator, and by torch's on a CPU."""
_CPU_SHARE = 1 << 14
"""Tokens of a chunk of Hiera's blocks in the count for a CPU. The real chunks have an eighth of this, but with so many
more operations counting would take minutes."""
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CAST = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Count:
    """The memory of some work on a device, in bytes.

    Attributes:
        weights: parameters and buffers, and the average of the trained weights if the recipe has one.
        gradients: of the trained parameters, at the end of the backward pass.
        moments: AdamW's two for each trained weight.
        inputs: the batch.
        activations: everything else that is alive at the end of the forward pass.
        forward: the peak of the forward pass, everything included.
        backward: the peak of the losses and the backward pass, everything included; 0 without them.
    """

    weights: int
    gradients: int
    moments: int
    inputs: int
    activations: int
    forward: int
    backward: int

    @property
    def peak(self) -> int:
        """The peak; the optimizer works in place."""
        return max(self.forward, self.backward, self.weights + self.gradients + self.moments + self.inputs)

    def to_json(self) -> dict[str, int]:
        """The parts and the peak, by name."""
        return {**vars(self), "peak": self.peak}


_WAYS: dict[Any, str] = {}
"""How each operation is treated."""
_RESULTS: dict[Any, tuple[type, list[Any]]] = {}
"""The kind and the shapes of the results of each known call."""


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that are alive, from the operations that create them.

    Sizes of results depend only on sizes of arguments, so each kind of call is computed once. An in-place operation has
    no new result.

    Args:
        kind: decides how allocations are rounded.
    """

    def __init__(self, kind: Kind = "cuda") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._block = _BLOCK[kind]
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the result of an operation, and record its memory."""
        kwargs, way = kwargs or {}, self._way(function)
        if way == "reading":
            return 1  # if a value decides, the branch with work is taken
        if way == "in place" and _is_empty(args[0]):
            return args[0]
        if way != "new":
            result = function(*args, **kwargs)
            self.note(tree_leaves(result))
            return result
        key: Any = (function, _signature(args), _signature(kwargs))
        try:
            made = _RESULTS.get(key)
        except TypeError:  # an argument that is not a plain value
            key = made = None
        if made is None:
            result = function(*args, **kwargs)
            if key is not None and self._is_fresh(result, (args, kwargs)):
                outputs = [result] if isinstance(result, Tensor) else result
                _RESULTS[key] = (type(result), [_shape(output) for output in outputs])
        else:
            kind, shapes = made
            outputs = [None if shape is None else torch.empty_strided(*shape[:2], dtype=shape[2], device=META)
                       for shape in shapes]  # fmt: skip
            result = outputs if kind is list else tuple(outputs) if kind is tuple else outputs[0]
        self.note([result] if isinstance(result, Tensor) else tree_leaves(result))
        return result

    def note(self, values: Iterable[Any]) -> None:
        """Count the storages of new tensors."""
        for value in values:
            if not isinstance(value, Tensor) or not _is_empty(value):
                continue
            storage = value.untyped_storage()
            place = storage._cdata
            if place in self._alive:
                continue
            size = -(-storage.nbytes() // self._block) * self._block
            self._alive[place] = weakref.ref(storage, self._forgetting(place, size))
            self.live += size
            self.peak = max(self.peak, self.live)

    def _forgetting(self, place: int, size: int) -> Callable[[object], None]:
        def forget(_: object) -> None:
            self.live -= size
            del self._alive[place]

        return forget

    def _way(self, function: Any) -> str:
        """How to treat an operation."""
        if function not in _WAYS:
            schema, name = function._schema, function.overloadpacket.__name__
            makes_new = not schema.is_mutable and all(result.alias_info is None for result in schema.returns)
            in_place = name in _IN_PLACE
            way = "reading" if name == "_local_scalar_dense" else "in place" if in_place else "new"
            _WAYS[function] = way if in_place or makes_new else "as it is"
        return _WAYS[function]

    def _is_fresh(self, result: Any, given: Any) -> bool:
        """Whether a result is tensors with their own memory; some operations declare this but return views."""
        outputs = [result] if isinstance(result, Tensor) else result
        if not isinstance(outputs, list | tuple):
            return False
        known = {value.untyped_storage()._cdata for value in tree_leaves(given) if isinstance(value, Tensor)}
        return all(
            output is None
            or (isinstance(output, Tensor) and _is_empty(output) and output.untyped_storage()._cdata not in known)
            for output in outputs
        )


_IN_PLACE = {
    *("add_", "sub_", "mul_", "div_", "addmm_", "addcmul_", "copy_", "zero_", "fill_", "clamp_", "index_put_"),
    *("scatter_add_", "masked_fill_", "bitwise_or_", "logical_or_", "normal_", "uniform_", "sqrt_"),
}
"""Operations that only change the values of their first argument."""


def training(recipe: Recipe, *, classes: int, kind: Kind = "cuda") -> Count:
    """Count an update of a recipe as :class:`~memorysam_cli.engine.train.update.Learner` does it.

    Args:
        recipe: with every modality named; its saver is ``on`` or ``off`` (``auto`` counts as off on a GPU).
        classes: K.
        kind: the kind of device.
    """
    recipe, network = _counted(recipe), skeleton(recipe, classes=classes)
    if (file := teacher_file(recipe)) is not None:
        _teacher_skeleton(file[1])  # created now, because constructors read numbers, which is impossible while counting
    with _counting(kind, recipe.train.precision) as (tracker, accelerator):
        network = _fresh(network)
        tracker.note([*network.parameters(), *network.buffers()])
        weights = tracker.live
        learner = Learner(network, recipe, accelerator=accelerator)
        weights += sum(_rounded(average.nbytes, kind) for average in learner.average.tensors.values())
        before = tracker.live  # prototypes count as activations; they have a few kilobytes
        batches = [_batch(recipe, is_here=place == 0) for place in range(recipe.train.accumulate)]
        tracker.note([*batches[0].frames, batches[0].label])
        inputs = tracker.live - before
        phases = _Phases(tracker, learner, accelerator)
        learner.learn(batches, rate=0.0)
    moments, base = phases.moments, weights + phases.moments + inputs
    return Count(
        weights, phases.gradients, moments, inputs, activations=max(phases.kept + moments - base, 0),
        forward=phases.forward + moments, backward=phases.backward + moments,
    )  # fmt: skip


def validation(recipe: Recipe, *, classes: int, frames: Frames, kind: Kind = "cuda") -> Count:
    """Count scoring one batch of the largest scenes during training: LoRA separate, optimizer moments in memory."""
    network = skeleton(recipe, classes=classes)
    trained = sum(_rounded(parameter.nbytes, kind) for parameter in network.parameters() if parameter.requires_grad)
    average = trained if recipe.optim.ema else 0
    return _looking(recipe, network, frames, kind=kind, precision="fp32", moments=2 * trained, average=average)


def prediction(recipe: Recipe, *, classes: int, frames: Frames | None = None, kind: Kind = "cuda") -> Count:
    """Count segmenting a batch of ``train.batch`` scenes as ``memorysam predict`` does: LoRA merged.

    Args:
        recipe: with every modality named.
        classes: K.
        frames: the network's inputs; None: squares of ``data.image_size``.
        kind: the kind of device.
    """
    frozen = recipe.model_copy(update={"model": recipe.model.model_copy(update={"encoder": "frozen"})})
    network = skeleton(frozen, classes=classes)
    size = recipe.data.image_size
    frames = frames or Frames(((size, size),), (size, size))
    return _looking(recipe, network, frames, kind=kind, precision=recipe.train.precision, moments=0, average=0)


def training_flops(recipe: Recipe, *, classes: int) -> int:
    """FLOP of an update per scene, counted on the plain network, without recomputation.

    The part of ``robust`` is the mean over the first updates of a run.

    Source: :func:`~memorysam_cli.engine.measure.rates.count_flops`. LoRA counts as on queries and values.
    """
    known = recipe.model.lora.model_copy(update={"targets": ("q", "v"), "dora": False, "dropout": 0.0})
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"lora": known})})
    flops = _plain_flops(skeleton(_in_turn(recipe), classes=classes), recipe)
    more = _fusion_flops(recipe, classes=classes) + _second_pass_flops(recipe, classes=classes)
    return flops.training + more + _teacher_flops(recipe)


def _in_turn(recipe: Recipe) -> Recipe:
    """The recipe with the fusion that looks at each sensor once, whose network is the same otherwise."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"fusion": "mean"})})


def _plain_flops(network: Segmenter, recipe: Recipe) -> rates.Flops:
    """FLOP of a scene on the plain network of a skeleton."""
    return _plain_flops_of(network, recipe.model.backbone, recipe.data.image_size, len(recipe.data.modalities))


@functools.cache
def _plain_flops_of(network: Segmenter, backbone: str, size: int, frames: int) -> rates.Flops:
    with META, _NumbersFirst():
        twin = Plain(network, backbone=backbone)
    with Tracker():
        return rates.count_call_flops(twin, [torch.empty(1, 3, size, size, device=META)] * frames)


def _fusion_flops(recipe: Recipe, *, classes: int) -> int:
    """FLOP per scene that a fusion adds to the plain network, which processes each sensor once; both passes.

    The backward pass of a look is twice its forward pass, as in :func:`_second_pass_flops`.
    """
    network, places = skeleton(recipe, classes=classes), range(len(recipe.sensors))
    looks = list(network.fusion.plan(places))
    if looks == in_turn(places):
        return 0
    costs = _look_flops(recipe, classes=classes)
    return 3 * (sum(costs[min(len(look.sees), len(costs) - 1)] for look in looks) - sum(costs))


UPDATES = 64
"""Number of updates whose subsets are drawn to estimate the cost of a second pass."""


def _second_pass_flops(recipe: Recipe, *, classes: int) -> int:
    """FLOP per scene of the second pass of ``robust``: looks that differ from the first pass's, forward and backward.

    Their weights are trained and their inputs have gradients, so the backward pass is twice the forward pass. A frame
    of zeros is encoded once for a whole batch and not counted.
    """
    found = [draw(recipe, Moment(0, update, epochs=1.0)) for update in range(UPDATES)]
    passes = [(each.order, each.places) for each in found if each.places]
    if not passes:
        return 0
    network = skeleton(recipe, classes=classes)
    costs = _look_flops(recipe, classes=classes)
    plan = network.fusion.plan
    looks = (look for order, places in passes for look in _looks_not_shared(network, plan(places), plan(order)))
    return 3 * sum(costs[len(look.sees)] for look in looks) // UPDATES


def _look_flops(recipe: Recipe, *, classes: int) -> Sequence[int]:
    """FLOP of a look at a scene's frame: item n for a look at n memories, the last of which was created for it."""
    return _look_flops_of(skeleton(_in_turn(recipe), classes=classes), recipe.data.image_size, len(recipe.sensors))


@functools.cache
def _look_flops_of(network: Segmenter, size: int, frames: int) -> Sequence[int]:
    totals = [0]
    with _counting("cuda", "fp32"), torch.no_grad():
        fresh = _fresh(network).eval()
        pool = fresh.encode([torch.empty(1, 3, size, size, device=META)], sensors=[0]) * frames
        for length in range(1, len(pool) + 1):
            with FlopCounterMode(display=False) as counter:
                list(fresh.outputs(pool, [range(length)]))
            totals.append(counter.get_total_flops())
    return tuple(after - before for before, after in itertools.pairwise(totals))


def _looks_not_shared(network: Segmenter, looks: Sequence[Look], full: Sequence[Look]) -> Sequence[Look]:
    """The looks of a sequence after the prefix that it shares with the full sequence."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(looks, full, strict=False))
    shared = len(list(pairs))
    # SAM 2.1's pointers depend on the number of frames.
    knows_length = network.sam.add_tpos_enc_to_obj_ptrs and len(looks) != len(full)
    return looks[min(shared, 1) if knows_length else shared :]


def _teacher_flops(recipe: Recipe) -> int:
    """FLOP per scene of a teacher with its own weights: a prediction."""
    file = teacher_file(recipe)
    if file is None:
        return 0
    teacher = recipe.model_copy(update={"model": file[1].recipe.model})
    return _plain_flops(_teacher_skeleton(file[1]), teacher).prediction


def _teacher_skeleton(card: WeightsCard) -> Segmenter:
    """The network of a weights file for prediction, with sizes and no values."""
    model = card.recipe.model.model_copy(update={"encoder": "frozen"})
    return skeleton(card.recipe.model_copy(update={"model": model}), classes=len(card.dataset.classes))


def _without_values(_: Any) -> Any:
    """A weights file as tensors with sizes and no values."""

    def load(path: Path, _device: torch.device) -> Segmenter:
        return _fresh(_teacher_skeleton(read_card(path))).requires_grad_(False).eval()

    return load


def skeleton(recipe: Recipe, *, classes: int) -> Segmenter:
    """The network of a recipe, ready for training, with sizes and no values; needs no weights and no memory.

    It is cached and shared: do not modify it.
    """
    key = f"{recipe.model.model_dump_json()} {recipe.data.modalities} {classes}"
    if key not in _SKELETONS:
        with META, _NumbersFirst():
            _SKELETONS[key] = build_for_measuring(recipe, made_up_dataset(recipe, classes=classes))
    return _SKELETONS[key]


_SKELETONS: dict[str, Segmenter] = {}


class _NumbersFirst(TorchFunctionMode):
    """Lets SAM2's constructors read the few numbers that they create with ``linspace``."""

    def __torch_function__(
        self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return function(*args, **({"device": "cpu"} if function is torch.linspace else {}) | (kwargs or {}))


class _Place:
    """A stand-in for the accelerator, on a device that computes nothing."""

    num_processes, is_main_process, process_index, scaler = 1, True, 0, None

    def __init__(self, precision: str) -> None:
        self.device, self.precision = META, precision
        self.before_backward: Callable[[], None] = lambda: None

    def prepare(self, *things: Any) -> tuple[Any, ...]:
        return things

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return _autocast(self.precision)

    def backward(self, loss: Tensor) -> None:
        self.before_backward()
        loss.backward()  # type: ignore[no-untyped-call]

    def unscale_gradients(self, _optimizer: Any) -> None:
        """Nothing to do: there is no scale."""

    def no_sync(self, _model: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class _Phases:
    """Records what is alive at each phase of an update, through hooks."""

    def __init__(self, tracker: Tracker, learner: Learner, place: Any) -> None:
        self.kept = self.forward = self.backward = self.gradients = self.moments = 0
        self._tracker, self._learner, self._state = tracker, learner, list[Tensor]()
        learner.network.register_forward_pre_hook(lambda *_: self._end("backward"))
        learner.network.register_forward_hook(lambda *_: self._note_kept())
        place.before_backward = lambda: self._end("backward")
        learner.optimizer.step = self._step
        tracker.peak = tracker.live

    def _end(self, phase: str) -> None:
        """The peak since the start of the last phase."""
        setattr(self, phase, max(getattr(self, phase), self._tracker.peak))
        self._tracker.peak = self._tracker.live

    def _note_kept(self) -> None:
        self.kept = max(self.kept, self._tracker.live)
        self._end("forward")

    def _step(self) -> None:
        """The memory of fused AdamW: two moments of each parameter."""
        self._end("backward")
        given = [parameter.grad for parameter in self._learner.parameters.values() if parameter.grad is not None]
        before = self._tracker.live
        self._state = [torch.empty_like(gradient) for gradient in given for _ in range(2)]
        self.moments = self._tracker.live - before
        self.gradients = self.moments // 2


@contextlib.contextmanager
def _counting(kind: Kind, precision: str) -> Iterator[tuple[Tracker, Accelerator]]:
    """Within the block, nothing is computed and every operation is counted."""
    tracker = Tracker(kind)
    with _standing_in(kind), tracker:
        yield tracker, cast(Accelerator, _Place(precision))


def _looking(
    recipe: Recipe, network: Segmenter, frames: Frames, *, kind: Kind, precision: str, moments: int, average: int
) -> Count:
    """Forward passes with the decision, as in scoring and prediction, besides idle memory."""
    with _counting(kind, precision) as (tracker, _):
        network = _fresh(network)
        tracker.note([*network.parameters(), *network.buffers()])
        weights = tracker.live
        with inference_mode(network), _autocast(precision):
            seen, inputs = [], 0
            for height, width in frames.inputs:
                before = tracker.live
                images = _images(recipe, height, width)
                inputs = max(inputs, tracker.live - before)
                seen.append(network.logits(images))
                del images
            kept = tracker.live
            for scenes in zip(*seen, strict=True):
                for logits in scenes:
                    class_map(logits, height=frames.native[0], width=frames.native[1])
    idle = moments + average
    return Count(weights + average, 0, moments, inputs, max(kept - weights, 0), forward=tracker.peak + idle, backward=0)


def _counted(recipe: Recipe) -> Recipe:
    """A recipe without compiled blocks, which cannot be counted."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"compile": False})})


def _fresh(network: Segmenter) -> Segmenter:
    """The network with new tensors, which the tracker sees."""
    known: dict[int, Any] = {id(tensor): empty_like(tensor) for tensor in (*network.parameters(), *network.buffers())}
    for module in network.modules():  # rotary tables: created again for the size of the images, and counted then
        known |= {id(value): value for value in vars(module).values() if isinstance(value, Tensor)}
    return copy.deepcopy(network, known)


def empty_like(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and role without values."""
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


class _Waiting(Batch):
    """A batch in the machine's memory: only its copies on the device are counted."""

    def to(self, device: torch.device | str) -> Batch:
        return Batch([torch.empty_like(frame, device=device) for frame in self.frames], self.label, self.scenes)


def _batch(recipe: Recipe, *, is_here: bool) -> Batch:
    """A training batch, on the device or still to be copied there."""
    size, scenes = recipe.data.image_size, recipe.train.batch
    frames = _images(recipe, size, size)
    label = torch.empty(scenes, size, size, dtype=torch.int64, device=META)
    return (Batch if is_here else _Waiting)(frames, label, ())


def _images(recipe: Recipe, height: int, width: int) -> list[Tensor]:
    """M × (B, 3, H, W)."""
    shape = (recipe.train.batch, 3, height, width)
    return [torch.empty(shape, device=META) for _ in recipe.data.modalities]


def _autocast(precision: str) -> contextlib.AbstractContextManager[Any]:
    """The CPU's autocast state: on ``meta`` only our stand-ins use it, and torch's checkpoints restore it."""
    dtype = _HALF.get(precision)
    return torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)


@contextlib.contextmanager
def _standing_in(kind: Kind) -> Iterator[None]:
    """Replace the functions that ``meta`` does not support; all other calls are unchanged."""
    with contextlib.ExitStack() as stack:
        for owner, name, make in _STAND_INS:
            stack.enter_context(mock.patch.object(owner, name, make(getattr(owner, name))))
        if kind == "cpu":
            stack.enter_context(mock.patch.object(hiera, "LARGE", _CPU_SHARE))
            stack.enter_context(mock.patch.dict(ohem.SLAB_BYTES, {"meta": ohem.SLAB_BYTES["cpu"]}))
        yield


def _known_device(function: Any) -> Any:
    """``torch.autocast`` and the queries of its state, with the CPU's state for ``meta``."""
    return lambda *args, **kwargs: function(*("cpu" if arg == "meta" else arg for arg in args), **kwargs)


def _in_half(function: Any) -> Any:
    return _casting(function, lambda: torch.get_autocast_dtype("cpu"))


def _in_full(function: Any) -> Any:
    return _casting(function, lambda: torch.float32)


def _casting(function: Any, dtype: Callable[[], torch.dtype]) -> Any:
    """A function whose arguments on ``meta`` are cast first, as CUDA's autocast does."""

    def casted(*args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu") and any(isinstance(arg, Tensor) and arg.is_meta for arg in args):
            wanted = dtype()
            args = tuple(_cast(arg, wanted) for arg in args)
            kwargs = {name: _cast(value, wanted) for name, value in kwargs.items()}
        return function(*args, **kwargs)

    return casted


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.dtype in _CAST else value


def _fused_attention(function: Any) -> Any:
    """Attention with the memory of a GPU's fused kernel: it stores queries, keys, values, results and a number per
    row."""

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **more: Any
    ) -> Tensor:
        if not query.is_meta:
            return cast(Tensor, function(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, **more))
        if torch.is_autocast_enabled("cpu"):
            query, key, value = (_cast(part, torch.get_autocast_dtype("cpu")) for part in (query, key, value))
        if query.dtype == torch.float32:
            efficient = torch.ops.aten._scaled_dot_product_efficient_attention
            result: Tensor = efficient(query, key, value, None, torch.is_grad_enabled(), dropout_p)[0]
        else:
            result = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p)[0]
        return result

    return attend


def _ones(function: Any) -> Any:
    """``tolist`` for a tensor without values."""
    return lambda tensor: [1.0] * tensor.numel() if _is_empty(tensor) else function(tensor)


_STAND_INS: Sequence[tuple[Any, str, Callable[[Any], Any]]] = (
    (torch, "autocast", _known_device),
    (torch, "is_autocast_enabled", _known_device),
    (torch, "get_autocast_dtype", _known_device),
    (F, "scaled_dot_product_attention", _fused_attention),
    *((F, name, _in_half) for name in ("conv2d", "conv_transpose2d", "linear")),
    (Tensor, "__matmul__", _in_half),
    (F, "layer_norm", _in_full),
    *((Tensor, name, _in_full) for name in ("pow", "__pow__")),
    (Tensor, "tolist", _ones),
    (objective, "load", _without_values),
)
"""Owner, name, and the function that creates the replacement. Casts are limited to functions that our network and SAM2
call."""


def _is_empty(value: Any) -> bool:
    """Whether a tensor has a size and no values."""
    return bool(value.is_meta)


def _rounded(size: int, kind: Kind) -> int:
    return -(-size // _BLOCK[kind]) * _BLOCK[kind]


def _shape(output: Tensor | None) -> Any:
    """The properties of a new tensor."""
    return None if output is None else (tuple(output.shape), output.stride(), output.dtype)


def _signature(value: Any) -> Any:
    """The properties of an argument that affect the size of a result; unhashable for other arguments."""
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype, value.device.type)
    if isinstance(value, list | tuple):
        return tuple(_signature(part) for part in value)
    if isinstance(value, dict):
        return tuple((name, _signature(part)) for name, part in value.items())
    return (type(value), value)
