"""Which candidate a plan proposes, by tables of what fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from memorysam_cli import recipe as recipes
from memorysam_cli.engine.measure import count, rates
from memorysam_cli.engine.measure import plan as planning
from memorysam_cli.engine.measure.count import Count
from memorysam_cli.engine.measure.plan import Candidate, Plan, Room, candidates
from memorysam_cli.engine.measure.trials import Outcome, Trial
from memorysam_cli.engine.measure.workload import Frames, Target
from memorysam_cli.engine.surroundings import Capacity
from memorysam_cli.errors import EnvironmentFault, UsageError
from memorysam_cli.recipe import Recipe

GB = 10**9
ROOM = Room("cuda", total=80 * GB, free=79 * GB, memory=24 * GB, limit=int(21.6 * GB))
Fits = Callable[[int, str], bool]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Plan, list[tuple[int, int, str]]]]:
    """The plan for ``deliver`` where a batch with or without the saver fits as told, and what was counted."""

    def make(fits: Fits, *changes: str, attempt: planning.Try | None = None) -> tuple[Plan, list[tuple[int, int, str]]]:
        counted = []

        def training(recipe: Recipe, *, classes: int, kind: str) -> Count:
            train = recipe.train
            assert (classes, kind) == (25, "cuda")
            counted.append((train.batch, train.accumulate, train.saver))
            backward = (20 if fits(train.batch, train.saver) else 30) * GB
            return Count(GB, GB, 2 * GB, GB, activations=9 * GB, forward=15 * GB, backward=backward)

        monkeypatch.setattr(count, "training", training)
        monkeypatch.setattr(count, "validation", lambda *_, **__: Count(GB, 0, 2 * GB, GB, 0, 5 * GB, 0))
        target = Target(recipes.load("deliver", changes), 25, Frames(((1024, 1024),), (1042, 1042)), "published", 3983)
        return planning.search(target, ROOM, attempt=attempt), counted

    return make


TABLES: dict[str, tuple[Fits, tuple[int, int, str] | None, int]] = {
    "everything fits": (lambda batch, saver: True, (4, 1, "off"), 2),
    "only with the saver": (lambda batch, saver: saver == "on", (4, 1, "on"), 2),
    "half the batch": (lambda batch, saver: batch <= 2, (2, 2, "off"), 3),
    "half the batch with the saver": (lambda batch, saver: batch <= 2 and saver == "on", (2, 2, "on"), 3),
    "only batch 1 with the saver": (lambda batch, saver: (batch, saver) == (1, "on"), (1, 4, "on"), 4),
    "nothing": (lambda batch, saver: False, None, 3),
}


@pytest.mark.parametrize("table", TABLES)
def test_the_largest_batch_that_fits_is_proposed_and_few_are_counted(table: str, plan: Callable[..., Any]) -> None:
    fits, wanted, most = TABLES[table]
    found, counted = plan(fits)
    assert len(counted) == len(set(counted)) == len(found.findings) <= most
    assert (found.proposal and tuple(vars(found.proposal).values())) == wanted


def test_of_many_batches_few_are_counted(plan: Callable[..., Any]) -> None:
    found, counted = plan(lambda batch, saver: batch <= 3, "train.batch=48")
    assert found.proposal == Candidate(3, 16, "off") and len(counted) <= 6


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 1), (1, 4), (3, 4), (7, 1), (16, 2)])
def test_every_candidate_keeps_the_scenes_of_an_update(batch: int, accumulate: int) -> None:
    train = recipes.load("deliver", [f"train.batch={batch}", f"train.accumulate={accumulate}"]).train
    found = candidates(train)
    assert {candidate.batch * candidate.accumulate for candidate in found} == {batch * accumulate}
    assert found[0] == Candidate(batch * accumulate, 1, "off") and found[-1] == Candidate(1, batch * accumulate, "on")
    assert len(set(found)) == len(found)


def test_a_saver_that_the_recipe_decides_is_left_as_it_is(plan: Callable[..., Any]) -> None:
    _, counted = plan(lambda batch, saver: False, "train.saver=on")
    assert counted == [(4, 1, "on"), (2, 2, "on"), (1, 4, "on")]


def test_the_changes_of_a_candidate_give_its_recipe() -> None:
    recipe = recipes.load("deliver")
    candidate = Candidate(2, 2, "on")
    assert recipes.load("deliver", candidate.changes()) == candidate.apply(recipe)
    assert candidate.apply(recipe).optim == recipe.optim


def trial(fits: Fits, seen: list[tuple[int, str]]) -> planning.Try:
    """Trials that are not run."""

    def attempt(trial: Trial) -> Outcome:
        train = trial.recipe.train
        assert trial.limit == ROOM.limit and trial.frames is not None
        seen.append((train.batch, train.saver))
        if fits(train.batch, train.saver):
            return Outcome(True, seconds=(9.0, 4.0), peak=20 * GB, training_peak=20 * GB, validation_peak=3 * GB)
        return Outcome(False, "out of memory (CUDA out of memory)", peak=21 * GB)

    return attempt


def test_the_pick_is_tried_and_the_next_smaller_where_it_fails(plan: Callable[..., Any]) -> None:
    seen: list[tuple[int, str]] = []
    found, _ = plan(lambda batch, saver: saver == "on" or batch < 4, attempt=trial(lambda batch, _: batch < 4, seen))
    assert seen == [(4, "on"), (2, "off")] and found.proposal == Candidate(2, 2, "off")
    assert found.tried[1].seconds == 4.0, "that of a warm update"
    content = found.to_json()["trials"]
    assert content[0]["fits"] is False and content[0]["seconds"] is None and content[0]["why"].startswith("out of")
    assert (content[1]["peak"], content[1]["training_peak"], content[1]["validation_peak"]) == (
        20 * GB,
        20 * GB,
        3 * GB,
    )


def test_nothing_is_tried_where_nothing_fits(plan: Callable[..., Any]) -> None:
    found, _ = plan(lambda batch, saver: False, attempt=lambda _: pytest.fail("tried"))
    assert found.proposal is None and not found.tried


def test_where_no_trial_fits_the_last_one_says_why(plan: Callable[..., Any]) -> None:
    found, _ = plan(lambda batch, saver: True, attempt=trial(lambda *_: False, []))
    assert found.proposal is None and len(found.tried) == 6
    assert "batch 1 × 4 accumulated, saver on: out of memory" in str(found.refusal())


def test_where_nothing_fits_the_refusal_has_the_numbers_and_the_levers(plan: Callable[..., Any]) -> None:
    found, _ = plan(lambda batch, saver: False)
    refusal = found.refusal()
    assert refusal.exit_code == 6 and "\n" not in str(refusal)
    for part in (
        "cuda: nothing fits into 21.6 GB (24.0 GB less the 10 % that stay free)",
        "batch 1 × 4 accumulated, saver on: needs 30.0 GB",
        "--set train.precision=bf16",
        "--set data.image_size=768",
        "fewer modalities than 4",
        "--set model.backbone=sam2-hiera-tiny",
    ):
        assert part in str(refusal)
    assert "saver=on" not in str(refusal)


def test_levers_that_are_pulled_already_are_not_named(plan: Callable[..., Any]) -> None:
    changes = ["train.precision=bf16", "train.saver=off", "data.modalities=[img]", "model.backbone=nano"]
    found, _ = plan(lambda batch, saver: False, *changes, "data.image_size=32")
    assert planning.levers(found.target) == "plan again with --set train.saver=on"


def test_the_line_to_type_says_what_was_found(plan: Callable[..., Any]) -> None:
    found, _ = plan(lambda batch, saver: saver == "on")
    line = planning.train_line(
        found, recipe="my recipe.yaml", overrides=["optim.lr=1e-4", "train.batch=8"], device="cuda"
    )
    assert line == (
        "memorysam train --recipe 'my recipe.yaml' --device cuda --set optim.lr=1e-4 --set train.batch=4 "
        "--set train.accumulate=1 --set train.saver=on"
    )
    nothing, _ = plan(lambda batch, saver: False)
    assert planning.train_line(nothing, recipe="deliver") is None


def test_the_json_has_the_parts_of_every_count(plan: Callable[..., Any]) -> None:
    found, _ = plan(lambda batch, saver: saver == "on")
    content = found.to_json()
    assert content["proposal"] == {"batch": 4, "accumulate": 1, "saver": "on"} and content["effective_batch"] == 4
    off, on = content["counts"]
    assert (off["saver"], off["fits"], off["peak"]) == ("off", False, 30 * GB)
    assert (on["fits"], on["training_peak"], on["validation_peak"], on["programs"]) == (True, 20 * GB, 5 * GB, 0)
    assert on["parts"] == {
        "weights": GB, "gradients": GB, "moments": 2 * GB, "inputs": GB, "activations": 9 * GB, "forward": 15 * GB,
        "backward": 20 * GB,
    }  # fmt: skip
    assert content["trials"] == [] and content["updates"] == 199_000 and content["not_counted"]


def test_free_memory_less_the_margin_is_the_limit() -> None:
    space = planning.room("cpu", have=Capacity(total=32 * GB, free=20 * GB))
    assert (space.memory, space.limit, space.total) == (20 * GB, 18 * GB, 32 * GB)
    assert planning.room("cpu", have=Capacity(32 * GB, 20 * GB), share=2).limit == 9 * GB


def test_a_device_that_is_not_here_may_be_planned_for() -> None:
    space = planning.room("cuda", asked=24 * GB)
    assert (space.kind, space.total, space.free, space.limit) == ("cuda", 24 * GB, 24 * GB, int(21.6 * GB))


def test_more_than_the_device_has_is_not_tried() -> None:
    with pytest.raises(UsageError, match=r"--gpu-memory 96\.0 GB: cuda has 80\.0 GB in all; leave --try out"):
        planning.refuse_more_than_there_is(planning.room("cuda", asked=96 * GB), Capacity(80 * GB, 79 * GB))
    with pytest.raises(EnvironmentFault, match=r"only 10\.0 GB of cuda are free now"):
        planning.refuse_more_than_there_is(planning.room("cuda", asked=24 * GB), Capacity(80 * GB, 10 * GB))


def test_the_largest_batch_of_prediction_is_counted_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line through two batches guesses 11; the tenth is the last that fits."""
    counted = []

    def prediction(recipe: Recipe, **_: object) -> Count:
        batch = recipe.train.batch
        counted.append(batch)
        return Count(GB, 0, 0, 0, 0, forward=int((1 + 2 * batch + (batch > 2) * 0.5) * GB), backward=0)

    monkeypatch.setattr(count, "prediction", prediction)
    target = Target(recipes.load("deliver"), 25, Frames(((1024, 1024),), (1042, 1042)), "published")
    space = Room("cuda", 24 * GB, 24 * GB, 24 * GB, 23 * GB)
    found = planning.looking(target, space)
    assert (found.single, found.batch, found.peak) == (3 * GB, 10, int(21.5 * GB)) and counted == [1, 2, 11, 10]
    none = planning.looking(target, Room("cuda", GB, GB, GB, GB))
    assert (none.batch, none.peak) == (0, 0)


