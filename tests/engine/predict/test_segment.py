from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memorysam_cli.data import decode, transforms
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.engine.evaluate import scoring
from memorysam_cli.engine.evaluate.counts import confusion
from memorysam_cli.engine.infer import decision
from memorysam_cli.engine.infer.inference import Inference
from memorysam_cli.engine.infer.views import View
from memorysam_cli.engine.predict import files as names
from memorysam_cli.engine.predict import segment as segmenting
from memorysam_cli.engine.predict.files import LEDGER, LedgerLine, SceneFiles
from memorysam_cli.engine.predict.ledger import Trees, finish, totals_of
from memorysam_cli.errors import DataError, EnvironmentFault
from memorysam_cli.storage import documents, images

from ..stand_ins import CLASSES, MODALITIES, PLANS, Brightness, Plan, write_data


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    return write_data(tmp_path / "data")


def segment(
    data: Manifest, out: Path, scenes: Sequence[Scene] | None = None, *, model: Any = None, **options: Any
) -> dict[str, Any]:
    chosen = data.scenes if scenes is None else scenes
    settings: dict[str, Any] = {"image_size": 64, "device": "cpu", "workers": 0} | options
    extras, advance = settings.pop("extras", ()), settings.pop("advance", lambda _count: None)
    modalities, skip_bad = settings.pop("modalities", MODALITIES), settings.pop("skip_bad", False)
    files = SceneFiles(out, data.root, data.info, modalities, extras)
    names.clear_earlier(out, data.info)
    (out / LEDGER).touch()

    def tell(line: LedgerLine) -> None:
        documents.append_json_line(out / LEDGER, line)
        advance(1)

    in_threads, inference = settings.pop("in_threads", False), Inference(modalities, **settings)
    segmenting.segment_scenes(
        model or Brightness(), files, scenes=chosen, inference=inference, tell=tell, skip_bad=skip_bad,
        in_threads=in_threads,
    )  # fmt: skip
    return finish(out, totals_of([out / LEDGER], data.info), Trees(), {}, scenes=len(chosen), extras=extras)


def mask_of(out: Path, scene: Scene) -> Any:
    return images.read(out / "masks" / f"{scene.id}.png")


def test_masks_have_the_size_of_their_own_input(data: Manifest, tmp_path: Path) -> None:
    segment(data, tmp_path / "out")
    sizes = {scene.id: mask_of(tmp_path / "out", scene).shape for scene in data.scenes}
    assert sizes == {plan[0]: plan[4] for plan in PLANS}


def test_a_mask_is_the_argmax_at_the_scenes_own_size(data: Manifest, tmp_path: Path) -> None:
    scene = data.scenes[0]
    segment(data, tmp_path / "out")
    sample = decode.read_sample(data.root, scene, modalities=MODALITIES)
    seen = transforms.for_prediction(sample, modalities=MODALITIES, size=64)
    frames = [transforms.to_tensor(seen.frames[each.name], each)[None] for each in MODALITIES]
    logits = torch.nn.functional.interpolate(Brightness().logits(frames), (97, 131), mode="bilinear")
    np.testing.assert_array_equal(mask_of(tmp_path / "out", scene), logits[0].argmax(0).numpy())


def test_masks_score_what_evaluate_says_for_the_native_protocol(data: Manifest, tmp_path: Path) -> None:
    scenes = data.of_split("val")
    segment(data, tmp_path / "out", scenes)
    total = torch.zeros(4, 4, dtype=torch.int64)
    for scene in scenes:
        label = images.read(data.root / str(scene.label))
        total += confusion(torch.from_numpy(mask_of(tmp_path / "out", scene)), torch.from_numpy(label), 4)
    scored = scoring.evaluate(Brightness(), data, scenes=scenes, inference=Inference(MODALITIES, 64, "cpu", workers=0))
    torch.testing.assert_close(total, scored.confusion("native"), rtol=0, atol=0)


