from __future__ import annotations

import pytest
import torch

from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.engine.evaluate import scoring
from memorysam_cli.engine.evaluate.counts import PROTOCOLS, Evaluation, Subset, Tally, confusion, scores
from memorysam_cli.engine.infer.inference import Inference
from memorysam_cli.errors import LawBroken

from ..stand_ins import MODALITIES, Brightness, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def found(data: Manifest) -> Evaluation:
    """All six scenes of both splits."""
    return scoring.evaluate(
        Brightness(), data, scenes=data.scenes, inference=Inference(MODALITIES, 64, "cpu", workers=0)
    )  # fmt: skip


def counted(*scenes: tuple[str, str | None, str | None, list[int], list[int]]) -> Evaluation:
    """Scenes with a split, condition, case, prediction and label, of three classes, the same in both protocols."""
    made = [
        Scene(f"scene {index}", split, condition, case, {}, "label.png")
        for index, (split, condition, case, _, _) in enumerate(scenes)
    ]
    tally = Tally(made, classes=3)
    for scene, (*_, prediction, label) in zip(made, scenes, strict=True):
        for protocol in PROTOCOLS:
            tally.add(protocol, scene, prediction=torch.tensor(prediction), label=torch.tensor(label))
    held = tally.check()
    return Evaluation(
        ("a", "b", "c"), tuple(made), tally.groups, tally.confusions, tally.per_scene, tally.ignored, held
    )  # fmt: skip


def test_a_scenes_scores_by_hand() -> None:
    result = counted(("val", None, None, [0, 0, 1, 0, 2], [0, 1, 1, 0, 255]))
    (one,) = result.scene_scores("native")
    assert (one.pixels, one.accuracy) == (4, 75.0)
    assert one.iou == pytest.approx((200 / 3, 50.0, None))  # what is ignored is not guessed either
    assert one.miou_present == pytest.approx((200 / 3 + 50) / 2)


def test_a_class_that_is_only_guessed_has_iou_0_and_is_not_present() -> None:
    (one,) = counted(("val", None, None, [0, 2], [0, 0])).scene_scores("resized")
    assert one.iou == (50.0, None, 0.0) and one.miou_present == 50.0


def test_a_scene_without_a_pixel_that_counts_scores_0_and_is_not_among_the_worst() -> None:
    result = counted(("val", None, None, [0], [255]), ("val", None, None, [1], [0]))
    nothing, wrong = result.scene_scores("resized")
    assert (nothing.pixels, nothing.accuracy, nothing.miou_present) == (0, 0.0, 0.0)
    assert [each["scene"] for each in result.to_json()["resized"]["worst"]] == [wrong.scene.id]


def test_the_worst_scenes_come_first_and_at_most_ten() -> None:
    wrong = [("val", None, None, [1] * bad + [0] * (12 - bad), [0] * 12) for bad in range(12)]
    worst = counted(*wrong).to_json()["native"]["worst"]
    assert [each["scene"] for each in worst] == [f"scene {index}" for index in range(11, 1, -1)]
    assert [each["miou_present"] for each in worst] == sorted(each["miou_present"] for each in worst)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scenes_add_up_to_the_whole(found: Evaluation, protocol: str) -> None:
    matrix = found.confusion(protocol)
    hits, truth, guessed = found.per_scene[PROTOCOLS.index(protocol)].sum(0)
    torch.testing.assert_close(hits, matrix.diagonal(), rtol=0, atol=0)
    torch.testing.assert_close(truth, matrix.sum(1), rtol=0, atol=0)
    torch.testing.assert_close(guessed, matrix.sum(0), rtol=0, atol=0)
    assert sum(each.pixels for each in found.scene_scores(protocol)) == int(matrix.sum())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_breakdown_adds_up_to_the_whole(found: Evaluation, protocol: str) -> None:
    splits, conditions, cases = ("train", "val"), ("fog", "rain"), ("normal", "lidarjitter", "motionblur")
    for parts in (
        [Subset(split=name) for name in splits],
        [Subset(condition=name) for name in conditions],
        [Subset(case=name) for name in cases],
        [Subset(None, condition, case) for condition in conditions for case in cases],
        [Subset(split, condition, case) for split in splits for condition in conditions for case in cases],
    ):
        total = torch.stack([found.confusion(protocol, **part._asdict()) for part in parts]).sum(0)
        torch.testing.assert_close(total, found.confusion(protocol), rtol=0, atol=0)
        assert sum(found.count(part) for part in parts) == len(found.scenes) == 6


def test_a_scene_alone_scores_as_in_the_crowd(found: Evaluation, data: Manifest) -> None:
    for index, scene in enumerate(data.scenes):
        alone = scoring.evaluate(
            Brightness(), data, scenes=[scene], inference=Inference(MODALITIES, 64, "cpu", workers=0)
        )  # fmt: skip
        each = found.scene_scores("native")[index]
        assert each == alone.scene_scores("native")[0]
        assert each.miou_present == pytest.approx(scores(alone.confusion("native")).miou_present)


