"""Block K: readers that are killed, crash, hang or raise (row 17); the order of an epoch, whatever stops it (row 5)."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from memorysam_cli.data import loader, workers
from memorysam_cli.data.loader import training_batches
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.errors import DataError
from tests.faults import killers
from tests.faults.conftest import Figures
from tests.faults.killers import KINDS, Evil, Seen, harm, read, seen
from tests.faults.naive import reading
from tests.faults.scale import amount

RECIPE = killers.recipe(workers=0)
DEATHS = ("SIGKILL", "SIGSEGV", "SIGABRT", "exit")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return killers.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(manifest: Manifest) -> dict[str, list[Seen]]:
    """What nobody disturbs."""
    return {kind: [seen(item) for item in read(kind, manifest, workers=0)] for kind in KINDS}


@pytest.fixture
def evil(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Evil:
    return Evil(monkeypatch, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_readers_are_replaced_and_no_scene_is_lost_doubled_or_out_of_place(
    kind: str, manifest: Manifest, whole: dict[str, list[Seen]], evil: Evil, rng: random.Random, figures: Figures
) -> None:
    deaths = amount(10, soak=200, few=4)
    while evil.done() < deaths:
        for path in evil.notes.iterdir():
            path.rename(path.with_name(f"{path.name} before {evil.done()}"))
        chosen = rng.sample([scene.id for scene in manifest.scenes], 4)
        # Two deaths are chance, three are the scene's fault.
        evil.scenes = {name: (rng.choice(DEATHS), 2 if number == 0 else 1) for number, name in enumerate(chosen)}
        if kind == "train":  # two killers in one batch would be three deaths of one item
            together = [{*chosen} & {*each.names} for each in whole[kind]]
            evil.scenes = {min(names): evil.scenes[min(names)] for names in together if names}
        lost, wrong = harm(lambda: iter(read(kind, manifest, workers=2)), whole[kind])
        assert (lost, wrong) == (0, 0)
    figures("K", killed=evil.done(), lost=0, doubled=0)


@pytest.mark.parametrize("kind", KINDS)
def test_readers_that_are_killed_from_outside_change_nothing(
    kind: str, manifest: Manifest, whole: dict[str, list[Seen]], rng: random.Random, figures: Figures
) -> None:
    killed, found = 0, []
    before = set(multiprocessing.active_children())
    for number, item in enumerate(read(kind, manifest, workers=2)):
        found.append(seen(item))
        mine = sorted((each for each in set(multiprocessing.active_children()) - before), key=str)
        if number % 3 == 0 and mine:  # the same item may be in the hands of the next one, but not of three
            victim = rng.choice(mine).pid
            assert victim is not None
            os.kill(victim, signal.SIGKILL)
            killed += 1
    assert found == whole[kind]
    assert killed >= 3 and set(multiprocessing.active_children()) <= before
    figures("K", killed=killed, lost=0, doubled=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_that_hangs_is_replaced(
    kind: str,
    manifest: Manifest,
    whole: dict[str, list[Seen]],
    evil: Evil,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    figures: Figures,
) -> None:
    assert 0 < workers.TIMEOUT_S <= 300
    monkeypatch.setattr(workers, "TIMEOUT_S", 1.0)
    evil.scenes = {rng.choice(manifest.scenes).id: ("hang", 1)}
    assert harm(lambda: iter(read(kind, manifest, workers=2)), whole[kind]) == (0, 0)
    assert evil.done() == 1
    figures("K", hung=1, lost=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_that_always_kills_its_reader_is_named_in_its_place(
    kind: str, manifest: Manifest, whole: dict[str, list[Seen]], evil: Evil, rng: random.Random, figures: Figures
) -> None:
    used = [name for each in whole[kind] for name in each.names]
    name, how = rng.choice(used), rng.choice(DEATHS)
    evil.scenes = {name: (how, 1000)}
    place = next(index for index, each in enumerate(whole[kind]) if name in each.names)
    words = rf"^scene {name}: killed its reader 3 times \(it .*\); fix its files, or leave it out"
    if kind == "predict":  # the fault stands in the scene's place, and the others follow
        found = [seen(item) for item in read(kind, manifest, workers=2)]
        assert found[place].names == ("fault",)
        assert found[place].digest.startswith(f"scene {name}: killed its reader 3 times")
        assert [*found[:place], *found[place + 1 :]] == [*whole[kind][:place], *whole[kind][place + 1 :]]
    else:
        items = iter(read(kind, manifest, workers=2))
        assert [seen(next(items)) for _ in range(place)] == whole[kind][:place]
        with pytest.raises(DataError, match=words):
            next(items)
    figures("K", quarantined=1)


@pytest.mark.parametrize("how", ["raise", *DEATHS])
def test_training_that_may_leave_scenes_out_goes_on_without_the_killer(
    how: str, manifest: Manifest, whole: dict[str, list[Seen]], evil: Evil, rng: random.Random, figures: Figures
) -> None:
    place = rng.randrange(len(whole["train"]))
    name = rng.choice(whole["train"][place].names)
    evil.scenes = {name: (how, 1000)}
    batches = list(read("train", manifest, workers=2, max_bad=0.1))
    assert [each.scene for batch in batches for each in batch.left_out] == [name]
    assert [index for index, batch in enumerate(batches) if batch.left_out] == [place]
    assert all(len(batch.scenes) == 2 for batch in batches)
    found = [seen(batch) for batch in batches]
    assert [*found[:place], *found[place + 1 :]] == [*whole["train"][:place], *whole["train"][place + 1 :]]
    order = [each for batch in whole["train"] for each in batch.names]
    (other,) = {*found[place].names} - {*whole["train"][place].names}
    assert other == order[(2 * place + 2) % len(order)]
    figures("K", quarantined=1)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_that_raises_is_told_in_its_place_with_and_without_workers(
    kind: str, count: int, manifest: Manifest, whole: dict[str, list[Seen]], evil: Evil, rng: random.Random
) -> None:
    name = rng.choice([name for each in whole[kind] for name in each.names])
    evil.scenes = {name: ("raise", 1000)}
    place = next(index for index, each in enumerate(whole[kind]) if name in each.names)
    found, fault = [], None
    try:
        found = [each for item in read(kind, manifest, workers=count) for each in [seen(item)]]
    except DataError as raised:
        fault = str(raised)
    if kind == "predict":
        assert found[place] == Seen(("fault",), "the file: is bad; fix it") and len(found) == len(whole[kind])
    else:
        assert fault is not None and fault.startswith("the file: is bad; fix it")


@pytest.mark.parametrize("naive", [reading.plain, reading.restarting, reading.skipping])
def test_a_naive_reader_loses_or_doubles_scenes_under_the_same_harness(
    naive: Any,
    manifest: Manifest,
    whole: dict[str, list[Seen]],
    evil: Evil,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = loader.UnlabeledScenes(manifest.root, manifest.scenes, killers.MODALITIES, 32, tile=False)
    # Not among the first: what is given before a death is given again by the one that begins again.
    victim = rng.choice(manifest.scenes[8:]).id
    how = "raise" if naive is reading.skipping else "SIGKILL"
    evil.scenes = {victim: (how, 1)}

    def items() -> Iterator[Any]:
        if naive is reading.skipping:
            return (each for each in naive(source, range(killers.COUNT), workers=2) if not isinstance(each, DataError))
        return iter(naive(source, range(killers.COUNT), workers=2))

    # What PyTorch's workers leave behind; pytest's own folders have names too long for a socket.
    with tempfile.TemporaryDirectory(prefix="naive-") as left:
        monkeypatch.setattr(tempfile, "tempdir", left)
        assert killers.harms_in_a_process(items, whole["predict"])


def numbers(count: int, **asked: Any) -> list[list[int]]:
    """The scenes of each batch that the loader asks for."""
    scenes = [Scene(str(number), "train", None, None, {"img": ("x",)}, "y") for number in range(count)]
    changes = {"batch": asked.pop("batch"), "seed": asked.pop("seed")}
    recipe = RECIPE.model_copy(update={"train": RECIPE.train.model_copy(update=changes)})
    return list(training_batches(asked.pop("manifest"), scenes=scenes, recipe=recipe, **asked))  # type: ignore[arg-type]


def check_epoch(parts: list[list[list[int]]], again: list[list[list[int]]], *, count: int, batch: int) -> None:
    """An epoch's batches by rank, before and after kills, are those of an epoch that nobody stopped."""
    world = len(parts)
    assert again == parts, "order"
    taken = Counter(number for rank in again for each in rank for number in each)
    assert set(taken.values()) <= {1}, "repeated"
    assert sum(taken.values()) == count // batch // world * world * batch, "lost"
    assert set(taken) <= set(range(count))


