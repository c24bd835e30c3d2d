"""MCubeS: real street scenes with RGB, polarisation and near infrared, labelled by material.

Source: Liang et al., "Multimodal Material Segmentation", CVPR 2022. The split lists decide; the published protocol
drops the first 192 of 1224 columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from memorysam_cli.data.layout import Layout
from memorysam_cli.data.listing import relative
from memorysam_cli.data.manifest import Scene
from memorysam_cli.dataset import Crop, DatasetInfo, LabelRule, Modality
from memorysam_cli.errors import DataError

SPLITS = ("train", "val", "test")
FILES: dict[str, tuple[str, ...]] = {
    "image": ("polL_color/{name}.png",),
    "aolp": ("polL_aolp_sin/{name}.npy", "polL_aolp_cos/{name}.npy"),
    "dolp": ("polL_dolp/{name}.npy",),
    "nir": ("NIR_warped/{name}.png",),
}
LABEL = "GT/{name}.png"

MODALITIES = (
    Modality(name="image", kind="rgb", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), photometric=("blur",)),
    Modality(name="aolp", kind="angle"),
    Modality(name="dolp", kind="gray"),
    Modality(name="nir", kind="gray", photometric=("blur",)),
)

# fmt: off
CLASSES: dict[str, tuple[int, int, int]] = {
    "asphalt": (44, 160, 44), "concrete": (31, 119, 180), "metal": (255, 127, 14), "road_marking": (214, 39, 40),
    "fabric": (140, 86, 75), "glass": (127, 127, 127), "plaster": (188, 189, 34), "plastic": (255, 152, 150),
    "rubber": (23, 190, 207), "sand": (174, 199, 232), "gravel": (196, 156, 148), "ceramic": (197, 176, 213),
    "cobblestone": (247, 182, 210), "brick": (199, 199, 199), "grass": (219, 219, 141), "wood": (158, 218, 229),
    "leaf": (57, 59, 121), "water": (107, 110, 207), "human": (156, 158, 222), "sky": (99, 121, 57),
}
"""Class → RGB colour, in class order."""
# fmt: on

EXPECTED_TREE = """\
multimodal_dataset/
├── polL_color/     <name>.png   (modality "image")
├── polL_aolp_sin/  <name>.npy   (modality "aolp", with polL_aolp_cos)
├── polL_aolp_cos/  <name>.npy
├── polL_dolp/      <name>.npy   (modality "dolp")
├── NIR_warped/     <name>.png   (modality "nir")
├── GT/             <name>.png   (labels)
└── list_folder/    train.txt, val.txt, test.txt"""


class MCubeS(Layout):
    """The multimodal material segmentation data set."""

    name = "mcubes"
    title = "MCubeS"
    published_at = "https://github.com/kyotovision-public/multimodal-material-segmentation"
    download_gb = 9.27
    expected_tree = EXPECTED_TREE
    published_counts: ClassVar[dict[str, int]] = {"train": 302, "val": 96, "test": 102}

    def info(self, folder: Path) -> DatasetInfo:  # noqa: ARG002  (nothing is optional)
        """See :meth:`Layout.info`."""
        return DatasetInfo(
            name=self.name,
            title=self.title,
            classes=tuple(CLASSES),
            palette=tuple(CLASSES.values()),
            modalities=MODALITIES,
            label=LabelRule(shift=0, ignore=(255,)),
            crop=Crop(left=192, of_height=1024, square=True),
        )

    def holds(self, folder: Path) -> bool:
        """True if the split lists and the colour images are there."""
        return all((folder / name).is_dir() for name in ("list_folder", "polL_color"))

    def scenes(self, folder: Path, root: Path) -> list[Scene]:
        """See :meth:`Layout.scenes`; in the order of the lists.

        Raises:
            DataError: there is no list, or a list cannot be read, or a name is no plain name.
        """
        lists = {split: folder / "list_folder" / f"{split}.txt" for split in SPLITS}
        present = {split: path for split, path in lists.items() if path.is_file()}
        if not present:
            raise DataError(f"{folder / 'list_folder'}: has no train.txt, val.txt or test.txt; unpack the lists too")
        inside = relative(folder, root)
        return [
            Scene(
                id=name,
                split=split,
                condition=None,
                case=None,
                files={
                    modality: tuple((inside / pattern.format(name=name)).as_posix() for pattern in patterns)
                    for modality, patterns in FILES.items()
                },
                label=(inside / LABEL.format(name=name)).as_posix(),
            )
            for split, path in present.items()
            for name in _names(path)
        ]


MCUBES = MCubeS()


def _names(path: Path) -> list[str]:
    """The scene names of a split list, one per line, empty lines left out."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"{path}: cannot be read as a list of names ({fault}); unpack it again") from None
    for number, name in enumerate(names, start=1):
        if "/" in name or "\\" in name or name in {".", ".."}:
            raise DataError(f"{path}, line {number}: {name!r} is not a scene's name (no folders are allowed)")
    return [name for name in names if name]
