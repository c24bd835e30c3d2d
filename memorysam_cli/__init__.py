"""memorysam: multi-modal semantic segmentation with SAM 2's memory across the sensors of a scene.

The Python API is :class:`Predictor`. It is loaded, with torch, when it is first used.
"""

from importlib import import_module

__version__ = "0.1.0"

_PLACES = {
    "Predictor": "engine.predict.predictor",
    "Result": "engine.predict.predictor",
    "UnlikeTraining": "engine.predict.predictor",
    "DataError": "errors",
    "MemorySamError": "errors",
}
"""The names that this package exports, and the modules that define them; ``__init__.pyi`` has the types."""
__all__ = ["DataError", "MemorySamError", "Predictor", "Result", "UnlikeTraining", "__version__"]


def __getattr__(name: str) -> object:
    if name in _PLACES:
        return getattr(import_module(f"memorysam_cli.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'memorysam_cli' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
