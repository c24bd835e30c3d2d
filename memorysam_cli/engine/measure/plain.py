"""The same network, run and trained as in the reference; our implementation must give the same results.

It uses SAM2's own modules and methods on the parameters of one of our networks: one encoder call per modality with the
position encodings of all levels; every frame's memory encoded, including the last one's; all K masks upsampled to full
resolution to choose one; M full-resolution maps and then their mean, with the gate's −1024 mixed in before; cross
entropy at full resolution; a loop over the classes in the prototypes. A training step is float32, with anomaly
detection as published (or without, to measure its cost), and waits for the device. Source: METHOD §1–§3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sam2.modeling.sam.transformer import RoPEAttention
from torch import Tensor, nn

from memorysam_cli.data.loader import Batch
from memorysam_cli.dataset import IGNORE
from memorysam_cli.engine import runtime
from memorysam_cli.losses.spmm import REFERENCE_CLASSES, resize_label
from memorysam_cli.model.backbone import STRIDE, build_sam2
from memorysam_cli.model.network import MemorySAM
from memorysam_cli.recipe import Ohem, Recipe, Spmm

ADAPTER = "default"
"""PEFT's default name of an adapter."""


class PlainOutput(NamedTuple):
    """The result of a plain forward pass.

    Attributes:
        logits: (B, K, H, W) mean over the modalities of their full-resolution class logits, gates mixed in.
        features: (B, C/8, H/4, W/4) mean over the modalities of the stride-4 feature map.
    """

    logits: Tensor
    features: Tensor