def test_hours_follow_from_the_papers_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """199k updates of 33 TFLOP at 60 % of 67, and at 32 % of 989 TFLOP/s."""
    monkeypatch.setattr(count, "training_flops", lambda *_, **__: int(33e12 / 4))
    target = Target(recipes.load("deliver"), 25, Frames(((1024, 1024),), (1042, 1042)), "published", 3983)
    found = planning.estimates(target, planning.room("cuda", asked=141 * GB), here=None)
    hours = {each.precision: each.hours for each in found if each.hours is not None}
    assert {each.device for each in found} == {"H200"}
    assert hours["fp32"] == pytest.approx(45.4, abs=0.1) and hours["bf16"] == pytest.approx(5.76, abs=0.01)


@pytest.mark.parametrize("card", rates.CARDS)
def test_no_card_is_slower_in_a_coarser_precision(card: str) -> None:
    peaks = [peak for precision in rates.PRECISIONS if (peak := rates.CARDS[card].peak(precision))]
    reached = [each.flops_per_second for each in rates.estimate_on_card(card, flops=10**12, updates=None)]
    assert peaks == sorted(peaks) and reached == sorted(reached) and len(peaks) == len(reached)


def test_tf32_of_a_geforce_card_is_as_fast_as_its_float32() -> None:
    """60 % of 35.6 TFLOP/s is 21.36, more than 32 % of as much on tensor cores; 32 % of 71 is 22.72."""
    found = {each.precision: each for each in rates.estimate_on_card("RTX 3090", flops=10**12, updates=None)}
    rated = {precision: each.flops_per_second / 1e12 for precision, each in found.items()}
    assert rated == pytest.approx({"fp32": 21.36, "tf32": 21.36, "bf16": 22.72, "fp16": 22.72})
    assert found["tf32"].source == "60 % of the data sheet's 35.6 TFLOP/s"


