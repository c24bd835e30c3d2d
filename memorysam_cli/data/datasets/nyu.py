"""NYU Depth V2: real rooms with RGB and depth, 40 classes.

Source: DATASETS §2. Four layouts are in use: CMNeXt's, StitchFusion's (HHA as PNG, ``Labels``), DFormer's (depth in one
channel), TokenFusion's (lower case, lists with three columns). ``depth`` is the HHA-encoded one throughout and
``depth_raw`` the one channel: they are not the same numbers. The peers define no palette; this is PASCAL VOC's.
"""

from __future__ import annotations

from memorysam_cli.data.datasets import CAMERA
from memorysam_cli.data.layout import DatasetLayout, Lists, place, sensor
from memorysam_cli.dataset import LabelRule, Modality

# fmt: off
CLASSES = {
    "wall": (128, 0, 0), "floor": (0, 128, 0), "cabinet": (128, 128, 0), "bed": (0, 0, 128), "chair": (128, 0, 128),
    "sofa": (0, 128, 128), "table": (128, 128, 128), "door": (64, 0, 0), "window": (192, 0, 0),
    "bookshelf": (64, 128, 0), "picture": (192, 128, 0), "counter": (64, 0, 128), "blinds": (192, 0, 128),
    "desk": (64, 128, 128), "shelves": (192, 128, 128), "curtain": (0, 64, 0), "dresser": (128, 64, 0),
    "pillow": (0, 192, 0), "mirror": (128, 192, 0), "floor mat": (0, 64, 128), "clothes": (128, 64, 128),
    "ceiling": (0, 192, 128), "books": (128, 192, 128), "refridgerator": (64, 64, 0), "television": (192, 64, 0),
    "paper": (64, 192, 0), "towel": (192, 192, 0), "shower curtain": (64, 64, 128), "box": (192, 64, 128),
    "whiteboard": (64, 192, 128), "person": (192, 192, 128), "night stand": (0, 0, 64), "toilet": (128, 0, 64),
    "sink": (0, 128, 64), "lamp": (128, 128, 64), "bathtub": (0, 0, 192), "bag": (128, 0, 192),
    "otherstructure": (0, 128, 192), "otherfurniture": (128, 128, 192), "otherprop": (64, 0, 64),
}
# fmt: on

NYU = DatasetLayout(
    name="nyu",
    title="NYU Depth V2",
    published_at="https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
    native_size=(480, 640),
    published_counts={"train": 795, "test": 654},
    other_counts=({"train": 795, "val": 654},),
    folder="NYUDepthv2",
    is_plain=True,
    signs=(
        ("train.txt", "val.txt", "test.txt"),
        ("RGB", r"rgb/{name:\d+}.png"),
        ("HHA", "Label", "Labels", r"masks/{name:\d+}.png"),
    ),
    sensors=(
        sensor(Modality(name="img", **CAMERA), "RGB/{name}.jpg", "rgb/{name}.png"),
        sensor(Modality(name="depth", kind="hha"), "HHA/{name}.jpg", "HHA/{name}.png"),
        sensor(Modality(name="depth_raw", kind="depth"), "Depth/{name}.png", "depth/{name}.png", is_optional=True),
    ),
    labels=(place("Label/{name}.png"), place("Labels/{name}.png"), place("masks/{name}.png")),
    rule=LabelRule(shift=-1, ignore=(0, 255)),
    classes=CLASSES,
    id="{name}",
    lists=Lists(lines=("{name}", "RGB/{name}.jpg", "rgb/{name}.png"), has_columns=True),
)
