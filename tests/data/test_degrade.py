"""``augment.degrade``: what happens to a bad sensor, to which, and what it leaves alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from memorysam_cli.data.degrade import KINDS, Seen, damage, degrade
from memorysam_cli.data.loader import generator
from memorysam_cli.data.transforms import Sample, to_tensor
from memorysam_cli.dataset import Modality

SENSORS = (
    Modality(name="rgb", kind="rgb", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
    Modality(name="depth", kind="depth", scale=0.001),
    Modality(name="event", kind="event"),
    Modality(name="lidar", kind="lidar"),
    Modality(name="aolp", kind="angle", scale=1.0),
)
NAMES = [modality.name for modality in SENSORS]


def frames(height: int = 48, width: int = 40) -> dict[str, np.ndarray]:
    """Of each sensor as its files hold it: 8 and 16 bits, sparse ones, floating point."""
    rng = np.random.default_rng(7)
    angle = rng.uniform(0, np.pi, (height, width))
    sparse = rng.integers(1, 256, (height, width, 3)) * (rng.random((height, width, 1)) < 0.1)
    return {
        "rgb": rng.integers(10, 200, (height, width, 3)).astype(np.uint8),
        "depth": np.repeat(rng.integers(500, 9000, (height, width, 1)), 3, 2).astype(np.uint16),
        "event": sparse.astype(np.uint8),
        "lidar": sparse[::-1].astype(np.uint16),
        "aolp": np.stack([np.sin(angle), np.cos(angle), np.sin(angle)], 2).astype(np.float32),
    }


def sample() -> Sample:
    """With a strip of depth that is not a measurement."""
    invalid = np.zeros((48, 40, 3), bool)
    invalid[:5] = True
    whole = frames()
    whole["depth"][:5] = 0
    label = np.random.default_rng(1).integers(0, 5, (48, 40)).astype(np.uint8)
    return Sample(whole, label, {"depth": invalid})


def degraded(share: float, *, number: int = 0, names: tuple[str, ...] = tuple(NAMES)) -> Sample:
    whole = sample()
    part = Sample(
        {name: whole.frames[name] for name in names},
        whole.label,
        {name: gaps for name, gaps in whole.invalid.items() if name in names},
    )
    known = {modality.name: modality for modality in SENSORS}
    return degrade(
        part, modalities=[known[name] for name in names], share=share,
        generator=lambda key: generator(3, 0, number, spawn_key=(2, key)),
    )  # fmt: skip


def changed(result: Sample) -> set[str]:
    """The sensors that are not as they were."""
    before = sample()
    return {
        name
        for name, frame in result.frames.items()
        if not np.array_equal(frame, before.frames[name])
        or not np.array_equal(result.invalid.get(name, 0), before.invalid.get(name, 0))
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", SENSORS, ids=NAMES)
def test_what_is_done_to_a_frame_keeps_what_a_frame_must_be(modality: Modality, kind: str) -> None:
    for seed in range(6):
        before = sample()
        gaps = before.invalid.get(modality.name, np.zeros((48, 40, 3), bool))
        found = damage(Seen(before.frames[modality.name], gaps, modality), rng=generator(seed), kind=kind)
        assert found.frame.dtype == before.frames[modality.name].dtype and found.frame.shape == (48, 40, 3)
        assert not found.frame[found.invalid].any()  # what is invalid stands as 0
        if kind != "offset":
            assert found.invalid[gaps].all()  # what was no measurement is none now
        assert np.isfinite(to_tensor(found.frame, modality, invalid=found.invalid).numpy()).all()
        if not (modality.kind in {"event", "lidar"} and kind in {"holes", "lines", "blocks"}):
            assert not np.array_equal(found.frame, before.frames[modality.name])
        np.testing.assert_array_equal(before.frames[modality.name], sample().frames[modality.name])  # not in place


def test_each_kind_by_what_it_means() -> None:
    rgb = SENSORS[0]
    frame = np.full((64, 64, 3), 100, np.uint8)
    frame[:, 32:] = 40
    bare = np.zeros(frame.shape, bool)

    def done(kind: str, seed: int = 0) -> Seen:
        return damage(Seen(frame, bare, rgb), rng=generator(seed), kind=kind)

    holes = done("holes")
    assert 0.1 < holes.invalid.mean() < 0.95
    np.testing.assert_array_equal(holes.frame[~holes.invalid], frame[~holes.invalid])
    moved = done("offset")
    rows, columns = (64 - int((~moved.invalid[:, :, 0]).any(axis=axis).sum()) for axis in (1, 0))
    assert 1 <= rows <= 6 and 1 <= columns <= 6  # 2 to 10 % of 64
    for seed in range(8):
        exposed = done("exposure", seed).frame.astype(int)
        gain = exposed[0, 0, 0] / 100
        assert 0.04 <= gain <= 0.51 or 2 <= gain <= 2.56  # 255 / 100: saturated
        assert exposed[0, 63, 0] == pytest.approx(min(255, 40 * gain), abs=1) or gain > 2.5
        blurred = done("blur", seed).frame
        assert blurred[:, 0].min() >= 90 and 40 < blurred[32, 32, 0] < 100  # the edge is soft, what is flat stays
        lines = done("lines", seed)
        dead = lines.invalid.all(axis=2) | (lines.frame != frame).any(axis=2)
        assert dead.all(axis=0).any() or dead.all(axis=1).any()
        assert done("blocks", seed).frame.min() >= 40


def test_angles_have_no_brightness() -> None:
    gaps, kinds = np.zeros((48, 40, 3), bool), set()
    for seed in range(40):
        found = damage(Seen(frames()["aolp"], gaps, SENSORS[4]), rng=generator(seed))
        assert np.abs(found.frame).max() <= 1
        kinds.add(found.invalid.any())
    assert kinds == {True, False}


def test_off_and_alone_change_nothing() -> None:
    assert changed(degraded(0.0)) == set()
    assert all(changed(degraded(1.0, number=number, names=("rgb",))) == set() for number in range(5))


def test_never_all_sensors_of_a_scene_and_each_as_often_as_asked() -> None:
    for names in (("rgb", "aolp"), tuple(NAMES)):
        hits: Counter[str] = Counter()
        for number in range(60):
            found = changed(degraded(1.0, number=number, names=names))
            assert len(found) < len(names)
            hits.update(found)
        assert min(hits.values()) >= 15  # with two sensors each is spared in half of the scenes
    counts = [len(changed(degraded(0.25, number=number))) for number in range(200)]
    assert 0.17 < sum(counts) / (200 * len(NAMES)) < 0.31  # deviation 0.014; a hit may change nothing of a sparse frame


def test_labels_and_what_happens_to_one_sensor_do_not_depend_on_the_others() -> None:
    hits = 0
    for number in range(12):
        whole, part = degraded(0.4, number=number), degraded(0.4, number=number, names=("lidar", "rgb"))
        np.testing.assert_array_equal(whole.label, sample().label)
        if changed(part) == {"lidar", "rgb"} & changed(whole):  # else one of the two was spared
            hits += len(changed(part))
            for name in ("lidar", "rgb"):
                np.testing.assert_array_equal(whole.frames[name], part.frames[name])
    assert hits >= 4
    assert len({tuple(sorted(changed(degraded(0.4, number=number)))) for number in range(12)}) > 3
    first, again = degraded(0.4, number=4), degraded(0.4, number=4)
    for name in NAMES:
        np.testing.assert_array_equal(first.frames[name], again.frames[name])


def test_frames_of_one_sensor_are_hit_alike_and_one_whole_sensor_is_spared() -> None:
    """``depth`` and ``aolp`` stand for the frames of one sensor."""
    owner = {"depth": "ms", "aolp": "ms"}
    known = [modality for modality in SENSORS if modality.name in {*owner, "rgb"}]
    whole = sample()
    part = Sample({modality.name: whole.frames[modality.name] for modality in known}, whole.label, whole.invalid)
    hits = Counter[tuple[str, ...]]()
    for number in range(12):
        found = degrade(
            part, modalities=known, share=0.6, sensors=owner,
            generator=lambda key, number=number: generator(3, 0, number, spawn_key=(2, key)),  # type: ignore[misc]
        )  # fmt: skip
        hits[tuple(name for name in part.frames if found.frames[name] is not part.frames[name])] += 1
    assert set(hits) == {(), ("rgb",), ("depth", "aolp")}
