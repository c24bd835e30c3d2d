"""Training with what goes beyond the paper: exact over a stop, in other words when it resumes, and over batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.measure import count
from memorysam_cli.engine.train.initial import load_initial
from memorysam_cli.engine.train.objective import Moment, draw
from memorysam_cli.model import load
from memorysam_cli.model.weights import build_for_training, save
from memorysam_cli.recipe import Recipe

from .test_learner import batch_of, gradients_of, learner_of, part
from .test_trainer import changed, gone_on, start, state_of

BEYOND: dict[str, Any] = {
    "fusion": "two_pass", "order": "shuffled", "modality_embedding": True, "memory_mask": "classes"
}  # fmt: skip


@pytest.fixture
def joined(small: Recipe, rendered: Manifest) -> tuple[Recipe, Manifest]:
    """Depth and event as the two frames of one sensor, whose channels are projected."""
    names = {"ms-1": "depth", "ms-2": "event"}
    more = tuple(rendered.info.modality(known).model_copy(update={"name": name}) for name, known in names.items())
    scenes = tuple(
        replace(scene, files=scene.files | {name: scene.files[known] for name, known in names.items()})
        for scene in rendered.scenes
    )
    info = rendered.info.model_copy(update={"modalities": (*rendered.info.modalities, *more)})
    recipe = changed(changed(small, "data", modalities=("img", *names)), "model", projection=("ms",))
    return recipe, replace(rendered, info=info, scenes=scenes)


@pytest.fixture
def beyond(small: Recipe) -> Recipe:
    return changed(small, "model", **BEYOND)


def test_a_resumed_run_ends_bit_for_bit_the_same_and_trains_notes_and_a_projection(
    joined: tuple[Recipe, Manifest], tmp_path: Path
) -> None:
    recipe, manifest = joined
    recipe = changed(changed(recipe, "model", **BEYOND), "train", epochs=1, checkpoint_steps=1)
    whole = start(recipe, manifest, tmp_path / "whole")
    state = state_of(gone_on(recipe, manifest, whole.run, tmp_path))
    torch.testing.assert_close(state, state_of(whole.run), rtol=0, atol=0)
    loaded = load(whole.last)
    notes = loaded.notes.state_dict()
    assert notes.keys() == {"sensors", "classes"}
    for name, tensor in notes.items():
        assert torch.equal(tensor, state[f"notes.{name}"]) and bool(tensor.any())
    ((name, trained),) = loaded.projection.named_parameters()
    ((_, begun),) = build_for_training(recipe, manifest.info).projection.named_parameters()
    assert torch.equal(trained, state[f"projection.{name}"]) and not torch.equal(trained, begun)
    assert f"adamw/exp_avg/projection.{name}" in state


@pytest.mark.parametrize("saver", ["on", pytest.param("off", marks=pytest.mark.slow)])
def test_a_projection_s_gradient_is_that_of_one_large_batch(saver: str, joined: tuple[Recipe, Manifest]) -> None:
    recipe, manifest = joined
    recipe = changed(recipe, "train", saver=saver)
    frames = [torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(place)) for place in range(3)]
    whole = replace(batch_of(4), frames=frames)
    parts = [part(whole, slice(*pair)) for pair in ((0, 1), (1, 4))]
    wanted, found = (gradients_of(learner_of(recipe, manifest), batches) for batches in ([whole], parts))
    (name,) = (name for name in wanted if name.startswith("projection."))
    assert bool(wanted[name].any())
    torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5 * float(wanted[name].abs().max()))


def test_a_projection_costs_a_sensor_less_and_is_counted(joined: tuple[Recipe, Manifest]) -> None:
    """Of three frames the memory sees two; the weights are three rows of six numbers more."""
    recipe, _ = joined
    frames, pair = (
        count.training(other, classes=25)
        for other in (
            changed(recipe, "model", projection=()),
            changed(changed(recipe, "model", projection=()), "data", modalities=("img", "ms")),
        )
    )
    found = count.training(recipe, classes=25)
    assert pair.activations < found.activations < frames.activations
    block = -(-4 * 3 * 6 // 512) * 512
    assert (found.weights - pair.weights, found.gradients - pair.gradients) == (block, block)


def test_a_run_with_a_projection_can_begin_from_weights_without_one_and_back(
    joined: tuple[Recipe, Manifest], tmp_path: Path
) -> None:
    recipe, manifest = joined
    for first, second in (
        (recipe, changed(recipe, "model", projection=())),
        (changed(recipe, "model", projection=()), recipe),
    ):
        path = tmp_path / "w.safetensors"
        before = build_for_training(first, manifest.info)
        with torch.no_grad():
            before.sam.no_mem_embed.add_(1.0)
        save(before, path)
        after = build_for_training(second, manifest.info)
        told = load_initial(after, str(path))
        torch.testing.assert_close(after.sam.no_mem_embed, before.sam.no_mem_embed, rtol=0, atol=0)
        assert any("projection" in note for note in told.notes)


def test_accumulated_batches_are_one_large_batch(beyond: Recipe, rendered: Manifest) -> None:
    whole = batch_of(4)
    parts = [part(whole, slice(*pair)) for pair in ((0, 1), (1, 4))]
    one, many = learner_of(beyond, rendered), learner_of(beyond, rendered)
    wanted, found = gradients_of(one, [whole]), gradients_of(many, parts)
    assert wanted.keys() == found.keys() == one.parameters.keys()
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * scale + 1e-8, msg=name)


@pytest.mark.parametrize("saver", ["on", pytest.param("off", marks=pytest.mark.slow)])
def test_all_batches_of_an_update_are_seen_in_its_order_both_times(
    saver: str, beyond: Recipe, rendered: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(changed(beyond, "train", saver=saver), rendered, has_dropout=True)
    orders: list[tuple[int, ...]] = []
    honest = learner.network.fusion.plan

    def plan(places: Any) -> Any:
        orders.append(tuple(places))
        return honest(places)

    monkeypatch.setattr(learner.network.fusion, "plan", plan)
    batches = [batch_of(1, seed=seed) for seed in range(2)]
    moments = [Moment(0, number, epochs=1.0) for number in (1, 2)]
    for moment in moments:
        learner.learn(batches, rate=1e-3, moment=moment)
    assert orders == [draw(learner.recipe, moment).order for moment in moments for _ in range(3)]
    assert set(orders) == {(0, 1), (1, 0)}


def test_one_sensor_trains_with_its_notes_at_rest(beyond: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    recipe = changed(changed(beyond, "data", modalities=("img",)), "train", max_steps=1)
    result = start(recipe, rendered, tmp_path / "run")
    assert not any(bool(tensor.any()) for tensor in load(result.last).notes.parameters())


def test_a_run_can_begin_from_the_paper_s_network_and_from_other_sensors_notes(
    small: Recipe, beyond: Recipe, rendered: Manifest, tmp_path: Path
) -> None:
    """What the initial weights lack starts at zero; a sensor keeps its embedding, wherever it stands."""
    paper, noted = build_for_training(small, rendered.info), build_for_training(beyond, rendered.info)
    with torch.no_grad():
        for network in (paper, noted):
            network.sam.no_mem_embed.add_(1.0)
            for tensor in network.notes.parameters():
                tensor.normal_()
        noted.notes.sensors[1] = 7.0  # type: ignore[index]
    path = tmp_path / "initial.safetensors"
    save(paper, path)
    found = build_for_training(beyond, rendered.info)
    load_initial(found, str(path))
    torch.testing.assert_close(found.sam.no_mem_embed, paper.sam.no_mem_embed, rtol=0, atol=0)
    assert not any(bool(tensor.any()) for tensor in found.notes.parameters())
    save(noted, path)
    found = build_for_training(changed(beyond, "data", modalities=("lidar", "depth", "event")), rendered.info)
    load_initial(found, str(path))
    assert found.notes.sensors is not None
    assert [sorted({float(value) for value in row}) for row in found.notes.sensors.detach()] == [[0.0], [7.0], [0.0]]
    torch.testing.assert_close(found.notes.classes, noted.notes.classes, rtol=0, atol=0)
    told = load_initial(build_for_training(small, rendered.info), str(path))
    assert [note for note in told.notes if "2 tensors are not used here: notes" in note]


def test_its_memory_is_counted(beyond: Recipe, rendered: Manifest) -> None:
    """Second looks keep more alive; notes are weights like others."""
    paper = {"fusion": "mean", "modality_embedding": False, "memory_mask": "best"}
    plain, more = (count.training(recipe, classes=25) for recipe in (changed(beyond, "model", **paper), beyond))
    assert more.activations > 1.2 * plain.activations
    width = build_for_training(beyond, rendered.info).sam.mem_dim
    blocks = [-(-4 * values // 512) * 512 for values in (2 * width, 25 * width)]  # two sensors, 25 classes
    assert (more.weights - plain.weights, more.gradients - plain.gradients) == (sum(blocks), sum(blocks))
