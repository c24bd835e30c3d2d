"""The names inside a folder of an evaluation's results; light, for who reads such a folder needs no torch."""

NAMES = {
    "metrics": "metrics.json",
    "per_class": "per_class.csv",
    "breakdown": "breakdown.csv",
    "scenes": "scenes.csv",
    "confusion_resized": "confusion-resized.csv",
    "confusion_native": "confusion-native.csv",
    "confusion_figure": "confusion.png",
    "per_class_figure": "per_class.png",
}
"""Key in the report's ``files`` → file name; ``confusion`` is that of the report's protocol."""
GALLERY = "gallery"
"""The folder of the worst and best scenes' pictures."""
