from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memorysam_cli import recipe as recipes
from memorysam_cli.dataset import DatasetInfo, Modality
from memorysam_cli.engine.infer import views
from memorysam_cli.engine.infer.inference import inference_mode
from memorysam_cli.engine.infer.views import Augmented, Tiled, View, WithZeros
from memorysam_cli.model import weights

from ..stand_ins import MODALITIES, Brightness

SENSORS = tuple(Modality(name=name, kind="gray") for name in ("a", "b", "c", "d"))
ANGLE = Modality(name="aolp", kind="angle", flip="negate_sine")


class Noting(Brightness):
    """Keeps the frames that it was given."""

    def logits(self, frames: list[Tensor], **options: Any) -> Tensor:
        self.given = frames
        return super().logits(frames, **options)


class OfPixels:
    """A network whose logits are a function of each pixel of the first frame."""

    training = False

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function, self.sizes = function, list[tuple[int, ...]]()

    def eval(self) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def logits(self, frames: list[Tensor]) -> Tensor:
        self.sizes.append(tuple(frames[0].shape[-2:]))
        return self.function(frames[0])


def linear(frame: Tensor) -> Tensor:
    """Probabilities x and 1 - x of a frame's values."""
    return torch.cat([frame[:, :1], 1 - frame[:, :1]], 1).log()


def random_frames(count: int = 1, *, size: tuple[int, int] = (64, 96), batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.rand(batch, 3, *size, generator=generator) for _ in range(count)]


# zeros


@pytest.mark.parametrize("given", [(0, 1, 2, 3), (0, 2), (3,), (1, 2, 3)])
def test_zeros_stand_where_the_memory_expects_what_is_missing(given: tuple[int, ...]) -> None:
    network, frames = Noting(), random_frames(len(given))
    WithZeros(network, modalities=[SENSORS[i] for i in given], known=SENSORS).logits(frames)
    assert len(network.given) == 4
    for index, frame in enumerate(network.given):
        expected = frames[given.index(index)] if index in given else torch.zeros_like(frames[0])
        torch.testing.assert_close(frame, expected, rtol=0, atol=0)


@pytest.mark.parametrize("given", [(1, 0), (0, 0)])
def test_modalities_in_another_order_are_refused(given: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="in its order"):
        WithZeros(Brightness(), modalities=[SENSORS[i] for i in given], known=SENSORS)
    with pytest.raises(ValueError, match="in its order"):
        WithZeros(Brightness(), modalities=[ANGLE], known=SENSORS)


def test_weights_with_more_tokens_than_classes_see_zeros_too() -> None:
    """As imported MCubeS weights are: 25 tokens, of which 20 are classes."""
    names = [f"class {index}" for index in range(20)]
    info = DatasetInfo(
        name="many", title="Many", classes=tuple(names), palette=tuple((i, i, i) for i in range(20)), modalities=SENSORS
    )  # fmt: skip
    recipe = recipes.parse(
        {
            "name": "many",
            "data": {"dataset": "many", "modalities": ["c", "a", "d"], "image_size": 64},
            "model": {"backbone": "nano", "base_weights": "random", "object_gate": False},
            "spmm": {"variant": "off", "weight": 0},
            "optim": {"lr": 1e-4},
            "train": {"epochs": 1},
        },
        where="test",
    )
    base = weights.Base(backbone="nano", source="random:0", sha256="")
    card = weights.WeightsCard(recipe=recipe, dataset=info, base=base, tokens=25, image_size=64, versions={})
    network = weights.build(card).eval()
    first, last = random_frames(2, size=(64, 64), batch=1)
    known = card.modalities
    assert [modality.name for modality in known] == ["c", "a", "d"]
    with torch.inference_mode():
        found = WithZeros(network, modalities=[known[0], known[2]], known=known).logits([first, last])
        expected = network.logits([first, torch.zeros_like(first), last])
    assert found.shape == (1, 20, 64, 64)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# scales and mirrored images


def test_one_scale_without_flip_decides_as_the_network_alone() -> None:
    frames = random_frames()
    found = Augmented(Brightness(), modalities=MODALITIES[:1], scales=(1,), flip=False).logits(frames)
    torch.testing.assert_close(found.softmax(1), Brightness().logits(frames).softmax(1))
    assert torch.equal(found.argmax(1), Brightness().logits(frames).argmax(1))


def test_the_result_is_the_mean_of_the_softmax_by_hand() -> None:
    frames = random_frames()
    found = Augmented(Brightness(), modalities=MODALITIES[:1], scales=(0.5, 1), flip=True).logits(frames)
    half = F.interpolate(frames[0], (32, 64), mode="bilinear", align_corners=False)  # 32, and 48 up to 64

    def enlarged(logits: Tensor) -> Tensor:
        return F.interpolate(logits, (64, 96), mode="bilinear", align_corners=False).softmax(1)

    seen = [
        enlarged(Brightness().logits([half])),
        enlarged(Brightness().logits([half.flip(-1)]).flip(-1)),
        Brightness().logits(frames).softmax(1),
        Brightness().logits([frames[0].flip(-1)]).flip(-1).softmax(1),
    ]
    torch.testing.assert_close(found.exp(), torch.stack(seen).mean(0))


