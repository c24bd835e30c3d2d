"""SAM 2's Hiera with a faster forward pass over the modules of ``sam2``; the results are the same.

Tokens stay in windows (:mod:`memorysam_cli.encoders.windows`). A block runs on a chunk of them that fits into a CPU's
cache, or on all. In training, a block either stores its activations or computes them again, chunk by chunk, in the
backward pass. The values between the two products of a block's second half are four times as many as the tokens and are
never stored: the backward pass computes them with one more product. On a CPU this costs no more than a GELU that is not
fused into the product. Figures: docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sam2.modeling.backbones.hieradet import Hiera, MultiScaleAttention, MultiScaleBlock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from memorysam_cli.encoders.base import SMALL_HEAD, SMALLER_HEAD, Backbone, Encoder, Head, Level, Published, saving
from memorysam_cli.encoders.products import Linear, adapted, in_product_type, linear, product, scaled_dot_product
from memorysam_cli.encoders.windows import Chunk, TokenOrder, Windows, chunks

CACHED = 2048
"""Tokens of a chunk on a CPU: the widest values of a block then stay in its caches."""
LARGE = 1 << 18
"""Tokens of a chunk on other devices: enough to keep a GPU busy, few enough to limit a block's memory."""
NANO_FILE = Path(__file__).parent.parent / "model" / "nano.safetensors"
NANO_1_FILE = NANO_FILE.with_name("nano-1.safetensors")

Block = Callable[[MultiScaleBlock, Tensor, Sequence[Windows]], Tensor]
"""A block on some windows, differentiable with respect to everything: (T, C) -> (T', C')."""


@dataclass(frozen=True)
class Size:
    """The dimensions in which SAM 2's image encoders differ, from its published configurations."""

    embed_dim: int
    heads: int
    stages: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    position_cells: tuple[int, int] = (7, 7)
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)


SIZES = {
    "nano": Size(32, 1, (1, 2, 2, 1), (4,), windows=(8, 4, 8, 4)),
    "nano-1": Size(24, 1, (1, 2, 2, 1), (4,), windows=(8, 4, 8, 4)),
    "tiny": Size(96, 1, (1, 2, 7, 2), (5, 7, 9)),
    "small": Size(96, 1, (1, 2, 11, 2), (7, 10, 13)),
    "base-plus": Size(112, 2, (2, 3, 16, 3), (12, 16, 20), position_cells=(14, 14)),
    "large": Size(144, 2, (2, 6, 36, 4), (23, 33, 43), windows=(8, 4, 16, 8)),
}


class HieraEncoder(Hiera, Encoder):  # type: ignore[misc]  # sam2 has no types
    """``sam2``'s Hiera with the same parameter names, our forward pass, and LoRA on its attention.

    Hiera computes query, key and value with one ``qkv`` Linear. For LoRA it is split into three, so that PEFT can adapt
    all of q and all of v. For inference the three become one Linear again, as fast as plain SAM 2.
    """

    lora_targets = {"q": r"qkv\.q", "k": r"qkv\.k", "v": r"qkv\.v", "proj": "proj"}  # noqa: RUF012

    def __init__(self, size: Size) -> None:
        super().__init__(
            embed_dim=size.embed_dim,
            num_heads=size.heads,
            stages=size.stages,
            global_att_blocks=size.global_blocks,
            window_pos_embed_bkg_spatial_size=size.position_cells,
            window_spec=size.windows,
        )
        self.channels = tuple(size.embed_dim << stage for stage in range(4))

    def levels(self, images: Tensor, *, saver: bool = False, unit: Callable[..., Any] | None = None) -> Iterator[Level]:
        """As :meth:`Encoder.levels`; see :func:`stages`."""
        return stages(self, images, saver=saver, compiled=unit)

    def unit(self) -> Callable[..., Any]:
        """A block on all tokens at once."""
        return whole

    def lora_pattern(self, targets: Sequence[str]) -> str:
        """The layers of the blocks' attention."""
        inner = [self.lora_targets[name] for name in sorted(targets, key=lambda name: name == "proj")]
        return rf"(.*\.)?blocks\.\d+\.attn\.({'|'.join(inner)})"

    def split_for_lora(self) -> None:
        """Split every block's ``qkv``, in place, into the form that our PEFT adapters need."""
        split(self)

    def join_after_lora(self) -> None:
        """Fuse every block's q, k and v again, in place."""
        for attention in _attentions(self):
            if isinstance(attention.qkv, SplitProjection):
                attention.qkv = attention.qkv.fused()


