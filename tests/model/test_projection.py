"""The frames of one sensor become one by a learned projection, and everything else stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memorysam_cli import recipe as recipes
from memorysam_cli.dataset import DatasetInfo, Modality
from memorysam_cli.errors import UsageError
from memorysam_cli.model.network import Projection
from memorysam_cli.model.weights import Segmenter, build_for_training
from memorysam_cli.recipe import Recipe

NAMES = ("ms-1", "rgb", "ms-2")
INFO = DatasetInfo(
    name="tiny", title="Tiny", classes=("a", "b"), palette=((0, 0, 0), (9, 9, 9)),
    modalities=tuple(Modality(name=name, kind="rgb") for name in NAMES),
)  # fmt: skip


def recipe_of(*projection: str, modalities: tuple[str, ...] = NAMES, **model: object) -> Recipe:
    content = {
        "name": "small",
        "data": {"dataset": "tiny", "modalities": list(modalities), "image_size": 32, "workers": 0},
        "model": {"backbone": "nano", "base_weights": "random", "projection": list(projection), **model},
        "spmm": {"variant": "off", "weight": 0},
        "optim": {"lr": 1e-4},
        "train": {"epochs": 1, "seed": 11},
    }
    return recipes.parse(content, where="test")


def flat(*values: float) -> Tensor:
    """A frame of one color."""
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 2, 2)


def test_it_begins_as_the_means_of_thirds_of_the_channels() -> None:
    projection = Projection({"ms": (0, 2), "rgb": (1,)})
    frames, places = projection([flat(1, 2, 3), flat(7, 8, 9), flat(4, 5, 6)], range(3))
    assert places == [0, 1] and frames[1] is not None
    torch.testing.assert_close(frames[0], flat(1.5, 3.5, 5.5))  # (1 + 2) / 2, (3 + 4) / 2, (5 + 6) / 2
    torch.testing.assert_close(frames[1], flat(7, 8, 9), rtol=0, atol=0)
    assert {name: tuple(weight.shape) for name, weight in projection.named_parameters()} == {"ms_weight": (3, 6)}


def test_zeros_stay_zeros_and_what_is_missing_counts_as_zeros() -> None:
    projection = Projection({"ms": (0, 1), "rgb": (2,)})
    (zero,), _ = projection([flat(0, 0, 0)], [0])
    assert not bool(zero.any())
    (half,), places = projection([flat(4, 5, 6)], [1])
    torch.testing.assert_close(half, flat(0, 2, 5.5))
    assert places == [0] and projection([flat(1, 1, 1)], [2])[1] == [1]


def test_without_frames_to_join_nothing_changes() -> None:
    frames = [flat(1, 2, 3), flat(4, 5, 6)]
    for projection in (Projection(), Projection({"a": (0,), "b": (1,)})):
        joined, places = projection(frames, [3, 5])
        assert joined == frames and places == [3, 5] and not list(projection.parameters())


def drawn(recipe: Recipe) -> Segmenter:
    """A network whose projection is anything."""
    network = build_for_training(recipe, INFO).eval()
    with torch.no_grad():
        for weight in network.projection.parameters():
            weight.normal_(generator=torch.Generator().manual_seed(5))
    return network


@pytest.mark.parametrize("model", [{}, {"modality_embedding": True, "fusion": "two_pass"}])
def test_the_memory_sees_a_projected_sensor_as_one(model: dict[str, object]) -> None:
    """The same as a network of two sensors that is given the projected frame: ms stands first, as its first frame."""
    network = drawn(recipe_of("ms", **model))
    pair = INFO.model_copy(update={"modalities": tuple(Modality(name=name, kind="rgb") for name in ("ms", "rgb"))})
    plain = build_for_training(recipe_of(modalities=("ms", "rgb"), **model), pair).eval()
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("projection.")}
    plain.load_state_dict(own)
    frames = [torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    (weight,) = network.projection.parameters()
    joined = torch.einsum("oc,bchw->bohw", weight, torch.cat([frames[0], frames[2]], dim=1))
    with torch.no_grad():
        torch.testing.assert_close(network.logits(frames), plain.logits([joined, frames[1]]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            network.logits([frames[1]], sensors=[1]), plain.logits([frames[1]], sensors=[1]), rtol=1e-4, atol=1e-5
        )
        found, wanted = network(frames, [range(2), (2, 1)]), plain([joined, frames[1]], [range(2), (2, 1)])
        for one, other in zip(found, wanted, strict=True):  # the second pass has a frame of zeros instead of ms
            torch.testing.assert_close(one.output.logits, other.output.logits, rtol=1e-4, atol=1e-5)


def test_which_frames_are_given_is_never_guessed() -> None:
    network = drawn(recipe_of("ms"))
    with pytest.raises(ValueError, match="2 of 3 sensors; name them"):
        network([torch.zeros(1, 3, 32, 32)] * 2)
    with pytest.raises(ValueError, match="needs 2 places"):
        network.encode([torch.zeros(1, 3, 32, 32)] * 2, sensors=[0, 0])


@pytest.mark.parametrize(
    ("projection", "words"),
    [
        (("rgb",), "'rgb' is a single frame"),
        (("ir",), "'ir' needs frames to join, ir-1 and ir-2 at least, and data.modalities has ms-1, rgb, ms-2"),
        (("ms-1",), "'ms-1' is a single frame"),
    ],
)
def test_what_has_no_frames_to_join_is_refused(projection: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recipe_of(*projection)
    with pytest.raises(UsageError, match=words):
        recipe_of(*projection, modalities=("all",)).for_dataset("tiny", NAMES)


def test_a_recipe_s_sets_of_sensors_are_those_of_whole_sensors() -> None:
    recipe = recipe_of("ms")
    robust = recipe.robust.model_copy(update={"subset": recipe.robust.subset.model_copy(update={"weight": 1.0})})
    recipe = recipe.model_copy(update={"robust": robust})
    assert recipe.sensors == {"ms": ("ms-1", "ms-2"), "rgb": ("rgb",)}
    assert recipe.trained_subsets(zeroed=False) == (("ms-1", "ms-2", "rgb"), ("ms-1", "ms-2"), ("rgb",))
    assert recipe.trains_on(("ms-1", "ms-2"), zeroed=False) and not recipe.trains_on(("ms-1", "rgb"), zeroed=False)
