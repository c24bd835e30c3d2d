"""Are weights what they claim to be?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from memorysam_cli.errors import WeightsError
from memorysam_cli.model import load
from memorysam_cli.storage import tensors

SIZE_PX = 64


def verify_weights(path: Path) -> dict[str, Any]:
    """Load weights with all their checks and run them once.

    Returns:
        ``tensors`` (how many the network has), ``base``, ``kind``, ``sha256`` of the file.

    Raises:
        WeightsError: any check fails, or the logits of a small test image are not finite.
    """
    network = load(path)
    frames = [torch.zeros(1, 3, SIZE_PX, SIZE_PX) for _ in network.card.modalities]
    with torch.inference_mode():
        logits = network.logits(frames)
    if not bool(torch.isfinite(logits).all()):
        raise WeightsError(f"{path}: loads, but gives logits that are not finite; do not use these weights")
    card = network.card
    return {
        "kind": card.kind,
        "tensors": len(network.state_dict()),
        "base": card.base.source,
        "sha256": tensors.sha256(path),
    }
