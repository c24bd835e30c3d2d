from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from memorysam_cli.data.loader import Batch
from memorysam_cli.dataset import Modality
from memorysam_cli.engine.train import validation
from memorysam_cli.report.pictures import GAP_PX
from memorysam_cli.storage import images
from tests import sketches

from ..stand_ins import CLASSES, PALETTE, write_data

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RGB = Modality(name="img", kind="rgb", mean=MEAN, std=STD)
DEPTH = Modality(name="depth", kind="depth")


def normalized(color: tuple[int, int, int], size: int = 32) -> torch.Tensor:
    """(1, 3, size, size) of one color, as the loader hands it over."""
    values = (torch.tensor(color) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return values.reshape(1, 3, 1, 1).expand(1, 3, size, size)


def test_the_first_batch_shows_the_colors_as_they_were(tmp_path: Path) -> None:
    info = write_data(tmp_path / "data").info
    label = torch.zeros(1, 32, 32, dtype=torch.int64)
    label[:, :8] = 1
    batch = Batch([normalized((200, 30, 10)), torch.rand(1, 3, 32, 32)], label, ())
    validation.draw_first_batch(batch, info, [RGB, DEPTH], tmp_path)
    sheet = images.read(tmp_path / validation.FIRST)
    for color in ((200, 30, 10), PALETTE[0], PALETTE[1]):  # RGB, not BGR
        assert (np.abs(sheet.astype(int) - color).max(-1) <= 1).sum() > 1000, color
    assert not (sheet == (10, 30, 200)).all(-1).any()


@pytest.mark.rendered
def test_a_long_batch_shows_its_first_scenes(tmp_path: Path) -> None:
    info = write_data(tmp_path / "data").info
    batch = Batch([torch.rand(9, 3, 32, 32)], torch.full((9, 32, 32), 255), ())
    validation.draw_first_batch(batch, info, [DEPTH], tmp_path)
    rows = images.read(tmp_path / validation.FIRST).shape[0] / (256 + GAP_PX)  # and titles, once
    assert sketches.SAMPLES <= rows < sketches.SAMPLES + 1
    named = replace(batch, scenes=write_data(tmp_path / "data").of_split("train")[:1] * 9)
    validation.draw_first_batch(named, info, [DEPTH], tmp_path)
    lines = images.read(tmp_path / validation.FIRST).shape[0] / (256 + GAP_PX) - rows
    assert round(lines * (256 + GAP_PX)) == sketches.SAMPLES * 22  # a line of 22 pixels above each row
    assert len(CLASSES) == len(info.classes)
