"""MCubeS: real street scenes with RGB, polarization and near infrared, labeled by material.

Source: Liang et al., "Multimodal Material Segmentation", CVPR 2022; DATASETS §1.5, §2. The split lists decide; the
published protocol drops the first 192 of 1224 columns. ``NIR_warped_mask``, ``SS`` and ``SSGT4MS`` are not used.
"""

from __future__ import annotations

from memorysam_cli.data.layout import DatasetLayout, Lists, place, sensor
from memorysam_cli.dataset import IMAGENET, Crop, Modality

# fmt: off
CLASSES = {
    "asphalt": (44, 160, 44), "concrete": (31, 119, 180), "metal": (255, 127, 14), "road_marking": (214, 39, 40),
    "fabric": (140, 86, 75), "glass": (127, 127, 127), "plaster": (188, 189, 34), "plastic": (255, 152, 150),
    "rubber": (23, 190, 207), "sand": (174, 199, 232), "gravel": (196, 156, 148), "ceramic": (197, 176, 213),
    "cobblestone": (247, 182, 210), "brick": (199, 199, 199), "grass": (219, 219, 141), "wood": (158, 218, 229),
    "leaf": (57, 59, 121), "water": (107, 110, 207), "human": (156, 158, 222), "sky": (99, 121, 57),
}
# fmt: on

MCUBES = DatasetLayout(
    name="mcubes",
    title="MCubeS",
    published_at="https://github.com/kyotovision-public/multimodal-material-segmentation",
    download_gb=9.27,
    native_size=(1024, 1224),
    published_counts={"train": 302, "val": 96, "test": 102},
    folder="multimodal_dataset",
    signs=(("list_folder",), ("polL_color",)),
    sensors=(
        sensor(Modality(name="image", kind="rgb", photometric=("blur",), **IMAGENET), "polL_color/{name}.png"),
        sensor(Modality(name="aolp", kind="angle"), place("polL_aolp_sin/{name}.npy", "polL_aolp_cos/{name}.npy")),
        sensor(Modality(name="dolp", kind="gray"), "polL_dolp/{name}.npy"),
        sensor(Modality(name="nir", kind="gray", photometric=("blur",)), "NIR_warped/{name}.png"),
    ),
    labels=(place("GT/{name}.png"),),
    classes=CLASSES,
    id="{name}",
    lists=Lists(folder="list_folder"),
    crop=Crop(left=192, of_height=1024, square=True),
)
