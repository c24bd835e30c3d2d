"""What tries a command line in a process that has loaded nothing heavy, and tells what it has loaded since."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from memorysam_cli import app
from memorysam_cli.engine import surroundings

HEAVY = ("torch", "peft", "accelerate", "sam2", "matplotlib")
LOADED = "loaded: "
WITHOUT = "without-"
"""Before an extra of the package: a first word that hides its modules."""
LIGHT = (
    "data.check", "data.inputs", "data.own.mask_formats", "engine.evaluate.evaluation", "engine.measure.workload",
    "engine.predict.raster", "engine.predict.job", "engine.predict.parts", "engine.train.training",
    "engine.train.tracking", "engine.weights.exchange", "engine.weights.model_card", "engine.reporting.run_pages",
    "model", "recipe", "storage.hub",
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
    """Run a command line in a folder; on the last line of stderr stands what of :data:`HEAVY` is there now.

    The machine has no GPU, whatever this one has.
    """
    os.chdir(folder)
    surroundings._CUDA_DRIVER, surroundings._ROCM = "libnosuch.so", ()
    if words[0].startswith(WITHOUT):
        sys.modules.update(dict.fromkeys(surroundings.EXTRAS[words[0].removeprefix(WITHOUT)]))
        words = words[1:]
    os.environ.pop("MEMORYSAM_DATA", None)
    code = app.run(words)
    print(LOADED + loaded(), file=sys.stderr)
    return code