def stages(trunk: Hiera, images: Tensor, *, saver: bool = False, compiled: Block | None = None) -> Iterator[Level]:
    """The features at the end of each stage, from stride 4 to stride 32.

    Args:
        trunk: SAM2's, with or without LoRA.
        images: (N, 3, H, W), H and W divisible by 32.
        saver: whether every block computes its activations again in the backward pass, or only the blocks that would
            store the most.
        compiled: :func:`whole`, compiled by ``torch.compile``; it then runs every block, on all tokens at once.

    Yields:
        (T, C) tokens and their order; to be used before the next stage is requested.
    """
    cells = trunk.patch_embed(images)  # (N, h, w, C)
    cells = cells + trunk._get_pos_embed(cells.shape[1:3])
    order = TokenOrder(cells.shape[0], cells.shape[1], cells.shape[2], side=trunk.blocks[0].window_size)
    tokens = order.cut(cells)
    learning = torch.is_grad_enabled() and (
        tokens.requires_grad or any(parameter.requires_grad for parameter in trunk.blocks.parameters())
    )
    most = CACHED if tokens.device.type == "cpu" else LARGE
    for number, block in enumerate(trunk.blocks):
        tokens, order = order.moved(tokens, block.window_size)
        # Up to stride 16 a block stores two to four times as much as later blocks, for the same arithmetic.
        again = learning and (saver or number <= trunk.q_pool_blocks[1] or block.q_stride is not None)
        if compiled:
            tokens = saving(again, compiled)(block, tokens, order.windows())
        elif learning:
            tokens = _learn(block, tokens, chunks(order.windows(), most=most), again=again)
        else:
            tokens = _run(block, tokens, chunks(order.windows(), most=most))
        if block.q_stride:
            order = order.halved()
        if number in trunk.stage_ends:
            yield Level(tokens, order)


def whole(block: MultiScaleBlock, tokens: Tensor, groups: Sequence[Windows]) -> Tensor:
    """A block on some windows without any branch: differentiable with respect to everything, and compilable."""
    middle = _attended(block, tokens, groups)
    return middle + FeedForward.of(block)(middle)


def _run(block: MultiScaleBlock, tokens: Tensor, parts: Sequence[Chunk]) -> Tensor:
    """A block without gradients; in place if the number of tokens does not change."""
    half, results = FeedForward.of(block), []
    for part, groups in parts:
        shortcut, change = attend(block, tokens[part], groups, learning=False)
        share = shortcut.add_(change)
        results.append(share.add_(half(share)))
    return tokens if block.dim == block.dim_out else torch.cat(results)


def _learn(block: MultiScaleBlock, tokens: Tensor, parts: Sequence[Chunk], *, again: bool) -> Tensor:
    """A block with gradients.

    Args:
        again: whether to compute its activations again in the backward pass.
    """
    half = FeedForward.of(block)
    has_dropout = any(isinstance(module, nn.Dropout) and module.p for module in block.modules())
    result: Tensor
    if has_dropout or not half.is_frozen or (tokens.device.type != "cpu" and not again):
        result = torch.cat([saving(again, whole)(block, tokens[part], groups) for part, groups in parts])
    elif again:
        trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
        result = _Again.apply(tokens, block, parts, *trained)  # type: ignore[no-untyped-call]
    else:
        middle = torch.cat([_attended(block, tokens[part], groups) for part, groups in parts])
        result = Frugal.apply(middle, half, _ends(block, parts))  # type: ignore[no-untyped-call]
    return result