def test_cards_of_the_asked_size_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "training_flops", lambda *_, **__: 10**12)
    target = Target(recipes.load("deliver"), 25, Frames(((1024, 1024),), (1042, 1042)), "published")
    found = planning.estimates(target, planning.room("cuda", asked=24 * GB), here=None)
    assert {each.device for each in found} == {"RTX 3090", "RTX 4090", "A10", "L4"}
    old = planning.estimates(target, planning.room("cuda", asked=16 * GB), here=torch.device("cpu"))
    assert [each.precision for each in old] == ["fp32"] and "measured" in old[0].source and old[0].hours is None


def test_people_see_the_counts_and_a_line_that_can_be_typed(
    plan: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = plan(lambda batch, saver: batch == 1)
    planning.show(found, planning.train_line(found, recipe="deliver"))
    shown = capsys.readouterr().out
    assert "validation at 1024×1024 for 1042×1042" in shown and "not counted: the CUDA context" in shown
    lines = shown.splitlines()
    assert (
        lines[-1]
        == "memorysam train --recipe deliver --set train.batch=1 --set train.accumulate=4 --set train.saver=off"
    )
    words = lines[-1].split()
    overrides = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    assert isinstance(recipes.load(words[3], overrides), Recipe)
    row = next(line for line in lines if line.strip().endswith("yes"))
    assert "20.0 GB" in row and "9.0 GB" in row and "1.6 GB" in row


@pytest.mark.parametrize(
    ("seconds", "hours", "shown"),
    [(0.5, 2.0, ("0.5", "2 h 00 min")), (0.0008, 0.0001, ("< 0.01", "< 1 min")), (0.01, None, ("0.01", "–"))],
)
def test_an_estimate_says_no_more_than_arithmetic_can(
    seconds: float, hours: float | None, shown: tuple[str, str]
) -> None:
    each = rates.Estimate("L4", "fp32", 1e12, seconds, hours, "a sheet")
    assert planning._estimate_row(each) == ("L4", "fp32", *shown, "a sheet")
