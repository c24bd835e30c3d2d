"""The benchmarks against what their definitions give when each figure is computed on its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from memorysam_cli import recipe as recipes
from memorysam_cli.data.loader import scored_scenes
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.evaluate.counts import confusion, scores
from memorysam_cli.engine.evaluate.robustness import PROBABILITIES, Cell, Robustness, missing_sets, plan_of, run
from memorysam_cli.engine.infer import corruption
from memorysam_cli.engine.infer.corruption import Draw, corrupt
from memorysam_cli.engine.infer.inference import Inference
from memorysam_cli.engine.infer.views import View
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.model.network import MemorySAM
from memorysam_cli.model.weights import build_for_training

from ..stand_ins import CLASSES, MODALITIES, PLANS, write_data

SIZE = 32
NONE, NO_DEPTH, NO_IMG = (), (1,), (0,)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(data: Manifest) -> MemorySAM:
    """Untrained, but sensitive to what it is shown."""
    recipe = recipes.parse(
        {
            "name": "small",
            "data": {"dataset": "tiny", "modalities": ["img", "depth"], "image_size": SIZE, "workers": 0},
            "model": {"backbone": "nano", "base_weights": "random", "object_gate": False},
            "spmm": {"variant": "off", "weight": 0},
            "optim": {"lr": 1e-4},
            "train": {"epochs": 1, "seed": 11},
        },
        where="test",
    )
    return build_for_training(recipe, data.info).requires_grad_(False).eval()


def measure(model: MemorySAM, data: Manifest, kind: Any, **options: Any) -> Robustness:
    """Options are those of :func:`run`, and of its inference and view."""
    settings = {name: options.pop(name) for name in ("batch", "workers", "modalities") if name in options}
    view = View(missing=options.pop("view", "drop"))
    inference = Inference(
        **{"modalities": MODALITIES, "workers": 0} | settings, image_size=SIZE, device="cpu", view=view
    )
    return run(model, data, kind=kind, inference=inference, **{"scenes": data.of_split("val")} | options)


def alone(model: MemorySAM, data: Manifest, change: Any, *, protocol: str = "resized") -> Tensor:
    """One figure by itself: every scene alone, its frames changed by hand, in a forward pass of its own."""
    total = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64)
    for scored in scored_scenes(data, scenes=data.of_split("val"), modalities=MODALITIES, size=SIZE, workers=0):
        seen = scored.resized if protocol == "resized" else scored.whole
        assert seen.label is not None
        with torch.no_grad():
            logits = model.logits(change(seen.frames, scored.scene.id))
        logits = torch.nn.functional.interpolate(logits, size=seen.label.shape[1:], mode="bilinear")
        total += confusion(logits.argmax(1), seen.label, len(CLASSES))
    return total


def assert_counts(found: Tensor, wanted: Tensor) -> None:
    """Rounding may tip a pixel or two whose best classes tie."""
    assert found.sum() == wanted.sum()
    assert int((found - wanted).abs().sum()) <= 8


def zeroed(*places: int) -> Any:
    return lambda frames, _: [frame * (place not in places) for place, frame in enumerate(frames)]


def counts(found: Robustness, cell: Cell, repeat: int = 0) -> Tensor:
    return found.confusions[repeat, found.cells.index(cell)]


@pytest.mark.parametrize(("kind", "missing"), [("emm", "drop"), ("any", "zero")])
def test_a_missing_sensor_is_zero_after_normalization(
    model: MemorySAM, data: Manifest, kind: str, missing: str
) -> None:
    found = measure(model, data, kind, missing=missing, batch=2)
    assert [cell.missing for cell in found.cells] == [NONE, NO_IMG, NO_DEPTH]
    for gone in (NONE, NO_IMG, NO_DEPTH):
        assert_counts(counts(found, Cell(None, gone)), alone(model, data, zeroed(*gone)))
    assert not torch.equal(found.confusions[0, 0], found.confusions[0, 2]), "the failure must show"


def test_both_protocols_at_once_are_what_each_gives_alone(model: MemorySAM, data: Manifest) -> None:
    both = measure(model, data, "any", missing="both", batch=2)
    assert both.levels == ("dropped", "zeroed")
    for level, missing in (("dropped", "drop"), ("zeroed", "zero")):
        single = measure(model, data, "any", missing=missing, batch=2)
        for gone in (NONE, NO_IMG, NO_DEPTH):
            assert_counts(counts(both, Cell(level, gone)), counts(single, Cell(None, gone)))
    assert torch.equal(counts(both, Cell("dropped", NONE)), counts(both, Cell("zeroed", NONE)))


def test_a_dropped_sensor_is_not_fed_at_all(model: MemorySAM, data: Manifest) -> None:
    found = measure(model, data, "any", view="drop")
    for gone in (NONE, NO_IMG, NO_DEPTH):
        rest = alone(
            model, data, lambda frames, _, gone=gone: [f for place, f in enumerate(frames) if place not in gone]
        )  # fmt: skip
        assert_counts(counts(found, Cell(None, gone)), rest)


def test_random_missing_spoils_the_missing_sensors_only(model: MemorySAM, data: Manifest) -> None:
    found = measure(model, data, "rmm", seed=5, repeats=2)
    assert len(found.cells) == 9 and found.levels == ("0.25", "0.5", "0.75")
    for repeat, level, gone in ((0, "0.25", NO_IMG), (1, "0.75", NO_DEPTH), (1, "0.5", NONE)):
        draw = Draw(5, repeat)

        def change(
            frames: Sequence[Tensor], name: str, draw: Draw = draw, level: str = level, gone: tuple[int, ...] = gone
        ) -> list[Tensor]:
            return [
                corrupt(frame, MODALITIES[place], scenes=[name], level=level, draw=draw) if place in gone else frame
                for place, frame in enumerate(frames)
            ]

        assert_counts(counts(found, Cell(level, gone), repeat), alone(model, data, change))


def test_noise_spoils_every_sensor_at_every_level_and_none_is_measured_beside(model: MemorySAM, data: Manifest) -> None:
    found = measure(model, data, "nm", seed=5, noise_extremes="scene")
    assert found.cells == (Cell(None, ()), Cell("low", ()), Cell("mid", ()), Cell("high", ()))
    assert_counts(counts(found, Cell(None, ())), alone(model, data, zeroed()))

    def change(frames: Sequence[Tensor], name: str) -> list[Tensor]:
        draw = Draw(5, extremes="scene")
        return [
            corrupt(frame, modality, scenes=[name], level="mid", draw=draw)
            for frame, modality in zip(frames, MODALITIES, strict=True)
        ]

    assert_counts(counts(found, Cell("mid", ())), alone(model, data, change))


def test_the_native_protocol_scores_labels_of_their_own_size(model: MemorySAM, data: Manifest) -> None:
    found = measure(model, data, "emm", protocol="native")
    assert_counts(counts(found, Cell(None, NO_IMG)), alone(model, data, zeroed(0), protocol="native"))
    assert found.confusions[0, 0].sum() > 1.5 * measure(model, data, "emm").confusions[0, 0].sum()


@pytest.mark.parametrize("options", [{"kind": "rmm"}, {"kind": "nm", "noise_extremes": "scene"}], ids=str)
def test_neither_batches_nor_workers_nor_order_change_a_seeded_draw(
    model: MemorySAM, data: Manifest, options: dict[str, Any]
) -> None:
    options |= {"scenes": data.of_split("val")[1:4]}  # two of one size, and a smaller one
    one = measure(model, data, seed=3, batch=1, **options)
    other = measure(model, data, seed=3, batch=3, workers=1, **options | {"scenes": options["scenes"][::-1]})
    for first, second in zip(one.confusions.flatten(0, 1), other.confusions.flatten(0, 1), strict=True):
        assert_counts(first, second)
    again = measure(model, data, seed=3, batch=1, **options)
    torch.testing.assert_close(again.confusions, one.confusions, rtol=0, atol=0)
    assert not torch.equal(measure(model, data, seed=4, batch=1, **options).confusions, one.confusions)


def test_repeats_differ_where_something_is_random_and_nowhere_else(model: MemorySAM, data: Manifest) -> None:
    scenes = data.of_split("val")[:2]
    found = measure(model, data, "rmm", scenes=scenes, repeats=3)
    assert found.repeats == 3
    for level in found.levels:
        clean = found.confusions[:, found.cells.index(Cell(level, ()))]
        assert torch.equal(clean[0], clean[1]) and torch.equal(clean[0], clean[2])
        assert found.miou(Cell(level, ())).std == 0
        spoilt = found.confusions[:, found.cells.index(Cell(level, NO_IMG))]
        assert not torch.equal(spoilt[0], spoilt[1])
        assert (found.miou(Cell(level, NO_IMG)).std or 0) > 0
    once = measure(model, data, "rmm", scenes=scenes)
    assert once.miou(Cell("0.5", NO_IMG)).std is None
    torch.testing.assert_close(once.confusions[0], found.confusions[0], rtol=0, atol=0)


def test_each_modality_and_each_corruption_is_encoded_once_per_batch(
    model: MemorySAM, data: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[tuple[int, int]] = []
    encode = MemorySAM.encode

    def counted(self: MemorySAM, frames: Sequence[Tensor], **options: Any) -> Any:
        encoded.append((len(frames), frames[0].shape[0]))
        return encode(self, frames, **options)

    monkeypatch.setattr(MemorySAM, "encode", counted)
    scenes = [scene for scene in data.of_split("val") if scene.condition == "fog"]  # three of one size
    measure(model, data, "emm", scenes=scenes, batch=2)
    assert encoded == [(2, 2), (1, 1), (2, 1)]  # both sensors; zeros once; both sensors of the last scene
    encoded.clear()
    measure(model, data, "rmm", scenes=scenes, batch=3, repeats=2)
    assert encoded == [(2, 3)] + [(2, 3)] * 3 * 2  # clean once; then each level in each repeat


def test_progress_is_told_scene_by_scene_and_the_models_mode_comes_back(model: MemorySAM, data: Manifest) -> None:
    done: list[int] = []
    model.train()
    measure(model, data, "any", batch=2, advance=done.append)
    assert model.training and sum(done) == len(data.of_split("val"))
    model.eval()


def test_four_sensors_have_the_15_published_sets() -> None:
    sets = missing_sets(4)
    assert len(sets) == 15 and sets[:6] == [(), (0,), (1,), (2,), (3,), (0, 1)] and sets[-1] == (1, 2, 3)
    assert [len(missing_sets(count)) for count in (1, 2, 3, 5, 6)] == [1, 3, 7, 31, 63]


def test_of_many_sensors_all_each_alone_and_all_but_each_are_scored() -> None:
    sets = missing_sets(7)
    assert sets[0] == () and sets[1:8] == [(place,) for place in range(7)]
    assert sets[8:] == [tuple(place for place in range(7) if place != alone) for alone in reversed(range(7))]


@pytest.mark.parametrize(("kind", "figures"), [("any", 15), ("emm", 15), ("rmm", 45), ("nm", 4)])
def test_what_the_memory_sees_for_each_figure(kind: Any, figures: int) -> None:
    plan = plan_of(kind, modalities=4, missing="drop")
    assert len(plan) == figures
    if kind == "emm":
        assert plan[Cell(None, (0, 2))] == ((0, "zero"), (1, "clean"), (2, "zero"), (3, "clean"))
    if kind == "any":
        assert plan[Cell(None, (0, 2))] == ((1, "clean"), (3, "clean"))
    if kind == "rmm":
        assert plan[Cell("0.5", (0, 2))] == ((0, "0.5"), (1, "clean"), (2, "0.5"), (3, "clean"))
    if kind == "nm":
        assert plan[Cell("high", ())] == tuple((place, "high") for place in range(4))


def made_up(mious: Sequence[Sequence[float]], *, modalities: int = 2) -> Robustness:
    """Counts of two classes that give these mIoU, per repeat and set."""
    matrices = []
    for repeat in mious:
        for miou in repeat:
            hits = round(1000 * miou / 50)  # the second class is never right, nor is anything called so
            matrices.append([[hits, 1000 - hits], [0, 0]])
    return Robustness(
        kind="emm", classes=("a", "b"), modalities=tuple("xyzw"[:modalities]), missing="zero", protocol="resized",
        scenes=1, seed=0, noise_extremes="batch", batch=1, processes=1,
        cells=tuple(Cell(None, gone) for gone in missing_sets(modalities)),
        confusions=torch.tensor(matrices).view(len(mious), -1, 2, 2),
    )  # fmt: skip


def test_averages_and_expected_values_by_hand() -> None:
    found = made_up([[40, 20, 10]])  # nothing, x, y missing
    assert [found.miou(cell).mean for cell in found.cells] == pytest.approx([40, 20, 10])
    assert found.average(None).mean == pytest.approx(70 / 3)
    # p = 0.2: weights 0.64, 0.16, 0.16; their sum is 1 - 0.2².
    assert found.expected(None, 0.2).mean == pytest.approx((0.64 * 40 + 0.16 * 20 + 0.16 * 10) / 0.96)
    assert found.miou(found.cells[0], present=True).mean == pytest.approx(80)  # 'b' has no ground truth


def test_expected_values_of_four_sensors_are_the_published_formula() -> None:
    mious = [float(value) for value in range(48, 33, -1)]
    found = made_up([mious], modalities=4)
    for p in PROBABILITIES:
        sizes = [0] + [1] * 4 + [2] * 6 + [3] * 4
        weights = [p**k * (1 - p) ** (4 - k) for k in sizes]
        assert sum(weights) == pytest.approx(1 - p**4)
        wanted = sum(w * m for w, m in zip(weights, mious, strict=True)) / (1 - p**4)
        assert found.expected(None, p).mean == pytest.approx(wanted)
    assert found.average(None).mean == pytest.approx(sum(mious) / 15)


def test_repeats_give_mean_and_sample_deviation_of_each_figure() -> None:
    found = made_up([[40, 20, 10], [44, 26, 14]])
    spread = found.miou(found.cells[1])
    assert (spread.mean, spread.std) == pytest.approx((23, 3 * 2**0.5))
    average = found.average(None)
    assert (average.mean, average.std) == pytest.approx((77 / 3, 7 / 3 * 2**0.5))


def test_without_any_damage_all_failures_leave_the_plain_figure(model: MemorySAM, data: Manifest) -> None:
    from memorysam_cli.engine.evaluate.scoring import evaluate

    scenes = data.of_split("val")[2:4]
    plain = evaluate(model, data, scenes=scenes, inference=Inference(MODALITIES, SIZE, "cpu", workers=0))
    for kind in ("any", "emm", "rmm", "nm"):
        found = measure(model, data, kind, scenes=scenes)
        assert_counts(found.confusions[0, 0], plain.confusion("resized"))
        assert found.miou(found.cells[0]).mean == pytest.approx(scores(plain.confusion("resized")).miou, abs=0.1)


def test_one_sensor_has_one_set(model: MemorySAM, data: Manifest) -> None:
    found = measure(model, data, "emm", modalities=MODALITIES[:1])
    assert found.cells == (Cell(None, ()),)
    assert found.average(None).mean == found.expected(None, 0.2).mean == found.miou(found.cells[0]).mean


def test_what_cannot_be_measured_is_refused(model: MemorySAM, data: Manifest) -> None:
    with pytest.raises(DataError, match="no scenes"):
        measure(model, data, "emm", scenes=[])
    with pytest.raises(UsageError, match="--repeats 2: nothing in 'emm' is random"):
        measure(model, data, "emm", repeats=2)
    with pytest.raises(UsageError, match="--missing zero: 'nm' decides itself"):
        measure(model, data, "nm", missing="zero")


def test_scenes_of_several_sizes_are_each_counted_once(model: MemorySAM, data: Manifest) -> None:
    sizes = {plan[4] for plan in PLANS if plan[1] == "val"}
    assert len(sizes) > 1
    found = measure(model, data, "emm", batch=4)
    assert len(set(found.confusions.sum((2, 3)).flatten().tolist())) == 1


def test_levels_are_known_to_the_corruption() -> None:
    for kind in ("rmm", "nm"):
        levels = {level for variants in plan_of(kind, modalities=2, missing="drop").values() for _, level in variants}
        assert levels - {"clean"} == set(corruption.SHARES if kind == "rmm" else corruption.NOISES)


def test_damaged_files_are_named(model: MemorySAM, tmp_path: Path) -> None:
    broken = write_data(tmp_path, PLANS[:1])
    path = tmp_path / "tiny/depth/fog/val/a/000001.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="depth/fog/val/a/000001"):
        measure(model, broken, "emm")


@pytest.mark.parametrize(
    "options",
    [{"kind": "rmm"}, pytest.param({"kind": "nm", "noise_extremes": "scene"}, marks=pytest.mark.slow)],
    ids=str,
)
def test_two_processes_count_what_one_counts(
    model: MemorySAM, data: Manifest, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memorysam_cli.engine.evaluate.robustness.wait_for_all", lambda accelerator: None)

    class Process:
        """One of two; adds nothing up, so that the shares can be looked at."""

        num_processes, device = 2, torch.device("cpu")

        def __init__(self, index: int) -> None:
            self.process_index = index

        def reduce(self, values: Tensor, reduction: str) -> Tensor:
            assert reduction == "sum" and values.dtype == torch.int64
            return values

    options |= {"scenes": data.of_split("val")[1:4]}
    shares: list[Any] = [measure(model, data, accelerator=Process(index), batch=2, **options) for index in (0, 1)]
    whole = measure(model, data, batch=2, **options)
    assert shares[0].processes == 2 and whole.processes == 1
    together = shares[0].confusions + shares[1].confusions
    for found, wanted in zip(together.flatten(0, 1), whole.confusions.flatten(0, 1), strict=True):
        assert_counts(found, wanted)


@pytest.mark.parametrize(
    ("kind", "missing", "wanted"),
    [("any", "drop", {(1, 2), (1,), (2,)}), ("any", "zero", {(1, 2)}), ("rmm", "drop", {(1, 2)})],
)
def test_every_frame_knows_its_sensor_zeros_and_spoilt_ones_too(
    kind: Any, missing: Any, wanted: set[Any], model: MemorySAM, data: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of weights of three sensors the first is not given: the others stand at the places 1 and 2."""
    seen, honest = set[tuple[int, ...]](), MemorySAM.outputs

    def outputs(self: MemorySAM, pool: Any, sequences: Any) -> Any:
        seen.update(tuple(pool[place].sensor for place in places) for places in sequences)
        return honest(self, pool, sequences)

    monkeypatch.setattr(MemorySAM, "outputs", outputs)
    first = MODALITIES[0].model_copy(update={"name": "first"})
    scenes = [scene for scene in data.of_split("val") if scene.condition == "fog"][:1]
    inference = Inference(
        MODALITIES, SIZE, "cpu", known=(first, *MODALITIES), view=View(missing=missing), workers=0
    )  # fmt: skip
    run(model, data, kind=kind, scenes=scenes, inference=inference)
    assert seen == wanted
