from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from memorysam_cli.data.datasets.deliver import CASES, CLASSES, CONDITIONS
from memorysam_cli.data.datasets.mcubes import CLASSES as MATERIALS
from memorysam_cli.streetworld.light import WEATHER
from memorysam_cli.streetworld.recordings import FAILURES
from memorysam_cli.streetworld.scenes import deliver_pictures, mcubes_pictures, plan
from memorysam_cli.streetworld.surfaces import Label, Material

FAILED_FOLDER = {
    "motionblur": "img",
    "overexposure": "img",
    "underexposure": "img",
    "lidarjitter": "lidar",
    "eventlowres": "event",
}


def plain(name: str) -> str:
    return name.replace("_", "").lower()


def test_labels_and_materials_are_those_of_the_real_data_sets():
    singular = {"cars": "car"}
    assert [plain(label.name) for label in Label][1:] == [singular.get(plain(name), plain(name)) for name in CLASSES]
    assert [material.name.lower() for material in Material] == list(MATERIALS)


def test_weathers_and_failures_are_those_of_the_real_data_set():
    assert tuple(WEATHER) == CONDITIONS and FAILURES == CASES


@pytest.mark.parametrize("case", CASES)
def test_a_failure_changes_its_own_sensor_and_no_other(planned, case):
    normal = deliver_pictures(planned, size=64, seed=3)
    failed = deliver_pictures(replace(planned, case=case), size=64, seed=3)
    changed = {
        folder
        for folder in normal
        if normal[folder].shape != failed[folder].shape or (normal[folder] != failed[folder]).any()
    }
    assert changed == {FAILED_FOLDER[case]}


@pytest.mark.parametrize("condition", [name for name in CONDITIONS if name != "sun"])
def test_a_condition_changes_no_geometry(planned, condition):
    sunny = deliver_pictures(planned, size=64, seed=3)
    other = deliver_pictures(replace(planned, condition=condition), size=64, seed=3)
    for folder in ("hha", "depth", "semantic"):
        np.testing.assert_array_equal(sunny[folder], other[folder])
    assert (sunny["img"] != other["img"]).mean() > 0.9


def test_low_resolution_events_are_a_quarter_as_large(planned):
    shapes = {
        name: picture.shape
        for name, picture in deliver_pictures(replace(planned, case="eventlowres"), size=64, seed=3).items()
    }
    assert shapes.pop("event") == (16, 16, 3)
    assert shapes == {
        name: (64, 64, 4 if name == "semantic" else 3) for name in ("img", "hha", "depth", "lidar", "semantic")
    }


def test_a_jittered_scan_disagrees_with_the_depth(planned):
    def disagreement(case: str | None) -> float:
        pictures = deliver_pictures(replace(planned, case=case), size=64, seed=3)
        hit = pictures["lidar"][..., 0] > 0
        ranges = -50 * np.log(pictures["lidar"][..., 0][hit] / 255)
        depths = 1001 ** (pictures["depth"][..., 0][hit] / 255) - 1
        return float(np.median(np.abs(ranges / depths - 1.15)))

    assert disagreement("lidarjitter") > 1.3 * disagreement(None)


def test_lidar_and_depth_agree_at_every_point():
    for scene in plan(40)[::8]:
        pictures = deliver_pictures(replace(scene, case=None), size=96, seed=5)
        lidar, depth = pictures["lidar"][..., 0], pictures["depth"][..., 0].astype(np.float64)
        row, column = np.nonzero(lidar)
        stretch = np.sqrt(1 + ((column + 0.5 - 48) ** 2 + (row + 0.5 - 48) ** 2) / (0.72 * 96) ** 2)
        ranges = -50 * np.log(lidar[row, column] / 255)
        # Half a step of either code: 255 / 50 per meter … and 1.4 % of 1 m + depth.
        low, high = (1001 ** ((depth[row, column] + half) / 255) - 1 for half in (-0.51, 0.51))
        tolerance = 50 * 0.51 / lidar[row, column]
        assert (ranges > low * stretch - tolerance).all() and (ranges < high * stretch + tolerance).all()
        assert len(row) > 200


def test_a_seed_gives_the_same_pictures_bit_by_bit_in_any_order(planned):
    other = replace(planned, sequence=9)
    first = deliver_pictures(planned, size=48, seed=1)
    deliver_pictures(other, size=48, seed=1)
    again = deliver_pictures(planned, size=48, seed=1)
    for folder, picture in first.items():
        np.testing.assert_array_equal(picture, again[folder])


@pytest.mark.parametrize("change", [{"split": "val"}, {"sequence": 9}, {"frame": 2}])
def test_other_splits_sequences_and_frames_show_something_else(planned, change):
    here, there = (deliver_pictures(scene, size=48, seed=1) for scene in (planned, replace(planned, **change)))
    assert (here["semantic"] != there["semantic"]).any(axis=-1).mean() > 0.05


def test_another_seed_shows_another_world(planned):
    here, there = (deliver_pictures(planned, size=48, seed=seed) for seed in (1, 2))
    assert (here["semantic"] != there["semantic"]).any(axis=-1).mean() > 0.05


