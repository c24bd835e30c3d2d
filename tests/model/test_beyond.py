"""Beyond the paper: second looks, orders of the sensors, what memories note; off by default, exact where it must be."""

from __future__ import annotations

import functools
from collections import Counter
from itertools import combinations
from typing import Any

import pytest
import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from memorysam_cli.model import memory
from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.fusion import Fusion, Mean, Output, TwoPass, TwoPassAlone
from memorysam_cli.model.memory import Decoded, Look, Memory, Notes
from memorysam_cli.model.network import MemorySAM, set_trainable

from .test_memory import NANO_21

WIDTH = 32
"""Of nano's memory; in another network these notes would not fit."""
ORDERS = [(1, 0, 2), (1, 2, 0), (2, 1, 0)]
TWO_PASSES = pytest.mark.parametrize("kind", [TwoPass, TwoPassAlone])


def build(backbone: Any) -> SAM2Base:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_sam2(backbone, tokens=4)


@functools.cache
def shared(backbone: Any) -> SAM2Base:
    """For reading only."""
    return build(backbone).requires_grad_(False)


def network(
    fusion: Fusion | None = None, *, backbone: Any = "nano", is_changed: bool = False, **options: Any
) -> MemorySAM:
    """A network around SAM2's parts, of its own if the test trains or changes them."""
    sam = build(backbone) if is_changed else shared(backbone)
    return MemorySAM(sam, classes=3, object_gate=False, fusion=fusion, **options).eval()


def scene(count: int = 3, *, batch: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, 3, 64, 64, generator=generator) for _ in range(count)]


def assert_same(found: Output, wanted: Output) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-5 * max(1.0, float(theirs.abs().max()))


def test_the_plans_by_hand() -> None:
    second = [Look(0, (1, 2)), Look(2, (0, 2)), Look(3, (0, 1))]
    assert TwoPass().plan([0, 2, 3]) == [Look(0, ()), Look(2, (0,)), Look(3, (0, 1)), *second]
    assert TwoPassAlone().plan([0, 2, 3]) == [Look(0, ()), Look(2, ()), Look(3, ()), *second]
    assert TwoPass().plan([2]) == TwoPassAlone().plan([2]) == [Look(2, ())]


@TWO_PASSES
def test_the_result_is_the_mean_of_second_looks_at_the_memories_of_all_others(kind: type[TwoPass]) -> None:
    """By SAM2's parts one after another, without a tree."""
    model = network(kind())
    with torch.no_grad():
        found, pool = model(scene()), model.encode(scene())
        options: dict[str, Any] = {
            "dense_position": model.sam.sam_prompt_encoder.pe_layer((4, 4)).unsqueeze(0), "gate": False
        }  # fmt: skip
        notes: list[Memory] = []
        for frame in pool:
            seen = notes if kind is TwoPass else []
            first = memory.decode(model.sam, memory.condition(model.sam, frame, seen, frames=3), frame, **options)
            notes.append(memory.remember(model.sam, frame, first, model.notes))
        second = []
        for own, frame in enumerate(pool):
            others = [note for number, note in enumerate(notes) if number != own]
            features = memory.condition(model.sam, frame, others, frames=3)
            second.append(memory.decode(model.sam, features, frame, **options).logits)
    torch.testing.assert_close(found.logits, sum(second) / 3)
    torch.testing.assert_close(found.features, sum(frame.fine for frame in pool) / 3)


@TWO_PASSES
def test_a_sensor_alone_is_the_plain_single_look(kind: type[TwoPass]) -> None:
    twice, once = network(kind()), network()
    with torch.no_grad():
        for frame in scene():
            assert torch.equal(twice([frame]).logits, once([frame]).logits)


@TWO_PASSES
@pytest.mark.parametrize("backbone", ["nano", NANO_21], ids=["nano", "nano-2.1"])
def test_every_subset_equals_a_pass_of_its_own(kind: type[TwoPass], backbone: Any) -> None:
    model, frames = network(kind(), backbone=backbone), scene()
    subsets = [list(places) for size in (1, 2, 3) for places in combinations(range(3), size)]
    with torch.no_grad():
        found = dict(model.outputs(model.encode(frames), subsets))
        for number, places in enumerate(subsets):
            assert_same(found[number], model([frames[place] for place in places]))


