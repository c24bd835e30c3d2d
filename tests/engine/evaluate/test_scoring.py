from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from memorysam_cli.data import decode, transforms
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.loader import ScoredScene
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.dataset import Crop, DatasetInfo
from memorysam_cli.engine.evaluate import counts, scoring
from memorysam_cli.engine.evaluate.counts import PROTOCOLS, Evaluation, confusion, scores
from memorysam_cli.engine.infer import decision
from memorysam_cli.engine.infer.inference import Inference, batches, choose_modalities
from memorysam_cli.engine.infer.views import Tiled, View
from memorysam_cli.errors import DataError, LawBroken, UsageError, WeightsError
from memorysam_cli.storage import images

from ..stand_ins import CLASSES, MODALITIES, PLANS, Brightness, Plan, write_data


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    return write_data(tmp_path)


def score(model: Any, data: Manifest, scenes: Sequence[Scene] | None = None, **options: Any) -> Evaluation:
    """Options are those of :func:`scoring.evaluate`, of its inference, and ``tile``."""
    settings = {name: options.pop(name) for name in ("modalities", "image_size", "batch", "workers") if name in options}
    view = View(tile=options.pop("tile", False))
    inference = Inference(
        **{"modalities": MODALITIES, "image_size": 64, "workers": 0} | settings, device="cpu", view=view
    )
    chosen = data.of_split("val") if scenes is None else scenes
    return scoring.evaluate(model, data, scenes=chosen, inference=inference, **options)


def assert_equal(one: Evaluation, other: Evaluation) -> None:
    torch.testing.assert_close(one.confusions, other.confusions, rtol=0, atol=0)
    torch.testing.assert_close(one.ignored, other.ignored, rtol=0, atol=0)
    torch.testing.assert_close(one.per_scene, other.per_scene, rtol=0, atol=0)
    assert (one.groups, one.scenes) == (other.groups, other.scenes)


def native_pixels(data: Manifest, scenes: Sequence[Scene]) -> int:
    """As the headers of the label files say."""
    shapes = [images.shape(data.root / scene.label) for scene in scenes if scene.label]
    return sum(height * width for height, width, *_ in shapes)


@pytest.mark.parametrize("crop", [None, Crop(left=20, of_height=97, square=True)], ids=["whole", "cropped"])
def test_both_matrices_are_those_of_the_protocols_done_by_hand(tmp_path: Path, crop: Crop | None) -> None:
    data = write_data(tmp_path, PLANS[:1], crop=crop)
    sample = decode.read_sample(tmp_path, data.scenes[0], modalities=MODALITIES, labels=data.info)
    scored = transforms.for_scoring(sample, modalities=MODALITIES, size=64, crop=crop)
    whole = transforms.for_prediction(sample, modalities=MODALITIES, size=64)
    found = score(Brightness(), data)
    for name, seen, label in (("resized", scored, scored.label), ("native", whole, sample.label)):
        logits = Brightness().logits([transforms.to_tensor(seen.frames["img"], MODALITIES[0])[None]])
        if name == "native":
            logits = F.interpolate(logits, size=(97, 131), mode="bilinear", align_corners=False)
        assert label is not None
        expected = confusion(logits.argmax(1)[0], torch.from_numpy(label), len(CLASSES))
        torch.testing.assert_close(found.confusion(name), expected, rtol=0, atol=0)


@pytest.mark.parametrize("crop", [None, Crop(left=20, of_height=97, square=True)], ids=["whole", "cropped"])
def test_every_pixel_of_odd_sized_labels_is_counted_once_in_both_protocols(tmp_path: Path, crop: Crop | None) -> None:
    plans = [plan for plan in PLANS if plan[4] == (97, 131)]
    data = write_data(tmp_path, plans, crop=crop)
    pixels = {name: part["pixels"] for name, part in score(Brightness(), data).to_json().items()}
    assert sum(pixels["native"].values()) == native_pixels(data, data.scenes) == 4 * 97 * 131
    assert sum(pixels["resized"].values()) == 4 * 64 * (96 if crop is None else 64)
    assert all(part["ignored"] > 0 for part in pixels.values())


