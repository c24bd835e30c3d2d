from __future__ import annotations

import pytest

from memorysam_cli.data.own import sensors
from memorysam_cli.dataset import Kind
from memorysam_cli.errors import UsageError


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("rgb", "rgb"), ("front_camera", "rgb"), ("ms", "rgb"), ("NIR", "gray"), ("depth_left", "depth"),
        ("hha", "hha"), ("dvs", "event"), ("lidar2", "lidar"), ("ir", "thermal"), ("LWIR-1", "thermal"),
        ("aolp", "angle"),
    ],
)  # fmt: skip
def test_the_kind_is_guessed_from_a_word_of_the_name(name: str, kind: Kind) -> None:
    assert sensors.guess_kind(name) == kind


@pytest.mark.parametrize(("name", "why"), [("sensor1", "means no known kind"), ("rgb_depth", "may mean rgb and depth")])
def test_a_name_that_tells_no_kind_is_refused_with_the_list(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"{why}; give --kind {name}=KIND, one of rgb, gray, depth, hha, event, lidar"):
        sensors.guess_kind(name)


def test_every_kind_has_defaults_and_no_word_speaks_for_two() -> None:
    assert set(sensors.DEFAULTS) == set(sensors.KINDS) == set(sensors.WORDS)
    words = [word for text in sensors.WORDS.values() for word in text.split()]
    assert len(words) == len(set(words))


def test_photos_are_normalized_and_changed_in_color_others_are_not() -> None:
    rgb, depth = sensors.make_modality("a", "rgb"), sensors.make_modality("b", "depth", scale=0.001)
    assert (rgb.mean, rgb.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert rgb.photometric == ("jitter", "blur") and rgb.interpolation == "bilinear"
    assert (depth.mean, depth.std, depth.photometric) == (None, None, ())
    assert (depth.interpolation, depth.scale, depth.flip) == ("nearest", 0.001, "mirror")


@pytest.mark.parametrize(("given", "made"), [(None, None), ((3, 2, 1), (3, 2, 1)), ((4,), (4, 4, 4))])
def test_one_channel_is_taken_three_times(given: tuple[int, ...] | None, made: tuple[int, int, int] | None) -> None:
    assert sensors.make_modality("ms", "rgb", channels=given).channels == made