def test_confidence_is_the_softmax_of_what_is_given() -> None:
    found = Augmented(Brightness(), modalities=MODALITIES[:1], scales=(0.75, 1.25)).logits(random_frames())
    torch.testing.assert_close(found.softmax(1), found.exp())
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2, 64, 96))


def test_every_scale_is_seen_twice_with_sides_that_are_multiples_of_32() -> None:
    network = Brightness()
    Augmented(network, modalities=MODALITIES[:1], scales=views.SCALES).logits(random_frames())
    # 32×48, 48×72, 64×96, 80×120, 96×144 and 112×168, each side then up to a multiple of 32
    sizes = [(32, 64), (64, 96), (64, 96), (96, 128), (96, 160), (128, 192)]
    assert [shape[2:] for _, shape in network.calls] == [size for size in sizes for _ in range(2)]


def test_mirrored_frames_get_mirrored_results() -> None:
    frames = random_frames(2)
    augmented = Augmented(Brightness(), modalities=MODALITIES, scales=(0.5, 1, 1.5))
    mirrored = augmented.logits([frame.flip(-1) for frame in frames])
    torch.testing.assert_close(mirrored, augmented.logits(frames).flip(-1), rtol=1e-4, atol=1e-4)


def test_what_is_nearest_in_the_data_stays_nearest() -> None:
    class Values(Noting):
        seen: set[float]

        def logits(self, frames: list[Tensor]) -> Tensor:
            self.seen = getattr(self, "seen", set()) | set(frames[1].unique().tolist())
            return super().logits(frames)

    frames = [torch.rand(1, 3, 64, 64), (torch.rand(1, 3, 64, 64) > 0.9).float()]
    event = Modality(name="event", kind="event", interpolation="nearest")
    network = Values()
    Augmented(network, modalities=(MODALITIES[0], event), scales=(0.5, 0.75, 1.5)).logits(frames)
    assert network.seen == {0.0, 1.0}


@pytest.mark.parametrize(
    ("flip", "signs"), [("mirror", (1, 1, 1)), ("negate_sine", (-1, 1, -1)), ("negate_cosine", (1, -1, 1))]
)
@pytest.mark.parametrize("statistics", [None, ((0.1, -0.2, 0.3), (0.5, 2.0, 0.25))])
def test_a_flip_changes_the_sign_of_values_and_not_of_what_normalization_made_of_them(
    flip: Any, signs: tuple[int, ...], statistics: tuple[tuple[float, ...], tuple[float, ...]] | None
) -> None:
    values = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, std = statistics or (None, None)
    modality = Modality(name="aolp", kind="angle", flip=flip, mean=mean, std=std)

    def normalized(stored: Tensor) -> Tensor:
        if mean is None or std is None:
            return stored
        return (stored - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)

    expected = normalized(values.flip(-1) * torch.tensor(signs).view(1, 3, 1, 1))
    found = views.flipped(normalized(values), modality)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(views.flipped(found, modality), normalized(values))


@pytest.mark.parametrize("scales", [(), (0,), (1, -1)])
def test_scales_that_are_none_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="positive numbers"):
        Augmented(Brightness(), modalities=MODALITIES, scales=scales)


def test_probabilities_too_small_for_float32_stay_finite() -> None:
    certain = OfPixels(lambda frame: torch.cat([frame[:, :1] * 0 + 1e4, frame[:, :2] * 0], 1))
    found = Augmented(certain, modalities=MODALITIES[:1], scales=(1,)).logits(random_frames())
    assert found.isfinite().all() and (found.argmax(1) == 0).all()


# windows


@pytest.mark.parametrize("size", [(64, 64), (64, 32), (32, 32)])
def test_one_window_is_the_network_alone_bit_for_bit(size: tuple[int, int]) -> None:
    frames = random_frames(size=size)
    found = Tiled(Brightness(), size=64, overlap=0.25).logits(frames)
    torch.testing.assert_close(found, Brightness().logits(frames), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(65, 64), (97, 131), (64, 200), (256, 70)])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
def test_windows_that_agree_blend_to_what_they_agree_on(size: tuple[int, int], overlap: float) -> None:
    frames = random_frames(size=size)
    network = OfPixels(lambda frame: Brightness().logits([frame]))
    found = Tiled(network, size=64, overlap=overlap).logits(frames)
    torch.testing.assert_close(found.exp(), Brightness().logits(frames).softmax(1), rtol=1e-5, atol=1e-6)
    assert set(network.sizes) == {(64, 64)}


