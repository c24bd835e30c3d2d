"""PST900: real underground scenes with RGB and thermal infrared.

Source: DATASETS §2. Unconfirmed [G]: the number of scenes per split, and the original's folder ``depth``, which is not
used. ``Background`` is a counted class.
"""

from __future__ import annotations

from memorysam_cli.data.datasets import CAMERA
from memorysam_cli.data.layout import DatasetLayout, place, sensor
from memorysam_cli.dataset import Modality

SPLIT = "{split:train|val|test}"

# fmt: off
CLASSES = {
    "Background": (0, 0, 0), "Fire-Extinguisher": (100, 40, 40), "Backpack": (55, 90, 80), "Hand-Drill": (220, 20, 60),
    "Survivor": (153, 153, 153),
}
# fmt: on

PST900 = DatasetLayout(
    name="pst900",
    title="PST900",
    published_at="https://github.com/ShreyasSkandanS/pst900_thermal_rgb",
    native_size=(720, 1280),
    published_counts={"train": 597, "test": 288},
    folder="PST900",
    signs=((f"{SPLIT}/rgb",), (f"{SPLIT}/thermal", f"{SPLIT}/labels")),
    sensors=(
        sensor(Modality(name="img", **CAMERA), f"{SPLIT}/rgb/{{name}}.png"),
        sensor(Modality(name="thermal", kind="thermal"), f"{SPLIT}/thermal/{{name}}.png"),
    ),
    labels=(place(f"{SPLIT}/labels/{{name}}.png"),),
    is_plain=True,
    classes=CLASSES,
    id="{split}/{name}",
)
