"""DELIVER: rendered street scenes with RGB, depth, events and LiDAR in five weathers and five sensor failures.

Source: Zhang et al., "Delivering Arbitrary-Modal Semantic Segmentation", CVPR 2023. Conditions, cases and splits
are read from whole path components below the data set's folder, never from parts of the path: ``rain`` is in every
``train``, and a user's own folders may be called ``img``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from memorysam_cli.data.layout import Layout
from memorysam_cli.data.listing import files_in, relative, subfolders
from memorysam_cli.data.manifest import Scene
from memorysam_cli.dataset import DatasetInfo, LabelRule, Modality

CONDITIONS = ("cloud", "fog", "night", "rain", "sun")
CASES = ("motionblur", "overexposure", "underexposure", "lidarjitter", "eventlowres")
SEQUENCE = re.compile(r"MAP_\d+_point\d+(?:_(?P<case>.+))?")


class Source(NamedTuple):
    """Where one kind of file lies: ``folder/condition/split/sequence/frame_suffix_front.png``."""

    folder: str
    suffix: str

    def path(self, place: tuple[str, ...], frame: str) -> str:
        """The path of one file, relative to the data set's folder."""
        return "/".join((self.folder, *place, f"{frame}_{self.suffix}_front.png"))


SOURCES = {
    "img": Source("img", "rgb"),
    "depth": Source("hha", "depth"),
    "event": Source("event", "event"),
    "lidar": Source("lidar", "lidar"),
    "depth_raw": Source("depth", "depth"),
}
"""The modality ``depth`` is the HHA-encoded one; the folder ``depth`` is the modality ``depth_raw``."""
OPTIONAL = ("depth_raw",)
LABEL = Source("semantic", "semantic")

MODALITIES = (
    Modality(
        name="img",
        kind="rgb",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        photometric=("jitter", "blur"),
    ),
    Modality(name="depth", kind="hha"),
    Modality(name="event", kind="event"),
    Modality(name="lidar", kind="lidar"),
    Modality(name="depth_raw", kind="depth"),
)

# fmt: off
CLASSES: dict[str, tuple[int, int, int]] = {
    "Building": (70, 70, 70), "Fence": (100, 40, 40), "Other": (55, 90, 80), "Pedestrian": (220, 20, 60),
    "Pole": (153, 153, 153), "RoadLine": (157, 234, 50), "Road": (128, 64, 128), "SideWalk": (244, 35, 232),
    "Vegetation": (107, 142, 35), "Cars": (0, 0, 142), "Wall": (102, 102, 156), "TrafficSign": (220, 220, 0),
    "Sky": (70, 130, 180), "Ground": (81, 0, 81), "Bridge": (150, 100, 100), "RailTrack": (230, 150, 140),
    "GroundRail": (180, 165, 180), "TrafficLight": (250, 170, 30), "Static": (110, 190, 160),
    "Dynamic": (170, 120, 50), "Water": (45, 60, 150), "Terrain": (145, 170, 100), "TwoWheeler": (0, 0, 230),
    "Bus": (0, 60, 100), "Truck": (0, 0, 70),
}
"""Class → RGB colour, in class order."""
# fmt: on

EXPECTED_TREE = """\
DELIVER/
├── img/       {cloud,fog,night,rain,sun}/{train,val,test}/MAP_<m>_point<n>[_<failure>]/<frame>_rgb_front.png
├── hha/       …/<frame>_depth_front.png      (modality "depth": HHA-encoded)
├── event/     …/<frame>_event_front.png
├── lidar/     …/<frame>_lidar_front.png
├── semantic/  …/<frame>_semantic_front.png   (labels)
└── depth/     …/<frame>_depth_front.png      (optional, modality "depth_raw")"""


class Deliver(Layout):
    """DELIVER's front view."""

    name = "deliver"
    title = "DELIVER"
    published_at = "https://jamycheung.github.io/DELIVER.html"
    download_gb = 12.2
    expected_tree = EXPECTED_TREE
    published_counts: ClassVar[dict[str, int]] = {"train": 3983, "val": 2005, "test": 1897}

    def info(self, folder: Path) -> DatasetInfo:
        """See :meth:`Layout.info`; the modality ``depth_raw`` is optional."""
        present = _sources(folder)
        return DatasetInfo(
            name=self.name,
            title=self.title,
            classes=tuple(CLASSES),
            palette=tuple(CLASSES.values()),
            modalities=tuple(modality for modality in MODALITIES if modality.name in present),
            # Raw 1..25 are the classes; 0 is "unlabelled".
            label=LabelRule(shift=-1, ignore=(0, 255)),
        )

    def holds(self, folder: Path) -> bool:
        """True if ``img`` has a weather folder, and depth or labels lie beside it."""
        has_weather = any((folder / "img" / condition).is_dir() for condition in CONDITIONS)
        return has_weather and any((folder / name).is_dir() for name in ("hha", "semantic"))

    def scenes(self, folder: Path, root: Path) -> list[Scene]:
        """See :meth:`Layout.scenes`; ordered by id, which is ``condition/split/sequence/frame``."""
        sources = _sources(folder)
        found = {key for source in (*sources.values(), LABEL) for key in _frames(folder, source)}
        inside = relative(folder, root)
        return [
            Scene(
                id="/".join((*place, frame)),
                split=place[1],
                condition=place[0],
                case=_case(place[2]),
                files={name: ((inside / source.path(place, frame)).as_posix(),) for name, source in sources.items()},
                label=(inside / LABEL.path(place, frame)).as_posix(),
            )
            for place, frame in sorted(found)
        ]

    def remarks(self, scenes: Sequence[Scene]) -> list[str]:
        """Also names weathers and failure cases that the data set does not have."""
        conditions = {scene.condition for scene in scenes} - set(CONDITIONS)
        cases = {scene.case for scene in scenes} - {None, *CASES}
        return [
            *super().remarks(scenes),
            *(
                f"'{name}' is no weather of {self.title}; kept as its own condition"
                for name in sorted(filter(None, conditions))
            ),
            *(
                f"'{name}' is no failure case of {self.title}; kept as its own case"
                for name in sorted(filter(None, cases))
            ),
        ]


DELIVER = Deliver()


def _sources(folder: Path) -> dict[str, Source]:
    """Modality → source, without the optional ones that are not there."""
    return {
        name: source for name, source in SOURCES.items() if name not in OPTIONAL or (folder / source.folder).is_dir()
    }


def _frames(folder: Path, source: Source) -> Iterator[tuple[tuple[str, str, str], str]]:
    """All ((condition, split, sequence), frame) of which one folder has a front view."""
    ending = f"_{source.suffix}_front.png"
    top = folder / source.folder
    for condition in subfolders(top):
        for split in subfolders(top / condition):
            for sequence in subfolders(top / condition / split):
                for name in files_in(top / condition / split / sequence):
                    if name.endswith(ending):
                        yield (condition, split, sequence), name.removesuffix(ending)


def _case(sequence: str) -> str | None:
    """The failure case that ends a sequence folder's name; a name of another form is its own case."""
    match = SEQUENCE.fullmatch(sequence)
    return match["case"] if match else sequence