def test_an_epoch_is_the_same_whatever_stops_it(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    monkeypatch.setattr(loader.TrainingBatches, "item", lambda _, index: list(index.numbers))
    wanted, cases = amount(400, soak=20_000, few=100), 0

    @hypothesis.seed(int(os.environ["MEMORYSAM_FAULT_SEED"]))
    @hypothesis.settings(max_examples=wanted, deadline=None, database=None)
    @hypothesis.given(
        count=st.integers(1, 60), batch=st.integers(1, 7), world=st.integers(1, 4), seed=st.integers(0, 2**31),
        epoch=st.integers(0, 5), kills=st.lists(st.integers(0, 60), max_size=4),
    )  # fmt: skip
    def stopped(count: int, batch: int, world: int, seed: int, epoch: int, kills: list[int]) -> None:
        nonlocal cases
        cases += 1
        each = count // batch // world
        hypothesis.assume(each > 0)
        given = {"manifest": manifest, "batch": batch, "seed": seed, "epoch": epoch, "world": world}
        parts = [numbers(count, rank=rank, **given) for rank in range(world)]
        again = []
        for rank in range(world):
            taken: list[list[int]] = []
            for kill in sorted({kill % (each + 1) for kill in kills} | {each}):
                taken += numbers(count, rank=rank, start=len(taken), **given)[: kill - len(taken)]
            again.append(taken)
        check_epoch(parts, again, count=count, batch=batch)
        assert numbers(count, rank=0, **given | {"epoch": epoch + 1}) != parts[0] or count < 8

    stopped()
    figures("K", epochs=cases, lost=0)
    assert cases >= 0.75 * wanted


def test_a_naive_sampler_repeats_and_loses_scenes_under_the_same_judge() -> None:
    whole = [reading.epoch(40, batch=4, start=0)]
    resumed = [whole[0][:5] + reading.epoch(40, batch=4, start=5)]
    with pytest.raises(AssertionError):
        check_epoch(whole, resumed, count=40, batch=4)
