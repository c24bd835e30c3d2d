"""MFNet: real street scenes with RGB and thermal infrared, by day and night.

Source: DATASETS §2. Three layouts are in use: CMNeXt's (JPEG), StitchFusion's (PNG) and the original one, whose files
hold RGB and thermal in four channels. Unconfirmed [G]: the original layout, the number of scenes per split.
``unlabeled`` is a counted class.
"""

from __future__ import annotations

from memorysam_cli.data.datasets import CAMERA
from memorysam_cli.data.layout import DatasetLayout, Lists, place, sensor
from memorysam_cli.dataset import Modality

ORIGINAL = "images/{name}.png"
"""RGB and thermal in one file."""

# fmt: off
CLASSES = {
    "unlabeled": (0, 0, 0), "car": (64, 0, 128), "person": (64, 64, 0), "bike": (0, 128, 192), "curve": (0, 0, 192),
    "car_stop": (128, 128, 0), "guardrail": (64, 64, 128), "color_cone": (192, 128, 128), "bump": (192, 64, 0),
}
# fmt: on

MFNET = DatasetLayout(
    name="mfnet",
    title="MFNet",
    published_at="https://www.mi.t.u-tokyo.ac.jp/static/projects/mil_multispectral/",
    native_size=(480, 640),
    published_counts={"train": 784, "val": 392, "test": 393},
    folder="MFNet",
    # Users' own data often have images/ and labels/ too, so the original layout must have one of its own names.
    signs=(("train.txt", "val.txt", "test.txt"), ("ther", r"images/{name:\d+[DN].*}.png")),
    sensors=(
        sensor(Modality(name="img", **CAMERA), "rgb/{name}.jpg", "img/{name}.png", place(ORIGINAL, channels=(0, 1, 2))),
        sensor(
            Modality(name="thermal", kind="thermal"),
            "ther/{name}.jpg",
            "ther/{name}.png",
            place(ORIGINAL, channels=(3, 3, 3)),
        ),
    ),
    labels=(place("labels/{name}.png"),),
    classes=CLASSES,
    id="{name}",
    lists=Lists(has_columns=True),
)