@pytest.mark.parametrize("overlap", [0, 0.25, 0.6])
def test_constant_and_linear_fields_come_out_as_they_are(overlap: float) -> None:
    rows, columns = torch.linspace(0.1, 0.4, 150)[:, None], torch.linspace(0.1, 0.5, 117)
    for field in (rows + columns, torch.full((150, 117), 0.3)):
        frame = field.expand(1, 3, 150, 117)
        found = Tiled(OfPixels(linear), size=64, overlap=overlap).logits([frame])
        torch.testing.assert_close(found.exp()[0, 0], field, rtol=1e-5, atol=1e-6)


def test_windows_that_disagree_are_blended_without_a_step() -> None:
    answers = iter([0.9, 0.1])

    def by_window(frame: Tensor) -> Tensor:
        return linear(torch.full_like(frame, next(answers)))

    found = Tiled(OfPixels(by_window), size=64, overlap=0.5).logits([torch.zeros(1, 3, 64, 96)]).exp()[0, 0]
    torch.testing.assert_close(found[:1].expand_as(found), found)  # no trace of rows
    steps = found[0].diff()
    assert steps.max() < 1e-6 and steps.abs().max() < 0.05
    torch.testing.assert_close(found[0, [0, 20, 31, 64, 95]], torch.tensor([0.9, 0.9, 0.9, 0.1, 0.1]))
    torch.testing.assert_close(found[0, 32:64] + found[0, 32:64].flip(0), torch.ones(32))  # symmetric about the middle


@given(
    length=st.integers(1, 5000), size=st.sampled_from([32, 64, 512, 1024]), overlap=st.floats(0, 0.95, exclude_max=True)
)
def test_windows_cover_every_pixel_and_overlap_as_asked(length: int, size: int, overlap: float) -> None:
    starts = views.window_starts(length, size=size, overlap=overlap)
    if length <= size:
        assert starts == [0]
        return
    assert starts[0] == 0 and starts[-1] == length - size
    steps = [after - before for before, after in itertools.pairwise(starts)]
    stride = max(1, int(size * (1 - overlap)))
    assert all(0 < step <= stride for step in steps)
    assert max(steps) - min(steps) <= 1  # evenly
    assert (len(starts) - 2) * stride < length - size  # one fewer would leave a gap


@pytest.mark.parametrize(("size", "overlap"), [(48, 0.25), (0, 0.25), (64, 1), (64, -0.1)])
def test_impossible_windows_are_refused(size: int, overlap: float) -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        Tiled(Brightness(), size=size, overlap=overlap)


# together


def test_the_plain_view_is_the_network_itself() -> None:
    network = Brightness()
    assert views.show(network, View(), modalities=SENSORS, known=SENSORS, size=64) is network
    assert views.show(network, View(missing="zero"), modalities=SENSORS, known=SENSORS, size=64) is network


@pytest.mark.parametrize("view", [View(), View(scales=(0.5, 1)), View(tile=True), View(scales=(1,), tile=True)])
def test_a_network_learns_which_sensors_are_there_whatever_the_view(view: View) -> None:
    network = Brightness()
    views.show(network, view, modalities=[SENSORS[1], SENSORS[3]], known=SENSORS, size=64).logits(
        random_frames(2, size=(64, 128))
    )
    assert network.sensors == [1, 3]


def test_each_window_is_augmented_and_completed_by_zeros() -> None:
    network = Brightness()
    view = View(missing="zero", scales=(0.5, 1), tile=True, overlap=0)
    shown = views.show(network, view, modalities=SENSORS[1:3], known=SENSORS, size=64)
    found = shown.logits(random_frames(2, size=(64, 128)))
    assert network.calls == [(4, (2, 3, side, side)) for _ in range(2) for side in (32, 32, 64, 64)]
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2, 64, 128))


@pytest.mark.parametrize("training", [True, False])
def test_a_view_has_the_mode_of_its_network_and_gives_it_back(training: bool) -> None:
    network = Brightness().train(training)
    view = View(missing="zero", scales=(1,), tile=True)
    shown = views.show(network, view, modalities=SENSORS[:1], known=SENSORS, size=64)
    with inference_mode(shown):
        shown.logits(random_frames(size=(64, 128)))
        assert shown.training is network.training is False
    assert (network.training, network.was_training, network.grad_was_enabled) == (training, False, False)


def test_a_view_says_what_it_is() -> None:
    assert View().to_json(size=64) == {"missing": "drop", "tta": None, "tile": None}
    assert View("zero", (0.5, 1), tile=True, overlap=0.5).to_json(size=64) == {
        "missing": "zero", "tta": {"scales": [0.5, 1], "flip": True}, "tile": {"window": 64, "overlap": 0.5},
    }  # fmt: skip
