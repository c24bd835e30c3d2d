from __future__ import annotations

import pytest

from memorysam_cli.data import listing
from memorysam_cli.errors import DataError


def pair(sources: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    return listing.pair(sources).rows


def sources(**folders: list[str]) -> dict[str, dict[str, str]]:
    return {folder: {name: f"{folder}/{name}.png" for name in names} for folder, names in folders.items()}


def test_equal_names_pair_and_the_order_is_by_name() -> None:
    assert pair(sources(img=["b/1", "a/1"], depth=["a/1", "b/1"])) == [
        {"img": "a/1", "depth": "a/1"},
        {"img": "b/1", "depth": "b/1"},
    ]


def test_same_names_in_different_folders_do_not_meet() -> None:
    rows = pair(sources(img=["fog/000050", "sun/000050"], depth=["fog/000050", "sun/000050"]))
    assert [row["img"] for row in rows] == ["fog/000050", "sun/000050"]


def test_a_folder_may_lack_some_scenes() -> None:
    assert pair(sources(img=["1", "2", "3"], depth=["2"])) == [{"img": "1"}, {"img": "2", "depth": "2"}, {"img": "3"}]


def test_one_folder_needs_no_pairs() -> None:
    assert pair(sources(img=["1", "2"])) == [{"img": "1"}, {"img": "2"}]


def test_the_sensors_name_in_file_names_is_left_out() -> None:
    rows = pair(
        sources(
            img=["fog/m/000050_rgb_front", "sun/m/000050_rgb_front", "sun/m/000060_rgb_front"],
            hha=["fog/m/000050_depth_front", "sun/m/000050_depth_front", "sun/m/000060_depth_front"],
            event=["sun/m/000060_event_front"],
        )
    )
    assert rows == [
        {"img": "fog/m/000050_rgb_front", "hha": "fog/m/000050_depth_front"},
        {"img": "sun/m/000050_rgb_front", "hha": "sun/m/000050_depth_front"},
        {"img": "sun/m/000060_rgb_front", "hha": "sun/m/000060_depth_front", "event": "sun/m/000060_event_front"},
    ]


@pytest.mark.parametrize(
    "folders",
    [
        {"img": ["0001_rgb"], "depth": ["0002_depth"]},  # number and sensor both differ
        {"img": ["frame_1"], "depth": ["frame_2"]},
        {"img": ["1"], "depth": ["2"]},
        {"img": ["1", "2"], "depth": ["3", "4"]},
        {"img": ["1_rgb"], "depth": ["1_front_depth"]},
        {"img": ["1", "2"], "depth": ["1", "2"], "event": ["e1", "e3"]},
    ],
)
def test_files_that_do_not_pair_are_refused_with_an_example(folders: dict[str, list[str]]) -> None:
    with pytest.raises(DataError, match=r"none of its files pairs .* \(such as "):
        pair(sources(**folders))


def test_two_files_of_a_folder_never_become_one_scene() -> None:
    # Leaving out the second part would make one name of both.
    with pytest.raises(DataError, match="none of its files pairs"):
        pair(sources(img=["1_rgb", "1-rgb"], depth=["1_depth"]))


def test_numbers_pair_where_names_differ_and_the_numbers_are_one_to_one() -> None:
    found = listing.pair(sources(img=["day/a_9", "day/a_10"], depth=["day/0010-d", "day/0009-d"]))
    assert found.rows == [{"img": "day/a_9", "depth": "day/0009-d"}, {"img": "day/a_10", "depth": "day/0010-d"}]
    assert found.is_by_number
    assert not listing.pair(sources(img=["1", "2"], depth=["1", "2"])).is_by_number
    # A number that is the same throughout tells the sensor; those that change count together.
    found = listing.pair(sources(img=["cam1_1_5", "cam1_1_6", "cam1_2_5"], depth=["d2x01x05", "d2x02x05", "d2x01x06"]))
    assert {"img": "cam1_1_5", "depth": "d2x01x05"} in found.rows and len(found.rows) == 3


@pytest.mark.parametrize(
    ("img", "depth"),
    [
        (["a0", "a1"], ["b1", "b2"]),
        (["a1", "a2", "a3"], ["b1", "b2"]),
        (["a1", "a01"], ["b1", "b2"]),  # the same number twice
        (["a1", "x2"], ["b1", "b2"]),  # more than the number differs
        (["day/a1", "day/a2"], ["night/b1", "night/b2"]),
    ],
)
def test_numbers_that_may_be_another_scenes_pair_nothing(img: list[str], depth: list[str]) -> None:
    with pytest.raises(DataError, match="none of its files pairs"):
        listing.pair(sources(img=img, depth=depth))
