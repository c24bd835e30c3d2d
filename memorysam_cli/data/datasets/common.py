"""What several data sets share."""

from __future__ import annotations

from typing import Any

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Of RGB in [0, 1]; every other modality is only scaled. Source: DATASETS §0."""
CAMERA: dict[str, Any] = {"kind": "rgb", "photometric": ("jitter", "blur"), **IMAGENET}
"""A colour camera: it alone is jittered and blurred in training."""