def test_frames_of_one_name_in_several_folders_never_meet(tmp_path: Path) -> None:
    weathers = ("cloud", "fog", "night", "rain", "sun")
    plans: list[Plan] = [(f"{weather}/val/a/000001", "val", weather, None, (33, 47)) for weather in weathers]
    data = write_data(tmp_path / "data", plans)
    report = segment(data, tmp_path / "out")
    written = sorted((tmp_path / "out/masks").rglob("*.png"))
    assert report["done"] == len(written) == 5
    assert len({path.read_bytes() for path in written}) == 5


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 7}, {"workers": 2}], ids=str)
def test_batches_and_workers_do_not_change_a_byte(data: Manifest, tmp_path: Path, options: dict[str, int]) -> None:
    segment(data, tmp_path / "one")
    segment(data, tmp_path / "other", **options)
    for scene in data.scenes:
        name = f"masks/{scene.id}.png"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_no_label_is_needed_or_opened(data: Manifest, tmp_path: Path) -> None:
    for scene in data.scenes:
        (data.root / str(scene.label)).write_bytes(b"no image")
    assert segment(data, tmp_path / "out", [replace(scene, label=None) for scene in data.scenes])["done"] == 6
    assert segment(data, tmp_path / "again")["done"] == 6


def test_a_scene_is_predicted_from_the_modalities_that_it_has(data: Manifest, tmp_path: Path) -> None:
    poor = replace(data.scenes[1], files={"depth": data.scenes[1].files["depth"]})
    model = Brightness()
    segment(data, tmp_path / "out", [data.scenes[0], poor, data.scenes[5]], model=model)
    assert model.calls == [(2, (1, 3, 64, 96)), (1, (1, 3, 64, 96)), (2, (1, 3, 64, 96))]
    lines = documents.read_json_lines(tmp_path / "out" / LEDGER)
    assert [line["modalities"] for line in lines] == [["img", "depth"], ["depth"], ["img", "depth"]]


def test_only_the_chosen_modalities_are_read(data: Manifest, tmp_path: Path) -> None:
    (data.root / data.scenes[0].files["depth"][0]).unlink()
    model = Brightness()
    segment(data, tmp_path / "out", data.scenes[:1], model=model, modalities=MODALITIES[:1])
    assert model.calls[0][0] == 1


def test_the_first_bad_scene_ends_the_work_and_is_named(data: Manifest, tmp_path: Path) -> None:
    bad = data.root / data.scenes[1].files["img"][0]
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(DataError, match=r"img/fog/val/a/000002\.png"):
        segment(data, tmp_path / "out")
    assert not (tmp_path / "out/_SUCCESS.json").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_scenes_are_listed_and_the_others_done_if_that_is_asked(
    data: Manifest, tmp_path: Path, workers: int
) -> None:
    for place in (0, 2, 3):
        (data.root / data.scenes[place].files["img"][0]).write_bytes(b"")
    told: list[int] = []
    report = segment(data, tmp_path / "out", skip_bad=True, workers=workers, advance=told.append)
    assert (report["scenes"], report["done"], report["failed"], sum(told)) == (6, 3, 3, 6)
    assert [each["id"] for each in report["failures"]] == [data.scenes[place].id for place in (0, 2, 3)]
    lines = {line["id"]: line["status"] for line in documents.read_json_lines(tmp_path / "out" / LEDGER)}
    assert sorted(lines) == sorted(scene.id for scene in data.scenes)
    assert [lines[scene.id] for scene in data.scenes] == ["failed", "done", "failed", "failed", "done", "done"]


def test_nothing_done_is_no_success_even_if_bad_scenes_may_be_skipped(data: Manifest, tmp_path: Path) -> None:
    (data.root / data.scenes[0].files["img"][0]).write_bytes(b"")
    with pytest.raises(DataError, match="no scene of 1 could be read"):
        segment(data, tmp_path / "out", data.scenes[:1], skip_bad=True)
    assert not (tmp_path / "out/_SUCCESS.json").exists()


def test_no_gradient_and_no_dropout(data: Manifest, tmp_path: Path) -> None:
    model = Brightness().train()
    segment(data, tmp_path / "out", model=model)
    assert (model.grad_was_enabled, model.was_training, model.training) == (False, False, True)


