"""File names: what they say is taken, what they leave open is asked for, what contradicts is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from memorysam_cli.engine.weights.exchange import choose_recipe, read_name
from memorysam_cli.errors import UsageError

NAMES = {
    "RGBDEL_epoch95_65.38.pth": ("deliver", ("img", "depth", "event", "lidar"), 95, 65.38),
    "RGBD_epoch154_63.48.pth": ("deliver-rgbd", ("img", "depth"), 154, 63.48),
    "RGBE_epoch3_50.pth": ("deliver", ("img", "event"), 3, 50.0),
    "RGB-D-E-L_epoch95_65.38_checkpoint.pth": ("deliver", ("img", "depth", "event", "lidar"), 95, 65.38),
    "rgbdel.safetensors": ("deliver", ("img", "depth", "event", "lidar"), None, None),
    "IA_epoch259_51.2.pth": ("mcubes-ia", ("image", "aolp"), 259, 51.2),
    "IAD_epoch326_52.2.pth": ("mcubes-iad", ("image", "aolp", "dolp"), 326, 52.2),
    "I-A-D-N_epoch453_52.88.pth": ("mcubes", ("image", "aolp", "dolp", "nir"), 453, 52.88),
    "RGBADN_epoch453_52.88.pth": ("mcubes", ("image", "aolp", "dolp", "nir"), 453, 52.88),
    "DELIVER_CMNeXt-B2_idel_epoch7_1.5.pth": ("deliver", ("img", "depth", "event", "lidar"), 7, 1.5),
    "MCubeS_ia_epoch7_1.5.pth": ("mcubes-ia", ("image", "aolp"), 7, 1.5),
    "mcubes-iad/epoch9_41.pth": ("mcubes-iad", ("image", "aolp", "dolp"), 9, 41.0),
    "DELIVER_b2_rgbd/epoch9_41.5.pth": ("deliver-rgbd", ("img", "depth"), 9, 41.5),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_recipe_modalities_epoch_and_result(name: str, tmp_path: Path) -> None:
    recipe, modalities, epoch, miou = NAMES[name]
    chosen = choose_recipe(tmp_path / name, recipe=None, modalities=None)
    said = read_name(tmp_path / name)
    assert (chosen.name, chosen.data.modalities, said.epoch, said.miou) == (recipe, modalities, epoch, miou)


SILENT = (
    "weights.pth",
    "trained_in_lab.pth",
    "epoch95_65.38.pth",
    "RGB_epoch3_50.pth",
    "final_id_3.pth",
    "RGBDD_epoch3_50.pth",
    "DELIVER_epoch3_50.pth",
    "mcubes-iad/best.pth",
    "my_deliver_files/epoch3_50.pth",
)


@pytest.mark.parametrize("name", SILENT)
def test_a_name_that_leaves_it_open_is_asked_about(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give --recipe") as caught:
        choose_recipe(tmp_path / name, recipe=None, modalities=None)
    assert "deliver-rgbd" in str(caught.value) and "\n" not in str(caught.value)


def test_options_say_what_a_name_does_not() -> None:
    path = Path("weights.pth")
    assert choose_recipe(path, recipe="mcubes-ia", modalities=None).data.modalities == ("image", "aolp")
    chosen = choose_recipe(path, recipe="deliver", modalities=("img", "lidar"))
    assert chosen.name == "deliver" and chosen.data.modalities == ("img", "lidar")
    assert choose_recipe(path, recipe=None, modalities=("image", "aolp", "dolp")).name == "mcubes-iad"
    assert choose_recipe(Path("RGB_epoch3_50.pth"), recipe="deliver", modalities=("img",)).data.modalities == ("img",)


@pytest.mark.parametrize(
    ("name", "recipe", "modalities"),
    [
        ("RGBD_epoch154_63.48.pth", "deliver", None),
        ("RGBDEL_epoch95_65.38.pth", "deliver-rgbd", None),
        ("RGBDEL_epoch95_65.38.pth", "mcubes", None),
        ("IAD_epoch326_52.2.pth", "deliver", None),
        ("RGBDEL_epoch95_65.38.pth", None, ("img", "event", "depth", "lidar")),
        ("MCubeS_epoch3_4.pth", "deliver", None),
    ],
)
def test_contradictions_are_refused(name: str, recipe: str | None, modalities: tuple[str, ...] | None) -> None:
    with pytest.raises(UsageError, match="its name says") as caught:
        choose_recipe(Path(name), recipe=recipe, modalities=modalities)
    assert "rename the file" in str(caught.value)


def test_of_a_data_set_that_upstream_never_had_names_say_nothing(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    from memorysam_cli import recipe as recipes

    plain = recipes.load("deliver").to_yaml().replace("dataset: deliver", "dataset: own")
    own.write_text(plain)
    chosen = choose_recipe(Path("RGBD_epoch1_2.pth"), recipe=str(own), modalities=("a", "b"))
    assert chosen.data.dataset == "own" and chosen.data.modalities == ("a", "b")


def test_a_score_above_a_hundred_is_none(tmp_path: Path) -> None:
    assert read_name(tmp_path / "RGBD_epoch3_650.pth").miou is None
