from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from memorysam_cli.data.datasets.deliver import CASES, CONDITIONS
from memorysam_cli.streetworld.scenes import PURPOSES, counts, generator, plan


@pytest.mark.parametrize("scenes", [1, 2, 3, 7, 20, 45, 240, 1001])
def test_a_plan_has_exactly_the_scenes_that_were_asked_for(scenes):
    planned = plan(scenes)
    assert len(planned) == scenes == len(set(planned))
    assert Counter(scene.split for scene in planned) == Counter(counts(scenes))


def test_splits_share_the_scenes_60_25_15():
    assert counts(240) == {"train": 144, "val": 60, "test": 36}


@pytest.mark.parametrize("scenes", [3, 4, 5])
def test_every_split_has_a_scene_as_soon_as_there_are_three(scenes):
    assert min(counts(scenes).values()) >= 1


@pytest.mark.parametrize("scenes", [40, 240])
def test_every_split_meets_every_condition(scenes):
    met = defaultdict(set)
    for scene in plan(scenes):
        met[scene.split].add(scene.condition)
    assert all(met[split] == set(CONDITIONS) for split in ("train", "val", "test"))


def test_every_split_of_240_scenes_meets_every_failure_in_about_a_third_of_its_scenes():
    for split in ("train", "val", "test"):
        cases = [scene.case for scene in plan(240) if scene.split == split]
        assert set(cases) == {None, *CASES}
        assert 0.27 < sum(case is not None for case in cases) / len(cases) < 0.43


def test_in_the_long_run_each_failure_meets_each_condition():
    pairs = {(scene.condition, scene.case) for scene in plan(2400)}
    assert pairs == {(condition, case) for condition in CONDITIONS for case in (None, *CASES)}


def test_maps_7_and_10_are_in_test_alone_and_no_place_is_in_two_splits():
    splits_of_map, splits_of_place = defaultdict(set), defaultdict(set)
    for scene in plan(600):
        splits_of_map[scene.map].add(scene.split)
        splits_of_place[scene.map, scene.point].add((scene.split, scene.sequence))
    assert splits_of_map[7] == splits_of_map[10] == {"test"}
    assert all(len(owners) == 1 for owners in splits_of_place.values())


def test_frame_numbers_repeat_in_every_sequence():
    frames = defaultdict(list)
    for scene in plan(240):
        frames[scene.split, scene.sequence].append(scene.frame)
    assert all(numbers == list(range(len(numbers))) for numbers in frames.values())
    assert max(map(len, frames.values())) == 3


def test_generators_differ_by_each_part_of_their_key_and_by_nothing_else(planned):
    def first(seed=0, scene=planned, purpose="img"):
        return int(generator(seed, scene, purpose).integers(1 << 62))

    changed = [
        first(seed=1),
        first(scene=replace(planned, split="val")),
        first(scene=replace(planned, sequence=5)),
        first(scene=replace(planned, frame=2)),
        *(first(purpose=purpose) for purpose in PURPOSES if purpose != "img"),
    ]
    assert len({first(), *changed}) == len(changed) + 1
    assert first(scene=replace(planned, condition="fog", case="motionblur", map=3, point=9)) == first()


def test_frames_of_a_sequence_share_the_generator_of_their_world(planned):
    draws = [generator(0, replace(planned, frame=frame), "world").random(3) for frame in (0, 2)]
    np.testing.assert_array_equal(*draws)
