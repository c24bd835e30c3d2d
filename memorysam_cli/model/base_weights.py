"""Base weights: SAM2's published checkpoints, a local file, or nano's own; loaded completely or not at all.

Every load checks that all required tensors are there in their shape, and no others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from memorysam_cli.encoders.base import Backbone
from memorysam_cli.errors import WeightsError
from memorysam_cli.model import Base
from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.network import MemorySAM, is_fresh
from memorysam_cli.recipe import BACKBONES
from memorysam_cli.registry import ENCODERS
from memorysam_cli.storage import foreign, hub, tensors
from memorysam_cli.text import counted, few, shown, typed_path

Shapes = Mapping[str, tuple[int, ...]]

USUAL = "model.safetensors"
"""The file name that transformers uses in a repository."""
_FITTING = "give the file that belongs to model.backbone"
_NAMES_SHOWN = 3


def load_base(network: MemorySAM, backbone: str, *, source: str, seed: int) -> Base:
    """Fill a network that has no LoRA yet with base weights, in place.

    Args:
        source: ``published``, ``random`` (only for encoders without published weights), or the path of a .pt or
            .safetensors file, with Meta's names or transformers', also ``hf://OWNER/NAME[/FILE]``.
        seed: for ``random``: the seed with which the caller has initialized the network.

    Raises:
        WeightsError: a tensor is missing, extra or of another shape, outside the parts that start fresh.
        NetworkError: the Hub cannot be reached, or sends bytes that differ from the published ones.
    """
    if source == "random":
        if ENCODERS.get(backbone).published is not None:
            raise WeightsError(
                f"model.base_weights: 'random' is not allowed for {backbone}, whose weights are published"
            )
        return Base(backbone=backbone, source=f"random:{seed}", sha256=_digest(network))
    path, label = _find(backbone, source)
    state = tensors.read(path)[0] if path.suffix == ".safetensors" else foreign.read_torch(path)
    state = as_sam2(state) if is_transformers(state) else state
    fill(network, {f"sam.{name}": tensor for name, tensor in state.items()}, where=str(path), backbone=backbone)
    return Base(backbone=backbone, source=label, sha256=tensors.sha256(path))


def reload_base(network: MemorySAM, base: Base, *, where: str) -> None:
    """Fill a network with exactly the base weights that a checkpoint was trained on.

    Args:
        where: the checkpoint, for messages.

    Raises:
        WeightsError: the base cannot be found, or is not the same.
    """
    kind, _, rest = base.source.partition(":")
    source = {"hub": "published", "package": "published", "random": "random", "file": rest, "hf": base.source}[kind]
    if kind == "file" and not Path(rest).is_file():
        raise WeightsError(
            f"{where}: needs its base weights {rest} (SHA-256 {base.sha256[:12]}…), which do not exist; "
            "restore them, or use `memorysam weights merge` where they are"
        )
    found = load_base(network, base.backbone, source=source, seed=int(rest) if kind == "random" else 0)
    if found.sha256 != base.sha256:
        raise WeightsError(
            f"{where}: was trained on base weights with SHA-256 {base.sha256[:12]}…, but {found.source} has "
            f"{found.sha256[:12]}…; use the base it was trained on"
        )


def fill(network: MemorySAM, state: dict[str, Tensor], *, where: str, backbone: str) -> None:
    """Copy base tensors into a network; refuse if any tensor is missing or unexpected."""
    given, wanted = (
        # Named as in SAM2's files.
        {name.removeprefix("sam."): tensor for name, tensor in part.items() if not is_fresh(name)}
        for part in (state, network.state_dict())
    )
    fits = not difference(shapes_of(given), shapes_of(wanted))
    remedy = _FITTING if fits else _resemblance(shapes_of(given), backbone)
    copy_tensors(given, wanted, where=where, whose=backbone, remedy=remedy)


def _resemblance(given: Shapes, backbone: str) -> str:
    """The format that a wrong file seems to have, and what to do with it."""
    if any(".linear_a_q." in name or ".lora_" in name for name in given):
        return "these are MemorySAM's weights, not SAM 2's; `memorysam weights import` takes the authors' .pth"
    counts = {name: fitting(given, base_shapes(name)) for name in BACKBONES}
    if not any(counts.values()):
        prefix = next(iter(given), "").partition(".")[0] + "."
        bare = {name.removeprefix(prefix): shape for name, shape in given.items()}
        if fitting(bare, base_shapes(backbone)):
            return f"its names begin with '{shown(prefix[:80])}', which SAM 2's do not: save it without it"
        return f"it does not look like any of SAM 2's; {_FITTING}"
    looks = max(BACKBONES, key=lambda name: (counts[name], -len(base_shapes(name).keys() ^ given.keys())))
    if looks == backbone:
        return f"it looks like a {backbone} that was changed or is incomplete; get the file again"
    return f"this looks like {looks}; set model.backbone to it, or {_FITTING}"


def base_shapes(backbone: str) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor that a backbone's base weights must have, with the names in SAM2's files."""
    return {name: shape for name, shape in plain_shapes(backbone, tokens=3).items() if not is_fresh(f"sam.{name}")}


