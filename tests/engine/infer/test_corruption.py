from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from memorysam_cli.dataset import Modality
from memorysam_cli.engine.infer import corruption
from memorysam_cli.engine.infer.corruption import NOISES, SHARES, Draw, corrupt

IMG, EVENT = Modality(name="img", kind="rgb"), Modality(name="event", kind="event")


class Told:
    """A generator that gives what it is told."""

    def __init__(self, *values: Any) -> None:
        self.values = list(values)

    def random(self, *_: Any, **__: Any) -> Any:
        return np.asarray(self.values.pop(0), np.float32)

    def standard_normal(self, *_: Any, **__: Any) -> Any:
        return np.asarray(self.values.pop(0), np.float32)

    def integers(self, *_: Any, **__: Any) -> Any:
        return np.asarray(self.values.pop(0))


def batch(scenes: int = 2, *, size: int = 64) -> torch.Tensor:
    return torch.randn(scenes, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_elements_below_the_share_go_missing_and_no_others() -> None:
    frame = torch.tensor([1.0, 2.0, 3.0, 4.0])
    rng: Any = Told([0.0, 0.24, 0.25, 0.9])
    assert corruption.without_elements(frame, share=0.25, rng=rng).tolist() == [0, 0, 3, 4]


def test_salt_comes_first_and_pepper_wins_where_both_fall() -> None:
    frame = torch.arange(10.0) / 10
    rng: Any = Told([0, 3, 3], [3, 9, 9])  # ceil(0.5 · 10 / 2) = 3 places each
    spoilt = corruption.salt_and_pepper(frame, density=0.5, low=-7, high=7, rng=rng)
    torch.testing.assert_close(spoilt, torch.tensor([7, 0.1, 0.2, -7, 0.4, 0.5, 0.6, 0.7, 0.8, -7]))


def test_the_gaussian_is_added_in_its_width() -> None:
    rng: Any = Told([1.0, -2.0])
    torch.testing.assert_close(
        corruption.with_gaussian(torch.tensor([5.0, 5.0]), sigma=0.5, rng=rng), torch.tensor([5.5, 4.0])
    )


def test_the_published_levels() -> None:
    assert SHARES == {"0.25": 0.25, "0.5": 0.5, "0.75": 0.75}
    levels = {level: (noise.density, noise.sigma) for level, noise in NOISES.items()}
    assert levels == {"low": (0.05, 0.1), "mid": (0.1, 0.2), "high": (0.2, 0.5)}


@pytest.mark.parametrize("level", SHARES)
def test_elements_go_missing_at_their_share_in_each_channel_on_its_own(level: str) -> None:
    spoilt = corrupt(batch(size=128), IMG, scenes=["a", "b"], level=level, draw=Draw(0))
    gone = spoilt == 0
    assert abs(float(gone.float().mean()) - SHARES[level]) < 0.01
    together = gone.all(1).float().mean()  # of all three channels at once
    assert abs(float(together) - SHARES[level] ** 3) < 0.02
    torch.testing.assert_close(spoilt[~gone], batch(size=128)[~gone], rtol=0, atol=0)


@pytest.mark.parametrize("level", NOISES)
def test_noise_has_the_statistics_that_its_definition_gives(level: str) -> None:
    clean, noise = batch(size=256), NOISES[level]
    grainy = corrupt(clean, EVENT, scenes=["a", "b"], level=level, draw=Draw(3))
    each = noise.density / 2
    # Of n places drawn with replacement, 1 - exp(-n / N) of all are hit; pepper overwrites salt.
    pepper, salt = 1 - math.exp(-each), (1 - math.exp(-each)) * math.exp(-each)
    assert abs(float((grainy == clean.min()).float().mean()) - pepper) < 2e-3
    assert abs(float((grainy == clean.max()).float().mean()) - salt) < 2e-3
    # Where all is alike, salt and pepper change nothing.
    added = corrupt(torch.zeros(1, 3, 256, 256), IMG, scenes=["a"], level=level, draw=Draw(3))
    assert abs(float(added.std()) / noise.sigma - 1) < 0.01 and abs(float(added.mean())) < 0.01 * noise.sigma


def test_events_get_no_gaussian_and_others_do() -> None:
    clean = batch(1)
    events = corrupt(clean, EVENT, scenes=["a"], level="low", draw=Draw(0))
    assert float((events == clean).float().mean()) > 0.9
    image = corrupt(clean, IMG, scenes=["a"], level="low", draw=Draw(0))
    assert float((image == clean).float().mean()) < 0.01


def test_extremes_of_the_batch_or_of_the_scene() -> None:
    clean = torch.stack([torch.zeros(3, 32, 32), torch.full((3, 32, 32), 5.0)])
    clean[0, 0, 0, 0], clean[1, 0, 0, 0] = -1.0, 9.0
    shared = corrupt(clean, EVENT, scenes=["a", "b"], level="high", draw=Draw(0))
    assert (shared[0].max(), shared[0].min(), shared[1].max(), shared[1].min()) == (9, -1, 9, -1)
    own = corrupt(clean, EVENT, scenes=["a", "b"], level="high", draw=Draw(0, extremes="scene"))
    assert (own[0].max(), own[0].min(), own[1].max(), own[1].min()) == (0, -1, 9, 5)


def test_places_are_drawn_over_the_whole_batch_as_published() -> None:
    clean = torch.linspace(0.1, 0.9, 4 * 3 * 16 * 16).view(4, 3, 16, 16)
    hits = []
    for seed in range(20):
        spoilt = corrupt(clean, EVENT, scenes=["a", "b", "c", "d"], level="low", draw=Draw(seed))
        count = ((spoilt != clean) & (spoilt == clean.min())).sum((1, 2, 3))
        # ceil(d·n/2) places of the batch in all, less those that are drawn twice; a scene's part of them varies.
        assert int(count.sum()) <= math.ceil(0.05 * clean.numel() / 2)
        hits.append(int(count[0]))
    assert max(hits) > math.ceil(0.05 * clean[0].numel() / 2) > min(hits)


@pytest.mark.parametrize("level", ["0.5", "mid"])
def test_a_scene_is_corrupted_alike_in_any_batch(level: str) -> None:
    clean, draw = batch(3), Draw(4, extremes="scene")
    together = corrupt(clean, IMG, scenes=["a", "b", "c"], level=level, draw=draw)
    alone = corrupt(clean[1:2], IMG, scenes=["b"], level=level, draw=draw)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=0)


