"""Which candidate a plan proposes, by tables of what fits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memorysam_cli import recipe as recipes
from memorysam_cli.engine.measuring.memory import Capacity
from memorysam_cli.engine.measuring.trials import Frames, Outcome, Trial
from memorysam_cli.engine.planning import search, showing
from memorysam_cli.engine.planning.candidates import Candidate, candidates
from memorysam_cli.engine.planning.search import Plan, Room
from memorysam_cli.engine.planning.targets import Target
from memorysam_cli.errors import EnvironmentFault, UsageError
from memorysam_cli.recipe import Recipe

GB = 10**9
ROOM = Room("cuda", total=80 * GB, free=79 * GB, memory=24 * GB, limit=int(21.6 * GB))


def plan(fits: Callable[[int, str], bool], *changes: str) -> tuple[Plan, list[tuple[int, int, str]]]:
    """The plan for ``deliver`` where a batch with or without the saver fits as told, and what was tried."""
    tried = []
    recipe = recipes.load("deliver", changes)

    def attempt(trial: Trial) -> Outcome:
        train = trial.recipe.train
        tried.append((train.batch, train.accumulate, train.saver))
        assert trial.limit == ROOM.limit and trial.frames is not None
        if fits(train.batch, train.saver):
            return Outcome(True, seconds=(9.0, 4.0), peak=20 * GB, training_peak=20 * GB, validation_peak=3 * GB)
        return Outcome(False, "out of memory (CUDA out of memory)", peak=21 * GB)

    target = Target(recipe, 25, Frames(((1024, 1024),), (1042, 1042)), "the published size")
    return search.search(target, ROOM, attempt=attempt), tried


TABLES: dict[str, tuple[Callable[[int, str], bool], tuple[int, int, str] | None, int]] = {
    "everything fits": (lambda batch, saver: True, (4, 1, "off"), 1),
    "only with the saver": (lambda batch, saver: saver == "on", (4, 1, "on"), 2),
    "half the batch": (lambda batch, saver: batch <= 2, (2, 2, "off"), 3),
    "half the batch with the saver": (lambda batch, saver: batch <= 2 and saver == "on", (2, 2, "on"), 4),
    "only batch 1 with the saver": (lambda batch, saver: (batch, saver) == (1, "on"), (1, 4, "on"), 6),
    "nothing": (lambda batch, saver: False, None, 6),
}


@pytest.mark.parametrize("table", TABLES)
def test_the_first_candidate_that_fits_is_proposed_and_nothing_is_tried_after_it(table: str) -> None:
    fits, wanted, trials = TABLES[table]
    found, tried = plan(fits)
    assert len(tried) == trials == len(found.findings)
    assert tried == [(4, 1, "off"), (4, 1, "on"), (2, 2, "off"), (2, 2, "on"), (1, 4, "off"), (1, 4, "on")][:trials]
    proposal = found.proposal
    assert (proposal and tuple(vars(proposal.candidate).values())) == wanted


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 1), (1, 4), (3, 4), (7, 1), (16, 2)])
def test_every_candidate_keeps_the_scenes_of_an_update(batch: int, accumulate: int) -> None:
    train = recipes.load("deliver", [f"train.batch={batch}", f"train.accumulate={accumulate}"]).train
    found = candidates(train)
    assert {candidate.batch * candidate.accumulate for candidate in found} == {batch * accumulate}
    assert found[0] == Candidate(batch * accumulate, 1, "off") and found[-1] == Candidate(1, batch * accumulate, "on")
    assert len(set(found)) == len(found)


def test_a_saver_that_the_recipe_decides_is_left_as_it_is() -> None:
    _, tried = plan(lambda batch, saver: False, "train.saver=on")
    assert tried == [(4, 1, "on"), (2, 2, "on"), (1, 4, "on")]


def test_the_changes_of_a_candidate_give_its_recipe() -> None:
    recipe = recipes.load("deliver")
    candidate = Candidate(2, 2, "on")
    assert recipes.load("deliver", candidate.changes()) == candidate.apply(recipe)
    assert candidate.apply(recipe).optim == recipe.optim


def test_the_time_of_an_update_is_that_of_a_warm_one() -> None:
    found, _ = plan(lambda batch, saver: True)
    assert found.findings[0].seconds == 4.0


def test_where_nothing_fits_the_refusal_has_the_numbers_and_the_levers() -> None:
    found, _ = plan(lambda batch, saver: False)
    refusal = found.refusal()
    assert refusal.exit_code == 6 and "\n" not in str(refusal)
    for part in (
        "cuda: nothing fits into 21.6 GB (24.0 GB less the 10 % that stay free)",
        "batch 1 × 4 accumulated, saver on: out of memory",
        "--set train.precision=bf16",
        "--set data.image_size=768",
        "fewer modalities than 4",
        "--set model.backbone=sam2-hiera-tiny",
    ):
        assert part in str(refusal)
    assert "saver=on" not in str(refusal)


def test_levers_that_are_pulled_already_are_not_named() -> None:
    changes = ["train.precision=bf16", "train.saver=off", "data.modalities=[img]", "model.backbone=nano"]
    found, _ = plan(lambda batch, saver: False, *changes, "data.image_size=32")
    assert search.levers(found) == "plan again with --set train.saver=on"


def test_the_line_to_type_says_what_was_run() -> None:
    found, _ = plan(lambda batch, saver: saver == "on")
    line = showing.train_line(
        found, recipe="my recipe.yaml", overrides=["optim.lr=1e-4", "train.batch=8"], device="cuda"
    )
    assert line == (
        "memorysam train --recipe 'my recipe.yaml' --device cuda --set optim.lr=1e-4 --set train.batch=4 "
        "--set train.accumulate=1 --set train.saver=on"
    )
    nothing, _ = plan(lambda batch, saver: False)
    assert showing.train_line(nothing, recipe="deliver") is None


def test_the_json_has_the_peaks_of_every_trial() -> None:
    found, _ = plan(lambda batch, saver: saver == "on")
    content = found.to_json()
    assert content["proposal"] == {"batch": 4, "accumulate": 1, "saver": "on"} and content["effective_batch"] == 4
    first, second = content["trials"]
    assert first["fits"] is False and first["seconds"] is None and first["why"].startswith("out of memory")
    assert (second["peak"], second["training_peak"], second["validation_peak"]) == (20 * GB, 20 * GB, 3 * GB)


def test_free_memory_less_the_margin_is_the_limit() -> None:
    space = search.room("cpu", have=Capacity(total=32 * GB, free=20 * GB))
    assert (space.memory, space.limit, space.total) == (20 * GB, 18 * GB, 32 * GB)
    assert search.room("cpu", have=Capacity(32 * GB, 20 * GB), share=2).limit == 9 * GB


def test_less_than_the_device_has_may_be_planned_for_and_never_more() -> None:
    have = Capacity(total=80 * GB, free=79 * GB)
    assert search.room("cuda", asked=24 * GB, have=have).limit == int(21.6 * GB)
    with pytest.raises(UsageError, match=r"--gpu-memory 96\.0 GB: cuda has 80\.0 GB in all"):
        search.room("cuda", asked=96 * GB, have=have)


def test_memory_that_others_hold_is_not_planned_for() -> None:
    with pytest.raises(EnvironmentFault, match=r"only 10\.0 GB of cuda are free now"):
        search.room("cuda", asked=24 * GB, have=Capacity(total=80 * GB, free=10 * GB))


def test_a_recipe_is_resolved_again_from_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = plan(lambda batch, saver: batch == 1)
    showing.show(found, showing.train_line(found, recipe="deliver"))
    shown = capsys.readouterr().out
    assert "validation at 1024×1024 for 1042×1042" in shown
    lines = shown.splitlines()
    assert (
        lines[-1]
        == "memorysam train --recipe deliver --set train.batch=1 --set train.accumulate=4 --set train.saver=off"
    )
    words = lines[-1].split()
    overrides = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    assert isinstance(recipes.load(words[3], overrides), Recipe)
    row = next(line for line in lines if line.strip().endswith("yes"))
    assert "20.0 GB" in row and "4.0 GB" in row and "4.00" in row
