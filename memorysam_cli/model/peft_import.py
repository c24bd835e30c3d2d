"""The one place that imports PEFT, because of torchvision.

PEFT imports transformers, and transformers imports torchvision wherever it is installed. A torchvision whose
build does not match torch raises on import ("operator torchvision::nms does not exist"), a common plight. We
never use torchvision, so a broken one is declared absent, which transformers handles.
"""

from __future__ import annotations

import sys

try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError, OSError, AttributeError):
    sys.modules["torchvision"] = None  # type: ignore[assignment]

import peft

__all__ = ["peft"]
