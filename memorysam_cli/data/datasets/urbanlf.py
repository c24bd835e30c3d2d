"""UrbanLF: light fields of street scenes, real and synthetic, 9 × 9 views.

Source: DATASETS §2. The view in the middle, ``5_5``, is the modality ``img`` and the one that is labeled; the others
are called as their files. Real labels are pictures in the palette's colors, synthetic ones arrays; the label's file
tells which, never the name of a folder above. Unconfirmed [G]: the number of scenes per split.
"""

from __future__ import annotations

from memorysam_cli.data.datasets import CAMERA
from memorysam_cli.data.layout import DatasetLayout, place, sensor
from memorysam_cli.dataset import LabelRule, Modality

SCENE = "{split:train|val|test}/{scene}"
MIDDLE = "5_5"
SIDE = range(1, 10)
VIEWS = tuple(f"{row}_{column}" for row in SIDE for column in SIDE if f"{row}_{column}" != MIDDLE)

# fmt: off
CLASSES = {
    "bike": (168, 198, 168), "building": (198, 0, 0), "fence": (202, 154, 198), "others": (0, 0, 0),
    "person": (100, 198, 198), "pole": (198, 100, 0), "road": (52, 42, 198), "sidewalk": (154, 52, 192),
    "traffic sign": (198, 0, 168), "vegetation": (0, 198, 0), "vehicle": (198, 186, 90), "bridge": (108, 107, 161),
    "rider": (156, 200, 26), "sky": (158, 179, 202),
}
# fmt: on

URBANLF = DatasetLayout(
    name="urbanlf",
    title="UrbanLF",
    published_at="https://github.com/HAWKEYE-Group/UrbanLF",
    # 432×623 real, 480×640 synthetic
    native_size=None,
    published_counts={"train": 580, "val": 80, "test": 164},
    folder="UrbanLF-Real",
    signs=((f"{SCENE}/{MIDDLE}.png",),),
    sensors=(
        sensor(Modality(name="img", **CAMERA), f"{SCENE}/{MIDDLE}.png"),
        *(sensor(Modality(name=view, kind="rgb"), f"{SCENE}/{view}.png", is_optional=True) for view in VIEWS),
    ),
    labels=(
        place(f"{SCENE}/label.png", rule=LabelRule(colors=True)),
        place(
            f"{SCENE}/{MIDDLE}_label.npy",
            rule=LabelRule(shift=-1, ignore=(0, 255)),
            counts={"train": 172, "val": 28, "test": 50},
        ),
    ),
    classes=CLASSES,
    id="{split}/{scene}",
)
