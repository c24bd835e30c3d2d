from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from memorysam_cli.data import layout_of, loader
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.datasets.mcubes import MCUBES
from memorysam_cli.data.loader import (
    Batch,
    UnlabeledScene,
    epoch_order,
    scored_scenes,
    training_batches,
    unlabeled_scenes,
)
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.errors import DataError
from memorysam_cli.recipe import Recipe
from memorysam_cli.storage import images

from .conftest import write_mcubes


def batches(manifest: Manifest, recipe: Recipe, *, workers: int = 0, epoch: int = 0, **where: int) -> list[Batch]:
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"workers": workers})})
    scenes = manifest.of_split("train")
    return list(training_batches(manifest, scenes=scenes, recipe=recipe, epoch=epoch, **where))


def names(found: list[Batch]) -> list[tuple[str, ...]]:
    return [tuple(scene.id for scene in batch.scenes) for batch in found]


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert names(first) == names(second)
    for one, other in zip(first, second, strict=True):
        assert one.label is not None and other.label is not None
        torch.testing.assert_close(one.label, other.label, rtol=0, atol=0)
        for left, right in zip(one.frames, other.frames, strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_the_order_is_a_permutation_that_only_seed_and_epoch_decide() -> None:
    order = epoch_order(100, seed=3, epoch=5)
    assert sorted(order) == list(range(100))
    assert order == epoch_order(100, seed=3, epoch=5)
    assert order != epoch_order(100, seed=3, epoch=6) != epoch_order(100, seed=4, epoch=6)
    assert epoch_order(6, seed=3407, epoch=0) == [2, 0, 1, 3, 4, 5]


def test_batches_have_the_promised_shapes_and_drop_the_last_partial_one(
    prepared: Manifest, small_recipe: Recipe
) -> None:
    found = batches(prepared, small_recipe)
    assert [len(batch.scenes) for batch in found] == [2, 2, 2]  # of seven scenes
    assert [frame.shape for frame in found[0].frames] == [(2, 3, 32, 32)] * 2
    assert found[0].label is not None
    assert (found[0].label.shape, found[0].label.dtype) == ((2, 32, 32), torch.int64)
    assert len(set(chain(*names(found)))) == 6


def test_an_epoch_repeats_itself_exactly_and_the_next_one_differs(prepared: Manifest, small_recipe: Recipe) -> None:
    assert_same(batches(prepared, small_recipe), batches(prepared, small_recipe))
    first, second = batches(prepared, small_recipe), batches(prepared, small_recipe, epoch=1)
    assert (first[0].frames[0] != second[0].frames[0]).any()


def test_training_antialiases_as_the_recipe_says_and_else_as_the_card(prepared: Manifest, small_recipe: Recipe) -> None:
    def epoch(*, card: bool, recipe: bool | None) -> list[Batch]:
        modalities = tuple(each.model_copy(update={"antialias": card}) for each in prepared.info.modalities)
        info = prepared.info.model_copy(update={"modalities": modalities})
        # Crops that shrink: frames are larger than an eighth of 32 px.
        tiny = small_recipe.augment.model_copy(update={"scale": (0.125, 0.125)})
        data = small_recipe.data.model_copy(update={"antialias": recipe})
        return batches(replace(prepared, info=info), small_recipe.model_copy(update={"augment": tiny, "data": data}))

    rng = np.random.Generator(np.random.PCG64(1))
    for path in (prepared.root / "DELIVER/img").rglob("*.png"):
        images.write_png(path, rng.integers(0, 256, images.read(path).shape, np.uint8))
    smooth, sharp = epoch(card=True, recipe=None), epoch(card=False, recipe=None)
    assert_same(epoch(card=False, recipe=True), smooth)
    assert_same(epoch(card=True, recipe=False), sharp)
    assert all((one.frames[0] != other.frames[0]).any() for one, other in zip(smooth, sharp, strict=True))


def test_starting_at_a_batch_gives_the_tail_of_the_epoch(prepared: Manifest, small_recipe: Recipe) -> None:
    whole = batches(prepared, small_recipe)
    for start in range(4):
        assert_same(batches(prepared, small_recipe, start=start), whole[start:])


def test_worker_processes_change_nothing(prepared: Manifest, small_recipe: Recipe) -> None:
    assert_same(batches(prepared, small_recipe, workers=2), batches(prepared, small_recipe))


def test_two_ranks_part_the_batches_of_one(prepared: Manifest, small_recipe: Recipe) -> None:
    one_at_a_time = small_recipe.model_copy(update={"train": small_recipe.train.model_copy(update={"batch": 1})})
    alone = batches(prepared, one_at_a_time)
    ranks = [batches(prepared, one_at_a_time, rank=rank, world=2) for rank in range(2)]
    assert [len(found) for found in ranks] == [3, 3]  # of seven: the tail is dropped, so that no rank waits
    assert_same(list(chain(*zip(*ranks, strict=True))), alone[:6])


@pytest.mark.parametrize(
    ("count", "batch", "world", "expected"), [(7, 2, 1, 3), (7, 2, 2, 1), (7, 1, 3, 2), (1, 2, 1, 0)]
)
def test_the_number_of_batches_by_hand(count: int, batch: int, world: int, expected: int) -> None:
    assert loader.batches_per_epoch(count, batch=batch, world=world) == expected


def test_too_few_scenes_are_refused_before_anything_is_read(prepared: Manifest, small_recipe: Recipe) -> None:
    with pytest.raises(DataError, match="7 training scenes are fewer than one batch of 2 for each of 4"):
        training_batches(prepared, scenes=prepared.of_split("train"), recipe=small_recipe, epoch=0, world=4)


def test_an_unknown_modality_is_refused_with_a_suggestion(prepared: Manifest) -> None:
    with pytest.raises(DataError, match="did you mean 'lidar'"):
        loader.modalities_of(prepared.info, ["lidr"])
    assert [found.name for found in loader.modalities_of(prepared.info, ["lidar", "img"])] == ["lidar", "img"]


def test_a_modality_that_a_published_data_set_was_prepared_without_is_named_with_its_files() -> None:
    """Not "did you mean 'depth_raw'?": DELIVER's depth is another folder."""
    info = layout_of("deliver").published_info
    without = info.model_copy(update={"modalities": tuple(each for each in info.modalities if each.name != "depth")})
    words = (
        r"deliver: was prepared without 'depth' \(looked for hha/.*\); add .* choose from img, event, lidar, depth_raw"
    )
    with pytest.raises(DataError, match=words):
        loader.modalities_of(without, ["img", "depth"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_ends_with_its_own_message(prepared: Manifest, small_recipe: Recipe, workers: int) -> None:
    bad = prepared.root / prepared.of_split("train")[3].files["depth"][0]
    bad.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        batches(prepared, small_recipe, workers=workers)
    line = f"memorysam prepare manifest {prepared.root} deliver --drop-incomplete"
    assert str(caught.value) == (
        f"{bad}: empty (0 bytes); get the file again; fix the file, or leave all such scenes out: {line}"
    )


def test_scored_scenes_come_in_order_and_share_frames_where_nothing_is_cropped(prepared: Manifest) -> None:
    scenes = prepared.of_split("val")
    modalities = loader.modalities_of(prepared.info, ["depth", "img"])
    found = list(scored_scenes(prepared, scenes=scenes, modalities=modalities, size=32, workers=0))
    assert [entry.scene for entry in found] == list(scenes)
    for entry in found:
        assert entry.resized.label is not None and entry.whole.label is not None
        assert entry.shares_frames and entry.whole.frames is entry.resized.frames
        assert [frame.shape for frame in entry.whole.frames] == [(1, 3, 32, 64)] * 2  # 6×8 -> 32×43 -> 32×64
        assert entry.resized.label.shape == (1, 32, 64)
        assert entry.whole.label.shape == (1, 6, 8)


def test_scored_scenes_are_the_same_from_workers(prepared: Manifest) -> None:
    scenes = prepared.of_split("val")
    modalities = loader.modalities_of(prepared.info, ["img"])
    alone, helped = (
        list(scored_scenes(prepared, scenes=scenes, modalities=modalities, size=32, workers=workers))
        for workers in (0, 2)
    )
    assert_same([entry.resized for entry in alone], [entry.resized for entry in helped])
    assert_same([entry.whole for entry in alone], [entry.whole for entry in helped])


def test_a_cropped_data_set_scores_a_part_and_predicts_the_whole(tmp_path: Path) -> None:
    folder = write_mcubes(tmp_path / "m", {"val": ["a"]}, height=64, width=76)
    manifest = manifests.write(tmp_path, MCUBES.info(folder), MCUBES.scenes(folder, tmp_path))
    modalities = loader.modalities_of(manifest.info, ["image", "aolp", "nir"])
    (entry,) = scored_scenes(manifest, scenes=manifest.scenes, modalities=modalities, size=32, workers=0)
    assert entry.resized.label is not None and entry.whole.label is not None
    assert not entry.shares_frames
    assert [frame.shape for frame in entry.resized.frames] == [(1, 3, 32, 32)] * 3
    assert [frame.shape for frame in entry.whole.frames] == [(1, 3, 32, 64)] * 3  # 64×76 -> 32×38 -> 32×64
    assert entry.whole.label.shape == (1, 64, 76)


@pytest.mark.parametrize(("size", "seen"), [(32, (64, 76)), (64, (64, 76)), (96, (96, 128))])
def test_for_windows_large_frames_keep_their_own_resolution(tmp_path: Path, size: int, seen: tuple[int, int]) -> None:
    folder = write_mcubes(tmp_path / "m", {"val": ["a"]}, height=64, width=76)
    info = MCUBES.info(folder)
    for crop in (info.crop, None):
        manifest = manifests.write(
            tmp_path, info.model_copy(update={"crop": crop}), MCUBES.scenes(folder, tmp_path)
        )  # fmt: skip
        options = {"scenes": manifest.scenes, "modalities": loader.modalities_of(info, ["image", "nir"])}
        (entry,) = scored_scenes(manifest, **options, size=size, workers=0, tile=True)
        (plain,) = scored_scenes(manifest, **options, size=size, workers=0)
        assert [frame.shape[2:] for frame in entry.whole.frames] == [seen] * 2
        assert entry.shares_frames is (crop is None) is (entry.whole.frames is entry.resized.frames)
        for one, other in ((entry.resized, plain.resized), (entry.whole, plain.whole)):
            assert one.label is not None and other.label is not None
            torch.testing.assert_close(one.label, other.label, rtol=0, atol=0)
        if crop is not None:  # the published size, as it is
            assert_same([entry.resized], [plain.resized])
        (found,) = unlabeled_scenes(manifest.root, **options, size=size, workers=0, tile=True)
        torch.testing.assert_close(found.frames, entry.whole.frames, rtol=0, atol=0)


def test_training_drops_the_left_columns_too(tmp_path: Path, small_recipe: Recipe) -> None:
    folder = write_mcubes(tmp_path / "m", {"train": ["a", "b"]}, height=64, width=76)
    left = np.full((64, 76), 3, np.uint8)
    left[:, :12] = 19  # round(192 · 64 / 1024) columns
    for name in ("a", "b"):
        manifests_label = folder / "GT" / f"{name}.png"
        images.write_png(manifests_label, left)
    manifest = manifests.write(tmp_path, MCUBES.info(folder), MCUBES.scenes(folder, tmp_path))
    data = small_recipe.data.model_copy(update={"modalities": ("image", "aolp")})
    recipe = small_recipe.model_copy(update={"data": data})
    for epoch in range(5):
        for batch in batches(manifest, recipe, epoch=epoch):
            assert batch.label is not None
            assert 19 not in batch.label and 3 in batch.label


def test_unlabeled_scenes_use_what_is_there(prepared: Manifest) -> None:
    files = prepared.scenes[0].files
    scenes = [replace(prepared.scenes[0], label=None, files={"lidar": files["lidar"], "img": files["img"]})]
    modalities = loader.modalities_of(prepared.info, ["img", "depth", "lidar"])
    (found,) = unlabeled_scenes(prepared.root, scenes=scenes, modalities=modalities, size=32, workers=0)
    assert isinstance(found, UnlabeledScene)
    assert found.modalities == ("img", "lidar")
    assert (len(found.frames), found.height, found.width) == (2, 6, 8)
    (fault,) = unlabeled_scenes(prepared.root, scenes=scenes, modalities=modalities[1:2], size=32, workers=0)
    assert isinstance(fault, DataError) and "has none of the modalities depth" in str(fault)


def test_a_batch_moves_as_a_whole(prepared: Manifest, small_recipe: Recipe) -> None:
    batch = batches(prepared, small_recipe)[0].to("meta")
    assert batch.label is not None
    assert {tensor.device.type for tensor in (*batch.frames, batch.label)} == {"meta"}


def with_max_bad(recipe: Recipe, share: float) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_bad": share})})


def break_files(prepared: Manifest, *numbers: int) -> list[str]:
    """Empty the depth of these training scenes; returns their ids."""
    scenes = [prepared.of_split("train")[number] for number in numbers]
    for scene in scenes:
        (prepared.root / scene.files["depth"][0]).write_bytes(b"")
    return [scene.id for scene in scenes]


@pytest.mark.parametrize("workers", [0, 2])
def test_with_max_bad_others_stand_for_scenes_that_cannot_be_read(
    prepared: Manifest, small_recipe: Recipe, workers: int
) -> None:
    whole = batches(prepared, small_recipe)
    order = [prepared.of_split("train")[index].id for index in epoch_order(7, seed=11, epoch=0)]
    (bad,) = break_files(prepared, epoch_order(7, seed=11, epoch=0)[3])  # the second of the second batch
    found = batches(prepared, with_max_bad(small_recipe, 0.2), workers=workers)
    assert names(found) == [tuple(order[:2]), (order[2], order[4]), tuple(order[4:6])]
    assert [len(batch.left_out) for batch in found] == [0, 1, 0]
    assert found[1].left_out[0].scene == bad and "empty (0 bytes)" in found[1].left_out[0].why
    assert_same([found[0], found[2]], [whole[0], whole[2]])
    assert_same(batches(prepared, with_max_bad(small_recipe, 0.2), start=1), found[1:])


def test_what_stands_for_a_bad_scene_is_nowhere_twice_in_its_batch(prepared: Manifest, small_recipe: Recipe) -> None:
    order = epoch_order(7, seed=11, epoch=0)
    bad = break_files(prepared, order[0], order[1], order[2])
    found = batches(prepared, with_max_bad(small_recipe, 0.5))
    ids = [prepared.of_split("train")[index].id for index in order]
    assert names(found) == [(ids[3], ids[4]), (ids[4], ids[3]), (ids[4], ids[5])]
    assert [[each.scene for each in batch.left_out] for batch in found] == [[bad[0], bad[2], bad[1]], [bad[2]], []]


def test_the_batch_keeps_its_remarks_on_its_way(prepared: Manifest, small_recipe: Recipe) -> None:
    break_files(prepared, epoch_order(7, seed=11, epoch=0)[0])
    (first, *_) = batches(prepared, with_max_bad(small_recipe, 0.2))
    assert len(first.left_out) == 1
    assert first.to("meta").left_out == first.left_out


def test_too_many_bad_scenes_for_one_batch_end_the_epoch(prepared: Manifest, small_recipe: Recipe) -> None:
    break_files(prepared, *range(7))
    with pytest.raises(DataError, match=r"4 scenes for a single batch cannot be read, more than data.max_bad=0.2 of 7"):
        batches(prepared, with_max_bad(small_recipe, 0.2))


def test_without_max_bad_a_bad_scene_ends_the_epoch(prepared: Manifest, small_recipe: Recipe) -> None:
    break_files(prepared, 0)
    with pytest.raises(DataError, match=r"empty \(0 bytes\)"):
        batches(prepared, with_max_bad(small_recipe, 0.0))
