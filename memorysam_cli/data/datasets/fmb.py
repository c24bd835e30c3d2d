"""FMB: real street scenes with RGB and infrared.

Source: DATASETS §2. Published as train and test; MM SAM-adapter takes a ``val`` of 160 scenes off the training scenes.
"""

from __future__ import annotations

from memorysam_cli.data.datasets import CAMERA
from memorysam_cli.data.layout import DatasetLayout, place, sensor
from memorysam_cli.dataset import LabelRule, Modality

SPLIT = "{split:train|val|test}"

# fmt: off
CLASSES = {
    "Road": (179, 228, 228), "Sidewalk": (181, 57, 133), "Building": (67, 162, 177), "Traffic Light": (200, 178, 50),
    "Traffic Sign": (132, 45, 199), "Vegetation": (66, 172, 84), "Sky": (179, 73, 79), "Person": (76, 99, 166),
    "Car": (66, 121, 253), "Truck": (137, 165, 91), "Bus": (155, 97, 152), "Motorcycle": (105, 153, 140),
    "Bicycle": (222, 215, 158), "Pole": (135, 113, 90),
}
# fmt: on

FMB = DatasetLayout(
    name="fmb",
    title="FMB",
    published_at="https://github.com/JinyuanLiu-CV/SegMiF",
    native_size=(600, 800),
    published_counts={"train": 1220, "test": 280},
    other_counts=({"train": 1060, "val": 160, "test": 280},),
    folder="FMB",
    signs=((f"{SPLIT}/Visible",), (f"{SPLIT}/Infrared", f"{SPLIT}/Label")),
    sensors=(
        sensor(Modality(name="img", **CAMERA), f"{SPLIT}/Visible/{{name}}.png"),
        sensor(Modality(name="thermal", kind="thermal"), f"{SPLIT}/Infrared/{{name}}.png"),
    ),
    labels=(place(f"{SPLIT}/Label/{{name}}.png"),),
    is_plain=True,
    rule=LabelRule(shift=-1, ignore=(0, 255)),
    classes=CLASSES,
    id="{split}/{name}",
)
