"""What tries a command line in a process that has loaded nothing heavy, and tells what it has loaded since."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from memorysam_cli import app

HEAVY = ("torch", "peft", "accelerate", "sam2", "matplotlib")
LOADED = "loaded: "
LIGHT = (
    "data.check", "data.inputs", "data.own.mask_formats", "engine.evaluate.evaluation", "engine.measure.workload",
    "engine.predict.raster", "engine.predict.job", "engine.train.training", "engine.train.tracking",
    "engine.weights.model_card", "engine.reporting.run_pages", "model", "recipe", "storage.hub",
)  # fmt: skip
"""Modules that look at what was typed."""


def warm() -> None:
    """Load what looks at what was typed, once for all attempts; it must not be heavy either."""
    for name in LIGHT:
        importlib.import_module(f"memorysam_cli.{name}")
        assert not loaded(), f"{name} loads {loaded()}"


def loaded() -> str:
    """What of :data:`HEAVY` is there."""
    return " ".join(name for name in HEAVY if name in sys.modules)


def attempt(folder: str, words: Sequence[str]) -> int:
    """Run a command line in a folder; on the last line of stderr stands what of :data:`HEAVY` is there now."""
    os.chdir(folder)
    os.environ.pop("MEMORYSAM_DATA", None)
    code = app.run(words)
    print(LOADED + loaded(), file=sys.stderr)
    return code
