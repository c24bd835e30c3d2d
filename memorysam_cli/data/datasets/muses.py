"""MUSES: real street scenes in adverse weather, by day and night, with RGB, LiDAR, radar and events.

Source: DATASETS §2. The LiDAR, radar and events must have been projected to the camera with the MUSES SDK, as float32
arrays (``.npz``), LiDAR and radar also as 16-bit PNG whose values are (x + 100) · 150. Their mean and standard
deviation are CAFuser's. The labels of ``test`` are not published: its scenes can be predicted for the server.
"""

from __future__ import annotations

from memorysam_cli.data.datasets import CAMERA, CITYSCAPES
from memorysam_cli.data.layout import DatasetLayout, Place, place, sensor
from memorysam_cli.dataset import Modality

WEATHERS = ("clear", "fog", "rain", "snow")
TIMES = ("day", "night")
INSIDE = "{split}/{weather}/{time}/{recording}"


def projected(name: str) -> str:
    """Templates of a sensor's projected arrays."""
    return f"projected_to_rgb/{name}/{INSIDE}_{name}.npz"


def as_png(name: str) -> Place:
    """Template of a sensor's projected 16-bit pictures."""
    return place(f"projected_to_rgb/{name}/{INSIDE}_{name}.png", scale=1 / 150, offset=-100.0)


MUSES = DatasetLayout(
    name="muses",
    title="MUSES",
    published_at="https://muses.ethz.ch",
    native_size=(1080, 1920),
    published_counts={"train": 1500, "val": 250, "test": 750},
    folder="MUSES",
    signs=(("frame_camera/{split:train|val|test}",), ("gt_semantic", "projected_to_rgb")),
    sensors=(
        sensor(Modality(name="frame_camera", **CAMERA), f"frame_camera/{INSIDE}_frame_camera.png"),
        sensor(
            Modality(name="lidar", kind="lidar", mean=(4.91737, 6.149373, 0.27025607), std=(13.347, 17.638, 1.232)),
            projected("lidar"),
            as_png("lidar"),
        ),
        sensor(
            Modality(name="radar", kind="lidar", mean=(4.0036, 9.3428, 0), std=(14.607, 19.294, 1)),
            projected("radar"),
            as_png("radar"),
        ),
        sensor(
            Modality(name="event_camera", kind="event", mean=(0.12577528, 0.12728328, 0), std=(0.5442, 0.47625, 1)),
            projected("event_camera"),
        ),
    ),
    labels=(place(f"gt_semantic/{INSIDE}_gt_labelTrainIds.png"),),
    classes=CITYSCAPES,
    id=INSIDE,
    unlabeled=("test",),
    condition="{weather}-{time}",
    conditions=tuple(f"{weather}-{time}" for weather in WEATHERS for time in TIMES),
    notes=(f"weather: {', '.join(WEATHERS)}; time: {', '.join(TIMES)}; test needs no labels",),
)
