"""Weights and frames that are made from names, as METHOD §7 describes; no weights are shipped for tests."""

from __future__ import annotations

import functools
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from memorysam_cli.dataset import DatasetInfo, Modality
from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.lora import add_lora
from memorysam_cli.model.network import MemorySAM
from memorysam_cli.model.reference import from_reference
from memorysam_cli.recipe import Data, Lora, Model, Optim, Recipe, Spmm, Train

GOLDEN = Path(__file__).parent.parent / "golden"


class Golden:
    """The reference's weights, inputs and results for Hiera tiny."""

    folder = GOLDEN

    @staticmethod
    def generator(name: str) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))

    def case(self, tag: str) -> dict[str, NDArray[Any]]:
        with np.load(GOLDEN / f"{tag}.npz") as content:
            return dict(content)

    def training(self) -> dict[str, Any]:
        content = json.loads((GOLDEN / "training.json").read_text())
        assert isinstance(content, dict)
        return content

    def frames(self, tag: str, *, modalities: int, batch: int, size: int = 256) -> list[torch.Tensor]:
        shape = (batch, 3, size, size)
        drawn = [self.generator(f"{tag}/frame{index}").standard_normal(shape) for index in range(modalities)]
        return [torch.from_numpy(frame).float() for frame in drawn]

    def state(self, object_score_bias: float) -> dict[str, torch.Tensor]:
        """A reference ``state_dict``."""
        state = {name: tensor.clone() for name, tensor in self._drawn.items()}
        state["sam.sam_mask_decoder.pred_obj_score_head.layers.2.bias"].fill_(object_score_bias)
        return state

    def empty(self) -> MemorySAM:
        network = MemorySAM(build_sam2("sam2-hiera-tiny", tokens=25), classes=25)
        add_lora(network.sam.image_encoder.trunk, Lora())
        return network

    def network(self, object_score_bias: float) -> MemorySAM:
        """Hiera tiny with those weights imported, LoRA unmerged, in eval mode."""
        network = self.empty()
        network.load_state_dict(from_reference(self.state(object_score_bias)))
        return network.eval()

    @functools.cached_property
    def _drawn(self) -> dict[str, torch.Tensor]:
        """Drawing takes a second; each test gets a copy."""
        shapes = json.loads((GOLDEN / "reference_keys_hiera_t.json").read_text())
        return {name: torch.from_numpy(self._tensor(name, shape)).float() for name, shape in shapes.items()}

    def _tensor(self, name: str, shape: list[int]) -> NDArray[np.float64]:
        drawn = self.generator(name).standard_normal(shape)
        if len(shape) >= 2:
            return np.asarray(drawn * 0.7 / np.sqrt(np.prod(shape[1:])))
        return np.asarray(drawn * 0.02 + float(name.endswith(("weight", "gamma"))))


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()


@pytest.fixture(scope="session")
def dataset() -> DatasetInfo:
    """Three classes, three sensors."""
    return DatasetInfo(
        name="toy",
        title="Toy",
        classes=("road", "car", "sky"),
        palette=((128, 64, 128), (0, 0, 142), (70, 130, 180)),
        modalities=(
            Modality(name="img", kind="rgb", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            Modality(name="depth", kind="hha"),
            Modality(name="lidar", kind="lidar"),
        ),
    )


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """Nano on random base weights."""
    return Recipe(
        name="toy",
        data=Data(dataset="toy", modalities=("img", "depth"), image_size=64),
        model=Model(backbone="nano", base_weights="random"),
        spmm=Spmm(variant="paper", weight=1.0),
        optim=Optim(lr=1e-3),
        train=Train(epochs=1, seed=3),
    )
