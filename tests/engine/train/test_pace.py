"""Scenes per second, by a clock that the test winds."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from memorysam_cli.engine import runtime
from memorysam_cli.engine.train import loop
from memorysam_cli.engine.train.loop import Pace


@pytest.fixture
def wind(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let so many seconds go by."""
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(runtime, "peak_bytes", lambda _device: 3_500_000_000)

    def later(seconds: float) -> None:
        now[0] += seconds

    return later


def test_the_figures_of_updates_and_of_their_epoch(wind: Callable[[float], None]) -> None:
    clocked = Pace(torch.device("cpu"))
    wind(2.0)
    assert clocked.update(8, waited=0.5) == {"scenes_per_second": 4.0, "seconds_data": 0.5, "peak_memory_gb": 3.5}
    wind(50.0)  # a checkpoint
    clocked.restart()
    wind(8.0)
    assert clocked.update(8, waited=0.0)["scenes_per_second"] == 1.0
    said = "16 scenes in 10 s, 1.60 scenes/s, 5 % of the time in the loader, peak memory 3.5 GB"
    assert clocked.epoch() == said
    clocked.start_epoch()
    assert clocked.epoch().startswith("0 scenes")


def notes(clocked: Pace, wind: Callable[[float], None], *seconds: float) -> list[str]:
    """What is noted while updates of 8 scenes take so many seconds each."""
    noted = []
    for each in seconds:
        wind(each)
        clocked.update(8, waited=0.0)
        noted += [clocked.slow_note] if clocked.slow_note is not None else []
    return noted


def test_a_pace_below_a_tenth_of_its_best_is_noted_once(wind: Callable[[float], None]) -> None:
    clocked = Pace(torch.device("cpu"))
    assert not notes(clocked, wind, *[0.625] * 32)  # 12.8 scenes/s
    assert not notes(clocked, wind, *[5.0] * 20)  # 1.6: slow, but more than a tenth
    (note,) = notes(clocked, wind, *[8.0] * 20)
    assert re.fullmatch(
        r"1 scenes/s, less than a tenth of this run's best 12\.8: the machine is busy with something else; "
        "memorysam doctor shows more",
        note,
    )
    assert not notes(clocked, wind, *[0.625] * 32, *[80.0] * 10)  # once in a run


def test_slow_first_updates_and_a_single_long_one_are_no_alarm(wind: Callable[[float], None]) -> None:
    clocked = Pace(torch.device("cpu"))
    assert not notes(clocked, wind, 60.0, 60.0, 60.0, *[0.5] * 40)  # compiling, filling caches
    assert not notes(clocked, wind, 300.0, *[0.5] * 40)  # a disk that hangs
    assert not notes(clocked, wind, 300.0, *[0.5] * 40, 300.0, *[0.5] * 40)


def test_validations_and_checkpoints_are_no_alarm(wind: Callable[[float], None]) -> None:
    clocked = Pace(torch.device("cpu"))
    noted = notes(clocked, wind, *[0.5] * 40)
    for _ in range(20):
        wind(600.0)  # a validation
        clocked.start_epoch()
        noted += notes(clocked, wind, *[0.5] * 5)
        wind(300.0)  # a checkpoint
        clocked.restart()
        noted += notes(clocked, wind, *[0.5] * 5)
    assert not noted