def _attended(block: MultiScaleBlock, share: Tensor, groups: Any) -> Tensor:
    """The first half of a block."""
    shortcut, change = attend(block, share, groups, learning=True)
    return shortcut + change


def _ends(block: MultiScaleBlock, parts: Sequence[Chunk]) -> list[slice]:
    """The place of each chunk after the block."""
    factor = 4 if block.q_stride else 1
    return [slice(part.start // factor, part.stop // factor) for part, _ in parts]


class _Again(torch.autograd.Function):
    """A block with a frozen second half, chunk by chunk; it stores only its input.

    In the backward pass the first half runs again with gradients; the gradient of the second half needs no second run.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, block: MultiScaleBlock, parts: Sequence[Chunk], *trained: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.block, ctx.parts, ctx.trained = block, parts, trained
        kind = tokens.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        half, results = FeedForward.of(block), []
        for part, groups in parts:
            middle = _attended(block, tokens[part], groups)
            results.append(middle + half(middle))
        return torch.cat(results) if len(results) > 1 else results[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        wants_tokens = ctx.needs_input_grad[0]
        back, sums = [], [torch.zeros_like(parameter) for parameter in ctx.trained]
        kind, dtype, is_on = ctx.autocast
        with torch.autocast(kind, dtype=dtype, enabled=is_on):
            half = FeedForward.of(ctx.block)
            # From the last chunk to the first, the order in which autograd adds up the chunks.
            for (part, groups), end in reversed(list(zip(ctx.parts, _ends(ctx.block, ctx.parts), strict=True))):
                share = tokens[part].detach().requires_grad_(wants_tokens)
                with torch.enable_grad():
                    middle = _attended(ctx.block, share, groups)
                given = half.gradient(middle.detach(), gradient[end])
                leaves = [*([share] if wants_tokens else []), *ctx.trained]
                found = list(torch.autograd.grad(middle, leaves, given))
                if wants_tokens:
                    back.append(found.pop(0))
                for total, one in zip(sums, found, strict=True):
                    total.add_(one)
        return torch.cat(back[::-1]) if wants_tokens else None, None, None, *sums


def attend(
    block: MultiScaleBlock, tokens: Tensor, groups: Sequence[Windows], *, learning: bool
) -> tuple[Tensor, Tensor]:
    """Attention inside windows.

    Args:
        block: a block of Hiera; its ``qkv`` may be one Linear or have LoRA.
        tokens: (T, C), window after window.
        groups: the windows; if the block pools, their sides are even.
        learning: whether a backward pass may follow, which needs the kernels of the forward pass.

    Returns:
        The shortcut and the output of attention to add to it, both (T', C'); T' is a quarter of T if the block pools.
    """
    normed = block.norm1(tokens)
    shortcut = tokens if block.dim == block.dim_out else block.proj(normed)
    lengths = [group.tokens for group in groups]
    parts = [torch.split(part, lengths) for part in project(block.attn.qkv, normed)]
    if block.q_stride:
        shortcut = torch.cat([_pool(*part) for part in zip(torch.split(shortcut, lengths), groups, strict=True)])
        parts[0] = tuple(_pool(*part) for part in zip(parts[0], groups, strict=True))
    # An empty token is zero after the norm: its key and value are the projection of zero.
    is_cut = any(group.missing for group in groups)
    empty = project(block.attn.qkv, normed.new_zeros(1, normed.shape[-1]))[1:] if is_cut else []
    mixed = [
        _mix(query, key, value, group, empty, heads=block.attn.num_heads, learning=learning)
        for query, key, value, group in zip(*parts, groups, strict=True)
    ]
    return shortcut, block.attn.proj(torch.cat(mixed) if len(mixed) > 1 else mixed[0])


def project(layer: nn.Module, tokens: Tensor) -> Sequence[Tensor]:
    """(T, C) -> query, key and value, each (T, C')."""
    if isinstance(layer, SplitProjection):
        return [adapted(part, tokens) for part in (layer.q, layer.k, layer.v)]
    fused: Tensor = layer(tokens)
    return fused.chunk(3, dim=-1)


def _pool(tokens: Tensor, windows: Windows) -> Tensor:
    """(n·h·w, C) -> (n·h/2·w/2, C), the maximum of 2×2 cells; unlike a pooling layer it stores no indices."""
    cells = tokens.view(windows.count, windows.height // 2, 2, windows.width // 2, 2, tokens.shape[-1])
    (a, b), (c, d) = ([cells[:, :, row, :, column] for column in (0, 1)] for row in (0, 1))
    return torch.maximum(torch.maximum(a, b), torch.maximum(c, d)).flatten(0, 2)


def _mix(
    query: Tensor, key: Tensor, value: Tensor, windows: Windows, empty: Sequence[Tensor], *, heads: int, learning: bool
) -> Tensor:
    """Attention in windows of one size: (n·L', C'), (n·L, C'), (n·L, C') -> (n·L', C')."""
    width = query.shape[-1]
    query, key, value = (part.view(windows.count, -1, width) for part in (query, key, value))
    if windows.missing:
        filling = [part.expand(windows.count, windows.missing, width) for part in empty]
        key, value = (torch.cat(pair, dim=1) for pair in zip((key, value), filling, strict=True))
    split = [part.view(*part.shape[:2], heads, width // heads).transpose(1, 2) for part in (query, key, value)]
    mixed = scaled_dot_product(*split, learning=learning)  # (n, heads, L', d)
    return mixed.transpose(1, 2).reshape(-1, width)


class FeedForward(NamedTuple):
    """The weights of a block's second half; those of matrix products in the type of the product."""

    norm_weight: Tensor
    norm_bias: Tensor
    epsilon: float
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor

    @staticmethod
    def of(block: MultiScaleBlock) -> FeedForward:
        """The weights of a block."""
        norm, (first, second) = block.norm2, block.mlp.layers
        products = [in_product_type(t) for t in (first.weight, first.bias, second.weight, second.bias)]
        return FeedForward(norm.weight, norm.bias, norm.eps, *products)

    @property
    def is_frozen(self) -> bool:
        """Whether no weight needs a gradient."""
        return not any(isinstance(weight, Tensor) and weight.requires_grad for weight in self)

    def __call__(self, tokens: Tensor) -> Tensor:
        """(T, C) -> (T, C), the output to add to the tokens; differentiable with respect to everything."""
        full = tokens.to(self.norm_weight.dtype)
        normed = F.layer_norm(full, full.shape[-1:], self.norm_weight, self.norm_bias, self.epsilon)
        return linear(linear(normed, self.weight1, self.bias1, activation="gelu"), self.weight2, self.bias2)

    def gradient(self, tokens: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of ``tokens + self(tokens)`` with respect to the tokens, from that of the sum; the weights are
        frozen."""
        full, dtype, shape = tokens.to(self.norm_weight.dtype), self.weight1.dtype, tokens.shape[-1:]
        norm = (self.norm_weight, self.norm_bias)
        normed, mean, deviation = torch.native_layer_norm(full, shape, *norm, self.epsilon)
        inner = product(normed.to(dtype), self.weight1, self.bias1)
        outer = product(gradient.to(dtype), self.weight2.t())
        back = product(torch.ops.aten.gelu_backward(outer, inner), self.weight1.t()).to(full.dtype)
        through: Tensor = torch.ops.aten.native_layer_norm_backward(
            back, full, shape, mean, deviation, *norm, [True, False, False]
        )[0]
        return gradient + through.to(gradient.dtype)


class Frugal(torch.autograd.Function):
    """``tokens + half(tokens)`` by slices of rows, with frozen weights; stores only the tokens."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, half: FeedForward, slices: Sequence[slice]) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.half, ctx.slices = half, slices
        return torch.cat([tokens[part] + half(tokens[part]) for part in slices])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (tokens,) = ctx.saved_tensors
        return torch.cat([ctx.half.gradient(tokens[part], gradient[part]) for part in ctx.slices]), None, None


class SplitProjection(nn.Module):
    """Hiera's fused ``qkv`` as three Linear layers ``q``, ``k`` and ``v``, initialized with its slices."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        rows = fused.out_features // 3
        parts = [Linear(fused.in_features, rows).to(fused.weight) for _ in "qkv"]
        with torch.no_grad():
            for index, part in enumerate(parts):
                part.weight.copy_(fused.weight[index * rows : (index + 1) * rows])
                part.bias.copy_(fused.bias[index * rows : (index + 1) * rows])
        self.q, self.k, self.v = parts

    def forward(self, tokens: Tensor) -> Tensor:
        """(…, d_in) -> (…, 3·d_out), in the order q, k, v."""
        return torch.cat([self.q(tokens), self.k(tokens), self.v(tokens)], dim=-1)

    def fused(self) -> Linear:
        """The three layers as one Linear."""
        parts, weight = (self.q, self.k, self.v), self.q.weight
        fused = Linear(weight.shape[1], 3 * weight.shape[0], device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            fused.weight.copy_(torch.cat([part.weight for part in parts]))
            fused.bias.copy_(torch.cat([part.bias for part in parts]))
        return fused


def split(trunk: Hiera) -> None:
    """Split every block's ``qkv``, in place, into the form that our PEFT adapters need.

    ``peft.PeftModel.from_pretrained(trunk, folder)`` then loads the output of ``memorysam weights export --format
    peft``.
    """
    for attention in _attentions(trunk):
        attention.qkv = SplitProjection(attention.qkv)


def _attentions(trunk: Hiera) -> list[MultiScaleAttention]:
    return [block.attn for block in trunk.blocks]


def _published(version: str, size: str, sha256: str) -> Published:
    return Published(
        f"facebook/{version}-hiera-{size}", f"{version}_hiera_{size.replace('-', '_')}.pt", sha256
    )  # fmt: skip


PUBLISHED = {
    f"{version}-hiera-{size}": _published(version, size, sha256)
    for version, size, sha256 in (
        ("sam2", "tiny", "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125"),
        ("sam2", "small", "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3"),
        ("sam2", "base-plus", "d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071"),
        ("sam2", "large", "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b"),
        ("sam2.1", "tiny", "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"),
        ("sam2.1", "small", "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"),
        ("sam2.1", "base-plus", "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"),
        ("sam2.1", "large", "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"),
    )
}
"""SHA-256 sums: METHOD §8."""


def _backbone(name: str) -> Backbone:
    """A published variant of SAM 2."""
    version, _, size = name.partition("-hiera-")
    head = Head(is_sam21=version == "sam2.1")
    return Backbone(partial(HieraEncoder, SIZES[size]), head, published=PUBLISHED[name])


NANO = Backbone(partial(HieraEncoder, SIZES["nano"]), SMALL_HEAD, packaged=NANO_FILE)
NANO_1 = Backbone(partial(HieraEncoder, SIZES["nano-1"]), SMALLER_HEAD, packaged=NANO_1_FILE)
"""An earlier, narrower nano; weights trained on it still load."""
SAM2_TINY = _backbone("sam2-hiera-tiny")
SAM2_SMALL = _backbone("sam2-hiera-small")
SAM2_BASE_PLUS = _backbone("sam2-hiera-base-plus")
SAM2_LARGE = _backbone("sam2-hiera-large")
SAM21_TINY = _backbone("sam2.1-hiera-tiny")
SAM21_SMALL = _backbone("sam2.1-hiera-small")
SAM21_BASE_PLUS = _backbone("sam2.1-hiera-base-plus")
SAM21_LARGE = _backbone("sam2.1-hiera-large")