def test_the_report_tells_splits_conditions_cases_and_their_product(found: Evaluation) -> None:
    report = found.to_json()["resized"]
    assert {name: part["scenes"] for name, part in report["splits"].items()} == {"val": 5, "train": 1}
    counts = {
        condition: {case: part["scenes"] for case, part in cases.items()}
        for condition, cases in report["condition_cases"].items()
    }
    assert counts == {"fog": {"normal": 2, "lidarjitter": 1}, "rain": {"normal": 2, "motionblur": 1}}
    jitter = scores(found.confusion("resized", condition="fog", case="lidarjitter"))
    assert report["condition_cases"]["fog"]["lidarjitter"] == {"scenes": 1, **jitter.means()}


def test_parts_that_would_repeat_others_are_left_out() -> None:
    plain = counted(("val", None, None, [0], [0]))
    assert list(plain.subsets()) == [Subset(), Subset(split="val")]
    weather = counted(("val", "fog", None, [0], [0]), ("val", "sun", None, [0], [0]))
    assert list(weather.subsets())[2:] == [Subset(condition="fog"), Subset(condition="sun")]
    assert weather.to_json()["native"]["condition_cases"] == {}
    two = counted(("val", "fog", None, [0], [0]), ("test", "sun", None, [0], [0]))
    assert list(two.subsets())[-2:] == [Subset("val", "fog"), Subset("test", "sun")]


def test_a_condition_named_as_a_split_or_case_is_no_other(data: Manifest) -> None:
    result = counted(("rain", "val", "sun", [0, 0], [0, 1]), ("val", "rain", "val", [1], [1]))
    assert int(result.confusion("native", split="rain").sum()) == 2
    assert int(result.confusion("native", condition="rain").sum()) == 1
    assert int(result.confusion("native", case="rain").sum()) == 0


def test_counts_are_int64_and_exact_beyond_float32() -> None:
    result = counted(("val", None, None, [0], [0]))
    result.per_scene[0, 0, :, 0] = 2**24 + 1
    assert result.per_scene.dtype == result.confusions.dtype == torch.int64
    assert result.scene_scores("resized")[0].pixels == 2**24 + 1


def test_a_lost_scene_is_our_bug_and_is_noticed() -> None:
    scene = Scene("s", "val", None, None, {}, "label.png")
    tally = Tally([scene], classes=3)
    tally.add("native", scene, prediction=torch.tensor([0, 1]), label=torch.tensor([0, 255]), pixels=2)
    with pytest.raises(LawBroken, match=r"'resized: scenes asked = scored \+ left out': 1 ≠ 0;"):
        tally.check()
    tally.add("resized", scene, prediction=torch.tensor([0, 1]), label=torch.tensor([0, 255]))
    assert tally.check()["native: height × width of the label files = confusion + ignored"] == {
        "left": 2, "right": 2, "holds": True,
    }  # fmt: skip
    tally.per_scene[1, 0, 1, 0] -= 1
    with pytest.raises(LawBroken, match="'native: confusion = pixels of the scenes': 1 ≠ 0;"):
        tally.check()


def test_a_label_of_another_size_than_its_file_is_noticed() -> None:
    scene = Scene("s", "val", None, None, {}, "label.png")
    tally = Tally([scene], classes=3)
    for protocol in PROTOCOLS:
        tally.add(protocol, scene, prediction=torch.tensor([0, 1]), label=torch.tensor([0, 0]), pixels=3)
    with pytest.raises(LawBroken, match=r"height × width of the label files = confusion .*: 3 ≠ 2"):
        tally.check()


def test_an_unknown_protocol_is_refused(found: Evaluation) -> None:
    for ask in (found.scene_scores, found.confusion):
        with pytest.raises(ValueError, match="known are resized, native"):
            ask("naive")


def test_the_matrix_of_a_scene_is_that_of_its_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, label = torch.randint(3, (50,), generator=generator), torch.randint(3, (50,), generator=generator)
    result = counted(("val", None, None, prediction.tolist(), label.tolist()))
    torch.testing.assert_close(result.confusion("resized"), confusion(prediction, label, 3), rtol=0, atol=0)
    (one,) = result.scene_scores("resized")
    assert one.iou == pytest.approx(scores(result.confusion("resized")).iou)
    assert one.accuracy == pytest.approx(100 * float((prediction == label).double().mean()))


def test_a_case_called_normal_and_empty_names_are_no_parts_of_their_own() -> None:
    result = counted(
        ("val", "fog", "normal", [0], [0]), ("val", "fog", None, [0], [1]), ("val", "", "", [1], [1]),
        ("val", "fog", "blur", [1], [0]),
    )  # fmt: skip
    parts = list(result.subsets())
    assert len(set(parts)) == len(parts)
    report = result.to_json()["native"]
    assert {name: part["scenes"] for name, part in report["cases"].items()} == {"normal": 3, "blur": 1}
    assert list(report["conditions"]) == ["fog"]
    assert {name: part["scenes"] for name, part in report["condition_cases"]["fog"].items()} == {"normal": 2, "blur": 1}