def test_no_more_scenes_than_the_bound_wait_to_be_written(
    data: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watching(Brightness):
        """Counts the masks that exist when each forward pass begins."""

        def logits(self, frames: list[Tensor]) -> Tensor:
            seen.append(len(list((tmp_path / "out/masks").rglob("[0-9]*.png"))))
            return super().logits(frames)

    seen: list[int] = []
    monkeypatch.setattr(segmenting, "MOST_WAITING", 2)
    segment(data, tmp_path / "out", model=Watching(), batch=1)
    assert len(seen) == 6
    assert all(done >= place - 2 for place, done in enumerate(seen))


def test_scenes_before_a_bad_one_are_written_and_listed(data: Manifest, tmp_path: Path) -> None:
    (data.root / data.scenes[3].files["img"][0]).write_bytes(b"")
    with pytest.raises(DataError, match="--on-error skip"):
        segment(data, tmp_path / "out", batch=2)
    lines = documents.read_json_lines(tmp_path / "out" / LEDGER)
    assert [line["id"] for line in lines] == [scene.id for scene in data.scenes[:3]]
    assert sorted(path.name for path in (tmp_path / "out/masks").rglob("*.png")) == sorted(
        Path(line["mask"]).name for line in lines
    )


@pytest.mark.parametrize("place", [0, 2, 5])
def test_a_mask_that_cannot_be_written_ends_the_work_and_no_line_lacks_its_files(
    data: Manifest, tmp_path: Path, place: int
) -> None:
    blocked = tmp_path / "out/masks" / f"{data.scenes[place].id}.png"
    blocked.mkdir(parents=True)  # nothing can be written there
    with pytest.raises(EnvironmentFault, match=blocked.name):
        segment(data, tmp_path / "out", batch=1)
    lines = documents.read_json_lines(tmp_path / "out" / LEDGER)
    assert [line["id"] for line in lines] == [scene.id for scene in data.scenes[:place]]
    written = {path for path in (tmp_path / "out/masks").rglob("*.png") if path.is_file()}
    assert written == {tmp_path / "out" / line["mask"] for line in lines}
    assert not list((tmp_path / "out").rglob("*.tmp-*"))


def test_forward_passes_never_reach_across_groups_so_that_shards_see_the_same(data: Manifest, tmp_path: Path) -> None:
    whole, one, other = Brightness(), Brightness(), Brightness()
    scenes = data.scenes
    segment(data, tmp_path / "whole", model=whole, batch=2)
    segment(data, tmp_path / "one", [*scenes[0:2], *scenes[4:6]], model=one, batch=2)
    segment(data, tmp_path / "other", scenes[2:4], model=other, batch=2)
    assert sorted(whole.calls) == sorted([*one.calls, *other.calls])
    assert whole.calls[0] == (2, (2, 3, 64, 96))


def test_threads_read_as_processes_do(data: Manifest, tmp_path: Path) -> None:
    (data.root / data.scenes[1].files["img"][0]).write_bytes(b"")
    for out, options in {"one": {}, "other": {"in_threads": True, "workers": 3}}.items():
        segment(data, tmp_path / out, skip_bad=True, **options)
    found = [(tmp_path / out / LEDGER).read_bytes() for out in ("one", "other")]
    assert found[0] == found[1] and found[0].count(b"\n") == 6


def test_memory_does_not_grow_with_the_scenes(data: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is kept per scene would keep its line, its frames or its mask alive."""

    def alive() -> int:
        gc.collect()
        return len(gc.get_objects())

    told, counts = 0, {}

    def watch(_line: LedgerLine) -> None:
        nonlocal told
        told += 1
        if told in {18, 20, 22, 56, 58, 60}:  # seconds, if it were done each time
            counts[told] = alive()

    gc.collect()
    gc.freeze()  # what there is already is not looked through
    # How many scenes wait for a slow disk is nobody's business here: one at most, and none while another is told.
    monkeypatch.setattr(segmenting, "MOST_WAITING", 1)
    many = [replace(data.scenes[3], id=f"{number:03}") for number in range(60)]
    files = SceneFiles(tmp_path / "out", data.root, data.info, MODALITIES)
    inference = Inference(MODALITIES, 64, "cpu", workers=0, batch=2)
    segmenting.segment_scenes(Brightness(), files, scenes=many, inference=inference, tell=watch)
    assert told == 60
    assert min(counts[56], counts[58], counts[60]) - min(counts[18], counts[20], counts[22]) < 20, counts


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_extreme_shapes_work(tmp_path: Path, size: tuple[int, int]) -> None:
    data = write_data(tmp_path / "data", [("a", "val", None, None, size)])
    segment(data, tmp_path / "out", image_size=32)
    assert mask_of(tmp_path / "out", data.scenes[0]).shape == size


def test_the_reports_pixels_are_those_of_all_masks(data: Manifest, tmp_path: Path) -> None:
    report = segment(data, tmp_path / "out")
    masks = np.concatenate([mask_of(tmp_path / "out", scene).ravel() for scene in data.scenes])
    assert [each["pixels"] for each in report["classes"]] == np.bincount(masks, minlength=len(CLASSES)).tolist()


def test_what_a_scene_lacks_is_fed_as_zeros_in_its_place_if_asked(data: Manifest, tmp_path: Path) -> None:
    class Watching(Brightness):
        """Notes which frames are black."""

        def logits(self, frames: list[Tensor]) -> Tensor:
            seen.append([not frame.any() for frame in frames])
            return super().logits(frames)

    seen: list[list[bool]] = []
    poor = [replace(data.scenes[1], files={name: data.scenes[1].files[name]}) for name in ("depth", "img")]
    other = replace(poor[1], id="other")
    segment(
        data, tmp_path / "out", [data.scenes[0], poor[0], other], model=Watching(), view=View(missing="zero")
    )  # fmt: skip
    assert seen == [[False, False], [True, False], [False, True]]
    lines = documents.read_json_lines(tmp_path / "out" / LEDGER)
    assert [line["modalities"] for line in lines] == [["img", "depth"], ["depth"], ["img"]]


def test_windows_see_large_frames_at_their_own_resolution(data: Manifest, tmp_path: Path) -> None:
    model = Brightness()
    segment(data, tmp_path / "out", data.scenes[:1], model=model, view=View(tile=True))
    assert model.calls == [(2, (1, 3, 64, 64))] * 6  # 97×131 in 2×3 windows
    sample = decode.read_sample(data.root, data.scenes[0], modalities=MODALITIES)
    frames = [transforms.to_tensor(sample.frames[each.name], each)[None] for each in MODALITIES]
    np.testing.assert_array_equal(mask_of(tmp_path / "out", data.scenes[0]), model.logits(frames)[0].argmax(0).numpy())


def test_windows_over_small_frames_change_nothing(data: Manifest, tmp_path: Path) -> None:
    plain, tiled = Brightness(), Brightness()
    segment(data, tmp_path / "one", model=plain, image_size=128, batch=1)
    segment(data, tmp_path / "other", model=tiled, image_size=128, view=View(tile=True))
    assert tiled.calls == plain.calls
    for scene in data.scenes:
        np.testing.assert_array_equal(mask_of(tmp_path / "one", scene), mask_of(tmp_path / "other", scene))


def test_a_frame_too_large_to_be_decided_at_once_gives_the_same_mask_and_confidence(
    data: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment(data, tmp_path / "one", data.scenes[:1], extras=("confidence",))
    monkeypatch.setattr(decision, "AT_ONCE", 4 * 131 * 10)
    segment(data, tmp_path / "other", data.scenes[:1], extras=("confidence",))
    for tree in ("masks", "confidence"):
        one, other = (images.read(tmp_path / out / tree / f"{data.scenes[0].id}.png") for out in ("one", "other"))
        differs = np.abs(one.astype(int) - other)
        assert one.shape == (97, 131) and differs.max() <= 1
        # Rows are rounded in another order: two classes that are all but equal may change places.
        assert tree == "confidence" or np.count_nonzero(differs) <= 5