def test_a_lost_pixel_is_our_bug_and_is_noticed(data: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(*maps: Tensor) -> Tensor:
        counts = confusion(maps[0], maps[1], len(CLASSES))
        counts[0, 0] -= 1
        return counts

    monkeypatch.setattr(counts, "confusion", lambda prediction, label, classes: forgetful(prediction, label))
    with pytest.raises(AssertionError):
        score(Brightness(), data)


@pytest.mark.parametrize("batch", [2, 7])
def test_the_batch_size_does_not_change_a_bit(data: Manifest, batch: int) -> None:
    assert_equal(score(Brightness(), data, batch=batch), score(Brightness(), data, batch=1))


def test_only_consecutive_scenes_of_one_size_share_a_forward_pass(data: Manifest) -> None:
    model = Brightness()
    score(model, data, batch=2)
    assert [shape[0] for _, shape in model.calls] == [2, 1, 1, 1]
    assert [shape[2:] for _, shape in model.calls] == [(64, 96), (64, 96), (64, 64), (64, 96)]


class OneOfTwo:
    """A process of two, run one after the other: the first leaves its counts, the second adds them up."""

    num_processes = 2
    device = torch.device("cpu")

    def __init__(self, process_index: int, left: list[Tensor]) -> None:
        self.process_index, self.left = process_index, left

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum" and tensor.dtype == torch.int64
        self.left.append(tensor.clone())
        return torch.stack(self.left).sum(0)


@pytest.fixture(autouse=True)
def one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are played one after the other cannot meet."""
    monkeypatch.setattr(counts, "wait_for_all", lambda _: None)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_two_processes_count_each_scene_once_even_if_there_is_only_one(data: Manifest, count: int, batch: int) -> None:
    scenes, left = data.of_split("val")[:count], list[Tensor]()
    # Played alone, the first has only its share, and that is noticed.
    with pytest.raises(LawBroken, match="scenes asked = scored") if count > 1 else contextlib.nullcontext():
        score(Brightness(), data, scenes, batch=batch, accelerator=OneOfTwo(0, left))
    both = score(Brightness(), data, scenes, batch=batch, accelerator=OneOfTwo(1, left))
    assert_equal(both, score(Brightness(), data, scenes))


def test_counts_that_processes_add_up_stay_exact_above_two_to_the_24(data: Manifest) -> None:
    scenes = data.of_split("val")[:1]
    one = score(Brightness(), data, scenes)
    parts = (one.confusions.numel(), one.ignored.numel(), 2, 2)
    others = torch.zeros(sum(parts) + one.per_scene.numel(), dtype=torch.int64)
    others[0] = others[parts[0] + parts[1]] = others[sum(parts) + len(CLASSES)] = 2**24
    others[sum(parts[:3]) : sum(parts)] = 1  # scenes
    both = score(Brightness(), data, scenes, accelerator=OneOfTwo(1, [others]))
    # This process has nothing to do for one scene; what is left is what the other counted, and not a pixel less.
    assert int(both.confusions.sum()) == 2**24
    others[sum(parts[:3]) : sum(parts)] = 0
    again = score(Brightness(), data, scenes, accelerator=OneOfTwo(0, [others]))
    assert int(again.confusions.flatten()[0]) == 2**24 + int(one.confusions.flatten()[0])


def test_conditions_and_cases_are_parts_of_the_same_pass(data: Manifest) -> None:
    found = score(Brightness(), data)
    report = found.to_json()["resized"]
    assert {name: part["scenes"] for name, part in report["conditions"].items()} == {"fog": 3, "rain": 2}
    assert {name: part["scenes"] for name, part in report["cases"].items()} == {
        "normal": 3, "lidarjitter": 1, "motionblur": 1,
    }  # fmt: skip
    for groups in ({"condition": name} for name in ("fog", "rain")), ({"case": name} for name in report["cases"]):
        total = torch.stack([found.confusion("resized", **group) for group in groups]).sum(0)
        torch.testing.assert_close(total, found.confusion("resized"), rtol=0, atol=0)
    rain = score(Brightness(), data, [scene for scene in data.of_split("val") if scene.condition == "rain"])
    assert found.conditions("native")["rain"] == rain.protocol("native")


def test_a_data_set_without_conditions_reports_none(tmp_path: Path) -> None:
    plans: list[Plan] = [("a", "val", None, None, (64, 64))]
    report = score(Brightness(), write_data(tmp_path, plans)).to_json()["native"]
    assert (report["conditions"], report["cases"]) == ({}, {})


def test_protocols_share_a_forward_pass_but_for_a_crop(tmp_path: Path) -> None:
    plans: list[Plan] = [("a", "val", None, None, (64, 96))]
    shared, apart = Brightness(), Brightness()
    score(shared, write_data(tmp_path / "whole", plans))
    score(apart, write_data(tmp_path / "cropped", plans, crop=Crop(left=16, of_height=64, square=True)))
    assert [shape for _, shape in shared.calls] == [(1, 3, 64, 96)]
    assert [shape for _, shape in apart.calls] == [(1, 3, 64, 64), (1, 3, 64, 96)]


def test_the_protocols_differ_where_sizes_do_and_agree_where_they_do_not(data: Manifest) -> None:
    def matrices(size: tuple[int, int]) -> list[Tensor]:
        chosen = {plan[0] for plan in PLANS if plan[4] == size}
        found = score(Brightness(), data, [scene for scene in data.of_split("val") if scene.id in chosen])
        return [found.confusion(name) for name in PROTOCOLS]

    assert torch.equal(*matrices((64, 64)))
    assert not torch.equal(*matrices((97, 131)))


@pytest.mark.parametrize("training", [True, False])
def test_no_gradient_and_no_dropout_and_the_mode_comes_back(data: Manifest, training: bool) -> None:
    model = Brightness().train(training)
    score(model, data)
    assert (model.grad_was_enabled, model.was_training, model.training) == (False, False, training)


def test_the_mode_comes_back_after_an_error_too(data: Manifest) -> None:
    model = Brightness().train()
    (data.root / str(data.of_split("val")[0].label)).unlink()
    with pytest.raises(DataError, match=r"label/fog/val/a/000001\.png"):
        score(model, data)
    assert model.training


def test_scores_can_be_differentiated_through_right_after_a_validation(data: Manifest) -> None:
    model = Brightness().train()
    score(model, data)
    model.logits([torch.ones(1, 3, 32, 32)]).sum().backward()
    assert model.weight.grad is not None and model.weight.grad != 0


def test_the_model_sees_the_chosen_modalities_only(data: Manifest) -> None:
    model = Brightness()
    score(model, data, modalities=MODALITIES[:1])
    assert {count for count, _ in model.calls} == {1}


def test_progress_counts_every_scene_of_this_process(data: Manifest) -> None:
    told: list[int] = []
    score(Brightness(), data, batch=3, advance=told.append)
    assert sum(told) == 5
    told.clear()
    with pytest.raises(LawBroken):  # for want of the other one's scenes
        score(Brightness(), data, accelerator=OneOfTwo(1, []), advance=told.append)
    assert sum(told) == 2


def test_worker_processes_do_not_change_a_bit(data: Manifest) -> None:
    assert_equal(score(Brightness(), data, workers=2), score(Brightness(), data))


def test_a_label_that_is_all_ignored_counts_as_ignored(tmp_path: Path) -> None:
    data = write_data(tmp_path, [("a", "val", None, None, (64, 64))])
    label = images.read(tmp_path / "tiny/label/a.png")
    images.write_png(tmp_path / "tiny/label/a.png", label * 0 + 255)
    report = score(Brightness(), data).to_json()["native"]
    assert report["pixels"] == {"scored": 0, "ignored": 64 * 64}
    assert report["miou"] == 0


def test_the_report_is_json_and_its_means_are_those_of_the_matrix(data: Manifest) -> None:
    found = score(Brightness(), data)
    report = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(report) == {"resized", "native"}
    for name, part in report.items():
        expected = scores(found.confusion(name))
        means = {"miou", "macc", "mf1", "miou_present", "macc_present", "mf1_present"}
        parts = {"splits", "conditions", "cases", "condition_cases"}
        assert set(part) == means | parts | {"classes", "worst", "pixels"}
        assert (part["miou"], part["macc"], part["mf1"]) == (expected.miou, expected.macc, expected.mf1)
        assert [each["name"] for each in part["classes"]] == list(CLASSES)
        assert [each["iou"] for each in part["classes"]] == list(expected.iou)
        assert part["pixels"]["scored"] == sum(each["pixels"] for each in part["classes"])
        assert 5 < part["miou"] < 99


def test_no_scenes_and_unlabeled_scenes_are_refused(data: Manifest) -> None:
    with pytest.raises(DataError, match="tiny: no scenes"):
        score(Brightness(), data, [])
    scene = data.of_split("val")[0]
    bare = Scene(scene.id, scene.split, None, None, scene.files, None)
    with pytest.raises(DataError, match=r"fog/val/a/000001: has no label"):
        score(Brightness(), manifests.Manifest(data.root, data.info, (bare,)), [bare])


def test_an_unknown_protocol_is_refused(data: Manifest) -> None:
    with pytest.raises(ValueError, match="known are resized, native"):
        score(Brightness(), data).protocol("naive")


def test_chosen_modalities_come_in_the_order_of_the_weights() -> None:
    assert choose_modalities(MODALITIES, None) == MODALITIES
    assert choose_modalities(MODALITIES, ["depth", "img"]) == MODALITIES
    assert choose_modalities(MODALITIES, ["depth"]) == MODALITIES[1:]


def test_an_unknown_modality_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"--modalities dept: .*did you mean 'depth'\? \(known: img, depth\)"):
        choose_modalities(MODALITIES, ["img", "dept"])


@pytest.mark.parametrize(
    ("classes", "words"),
    [(("road", "sky"), "knows 4 classes, the prepared data set tiny has 2"), (CLASSES[::-1], "'road' against 'sign'")],
)
def test_weights_of_other_classes_are_refused(data: Manifest, classes: tuple[str, ...], words: str) -> None:
    other: DatasetInfo = data.info.model_copy(update={"classes": classes})
    with pytest.raises(WeightsError, match=words):
        scoring.check_classes(data.info, other, weights="w.safetensors")
    scoring.check_classes(data.info, data.info, weights="w.safetensors")


def test_batches_never_hold_more_than_they_may() -> None:
    pulled: list[int] = []

    def items() -> Any:
        for item in (1, 1, 1, 2, 2, 1):
            pulled.append(item)
            yield item

    stream = batches(items(), most=2, key=lambda item: item)
    assert next(stream) == [1, 1] and len(pulled) == 2
    assert list(stream) == [[1], [2, 2], [1]]


def test_large_frames_keep_their_own_resolution_for_windows_and_small_ones_do_not(data: Manifest) -> None:
    model = Brightness()
    score(model, data, tile=True)
    assert [shape for _, shape in model.calls] == [(1, 3, 64, 64)] * (4 * 2 * 3 + 1)  # 97 × 131 has 2 × 3 windows
    model = Brightness()
    score(model, data, image_size=128, tile=True)
    assert {shape[2:] for _, shape in model.calls} == {(128, 192), (128, 128)}


def test_a_pass_over_large_frames_serves_both_protocols_and_loses_no_pixel(data: Manifest) -> None:
    model = Brightness()
    found = score(model, data, tile=True, batch=1)
    assert len(model.calls) == 4 * 2 * 3 + 1  # of 5 scenes, a pass over each's windows
    pixels = {name: part["pixels"] for name, part in found.to_json().items()}
    plain = {name: part["pixels"] for name, part in score(Brightness(), data).to_json().items()}
    assert pixels == plain


def test_a_published_crop_is_scored_at_its_own_size_also_when_the_whole_frame_is_large(tmp_path: Path) -> None:
    data = write_data(tmp_path, PLANS[:1], crop=Crop(left=20, of_height=97, square=True))
    model = Brightness()
    tiled, plain = score(model, data, tile=True), score(Brightness(), data)
    assert [shape[2:] for _, shape in model.calls] == [(64, 64)] * (1 + 2 * 3)  # the crop, then windows of 97 × 131
    torch.testing.assert_close(tiled.confusion("resized"), plain.confusion("resized"), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(97, 131), (64, 200), (500, 30), (1, 1), (7, 4000)])
def test_logits_come_to_a_scenes_own_size_alike_in_one_piece_and_in_rows(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(4, 24, 40, generator=torch.Generator().manual_seed(0))
    height, width = size
    whole = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    assert torch.equal(decision.class_map(logits, height=height, width=width), whole.argmax(0))
    monkeypatch.setattr(decision, "AT_ONCE", 4 * 10 * width)
    parts = list(decision.own_rows(logits, height=height, width=width))
    assert [rows.start for rows, _ in parts] == list(range(0, height, 10))
    assert all(part.shape[1] <= 10 for _, part in parts)
    torch.testing.assert_close(torch.cat([part for _, part in parts], 1), whole, rtol=1e-4, atol=1e-4)
    in_rows = decision.class_map(logits, height=height, width=width)
    assert (in_rows == whole.argmax(0)).float().mean() > 0.999


def test_small_frames_are_seen_by_the_plain_network_and_large_ones_one_at_a_time(
    data: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = Brightness(), list[tuple[int, ...]]()
    windows = Tiled.logits

    def noted(self: Tiled, frames: list[Tensor]) -> Tensor:
        seen.append(tuple(frames[0].shape))
        return windows(self, frames)

    monkeypatch.setattr(Tiled, "logits", noted)
    score(model, data, image_size=96, tile=True, batch=4)
    assert seen == [(1, 3, 97, 131)] * 4
    assert [shape for _, shape in model.calls] == [(1, 3, 96, 96)] * (4 * 2 * 2 + 1)


def test_the_laws_of_both_protocols_are_told(data: Manifest) -> None:
    laws = score(Brightness(), data).laws
    assert all(law["holds"] is True and law["left"] == law["right"] > 0 for law in laws.values())
    assert laws["native: scenes asked = scored + left out"]["left"] == 5
    native = laws["native: height × width of the label files = confusion + ignored"]
    assert native["left"] == native_pixels(data, data.of_split("val"))
    assert len(laws) == 6


def test_a_label_that_is_read_at_another_size_than_its_file_is_noticed(
    data: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scoring.scored_scenes

    def shrunk(*arguments: Any, **options: Any) -> Iterator[ScoredScene]:
        for each in whole(*arguments, **options):
            assert each.whole.label is not None
            yield replace(each, whole=replace(each.whole, label=each.whole.label[:, ::2]))

    monkeypatch.setattr(scoring, "scored_scenes", shrunk)
    with pytest.raises(LawBroken, match="native: height × width of the label files"):
        score(Brightness(), data)
