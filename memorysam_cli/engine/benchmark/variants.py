"""The work that is measured, in our manner and in the reference's, on one set of random weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from memorysam_cli.engine import runtime
from memorysam_cli.engine.benchmark.asked import Asked
from memorysam_cli.engine.benchmark.plain import Plain
from memorysam_cli.engine.benchmark.plain_training import PlainLearner
from memorysam_cli.engine.measuring import made_up
from memorysam_cli.engine.training.learner import Learner
from memorysam_cli.model.lora import merge_lora

STILL = 0.0
"""The learning rate of measured updates: as much work as any, and the weights stay those of both manners."""


class Variants(ABC):
    """One task in two manners."""

    @abstractmethod
    def fast(self) -> object:
        """Our way, once."""

    @abstractmethod
    def plain(self) -> object:
        """The reference's way, once; the first call makes its network."""

    @abstractmethod
    def differences(self) -> dict[str, float]:
        """How far the two results are apart; warms both up."""


class Training(Variants):
    """Updates of the real learner, and of the plain one."""

    def __init__(self, asked: Asked, device: torch.device) -> None:
        self.asked, self.recipe = asked, asked.recipe()
        self.network = asked.network(self.recipe)
        accelerator = runtime.make_accelerator(device, precision=asked.precision)
        self.learner = Learner(self.network, self.recipe, accelerator=accelerator)
        self.batch = made_up.batch(self.recipe, classes=asked.classes, device=device)
        self._plain: PlainLearner | None = None

    def fast(self) -> object:
        return self.learner.learn([self.batch], rate=STILL)

    def plain(self) -> object:
        return self._plain_learner().learn(self.batch, rate=STILL)

    def differences(self) -> dict[str, float]:
        """Of the losses and of the gradient's norm, relative; without dropout, which draws anew each time."""
        plain = self._plain_learner()
        with without_dropout(self.network, plain.network):
            ours = self.learner.learn([self.batch], rate=STILL)
            ohem, spmm, norm = plain.gradient(self.batch)
        terms = {name: (ours.terms[name], wanted) for name, wanted in {"ohem": ohem, "spmm": spmm}.items()}
        pairs = terms | {"gradient_norm": (ours.gradient_norm, norm)}
        return {name: abs(found - wanted) / max(abs(wanted), 1e-12) for name, (found, wanted) in pairs.items()}

    def _plain_learner(self) -> PlainLearner:
        if self._plain is None:
            twin = Plain(self.network, backbone=self.asked.backbone)
            self._plain = PlainLearner(twin.train(), self.recipe)
        return self._plain


class Prediction(Variants):
    """Class logits of a batch at full resolution; LoRA merged in ours, beside the weights in the reference's."""

    def __init__(self, asked: Asked, device: torch.device) -> None:
        self.asked, self.recipe, self.device = asked, asked.recipe(), device
        self.network = asked.network(self.recipe).requires_grad_(False).eval().to(device)
        self.twin = Plain(self.network, backbone=asked.backbone)  # before LoRA is merged: its weights are copies
        merge_lora(self.network.sam.image_encoder.trunk)
        self.network.to(device).eval()
        if asked.compile:
            self.network.compile_blocks()
        self.frames = made_up.batch(self.recipe, classes=asked.classes, device=device).frames

    def fast(self) -> Tensor:
        with torch.inference_mode(), runtime.computing(self.asked.precision, self.device):
            return self.network.logits(self.frames)

    def plain(self) -> Tensor:
        with torch.inference_mode(), runtime.computing("fp32", self.device):
            return self.twin.logits(self.frames)

    def differences(self) -> dict[str, float]:
        """The largest difference of the logits, relative to the largest of them; the share of other decisions."""
        ours, plain = self.fast().float(), self.plain()
        others = (ours.argmax(dim=1) != plain.argmax(dim=1)).double().mean()
        return {
            "logits": float((ours - plain).abs().max() / plain.abs().max()),
            "other_classes": float(others),
        }  # fmt: skip


def make(asked: Asked, device: torch.device) -> Variants:
    """Both manners of a task."""
    return Training(asked, device) if asked.task == "train" else Prediction(asked, device)


@contextmanager
def without_dropout(*networks: nn.Module) -> Iterator[None]:
    """Switch dropout off and leave all else in training mode."""
    found = [
        (module, name, getattr(module, name))
        for network in networks
        for module in network.modules()
        for name in ("p", "dropout_p")  # nn.Dropout's, and that of SAM2's attention
        if isinstance(getattr(module, name, None), float)
    ]
    for module, name, _ in found:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)