@pytest.mark.parametrize("level", ["0.5", "mid"])
def test_seed_repeat_scene_modality_and_level_each_change_the_draw(level: str) -> None:
    clean = batch(1)

    def one(*, scene: str = "a", name: str = "img", seed: int = 0, repeat: int = 0, at: str = level) -> torch.Tensor:
        modality = Modality(name=name, kind="rgb")
        return corrupt(clean, modality, scenes=[scene], level=at, draw=Draw(seed, repeat))

    assert torch.equal(one(), one())
    others = [
        one(scene="b"),
        one(name="depth"),
        one(seed=1),
        one(repeat=1),
        one(at="0.25" if level == "0.5" else "low"),
    ]
    assert not any(torch.equal(one(), other) for other in others)


def test_the_draws_are_those_of_other_machines() -> None:
    """A change of the recipe of random numbers would silently change all seeded results."""
    rng = Draw(7, 2).generator(["fog/val/a/1"], modality="img", level="0.5")
    assert rng.integers(0, 1000, 4).tolist() == [835, 535, 233, 945]


def test_the_frame_itself_is_left_alone() -> None:
    clean = batch()
    for level in (*SHARES, *NOISES):
        corrupt(clean, IMG, scenes=["a", "b"], level=level, draw=Draw(0))
    torch.testing.assert_close(clean, batch(), rtol=0, atol=0)


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_shares_and_densities_outside_0_to_1_are_refused(value: float) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="share"):
        corruption.without_elements(torch.zeros(3), share=value, rng=rng)
    with pytest.raises(ValueError, match="density"):
        corruption.salt_and_pepper(torch.zeros(3), density=value, low=0, high=1, rng=rng)