class Plain(nn.Module):
    """A copy of a network that computes as the reference does.

    It shares the parameters of the network, so a gradient of either belongs to both. The network itself does not
    change. Device and dtype are those of the network when the copy is created; the copy has its own mode (train or
    eval).

    Args:
        network: with LoRA on q and v, or without any.
        backbone: its backbone, one of ``memorysam_cli.recipe.BACKBONES``.

    Raises:
        ValueError: LoRA elsewhere, or of a kind that the reference does not have.
    """

    def __init__(self, network: MemorySAM, *, backbone: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # these random values are replaced
            self.sam = build_sam2(
                backbone, tokens=network.sam.sam_mask_decoder.num_mask_tokens - 1, attention=RoPEAttention
            )
        self.classes, self.projection = network.classes, network.projection
        self.object_gate = network.object_gate
        trunks = self.sam.image_encoder.trunk, network.sam.image_encoder.trunk
        for twin, block in zip(*(trunk.blocks for trunk in trunks), strict=True):
            if hasattr(block.attn.proj, "lora_A"):
                raise ValueError("LoRA: the reference has it on q and v alone")
            twin.attn.qkv = nn.Identity()
        _share(self.sam, network.sam)
        for twin, block in zip(*(trunk.blocks for trunk in trunks), strict=True):
            twin.attn.qkv = _reference_projection(block.attn.qkv)
        if not self.object_gate:  # SAM2 has no such switch, but each use of the score has one
            self.sam.pred_obj_scores, self.sam.no_obj_embed_spatial = False, None
        self.train(network.training)

    def forward(self, frames: Sequence[Tensor]) -> PlainOutput:
        """Run the memory across the frames.

        Args:
            frames: M tensors (B, 3, S, S), normalized; S divisible by 32.

        Raises:
            ValueError: frames that are not square, which SAM2 itself does not support.
        """
        height, width = frames[0].shape[-2:]
        if height != width:
            raise ValueError(f"frames: {height}×{width} pixels; the plain network sees squares alone")
        self._use_size(height)
        sam, maps, fine = self.sam, [], []
        frames, _ = self.projection(frames, range(len(frames)))
        known: dict[str, dict[int, dict[str, Any]]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        for index, frame in enumerate(frames):
            pyramid, features, positions, sizes = sam._prepare_backbone_features(sam.forward_image(frame))
            conditioned = sam._prepare_memory_conditioned_features(
                frame_idx=index, is_init_cond_frame=index == 0, current_vision_feats=features[-1:],
                current_vision_pos_embeds=positions[-1:], feat_sizes=sizes[-1:], output_dict=known,
                num_frames=len(frames),
            )  # fmt: skip
            _, masks, _, _, best, pointer, score = sam._forward_sam_heads(
                conditioned, high_res_features=pyramid["backbone_fpn"][:2], multimask_output=True
            )
            memory, places = sam._encode_new_memory(features, sizes, best, score, is_mask_from_pts=False)
            known["cond_frame_outputs"][index] = {
                "maskmem_features": memory, "maskmem_pos_enc": places, "obj_ptr": pointer
            }  # fmt: skip
            maps.append(masks)  # (B, tokens, S, S)
            fine.append(pyramid["backbone_fpn"][0])
        logits = torch.stack(maps).mean(dim=0)[:, : self.classes]  # (M, B, tokens, S, S) -> (B, K, S, S)
        return PlainOutput(logits, torch.stack(fine).mean(dim=0))

    def logits(self, frames: Sequence[Tensor]) -> Tensor:
        """The class logits at the size of the frames, (B, K, S, S); as :meth:`MemorySAM.logits`."""
        output: PlainOutput = self(frames)
        return output.logits

    def _use_size(self, size: int) -> None:
        """Set the image size in SAM2, whose configuration fixes it."""
        sam, cells = self.sam, size // STRIDE
        sam.image_size, sam.sam_image_embedding_size = size, cells
        sam.sam_prompt_encoder.input_image_size = (size, size)
        sam.sam_prompt_encoder.image_embedding_size = (cells, cells)


class AdditiveProjection(nn.Module):
    """A fused ``qkv`` with low-rank maps of the input added to its q, k and v parts, in place.

    Args:
        weight: (3·d_out, d_in) frozen.
        bias: (3·d_out) frozen.
        maps: which third, A (r, d_in), B (d_out, r) and the scale.
    """

    def __init__(self, weight: Tensor, bias: Tensor, maps: Sequence[tuple[int, nn.Module, nn.Module, float]]) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.thirds, self.scales = [third for third, *_ in maps], [scale for *_, scale in maps]
        self.down = nn.ModuleList([down for _, down, _, _ in maps])
        self.up = nn.ModuleList([up for _, _, up, _ in maps])

    def forward(self, tokens: Tensor) -> Tensor:
        """(…, d_in) -> (…, 3·d_out)."""
        fused = F.linear(tokens, self.weight, self.bias)
        width = fused.shape[-1] // 3
        for third, down, up, scale in zip(self.thirds, self.down, self.up, self.scales, strict=True):
            change = up(down(tokens))
            fused[..., third * width : (third + 1) * width] += change if scale == 1 else scale * change
        return fused


def _reference_projection(projection: nn.Module) -> nn.Module:
    """The reference's form of a block's projection, on the same parameters."""
    if isinstance(projection, nn.Linear):
        return _linear(projection)
    parts = [getattr(projection, name) for name in "qkv"]
    layers = [part.get_base_layer() if hasattr(part, "get_base_layer") else part for part in parts]
    maps = []
    for third, part in enumerate(parts):
        if hasattr(part, "lora_A"):
            if part.use_dora.get(ADAPTER) or not isinstance(part.lora_dropout[ADAPTER], nn.Identity):
                raise ValueError("LoRA: the reference knows neither DoRA nor dropout in it")
            down, up = _linear(part.lora_A[ADAPTER]), _linear(part.lora_B[ADAPTER])
            maps.append((third, down, up, part.scaling[ADAPTER]))
    weight, bias = (torch.cat([getattr(layer, name).detach() for layer in layers]) for name in ("weight", "bias"))
    return AdditiveProjection(weight, bias, maps)


def _linear(layer: nn.Linear) -> nn.Linear:
    """PyTorch's own Linear with the parameters of another layer."""
    twin = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    twin.weight, twin.bias = layer.weight, layer.bias
    return twin


def _share(twin: nn.Module, network: nn.Module) -> None:
    """Replace the parameters and buffers of a network's copy by those of the network."""
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    for path, module in twin.named_modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    own[name] = tensors[f"{path}.{name}".lstrip(".")]


class PlainLesson(NamedTuple):
    """The result of a step.

    Attributes:
        loss: OHEM + λ·SPMM.
        ohem: the cross entropy of the hard pixels.
        spmm: λ times the prototypical adaptation loss.
    """

    loss: float
    ohem: float
    spmm: float


class PlainLearner:
    """A plain network in training.

    Args:
        network: the copy of a network that is ready for training.
        recipe: its losses and optimizer; the reference has no precision, saver, compilation and accumulation.
        detects_anomalies: look for NaN after every step of the backward pass, as the published code does.
    """

    def __init__(self, network: Plain, recipe: Recipe, *, detects_anomalies: bool = True) -> None:
        self.network, self.recipe, self.detects_anomalies = network, recipe, detects_anomalies
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        settings = recipe.optim
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.parameters.values() if p.ndim > 1], "weight_decay": settings.weight_decay},
                {"params": [p for p in self.parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=settings.lr, betas=settings.betas, eps=settings.eps,
        )  # fmt: skip
        width = network.sam.sam_mask_decoder.conv_s0.out_channels
        device = network.sam.no_mem_embed.device
        self.prototypes = PlainPrototypes(network.classes, width=width, settings=recipe.spmm, device=device)

    def learn(self, batch: Batch, *, rate: float) -> PlainLesson:
        """One update from one batch with labels, which is on the network's device."""
        assert batch.label is not None
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        device = batch.frames[0].device
        with runtime.computing("fp32", device), torch.autograd.set_detect_anomaly(self.detects_anomalies):
            ohem, spmm = self.losses(batch)
            (ohem + spmm).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad()  # last, because another network shares the parameters
        return PlainLesson((ohem + spmm).item(), ohem.item(), spmm.item())

    def gradient(self, batch: Batch) -> tuple[float, float, float]:
        """OHEM, λ·SPMM and the gradient norm of a batch, for comparison; the parameters do not change."""
        with runtime.computing("fp32", batch.frames[0].device):
            ohem, spmm = self.losses(batch)
            (ohem + spmm).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters.values() if p.grad is not None])
        self.optimizer.zero_grad()
        return ohem.item(), spmm.item(), norm.item()

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """OHEM and λ·SPMM of a batch; updates the prototypes."""
        assert batch.label is not None
        output = self.network(batch.frames)
        ohem = plain_ohem(output.logits, batch.label, settings=self.recipe.ohem)
        return ohem, self.recipe.spmm.weight * self.prototypes(output.features, batch.label)