@cache
def plain_shapes(backbone: str, *, tokens: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of a SAM2 network without LoRA; do not modify it.

    Args:
        backbone: as for :func:`~memorysam_cli.model.backbone.build_sam2`.
        tokens: as for ``build_sam2``.
    """
    with torch.device("meta"), _RealNumbers():
        return shapes_of(build_sam2(backbone, tokens=tokens).state_dict())


class _RealNumbers(TorchFunctionMode):
    """Runs ``linspace`` on the CPU: Hiera reads its drop-path rates from it, which a tensor without values cannot
    give."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run this one call on the CPU."""
        options = dict(kwargs or {})
        return func(*args, **(options | {"device": "cpu"} if func is torch.linspace else options))


def _find(backbone: str, source: str) -> tuple[Path, str]:
    """The file of a source, downloaded if necessary, and its description for checkpoints."""
    if address := hub.parse_address(source, usual=USUAL):
        return hub.fetch(*address, sha256=None), f"{hub.ADDRESS}{'/'.join(address)}"
    if source != "published":
        path = typed_path(source)
        if not path.is_file():
            raise WeightsError(f"model.base_weights: {path} is not a file")
        return path, f"file:{path.resolve()}"
    spec: Backbone = ENCODERS.get(backbone)
    if spec.packaged is not None:
        if not spec.packaged.is_file():
            raise WeightsError(
                f"{spec.packaged}: {backbone}'s weights are missing from this installation; reinstall memorysam"
            )
        return spec.packaged, "package"
    if (published := spec.published) is None:
        raise WeightsError(
            f"model.base_weights: backbone '{backbone}' has no published weights; set it to random, or to a file"
        )
    path = hub.fetch(published.repository, published.filename, sha256=published.sha256)
    return path, f"hub:{published.repository}/{published.filename}"


def _digest(network: MemorySAM) -> str:
    """SHA-256 over the names and bytes of the base tensors."""
    state = {name: tensor for name, tensor in network.state_dict().items() if not is_fresh(name)}
    return tensors.digest(state)


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of named tensors."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def difference(given: Shapes, wanted: Shapes) -> str:
    """The difference of two sets of shapes, in words such as ``2 missing (a, b)``; empty if they agree."""
    lists = {
        "missing": [name for name in wanted if name not in given],
        "unknown": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} is {given[name]}, not {shape}"
            for name, shape in wanted.items()
            if name in given and given[name] != shape
        ],
    }
    return "; ".join(f"{len(names)} {kind} ({few_names(names)})" for kind, names in lists.items() if names)


def fitting(given: Shapes, wanted: Shapes) -> int:
    """The number of required tensors that are there in their shape."""
    return sum(given.get(name) == shape for name, shape in wanted.items())


