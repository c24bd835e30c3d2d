"""KITTI-360 as CMNeXt prepares it: real street scenes with RGB, depth, events and LiDAR.

Source: DATASETS §2. A list's line begins with the path of the RGB image. The HHA depth, the LiDAR images and the events
were never released (InSAI-Lab/DELIVER#2, #19): where they are missing, the data set is prepared without them.
Unconfirmed [G]: the number of scenes per split.
"""

from __future__ import annotations

from memorysam_cli.data.datasets import CAMERA, CITYSCAPES
from memorysam_cli.data.layout import DatasetLayout, Lists, place, sensor
from memorysam_cli.dataset import LabelRule, Modality

RGB = "data_2d_raw/{drive}/image_00/data_rect/{frame}.png"
# fmt: off
IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12,
    26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18, 34: 2, 35: 4, 37: 5,
}
"""Raw id → class; the other ids of 0..44 are ignored."""
# fmt: on


KITTI360 = DatasetLayout(
    name="kitti360",
    title="KITTI-360",
    published_at="https://www.cvlibs.net/datasets/kitti-360/",
    native_size=(376, 1408),
    published_counts={"train": 49004, "val": 12276},
    folder="KITTI-360",
    signs=(("data_2d_raw",), ("train.txt", "val.txt")),
    sensors=(
        sensor(Modality(name="img", **CAMERA), RGB),
        sensor(Modality(name="depth", kind="hha"), "data_2d_hha/{drive}/image_00/data_rect/{frame}.png"),
        sensor(Modality(name="event", kind="event"), "data_2d_event/{drive}/{frame}_event_image.png"),
        sensor(Modality(name="lidar", kind="lidar"), "data_2d_lidar/{drive}/image_00/data_rect/{frame}_color.png"),
    ),
    labels=(place("data_2d_semantics/train/{drive}/image_00/semantic/{frame}.png"),),
    rule=LabelRule(mapping=tuple(IDS.items()), ignore=(*sorted({*range(45)} - {*IDS}), 255)),
    classes=CITYSCAPES,
    id="{drive}/{frame}",
    lists=Lists(splits=("train", "val"), lines=(RGB,), has_columns=True),
)