def plain_ohem(logits: Tensor, label: Tensor, *, settings: Ohem) -> Tensor:
    """OHEM cross entropy of METHOD §3 on full-resolution logits.

    Args:
        logits: (B, K, H, W).
        label: (B, H, W) int64, 255 = ignored.
        settings: threshold and the smallest share.

    Returns:
        A scalar, 0 without a valid pixel.
    """
    losses = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none").view(-1)
    least = int(int((label != IGNORE).sum()) * settings.min_kept)
    hard = losses[losses > -math.log(settings.threshold)]
    if hard.numel() < least:
        hard, _ = losses.topk(least)
    return hard.mean() if hard.numel() else losses.sum() * 0


class PlainPrototypes:
    """The prototypes and the prototypical adaptation loss of METHOD §3, class by class.

    Args:
        classes: C.
        width: D, the channels of the feature map.
        settings: variant and momentum.
        device: of the features.
    """

    def __init__(self, classes: int, *, width: int, settings: Spmm, device: torch.device) -> None:
        self.settings = settings
        self.known = torch.zeros(classes, width, device=device)
        self.seen = [False] * classes

    def __call__(self, features: Tensor, label: Tensor) -> Tensor:
        """The loss without its weight.

        Args:
            features: (B, D, h, w).
            label: (B, H, W) int64, 255 = ignored.
        """
        if self.settings.variant == "off":
            return features.new_zeros(())
        small = resize_label(label, (features.shape[-2], features.shape[-1]))
        pixels = features.permute(0, 2, 3, 1)  # (B, D, h, w) -> (B, h, w, D)
        local: list[Tensor | None] = []
        for index in range(len(self.known)):
            of_class = pixels[small == index]  # (n, D)
            local.append(of_class.mean(dim=0) if len(of_class) else None)
            if self.settings.variant == "reference" and len(of_class):
                local[-1] = of_class.mean(dim=0) / len(of_class)  # the reference also divides twice
        return self._reference(local) if self.settings.variant == "reference" else self._paper(local)

    def _reference(self, local: list[Tensor | None]) -> Tensor:
        """Absent classes count as zeros; G is updated first."""
        means = torch.stack([torch.zeros_like(self.known[0]) if mean is None else mean for mean in local])
        self.known = self._blend(self.known, means.detach())
        return (means - self.known).square().sum() / (REFERENCE_CLASSES * means.shape[1])

    def _paper(self, local: list[Tensor | None]) -> Tensor:
        """Only classes that are present; G from before the update."""
        losses = []
        for index, mean in enumerate(local):
            if mean is not None:
                before = self.known[index].clone() if self.seen[index] else mean.detach()
                losses.append((mean - before).square().mean())
                self.known[index], self.seen[index] = self._blend(before, mean.detach()), True
        return torch.stack(losses).mean() if losses else self.known.new_zeros(())

    def _blend(self, known: Tensor, local: Tensor) -> Tensor:
        return self.settings.momentum * known + (1 - self.settings.momentum) * local
