"""The one place that imports PEFT, because of torchvision, and because it takes seconds.

PEFT imports transformers, and transformers imports torchvision wherever it is installed. A torchvision whose
build does not match torch raises on import ("operator torchvision::nms does not exist"), a common plight. We
never use torchvision, so a broken one is declared absent, which transformers handles.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from typing import Any


@cache
def peft() -> Any:
    """The module ``peft``; imported at the first call, for many a command needs no adapter."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError, AttributeError):
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    return importlib.import_module("peft")