def test_sam_21_counts_a_scene_s_frames_and_not_its_looks() -> None:
    """Its pointers' positions are divided by that number; a scene of three frames has three, however often seen."""
    plans: list[Any] = [kind().plan([4, 0, 5]) for kind in (Mean, TwoPass, TwoPassAlone)]
    assert [memory.frame_count(plan) for plan in plans] == [3, 3, 3]
    # A frame that stands twice in a scene counts twice, as it did before there were second looks.
    assert memory.frame_count(memory.in_turn([0, 0])) == 2 and memory.frame_count(memory.in_turn([7])) == 1


def test_first_looks_alone_know_no_order() -> None:
    """Memory attention is a sum over the memories, and SAM 2's pointers have no positions."""
    model, frames = network(TwoPassAlone()), scene()
    with torch.no_grad():
        wanted = model(frames)
        for order in ORDERS:
            assert_same(model([frames[place] for place in order]), wanted)


@pytest.mark.parametrize(
    ("kind", "looks", "remembered"),
    [(Mean, 4, 3), (TwoPass, 8, 4), (TwoPassAlone, 8, 4)],
)
def test_what_two_passes_cost(kind: type[Fusion], looks: int, remembered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encodings are the same; decoder and memory attention run twice, and what nobody sees is not remembered."""
    model, calls = network(kind()), Counter[str]()
    for name in ("decode", "remember"):
        monkeypatch.setattr(memory, name, counted(getattr(memory, name), calls, name))
    monkeypatch.setattr(model.encoder, "levels", counted(model.encoder.levels, calls, "encode"))
    with torch.no_grad():
        model(scene(4))
    assert calls == {"encode": 1, "decode": looks, "remember": remembered}


def counted(function: Any, calls: Counter[str], name: str) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        calls[name] += 1
        return function(*arguments, **options)

    return call


@TWO_PASSES
def test_every_sensor_s_memory_gets_a_gradient(kind: type[TwoPass], monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[Memory] = []
    honest = memory.remember

    def kept(*arguments: Any, **options: Any) -> Memory:
        notes.append(honest(*arguments, **options))
        for part in (notes[-1].features, notes[-1].pointer):
            part.retain_grad()
        return notes[-1]

    monkeypatch.setattr(memory, "remember", kept)
    network(kind(), is_changed=True)(scene()).logits.square().mean().backward()
    assert len(notes) == 3
    for note in notes:
        for part in (note.features, note.pointer):
            assert part.grad is not None and float(part.grad.abs().max()) > 0


@pytest.mark.parametrize("kind", [Mean, TwoPass])
def test_a_pass_in_another_order_is_that_of_its_frames_in_this_order(kind: type[Fusion]) -> None:
    model, frames = network(kind()), scene()
    with torch.no_grad():
        for order in ORDERS:
            (found,) = model(frames, [order])
            assert_same(found.output, model([frames[place] for place in order]))


def noting(*, sensors: int = 3, classes: int = 3, spread: float = 0.0) -> Notes:
    """Notes in nano's memory; with a spread they are random, as after training."""
    notes = Notes(WIDTH, sensors=sensors, classes=classes)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in notes.parameters():
            tensor.normal_(generator=generator).mul_(spread)
    return notes


@pytest.mark.parametrize("kind", [Mean, TwoPass])
def test_notes_start_as_the_paper_s_network_to_the_last_bit(kind: type[Fusion]) -> None:
    with torch.no_grad():
        found, wanted = network(kind(), notes=noting())(scene()), network(kind())(scene())
        other = network(kind(), notes=noting(spread=3.0))(scene())
    assert torch.equal(found.logits, wanted.logits) and torch.equal(found.features, wanted.features)
    assert float((other.logits - wanted.logits).abs().max()) > 1e-3, "notes that are learned must show"


@pytest.mark.parametrize("sensors", [(0, 2), (1, 2), (2, 0)])
def test_an_embedding_is_a_temporal_slot_of_the_sensor_s_own(sensors: tuple[int, int]) -> None:
    """Of two frames one memory is read: that of the first one's sensor, whatever its place among the frames."""
    notes, frames = noting(classes=0, spread=3.0), scene(2)
    plain = network(is_changed=True)
    with torch.no_grad():
        assert notes.sensors is not None
        plain.sam.maskmem_tpos_enc[plain.sam.num_maskmem - 1] += notes.sensors[sensors[0]]
        assert_same(network(notes=notes)(frames, sensors=sensors), plain(frames))


@pytest.mark.parametrize(
    ("given", "said"), [(None, "2 of 3 sensors; name them"), ((0,), "needs 2"), ((0, 3), "needs 2")]
)
def test_a_network_that_tells_sensors_apart_does_not_guess(given: Any, said: str) -> None:
    model = network(notes=noting())
    with pytest.raises(ValueError, match=said):
        model.logits(scene(2), sensors=given)


def test_a_network_that_does_not_tell_sensors_apart_need_not_know_them() -> None:
    with torch.no_grad():
        network(notes=noting(sensors=0)).logits(scene(2))


@TWO_PASSES
def test_subsets_and_orders_keep_each_sensor_s_embedding(kind: type[TwoPass]) -> None:
    model, frames = network(kind(), notes=noting(spread=3.0)), scene()
    wanted = [[1, 2], [2, 0], [0, 1, 2], [2, 1, 0]]
    with torch.no_grad():
        found = dict(model.outputs(model.encode(frames), wanted))
        for number, places in enumerate(wanted):
            assert_same(found[number], model([frames[place] for place in places], sensors=places))


@pytest.mark.parametrize("kind", [Mean, TwoPass])
def test_zeros_in_a_pass_are_of_the_sensor_in_whose_place_they_stand(kind: type[Fusion]) -> None:
    """The places 3 and 5 are zeros; the first and the third sensor are missing, each with its own embedding."""
    model, frames = network(kind(), notes=noting(spread=3.0)), scene()
    with torch.no_grad():
        whole, zeroed = model(frames, [[0, 1, 2], [3, 1, 5]])
        assert_same(whole.output, model(frames))
        assert_same(zeroed.output, model([torch.zeros_like(frames[0]), frames[1], torch.zeros_like(frames[2])]))


def test_the_classes_of_a_memory_by_hand() -> None:
    """A vector for each class, times the mean of its probability over a cell's 4×4; a closed gate shows none."""
    model = network(notes=noting(sensors=0, spread=3.0))
    with torch.no_grad():
        frame = model.encode(scene(1, batch=2))[0]
        logits = torch.zeros(2, 4, 16, 16)  # three classes, and a token of imported weights that the data do not use
        logits[:, 3] = 50.0
        logits[0, 0, :4, :2] = 100.0  # half of the first cell is surely class 0, all else each class alike
        said = Decoded(logits, torch.zeros(2, 4), torch.zeros(2, 4, model.sam.hidden_dim), torch.tensor([[1.0], [0.0]]))
        found = memory.remember(model.sam, frame, said, model.notes)
        plain = memory.remember(model.sam, frame, said, Notes(model.sam.mem_dim))
    assert model.notes.classes is not None
    vectors = model.notes.classes[:, :, 0, 0]  # (C_m, K)
    added = found.features - plain.features
    torch.testing.assert_close(added[0, :, 2, 3], vectors.mean(dim=1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        added[0, :, 0, 0], 0.5 * vectors[:, 0] + 0.5 * vectors.mean(dim=1), rtol=1e-4, atol=1e-4
    )  # fmt: skip
    assert not added[1].any() and torch.equal(found.pointer, plain.pointer)


@pytest.mark.parametrize(("kind", "remembered"), [(Mean, 2), (TwoPass, 3)])
def test_notes_learn_of_every_sensor_that_is_remembered_and_of_every_class(kind: type[Fusion], remembered: int) -> None:
    model = network(kind(), notes=noting(), is_changed=True).train()
    names = set_trainable(model, encoder="frozen", modalities=3)
    assert {"notes.sensors", "notes.classes"} <= set(names)
    model(scene()).logits.square().mean().backward()
    sensors, classes = model.notes.sensors, model.notes.classes
    assert sensors is not None and sensors.grad is not None and classes is not None and classes.grad is not None
    assert [bool(row.any()) for row in sensors.grad] == [place < remembered for place in range(3)]
    assert bool(classes.grad.any(dim=0).all())
    assert not [name for name in set_trainable(model, encoder="lora", modalities=1) if name.startswith("notes.")]