def copy_tensors(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, where: str, whose: str, remedy: str
) -> None:
    """Copy tensors into a network's own, in place; all of them or none.

    Args:
        given: from a file.
        wanted: the network's tensors.
        where: the file, for messages.
        whose: the kind of the network's tensors, such as ``sam2-hiera-tiny``.
        remedy: what to do if the file has others.

    Raises:
        WeightsError: a tensor is missing, unknown, of another shape, or has integers instead of weights.
    """
    there, needed = shapes_of(given), shapes_of(wanted)
    if found := difference(there, needed):
        raise WeightsError(
            f"{where}: does not hold the weights of {whose}: {fitting(there, needed)} of {len(needed)} tensors fit; "
            f"{found}; {remedy}"
        )
    # PyTorch would convert them silently.
    if odd := [
        name for name, tensor in wanted.items() if given[name].is_floating_point() != tensor.is_floating_point()
    ]:
        kinds = f"{given[odd[0]].dtype}, not {wanted[odd[0]].dtype}"
        raise WeightsError(
            f"{where}: {counted(len(odd), 'tensor', 'holds')} no weights ({few_names(odd)}: {kinds}); {remedy}"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(given[name])


def few_names(names: list[str]) -> str:
    """The first of some tensors' names."""
    return few([shown(name[:120]) for name in names], _NAMES_SHOWN, is_counted=False)


# SAM 2 with the names of the transformers library: files of its ``Sam2VideoModel`` (``facebook/sam2-hiera-tiny-hf``,
# similar ones, or a network fine-tuned with it) have the same tensors as Meta's. Only names differ, and the four point
# embeddings are one tensor.

MARK = "vision_encoder.backbone."
"""Prefixes of names in these files; no name in Meta's files begins so."""
TWICE = "shared_image_embedding.positional_embedding"
"""A second copy of the prompt encoder's matrix."""
POINTS = "prompt_encoder.point_embed.weight"
"""(4, C): Meta has four tensors of (1, C)."""

_NAMES = {
    r"^vision_encoder\.backbone\.": "image_encoder.trunk.",
    r"^vision_encoder\.neck\.convs\.(\d+)\.": r"image_encoder.neck.convs.\1.conv.",
    r"patch_embed\.projection": "patch_embed.proj",
    r"^prompt_encoder\.shared_embedding\.positional_embedding$": (
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    ),
    r"^prompt_encoder\.mask_embed\.conv1": "prompt_encoder.mask_downscaling.0",
    r"^prompt_encoder\.mask_embed\.layer_norm1": "prompt_encoder.mask_downscaling.1",
    r"^prompt_encoder\.mask_embed\.conv2": "prompt_encoder.mask_downscaling.3",
    r"^prompt_encoder\.mask_embed\.layer_norm2": "prompt_encoder.mask_downscaling.4",
    r"^prompt_encoder\.mask_embed\.conv3": "prompt_encoder.mask_downscaling.6",
    r"^mask_decoder\.upscale_conv1": "mask_decoder.output_upscaling.0",
    r"^mask_decoder\.upscale_layer_norm": "mask_decoder.output_upscaling.1",
    r"^mask_decoder\.upscale_conv2": "mask_decoder.output_upscaling.3",
    r"^(prompt_encoder|mask_decoder)\.": r"sam_\1.",
    r"^memory_encoder\.feature_projection": "memory_encoder.pix_feat_proj",
    r"^memory_encoder\.projection": "memory_encoder.out_proj",
    r"^memory_encoder\.memory_fuser\.": "memory_encoder.fuser.",
    r"\.depthwise_conv\.": ".dwconv.",
    r"\.pointwise_conv(\d)\.": r".pwconv\1.",
    r"^(memory_encoder\.fuser\..*)\.layer_norm\.": r"\1.norm.",
    r"^(memory_encoder\.fuser\..*)\.scale$": r"\1.gamma",
    r"^(memory_encoder\.mask_downsampler)\.final_conv": r"\1.encoder.12",
    r"^memory_attention\.layer_norm\.": "memory_attention.norm.",
    r"\.layer_norm(\d)\.": r".norm\1.",
    r"\.layer_norm_final_attn\.": ".norm_final_attn.",
    r"\.o_proj\.": ".out_proj.",
    r"^memory_temporal_positional_encoding$": "maskmem_tpos_enc",
    r"^no_memory_embedding$": "no_mem_embed",
    r"^no_memory_positional_encoding$": "no_mem_pos_enc",
    r"^no_object_pointer$": "no_obj_ptr",
    r"^occlusion_spatial_embedding_parameter$": "no_obj_embed_spatial",
    r"^temporal_positional_encoding_projection_layer\.": "obj_ptr_tpos_proj.",
    r"^object_pointer_proj\.": "obj_ptr_proj.",
}
"""Patterns and their replacements, applied in this order."""
_DOWNSAMPLER = re.compile(r"^(memory_encoder\.mask_downsampler)\.layers\.(\d+)\.(conv|layer_norm)\.(\w+)$")
_MLP = re.compile(r"^(.*)\.(?:(proj_in)|(proj_out)|layers\.(\d+))\.(weight|bias)$")


def is_transformers(state: Mapping[str, object]) -> bool:
    """Whether a file has the names of transformers."""
    return any(name.startswith(MARK) for name in state)


def as_sam2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ``Sam2VideoModel`` under the names of Meta's files; unknown names do not change."""
    renamed = {sam2_name(name): tensor for name, tensor in state.items() if name not in (TWICE, POINTS)}
    points = {
        f"sam_prompt_encoder.point_embeddings.{place}.weight": row[None]
        for place, row in enumerate(state.get(POINTS, ()))
    }
    return renamed | points


def sam2_name(name: str) -> str:
    """Meta's name of one tensor."""
    for pattern, instead in _NAMES.items():
        name = re.sub(pattern, instead, name)
    if found := _DOWNSAMPLER.match(name):  # a convolution, its norm and an activation without weights, four times
        stem, layer, kind, rest = found.groups()
        return f"{stem}.encoder.{3 * int(layer) + (kind == 'layer_norm')}.{rest}"
    if found := _MLP.match(name):
        stem, first, _, between, rest = found.groups()
        # Those of the transformers' blocks have two layers, heads and pointers three.
        place = 0 if first else int(between) + 1 if between else 1 if stem.endswith(".mlp") else 2
        return f"{stem}.layers.{place}.{rest}"
    return name
