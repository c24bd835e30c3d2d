"""memorysam: multi-modal semantic segmentation with SAM2's memory run across modalities.

From Python: :class:`Predictor`, which is loaded, with torch, when it is first asked for.
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
"""What can be imported from here, and the modules that have it; ``__init__.pyi`` has the types."""
__all__ = ["DataError", "MemorySamError", "Predictor", "Result", "UnlikeTraining", "__version__"]


def __getattr__(name: str) -> object:
    if name in _PLACES:
        return getattr(import_module(f"memorysam_cli.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'memorysam_cli' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
