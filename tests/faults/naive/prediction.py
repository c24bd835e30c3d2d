"""Prediction as most scripts do it: masks written in place, and a list of what is done, written at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import torch


def predict(out: Path, scenes: Iterable[tuple[str, Callable[[], Any]]]) -> None:
    """Segment what is not there yet.

    Args:
        out: the output folder.
        scenes: name, and what makes its mask.
    """
    done = []
    for name, segment in scenes:
        path = out / "masks" / f"{name}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), segment())
        done.append(name)
    (out / "done.json").write_text(json.dumps(done))


def hoarding(decide: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps the logits at each scene's own size, "for later"."""
    kept: list[torch.Tensor] = []

    def deciding(logits: torch.Tensor, sizes: Any, **options: Any) -> Any:
        kept.extend(
            torch.nn.functional.interpolate(one[None], size, mode="bilinear")
            for one, size in zip(logits, sizes, strict=True)
        )
        return decide(logits, sizes, **options)

    return deciding