@pytest.fixture(scope="module")
def labels() -> list[np.ndarray]:
    """The raw labels of 18 scenes of 96 px."""
    return [deliver_pictures(scene, size=96, seed=8)["semantic"][..., 0] for scene in plan(108)[::6]]


def test_most_classes_occur_the_rare_and_thin_ones_too(labels):
    counts = np.bincount(np.concatenate(labels).ravel(), minlength=256)
    assert counts[26:].sum() == 0
    assert (counts[1:26] > 0).sum() >= 20
    for thin in (Label.POLE, Label.TRAFFIC_SIGN, Label.PEDESTRIAN, Label.TRAFFIC_LIGHT, Label.TWO_WHEELER, Label.FENCE):
        assert counts[thin] > 50, thin
    assert counts.max() < 0.45 * counts.sum()


def test_scenes_are_rich(labels):
    assert np.mean([len(np.unique(label)) for label in labels]) > 12


def test_some_pixels_are_unlabeled_but_few(labels):
    assert 0 < np.mean(np.concatenate(labels) == Label.UNLABELED) < 0.02


@cache
def pictures_in(condition: str) -> list[dict[str, np.ndarray]]:
    """Four scenes without failure, all in one condition."""
    return [
        deliver_pictures(replace(scene, condition=condition, case=None), size=80, seed=4) for scene in plan(48)[::12]
    ]


def edge_contrast(folder: str, condition: str) -> float:
    """How much clearer a sensor's picture changes across borders of classes than elsewhere."""
    at_edges, elsewhere = [], []
    for pictures in pictures_in(condition):
        label, picture = pictures["semantic"][..., 0], pictures[folder].astype(np.float64).sum(axis=-1)
        edge = label[:, 1:] != label[:, :-1]
        change = np.abs(np.diff(picture, axis=1))
        at_edges.append(change[edge].mean())
        elsewhere.append(change[~edge].mean())
    return float(np.mean(at_edges) / np.mean(elsewhere))


@pytest.mark.parametrize("condition", ["night", "fog", "rain"])
def test_color_tells_classes_apart_worse_in_bad_light_and_depth_as_well_as_ever(condition):
    assert edge_contrast("img", condition) < 0.75 * edge_contrast("img", "cloud")
    assert edge_contrast("hha", condition) == edge_contrast("hha", "cloud")
    assert edge_contrast("hha", condition) > 2 * edge_contrast("img", condition)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_events_mark_borders_in_every_condition(condition):
    assert edge_contrast("event", condition) > 1.5


def test_mcubes_pictures_show_the_same_world(planned):
    wide = mcubes_pictures(planned, size=64, seed=3)
    square = deliver_pictures(planned, size=64, seed=3)
    offset = (wide["SS"].shape[1] - 64) // 2
    assert wide["SS"].shape == (64, 76)
    middle = wide["SS"][:, offset : offset + 64]
    raw = square["semantic"][..., 0]
    np.testing.assert_array_equal(middle, np.where(raw > 0, raw - 1, 255))


def test_mcubes_materials_fit_the_classes():
    for scene in plan(30)[::5]:
        pictures = mcubes_pictures(scene, size=64, seed=6)
        material, label = pictures["GT"], pictures["SS"].astype(int) + 1
        assert set(material[label == Label.ROAD].tolist()) <= {Material.ASPHALT}
        assert set(material[label == Label.SKY].tolist()) <= {Material.SKY}
        assert set(material[label == Label.VEGETATION].tolist()) <= {Material.LEAF, Material.WOOD}
        np.testing.assert_array_equal(material == 255, pictures["SS"] == 255)
        assert material[material != 255].max() < 20


def test_polarization_is_an_angle_of_length_one_and_a_share(planned):
    pictures = mcubes_pictures(planned, size=64, seed=3)
    sine, cosine, degree = (pictures[name] for name in ("polL_aolp_sin", "polL_aolp_cos", "polL_dolp"))
    np.testing.assert_allclose(np.hypot(sine, cosine), 1, atol=1e-3)
    assert degree.min() >= 0 and degree.max() <= 1


def test_glass_polarizes_and_leaves_shine_in_the_near_infrared():
    degrees, infrared = {}, {}
    for scene in plan(60)[::8]:
        pictures = mcubes_pictures(replace(scene, condition="cloud"), size=64, seed=6)
        seen = pictures["NIR_warped_mask"] > 0
        for material in (Material.GLASS, Material.PLASTER, Material.LEAF, Material.ASPHALT):
            here = seen & (pictures["GT"] == material)
            degrees.setdefault(material, []).extend(pictures["polL_dolp"][here])
            infrared.setdefault(material, []).extend(pictures["NIR_warped"][here])
    assert np.mean(degrees[Material.GLASS]) > 2 * np.mean(degrees[Material.PLASTER])
    assert np.mean(infrared[Material.LEAF]) > 1.3 * np.mean(infrared[Material.ASPHALT])


def test_the_near_infrared_is_black_where_its_mask_is(planned):
    pictures = mcubes_pictures(planned, size=64, seed=3)
    assert set(np.unique(pictures["NIR_warped_mask"])) <= {0, 255}
    assert not pictures["NIR_warped"][pictures["NIR_warped_mask"] == 0].any()
