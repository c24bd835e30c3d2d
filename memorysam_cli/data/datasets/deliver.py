"""DELIVER: rendered street scenes with RGB, depth, events and LiDAR in five weathers and five sensor failures.

Source: Zhang et al., "Delivering Arbitrary-Modal Semantic Segmentation", CVPR 2023; DATASETS §2. The modality ``depth``
is the HHA-encoded one; the folder ``depth`` is the modality ``depth_raw``. The failure case ends the name of the
sequence's folder. Events of the case ``eventlowres`` are smaller than their image.
"""

from __future__ import annotations

from memorysam_cli.data.datasets import CAMERA
from memorysam_cli.data.layout import DatasetLayout, place, sensor
from memorysam_cli.dataset import LabelRule, Modality

CONDITIONS = ("cloud", "fog", "night", "rain", "sun")
CASES = ("motionblur", "overexposure", "underexposure", "lidarjitter", "eventlowres")
SEQUENCE = r"MAP_\d+_point\d+(?:_(?P<case>.+))?"
INSIDE = "{condition}/{split}/{sequence}/{frame}"

# fmt: off
CLASSES = {
    "Building": (70, 70, 70), "Fence": (100, 40, 40), "Other": (55, 90, 80), "Pedestrian": (220, 20, 60),
    "Pole": (153, 153, 153), "RoadLine": (157, 234, 50), "Road": (128, 64, 128), "SideWalk": (244, 35, 232),
    "Vegetation": (107, 142, 35), "Cars": (0, 0, 142), "Wall": (102, 102, 156), "TrafficSign": (220, 220, 0),
    "Sky": (70, 130, 180), "Ground": (81, 0, 81), "Bridge": (150, 100, 100), "RailTrack": (230, 150, 140),
    "GroundRail": (180, 165, 180), "TrafficLight": (250, 170, 30), "Static": (110, 190, 160),
    "Dynamic": (170, 120, 50), "Water": (45, 60, 150), "Terrain": (145, 170, 100), "TwoWheeler": (0, 0, 230),
    "Bus": (0, 60, 100), "Truck": (0, 0, 70),
}
# fmt: on

DELIVER = DatasetLayout(
    name="deliver",
    title="DELIVER",
    published_at="https://jamycheung.github.io/DELIVER.html",
    download_gb=12.2,
    native_size=(1042, 1042),
    published_counts={"train": 3983, "val": 2005, "test": 1897},
    published_groups={
        "train": dict(zip(CONDITIONS, (794, 795, 797, 799, 798), strict=True)),
        "val": dict(zip(CONDITIONS, (398, 400, 410, 398, 399), strict=True)),
        "test": {
            **dict(zip(CONDITIONS, (379, 379, 379, 380, 380), strict=True)),
            **dict(zip(CASES, (300, 100, 100, 99, 100), strict=True)),
        },
    },
    folder="DELIVER",
    signs=((f"img/{{condition:{'|'.join(CONDITIONS)}}}",), ("hha", "semantic")),
    sensors=(
        sensor(Modality(name="img", **CAMERA), f"img/{INSIDE}_rgb_front.png"),
        sensor(Modality(name="depth", kind="hha"), f"hha/{INSIDE}_depth_front.png"),
        sensor(Modality(name="event", kind="event"), f"event/{INSIDE}_event_front.png"),
        sensor(Modality(name="lidar", kind="lidar"), f"lidar/{INSIDE}_lidar_front.png"),
        sensor(Modality(name="depth_raw", kind="depth"), f"depth/{INSIDE}_depth_front.png", is_optional=True),
    ),
    labels=(place(f"semantic/{INSIDE}_semantic_front.png"),),
    rule=LabelRule(shift=-1, ignore=(0, 255), first_channel=True),
    classes=CLASSES,
    id=INSIDE,
    condition="{condition}",
    conditions=CONDITIONS,
    case=("sequence", SEQUENCE),
    cases=CASES,
    antialias=True,  # the default of torchvision 0.18.1, which the published code requires
    notes=(
        f"condition: {', '.join(CONDITIONS)}; split: train, val, test; sequence: MAP_<m>_point<n>[_<failure>]",
        "depth_raw is optional",
    ),
)
